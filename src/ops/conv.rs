//! Convolutions as matrix products, on every device.

use burn::tensor::Tensor;

use super::Windows;

/// A convolution.
///
/// `x`: `[batch, height, width, in]`, `weight`: `[out, in, kernel, kernel]`, `bias`: `[out]`; returns
/// `[batch, rows, columns, out]` with one entry a window.
pub fn conv2d(x: Tensor<4>, weight: Tensor<4>, bias: Tensor<1>, windows: Windows) -> Tensor<4> {
    let [out, input, kernel, _] = weight.dims();
    let seen = super::unfold(x, windows);
    let [batch, rows, columns, size] = seen.dims();
    debug_assert_eq!((kernel, input * kernel * kernel), (windows.kernel, size));
    let seen = seen.reshape([batch * rows * columns, size]);
    super::linear(seen, weight.reshape([out, size]), bias).reshape([batch, rows, columns, out])
}
