//! A step's crops, made beside the step that runs.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use rand::seq::SliceRandom as _;

use super::Rgb8;
use super::cache::ImageStore;
use super::mixing::Mix;
use super::parallel::map_in_order;
use super::views::ViewPlan;
use crate::error::Result;
use crate::rng::{Purpose, stream};

/// The crops of one step, one entry a crop group.
pub struct Batch {
    /// The groups.
    pub groups: Vec<CropBatch>,
}

/// The crops of one group: all first crops, then all second ones, ...
pub struct CropBatch {
    /// Side of a crop in pixels.
    pub img_size: usize,
    /// Crops of each image.
    pub views: usize,
    /// The rows' pixels.
    pub crops: Crops,
    /// Training sample of each row.
    pub samples: Vec<usize>,
    /// How rows are mixed when they are handed to the model.
    pub mix: Mix,
}

/// Pixels of the rows of a group.
pub enum Crops {
    /// As augmentation leaves them, `[rows, img_size, img_size, 3]`, unmixed.
    Bytes(Vec<u8>),
    /// As the model takes them, `[rows, 3, img_size, img_size]`: tensors from elsewhere, which are
    /// neither normalised nor mixed any more.
    Ready(Vec<f32>),
}

impl CropBatch {
    /// Writes row `row` as the model sees it, normalised and mixed, to `out` `[3, s, s]`.
    ///
    /// # Panics
    /// If there is no such row or `out` has another size.
    pub fn write_row(&self, row: usize, mean: [f32; 3], std: [f32; 3], out: &mut [f32]) {
        match &self.crops {
            Crops::Bytes(crops) => self.mix.write_row(crops, row, self.img_size, mean, std, out),
            Crops::Ready(values) => out.copy_from_slice(&values[row * out.len()..][..out.len()]),
        }
    }
}

/// Draws the mixing of a group: `(stream, epoch, rows, img_size)`.
pub type DrawMix = dyn Fn(&mut rand_chacha::ChaCha8Rng, usize, usize, usize) -> Mix + Send + Sync;

/// What a stage's batches are made from. Everything in a batch follows from this and the step.
#[derive(Clone)]
pub struct BatchSource {
    /// Decoded training images.
    pub images: Arc<ImageStore>,
    /// The views of each.
    pub views: Arc<ViewPlan>,
    /// The mixing of each group.
    pub mix: Arc<DrawMix>,
    /// The stage's seed.
    pub seed: u64,
    /// Images a step; the last step of an epoch takes what is left.
    pub batch_size: usize,
    /// Whether there is no such last step, unless it is the only one.
    pub drop_last: bool,
    /// Threads that cut crops.
    pub threads: usize,
}

impl BatchSource {
    /// Steps of one epoch.
    pub fn steps_per_epoch(&self) -> usize {
        match self.drop_last {
            true => (self.images.len() / self.batch_size).max(1),
            false => self.images.len().div_ceil(self.batch_size),
        }
    }

    /// Images of one epoch, which leaves out others each time where it drops a last batch.
    pub fn images_per_epoch(&self) -> usize {
        self.images.len().min(self.steps_per_epoch() * self.batch_size)
    }

    /// The batch of optimiser step `step`, counted from 0 over all epochs.
    ///
    /// # Errors
    /// The image cache cannot be read.
    pub fn batch(&self, step: usize) -> Result<Batch> {
        let (epoch, within) = (step / self.steps_per_epoch(), step % self.steps_per_epoch());
        let mut order: Vec<usize> = (0..self.images.len()).collect();
        order.shuffle(&mut stream(self.seed, Purpose::Order, epoch as u32, 0, 0));
        let first = within * self.batch_size;
        let samples = &order[first..(first + self.batch_size).min(order.len())];
        let views = self.cut(epoch, samples)?;
        let mut first_view = 0;
        let group = |(index, group): (usize, &super::views::ViewGroup)| {
            let views = &views[first_view..first_view + group.count];
            first_view += group.count;
            let rows = samples.len() * group.count;
            let img_size = group.augment.img_size();
            let mut rng = stream(self.seed, Purpose::Mix, 0, step as u64, index as u32);
            let pixels = views.iter().flatten().flat_map(|crop| &crop.pixels).copied();
            CropBatch {
                img_size,
                views: group.count,
                crops: Crops::Bytes(pixels.collect()),
                samples: samples.repeat(group.count),
                mix: (self.mix)(&mut rng, epoch, rows, img_size),
            }
        };
        Ok(Batch { groups: self.views.groups.iter().enumerate().map(group).collect() })
    }

