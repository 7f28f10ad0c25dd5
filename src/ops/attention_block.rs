//! The first half of a transformer block: a layer norm, attention between its projections, and what
//! came in added to what comes out.
//!
//! In one piece the normalised map, the queries, keys and values, the output of the attention and all
//! their gradients stay in the precision of the products that read them.

#![expect(clippy::too_many_arguments, reason = "tensors inside of structures are not dispatched")]

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use fewvit_kernels::{
    AttentionShape, Epilogue, Matrix, PackedB, Precision, Qkv, attention_backward,
    attention_forward, matmul, matmul_transposed_a,
};

use super::buffers::Buffer;
use super::flat::{Parent, add_gradients, parents};
use super::fused_nodes::{scaled, softmax_sums};
use super::pre_norm::{Normed, PreNorm};
use super::storage::{contiguous, dims2, slice, unzip};
use super::{Layer, Norm, composed, packed, precision};

/// See [`super::attention_block()`]; composed of the operations on single layers.
pub fn composed(
    x: Tensor<2>,
    norm: Norm,
    qkv: Layer,
    proj: Layer,
    [batch, heads]: [usize; 2],
    factors: Option<Vec<f32>>,
) -> Tensor<2> {
    let [rows, dim] = x.dims();
    let normed = composed::layer_norm(x.clone(), norm.0, norm.1, norm.2);
    let qkv = composed::linear(normed, qkv.0, qkv.1).reshape([batch, rows / batch, 3 * dim]);
    let attended = composed::attention(qkv, heads).reshape([rows, dim]);
    composed::linear_residual(attended, proj.0, proj.1, x, factors)
}

/// See [`super::attention_block()`]; one autodiff node over the kernels.
pub fn fused(
    x: Tensor<2>,
    norm: Norm,
    qkv: Layer,
    proj: Layer,
    [batch, heads]: [usize; 2],
    factors: Option<Vec<f32>>,
) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::attention_block(
        x.into_dispatch(),
        norm.0.into_dispatch(),
        norm.1.into_dispatch(),
        qkv.0.into_dispatch(),
        qkv.1.into_dispatch(),
        proj.0.into_dispatch(),
        proj.1.into_dispatch(),
        norm.2,
        batch,
        heads,
        factors,
    ))
}

/// The operation on a backend's primitives.
#[backend_extension(Autodiff, Flex)]
pub trait AttentionBlockOps: Backend {
    /// See [`super::attention_block()`].
    fn attention_block(
        x: FloatTensor<Self>,
        norm_weight: FloatTensor<Self>,
        norm_bias: FloatTensor<Self>,
        qkv_weight: FloatTensor<Self>,
        qkv_bias: FloatTensor<Self>,
        proj_weight: FloatTensor<Self>,
        proj_bias: FloatTensor<Self>,
        eps: f64,
        batch: usize,
        heads: usize,
        factors: Option<Vec<f32>>,
    ) -> FloatTensor<Self>;
}

impl AttentionBlockOps for Flex {
    fn attention_block(
        x: FlexTensor,
        norm_weight: FlexTensor,
        norm_bias: FlexTensor,
        qkv_weight: FlexTensor,
        qkv_bias: FlexTensor,
        proj_weight: FlexTensor,
        proj_bias: FlexTensor,
        eps: f64,
        batch: usize,
        heads: usize,
        factors: Option<Vec<f32>>,
    ) -> FlexTensor {
        let tensors = [x, norm_weight, norm_bias, qkv_weight, qkv_bias, proj_weight, proj_bias];
        Inputs::new(tensors, eps, [batch, heads]).forward(factors.as_deref()).0
    }
}

/// The norm with its input, the projections and the sizes.
#[derive(Clone, Debug)]
struct Inputs {
    norm: PreNorm,
    qkv_weight: FlexTensor,
    qkv_bias: FlexTensor,
    proj_weight: FlexTensor,
    proj_bias: FlexTensor,
    shape: AttentionShape,
}

/// What the backward reads.
#[derive(Clone, Debug)]
struct Saved {
    normed: Normed,
    qkv: FlexTensor,
    /// Of each softmax.
    sums: FlexTensor,
    attended: FlexTensor,
}

impl Inputs {
    fn new(tensors: [FlexTensor; 7], eps: f64, [batch, heads]: [usize; 2]) -> Self {
        let [x, weight, bias, qkv_weight, qkv_bias, proj_weight, proj_bias] =
            tensors.map(contiguous);
        let [rows, dim] = dims2(&x);
        let (tokens, head_dim, precision) = (rows / batch, dim / heads, precision::current());
        // A pair must not belong to two heads.
        let stored = if head_dim.is_multiple_of(2) { precision } else { Precision::F32 };
        let scale = (head_dim as f32).powf(-0.5);
        let (queries, keys) = (tokens, tokens);
        let shape =
            AttentionShape { batch, queries, keys, heads, head_dim, scale, precision, stored };
        let norm = PreNorm { x, weight, bias, eps };
        Self { norm, qkv_weight, qkv_bias, proj_weight, proj_bias, shape }
    }

    /// A map between the projections in memory.
    fn stored<T>(&self, cells: T) -> Matrix<T> {
        Matrix { cells, precision: self.shape.stored }
    }

    /// A buffer for one of `columns`.
    fn buffer(&self, columns: usize) -> Buffer {
        Buffer::stale(dims2(&self.norm.x)[0] * self.shape.stored.cells(columns))
    }

