//! Weights packed for the matrix kernels, once per optimiser step instead of once per call.
//!
//! The cache is keyed by the address of the weight's storage. That is sound because an entry holds
//! the tensor itself: while it is cached its memory cannot be freed, reused or written in place.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use burn_flex::FlexTensor;
use fewvit_kernels::{PackedB, Precision};

use super::storage::{dims2, slice};

type Entry = (FlexTensor, Arc<OnceLock<PackedB>>);
/// Address of the weight's first element, its sides, its precision and whether it is packed transposed.
type Key = (usize, [usize; 2], Precision, bool);

fn cache() -> &'static Mutex<HashMap<Key, Entry>> {
    static CACHE: OnceLock<Mutex<HashMap<Key, Entry>>> = OnceLock::new();
    CACHE.get_or_init(Default::default)
}

/// Frees all packed weights. Called after every optimiser step, when they are out of date.
pub fn forget_packed_weights() {
    cache().lock().unwrap_or_else(PoisonError::into_inner).clear();
}

/// A right-hand side shared by the worker threads.
pub(super) struct Shared(Arc<OnceLock<PackedB>>);

impl Shared {
    /// The packed matrix.
    pub(super) fn get(&self) -> &PackedB {
        self.0.get().expect("packed by `shared` before it is handed out")
    }
}

/// `weight` (`[out, in]`) packed as the right-hand side of `x W^T`.
pub(super) fn for_forward(weight: &FlexTensor, precision: Precision) -> Shared {
    let key = (precision, true);
    shared(weight, key, |w, [n, k]| PackedB::pack_transposed(precision, w, k, n))
}

/// `weight` (`[out, in]`) packed as the right-hand side of `dy W`.
pub(super) fn for_backward(weight: &FlexTensor, precision: Precision) -> Shared {
    shared(weight, (precision, false), |w, [k, n]| PackedB::pack(precision, w, k, n))
}

fn shared(
    weight: &FlexTensor,
    (precision, transposed): (Precision, bool),
    pack: impl FnOnce(&[f32], [usize; 2]) -> PackedB,
) -> Shared {
    let values = slice(weight);
    let cell = {
        let mut cache = cache().lock().unwrap_or_else(PoisonError::into_inner);
        let entry = cache
            .entry((values.as_ptr() as usize, dims2(weight), precision, transposed))
            .or_insert_with(|| (weight.clone(), Arc::default()));
        entry.1.clone()
    };
    // Outside the lock: other weights may be looked up while this one is packed.
    cell.get_or_init(|| pack(values, dims2(weight)));
    Shared(cell)
}
