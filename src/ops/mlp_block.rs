//! The second half of a transformer block: a layer norm, two linear layers with GELU between them, and
//! what came in added to what comes out.
//!
//! In one piece the normalised and the hidden map, by far the largest of a block, stay in the
//! precision of the products that read them, and the gradient of the hidden map is multiplied by
//! GELU' on the way out of the product that makes it.

#![expect(clippy::too_many_arguments, reason = "tensors inside of structures are not dispatched")]

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use fewvit_kernels::{Epilogue, Matrix, Precision, matmul, matmul_transposed_a};

use super::buffers::Buffer;
use super::flat::{Parent, add_gradients, parents};
use super::fused_nodes::scaled;
use super::pre_norm::{Normed, PreNorm};
use super::storage::{contiguous, dims2, slice, unzip};
use super::{Layer, Norm, composed, packed, precision};

/// See [`super::mlp_block()`]; composed of the operations on single layers.
pub fn composed(
    x: Tensor<2>,
    norm: Norm,
    fc1: Layer,
    fc2: Layer,
    factors: Option<Vec<f32>>,
) -> Tensor<2> {
    let normed = composed::layer_norm(x.clone(), norm.0, norm.1, norm.2);
    let hidden = composed::linear_gelu(normed, fc1.0, fc1.1);
    composed::linear_residual(hidden, fc2.0, fc2.1, x, factors)
}

/// See [`super::mlp_block()`]; one autodiff node over the kernels.
pub fn fused(
    x: Tensor<2>,
    norm: Norm,
    fc1: Layer,
    fc2: Layer,
    factors: Option<Vec<f32>>,
) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::mlp_block(
        x.into_dispatch(),
        norm.0.into_dispatch(),
        norm.1.into_dispatch(),
        fc1.0.into_dispatch(),
        fc1.1.into_dispatch(),
        fc2.0.into_dispatch(),
        fc2.1.into_dispatch(),
        norm.2,
        factors,
    ))
}

/// The operation on a backend's primitives.
#[backend_extension(Autodiff, Flex)]
pub trait MlpBlockOps: Backend {
    /// See [`super::mlp_block()`].
    fn mlp_block(
        x: FloatTensor<Self>,
        norm_weight: FloatTensor<Self>,
        norm_bias: FloatTensor<Self>,
        weight1: FloatTensor<Self>,
        bias1: FloatTensor<Self>,
        weight2: FloatTensor<Self>,
        bias2: FloatTensor<Self>,
        eps: f64,
        factors: Option<Vec<f32>>,
    ) -> FloatTensor<Self>;
}

impl MlpBlockOps for Flex {
    fn mlp_block(
        x: FlexTensor,
        norm_weight: FlexTensor,
        norm_bias: FlexTensor,
        weight1: FlexTensor,
        bias1: FlexTensor,
        weight2: FlexTensor,
        bias2: FlexTensor,
        eps: f64,
        factors: Option<Vec<f32>>,
    ) -> FlexTensor {
        let tensors = [x, norm_weight, norm_bias, weight1, bias1, weight2, bias2];
        Inputs::new(tensors, eps).forward(factors.as_deref()).0
    }
}

/// The norm with its input, and the layers.
#[derive(Clone, Debug)]
struct Inputs {
    norm: PreNorm,
    weight1: FlexTensor,
    bias1: FlexTensor,
    weight2: FlexTensor,
    bias2: FlexTensor,
    /// Of the products, forward and backward, and of the maps between them.
    precision: Precision,
}

/// What the backward reads.
#[derive(Clone, Debug)]
struct Saved {
    normed: Normed,
    /// GELU of the hidden map, and GELU' there.
    hidden: FlexTensor,
    derivative: FlexTensor,
}

impl Inputs {
    fn new(tensors: [FlexTensor; 7], eps: f64) -> Self {
        let [x, weight, bias, weight1, bias1, weight2, bias2] = tensors.map(contiguous);
        let norm = PreNorm { x, weight, bias, eps };
        Self { norm, weight1, bias1, weight2, bias2, precision: precision::current() }
    }

