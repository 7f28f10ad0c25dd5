//! Memory of the fused operations, used again instead of given back.
//!
//! A step asks for the same few hundred buffers as the step before it. Fresh memory would cost a
//! page fault every 4 KiB and a pass that zeroes it, more than some of the operations themselves.
//! All `unsafe` of this crate is in this file.

use std::cell::RefCell;
use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use burn::tensor::{AllocationProperty, Bytes, DType, Device, Shape, Tensor, TensorData};
use burn_flex::{FlexTensor, Layout};
use burn_std::{AccessError, AccessPolicy, AllocationController};

/// Freed buffers of a worker, by length.
#[derive(Default)]
pub struct BufferPool {
    free: HashMap<usize, Vec<Vec<f32>>>,
}

thread_local! {
    /// The pool that serves this thread; without one, buffers come from the allocator.
    static POOL: RefCell<Option<BufferPool>> = const { RefCell::new(None) };
}

impl BufferPool {
    /// Runs `work` with the buffers of this thread's operations taken from and returned to the pool.
    pub fn serve<T>(&mut self, work: impl FnOnce() -> T) -> T {
        POOL.replace(Some(std::mem::take(self)));
        let result = work();
        *self = POOL.take().unwrap_or_default();
        result
    }
}

/// A vector that returns to the pool of the thread it is dropped on.
#[derive(Debug)]
pub(super) struct Buffer(Vec<f32>);

impl Buffer {
    /// `len` values left over from an earlier use: for outputs that are overwritten.
    pub(super) fn stale(len: usize) -> Self {
        let take = |pool: &mut Option<BufferPool>| pool.as_mut()?.free.get_mut(&len)?.pop();
        Self(POOL.with_borrow_mut(take).unwrap_or_else(|| vec![0.0; len]))
    }

    /// `len` zeros: for outputs that are added to.
    pub(super) fn zeros(len: usize) -> Self {
        let mut buffer = Self::stale(len);
        buffer.fill(0.0);
        buffer
    }

    /// The tensor of these values.
    pub(super) fn into_tensor(self, shape: impl Into<Shape>) -> FlexTensor {
        FlexTensor::new(self.into_bytes(), Layout::contiguous(shape.into()), DType::F32)
    }

    /// [`Self::into_tensor`] of one dimension.
    pub(super) fn into_vector(self) -> FlexTensor {
        let len = self.len();
        self.into_tensor([len])
    }

    fn into_bytes(self) -> Bytes {
        let bytes = size_of_val(&*self.0);
        // SAFETY: a buffer's controller covers `bytes` bytes, all initialised, for as long as it
        // lives; moving the box does not move the vector's memory.
        unsafe { Bytes::from_controller(Box::new(self), bytes) }
    }
}

/// A tensor in the memory of one that was dropped before; `fill` must write every value.
pub fn filled<const D: usize>(
    shape: [usize; D],
    device: &Device,
    fill: impl FnOnce(&mut [f32]),
) -> Tensor<D> {
    let mut buffer = Buffer::stale(shape.iter().product());
    fill(&mut buffer);
    Tensor::from_data(TensorData::from_bytes(buffer.into_bytes(), shape, DType::F32), device)
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let values = std::mem::take(&mut self.0);
        // No pool is left while a thread ends: then the memory is freed.
        let _ = POOL.try_with(|pool| {
            if let Some(pool) = pool.borrow_mut().as_mut() {
                pool.free.entry(values.len()).or_default().push(values);
            }
        });
    }
}

impl AllocationController for Buffer {
    fn alloc_align(&self) -> usize {
        align_of::<f32>()
    }

    fn property(&self) -> AllocationProperty {
        AllocationProperty::Other
    }

    fn memory(&self, _: AccessPolicy) -> Result<&[MaybeUninit<u8>], AccessError> {
        Ok(bytes_of(&self.0))
    }

    unsafe fn memory_mut(
        &mut self,
        _: AccessPolicy,
    ) -> Result<&mut [MaybeUninit<u8>], AccessError> {
        // SAFETY: the caller's promise is the same.
        Ok(unsafe { bytes_of_mut(&mut self.0) })
    }
}