    fn forward(&self, factors: Option<&[f32]>) -> (FlexTensor, Saved) {
        let ([rows, dim], shape) = (dims2(&self.norm.x), &self.shape);
        let normed = self.norm.forward(shape.precision);
        let mut qkv = self.buffer(3 * dim);
        let weight = packed::for_forward(&self.qkv_weight, shape.precision);
        let bias = Epilogue::Bias(slice(&self.qkv_bias));
        matmul(rows, normed.matrix(), weight.get(), self.stored(&mut qkv[..]), bias);
        let (mut attended, mut sums) = (self.buffer(dim), softmax_sums(shape));
        attention_forward(shape, Qkv::Joint(&qkv[..]), &mut attended, Some(&mut sums));
        let mut y = Buffer::stale(rows * dim);
        let weight = packed::for_forward(&self.proj_weight, shape.precision);
        let (bias, residual) = (slice(&self.proj_bias), slice(&self.norm.x));
        let add = Epilogue::Residual { bias, residual, factors };
        matmul(rows, self.stored(&attended[..]), weight.get(), &mut y[..], add);
        let [qkv, sums, attended] = [qkv, sums, attended].map(|buffer| {
            let len = buffer.len();
            buffer.into_tensor([len])
        });
        (y.into_tensor([rows, dim]), Saved { normed, qkv, sums, attended })
    }

    /// Adds the gradients of the parameters and registers that of `x`. `dy` is the gradient of the
    /// output, `branch` the same times the rows' factors.
    fn register(
        &self,
        saved: Saved,
        dy: &FlexTensor,
        branch: &[f32],
        [x, norm_weight, norm_bias, qkv_weight, qkv_bias, proj_weight, proj_bias]: [Option<Parent>;
            7],
        grads: &mut Gradients,
    ) {
        let ([rows, dim], precision) = (dims2(&self.norm.x), self.shape.precision);
        let parameters = [&self.proj_weight, &self.proj_bias];
        add_gradients(parameters, [proj_weight, proj_bias], grads, |[dw, db]| {
            let attended = self.stored(slice(&saved.attended));
            matmul_transposed_a(precision, [rows, dim, dim], branch, attended, dw, Some(db));
        });
        let proj = packed::for_backward(&self.proj_weight, precision);
        let d_qkv = self.attention_backward(branch, proj.get(), &saved);
        let d_qkv = self.stored(&d_qkv[..]);
        let parameters = [&self.qkv_weight, &self.qkv_bias];
        add_gradients(parameters, [qkv_weight, qkv_bias], grads, |[dw, db]| {
            let (sides, normed) = ([rows, 3 * dim, dim], saved.normed.matrix());
            matmul_transposed_a(precision, sides, d_qkv, normed, dw, Some(db));
        });
        let mut d_normed = Buffer::stale(rows * dim);
        let qkv = packed::for_backward(&self.qkv_weight, precision);
        matmul(rows, d_qkv, qkv.get(), &mut d_normed[..], Epilogue::Store);
        let parents = [x, norm_weight, norm_bias];
        let (_, moments) = saved.normed.into_parts();
        self.norm.register(&moments, &d_normed, Some(dy), parents, grads);
    }

    /// The gradient of queries, keys and values from that of the output projection's output.
    fn attention_backward(&self, branch: &[f32], proj: &PackedB, saved: &Saved) -> Buffer {
        let [rows, dim] = dims2(&self.norm.x);
        let (mut d_attended, mut d_qkv) = (self.buffer(dim), self.buffer(3 * dim));
        matmul(rows, branch, proj, self.stored(&mut d_attended[..]), Epilogue::Store);
        let (qkv, gradient) = (Qkv::Joint(slice(&saved.qkv)), Qkv::Joint(&mut d_qkv[..]));
        attention_backward(&self.shape, &d_attended, qkv, slice(&saved.sums), gradient);
        d_qkv
    }
}

#[derive(Debug)]
struct AttentionBlock;

impl Backward<Flex, 7> for AttentionBlock {
    /// With the rows' factors.
    type State = (Inputs, Saved, Option<Vec<f32>>);

    fn backward(self, ops: Ops<Self::State, 7>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let (inputs, saved, factors) = ops.state;
        let [x, nw, nb, qw, qb, pw, pb] = ops.parents;
        let parents = parents![x, nw, nb, qw, qb, pw, pb];
        match factors {
            Some(factors) => inputs.register(saved, &dy, &scaled(&dy, &factors), parents, grads),
            None => inputs.register(saved, &dy, slice(&dy), parents, grads),
        }
    }
}

impl<C: CheckpointStrategy> AttentionBlockOps for Autodiff<Flex, C> {
    fn attention_block(
        x: FloatTensor<Self>,
        norm_weight: FloatTensor<Self>,
        norm_bias: FloatTensor<Self>,
        qkv_weight: FloatTensor<Self>,
        qkv_bias: FloatTensor<Self>,
        proj_weight: FloatTensor<Self>,
        proj_bias: FloatTensor<Self>,
        eps: f64,
        batch: usize,
        heads: usize,
        factors: Option<Vec<f32>>,
    ) -> FloatTensor<Self> {
        let tensors = [x, norm_weight, norm_bias, qkv_weight, qkv_bias, proj_weight, proj_bias];
        let (tensors, nodes) = unzip(tensors.map(|tensor| tensor.into_parts()));
        let inputs = Inputs::new(tensors, eps, [batch, heads]);
        let (y, saved) = inputs.forward(factors.as_deref());
        match AttentionBlock.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(node) => node.finish((inputs, saved, factors), y),
            OpsKind::UnTracked(node) => node.finish(y),
        }
    }
}
