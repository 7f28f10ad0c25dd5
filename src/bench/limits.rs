//! Multiply-add limit and memory bandwidth of one core and of all.

use serde::Serialize;

use fewvit_kernels::{Precision, has_bf16, memory_bandwidth, multiply_add_limit, simd_level};

/// What the machine reaches at best.
#[derive(Clone, Debug, Serialize)]
pub struct Limits {
    /// Instruction set in use.
    pub simd: &'static str,
    /// Threads of the `_all` figures.
    pub threads: usize,
    /// f32 multiply-adds of one thread, two operations each.
    pub f32_gflops_one: f64,
    /// Of all threads together.
    pub f32_gflops_all: f64,
    /// bf16 multiply-adds of one thread, where the processor has them.
    pub bf16_gflops_one: Option<f64>,
    /// Of all threads together.
    pub bf16_gflops_all: Option<f64>,
    /// Reading from memory, one thread.
    pub gb_per_s_one: f64,
    /// All threads together.
    pub gb_per_s_all: f64,
}

/// Measures for about a second.
pub fn limits(threads: usize) -> Limits {
    Limits {
        simd: simd_level(),
        threads,
        f32_gflops_one: multiply_add_limit(Precision::F32),
        f32_gflops_all: multiply_adds(threads, Precision::F32),
        bf16_gflops_one: has_bf16().then(|| multiply_add_limit(Precision::Bf16)),
        bf16_gflops_all: has_bf16().then(|| multiply_adds(threads, Precision::Bf16)),
        gb_per_s_one: memory_bandwidth(),
        gb_per_s_all: together(threads, memory_bandwidth),
    }
}

/// Multiply-adds of `threads` threads together, GFLOP/s.
pub(super) fn multiply_adds(threads: usize, precision: Precision) -> f64 {
    together(threads, || multiply_add_limit(precision))
}

/// The sum of what `measure` gives on each of `threads` threads at the same time.
fn together(threads: usize, measure: impl Fn() -> f64 + Sync) -> f64 {
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(&measure)).collect();
        handles.into_iter().map(|handle| handle.join().unwrap_or(0.0)).sum()
    })
}
