//! T2T-ViT: a vision transformer whose patches are re-structured three times, with overlap, before
//! they become tokens (Yuan et al. 2021). Keys are the official ones.

use super::deit::blocks;
use super::token_module::tokens_to_token;
use super::{Family, ImgSizes, Spec, Tell};
use crate::nn::{BlockSpec, LayerNorm, Reader, Start};

const NORM_EPS: f64 = 1e-5;
const INIT_STD: f32 = 0.02;
/// Pixels along the side of a token at the end.
const PATCH: usize = 16;

/// Sizes of one family member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct T2tVitSpec {
    /// Width of a token.
    pub embed_dim: usize,
    /// Blocks.
    pub depth: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Width of the MLP in units of the token's.
    pub mlp_ratio: usize,
    /// Width of a token while patches are re-structured.
    pub token_dim: usize,
    /// The attention of the token module.
    pub attention: TokenAttention,
}

/// How tokens attend to each other while patches are re-structured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenAttention {
    /// By positive random features, linear in the number of tokens (Choromanski et al. 2021).
    Performer,
    /// By softmax.
    Transformer,
}
use TokenAttention::{Performer, Transformer};

/// The family.
pub const TABLE: &[Spec] = &[
    official("t2t_vit_7", &T2tVitSpec::new([256, 7, 4, 2], Performer)),
    official("t2t_vit_10", &T2tVitSpec::new([256, 10, 4, 2], Performer)),
    official("t2t_vit_12", &T2tVitSpec::new([256, 12, 4, 2], Performer)),
    official("t2t_vit_14", &T2tVitSpec::new([384, 14, 6, 3], Performer)),
    official("t2t_vit_19", &T2tVitSpec::new([448, 19, 7, 3], Performer)),
    official("t2t_vit_24", &T2tVitSpec::new([512, 24, 8, 3], Performer)),
    official("t2t_vit_t_14", &T2tVitSpec::new([384, 14, 6, 3], Transformer)),
    official("t2t_vit_t_19", &T2tVitSpec::new([448, 19, 7, 3], Transformer)),
    official("t2t_vit_t_24", &T2tVitSpec::new([512, 24, 8, 3], Transformer)),
];

/// A model that timm lacks.
const fn official(name: &'static str, family: &'static T2tVitSpec) -> Spec {
    Spec { name, timm_name: None, family }
}

impl T2tVitSpec {
    /// `sizes`: embed_dim, depth, num_heads, mlp_ratio.
    const fn new(sizes: [usize; 4], attention: TokenAttention) -> Self {
        let [embed_dim, depth, num_heads, mlp_ratio] = sizes;
        Self { embed_dim, depth, num_heads, mlp_ratio, token_dim: 64, attention }
    }

    fn block(&self) -> BlockSpec {
        BlockSpec {
            dim: self.embed_dim,
            num_heads: self.num_heads,
            hidden: self.mlp_ratio * self.embed_dim,
            qkv_bias: false,
            norm_eps: NORM_EPS,
        }
    }
}

impl Family for T2tVitSpec {
    fn num_features(&self) -> usize {
        self.embed_dim
    }

    fn img_sizes(&self) -> ImgSizes {
        ImgSizes { smallest: PATCH, multiple_of: PATCH }
    }

    /// timm has no such model, so these describe ours.
    fn timm_args(&self, img_size: usize) -> serde_json::Value {
        serde_json::json!({
            "img_size": img_size,
            "embed_dim": self.embed_dim,
            "depth": self.depth,
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
        })
    }
}

impl Tell for T2tVitSpec {
    /// The class token after the last norm.
    fn tell<R: Reader>(&self, r: &mut R, img_size: usize) -> R::Value {
        let (d, tokens) = (self.embed_dim, (img_size / PATCH).pow(2) + 1);
        let x = tokens_to_token(self, r);
        let class = r.weight("cls_token", &[1, 1, d], Start::Normal(INIT_STD));
        let position = r.frozen("pos_embed", &[1, tokens, d], Start::Sinusoids);
        let x = r.embed(x, &class, &position);
        let x = blocks(r, x, &self.block(), self.depth);
        let norm = LayerNorm::new(r, "norm", d, NORM_EPS);
        r.layer_norm(x, &norm)
    }
}
