//! DeiT, the plain vision transformer (Touvron et al. 2021; recipe section 5.1), without the
//! distillation token. Field names are timm's keys.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::block::{Block, BlockSpec, class_token, class_token_graph};
use super::{Backbone, Family, ImgSizes, Spec};
use crate::graph::{Graph, Value};
use crate::nn::{DropPath, Init, LayerNorm};
use crate::ops::Windows;

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
    Spec {
        timm_name: Some("deit_tiny_patch16_224"),
        ..Spec::new("deit_micro_patch8_96", &DeitSpec::new(128, 4, 4, 8))
    },
    Spec::new("deit_tiny_patch16_224", &DeitSpec::new(192, 12, 3, 16)),
    Spec::new("deit_small_patch16_224", &DeitSpec::new(384, 12, 6, 16)),
    Spec::new("deit_base_patch16_224", &DeitSpec::new(768, 12, 12, 16)),
];

impl DeitSpec {
    const fn new(embed_dim: usize, depth: usize, num_heads: usize, patch_size: usize) -> Self {
        Self { embed_dim, depth, num_heads, patch_size }
    }

    fn block(&self) -> BlockSpec {
        BlockSpec {
            dim: self.embed_dim,
            num_heads: self.num_heads,
            hidden: MLP_RATIO * self.embed_dim,
            qkv_bias: true,
            norm_eps: NORM_EPS,
        }
    }

    fn patches(&self, img_size: usize) -> usize {
        (img_size / self.patch_size).pow(2)
    }
}

impl Family for DeitSpec {
    fn num_features(&self) -> usize {
        self.embed_dim
    }

    fn img_sizes(&self) -> ImgSizes {
        ImgSizes { smallest: self.patch_size, multiple_of: self.patch_size }
    }

    fn macs(&self, img_size: usize) -> u64 {
        let blocks = self.depth * self.block().macs(self.patches(img_size) + 1);
        self.stem_macs(img_size) + blocks as u64
    }

    fn stem_macs(&self, img_size: usize) -> u64 {
        (self.patches(img_size) * 3 * self.patch_size.pow(2) * self.embed_dim) as u64
    }

    fn activations(&self, img_size: usize) -> usize {
        self.depth * self.block().activations(self.patches(img_size) + 1)
    }

    fn timm_args(&self, img_size: usize) -> serde_json::Value {
        serde_json::json!({
            "img_size": img_size,
            "patch_size": self.patch_size,
            "embed_dim": self.embed_dim,
            "depth": self.depth,
            "num_heads": self.num_heads,
        })
    }

    fn build(&self, img_size: usize, init: &mut Init) -> Backbone {
        Backbone::Deit(Deit::new(self, img_size, init))
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

impl Deit {
    /// Freshly initialised for square images of `img_size` pixels.
    pub fn new(spec: &DeitSpec, img_size: usize, init: &mut Init) -> Self {
        let d = spec.embed_dim;
        let tokens = spec.patches(img_size) + 1;
        Self {
            cls_token: init.normal([1, 1, d], INIT_STD),
            pos_embed: init.normal([1, tokens, d], INIT_STD),
            patch_embed: PatchEmbed { proj: PatchProjection::new(spec.patch_size, d, init) },
            blocks: (0..spec.depth).map(|_| Block::new(&spec.block(), init)).collect(),
            norm: LayerNorm::new(d, NORM_EPS, init),
        }
    }

    /// The class token after the last norm.
    ///
    /// `images`: `[batch, 3, img_size, img_size]`, normalised; returns `[batch, embed_dim]`.
    pub fn forward(&self, images: Tensor<4>, drop_path: &DropPath) -> Tensor<2> {
        let x = self.embed(images);
        self.norm.forward(class_token(&self.blocks, x, drop_path))
    }

    /// [`Self::forward`] in ONNX operators.
    pub fn graph(&self, g: &mut Graph, images: &Value) -> Value {
        let [_, tokens, d] = self.pos_embed.val().dims();
        let patches = self.patch_embed.proj.graph(g, images, [tokens - 1, d]);
        let (class, position) = (g.weight(&self.cls_token), g.weight(&self.pos_embed));
        let x = g.prepend(&class, &patches, d);
        let x = g.add(&x, &position);
        let class = class_token_graph(&self.blocks, g, &x, [tokens, d]);
        self.norm.graph(g, &class)
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

    /// [`Self::forward`] in ONNX operators.
    fn graph(&self, g: &mut Graph, images: &Value, [patches, d]: [usize; 2]) -> Value {
        let p = self.weight.val().dims()[2];
        let (weight, bias) = (g.weight(&self.weight), g.weight(&self.bias));
        let windows = Windows { kernel: p, stride: p, padding: 0 };
        let map = g.conv(images, &[&weight, &bias], windows, 1);
        let x = g.reshape(&map, &[-1, d as i64, patches as i64]);
        g.transpose(&x, &[0, 2, 1])
    }
}
