//! The layer norm in front of a residual branch: `x` enters the branch normalised, and passes it as it
//! is.

use std::ops::Range;

use burn::backend::Flex;
use burn::backend::autodiff::grads::Gradients;
use burn_flex::FlexTensor;
use fewvit_kernels::{Epilogue, Matrix, Precision, layer_norm_backward, layer_norm_forward};

use super::buffers::Buffer;
use super::flat::{Parent, add_gradients_anyway};
use super::projection::Projection;
use super::storage::{contiguous, dims2, slice};

/// Input `[rows, dim]` and parameters `[dim]` of a layer norm.
#[derive(Clone, Debug)]
pub(super) struct PreNorm {
    pub(super) x: FlexTensor,
    pub(super) weight: FlexTensor,
    pub(super) bias: FlexTensor,
    pub(super) eps: f64,
}

/// What a layer norm has made of its input, in the precision of the products that read it, and what
/// its backward needs.
#[derive(Clone, Debug)]
pub(super) struct Normed {
    y: FlexTensor,
    moments: FlexTensor,
    precision: Precision,
}

impl Normed {
    /// The output as products read it.
    pub(super) fn matrix(&self) -> Matrix<&[f32]> {
        Matrix { cells: slice(&self.y), precision: self.precision }
    }

    /// What the backward needs.
    pub(super) fn moments(&self) -> &[f32] {
        slice(&self.moments)
    }

    /// The output and what the backward needs.
    pub(super) fn into_parts(self) -> (FlexTensor, FlexTensor) {
        (self.y, self.moments)
    }
}

impl PreNorm {
    pub(super) fn new(tensors: [FlexTensor; 3], eps: f64) -> Self {
        let [x, weight, bias] = tensors.map(contiguous);
        Self { x, weight, bias, eps }
    }

    pub(super) fn forward(&self, precision: Precision) -> Normed {
        let [rows, dim] = dims2(&self.x);
        let cells = precision.cells(dim);
        let [mut y, mut moments] = [rows * cells, rows * 2].map(Buffer::stale);
        let out = Matrix { cells: &mut y[..], precision };
        self.forward_rows(slice(&self.x), out, &mut moments);
        let y = y.into_tensor([rows, cells]);
        Normed { y, moments: moments.into_tensor([rows, 2]), precision }
    }

    /// [`Self::forward`] of the rows `x`, with room for what their backward needs.
    pub(super) fn forward_rows(&self, x: &[f32], out: Matrix<&mut [f32]>, moments: &mut [f32]) {
        let (weight, bias) = (slice(&self.weight), slice(&self.bias));
        layer_norm_forward(x, weight, bias, self.eps as f32, out, Some(moments));
    }

    /// The gradient `dx` of some rows, those `values` of `x`: what comes back through the norm, from the
    /// gradient `dy` of its output, and what has come around the branch, `residual`. The gradients of the
    /// parameters are added.
    pub(super) fn backward_rows(
        &self,
        values: Range<usize>,
        moments: &[f32],
        dy: &[f32],
        residual: &[f32],
        dx: &mut [f32],
        [dw, db]: [&mut [f32]; 2],
    ) {
        let (x, weight) = (&slice(&self.x)[values], slice(&self.weight));
        layer_norm_backward(dy, x, moments, weight, Some(residual), dx, dw, db);
    }

    /// The gradient of `x`: what comes back through the norm, from the gradient `dy` of its output, and what
    /// has come around the branch, `residual`. Those of the parameters are added.
    pub(super) fn backward(
        &self,
        moments: &[f32],
        dy: &[f32],
        residual: Option<&FlexTensor>,
        parents: [Option<Parent>; 2],
        grads: &mut Gradients,
    ) -> Buffer {
        let mut dx = Buffer::stale(dy.len());
        add_gradients_anyway([&self.weight, &self.bias], parents, grads, |[dw, db]| {
            let (x, weight, residual) = (slice(&self.x), slice(&self.weight), residual.map(slice));
            layer_norm_backward(dy, x, moments, weight, residual, &mut dx, dw, db);
        });
        dx
    }

    /// [`Self::backward`], and registers the gradient of `x`.
    pub(super) fn register(
        &self,
        moments: &FlexTensor,
        dy: &[f32],
        residual: Option<&FlexTensor>,
        [x, weight, bias]: [Option<Parent>; 3],
        grads: &mut Gradients,
    ) {
        let dx = self.backward(slice(moments), dy, residual, [weight, bias], grads);
        if let Some(parent) = x {
            grads.register::<Flex>(parent.id, dx.into_tensor(dims2(&self.x)));
        }
    }

    /// The end of the backward of half a block: adds the gradients of its first layer, `first`, and of
    /// the norm, and registers that of `x`. `dy` is the gradient of the half block's output, `d` that of
    /// the first layer's; parents are those of `x`, the norm and the layer.
    pub(super) fn register_half(
        &self,
        normed: Normed,
        first: &Projection,
        d: Matrix<&[f32]>,
        dy: &FlexTensor,
        [x, weight, bias, first_weight, first_bias]: [Option<Parent>; 5],
        grads: &mut Gradients,
    ) {
        let [rows, dim] = dims2(&self.x);
        first.add_gradients(rows, d, normed.matrix(), [first_weight, first_bias], grads);
        let mut d_normed = Buffer::stale(rows * dim);
        first.backward(rows, d, &mut d_normed[..], Epilogue::Store);
        let parents = [x, weight, bias];
        self.register(&normed.moments, &d_normed, Some(dy), parents, grads);
    }
}
