//! The tensor operations that backbones are written in.
//!
//! On the CPU each is one autodiff node over a kernel of `fewvit-kernels` with a hand-written
//! backward ([`fused`]); on every other device it is composed of burn's own operations
//! ([`composed`]). The tests hold the two together, value and gradient.
//!
//! Weights are stored as PyTorch and timm store them: a linear layer's is `[out, in]`.

pub mod composed;
pub mod fused;
mod fused_nodes;
mod packed;
mod storage;

use burn::tensor::{Device, Tensor};

pub use packed::forget_packed_weights;

/// `x W^T + b`.
///
/// `x`: `[rows, in]`, `weight`: `[out, in]`, `bias`: `[out]`; returns `[rows, out]`.
pub fn linear(x: Tensor<2>, weight: Tensor<2>, bias: Tensor<1>) -> Tensor<2> {
    match on_cpu(&x.device()) {
        true => fused::linear(x, weight, bias),
        false => composed::linear(x, weight, bias),
    }
}

/// `gelu(x W^T + b)`, GELU in its exact erf form; shapes as [`linear`].
pub fn linear_gelu(x: Tensor<2>, weight: Tensor<2>, bias: Tensor<1>) -> Tensor<2> {
    match on_cpu(&x.device()) {
        true => fused::linear_gelu(x, weight, bias),
        false => composed::linear_gelu(x, weight, bias),
    }
}

/// Layer normalisation over the last dimension.
///
/// `x`: `[rows, dim]`, `weight`, `bias`: `[dim]`; returns `[rows, dim]`.
pub fn layer_norm(x: Tensor<2>, weight: Tensor<1>, bias: Tensor<1>, eps: f64) -> Tensor<2> {
    match on_cpu(&x.device()) {
        true => fused::layer_norm(x, weight, bias, eps),
        false => composed::layer_norm(x, weight, bias, eps),
    }
}

/// Multi-head self-attention, `softmax(q k^T * head_dim^-0.5) v`, between the `qkv` projection and
/// the output projection.
///
/// `qkv`: `[batch, tokens, 3 * heads * head_dim]`, ordered q, k, v and head-major inside each, as
/// timm's; returns `[batch, tokens, heads * head_dim]`.
pub fn attention(qkv: Tensor<3>, heads: usize) -> Tensor<3> {
    match on_cpu(&qkv.device()) {
        true => fused::attention(qkv, heads),
        false => composed::attention(qkv, heads),
    }
}

/// Whether the kernels serve this device.
fn on_cpu(device: &Device) -> bool {
    // Equality of devices ignores autodiff.
    *device == Device::flex()
}

#[cfg(test)]
mod tests;
