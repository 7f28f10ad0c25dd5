//! The second half of a transformer block: two linear layers with GELU between them and a residual.
//!
//! In one piece the hidden map, by far the largest of a block, stays in the precision of the products
//! that read it, and its gradient is multiplied by GELU' on the way out of the product that makes it.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use fewvit_kernels::{Epilogue, Matrix, Precision, matmul, matmul_transposed_a};

use super::buffers::Buffer;
use super::flat::{Parent, add_gradients, parents};
use super::fused_nodes::scaled;
use super::storage::{contiguous, dims2, slice};
use super::{composed, packed, precision};

/// Weight `[out, in]` and bias `[out]` of a linear layer.
pub type Layer = (Tensor<2>, Tensor<1>);

/// See [`super::mlp()`]; composed of the operations on single layers.
pub fn composed(
    x: Tensor<2>,
    fc1: Layer,
    fc2: Layer,
    residual: Tensor<2>,
    factors: Option<Vec<f32>>,
) -> Tensor<2> {
    let hidden = composed::linear_gelu(x, fc1.0, fc1.1);
    composed::linear_residual(hidden, fc2.0, fc2.1, residual, factors)
}

/// See [`super::mlp()`]; one autodiff node over the kernels.
pub fn fused(
    x: Tensor<2>,
    fc1: Layer,
    fc2: Layer,
    residual: Tensor<2>,
    factors: Option<Vec<f32>>,
) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::mlp(
        x.into_dispatch(),
        fc1.0.into_dispatch(),
        fc1.1.into_dispatch(),
        fc2.0.into_dispatch(),
        fc2.1.into_dispatch(),
        residual.into_dispatch(),
        factors,
    ))
}

/// The operation on a backend's primitives.
#[backend_extension(Autodiff, Flex)]
pub trait MlpOps: Backend {
    /// See [`super::mlp()`].
    fn mlp(
        x: FloatTensor<Self>,
        weight1: FloatTensor<Self>,
        bias1: FloatTensor<Self>,
        weight2: FloatTensor<Self>,
        bias2: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        factors: Option<Vec<f32>>,
    ) -> FloatTensor<Self>;
}

impl MlpOps for Flex {
    fn mlp(
        x: FlexTensor,
        weight1: FlexTensor,
        bias1: FlexTensor,
        weight2: FlexTensor,
        bias2: FlexTensor,
        residual: FlexTensor,
        factors: Option<Vec<f32>>,
    ) -> FlexTensor {
        let [x, weight1, bias1, weight2, bias2] =
            [x, weight1, bias1, weight2, bias2].map(contiguous);
        let inputs = Inputs { x, weight1, bias1, weight2, bias2, precision: precision::current() };
        inputs.forward(&contiguous(residual), factors.as_deref()).0
    }
}

/// The input and the layers.
#[derive(Clone, Debug)]
struct Inputs {
    x: FlexTensor,
    weight1: FlexTensor,
    bias1: FlexTensor,
    weight2: FlexTensor,
    bias2: FlexTensor,
    /// Of the products, forward and backward, and of the hidden map.
    precision: Precision,
}

/// GELU of the hidden map, and GELU' there.
type Hidden = [FlexTensor; 2];

impl Inputs {
    /// Rows and the three widths.
    fn sides(&self) -> [usize; 4] {
        let ([rows, input], [output, hidden]) = (dims2(&self.x), dims2(&self.weight2));
        [rows, input, hidden, output]
    }

    /// A hidden map in memory.
    fn hidden<T>(&self, cells: T) -> Matrix<T> {
        Matrix { cells, precision: self.precision }
    }

    /// A buffer for one.
    fn buffer(&self) -> Buffer {
        let [rows, _, hidden, _] = self.sides();
        Buffer::stale(rows * self.precision.cells(hidden))
    }

