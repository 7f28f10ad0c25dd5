//! Supervised training with CutMix and Mixup by epoch parity: the fine-tuning stage, and as a
//! pre-training method the same on the crops of pre-training (the paper's Table 6).
//!
//! Heads: `head.weight [classes, d]`, `head.bias [classes]`. No state besides.

use std::ops::Range;
use std::sync::Arc;

use rand_chacha::ChaCha8Rng;

use super::{Entry, Kind, Labels, Method, Objective, RowLoss};
use crate::backbone::HeadSpec;
use crate::config::{ClassWeights, FinetuneConfig, LambdaRule};
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
            weights: vec![1.0; classes],
            views: ViewPlan::pretrain(setting.config),
            smoothing: Smoothing::new(optim.smoothing, optim.smoothing_kind, classes),
            mixing: Mixing { cutmix, mixup: 0.0, rule },
            mixed_epochs: 0..usize::MAX,
        }))
    },
};

/// See the module's description.
pub struct Supervised {
    labels: Vec<usize>,
    classes: usize,
    views: ViewPlan,
    /// What the loss of each class's images is multiplied by.
    weights: Vec<f32>,
    smoothing: Smoothing,
    mixing: Mixing,
    /// The epochs that mix images.
    mixed_epochs: Range<usize>,
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
            weights: class_weights(config, &labels, classes),
            labels,
            classes,
            views: ViewPlan::finetune(config),
            smoothing: Smoothing::new(optim.smoothing, optim.smoothing_kind, classes),
            mixing: Mixing { cutmix, mixup, rule },
            mixed_epochs: config.mixed_epochs(),
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
        if !self.mixed_epochs.contains(&epoch) {
            return Mix::none(rows);
        }
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

    fn weight(&self, class: usize) -> f32 {
        self.weights[class]
    }
}

/// Weights of the classes, 1 in the mean over the samples of the given labels.
fn class_weights(config: &FinetuneConfig, labels: &[usize], classes: usize) -> Vec<f32> {
    let mut counts = vec![0.0; classes];
    labels.iter().for_each(|&label| counts[label] += 1.0);
    let beta = config.class_weights_beta;
    let raw = counts.iter().map(|&count: &f64| match config.class_weights {
        ClassWeights::None => 1.0,
        // No sample of the class, no weight.
        _ if count == 0.0 => 0.0,
        ClassWeights::Balanced => 1.0 / count,
        ClassWeights::Effective => (1.0 - beta) / (1.0 - beta.powf(count)),
    });
    let raw: Vec<f64> = raw.collect();
    let total: f64 = raw.iter().zip(&counts).map(|(weight, count)| weight * count).sum();
    raw.iter().map(|weight| (weight * labels.len() as f64 / total) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Layers;

    #[test]
    fn the_plain_epochs_mix_nothing() {
        let mut config =
            Layers::new("paper").and_then(Layers::build).expect("a recipe").config.finetune;
        (config.optim.epochs, config.plain_epochs) = (6, 2);
        let mixed = |config: &FinetuneConfig| {
            let method = Supervised::finetuning(config, vec![0, 1, 2, 3], 4);
            [0, 1, 2, 3, 4, 5].map(|epoch: usize| {
                let mut rng = crate::rng::stream(1, crate::rng::Purpose::Mix, epoch as u32, 0, 0);
                method.mix(&mut rng, epoch, 4, 32) != Mix::none(4)
            })
        };
        assert_eq!(mixed(&config), [true, true, true, true, false, false]);
        (config.plain_warmup, config.optim.warmup_epochs) = (true, 1.5);
        assert_eq!(mixed(&config), [false, false, true, true, false, false]);
    }

    #[test]
    fn classes_of_few_images_weigh_more_and_the_mean_image_weighs_one() {
        let labels: Vec<usize> = [vec![0; 90], vec![1; 10], vec![3; 20]].concat();
        let paper = Layers::new("paper").and_then(Layers::build).expect("the recipe").config;
        let weights = |class_weights_of: ClassWeights| {
            let config = FinetuneConfig {
                class_weights: class_weights_of,
                class_weights_beta: 0.9,
                ..paper.finetune.clone()
            };
            class_weights(&config, &labels, 4)
        };
        let near = |found: &[f32], exact: [f64; 4]| {
            let close = |(&found, exact): (&f32, f64)| (f64::from(found) - exact).abs() < 1e-6;
            assert!(found.iter().zip(exact).all(close), "{found:?} {exact:?}");
        };
        near(&weights(ClassWeights::None), [1.0; 4]);
        near(&weights(ClassWeights::Balanced), [120.0 / 270.0, 4.0, 0.0, 2.0]);
        // 1 - 0.9^n of 90, 10 and 20 images.
        let effective = [0.999_923_816_521, 0.651_321_559_9, 0.0, 0.878_423_345_41];
        let total = 90.0 / effective[0] + 10.0 / effective[1] + 20.0 / effective[3];
        let of = |effective: f64| if effective == 0.0 { 0.0 } else { 120.0 / effective / total };
        near(&weights(ClassWeights::Effective), effective.map(of));
    }
}
