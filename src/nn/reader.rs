//! The vocabulary that models are told in.
//!
//! A model is one function from a [`Reader`] to its output: it declares its parameters and names
//! its operations in turn. What a reader makes of that is its own affair: `readers/tensors` computes
//! with burn, `readers/onnx` writes an ONNX file, `readers/outline` counts parameters, multiply-adds
//! and activations. A new operation is one method here and one row in each reader; methods with a body
//! are whole branches that readers may take in one piece.
//!
//! Values are rows of tokens, `[batch * tokens, dim]`, the tokens of an image one after the other.
//! Where an operation speaks of a map, the tokens are its pixels, row by row.

use std::fmt;

use super::init::Start;
use super::layers::{Block, Conv2d, ConvMlp, LayerNorm, Linear, ReducedAttention};
use crate::ops::Windows;

/// Visitor of a model's operations: it computes, draws or counts what it is told.
pub trait Reader {
    /// What flows between operations.
    type Value: Clone;
    /// A parameter.
    type Weight: Clone;

    /// The next parameter, under timm's key and in PyTorch's layout.
    fn weight(&mut self, key: &str, shape: &[usize], start: Start) -> Self::Weight;

    /// A tensor that checkpoints hold and the optimiser leaves alone.
    fn frozen(&mut self, key: &str, shape: &[usize], start: Start) -> Self::Weight;

    /// The normalised pixels of the images, a map of 3 channels.
    fn pixels(&mut self) -> Self::Value;

    /// The images cut into patches that do not overlap, each through a linear layer that is kept as a
    /// convolution whose stride is its kernel.
    fn patches(&mut self, conv: &Conv2d<Self::Weight>) -> Self::Value;

    /// A convolution of a map, one token for each place of its window.
    fn conv(&mut self, map: Self::Value, conv: &Conv2d<Self::Weight>) -> Self::Value;

    /// Flattened windows of a map, one token a window, channel-major inside (PyTorch's `unfold`).
    fn unfold(&mut self, map: Self::Value, windows: Windows) -> Self::Value;

    /// Means over windows of a map, `side` along both axes and as equal in size as can be (PyTorch's
    /// `adaptive_avg_pool2d`).
    fn pool(&mut self, map: Self::Value, side: usize) -> Self::Value;

    /// GELU of a 3 x 3 convolution of each channel of a map by itself, one zero around the map.
    fn depthwise_gelu(&mut self, map: Self::Value, conv: &Conv2d<Self::Weight>) -> Self::Value;

    /// The class token `[1, 1, dim]` before the tokens of each image, and the positions
    /// `[1, tokens + 1, dim]` added.
    fn embed(
        &mut self,
        tokens: Self::Value,
        class: &Self::Weight,
        position: &Self::Weight,
    ) -> Self::Value;

    /// The first token of each image, `[batch, dim]`.
    fn class_token(&mut self, x: Self::Value) -> Self::Value;

    /// The mean token of each image, `[batch, dim]`.
    fn mean_token(&mut self, x: Self::Value) -> Self::Value;

    /// Normalisation over the last dimension.
    fn layer_norm(&mut self, x: Self::Value, norm: &LayerNorm<Self::Weight>) -> Self::Value;

    /// `x W^T + b`.
    fn linear(&mut self, x: Self::Value, layer: &Linear<Self::Weight>) -> Self::Value;

    /// `residual + factor (x W^T + b)` with the factor of `branch`. If the residual is wider than the
    /// output, its last columns are used.
    fn linear_residual(
        &mut self,
        x: Self::Value,
        layer: &Linear<Self::Weight>,
        residual: Self::Value,
        branch: Option<Branch>,
    ) -> Self::Value;

    /// `residual + dropout(x)`. If the residual is wider than `x`, its last columns are used.
    fn dropout_residual(
        &mut self,
        x: Self::Value,
        residual: Self::Value,
        dropout: Dropout,
    ) -> Self::Value;

    /// GELU in its exact erf form.
    fn gelu(&mut self, x: Self::Value) -> Self::Value;

    /// `max(x, 0)`.
    fn relu(&mut self, x: Self::Value) -> Self::Value;

    /// Multi-head self-attention `softmax(q k^T * scaled_by^-0.5) v`; `qkv` is `[.., 3 * dim]`,
    /// ordered q, k, v and head-major inside each.
    fn attention(&mut self, qkv: Self::Value, heads: usize, scaled_by: usize) -> Self::Value;

    /// Attention of the tokens of `q` to those of `kv` (`[.., 2 * dim]`, keys before values), scaled
    /// by the width of a head.
    fn cross_attention(&mut self, q: Self::Value, kv: Self::Value, heads: usize) -> Self::Value;

    /// Attention by positive random features; `kqv` is `[.., 3 * dim]`: keys, queries, values.
    fn performer(&mut self, kqv: Self::Value, features: &Self::Weight) -> Self::Value;

    /// Offers the tokens after a block, for readers that listen; costs the others nothing.
    fn tap(&mut self, _name: fmt::Arguments, _tokens: &Self::Value) {}

    /// A linear layer that makes the queries of [`Self::cross_attention`].
    fn queries(
        &mut self,
        x: Self::Value,
        layer: &Linear<Self::Weight>,
        _heads: usize,
    ) -> Self::Value {
        self.linear(x, layer)
    }

