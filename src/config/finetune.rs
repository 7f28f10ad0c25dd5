//! Settings of fine-tuning.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{AugmentConfig, HeadInit, LambdaRule, OptimConfig};

/// Stage 2: supervised training from the pre-trained weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinetuneConfig {
    /// Optimiser and schedule.
    pub optim: OptimConfig,
    /// Side of the training crops in pixels.
    pub img_size: usize,
    /// Share of the epochs, from the first, that train on crops of `early_img_size`: several small crops
    /// cost as much as one large one.
    #[serde(default)] // absent in runs of earlier versions, as the next one
    pub early_share: f64,
    /// Side of the crops of these epochs in pixels.
    #[serde(default)]
    pub early_img_size: usize,
    /// Least optimiser steps with crops of `img_size`: if the schedule has fewer, all epochs have crops of
    /// `early_img_size`.
    #[serde(default)] // absent in runs of earlier versions, as the next two
    pub least_full_steps: usize,
    /// Side of the crops of the last epochs in pixels, 0 = none. These epochs are as many as take the time that
    /// those with crops of `img_size` would have taken.
    #[serde(default)]
    pub large_img_size: usize,
    /// Least epochs with crops of `large_img_size`: where there would be fewer, there are none.
    #[serde(default)]
    pub least_large_epochs: usize,
    /// Area range of RandomResizedCrop.
    pub scale: [f64; 2],
    /// Augmentation.
    pub augment: AugmentConfig,
    /// Alpha of CutMix (odd epochs when Mixup is on too), 0 = off.
    pub cutmix: f64,
    /// Alpha of Mixup (even epochs when CutMix is on too), 0 = off.
    pub mixup: f64,
    /// Which lambda both use.
    pub mix_lambda: LambdaRule,
    /// The classifier that fine-tuning begins with, unless it is given one.
    #[serde(default)] // absent in runs of earlier versions
    pub first_head: HeadInit,
    /// Last epochs in which no images are mixed or erased, RandAugment is off and crops are of
    /// `plain_scale`: what a model of few epochs learns from, and what one of many ends with.
    #[serde(default)] // absent in runs of earlier versions, as the next one
    pub plain_epochs: usize,
    /// Whether the epochs of the warm-up are plain, too: on mixed images alone a rising rate may carry the
    /// weights to where nothing is learned before there is anything to lose.
    #[serde(default)]
    pub plain_warmup: bool,
    /// Area range of RandomResizedCrop in plain epochs.
    #[serde(default = "whole")]
    pub plain_scale: [f64; 2],
    /// Which images an epoch takes; runs of earlier versions do not say.
    #[serde(default)]
    pub sampling: Sampling,
    /// Consecutive views of each image in an epoch, which then has `1 / repeats` of the images (repeated
    /// augmentation); 1 = each image once.
    #[serde(default = "once")] // absent in runs of earlier versions
    pub repeats: usize,
    /// What the loss of a class's images is multiplied by.
    #[serde(default)] // absent in runs of earlier versions, as the next one
    pub class_weights: ClassWeights,
    /// Beta of the `effective` class weights.
    #[serde(default)]
    pub class_weights_beta: f64,
    /// Epochs between two measurements of accuracy during training, on the validation images, or on the test
    /// images if there are none; 0 = only at the end.
    pub eval_every: usize,
    /// With a time budget: the most of fine-tuning's time that evaluations before the end take, which are
    /// further apart where they would take more; 0 = however long they take.
    #[serde(default)] // absent in runs of earlier versions
    pub eval_share: f64,
    /// Which epoch's weights are the model.
    #[serde(default)] // absent in runs of earlier versions, as the next one
    pub keep: Keep,
    /// Evaluations in a row without a better one after which training ends, 0 = never.
    #[serde(default)]
    pub patience: usize,
}

fn once() -> usize {
    1
}

/// The range of whole images.
fn whole() -> [f64; 2] {
    [1.0, 1.0]
}

impl FinetuneConfig {
    /// Epochs with crops of `early_img_size`, of `epochs`: none where these would be no smaller.
    pub fn early_of(&self, epochs: usize) -> usize {
        match self.early_img_size < self.img_size {
            true => early_epochs(epochs, self.early_share),
            false => 0,
        }
    }

    /// Share of the time of an epoch with crops of `large_img_size` that one with `img_size` takes, by their areas.
    fn area_share(&self) -> f64 {
        (self.img_size as f64 / self.large_img_size as f64).powi(2)
    }

    /// Whether some epochs may have larger crops than `img_size`.
    pub fn may_be_larger(&self) -> bool {
        self.large_img_size > self.img_size
    }

