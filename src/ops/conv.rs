//! Convolutions: on the CPU as matrix products, elsewhere burn's own.

use burn::tensor::{Tensor, module, ops::ConvOptions};

use super::Windows;

/// A convolution.
///
/// `x`: `[batch, height, width, in]`, `weight`: `[out, in, kernel, kernel]`, `bias`: `[out]`; returns
/// `[batch, rows, columns, out]` with one entry a window.
pub fn conv2d(x: Tensor<4>, weight: Tensor<4>, bias: Tensor<1>, windows: Windows) -> Tensor<4> {
    match super::on_cpu(&x.device()) {
        true => products(x, weight, bias, windows),
        false => composed(x, weight, bias, windows),
    }
}

/// See [`conv2d`]; a matrix product over unfolded windows.
fn products(x: Tensor<4>, weight: Tensor<4>, bias: Tensor<1>, windows: Windows) -> Tensor<4> {
    let [out, input, kernel, _] = weight.dims();
    let seen = super::unfold(x, windows);
    let [batch, rows, columns, size] = seen.dims();
    debug_assert_eq!((kernel, input * kernel * kernel), (windows.kernel, size));
    let seen = seen.reshape([batch * rows * columns, size]);
    super::linear(seen, weight.reshape([out, size]), bias).reshape([batch, rows, columns, out])
}

/// See [`conv2d`]; burn's convolution, whose windows are never written out.
fn composed(x: Tensor<4>, weight: Tensor<4>, bias: Tensor<1>, windows: Windows) -> Tensor<4> {
    let Windows { kernel: _, stride, padding } = windows;
    let options = ConvOptions::new([stride; 2], [padding; 2], [1, 1], 1);
    let y = module::conv2d(x.permute([0, 3, 1, 2]), weight, Some(bias), options);
    y.permute([0, 2, 3, 1])
}
