//! Factors rounded to bf16, two terms of a sum side by side.

use super::{Matrix, Precision};
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
                let (first, second) = (S::load(&row[first..]), S::load(&row[second..]));
                S::pairs_of_neighbours(first, second).store(&mut to[piece]);
            }
        }
    }
}

/// The first two of `rows`, which lie `stride` apart, as one row of pairs, `to.len()` columns; one
/// alone pairs with zeros.
#[inline(always)]
pub(super) fn pair_rows<S: Simd>(
    from: Matrix<&[f32]>,
    stride: usize,
    rows: Range<usize>,
    to: &mut [f32],
) {
    let cells = from.precision.cells(to.len());
    let row = |i: usize| &from.cells[i * stride..][..cells];
    let (even, odd) = (row(rows.start), (rows.len() > 1).then(|| row(rows.start + 1)));
    let zero = S::splat(0.0);
    for piece in S::pieces(cells) {
        let even = S::load(&even[piece.clone()]);
        let odd = odd.map_or(zero, |odd| S::load(&odd[piece.clone()]));
        if from.precision == Precision::F32 {
            S::pairs(even, odd).store(&mut to[piece]);
            continue;
        }
        // Each pair of neighbours is two columns.
        let (even, odd) = (even.neighbours(), odd.neighbours());
        let to = &mut to[2 * piece.start..];
        S::pairs(even.0, odd.0).store(to);
        if let Some(rest) = to.get_mut(S::LANES..) {
            S::pairs(even.1, odd.1).store(rest);
        }
    }
}
