//! The tokens-to-token module of T2T-ViT: pixels to tokens in three unfoldings, with a small
//! transformer after each of the first two (Yuan et al. 2021, section 3.1).

use super::t2t_vit::{T2tVitSpec, TokenAttention};
use crate::nn::{Dropout, LayerNorm, Linear, Reader, Start};
use crate::ops::Windows;

const NORM_EPS: f64 = 1e-5;
/// Dropout of the performer in training, fixed in the official code: no recipe changes it.
const DROPOUT: f64 = 0.1;
/// The unfoldings.
const WINDOWS: [Windows; 3] = [
    Windows { kernel: 7, stride: 4, padding: 2 },
    Windows { kernel: 3, stride: 2, padding: 1 },
    Windows { kernel: 3, stride: 2, padding: 1 },
];

/// Pixels to tokens of width `embed_dim`.
pub(super) fn tokens_to_token<R: Reader>(spec: &T2tVitSpec, r: &mut R) -> R::Value {
    let (mut map, mut channels) = (r.pixels(), 3);
    let [.., last] = WINDOWS;
    for (i, windows) in WINDOWS.into_iter().take(2).enumerate() {
        let key = format!("tokens_to_token.attention{}", i + 1);
        let sizes = [channels * windows.kernel.pow(2), spec.token_dim];
        let unfolded = r.unfold(map, windows);
        map = match spec.attention {
            TokenAttention::Performer => performer(r, unfolded, &key, sizes, 2 * i as u32),
            TokenAttention::Transformer => transformer(r, unfolded, &key, sizes),
        };
        channels = spec.token_dim;
    }
    let unfolded = r.unfold(map, last);
    let width = channels * last.kernel.pow(2);
    let project = Linear::new(r, "tokens_to_token.project", [width, spec.embed_dim]);
    r.linear(unfolded, &project)
}

/// Attention by random features, `[.., width]` to `[.., token_dim]`. The values are the skip
/// connection. `dropout` is the first of its two.
fn performer<R: Reader>(
    r: &mut R,
    x: R::Value,
    key: &str,
    [width, e]: [usize; 2],
    dropout: u32,
) -> R::Value {
    let key = |name: &str| format!("{key}.{name}");
    let kqv = Linear::new(r, &key("kqv"), [width, 3 * e]);
    let proj = Linear::new(r, &key("proj"), [e, e]);
    let norm1 = LayerNorm::new(r, &key("norm1"), width, NORM_EPS);
    let norm2 = LayerNorm::new(r, &key("norm2"), e, NORM_EPS);
    let fc1 = Linear::new(r, &key("mlp.0"), [e, e]);
    let fc2 = Linear::new(r, &key("mlp.2"), [e, e]);
    let features = e / 2;
    let start = Start::Orthogonal((features as f32).sqrt());
    let features = r.frozen(&key("w"), &[features, e], start);
    let dropout = |draw| Dropout { rate: DROPOUT, layer: dropout + draw };

    let normed = r.layer_norm(x, &norm1);
    let kqv = r.linear(normed, &kqv);
    let attended = r.performer(kqv.clone(), &features);
    let projected = r.linear(attended, &proj);
    // The values are the last third of each row.
    let x = r.dropout_residual(projected, kqv, dropout(0));
    let normed = r.layer_norm(x.clone(), &norm2);
    let hidden = r.linear_gelu(normed, &fc1);
    let out = r.linear(hidden, &fc2);
    r.dropout_residual(out, x, dropout(1))
}

/// Attention by softmax with one head, `[.., width]` to `[.., token_dim]`. The values are the skip
/// connection.
fn transformer<R: Reader>(r: &mut R, x: R::Value, key: &str, [width, e]: [usize; 2]) -> R::Value {
    let key = |name: &str| format!("{key}.{name}");
    let norm1 = LayerNorm::new(r, &key("norm1"), width, NORM_EPS);
    let qkv = Linear::without_bias(r, &key("attn.qkv"), [width, 3 * e]);
    let proj = Linear::new(r, &key("attn.proj"), [e, e]);
    let norm2 = LayerNorm::new(r, &key("norm2"), e, NORM_EPS);
    let fc1 = Linear::new(r, &key("mlp.fc1"), [e, e]);
    let fc2 = Linear::new(r, &key("mlp.fc2"), [e, e]);

    let normed = r.layer_norm(x, &norm1);
    let qkv = r.linear(normed, &qkv);
    // The scores are scaled by the width of the input, not of the head.
    let attended = r.attention(qkv.clone(), 1, width);
    let x = r.linear_residual(attended, &proj, qkv, None);
    r.mlp_half(x, &norm2, [&fc1, &fc2], None)
}
