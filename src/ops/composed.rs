//! The operations as compositions of burn's own, for every device and as the reference of the
//! fused ones.

use burn::tensor::activation::softmax;
use burn::tensor::{Tensor, TensorData};

/// See [`super::linear`].
pub fn linear<const D: usize>(x: Tensor<2>, weight: Tensor<D>, bias: Tensor<1>) -> Tensor<2> {
    let weight = weight.reshape([bias.dims()[0], x.dims()[1]]);
    x.matmul(weight.transpose()) + bias.unsqueeze()
}

/// See [`super::linear_gelu`].
pub fn linear_gelu(x: Tensor<2>, weight: Tensor<2>, bias: Tensor<1>) -> Tensor<2> {
    gelu(linear(x, weight, bias))
}

/// GELU in its exact erf form. Written out, since burn's own has the slope of the tanh form on every
/// device but the CPU, which is up to 5e-4 off.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x.clone() * ((x * std::f64::consts::FRAC_1_SQRT_2).erf() + 1.0) * 0.5
}

/// See [`super::linear_residual`].
pub fn linear_residual(
    x: Tensor<2>,
    weight: Tensor<2>,
    bias: Tensor<1>,
    residual: Tensor<2>,
    factors: Option<Vec<f32>>,
) -> Tensor<2> {
    let y = linear(x, weight, bias);
    let [rows, _] = y.dims();
    match factors {
        Some(factors) => {
            let factors = TensorData::new(factors, [rows, 1]);
            residual + y.clone() * Tensor::from_data(factors, &y.device())
        }
        None => residual + y,
    }
}

/// See [`super::layer_norm`].
pub fn layer_norm(x: Tensor<2>, weight: Tensor<1>, bias: Tensor<1>, eps: f64) -> Tensor<2> {
    let centred = x.clone() - x.mean_dim(1);
    let variance = centred.clone().square().mean_dim(1);
    centred / (variance + eps).sqrt() * weight.unsqueeze() + bias.unsqueeze()
}

/// See [`super::attention`].
pub fn attention(qkv: Tensor<3>, heads: usize) -> Tensor<3> {
    let dim = qkv.dims()[2] / 3;
    cross_attention(qkv.clone().narrow(2, 0, dim), qkv.narrow(2, dim, 2 * dim), heads)
}

/// See [`super::cross_attention`].
pub fn cross_attention(q: Tensor<3>, kv: Tensor<3>, heads: usize) -> Tensor<3> {
    let [batch, queries, dim] = q.dims();
    let head_dim = dim / heads;
    let split = |x: Tensor<3>| -> Tensor<4> {
        let tokens = x.dims()[1];
        x.reshape([batch, tokens, heads, head_dim]).swap_dims(1, 2)
    };
    let [k, v] = [0, dim].map(|start| split(kv.clone().narrow(2, start, dim)));
    let scores = split(q).matmul(k.transpose()) * (head_dim as f64).powf(-0.5);
    let out = softmax(scores, 3).matmul(v);
    out.swap_dims(1, 2).reshape([batch, queries, dim])
}
