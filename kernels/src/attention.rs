//! Scaled dot-product attention (Vaswani et al., 2017, equation 1) of all heads of a batch, on the
//! output of the query, key and value projections as it lies.
//!
//! One head is small (its keys and values fit the first- or second-level cache), so heads are
//! taken one after the other, and long sequences in blocks of query rows whose scores fit the
//! second-level cache. The probabilities are never kept: the backward pass makes them again, which
//! is cheaper than to bring them back from memory (Dao et al., 2022, for longer sequences).

use crate::check::check_len;
use crate::gemm::{Epilogue, Left, PackedB, block, product};
use crate::matrix::{Matrix, Precision};
use crate::simd::Level;
use softmax::{Rows, Softmax, distance, pair_cells};
use std::cell::RefCell;
use std::ops::Range;

mod backward;
mod softmax;
pub use backward::attention_backward;

/// Scores held at a time: 256 KiB. Under Miri few, so that short sequences have several blocks too.
const SCORE_BLOCK: usize = if cfg!(miri) { 256 } else { 64 * 1024 };

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
    /// Of queries, keys, values and output in memory, and of their gradients. In bf16 rows are pairs and
    /// `head_dim` is even.
    pub stored: Precision,
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
        sequence * tokens * parts * dim + index * dim + head * shape.head_cells()
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
    /// Channels of all heads together, in bf16 pairs of them.
    fn dim(&self) -> usize {
        self.heads * self.head_cells()
    }

    /// Channels of one head, in bf16 pairs of them.
    fn head_cells(&self) -> usize {
        self.stored.cells(self.head_dim)
    }

    /// Channels or pairs as the matrix that they are.
    fn matrix<T>(&self, cells: T) -> Matrix<T> {
        Matrix { cells, precision: self.stored }
    }

    /// Where a head begins in `[batch, queries, heads * head_dim]`.
    fn out(&self, (sequence, head): (usize, usize)) -> usize {
        sequence * self.queries * self.dim() + head * self.head_cells()
    }

    /// Where the sums of a head begin, see [`attention_forward`].
    fn sums(&self, (sequence, head): (usize, usize)) -> usize {
        (sequence * self.heads + head) * self.queries * 2
    }

    /// Sequence and head of all heads.
    fn all_heads(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let heads = self.heads;
        (0..self.batch).flat_map(move |sequence| (0..heads).map(move |head| (sequence, head)))
    }

    /// Query rows in blocks of equal height.
    fn row_blocks(&self) -> impl ExactSizeIterator<Item = Range<usize>> + use<> {
        let queries = self.queries;
        let blocks = (queries * self.keys).div_ceil(SCORE_BLOCK).max(1);
        (0..blocks).map(move |i| queries * i / blocks..queries * (i + 1) / blocks)
    }

    fn check(&self, out: &[f32], sums: Option<usize>) {
        assert!(
            self.stored == Precision::F32 || self.head_dim.is_multiple_of(2),
            "heads of {} channels are not pairs",
            self.head_dim
        );
        check_len("the attention output", out, self.batch * self.queries * self.dim());
        let expected = self.batch * self.heads * self.queries * 2;
        if let Some(len) = sums {
            assert!(len == expected, "the sums: {len} values where {expected} are needed");
        }
    }
}

/// Packed matrices and scores of one head, kept by each thread.
#[derive(Default)]
struct Scratch {
    first: PackedB,
    second: PackedB,
    scores: Vec<f32>,
    gradient: Vec<f32>,
    /// Rows of pairs on their way into a product.
    pairs: Vec<f32>,
    /// Gradients of keys and values to which several blocks of rows add.
    sums: [Vec<f32>; 2],
}

/// Rows of scores in the memory of `scores`; in bf16 with room for their pairs.
fn rows_for<'a>(
    precision: Precision,
    tokens: usize,
    scores: &'a mut [f32],
    pairs: &'a mut Vec<f32>,
) -> Rows<'a> {
    let rows = scores.len() / distance(tokens).max(1);
    let pairs = match precision {
        Precision::F32 => None,
        Precision::Bf16 => Some(block(pairs, rows * pair_cells(tokens))),
    };
    Rows { values: scores, pairs, tokens }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// `out` `[batch, queries, heads * head_dim]` = softmax(Q K^T scale) V. `sums` `[batch, heads, queries,
/// 2]`, if given, keeps the largest scaled score and 1 / the sum of each softmax for
/// [`attention_backward`].
///
/// # Panics
/// If a slice has not the length that `shape` implies.
pub fn attention_forward(
    shape: &AttentionShape,
    qkv: Qkv<&[f32]>,
    out: &mut [f32],
    sums: Option<&mut [f32]>,
) {
    attention_forward_at(Level::current(), shape, qkv, out, sums);
}

pub(crate) fn attention_forward_at(
    level: Level,
    shape: &AttentionShape,
    qkv: Qkv<&[f32]>,
    out: &mut [f32],
    mut sums: Option<&mut [f32]>,
) {
    qkv.check(shape);
    shape.check(out, sums.as_ref().map(|s| s.len()));
    let &AttentionShape { keys: tokens, head_dim, scale, precision, .. } = shape;
    SCRATCH.with_borrow_mut(|scratch| {
        let Scratch { first: keys, second: values, scores, pairs, .. } = scratch;
        for head in shape.all_heads() {
            let (k, stride) = qkv.part(shape, Part::Key, head);
            keys.fill_transposed(level, precision, shape.matrix(k), stride, [head_dim, tokens]);
            keys.widen(distance(tokens));
            let (v, stride) = qkv.part(shape, Part::Value, head);
            values.fill(level, precision, shape.matrix(v), stride, [tokens, head_dim]);
            let (query, stride) = qkv.part(shape, Part::Query, head);
            for rows in shape.row_blocks() {
                let distance = distance(tokens);
                let scores = block(scores, rows.len() * distance);
                let query = Left::rows(shape.matrix(&query[rows.start * stride..]), stride);
                let to = (&mut scores[..], distance);
                product(level, rows.len(), query, keys, to, Epilogue::Store);
                let sums = sums
                    .as_mut()
                    .map(|sums| &mut sums[shape.sums(head) + 2 * rows.start..][..2 * rows.len()]);
                let mut p = rows_for(precision, tokens, scores, pairs);
                level.run(Softmax { rows: &mut p, scale, sums });
                let out = &mut out[shape.out(head) + rows.start * shape.dim()..];
                let out = (shape.matrix(out), shape.dim());
                product(level, rows.len(), p.left(), values, out, Epilogue::Store);
            }
        }
    });
}

#[cfg(test)]
mod tests;