    /// Every view of every sample: `[view][sample]`.
    fn cut(&self, epoch: usize, samples: &[usize]) -> Result<Vec<Vec<Rgb8>>> {
        let views: usize = self.views.groups.iter().map(|group| group.count).sum();
        let of_sample = |&sample: &usize| -> Result<Vec<Rgb8>> {
            let image = self.images.get(sample)?;
            let crop = |view: usize| {
                self.views.crop(&image, self.seed, epoch as u32, sample as u64, view as u32)
            };
            Ok((0..views).map(crop).collect())
        };
        let by_sample = map_in_order(samples, self.threads, of_sample)?;
        let mut by_view: Vec<Vec<Rgb8>> = (0..views).map(|_| Vec::new()).collect();
        for crops in by_sample {
            by_view.iter_mut().zip(crops).for_each(|(view, crop)| view.push(crop));
        }
        Ok(by_view)
    }

    /// Makes the batches `first_step..end` one ahead of the reader.
    pub fn prefetch(&self, first_step: usize, end: usize) -> Prefetch {
        let source = self.clone();
        let (sender, receiver) = sync_channel(1);
        let thread = std::thread::spawn(move || {
            for step in first_step..end {
                // A closed channel means that the reader stopped early.
                if sender.send(source.batch(step)).is_err() {
                    break;
                }
            }
        });
        Prefetch { receiver: Some(receiver), thread: Some(thread) }
    }
}

/// Batches in step order.
pub struct Prefetch {
    receiver: Option<Receiver<Result<Batch>>>,
    thread: Option<JoinHandle<()>>,
}

impl Iterator for Prefetch {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.receiver.as_ref()?.recv().ok()
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        drop(self.receiver.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the maker has already closed the channel; there is nothing to add here.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::views::ViewGroup;
    use super::*;
    use crate::config::Layers;

    fn source(images: usize, batch_size: usize, drop_last: bool) -> BatchSource {
        let config = Layers::new("insdis").and_then(Layers::build).expect("a recipe").config;
        let views = ViewPlan::pretrain(&config.pretrain);
        let groups = views.groups.into_iter().map(|group| ViewGroup { count: 1, ..group });
        BatchSource {
            images: Arc::new(ImageStore::of(vec![Rgb8::new(4, 4); images])),
            views: Arc::new(ViewPlan { groups: groups.collect() }),
            mix: Arc::new(|_, _, rows, _| Mix::none(rows)),
            seed: 1,
            batch_size,
            drop_last,
            threads: 1,
        }
    }

    #[test]
    fn a_last_batch_that_is_not_full_is_kept_or_dropped_but_never_the_only_one() {
        for (images, batch, drop_last, sizes) in [
            (10, 4, false, &[4, 4, 2][..]),
            (10, 4, true, &[4, 4]),
            (8, 4, true, &[4, 4]),
            (3, 4, true, &[3]),
            (3, 4, false, &[3]),
        ] {
            let source = source(images, batch, drop_last);
            assert_eq!(source.steps_per_epoch(), sizes.len(), "{images} {batch} {drop_last}");
            assert_eq!(source.images_per_epoch(), sizes.iter().sum::<usize>());
            let mut seen = Vec::new();
            for epoch in 0..2 {
                let steps = (0..sizes.len()).map(|i| epoch * sizes.len() + i);
                let batches = steps.map(|step| source.batch(step).expect("crops"));
                let samples: Vec<_> = batches.map(|b| b.groups[0].samples.clone()).collect();
                assert_eq!(samples.iter().map(Vec::len).collect::<Vec<_>>(), sizes);
                seen.push(samples.concat());
            }
            assert!(images < 5 || seen[0] != seen[1], "another order, other images left out");
        }
    }
}
