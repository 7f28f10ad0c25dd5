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
    if windows.padding > 0 {
        out.fill(0.0);
    }
    visit(shape, windows, |token, window, place| {
        let x = &x[token..][..shape.channels];
        // One channel of the window after the other.
        let out = out[window..][..shape.channels * windows.size()].chunks_exact_mut(windows.size());
        for (out, x) in out.zip(x) {
            out[place] = *x;
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
    visit(shape, windows, |token, window, place| {
        let dx = &mut dx[token..][..shape.channels];
        let dout = dout[window..][..shape.channels * windows.size()].chunks_exact(windows.size());
        for (dx, dout) in dx.iter_mut().zip(dout) {
            *dx += dout[place];
        }
    });
}

/// Values of the unfolded map.
fn unfolded(shape: &MapShape, windows: &Windows) -> usize {
    let sides = windows.count(shape.height) * windows.count(shape.width);
    shape.batch * sides * shape.channels * windows.size()
}

/// Calls `at` for each token in each window, with where the token's values and the window's begin
/// and the token's place in the window.
#[inline(always)]
fn visit(shape: &MapShape, windows: &Windows, mut at: impl FnMut(usize, usize, usize)) {
    let &MapShape { batch, height, width, channels } = shape;
    let mut window = 0;
    for sample in 0..batch {
        for row in 0..windows.count(height) {
            let (downs, y) = windows.inside(row, height);
            for column in 0..windows.count(width) {
                let (rights, x) = windows.inside(column, width);
                for (y, down) in (y..).zip(downs.clone()) {
                    let first = (sample * height + y) * width + x;
                    for (token, right) in (first..).zip(rights.clone()) {
                        at(token * channels, window, down * windows.kernel + right);
                    }
                }
                window += channels * windows.size();
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
