//! Factors rounded to bf16, two terms of a sum side by side.

use crate::simd::{Kernel, Simd};
use std::ops::Range;

/// Rows `[rows, columns]` that lie `stride` apart become rows of pairs of neighbours, `[rows,
/// columns / 2 rounded up]`; an odd last column pairs with zeros.
pub(super) struct PairColumns<'a> {
    pub from: &'a [f32],
    pub stride: usize,
    pub columns: usize,
    pub to: &'a mut [f32],
}

impl Kernel for PairColumns<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { from, stride, columns, to } = self;
        for (i, to) in to.chunks_exact_mut(columns.div_ceil(2).max(1)).enumerate() {
            let row = &from[i * stride..][..columns];
            for piece in S::pieces(to.len()) {
                let first = 2 * piece.start;
                let second = columns.min(first + S::LANES);
                let neighbours =
                    S::pairs_of_neighbours(S::load(&row[first..]), S::load(&row[second..]));
                neighbours.store(&mut to[piece]);
            }
        }
    }
}

/// The first two of `rows`, which lie `stride` apart, as one row of pairs, `to.len()` columns; one
/// alone pairs with zeros.
#[inline(always)]
pub(super) fn pair_rows<S: Simd>(from: &[f32], stride: usize, rows: Range<usize>, to: &mut [f32]) {
    let row = |i: usize| &from[i * stride..][..to.len()];
    let (even, odd) = (row(rows.start), (rows.len() > 1).then(|| row(rows.start + 1)));
    for piece in S::pieces(to.len()) {
        let odd = odd.map_or(S::splat(0.0), |odd| S::load(&odd[piece.clone()]));
        S::pairs(S::load(&even[piece.clone()]), odd).store(&mut to[piece]);
    }
}
