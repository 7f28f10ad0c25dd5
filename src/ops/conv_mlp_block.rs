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
use fewvit_kernels::{
    Epilogue, MapShape, Matrix, Precision, depthwise_gelu_backward, depthwise_gelu_forward, matmul,
    matmul_transposed_a,
};

use super::buffers::Buffer;
use super::flat::{Parent, add_gradients, add_gradients_anyway, parents};
use super::fused_nodes::scaled;
use super::pre_norm::{Normed, PreNorm};
use super::storage::{contiguous, dims2, slice, unzip};
use super::{Kernels, Layer, Norm, composed, depthwise, packed, precision};

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
    weight1: FlexTensor,
    bias1: FlexTensor,
    kernels: FlexTensor,
    conv_bias: FlexTensor,
    weight2: FlexTensor,
    bias2: FlexTensor,
    map: MapShape,
    /// Of the products, forward and backward, and of the maps between them.
    precision: Precision,
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
        layers: [FlexTensor; 6],
        eps: f64,
        [batch, side]: [usize; 2],
    ) -> Self {
        let [x, weight, bias] = norm.map(contiguous);
        let [weight1, bias1, kernels, conv_bias, weight2, bias2] = layers.map(contiguous);
        let channels = dims2(&weight1)[0];
        let map = MapShape { batch, height: side, width: side, channels };
        let (norm, precision) = (PreNorm { x, weight, bias, eps }, precision::current());
        Self { norm, weight1, bias1, kernels, conv_bias, weight2, bias2, map, precision }
    }

    /// Rows and both widths.
    fn sides(&self) -> [usize; 3] {
        let [rows, dim] = dims2(&self.norm.x);
        [rows, dim, self.map.channels]
    }

    /// A hidden map in memory.
    fn hidden<T>(&self, cells: T) -> Matrix<T> {
        Matrix { cells, precision: self.precision }
    }

    /// A buffer for one.
    fn buffer(&self) -> Buffer {
        let [rows, _, hidden] = self.sides();
        Buffer::stale(rows * self.precision.cells(hidden))
    }

    fn forward(&self, factors: Option<&[f32]>) -> (FlexTensor, Saved) {
        let [rows, dim, _] = self.sides();
        let normed = self.norm.forward(self.precision);
        let (mut hidden, mut activated) = (self.buffer(), self.buffer());
        let fc1 = packed::for_forward(&self.weight1, self.precision);
        let bias = Epilogue::Bias(slice(&self.bias1));
        matmul(rows, normed.matrix(), fc1.get(), self.hidden(&mut hidden[..]), bias);
        let (kernels, bias) = (slice(&self.kernels), slice(&self.conv_bias));
        let (from, to) = (self.hidden(&hidden[..]), self.hidden(&mut activated[..]));
        depthwise_gelu_forward(&self.map, from, kernels, bias, to);
        let mut y = Buffer::stale(rows * dim);
        let fc2 = packed::for_forward(&self.weight2, self.precision);
        let (bias, residual) = (slice(&self.bias2), slice(&self.norm.x));
        let add = Epilogue::Residual { bias, residual, factors };
        matmul(rows, self.hidden(&activated[..]), fc2.get(), &mut y[..], add);
        let [hidden, activated] = [hidden, activated].map(|map| {
            let len = map.len();
            map.into_tensor([len])
        });
        (y.into_tensor([rows, dim]), Saved { normed, hidden, activated })
    }

    /// Adds the gradients of the parameters and registers that of `x`. `dy` is the gradient of the
    /// output, `branch` the same times the rows' factors.
    fn register(
        &self,
        saved: Saved,
        dy: &FlexTensor,
        branch: &[f32],
        norm: [Option<Parent>; 3],
        [weight1, bias1, kernels, conv_bias, weight2, bias2]: [Option<Parent>; 6],
        grads: &mut Gradients,
    ) {
        let ([rows, dim, width], precision) = (self.sides(), self.precision);
        let activated = self.hidden(slice(&saved.activated));
        add_gradients([&self.weight2, &self.bias2], [weight2, bias2], grads, |[dw, db]| {
            let sides = [rows, dim, width];
            matmul_transposed_a(precision, sides, branch, activated, dw, Some(db));
        });
        let mut slopes = self.buffer();
        let fc2 = packed::for_backward(&self.weight2, precision);
        matmul(rows, branch, fc2.get(), self.hidden(&mut slopes[..]), Epilogue::Store);
        let du = self.conv_backward(&slopes, &saved.hidden, [kernels, conv_bias], grads);
        let du = self.hidden(&du[..]);
        add_gradients([&self.weight1, &self.bias1], [weight1, bias1], grads, |[dw, db]| {
            let sides = [rows, width, dim];
            matmul_transposed_a(precision, sides, du, saved.normed.matrix(), dw, Some(db));
        });
        let mut d_normed = Buffer::stale(rows * dim);
        let fc1 = packed::for_backward(&self.weight1, precision);
        matmul(rows, du, fc1.get(), &mut d_normed[..], Epilogue::Store);
        let (_, moments) = saved.normed.into_parts();
        self.norm.register(&moments, &d_normed, Some(dy), norm, grads);
    }

    /// The gradient of the map before the convolution, from that of the map behind GELU.
    fn conv_backward(
        &self,
        slopes: &[f32],
        hidden: &FlexTensor,
        parents: [Option<Parent>; 2],
        grads: &mut Gradients,
    ) -> Buffer {
        let mut du = self.buffer();
        let parameters = [&self.kernels, &self.conv_bias];
        add_gradients_anyway(parameters, parents, grads, |sums| {
            let maps = [self.hidden(slopes), self.hidden(slice(hidden))];
            let [kernels, bias] = parameters.map(slice);
            depthwise_gelu_backward(&self.map, maps, kernels, bias, self.hidden(&mut du[..]), sums);
        });
        du
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
