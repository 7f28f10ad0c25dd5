//! A product, panel by panel and block by block.

use super::pack::PackedB;
use super::pairs::{PairColumns, pair_rows, transpose_to_pairs};
use super::tile::{Combine, Strip};
use super::tiled::{RowOfTiles, TILED_ROWS, Tiled};
use super::{Epilogue, ROW_BLOCK, TILED_LEFT, WORK, Work};
use super::{block, equal_parts, tiled_columns};
use crate::check::check_len;
use crate::gelu::{gelu, gelu_for_bf16};
use crate::matrix::{Matrix, Precision, check_precision};
use crate::simd::{Kernel, Level, PANEL, Simd};
use std::ops::Range;

/// C = A B for parts of larger matrices; the rows of `c` are the given distance apart.
pub(crate) fn product<'a>(
    level: Level,
    m: usize,
    a: Left,
    b: &PackedB,
    (c, c_stride): (impl Into<Matrix<&'a mut [f32]>>, usize),
    epilogue: Epilogue,
) {
    let c = c.into();
    let tiles = level.has_tiles() && b.precision() == Precision::Bf16;
    WORK.with_borrow_mut(|work| {
        level.run(Product { tiles, m, a, b, c, c_stride, epilogue, work });
    });
}

/// The left factor of a product: `[m, k]` with rows at distance `stride`, or its transpose.
pub(crate) struct Left<'a> {
    pub data: Matrix<&'a [f32]>,
    pub stride: usize,
    /// `data` is `[k, m]`.
    pub transposed: bool,
    /// Zeros in each row of pairs fill its last tile.
    pub padded: bool,
}

impl<'a> Left<'a> {
    pub fn rows(data: impl Into<Matrix<&'a [f32]>>, stride: usize) -> Self {
        Self { data: data.into(), stride, transposed: false, padded: false }
    }

    /// Rows of `k` columns, each filled up to [`Precision::padded_cells`] with zeros.
    pub fn padded_rows(data: impl Into<Matrix<&'a [f32]>>, k: usize) -> Self {
        let data = data.into();
        Self { data, stride: data.precision.padded_cells(k), transposed: false, padded: true }
    }

    pub fn transposed(data: impl Into<Matrix<&'a [f32]>>, stride: usize) -> Self {
        Self { data: data.into(), stride, transposed: true, padded: false }
    }
}

/// A product into a matrix whose rows lie `c_stride` apart. The matrices inside the epilogue are
/// laid out like `c`.
struct Product<'a> {
    /// Multiply tiles of pairs.
    tiles: bool,
    m: usize,
    a: Left<'a>,
    b: &'a PackedB,
    c: Matrix<&'a mut [f32]>,
    c_stride: usize,
    epilogue: Epilogue<'a>,
    work: &'a mut Work,
}

impl Kernel for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self) {
        self.check();
        for rows in equal_parts(0..self.m, self.left_rows()) {
            let left = self.left::<S>(rows.clone());
            match self.tiles {
                true => self.tiled_rows::<S>(left, rows),
                false => self.rows::<S>(left, rows),
            }
        }
    }
}

