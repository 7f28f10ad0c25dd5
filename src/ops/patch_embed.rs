//! The patch embedding of a PVTv2 stage: a convolution of a map, and a layer norm of what it makes (Wang
//! et al. 2022, section 3.2).
//!
//! In one piece the windows of the map are written once, in the precision of the products that read them,
//! and those of images straight from their planes.

#![expect(clippy::too_many_arguments, reason = "tensors inside of structures are not dispatched")]

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use fewvit_kernels::{Epilogue, MapShape, Matrix, Precision, Windows, fold, unfold, unfold_planes};

use super::buffers::Buffer;
use super::flat::{Parent, parents};
use super::pre_norm::PreNorm;
use super::projection::Projection;
use super::storage::{contiguous, slice, unzip};
use super::{Kernels, Norm, composed, precision, unfold as unfolded};

/// See [`super::patch_embed()`]; composed of the operations on single layers.
pub fn composed(
    map: Tensor<4>,
    (weight, bias): Kernels,
    norm: Norm,
    windows: Windows,
) -> Tensor<2> {
    let seen = unfolded::composed(map, windows);
    let [batch, rows, columns, size] = seen.dims();
    let x = composed::linear(seen.reshape([batch * rows * columns, size]), weight, bias);
    composed::layer_norm(x, norm.0, norm.1, norm.2)
}

/// See [`super::patch_embed()`]; one autodiff node over the kernels.
pub fn fused(map: Tensor<4>, conv: Kernels, norm: Norm, windows: Windows) -> Tensor<2> {
    let sides = map.dims();
    dispatch(map, conv, norm, windows, sides, false)
}

/// See [`super::image_embed()`]; one autodiff node over the kernels.
pub fn fused_of_images(
    images: Tensor<4>,
    conv: Kernels,
    norm: Norm,
    windows: Windows,
) -> Tensor<2> {
    let [batch, channels, height, width] = images.dims();
    dispatch(images, conv, norm, windows, [batch, height, width, channels], true)
}

fn dispatch(
    map: Tensor<4>,
    (weight, bias): Kernels,
    norm: Norm,
    windows: Windows,
    sides: [usize; 4],
    planes: bool,
) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::patch_embed(
        map.into_dispatch(),
        weight.into_dispatch(),
        bias.into_dispatch(),
        norm.0.into_dispatch(),
        norm.1.into_dispatch(),
        norm.2,
        windows,
        sides,
        planes,
    ))
}

/// The operation on a backend's primitives.
#[backend_extension(Autodiff, Flex)]
pub trait PatchEmbedOps: Backend {
    /// See [`super::patch_embed()`] and, for `planes`, [`super::image_embed()`]; `sides` are batch, height,
    /// width and channels.
    fn patch_embed(
        map: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        norm_weight: FloatTensor<Self>,
        norm_bias: FloatTensor<Self>,
        eps: f64,
        windows: Windows,
        sides: [usize; 4],
        planes: bool,
    ) -> FloatTensor<Self>;
}

impl PatchEmbedOps for Flex {
    fn patch_embed(
        map: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        norm_weight: FlexTensor,
        norm_bias: FlexTensor,
        eps: f64,
        windows: Windows,
        sides: [usize; 4],
        planes: bool,
    ) -> FlexTensor {
        let norm = [norm_weight, norm_bias];
        Inputs::new([weight, bias], norm, eps, windows, sides, planes).forward(map).0
    }
}

/// The layers and the map's shape.
#[derive(Clone, Debug)]
struct Inputs {
    conv: Projection,
    norm: [FlexTensor; 2],
    eps: f64,
    windows: Windows,
    map: MapShape,
    /// Whether the map's channels are planes.
    planes: bool,
    precision: Precision,
}

/// What the backward reads.
#[derive(Clone, Debug)]
struct Saved {
    /// The windows.
    seen: FlexTensor,
    /// With the convolution's output.
    norm: PreNorm,
    moments: FlexTensor,
}

impl Inputs {
    fn new(
        [weight, bias]: [FlexTensor; 2],
        norm: [FlexTensor; 2],
        eps: f64,
        windows: Windows,
        [batch, height, width, channels]: [usize; 4],
        planes: bool,
    ) -> Self {
        let precision = precision::current();
        let conv = Projection::new(weight, bias, precision);
        let map = MapShape { batch, height, width, channels };
        Self { conv, norm: norm.map(contiguous), eps, windows, map, planes, precision }
    }

    /// Windows of all maps.
    fn rows(&self) -> usize {
        let [height, width] =
            [self.map.height, self.map.width].map(|side| self.windows.count(side));
        self.map.batch * height * width
    }

