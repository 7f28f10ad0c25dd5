//! Which precision the matrix products of a thread's operations are made in.

use std::cell::Cell;

use fewvit_kernels::Precision;

thread_local! {
    static PRECISION: Cell<Precision> = const { Cell::new(Precision::F32) };
}

/// Runs `work` with the operations of this thread multiplying in `precision`; their backward passes
/// do too, whenever they run. Devices other than the CPU compute as their tensors say.
pub fn autocast<T>(precision: Precision, work: impl FnOnce() -> T) -> T {
    let before = PRECISION.replace(precision);
    let result = work();
    PRECISION.set(before);
    result
}

/// That of the operation being called.
pub(super) fn current() -> Precision {
    PRECISION.get()
}
