//! Gradients of weights: products of two activations, summed over their rows.

use super::pack::PanelRow;
use super::pairs::{pair_rows, transpose_to_pairs};
use super::tile::{Combine, Strip};
use super::tiled::{RowOfTiles, TILED_ROWS, Tiled};
use super::{WORK, Work, block, equal_parts, tiled_columns};
use crate::check::check_len;
use crate::matrix::{Matrix, Precision, check_precision};
use crate::simd::{Kernel, Level, PANEL, Simd, TILE_PAIRS};
use std::ops::Range;

/// Rows, or pairs of rows, of a weight gradient's operands that are summed in registers: their packed
/// panel (32 KiB) stays in the first-level cache.
const SUM_BLOCK: usize = 256;
/// From how many columns of the output on it pays to copy a left factor whose rows lie a multiple of
/// [`FEW_SETS`] apart.
const COPIED: usize = 3 * PANEL;
/// Columns of one such row after the other have room in so few places of the first two caches that they
/// push each other out.
const FEW_SETS: usize = 512;
/// Up to how many columns of the left factor, rows of the output, a right factor in the precision of the
/// product is not packed: there are few tiles to read it, or in bf16 to make pairs of its rows.
const FEW_ROWS: usize = 48;
/// The same as [`SUM_BLOCK`] for tiles, which are through with a panel so fast that the gradient's way to memory and
/// back counts for more.
const TILED_SUM_BLOCK: usize = 1024;

/// C = C + A^T B, the gradient of a weight stored `[out, in]`: `a` is the gradient of the layer's
/// output `[rows, m]`, `b` its input `[rows, n]`, `c` `[m, n]`. The sums of `a`'s columns, the
/// gradient of the bias, are added to `column_sums` `[m]`, if given.
///
/// # Panics
/// If a slice has not the length that `rows`, `m` and `n` imply; if `a` or `b` is bf16 and the
/// `precision` of the products is not.
pub fn matmul_transposed_a<'a>(
    precision: Precision,
    [rows, m, n]: [usize; 3],
    a: impl Into<Matrix<&'a [f32]>>,
    b: impl Into<Matrix<&'a [f32]>>,
    c: &mut [f32],
    column_sums: Option<&mut [f32]>,
) {
    let (level, sides) = (Level::current(), [rows, m, n]);
    matmul_transposed_a_at(level, precision, sides, a.into(), b.into(), c, column_sums);
}

pub(crate) fn matmul_transposed_a_at(
    level: Level,
    precision: Precision,
    [rows, m, n]: [usize; 3],
    a: Matrix<&[f32]>,
    b: Matrix<&[f32]>,
    c: &mut [f32],
    column_sums: Option<&mut [f32]>,
) {
    for (name, x, columns) in [("the left factor", a, m), ("the right factor", b, n)] {
        check_len(name, x.cells, rows * x.precision.cells(columns));
        check_precision(name, x.precision, precision);
    }
    check_len("the output", c, m * n);
    if let Some(sums) = &column_sums {
        check_len("the column sums", sums, m);
    }
    let (sides, tiles) = ([rows, m, n], level.has_tiles() && precision == Precision::Bf16);
    WORK.with_borrow_mut(|work| {
        level.run(WeightGradient { tiles, precision, sides, a, b, c, column_sums, work });
    });
}

struct WeightGradient<'a> {
    /// Multiply tiles of pairs.
    tiles: bool,
    precision: Precision,
    /// Rows, m and n.
    sides: [usize; 3],
    a: Matrix<&'a [f32]>,
    b: Matrix<&'a [f32]>,
    c: &'a mut [f32],
    column_sums: Option<&'a mut [f32]>,
    work: &'a mut Work,
}

impl Kernel for WeightGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self) {
        let mut panels = std::mem::take(&mut self.work.panels);
        let rows = self.sides[0];
        let cells = self.precision.cells(rows);
        let blocks = cells.div_ceil(if self.tiles { TILED_SUM_BLOCK } else { SUM_BLOCK });
        for block in 0..blocks {
            let cells = cells * block / blocks..cells * (block + 1) / blocks;
            let terms = self.precision.terms();
            let rows = terms * cells.start..rows.min(terms * cells.end);
            let cells =
                if self.tiles { cells.len().next_multiple_of(TILE_PAIRS) } else { cells.len() };
            if !self.sums_of_pairs() {
                self.add_column_sums::<S>(rows.clone());
            }
            match self.precision {
                Precision::F32 => self.add::<S, false>(rows, cells, &mut panels),
                Precision::Bf16 => self.add::<S, true>(rows, cells, &mut panels),
            }
        }
        self.work.panels = panels;
    }
}

