//! A step's batch in parts that pass through a model together.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use fewvit_kernels::Precision;

use super::device::DeviceName;
use super::{Machine, StepInput, pixels};
use crate::backbone::{Net, Spec};
use crate::data::loader::{Batch, CropBatch, OwnRows};
use crate::data::mixing::Mix;
use crate::loss::MixedTarget;
use crate::method::{Method, Objective, RowLoss};
use crate::nn::DropPath;
use crate::ops;

/// Rows of one group that pass through the model together.
pub(super) struct MicroBatch<'a> {
    pub(super) group: &'a CropBatch,
    /// Rows of the group.
    pub(super) rows: Range<usize>,
    /// Position in the step's batch of the group's first row.
    group_start: usize,
}

impl MicroBatch<'_> {
    /// Position of its first row in the step's batch.
    pub(super) fn first_row(&self) -> usize {
        self.group_start + self.rows.start
    }
}

impl StepInput<'_> {
    /// Features of a micro-batch, `[rows, num_features]`, whose pixels are `images`.
    pub(super) fn features(
        &self,
        net: &Net,
        (part, images): (&MicroBatch, Tensor<4>),
        drop_path: &DropPath,
        precision: Precision,
    ) -> Tensor<2> {
        let drop_path = DropPath { first_row: part.first_row(), ..drop_path.clone() };
        ops::autocast(precision, || net.features(images, &drop_path))
    }
}

/// Rows a worker passes through the model at a time: `wanted` or, for 0, about 800 tokens of DeiT,
/// enough for full speed of the matrix kernels, few enough to keep activations small. Up to twice as
/// many for models of 20 million parameters and more: their gradient, which each micro-batch reads and
/// writes once, comes from memory (DeiT-S, DeiT-B and PVTv2-B3 gain 7 to 13% in bf16 by it, models
/// below 10 million nothing).
///
/// On `cuda` 0 stays 0: as many as the card's memory holds.
pub fn micro_batch(wanted: usize, spec: &Spec, img_size: usize, device: DeviceName) -> usize {
    if wanted > 0 || matches!(device, DeviceName::Cuda(_)) {
        return wanted;
    }
    let pixels = (img_size * img_size).max(1);
    let size = spec.num_params(img_size).clamp(SMALL_MODEL, 2 * SMALL_MODEL);
    (PIXELS_OF_SMALL_MODEL * size / SMALL_MODEL / pixels).clamp(1, MOST_ROWS)
}

/// Rows that a worker passes through the model at a time where crops have `img_size` and are no larger than
/// those `of` a stage, of which it would take `rows`: as many as have as many pixels, up to 64.
pub fn scaled_micro_batch(rows: usize, of: usize, img_size: usize) -> usize {
    let as_large = rows * of * of / (img_size * img_size).max(1);
    rows.max(as_large.min(MOST_ROWS))
}

/// Rows of a small size beyond which there is nothing to gain.
const MOST_ROWS: usize = 64;
/// Most parameters of a model whose micro-batch is no larger than [`PIXELS_OF_SMALL_MODEL`].
const SMALL_MODEL: usize = 10_000_000;
/// Pixels of the micro-batch of a small model: 16 rows of 112 px, about 800 tokens of DeiT.
const PIXELS_OF_SMALL_MODEL: usize = 16 * 112 * 112;

/// Cuts the `wanted` rows of each group into equal micro-batches of at most `micro_batch` rows, as
/// many for each worker; rows count through all groups. Micro-batch `i` is that of worker `i % workers`.
pub(super) fn split(
    batch: &Batch,
    wanted: Range<usize>,
    micro_batch: usize,
    workers: usize,
) -> Vec<MicroBatch<'_>> {
    let rows: Vec<usize> = batch.groups.iter().map(|group| group.samples.len()).collect();
    let parts = cut(&rows, wanted, micro_batch, workers).into_iter();
    let part = |Cut { group, rows, group_start }| MicroBatch {
        group: &batch.groups[group],
        rows,
        group_start,
    };
    parts.map(part).collect()
}

/// A [`MicroBatch`] by numbers.
struct Cut {
    group: usize,
    rows: Range<usize>,
    group_start: usize,
}

/// [`split`] of groups of these sizes.
fn cut(groups: &[usize], wanted: Range<usize>, micro_batch: usize, workers: usize) -> Vec<Cut> {
    let mut parts = Vec::new();
    let mut group_start = 0;
    for (group, &group_rows) in groups.iter().enumerate() {
        let in_group = |row: usize| row.saturating_sub(group_start).min(group_rows);
        let (start, end) = (in_group(wanted.start), in_group(wanted.end));
        let rows = end.saturating_sub(start);
        let count = rows.div_ceil(micro_batch).next_multiple_of(workers).min(rows);
        for i in 0..count {
            let rows = start + rows * i / count..start + rows * (i + 1) / count;
            parts.push(Cut { group, rows, group_start });
        }
        group_start += group_rows;
    }
    parts
}

