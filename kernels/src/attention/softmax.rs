//! Softmax of scores and its gradient, row by row.

use crate::gemm::{Left, PairColumns};
use crate::matrix::{Matrix, Precision};
use crate::simd::{Kernel, PANEL, Simd, exp};
use std::ops::Range;

/// Distance of two rows of scores in memory: whole vectors, which are stored much faster than parts.
pub(super) fn distance(tokens: usize) -> usize {
    tokens.next_multiple_of(PANEL / 2)
}

/// The whole vector at `piece`.
#[inline(always)]
fn vector<S: Simd>(piece: &Range<usize>) -> Range<usize> {
    piece.start..piece.start + S::LANES
}

/// `x` with `other` behind the end of `piece`.
#[inline(always)]
fn ended<S: Simd>(x: S, piece: &Range<usize>, other: S) -> S {
    if piece.len() < S::LANES { x.first(piece.len(), other) } else { x }
}

/// Rows of scores of as many `tokens`, or of what becomes of them, the left factor of a product to come.
pub(super) struct Rows<'a> {
    /// Rows [`distance`] apart.
    pub values: &'a mut [f32],
    /// The same rounded, where the product is bf16: padded rows of pairs.
    pub pairs: Option<&'a mut [f32]>,
    pub tokens: usize,
}

impl Rows<'_> {
    /// The rows as the product reads them.
    pub fn left(&self) -> Left<'_> {
        match &self.pairs {
            Some(pairs) => {
                let pairs = Matrix { cells: &pairs[..], precision: Precision::Bf16 };
                Left::padded_rows(pairs, self.tokens)
            }
            None => Left::rows(&*self.values, distance(self.tokens)),
        }
    }

    /// Writes the rounded form of row `r`, if there is one.
    #[inline(always)]
    fn round<S: Simd>(&mut self, r: usize) {
        let Some(pairs) = &mut self.pairs else { return };
        let (columns, cells) = (self.tokens, pair_cells(self.tokens));
        let from = (&self.values[r * distance(columns)..][..columns]).into();
        let to = &mut pairs[r * cells..][..cells];
        PairColumns { from, stride: columns, columns, cells, to }.run::<S>();
    }
}

/// Pairs in a padded row of `tokens`.
pub(super) fn pair_cells(tokens: usize) -> usize {
    Precision::Bf16.padded_cells(tokens)
}

/// Rows of scores become softmax(scores * scale).
pub(super) struct Softmax<'a, 'b> {
    pub rows: &'a mut Rows<'b>,
    pub scale: f32,
    /// Largest scaled score and 1 / the sum of each row.
    pub sums: Option<&'a mut [f32]>,
}

impl Kernel for Softmax<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { rows, scale, mut sums } = self;
        let (lowest, zero) = (S::splat(f32::NEG_INFINITY), S::splat(0.0));
        let (tokens, distance) = (rows.tokens, distance(rows.tokens).max(1));
        for r in 0..rows.values.len() / distance {
            let row = &mut rows.values[r * distance..][..distance];
            let mut largest = lowest;
            for piece in S::pieces(tokens) {
                let scaled = S::load(&row[vector::<S>(&piece)]) * S::splat(scale);
                largest = largest.max(ended(scaled, &piece, lowest));
            }
            let largest = largest.largest();
            let mut sum = zero;
            for piece in S::pieces(tokens) {
                let e = shifted_exp(S::load(&row[vector::<S>(&piece)]), scale, largest);
                let e = ended(e, &piece, zero);
                sum = sum + e;
                e.store(&mut row[vector::<S>(&piece)]);
            }
            let factor = 1.0 / sum.sum();
            for piece in S::pieces(tokens) {
                let row = &mut row[vector::<S>(&piece)];
                (S::load(row) * S::splat(factor)).store(row);
            }
            if let Some(sums) = &mut sums {
                sums[2 * r..][..2].copy_from_slice(&[largest, factor]);
            }
            rows.round::<S>(r);
        }
    }
}

/// Rows of `tokens` scores, [`distance`] apart, become what [`Softmax`] made of them, bit for bit, by the
/// `sums` it left.
pub(super) struct SoftmaxAgain<'a> {
    pub scores: &'a mut [f32],
    pub tokens: usize,
    pub scale: f32,
    pub sums: &'a [f32],
}

impl Kernel for SoftmaxAgain<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { scores, tokens, scale, sums } = self;
        let (sums, _) = sums.as_chunks::<2>();
        let rows = scores.chunks_exact_mut(distance(tokens).max(1));
        for (row, &[largest, factor]) in rows.zip(sums) {
            for piece in S::pieces(tokens) {
                let row = &mut row[vector::<S>(&piece)];
                let e = ended(shifted_exp(S::load(row), scale, largest), &piece, S::splat(0.0));
                (e * S::splat(factor)).store(row);
            }
        }
    }
}

/// `e^(score * scale - largest)`.
#[inline(always)]
fn shifted_exp<S: Simd>(score: S, scale: f32, largest: f32) -> S {
    exp(score.mul_add(S::splat(scale), S::splat(-largest)))
}

/// The gradient of the probabilities becomes that of the scores before scaling.
pub(super) struct SoftmaxBackward<'a, 'b> {
    /// Laid out like the gradient, zeros behind the end of each row.
    pub probs: &'a [f32],
    pub gradient: &'a mut Rows<'b>,
    pub scale: f32,
}

impl Kernel for SoftmaxBackward<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { probs, gradient, scale } = self;
        let (tokens, distance) = (gradient.tokens, distance(gradient.tokens).max(1));
        for (r, p) in probs.chunks_exact(distance).enumerate() {
            let d = &mut gradient.values[r * distance..][..distance];
            let mut sum = S::splat(0.0);
            for piece in S::pieces(tokens) {
                let piece = vector::<S>(&piece);
                sum = S::load(&p[piece.clone()]).mul_add(S::load(&d[piece]), sum);
            }
            let mean = S::splat(sum.sum());
            for piece in S::pieces(tokens) {
                let piece = vector::<S>(&piece);
                let p = S::load(&p[piece.clone()]) * S::splat(scale);
                let d = &mut d[piece];
                (p * (S::load(d) - mean)).store(d);
            }
            gradient.round::<S>(r);
        }
    }
}
