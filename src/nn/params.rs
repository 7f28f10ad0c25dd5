//! A module's parameters as one flat vector under timm's keys.
//!
//! The optimiser, checkpoints, import and export all work on that vector; modules only ever see
//! tensors made from it. So parameter identity, lazy initialisation and the other state of a module
//! never matter.

use std::collections::HashMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Device, Gradients, Tensor};

use crate::ops::FlatMemory;

/// One parameter's place in the flat vector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamSpec {
    /// timm's key, for example `blocks.0.attn.qkv.weight`.
    pub key: String,
    /// timm's shape.
    pub shape: Vec<usize>,
    /// Its values' range in the flat vector.
    pub range: std::ops::Range<usize>,
    /// Whether the optimiser leaves it alone.
    pub frozen: bool,
}

/// The field that holds the backbone; checkpoint keys leave it out, as timm's do.
const BACKBONE: &str = "backbone";

/// What visitors call the container of a [`super::Frozen`] value.
const FROZEN: &str = "Struct:Frozen";

/// Lists a module's parameters in declaration order.
#[derive(Default)]
pub struct Keys {
    path: Vec<String>,
    /// Whether the visit is inside a [`super::Frozen`].
    frozen: bool,
    /// The parameters seen.
    pub specs: Vec<ParamSpec>,
    ids: Vec<ParamId>,
}

impl Keys {
    /// The parameters of `module`.
    pub fn of(module: &impl Module) -> Vec<ParamSpec> {
        let mut keys = Self::default();
        module.visit(&mut keys);
        keys.specs
    }

    /// The keys of the parameters of `module`.
    pub fn by_id(module: &impl Module) -> HashMap<ParamId, String> {
        let mut keys = Self::default();
        module.visit(&mut keys);
        keys.ids.into_iter().zip(keys.specs.into_iter().map(|spec| spec.key)).collect()
    }
}

impl ModuleVisitor for Keys {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.frozen |= container == FROZEN;
        // An enum's variant is no part of a key, nor is the field inside `Frozen`.
        let name = if container.starts_with("Enum:") || container == FROZEN { "" } else { name };
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, container: &str) {
        self.frozen &= container != FROZEN;
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let parts = self.path.iter().filter(|p| !p.is_empty() && *p != BACKBONE);
        let key = parts.map(String::as_str).collect::<Vec<_>>().join(".");
        let shape = param.val().dims().to_vec();
        let start = self.specs.last().map_or(0, |spec| spec.range.end);
        let range = start..start + shape.iter().product::<usize>();
        self.specs.push(ParamSpec { key, shape, range, frozen: self.frozen });
        self.ids.push(param.id);
    }
}

/// Copies a module's parameters into a flat vector.
#[derive(Default)]
pub struct Gather {
    /// All values in declaration order.
    pub values: Vec<f32>,
}

impl Gather {
    /// The values of `module`.
    pub fn of(module: &impl Module) -> Vec<f32> {
        let mut gather = Self::default();
        module.visit(&mut gather);
        gather.values
    }
}

impl ModuleVisitor for Gather {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.values.extend(to_vec(param.val()));
    }
}

/// Puts the values of a flat vector into a module's parameters, on `device`.
pub struct Replace<'a> {
    memory: &'a FlatMemory,
    device: &'a Device,
    start: usize,
}

impl Replace<'_> {
    /// The module with the given values, in the order of [`Keys`].
    pub fn values_of<M: Module>(module: M, values: &[f32], device: &Device) -> M {
        Weights::new(module, values.to_vec(), device).module
    }
}

impl ModuleMapper for Replace<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, old, _) = param.consume();
        let shape = old.dims();
        let range = self.start..self.start + shape.iter().product::<usize>();
        self.start = range.end;
        Param::initialized(id, self.memory.tensor(range, shape, self.device))
    }
}

/// A module whose parameters lie in one piece of memory, in the order of [`Keys`].
pub struct Weights<M> {
    /// On a device without autodiff.
    pub module: M,
    memory: FlatMemory,
}

impl<M: Module> Weights<M> {
    /// `module` with the given values.
    pub fn new(module: M, values: Vec<f32>, device: &Device) -> Self {
        let given = values.len();
        let memory = FlatMemory::new(values);
        let mut replace = Replace { memory: &memory, device, start: 0 };
        let module = module.map(&mut replace);
        let used = replace.start;
        assert_eq!(used, given, "the module has {used} values, {given} were given");
        Self { module, memory }
    }

    /// The values again: the same memory if nothing is left of the module, packed weights among it,
    /// else a copy.
    pub fn into_values(self) -> Vec<f32> {
        let Self { module, memory } = self;
        drop(module);
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

    /// The value of `loss` and its gradient, which is added to `sum` in the order of [`Keys`]; a
    /// parameter that the loss does not depend on adds nothing.
    pub fn add_gradients(&self, sum: &mut Vec<f32>, loss: impl FnOnce(&M) -> Tensor<1>) -> f64 {
        self.backward(sum, loss).0
    }

    /// As [`Self::add_gradients`], with the gradient of another leaf that the loss depends on.
    pub fn add_gradients_and<const D: usize>(
        &self,
        sum: &mut Vec<f32>,
        leaf: Tensor<D>,
        loss: impl FnOnce(&M) -> Tensor<1>,
    ) -> (f64, Vec<f32>) {
        let (value, gradients) = self.backward(sum, loss);
        (value, leaf.grad(&gradients).map_or_else(Vec::new, to_vec))
    }

    fn backward(&self, sum: &mut Vec<f32>, loss: impl FnOnce(&M) -> Tensor<1>) -> (f64, Gradients) {
        let leaves = self.module.clone().map(&mut FreshLeaves);
        let loss = loss(&leaves);
        let value = f64::from(loss.clone().into_scalar::<f32>());
        let gradients = self.memory.collect_gradients(sum, || loss.backward());
        leaves.visit(&mut AddGradients { gradients: &gradients, rest: sum });
        (value, gradients)
    }
}

/// Gives every parameter a fresh gradient-tracking leaf over the same memory.
///
/// Each worker needs its own leaves for each micro-batch: burn's autodiff merges graphs that share
/// a node, and two merging threads can deadlock.
struct FreshLeaves;

impl ModuleMapper for FreshLeaves {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, tensor, _) = param.consume();
        Param::initialized(id, Tensor::from_inner(tensor).require_grad())
    }
}

/// Adds the gradients that autodiff was handed.
struct AddGradients<'a> {
    gradients: &'a Gradients,
    rest: &'a mut [f32],
}

impl ModuleVisitor for AddGradients<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let leaf = param.val();
        let rest = std::mem::take(&mut self.rest);
        let (sum, rest) = rest.split_at_mut(leaf.dims().iter().product());
        self.rest = rest;
        if let Some(gradient) = leaf.grad(self.gradients) {
            for (s, g) in sum.iter_mut().zip(to_vec(gradient)) {
                *s += g;
            }
        }
    }
}

/// The values of an f32 tensor, row-major.
fn to_vec<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().expect("parameters and gradients are f32")
}
