//! The tokens-to-token module of T2T-ViT: pixels to tokens in three unfoldings, with a small
//! transformer after each of the first two (Yuan et al. 2021, section 3.1; recipe section 5.3).

use burn::module::Module;
use burn::tensor::Tensor;

use super::t2t_vit::{T2tVitSpec, TokenAttention};
use crate::graph::{Graph, Value};
use crate::nn::{DropPath, Frozen, Init, LayerNorm, Linear};
use crate::ops::{self, Windows};

const NORM_EPS: f64 = 1e-5;
/// Of the performer, in training, whatever the recipe says: fixed in the official code.
const DROPOUT: f64 = 0.1;
/// The unfoldings.
const WINDOWS: [Windows; 3] = [
    Windows { kernel: 7, stride: 4, padding: 2 },
    Windows { kernel: 3, stride: 2, padding: 1 },
    Windows { kernel: 3, stride: 2, padding: 1 },
];

/// Pixels to tokens.
#[derive(Module, Debug)]
pub(super) struct TokensToToken {
    attention1: TokenBlock,
    attention2: TokenBlock,
    project: Linear,
}

#[derive(Module, Debug)]
enum TokenBlock {
    Performer(Performer),
    Transformer(TokenTransformer),
}

/// Attention by random features. The values are the skip connection.
#[derive(Module, Debug)]
struct Performer {
    kqv: Linear,
    proj: Linear,
    norm1: LayerNorm,
    norm2: LayerNorm,
    mlp: (Linear, Gelu, Linear),
    /// The random features, `[features, token_dim]`.
    w: Frozen<2>,
    /// First of the two draws of dropout.
    dropout: u32,
}

/// Keeps its place among the layers of an MLP.
#[derive(Module, Debug)]
struct Gelu {}

/// Attention by softmax with one head. The values are the skip connection.
#[derive(Module, Debug)]
struct TokenTransformer {
    norm1: LayerNorm,
    attn: Attention,
    norm2: LayerNorm,
    mlp: Mlp,
}

#[derive(Module, Debug)]
struct Attention {
    qkv: Linear,
    proj: Linear,
}

#[derive(Module, Debug)]
struct Mlp {
    fc1: Linear,
    fc2: Linear,
}

/// Width of a token after each unfolding.
fn widths(spec: &T2tVitSpec) -> [usize; 3] {
    let channels = [3, spec.token_dim, spec.token_dim];
    std::array::from_fn(|i| channels[i] * WINDOWS[i].kernel.pow(2))
}

/// Tokens after each unfolding.
fn tokens(img_size: usize) -> [usize; 3] {
    let mut side = img_size;
    WINDOWS.map(|windows| {
        side = windows.count(side);
        side * side
    })
}

impl TokensToToken {
    /// Multiply-accumulates of one forward pass of one image.
    pub(super) fn macs(spec: &T2tVitSpec, img_size: usize) -> usize {
        let (widths, tokens, e) = (widths(spec), tokens(img_size), spec.token_dim);
        let block = |i: usize| {
            let attention = match spec.attention {
                // Features of q and k, their sums with v and 1, the sums with q.
                TokenAttention::Performer => features(e) * (4 * e + 1),
                TokenAttention::Transformer => 2 * tokens[i] * e,
            };
            tokens[i] * (3 * widths[i] * e + 3 * e * e + attention)
        };
        block(0) + block(1) + tokens[2] * widths[2] * spec.embed_dim
    }

    /// Values kept for the backward of one image: three times the unfolded width and about 20
    /// widths of a token, and the performer's features.
    pub(super) fn activations(spec: &T2tVitSpec, img_size: usize) -> usize {
        let (widths, tokens, e) = (widths(spec), tokens(img_size), spec.token_dim);
        let block = |i: usize| {
            let attention = match spec.attention {
                TokenAttention::Performer => 6 * features(e),
                TokenAttention::Transformer => 0,
            };
            tokens[i] * (3 * widths[i] + 20 * e + attention)
        };
        block(0) + block(1) + tokens[2] * widths[2]
    }

    /// Freshly initialised.
    pub(super) fn new(spec: &T2tVitSpec, init: &mut Init) -> Self {
        let (widths, e) = (widths(spec), spec.token_dim);
        let mut block = |i: usize| match spec.attention {
            TokenAttention::Performer => {
                TokenBlock::Performer(Performer::new([widths[i], e], 2 * i as u32, init))
            }
            TokenAttention::Transformer => {
                TokenBlock::Transformer(TokenTransformer::new([widths[i], e], init))
            }
        };
        let (attention1, attention2) = (block(0), block(1));
        Self { attention1, attention2, project: Linear::new(widths[2], spec.embed_dim, init) }
    }

