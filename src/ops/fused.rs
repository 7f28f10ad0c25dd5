//! The operations over the kernels: a burn backend extension on Flex.
//!
//! Forward passes live here; the autodiff nodes that save what the backward needs are in
//! `fused_nodes`.

use burn::backend::{Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use fewvit_kernels::{AttentionShape, Epilogue, Precision, Qkv, attention_forward, matmul};

use super::buffers::Buffer;
use super::pre_norm::PreNorm;
use super::storage::{contiguous, dims2, slice};
use super::{packed, precision};

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
    /// See [`super::linear_residual`].
    fn linear_residual(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        factors: Option<Vec<f32>>,
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
    /// See [`super::cross_attention`].
    fn cross_attention(
        q: FloatTensor<Self>,
        kv: FloatTensor<Self>,
        heads: usize,
    ) -> FloatTensor<Self>;
}

/// See [`super::linear`].
pub fn linear<const D: usize>(x: Tensor<2>, weight: Tensor<D>, bias: Tensor<1>) -> Tensor<2> {
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

/// See [`super::linear_residual`].
pub fn linear_residual(
    x: Tensor<2>,
    weight: Tensor<2>,
    bias: Tensor<1>,
    residual: Tensor<2>,
    factors: Option<Vec<f32>>,
) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::linear_residual(
        x.into_dispatch(),
        weight.into_dispatch(),
        bias.into_dispatch(),
        residual.into_dispatch(),
        factors,
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

/// See [`super::cross_attention`].
pub fn cross_attention(q: Tensor<3>, kv: Tensor<3>, heads: usize) -> Tensor<3> {
    Tensor::from_dispatch(Dispatch::cross_attention(q.into_dispatch(), kv.into_dispatch(), heads))
}

impl FusedOps for Flex {
    fn linear(x: FlexTensor, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
        linear_forward(&contiguous(x), &contiguous(weight), &contiguous(bias))
    }

    fn linear_gelu(x: FlexTensor, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
        linear_gelu_forward(&contiguous(x), &contiguous(weight), &contiguous(bias)).0
    }

    fn linear_residual(
        x: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        residual: FlexTensor,
        factors: Option<Vec<f32>>,
    ) -> FlexTensor {
        let [x, weight, bias, residual] = [x, weight, bias, residual].map(contiguous);
        linear_residual_forward(&x, &weight, &bias, &residual, factors.as_deref())
    }

    fn layer_norm(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, eps: f64) -> FlexTensor {
        PreNorm::new([x, weight, bias], eps).forward(Precision::F32).into_parts().0
    }

    fn attention(qkv: FlexTensor, heads: usize) -> FlexTensor {
        let qkv = contiguous(qkv);
        let shape = attention_shape(&qkv, 3, None, heads);
        attend(&shape, Qkv::Joint(slice(&qkv)), None)
    }

    fn cross_attention(q: FlexTensor, kv: FlexTensor, heads: usize) -> FlexTensor {
        let [q, kv] = [q, kv].map(contiguous);
        let shape = attention_shape(&kv, 2, Some(&q), heads);
        attend(&shape, Qkv::Split { q: slice(&q), kv: slice(&kv) }, None)
    }
}

pub(super) fn linear_forward(x: &FlexTensor, weight: &FlexTensor, bias: &FlexTensor) -> FlexTensor {
    product(x, weight, Epilogue::Bias(slice(bias)))
}

pub(super) fn linear_residual_forward(
    x: &FlexTensor,
    weight: &FlexTensor,
    bias: &FlexTensor,
    residual: &FlexTensor,
    factors: Option<&[f32]>,
) -> FlexTensor {
    let (bias, residual) = (slice(bias), slice(residual));
    product(x, weight, Epilogue::Residual { bias, residual, factors })
}

/// The output and `gelu'` at the pre-activation, which the backward needs.
pub(super) fn linear_gelu_forward(
    x: &FlexTensor,
    weight: &FlexTensor,
    bias: &FlexTensor,
) -> (FlexTensor, FlexTensor) {
    let shape = [dims2(x)[0], dims2(weight)[0]];
    let mut derivative = Buffer::stale(shape[0] * shape[1]);
    let epilogue = Epilogue::BiasGelu { bias: slice(bias), derivative: &mut derivative };
    (product(x, weight, epilogue), derivative.into_tensor(shape))
}

/// `x W^T` with an epilogue.
fn product(x: &FlexTensor, weight: &FlexTensor, epilogue: Epilogue) -> FlexTensor {
    let ([rows, _], [out, _]) = (dims2(x), dims2(weight));
    let mut y = Buffer::stale(rows * out);
    let weight = packed::for_forward(weight, precision::current());
    matmul(rows, slice(x), weight.get(), &mut y[..], epilogue);
    y.into_tensor([rows, out])
}

/// Sizes of one attention call. `tokens` holds keys and values, `[batch, keys, parts * dim]`, and
/// the queries too unless they are apart, `[batch, queries, dim]`.
pub(super) fn attention_shape(
    tokens: &FlexTensor,
    parts: usize,
    apart: Option<&FlexTensor>,
    heads: usize,
) -> AttentionShape {
    let shape = tokens.layout().shape();
    let (batch, keys) = (shape[0], shape[1]);
    let queries = apart.map_or(keys, |q| q.layout().shape()[1]);
    let head_dim = shape[2] / parts / heads;
    let scale = (head_dim as f32).powf(-0.5);
    let (precision, stored) = (precision::current(), Precision::F32);
    AttentionShape { batch, queries, keys, heads, head_dim, scale, precision, stored }
}

/// The output `[batch, queries, heads * head_dim]`; `sums` as the kernel's.
pub(super) fn attend(s: &AttentionShape, qkv: Qkv<&[f32]>, sums: Option<&mut [f32]>) -> FlexTensor {
    let shape = [s.batch, s.queries, s.heads * s.head_dim];
    let mut out = Buffer::stale(shape.iter().product());
    attention_forward(s, qkv, &mut out, sums);
    out.into_tensor(shape)
}
