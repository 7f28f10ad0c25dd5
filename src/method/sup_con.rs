//! SupCon (Khosla et al. 2020): a view has to find all other views of its class.
//! The one method of the paper's Table 2 that sees labels in pre-training.
//!
//! Heads: `projector.layers.I.*`. No state besides.

use std::sync::Arc;

use burn::tensor::Tensor;
use serde::Deserialize;

use super::simclr::{projection, two_views};
use super::{BatchFeatures, BatchLoss, Entry, Kind, Method, Objective, Setting, State, positive};
use crate::backbone::HeadSpec;
use crate::data::views::ViewPlan;
use crate::error::Result;
use crate::loss::{Chance, normalize, sup_con::sup_con};

/// This method in the table.
pub const ENTRY: Entry = Entry {
    name: "supcon",
    title: "SupCon",
    kind: Kind::Contrastive,
    summary: "contrast of each class against the rest of the batch; uses labels (NeurIPS 2020)",
    reads: &["options"],
    build: |setting| Ok(Arc::new(SupCon::new(setting)?)),
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Divides similarities.
    temperature: f64,
    /// The loss is scaled by `temperature / base_temperature`.
    base_temperature: f64,
    /// Width of the projection; 0 = compare features directly.
    dim: usize,
}

struct SupCon {
    views: ViewPlan,
    options: Options,
    labels: Vec<usize>,
    batch_size: usize,
}

impl SupCon {
    fn new(setting: &Setting) -> Result<Self> {
        let (views, labels) = (two_views(setting)?, setting.labels()?.of_samples);
        let options: Options = setting.options()?;
        let Options { temperature, base_temperature, .. } = options;
        positive(&[("temperature", temperature), ("base_temperature", base_temperature)])?;
        let batch_size = setting.config.optim.batch_size.min(setting.samples);
        Ok(Self { views, options, labels, batch_size })
    }
}

impl Method for SupCon {
    fn views(&self) -> &ViewPlan {
        &self.views
    }

    fn heads(&self) -> HeadSpec {
        projection(self.options.dim)
    }

    fn objective(&self) -> Objective<'_> {
        Objective::Batch(self)
    }

    fn chance(&self) -> Option<Chance> {
        let Options { temperature, base_temperature, .. } = self.options;
        let (factor, others) = (temperature / base_temperature, 2 * self.batch_size - 1);
        Some(Chance::of(factor, others, "every other view of the batch is equally likely"))
    }
}

impl BatchLoss for SupCon {
    fn loss(&self, batch: BatchFeatures, _: &mut State) -> Tensor<1> {
        let labels: Vec<usize> = batch.samples.iter().map(|&sample| self.labels[sample]).collect();
        let features = normalize(batch.net.projected(batch.features));
        let Options { temperature, base_temperature, .. } = self.options;
        sup_con(features, &labels.repeat(2), temperature, base_temperature)
    }
}
