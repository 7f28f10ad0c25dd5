//! Passes over vectors as long as the parameters, split between threads.

use std::sync::{Mutex, PoisonError};

/// Values a thread takes at a time: few enough that those of all vectors of an optimiser step stay
/// in the second-level cache from one kernel to the next.
pub(super) const CHUNK: usize = 16 * 1024;

/// Calls `work` on each of the items on `threads` threads, this one among them, which take the next
/// one as they become free.
pub(super) fn for_each<T>(
    threads: usize,
    items: impl Iterator<Item = T> + Send,
    work: impl Fn(T) + Sync,
) {
    let threads = threads.min(items.size_hint().0);
    let items = Mutex::new(items);
    let next = || items.lock().unwrap_or_else(PoisonError::into_inner).next();
    let serve = || {
        while let Some(item) = next() {
            work(item);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(serve);
        }
        serve();
    });
}
