//! Windows of maps as rows of a matrix, and back: what makes a convolution a product.

use crate::check::check_len;
use crate::depthwise::MapShape;
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
/// is outside of the map. `x`: `[batch, height, width, channels]`; `out` is overwritten.
///
/// # Panics
/// If a slice has not the length that `shape` and `windows` imply.
pub fn unfold(shape: &MapShape, windows: &Windows, x: &[f32], out: &mut [f32]) {
    check_len("x", x, shape.values());
    check_len("the output", out, unfolded(shape, windows));
    let (channels, size) = (shape.channels, windows.size());
    visit(shape, windows, |window, range| {
        let out = &mut out[range];
        if !window.is_whole(windows) {
            out.fill(0.0);
        }
        for (first, places) in window.rows(shape, windows) {
            // The longer of both loops inside.
            if channels < windows.kernel {
                for (channel, out) in out.chunks_exact_mut(size).enumerate() {
                    let x = x[first * channels + channel..].iter().step_by(channels);
                    out[places.clone()].iter_mut().zip(x).for_each(|(out, x)| *out = *x);
                }
                continue;
            }
            for (token, place) in (first..).zip(places) {
                let x = &x[token * channels..][..channels];
                // One channel of the window after the other.
                for (out, x) in out.chunks_exact_mut(size).zip(x) {
                    out[place] = *x;
                }
            }
        }
    });
}

/// The gradient of [`unfold`]: `dx` (overwritten) sums what each token has in its windows' `dout`.
///
/// # Panics
/// If a slice has not the length that `shape` and `windows` imply.
pub fn fold(shape: &MapShape, windows: &Windows, dout: &[f32], dx: &mut [f32]) {
    check_len("dout", dout, unfolded(shape, windows));
    check_len("dx", dx, shape.values());
    dx.fill(0.0);
    let (channels, size) = (shape.channels, windows.size());
    visit(shape, windows, |window, range| {
        let dout = &dout[range];
        for (first, places) in window.rows(shape, windows) {
            for (token, place) in (first..).zip(places) {
                let dx = &mut dx[token * channels..][..channels];
                for (dx, dout) in dx.iter_mut().zip(dout.chunks_exact(size)) {
                    *dx += dout[place];
                }
            }
        }
    });
}

/// Values of the unfolded map.
fn unfolded(shape: &MapShape, windows: &Windows) -> usize {
    let sides = windows.count(shape.height) * windows.count(shape.width);
    shape.batch * sides * shape.channels * windows.size()
}

/// What a window has of its map.
struct Window {
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

/// Calls `at` for each window, with where its values lie.
#[inline(always)]
fn visit(shape: &MapShape, windows: &Windows, mut at: impl FnMut(Window, Range<usize>)) {
    let &MapShape { batch, height, width, channels } = shape;
    let (mut start, len) = (0, channels * windows.size());
    for sample in 0..batch {
        for row in 0..windows.count(height) {
            let (downs, y) = windows.inside(row, height);
            for column in 0..windows.count(width) {
                let (rights, x) = windows.inside(column, width);
                let first = (sample * height + y) * width + x;
                at(Window { downs: downs.clone(), rights, first }, start..start + len);
                start += len;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{self, Generator, assert_close};

    #[test]
    fn matches_the_definition() {
        let mut random = Generator::new(21);
        for (kernel, stride, padding) in
            [(1, 1, 0), (3, 2, 1), (7, 4, 3), (7, 4, 2), (2, 2, 0), (3, 1, 2), (1, 2, 1)]
        {
            let all = [(1, 1, 1, 1), (0, 4, 4, 2), (1, 3, 2, 33), (2, 9, 8, 3), (1, 7, 12, 17)];
            for &(batch, height, width, channels) in reference::fewer_under_miri(&all, 3) {
                let windows = Windows { kernel, stride, padding };
                let shape = MapShape { batch, height, width, channels };
                if height.min(width) + 2 * padding < kernel {
                    continue;
                }
                let x = random.normal(shape.values());
                let mut out = vec![9.0; unfolded(&shape, &windows)];
                unfold(&shape, &windows, &x, &mut out);
                let dout = random.normal(out.len());
                let mut dx = vec![9.0; x.len()];
                fold(&shape, &windows, &dout, &mut dx);
                let exact = reference::unfold(&shape, &windows, &x, &dout);
                assert_close(&out, &exact.out, 0.0);
                assert_close(&dx, &exact.dx, 2e-6);
            }
        }
    }

    #[test]
    #[should_panic(expected = "the output: 7 values where 8 are needed")]
    fn a_short_output_is_refused() {
        let shape = MapShape { batch: 1, height: 2, width: 2, channels: 2 };
        let windows = Windows { kernel: 2, stride: 2, padding: 0 };
        unfold(&shape, &windows, &[0.0; 8], &mut [0.0; 7]);
    }
}
