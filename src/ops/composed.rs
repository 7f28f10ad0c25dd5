//! The operations as compositions of burn's own, for every device and as the reference of the
//! fused ones.

use burn::tensor::Tensor;
use burn::tensor::activation::{gelu, softmax};

/// See [`super::linear`].
pub fn linear(x: Tensor<2>, weight: Tensor<2>, bias: Tensor<1>) -> Tensor<2> {
    x.matmul(weight.transpose()) + bias.unsqueeze()
}

/// See [`super::linear_gelu`].
pub fn linear_gelu(x: Tensor<2>, weight: Tensor<2>, bias: Tensor<1>) -> Tensor<2> {
    gelu(linear(x, weight, bias))
}

/// See [`super::layer_norm`].
pub fn layer_norm(x: Tensor<2>, weight: Tensor<1>, bias: Tensor<1>, eps: f64) -> Tensor<2> {
    let centred = x.clone() - x.mean_dim(1);
    let variance = centred.clone().square().mean_dim(1);
    centred / (variance + eps).sqrt() * weight.unsqueeze() + bias.unsqueeze()
}

/// See [`super::attention`].
pub fn attention(qkv: Tensor<3>, heads: usize) -> Tensor<3> {
    let [batch, tokens, width] = qkv.dims();
    let head_dim = width / 3 / heads;
    let part = |i: usize| -> Tensor<4> {
        qkv.clone()
            .reshape([batch, tokens, 3, heads, head_dim])
            .narrow(2, i, 1)
            .reshape([batch, tokens, heads, head_dim])
            .swap_dims(1, 2)
    };
    let scores = part(0).matmul(part(1).transpose()) * (head_dim as f64).powf(-0.5);
    let out = softmax(scores, 3).matmul(part(2));
    out.swap_dims(1, 2).reshape([batch, tokens, heads * head_dim])
}
