//! The tensor operations that backbones are written in.
//!
//! On the CPU each is one autodiff node over a kernel of `fewvit-kernels` with a hand-written
//! backward ([`fused`]); on every other device it is composed of burn's own operations
//! ([`composed`]), and [`composed_only`] does that on the CPU too. The tests hold the two together,
//! value and gradient.
//!
//! Weights are stored as PyTorch and timm store them: a linear layer's is `[out, in]`.

pub mod attention_block;
mod buffers;
pub mod composed;
mod conv;
pub mod conv_mlp_block;
pub mod cross_entropy;
pub mod depthwise;
pub mod dropout;
mod flat;
pub mod fused;
mod fused_nodes;
mod kept;
pub mod mlp_block;
mod packed;
pub mod patch_embed;
pub mod performer;
mod pre_norm;
mod precision;
mod projection;
pub mod reduced_attention_block;
mod storage;
pub mod unfold;

use std::cell::Cell;

use burn::tensor::{Device, Tensor};

pub use buffers::{BufferPool, filled};
pub use conv::conv2d;
pub use fewvit_kernels::{MixedTarget, SoftTargets, Windows};
pub use flat::FlatMemory;
pub use packed::PackedWeights;
pub use precision::autocast;
pub use reduced_attention_block::Reduction;

/// Weight `[out, in]` and bias `[out]` of a linear layer.
pub type Layer = (Tensor<2>, Tensor<1>);

/// Weight `[channels, 1, 3, 3]` and bias `[channels]` of a convolution of each channel by itself.
pub type Kernels = (Tensor<4>, Tensor<1>);

/// Weight and bias `[dim]` of a layer norm, and what it adds to the variance.
pub type Norm = (Tensor<1>, Tensor<1>, f64);

