//! Work on many items by a few threads, results in order.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};

use crate::error::Result;

/// Calls `work(0..count)` on `threads` threads and `sink(i, result)` here, in order of `i`.
///
/// # Errors
/// The first error of `sink`, which ends the work.
pub fn map_in_turn<T: Send>(
    count: usize,
    threads: usize,
    work: impl Fn(usize) -> T + Sync,
    mut sink: impl FnMut(usize, T) -> Result<()>,
) -> Result<()> {
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    // Bounded, so that slow writing holds up decoding instead of filling memory.
    let (sender, receiver) = mpsc::sync_channel(2 * threads.max(1));
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            let (sender, work, next, stop) = (sender.clone(), &work, &next, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= count || sender.send((i, work(i))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        let (mut waiting, mut due) = (BTreeMap::new(), 0);
        let mut take = |i, result| {
            waiting.insert(i, result);
            while let Some(result) = waiting.remove(&due) {
                sink(due, result)?;
                due += 1;
            }
            Ok(())
        };
        let outcome = receiver.into_iter().try_for_each(|(i, result)| take(i, result));
        stop.store(true, Ordering::Relaxed);
        outcome
    })
}

/// `f` of each item, on `threads` threads, results in the items' order.
///
/// # Errors
/// The first error in the items' order.
pub fn map_in_order<T: Sync, R: Send>(
    items: &[T],
    threads: usize,
    f: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let mut results = Vec::with_capacity(items.len());
    let sink = |_, result: Result<R>| {
        results.push(result?);
        Ok(())
    };
    map_in_turn(items.len(), threads, |i| f(&items[i]), sink)?;
    Ok(results)
}

/// Calls `work` on each item, on `threads` threads.
///
/// # Errors
/// One that `work` gave; it ends its own thread and not the others.
pub fn for_each<T: Send>(
    items: Vec<T>,
    threads: usize,
    work: impl Fn(T) -> Result<()> + Sync,
) -> Result<()> {
    let items = Mutex::new(items.into_iter());
    let next = || items.lock().unwrap_or_else(PoisonError::into_inner).next();
    let take_turns = || {
        while let Some(item) = next() {
            work(item)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(take_turns)).collect();
        let join = |thread: std::thread::ScopedJoinHandle<Result<()>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().try_for_each(join)
    })
}
