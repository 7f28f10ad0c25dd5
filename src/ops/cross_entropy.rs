//! Cross-entropy over many classes, with targets of two of them and a share for all.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::{Int, Tensor, TensorData, activation::log_softmax};
use burn_flex::FlexTensor;
use fewvit_kernels::{SoftTargets, cross_entropy};

use super::buffers::Buffer;
use super::storage::{contiguous, dims2, slice};

/// See [`super::mixed_cross_entropy`]; composed of burn's operations.
pub fn composed(logits: Tensor<2>, targets: SoftTargets) -> Tensor<1> {
    let SoftTargets { rows: targets, on, off } = targets;
    let (shape, device) = ([targets.len(), 2], logits.device());
    // Two classes and two shares a row are all that crosses to the device.
    let classes: Vec<i32> = targets.iter().flat_map(|t| [t.a as i32, t.b as i32]).collect();
    let classes = Tensor::<2, Int>::from_data(TensorData::new(classes, shape), &device);
    let shares: Vec<f32> = targets.iter().flat_map(|t| t.shares).collect();
    let shares = Tensor::<2>::from_data(TensorData::new(shares, shape), &device);
    // Gathering log-probabilities subtracts the logsumexp once for each unit of target mass.
    let log_p = log_softmax(logits, 1);
    let mixed = (log_p.clone().gather(1, classes) * shares.clone()).sum_dim(1) * on;
    -(mixed + log_p.sum_dim(1) * shares.sum_dim(1) * off).squeeze_dim::<1>(1)
}

/// See [`super::mixed_cross_entropy`]; one autodiff node over the kernel.
pub fn fused(logits: Tensor<2>, targets: SoftTargets) -> Tensor<1> {
    Tensor::from_dispatch(Dispatch::mixed_cross_entropy(logits.into_dispatch(), targets))
}

/// The operation on a backend's primitives.
#[backend_extension(Autodiff, Flex)]
pub trait CrossEntropyOps: Backend {
    /// See [`super::mixed_cross_entropy`].
    fn mixed_cross_entropy(logits: FloatTensor<Self>, targets: SoftTargets) -> FloatTensor<Self>;
}

impl CrossEntropyOps for Flex {
    fn mixed_cross_entropy(logits: FlexTensor, targets: SoftTargets) -> FlexTensor {
        let [losses, _] = forward(&contiguous(logits), &targets);
        losses
    }
}

/// The losses, and their slopes along the logits.
fn forward(logits: &FlexTensor, targets: &SoftTargets) -> [FlexTensor; 2] {
    let [rows, classes] = dims2(logits);
    let (mut losses, mut slopes) = (Buffer::stale(rows), Buffer::stale(rows * classes));
    cross_entropy(slice(logits), classes, targets, &mut losses, &mut slopes);
    [losses.into_tensor([rows]), slopes.into_tensor([rows, classes])]
}

#[derive(Debug)]
struct MixedCrossEntropy;

impl Backward<Flex, 1> for MixedCrossEntropy {
    /// The slopes.
    type State = FlexTensor;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let [rows, classes] = dims2(&ops.state);
        let mut dx = Buffer::stale(rows * classes);
        let slopes = slice(&ops.state).chunks_exact(classes);
        for ((dx, slopes), &dy) in dx.chunks_exact_mut(classes).zip(slopes).zip(slice(&dy)) {
            dx.iter_mut().zip(slopes).for_each(|(dx, slope)| *dx = slope * dy);
        }
        if let [Some(node)] = ops.parents {
            grads.register::<Flex>(node.id, dx.into_tensor([rows, classes]));
        }
    }
}

impl<C: CheckpointStrategy> CrossEntropyOps for Autodiff<Flex, C> {
    fn mixed_cross_entropy(logits: FloatTensor<Self>, targets: SoftTargets) -> FloatTensor<Self> {
        let (logits, node) = logits.into_parts();
        let [losses, slopes] = forward(&contiguous(logits), &targets);
        match MixedCrossEntropy.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(node) => node.finish(slopes, losses),
            OpsKind::UnTracked(node) => node.finish(losses),
        }
    }
}
