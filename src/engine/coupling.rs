//! The middle of a step whose loss couples the rows of a batch: heads and loss on the CPU.

use burn::tensor::{Tensor, TensorData};
use fewvit_kernels::Precision;

use super::StepInput;
use super::batches::samples;
use crate::backbone::{Net, Weights};
use crate::method::{BatchFeatures, BatchLoss, State};
use crate::ops;

/// A momentum encoder and what it says of its views.
pub(super) struct Taught<'a> {
    pub(super) net: &'a Net,
    /// `[rows, num_features]`.
    pub(super) features: Vec<f32>,
}

/// The loss over the `features` of the student's views, `[rows, num_features]`, and its gradient along
/// them; the gradients of the student's heads are added to `sum`, and the method's memory is brought up to
/// date.
pub(super) fn coupled_loss(
    (student, sum): (&Weights, &mut Vec<f32>),
    features: Vec<f32>,
    taught: Option<Taught>,
    input: &StepInput,
    (loss, memory): (&dyn BatchLoss, &mut State),
    precision: Precision,
) -> (f64, Vec<f32>) {
    let width = student.net.num_features();
    let tensor = |values: Vec<f32>| {
        let rows = values.len() / width;
        Tensor::<2>::from_data(TensorData::new(values, [rows, width]), &ops::cpu())
    };
    let features = Tensor::from_inner(tensor(features)).require_grad();
    student.add_gradients_and(sum, features.clone(), |net| {
        let batch = BatchFeatures {
            net,
            features,
            teacher: taught.map(|Taught { net, features }| (net, tensor(features))),
            samples: samples(input.batch),
            epoch: input.epoch,
            step: input.drop_path.step as usize,
        };
        ops::autocast(precision, || loss.loss(batch, memory))
    })
}
