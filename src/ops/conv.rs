//! Convolutions as matrix products, on every device.

use burn::tensor::{Int, Tensor, TensorData};

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

    /// For each window in turn and each of its places, row by row: the token there, or `batch *
    /// height * width` on the padding.
    fn tokens(&self, [batch, height, width]: [usize; 3]) -> Vec<i32> {
        let place = |window: usize, offset: usize, side: usize| {
            (window * self.stride + offset).checked_sub(self.padding).filter(|&at| at < side)
        };
        let mut tokens = Vec::new();
        for sample in 0..batch {
            for (row, column) in pairs(self.count(height), self.count(width)) {
                for (down, right) in pairs(self.kernel, self.kernel) {
                    let at = place(row, down, height).zip(place(column, right, width));
                    let token = at.map(|(y, x)| (sample * height + y) * width + x);
                    tokens.push(token.unwrap_or(batch * height * width) as i32);
                }
            }
        }
        tokens
    }
}

/// All pairs below the two bounds, row by row.
fn pairs(rows: usize, columns: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).flat_map(move |row| (0..columns).map(move |column| (row, column)))
}

/// Flattened windows of a map, PyTorch's `unfold`.
///
/// `x`: `[batch, height, width, channels]`; returns `[batch, rows, columns, channels * kernel^2]`
/// with one entry a window, channel-major inside (index = channel * kernel^2 + row * kernel +
/// column), as a convolution's weight lies.
pub fn unfold(x: Tensor<4>, windows: Windows) -> Tensor<4> {
    let [batch, height, width, channels] = x.dims();
    let (device, size) = (x.device(), windows.kernel.pow(2));
    let tokens = x.reshape([batch * height * width, channels]);
    // Places on the padding read one more token, of zeros.
    let tokens = Tensor::cat(vec![tokens, Tensor::zeros([1, channels], &device)], 0);
    let places = windows.tokens([batch, height, width]);
    let count = places.len();
    let places = Tensor::<1, Int>::from_data(TensorData::new(places, [count]), &device);
    let [rows, columns] = [height, width].map(|side| windows.count(side));
    let seen = tokens.select(0, places).reshape([batch * rows * columns, size, channels]);
    seen.swap_dims(1, 2).reshape([batch, rows, columns, channels * size])
}

/// A convolution.
///
/// `x`: `[batch, height, width, in]`, `weight`: `[out, in, kernel, kernel]`, `bias`: `[out]`; returns
/// `[batch, rows, columns, out]` with one entry a window.
pub fn conv2d(x: Tensor<4>, weight: Tensor<4>, bias: Tensor<1>, windows: Windows) -> Tensor<4> {
    let [out, input, kernel, _] = weight.dims();
    let seen = unfold(x, windows);
    let [batch, rows, columns, size] = seen.dims();
    debug_assert_eq!((kernel, input * kernel * kernel), (windows.kernel, size));
    let seen = seen.reshape([batch * rows * columns, size]);
    super::linear(seen, weight.reshape([out, size]), bias).reshape([batch, rows, columns, out])
}
