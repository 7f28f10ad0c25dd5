//! PVTv2, a pyramid of four stages with spatial-reduction attention (Wang et al. 2022). Keys are
//! timm's.

use super::{Family, ImgSizes, Spec, Tell};
use crate::nn::{Branch, Conv2d, ConvMlp, LayerNorm, Linear, Reader, ReducedAttention};
use crate::ops::Windows;

const STAGES: usize = 4;
/// Epsilon of the norms in the blocks and at the end of each stage.
const NORM_EPS: f64 = 1e-6;
/// Epsilon of the norms in the patch embeddings and the spatial reduction: PyTorch's default.
const CONV_NORM_EPS: f64 = 1e-5;
const NUM_HEADS: [usize; STAGES] = [1, 2, 5, 8];
/// By how much the keys' side is smaller than the queries'.
const SR_RATIOS: [usize; STAGES] = [8, 4, 2, 1];
/// Side of the keys' map in linear spatial-reduction attention.
const POOL: usize = 7;
/// The windows of the first patch embedding: a patch is embedded with its neighbours' pixels.
const STEM: Windows = Windows { kernel: 7, stride: 4, padding: 3 };
const DOWNSAMPLE: Windows = Windows { kernel: 3, stride: 2, padding: 1 };
/// The windows of the MLP's convolution of each channel by itself.
const DEPTHWISE: Windows = Windows { kernel: 3, stride: 1, padding: 1 };

/// Sizes of one family member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PvtV2Spec {
    /// Widths of a token, by stage.
    pub embed_dims: [usize; STAGES],
    /// Blocks, by stage.
    pub depths: [usize; STAGES],
    /// Widths of the MLP in units of the token's, by stage.
    pub mlp_ratios: [usize; STAGES],
    /// Whether keys and values are pooled to 7 x 7 (the paper's linear attention).
    pub linear: bool,
}

const B0: PvtV2Spec = PvtV2Spec {
    embed_dims: [32, 64, 160, 256],
    depths: [2, 2, 2, 2],
    mlp_ratios: [8, 8, 4, 4],
    linear: false,
};
const B1: PvtV2Spec = PvtV2Spec { embed_dims: [64, 128, 320, 512], ..B0 };
const B2: PvtV2Spec = PvtV2Spec { depths: [3, 4, 6, 3], ..B1 };

/// The family. The first is the 0.8M model of IDMM's Fig. 3, each width of B0 halved.
pub const TABLE: &[Spec] = &[
    Spec {
        timm_name: Some("pvt_v2_b0"),
        ..Spec::new("pvt_v2_b0_small", &PvtV2Spec { embed_dims: [16, 32, 80, 128], ..B0 })
    },
    Spec::new("pvt_v2_b0", &B0),
    Spec::new("pvt_v2_b1", &B1),
    Spec::new("pvt_v2_b2", &B2),
    Spec::new("pvt_v2_b2_li", &PvtV2Spec { linear: true, ..B2 }),
    Spec::new("pvt_v2_b3", &PvtV2Spec { depths: [3, 4, 18, 3], ..B1 }),
    Spec::new("pvt_v2_b4", &PvtV2Spec { depths: [3, 8, 27, 3], ..B1 }),
    Spec::new("pvt_v2_b5", &PvtV2Spec { depths: [3, 6, 40, 3], mlp_ratios: [4; STAGES], ..B1 }),
];

/// Sizes of one stage.
#[derive(Clone, Copy)]
struct StageSpec {
    /// Width of the stage before, or of a pixel.
    input: usize,
    dim: usize,
    depth: usize,
    num_heads: usize,
    hidden: usize,
    sr_ratio: usize,
    linear: bool,
    /// Of the patch embedding.
    windows: Windows,
}

impl PvtV2Spec {
    fn stage(&self, index: usize) -> StageSpec {
        let dim = self.embed_dims[index];
        StageSpec {
            input: if index == 0 { 3 } else { self.embed_dims[index - 1] },
            dim,
            depth: self.depths[index],
            num_heads: NUM_HEADS[index],
            hidden: self.mlp_ratios[index] * dim,
            sr_ratio: SR_RATIOS[index],
            linear: self.linear,
            windows: if index == 0 { STEM } else { DOWNSAMPLE },
        }
    }
}

impl Family for PvtV2Spec {
    fn num_features(&self) -> usize {
        self.embed_dims[STAGES - 1]
    }

    /// The first stage needs as many tokens along a side as one key stands for.
    fn img_sizes(&self) -> ImgSizes {
        ImgSizes { smallest: STEM.stride * SR_RATIOS[0], multiple_of: 1 }
    }

    /// Any img-size will do, so it is none of them.
    fn timm_args(&self, _: usize) -> serde_json::Value {
        serde_json::json!({
            "embed_dims": self.embed_dims,
            "depths": self.depths,
            "num_heads": NUM_HEADS,
            "mlp_ratios": self.mlp_ratios,
            "sr_ratios": SR_RATIOS,
            "linear": self.linear,
        })
    }
}

