//! Supervised training with CutMix and Mixup by epoch parity: the fine-tuning stage (recipe
//! section 3).

use rand_chacha::ChaCha8Rng;

use super::Method;
use crate::config::FinetuneConfig;
use crate::data::mixing::{Mix, finetune_mix};
use crate::data::views::ViewPlan;
use crate::loss::Smoothing;

/// See the module's description.
pub struct Supervised {
    labels: Vec<usize>,
    classes: usize,
    views: ViewPlan,
    config: FinetuneConfig,
}

impl Supervised {
    /// For training samples with the given labels, each below `classes`.
    pub fn new(config: &FinetuneConfig, labels: Vec<usize>, classes: usize) -> Self {
        Self { labels, classes, views: ViewPlan::finetune(config), config: config.clone() }
    }
}

impl Method for Supervised {
    fn num_classes(&self) -> usize {
        self.classes
    }

    fn views(&self) -> &ViewPlan {
        &self.views
    }

    fn target(&self, sample: usize) -> usize {
        self.labels[sample]
    }

    fn smoothing(&self) -> Smoothing {
        let optim = &self.config.optim;
        Smoothing::new(optim.smoothing, optim.smoothing_kind, self.classes)
    }

    fn mix(&self, rng: &mut ChaCha8Rng, epoch: usize, rows: usize, img_size: usize) -> Mix {
        let c = &self.config;
        finetune_mix(rng, epoch as u32, rows, img_size, c.cutmix, c.mixup, c.mix_lambda)
    }
}
