//! Weights packed for the matrix kernels, once per optimiser step instead of once per call.
//!
//! The cache is keyed by the address of the weight's storage. That is sound because an entry holds
//! the tensor itself: while it is cached its memory cannot be freed, reused or written in place.
//! Packed matrices that are out of date give their memory to those of the next step.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use burn_flex::FlexTensor;
use fewvit_kernels::{PackedB, Precision};

use super::storage::{dims2, slice};

/// Sides of a weight, the precision it is packed in and whether transposed.
type Form = ([usize; 2], Precision, bool);

type Cell = Arc<OnceLock<PackedB>>;

#[derive(Default)]
struct Cache {
    /// By address of the weight's first element.
    current: HashMap<(usize, Form), (FlexTensor, Cell)>,
    /// Of earlier steps.
    spare: HashMap<Form, Vec<PackedB>>,
}

/// The packed weights of one engine or model, which serve the threads that work for it.
#[derive(Clone, Default)]
pub struct PackedWeights(Arc<Mutex<Cache>>);

thread_local! {
    /// What serves this thread; without it, every call packs for itself.
    static CURRENT: RefCell<Option<PackedWeights>> = const { RefCell::new(None) };
}

impl PackedWeights {
    /// Runs `work` with this thread's operations sharing packed weights with all that are served too.
    pub fn serve<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = CURRENT.replace(Some(self.clone()));
        let result = work();
        CURRENT.set(before);
        result
    }

    /// Drops all packed weights. To be called after every optimiser step, when they are out of date.
    pub fn forget(&self) {
        let Cache { current, spare } = &mut *self.cache();
        // What was not used again in this step belongs to a model that is gone.
        spare.clear();
        for ((_, form), (_, cell)) in current.drain() {
            if let Some(packed) = Arc::into_inner(cell).and_then(OnceLock::into_inner) {
                spare.entry(form).or_default().push(packed);
            }
        }
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A right-hand side shared by the worker threads.
pub(super) struct Shared(Cell);

impl Shared {
    /// The packed matrix.
    pub(super) fn get(&self) -> &PackedB {
        self.0.get().expect("packed by `shared` before it is handed out")
    }
}

/// `weight` (`[out, in]`) packed as the right-hand side of `x W^T`.
pub(super) fn for_forward(weight: &FlexTensor, precision: Precision) -> Shared {
    shared(weight, precision, true)
}

/// `weight` (`[out, in]`) packed as the right-hand side of `dy W`.
pub(super) fn for_backward(weight: &FlexTensor, precision: Precision) -> Shared {
    shared(weight, precision, false)
}

fn shared(weight: &FlexTensor, precision: Precision, transposed: bool) -> Shared {
    let (values, sides) = (slice(weight), dims2(weight));
    let form = (sides, precision, transposed);
    let current = CURRENT.with_borrow(Clone::clone).unwrap_or_default();
    let entry = || (weight.clone(), Arc::default());
    let key = (values.as_ptr() as usize, form);
    let cell = current.cache().current.entry(key).or_insert_with(entry).1.clone();
    // Outside the lock: other weights may be looked up while this one is packed.
    cell.get_or_init(|| {
        let spare = current.cache().spare.get_mut(&form).and_then(Vec::pop);
        let (mut packed, [out, input]) = (spare.unwrap_or_default(), sides);
        match transposed {
            true => packed.repack_transposed(precision, values, input, out),
            false => packed.repack(precision, values, out, input),
        }
        packed
    });
    Shared(cell)
}
