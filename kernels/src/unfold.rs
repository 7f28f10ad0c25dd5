//! Windows of maps as rows of a matrix, and back: what makes a convolution a product.

use crate::check::check_len;
use crate::depthwise::MapShape;
use crate::gemm::PairColumns;
use crate::matrix::{Matrix, Precision};
use crate::simd::{Kernel, Level, PANEL, Simd};
use std::ops::Range;

/// The windows of a convolution: square, the same distance apart along both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Side of a window.
    pub kernel: usize,
    /// Distance between two windows.
    pub stride: usize,
    /// Zeros around the map.
    pub padding: usize,
}

impl Windows {
    /// Windows along a side of `side` tokens; what does not fill a last window is dropped.
    pub const fn count(&self, side: usize) -> usize {
        (side + 2 * self.padding - self.kernel) / self.stride + 1
    }

    /// Tokens of a window.
    const fn size(&self) -> usize {
        self.kernel * self.kernel
    }

    /// The places of window number `window` along a side of `side` tokens that lie on the map, and
    /// the token at the first of them.
    fn inside(&self, window: usize, side: usize) -> (Range<usize>, usize) {
        let start = window * self.stride;
        let first = self.padding.saturating_sub(start);
        let last = (side + self.padding).saturating_sub(start).min(self.kernel);
        (first..last.max(first), start + first - self.padding)
    }
}

/// Windows of a map `[batch, rows, columns, channels * kernel^2]`, channel-major inside (index =
/// channel * kernel^2 + row * kernel + column) as a convolution's weight lies; zeros where a window
/// is outside of the map. `x`: `[batch, height, width, channels]`; `out` is overwritten. Both may be
/// bf16, `x` with a token and `out` with a window a row.
///
/// # Panics
/// If a slice has not the length that `shape` and `windows` imply.
pub fn unfold<'a>(
    shape: &MapShape,
    windows: &Windows,
    x: impl Into<Matrix<&'a [f32]>>,
    out: impl Into<Matrix<&'a mut [f32]>>,
) {
    unfold_at(Level::current(), shape, windows, x.into(), out.into());
}

fn unfold_at(
    level: Level,
    shape: &MapShape,
    windows: &Windows,
    x: Matrix<&[f32]>,
    out: Matrix<&mut [f32]>,
) {
    check_len("x", x.cells, shape.cells(x.precision));
    check_len("the output", out.cells, unfolded(shape, windows, out.precision));
    level.run(Unfold { shape, windows, x, out });
}

/// [`unfold`] of maps with a plane for each channel, `x`: `[batch, channels, height, width]`.
///
/// # Panics
/// If a slice has not the length that `shape` and `windows` imply.
pub fn unfold_planes<'a>(
    shape: &MapShape,
    windows: &Windows,
    x: &[f32],
    out: impl Into<Matrix<&'a mut [f32]>>,
) {
    unfold_planes_at(Level::current(), shape, windows, x, out.into());
}

fn unfold_planes_at(
    level: Level,
    shape: &MapShape,
    windows: &Windows,
    x: &[f32],
    out: Matrix<&mut [f32]>,
) {
    check_len("x", x, shape.values());
    check_len("the output", out.cells, unfolded(shape, windows, out.precision));
    level.run(UnfoldPlanes { shape, windows, x, out });
}

/// The gradient of [`unfold`] in f32: to `dx` `[batch, height, width, channels]` is added what each token
/// has in its windows' `dout`.
///
/// # Panics
/// If a slice has not the length that `shape` and `windows` imply.
pub fn fold(shape: &MapShape, windows: &Windows, dout: &[f32], dx: &mut [f32]) {
    fold_at(Level::current(), shape, windows, dout, dx);
}

fn fold_at(level: Level, shape: &MapShape, windows: &Windows, dout: &[f32], dx: &mut [f32]) {
    check_len("dout", dout, unfolded(shape, windows, Precision::F32));
    check_len("dx", dx, shape.values());
    level.run(Fold { shape, windows, dout, dx });
}

struct Unfold<'a> {
    shape: &'a MapShape,
    windows: &'a Windows,
    x: Matrix<&'a [f32]>,
    out: Matrix<&'a mut [f32]>,
}

