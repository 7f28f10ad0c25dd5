//! SimCLR (Chen et al. 2020): of all rows of a batch, a view has to find the other view of its image.
//!
//! Heads: `projector.layers.I.*`, or none (Table 9's "without MLP"). No state besides.

use std::sync::Arc;

use burn::tensor::Tensor;
use serde::Deserialize;

use super::{BatchFeatures, BatchLoss, Entry, Kind, Method, Objective, Setting, State, positive};
use crate::backbone::HeadSpec;
use crate::data::views::ViewPlan;
use crate::error::{Error, Result};
use crate::loss::{Chance, normalize, nt_xent::nt_xent};
use crate::nn::MlpSpec;

/// This method in the table.
pub const ENTRY: Entry = Entry {
    name: "simclr",
    title: "SimCLR",
    kind: Kind::SelfSupervised,
    summary: "contrast of two views against all others of the batch (ICML 2020)",
    reads: &["options"],
    build: |setting| Ok(Arc::new(SimClr::new(setting)?)),
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Divides similarities.
    temperature: f64,
    /// Width of the projection; 0 = compare features directly.
    dim: usize,
}

struct SimClr {
    views: ViewPlan,
    options: Options,
    batch_size: usize,
}

impl SimClr {
    fn new(setting: &Setting) -> Result<Self> {
        let (views, options) = (two_views(setting)?, setting.options::<Options>()?);
        positive(&[("temperature", options.temperature)])?;
        let batch_size = setting.config.optim.batch_size.min(setting.samples);
        Ok(Self { views, options, batch_size })
    }
}

/// The views of a method that compares exactly two.
///
/// # Errors
/// Crop groups of another number.
pub(super) fn two_views(setting: &Setting) -> Result<ViewPlan> {
    let views = ViewPlan::pretrain(setting.config);
    match views.views() {
        2 => Ok(views),
        n => Err(Error::Usage(format!(
            "{} compares two views of an image, pretrain.crops has {n}; try --crops 2x112@0.14-1",
            setting.config.method
        ))),
    }
}

/// A projection of width `dim`, or none.
pub(super) fn projection(dim: usize) -> HeadSpec {
    HeadSpec { projector: (dim > 0).then(|| MlpSpec::two_layers(dim)), ..HeadSpec::default() }
}

impl Method for SimClr {
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
        let others = 2 * self.batch_size - 1;
        Some(Chance::of(1.0, others, "every other view of the batch is equally likely"))
    }
}

impl BatchLoss for SimClr {
    fn loss(&self, batch: BatchFeatures, _: &mut State) -> Tensor<1> {
        nt_xent(normalize(batch.net.projected(batch.features)), self.options.temperature)
    }
}
