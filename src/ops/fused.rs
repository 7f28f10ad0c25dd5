//! The operations over the kernels: a burn backend extension on Flex.
//!
//! Forward passes live here; the autodiff nodes that save what the backward needs are in
//! `fused_nodes`.

use burn::backend::{Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use fewvit_kernels::{AttentionShape, Epilogue, attention_forward, layer_norm_forward, matmul};

use super::packed;
use super::storage::{dims2, slice, tensor};

/// The operations on a backend's primitives.
#[backend_extension(Autodiff, Flex)]
pub trait FusedOps: Backend {
    /// See [`super::linear`].
    fn linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    /// See [`super::linear_gelu`].
    fn linear_gelu(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    /// See [`super::layer_norm`].
    fn layer_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self>;
    /// See [`super::attention`].
    fn attention(qkv: FloatTensor<Self>, heads: usize) -> FloatTensor<Self>;
}

/// See [`super::linear`].
pub fn linear(x: Tensor<2>, weight: Tensor<2>, bias: Tensor<1>) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::linear(
        x.into_dispatch(),
        weight.into_dispatch(),
        bias.into_dispatch(),
    ))
}

/// See [`super::linear_gelu`].
pub fn linear_gelu(x: Tensor<2>, weight: Tensor<2>, bias: Tensor<1>) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::linear_gelu(
        x.into_dispatch(),
        weight.into_dispatch(),
        bias.into_dispatch(),
    ))
}

/// See [`super::layer_norm`].
pub fn layer_norm(x: Tensor<2>, weight: Tensor<1>, bias: Tensor<1>, eps: f64) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::layer_norm(
        x.into_dispatch(),
        weight.into_dispatch(),
        bias.into_dispatch(),
        eps,
    ))
}

/// See [`super::attention`].
pub fn attention(qkv: Tensor<3>, heads: usize) -> Tensor<3> {
    Tensor::from_dispatch(Dispatch::attention(qkv.into_dispatch(), heads))
}

impl FusedOps for Flex {
    fn linear(x: FlexTensor, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
        linear_forward(&x.to_contiguous(), &weight, &bias.to_contiguous())
    }

    fn linear_gelu(x: FlexTensor, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
        linear_gelu_forward(&x.to_contiguous(), &weight, &bias.to_contiguous()).0
    }

    fn layer_norm(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, eps: f64) -> FlexTensor {
        let [weight, bias] = [weight.to_contiguous(), bias.to_contiguous()];
        norm_forward(&x.to_contiguous(), &weight, &bias, eps).0
    }

    fn attention(qkv: FlexTensor, heads: usize) -> FlexTensor {
        self_attention_forward(&qkv.to_contiguous(), heads, false).0
    }
}

pub(super) fn linear_forward(x: &FlexTensor, weight: &FlexTensor, bias: &FlexTensor) -> FlexTensor {
    let ([rows, _], [out, _]) = (dims2(x), dims2(weight));
    let mut y = vec![0.0; rows * out];
    let packed = packed::for_forward(weight);
    matmul(rows, slice(x), packed.get(), &mut y, Epilogue::Bias(slice(bias)));
    tensor(y, [rows, out])
}

/// The output and `gelu'` at the pre-activation, which the backward needs.
pub(super) fn linear_gelu_forward(
    x: &FlexTensor,
    weight: &FlexTensor,
    bias: &FlexTensor,
) -> (FlexTensor, Vec<f32>) {
    let ([rows, _], [out, _]) = (dims2(x), dims2(weight));
    let mut y = vec![0.0; rows * out];
    let mut derivative = vec![0.0; rows * out];
    let epilogue = Epilogue::BiasGelu { bias: slice(bias), derivative: &mut derivative };
    matmul(rows, slice(x), packed::for_forward(weight).get(), &mut y, epilogue);
    (tensor(y, [rows, out]), derivative)
}

/// What the backward of layer normalisation needs.
#[derive(Clone, Debug)]
pub(super) struct NormSaved {
    pub(super) x_hat: Vec<f32>,
    pub(super) rstd: Vec<f32>,
}

pub(super) fn norm_forward(
    x: &FlexTensor,
    weight: &FlexTensor,
    bias: &FlexTensor,
    eps: f64,
) -> (FlexTensor, NormSaved) {
    let [rows, dim] = dims2(x);
    let mut y = vec![0.0; rows * dim];
    let mut saved = NormSaved { x_hat: vec![0.0; rows * dim], rstd: vec![0.0; rows] };
    let (x_hat, rstd) = (&mut saved.x_hat, &mut saved.rstd);
    layer_norm_forward(
        slice(x),
        slice(weight),
        slice(bias),
        eps as f32,
        &mut y,
        Some((x_hat, rstd)),
    );
    (tensor(y, [rows, dim]), saved)
}

/// Sizes of one attention call on `qkv` (`[batch, tokens, 3 * heads * head_dim]`).
pub(super) fn attention_shape(qkv: &FlexTensor, heads: usize) -> AttentionShape {
    let shape = qkv.layout().shape();
    let head_dim = shape[2] / 3 / heads;
    let scale = (head_dim as f32).powf(-0.5);
    AttentionShape { batch: shape[0], tokens: shape[1], heads, head_dim, scale }
}

/// The output and, when `save`, the attention probabilities.
pub(super) fn self_attention_forward(
    qkv: &FlexTensor,
    heads: usize,
    save: bool,
) -> (FlexTensor, Option<Vec<f32>>) {
    let s = attention_shape(qkv, heads);
    let mut out = vec![0.0; s.batch * s.tokens * heads * s.head_dim];
    let mut probs = save.then(|| vec![0.0; s.batch * heads * s.tokens * s.tokens]);
    attention_forward(&s, slice(qkv), &mut out, probs.as_deref_mut());
    (tensor(out, [s.batch, s.tokens, heads * s.head_dim]), probs)
}
