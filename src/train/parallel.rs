//! Gradients of one step, data-parallel over micro-batches.
//!
//! Each worker thread runs forward and backward on its own micro-batches with single-threaded
//! kernels and sums their gradients; the workers' sums are added in a fixed order. No backbone has
//! batch statistics, so this equals one big batch, and it is bit-equal for a given number of workers
//! and micro-batch.

use std::ops::Range;
use std::panic::AssertUnwindSafe;

use burn::tensor::{Device, Tensor};
use fewvit_kernels::{Precision, bf16_is_faster, has_bf16};
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::passes::{Gradient, for_each};
use crate::backbone::{Net, Spec};
use crate::config::AmpDtype;
use crate::data::loader::{Batch, CropBatch};
use crate::error::{Error, Result};
use crate::loss::{MixedTarget, mixed_cross_entropy};
use crate::method::RowLoss;
use crate::nn::{DropPath, Weights};
use crate::ops::{self, BufferPool};

/// Worker threads with what they keep from step to step.
pub struct Engine {
    pub(super) micro_batch: usize,
    pub(super) workers: Vec<Worker>,
    /// As many threads, which live as long as the engine: a new one would begin each step with page
    /// faults. They are not pinned to cores: that was no faster (458 against 445 crops/s pinned, DeiT-Tiny
    /// on two cores), and a core that somebody else uses could not be left.
    pool: ThreadPool,
}

/// See [`Engine`].
pub(super) struct Worker {
    /// Sum of its micro-batches' gradients.
    pub(super) sum: Vec<f32>,
    buffers: BufferPool,
}

/// What a step computes on besides the weights.
pub struct StepInput<'a> {
    /// The crops.
    pub batch: &'a Batch,
    /// Stochastic depth of this step; its `first_row` is set for each micro-batch.
    pub drop_path: DropPath,
    /// Input normalisation.
    pub mean: [f32; 3],
    /// Input normalisation.
    pub std: [f32; 3],
    /// Of the products of the backbone and of the heads of coupled losses. Classifiers are f32.
    pub precision: Precision,
}

impl StepInput<'_> {
    /// Features of a micro-batch, `[rows, num_features]`, on a device with or without autodiff.
    pub(super) fn features(
        &self,
        net: &Net,
        part: &MicroBatch,
        drop_path: &DropPath,
        device: &Device,
    ) -> Tensor<2> {
        let images = images(part, self, device);
        let drop_path = DropPath { first_row: part.first_row(), ..drop_path.clone() };
        ops::autocast(self.precision, || net.features(images, &drop_path))
    }
}

/// Rows of one group that pass through the model together.
pub(super) struct MicroBatch<'a> {
    pub(super) group: &'a CropBatch,
    /// Rows of the group.
    pub(super) rows: std::ops::Range<usize>,
    /// Position in the step's batch of the group's first row.
    group_start: usize,
}

impl MicroBatch<'_> {
    /// Position in the step's batch.
    pub(super) fn first_row(&self) -> usize {
        self.group_start + self.rows.start
    }
}

impl Engine {
    /// `workers` threads for a model of `num_params` parameters.
    ///
    /// # Errors
    /// The system gives no more threads.
    pub fn new(workers: usize, micro_batch: usize, num_params: usize) -> Result<Self> {
        let count = workers.max(1);
        let pool = ThreadPoolBuilder::new().num_threads(count).build();
        let pool = pool.map_err(|e| Error::Device(format!("{count} worker threads: {e}")))?;
        let worker = |_| Worker { sum: vec![0.0; num_params], buffers: BufferPool::default() };
        Ok(Self { micro_batch, workers: (0..count).map(worker).collect(), pool })
    }

