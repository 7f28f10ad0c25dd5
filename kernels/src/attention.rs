//! Scaled dot-product attention (Vaswani et al., 2017, equation 1) of all heads of a batch, on the
//! output of the query, key and value projections as it lies.
//!
//! One head is small (its keys and values fit the first- or second-level cache), so heads are
//! taken one after the other, and long sequences in blocks of query rows whose scores fit the
//! second-level cache.

use crate::check::check_len;
use crate::gemm::{Epilogue, Left, PackedB, Precision, block, product};
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
    /// Tokens of a sequence that ask.
    pub queries: usize,
    /// Tokens of a sequence that answer.
    pub keys: usize,
    /// Heads.
    pub heads: usize,
    /// Channels of one head.
    pub head_dim: usize,
    /// Factor of the scores before the softmax, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Of the products; the softmax is f32.
    pub precision: Precision,
}

/// Queries, keys and values, or their gradients: where they lie.
#[derive(Clone, Copy, Debug)]
pub enum Qkv<T> {
    /// Of one projection, as many queries as keys: `[batch, tokens, 3, heads, head_dim]`.
    Joint(T),
    /// Of two: `q` `[batch, queries, heads, head_dim]`, `kv` `[batch, keys, 2, heads, head_dim]`.
    Split {
        /// Queries.
        q: T,
        /// Keys and values.
        kv: T,
    },
}

/// One of three.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Query,
    Key,
    Value,
}

impl<T> Qkv<T> {
    /// Parts side by side in one row where `part` lies, and its place among them.
    fn place(&self, part: Part) -> (usize, usize) {
        match self {
            Self::Joint(_) => (3, part as usize),
            Self::Split { .. } if part == Part::Query => (1, 0),
            Self::Split { .. } => (2, part as usize - 1),
        }
    }

    /// Distance between two tokens of `part`.
    fn stride(&self, shape: &AttentionShape, part: Part) -> usize {
        self.place(part).0 * shape.dim()
    }

    /// Where `part` of a head begins.
    fn start(&self, shape: &AttentionShape, part: Part, sequence: usize, head: usize) -> usize {
        let (parts, index) = self.place(part);
        let tokens = if part == Part::Query { shape.queries } else { shape.keys };
        let dim = shape.dim();
        sequence * tokens * parts * dim + index * dim + head * shape.head_dim
    }
}

impl<T: std::ops::Deref<Target = [f32]>> Qkv<T> {
    /// The values from where `part` of a head begins, and the distance between two tokens.
    fn part(&self, s: &AttentionShape, part: Part, head: (usize, usize)) -> (&[f32], usize) {
        let buffer = match self {
            Self::Split { q, .. } if part == Part::Query => q,
            Self::Joint(all) | Self::Split { kv: all, .. } => all,
        };
        (&buffer[self.start(s, part, head.0, head.1)..], self.stride(s, part))
    }

    fn check(&self, s: &AttentionShape) {
        let values = s.batch * s.dim();
        match self {
            Self::Joint(all) => {
                assert_eq!(s.queries, s.keys, "of one projection, as many queries as keys");
                check_len("qkv", all, 3 * values * s.keys);
            }
            Self::Split { q, kv } => {
                check_len("q", q, values * s.queries);
                check_len("kv", kv, 2 * values * s.keys);
            }
        }
    }
}

impl Qkv<&mut [f32]> {
    /// As [`Self::part`], to write to.
    fn part_mut(
        &mut self,
        s: &AttentionShape,
        part: Part,
        head: (usize, usize),
    ) -> (&mut [f32], usize) {
        let (start, stride) = (self.start(s, part, head.0, head.1), self.stride(s, part));
        let buffer = match self {
            Self::Split { q, .. } if part == Part::Query => q,
            Self::Joint(all) | Self::Split { kv: all, .. } => all,
        };
        (&mut buffer[start..], stride)
    }
}

impl AttentionShape {
    /// Channels of all heads together.
    fn dim(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Where a head begins in `[batch, queries, heads * head_dim]`.
    fn out(&self, (sequence, head): (usize, usize)) -> usize {
        sequence * self.queries * self.dim() + head * self.head_dim
    }

    /// Where the probabilities of a head begin.
    fn probs(&self, (sequence, head): (usize, usize)) -> usize {
        (sequence * self.heads + head) * self.queries * self.keys
    }

    /// Sequence and head of all heads.
    fn all_heads(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let heads = self.heads;
        (0..self.batch).flat_map(move |sequence| (0..heads).map(move |head| (sequence, head)))
    }

    /// Query rows in blocks of equal height.
    fn row_blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let queries = self.queries;
        let blocks = (queries * self.keys).div_ceil(SCORE_BLOCK).max(1);
        (0..blocks).map(move |i| queries * i / blocks..queries * (i + 1) / blocks)
    }

