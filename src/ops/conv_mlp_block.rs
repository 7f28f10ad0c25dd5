//! The second half of a PVTv2 block: a layer norm, two linear layers with a 3 x 3 convolution of each
//! channel and GELU between them, and what came in added to what comes out (Wang et al. 2022, section
//! 3.3).
//!
//! In one piece the maps on both sides of the convolution, by far the largest of a block, stay in the
//! precision of the products that make and read them.

#![expect(clippy::too_many_arguments, reason = "tensors inside of structures are not dispatched")]

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use fewvit_kernels::{Epilogue, MapShape, depthwise_gelu_backward, depthwise_gelu_forward};

use super::buffers::Buffer;
use super::flat::{Parent, add_gradients_anyway, parents};
use super::fused_nodes::scaled;
use super::pre_norm::{Normed, PreNorm};
use super::projection::{Maps, Projection};
use super::storage::{contiguous, dims2, slice, unzip};
use super::{Kernels, Layer, Norm, composed, depthwise, precision};

/// See [`super::conv_mlp_block()`]; composed of the operations on single layers.
pub fn composed(
    x: Tensor<2>,
    norm: Norm,
    fc1: Layer,
    dwconv: Kernels,
    fc2: Layer,
    [batch, side]: [usize; 2],
    factors: Option<Vec<f32>>,
) -> Tensor<2> {
    let normed = composed::layer_norm(x.clone(), norm.0, norm.1, norm.2);
    let hidden = composed::linear(normed, fc1.0, fc1.1);
    let [rows, width] = hidden.dims();
    let map = hidden.reshape([batch, side, side, width]);
    let hidden = depthwise::composed(map, dwconv.0, dwconv.1).reshape([rows, width]);
    composed::linear_residual(hidden, fc2.0, fc2.1, x, factors)
}

/// See [`super::conv_mlp_block()`]; one autodiff node over the kernels.
pub fn fused(
    x: Tensor<2>,
    norm: Norm,
    fc1: Layer,
    dwconv: Kernels,
    fc2: Layer,
    [batch, side]: [usize; 2],
    factors: Option<Vec<f32>>,
) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::conv_mlp_block(
        x.into_dispatch(),
        norm.0.into_dispatch(),
        norm.1.into_dispatch(),
        fc1.0.into_dispatch(),
        fc1.1.into_dispatch(),
        dwconv.0.into_dispatch(),
        dwconv.1.into_dispatch(),
        fc2.0.into_dispatch(),
        fc2.1.into_dispatch(),
        norm.2,
        batch,
        side,
        factors,
    ))
}

/// The operation on a backend's primitives.
#[backend_extension(Autodiff, Flex)]
pub trait ConvMlpBlockOps: Backend {
    /// See [`super::conv_mlp_block()`].
    fn conv_mlp_block(
        x: FloatTensor<Self>,
        norm_weight: FloatTensor<Self>,
        norm_bias: FloatTensor<Self>,
        weight1: FloatTensor<Self>,
        bias1: FloatTensor<Self>,
        kernels: FloatTensor<Self>,
        conv_bias: FloatTensor<Self>,
        weight2: FloatTensor<Self>,
        bias2: FloatTensor<Self>,
        eps: f64,
        batch: usize,
        side: usize,
        factors: Option<Vec<f32>>,
    ) -> FloatTensor<Self>;
}

impl ConvMlpBlockOps for Flex {
    fn conv_mlp_block(
        x: FlexTensor,
        norm_weight: FlexTensor,
        norm_bias: FlexTensor,
        weight1: FlexTensor,
        bias1: FlexTensor,
        kernels: FlexTensor,
        conv_bias: FlexTensor,
        weight2: FlexTensor,
        bias2: FlexTensor,
        eps: f64,
        batch: usize,
        side: usize,
        factors: Option<Vec<f32>>,
    ) -> FlexTensor {
        let layers = [weight1, bias1, kernels, conv_bias, weight2, bias2];
        let inputs = Inputs::new([x, norm_weight, norm_bias], layers, eps, [batch, side]);
        inputs.forward(factors.as_deref()).0
    }
}

/// The norm with its input, the layers and the map that the rows are.
#[derive(Clone, Debug)]
struct Inputs {
    norm: PreNorm,
    fc1: Projection,
    kernels: FlexTensor,
    conv_bias: FlexTensor,
    fc2: Projection,
    map: MapShape,
    /// Between them.
    hidden: Maps,
}

/// What the backward reads.
#[derive(Clone, Debug)]
struct Saved {
    normed: Normed,
    /// The map before the convolution, and that behind GELU.
    hidden: FlexTensor,
    activated: FlexTensor,
}

impl Inputs {
    fn new(
        norm: [FlexTensor; 3],
        [w1, b1, kernels, conv_bias, w2, b2]: [FlexTensor; 6],
        eps: f64,
        [batch, side]: [usize; 2],
    ) -> Self {
        let (norm, precision) = (PreNorm::new(norm, eps), precision::current());
        let [fc1, fc2] = [(w1, b1), (w2, b2)].map(|(w, b)| Projection::new(w, b, precision));
        let [kernels, conv_bias] = [kernels, conv_bias].map(contiguous);
        let map = MapShape { batch, height: side, width: side, channels: fc1.out() };
        let hidden = Maps { rows: dims2(&norm.x)[0], precision };
        Self { norm, fc1, kernels, conv_bias, fc2, map, hidden }
    }