    /// The loss of `net` (mean over the rows of a group, groups summed; recipe section 2.6) and its
    /// gradient in the order of the flat parameter vector.
    ///
    /// # Errors
    /// A worker panicked.
    pub fn gradients(
        &mut self,
        net: &Weights<Net>,
        input: &StepInput,
        loss: &dyn RowLoss,
    ) -> Result<(f64, Gradient<'_>)> {
        let parts = split(input.batch, 0..usize::MAX, self.micro_batch, self.workers.len());
        self.clear();
        let losses = self.each(&parts, |part, sum| backward(net, input, part, loss, sum))?;
        Ok((losses.iter().sum(), self.total()))
    }

    /// Sets all sums to zero.
    pub(super) fn clear(&mut self) {
        let threads = self.workers.len();
        for_each(threads, self.workers.iter_mut(), |worker| worker.sum.fill(0.0));
    }

    /// The workers' sums, added up in their order.
    pub(super) fn total(&mut self) -> Gradient<'_> {
        let threads = self.workers.len();
        let (first, others) = self.workers.split_at_mut(1);
        let others: Vec<&[f32]> = others.iter().map(|worker| &worker.sum[..]).collect();
        Gradient::total(&mut first[0].sum, &others, threads)
    }

    /// Calls `work(part, sum of its worker)` for each part, the parts dealt out to the workers in
    /// turn; results in the order of the parts.
    ///
    /// # Errors
    /// A worker panicked.
    pub(super) fn each<T: Send>(
        &mut self,
        parts: &[MicroBatch],
        work: impl Fn(&MicroBatch, &mut Vec<f32>) -> T + Sync,
    ) -> Result<Vec<T>> {
        let (count, work) = (self.workers.len(), &work);
        let mut by_worker: Vec<Vec<T>> = (0..count).map(|_| Vec::new()).collect();
        let workers = self.workers.iter_mut().zip(&mut by_worker).enumerate();
        let run = || {
            self.pool.in_place_scope(|scope| {
                for (i, (Worker { sum, buffers }, done)) in workers {
                    let mine = parts.iter().skip(i).step_by(count);
                    let work = move || done.extend(mine.map(|part| work(part, sum)));
                    scope.spawn(move |_| buffers.serve(work));
                }
            });
        };
        // What a panic leaves half done, the caller gives up with the engine.
        std::panic::catch_unwind(AssertUnwindSafe(run))
            .map_err(|_| Error::Failed("a training worker panicked".to_owned()))?;
        let mut dealt: Vec<_> = by_worker.into_iter().map(Vec::into_iter).collect();
        Ok((0..parts.len()).filter_map(|i| dealt[i % count].next()).collect())
    }
}

/// Rows a worker passes through the model at a time: `wanted` or, for 0, about 800 tokens of DeiT,
/// enough for full speed of the matrix kernels, few enough to keep activations small. Up to twice as
/// many for models of 20 million parameters and more: their gradient, which each micro-batch reads and
/// writes once, comes from memory (DeiT-S, DeiT-B and PVTv2-B3 gain 7 to 13% in bf16 by it, models
/// below 10 million nothing).
pub fn micro_batch(wanted: usize, spec: &Spec, img_size: usize) -> usize {
    if wanted > 0 {
        return wanted;
    }
    let pixels = (img_size * img_size).max(1);
    let size = spec.num_params(img_size).clamp(SMALL_MODEL, 2 * SMALL_MODEL);
    (16 * 112 * 112 * size / SMALL_MODEL / pixels).clamp(1, 64)
}

/// Parameters.
const SMALL_MODEL: usize = 10_000_000;

/// What `amp_dtype` means on this machine: bf16 only where the processor multiplies it, `auto` where
/// that is faster.
pub fn precision(amp_dtype: AmpDtype) -> Precision {
    match amp_dtype {
        AmpDtype::Bf16 if has_bf16() => Precision::Bf16,
        AmpDtype::Auto if bf16_is_faster() => Precision::Bf16,
        AmpDtype::Bf16 | AmpDtype::Auto | AmpDtype::F32 => Precision::F32,
    }
}