impl Product<'_> {
    /// Rows of the left factor that go through all panels at a time.
    #[inline(always)]
    fn left_rows(&self) -> usize {
        match self.tiles {
            true => ROW_BLOCK.max(TILED_LEFT / self.strip_cells().max(1)),
            false => ROW_BLOCK,
        }
    }

    /// `rows` of the output, not more than [`ROW_BLOCK`], panel by panel from the left factor at `left`.
    #[inline(always)]
    fn rows<S: Simd>(&mut self, left: (*const f32, usize), rows: Range<usize>) {
        for first in (0..self.b.n()).step_by(PANEL) {
            let columns = first..self.b.n().min(first + PANEL);
            let strip = self.strip(left, rows.start, columns.clone());
            // SAFETY: `check` has compared every slice with the rows and columns in use, `left` comes
            // from the method of that name with as many rows and terms, `c` is borrowed exclusively.
            unsafe {
                match (self.a.transposed, self.b.precision()) {
                    (false, Precision::F32) => strip.run::<S, false, false, false>(rows.len()),
                    (false, Precision::Bf16) => strip.run::<S, false, true, false>(rows.len()),
                    (true, Precision::F32) => strip.run::<S, true, false, false>(rows.len()),
                    (true, Precision::Bf16) => strip.run::<S, true, true, false>(rows.len()),
                }
            }
            self.complete::<S>(rows.clone(), columns);
        }
    }

    /// The same in tiles: as many panels as the second-level cache holds, row of tiles by row of tiles.
    #[inline(always)]
    fn tiled_rows<S: Simd>(&mut self, (left, stride): (*const f32, usize), rows: Range<usize>) {
        let mut tiles = RowOfTiles::new(std::mem::take(&mut self.work.squares));
        let n = self.b.n();
        let group = tiled_columns(n, self.strip_cells());
        for start in (0..n).step_by(group) {
            for part in equal_parts(rows.clone(), TILED_ROWS) {
                let left = (left.wrapping_add((part.start - rows.start) * stride), stride);
                // SAFETY: as in `rows`; the level has tiles, this thread no others, and the strip aside
                // room for their rows.
                unsafe { tiles.run::<S>(self, left, part, start..n.min(start + group)) }
            }
        }
        self.work.squares = tiles.into_squares();
    }

    /// Where `rows` of the left factor begin and how far apart its rows, or if it is transposed its
    /// columns, lie; in bf16 after they have been made pairs.
    #[inline(always)]
    fn left<S: Simd>(&mut self, rows: Range<usize>) -> (*const f32, usize) {
        let Left { data, stride, transposed, padded } = self.a;
        let (start, k) = (rows.start * if transposed { 1 } else { stride }, self.b.k());
        let cells = self.strip_cells();
        let whole_tiles = !self.tiles || padded || cells == data.precision.cells(k);
        if k == 0 || data.precision == self.b.precision() && whole_tiles {
            return (data.cells.as_ptr().wrapping_add(start), stride);
        }
        let from = Matrix { cells: &data.cells[start..], ..data };
        let to = block(&mut self.work.pairs, rows.len() * cells);
        if !transposed {
            PairColumns { from, stride, columns: k, cells, to: &mut *to }.run::<S>();
            return (to.as_ptr(), cells);
        }
        if self.tiles {
            transpose_to_pairs::<S>(from, stride, 0..k, cells, to);
            return (to.as_ptr(), cells);
        }
        for (i, to) in to.chunks_exact_mut(rows.len()).enumerate() {
            pair_rows::<S>(from, stride, 2 * i..k, to);
        }
        (to.as_ptr(), rows.len())
    }

    /// Terms of each sum, or pairs of them, that are multiplied.
    #[inline(always)]
    fn strip_cells(&self) -> usize {
        let (precision, k) = (self.b.precision(), self.b.k());
        if self.tiles { precision.padded_cells(k) } else { precision.cells(k) }
    }

    /// Whether values are rounded after the tile: GELU wants them exact, and in registers alone it
    /// would need more of these than there are.
    #[inline(always)]
    fn gelu_in_bf16(&self) -> bool {
        let gelu = matches!(self.epilogue, Epilogue::BiasGelu { .. });
        gelu && self.c.precision == Precision::Bf16
    }

    /// Panics unless every slice covers the matrix it stands for.
    fn check(&self) {
        let (m, k, n) = (self.m, self.b.k(), self.b.n());
        let (a, c, precision) = (&self.a.data, &self.c, self.b.precision());
        check_precision("the left factor", a.precision, precision);
        check_precision("the output", c.precision, precision);
        let (a_rows, a_columns) = if self.a.transposed { (k, m) } else { (m, k) };
        assert!(!self.a.transposed || a.precision == Precision::F32, "a transpose of pairs");
        let a_cells = match self.a.padded {
            true => a.precision.padded_cells(a_columns),
            false => a.precision.cells(a_columns),
        };
        let a_needs = span(a_rows, a_cells, self.a.stride);
        let c_needs = span(m, c.precision.cells(n), self.c_stride);
        let covers = |name: &str, len: usize, needs: usize| {
            assert!(len >= needs, "{name}: {len} values where {needs} are needed");
        };
        covers("the left factor", a.cells.len(), a_needs);
        covers("the output", c.cells.len(), c_needs);
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
        let rounds = !matches!(self.epilogue, Epilogue::Accumulate | Epilogue::Residual { .. });
        assert!(rounds || c.precision == Precision::F32, "a sum into a matrix of bf16");
    }

    /// Bias, combination and what to fetch for the strip at column `first` and row `row`, `offset`
    /// into the output.
    #[inline(always)]
    fn ending(&self, first: usize, row: usize, offset: usize) -> (*const f32, Combine, *const f32) {
        let none = std::ptr::null();
        let bf16 = self.c.precision == Precision::Bf16;
        let plain = if bf16 { Combine::Round } else { Combine::Replace };
        match &self.epilogue {
            Epilogue::Store => (none, plain, none),
            Epilogue::Accumulate => (none, Combine::Add, none),
            Epilogue::Bias(bias) => (bias[first..].as_ptr(), plain, none),
            Epilogue::BiasGelu { bias, .. } if bf16 => {
                (bias[first..].as_ptr(), Combine::Replace, none)
            }
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
                (none, if bf16 { Combine::MultiplyAndRound(d) } else { Combine::Multiply(d) }, d)
            }
        }
    }
}