    /// `gelu(x W^T + b)`.
    fn linear_gelu(&mut self, x: Self::Value, layer: &Linear<Self::Weight>) -> Self::Value {
        let x = self.linear(x, layer);
        self.gelu(x)
    }

    /// `x + factor attn(norm1(x))`, the first half of a block.
    fn attention_half(
        &mut self,
        x: Self::Value,
        block: &Block<Self::Weight>,
        branch: Option<Branch>,
    ) -> Self::Value {
        attention_by_layers(self, x, block, branch)
    }

    /// `x + factor fc2(gelu(fc1(norm(x))))`, the second half of a block.
    fn mlp_half(
        &mut self,
        x: Self::Value,
        norm: &LayerNorm<Self::Weight>,
        [fc1, fc2]: [&Linear<Self::Weight>; 2],
        branch: Option<Branch>,
    ) -> Self::Value {
        let normed = self.layer_norm(x.clone(), norm);
        let hidden = self.linear_gelu(normed, fc1);
        self.linear_residual(hidden, fc2, x, branch)
    }

    /// The norm of a convolution of a map, or of the images.
    fn patch_embed(
        &mut self,
        map: Option<Self::Value>,
        conv: &Conv2d<Self::Weight>,
        norm: &LayerNorm<Self::Weight>,
    ) -> Self::Value {
        let map = map.unwrap_or_else(|| self.pixels());
        let x = self.conv(map, conv);
        self.layer_norm(x, norm)
    }

    /// `x + factor proj(attention(q(norm1(x)), kv(keys)))`, the first half of a block on a map.
    fn reduced_attention_half(
        &mut self,
        x: Self::Value,
        attention: &ReducedAttention<Self::Weight>,
        branch: Option<Branch>,
    ) -> Self::Value {
        reduced_attention_by_layers(self, x, attention, branch)
    }

    /// `x + factor fc2(gelu(dwconv(fc1(norm(x)))))`, the second half of a block on a map.
    fn conv_mlp_half(
        &mut self,
        x: Self::Value,
        norm: &LayerNorm<Self::Weight>,
        mlp: &ConvMlp<Self::Weight>,
        branch: Option<Branch>,
    ) -> Self::Value {
        let normed = self.layer_norm(x.clone(), norm);
        let hidden = self.linear(normed, &mlp.fc1);
        let hidden = self.depthwise_gelu(hidden, &mlp.dwconv);
        self.linear_residual(hidden, &mlp.fc2, x, branch)
    }

    /// The class token after the last block, `[batch, dim]`: nothing else is read there, so the other
    /// tokens only need to be keys and values.
    fn last_block(
        &mut self,
        x: Self::Value,
        block: &Block<Self::Weight>,
        [attn, mlp]: [Option<Branch>; 2],
    ) -> Self::Value {
        let x = self.attention_half(x, block, attn);
        let x = self.mlp_half(x, &block.norm2, [&block.fc1, &block.fc2], mlp);
        self.class_token(x)
    }
}

/// [`Reader::attention_half`] layer by layer.
pub(super) fn attention_by_layers<R: Reader + ?Sized>(
    r: &mut R,
    x: R::Value,
    block: &Block<R::Weight>,
    branch: Option<Branch>,
) -> R::Value {
    let normed = r.layer_norm(x.clone(), &block.norm1);
    let qkv = r.linear(normed, &block.qkv);
    let attended = r.attention(qkv, block.num_heads, block.head_dim());
    r.linear_residual(attended, &block.proj, x, branch)
}

/// [`Reader::reduced_attention_half`] layer by layer.
pub(super) fn reduced_attention_by_layers<R: Reader + ?Sized>(
    r: &mut R,
    x: R::Value,
    attention: &ReducedAttention<R::Weight>,
    branch: Option<Branch>,
) -> R::Value {
    let ReducedAttention { norm1, q, kv, proj, reduction, num_heads } = attention;
    let normed = r.layer_norm(x.clone(), norm1);
    let q = r.queries(normed.clone(), q, *num_heads);
    let keys = match reduction {
        None => normed,
        Some((conv, norm)) => {
            let keys = r.conv(normed, conv);
            r.layer_norm(keys, norm)
        }
    };
    let kv = r.linear(keys, kv);
    let attended = r.cross_attention(q, kv, *num_heads);
    r.linear_residual(attended, proj, x, branch)
}

/// A residual branch, for stochastic depth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Branch {
    /// The block, from 0.
    pub block: usize,
    /// Blocks in all.
    pub depth: usize,
    /// Which of the block's branches.
    pub index: u32,
}

impl Branch {
    /// The two branches of a block.
    pub fn of_block(block: usize, depth: usize) -> [Option<Self>; 2] {
        [0, 1].map(|index| Some(Self { block, depth, index }))
    }
}

/// Dropout that a model is built with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability.
    pub rate: f64,
    /// Which of the model's dropouts, for its draws.
    pub layer: u32,
}

/// The side of a square map of `tokens`.
pub(super) fn side_of(tokens: usize) -> usize {
    let side = tokens.isqrt();
    debug_assert_eq!(side * side, tokens, "a square map");
    side
}
