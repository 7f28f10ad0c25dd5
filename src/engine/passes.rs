//! Passes over vectors as long as the parameters, split between threads.
//!
//! Every chunk is computed by itself, so results do not depend on the number of threads.

use std::sync::{Mutex, PoisonError};

use fewvit_kernels::{Precision, average_step, total_of};

use crate::config::{ClipMode, OptimConfig};
use crate::nn::ParamSpec;

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
    /// Of products that the optimiser makes of it.
    pub precision: Precision,
}

impl<'a> Gradient<'a> {
    /// How the values are clipped, those of the parameters `specs`.
    pub fn clipping(&mut self, config: &OptimConfig, specs: &[ParamSpec]) -> Clipping {
        let bound = config.clip_grad;
        match config.clip_mode {
            ClipMode::Global => Clipping::All(factor(self.squared, bound)),
            ClipMode::Parameter if bound == 0.0 => Clipping::All(None),
            ClipMode::Parameter => Clipping::Each(self.each(specs, bound)),
        }
    }

    /// The factor of each parameter.
    fn each(&mut self, specs: &[ParamSpec], bound: f64) -> Vec<Option<f32>> {
        let mut factors = vec![None; specs.len()];
        let mut rest = &mut *self.values;
        let parameters = specs.iter().map(|spec| {
            let (own, after) = std::mem::take(&mut rest).split_at_mut(spec.range.len());
            rest = after;
            own
        });
        let jobs: Vec<_> = parameters.zip(&mut factors).collect();
        for_each(self.threads, jobs.into_iter(), |(values, found)| {
            let squared = values.chunks_mut(CHUNK).map(|chunk| total_of(chunk, &[])).sum();
            *found = factor(squared, bound);
        });
        factors
    }
}

/// What the gradient of each parameter is multiplied by, from the sums of its squares.
#[cfg(feature = "cuda")]
pub(super) fn factors(squares: &[f64], config: &OptimConfig) -> Vec<f32> {
    let (all, bound) = (squares.iter().sum(), config.clip_grad);
    let of = |&own: &f64| match config.clip_mode {
        ClipMode::Global => factor(all, bound),
        ClipMode::Parameter => factor(own, bound),
    };
    squares.iter().map(|own| of(own).unwrap_or(1.0)).collect()
}

/// What values are multiplied by for a Euclidean norm of at most `bound`, if that is not 0 = no bound
/// and they exceed it.
fn factor(squared: f64, bound: f64) -> Option<f32> {
    let norm = squared.sqrt();
    (bound != 0.0 && norm > bound).then(|| (bound / norm) as f32)
}

/// What the gradient is multiplied by.
pub enum Clipping {
    /// All of it alike.
    All(Option<f32>),
    /// Each parameter's.
    Each(Vec<Option<f32>>),
}

impl Clipping {
    /// The factor of a parameter, by number.
    pub fn of(&self, parameter: usize) -> Option<f32> {
        match self {
            Self::All(factor) => *factor,
            Self::Each(factors) => factors[parameter],
        }
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
    fn gradients_are_clipped_to_the_bound_and_never_stretched() {
        assert_eq!([0.0, 5.0, 6.0].map(|bound| factor(25.0, bound)), [None; 3]);
        assert_eq!(factor(25.0, 0.5), Some(0.1));
    }
}
