//! The second half of a transformer block: a layer norm, two linear layers with GELU between them, and
//! what came in added to what comes out.
//!
//! In one piece the normalised and the hidden map, by far the largest of a block, stay in the
//! precision of the products that read them, and the gradient of the hidden map is multiplied by
//! GELU' on the way out of the product that makes it.

#![expect(clippy::too_many_arguments, reason = "tensors inside of structures are not dispatched")]

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use fewvit_kernels::Epilogue;

use super::buffers::Buffer;
use super::flat::{Parent, parents};
use super::fused_nodes::scaled;
use super::pre_norm::{Normed, PreNorm};
use super::projection::{Maps, Projection};
use super::storage::{contiguous, dims2, slice, unzip};
use super::{Layer, Norm, composed, precision};

/// See [`super::mlp_block()`]; composed of the operations on single layers.
pub fn composed(
    x: Tensor<2>,
    norm: Norm,
    fc1: Layer,
    fc2: Layer,
    factors: Option<Vec<f32>>,
) -> Tensor<2> {
    let normed = composed::layer_norm(x.clone(), norm.0, norm.1, norm.2);
    let hidden = composed::linear_gelu(normed, fc1.0, fc1.1);
    composed::linear_residual(hidden, fc2.0, fc2.1, x, factors)
}

/// See [`super::mlp_block()`]; one autodiff node over the kernels.
pub fn fused(
    x: Tensor<2>,
    norm: Norm,
    fc1: Layer,
    fc2: Layer,
    factors: Option<Vec<f32>>,
) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::mlp_block(
        x.into_dispatch(),
        norm.0.into_dispatch(),
        norm.1.into_dispatch(),
        fc1.0.into_dispatch(),
        fc1.1.into_dispatch(),
        fc2.0.into_dispatch(),
        fc2.1.into_dispatch(),
        norm.2,
        factors,
    ))
}

/// The operation on a backend's primitives.
#[backend_extension(Autodiff, Flex)]
pub trait MlpBlockOps: Backend {
    /// See [`super::mlp_block()`].
    fn mlp_block(
        x: FloatTensor<Self>,
        norm_weight: FloatTensor<Self>,
        norm_bias: FloatTensor<Self>,
        weight1: FloatTensor<Self>,
        bias1: FloatTensor<Self>,
        weight2: FloatTensor<Self>,
        bias2: FloatTensor<Self>,
        eps: f64,
        factors: Option<Vec<f32>>,
    ) -> FloatTensor<Self>;
}

impl MlpBlockOps for Flex {
    fn mlp_block(
        x: FlexTensor,
        norm_weight: FlexTensor,
        norm_bias: FlexTensor,
        weight1: FlexTensor,
        bias1: FlexTensor,
        weight2: FlexTensor,
        bias2: FlexTensor,
        eps: f64,
        factors: Option<Vec<f32>>,
    ) -> FlexTensor {
        let tensors = [x, norm_weight, norm_bias, weight1, bias1, weight2, bias2];
        Inputs::new(tensors, eps).forward(factors.as_deref()).0
    }
}

/// The norm with its input, and the layers.
#[derive(Clone, Debug)]
struct Inputs {
    norm: PreNorm,
    fc1: Projection,
    fc2: Projection,
    /// Rows and precision of the maps between the layers.
    hidden: Maps,
}

/// What the backward reads.
#[derive(Clone, Debug)]
struct Saved {
    normed: Normed,
    /// GELU of the hidden map, and GELU' there.
    hidden: FlexTensor,
    derivative: FlexTensor,
}

impl Inputs {
    fn new([x, weight, bias, w1, b1, w2, b2]: [FlexTensor; 7], eps: f64) -> Self {
        let (norm, precision) = (PreNorm::new([x, weight, bias], eps), precision::current());
        let [fc1, fc2] = [(w1, b1), (w2, b2)].map(|(w, b)| Projection::new(w, b, precision));
        let hidden = Maps { rows: dims2(&norm.x)[0], precision };
        Self { norm, fc1, fc2, hidden }
    }

    fn forward(&self, factors: Option<&[f32]>) -> (FlexTensor, Saved) {
        let normed = self.norm.forward(self.hidden.precision);
        let (mut hidden, mut derivative) =
            (self.hidden.buffer(self.fc1.out()), self.hidden.buffer(self.fc1.out()));
        let gelu = Epilogue::BiasGelu { bias: self.fc1.bias(), derivative: &mut derivative };
        self.fc1.forward(
            self.hidden.rows,
            normed.matrix(),
            self.hidden.matrix(&mut hidden[..]),
            gelu,
        );
        let y = self.fc2.add_to(&self.norm.x, self.hidden.matrix(&hidden[..]), factors);
        let [hidden, derivative] = [hidden, derivative].map(Buffer::into_vector);
        (y, Saved { normed, hidden, derivative })
    }

    /// Adds the gradients of the parameters and registers that of `x`. `dy` is the gradient of the
    /// output, `branch` the same times the rows' factors.
    fn register(
        &self,
        saved: Saved,
        dy: &FlexTensor,
        branch: &[f32],
        [x, nw, nb, w1, b1, w2, b2]: [Option<Parent>; 7],
        grads: &mut Gradients,
    ) {
        let (rows, hidden) = (self.hidden.rows, self.hidden.matrix(slice(&saved.hidden)));
        self.fc2.add_gradients(rows, branch, hidden, [w2, b2], grads);
        let mut du = self.hidden.buffer(self.fc1.out());
        let times = Epilogue::Multiply(slice(&saved.derivative));
        self.fc2.backward(rows, branch, self.hidden.matrix(&mut du[..]), times);
        let (du, parents) = (self.hidden.matrix(&du[..]), [x, nw, nb, w1, b1]);
        self.norm.register_half(saved.normed, &self.fc1, du, dy, parents, grads);
    }
}

#[derive(Debug)]
struct MlpBlock;

impl Backward<Flex, 7> for MlpBlock {
    /// With the rows' factors.
    type State = (Inputs, Saved, Option<Vec<f32>>);

    fn backward(self, ops: Ops<Self::State, 7>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let (inputs, saved, factors) = ops.state;
        let [x, nw, nb, w1, b1, w2, b2] = ops.parents;
        let parents = parents![x, nw, nb, w1, b1, w2, b2];
        let branch = factors.map(|factors| scaled(&dy, &factors));
        inputs.register(saved, &dy, branch.as_deref().unwrap_or(slice(&dy)), parents, grads);
    }
}

impl<C: CheckpointStrategy> MlpBlockOps for Autodiff<Flex, C> {
    fn mlp_block(
        x: FloatTensor<Self>,
        norm_weight: FloatTensor<Self>,
        norm_bias: FloatTensor<Self>,
        weight1: FloatTensor<Self>,
        bias1: FloatTensor<Self>,
        weight2: FloatTensor<Self>,
        bias2: FloatTensor<Self>,
        eps: f64,
        factors: Option<Vec<f32>>,
    ) -> FloatTensor<Self> {
        let tensors = [x, norm_weight, norm_bias, weight1, bias1, weight2, bias2];
        let (tensors, nodes) = unzip(tensors.map(|tensor| tensor.into_parts()));
        let inputs = Inputs::new(tensors, eps);
        let (y, saved) = inputs.forward(factors.as_deref());
        match MlpBlock.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(node) => node.finish((inputs, saved, factors), y),
            OpsKind::UnTracked(node) => node.finish(y),
        }
    }
}
