//! Which of cuBLASLt's algorithms computes products of a shape: tried once, and kept with the checkpoint.
//!
//! Only those are tried that give the bits of the library's first choice: which one is faster on the day
//! decides how long a run takes, and never what comes out of it.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use cudarc::cublaslt::sys::cublasLtMatmulAlgo_t as Algorithm;

use super::products::{Prepared, Shape};
use super::{Gpu, Memory, View, args, broken};
use crate::engine::TunedProducts;
use crate::error::Result;

/// Multiplications from which a product is worth trying: smaller ones take as long as their launch.
const WORTH: usize = 1 << 23;
/// Products that are timed together, and how often; the shortest time counts.
const RUNS: u32 = 5;
const ROUNDS: usize = 3;
/// Hexadecimal digits of a word of an algorithm.
const DIGITS: usize = 16;

impl Gpu {
    /// Takes over what was found out on this card with these libraries; what was found out elsewhere is
    /// not taken.
    pub fn learn(&self, tuned: &TunedProducts) {
        if tuned.on != self.on {
            return;
        }
        let known = tuned.algorithms.clone();
        self.tuned.lock().unwrap_or_else(PoisonError::into_inner).extend(known);
        let mut products = self.products.lock().unwrap_or_else(PoisonError::into_inner);
        products.retain(|shape, prepared| {
            let other = tuned.algorithms.get(&shape.to_string());
            other.is_none_or(|other| *other == digits(&prepared.algo))
        });
    }

    /// What has been found out so far.
    pub fn tuned(&self) -> TunedProducts {
        let algorithms = self.tuned.lock().unwrap_or_else(PoisonError::into_inner).clone();
        TunedProducts { on: self.on.clone(), algorithms }
    }

    /// How products of a shape are computed: as it is known, else by the fastest of `candidates`.
    ///
    /// # Errors
    /// The device failed.
    pub(super) fn choose(
        self: &Arc<Self>,
        shape: &Shape,
        first: Prepared,
        candidates: &[Algorithm],
    ) -> Result<Prepared> {
        let [m, n, k] = shape.size;
        if m * n * k < WORTH {
            return Ok(first);
        }
        let name = shape.to_string();
        let tuned = || self.tuned.lock().unwrap_or_else(PoisonError::into_inner);
        let known = tuned().get(&name).and_then(|text| algorithm(text));
        let algo = match known {
            Some(known) => known,
            None => self.fastest(shape, first, candidates)?,
        };
        tuned().insert(name, digits(&algo));
        Ok(first.by(algo))
    }

    fn fastest(
        self: &Arc<Self>,
        shape: &Shape,
        first: Prepared,
        candidates: &[Algorithm],
    ) -> Result<Algorithm> {
        // Where there is no room to try them, the library's choice is as good.
        let Ok(trial) = Trial::new(self, shape) else { return Ok(first.algo) };
        trial.run(first, trial.expected.view())?;
        let (mut best, mut shortest) = (first.algo, trial.time(first)?);
        for &algo in candidates.iter().filter(|algo| **algo != first.algo) {
            let candidate = first.by(algo);
            if trial.rounds_alike(candidate)? {
                let time = trial.time(candidate)?;
                if time < shortest {
                    (best, shortest) = (algo, time);
                }
            }
        }
        Ok(best)
    }
}

/// A product of made-up numbers.
struct Trial<'a> {
    gpu: &'a Arc<Gpu>,
    shape: &'a Shape,
    factors: [Memory; 2],
    result: Memory,
    /// The first choice's result.
    expected: Memory,
    differs: Memory,
}

impl<'a> Trial<'a> {
    fn new(gpu: &'a Arc<Gpu>, shape: &'a Shape) -> Result<Self> {
        let [m, n, k] = shape.size;
        let factors = [gpu.memory(m * k)?, gpu.memory(n * k)?];
        let [result, expected, differs] = [gpu.memory(m * n)?, gpu.memory(m * n)?, gpu.memory(1)?];
        for (seed, factor) in factors.iter().enumerate() {
            gpu.each("made_up", factor.view().len, args![factor.view(), seed])?;
        }
        Ok(Self { gpu, shape, factors, result, expected, differs })
    }

    fn run(&self, how: Prepared, to: View) -> Result<()> {
        if self.shape.add {
            self.gpu.each("made_up", to.len, args![to, 2usize])?;
        }
        self.multiply(how, to)
    }

    fn multiply(&self, how: Prepared, to: View) -> Result<()> {
        let [a, b] = self.factors.each_ref().map(Memory::view);
        let bias = self.shape.bias.then_some(a);
        self.gpu
            .run(&how, [a, b, to], self.shape.add, bias)
            .map_err(|e| broken("a matrix product", e))
    }

    fn rounds_alike(&self, how: Prepared) -> Result<bool> {
        let (seen, differs) = (self.result.view(), self.differs.view());
        self.run(how, seen)?;
        self.gpu.zero(differs)?;
        self.gpu.each("differing", seen.len, args![seen, self.expected.view(), differs])?;
        Ok(self.gpu.download::<u32>(differs)? == [0])
    }

    fn time(&self, how: Prepared) -> Result<Duration> {
        let mut shortest = Duration::MAX;
        for _ in 0..ROUNDS {
            self.gpu.wait()?;
            let started = Instant::now();
            (0..RUNS).try_for_each(|_| self.multiply(how, self.result.view()))?;
            self.gpu.wait()?;
            shortest = shortest.min(started.elapsed());
        }
        Ok(shortest)
    }
}

fn digits(algo: &Algorithm) -> String {
    algo.data.iter().map(|word| format!("{word:0DIGITS$x}")).collect()
}

fn algorithm(text: &str) -> Option<Algorithm> {
    let word = |i: usize| u64::from_str_radix(text.get(i * DIGITS..(i + 1) * DIGITS)?, 16).ok();
    let mut data = [0; 8];
    for (i, to) in data.iter_mut().enumerate() {
        *to = word(i)?;
    }
    Some(Algorithm { data })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn algorithms_come_back_from_their_digits() {
        let algo = Algorithm { data: [7, u64::MAX, 0, 1 << 63, 5, 6, 7, 8] };
        assert_eq!(algorithm(&digits(&algo)), Some(algo));
        for damaged in ["", "00ff", &digits(&algo)[1..], &digits(&algo).replace('7', "x")] {
            assert_eq!(algorithm(damaged), None, "{damaged}");
        }
    }
}
