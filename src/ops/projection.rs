//! A linear layer inside of an operation on half a block, and the maps between layers.

use burn::backend::autodiff::grads::Gradients;
use burn_flex::FlexTensor;
use fewvit_kernels::{Epilogue, Matrix, Precision, matmul, matmul_transposed_a};

use super::buffers::Buffer;
use super::flat::{Parent, add_gradients};
use super::packed;
use super::storage::{contiguous, dims2, slice};

/// Maps between the layers of half a block, a row for each token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Maps {
    pub(super) rows: usize,
    /// That they are kept in.
    pub(super) precision: Precision,
}

impl Maps {
    /// One in memory.
    pub(super) fn matrix<T>(&self, cells: T) -> Matrix<T> {
        Matrix { cells, precision: self.precision }
    }

    /// A buffer for one of `columns`.
    pub(super) fn buffer(&self, columns: usize) -> Buffer {
        Buffer::stale(self.rows * self.precision.cells(columns))
    }
}

/// Weight `[out, in]` and bias `[out]`.
#[derive(Clone, Debug)]
pub(super) struct Projection {
    weight: FlexTensor,
    bias: FlexTensor,
    /// Of the products, forward and backward.
    precision: Precision,
}

impl Projection {
    pub(super) fn new(weight: FlexTensor, bias: FlexTensor, precision: Precision) -> Self {
        Self { weight: contiguous(weight), bias: contiguous(bias), precision }
    }

    /// Width of the output.
    pub(super) fn out(&self) -> usize {
        dims2(&self.weight)[0]
    }

    /// For an epilogue.
    pub(super) fn bias(&self) -> &[f32] {
        slice(&self.bias)
    }

    /// `y = x W^T` with an epilogue; `x` is `[rows, in]`, `y` `[rows, out]`.
    pub(super) fn forward<'a>(
        &self,
        rows: usize,
        x: Matrix<&'a [f32]>,
        y: impl Into<Matrix<&'a mut [f32]>>,
        epilogue: Epilogue,
    ) {
        let weight = packed::for_forward(&self.weight, self.precision);
        matmul(rows, x, weight.get(), y, epilogue);
    }

    /// `residual + factor (x W^T + b)`, `[rows, out]`, a factor for each row.
    pub(super) fn add_to(
        &self,
        residual: &FlexTensor,
        x: Matrix<&[f32]>,
        factors: Option<&[f32]>,
    ) -> FlexTensor {
        let [rows, dim] = dims2(residual);
        let mut y = Buffer::stale(rows * dim);
        let (bias, residual) = (self.bias(), slice(residual));
        self.forward(rows, x, &mut y[..], Epilogue::Residual { bias, residual, factors });
        y.into_tensor([rows, dim])
    }

    /// Adds the gradients of weight and bias, from the gradient `dy` of the output for `x`.
    pub(super) fn add_gradients<'a>(
        &self,
        rows: usize,
        dy: impl Into<Matrix<&'a [f32]>>,
        x: Matrix<&'a [f32]>,
        parents: [Option<Parent>; 2],
        grads: &mut Gradients,
    ) {
        add_gradients(self.parameters(), parents, grads, |sums| {
            self.sum_gradients(rows, dy, x, sums);
        });
    }

    /// Weight and bias.
    pub(super) fn parameters(&self) -> [&FlexTensor; 2] {
        [&self.weight, &self.bias]
    }

    /// [`Self::add_gradients`] to the given places.
    pub(super) fn sum_gradients<'a>(
        &self,
        rows: usize,
        dy: impl Into<Matrix<&'a [f32]>>,
        x: Matrix<&'a [f32]>,
        [dw, db]: [&mut [f32]; 2],
    ) {
        let [out, input] = dims2(&self.weight);
        matmul_transposed_a(self.precision, [rows, out, input], dy, x, dw, Some(db));
    }

    /// The gradient `dx` of the input, from that of the output, with an epilogue.
    pub(super) fn backward<'a>(
        &self,
        rows: usize,
        dy: impl Into<Matrix<&'a [f32]>>,
        dx: impl Into<Matrix<&'a mut [f32]>>,
        epilogue: Epilogue,
    ) {
        let weight = packed::for_backward(&self.weight, self.precision);
        matmul(rows, dy, weight.get(), dx, epilogue);
    }
}