    /// `[batch, 3, img_size, img_size]` to `[batch, tokens, embed_dim]`.
    pub(super) fn forward(&self, images: Tensor<4>, drop_path: &DropPath) -> Tensor<3> {
        let mut map = images.permute([0, 2, 3, 1]);
        for (windows, block) in WINDOWS.into_iter().zip([&self.attention1, &self.attention2]) {
            let unfolded = ops::unfold(map, windows);
            let [batch, side, _, width] = unfolded.dims();
            let x = unfolded.reshape([batch * side * side, width]);
            let x = match block {
                TokenBlock::Performer(performer) => performer.forward(x, batch, drop_path),
                TokenBlock::Transformer(transformer) => transformer.forward(x, batch),
            };
            let e = x.dims()[1];
            map = x.reshape([batch, side, side, e]);
        }
        let unfolded = ops::unfold(map, WINDOWS[2]);
        let [batch, side, _, width] = unfolded.dims();
        let x = self.project.forward(unfolded.reshape([batch * side * side, width]));
        let d = x.dims()[1];
        x.reshape([batch, side * side, d])
    }

    /// [`Self::forward`] in ONNX operators, for images of `img_size` pixels.
    pub(super) fn graph(&self, g: &mut Graph, images: &Value, img_size: usize) -> Value {
        let (mut map, mut channels, mut side) = (images.clone(), 3, img_size);
        for (windows, block) in WINDOWS.into_iter().zip([&self.attention1, &self.attention2]) {
            let x = g.unfold(&map, channels, windows);
            side = windows.count(side);
            let rows = match block {
                TokenBlock::Performer(performer) => performer.graph(g, &x, side * side),
                TokenBlock::Transformer(transformer) => transformer.graph(g, &x, side * side),
            };
            channels = match block {
                TokenBlock::Performer(performer) => performer.proj.weight.val().dims()[0],
                TokenBlock::Transformer(transformer) => {
                    transformer.attn.proj.weight.val().dims()[0]
                }
            };
            map = g.map(&rows, side, channels);
        }
        let x = g.unfold(&map, channels, WINDOWS[2]);
        let x = self.project.graph(g, &x);
        let d = self.project.weight.val().dims()[0];
        g.reshape(&x, &[-1, WINDOWS[2].count(side).pow(2) as i64, d as i64])
    }
}

/// Random features for keys and queries of width `dim`.
fn features(dim: usize) -> usize {
    dim / 2
}

impl Performer {
    fn new([width, e]: [usize; 2], dropout: u32, init: &mut Init) -> Self {
        let rows = features(e);
        Self {
            kqv: Linear::new(width, 3 * e, init),
            proj: Linear::new(e, e, init),
            norm1: LayerNorm::new(width, NORM_EPS, init),
            norm2: LayerNorm::new(e, NORM_EPS, init),
            mlp: (Linear::new(e, e, init), Gelu {}, Linear::new(e, e, init)),
            w: Frozen::new(init.orthogonal([rows, e], (rows as f32).sqrt())),
            dropout,
        }
    }

    /// `[batch * tokens, width]` to `[batch * tokens, token_dim]`.
    fn forward(&self, x: Tensor<2>, batch: usize, drop_path: &DropPath) -> Tensor<2> {
        let kqv = self.kqv.forward(self.norm1.forward(x));
        let [rows, e] = [kqv.dims()[0], kqv.dims()[1] / 3];
        let sequences = kqv.clone().reshape([batch, rows / batch, 3 * e]);
        let attended = ops::performer(sequences, self.w.val()).reshape([rows, e]);
        let dropout =
            |draw| drop_path.dropout([batch, rows / batch * e], DROPOUT, self.dropout + draw);
        // The values are the last third of each row.
        let x = ops::dropout_residual(self.proj.forward(attended), kqv, dropout(0));
        let hidden = self.mlp.0.forward_gelu(self.norm2.forward(x.clone()));
        ops::dropout_residual(self.mlp.2.forward(hidden), x, dropout(1))
    }

