//! Rows of maps in f32, taken apart into blocks of channels and put together again.

use super::MapShape;
use crate::simd::{PANEL, Simd};
use std::ops::{Deref, DerefMut};

/// Some channels of one token, or one tap's of them. Vectors of it lie in one cache line each.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Block([f32; PANEL]);

impl Block {
    pub(super) const ZEROS: Self = Self([0.0; PANEL]);
}

impl Deref for Block {
    type Target = [f32; PANEL];

    #[inline(always)]
    fn deref(&self) -> &[f32; PANEL] {
        &self.0
    }
}

impl DerefMut for Block {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [f32; PANEL] {
        &mut self.0
    }
}

/// The three rows around the current one, block by block, with a token of zeros at either end of
/// each. Rows count from the one of zeros above the map, so that nothing is negative.
pub(super) struct Rows {
    /// Tokens of a row.
    width: usize,
    rows: [Vec<Block>; 3],
}

impl Rows {
    pub(super) fn new(shape: &MapShape) -> Self {
        let width = shape.width + 2;
        Self { width, rows: [(); 3].map(|()| vec![Block::ZEROS; width * shape.blocks()]) }
    }

    /// Puts zeros in the place of row `y - 3`.
    #[inline(always)]
    pub(super) fn clear(&mut self, y: usize) {
        self.rows[y % 3].fill(Block::ZEROS);
    }

    /// Begins with the map whose row 0 is row `first` of `x`.
    pub(super) fn start(&mut self, shape: &MapShape, x: &[f32], first: usize) {
        self.clear(0);
        self.set(1, &Row::of(x, shape, first));
    }

    /// Makes the rows around row `y` complete.
    #[inline(always)]
    pub(super) fn advance(&mut self, shape: &MapShape, x: &[f32], [first, y]: [usize; 2]) {
        match y + 1 < shape.height {
            true => self.set(y + 2, &Row::of(x, shape, first + y + 1)),
            false => self.clear(y + 2),
        }
    }

    /// Puts the tokens of `row` in the place of row `y - 3`. Lanes without a channel stay zeros.
    #[inline(always)]
    fn set(&mut self, y: usize, row: &Row<&[f32]>) {
        let to = &mut self.rows[y % 3];
        for (x, token) in row.values.chunks_exact(row.channels).enumerate() {
            let (whole, rest) = token.as_chunks::<PANEL>();
            let blocks = to[x + 1..].iter_mut().step_by(self.width);
            for (block, to) in whole.iter().zip(blocks) {
                **to = *block;
            }
            if !rest.is_empty() {
                to[whole.len() * self.width + x + 1][..rest.len()].copy_from_slice(rest);
            }
        }
    }

    /// The tokens of row `y` without the zeros at the ends.
    #[inline(always)]
    pub(super) fn inner(&mut self, y: usize, block: usize) -> &mut [Block] {
        let start = block * self.width;
        &mut self.rows[y % 3][start + 1..start + self.width - 1]
    }

    /// For each token between rows `y` and `y + 2`: it and its neighbours, row by row.
    #[inline(always)]
    pub(super) fn around(&self, y: usize, block: usize) -> impl Iterator<Item = [&[Block; 3]; 3]> {
        let row = |y: usize| {
            let start = block * self.width;
            self.rows[y % 3][start..start + self.width].array_windows::<3>()
        };
        row(y).zip(row(y + 1)).zip(row(y + 2)).map(|((above, here), below)| [above, here, below])
    }
}

/// A row of a map in memory, read or written vector by vector: for each vector of channels in turn,
/// all tokens.
pub(super) struct Row<T> {
    values: T,
    channels: usize,
}

impl<'a> Row<&'a [f32]> {
    /// Row `y` of the maps, counted through all of them.
    pub(super) fn of(maps: &'a [f32], shape: &MapShape, y: usize) -> Self {
        let row = shape.width * shape.channels;
        Self { values: &maps[y * row..][..row], channels: shape.channels }
    }

    /// The channels of `token` from `channel` on.
    #[inline(always)]
    pub(super) fn load<S: Simd>(&self, token: usize, channel: usize) -> S {
        let from = &self.values[token * self.channels + channel..(token + 1) * self.channels];
        prefetch_below::<S>(self.values.len(), from);
        S::load(from)
    }
}

impl<'a> Row<&'a mut [f32]> {
    /// Row `y` of the maps, counted through all of them.
    pub(super) fn of_mut(maps: &'a mut [f32], shape: &MapShape, y: usize) -> Self {
        let row = shape.width * shape.channels;
        Self { values: &mut maps[y * row..][..row], channels: shape.channels }
    }

    /// `values` as the channels of `token` from `channel` on.
    #[inline(always)]
    pub(super) fn store<S: Simd>(&mut self, token: usize, channel: usize, values: S) {
        let row = self.values.len();
        let to = &mut self.values[token * self.channels + channel..(token + 1) * self.channels];
        prefetch_below::<S>(row, to);
        values.store(to);
    }
}

/// Asks for the place in the next row, which lies `row` further on. Vectors of one token after the
/// other lie too far apart for the processor to see a pattern.
#[inline(always)]
fn prefetch_below<S: Simd>(row: usize, at: &[f32]) {
    S::prefetch(at.as_ptr().wrapping_add(row));
}
