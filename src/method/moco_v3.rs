//! MoCo v3 (Chen, Xie & He 2021): each view has to find the other view's key, made by a momentum
//! encoder, among the keys of the batch.
//!
//! Heads: `projector.layers.I.weight`, `projector.norms.I.*`, `predictor.layers.I.weight`,
//! `predictor.norms.I.*`. No state besides; the momentum encoder lies under `teacher.<key>` (its
//! predictor is not used).

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::Tensor;
use serde::Deserialize;

use super::simclr::two_views;
use super::{
    BatchFeatures, BatchLoss, Entry, Kind, Method, Objective, Setting, State, Teacher, positive,
    shares,
};
use crate::backbone::HeadSpec;
use crate::config::Encoder;
use crate::data::views::ViewPlan;
use crate::error::Result;
use crate::loss::{Chance, info_nce::ctr, normalize};
use crate::nn::{Activation, BatchNorms, LinearStart, MlpSpec};
use crate::schedule::cosine;

/// This method in the table.
pub const ENTRY: Entry = Entry {
    name: "moco-v3",
    title: "MoCo v3",
    kind: Kind::SelfSupervised,
    summary: "contrast of two views with a predictor and a momentum encoder (ICCV 2021)",
    reads: &["encoder", "options"],
    build: |setting| Ok(Arc::new(MoCoV3::new(setting)?)),
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Divides similarities.
    temperature: f64,
    /// Width of projection and prediction.
    dim: usize,
    /// Width inside projector and predictor.
    hidden: usize,
    /// Of the momentum encoder at the start; it ends at 1.
    momentum: f64,
    /// Keep the projection of the patch embedding as it was drawn.
    freeze_patch_embed: bool,
}

struct MoCoV3 {
    views: ViewPlan,
    encoder: Encoder,
    options: Options,
    batch_size: usize,
}

impl MoCoV3 {
    fn new(setting: &Setting) -> Result<Self> {
        let (views, options) = (two_views(setting)?, setting.options::<Options>()?);
        positive(&[("temperature", options.temperature), ("dim", options.dim as f64)])?;
        shares(&[("momentum", options.momentum)])?;
        let batch_size = setting.config.optim.batch_size.min(setting.samples);
        Ok(Self { views, encoder: setting.config.encoder, options, batch_size })
    }

    fn mlp(&self, layers: usize) -> MlpSpec {
        MlpSpec {
            layers,
            hidden: self.options.hidden,
            out: self.options.dim,
            activation: Activation::Relu,
            norm: BatchNorms::LastPlain,
            bias: false,
            start: LinearStart::Uniform,
        }
    }
}

impl Method for MoCoV3 {
    fn views(&self) -> &ViewPlan {
        &self.views
    }

    fn heads(&self) -> HeadSpec {
        let (projector, predictor) = (Some(self.mlp(3)), Some(self.mlp(2)));
        HeadSpec { projector, predictor, ..HeadSpec::default() }
    }

    fn encoder(&self) -> Encoder {
        self.encoder
    }

    fn objective(&self) -> Objective<'_> {
        Objective::Batch(self)
    }

    fn chance(&self) -> Option<Chance> {
        let factor = 2.0 * 2.0 * self.options.temperature;
        Some(Chance::of(factor, self.batch_size, "every image of the batch is equally likely"))
    }

    fn frozen_epochs(&self, key: &str) -> usize {
        // PVTv2 has a norm behind it, which is trained.
        let frozen = self.options.freeze_patch_embed && key.starts_with("patch_embed.proj.");
        if frozen { usize::MAX } else { 0 }
    }
}

impl BatchLoss for MoCoV3 {
    fn teacher(&self) -> Option<&dyn Teacher> {
        Some(self)
    }

    fn loss(&self, batch: BatchFeatures, _: &mut State) -> Tensor<1> {
        let (teacher, features) = batch.teacher();
        // Each view passes the heads on its own: their batch statistics are one view's.
        let query = |view| {
            let projected = batch.net.projected(batch.view(&batch.features, view));
            normalize(batch.net.predicted(projected))
        };
        let key = |view| {
            let key = normalize(teacher.projected(batch.view(&features, view)));
            Tensor::from_inner(key)
        };
        let tau = self.options.temperature;
        ctr(query(0), key(1), tau) + ctr(query(1), key(0), tau)
    }
}

impl Teacher for MoCoV3 {
    fn views(&self) -> Range<usize> {
        0..2
    }

    fn momentum(&self, step: usize, total_steps: usize) -> f64 {
        cosine(self.options.momentum, 1.0, step, total_steps)
    }

    fn follows_before(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::pretraining;
    use crate::backbone::Spec;
    use crate::config::{Layers, Source};

    /// The original stops the gradient of its patch convolution; a norm behind it goes on learning.
    #[test]
    fn the_projection_of_patches_is_frozen_and_nothing_else() {
        for (model, expected) in [
            ("deit_tiny_patch16_224", &["patch_embed.proj.weight", "patch_embed.proj.bias"][..]),
            ("pvt_v2_b0", &["patch_embed.proj.weight", "patch_embed.proj.bias"]),
            ("t2t_vit_7", &[]),
        ] {
            let mut layers = Layers::new("moco-v3").expect("a recipe");
            layers.put("model.name", model.into(), Source::Flag("--model")).expect("a key");
            let config = layers.build().expect(model).config;
            let method = pretraining(&config, 4, None).expect(model);
            let spec = Spec::find(model).expect(model);
            let keys = spec.outline(112).parameters;
            let frozen = keys.iter().filter(|spec| method.frozen_epochs(&spec.key) > 0);
            let frozen: Vec<&str> = frozen.map(|spec| spec.key.as_str()).collect();
            assert_eq!(frozen, expected, "{model}");
        }
    }
}
