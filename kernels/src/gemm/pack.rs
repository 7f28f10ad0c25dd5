//! The right factor of a product, rearranged for the microkernel.

use super::pairs::{PairColumns, pair_rows};
use super::{WORK, Work, block};
use crate::check::check_len;
use crate::matrix::{Matrix, Precision, check_precision};
use crate::simd::{Kernel, Level, PANEL, Simd};
use std::ops::Range;

/// One row of a panel, two cache lines.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
pub(super) struct PanelRow([f32; PANEL]);

impl PanelRow {
    /// Copies up to [`PANEL`] values; the rest becomes zero.
    #[inline(always)]
    pub fn copy_from(&mut self, row: &[f32]) {
        if let Ok(full) = row.try_into() {
            self.0 = full;
        } else {
            self.0[..row.len()].copy_from_slice(row);
            self.0[row.len()..].fill(0.0);
        }
    }

    /// Pairs of the first two of `rows`, if there are any, see [`pair_rows`]; the rest becomes zero.
    #[inline(always)]
    pub fn pair<S: Simd>(
        &mut self,
        from: Matrix<&[f32]>,
        stride: usize,
        rows: Range<usize>,
        columns: usize,
    ) {
        let (to, rest) = self.0.split_at_mut(columns);
        pair_rows::<S>(from, stride, rows, to);
        rest.fill(0.0);
    }
}

/// The right factor `[k, n]` of a product in panels of 32 columns, the last one padded with zeros.
/// Panels of pairs end with whole tiles, the last one padded likewise. The layout is the same for every
/// instruction set. Packing again reuses the memory.
#[derive(Clone, Default)]
pub struct PackedB {
    /// Panel after panel, `k` rows each, in bf16 half as many of pairs.
    rows: Vec<PanelRow>,
    k: usize,
    n: usize,
    precision: Precision,
}

impl PackedB {
    /// Packs a row-major `b` `[k, n]`.
    ///
    /// # Panics
    /// If `b` has not k times n values.
    pub fn pack(precision: Precision, b: &[f32], k: usize, n: usize) -> Self {
        let mut packed = Self::default();
        packed.repack(precision, b, k, n);
        packed
    }

    /// Packs the transpose of a row-major `bt` `[n, k]`, such as a weight stored `[out, in]`.
    ///
    /// # Panics
    /// If `bt` has not n times k values.
    pub fn pack_transposed(precision: Precision, bt: &[f32], k: usize, n: usize) -> Self {
        let mut packed = Self::default();
        packed.repack_transposed(precision, bt, k, n);
        packed
    }

    /// [`Self::pack`] into the memory of `self`.
    ///
    /// # Panics
    /// If `b` has not k times n values.
    pub fn repack(&mut self, precision: Precision, b: &[f32], k: usize, n: usize) {
        check_len("the matrix to pack", b, k * n);
        self.fill(Level::current(), precision, b, n, [k, n]);
    }

    /// [`Self::pack_transposed`] into the memory of `self`.
    ///
    /// # Panics
    /// If `bt` has not n times k values.
    pub fn repack_transposed(&mut self, precision: Precision, bt: &[f32], k: usize, n: usize) {
        check_len("the matrix to pack", bt, k * n);
        self.fill_transposed(Level::current(), precision, bt, k, [k, n]);
    }

    /// Rows of the factor: terms of each sum.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns of the factor and of the product.
    pub fn n(&self) -> usize {
        self.n
    }

