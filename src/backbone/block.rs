//! The pre-norm transformer block of DeiT and T2T-ViT (Dosovitskiy et al. 2021).

use burn::module::Module;
use burn::tensor::Tensor;

use crate::graph::{Graph, Value};
use crate::nn::{DropPath, Init, LayerNorm, Linear};
use crate::ops;

/// Sizes of a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockSpec {
    /// Width of a token.
    pub(super) dim: usize,
    /// Attention heads.
    pub(super) num_heads: usize,
    /// Width inside the MLP.
    pub(super) hidden: usize,
    /// Whether queries, keys and values have a bias.
    pub(super) qkv_bias: bool,
    /// Of the layer norms.
    pub(super) norm_eps: f64,
}

impl BlockSpec {
    /// Multiply-accumulates for a sequence of `tokens`.
    pub(super) fn macs(&self, tokens: usize) -> usize {
        tokens * self.dim * (4 * self.dim + 2 * self.hidden) + 2 * tokens * tokens * self.dim
    }

    /// Values kept for the backward of a sequence of `tokens`: of each token 9 widths and twice the
    /// MLP's.
    pub(super) fn activations(&self, tokens: usize) -> usize {
        tokens * (9 * self.dim + 2 * self.hidden)
    }
}

/// A block. Field names are timm's keys.
#[derive(Module, Debug)]
pub(super) struct Block {
    norm1: LayerNorm,
    attn: Attention,
    norm2: LayerNorm,
    mlp: Mlp,
}

#[derive(Module, Debug)]
struct Attention {
    qkv: Linear,
    proj: Linear,
    num_heads: usize,
}

#[derive(Module, Debug)]
struct Mlp {
    fc1: Linear,
    fc2: Linear,
}

/// Where a block is, for [`DropPath`].
#[derive(Clone, Copy)]
struct Place {
    batch: usize,
    block: usize,
    depth: usize,
}

/// The class token after `blocks`, `[batch, dim]`.
///
/// `x`: `[batch, tokens, dim]`, the class token first.
pub(super) fn class_token(blocks: &[Block], x: Tensor<3>, drop_path: &DropPath) -> Tensor<2> {
    let [batch, tokens, d] = x.dims();
    let mut x = x.reshape([batch * tokens, d]);
    let depth = blocks.len();
    for (i, block) in blocks.iter().enumerate() {
        let place = Place { batch, block: i, depth };
        x = match i + 1 == depth {
            false => block.forward(x, place, drop_path),
            true => block.forward_class(x, place, drop_path),
        };
    }
    x
}

/// [`class_token`] in ONNX operators; `x`: `[batch, tokens, dim]`.
pub(super) fn class_token_graph(
    blocks: &[Block],
    g: &mut Graph,
    x: &Value,
    [tokens, dim]: [usize; 2],
) -> Value {
    let rows = g.reshape(x, &[-1, dim as i64]);
    let rows = blocks.iter().fold(rows, |x, block| block.graph(g, &x, [tokens, dim]));
    let x = g.reshape(&rows, &[-1, tokens as i64, dim as i64]);
    g.entry(&x, 1, 0)
}

impl Block {
    pub(super) fn new(spec: &BlockSpec, init: &mut Init) -> Self {
        let d = spec.dim;
        let qkv = match spec.qkv_bias {
            true => Linear::new(d, 3 * d, init),
            false => Linear::without_bias(d, 3 * d, init),
        };
        Self {
            norm1: LayerNorm::new(d, spec.norm_eps, init),
            attn: Attention { qkv, proj: Linear::new(d, d, init), num_heads: spec.num_heads },
            norm2: LayerNorm::new(d, spec.norm_eps, init),
            mlp: Mlp {
                fc1: Linear::new(d, spec.hidden, init),
                fc2: Linear::new(spec.hidden, d, init),
            },
        }
    }

    /// `x + drop_path(attn(norm1(x)))`, then the same with the MLP; `[batch * tokens, dim]`.
    fn forward(&self, x: Tensor<2>, place: Place, drop_path: &DropPath) -> Tensor<2> {
        let factors = |branch| {
            let rows = [place.batch, x.dims()[0] / place.batch];
            drop_path.factors(rows, [place.block, place.depth], branch)
        };
        let [attn, mlp] = [factors(0), factors(1)];
        let Attention { qkv, proj, num_heads } = &self.attn;
        let (qkv, proj, sizes) = (qkv.layer(), proj.layer(), [place.batch, *num_heads]);
        let x = ops::attention_block(x, self.norm1.norm(), qkv, proj, sizes, attn);
        self.mlp.forward(x, &self.norm2, mlp)
    }

    /// [`Self::forward`] in ONNX operators.
    fn graph(&self, g: &mut Graph, x: &Value, sizes: [usize; 2]) -> Value {
        let normed = self.norm1.graph(g, x);
        let attended = self.attn.graph(g, &normed, sizes);
        let x = g.add(x, &attended);
        let normed = self.norm2.graph(g, &x);
        let hidden = self.mlp.fc1.graph(g, &normed);
        let hidden = g.gelu(&hidden);
        let out = self.mlp.fc2.graph(g, &hidden);
        g.add(&x, &out)
    }

    /// [`Self::forward`] for the class tokens alone, `[batch, dim]`: after the last block
    /// nothing else is read, so the other tokens only need to be keys and values.
    fn forward_class(&self, x: Tensor<2>, place: Place, drop_path: &DropPath) -> Tensor<2> {
        let batch = place.batch;
        let [rows, d] = x.dims();
        let class = |x: &Tensor<2>| {
            x.clone().reshape([batch, rows / batch, d]).narrow(1, 0, 1).reshape([batch, d])
        };
        let normed = self.norm1.forward(x.clone());
        let attended = self.attn.forward_class(class(&normed), normed, batch);
        let [attn, mlp] =
            [0, 1].map(|branch| drop_path.factors([batch, 1], [place.block, place.depth], branch));
        let x = self.attn.proj.forward_residual(attended, class(&x), attn);
        self.mlp.forward(x, &self.norm2, mlp)
    }
}

impl Mlp {
    /// The second half of the block, `[rows, dim]`.
    fn forward(&self, x: Tensor<2>, norm: &LayerNorm, factors: Option<Vec<f32>>) -> Tensor<2> {
        ops::mlp_block(x, norm.norm(), self.fc1.layer(), self.fc2.layer(), factors)
    }
}

impl Attention {
    /// With the output projection, in ONNX operators.
    fn graph(&self, g: &mut Graph, x: &Value, [tokens, dim]: [usize; 2]) -> Value {
        let qkv = self.qkv.graph(g, x);
        let parts = g.split_heads(&qkv, [tokens, 3, self.num_heads], dim);
        let scale = ((dim / self.num_heads) as f64).powf(-0.5);
        let attended = g.attention([&parts[0], &parts[1], &parts[2]], scale, dim);
        self.proj.graph(g, &attended)
    }

    /// Up to the output projection, with the class tokens `[batch, dim]` alone as queries.
    fn forward_class(&self, class: Tensor<2>, x: Tensor<2>, batch: usize) -> Tensor<2> {
        let [rows, d] = x.dims();
        let q = self.qkv.forward_part(class, 0..d).reshape([batch, 1, d]);
        let kv = self.qkv.forward_part(x, d..3 * d).reshape([batch, rows / batch, 2 * d]);
        ops::cross_attention(q, kv, self.num_heads).reshape([batch, d])
    }
}
