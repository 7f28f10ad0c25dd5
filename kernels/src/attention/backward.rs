//! Gradients of queries, keys and values.

use super::softmax::{SoftmaxAgain, SoftmaxBackward, distance};
use super::{AttentionShape, Part, Qkv, SCRATCH, Scratch, rows_for};
use crate::gemm::{Epilogue, Left, PackedB, PairColumns, block, product};
use crate::matrix::Precision;
use crate::simd::Level;
use std::ops::Range;

/// `dqkv` (overwritten, laid out like `qkv`) from `dout`, the gradient of the output of
/// [`super::attention_forward`], which has left `sums`.
///
/// # Panics
/// If a slice has not the length that `shape` implies.
pub fn attention_backward(
    shape: &AttentionShape,
    dout: &[f32],
    qkv: Qkv<&[f32]>,
    sums: &[f32],
    dqkv: Qkv<&mut [f32]>,
) {
    attention_backward_at(Level::current(), shape, dout, qkv, sums, dqkv);
}

pub(crate) fn attention_backward_at(
    level: Level,
    shape: &AttentionShape,
    dout: &[f32],
    qkv: Qkv<&[f32]>,
    sums: &[f32],
    mut dqkv: Qkv<&mut [f32]>,
) {
    qkv.check(shape);
    dqkv.check(shape);
    shape.check(dout, Some(sums.len()));
    SCRATCH.with_borrow_mut(|scratch| {
        for head in shape.all_heads() {
            let sums = &sums[shape.sums(head)..][..2 * shape.queries];
            let dout = &dout[shape.out(head)..];
            HeadBackward { level, shape, head, dout, qkv, sums }.run(scratch, &mut dqkv);
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
    sums: &'a [f32],
}

impl HeadBackward<'_> {
    fn run(&self, scratch: &mut Scratch, dqkv: &mut Qkv<&mut [f32]>) {
        let aside = self.sums_aside();
        if aside {
            let len = self.shape.keys * self.shape.head_dim;
            scratch.sums.iter_mut().for_each(|sums| block(sums, len).fill(0.0));
        }
        for rows in self.shape.row_blocks() {
            self.rows(rows, scratch, dqkv);
        }
        if aside {
            self.store_sums(scratch, dqkv);
        }
    }

    /// Whether several blocks of rows add to the gradients of keys and values, which bf16 in memory
    /// would round each time.
    fn sums_aside(&self) -> bool {
        self.shape.stored == Precision::Bf16 && self.shape.row_blocks().len() > 1
    }

    /// What a block of query rows contributes. With S the scores and P their softmax:
    /// dV = P^T dO, dP = dO V^T, dS = P (dP - rowsum(P dP)) scale, dQ = dS K, dK = dS^T Q.
    fn rows(&self, rows: Range<usize>, scratch: &mut Scratch, dqkv: &mut Qkv<&mut [f32]>) {
        let (level, shape) = (self.level, self.shape);
        let &AttentionShape { keys: tokens, head_dim, scale, precision, .. } = shape;
        let part = |part| {
            let (cells, stride) = self.qkv.part(shape, part, self.head);
            (shape.matrix(cells), stride)
        };
        let (query, q_stride) = self.qkv.part(shape, Part::Query, self.head);
        let query = shape.matrix(&query[rows.start * q_stride..]);
        let (dout, dim) = (shape.matrix(&self.dout[rows.start * shape.dim()..]), shape.dim());
        let Scratch { first: by_rows, second: by_tokens, scores, gradient, pairs, sums } = scratch;

        let distance = distance(tokens);
        let p = block(scores, rows.len() * distance);
        let (keys, k_stride) = part(Part::Key);
        by_tokens.fill_transposed(level, precision, keys, k_stride, [head_dim, tokens]);
        by_tokens.widen(distance);
        let left = Left::rows(query, q_stride);
        product(level, rows.len(), left, by_tokens, (&mut p[..], distance), Epilogue::Store);
        let row_sums = &self.sums[2 * rows.start..2 * rows.end];
        level.run(SoftmaxAgain { scores: &mut *p, tokens, scale, sums: row_sums });

        by_rows.fill(level, precision, dout, dim, [rows.len(), head_dim]);
        let left = Left::transposed(&*p, distance);
        self.add(Part::Value, left, by_rows, rows.start == 0, &mut sums[0], dqkv);

        let ds = block(gradient, p.len());
        let (values, v_stride) = part(Part::Value);
        by_tokens.fill_transposed(level, precision, values, v_stride, [head_dim, tokens]);
        by_tokens.widen(distance);
        let left = Left::rows(dout, dim);
        product(level, rows.len(), left, by_tokens, (&mut ds[..], distance), Epilogue::Store);
        let mut ds = rows_for(precision, tokens, ds, pairs);
        level.run(SoftmaxBackward { probs: p, gradient: &mut ds, scale });

        by_tokens.fill(level, precision, keys, k_stride, [tokens, head_dim]);
        let (c, stride) = dqkv.part_mut(shape, Part::Query, self.head);
        let c = (shape.matrix(&mut c[rows.start * stride..]), stride);
        product(level, rows.len(), ds.left(), by_tokens, c, Epilogue::Store);

        by_rows.fill(level, precision, query, q_stride, [rows.len(), head_dim]);
        let left = Left::transposed(&*ds.values, distance);
        self.add(Part::Key, left, by_rows, rows.start == 0, &mut sums[1], dqkv);
    }

    /// Adds `left` times `right` to the gradient of keys or values, or makes it that if it is the
    /// `first`.
    fn add(
        &self,
        to: Part,
        left: Left,
        right: &PackedB,
        first: bool,
        sums: &mut [f32],
        dqkv: &mut Qkv<&mut [f32]>,
    ) {
        let (tokens, head_dim) = (self.shape.keys, self.shape.head_dim);
        if self.sums_aside() {
            let c = (&mut sums[..tokens * head_dim], head_dim);
            return product(self.level, tokens, left, right, c, Epilogue::Accumulate);
        }
        let (c, stride) = dqkv.part_mut(self.shape, to, self.head);
        let epilogue = if first { Epilogue::Store } else { Epilogue::Accumulate };
        product(self.level, tokens, left, right, (self.shape.matrix(c), stride), epilogue);
    }

    /// The sums of all blocks become gradients in bf16.
    fn store_sums(&self, scratch: &Scratch, dqkv: &mut Qkv<&mut [f32]>) {
        let (columns, cells) = (self.shape.head_dim, self.shape.head_cells());
        for (part, sums) in [Part::Value, Part::Key].into_iter().zip(&scratch.sums) {
            let (c, stride) = dqkv.part_mut(self.shape, part, self.head);
            for (token, sums) in sums.chunks_exact(columns).take(self.shape.keys).enumerate() {
                let to = &mut c[token * stride..][..cells];
                let from = sums.into();
                self.level.run(PairColumns { from, stride: columns, columns, cells, to });
            }
        }
    }
}