    /// Values of a window.
    fn size(&self) -> usize {
        self.map.channels * self.windows.kernel.pow(2)
    }

    /// In the precision of the products.
    fn matrix<T>(&self, cells: T) -> Matrix<T> {
        Matrix { cells, precision: self.precision }
    }

    fn forward(&self, map: FlexTensor) -> (FlexTensor, Saved) {
        let (rows, dim, map) = (self.rows(), self.conv.out(), contiguous(map));
        let mut seen = Buffer::stale(rows * self.precision.cells(self.size()));
        let to = self.matrix(&mut seen[..]);
        match self.planes {
            true => unfold_planes(&self.map, &self.windows, slice(&map), to),
            false => unfold(&self.map, &self.windows, slice(&map), to),
        }
        let mut x = Buffer::stale(rows * dim);
        let bias = Epilogue::Bias(self.conv.bias());
        self.conv.forward(rows, self.matrix(&seen[..]), &mut x[..], bias);
        let [weight, bias] = self.norm.clone();
        let norm = PreNorm::new([x.into_tensor([rows, dim]), weight, bias], self.eps);
        let (y, moments) = norm.forward(Precision::F32).into_parts();
        (y, Saved { seen: seen.into_vector(), norm, moments })
    }

    /// Adds the gradients of the parameters and registers that of the map, from the gradient `dy` of the
    /// output.
    fn register(
        &self,
        saved: &Saved,
        dy: &FlexTensor,
        [map, weight, bias, norm_weight, norm_bias]: [Option<Parent>; 5],
        grads: &mut Gradients,
    ) {
        let (rows, norm) = (self.rows(), &saved.norm);
        let parents = [norm_weight, norm_bias];
        let dx = norm.backward(slice(&saved.moments), slice(dy), None, parents, grads);
        let seen = self.matrix(slice(&saved.seen));
        self.conv.add_gradients(rows, &dx[..], seen, [weight, bias], grads);
        if let Some(parent) = map {
            let mut d_seen = Buffer::stale(rows * self.size());
            self.conv.backward(rows, &dx[..], &mut d_seen[..], Epilogue::Store);
            let &MapShape { batch, height, width, channels } = &self.map;
            let mut d_map = Buffer::zeros(batch * height * width * channels);
            fold(&self.map, &self.windows, &d_seen, &mut d_map);
            let gradient = match self.planes {
                true => planes(&d_map, [height * width, channels])
                    .into_tensor([batch, channels, height, width]),
                false => d_map.into_tensor([batch, height, width, channels]),
            };
            grads.register::<Flex>(parent.id, gradient);
        }
    }
}

/// The tokens of maps as a plane for each channel.
fn planes(maps: &[f32], [tokens, channels]: [usize; 2]) -> Buffer {
    let (mut out, size) = (Buffer::stale(maps.len()), (tokens * channels).max(1));
    for (map, planes) in maps.chunks_exact(size).zip(out.chunks_exact_mut(size)) {
        for (i, value) in planes.iter_mut().enumerate() {
            *value = map[i % tokens * channels + i / tokens];
        }
    }
    out
}

#[derive(Debug)]
struct PatchEmbed;

impl Backward<Flex, 5> for PatchEmbed {
    type State = (Inputs, Saved);

    fn backward(self, ops: Ops<Self::State, 5>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let (inputs, saved) = ops.state;
        let [map, weight, bias, norm_weight, norm_bias] = ops.parents;
        let parents = parents![map, weight, bias, norm_weight, norm_bias];
        inputs.register(&saved, &dy, parents, grads);
    }
}

impl<C: CheckpointStrategy> PatchEmbedOps for Autodiff<Flex, C> {
    fn patch_embed(
        map: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        norm_weight: FloatTensor<Self>,
        norm_bias: FloatTensor<Self>,
        eps: f64,
        windows: Windows,
        sides: [usize; 4],
        planes: bool,
    ) -> FloatTensor<Self> {
        let tensors = [map, weight, bias, norm_weight, norm_bias];
        let ([map, weight, bias, norm_weight, norm_bias], nodes) =
            unzip(tensors.map(|tensor| tensor.into_parts()));
        let norm = [norm_weight, norm_bias];
        let inputs = Inputs::new([weight, bias], norm, eps, windows, sides, planes);
        let (y, saved) = inputs.forward(map);
        match PatchEmbed.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(node) => node.finish((inputs, saved), y),
            OpsKind::UnTracked(node) => node.finish(y),
        }
    }
}