/// Adds the rows of `x` to `sums`, one for each column: some columns of all rows in registers.
#[inline(always)]
fn add_rows<S: Simd>(x: Matrix<&[f32]>, sums: &mut [f32]) {
    const VECTORS: usize = 4;
    let (width, precision) = (VECTORS * S::LANES, x.precision);
    let stride = precision.cells(sums.len());
    for (i, sums) in sums.chunks_mut(width).enumerate() {
        let (first, cells) = (precision.cells(i * width), precision.cells(sums.len()));
        let rows = x.cells.chunks_exact(stride).map(|row| &row[first..first + cells]);
        if sums.len() < width {
            match precision {
                Precision::F32 => rows.for_each(|row| add::<S>(row, sums)),
                Precision::Bf16 => rows.for_each(|row| add_pairs::<S>(row, sums)),
            }
            continue;
        }
        let mut totals = [S::splat(0.0); VECTORS];
        for row in rows {
            let vectors = row.chunks_exact(S::LANES);
            if precision == Precision::F32 {
                for (total, x) in totals.iter_mut().zip(vectors) {
                    *total = *total + S::load(x);
                }
                continue;
            }
            for ([first, second], x) in totals.as_chunks_mut::<2>().0.iter_mut().zip(vectors) {
                let pairs = S::load(x).neighbours();
                (*first, *second) = (*first + pairs.0, *second + pairs.1);
            }
        }
        for (total, sum) in totals.into_iter().zip(sums.chunks_exact_mut(S::LANES)) {
            (S::load(sum) + total).store(sum);
        }
    }
}

#[inline(always)]
fn add<S: Simd>(x: &[f32], sums: &mut [f32]) {
    for piece in S::pieces(sums.len()) {
        (S::load(&sums[piece.clone()]) + S::load(&x[piece.clone()])).store(&mut sums[piece]);
    }
}

/// Adds both numbers of all pairs in each column of `x` to `sums`, one for each column.
#[inline(always)]
fn add_pairs_of_rows<S: Simd>(x: &[f32], sums: &mut [f32]) {
    const VECTORS: usize = 4;
    let ones = S::splat(f32::from_bits(ONES));
    let (stride, width) = (sums.len(), VECTORS * S::LANES);
    for (i, sums) in sums.chunks_mut(width).enumerate() {
        let mut totals = [S::splat(0.0); VECTORS];
        for row in x.chunks_exact(stride) {
            let row = &row[i * width..][..sums.len()];
            for (total, piece) in totals.iter_mut().zip(S::pieces(row.len())) {
                *total = total.add_products(S::load(&row[piece]), ones);
            }
        }
        for (total, piece) in totals.into_iter().zip(S::pieces(sums.len())) {
            (S::load(&sums[piece.clone()]) + total).store(&mut sums[piece]);
        }
    }
}

/// The bits of a pair of ones.
const ONES: u32 = 0x3f80_3f80;

/// [`add`] for pairs of neighbours.
#[inline(always)]
fn add_pairs<S: Simd>(x: &[f32], sums: &mut [f32]) {
    for piece in S::pieces(x.len()) {
        let (first, second) = S::load(&x[piece.clone()]).neighbours();
        let sums = &mut sums[2 * piece.start..];
        (S::load(sums) + first).store(sums);
        if let Some(sums) = sums.get_mut(S::LANES..) {
            (S::load(sums) + second).store(sums);
        }
    }
}

