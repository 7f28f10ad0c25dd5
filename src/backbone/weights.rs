//! A model's parameters in one piece of memory, and their gradients in another.

use burn::tensor::{Device, Gradients, Tensor};

use super::{Net, NetSpec};
use crate::error::Result;
use crate::nn::readers::tensors::values;
use crate::nn::{ParamSpec, Parameter};
use crate::ops::FlatMemory;

/// A model whose parameters lie in one piece of memory.
pub struct Weights {
    /// On a device without autodiff.
    pub net: Net,
    parameters: Vec<ParamSpec>,
    memory: FlatMemory,
}

impl Weights {
    /// A model with the given values, in the order of [`NetSpec::parameters`].
    ///
    /// # Errors
    /// An img-size the backbone cannot take.
    ///
    /// # Panics
    /// If there are more or fewer values than the model has.
    pub fn new(spec: &NetSpec, values: Vec<f32>, device: &Device) -> Result<Self> {
        let parameters = spec.parameters()?;
        let (used, given) = (parameters.last().map_or(0, |last| last.range.end), values.len());
        assert_eq!(used, given, "the model has {used} values, {given} were given");
        let memory = FlatMemory::new(values);
        let tensors = parameters.iter().map(|place| parameter(&memory, place, device)).collect();
        Ok(Self { net: Net::new(*spec, tensors), parameters, memory })
    }

    /// The values again: the same memory if nothing is left of the model, packed weights among it,
    /// else a copy.
    pub fn into_values(self) -> Vec<f32> {
        let Self { net, memory, .. } = self;
        drop(net);
        memory.into_values()
    }

    /// Values of all parameters together.
    pub fn len(&self) -> usize {
        self.memory.len()
    }

    /// Whether there are no parameters.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value of `loss` and its gradient, which is added to `sum` in the order of the flat vector; a
    /// parameter that the loss does not depend on adds nothing.
    pub fn add_gradients(&self, sum: &mut Vec<f32>, loss: impl FnOnce(&Net) -> Tensor<1>) -> f64 {
        self.backward(sum, loss).0
    }

    /// As [`Self::add_gradients`], with the gradient of another leaf that the loss depends on.
    pub fn add_gradients_and<const D: usize>(
        &self,
        sum: &mut Vec<f32>,
        leaf: Tensor<D>,
        loss: impl FnOnce(&Net) -> Tensor<1>,
    ) -> (f64, Vec<f32>) {
        let (value, gradients) = self.backward(sum, loss);
        (value, leaf.grad(&gradients).map_or_else(Vec::new, values))
    }

    /// The value of `loss`, `[1]`, and its gradient by each parameter, flattened; all of them stay on
    /// the device.
    pub fn gradients(&self, loss: impl FnOnce(&Net) -> Tensor<1>) -> (Tensor<1>, Vec<Tensor<1>>) {
        let leaves = self.leaves();
        let loss = loss(&leaves);
        let gradients = loss.backward();
        let loss = loss.inner();
        let flat = |(leaf, place): (&Parameter, &ParamSpec)| {
            let zeros = || Tensor::zeros([place.range.len()], &loss.device());
            leaf.flat_gradient(&gradients).unwrap_or_else(zeros)
        };
        let flat = leaves.parameters().iter().zip(&self.parameters).map(flat).collect();
        (loss, flat)
    }

    fn backward(
        &self,
        sum: &mut Vec<f32>,
        loss: impl FnOnce(&Net) -> Tensor<1>,
    ) -> (f64, Gradients) {
        let leaves = self.leaves();
        let loss = loss(&leaves);
        let value = f64::from(loss.clone().into_scalar::<f32>());
        let gradients = self.memory.collect_gradients(sum, || loss.backward());
        for (place, leaf) in self.parameters.iter().zip(leaves.parameters()) {
            // The operations have added the others themselves.
            let Some(gradient) = leaf.flat_gradient(&gradients) else { continue };
            sum[place.range.clone()].iter_mut().zip(values(gradient)).for_each(|(s, g)| *s += g);
        }
        (value, gradients)
    }

    /// The model with leaves of its own.
    fn leaves(&self) -> Net {
        let leaf = |(tensor, place): (&Parameter, &ParamSpec)| match place.frozen {
            true => tensor.constant(),
            false => tensor.leaf(),
        };
        let leaves = self.net.parameters().iter().zip(&self.parameters).map(leaf);
        self.net.over(leaves.collect())
    }
}

fn parameter(memory: &FlatMemory, place: &ParamSpec, device: &Device) -> Parameter {
    let range = place.range.clone();
    match place.shape[..] {
        [a] => Parameter::One(memory.tensor(range, [a], device)),
        [a, b] => Parameter::Two(memory.tensor(range, [a, b], device)),
        [a, b, c] => Parameter::Three(memory.tensor(range, [a, b, c], device)),
        [a, b, c, d] => Parameter::Four(memory.tensor(range, [a, b, c, d], device)),
        _ => panic!("{} has {} dimensions", place.key, place.shape.len()),
    }
}