    fn graph(&self, g: &mut Graph, x: &Value, tokens: usize) -> Value {
        let e = self.proj.weight.val().dims()[0];
        let normed = self.norm1.graph(g, x);
        let kqv = self.kqv.graph(g, &normed);
        let [k, q, v] = [0, 1, 2].map(|i| g.columns(&kqv, i * e, (i + 1) * e));
        let attended = self.attend_graph(g, [&k, &q, &v], tokens);
        let projected = self.proj.graph(g, &attended);
        let x = g.add(&v, &projected);
        let normed = self.norm2.graph(g, &x);
        let hidden = self.mlp.0.graph(g, &normed);
        let hidden = g.gelu(&hidden);
        let out = self.mlp.2.graph(g, &hidden);
        g.add(&x, &out)
    }

    /// [`ops::performer`] in ONNX operators.
    fn attend_graph(&self, g: &mut Graph, [k, q, v]: [&Value; 3], tokens: usize) -> Value {
        let [rows, e] = self.w.val().dims();
        let (k, q) = (self.phi_graph(g, k), self.phi_graph(g, q));
        let [k, q] = [k, q].map(|x| g.reshape(&x, &[-1, tokens as i64, rows as i64]));
        let v = g.reshape(v, &[-1, tokens as i64, e as i64]);
        let total = g.sum(&k, 1);
        let shares = g.mul(&q, &total);
        let normaliser = g.sum(&shares, 2);
        let normaliser = g.offset(&normaliser, ops::performer::EPS);
        let k = g.transpose(&k, &[0, 2, 1]);
        let memory = g.matmul(&k, &v);
        let y = g.matmul(&q, &memory);
        let y = g.div(&y, &normaliser);
        g.reshape(&y, &[-1, e as i64])
    }

    /// Positive random features in ONNX operators.
    fn phi_graph(&self, g: &mut Graph, x: &Value) -> Value {
        let features = self.w.val().dims()[0];
        let square = g.mul(x, x);
        let sum = g.sum(&square, 1);
        let half_square = g.scale(&sum, 0.5);
        let w = self.w.graph(g);
        let projected = g.linear(x, &w, None);
        let exponent = g.sub(&projected, &half_square);
        let y = g.exp(&exponent);
        g.scale(&y, (features as f64).powf(-0.5))
    }
}

impl TokenTransformer {
    fn new([width, e]: [usize; 2], init: &mut Init) -> Self {
        Self {
            norm1: LayerNorm::new(width, NORM_EPS, init),
            attn: Attention {
                qkv: Linear::without_bias(width, 3 * e, init),
                proj: Linear::new(e, e, init),
            },
            norm2: LayerNorm::new(e, NORM_EPS, init),
            mlp: Mlp { fc1: Linear::new(e, e, init), fc2: Linear::new(e, e, init) },
        }
    }

    /// `[batch * tokens, width]` to `[batch * tokens, token_dim]`.
    fn forward(&self, x: Tensor<2>, batch: usize) -> Tensor<2> {
        let [rows, width] = x.dims();
        let qkv = self.attn.qkv.forward(self.norm1.forward(x));
        let e = qkv.dims()[1] / 3;
        let part = |i: usize, parts: usize| {
            qkv.clone().narrow(1, i * e, parts * e).reshape([batch, rows / batch, parts * e])
        };
        // The scores are scaled by the width of the input, not of the head.
        let q = part(0, 1) * (e as f64 / width as f64).sqrt();
        let attended = ops::cross_attention(q, part(1, 2), 1).reshape([rows, e]);
        let v = qkv.clone().narrow(1, 2 * e, e);
        let x = self.attn.proj.forward_residual(attended, v, None);
        let Mlp { fc1, fc2 } = &self.mlp;
        ops::mlp_block(x, self.norm2.norm(), fc1.layer(), fc2.layer(), None)
    }

    fn graph(&self, g: &mut Graph, x: &Value, tokens: usize) -> Value {
        let [e, width] = [&self.attn.proj, &self.attn.qkv].map(|l| l.weight.val().dims()[1]);
        let normed = self.norm1.graph(g, x);
        let qkv = self.attn.qkv.graph(g, &normed);
        let parts = g.split_heads(&qkv, [tokens, 3, 1], e);
        let scale = (width as f64).powf(-0.5);
        let attended = g.attention([&parts[0], &parts[1], &parts[2]], scale, e);
        let projected = self.attn.proj.graph(g, &attended);
        let v = g.columns(&qkv, 2 * e, 3 * e);
        let x = g.add(&v, &projected);
        let normed = self.norm2.graph(g, &x);
        let hidden = self.mlp.fc1.graph(g, &normed);
        let hidden = g.gelu(&hidden);
        let out = self.mlp.fc2.graph(g, &hidden);
        g.add(&x, &out)
    }
}