impl WeightGradient<'_> {
    /// Whether the column sums are those of the left factor's pairs of rows, which lie at hand and are
    /// added up two at a time. A left factor in f32 is not rounded for its sums.
    #[inline(always)]
    fn sums_of_pairs(&self) -> bool {
        self.a.precision == Precision::Bf16 && !self.tiles
    }

    /// Adds these `rows` of `a` to the column sums.
    #[inline(always)]
    fn add_column_sums<S: Simd>(&mut self, rows: Range<usize>) {
        let (a, m) = (self.a, self.sides[1]);
        let Some(sums) = &mut self.column_sums else { return };
        let cells = a.precision.cells(m);
        let rows = &a.cells[rows.start * cells..rows.end * cells];
        add_rows::<S>(Matrix { cells: rows, ..a }, sums);
    }

    /// Adds the products of `rows`, in sums of as many terms as `cells`; `panels` is room for columns of
    /// `b`.
    #[inline(always)]
    fn add<S: Simd, const PAIRS: bool>(
        &mut self,
        rows: Range<usize>,
        cells: usize,
        panels: &mut Vec<PanelRow>,
    ) {
        let [_, m, n] = self.sides;
        if m == 0 {
            return;
        }
        let group = if self.tiles { tiled_columns(n, cells) } else { PANEL };
        let panels = block(panels, cells * group / PANEL);
        let left = self.left::<S, PAIRS>(rows.clone(), cells);
        if self.is_loose() {
            return self.add_loose::<S, PAIRS>(left, rows);
        }
        for start in (0..n).step_by(group) {
            let columns = start..n.min(start + group);
            self.pack::<S, PAIRS>(rows.clone(), columns.clone(), cells, panels);
            self.add_panels::<S, PAIRS>(left, columns, panels, cells);
        }
    }

    /// Whether the right factor is multiplied where it lies.
    #[inline(always)]
    fn is_loose(&self) -> bool {
        let [rows, m, _] = self.sides;
        // The last of an odd number of rows would have no partner.
        let whole = rows.is_multiple_of(self.precision.terms());
        m <= FEW_ROWS && whole && !self.tiles && self.b.precision == self.precision
    }

    /// Adds the products of these `rows` with a right factor as it lies in memory.
    #[inline(always)]
    fn add_loose<S: Simd, const PAIRS: bool>(
        &mut self,
        (a, a_stride): (*const f32, usize),
        rows: Range<usize>,
    ) {
        let [_, m, n] = self.sides;
        let b_stride = self.precision.cells(n);
        for first in (0..n).step_by(PANEL) {
            let strip = Strip {
                k: rows.len() / self.precision.terms(),
                a,
                a_stride,
                b: self.b.cells[rows.start * b_stride + self.precision.cells(first)..].as_ptr(),
                b_stride,
                c: self.c[first..].as_mut_ptr(),
                c_stride: n,
                columns: PANEL.min(n - first),
                bias: std::ptr::null(),
                combine: Combine::Add,
                fetch: std::ptr::null(),
            };
            // SAFETY: the left factor has `m` rows, as many as the output, and these rows have as many
            // columns as the output and, one or two together, as many terms as the left factor.
            unsafe { strip.run::<S, true, PAIRS, true>(m) }
        }
    }

    /// Copies these `rows` of the left factor in strips as high as a tile, the last of which may be lower:
    /// terms lie side by side.
    #[inline(always)]
    fn copy_strips<S: Simd>(&mut self, rows: Range<usize>) -> (*const f32, usize) {
        let (m, cells, height) = (self.sides[1], rows.len(), S::TILE_ROWS);
        let a = &self.a.cells[rows.start * m..rows.end * m];
        let copy = block(&mut self.work.pairs, m.div_ceil(height) * height * cells);
        for (i, row) in a.chunks_exact(m).enumerate() {
            for (strip, start) in (0..m).step_by(height).enumerate() {
                let to = &mut copy[(strip * cells + i) * height..][..height];
                match row.get(start..start + height) {
                    // Of a length that the compiler knows.
                    Some(whole) => to.copy_from_slice(whole),
                    None => to[..m - start].copy_from_slice(&row[start..]),
                }
            }
        }
        (copy.as_ptr(), height)
    }

    /// These `rows` and `columns` of `b` as panels, read from one end of a row to the other.
    #[inline(always)]
    fn pack<S: Simd, const PAIRS: bool>(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        cells: usize,
        panels: &mut [PanelRow],
    ) {
        let (n, b) = (self.sides[2], self.b);
        let b_stride = b.precision.cells(n);
        for i in 0..cells {
            for (panel, first) in columns.clone().step_by(PANEL).enumerate() {
                let (width, to) = (PANEL.min(n - first), &mut panels[panel * cells + i]);
                let b = Matrix { cells: &b.cells[b.precision.cells(first)..], ..b };
                match PAIRS {
                    false => to.copy_from(&b.cells[(rows.start + i) * n..][..width]),
                    true => to.pair::<S>(b, b_stride, rows.start + 2 * i..rows.end, width),
                }
            }
        }
    }

    /// Adds the products of the left factor at `left` and these `columns`, whose `panels` have `cells`
    /// rows each.
    #[inline(always)]
    fn add_panels<S: Simd, const PAIRS: bool>(
        &mut self,
        (left, stride): (*const f32, usize),
        columns: Range<usize>,
        panels: &[PanelRow],
        cells: usize,
    ) {
        let [_, m, n] = self.sides;
        let mut panels = Panels { c: &mut *self.c, n, panels, cells, first: columns.start };
        // SAFETY: the left factor has `m` rows, as many as the output, or is their transpose, and both
        // factors have `cells` terms; where there are tiles, this thread has no others.
        unsafe {
            if !self.tiles {
                if stride == m {
                    panels.strip((left, stride), 0, columns).run::<S, true, PAIRS, false>(m);
                    return;
                }
                for start in (0..m).step_by(stride) {
                    let left = left.wrapping_add(start * cells);
                    let strip = panels.strip((left, stride), start, columns.clone());
                    strip.run::<S, true, PAIRS, false>(stride.min(m - start));
                }
                return;
            }
            let mut tiles = RowOfTiles::new(std::mem::take(&mut self.work.squares));
            for rows in equal_parts(0..m, TILED_ROWS) {
                let left = (left.wrapping_add(rows.start * stride), stride);
                tiles.run::<S>(&mut panels, left, rows, columns.clone());
            }
            self.work.squares = tiles.into_squares();
        }
    }

    /// The columns of these `rows` of `a`: where they begin, and how far apart columns, or in tiles
    /// rows of their transpose, lie. As many terms as `cells`.
    #[inline(always)]
    fn left<S: Simd, const PAIRS: bool>(
        &mut self,
        rows: Range<usize>,
        cells: usize,
    ) -> (*const f32, usize) {
        let (a, m, sums_of_pairs) = (self.a, self.sides[1], self.sums_of_pairs());
        let stride = a.precision.cells(m);
        if !PAIRS {
            return match self.sides[2] >= COPIED && m.is_multiple_of(FEW_SETS) {
                true => self.copy_strips::<S>(rows),
                false => (a.cells[rows.start * stride..].as_ptr(), stride),
            };
        }
        let to = block(&mut self.work.pairs, cells * m);
        if self.tiles {
            transpose_to_pairs::<S>(a, stride, rows, cells, to);
            return (to.as_ptr(), cells);
        }
        for (i, to) in to.chunks_exact_mut(m).enumerate() {
            pair_rows::<S>(a, stride, rows.start + 2 * i..rows.end, to);
        }
        let to = &*to;
        if let Some(sums) = self.column_sums.as_mut().filter(|_| sums_of_pairs) {
            add_pairs_of_rows::<S>(to, sums);
        }
        (to.as_ptr(), m)
    }
}

/// Columns of the output, from `first` on, and the right factor's panels for them, `cells` rows each.
struct Panels<'a> {
    c: &'a mut [f32],
    n: usize,
    panels: &'a [PanelRow],
    cells: usize,
    first: usize,
}

impl Tiled for Panels<'_> {
    #[inline(always)]
    fn strip(
        &mut self,
        (a, a_stride): (*const f32, usize),
        row: usize,
        columns: Range<usize>,
    ) -> Strip {
        let panel = (columns.start - self.first) / PANEL;
        Strip {
            k: self.cells,
            a,
            a_stride,
            b: self.panels[panel * self.cells..].as_ptr().cast(),
            b_stride: PANEL,
            c: self.c[row * self.n + columns.start..].as_mut_ptr(),
            c_stride: self.n,
            columns: columns.len(),
            bias: std::ptr::null(),
            combine: Combine::Add,
            fetch: std::ptr::null(),
        }
    }

    #[inline(always)]
    fn complete<S: Simd>(&mut self, _: Range<usize>, _: Range<usize>) {}
}
