//! Products in tiles of pairs, where the processor has registers for whole tiles: a row of tiles goes
//! through panel after panel, so that the output is written from end to end.

use super::tile::{Strip, finish, prefetch_output};
use super::{block, equal_parts};
use crate::simd::amx::{Square, TILE_ROWS, Tiles};
use crate::simd::{PANEL, Simd, TILE_PAIRS};
use std::ops::Range;

/// Most rows of two tiles.
pub(super) const TILED_ROWS: usize = 2 * TILE_ROWS;
/// Steps of a sum that are made for all panels before the next ones: 16 KiB of left factors, which stay
/// in the first-level cache while as many steps of each panel pass it.
const STEPS: usize = 8;
/// Rows that are combined and stored at a time.
const GROUP: usize = 4;

/// A product whose output is made in tiles.
pub(super) trait Tiled {
    /// The strip of the output's `columns`, one panel, from row `row` on, a product of left factors that
    /// begin at the given pointer; each row of them is as many pairs further.
    fn strip(&mut self, left: (*const f32, usize), row: usize, columns: Range<usize>) -> Strip;

    /// Does what is left to be done with these `rows` and `columns`, one panel.
    fn complete<S: Simd>(&mut self, rows: Range<usize>, columns: Range<usize>);
}

/// The tile registers of this thread, set up for a number of rows.
pub(super) struct RowOfTiles {
    rows: usize,
    tiles: Option<Tiles>,
    /// Sums, a square of the output for each panel that has to wait for the rest of them.
    squares: Vec<Square>,
}

impl RowOfTiles {
    /// No tiles yet; sums will lie in `squares`.
    pub fn new(squares: Vec<Square>) -> Self {
        Self { rows: 0, tiles: None, squares }
    }

    /// Room for sums, again.
    pub fn into_squares(self) -> Vec<Square> {
        self.squares
    }

    /// These `rows`, at most [`TILED_ROWS`], and `columns` of a product, from left factors whose first
    /// row lies at `left`.
    ///
    /// # Safety
    /// The machine must have tiles, and this thread none but these; strips must be valid as for
    /// [`Strip::run`], with rows of pairs for left factors and a `k` of whole tiles.
    #[inline(always)]
    pub unsafe fn run<S: Simd>(
        &mut self,
        product: &mut impl Tiled,
        left: (*const f32, usize),
        rows: Range<usize>,
        columns: Range<usize>,
    ) {
        let cut = |first: usize| first..columns.end.min(first + PANEL);
        let k = product.strip(left, rows.start, cut(columns.start)).k / TILE_PAIRS;
        let squares = if k > STEPS { columns.len().div_ceil(PANEL) } else { 1 };
        block(&mut self.squares, squares);
        // SAFETY: the caller vouches for tiles.
        unsafe { self.configure(rows.len()) };
        // A sum of nothing has one part as well.
        for steps in equal_parts(0..k, STEPS).chain((k == 0).then_some(0..0)) {
            for (panel, first) in columns.clone().step_by(PANEL).enumerate() {
                let square = panel.min(squares - 1);
                let strip = product.strip(left, rows.start, cut(first));
                if steps.end == k {
                    prefetch_output::<S>(&strip, self.rows);
                }
                // SAFETY: the caller vouches for strips.
                unsafe {
                    self.add(strip, steps.clone(), square);
                    if steps.end == k {
                        self.store::<S>(strip, square);
                        product.complete::<S>(rows.clone(), cut(first));
                    }
                }
            }
        }
    }

    /// Sets tiles up for as many rows, two of equal height.
    ///
    /// # Safety
    /// The machine must have tiles, and this thread none but these.
    unsafe fn configure(&mut self, rows: usize) {
        if self.tiles.is_none() || self.rows != rows {
            self.tiles = None;
            // SAFETY: the caller vouches for tiles, and those for other rows are gone.
            self.tiles = Some(unsafe { Tiles::configure(rows.div_ceil(2)) });
            self.rows = rows;
        }
    }

    /// Adds the products of these `steps` to a square, which begins anew with the first of them.
    ///
    /// # Safety
    /// The rows and the panel must be readable at these steps.
    #[inline(always)]
    unsafe fn add(&mut self, strip: Strip, steps: Range<usize>, square: usize) {
        let first = steps.start * TILE_PAIRS;
        let (square, Some(tiles)) = (&mut self.squares[square], &self.tiles) else { return };
        if steps.is_empty() {
            *square = Square::default();
            return;
        }
        // The second tile begins early where it would end behind the last row.
        let a = [0, self.rows / 2].map(|row| strip.a.wrapping_add(row * strip.a_stride + first));
        let b = strip.b.wrapping_add(first * PANEL);
        // SAFETY: both tiles end with or before the last row; the caller vouches for these and the panel.
        unsafe { tiles.multiply(a, strip.a_stride, b, steps.len(), square, first > 0) }
    }

    /// Combines and stores a square.
    ///
    /// # Safety
    /// As [`Strip::run`], for these rows.
    #[inline(always)]
    unsafe fn store<S: Simd>(&self, strip: Strip, square: usize) {
        let (first, second) = self.squares[square].0.split_at(TILE_ROWS);
        // What both tiles have in common is stored once.
        let (height, common) = (self.rows.div_ceil(2), self.rows % 2);
        // SAFETY: the caller vouches for the rows, and there are at least as many as in the first tile.
        unsafe {
            store_rows::<S>(strip, &first[..height]);
            store_rows::<S>(strip.below::<false>(height), &second[common..height]);
        }
    }
}

/// Combines and stores as many rows of the strip as are given.
///
/// # Safety
/// As [`Strip::run`].
#[inline(always)]
unsafe fn store_rows<S: Simd>(strip: Strip, rows: &[[f32; PANEL]]) {
    let groups = rows.chunks_exact(GROUP);
    let rest = groups.remainder();
    // SAFETY: the caller vouches for the rows, and for the pointers at each.
    unsafe {
        for (i, group) in groups.enumerate() {
            store_group::<S, GROUP>(strip.below::<false>(i * GROUP), group);
        }
        for (i, row) in rest.iter().enumerate() {
            let start = rows.len() - rest.len() + i;
            store_group::<S, 1>(strip.below::<false>(start), std::slice::from_ref(row));
        }
    }
}

/// [`store_rows`] of one group.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn store_group<S: Simd, const ROWS: usize>(strip: Strip, rows: &[[f32; PANEL]]) {
    let mut tile = [[S::splat(0.0); 2]; ROWS];
    for (tile, row) in tile.iter_mut().zip(rows) {
        *tile = [S::load(row), S::load(&row[S::LANES..])];
    }
    // SAFETY: the caller vouches for the rows.
    unsafe {
        match strip.columns >= PANEL {
            true => finish::<S, ROWS, true>(&strip, tile),
            false => finish::<S, ROWS, false>(&strip, tile),
        }
    }
}
