//! Multiply-add limit and memory bandwidth of one core and of all.

use serde::Serialize;

use fewvit_kernels::{fma_limit, memory_bandwidth, simd_level};

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
        f32_gflops_one: fma_limit(),
        f32_gflops_all: together(threads, fma_limit),
        gb_per_s_one: memory_bandwidth(),
        gb_per_s_all: together(threads, memory_bandwidth),
    }
}

/// The sum of what `measure` gives on each of `threads` threads at the same time.
pub(super) fn together(threads: usize, measure: fn() -> f64) -> f64 {
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(measure)).collect();
        handles.into_iter().map(|handle| handle.join().unwrap_or(0.0)).sum()
    })
}
