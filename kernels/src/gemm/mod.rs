//! Matrix products with what surrounds them in a transformer folded in.
//!
//! The right factor is packed in panels of 32 columns ([`PackedB`]), weights once a step. The left
//! factor is read where it lies: activations are used once or twice, and packing them would cost
//! more than it saves. Rows are taken in blocks small enough to stay in the second-level cache
//! while panel after panel goes through the first.

use crate::gelu::gelu;
use crate::simd::{Kernel, Level, PANEL, Simd};
use tile::{Combine, Strip};

mod pack;
mod tile;
pub use pack::PackedB;
use pack::PanelRow;

/// Rows of the left factor that go through all panels before the next rows.
const ROW_BLOCK: usize = 100;
/// Rows of a weight gradient's operands that are summed in registers: their packed panel (50 KiB)
/// streams from the first- and second-level cache.
const SUM_BLOCK: usize = 256;

/// What [`matmul`] does with the product before it is stored, while it is still in registers or in
/// the first-level cache.
pub enum Epilogue<'a> {
    /// C = A B.
    Store,
    /// C = C + A B.
    Accumulate,
    /// C = A B + bias, a bias of `[n]` for every row.
    Bias(&'a [f32]),
    /// C = GELU(u) with u = A B + bias, in its exact form; `derivative` `[m, n]` is overwritten by
    /// GELU'(u), which the backward pass needs instead of u.
    BiasGelu {
        /// `[n]`, added to every row.
        bias: &'a [f32],
        /// `[m, n]`, overwritten.
        derivative: &'a mut [f32],
    },
    /// C = residual + factor (A B + bias), the end of a residual branch; `factors` `[m]` are 0 or
    /// 1 / keep where stochastic depth is on.
    Residual {
        /// `[n]`, added to every row.
        bias: &'a [f32],
        /// `[m, n]`.
        residual: &'a [f32],
        /// `[m]`, one a row; none = 1.
        factors: Option<&'a [f32]>,
    },
    /// C = A B times a matrix `[m, n]`, element by element: with the saved derivative this is the
    /// backward pass of GELU.
    Multiply(&'a [f32]),
}

/// C = A B with an [`Epilogue`]. `a` is `[m, k]`, `b` packs `[k, n]`, `c` is `[m, n]`, all
/// row-major.
///
/// # Panics
/// If a slice has not the length that `m` and `b` imply.
pub fn matmul(m: usize, a: &[f32], b: &PackedB, c: &mut [f32], epilogue: Epilogue) {
    matmul_at(Level::current(), m, a, b, c, epilogue);
}

pub(crate) fn matmul_at(
    level: Level,
    m: usize,
    a: &[f32],
    b: &PackedB,
    c: &mut [f32],
    epilogue: Epilogue,
) {
    let (k, n) = (b.k(), b.n());
    check_len("the left factor", a, m * k);
    check_len("the output", c, m * n);
    let a = Left::rows(a, k);
    level.run(Product { m, a, b, c, c_stride: n, epilogue });
}

/// C = C + A^T B, the gradient of a weight stored `[out, in]`: `a` is the gradient of the layer's
/// output `[rows, m]`, `b` its input `[rows, n]`, `c` `[m, n]`. The sums of `a`'s columns, the
/// gradient of the bias, are added to `column_sums` `[m]`, if given.
///
/// # Panics
/// If `rows` is 0 or does not divide the lengths of `a` and `b`, or if `c` or `column_sums` has not
/// the length that follows.
pub fn matmul_transposed_a(
    rows: usize,
    a: &[f32],
    b: &[f32],
    c: &mut [f32],
    column_sums: Option<&mut [f32]>,
) {
    matmul_transposed_a_at(Level::current(), rows, a, b, c, column_sums);
}

pub(crate) fn matmul_transposed_a_at(
    level: Level,
    rows: usize,
    a: &[f32],
    b: &[f32],
    c: &mut [f32],
    column_sums: Option<&mut [f32]>,
) {
    assert!(rows > 0, "a weight gradient needs at least one row");
    for (name, x) in [("left", a), ("right", b)] {
        let len = x.len();
        assert!(len.is_multiple_of(rows), "the {name} factor has {len} values, not rows of {rows}");
    }
    let (m, n) = (a.len() / rows, b.len() / rows);
    check_len("the output", c, m * n);
    if let Some(sums) = &column_sums {
        check_len("the column sums", sums, m);
    }
    level.run(WeightGradient { rows, m, n, a, b, c, column_sums });
}

/// Panics with both numbers unless `x` holds `expected` values.
#[track_caller]
pub(crate) fn check_len(name: &str, x: &[f32], expected: usize) {
    assert!(x.len() == expected, "{name}: {} values where {expected} are needed", x.len());
}

/// The left factor of a product: `[m, k]` with rows at distance `stride`, or its transpose.
pub(crate) struct Left<'a> {
    pub data: &'a [f32],
    pub stride: usize,
    /// `data` is `[k, m]`.
    pub transposed: bool,
}

