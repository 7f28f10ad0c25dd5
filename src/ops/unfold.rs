//! Windows of maps as rows of a matrix.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::{Int, Shape, Tensor, TensorData};
use burn_flex::FlexTensor;
use fewvit_kernels::{MapShape, Windows};

use super::buffers::Buffer;
use super::storage::{contiguous, slice};

/// See [`super::unfold()`]; composed of burn's operations.
pub fn composed(x: Tensor<4>, windows: Windows) -> Tensor<4> {
    let [batch, height, width, channels] = x.dims();
    let (device, size) = (x.device(), windows.kernel.pow(2));
    let tokens = x.reshape([batch, height * width, channels]);
    // Places on the padding read one more token, of zeros.
    let tokens = Tensor::cat(vec![tokens, Tensor::zeros([batch, 1, channels], &device)], 1);
    let places = places(&windows, [height, width]);
    let count = places.len();
    let places = Tensor::<1, Int>::from_data(TensorData::new(places, [count]), &device);
    let [rows, columns] = [height, width].map(|side| windows.count(side));
    let seen = tokens.select(1, places).reshape([batch * rows * columns, size, channels]);
    seen.swap_dims(1, 2).reshape([batch, rows, columns, channels * size])
}

/// For each window of one map in turn and each of its places, row by row: the token there, or
/// `height * width` on the padding. All maps of a batch share it, so that it stays small enough to
/// cross to a device at each call.
fn places(windows: &Windows, [height, width]: [usize; 2]) -> Vec<i32> {
    let place = |window: usize, offset: usize, side: usize| {
        (window * windows.stride + offset).checked_sub(windows.padding).filter(|&at| at < side)
    };
    let mut tokens = Vec::new();
    for (row, column) in pairs(windows.count(height), windows.count(width)) {
        for (down, right) in pairs(windows.kernel, windows.kernel) {
            let at = place(row, down, height).zip(place(column, right, width));
            tokens.push(at.map_or(height * width, |(y, x)| y * width + x) as i32);
        }
    }
    tokens
}

/// All pairs below the two bounds, row by row.
fn pairs(rows: usize, columns: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).flat_map(move |row| (0..columns).map(move |column| (row, column)))
}

/// See [`super::unfold()`]; one autodiff node over the kernels.
pub fn fused(x: Tensor<4>, windows: Windows) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::unfold(x.into_dispatch(), windows))
}

/// The operation on a backend's primitives.
#[backend_extension(Autodiff, Flex)]
pub trait UnfoldOps: Backend {
    /// See [`super::unfold()`].
    fn unfold(x: FloatTensor<Self>, windows: Windows) -> FloatTensor<Self>;
}

impl UnfoldOps for Flex {
    fn unfold(x: FlexTensor, windows: Windows) -> FlexTensor {
        forward(&contiguous(x), &windows)
    }
}

fn forward(x: &FlexTensor, windows: &Windows) -> FlexTensor {
    let shape = shape_of(x.layout().shape());
    let [rows, columns] = [shape.height, shape.width].map(|side| windows.count(side));
    let width = shape.channels * windows.kernel.pow(2);
    let mut out = Buffer::stale(shape.batch * rows * columns * width);
    fewvit_kernels::unfold(&shape, windows, slice(x), &mut out[..]);
    out.into_tensor([shape.batch, rows, columns, width])
}

fn shape_of(shape: &Shape) -> MapShape {
    MapShape { batch: shape[0], height: shape[1], width: shape[2], channels: shape[3] }
}

#[derive(Debug)]
struct Unfold;

impl Backward<Flex, 1> for Unfold {
    /// The shape of the map, and the windows.
    type State = (Shape, Windows);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let (shape, windows) = ops.state;
        if let [Some(node)] = ops.parents {
            let mut dx = Buffer::zeros(shape.num_elements());
            fewvit_kernels::fold(&shape_of(&shape), &windows, slice(&dy), &mut dx);
            grads.register::<Flex>(node.id, dx.into_tensor(shape));
        }
    }
}

impl<C: CheckpointStrategy> UnfoldOps for Autodiff<Flex, C> {
    fn unfold(x: FloatTensor<Self>, windows: Windows) -> FloatTensor<Self> {
        let (x, node) = x.into_parts();
        let x = contiguous(x);
        let y = forward(&x, &windows);
        match Unfold.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(node) => node.finish((x.layout().shape().clone(), windows), y),
            OpsKind::UnTracked(node) => node.finish(y),
        }
    }
}