    /// Rows and both widths.
    fn sides(&self) -> [usize; 3] {
        let ([rows, dim], [_, hidden]) = (dims2(&self.norm.x), dims2(&self.weight2));
        [rows, dim, hidden]
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
        let (mut hidden, mut derivative) = (self.buffer(), self.buffer());
        let fc1 = packed::for_forward(&self.weight1, self.precision);
        let bias = slice(&self.bias1);
        let gelu = Epilogue::BiasGelu { bias, derivative: &mut derivative };
        matmul(rows, normed.matrix(), fc1.get(), self.hidden(&mut hidden[..]), gelu);
        let mut y = Buffer::stale(rows * dim);
        let fc2 = packed::for_forward(&self.weight2, self.precision);
        let (bias, residual) = (slice(&self.bias2), slice(&self.norm.x));
        let add = Epilogue::Residual { bias, residual, factors };
        matmul(rows, self.hidden(&hidden[..]), fc2.get(), &mut y[..], add);
        let [hidden, derivative] = [hidden, derivative].map(|map| {
            let cells = map.len() / rows.max(1);
            map.into_tensor([rows, cells])
        });
        (y.into_tensor([rows, dim]), Saved { normed, hidden, derivative })
    }

    /// Adds the gradients of the parameters and registers that of `x`. `dy` is the gradient of the
    /// output, `branch` the same times the rows' factors.
    fn register(
        &self,
        saved: Saved,
        dy: &FlexTensor,
        branch: &[f32],
        [x, norm_weight, norm_bias, weight1, bias1, weight2, bias2]: [Option<Parent>; 7],
        grads: &mut Gradients,
    ) {
        let ([rows, dim, width], precision) = (self.sides(), self.precision);
        let hidden = self.hidden(slice(&saved.hidden));
        add_gradients([&self.weight2, &self.bias2], [weight2, bias2], grads, |[dw, db]| {
            let sides = [rows, dim, width];
            matmul_transposed_a(precision, sides, branch, hidden, dw, Some(db));
        });
        let mut du = self.buffer();
        let fc2 = packed::for_backward(&self.weight2, precision);
        let times = Epilogue::Multiply(slice(&saved.derivative));
        matmul(rows, branch, fc2.get(), self.hidden(&mut du[..]), times);
        let du = self.hidden(&du[..]);
        add_gradients([&self.weight1, &self.bias1], [weight1, bias1], grads, |[dw, db]| {
            let sides = [rows, width, dim];
            matmul_transposed_a(precision, sides, du, saved.normed.matrix(), dw, Some(db));
        });
        let mut d_normed = Buffer::stale(rows * dim);
        let fc1 = packed::for_backward(&self.weight1, precision);
        matmul(rows, du, fc1.get(), &mut d_normed[..], Epilogue::Store);
        let parents = [x, norm_weight, norm_bias];
        let (_, moments) = saved.normed.into_parts();
        self.norm.register(&moments, &d_normed, Some(dy), parents, grads);
    }
}

#[derive(Debug)]
struct MlpBlock;

impl Backward<Flex, 7> for MlpBlock {
    /// With the rows' factors.
    type State = (Inputs, Saved, Option<Vec<f32>>);

    fn backward(self, ops: Ops<Self::State, 7>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let (inputs, saved, factors) = ops.state;
        let [x, nw, nb, w1, b1, w2, b2] = ops.parents;
        let parents = parents![x, nw, nb, w1, b1, w2, b2];
        match factors {
            Some(factors) => inputs.register(saved, &dy, &scaled(&dy, &factors), parents, grads),
            None => inputs.register(saved, &dy, slice(&dy), parents, grads),
        }
    }
}

impl<C: CheckpointStrategy> MlpBlockOps for Autodiff<Flex, C> {
    fn mlp_block(
        x: FloatTensor<Self>,
        norm_weight: FloatTensor<Self>,
        norm_bias: FloatTensor<Self>,
        weight1: FloatTensor<Self>,
        bias1: FloatTensor<Self>,
        weight2: FloatTensor<Self>,
        bias2: FloatTensor<Self>,
        eps: f64,
        factors: Option<Vec<f32>>,
    ) -> FloatTensor<Self> {
        let tensors = [x, norm_weight, norm_bias, weight1, bias1, weight2, bias2];
        let (tensors, nodes) = unzip(tensors.map(|tensor| tensor.into_parts()));
        let inputs = Inputs::new(tensors, eps);
        let (y, saved) = inputs.forward(factors.as_deref());
        match MlpBlock.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(node) => node.finish((inputs, saved, factors), y),
            OpsKind::UnTracked(node) => node.finish(y),
        }
    }
}