    /// What the factor is rounded to.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Packs `[k, n]` whose rows lie `stride` apart, into the memory in use so far. Pairs can be packed
    /// in bf16 only.
    pub(crate) fn fill<'b>(
        &mut self,
        level: Level,
        precision: Precision,
        b: impl Into<Matrix<&'b [f32]>>,
        stride: usize,
        [k, n]: [usize; 2],
    ) {
        let b = b.into();
        check_precision("the matrix to pack", b.precision, precision);
        self.resize(precision, k, n);
        level.run(Fill { precision, b, stride, k, n, rows: &mut self.rows });
    }

    /// As [`Self::fill`], from the transpose `[n, k]`.
    pub(crate) fn fill_transposed<'b>(
        &mut self,
        level: Level,
        precision: Precision,
        bt: impl Into<Matrix<&'b [f32]>>,
        stride: usize,
        [k, n]: [usize; 2],
    ) {
        let bt = bt.into();
        check_precision("the matrix to pack", bt.precision, precision);
        self.resize(precision, k, n);
        let cells = precision.cells(k);
        WORK.with_borrow_mut(|Work { pairs, .. }| {
            for (p, panel) in
                self.rows.chunks_exact_mut(precision.padded_cells(k).max(1)).enumerate()
            {
                let (panel, padding) = panel.split_at_mut(cells);
                padding.fill(PanelRow::default());
                let first = p * PANEL;
                let columns = PANEL.min(n - first);
                let from = &bt.cells[first * stride..];
                if bt.precision == precision {
                    level.run(Transpose { bt: from, stride, columns, panel });
                    continue;
                }
                let to = block(pairs, columns * cells);
                let from = from.into();
                level.run(PairColumns { from, stride, columns: k, cells, to: &mut *to });
                level.run(Transpose { bt: to, stride: cells, columns, panel });
            }
        });
    }

    /// Makes the first of the zeros that fill the last panel columns of the factor, `n` in all.
    pub(crate) fn widen(&mut self, n: usize) {
        assert!(n >= self.n && n.div_ceil(PANEL) == self.n.div_ceil(PANEL), "more than one panel");
        self.n = n;
    }

    /// Pointer to the rows of a panel.
    pub(super) fn panel(&self, index: usize) -> *const f32 {
        self.rows[index * self.precision.padded_cells(self.k)..].as_ptr().cast()
    }

    fn resize(&mut self, precision: Precision, k: usize, n: usize) {
        (self.precision, self.k, self.n) = (precision, k, n);
        self.rows.resize(precision.padded_cells(k) * n.div_ceil(PANEL), PanelRow::default());
    }
}

/// Fills all panels from rows.
struct Fill<'a> {
    precision: Precision,
    b: Matrix<&'a [f32]>,
    stride: usize,
    k: usize,
    n: usize,
    rows: &'a mut [PanelRow],
}

impl Kernel for Fill<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { precision, b, stride, k, n, rows } = self;
        for (p, panel) in rows.chunks_exact_mut(precision.padded_cells(k).max(1)).enumerate() {
            let first = p * PANEL;
            let columns = PANEL.min(n - first);
            let from = &b.cells[b.precision.cells(first).min(b.cells.len())..];
            for (i, row) in panel.iter_mut().enumerate() {
                match precision {
                    Precision::F32 => row.copy_from(&from[i * stride..][..columns]),
                    Precision::Bf16 => {
                        let from = Matrix { cells: from, ..b };
                        row.pair::<S>(from, stride, k.min(2 * i)..k, columns);
                    }
                }
            }
        }
    }
}

/// Fills a panel of `[k, columns]` from rows of its transpose.
struct Transpose<'a> {
    bt: &'a [f32],
    stride: usize,
    columns: usize,
    panel: &'a mut [PanelRow],
}

impl Kernel for Transpose<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { bt, stride, columns, panel } = self;
        let (whole_columns, whole_k) = (columns / 8 * 8, panel.len() / 8 * 8);
        for column in (0..whole_columns).step_by(8) {
            for k in (0..whole_k).step_by(8) {
                let from = &bt[column * stride + k..][..7 * stride + 8];
                let to = panel[k..k + 8].as_mut_ptr().cast::<f32>().wrapping_add(column);
                // SAFETY: `from` covers 8 rows of 8 values; `to` is column..column + 8 <= PANEL of
                // 8 panel rows.
                unsafe { S::transpose_8x8(from.as_ptr(), stride, to, PANEL) };
            }
        }
        for (k, row) in panel.iter_mut().enumerate() {
            let done = if k < whole_k { whole_columns } else { 0 };
            for column in done..columns {
                row.0[column] = bt[column * stride + k];
            }
            row.0[columns..].fill(0.0);
        }
    }
}

#[cfg(test)]
impl PackedB {
    /// Equal in sizes and in every value, padding included.
    pub(crate) fn same_values(&self, other: &Self) -> bool {
        let equal_rows = self.rows.iter().zip(&other.rows).all(|(a, b)| a.0 == b.0);
        (self.k, self.n, self.rows.len()) == (other.k, other.n, other.rows.len()) && equal_rows
    }
}
