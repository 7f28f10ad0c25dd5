//! Factors rounded to bf16, two terms of a sum side by side.

use crate::matrix::{Matrix, Precision};
use crate::simd::{Kernel, Simd};
use std::ops::Range;

/// Rows `[rows, columns]` that lie `stride` apart become rows of pairs of neighbours, `[rows, cells]`;
/// an odd last column pairs with zeros, and zeros fill the rest.
pub(crate) struct PairColumns<'a> {
    pub from: Matrix<&'a [f32]>,
    pub stride: usize,
    pub columns: usize,
    pub cells: usize,
    pub to: &'a mut [f32],
}

impl Kernel for PairColumns<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { from, stride, columns, cells, to } = self;
        for (i, to) in to.chunks_exact_mut(cells.max(1)).enumerate() {
            let row = &from.cells[i * stride..][..from.precision.cells(columns)];
            let (to, rest) = to.split_at_mut(columns.div_ceil(2));
            rest.fill(0.0);
            if from.precision == Precision::Bf16 {
                to.copy_from_slice(row);
                continue;
            }
            for piece in S::pieces(to.len()) {
                let first = 2 * piece.start;
                let second = columns.min(first + S::LANES);
                let (first, second) = (S::load(&row[first..]), S::load(&row[second..]));
                S::pairs_of_neighbours(first, second).store(&mut to[piece]);
            }
        }
    }
}

/// Rows by which those to be paired are fetched ahead: few columns of them at a time are read, too few
/// for the processor to see where this is going.
const ROWS_AHEAD: usize = 16;

/// The first two of `rows`, which lie `stride` apart, as one row of pairs, `to.len()` columns; one
/// alone pairs with zeros, none make zeros.
#[inline(always)]
pub(super) fn pair_rows<S: Simd>(
    from: Matrix<&[f32]>,
    stride: usize,
    rows: Range<usize>,
    to: &mut [f32],
) {
    if rows.is_empty() {
        return to.fill(0.0);
    }
    let cells = from.precision.cells(to.len());
    let row = |i: usize| &from.cells[i * stride..][..cells];
    let (even, odd) = (row(rows.start), (rows.len() > 1).then(|| row(rows.start + 1)));
    let zero = S::splat(0.0);
    for piece in S::pieces(cells) {
        for row in [even, odd.unwrap_or(even)] {
            S::prefetch(row[piece.start..].as_ptr().wrapping_add(ROWS_AHEAD * stride));
        }
        let even = S::load(&even[piece.clone()]);
        let odd = odd.map_or(zero, |odd| S::load(&odd[piece.clone()]));
        if from.precision == Precision::F32 {
            S::pairs(even, odd).store(&mut to[piece]);
            continue;
        }
        // Each pair of neighbours is two columns.
        let (first, second) = S::pairs_of_rows(even, odd);
        let to = &mut to[2 * piece.start..];
        first.store(to);
        if let Some(rest) = to.get_mut(S::LANES..) {
            second.store(rest);
        }
    }
}

/// Pairs of neighbours among `rows`, which lie `stride` apart, as rows of a transpose: `to` is
/// `[columns, cells]`, zeros where there are no more rows. `cells` is a multiple of 8.
#[inline(always)]
pub(super) fn transpose_to_pairs<S: Simd>(
    from: Matrix<&[f32]>,
    stride: usize,
    rows: Range<usize>,
    cells: usize,
    to: &mut [f32],
) {
    let columns = to.len() / cells.max(1);
    let mut paired = [[0.0; SOME_COLUMNS]; 8];
    for first in (0..columns).step_by(SOME_COLUMNS) {
        let width = SOME_COLUMNS.min(columns - first);
        let from = Matrix { cells: &from.cells[from.precision.cells(first)..], ..from };
        for cell in (0..cells).step_by(8) {
            for (i, paired) in paired.iter_mut().enumerate() {
                let start = rows.end.min(rows.start + 2 * (cell + i));
                pair_rows::<S>(from, stride, start..rows.end, &mut paired[..width]);
            }
            for column in (0..width).step_by(8) {
                let to = &mut to[(first + column) * cells + cell..];
                transpose_rows::<S>(&paired, column, width.min(column + 8) - column, cells, to);
            }
        }
    }
}

/// Columns that are paired before they are transposed, in the first-level cache.
const SOME_COLUMNS: usize = 64;

/// Up to 8 columns from `first` on become rows of 8 that lie `stride` apart.
#[inline(always)]
fn transpose_rows<S: Simd>(
    from: &[[f32; SOME_COLUMNS]; 8],
    first: usize,
    columns: usize,
    stride: usize,
    to: &mut [f32],
) {
    if columns == 8 && to.len() >= 7 * stride + 8 {
        // SAFETY: 8 columns from a multiple of 8 below SOME_COLUMNS on are part of each row, and `to`
        // has been found to hold 8 rows of 8.
        unsafe {
            let from = from.as_flattened().as_ptr().add(first);
            S::transpose_8x8(from, SOME_COLUMNS, to.as_mut_ptr(), stride);
        }
        return;
    }
    for column in 0..columns {
        for (row, from) in from.iter().enumerate() {
            to[column * stride + row] = from[first + column];
        }
    }
}
