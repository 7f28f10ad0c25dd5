//! Reading what a device computed, and whether it can be believed.

use std::panic;
use std::sync::{Once, OnceLock};

use burn::tensor::Tensor;

use crate::error::{Error, Result, caught};

/// The values of a tensor, once the device has computed them.
///
/// # Errors
/// The device failed at this or at anything before it.
pub fn read<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    let values = watched(|| tensor.try_into_vec_as::<f32>())?;
    intact()?;
    values.map_err(|e| failed(&e.to_string()))
}

/// What `f` returns, which uses a device.
///
/// # Errors
/// `f` panics, as burn does where a device refuses.
pub fn watched<T>(f: impl FnOnce() -> T) -> Result<T> {
    caught(f).map_err(|reason| failed(&reason))
}

/// How the first thread of a device that panicked did so.
static PANIC: OnceLock<String> = OnceLock::new();

/// Whether no device's thread has panicked so far.
///
/// # Errors
/// One has: its results since then are whatever lay in memory.
fn intact() -> Result<()> {
    PANIC.get().map_or(Ok(()), |reason| Err(failed(reason)))
}

/// Notes panics on devices' threads from now on. Nothing else tells of them: burn catches them, logs
/// a warning and goes on with the next operation.
pub(super) fn watch_threads() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let text = info.payload_as_str().unwrap_or("its thread panicked");
            if is_a_devices(std::thread::current().name().unwrap_or_default(), text) {
                let _first_wins = PANIC.set(text.to_owned());
            }
            before(info);
        }));
    });
}

/// Whether a device panicked: cubecl calls its threads `DSU-0-0` or `DSD-0-0`, and says `wgpu error`
/// on whatever thread wgpu reports one.
fn is_a_devices(thread: &str, text: &str) -> bool {
    thread.starts_with("DSU-") || thread.starts_with("DSD-") || text.starts_with("wgpu error")
}

pub(in crate::engine) fn failed(reason: &str) -> Error {
    Error::Device(format!(
        "the device failed: {reason}\n  the last checkpoint is kept: `fewvit resume` goes on from it"
    ))
}
