//! Memory of a stage at its peak, part by part.

use serde::Serialize;

use crate::engine::TrainState;
use crate::run::prepare::Prepared;
use crate::train::checkpoint::StageName;
use crate::train::stage::Stage;

/// Bytes that are held at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// The program itself, with its fonts and threads.
    pub program: u64,
    /// Decoded images, as far as `data.cache_ram_gb` lets them.
    pub images: u64,
    /// Weights, moments, averages, a momentum encoder, a queue.
    pub state: u64,
    /// Gradients of every worker, and weights as the kernels want them.
    pub gradients: u64,
    /// What is kept between forward and backward.
    pub activations: u64,
    /// Crops of the step that runs and of those that wait, and those being cut.
    pub crops: u64,
    /// Features and logits of the images that are measured.
    pub measuring: u64,
    /// Whole images while they are decoded, and those that the ONNX file is checked on.
    pub decoding: u64,
}

/// Measured: the program after `fewvit models`, and the allocator's reserves.
const PROGRAM: u64 = 60_000_000;
/// Batches of crops: the one that is trained on, one that waits and one that is made.
const BATCHES: u64 = 3;
/// Copies of the heads' rows in a coupled loss: values, their logarithms and gradients of both.
const COUPLED_COPIES: u64 = 4;
/// Copies of what is measured: in parts, as a whole, on the unit sphere, and packed for products.
const MEASURED_COPIES: u64 = 4;
/// Weights packed for the forward and for the backward products.
const PACKED: u64 = 2;

impl Memory {
    /// Of a stage that trains `state` on `data`; `checked` images are held to check the ONNX file.
    pub fn of(stage: &Stage, state: &TrainState, data: &Prepared, checked: usize) -> Self {
        let (workers, params) = (stage.machine.threads as u64, 4 * state.values.len() as u64);
        let state_bytes = bytes_of(state);
        let (width, height) = (data.report.width, data.report.height);
        let pixels = |w: usize, h: usize| (3 * w * h) as u64;
        Self {
            program: PROGRAM,
            images: data.images.bytes(),
            state: state_bytes,
            // Every worker has a sum and its micro-batch's own; the weights are copied to be measured.
            gradients: params * (2 * workers + PACKED + 1),
            activations: workers * per_worker(stage) + coupled_bytes(stage),
            crops: BATCHES * crop_bytes(stage),
            measuring: MEASURED_COPIES * measuring_bytes(stage, data),
            decoding: 2 * workers * pixels(width.max, height.max)
                + checked as u64 * pixels(width.median, height.median),
        }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        let Self { program, images, state, gradients, activations, crops, .. } = self;
        // Workers keep their buffers from step to step. The others come and go, one at a time.
        let passing = self.measuring.max(self.decoding);
        program + images + state + gradients + activations + crops + passing
    }
}

/// Bytes of what the optimiser and the method remember.
pub fn bytes_of(state: &TrainState) -> u64 {
    let vectors = 3 + usize::from(state.ema.is_some()) + usize::from(state.teacher.is_some());
    let memory: usize = state.memory.values().map(|tensor| tensor.values.len()).sum();
    4 * (vectors * state.values.len() + memory) as u64
}

/// Bytes of the features of the training images in pre-training, of those and of the logits of the images
/// held out in fine-tuning.
fn measuring_bytes(stage: &Stage, data: &Prepared) -> u64 {
    let features = stage.net.spec.num_features();
    let values = match stage.name {
        StageName::Pretrain => data.train.len() * features,
        StageName::Finetune => data.held_out.len() * (features + stage.net.heads.num_classes),
    };
    (values * size_of::<f32>()) as u64
}

/// Bytes a worker keeps between forward and backward.
fn per_worker(stage: &Stage) -> u64 {
    let backbone = stage.net.spec.outline(stage.net.img_size).activations;
    (stage.micro_batch * (backbone + head_values(stage)) * size_of::<f32>()) as u64
}

/// Values a row has in the heads.
fn head_values(stage: &Stage) -> usize {
    let heads = stage.net.heads;
    let mlps = [heads.projector, heads.predictor].into_iter().flatten();
    mlps.map(|mlp| (mlp.layers - 1) * mlp.hidden + mlp.out).sum::<usize>() + heads.num_classes
}

/// Bytes of a loss that couples the rows of a batch.
fn coupled_bytes(stage: &Stage) -> u64 {
    let rows = stage.source.batch_size.min(stage.source.images.len()) * views(stage);
    match stage.method.objective() {
        crate::method::Objective::Rows(_) => 0,
        crate::method::Objective::Batch(_) => {
            let values = rows * (stage.net.spec.num_features() + head_values(stage));
            COUPLED_COPIES * (values * size_of::<f32>()) as u64
        }
    }
}

/// Bytes of the crops of one step.
fn crop_bytes(stage: &Stage) -> u64 {
    let images = stage.source.batch_size.min(stage.source.images.len());
    let of_group = |group: &crate::data::views::ViewGroup| {
        images * group.count * 3 * group.augment.img_size().pow(2)
    };
    stage.method.views().groups.iter().map(of_group).sum::<usize>() as u64
}

/// Crops of one image.
fn views(stage: &Stage) -> usize {
    stage.method.views().views()
}

#[cfg(test)]
mod tests;
