//! Autodiff nodes of the fused operations: what each saves and how its gradient is computed.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{Autodiff, Flex, tensor::FloatTensor};
use burn_flex::FlexTensor;
use fewvit_kernels::{
    AttentionShape, Epilogue, Precision, Qkv, attention_backward, matmul, matmul_transposed_a,
    scale_rows,
};

use super::buffers::Buffer;
use super::flat::{Parent, add_gradients, parents};
use super::fused::{
    FusedOps, attend, attention_shape, linear_forward, linear_gelu_forward, linear_residual_forward,
};
use super::pre_norm::PreNorm;
use super::storage::{contiguous, dims2, slice};
use super::{packed, precision};

/// The inputs of `y = x W^T + b`, whose gradients are `dx = dy W`, `dW = dy^T x` and
/// `db = sum_rows dy`.
#[derive(Clone, Debug)]
struct LinearInputs {
    x: FlexTensor,
    weight: FlexTensor,
    bias: FlexTensor,
    /// Of the forward and so of the backward.
    precision: Precision,
}

impl LinearInputs {
    fn new(x: FlexTensor, weight: FlexTensor, bias: FlexTensor) -> Self {
        Self { x, weight, bias, precision: precision::current() }
    }

    fn register(&self, dy: &[f32], parents: [Option<Parent>; 3], grads: &mut Gradients) {
        let [rows, inner] = dims2(&self.x);
        let [x, weight, bias] = parents;
        if let Some(parent) = x {
            let mut dx = Buffer::stale(rows * inner);
            let weight = packed::for_backward(&self.weight, self.precision);
            matmul(rows, dy, weight.get(), &mut dx[..], Epilogue::Store);
            grads.register::<Flex>(parent.id, dx.into_tensor([rows, inner]));
        }
        add_gradients([&self.weight, &self.bias], [weight, bias], grads, |[dw, db]| {
            let sides = [rows, dims2(&self.weight)[0], inner];
            matmul_transposed_a(self.precision, sides, dy, slice(&self.x), dw, Some(db));
        });
    }
}

#[derive(Debug)]
struct Linear;

impl Backward<Flex, 3> for Linear {
    type State = LinearInputs;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let [x, weight, bias] = ops.parents;
        ops.state.register(slice(&dy), parents![x, weight, bias], grads);
    }
}

#[derive(Debug)]
struct LinearGelu;

impl Backward<Flex, 3> for LinearGelu {
    /// The inputs, and `gelu'` at the pre-activation.
    type State = (LinearInputs, FlexTensor);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let (inputs, derivative) = ops.state;
        let mut du = Buffer::stale(slice(&dy).len());
        for ((u, g), d) in du.iter_mut().zip(slice(&dy)).zip(slice(&derivative)) {
            *u = g * d;
        }
        let [x, weight, bias] = ops.parents;
        inputs.register(&du, parents![x, weight, bias], grads);
    }
}

#[derive(Debug)]
struct LinearResidual;

impl Backward<Flex, 4> for LinearResidual {
    /// The inputs, and the rows' factors if some are dropped.
    type State = (LinearInputs, Option<Vec<f32>>);

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let (inputs, factors) = ops.state;
        let [x, weight, bias, residual] = ops.parents;
        let parents = parents![x, weight, bias];
        match factors {
            Some(factors) => inputs.register(&scaled(&dy, &factors), parents, grads),
            None => inputs.register(slice(&dy), parents, grads),
        }
        if let Some(node) = residual {
            grads.register::<Flex>(node.id, dy);
        }
    }
}

/// The rows of `x` times their factors.
pub(super) fn scaled(x: &FlexTensor, factors: &[f32]) -> Buffer {
    let mut out = Buffer::stale(slice(x).len());
    scale_rows(dims2(x)[1], slice(x), Some(factors), &mut out[..]);
    out
}

#[derive(Debug)]
struct LayerNorm;

impl Backward<Flex, 3> for LayerNorm {
    /// With the moments of the rows.
    type State = (PreNorm, FlexTensor);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let (norm, moments) = &ops.state;
        let [x, weight, bias] = ops.parents;
        norm.register(moments, slice(&dy), None, parents![x, weight, bias], grads);
    }
}

#[derive(Debug)]
struct Attention;

impl Backward<Flex, 1> for Attention {
    /// Sizes, the joint projection and the sums of each softmax.
    type State = (AttentionShape, FlexTensor, FlexTensor);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let (shape, qkv, sums) = &ops.state;
        let mut dqkv = Buffer::stale(slice(qkv).len());
        let gradient = Qkv::Joint(&mut dqkv[..]);
        attention_backward(shape, slice(&dy), Qkv::Joint(slice(qkv)), slice(sums), gradient);
        if let [Some(node)] = ops.parents {
            grads.register::<Flex>(node.id, dqkv.into_tensor(qkv.layout().shape().clone()));
        }
    }
}

#[derive(Debug)]
struct CrossAttention;