/// The tensor memory of the `range` of `values`, which others may read too.
pub(super) fn part_of(values: &Arc<Vec<f32>>, range: Range<usize>) -> Bytes {
    let bytes = size_of_val(&values[range.clone()]);
    // SAFETY: a part's controller covers `bytes` bytes, all initialised, for as long as it lives;
    // the vector behind an `Arc` that is shared does not move or change.
    unsafe { Bytes::from_controller(Box::new(Part { values: values.clone(), range }), bytes) }
}

/// See [`part_of`].
struct Part {
    values: Arc<Vec<f32>>,
    range: Range<usize>,
}

impl AllocationController for Part {
    fn alloc_align(&self) -> usize {
        align_of::<f32>()
    }

    fn property(&self) -> AllocationProperty {
        AllocationProperty::Other
    }

    fn duplicate(&self) -> Option<Box<dyn AllocationController>> {
        Some(Box::new(Self { values: self.values.clone(), range: self.range.clone() }))
    }

    fn memory(&self, _: AccessPolicy) -> Result<&[MaybeUninit<u8>], AccessError> {
        Ok(bytes_of(&self.values[self.range.clone()]))
    }

    unsafe fn memory_mut(
        &mut self,
        policy: AccessPolicy,
    ) -> Result<&mut [MaybeUninit<u8>], AccessError> {
        if Arc::get_mut(&mut self.values).is_none() {
            // What others read stays as it is.
            if !policy.copy_allowed() {
                return Err(AccessError::WouldCopy);
            }
            let copy = self.values[self.range.clone()].to_vec();
            (self.range, self.values) = (0..copy.len(), Arc::new(copy));
        }
        let values = Arc::get_mut(&mut self.values).expect("no other part has them");
        // SAFETY: the caller's promise is the same.
        Ok(unsafe { bytes_of_mut(&mut values[self.range.clone()]) })
    }
}

fn bytes_of(values: &[f32]) -> &[MaybeUninit<u8>] {
    // SAFETY: the bytes of a slice of floats, borrowed as long; `MaybeUninit<u8>` has no alignment
    // and no invalid values.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// # Safety
/// Initialised bytes only may be written to the result.
unsafe fn bytes_of_mut(values: &mut [f32]) -> &mut [MaybeUninit<u8>] {
    let len = size_of_val(values);
    // SAFETY: as in `bytes_of`, borrowed exclusively; every pattern of initialised bits is a float.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), len) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_tensor_is_the_next_buffer_of_its_size() {
        let mut pool = BufferPool::default();
        let address = pool.serve(|| {
            let mut buffer = Buffer::stale(100);
            buffer.fill(7.0);
            let tensor = buffer.into_tensor([20, 5]);
            assert_eq!(tensor.as_slice::<f32>(), Some(&[7.0; 100][..]));
            tensor.bytes().as_ptr()
        });
        pool.serve(|| {
            assert!(Buffer::stale(99).iter().all(|&v| v == 0.0));
            let again = Buffer::stale(100);
            assert_eq!((again.as_ptr().cast(), again[99]), (address, 7.0));
            assert_ne!(Buffer::stale(100).as_ptr(), again.as_ptr());
            drop(again);
            assert!(Buffer::zeros(100).iter().all(|&v| v == 0.0));
        });
        // A tensor may outlive the pool, and be written to by burn.
        let mut tensor = pool.serve(|| Buffer::zeros(3).into_tensor([3]));
        drop(pool);
        tensor.storage_mut::<f32>()[1] = 4.0;
        assert_eq!(tensor.as_slice::<f32>(), Some(&[0.0, 4.0, 0.0][..]));
    }

    #[test]
    fn a_part_that_is_written_to_leaves_the_others_alone() {
        let values = Arc::new(vec![0.0, 1.0, 2.0, 3.0]);
        let [a, mut b] = [0..3, 1..4].map(|range| part_of(&values, range));
        let copy = a.clone();
        assert_eq!(a.as_ptr(), values.as_ptr().cast());
        b[..4].copy_from_slice(&7f32.to_ne_bytes());
        let floats = |bytes: &Bytes| -> Vec<f32> {
            let (words, _) = bytes.as_chunks();
            words.iter().map(|&word| f32::from_ne_bytes(word)).collect()
        };
        assert_eq!(floats(&b), [7.0, 2.0, 3.0]);
        assert_eq!([&a, &copy].map(floats), [[0.0, 1.0, 2.0]; 2]);
        assert_eq!(*values, [0.0, 1.0, 2.0, 3.0]);
        drop((a, copy));
        assert!(Arc::try_unwrap(values).is_ok());
    }
}