    fn check(&self, out: &[f32], probs: Option<usize>) {
        check_len("the attention output", out, self.batch * self.queries * self.dim());
        let expected = self.batch * self.heads * self.queries * self.keys;
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

/// `out` `[batch, queries, heads * head_dim]` = softmax(Q K^T scale) V. `probs` `[batch, heads,
/// queries, keys]`, if given, keeps the softmax for [`attention_backward`].
///
/// # Panics
/// If a slice has not the length that `shape` implies.
pub fn attention_forward(
    shape: &AttentionShape,
    qkv: Qkv<&[f32]>,
    out: &mut [f32],
    probs: Option<&mut [f32]>,
) {
    attention_forward_at(Level::current(), shape, qkv, out, probs);
}

pub(crate) fn attention_forward_at(
    level: Level,
    shape: &AttentionShape,
    qkv: Qkv<&[f32]>,
    out: &mut [f32],
    mut probs: Option<&mut [f32]>,
) {
    qkv.check(shape);
    shape.check(out, probs.as_ref().map(|p| p.len()));
    let &AttentionShape { keys: tokens, head_dim, scale, precision, .. } = shape;
    SCRATCH.with_borrow_mut(|scratch| {
        let Scratch { first: keys, second: values, scores } = scratch;
        for head in shape.all_heads() {
            let (k, stride) = qkv.part(shape, Part::Key, head);
            keys.fill_transposed(level, precision, k, stride, [head_dim, tokens]);
            let (v, stride) = qkv.part(shape, Part::Value, head);
            values.fill(level, precision, v, stride, [tokens, head_dim]);
            let (query, stride) = qkv.part(shape, Part::Query, head);
            for rows in shape.row_blocks() {
                let p = match &mut probs {
                    Some(probs) => {
                        let first = shape.probs(head) + rows.start * tokens;
                        &mut probs[first..][..rows.len() * tokens]
                    }
                    None => block(scores, rows.len() * tokens),
                };
                let query = Left::rows(&query[rows.start * stride..], stride);
                product(level, rows.len(), query, keys, (&mut p[..], tokens), Epilogue::Store);
                level.run(Softmax { scores: p, tokens, scale });
                let out = &mut out[shape.out(head) + rows.start * shape.dim()..];
                let p = Left::rows(&*p, tokens);
                product(level, rows.len(), p, values, (out, shape.dim()), Epilogue::Store);
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
    qkv: Qkv<&[f32]>,
    probs: &[f32],
    dqkv: Qkv<&mut [f32]>,
) {
    attention_backward_at(Level::current(), shape, dout, qkv, probs, dqkv);
}

pub(crate) fn attention_backward_at(
    level: Level,
    shape: &AttentionShape,
    dout: &[f32],
    qkv: Qkv<&[f32]>,
    probs: &[f32],
    mut dqkv: Qkv<&mut [f32]>,
) {
    qkv.check(shape);
    dqkv.check(shape);
    shape.check(dout, Some(probs.len()));
    SCRATCH.with_borrow_mut(|scratch| {
        for head in shape.all_heads() {
            let probs = &probs[shape.probs(head)..][..shape.queries * shape.keys];
            let dout = &dout[shape.out(head)..];
            let backward = HeadBackward { level, shape, head, dout, qkv, probs };
            for rows in shape.row_blocks() {
                backward.rows(rows, scratch, &mut dqkv);
            }
        }
    });
}

/// The backward pass of one head.
struct HeadBackward<'a> {
    level: Level,
    shape: &'a AttentionShape,
    head: (usize, usize),
    dout: &'a [f32],
    qkv: Qkv<&'a [f32]>,
    probs: &'a [f32],
}

impl HeadBackward<'_> {
    /// What a block of query rows contributes. With S the scores and P their softmax:
    /// dV = P^T dO, dP = dO V^T, dS = P (dP - rowsum(P dP)) scale, dQ = dS K, dK = dS^T Q.
    fn rows(&self, rows: Range<usize>, scratch: &mut Scratch, dqkv: &mut Qkv<&mut [f32]>) {
        let &AttentionShape { keys: tokens, head_dim, scale, precision, .. } = self.shape;
        let dim = self.shape.dim();
        let part = |part| self.qkv.part(self.shape, part, self.head);
        let mut multiply = |m, a, b: &PackedB, to: Part, epilogue| {
            let (c, stride) = dqkv.part_mut(self.shape, to, self.head);
            let start = if to == Part::Query { rows.start * stride } else { 0 };
            product(self.level, m, a, b, (&mut c[start..], stride), epilogue);
        };
        // Keys and values receive from every block of rows.
        let sum = || {
            if rows.start == 0 { Epilogue::Store } else { Epilogue::Accumulate }
        };
        let Scratch { first: by_rows, second: by_tokens, scores } = scratch;
        let p = &self.probs[rows.start * tokens..rows.end * tokens];
        let dout = &self.dout[rows.start * dim..];
        let ds = block(scores, p.len());

        by_rows.fill(self.level, precision, dout, dim, [rows.len(), head_dim]);
        multiply(tokens, Left::transposed(p, tokens), by_rows, Part::Value, sum());

        let (values, stride) = part(Part::Value);
        by_tokens.fill_transposed(self.level, precision, values, stride, [head_dim, tokens]);
        let dout = Left::rows(dout, dim);
        product(self.level, rows.len(), dout, by_tokens, (&mut ds[..], tokens), Epilogue::Store);
        self.level.run(SoftmaxBackward { probs: p, gradient: ds, tokens, scale });

        let (keys, stride) = part(Part::Key);
        by_tokens.fill(self.level, precision, keys, stride, [tokens, head_dim]);
        multiply(rows.len(), Left::rows(&*ds, tokens), by_tokens, Part::Query, Epilogue::Store);

        let (queries, stride) = part(Part::Query);
        by_rows.fill(
            self.level,
            precision,
            &queries[rows.start * stride..],
            stride,
            [rows.len(), head_dim],
        );
        multiply(tokens, Left::transposed(&*ds, tokens), by_rows, Part::Key, sum());
    }
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