impl<'a> Left<'a> {
    pub fn rows(data: &'a [f32], stride: usize) -> Self {
        let transposed = false;
        Self { data, stride, transposed }
    }

    pub fn transposed(data: &'a [f32], stride: usize) -> Self {
        let transposed = true;
        Self { data, stride, transposed }
    }
}

/// A product into a matrix whose rows lie `c_stride` apart. The matrices inside the epilogue are
/// laid out like `c`.
pub(crate) struct Product<'a> {
    pub m: usize,
    pub a: Left<'a>,
    pub b: &'a PackedB,
    pub c: &'a mut [f32],
    pub c_stride: usize,
    pub epilogue: Epilogue<'a>,
}

impl Kernel for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self) {
        self.check();
        let (k, n) = (self.b.k(), self.b.n());
        let blocks = self.m.div_ceil(ROW_BLOCK);
        for block in 0..blocks {
            let rows = self.m * block / blocks..self.m * (block + 1) / blocks;
            for first in (0..n).step_by(PANEL) {
                let columns = PANEL.min(n - first);
                let offset = rows.start * self.c_stride + first;
                let a_offset = rows.start * if self.a.transposed { 1 } else { self.a.stride };
                let (bias, combine, fetch) = self.ending(first, rows.start, offset);
                let strip = Strip {
                    k,
                    a: self.a.data.as_ptr().wrapping_add(a_offset),
                    a_stride: self.a.stride,
                    b: self.b.panel(first / PANEL),
                    c: self.c[offset..].as_mut_ptr(),
                    c_stride: self.c_stride,
                    columns,
                    bias,
                    combine,
                    fetch,
                };
                // SAFETY: `check` has compared every slice with the rows and columns in use, and
                // `c` is borrowed exclusively.
                unsafe {
                    if self.a.transposed {
                        strip.run::<S, true>(rows.len());
                    } else {
                        strip.run::<S, false>(rows.len());
                    }
                }
                if let Epilogue::BiasGelu { derivative, .. } = &mut self.epilogue {
                    for row in 0..rows.len() {
                        let part = offset + row * self.c_stride;
                        let part = part..part + columns;
                        gelu_in_place::<S>(&mut self.c[part.clone()], &mut derivative[part]);
                    }
                }
            }
        }
    }
}