impl Kernel for Unfold<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { shape, windows, x, out } = self;
        let channels = shape.channels;
        let cells = x.precision.cells(channels);
        let mut turned = Turned::new(channels, windows.size());
        let size = channels * windows.size();
        let mut rows = out.cells.chunks_exact_mut(out.precision.cells(size).max(1));
        visit(shape, windows, |window| {
            if !window.is_whole(windows) {
                turned.tokens.fill(0.0);
            }
            for (first, places) in window.rows(shape, windows) {
                let to = &mut turned.tokens[channels * places.start..channels * places.end];
                let from = &x.cells[cells * first..cells * (first + places.len())];
                match x.precision {
                    Precision::F32 => to.copy_from_slice(from),
                    Precision::Bf16 => {
                        let tokens = to.chunks_exact_mut(channels.max(1));
                        for (to, from) in tokens.zip(from.chunks_exact(cells.max(1))) {
                            widen::<S>(from, to);
                        }
                    }
                }
            }
            turned.by_channel::<S>();
            let cells = rows.next().expect("a row for each window");
            write::<S>(&turned.channels[..size], Matrix { cells, precision: out.precision });
        });
    }
}

struct UnfoldPlanes<'a> {
    shape: &'a MapShape,
    windows: &'a Windows,
    x: &'a [f32],
    out: Matrix<&'a mut [f32]>,
}

impl Kernel for UnfoldPlanes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { shape, windows, x, out } = self;
        let (channels, size, kernel) = (shape.channels, windows.size(), windows.kernel);
        let (plane, width) = (shape.height * shape.width, out.precision.cells(channels * size));
        // With room for a vector behind: whole ones are copied, the next row overwrites what is too much.
        let mut seen = vec![0.0; channels * size + PANEL];
        let mut rows = out.cells.chunks_exact_mut(width.max(1));
        visit(shape, windows, |window| {
            let whole = window.is_whole(windows) && kernel <= S::LANES;
            if !whole {
                seen.fill(0.0);
            }
            for channel in 0..channels {
                // Tokens are counted through the maps.
                let skipped = (window.sample * (channels - 1) + channel) * plane;
                for (first, places) in window.rows(shape, windows) {
                    let to = &mut seen[channel * size..];
                    match whole {
                        true => S::load(&x[skipped + first..]).store(&mut to[places.start..]),
                        false => {
                            let from = &x[skipped + first..][..places.len()];
                            to[places].copy_from_slice(from);
                        }
                    }
                }
            }
            let cells = rows.next().expect("a row for each window");
            write::<S>(&seen[..channels * size], Matrix { cells, precision: out.precision });
        });
    }
}

struct Fold<'a> {
    shape: &'a MapShape,
    windows: &'a Windows,
    dout: &'a [f32],
    dx: &'a mut [f32],
}

impl Kernel for Fold<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { shape, windows, dout, dx } = self;
        let channels = shape.channels;
        let width = channels * windows.size();
        let (mut turned, mut rows) =
            (Turned::new(channels, windows.size()), dout.chunks_exact(width.max(1)));
        visit(shape, windows, |window| {
            turned.channels[..width].copy_from_slice(rows.next().expect("a row for each window"));
            turned.by_token::<S>();
            for (first, places) in window.rows(shape, windows) {
                let from = &turned.tokens[channels * places.start..channels * places.end];
                let to = &mut dx[channels * first..][..from.len()];
                to.iter_mut().zip(from).for_each(|(dx, d)| *dx += d);
            }
        });
    }
}

/// Side of the blocks that are transposed in registers.
const BLOCK: usize = 8;

/// One window both ways.
struct Turned {
    /// `[size, channels]` with room for a last block.
    tokens: Vec<f32>,
    /// `[channels, size]` with room behind for the last block of the last channel.
    channels: Vec<f32>,
    sides: [usize; 2],
}

impl Turned {
    fn new(channels: usize, size: usize) -> Self {
        let tokens = vec![0.0; size.next_multiple_of(BLOCK) * channels];
        Self { tokens, channels: vec![0.0; channels * size + BLOCK], sides: [size, channels] }
    }

    /// Where blocks of places begin, those that reach beyond a channel's last place first: what they
    /// write there is overwritten by the others. None if single values have to be moved.
    #[inline(always)]
    fn blocks(&self) -> Option<impl Iterator<Item = (usize, usize)> + use<>> {
        let [size, channels] = self.sides;
        let fits = size >= BLOCK && channels.is_multiple_of(BLOCK);
        let places = (0..size).step_by(BLOCK).rev();
        let all = places.flat_map(move |p| (0..channels).step_by(BLOCK).map(move |c| (p, c)));
        fits.then_some(all)
    }