impl Tiled for Product<'_> {
    /// That of a GELU in bf16 is put aside.
    #[inline(always)]
    fn strip(
        &mut self,
        (a, a_stride): (*const f32, usize),
        row: usize,
        columns: Range<usize>,
    ) -> Strip {
        let first = columns.start;
        let offset = row * self.c_stride + self.c.precision.cells(first);
        let (bias, combine, fetch) = self.ending(first, row, offset);
        let aside = self.gelu_in_bf16();
        Strip {
            k: self.strip_cells(),
            a,
            a_stride,
            b: self.b.panel(first / PANEL),
            b_stride: PANEL,
            c: if aside {
                self.work.strip.as_mut_ptr()
            } else {
                self.c.cells[offset..].as_mut_ptr()
            },
            c_stride: if aside { PANEL } else { self.c_stride },
            columns: columns.len(),
            bias,
            combine,
            fetch,
        }
    }

    /// The last part of [`Epilogue::BiasGelu`]: on the output itself, in bf16 from the strip aside.
    #[inline(always)]
    fn complete<S: Simd>(&mut self, rows: Range<usize>, columns: Range<usize>) {
        let aside = self.gelu_in_bf16();
        let Epilogue::BiasGelu { derivative, .. } = &mut self.epilogue else { return };
        let cells = |column: usize| self.c.precision.cells(column);
        for (row, values) in rows.zip(self.work.strip.chunks_exact(PANEL)) {
            let start = row * self.c_stride;
            let part = start + cells(columns.start)..start + cells(columns.end);
            let (y, derivative) = (&mut self.c.cells[part.clone()], &mut derivative[part]);
            match aside {
                true => gelu_pairs::<S>(&values[..columns.len()], y, derivative),
                false => gelu_in_place::<S>(y, derivative),
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

/// As many values as [`gelu_in_place`], given in full and returned as pairs of neighbours.
#[inline(always)]
fn gelu_pairs<S: Simd>(x: &[f32], y: &mut [f32], derivative: &mut [f32]) {
    for piece in S::pieces(y.len()) {
        let (first, second) = (2 * piece.start, x.len().min(2 * piece.start + S::LANES));
        let (first, second) = (S::load(&x[first..]), S::load(&x[second..]));
        let (first, second) = (gelu_for_bf16(first), gelu_for_bf16(second));
        S::pairs_of_neighbours(first.0, second.0).store(&mut y[piece.clone()]);
        S::pairs_of_neighbours(first.1, second.1).store(&mut derivative[piece]);
    }
}
