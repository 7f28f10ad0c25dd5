//! Models of the sizes of tests/golden/{deit,backbones}.py, of every family, for the tests of the crate and
//! of tests/, which include this file.

use super::deit::DeitSpec;
use super::pvt_v2::PvtV2Spec;
use super::t2t_vit::{T2tVitSpec, TokenAttention};

pub const DEIT: DeitSpec = DeitSpec { embed_dim: 16, depth: 3, num_heads: 2, patch_size: 8 };
pub const PVT: PvtV2Spec = PvtV2Spec {
    embed_dims: [4, 8, 10, 16],
    depths: [1, 2, 1, 1],
    mlp_ratios: [8, 8, 4, 4],
    linear: false,
};
pub const PVT_LINEAR: PvtV2Spec = PvtV2Spec { linear: true, ..PVT };
pub const T2T: T2tVitSpec = T2tVitSpec {
    embed_dim: 16,
    depth: 2,
    num_heads: 2,
    mlp_ratio: 3,
    token_dim: 8,
    attention: TokenAttention::Performer,
};
pub const T2T_TRANSFORMER: T2tVitSpec =
    T2tVitSpec { attention: TokenAttention::Transformer, ..T2T };
