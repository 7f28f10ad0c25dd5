//! The right factor of a product, rearranged for the microkernel.

use crate::gemm::check_len;
use crate::simd::{Kernel, Level, PANEL, Simd};

/// One row of a panel, two cache lines.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct PanelRow([f32; PANEL]);

impl PanelRow {
    pub const ZERO: Self = Self([0.0; PANEL]);

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
}

/// The right factor `[k, n]` of a product in panels of 32 columns, the last one padded with zeros.
/// The layout is the same for every instruction set. Packing again reuses the memory.
#[derive(Clone, Default)]
pub struct PackedB {
    /// Panel after panel, `k` rows each.
    rows: Vec<PanelRow>,
    k: usize,
    n: usize,
}

impl PackedB {
    /// Packs a row-major `b` `[k, n]`.
    ///
    /// # Panics
    /// If `b` has not k times n values.
    pub fn pack(b: &[f32], k: usize, n: usize) -> Self {
        let mut packed = Self::default();
        packed.repack(b, k, n);
        packed
    }

    /// Packs the transpose of a row-major `bt` `[n, k]`, such as a weight stored `[out, in]`.
    ///
    /// # Panics
    /// If `bt` has not n times k values.
    pub fn pack_transposed(bt: &[f32], k: usize, n: usize) -> Self {
        let mut packed = Self::default();
        packed.repack_transposed(bt, k, n);
        packed
    }

    /// [`Self::pack`] into the memory of `self`.
    ///
    /// # Panics
    /// If `b` has not k times n values.
    pub fn repack(&mut self, b: &[f32], k: usize, n: usize) {
        check_len("the matrix to pack", b, k * n);
        self.fill(b, n, k, n);
    }

    /// [`Self::pack_transposed`] into the memory of `self`.
    ///
    /// # Panics
    /// If `bt` has not n times k values.
    pub fn repack_transposed(&mut self, bt: &[f32], k: usize, n: usize) {
        check_len("the matrix to pack", bt, k * n);
        self.fill_transposed(Level::current(), bt, k, k, n);
    }

    /// Rows of the factor: terms of each sum.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns of the factor and of the product.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Packs `[k, n]` whose rows lie `stride` apart.
    pub(crate) fn fill(&mut self, b: &[f32], stride: usize, k: usize, n: usize) {
        self.resize(k, n);
        for (p, panel) in self.rows.chunks_exact_mut(k.max(1)).enumerate() {
            let first = p * PANEL;
            let columns = PANEL.min(n - first);
            for (i, row) in panel.iter_mut().enumerate() {
                row.copy_from(&b[i * stride + first..][..columns]);
            }
        }
    }

    /// Packs the transpose of `[n, k]` whose rows lie `stride` apart.
    pub(crate) fn fill_transposed(
        &mut self,
        level: Level,
        bt: &[f32],
        stride: usize,
        k: usize,
        n: usize,
    ) {
        self.resize(k, n);
        for (p, panel) in self.rows.chunks_exact_mut(k.max(1)).enumerate() {
            let first = p * PANEL;
            let columns = PANEL.min(n - first);
            level.run(Transpose { bt: &bt[first * stride..], stride, columns, panel });
        }
    }

    /// Pointer to the `k` rows of a panel.
    pub(super) fn panel(&self, index: usize) -> *const f32 {
        self.rows[index * self.k..].as_ptr().cast()
    }

    fn resize(&mut self, k: usize, n: usize) {
        (self.k, self.n) = (k, n);
        self.rows.resize(k * n.div_ceil(PANEL), PanelRow::ZERO);
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
