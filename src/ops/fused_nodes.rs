//! Autodiff nodes of the fused operations: what each saves and how its gradient is computed.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{Autodiff, Flex, tensor::FloatTensor};
use burn_flex::FlexTensor;
use fewvit_kernels::{
    Epilogue, attention_backward, layer_norm_backward, matmul, matmul_transposed_a,
};

use super::fused::{
    FusedOps, NormSaved, attention_shape, linear_forward, linear_gelu_forward, norm_forward,
    self_attention_forward,
};
use super::packed;
use super::storage::{dims2, slice, tensor};

/// Gradients of `y = x W^T + b` from that of `y`: `dx = dy W`, `dW = dy^T x`, `db = sum_rows dy`.
struct LinearGrads {
    x: FlexTensor,
    weight: FlexTensor,
}

impl LinearGrads {
    fn dx(&self, dy: &[f32]) -> FlexTensor {
        let [rows, inner] = dims2(&self.x);
        let mut dx = vec![0.0; rows * inner];
        matmul(rows, dy, packed::for_backward(&self.weight).get(), &mut dx, Epilogue::Store);
        tensor(dx, [rows, inner])
    }

    fn dw_db(&self, dy: &[f32]) -> (FlexTensor, FlexTensor) {
        let ([rows, _], [out, inner]) = (dims2(&self.x), dims2(&self.weight));
        let (mut dw, mut db) = (vec![0.0; out * inner], vec![0.0; out]);
        matmul_transposed_a(rows, dy, slice(&self.x), &mut dw, Some(&mut db));
        (tensor(dw, [out, inner]), tensor(db, [out]))
    }

    fn register<S>(&self, dy: &[f32], ops: Ops<S, 3>, grads: &mut Gradients)
    where
        S: Clone + Send + Sync + std::fmt::Debug + 'static,
    {
        let [x, weight, bias] = ops.parents;
        if let Some(node) = x {
            grads.register::<Flex>(node.id, self.dx(dy));
        }
        if weight.is_some() || bias.is_some() {
            let (dw, db) = self.dw_db(dy);
            weight.inspect(|node| grads.register::<Flex>(node.id, dw));
            bias.inspect(|node| grads.register::<Flex>(node.id, db));
        }
    }
}

#[derive(Debug)]
struct Linear;

impl Backward<Flex, 3> for Linear {
    type State = (FlexTensor, FlexTensor);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
        let (x, weight) = ops.state.clone();
        LinearGrads { x, weight }.register(slice(&dy), ops, grads);
    }
}

#[derive(Debug)]
struct LinearGelu;

impl Backward<Flex, 3> for LinearGelu {
    type State = (FlexTensor, FlexTensor, FlexTensor);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let mut dy = grads.consume::<Flex>(&ops.node).to_contiguous();
        let (x, weight, derivative) = ops.state.clone();
        // Flex broadcasts by stride 0, but `to_contiguous` leaves an owned dense gradient.
        for (g, d) in dy.storage_mut::<f32>().iter_mut().zip(slice(&derivative)) {
            *g *= d;
        }
        LinearGrads { x, weight }.register(slice(&dy), ops, grads);
    }
}

#[derive(Debug)]
struct LayerNorm;

impl Backward<Flex, 3> for LayerNorm {
    type State = (FlexTensor, std::sync::Arc<NormSaved>);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
        let [rows, dim] = dims2(&dy);
        let (weight, saved) = &ops.state;
        let mut dx = vec![0.0; rows * dim];
        let (mut dw, mut db) = (vec![0.0; dim], vec![0.0; dim]);
        layer_norm_backward(
            slice(&dy),
            &saved.x_hat,
            &saved.rstd,
            slice(weight),
            &mut dx,
            &mut dw,
            &mut db,
        );
        let gradients = [tensor(dx, [rows, dim]), tensor(dw, [dim]), tensor(db, [dim])];
        for (node, gradient) in ops.parents.into_iter().zip(gradients) {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct Attention;

impl Backward<Flex, 1> for Attention {
    type State = (FlexTensor, FlexTensor, usize);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
        let (qkv, probs, heads) = &ops.state;
        let shape = attention_shape(qkv, *heads);
        let mut dqkv = vec![0.0; slice(qkv).len()];
        attention_backward(&shape, slice(&dy), slice(qkv), slice(probs), &mut dqkv);
        if let [Some(node)] = ops.parents {
            grads.register::<Flex>(node.id, tensor(dqkv, qkv.layout().shape().clone()));
        }
    }
}

impl<C: CheckpointStrategy> FusedOps for Autodiff<Flex, C> {
    fn linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let ((x, xn), (weight, wn), (bias, bn)) =
            (x.into_parts(), weight.into_parts(), bias.into_parts());
        let (x, weight, bias) = (x.to_contiguous(), weight.to_contiguous(), bias.to_contiguous());
        let y = linear_forward(&x, &weight, &bias);
        match Linear.prepare::<C>([xn, wn, bn]).compute_bound().stateful() {
            OpsKind::Tracked(node) => node.finish((x, weight), y),
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
        let (x, weight, bias) = (x.to_contiguous(), weight.to_contiguous(), bias.to_contiguous());
        let (y, derivative) = linear_gelu_forward(&x, &weight, &bias);
        let derivative = tensor(derivative, y.layout().shape().clone());
        match LinearGelu.prepare::<C>([xn, wn, bn]).compute_bound().stateful() {
            OpsKind::Tracked(node) => node.finish((x, weight, derivative), y),
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
        let weight = weight.to_contiguous();
        let (y, saved) = norm_forward(&x.to_contiguous(), &weight, &bias.to_contiguous(), eps);
        match LayerNorm.prepare::<C>([xn, wn, bn]).compute_bound().stateful() {
            OpsKind::Tracked(node) => node.finish((weight, saved.into()), y),
            OpsKind::UnTracked(node) => node.finish(y),
        }
    }

    fn attention(qkv: FloatTensor<Self>, heads: usize) -> FloatTensor<Self> {
        let (qkv, node) = qkv.into_parts();
        let qkv = qkv.to_contiguous();
        let s = attention_shape(&qkv, heads);
        match Attention.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(node) => {
                let (y, probs) = self_attention_forward(&qkv, heads, true);
                let shape = [s.batch, heads, s.tokens, s.tokens];
                node.finish((qkv, tensor(probs.unwrap_or_default(), shape), heads), y)
            }
            OpsKind::UnTracked(node) => node.finish(self_attention_forward(&qkv, heads, false).0),
        }
    }
}
