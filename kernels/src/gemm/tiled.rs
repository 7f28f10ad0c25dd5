//! Strips of the output in tiles of pairs, where the processor has registers for whole tiles.

use super::tile::{Strip, finish, prefetch_output};
use crate::simd::amx::{Square, TILE_ROWS, Tiles};
use crate::simd::{PANEL, Simd, TILE_PAIRS};

/// Rows that are combined and stored at a time.
const GROUP: usize = 4;

/// Tiles of equal height for a number of rows.
pub(super) struct RowTiles {
    rows: usize,
    height: usize,
    tiles: Tiles,
}

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
    /// those that `tiles` are for; they are made by squares of 2 x 2 tiles in `room`.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    pub unsafe fn run_tiles<S: Simd>(self, tiles: &RowTiles, room: &mut Square) {
        debug_assert!(self.k.is_multiple_of(TILE_PAIRS), "{} pairs are not whole tiles", self.k);
        for square in 0..tiles.rows.div_ceil(2 * tiles.height) {
            let (first, starts) = (2 * square * tiles.height, tiles.starts(square));
            let rows = (tiles.rows - first).min(2 * tiles.height);
            let a = starts.map(|row| self.a.wrapping_add(row * self.a_stride));
            // SAFETY: tiles begin where `height` rows are left; the caller vouches for the pointers at
            // these rows.
            unsafe {
                prefetch_output::<S>(&self.below::<false>(first), rows);
                match self.k / TILE_PAIRS {
                    0 => *room = Square::ZERO,
                    steps => tiles.tiles.multiply(a, self.a_stride, self.b, steps, room),
                }
                let mut done = first;
                for (start, tile) in starts.into_iter().zip(room.0.chunks_exact(TILE_ROWS)) {
                    let rows = &tile[done - start..tiles.height];
                    self.below::<false>(done).store_rows::<S>(rows);
                    done = start + tiles.height;
                }
            }
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
