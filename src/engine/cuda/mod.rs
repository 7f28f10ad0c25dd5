//! The engine on NVIDIA cards: kernels of our own, compiled when a card is opened, and cuBLASLt's products.
//!
//! A backbone is read once into a plan ([`crate::nn::Plan`]), whose values have places in one piece of
//! memory ([`layout`]); a step walks it forward, computes the loss and its slope, and walks it backward
//! ([`network`]). Weights and sums are in f32, matrix products in f32, TF32 or bf16, and every sum has a fixed order: on one card with one version of
//! CUDA's libraries two runs give the same bits. Crops are made on the card from what the CPU has drawn
//! ([`feed`]). Losses that couple the rows of a batch, with their heads, are computed on the CPU between the
//! two passes.

mod engine;
mod feed;
mod gpu;
mod inputs;
mod layout;
mod libraries;
mod model;
mod network;
mod rules;
mod self_check;
mod vectors;

use std::sync::{Arc, Mutex, PoisonError};

use gpu::{Gpu, Kernels};

use super::device::Card;
use super::{Engine, Machine, Model, TrainState};
use crate::backbone::NetSpec;
use crate::error::Result;

/// The kernels, a file a subject.
const KERNELS: Kernels = Kernels { fused: FUSED, exact: EXACT };
const EXACT: &str = concat!(
    include_str!("kernels/common.cu"),
    include_str!("kernels/feed.cu"),
    include_str!("kernels/feed_augment.cu"),
);
const FUSED: &str = concat!(
    include_str!("kernels/common.cu"),
    include_str!("kernels/rows.cu"),
    include_str!("kernels/norm.cu"),
    include_str!("kernels/gelu.cu"),
    include_str!("kernels/window.cu"),
    include_str!("kernels/depthwise.cu"),
    include_str!("kernels/dropout.cu"),
    include_str!("kernels/attention.cu"),
    include_str!("kernels/attention_wide.cu"),
    include_str!("kernels/performer.cu"),
    include_str!("kernels/loss.cu"),
    include_str!("kernels/optim.cu"),
    include_str!("kernels/pixels.cu"),
    include_str!("kernels/trial.cu"),
);

/// The cards of this machine in the driver's order, which is that of `--device cuda:i`.
///
/// # Errors
/// The driver, one of CUDA's libraries or a card is missing: which, and how to get it.
pub fn cards() -> Result<Vec<Card>> {
    gpu::cards()
}

/// A card with the versions of its driver and of the library of matrix products.
pub fn with_versions(card: &Card) -> Option<String> {
    gpu::on(card)
}

/// Makes card `index` ready. The first time it has to show that it computes what the CPU does.
///
/// # Errors
/// It is not there, its driver does not give it to us, or it answers wrongly.
pub fn check(index: usize) -> Result<()> {
    open(index).map(|_| ())
}

/// An engine on card `index` that trains the model `net` on from `state`, `micro_batch` rows at a time, 0 = as
/// many as its memory holds, with the products and threads of `machine`.
///
/// # Errors
/// As [`check`]; not enough memory.
pub fn engine(
    index: usize,
    machine: &Machine,
    net: &NetSpec,
    micro_batch: usize,
    state: TrainState,
) -> Result<Box<dyn Engine>> {
    Ok(Box::new(engine::CudaEngine::new(open(index)?, machine, net, micro_batch, state)?))
}

/// The model `net` with the given weights on card `index`, to be asked.
///
/// # Errors
/// As [`engine`].
pub fn model(index: usize, net: &NetSpec, values: &[f32]) -> Result<Box<dyn Model>> {
    Ok(Box::new(model::CudaModel::new(&open(index)?, net, values)?))
}

fn open(index: usize) -> Result<Arc<Gpu>> {
    static OPENED: Mutex<Vec<(usize, Arc<Gpu>)>> = Mutex::new(Vec::new());
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, gpu)) = opened.iter().find(|(other, _)| *other == index) {
        return Ok(gpu.clone());
    }
    let gpu = Gpu::open(index, &KERNELS)?;
    self_check::self_check(&gpu)?;
    opened.push((index, gpu.clone()));
    Ok(gpu)
}
