//! Passes over vectors as long as the parameters, split between threads.
//!
//! Every chunk is computed by itself and sums of chunks are added in the order of the chunks, so
//! results do not depend on the number of threads.

use std::sync::{Mutex, PoisonError};

use fewvit_kernels::{average_step, total_of};

/// Values a thread takes at a time: few enough that those of all vectors of an optimiser step stay
/// in the second-level cache from one kernel to the next.
pub(super) const CHUNK: usize = 16 * 1024;

/// The gradient of a step.
pub struct Gradient<'a> {
    /// In the order of the flat parameter vector.
    pub values: &'a mut [f32],
    /// Sum of the squares of the values: finite exactly if all of them are.
    pub squared: f64,
    /// Threads that passes over it are split between.
    pub threads: usize,
}

impl<'a> Gradient<'a> {
    /// `values` with `others`, as long, added one after the other.
    pub fn total(values: &'a mut [f32], others: &[&[f32]], threads: usize) -> Self {
        let mut squares = vec![0.0; values.len().div_ceil(CHUNK)];
        let chunks = values.chunks_mut(CHUNK).zip(&mut squares).enumerate();
        for_each(threads, chunks, |(i, (chunk, squared))| {
            let parts = others.iter().map(|other| &other[i * CHUNK..][..chunk.len()]);
            let others: Vec<&[f32]> = parts.collect();
            *squared = total_of(chunk, &others);
        });
        Self { squared: squares.iter().sum(), values, threads }
    }

    /// What the values are multiplied by for a Euclidean norm of at most `bound`, if that is not
    /// 0 = no bound and they exceed it.
    pub fn clipping(&self, bound: f64) -> Option<f32> {
        let norm = self.squared.sqrt();
        (bound != 0.0 && norm > bound).then(|| (bound / norm) as f32)
    }
}

/// `average = decay average + (1 - decay) x`, both of one length.
pub(super) fn average(average: &mut [f32], x: &[f32], decay: f32, threads: usize) {
    let chunks = average.chunks_mut(CHUNK).zip(x.chunks(CHUNK));
    for_each(threads, chunks, |(average, x)| average_step(average, x, decay));
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_total_is_the_same_on_any_number_of_threads() {
        let len = 3 * CHUNK + 77;
        let part = |i: usize| (0..len).map(|j| ((i + 3) * j % 101) as f32 / 7.0).collect();
        let parts: [Vec<f32>; 3] = [0, 1, 2].map(part);
        let expected: Vec<f32> =
            (0..len).map(|j| parts[0][j] + parts[1][j] + parts[2][j]).collect();
        let exact: f64 = expected.iter().map(|&e| f64::from(e).powi(2)).sum();
        let total = |threads| {
            let mut values = parts[0].clone();
            let gradient = Gradient::total(&mut values, &[&parts[1], &parts[2]], threads);
            let squared = gradient.squared;
            assert!((squared / exact - 1.0).abs() < 1e-12, "{squared} for {exact}");
            assert_eq!(gradient.values, expected);
            squared
        };
        assert_eq!([total(1), total(1)], [total(2), total(5)]);
    }

    #[test]
    fn gradients_are_clipped_to_the_bound_and_never_stretched() {
        let mut values = [3.0, -4.0];
        let gradient = Gradient::total(&mut values, &[], 1);
        assert_eq!([0.0, 5.0, 6.0].map(|bound| gradient.clipping(bound)), [None; 3]);
        assert_eq!(gradient.clipping(0.5), Some(0.1));
    }
}
