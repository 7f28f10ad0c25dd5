//! What one thread of this machine can reach at best, to judge the kernels by.

use crate::matrix::Precision;
use crate::simd::{Kernel, Level, Simd, amx};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// How long each measurement repeats; the best repetition counts.
const DURATION: Duration = Duration::from_millis(70);

/// Multiply-adds on registers alone, at the instruction set in use: GFLOP/s of this thread, two
/// operations for each multiply-add. Takes 0.2 s. Where the level has no fused instruction (`scalar`
/// on x86-64), latency limits this measurement and kernels can exceed it.
pub fn multiply_add_limit(precision: Precision) -> f64 {
    // Enough independent chains to hide the latency, few enough for the registers: which number
    // that is depends on the processor.
    match precision {
        Precision::Bf16 if Level::current().has_tiles() => tiles(),
        Precision::F32 => {
            chains::<8, false>().max(chains::<12, false>()).max(chains::<16, false>())
        }
        Precision::Bf16 => chains::<8, true>().max(chains::<12, true>()).max(chains::<16, true>()),
    }
}

fn chains<const CHAINS: usize, const PAIRS: bool>() -> f64 {
    // Emulated products of pairs are a hundred times slower.
    let rounds = if PAIRS && !Level::current().has_bf16() { 1000 } else { 100_000 };
    let mut lanes = 0;
    let seconds = best(|| {
        let kernel = MulAdds::<CHAINS, PAIRS> { rounds, factor: black_box(0.999) };
        let (sum, vector) = Level::current().run(kernel);
        black_box(sum);
        lanes = vector;
    });
    let operations = if PAIRS { 4 } else { 2 };
    (operations * rounds * CHAINS * lanes) as f64 / seconds / 1e9
}

/// As [`chains`], for products of tiles.
fn tiles() -> f64 {
    let mut operations = 0;
    let seconds = best(|| {
        // SAFETY: the level in use has tiles.
        operations = unsafe { amx::products(20_000) };
    });
    operations as f64 / seconds / 1e9
}

/// Reading a buffer of 256 MiB, beyond the caches of most machines: GB/s of this thread. Takes
/// 0.1 s after the buffer has been filled.
pub fn memory_bandwidth() -> f64 {
    let data = vec![1.0f32; 64 << 20];
    let seconds = best(|| {
        black_box(Level::current().run(Sum(black_box(&data))));
    });
    size_of_val(&data[..]) as f64 / seconds / 1e9
}

/// The shortest of the repetitions that fit in [`DURATION`], in seconds.
fn best(mut repeat: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut shortest = f64::INFINITY;
    while start.elapsed() < DURATION {
        let round = Instant::now();
        repeat();
        shortest = shortest.min(round.elapsed().as_secs_f64());
    }
    shortest
}

struct MulAdds<const CHAINS: usize, const PAIRS: bool> {
    rounds: usize,
    factor: f32,
}

impl<const CHAINS: usize, const PAIRS: bool> Kernel for MulAdds<CHAINS, PAIRS> {
    /// The sum of the chains, so that they are computed, and the lanes of a vector.
    type Output = (f32, usize);

    #[inline(always)]
    fn run<S: Simd>(self) -> (f32, usize) {
        let (factor, term) = (S::splat(self.factor), S::splat(1.0 - self.factor));
        let (factors, terms) = (S::pairs(factor, factor), S::pairs(term, term));
        let mut chains = [S::splat(1.0); CHAINS];
        for _ in 0..self.rounds {
            for chain in &mut chains {
                *chain = match PAIRS {
                    false => chain.mul_add(factor, term),
                    true => chain.add_products(factors, terms),
                };
            }
        }
        (chains.into_iter().map(S::sum).sum(), S::LANES)
    }
}

struct Sum<'a>(&'a [f32]);

impl Kernel for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self) -> f32 {
        let mut sums = [S::splat(0.0); 4];
        for block in self.0.chunks_exact(4 * S::LANES) {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = *sum + S::load(&block[i * S::LANES..]);
            }
        }
        sums.into_iter().map(S::sum).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "Miri is slower than any machine")]
    fn limits_are_of_this_world() {
        // From a slow emulator to 64 lanes, and to tiles, at 6 GHz.
        assert!((0.01..1000.0).contains(&multiply_add_limit(Precision::F32)));
        assert!((0.01..7000.0).contains(&multiply_add_limit(Precision::Bf16)));
        assert!((0.01..1000.0).contains(&memory_bandwidth()));
    }
}