    fn forward(&self, factors: Option<&[f32]>) -> (FlexTensor, Saved) {
        let normed = self.norm.forward(self.hidden.precision);
        let (mut hidden, mut activated) =
            (self.hidden.buffer(self.fc1.out()), self.hidden.buffer(self.fc1.out()));
        let bias = Epilogue::Bias(self.fc1.bias());
        self.fc1.forward(
            self.hidden.rows,
            normed.matrix(),
            self.hidden.matrix(&mut hidden[..]),
            bias,
        );
        let (kernels, bias) = (slice(&self.kernels), slice(&self.conv_bias));
        let (from, to) = (self.hidden.matrix(&hidden[..]), self.hidden.matrix(&mut activated[..]));
        depthwise_gelu_forward(&self.map, from, kernels, bias, to);
        let y = self.fc2.add_to(&self.norm.x, self.hidden.matrix(&activated[..]), factors);
        let [hidden, activated] = [hidden, activated].map(Buffer::into_vector);
        (y, Saved { normed, hidden, activated })
    }

    /// Adds the gradients of the parameters and registers that of `x`. `dy` is the gradient of the
    /// output, `branch` the same times the rows' factors.
    fn register(
        &self,
        saved: Saved,
        dy: &FlexTensor,
        branch: &[f32],
        [x, nw, nb]: [Option<Parent>; 3],
        [w1, b1, kernels, conv_bias, w2, b2]: [Option<Parent>; 6],
        grads: &mut Gradients,
    ) {
        let activated = self.hidden.matrix(slice(&saved.activated));
        self.fc2.add_gradients(self.hidden.rows, branch, activated, [w2, b2], grads);
        let mut slopes = self.hidden.buffer(self.fc1.out());
        let out = self.hidden.matrix(&mut slopes[..]);
        self.fc2.backward(self.hidden.rows, branch, out, Epilogue::Store);
        let mut du = self.hidden.buffer(self.fc1.out());
        let parameters = [&self.kernels, &self.conv_bias];
        add_gradients_anyway(parameters, [kernels, conv_bias], grads, |sums| {
            let maps = [&slopes[..], slice(&saved.hidden)].map(|map| self.hidden.matrix(map));
            let ([kernels, bias], du) = (parameters.map(slice), self.hidden.matrix(&mut du[..]));
            depthwise_gelu_backward(&self.map, maps, kernels, bias, du, sums);
        });
        let (du, parents) = (self.hidden.matrix(&du[..]), [x, nw, nb, w1, b1]);
        self.norm.register_half(saved.normed, &self.fc1, du, dy, parents, grads);
    }
}

#[derive(Debug)]
struct ConvMlpBlock;

impl Backward<Flex, 9> for ConvMlpBlock {
    /// With the rows' factors.
    type State = (Inputs, Saved, Option<Vec<f32>>);

    fn backward(self, ops: Ops<Self::State, 9>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let (inputs, saved, factors) = ops.state;
        let [x, nw, nb, w1, b1, k, kb, w2, b2] = ops.parents;
        let (norm, layers) = (parents![x, nw, nb], parents![w1, b1, k, kb, w2, b2]);
        let branch = factors.map(|factors| scaled(&dy, &factors));
        let branch = branch.as_deref().unwrap_or(slice(&dy));
        inputs.register(saved, &dy, branch, norm, layers, grads);
    }
}

impl<C: CheckpointStrategy> ConvMlpBlockOps for Autodiff<Flex, C> {
    fn conv_mlp_block(
        x: FloatTensor<Self>,
        norm_weight: FloatTensor<Self>,
        norm_bias: FloatTensor<Self>,
        weight1: FloatTensor<Self>,
        bias1: FloatTensor<Self>,
        kernels: FloatTensor<Self>,
        conv_bias: FloatTensor<Self>,
        weight2: FloatTensor<Self>,
        bias2: FloatTensor<Self>,
        eps: f64,
        batch: usize,
        side: usize,
        factors: Option<Vec<f32>>,
    ) -> FloatTensor<Self> {
        let norm = [x, norm_weight, norm_bias];
        let layers = [weight1, bias1, kernels, conv_bias, weight2, bias2];
        let (norm, [xn, nw, nb]) = unzip(norm.map(|tensor| tensor.into_parts()));
        let (layers, [w1, b1, k, kb, w2, b2]) = unzip(layers.map(|tensor| tensor.into_parts()));
        let nodes = [xn, nw, nb, w1, b1, k, kb, w2, b2];
        let inputs = Inputs::new(norm, layers, eps, [batch, side]);
        let (y, saved) = inputs.forward(factors.as_deref());
        match ConvMlpBlock.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(node) => node.finish((inputs, saved, factors), y),
            OpsKind::UnTracked(node) => node.finish(y),
        }
    }
}
