//! Strips of the output in tiles of pairs, where the processor has registers for whole tiles.

use super::tile::{Strip, finish, prefetch_output};
use crate::simd::amx::{Square, TILE_ROWS, Tiles};
use crate::simd::{PANEL, Simd, TILE_PAIRS};

/// Rows that are combined and stored at a time.
const GROUP: usize = 4;

impl Strip {
    /// As [`Strip::run`], for a left factor of rows of pairs and a `k` of whole tiles.
    ///
    /// # Safety
    /// As there; the machine must have tiles.
    #[inline(always)]
    pub unsafe fn run_tiles<S: Simd>(self, rows: usize) {
        debug_assert!(self.k.is_multiple_of(TILE_PAIRS), "{} pairs are not whole tiles", self.k);
        // Tiles of equal height. The last one begins early where it would end behind the last row,
        // and what it has in common with the one before it is left out.
        let squares = rows.div_ceil(2 * TILE_ROWS);
        if squares == 0 {
            return;
        }
        let height = rows.div_ceil(2 * squares);
        let mut square = Square([[0.0; PANEL]; 2 * TILE_ROWS]);
        let mut done = 0;
        // SAFETY: the caller vouches for tiles; tiles begin where `height` rows are left; and for the
        // pointers at these rows.
        unsafe {
            let tiles = Tiles::configure(height);
            for i in 0..squares {
                let starts = [2 * i, 2 * i + 1].map(|tile| (tile * height).min(rows - height));
                let left = starts.map(|row| self.a.wrapping_add(row * self.a_stride));
                prefetch_output::<S>(&self.below::<false>(done), starts[1] + height - done);
                tiles.multiply(left, self.a_stride, self.b, self.k / TILE_PAIRS, &mut square);
                for (start, tile) in starts.into_iter().zip(square.0.chunks_exact(TILE_ROWS)) {
                    let end = start + height;
                    self.below::<false>(done).store_rows::<S>(&tile[done - start..height]);
                    done = end;
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
