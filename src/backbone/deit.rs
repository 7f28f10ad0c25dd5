//! DeiT, the plain vision transformer (Touvron et al. 2021), without the distillation token.

use super::{Family, ImgSizes, Spec, Tell};
use crate::nn::{Block, BlockSpec, Branch, Conv2d, LayerNorm, Reader, Start};
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
}

impl Family for DeitSpec {
    fn num_features(&self) -> usize {
        self.embed_dim
    }

    fn img_sizes(&self) -> ImgSizes {
        ImgSizes { smallest: self.patch_size, multiple_of: self.patch_size }
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
}

impl Tell for DeitSpec {
    /// The class token after the last norm.
    fn tell<R: Reader>(&self, r: &mut R, img_size: usize) -> R::Value {
        let (d, p) = (self.embed_dim, self.patch_size);
        let tokens = (img_size / p).pow(2) + 1;
        let class = r.weight("cls_token", &[1, 1, d], Start::Normal(INIT_STD));
        let position = r.weight("pos_embed", &[1, tokens, d], Start::Normal(INIT_STD));
        let windows = Windows { kernel: p, stride: p, padding: 0 };
        let embed = Conv2d::left_alone(r, "patch_embed.proj", [3, d], windows);
        let patches = r.patches(&embed);
        let x = r.embed(patches, &class, &position);
        let x = blocks(r, x, &self.block(), self.depth);
        let norm = LayerNorm::new(r, "norm", d, NORM_EPS);
        r.layer_norm(x, &norm)
    }
}

/// The class token after `depth` blocks, `[batch, dim]`; of T2T-ViT too.
pub(super) fn blocks<R: Reader>(
    r: &mut R,
    mut x: R::Value,
    spec: &BlockSpec,
    depth: usize,
) -> R::Value {
    for i in 0..depth {
        let block = Block::new(r, &format!("blocks.{i}"), spec);
        let [attn, mlp] = Branch::of_block(i, depth);
        x = match i + 1 == depth {
            true => r.last_block(x, &block, [attn, mlp]),
            false => {
                let x = r.attention_half(x, &block, attn);
                r.mlp_half(x, &block.norm2, [&block.fc1, &block.fc2], mlp)
            }
        };
        r.tap(format_args!("blocks.{i}"), &x);
    }
    x
}
