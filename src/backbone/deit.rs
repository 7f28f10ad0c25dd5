//! DeiT, the plain vision transformer (Touvron et al. 2021; recipe section 5.1), without the
//! distillation token. Field names are timm's keys.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::Spec;
use crate::nn::{DropPath, Init, LayerNorm, Linear};

const NORM_EPS: f64 = 1e-6;
const MLP_RATIO: usize = 4;
const INIT_STD: f32 = 0.02;

/// Sizes of one family member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeitSpec {
    /// Width of a token.
    pub embed_dim: usize,
    /// Blocks.
    pub depth: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
}

/// The family. The first is ours, for sets of a few hundred small images: `fewvit demo`.
pub const TABLE: &[Spec] = &[
    Spec::deit("deit_micro_patch8_96", [128, 4, 4, 8]),
    Spec::deit("deit_tiny_patch16_224", [192, 12, 3, 16]),
    Spec::deit("deit_small_patch16_224", [384, 12, 6, 16]),
    Spec::deit("deit_base_patch16_224", [768, 12, 12, 16]),
];

impl DeitSpec {
    /// Multiply-accumulates of one forward pass of one image (recipe section 5.6).
    pub fn macs(&self, img_size: usize) -> u64 {
        let patches = (img_size / self.patch_size).pow(2);
        let (tokens, d) = (patches + 1, self.embed_dim);
        let block = tokens * d * d * (4 + 2 * MLP_RATIO) + 2 * tokens * tokens * d;
        (patches * 3 * self.patch_size.pow(2) * d + self.depth * block) as u64
    }
}

/// The backbone: images to one feature vector each.
#[derive(Module, Debug)]
pub struct Deit {
    cls_token: Param<Tensor<3>>,
    pos_embed: Param<Tensor<3>>,
    patch_embed: PatchEmbed,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

#[derive(Module, Debug)]
struct PatchEmbed {
    proj: PatchProjection,
}

/// A convolution whose stride is its kernel: a linear layer on flattened patches.
#[derive(Module, Debug)]
struct PatchProjection {
    weight: Param<Tensor<4>>,
    bias: Param<Tensor<1>>,
}

#[derive(Module, Debug)]
struct Block {
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

impl Deit {
    /// Freshly initialised for square images of `img_size` pixels.
    pub fn new(spec: &DeitSpec, img_size: usize, init: &mut Init) -> Self {
        let d = spec.embed_dim;
        let tokens = (img_size / spec.patch_size).pow(2) + 1;
        Self {
            cls_token: init.normal([1, 1, d], INIT_STD),
            pos_embed: init.normal([1, tokens, d], INIT_STD),
            patch_embed: PatchEmbed { proj: PatchProjection::new(spec.patch_size, d, init) },
            blocks: (0..spec.depth).map(|_| Block::new(spec, init)).collect(),
            norm: LayerNorm::new(d, NORM_EPS, init),
        }
    }

    /// The class token after the last norm.
    ///
    /// `images`: `[batch, 3, img_size, img_size]`, normalised; returns `[batch, embed_dim]`.
    pub fn forward(&self, images: Tensor<4>, drop_path: &DropPath) -> Tensor<2> {
        let mut x = self.embed(images);
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(x, (i, self.blocks.len()), drop_path);
        }
        let [batch, _, d] = x.dims();
        self.norm.forward(x.narrow(1, 0, 1).reshape([batch, d]))
    }

    /// Class token and patch tokens with their positions, `[batch, tokens, embed_dim]`.
    fn embed(&self, images: Tensor<4>) -> Tensor<3> {
        let batch = images.dims()[0];
        let patches = self.patch_embed.proj.forward(images);
        let class = self.cls_token.val().expand([batch as i64, -1, -1]);
        Tensor::cat(vec![class, patches], 1) + self.pos_embed.val()
    }
}

impl PatchProjection {
    /// The framework default of a convolution: uniform in +-1/sqrt(fan_in), bias too.
    fn new(patch_size: usize, embed_dim: usize, init: &mut Init) -> Self {
        let bound = ((3 * patch_size * patch_size) as f32).powf(-0.5);
        Self {
            weight: init.uniform([embed_dim, 3, patch_size, patch_size], bound),
            bias: init.uniform([embed_dim], bound),
        }
    }

    /// `[batch, 3, side, side]` to `[batch, patches, embed_dim]`, patches row by row.
    fn forward(&self, images: Tensor<4>) -> Tensor<3> {
        let [batch, channels, side, _] = images.dims();
        let weight = self.weight.val();
        let [d, _, p, _] = weight.dims();
        let grid = side / p;
        let patches = images
            .reshape([batch, channels, grid, p, grid, p])
            .permute([0, 2, 4, 1, 3, 5])
            .reshape([batch * grid * grid, channels * p * p]);
        crate::ops::linear(patches, weight.reshape([d, channels * p * p]), self.bias.val())
            .reshape([batch, grid * grid, d])
    }
}

impl Block {
    fn new(spec: &DeitSpec, init: &mut Init) -> Self {
        let d = spec.embed_dim;
        Self {
            norm1: LayerNorm::new(d, NORM_EPS, init),
            attn: Attention {
                qkv: Linear::new(d, 3 * d, init),
                proj: Linear::new(d, d, init),
                num_heads: spec.num_heads,
            },
            norm2: LayerNorm::new(d, NORM_EPS, init),
            mlp: Mlp {
                fc1: Linear::new(d, MLP_RATIO * d, init),
                fc2: Linear::new(MLP_RATIO * d, d, init),
            },
        }
    }

    /// `x + drop_path(attn(norm1(x)))`, then the same with the MLP; `[batch, tokens, embed_dim]`.
    /// `position` is this block's index and the depth.
    fn forward(&self, x: Tensor<3>, position: (usize, usize), drop_path: &DropPath) -> Tensor<3> {
        let [batch, tokens, d] = x.dims();
        let (block, depth) = position;
        let dropped = |branch: Tensor<2>, index: u32| {
            let branch = branch.reshape([batch, tokens, d]);
            match drop_path.factors(batch, block, depth, index, &branch.device()) {
                Some(factors) => branch * factors,
                None => branch,
            }
        };
        let rows = |x: &Tensor<3>| x.clone().reshape([batch * tokens, d]);
        let attended = self.attn.forward(self.norm1.forward(rows(&x)), batch);
        let x = x + dropped(attended, 0);
        let mlp = self.mlp.forward(self.norm2.forward(rows(&x)));
        x + dropped(mlp, 1)
    }
}

impl Attention {
    fn forward(&self, x: Tensor<2>, batch: usize) -> Tensor<2> {
        let [rows, d] = x.dims();
        let qkv = self.qkv.forward(x).reshape([batch, rows / batch, 3 * d]);
        self.proj.forward(crate::ops::attention(qkv, self.num_heads).reshape([rows, d]))
    }
}

impl Mlp {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.fc2.forward(self.fc1.forward_gelu(x))
    }
}