    /// `channels` from `tokens`.
    #[inline(always)]
    fn by_channel<S: Simd>(&mut self) {
        let [size, channels] = self.sides;
        let Some(blocks) = self.blocks() else {
            for (place, token) in self.tokens.chunks_exact(channels.max(1)).take(size).enumerate() {
                for (channel, x) in token.iter().enumerate() {
                    self.channels[channel * size + place] = *x;
                }
            }
            return;
        };
        for (place, channel) in blocks {
            let from = &self.tokens[place * channels + channel..][..(BLOCK - 1) * channels + BLOCK];
            let to = &mut self.channels[channel * size + place..][..(BLOCK - 1) * size + BLOCK];
            // SAFETY: both slices hold 8 rows of 8 at these distances.
            unsafe { S::transpose_8x8(from.as_ptr(), channels, to.as_mut_ptr(), size) };
        }
    }

    /// `tokens` from `channels`.
    #[inline(always)]
    fn by_token<S: Simd>(&mut self) {
        let [size, channels] = self.sides;
        let Some(blocks) = self.blocks() else {
            for (place, token) in
                self.tokens.chunks_exact_mut(channels.max(1)).take(size).enumerate()
            {
                for (channel, x) in token.iter_mut().enumerate() {
                    *x = self.channels[channel * size + place];
                }
            }
            return;
        };
        for (place, channel) in blocks {
            let from = &self.channels[channel * size + place..][..(BLOCK - 1) * size + BLOCK];
            let to =
                &mut self.tokens[place * channels + channel..][..(BLOCK - 1) * channels + BLOCK];
            // SAFETY: as in `by_channel`.
            unsafe { S::transpose_8x8(from.as_ptr(), size, to.as_mut_ptr(), channels) };
        }
    }
}

/// The numbers of a token's pairs.
#[inline(always)]
fn widen<S: Simd>(pairs: &[f32], to: &mut [f32]) {
    for piece in S::pieces(pairs.len()) {
        let (first, second) = S::load(&pairs[piece.clone()]).neighbours();
        let to = &mut to[2 * piece.start..];
        first.store(to);
        if let Some(rest) = to.get_mut(S::LANES..) {
            second.store(rest);
        }
    }
}

/// A window in the precision of its row.
#[inline(always)]
fn write<S: Simd>(window: &[f32], row: Matrix<&mut [f32]>) {
    match row.precision {
        Precision::F32 => row.cells.copy_from_slice(window),
        Precision::Bf16 => {
            let (columns, cells, to) = (window.len(), row.cells.len(), row.cells);
            PairColumns { from: window.into(), stride: columns, columns, cells, to }.run::<S>();
        }
    }
}

/// Cells of the unfolded map.
fn unfolded(shape: &MapShape, windows: &Windows, precision: Precision) -> usize {
    let sides = windows.count(shape.height) * windows.count(shape.width);
    shape.batch * sides * precision.cells(shape.channels * windows.size())
}

/// What a window has of its map.
struct Window {
    /// Number of the map.
    sample: usize,
    /// The places that lie on the map, along both sides.
    downs: Range<usize>,
    rights: Range<usize>,
    /// The token at the first of them.
    first: usize,
}

impl Window {
    /// Whether all of it lies on the map.
    fn is_whole(&self, windows: &Windows) -> bool {
        self.downs.len() == windows.kernel && self.rights.len() == windows.kernel
    }

    /// Row by row: the first token, and the places in the window.
    fn rows<'a>(
        &'a self,
        shape: &'a MapShape,
        windows: &'a Windows,
    ) -> impl Iterator<Item = (usize, Range<usize>)> + 'a {
        self.downs.clone().enumerate().map(|(i, down)| {
            let place = |right| down * windows.kernel + right;
            let places = place(self.rights.start)..place(self.rights.end);
            (self.first + i * shape.width, places)
        })
    }
}