    /// Whether some epochs have crops of `early_img_size`.
    pub fn has_early(&self) -> bool {
        self.early_of(self.optim.epochs) > 0
    }

    /// Epochs with crops of `img_size`.
    pub fn full_epochs(&self) -> usize {
        self.optim.epochs - self.early_of(self.optim.epochs)
    }

    /// Epochs that would have crops of `large_img_size`, in about the time of those with `img_size`.
    pub fn large_epochs(&self) -> usize {
        (self.full_epochs() as f64 * self.area_share()).round() as usize
    }

    /// The same with crops of `large_img_size` in so many of the last epochs that they take as long.
    pub fn enlarged(&self) -> Self {
        let early_share = 1.0 - (1.0 - self.early_share) * self.area_share();
        Self { img_size: self.large_img_size, early_share, ..self.clone() }
    }

    /// The epochs that are not plain, from 0.
    pub fn mixed_epochs(&self) -> Range<usize> {
        let warmup = if self.plain_warmup { self.optim.warmup_epochs.ceil() as usize } else { 0 };
        warmup..self.plain_from().unwrap_or(self.optim.epochs)
    }

    /// Whether the first `done` epochs of a schedule of `epochs` are those of this one: the same rate, mixing and
    /// size of the crops. A run that has come so far can then still become the other one.
    pub fn is_alike_until(&self, done: usize, epochs: usize) -> bool {
        let other = Self { optim: OptimConfig { epochs, ..self.optim }, ..self.clone() };
        let mixed = |config: &Self| {
            let mixed = config.mixed_epochs();
            (mixed.start..mixed.end.min(done)).len()
        };
        let small = |config: &Self| config.early_of(config.optim.epochs).min(done);
        // The rate is at its peak, or still rises to it.
        let is_peak = |config: &Self| {
            let optim = &config.optim;
            optim.warmup_epochs <= optim.epochs as f64 && optim.decay_from() >= done
        };
        let is_constant = self.optim.weight_decay_end == 0.0;
        (epochs == self.optim.epochs || is_peak(self) && is_peak(&other) && is_constant)
            && mixed(self) == mixed(&other)
            && small(self) == small(&other)
    }

    /// The first of the last plain epochs, from 0, if there are any.
    pub fn plain_from(&self) -> Option<usize> {
        (self.plain_epochs > 0).then(|| self.optim.epochs.saturating_sub(self.plain_epochs))
    }
}

/// The whole number of epochs that comes closest to a `share` of `epochs`; the last epoch is never one of them.
pub fn early_epochs(epochs: usize, share: f64) -> usize {
    ((epochs as f64 * share).round() as usize).min(epochs.saturating_sub(1))
}

/// Which of the images with a label an epoch takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sampling {
    /// Each once.
    #[default]
    Once,
    /// As many of each class.
    Balanced,
}

/// The epoch whose weights are the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// The last.
    #[default]
    Last,
    /// That of the highest accuracy on the validation images.
    Best,
}

/// Weights of the classes in the loss, over all training images 1 in the mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClassWeights {
    /// 1 each.
    #[default]
    None,
    /// In proportion to one over the number n of the class's images.
    Balanced,
    /// In proportion to `(1 - beta) / (1 - beta^n)`, one over the effective number of images (Cui et al.,
    /// CVPR 2019, eq. 3).
    Effective,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Layers;

    #[test]
    fn the_last_epoch_has_crops_of_the_full_size() {
        let of = |epochs| early_epochs(epochs, 0.85);
        assert_eq!([0, 1, 2, 3, 20, 100].map(of), [0, 0, 1, 2, 17, 85]);
        assert_eq!(early_epochs(10, 0.0), 0);
    }

    #[test]
    fn large_crops_take_the_time_of_those_that_they_stand_for() {
        let mut config =
            Layers::new("quick").and_then(Layers::build).expect("valid").config.finetune;
        (config.img_size, config.large_img_size, config.early_share) = (112, 224, 0.8);
        config.optim.epochs = 1000;
        assert_eq!((config.full_epochs(), config.large_epochs()), (200, 50));
        let large = config.enlarged();
        assert_eq!((large.img_size, large.full_epochs()), (224, 50));
        assert!(config.may_be_larger() && !large.may_be_larger());
        config.large_img_size = 0;
        assert!(!config.may_be_larger());
    }

    #[test]
    fn early_crops_are_smaller_or_there_are_none() {
        let mut config =
            Layers::new("quick").and_then(Layers::build).expect("valid").config.finetune;
        let mut of = |img_size| {
            config.img_size = img_size;
            config.early_of(20)
        };
        assert_eq!([112, 65, 64, 48].map(&mut of), [17, 17, 0, 0]);
    }
}
