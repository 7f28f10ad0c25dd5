//! T2T-ViT: a vision transformer whose patches are re-structured three times, with overlap, before
//! they become tokens (Yuan et al. 2021; recipe section 5.3). Field names are the official keys.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::block::{Block, BlockSpec, class_token, class_token_graph};
use super::token_module::TokensToToken;
use super::{Backbone, Family, ImgSizes, Spec};
use crate::graph::{Graph, Value};
use crate::nn::{DropPath, Frozen, Init, LayerNorm};

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

    /// With the class token.
    fn tokens(&self, img_size: usize) -> usize {
        (img_size / PATCH).pow(2) + 1
    }
}

impl Family for T2tVitSpec {
    fn num_features(&self) -> usize {
        self.embed_dim
    }

    fn img_sizes(&self) -> ImgSizes {
        ImgSizes { smallest: PATCH, multiple_of: PATCH }
    }

    fn macs(&self, img_size: usize) -> u64 {
        let blocks = self.depth * self.block().macs(self.tokens(img_size));
        (TokensToToken::macs(self, img_size) + blocks) as u64
    }

    /// The pixels pass a layer norm first, whose weights need the gradient behind it.
    fn stem_macs(&self, _: usize) -> u64 {
        0
    }

    fn activations(&self, img_size: usize) -> usize {
        let blocks = self.depth * self.block().activations(self.tokens(img_size));
        TokensToToken::activations(self, img_size) + blocks
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

    fn build(&self, img_size: usize, init: &mut Init) -> Backbone {
        Backbone::T2tVit(T2tVit::new(self, img_size, init))
    }
}

/// The backbone: images to one feature vector each.
#[derive(Module, Debug)]
pub struct T2tVit {
    tokens_to_token: TokensToToken,
    cls_token: Param<Tensor<3>>,
    pos_embed: Frozen<3>,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

impl T2tVit {
    /// Freshly initialised for square images of `img_size` pixels.
    pub fn new(spec: &T2tVitSpec, img_size: usize, init: &mut Init) -> Self {
        let (d, tokens) = (spec.embed_dim, spec.tokens(img_size));
        Self {
            tokens_to_token: TokensToToken::new(spec, init),
            cls_token: init.normal([1, 1, d], INIT_STD),
            pos_embed: Frozen::new(init.given([1, tokens, d], || sinusoids(tokens, d))),
            blocks: (0..spec.depth).map(|_| Block::new(&spec.block(), init)).collect(),
            norm: LayerNorm::new(d, NORM_EPS, init),
        }
    }

    /// The class token after the last norm.
    ///
    /// `images`: `[batch, 3, img_size, img_size]`, normalised; returns `[batch, embed_dim]`.
    pub fn forward(&self, images: Tensor<4>, drop_path: &DropPath) -> Tensor<2> {
        let batch = images.dims()[0];
        let tokens = self.tokens_to_token.forward(images, drop_path);
        let class = self.cls_token.val().expand([batch as i64, -1, -1]);
        let x = Tensor::cat(vec![class, tokens], 1) + self.pos_embed.val();
        self.norm.forward(class_token(&self.blocks, x, drop_path))
    }

    /// [`Self::forward`] in ONNX operators, for images of `img_size` pixels.
    pub fn graph(&self, g: &mut Graph, images: &Value, img_size: usize) -> Value {
        let [_, tokens, d] = self.pos_embed.val().dims();
        let x = self.tokens_to_token.graph(g, images, img_size);
        let (class, position) = (g.weight(&self.cls_token), self.pos_embed.graph(g));
        let x = g.prepend(&class, &x, d);
        let x = g.add(&x, &position);
        let class = class_token_graph(&self.blocks, g, &x, [tokens, d]);
        self.norm.graph(g, &class)
    }
}

/// Sines and cosines of the position in the sequence (Vaswani et al. 2017), `[tokens, dim]`.
fn sinusoids(tokens: usize, dim: usize) -> Vec<f32> {
    let value = |i: usize| {
        let (position, j) = (i / dim, i % dim);
        let angle = position as f64 / 10_000f64.powf((j / 2 * 2) as f64 / dim as f64);
        if j.is_multiple_of(2) { angle.sin() as f32 } else { angle.cos() as f32 }
    };
    (0..tokens * dim).map(value).collect()
}