/// Calls `at` for each window.
#[inline(always)]
fn visit(shape: &MapShape, windows: &Windows, mut at: impl FnMut(Window)) {
    let &MapShape { batch, height, width, .. } = shape;
    for sample in 0..batch {
        for row in 0..windows.count(height) {
            let (downs, y) = windows.inside(row, height);
            for column in 0..windows.count(width) {
                let (rights, x) = windows.inside(column, width);
                let first = (sample * height + y) * width + x;
                at(Window { sample, downs: downs.clone(), rights, first });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{self, Generator, assert_close};

    const BF16: Precision = Precision::Bf16;

    #[test]
    fn matches_the_definition_at_every_level() {
        let mut random = Generator::new(21);
        for (kernel, stride, padding) in
            [(1, 1, 0), (3, 2, 1), (7, 4, 3), (7, 4, 2), (2, 2, 0), (3, 1, 2), (1, 2, 1), (8, 8, 0)]
        {
            let all = [
                (1, 1, 1, 1),
                (0, 4, 4, 2),
                (1, 3, 2, 33),
                (2, 9, 8, 3),
                (1, 7, 12, 17),
                (2, 9, 16, 16),
                (1, 8, 8, 40),
            ];
            for &(batch, height, width, channels) in reference::fewer_under_miri(&all, 3) {
                let windows = Windows { kernel, stride, padding };
                let shape = MapShape { batch, height, width, channels };
                if height.min(width) + 2 * padding < kernel {
                    continue;
                }
                let x = random.normal(shape.values());
                let dout = random.normal(unfolded(&shape, &windows, Precision::F32));
                let exact = reference::unfold(&shape, &windows, &x, &dout);
                for level in Level::available() {
                    let mut out = vec![9.0; dout.len()];
                    unfold_at(level, &shape, &windows, Matrix::from(&x[..]), (&mut out[..]).into());
                    assert_close(&out, &exact.out, 0.0);
                    let mut dx = vec![1.0; x.len()];
                    fold_at(level, &shape, &windows, &dout, &mut dx);
                    let plus: Vec<f64> = exact.dx.iter().map(|dx| dx + 1.0).collect();
                    assert_close(&dx, &plus, 2e-6);
                    in_bf16(level, &shape, &windows, &x);
                    of_planes(level, &shape, &windows, &x);
                }
            }
        }
    }

    /// From and to pairs it is the same, each value rounded.
    fn in_bf16(level: Level, shape: &MapShape, windows: &Windows, x: &[f32]) {
        let rounded: Vec<f32> = x.iter().map(|&x| reference::bf16(x)).collect();
        let mut exact = vec![9.0; unfolded(shape, windows, Precision::F32)];
        unfold_at(level, shape, windows, Matrix::from(&rounded[..]), (&mut exact[..]).into());
        let mut pairs = vec![9.0; shape.cells(BF16)];
        crate::scale_rows(
            shape.channels,
            x,
            None,
            Matrix { cells: &mut pairs[..], precision: BF16 },
        );
        let mut out = vec![9.0; unfolded(shape, windows, BF16)];
        for from in [Matrix { cells: &pairs[..], precision: BF16 }, Matrix::from(x)] {
            let to = Matrix { cells: &mut out[..], precision: BF16 };
            unfold_at(level, shape, windows, from, to);
            let width = shape.channels * windows.size();
            assert_eq!(reference::values_of_pairs(&out, width), exact, "{level:?} {shape:?}");
        }
    }

    /// From planes it is the same.
    fn of_planes(level: Level, shape: &MapShape, windows: &Windows, x: &[f32]) {
        let (tokens, channels) = (shape.height * shape.width, shape.channels);
        let maps = x.chunks_exact((tokens * channels).max(1));
        let planes: Vec<f32> = maps
            .flat_map(|map| {
                (0..tokens * channels).map(move |i| map[i % tokens * channels + i / tokens])
            })
            .collect();
        for precision in [Precision::F32, BF16] {
            let [mut out, mut exact] =
                [9.0, 8.0].map(|x| vec![x; unfolded(shape, windows, precision)]);
            let to = Matrix { cells: &mut exact[..], precision };
            unfold_at(level, shape, windows, Matrix::from(x), to);
            let to = Matrix { cells: &mut out[..], precision };
            unfold_planes_at(level, shape, windows, &planes, to);
            assert_eq!(out, exact, "{level:?} {shape:?}");
        }
    }

    #[test]
    #[should_panic(expected = "the output: 7 values where 8 are needed")]
    fn a_short_output_is_refused() {
        let shape = MapShape { batch: 1, height: 2, width: 2, channels: 2 };
        let windows = Windows { kernel: 2, stride: 2, padding: 0 };
        unfold(&shape, &windows, &[0.0; 8][..], &mut [0.0; 7][..]);
    }
}
