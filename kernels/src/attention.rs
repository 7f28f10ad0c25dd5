//! Scaled dot-product attention (Vaswani et al., 2017, equation 1) of all heads of a batch, on the
//! output of the joint query-key-value projection as it lies.
//!
//! One head is small (its keys and values fit the first- or second-level cache), so heads are
//! taken one after the other, and long sequences in blocks of query rows whose scores fit the
//! second-level cache.

use crate::gemm::{Epilogue, Left, PackedB, Product, check_len};
use crate::simd::{Kernel, Level, Simd, exp};
use std::cell::RefCell;
use std::ops::Range;

/// Scores held at a time: 256 KiB.
const SCORE_BLOCK: usize = 64 * 1024;

/// Sizes of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Sequences.
    pub batch: usize,
    /// Tokens of a sequence.
    pub tokens: usize,
    /// Heads.
    pub heads: usize,
    /// Channels of one head.
    pub head_dim: usize,
    /// Factor of the scores before the softmax, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
}

impl AttentionShape {
    /// Channels of all heads together.
    fn dim(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Where part 0 (query), 1 (key) or 2 (value) of a head begins in `[batch, tokens, 3, heads,
    /// head_dim]`.
    fn part(&self, sequence: usize, part: usize, head: usize) -> usize {
        sequence * self.tokens * 3 * self.dim() + part * self.dim() + head * self.head_dim
    }

    /// Where a head begins in `[batch, tokens, heads * head_dim]`.
    fn head(&self, sequence: usize, head: usize) -> usize {
        sequence * self.tokens * self.dim() + head * self.head_dim
    }

    /// Query rows in blocks of equal height.
    fn row_blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let tokens = self.tokens;
        let blocks = (tokens * tokens).div_ceil(SCORE_BLOCK).max(1);
        (0..blocks).map(move |i| tokens * i / blocks..tokens * (i + 1) / blocks)
    }

    fn check(&self, qkv: &[f32], out: &[f32], probs: Option<usize>) {
        let values = self.batch * self.tokens * self.dim();
        check_len("qkv", qkv, 3 * values);
        check_len("the attention output", out, values);
        let expected = self.batch * self.heads * self.tokens * self.tokens;
        if let Some(len) = probs {
            assert!(len == expected, "the probabilities: {len} values where {expected} are needed");
        }
    }
}

/// Packed matrices and scores of one head, kept by each thread.
#[derive(Default)]
struct Scratch {
    first: PackedB,
    second: PackedB,
    scores: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// `out` `[batch, tokens, heads * head_dim]` = softmax(Q K^T scale) V for `qkv` `[batch, tokens, 3,
/// heads, head_dim]`. `probs` `[batch, heads, tokens, tokens]`, if given, keeps the softmax for
/// [`attention_backward`].
///
/// # Panics
/// If a slice has not the length that `shape` implies.
pub fn attention_forward(
    shape: &AttentionShape,
    qkv: &[f32],
    out: &mut [f32],
    probs: Option<&mut [f32]>,
) {
    attention_forward_at(Level::current(), shape, qkv, out, probs);
}

pub(crate) fn attention_forward_at(
    level: Level,
    shape: &AttentionShape,
    qkv: &[f32],
    out: &mut [f32],
    mut probs: Option<&mut [f32]>,
) {
    shape.check(qkv, out, probs.as_ref().map(|p| p.len()));
    let &AttentionShape { batch, tokens, heads, head_dim, scale } = shape;
    let (dim, stride) = (shape.dim(), 3 * shape.dim());
    SCRATCH.with_borrow_mut(|scratch| {
        let Scratch { first: keys, second: values, scores } = scratch;
        for (sequence, head) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
            let part = |i| &qkv[shape.part(sequence, i, head)..];
            keys.fill_transposed(level, part(1), stride, head_dim, tokens);
            values.fill(part(2), stride, tokens, head_dim);
            for rows in shape.row_blocks() {
                let p = match &mut probs {
                    Some(probs) => {
                        let first = (sequence * heads + head) * tokens + rows.start;
                        &mut probs[first * tokens..][..rows.len() * tokens]
                    }
                    None => block(scores, rows.len() * tokens),
                };
                let query = Left::rows(&part(0)[rows.start * stride..], stride);
                product(level, rows.len(), query, keys, p, tokens, Epilogue::Store);
                level.run(Softmax { scores: p, tokens, scale });
                let out = &mut out[shape.head(sequence, head) + rows.start * dim..];
                let p = Left::rows(p, tokens);
                product(level, rows.len(), p, values, out, dim, Epilogue::Store);
            }
        }
    });
}

/// `dqkv` (overwritten, laid out like `qkv`) from `dout`, the gradient of the output of
/// [`attention_forward`], which has left `probs`.
///
/// # Panics
/// If a slice has not the length that `shape` implies.
pub fn attention_backward(
    shape: &AttentionShape,
    dout: &[f32],
    qkv: &[f32],
    probs: &[f32],
    dqkv: &mut [f32],
) {
    attention_backward_at(Level::current(), shape, dout, qkv, probs, dqkv);
}

