//! Rows of maps, taken apart into blocks of channels and put together again.

use super::MapShape;
use crate::matrix::{Matrix, Precision};
use crate::simd::{PANEL, Simd};

/// Some channels of one token, or one tap's of them.
pub(super) type Block = [f32; PANEL];

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
        Self { width, rows: [(); 3].map(|()| vec![[0.0; PANEL]; width * shape.blocks()]) }
    }

    /// Puts zeros in the place of row `y - 3`.
    #[inline(always)]
    pub(super) fn clear(&mut self, y: usize) {
        self.rows[y % 3].fill([0.0; PANEL]);
    }

    /// Begins with the map whose row 0 is row `first` of `x`.
    #[inline(always)]
    pub(super) fn start<S: Simd>(&mut self, shape: &MapShape, x: Matrix<&[f32]>, first: usize) {
        self.clear(0);
        self.set::<S>(1, Row::of(x, shape, first));
    }

    /// Makes the rows around row `y` complete.
    #[inline(always)]
    pub(super) fn advance<S: Simd>(
        &mut self,
        shape: &MapShape,
        x: Matrix<&[f32]>,
        [first, y]: [usize; 2],
    ) {
        match y + 1 < shape.height {
            true => self.set::<S>(y + 2, Row::of(x, shape, first + y + 1)),
            false => self.clear(y + 2),
        }
    }

    /// Puts the tokens of `row` in the place of row `y - 3`. Lanes without a channel stay zeros.
    #[inline(always)]
    fn set<S: Simd>(&mut self, y: usize, row: Row<&[f32]>) {
        let (to, width) = (&mut self.rows[y % 3], row.precision.cells(PANEL));
        for (x, token) in row.cells.chunks_exact(row.cells_of_token).enumerate() {
            let blocks = to[x + 1..].iter_mut().step_by(self.width);
            match row.precision {
                Precision::F32 => {
                    let (whole, rest) = token.as_chunks::<PANEL>();
                    for (block, to) in whole.iter().zip(blocks) {
                        *to = *block;
                    }
                    if !rest.is_empty() {
                        to[whole.len() * self.width + x + 1][..rest.len()].copy_from_slice(rest);
                    }
                }
                Precision::Bf16 => {
                    for (block, to) in token.chunks(width).zip(blocks) {
                        for piece in S::pieces(block.len()) {
                            let (first, second) = S::load(&block[piece.clone()]).neighbours();
                            first.store(&mut to[2 * piece.start..]);
                            second.store(&mut to[2 * piece.start + S::LANES..]);
                        }
                    }
                }
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
/// all tokens. A vector of pairs is two of channels, of which the caller keeps one.
pub(super) struct Row<T> {
    cells: T,
    precision: Precision,
    channels: usize,
    cells_of_token: usize,
}

impl<T> Row<T> {
    pub(super) fn precision(&self) -> Precision {
        self.precision
    }
}

impl<'a> Row<&'a [f32]> {
    /// Row `y` of the maps, counted through all of them.
    pub(super) fn of(map: Matrix<&'a [f32]>, shape: &MapShape, y: usize) -> Self {
        let (channels, precision) = (shape.channels, map.precision);
        let cells_of_token = precision.cells(channels);
        let row = shape.width * cells_of_token;
        Self { cells: &map.cells[y * row..][..row], precision, channels, cells_of_token }
    }

    /// The channels of `token` from `channel` on.
    #[inline(always)]
    pub(super) fn load<S: Simd>(&self, token: usize, channel: usize, kept: &mut S) -> S {
        let cells = &self.cells[token * self.cells_of_token..][..self.cells_of_token];
        match self.precision {
            Precision::F32 => {
                prefetch_below::<S>(self.cells.len(), &cells[channel..]);
                S::load(&cells[channel..])
            }
            Precision::Bf16 if channel.is_multiple_of(2 * S::LANES) => {
                let cells = &cells[channel / 2..];
                prefetch_below::<S>(self.cells.len(), cells);
                let (first, second) = S::load(cells).neighbours();
                *kept = second;
                first
            }
            Precision::Bf16 => *kept,
        }
    }
}

impl<'a> Row<&'a mut [f32]> {
    /// Row `y` of the maps, counted through all of them.
    pub(super) fn of_mut(map: &'a mut Matrix<&mut [f32]>, shape: &MapShape, y: usize) -> Self {
        let (channels, precision) = (shape.channels, map.precision);
        let cells_of_token = precision.cells(channels);
        let row = shape.width * cells_of_token;
        Self { cells: &mut map.cells[y * row..][..row], precision, channels, cells_of_token }
    }

    /// `values` as the channels of `token` from `channel` on.
    #[inline(always)]
    pub(super) fn store<S: Simd>(&mut self, token: usize, channel: usize, values: S, kept: &mut S) {
        let row = self.cells.len();
        let cells = &mut self.cells[token * self.cells_of_token..][..self.cells_of_token];
        match self.precision {
            Precision::F32 => {
                prefetch_below::<S>(row, &cells[channel..]);
                values.store(&mut cells[channel..]);
            }
            Precision::Bf16 if !channel.is_multiple_of(2 * S::LANES) => {
                let cells = &mut cells[(channel - S::LANES) / 2..];
                prefetch_below::<S>(row, cells);
                S::pairs_of_neighbours(*kept, values).store(cells);
            }
            Precision::Bf16 if channel + S::LANES < self.channels => *kept = values,
            Precision::Bf16 => {
                S::pairs_of_neighbours(values, S::splat(0.0)).store(&mut cells[channel / 2..]);
            }
        }
    }
}

/// Asks for the place in the next row, which lies `row` further on. Vectors of one token after the
/// other lie too far apart for the processor to see a pattern.
#[inline(always)]
fn prefetch_below<S: Simd>(row: usize, at: &[f32]) {
    S::prefetch(at.as_ptr().wrapping_add(row));
}