/// Cuts the `wanted` rows of each group into equal micro-batches of at most `micro_batch` rows, as
/// many for each worker; rows count through all groups.
pub(super) fn split(
    batch: &Batch,
    wanted: Range<usize>,
    micro_batch: usize,
    workers: usize,
) -> Vec<MicroBatch<'_>> {
    let mut parts = Vec::new();
    let mut group_start = 0;
    for group in &batch.groups {
        let group_rows = group.samples.len();
        let in_group = |row: usize| row.saturating_sub(group_start).min(group_rows);
        let (start, end) = (in_group(wanted.start), in_group(wanted.end));
        let rows = end.saturating_sub(start);
        let count = rows.div_ceil(micro_batch).next_multiple_of(workers).min(rows);
        for i in 0..count {
            let rows = start + rows * i / count..start + rows * (i + 1) / count;
            parts.push(MicroBatch { group, rows, group_start });
        }
        group_start += group_rows;
    }
    parts
}

/// Adds the gradients of one micro-batch to `sum`; returns its share of the loss.
fn backward(
    net: &Weights<Net>,
    input: &StepInput,
    part: &MicroBatch,
    loss: &dyn RowLoss,
    sum: &mut Vec<f32>,
) -> f64 {
    let targets = targets(part, loss);
    net.add_gradients(sum, |net| {
        let device = Device::flex().autodiff();
        let logits = net.logits(input.features(net, part, &input.drop_path, &device));
        let losses = mixed_cross_entropy(logits, &targets, loss.smoothing());
        losses.sum() / part.group.samples.len() as f64
    })
}

/// The micro-batch's mixed and normalised pixels, `[rows, 3, img_size, img_size]`.
fn images(part: &MicroBatch, input: &StepInput, device: &Device) -> Tensor<4> {
    let (group, size) = (part.group, part.group.img_size);
    ops::filled([part.rows.len(), 3, size, size], device, |pixels| {
        for (row, out) in part.rows.clone().zip(pixels.chunks_exact_mut(3 * size * size)) {
            group.write_row(row, input.mean, input.std, out);
        }
    })
}

fn targets(part: &MicroBatch, loss: &dyn RowLoss) -> Vec<MixedTarget> {
    let (samples, mix) = (&part.group.samples, &part.group.mix);
    let target = |row: usize| MixedTarget {
        a: loss.target(samples[row]),
        b: loss.target(samples[mix.partner[row]]),
        lambda: mix.lambda,
    };
    part.rows.clone().map(target).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::loader::Crops;
    use crate::data::mixing::Mix;

    #[test]
    fn every_row_is_in_one_micro_batch_and_workers_get_equal_shares() {
        let group = |rows: usize| CropBatch {
            img_size: 16,
            views: 1,
            crops: Crops::Bytes(Vec::new()),
            samples: vec![0; rows],
            mix: Mix::none(rows),
        };
        let batch = Batch { groups: vec![group(64), group(1), group(130)] };
        for (micro_batch, workers) in [(49, 2), (16, 3), (1000, 1), (1, 4)] {
            let parts = split(&batch, 0..usize::MAX, micro_batch, workers);
            let mut shares = vec![0; workers];
            let mut seen = Vec::new();
            for (i, part) in parts.iter().enumerate() {
                assert!((1..=micro_batch).contains(&part.rows.len()));
                shares[i % workers] += part.rows.len();
                seen.extend(part.rows.clone().map(|row| part.group_start + row));
            }
            assert_eq!(seen, (0..195).collect::<Vec<_>>());
            let spread = shares.iter().max().expect("workers") - shares.iter().min().expect("one");
            assert!(spread <= 10, "{micro_batch} {workers}: {shares:?}");
            for wanted in [3..64, 60..70, 65..195, 64..64] {
                let parts = split(&batch, wanted.clone(), micro_batch, workers);
                let rows = |part: &MicroBatch| part.first_row()..part.first_row() + part.rows.len();
                assert_eq!(
                    parts.iter().flat_map(rows).collect::<Vec<_>>(),
                    wanted.collect::<Vec<_>>()
                );
            }
        }
    }
}