impl Tell for PvtV2Spec {
    /// The mean token after the last norm.
    fn tell<R: Reader>(&self, r: &mut R, _: usize) -> R::Value {
        let (depth, mut first) = (self.depths.iter().sum(), 0);
        let mut x = patch_embed(r, None, "patch_embed", &self.stage(0));
        for index in 0..STAGES {
            let (spec, key) = (self.stage(index), format!("stages.{index}"));
            if index > 0 {
                x = patch_embed(r, Some(x), &format!("{key}.downsample"), &spec);
            }
            for i in 0..spec.depth {
                let branches = Branch::of_block(first + i, depth);
                x = block(r, x, &format!("{key}.blocks.{i}"), &spec, branches);
                r.tap(format_args!("{key}.blocks.{i}"), &x);
            }
            first += spec.depth;
            let norm = LayerNorm::new(r, &format!("{key}.norm"), spec.dim, NORM_EPS);
            x = r.layer_norm(x, &norm);
        }
        r.mean_token(x)
    }
}

/// A map, or else the images, to one token a window.
fn patch_embed<R: Reader>(
    r: &mut R,
    map: Option<R::Value>,
    key: &str,
    spec: &StageSpec,
) -> R::Value {
    let sizes = [spec.input, spec.dim];
    let proj = Conv2d::new(r, &format!("{key}.proj"), sizes, spec.windows, 1);
    let norm = LayerNorm::new(r, &format!("{key}.norm"), spec.dim, CONV_NORM_EPS);
    r.patch_embed(map, &proj, &norm)
}

/// `x + drop_path(attn(norm1(x)))`, then the same with the MLP.
fn block<R: Reader>(
    r: &mut R,
    x: R::Value,
    key: &str,
    spec: &StageSpec,
    [attn, mlp]: [Option<Branch>; 2],
) -> R::Value {
    let x = attention(r, x, key, spec, attn);
    let (d, hidden) = (spec.dim, spec.hidden);
    let key = |name: &str| format!("{key}.{name}");
    let norm = LayerNorm::new(r, &key("norm2"), d, NORM_EPS);
    let layers = ConvMlp {
        fc1: Linear::new(r, &key("mlp.fc1"), [d, hidden]),
        dwconv: Conv2d::new(r, &key("mlp.dwconv"), [hidden; 2], DEPTHWISE, hidden),
        fc2: Linear::new(r, &key("mlp.fc2"), [hidden, d]),
    };
    if !spec.linear {
        return r.conv_mlp_half(x, &norm, &layers, mlp);
    }
    let normed = r.layer_norm(x.clone(), &norm);
    let hidden = r.linear(normed, &layers.fc1);
    let hidden = r.relu(hidden);
    let hidden = r.depthwise_gelu(hidden, &layers.dwconv);
    r.linear_residual(hidden, &layers.fc2, x, mlp)
}

/// The first half of a block: keys and values are fewer than queries where the map is large.
fn attention<R: Reader>(
    r: &mut R,
    x: R::Value,
    key: &str,
    spec: &StageSpec,
    branch: Option<Branch>,
) -> R::Value {
    let d = spec.dim;
    let key = |name: &str| format!("{key}.{name}");
    let norm1 = LayerNorm::new(r, &key("norm1"), d, NORM_EPS);
    let q = Linear::new(r, &key("attn.q"), [d, d]);
    let kv = Linear::new(r, &key("attn.kv"), [d, 2 * d]);
    let proj = Linear::new(r, &key("attn.proj"), [d, d]);
    let kernel = if spec.linear { 1 } else { spec.sr_ratio };
    let windows = Windows { kernel, stride: kernel, padding: 0 };
    // What makes fewer keys; the last stage has none.
    let reduction = (spec.linear || spec.sr_ratio > 1).then(|| {
        let sr = Conv2d::new(r, &key("attn.sr"), [d; 2], windows, 1);
        (sr, LayerNorm::new(r, &key("attn.norm"), d, CONV_NORM_EPS))
    });
    let num_heads = spec.num_heads;
    let half = ReducedAttention { norm1, q, kv, proj, reduction, num_heads };
    match &half.reduction {
        Some(reduction) if spec.linear => linear_attention(r, x, &half, reduction, branch),
        _ => r.reduced_attention_half(x, &half, branch),
    }
}

/// The same with keys and values of a map that is pooled to a fixed side.
fn linear_attention<R: Reader>(
    r: &mut R,
    x: R::Value,
    half: &ReducedAttention<R::Weight>,
    (sr, norm): &(Conv2d<R::Weight>, LayerNorm<R::Weight>),
    branch: Option<Branch>,
) -> R::Value {
    let normed = r.layer_norm(x.clone(), &half.norm1);
    let q = r.queries(normed.clone(), &half.q, half.num_heads);
    let pooled = r.pool(normed, POOL);
    let keys = r.conv(pooled, sr);
    let keys = r.layer_norm(keys, norm);
    let keys = r.gelu(keys);
    let kv = r.linear(keys, &half.kv);
    let attended = r.cross_attention(q, kv, half.num_heads);
    r.linear_residual(attended, &half.proj, x, branch)
}
