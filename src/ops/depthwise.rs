//! The depthwise convolution of PVTv2's MLP, with the GELU that follows it.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::{Tensor, activation::gelu, module::conv2d, ops::ConvOptions};
use burn_flex::FlexTensor;
use fewvit_kernels::{MapShape, depthwise_backward, depthwise_gelu_forward};

use super::buffers::Buffer;
use super::flat::{add_gradients, parents};
use super::storage::{contiguous, slice};

/// See [`super::depthwise_conv3x3_gelu`]; composed of burn's operations.
pub fn composed(x: Tensor<4>, weight: Tensor<4>, bias: Tensor<1>) -> Tensor<4> {
    let channels = x.dims()[3];
    let options = ConvOptions::new([1, 1], [1, 1], [1, 1], channels);
    let y = conv2d(x.permute([0, 3, 1, 2]), weight, Some(bias), options);
    gelu(y.permute([0, 2, 3, 1]))
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
        forward(&[x, weight, bias].map(contiguous))[0].clone()
    }
}

fn shape_of(x: &FlexTensor) -> MapShape {
    let shape = x.layout().shape();
    MapShape { batch: shape[0], height: shape[1], width: shape[2], channels: shape[3] }
}

/// The output and `gelu'` at its pre-activation, of `x`, weight and bias.
fn forward([x, weight, bias]: &[FlexTensor; 3]) -> [FlexTensor; 2] {
    let mut out = [(); 2].map(|()| Buffer::stale(slice(x).len()));
    let [y, derivative] = &mut out;
    depthwise_gelu_forward(&shape_of(x), slice(x), slice(weight), slice(bias), y, derivative);
    out.map(|buffer| buffer.into_tensor(x.layout().shape().clone()))
}

#[derive(Debug)]
struct DepthwiseGelu;

impl Backward<Flex, 3> for DepthwiseGelu {
    /// The inputs and `gelu'` at the pre-activation.
    type State = ([FlexTensor; 3], FlexTensor);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let ([x, weight, bias], derivative) = &ops.state;
        let mut du = Buffer::stale(slice(&dy).len());
        for ((u, g), d) in du.iter_mut().zip(slice(&dy)).zip(slice(derivative)) {
            *u = g * d;
        }
        let [x_node, weight_node, bias_node] = ops.parents;
        let mut dx = Buffer::stale(slice(x).len());
        let parents = parents![weight_node, bias_node];
        let mut backward = |dweight: &mut [f32], dbias: &mut [f32]| {
            let (x, weight) = (slice(x), slice(weight));
            depthwise_backward(&shape_of(&dy), &du, x, weight, &mut dx, dweight, dbias);
        };
        match parents.iter().any(Option::is_some) {
            true => add_gradients([weight, bias], parents, grads, |[dw, db]| backward(dw, db)),
            false => {
                let [mut dw, mut db] = [weight, bias].map(|p| Buffer::zeros(slice(p).len()));
                backward(&mut dw, &mut db);
            }
        }
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
        let [y, derivative] = forward(&inputs);
        match DepthwiseGelu.prepare::<C>([xn, wn, bn]).compute_bound().stateful() {
            OpsKind::Tracked(node) => node.finish((inputs, derivative), y),
            OpsKind::UnTracked(node) => node.finish(y),
        }
    }
}
