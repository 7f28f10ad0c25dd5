//! Strips of the output in tiles of pairs, where the processor has registers for whole tiles.
//!
//! A square of 2 x 2 tiles is made at a time. The sums are cut where a panel's part would not stay in
//! the first-level cache from one square to the next; a few squares wait there for the next part.

use super::tile::{Strip, finish, prefetch_output};
use crate::simd::amx::{Square, TILE_ROWS, Tiles};
use crate::simd::{PANEL, Simd, TILE_PAIRS};
use std::ops::Range;

/// Rows that are combined and stored at a time.
const GROUP: usize = 4;
/// Squares that share a part of a panel, 8 KiB together.
const SQUARES: usize = 2;
/// Tiles of terms in that part: 16 KiB, a third of the first-level cache.
const STEPS: usize = 8;

/// Tiles of equal height for a number of rows.
pub(super) struct RowTiles {
    rows: usize,
    height: usize,
    tiles: Tiles,
}

/// Room for the squares that share a part of a panel.
pub(super) type Squares = [Square; SQUARES];

impl RowTiles {
    /// Configures the tiles of this thread: an even number of them covers the rows.
    ///
    /// # Safety
    /// The machine must have tiles, and this thread no others.
    pub unsafe fn new(rows: usize) -> Self {
        let height = rows.div_ceil(2 * rows.div_ceil(2 * TILE_ROWS).max(1)).max(1);
        // SAFETY: the caller vouches for tiles.
        Self { rows, height, tiles: unsafe { Tiles::configure(height) } }
    }

    /// Their number.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Where the tiles of a square begin. The last one begins early where it would end behind the
    /// last row, and what it has in common with the one before it is stored once.
    fn starts(&self, square: usize) -> [usize; 2] {
        [2 * square, 2 * square + 1].map(|tile| (tile * self.height).min(self.rows - self.height))
    }
}

impl Strip {
    /// As [`Strip::run`], for a left factor of rows of pairs and a `k` of whole tiles. The rows are
    /// those that `tiles` are for.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    pub unsafe fn run_tiles<S: Simd>(self, tiles: &RowTiles, room: &mut Squares) {
        debug_assert!(self.k.is_multiple_of(TILE_PAIRS), "{} pairs are not whole tiles", self.k);
        let count = tiles.rows.div_ceil(2 * tiles.height);
        for first in (0..count).step_by(SQUARES) {
            let squares = first..count.min(first + SQUARES);
            // SAFETY: the caller vouches for the pointers.
            unsafe {
                let row = 2 * first * tiles.height;
                let rows = tiles.rows.min(2 * squares.end * tiles.height) - row;
                prefetch_output::<S>(&self.below::<false>(row), rows);
                self.multiply(tiles, squares.clone(), room);
                for square in squares {
                    self.store_square::<S>(tiles, square, &room[square - first]);
                }
            }
        }
    }

    /// Makes some squares.
    #[inline(always)]
    unsafe fn multiply(&self, tiles: &RowTiles, squares: Range<usize>, room: &mut Squares) {
        let steps = self.k / TILE_PAIRS;
        if steps == 0 {
            room.fill(Square::ZERO);
        }
        let parts = steps.div_ceil(STEPS);
        for part in 0..parts {
            let (start, end) = (steps * part / parts, steps * (part + 1) / parts);
            let pairs = start * TILE_PAIRS;
            let b = self.b.wrapping_add(pairs * PANEL);
            for (i, square) in squares.clone().enumerate() {
                let row = |row: usize| self.a.wrapping_add(row * self.a_stride + pairs);
                let (a, to) = (tiles.starts(square).map(row), &mut room[i]);
                // SAFETY: tiles begin where `height` rows are left; the caller vouches for the
                // pointers at these rows.
                unsafe { tiles.tiles.multiply(a, self.a_stride, b, end - start, part > 0, to) };
            }
        }
    }

    /// Combines and stores the rows of a square that those before it have left.
    #[inline(always)]
    unsafe fn store_square<S: Simd>(&self, tiles: &RowTiles, square: usize, values: &Square) {
        let mut done = 2 * square * tiles.height;
        for (start, tile) in tiles.starts(square).into_iter().zip(values.0.chunks_exact(TILE_ROWS))
        {
            // SAFETY: the caller vouches for the pointers at all rows.
            unsafe { self.below::<false>(done).store_rows::<S>(&tile[done - start..tiles.height]) };
            done = start + tiles.height;
        }
    }

    /// Combines and stores as many rows of the strip as are given.
    #[inline(always)]
    unsafe fn store_rows<S: Simd>(self, rows: &[[f32; PANEL]]) {
        let groups = rows.chunks_exact(GROUP);
        let rest = groups.remainder();
        // SAFETY: the caller vouches for the rows, and for the pointers at each.
        unsafe {
            for (i, group) in groups.enumerate() {
                self.below::<false>(i * GROUP).store_group::<S, GROUP>(group);
            }
            for (i, row) in rest.iter().enumerate() {
                let start = rows.len() - rest.len() + i;
                self.below::<false>(start).store_group::<S, 1>(std::slice::from_ref(row));
            }
        }
    }

    #[inline(always)]
    unsafe fn store_group<S: Simd, const ROWS: usize>(self, rows: &[[f32; PANEL]]) {
        let mut tile = [[S::splat(0.0); 2]; ROWS];
        for (tile, row) in tile.iter_mut().zip(rows) {
            *tile = [S::load(row), S::load(&row[S::LANES..])];
        }
        // SAFETY: the caller vouches for the rows.
        unsafe {
            match self.columns >= PANEL {
                true => finish::<S, ROWS, true>(&self, tile),
                false => finish::<S, ROWS, false>(&self, tile),
            }
        }
    }
}
