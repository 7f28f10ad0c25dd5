//! Weights packed for the matrix kernels, once per optimiser step instead of once per call.
//!
//! The cache is keyed by the address of the weight's storage. That is sound because an entry holds
//! the tensor itself: while it is cached its memory cannot be freed, reused or written in place.
//! Packed matrices that are out of date give their memory to those of the next step.

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

fn cache() -> MutexGuard<'static, Cache> {
    static CACHE: OnceLock<Mutex<Cache>> = OnceLock::new();
    CACHE.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// Drops all packed weights. Called after every optimiser step, when they are out of date.
pub fn forget_packed_weights() {
    let Cache { current, spare } = &mut *cache();
    // What was not used again in this step belongs to a model that is gone.
    spare.clear();
    for ((_, form), (_, cell)) in current.drain() {
        if let Some(packed) = Arc::into_inner(cell).and_then(OnceLock::into_inner) {
            spare.entry(form).or_default().push(packed);
        }
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
    let entry = || (weight.clone(), Arc::default());
    let key = (values.as_ptr() as usize, form);
    let cell = cache().current.entry(key).or_insert_with(entry).1.clone();
    // Outside the lock: other weights may be looked up while this one is packed.
    cell.get_or_init(|| {
        let spare = cache().spare.get_mut(&form).and_then(Vec::pop);
        let (mut packed, [out, input]) = (spare.unwrap_or_default(), sides);
        match transposed {
            true => packed.repack_transposed(precision, values, input, out),
            false => packed.repack(precision, values, out, input),
        }
        packed
    });
    Shared(cell)
}
