//! Attention by positive random features, of T2T-ViT's token module.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use fewvit_kernels::{PerformerShape, performer_backward, performer_forward};

use super::buffers::Buffer;
use super::precision;
use super::storage::{contiguous, dims2, slice};

/// Keeps the normaliser from 0.
pub const EPS: f64 = 1e-8;

/// See [`super::performer()`]; composed of burn's operations.
pub fn composed(kqv: Tensor<3>, w: Tensor<2>) -> Tensor<3> {
    let [batch, tokens, width] = kqv.dims();
    let (e, features) = (width / 3, w.dims()[0]);
    let part = |i: usize| kqv.clone().narrow(2, i * e, e);
    let phi = |x: Tensor<3>| {
        let x = x.reshape([batch * tokens, e]);
        let half_square = x.clone().square().sum_dim(1) / 2.0;
        let projected = x.matmul(w.clone().transpose());
        let phi = (projected - half_square).exp() / (features as f64).sqrt();
        phi.reshape([batch, tokens, features])
    };
    let (k, q, v) = (phi(part(0)), phi(part(1)), part(2));
    let normaliser = (q.clone() * k.clone().sum_dim(1)).sum_dim(2) + EPS;
    q.matmul(k.transpose().matmul(v)) / normaliser
}

/// See [`super::performer()`]; one autodiff node over the kernels.
pub fn fused(kqv: Tensor<3>, w: Tensor<2>) -> Tensor<3> {
    Tensor::from_dispatch(Dispatch::performer(kqv.into_dispatch(), w.into_dispatch()))
}

/// The operation on a backend's primitives.
#[backend_extension(Autodiff, Flex)]
pub trait PerformerOps: Backend {
    /// See [`super::performer()`].
    fn performer(kqv: FloatTensor<Self>, w: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl PerformerOps for Flex {
    fn performer(kqv: FlexTensor, w: FlexTensor) -> FlexTensor {
        let [kqv, w] = [kqv, w].map(contiguous);
        let [y, _] = forward(&shape_of(&kqv, &w), &kqv, &w);
        y
    }
}

fn shape_of(kqv: &FlexTensor, w: &FlexTensor) -> PerformerShape {
    let (shape, [features, dim]) = (kqv.layout().shape(), dims2(w));
    let (eps, precision) = (EPS as f32, precision::current());
    PerformerShape { batch: shape[0], tokens: shape[1], dim, features, eps, precision }
}

/// The output, and the features of keys and queries.
fn forward(shape: &PerformerShape, kqv: &FlexTensor, w: &FlexTensor) -> [FlexTensor; 2] {
    let &PerformerShape { batch, tokens, dim, features, .. } = shape;
    let mut y = Buffer::stale(batch * tokens * dim);
    let mut phi = Buffer::stale(shape.saved());
    performer_forward(shape, slice(kqv), slice(w), &mut y, &mut phi);
    [y.into_tensor([batch, tokens, dim]), phi.into_tensor([batch, tokens, 2 * features])]
}

#[derive(Debug)]
struct Performer;

impl Backward<Flex, 1> for Performer {
    /// Sizes; keys, queries and values, the random features, the output and phi.
    type State = (PerformerShape, [FlexTensor; 4]);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let (shape, saved) = &ops.state;
        if let [Some(node)] = ops.parents {
            let kqv = &saved[0];
            let mut dkqv = Buffer::stale(slice(kqv).len());
            performer_backward(shape, slice(&dy), saved.each_ref().map(slice), &mut dkqv);
            grads.register::<Flex>(node.id, dkqv.into_tensor(kqv.layout().shape().clone()));
        }
    }
}

impl<C: CheckpointStrategy> PerformerOps for Autodiff<Flex, C> {
    fn performer(kqv: FloatTensor<Self>, w: FloatTensor<Self>) -> FloatTensor<Self> {
        let ((kqv, node), (w, _)) = (kqv.into_parts(), w.into_parts());
        let [kqv, w] = [kqv, w].map(contiguous);
        let shape = shape_of(&kqv, &w);
        let [y, phi] = forward(&shape, &kqv, &w);
        match Performer.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(node) => node.finish((shape, [kqv, w, y.clone(), phi]), y),
            OpsKind::UnTracked(node) => node.finish(y),
        }
    }
}