    fn forward(&self, residual: &FlexTensor, factors: Option<&[f32]>) -> (FlexTensor, Hidden) {
        let [rows, _, _, output] = self.sides();
        let (mut hidden, mut derivative) = (self.buffer(), self.buffer());
        let fc1 = packed::for_forward(&self.weight1, self.precision);
        let bias = slice(&self.bias1);
        let gelu = Epilogue::BiasGelu { bias, derivative: &mut derivative };
        matmul(rows, slice(&self.x), fc1.get(), self.hidden(&mut hidden[..]), gelu);
        let mut y = Buffer::stale(rows * output);
        let fc2 = packed::for_forward(&self.weight2, self.precision);
        let (bias, residual) = (slice(&self.bias2), slice(residual));
        let add = Epilogue::Residual { bias, residual, factors };
        matmul(rows, self.hidden(&hidden[..]), fc2.get(), &mut y[..], add);
        let hidden = [hidden, derivative].map(|map| {
            let cells = map.len() / rows.max(1);
            map.into_tensor([rows, cells])
        });
        (y.into_tensor([rows, output]), hidden)
    }

    /// Adds the gradients of the weights and registers that of `x`.
    fn register(
        &self,
        dy: &[f32],
        [hidden, derivative]: &Hidden,
        [x, weight1, bias1, weight2, bias2]: [Option<Parent>; 5],
        grads: &mut Gradients,
    ) {
        let ([rows, input, width, output], precision) = (self.sides(), self.precision);
        add_gradients([&self.weight2, &self.bias2], [weight2, bias2], grads, |[dw, db]| {
            let (sides, hidden) = ([rows, output, width], self.hidden(slice(hidden)));
            matmul_transposed_a(precision, sides, dy, hidden, dw, Some(db));
        });
        let mut du = self.buffer();
        let fc2 = packed::for_backward(&self.weight2, precision);
        let times = Epilogue::Multiply(slice(derivative));
        matmul(rows, dy, fc2.get(), self.hidden(&mut du[..]), times);
        let du = self.hidden(&du[..]);
        add_gradients([&self.weight1, &self.bias1], [weight1, bias1], grads, |[dw, db]| {
            let sides = [rows, width, input];
            matmul_transposed_a(precision, sides, du, slice(&self.x), dw, Some(db));
        });
        if let Some(parent) = x {
            let mut dx = Buffer::stale(rows * input);
            let fc1 = packed::for_backward(&self.weight1, precision);
            matmul(rows, du, fc1.get(), &mut dx[..], Epilogue::Store);
            grads.register::<Flex>(parent.id, dx.into_tensor([rows, input]));
        }
    }
}

#[derive(Debug)]
struct Mlp;

impl Backward<Flex, 6> for Mlp {
    /// With the rows' factors.
    type State = (Inputs, Hidden, Option<Vec<f32>>);

    fn backward(self, ops: Ops<Self::State, 6>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let (inputs, hidden, factors) = ops.state;
        let [x, weight1, bias1, weight2, bias2, residual] = ops.parents;
        let parents = parents![x, weight1, bias1, weight2, bias2];
        match factors {
            Some(factors) => inputs.register(&scaled(&dy, &factors), &hidden, parents, grads),
            None => inputs.register(slice(&dy), &hidden, parents, grads),
        }
        if let Some(node) = residual {
            grads.register::<Flex>(node.id, dy);
        }
    }
}

impl<C: CheckpointStrategy> MlpOps for Autodiff<Flex, C> {
    fn mlp(
        x: FloatTensor<Self>,
        weight1: FloatTensor<Self>,
        bias1: FloatTensor<Self>,
        weight2: FloatTensor<Self>,
        bias2: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        factors: Option<Vec<f32>>,
    ) -> FloatTensor<Self> {
        let ((x, xn), (residual, rn)) = (x.into_parts(), residual.into_parts());
        let ((weight1, wn1), (bias1, bn1)) = (weight1.into_parts(), bias1.into_parts());
        let ((weight2, wn2), (bias2, bn2)) = (weight2.into_parts(), bias2.into_parts());
        let [x, weight1, bias1, weight2, bias2, residual] =
            [x, weight1, bias1, weight2, bias2, residual].map(contiguous);
        let inputs = Inputs { x, weight1, bias1, weight2, bias2, precision: precision::current() };
        let (y, hidden) = inputs.forward(&residual, factors.as_deref());
        match Mlp.prepare::<C>([xn, wn1, bn1, wn2, bn2, rn]).compute_bound().stateful() {
            OpsKind::Tracked(node) => node.finish((inputs, hidden, factors), y),
            OpsKind::UnTracked(node) => node.finish(y),
        }
    }
}
