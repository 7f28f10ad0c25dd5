//! Supervised training with CutMix and Mixup by epoch parity: the fine-tuning stage (recipe
//! section 3), and as a pre-training method the same on the crops of pre-training (section 4.7).
//!
//! Heads: `head.weight [classes, d]`, `head.bias [classes]`. No state besides.

use std::sync::Arc;

use rand_chacha::ChaCha8Rng;

use super::{Entry, Kind, Labels, Method, Objective, RowLoss};
use crate::backbone::HeadSpec;
use crate::config::{FinetuneConfig, LambdaRule};
use crate::data::mixing::{Mix, finetune_mix};
use crate::data::views::ViewPlan;
use crate::loss::{Chance, Smoothing};

/// This method in the table.
pub const ENTRY: Entry = Entry {
    name: "supervised",
    title: "supervised",
    kind: Kind::Supervised,
    summary: "cross-entropy on the labels, with the crops of pre-training",
    reads: &["cutmix", "cutmix_lambda", "optim.smoothing", "optim.smoothing_kind"],
    build: |setting| {
        let Labels { of_samples: labels, classes } = setting.labels()?;
        let optim = &setting.config.optim;
        let (cutmix, rule) = (setting.config.cutmix, setting.config.cutmix_lambda);
        Ok(Arc::new(Supervised {
            labels,
            classes,
            views: ViewPlan::pretrain(setting.config),
            smoothing: Smoothing::new(optim.smoothing, optim.smoothing_kind, classes),
            mixing: Mixing { cutmix, mixup: 0.0, rule },
        }))
    },
};

/// See the module's description.
pub struct Supervised {
    labels: Vec<usize>,
    classes: usize,
    views: ViewPlan,
    smoothing: Smoothing,
    mixing: Mixing,
}

/// Alphas of CutMix and Mixup, 0 = off, and which lambda they use.
struct Mixing {
    cutmix: f64,
    mixup: f64,
    rule: LambdaRule,
}

impl Supervised {
    /// Fine-tuning on training samples with the given labels, each below `classes`.
    pub fn finetuning(config: &FinetuneConfig, labels: Vec<usize>, classes: usize) -> Self {
        let optim = &config.optim;
        let (cutmix, mixup, rule) = (config.cutmix, config.mixup, config.mix_lambda);
        Self {
            labels,
            classes,
            views: ViewPlan::finetune(config),
            smoothing: Smoothing::new(optim.smoothing, optim.smoothing_kind, classes),
            mixing: Mixing { cutmix, mixup, rule },
        }
    }
}

impl Method for Supervised {
    fn views(&self) -> &ViewPlan {
        &self.views
    }

    fn heads(&self) -> HeadSpec {
        HeadSpec::classifier(self.classes, true)
    }

    fn objective(&self) -> Objective<'_> {
        Objective::Rows(self)
    }

    fn chance(&self) -> Option<Chance> {
        let groups = self.views.groups.len() as f64;
        Some(Chance::of(groups, self.classes, "every class is equally likely"))
    }

    fn mix(&self, rng: &mut ChaCha8Rng, epoch: usize, rows: usize, img_size: usize) -> Mix {
        let Mixing { cutmix, mixup, rule } = self.mixing;
        finetune_mix(rng, epoch as u32, rows, img_size, cutmix, mixup, rule)
    }
}

impl RowLoss for Supervised {
    fn target(&self, sample: usize) -> usize {
        self.labels[sample]
    }

    fn smoothing(&self) -> Smoothing {
        self.smoothing
    }
}
