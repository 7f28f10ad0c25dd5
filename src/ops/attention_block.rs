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
    AttentionShape, Epilogue, Precision, Qkv, attention_backward, attention_forward,
};

use super::buffers::Buffer;
use super::flat::{Parent, parents};
use super::fused_nodes::{scaled, softmax_sums};
use super::pre_norm::{Normed, PreNorm};
use super::projection::{Maps, Projection};
use super::storage::{contiguous, dims2, slice, unzip};
use super::{Layer, Norm, composed, precision};

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
    qkv: Projection,
    proj: Projection,
    /// Rows and precision of the maps between the projections.
    maps: Maps,
    shape: AttentionShape,
}

/// What the backward reads.
#[derive(Clone, Debug)]
struct Saved {
    normed: Normed,
    qkv: FlexTensor,
    /// The largest scaled score and 1 / the sum of each softmax, `[batch, heads, queries, 2]`.
    sums: FlexTensor,
    attended: FlexTensor,
}

impl Inputs {
    fn new(
        [x, weight, bias, qw, qb, pw, pb]: [FlexTensor; 7],
        eps: f64,
        [batch, heads]: [usize; 2],
    ) -> Self {
        let norm = PreNorm::new([x, weight, bias], eps);
        let [rows, dim] = dims2(&norm.x);
        let (tokens, head_dim, precision) = (rows / batch, dim / heads, precision::current());
        // A pair must not belong to two heads.
        let stored = if head_dim.is_multiple_of(2) { precision } else { Precision::F32 };
        let scale = (head_dim as f32).powf(-0.5);
        let (queries, keys) = (tokens, tokens);
        let shape =
            AttentionShape { batch, queries, keys, heads, head_dim, scale, precision, stored };
        let [qkv, proj] = [(qw, qb), (pw, pb)].map(|(w, b)| Projection::new(w, b, precision));
        Self { norm, qkv, proj, shape, maps: Maps { rows, precision: stored } }
    }

    fn forward(&self, factors: Option<&[f32]>) -> (FlexTensor, Saved) {
        let (rows, shape) = (self.maps.rows, &self.shape);
        let normed = self.norm.forward(shape.precision);
        let mut qkv = self.maps.buffer(self.qkv.out());
        let bias = Epilogue::Bias(self.qkv.bias());
        self.qkv.forward(rows, normed.matrix(), self.maps.matrix(&mut qkv[..]), bias);
        let (mut attended, mut sums) = (self.maps.buffer(self.proj.out()), softmax_sums(shape));
        attention_forward(shape, Qkv::Joint(&qkv[..]), &mut attended, Some(&mut sums));
        let y = self.proj.add_to(&self.norm.x, self.maps.matrix(&attended[..]), factors);
        let [qkv, sums, attended] = [qkv, sums, attended].map(Buffer::into_vector);
        (y, Saved { normed, qkv, sums, attended })
    }

    /// Adds the gradients of the parameters and registers that of `x`. `dy` is the gradient of the
    /// output, `branch` the same times the rows' factors.
    fn register(
        &self,
        saved: Saved,
        dy: &FlexTensor,
        branch: &[f32],
        [x, nw, nb, qw, qb, pw, pb]: [Option<Parent>; 7],
        grads: &mut Gradients,
    ) {
        let attended = self.maps.matrix(slice(&saved.attended));
        self.proj.add_gradients(self.maps.rows, branch, attended, [pw, pb], grads);
        let d_qkv = self.attention_backward(branch, &saved);
        let (d_qkv, parents) = (self.maps.matrix(&d_qkv[..]), [x, nw, nb, qw, qb]);
        self.norm.register_half(saved.normed, &self.qkv, d_qkv, dy, parents, grads);
    }

    /// The gradient of queries, keys and values from that of the output projection's output.
    fn attention_backward(&self, branch: &[f32], saved: &Saved) -> Buffer {
        let (mut d_attended, mut d_qkv) =
            (self.maps.buffer(self.proj.out()), self.maps.buffer(self.qkv.out()));
        let out = self.maps.matrix(&mut d_attended[..]);
        self.proj.backward(self.maps.rows, branch, out, Epilogue::Store);
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
        let branch = factors.map(|factors| scaled(&dy, &factors));
        inputs.register(saved, &dy, branch.as_deref().unwrap_or(slice(&dy)), parents, grads);
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
