//! Matrix products with what surrounds them in a transformer folded in.
//!
//! The right factor is packed in panels of 32 columns ([`PackedB`]), weights once a step. The left
//! factor is read where it lies: activations are used once or twice, and packing them would cost
//! more than it saves. Rows are taken in blocks small enough to stay in the second-level cache
//! while panel after panel goes through the first.
//!
//! In bf16 both factors are rounded to pairs of neighbouring terms (`pairs`), the left one block
//! by block; a pair takes the place of one f32 and everything else stays as it is.

use crate::check::check_len;
use crate::gelu::gelu;
use crate::simd::amx::Square;
use crate::simd::{Kernel, Level, PANEL, Simd, TILE_PAIRS};
use std::cell::RefCell;
use std::ops::Range;
use tile::{Combine, Strip};
use tiled::{RowTiles, Squares};

mod gradient;
mod pack;
mod pairs;
mod tile;
mod tiled;
pub use gradient::matmul_transposed_a;
pub use pack::PackedB;
pub(crate) use pairs::PairColumns;
use pairs::{pair_rows, transpose_to_pairs};

/// How exactly the factors of a product enter it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// As they are.
    #[default]
    F32,
    /// Rounded to bf16, 8 significant bits; products and sums are f32. See
    /// [`crate::bf16_is_faster`].
    Bf16,
}

impl Precision {
    /// `"f32"` or `"bf16"`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// Terms of a sum that are multiplied at a time.
    const fn terms(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 => 2,
        }
    }

    /// f32 or pairs that `k` columns of a [`Matrix`], or terms of a sum, fill.
    pub const fn cells(self, k: usize) -> usize {
        k.div_ceil(self.terms())
    }

    /// [`Self::cells`] and the zeros that fill the last tile of pairs.
    pub(crate) const fn padded_cells(self, k: usize) -> usize {
        match self {
            Self::F32 => k,
            Self::Bf16 => self.cells(k).next_multiple_of(TILE_PAIRS),
        }
    }
}

/// A row-major matrix in memory.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<T> {
    /// f32 values; in bf16 pairs of neighbouring columns instead, each in the place of one f32, an odd
    /// last column with a zero. Only the functions of this crate make sense of pairs.
    pub cells: T,
    /// What the values are rounded to.
    pub precision: Precision,
}

impl<T> From<T> for Matrix<T> {
    /// f32 values.
    fn from(cells: T) -> Self {
        Self { cells, precision: Precision::F32 }
    }
}

/// Memory of a thread between the factors and the output of a product.
struct Work {
    /// Pairs on their way into a product: rows of its left factor, or a panel before it is transposed.
    pairs: Vec<f32>,
    /// A strip of the output that is not finished in registers.
    strip: [f32; ROW_BLOCK * PANEL],
    squares: Squares,
}

thread_local! {
    static WORK: RefCell<Work> = const {
        RefCell::new(Work {
            pairs: Vec::new(),
            strip: [0.0; ROW_BLOCK * PANEL],
            squares: [Square::ZERO; _],
        })
    };
}

/// The first `len` values of a buffer that grows on demand.
pub(crate) fn block(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

/// Rows of the left factor that go through all panels before the next rows; of the output that are made
/// from one panel.
const ROW_BLOCK: usize = 128;
/// Cells of the left factor that go through all panels where tiles multiply them, so fast that the
/// panels' way from memory counts: 1 MiB, half of the second-level cache of the processors with tiles.
const TILED_LEFT: usize = 256 * 1024;

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

/// C = A B with an [`Epilogue`], in the precision that `b` is packed in. `a` is `[m, k]`, `b` packs
/// `[k, n]`, `c` is `[m, n]`; matrices in the epilogue lie in memory as `c` does.
///
/// # Panics
/// If a slice has not the length that `m` and `b` imply; if `a` or `c` is bf16 and `b` is not; if `c`
/// is bf16 and the epilogue adds to it or has a residual.
pub fn matmul<'a>(
    m: usize,
    a: impl Into<Matrix<&'a [f32]>>,
    b: &PackedB,
    c: impl Into<Matrix<&'a mut [f32]>>,
    epilogue: Epilogue,
) {
    matmul_at(Level::current(), m, a.into(), b, c.into(), epilogue);
}

pub(crate) fn matmul_at(
    level: Level,
    m: usize,
    a: Matrix<&[f32]>,
    b: &PackedB,
    c: Matrix<&mut [f32]>,
    epilogue: Epilogue,
) {
    let (k, n) = (a.precision.cells(b.k()), c.precision.cells(b.n()));
    check_len("the left factor", a.cells, m * k);
    check_len("the output", c.cells, m * n);
    product(level, m, Left::rows(a, k), b, (c, n), epilogue);
}

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

