//! The depthwise convolution of PVTv2's MLP, with the GELU that follows it.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::{Tensor, module::conv2d, ops::ConvOptions};
use burn_flex::FlexTensor;
use fewvit_kernels::{MapShape, depthwise_gelu_backward, depthwise_gelu_forward};

use super::buffers::Buffer;
use super::flat::{add_gradients_anyway, parents};
use super::storage::{contiguous, slice};

/// See [`super::depthwise_conv3x3_gelu`]; composed of burn's operations.
pub fn composed(x: Tensor<4>, weight: Tensor<4>, bias: Tensor<1>) -> Tensor<4> {
    let channels = x.dims()[3];
    let options = ConvOptions::new([1, 1], [1, 1], [1, 1], channels);
    let y = conv2d(x.permute([0, 3, 1, 2]), weight, Some(bias), options);
    super::composed::gelu(y.permute([0, 2, 3, 1]))
}

/// See [`super::depthwise_conv3x3_gelu`]; one autodiff node over the kernels.
pub fn fused(x: Tensor<4>, weight: Tensor<4>, bias: Tensor<1>) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::depthwise_conv3x3_gelu(
        x.into_dispatch(),
        weight.into_dispatch(),
        bias.into_dispatch(),
    ))
}

/// The operation on a backend's primitives.
#[backend_extension(Autodiff, Flex)]
pub trait DepthwiseOps: Backend {
    /// See [`super::depthwise_conv3x3_gelu`].
    fn depthwise_conv3x3_gelu(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

impl DepthwiseOps for Flex {
    fn depthwise_conv3x3_gelu(x: FlexTensor, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
        forward(&[x, weight, bias].map(contiguous))
    }
}

fn shape_of(x: &FlexTensor) -> MapShape {
    let shape = x.layout().shape();
    MapShape { batch: shape[0], height: shape[1], width: shape[2], channels: shape[3] }
}

fn forward([x, weight, bias]: &[FlexTensor; 3]) -> FlexTensor {
    let mut y = Buffer::stale(slice(x).len());
    depthwise_gelu_forward(&shape_of(x), slice(x), slice(weight), slice(bias), &mut y[..]);
    y.into_tensor(x.layout().shape().clone())
}

#[derive(Debug)]
struct DepthwiseGelu;

impl Backward<Flex, 3> for DepthwiseGelu {
    type State = [FlexTensor; 3];

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let [x, weight, bias] = &ops.state;
        let [x_node, weight_node, bias_node] = ops.parents;
        let mut dx = Buffer::stale(slice(x).len());
        let parents = parents![weight_node, bias_node];
        add_gradients_anyway([weight, bias], parents, grads, |sums| {
            let (maps, dx) = ([&dy, x].map(|map| slice(map).into()), &mut dx[..]);
            depthwise_gelu_backward(&shape_of(x), maps, slice(weight), slice(bias), dx, sums);
        });
        if let Some(node) = x_node {
            grads.register::<Flex>(node.id, dx.into_tensor(x.layout().shape().clone()));
        }
    }
}

impl<C: CheckpointStrategy> DepthwiseOps for Autodiff<Flex, C> {
    fn depthwise_conv3x3_gelu(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let ((x, xn), (weight, wn), (bias, bn)) =
            (x.into_parts(), weight.into_parts(), bias.into_parts());
        let inputs = [x, weight, bias].map(contiguous);
        let y = forward(&inputs);
        match DepthwiseGelu.prepare::<C>([xn, wn, bn]).compute_bound().stateful() {
            OpsKind::Tracked(node) => node.finish(inputs, y),
            OpsKind::UnTracked(node) => node.finish(y),
        }
    }
}