/// The process, of those with `threads` workers each, whose worker has micro-batch `part`.
pub(super) fn owner(part: usize, threads: usize, processes: usize) -> usize {
    part % (threads * processes) / threads
}

/// The rows of a batch of `images` in which these views of them are.
pub(super) fn rows_of(views: Range<usize>, images: usize) -> Range<usize> {
    views.start * images..views.end.saturating_mul(images)
}

/// The rows of each group that the workers of this process pass through a model, `micro_batch` of an
/// img-size at a time; `None` if it is the only process.
pub fn own_rows(
    machine: &Machine,
    method: &Arc<dyn Method>,
    micro_batch: impl Fn(usize) -> usize + Send + Sync + 'static,
) -> Option<Arc<OwnRows>> {
    let (rank, processes) = (machine.ranks.rank(), machine.ranks.size());
    let threads = machine.threads;
    let method = method.clone();
    let own = move |groups: &[usize], img_size: usize| {
        let micro_batch = micro_batch(img_size);
        let views = method.views().groups.first().map_or(1, |group| group.count);
        let images = groups.first().map_or(0, |rows| rows / views);
        let mut own = vec![Vec::new(); groups.len()];
        for views in passes(method.objective()).into_iter().flatten() {
            let parts = cut(groups, rows_of(views, images), micro_batch, threads * processes);
            let parts = parts.into_iter().enumerate();
            for (_, part) in parts.filter(|(i, _)| owner(*i, threads, processes) == rank) {
                own[part.group].push(part.rows);
            }
        }
        own
    };
    (processes > 1).then(|| Arc::new(own) as Arc<OwnRows>)
}

/// The views that pass through the trained model and through a momentum encoder.
fn passes(objective: Objective) -> [Option<Range<usize>>; 2] {
    match objective {
        Objective::Rows(_) => [Some(0..usize::MAX), None],
        Objective::Batch(loss) => {
            [Some(0..loss.student_views()), loss.teacher().map(|teacher| teacher.views())]
        }
    }
}

/// The micro-batch's pixels, mixed and normalised by this thread, `[rows, 3, img_size, img_size]`.
pub(super) fn images(part: &MicroBatch, input: &StepInput, device: &Device) -> Tensor<4> {
    let (group, size) = (part.group, part.group.img_size);
    ops::filled([part.rows.len(), 3, size, size], device, |pixels| {
        for (row, out) in part.rows.clone().zip(pixels.chunks_exact_mut(3 * size * size)) {
            group.write_row(row, input.mean, input.std, out);
        }
    })
}

/// As [`images`], of bytes that are mixed and normalised on the device.
pub(super) fn pixels(part: &MicroBatch, input: &StepInput, device: &Device) -> Tensor<4> {
    let (group, mix, count) = (part.group, &part.group.mix, part.rows.len());
    let partners = part.rows.clone().map(|row| mix.partner[row]);
    let crops: Option<Vec<&[u8]>> =
        part.rows.clone().chain(partners).map(|row| group.crop(row)).collect();
    // Tensors from elsewhere are mixed and normalised already.
    let Some(crops) = crops else { return images(part, input, device) };
    let partner = (0..2 * count).map(|row| (row + count) % (2 * count)).collect();
    let mix = Mix { partner, ..mix.clone() };
    let both = pixels::pixels(&crops.concat(), &mix, group.img_size, input.mean, input.std, device);
    both.narrow(0, 0, count)
}

/// The micro-batch's mixed targets.
pub(super) fn targets(part: &MicroBatch, loss: &dyn RowLoss) -> Vec<MixedTarget> {
    let (samples, mix) = (&part.group.samples, &part.group.mix);
    let target = |row: usize| {
        let [a, b] = [row, mix.partner[row]].map(|row| loss.target(samples[row]));
        let mut target = MixedTarget::mix(a, b, mix.lambda);
        target.shares[0] *= loss.weight(a);
        target.shares[1] *= loss.weight(b);
        target
    };
    part.rows.clone().map(target).collect()
}

/// Training sample of each row of one view; the same in all groups.
pub(super) fn samples(batch: &Batch) -> &[usize] {
    let Some(group) = batch.groups.first() else { return &[] };
    let images = group.samples.len() / group.views;
    &group.samples[..images]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::loader::Crops;
    use crate::data::mixing::Mix;

    #[test]
    fn as_many_smaller_crops_pass_through_the_model_as_have_as_many_pixels() {
        for (rows, of, img_size, expected) in [
            (16, 112, 112, 16),
            (16, 112, 64, 49),
            (7, 160, 64, 43),
            (2, 448, 64, 64),
            (100, 112, 64, 100),
            (0, 224, 64, 0),
        ] {
            assert_eq!(scaled_micro_batch(rows, of, img_size), expected, "{rows} of {of}");
        }
    }

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