/// Panics if a matrix is bf16 in a product that is not.
#[track_caller]
fn check_precision(name: &str, precision: Precision, of_product: Precision) {
    let fits = precision == Precision::F32 || of_product == Precision::Bf16;
    assert!(fits, "{name} is bf16 in a product of f32");
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
        let n = self.b.n();
        let mut tiles = None;
        for rows in equal_parts(0..self.m, self.left_rows()) {
            let (a, stride) = self.left::<S>(rows.clone());
            for first in (0..n).step_by(PANEL) {
                let columns = first..n.min(first + PANEL);
                for part in equal_parts(rows.clone(), ROW_BLOCK) {
                    let left = (a.wrapping_add((part.start - rows.start) * stride), stride);
                    self.part::<S>(left, part, columns.clone(), &mut tiles);
                }
            }
        }
    }
}

/// `range` in as few parts of nearly equal length as make none longer than `most`, which is even. Cuts
/// are even numbers of rows from the start, so that none divides a pair.
fn equal_parts(range: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    let (start, len) = (range.start, range.len());
    let count = len.div_ceil(most);
    let cut = move |i: usize| len.min((len * i / count).next_multiple_of(2));
    (0..count).map(move |i| start + cut(i)..start + cut(i + 1))
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

    /// `rows`, not more than [`ROW_BLOCK`], of the output's `columns`, one panel, from rows of the left
    /// factor at `left`. `tiles` are those of the part before.
    #[inline(always)]
    fn part<S: Simd>(
        &mut self,
        left: (*const f32, usize),
        rows: Range<usize>,
        columns: Range<usize>,
        tiles: &mut Option<RowTiles>,
    ) {
        if self.tiles && tiles.as_ref().is_none_or(|tiles| tiles.rows() != rows.len()) {
            drop(tiles.take());
            // SAFETY: the level has tiles, and those of other rows are gone.
            *tiles = Some(unsafe { RowTiles::new(rows.len()) });
        }
        let strip = self.strip(left, rows.start, columns.clone());
        // SAFETY: `check` has compared every slice with the rows and columns in use, `left` comes from
        // the method of that name with as many rows and terms, `c` is borrowed exclusively, and
        // the strip aside has room for a block.
        unsafe {
            match (tiles, self.a.transposed, self.b.precision()) {
                (Some(tiles), ..) => strip.run_tiles::<S>(tiles, &mut self.work.squares),
                (_, false, Precision::F32) => strip.run::<S, false, false>(rows.len()),
                (_, false, Precision::Bf16) => strip.run::<S, false, true>(rows.len()),
                (_, true, Precision::F32) => strip.run::<S, true, false>(rows.len()),
                (_, true, Precision::Bf16) => strip.run::<S, true, true>(rows.len()),
            }
        }
        if matches!(self.epilogue, Epilogue::BiasGelu { .. }) {
            self.gelu::<S>(rows, columns);
        }
    }

    /// Where `rows` of the left factor begin and how far apart its rows, or if it is transposed its
    /// columns, lie; in bf16 after they have been made pairs.
    #[inline(always)]
    fn left<S: Simd>(&mut self, rows: Range<usize>) -> (*const f32, usize) {
        let Left { data, stride, transposed, padded } = self.a;
        let (start, k) = (rows.start * if transposed { 1 } else { stride }, self.b.k());
        let cells = self.strip_cells();
        let whole_tiles = !self.tiles || padded || cells == data.precision.cells(k);
        if rows.is_empty() || data.precision == self.b.precision() && whole_tiles {
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

    /// The strip of `columns` from row `row` on, made from `left`; that of a GELU in bf16 is put
    /// aside.
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

    /// Whether values are rounded after the tile: GELU wants them exact, and in registers alone it
    /// would need more of these than there are.
    #[inline(always)]
    fn gelu_in_bf16(&self) -> bool {
        let gelu = matches!(self.epilogue, Epilogue::BiasGelu { .. });
        gelu && self.c.precision == Precision::Bf16
    }

    /// The last part of [`Epilogue::BiasGelu`]: on the output itself, in bf16 from `scratch`.
    #[inline(always)]
    fn gelu<S: Simd>(&mut self, rows: Range<usize>, columns: Range<usize>) {
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
        let (first, second) = (gelu(S::load(&x[first..])), gelu(S::load(&x[second..])));
        S::pairs_of_neighbours(first.0, second.0).store(&mut y[piece.clone()]);
        S::pairs_of_neighbours(first.1, second.1).store(&mut derivative[piece]);
    }
}

#[cfg(test)]
mod tests;
