//! IDMM: instance discrimination with multi-crop and CutMix, the paper's method (arXiv 2201.10728).
//!
//! Every training image is a class of its own: the head has one row an image, and its loss is
//! cross-entropy with label smoothing over raw dot products, no temperature and no normalisation.
//! Crops come in groups of one scale each; CutMix draws one box, one lambda and one permutation a
//! group and step. With smoothing 0, one crop group and CutMix 0 this is plain instance
//! discrimination, the first row of Table 8.
//!
//! Heads: `head.weight [N, d]`, `head.bias [N]`; with a projector (Table 9) `projector.fc1.*`,
//! `projector.fc2.*`. No state besides.

use std::sync::Arc;

use rand_chacha::ChaCha8Rng;

use super::{Entry, Kind, Method, Objective, RowLoss};
use crate::backbone::HeadSpec;
use crate::config::{LambdaRule, PretrainConfig};
use crate::data::mixing::Mix;
use crate::data::views::ViewPlan;
use crate::loss::{Chance, Smoothing};
use crate::nn::MlpSpec;

/// This method in the table.
pub const ENTRY: Entry = Entry {
    name: "idmm",
    title: "IDMM",
    kind: Kind::SelfSupervised,
    summary: "instance discrimination with multi-crop and CutMix (ECCV 2022)",
    reads: &[
        "cutmix",
        "cutmix_lambda",
        "projector",
        "classifier_bias",
        "first_head",
        "optim.smoothing",
        "optim.smoothing_kind",
    ],
    build: |setting| Ok(Arc::new(Idmm::new(setting.config, setting.samples))),
};

/// See the module's description.
pub struct Idmm {
    heads: HeadSpec,
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
            heads: HeadSpec {
                projector: (config.projector > 0).then(|| MlpSpec::two_layers(config.projector)),
                ..HeadSpec::classifier(samples, config.classifier_bias)
            },
            views: ViewPlan::pretrain(config),
            smoothing: Smoothing::new(optim.smoothing, optim.smoothing_kind, samples),
            cutmix: config.cutmix,
            lambda: config.cutmix_lambda,
        }
    }
}

impl Method for Idmm {
    fn views(&self) -> &ViewPlan {
        &self.views
    }

    fn heads(&self) -> HeadSpec {
        self.heads
    }

    fn objective(&self) -> Objective<'_> {
        Objective::Rows(self)
    }

    fn chance(&self) -> Option<Chance> {
        let (groups, images) = (self.views.groups.len() as f64, self.heads.num_classes);
        Some(Chance::of(groups, images, "every training image is equally likely"))
    }

    fn mix(&self, rng: &mut ChaCha8Rng, _epoch: usize, rows: usize, img_size: usize) -> Mix {
        match self.cutmix > 0.0 {
            true => Mix::cutmix(rng, rows, img_size, self.cutmix, self.lambda),
            false => Mix::none(rows),
        }
    }
}

impl RowLoss for Idmm {
    fn target(&self, sample: usize) -> usize {
        sample
    }

    fn smoothing(&self) -> Smoothing {
        self.smoothing
    }
}