impl Backward<Flex, 2> for CrossAttention {
    /// Sizes, queries, keys with values, and the sums of each softmax.
    type State = (AttentionShape, [FlexTensor; 2], FlexTensor);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let (shape, inputs, sums) = &ops.state;
        let [mut dq, mut dkv] = inputs.each_ref().map(|t| Buffer::stale(slice(t).len()));
        let [q, kv] = inputs.each_ref().map(slice);
        let gradient = Qkv::Split { q: &mut dq[..], kv: &mut dkv[..] };
        attention_backward(shape, slice(&dy), Qkv::Split { q, kv }, slice(sums), gradient);
        for ((node, gradient), input) in ops.parents.into_iter().zip([dq, dkv]).zip(inputs) {
            if let Some(node) = node {
                grads.register::<Flex>(
                    node.id,
                    gradient.into_tensor(input.layout().shape().clone()),
                );
            }
        }
    }
}

/// A buffer for the sums of each softmax of an attention call.
pub(super) fn softmax_sums(s: &AttentionShape) -> Buffer {
    Buffer::stale(s.batch * s.heads * s.queries * 2)
}

impl<C: CheckpointStrategy> FusedOps for Autodiff<Flex, C> {
    fn linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let ((x, xn), (weight, wn), (bias, bn)) =
            (x.into_parts(), weight.into_parts(), bias.into_parts());
        let [x, weight, bias] = [x, weight, bias].map(contiguous);
        let y = linear_forward(&x, &weight, &bias);
        match Linear.prepare::<C>([xn, wn, bn]).compute_bound().stateful() {
            OpsKind::Tracked(node) => node.finish(LinearInputs::new(x, weight, bias), y),
            OpsKind::UnTracked(node) => node.finish(y),
        }
    }

    fn linear_gelu(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let ((x, xn), (weight, wn), (bias, bn)) =
            (x.into_parts(), weight.into_parts(), bias.into_parts());
        let [x, weight, bias] = [x, weight, bias].map(contiguous);
        let (y, derivative) = linear_gelu_forward(&x, &weight, &bias);
        match LinearGelu.prepare::<C>([xn, wn, bn]).compute_bound().stateful() {
            OpsKind::Tracked(node) => {
                node.finish((LinearInputs::new(x, weight, bias), derivative), y)
            }
            OpsKind::UnTracked(node) => node.finish(y),
        }
    }

    fn linear_residual(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        factors: Option<Vec<f32>>,
    ) -> FloatTensor<Self> {
        let ((x, xn), (weight, wn), (bias, bn), (residual, rn)) =
            (x.into_parts(), weight.into_parts(), bias.into_parts(), residual.into_parts());
        let [x, weight, bias, residual] = [x, weight, bias, residual].map(contiguous);
        let y = linear_residual_forward(&x, &weight, &bias, &residual, factors.as_deref());
        match LinearResidual.prepare::<C>([xn, wn, bn, rn]).compute_bound().stateful() {
            OpsKind::Tracked(node) => node.finish((LinearInputs::new(x, weight, bias), factors), y),
            OpsKind::UnTracked(node) => node.finish(y),
        }
    }

    fn layer_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        let ((x, xn), (weight, wn), (bias, bn)) =
            (x.into_parts(), weight.into_parts(), bias.into_parts());
        let norm = PreNorm::new([x, weight, bias], eps);
        let (y, moments) = norm.forward(Precision::F32).into_parts();
        match LayerNorm.prepare::<C>([xn, wn, bn]).compute_bound().stateful() {
            OpsKind::Tracked(node) => node.finish((norm, moments), y),
            OpsKind::UnTracked(node) => node.finish(y),
        }
    }

    fn attention(qkv: FloatTensor<Self>, heads: usize) -> FloatTensor<Self> {
        let (qkv, node) = qkv.into_parts();
        let qkv = contiguous(qkv);
        let shape = attention_shape(&qkv, 3, None, heads);
        let joint = Qkv::Joint(slice(&qkv));
        match Attention.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(node) => {
                let mut sums = softmax_sums(&shape);
                let y = attend(&shape, joint, Some(&mut sums));
                let sums = sums.into_tensor([shape.batch, heads, shape.queries, 2]);
                node.finish((shape, qkv, sums), y)
            }
            OpsKind::UnTracked(node) => node.finish(attend(&shape, joint, None)),
        }
    }

    fn cross_attention(
        q: FloatTensor<Self>,
        kv: FloatTensor<Self>,
        heads: usize,
    ) -> FloatTensor<Self> {
        let ((q, qn), (kv, kvn)) = (q.into_parts(), kv.into_parts());
        let [q, kv] = [q, kv].map(contiguous);
        let shape = attention_shape(&kv, 2, Some(&q), heads);
        let split = Qkv::Split { q: slice(&q), kv: slice(&kv) };
        match CrossAttention.prepare::<C>([qn, kvn]).compute_bound().stateful() {
            OpsKind::Tracked(node) => {
                let mut sums = softmax_sums(&shape);
                let y = attend(&shape, split, Some(&mut sums));
                let sums = sums.into_tensor([shape.batch, heads, shape.queries, 2]);
                node.finish((shape, [q, kv], sums), y)
            }
            OpsKind::UnTracked(node) => node.finish(attend(&shape, split, None)),
        }
    }
}