pub(crate) fn attention_backward_at(
    level: Level,
    shape: &AttentionShape,
    dout: &[f32],
    qkv: &[f32],
    probs: &[f32],
    dqkv: &mut [f32],
) {
    shape.check(qkv, dout, Some(probs.len()));
    check_len("dqkv", dqkv, qkv.len());
    SCRATCH.with_borrow_mut(|scratch| {
        for (sequence, head) in (0..shape.batch).flat_map(|b| (0..shape.heads).map(move |h| (b, h)))
        {
            let size = shape.tokens * shape.tokens;
            let backward = HeadBackward {
                level,
                shape,
                sequence,
                head,
                dout: &dout[shape.head(sequence, head)..],
                qkv,
                probs: &probs[(sequence * shape.heads + head) * size..][..size],
            };
            for rows in shape.row_blocks() {
                backward.rows(rows, scratch, dqkv);
            }
        }
    });
}

/// The backward pass of one head.
struct HeadBackward<'a> {
    level: Level,
    shape: &'a AttentionShape,
    sequence: usize,
    head: usize,
    dout: &'a [f32],
    qkv: &'a [f32],
    probs: &'a [f32],
}

impl HeadBackward<'_> {
    /// What a block of query rows contributes. With S the scores and P their softmax:
    /// dV = P^T dO, dP = dO V^T, dS = P (dP - rowsum(P dP)) scale, dQ = dS K, dK = dS^T Q.
    fn rows(&self, rows: Range<usize>, scratch: &mut Scratch, dqkv: &mut [f32]) {
        let &AttentionShape { tokens, head_dim, scale, .. } = self.shape;
        let (dim, stride) = (self.shape.dim(), 3 * self.shape.dim());
        let start = |part| self.shape.part(self.sequence, part, self.head);
        let multiply = |m, a, b: &PackedB, c: &mut [f32], c_stride, epilogue| {
            product(self.level, m, a, b, c, c_stride, epilogue);
        };
        // Keys and values receive from every block of rows.
        let sum = || {
            if rows.start == 0 { Epilogue::Store } else { Epilogue::Accumulate }
        };
        let Scratch { first: by_rows, second: by_tokens, scores } = scratch;
        let p = &self.probs[rows.start * tokens..rows.end * tokens];
        let dout = &self.dout[rows.start * dim..];
        let ds = block(scores, p.len());

        by_rows.fill(dout, dim, rows.len(), head_dim);
        let p_transposed = Left::transposed(p, tokens);
        multiply(tokens, p_transposed, by_rows, &mut dqkv[start(2)..], stride, sum());

        by_tokens.fill_transposed(self.level, &self.qkv[start(2)..], stride, head_dim, tokens);
        let dout = Left::rows(dout, dim);
        multiply(rows.len(), dout, by_tokens, ds, tokens, Epilogue::Store);
        self.level.run(SoftmaxBackward { probs: p, gradient: ds, tokens, scale });

        by_tokens.fill(&self.qkv[start(1)..], stride, tokens, head_dim);
        let ds_rows = Left::rows(ds, tokens);
        let query = start(0) + rows.start * stride;
        multiply(rows.len(), ds_rows, by_tokens, &mut dqkv[query..], stride, Epilogue::Store);

        by_rows.fill(&self.qkv[query..], stride, rows.len(), head_dim);
        let ds_transposed = Left::transposed(ds, tokens);
        multiply(tokens, ds_transposed, by_rows, &mut dqkv[start(1)..], stride, sum());
    }
}

/// C = A B for parts of larger matrices.
fn product(
    level: Level,
    m: usize,
    a: Left,
    b: &PackedB,
    c: &mut [f32],
    c_stride: usize,
    epilogue: Epilogue,
) {
    level.run(Product { m, a, b, c, c_stride, epilogue });
}

/// The first `len` values of a buffer that grows on demand.
fn block(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

/// Rows of `tokens` scores become softmax(scores * scale).
struct Softmax<'a> {
    scores: &'a mut [f32],
    tokens: usize,
    scale: f32,
}

impl Kernel for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let (lowest, zero) = (S::splat(f32::NEG_INFINITY), S::splat(0.0));
        let scale = S::splat(self.scale);
        for row in self.scores.chunks_exact_mut(self.tokens.max(1)) {
            let mut largest = lowest;
            for piece in S::pieces(row.len()) {
                let scaled = S::load(&row[piece.clone()]) * scale;
                largest = largest.max(scaled.first(piece.len(), lowest));
            }
            let shift = zero - S::splat(largest.largest());
            let mut sum = zero;
            for piece in S::pieces(row.len()) {
                let e = exp(S::load(&row[piece.clone()]).mul_add(scale, shift));
                sum = sum + e.first(piece.len(), zero);
                e.store(&mut row[piece]);
            }
            let factor = S::splat(1.0 / sum.sum());
            for piece in S::pieces(row.len()) {
                (S::load(&row[piece.clone()]) * factor).store(&mut row[piece]);
            }
        }
    }
}

/// The gradient of the probabilities becomes that of the scores before scaling.
struct SoftmaxBackward<'a> {
    probs: &'a [f32],
    gradient: &'a mut [f32],
    tokens: usize,
    scale: f32,
}

impl Kernel for SoftmaxBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let scale = S::splat(self.scale);
        let tokens = self.tokens.max(1);
        let rows = self.probs.chunks_exact(tokens).zip(self.gradient.chunks_exact_mut(tokens));
        for (p, d) in rows {
            let mut sum = S::splat(0.0);
            for piece in S::pieces(tokens) {
                sum = S::load(&p[piece.clone()]).mul_add(S::load(&d[piece]), sum);
            }
            let mean = S::splat(sum.sum());
            for piece in S::pieces(tokens) {
                let p = S::load(&p[piece.clone()]) * scale;
                (p * (S::load(&d[piece.clone()]) - mean)).store(&mut d[piece]);
            }
        }
    }
}

#[cfg(test)]
mod tests;
