//! IDMM: instance discrimination with multi-crop and CutMix, the paper's method (recipe section 2).
//!
//! Every training image is a class of its own: the head has one row an image, and its loss is
//! cross-entropy with label smoothing over raw dot products, no temperature and no normalisation.
//! Crops come in groups of one scale each; CutMix draws one box, one lambda and one permutation a
//! group and step. With smoothing 0, one crop group and CutMix 0 this is plain instance
//! discrimination, the first row of Table 8.
//!
//! Heads: `head.weight [N, d]`, `head.bias [N]`; with a projector (Table 9) `projector.fc1.*`,
//! `projector.fc2.*`. No state besides.

use rand_chacha::ChaCha8Rng;

use super::Method;
use crate::config::{LambdaRule, PretrainConfig};
use crate::data::mixing::Mix;
use crate::data::views::ViewPlan;
use crate::loss::Smoothing;

/// See the module's description.
pub struct Idmm {
    samples: usize,
    views: ViewPlan,
    smoothing: Smoothing,
    cutmix: f64,
    lambda: LambdaRule,
}

impl Idmm {
    /// For `samples` training images.
    pub fn new(config: &PretrainConfig, samples: usize) -> Self {
        let optim = &config.optim;
        Self {
            samples,
            views: ViewPlan::pretrain(config),
            smoothing: Smoothing::new(optim.smoothing, optim.smoothing_kind, samples),
            cutmix: config.cutmix,
            lambda: config.cutmix_lambda,
        }
    }
}

impl Method for Idmm {
    fn num_classes(&self) -> usize {
        self.samples
    }

    fn views(&self) -> &ViewPlan {
        &self.views
    }

    fn target(&self, sample: usize) -> usize {
        sample
    }

    fn smoothing(&self) -> Smoothing {
        self.smoothing
    }

    fn mix(&self, rng: &mut ChaCha8Rng, _epoch: usize, rows: usize, img_size: usize) -> Mix {
        match self.cutmix > 0.0 {
            true => Mix::cutmix(rng, rows, img_size, self.cutmix, self.lambda),
            false => Mix::none(rows),
        }
    }
}
