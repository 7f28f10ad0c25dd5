//! MoCo v2 (He et al. 2020, Chen et al. 2020): a view has to tell the other view's key, made by a
//! momentum encoder, from the keys of earlier batches.
//!
//! Heads: `projector.layers.I.*`. State: `queue` `[length, dim]`, unit rows; `queue_at` `[1]`, the
//! row that the next key replaces. The momentum encoder lies under `teacher.<key>`.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::Tensor;
use rand::RngExt as _;
use serde::Deserialize;

use super::simclr::{projection, two_views};
use super::{
    BatchFeatures, BatchLoss, Entry, Kind, Method, Objective, Setting, State, StateTensor, Teacher,
    positive, shares,
};
use crate::backbone::HeadSpec;
use crate::config::Encoder;
use crate::data::views::ViewPlan;
use crate::error::Result;
use crate::loss::{Chance, info_nce::info_nce_with_queue, normalize};
use crate::nn::readers::tensors::values;
use crate::rng::{Purpose, stream};

/// This method in the table.
pub const ENTRY: Entry = Entry {
    name: "moco-v2",
    title: "MoCo v2",
    kind: Kind::SelfSupervised,
    summary: "contrast against a queue of keys from a momentum encoder (2020)",
    reads: &["encoder", "options"],
    build: |setting| Ok(Arc::new(MoCoV2::new(setting)?)),
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Divides similarities.
    temperature: f64,
    /// Width of the projection.
    dim: usize,
    /// Keys kept.
    queue: usize,
    /// Of the momentum encoder.
    momentum: f64,
}

struct MoCoV2 {
    views: ViewPlan,
    encoder: Encoder,
    options: Options,
}

impl MoCoV2 {
    fn new(setting: &Setting) -> Result<Self> {
        let (views, options) = (two_views(setting)?, setting.options::<Options>()?);
        let Options { temperature, dim, queue, momentum } = options;
        positive(&[("temperature", temperature), ("dim", dim as f64), ("queue", queue as f64)])?;
        shares(&[("momentum", momentum)])?;
        Ok(Self { views, encoder: setting.config.encoder, options })
    }
}

impl Method for MoCoV2 {
    fn views(&self) -> &ViewPlan {
        &self.views
    }

    fn heads(&self) -> HeadSpec {
        projection(self.options.dim)
    }

    fn encoder(&self) -> Encoder {
        self.encoder
    }

    fn objective(&self) -> Objective<'_> {
        Objective::Batch(self)
    }

    fn chance(&self) -> Option<Chance> {
        let keys = 1 + self.options.queue;
        Some(Chance::of(1.0, keys, "the other view is as likely as every key of the queue"))
    }
}

impl BatchLoss for MoCoV2 {
    /// A queue of random unit rows.
    fn state(&self, seed: u64) -> State {
        let shape = vec![self.options.queue, self.options.dim];
        let mut rng = stream(seed, Purpose::Init, 0, 0, 0);
        let normal = rand_distr::StandardNormal;
        let drawn = (0..shape[0] * shape[1]).map(|_| rng.sample::<f32, _>(normal)).collect();
        let drawn = StateTensor { shape: shape.clone(), values: drawn };
        let rows = normalize(drawn.tensor(&crate::ops::cpu()));
        State::from([
            ("queue".to_owned(), StateTensor { shape, values: values(rows) }),
            ("queue_at".to_owned(), StateTensor { shape: vec![1], values: vec![0.0] }),
        ])
    }

    fn teacher(&self) -> Option<&dyn Teacher> {
        Some(self)
    }

    fn student_views(&self) -> usize {
        1
    }

    fn loss(&self, batch: BatchFeatures, state: &mut State) -> Tensor<1> {
        let (teacher, features) = batch.teacher();
        // The first view asks; the second, seen by the teacher, answers.
        let queries = normalize(batch.net.projected(batch.view(&batch.features, 0)));
        let keys = normalize(teacher.projected(features));
        let queue = state["queue"].tensor(&queries.device());
        let keys_with = Tensor::from_inner(keys.clone());
        let loss = info_nce_with_queue(queries, keys_with, queue, self.options.temperature);
        enqueue(state, &values(keys), self.options.dim);
        loss
    }
}

/// Puts keys over the oldest ones, in a ring.
fn enqueue(state: &mut State, keys: &[f32], dim: usize) {
    let at = state["queue_at"].values[0] as usize;
    let Some(queue) = state.get_mut("queue") else { return };
    let length = queue.shape[0];
    for (i, key) in keys.chunks_exact(dim).enumerate() {
        queue.values[(at + i) % length * dim..][..dim].copy_from_slice(key);
    }
    let next = (at + keys.len() / dim) % length;
    state.insert("queue_at".to_owned(), StateTensor { shape: vec![1], values: vec![next as f32] });
}

impl Teacher for MoCoV2 {
    fn views(&self) -> Range<usize> {
        1..2
    }

    fn momentum(&self, _: usize, _: usize) -> f64 {
        self.options.momentum
    }

    fn follows_before(&self) -> bool {
        true
    }
}