/// `x W^T + b`.
///
/// `x`: `[rows, in]`, `weight`: `[out, in]`, `bias`: `[out]`; returns `[rows, out]`. The kernels of a
/// convolution, `[out, channels, height, width]`, are taken as they are: reshaped, they would be no
/// parameter any more, and their gradient would pass through autodiff's own memory.
pub fn linear<const D: usize>(x: Tensor<2>, weight: Tensor<D>, bias: Tensor<1>) -> Tensor<2> {
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

/// GELU in its exact erf form.
pub fn gelu(x: Tensor<2>) -> Tensor<2> {
    match on_cpu(&x.device()) {
        true => burn::tensor::activation::gelu(x),
        false => composed::gelu(x),
    }
}

/// `residual + factor (x W^T + b)`, the end of a residual branch.
///
/// `residual`: `[rows, out]`, others as [`linear`]; `factors`: one a row, 0 or `1 / keep` where
/// stochastic depth is on, none = 1.
pub fn linear_residual(
    x: Tensor<2>,
    weight: Tensor<2>,
    bias: Tensor<1>,
    residual: Tensor<2>,
    factors: Option<Vec<f32>>,
) -> Tensor<2> {
    match on_cpu(&x.device()) {
        true => fused::linear_residual(x, weight, bias, residual, factors),
        false => composed::linear_residual(x, weight, bias, residual, factors),
    }
}

/// `x + factor proj(attention(qkv(norm(x))))`, the first half of a transformer block.
///
/// `x`: `[batch * tokens, dim]`, `qkv`: weight `[3 * dim, dim]` and bias as in [`attention`], `proj`:
/// weight `[dim, dim]` and bias; `factors` as in [`linear_residual`].
pub fn attention_block(
    x: Tensor<2>,
    norm: Norm,
    qkv: Layer,
    proj: Layer,
    [batch, heads]: [usize; 2],
    factors: Option<Vec<f32>>,
) -> Tensor<2> {
    match on_cpu(&x.device()) {
        true => attention_block::fused(x, norm, qkv, proj, [batch, heads], factors),
        false => attention_block::composed(x, norm, qkv, proj, [batch, heads], factors),
    }
}

/// `x + factor fc2(gelu(fc1(norm(x))))`, the second half of a transformer block.
///
/// `x`: `[rows, dim]`, `fc1`: weight `[hidden, dim]` and bias, `fc2`: weight `[dim, hidden]` and bias;
/// `factors` as in [`linear_residual`].
pub fn mlp_block(
    x: Tensor<2>,
    norm: Norm,
    fc1: Layer,
    fc2: Layer,
    factors: Option<Vec<f32>>,
) -> Tensor<2> {
    match on_cpu(&x.device()) {
        true => mlp_block::fused(x, norm, fc1, fc2, factors),
        false => mlp_block::composed(x, norm, fc1, fc2, factors),
    }
}

/// `x + factor fc2(gelu(dwconv(fc1(norm(x)))))`, the second half of a PVTv2 block.
///
/// `x`: `[batch * side * side, dim]`, the maps' tokens; `fc1`: weight `[hidden, dim]` and bias, `dwconv` as
/// in [`depthwise_conv3x3_gelu`], `fc2`: weight `[dim, hidden]` and bias; `factors` as in
/// [`linear_residual`].
pub fn conv_mlp_block(
    x: Tensor<2>,
    norm: Norm,
    fc1: Layer,
    dwconv: Kernels,
    fc2: Layer,
    [batch, side]: [usize; 2],
    factors: Option<Vec<f32>>,
) -> Tensor<2> {
    match on_cpu(&x.device()) {
        true => conv_mlp_block::fused(x, norm, fc1, dwconv, fc2, [batch, side], factors),
        false => conv_mlp_block::composed(x, norm, fc1, dwconv, fc2, [batch, side], factors),
    }
}

/// `x + factor proj(attention(q(norm(x)), kv(keys)))`, the first half of a PVTv2 block; the keys are
/// `norm(x)`, with a reduction `reduction_norm(conv(norm(x)))` of windows that lie side by side.
///
/// `x`: `[batch * side * side, dim]`, the maps' tokens; weights and biases: `q` `[dim, dim]`, `kv`
/// `[2 * dim, dim]`, `proj` `[dim, dim]`, the convolution `[dim, dim, kernel, kernel]`; `factors` as in
/// [`linear_residual`].
pub fn reduced_attention_block(
    x: Tensor<2>,
    norm: Norm,
    layers: [Layer; 3],
    reduction: Option<Reduction>,
    sizes: [usize; 3],
    factors: Option<Vec<f32>>,
) -> Tensor<2> {
    use reduced_attention_block::{composed, fused};
    match on_cpu(&x.device()) {
        true => fused(x, norm, layers, reduction, sizes, factors),
        false => composed(x, norm, layers, reduction, sizes, factors),
    }
}

/// `residual + factors x`, each value of `x` with a factor of its own; none = 1.
///
/// `x`: `[rows, dim]`, `residual`: `[rows, width]`, of which the last `dim` columns are meant,
/// `factors`: 0 or `1 / keep` where dropout is on; returns `[rows, dim]`.
pub fn dropout_residual(x: Tensor<2>, residual: Tensor<2>, factors: Option<Vec<f32>>) -> Tensor<2> {
    match on_cpu(&x.device()) {
        true => dropout::fused(x, residual, factors),
        false => dropout::composed(x, residual, factors),
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

/// [`attention`] between tokens of two projections: `queries` tokens ask, `keys` tokens answer.
///
/// `q`: `[batch, queries, heads * head_dim]`; `kv`: `[batch, keys, 2 * heads * head_dim]`, keys
/// before values, head-major inside each; returns `[batch, queries, heads * head_dim]`.
pub fn cross_attention(q: Tensor<3>, kv: Tensor<3>, heads: usize) -> Tensor<3> {
    match on_cpu(&q.device()) {
        true => fused::cross_attention(q, kv, heads),
        false => composed::cross_attention(q, kv, heads),
    }
}

/// Attention by positive random features, `phi(q) sum_t phi(k_t) v_t^T / (phi(q) sum_t phi(k_t) +
/// eps)` with `phi(x) = exp(w x - |x|^2 / 2) / sqrt(features)`.
///
/// `kqv`: `[batch, tokens, 3 * dim]`, keys, queries, values; `w`: `[features, dim]`, to which no
/// gradient flows; returns `[batch, tokens, dim]`.
pub fn performer(kqv: Tensor<3>, w: Tensor<2>) -> Tensor<3> {
    match on_cpu(&kqv.device()) {
        true => performer::fused(kqv, w),
        false => performer::composed(kqv, w),
    }
}

/// GELU of a 3 x 3 convolution of each channel by itself, stride 1, one zero around the map.
///
/// `x`: `[batch, height, width, channels]`, `weight`: `[channels, 1, 3, 3]`, `bias`: `[channels]`;
/// returns the shape of `x`.
pub fn depthwise_conv3x3_gelu(x: Tensor<4>, weight: Tensor<4>, bias: Tensor<1>) -> Tensor<4> {
    match on_cpu(&x.device()) {
        true => depthwise::fused(x, weight, bias),
        false => depthwise::composed(x, weight, bias),
    }
}

/// The layer norm of a convolution of maps.
///
/// `map`: `[batch, height, width, channels]`, `conv`: weight `[dim, channels, kernel, kernel]` and bias;
/// returns `[batch * rows * columns, dim]` with one row a window.
pub fn patch_embed(map: Tensor<4>, conv: Kernels, norm: Norm, windows: Windows) -> Tensor<2> {
    match on_cpu(&map.device()) {
        true => patch_embed::fused(map, conv, norm, windows),
        false => patch_embed::composed(map, conv, norm, windows),
    }
}

/// [`patch_embed()`] of images `[batch, channels, height, width]`.
pub fn image_embed(images: Tensor<4>, conv: Kernels, norm: Norm, windows: Windows) -> Tensor<2> {
    match on_cpu(&images.device()) {
        true => patch_embed::fused_of_images(images, conv, norm, windows),
        false => patch_embed::composed(images.permute([0, 2, 3, 1]), conv, norm, windows),
    }
}

/// Flattened windows of a map, PyTorch's `unfold`.
///
/// `x`: `[batch, height, width, channels]`; returns `[batch, rows, columns, channels * kernel^2]`
/// with one entry a window, channel-major inside (index = channel * kernel^2 + row * kernel +
/// column), as a convolution's weight lies.
pub fn unfold(x: Tensor<4>, windows: Windows) -> Tensor<4> {
    match on_cpu(&x.device()) {
        true => unfold::fused(x, windows),
        false => unfold::composed(x, windows),
    }
}

/// Cross-entropy of the softmax of each row with its target,
/// `logsumexp(o) - on * (share_a * o_a + share_b * o_b) - off * sum(o)` where the targets are
/// distributions.
///
/// `logits`: `[rows, classes]`; returns `[rows]`.
pub fn mixed_cross_entropy(logits: Tensor<2>, targets: SoftTargets) -> Tensor<1> {
    match on_cpu(&logits.device()) {
        true => cross_entropy::fused(logits, targets),
        false => cross_entropy::composed(logits, targets),
    }
}

/// The device that the kernels serve.
pub fn cpu() -> Device {
    Device::flex()
}

/// Whether the kernels serve this device.
fn on_cpu(device: &Device) -> bool {
    // Equality of devices ignores autodiff.
    *device == cpu() && !COMPOSED_ONLY.get()
}

thread_local! {
    static COMPOSED_ONLY: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f` with every operation composed of burn's own, on the CPU too.
///
/// An operation is chosen when it is called, on the thread that calls it: a backward outside of `f`
/// is that of what was called inside.
pub fn composed_only<T>(f: impl FnOnce() -> T) -> T {
    // Restored also when `f` panics.
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            COMPOSED_ONLY.set(self.0);
        }
    }
    let _before = Before(COMPOSED_ONLY.replace(true));
    f()
}

#[cfg(test)]
mod tests;
