//! Tensors that belong to a model's weights and are not trained.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::graph::{Graph, Value};

/// A tensor that checkpoints hold and the optimiser leaves alone: [`super::Keys`] marks it, and no
/// gradient flows to it.
#[derive(Module, Debug)]
pub struct Frozen<const D: usize> {
    value: Param<Tensor<D>>,
}

impl<const D: usize> Frozen<D> {
    /// Takes `value` out of training.
    pub fn new(value: Param<Tensor<D>>) -> Self {
        Self { value }
    }

    /// The tensor, a constant to autodiff.
    pub fn val(&self) -> Tensor<D> {
        self.value.val().detach()
    }

    /// The tensor in an ONNX graph.
    pub fn graph(&self, g: &mut Graph) -> Value {
        g.weight(&self.value)
    }
}
