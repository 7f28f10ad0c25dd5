//! Flex tensors as plain slices, without copies.

use burn_flex::FlexTensor;

/// The values of a contiguous f32 tensor.
pub(super) fn slice(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice::<f32>().expect("a contiguous f32 tensor")
}

/// The tensor itself if its values lie one after the other, wherever in its memory; else a copy.
pub(super) fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.as_slice::<f32>().is_some() { tensor } else { tensor.to_contiguous() }
}

/// The sides of a matrix; a convolution's kernels are one with a row for each output channel.
pub(super) fn dims2(tensor: &FlexTensor) -> [usize; 2] {
    let shape = tensor.layout().shape();
    [shape[0], shape[1..].iter().product()]
}

/// The first and the second parts of pairs.
pub(super) fn unzip<A, B, const N: usize>(pairs: [(A, B); N]) -> ([A; N], [B; N]) {
    let mut second = pairs.map(|(a, b)| (Some(a), Some(b)));
    let first = second.each_mut().map(|(a, _)| a.take().expect("taken once"));
    (first, second.map(|(_, b)| b.expect("not taken before")))
}
