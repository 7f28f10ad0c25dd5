//! All parameters of a model in one piece of memory, and their gradients in another.
//!
//! The fused operations add a weight's gradient to its place in the flat gradient directly.
//! Handing it to autodiff instead would cost a fresh tensor and two passes over it for every
//! weight and micro-batch.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use burn::backend::Flex;
use burn::backend::autodiff::{NodeId, grads::Gradients};
use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_flex::FlexTensor;

use super::buffers::{Buffer, part_of};
use super::storage::slice;

/// One vector that the tensors of a model's parameters are views of.
pub struct FlatMemory {
    values: Arc<Vec<f32>>,
}

impl FlatMemory {
    /// Takes over `values`.
    pub fn new(values: Vec<f32>) -> Self {
        Self { values: Arc::new(values) }
    }

    /// The values again: a copy while tensors of this memory are left.
    pub fn into_values(self) -> Vec<f32> {
        Arc::unwrap_or_clone(self.values)
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values in `range` as a tensor; on the CPU without a copy.
    pub fn tensor<const D: usize>(
        &self,
        range: Range<usize>,
        shape: [usize; D],
        device: &Device,
    ) -> Tensor<D> {
        let bytes = part_of(&self.values, range);
        Tensor::from_data(TensorData::from_bytes(bytes, shape, DType::F32), device)
    }

    /// Runs `backward` on this thread; meanwhile the fused operations add the gradients of these
    /// parameters to `sum` (as long as the memory) and hand autodiff those of other tensors only.
    pub fn collect_gradients<T>(&self, sum: &mut Vec<f32>, backward: impl FnOnce() -> T) -> T {
        assert_eq!(sum.len(), self.len(), "a gradient for each value");
        let start = self.values.as_ptr() as usize;
        SINK.replace(Some(Sink { start, sum: std::mem::take(sum) }));
        let result = backward();
        *sum = SINK.take().map(|sink| sink.sum).unwrap_or_default();
        result
    }
}

/// Where gradients of parameters go.
struct Sink {
    /// Address of the first parameter.
    start: usize,
    sum: Vec<f32>,
}

thread_local! {
    static SINK: RefCell<Option<Sink>> = const { RefCell::new(None) };
}

impl Sink {
    /// The place of a parameter's gradient, if the parameter lies in the flat memory.
    fn place(&self, parameter: &FlexTensor) -> Option<Range<usize>> {
        let values = slice(parameter);
        let bytes = (values.as_ptr() as usize).checked_sub(self.start)?;
        let start = bytes / size_of::<f32>();
        (start + values.len() <= self.sum.len()).then_some(start..start + values.len())
    }
}

/// A node that an operation's gradient flows to.
pub(super) struct Parent {
    pub(super) id: NodeId,
    /// Whether it was made by no operation.
    pub(super) leaf: bool,
}

/// The parents of an operation, given by their nodes (burn does not export the type of these).
macro_rules! parents {
    ($($node:expr),*) => {
        [$($node.map(|node| $crate::ops::flat::Parent {
            id: node.id,
            leaf: node.parents.is_empty(),
        })),*]
    };
}
pub(super) use parents;

/// Has `add` add the gradients of `parameters` where they belong: to the flat gradient if they are
/// leaves in the memory that is being collected for, otherwise to zeros that are registered with
/// the `parents` that want them. An inner node must be registered: autodiff waits for it.
pub(super) fn add_gradients<const N: usize>(
    parameters: [&FlexTensor; N],
    parents: [Option<Parent>; N],
    grads: &mut Gradients,
    add: impl FnOnce([&mut [f32]; N]),
) {
    if parents.iter().all(Option::is_none) {
        return;
    }
    SINK.with_borrow_mut(|sink| {
        let places: [_; N] = std::array::from_fn(|i| {
            let leaf = parents[i].as_ref().is_some_and(|parent| parent.leaf);
            sink.as_ref().filter(|_| leaf)?.place(parameters[i])
        });
        let mut apart: [_; N] = std::array::from_fn(|i| {
            places[i].is_none().then(|| Buffer::zeros(slice(parameters[i]).len()))
        });
        let sum = sink.as_mut().map_or(&mut [][..], |sink| &mut sink.sum);
        let mut targets = sum
            .get_disjoint_mut(places.map(Option::unwrap_or_default))
            .expect("parameters do not overlap");
        for (target, apart) in targets.iter_mut().zip(&mut apart) {
            if let Some(apart) = apart {
                *target = apart;
            }
        }
        add(targets);
        for ((gradient, parameter), parent) in apart.into_iter().zip(parameters).zip(parents) {
            if let Some((gradient, parent)) = gradient.zip(parent) {
                let gradient = gradient.into_tensor(parameter.layout().shape().clone());
                grads.register::<Flex>(parent.id, gradient);
            }
        }
    });
}

/// As [`add_gradients`] for an `add` that has more to do than that: it is called even if nobody wants
/// these gradients.
pub(super) fn add_gradients_anyway<const N: usize>(
    parameters: [&FlexTensor; N],
    parents: [Option<Parent>; N],
    grads: &mut Gradients,
    add: impl FnOnce([&mut [f32]; N]),
) {
    if parents.iter().any(Option::is_some) {
        return add_gradients(parameters, parents, grads, add);
    }
    let mut dropped = parameters.map(|parameter| Buffer::zeros(slice(parameter).len()));
    add(dropped.each_mut().map(|buffer| &mut buffer[..]));
}
