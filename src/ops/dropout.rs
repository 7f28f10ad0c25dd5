//! The end of a residual branch with dropout of single values.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::{Tensor, TensorData};
use burn_flex::FlexTensor;

use super::buffers::Buffer;
use super::storage::{contiguous, dims2, slice};

/// See [`super::dropout_residual`]; composed of burn's operations.
pub fn composed(x: Tensor<2>, residual: Tensor<2>, factors: Option<Vec<f32>>) -> Tensor<2> {
    let ([rows, dim], width) = (x.dims(), residual.dims()[1]);
    let residual = residual.narrow(1, width - dim, dim);
    match factors {
        Some(factors) => {
            let factors = TensorData::new(factors, [rows, dim]);
            residual + x.clone() * Tensor::from_data(factors, &x.device())
        }
        None => residual + x,
    }
}

/// See [`super::dropout_residual`]; one autodiff node.
pub fn fused(x: Tensor<2>, residual: Tensor<2>, factors: Option<Vec<f32>>) -> Tensor<2> {
    let (x, residual) = (x.into_dispatch(), residual.into_dispatch());
    Tensor::from_dispatch(Dispatch::dropout_residual(x, residual, factors))
}

/// The operation on a backend's primitives.
#[backend_extension(Autodiff, Flex)]
pub trait DropoutOps: Backend {
    /// See [`super::dropout_residual`].
    fn dropout_residual(
        x: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        factors: Option<Vec<f32>>,
    ) -> FloatTensor<Self>;
}

impl DropoutOps for Flex {
    fn dropout_residual(
        x: FlexTensor,
        residual: FlexTensor,
        factors: Option<Vec<f32>>,
    ) -> FlexTensor {
        forward(&contiguous(x), &contiguous(residual), factors.as_deref())
    }
}

fn forward(x: &FlexTensor, residual: &FlexTensor, factors: Option<&[f32]>) -> FlexTensor {
    let ([rows, dim], [_, width]) = (dims2(x), dims2(residual));
    let mut y = scaled(slice(x), factors);
    let residual = slice(residual).chunks_exact(width);
    for (y, residual) in y.chunks_exact_mut(dim).zip(residual) {
        y.iter_mut().zip(&residual[width - dim..]).for_each(|(y, r)| *y += r);
    }
    y.into_tensor([rows, dim])
}

/// The values of `x` times their factors.
fn scaled(x: &[f32], factors: Option<&[f32]>) -> Buffer {
    let mut out = Buffer::stale(x.len());
    match factors {
        Some(factors) => {
            let values = out.iter_mut().zip(x).zip(factors);
            values.for_each(|((to, x), factor)| *to = x * factor);
        }
        None => out.copy_from_slice(x),
    }
    out
}

#[derive(Debug)]
struct DropoutResidual;

impl Backward<Flex, 2> for DropoutResidual {
    /// The factors and the width of the residual.
    type State = (Option<Vec<f32>>, usize);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let ((factors, width), [rows, dim]) = (&ops.state, dims2(&dy));
        let [x, residual] = ops.parents;
        if let Some(node) = x {
            let dx = scaled(slice(&dy), factors.as_deref());
            grads.register::<Flex>(node.id, dx.into_tensor([rows, dim]));
        }
        let Some(node) = residual else { return };
        if *width == dim {
            return grads.register::<Flex>(node.id, dy);
        }
        let mut gradient = Buffer::stale(rows * width);
        for (to, from) in gradient.chunks_exact_mut(*width).zip(slice(&dy).chunks_exact(dim)) {
            let (before, last) = to.split_at_mut(width - dim);
            before.fill(0.0);
            last.copy_from_slice(from);
        }
        grads.register::<Flex>(node.id, gradient.into_tensor([rows, *width]));
    }
}

impl<C: CheckpointStrategy> DropoutOps for Autodiff<Flex, C> {
    fn dropout_residual(
        x: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        factors: Option<Vec<f32>>,
    ) -> FloatTensor<Self> {
        let ((x, xn), (residual, rn)) = (x.into_parts(), residual.into_parts());
        let [x, residual] = [x, residual].map(contiguous);
        let y = forward(&x, &residual, factors.as_deref());
        match DropoutResidual.prepare::<C>([xn, rn]).compute_bound().stateful() {
            OpsKind::Tracked(node) => node.finish((factors, dims2(&residual)[1]), y),
            OpsKind::UnTracked(node) => node.finish(y),
        }
    }
}