impl Product<'_> {
    /// Panics unless every slice covers the matrix it stands for.
    fn check(&self) {
        let (m, k, n) = (self.m, self.b.k(), self.b.n());
        let (a_rows, a_columns) = if self.a.transposed { (k, m) } else { (m, k) };
        let a_needs = span(a_rows, a_columns, self.a.stride);
        let c_needs = span(m, n, self.c_stride);
        let covers = |name: &str, len: usize, needs: usize| {
            assert!(len >= needs, "{name}: {len} values where {needs} are needed");
        };
        covers("the left factor", self.a.data.len(), a_needs);
        covers("the output", self.c.len(), c_needs);
        match &self.epilogue {
            Epilogue::Store | Epilogue::Accumulate => {}
            Epilogue::Bias(bias) => check_len("the bias", bias, n),
            Epilogue::BiasGelu { bias, derivative } => {
                check_len("the bias", bias, n);
                covers("the derivative", derivative.len(), c_needs);
            }
            Epilogue::Residual { bias, residual, factors } => {
                check_len("the bias", bias, n);
                covers("the residual", residual.len(), c_needs);
                factors.inspect(|f| check_len("the factors", f, m));
            }
            Epilogue::Multiply(d) => covers("the matrix to multiply by", d.len(), c_needs),
        }
    }

    /// Bias, combination and what to fetch for the strip at column `first` and row `row`, `offset`
    /// into the output.
    #[inline(always)]
    fn ending(&self, first: usize, row: usize, offset: usize) -> (*const f32, Combine, *const f32) {
        let (none, c) = (std::ptr::null(), self.c[offset..].as_ptr());
        match &self.epilogue {
            Epilogue::Store => (none, Combine::Replace, c),
            Epilogue::Accumulate => (none, Combine::Add, c),
            Epilogue::Bias(bias) => (bias[first..].as_ptr(), Combine::Replace, c),
            Epilogue::BiasGelu { bias, derivative } => {
                (bias[first..].as_ptr(), Combine::Replace, derivative[offset..].as_ptr())
            }
            Epilogue::Residual { bias, residual, factors } => {
                let residual = residual[offset..].as_ptr();
                let factors = factors.map_or(none, |f| f[row..].as_ptr());
                let combine = Combine::AddScaled { residual, factors };
                (bias[first..].as_ptr(), combine, residual)
            }
            Epilogue::Multiply(d) => {
                let d = d[offset..].as_ptr();
                (none, Combine::Multiply(d), d)
            }
        }
    }
}

/// Values from the first to the last of a matrix whose rows lie `stride` apart.
fn span(rows: usize, columns: usize, stride: usize) -> usize {
    assert!(columns <= stride, "rows of {columns} values overlap at a distance of {stride}");
    if rows == 0 { 0 } else { (rows - 1) * stride + columns }
}

#[inline(always)]
fn gelu_in_place<S: Simd>(x: &mut [f32], derivative: &mut [f32]) {
    for piece in S::pieces(x.len()) {
        let (y, dy) = gelu(S::load(&x[piece.clone()]));
        y.store(&mut x[piece.clone()]);
        dy.store(&mut derivative[piece]);
    }
}

struct WeightGradient<'a> {
    rows: usize,
    m: usize,
    n: usize,
    a: &'a [f32],
    b: &'a [f32],
    c: &'a mut [f32],
    column_sums: Option<&'a mut [f32]>,
}

impl Kernel for WeightGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { rows, m, n, a, b, c, column_sums } = self;
        let mut panel = [PanelRow::ZERO; SUM_BLOCK];
        let blocks = rows.div_ceil(SUM_BLOCK);
        for block in 0..blocks {
            let (start, end) = (rows * block / blocks, rows * (block + 1) / blocks);
            for first in (0..n).step_by(PANEL) {
                let columns = PANEL.min(n - first);
                for (to, row) in panel.iter_mut().zip(start..end) {
                    to.copy_from(&b[row * n + first..][..columns]);
                }
                let strip = Strip {
                    k: end - start,
                    a: a[start * m..].as_ptr(),
                    a_stride: m,
                    b: panel.as_ptr().cast(),
                    c: c.as_mut_ptr().wrapping_add(first),
                    c_stride: n,
                    columns,
                    bias: std::ptr::null(),
                    combine: Combine::Add,
                    fetch: c.as_ptr().wrapping_add(first),
                };
                // SAFETY: `a` holds [rows, m] and `c` [m, n] values, as the caller has checked; the
                // panel holds `end - start` rows; `c` is borrowed exclusively.
                unsafe { strip.run::<S, true>(m) };
            }
        }
        if let Some(sums) = column_sums {
            for row in a.chunks_exact(m.max(1)) {
                for piece in S::pieces(m) {
                    let sum = S::load(&sums[piece.clone()]) + S::load(&row[piece.clone()]);
                    sum.store(&mut sums[piece]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
