//! The second half of a PVTv2 block: a layer norm, two linear layers with a 3 x 3 convolution of each
//! channel and GELU between them, and what came in added to what comes out (Wang et al. 2022, section
//! 3.3).
//!
//! In one piece the maps on both sides of the convolution, by far the largest of a block, stay in the
//! precision of the products that make and read them, and few of them at a time pass through all layers:
//! most of what one layer writes is still in a cache when the next one reads it.

#![expect(clippy::too_many_arguments, reason = "tensors inside of structures are not dispatched")]

use std::ops::Range;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use fewvit_kernels::{
    Epilogue, MapShape, Matrix, Precision, depthwise_gelu_backward, depthwise_gelu_forward,
    scale_rows,
};

use super::buffers::Buffer;
use super::flat::{Parent, add_gradients_anyway, parents};
use super::kept::{Kept, Run};
use super::pre_norm::PreNorm;
use super::projection::Projection;
use super::storage::{contiguous, dims2, slice, unzip};
use super::{Kernels, Layer, Norm, composed, depthwise, precision};

/// See [`super::conv_mlp_block()`]; composed of the operations on single layers.
pub fn composed(
    x: Tensor<2>,
    norm: Norm,
    fc1: Layer,
    dwconv: Kernels,
    fc2: Layer,
    [batch, side]: [usize; 2],
    factors: Option<Vec<f32>>,
) -> Tensor<2> {
    let normed = composed::layer_norm(x.clone(), norm.0, norm.1, norm.2);
    let hidden = composed::linear(normed, fc1.0, fc1.1);
    let [rows, width] = hidden.dims();
    let map = hidden.reshape([batch, side, side, width]);
    let hidden = depthwise::composed(map, dwconv.0, dwconv.1).reshape([rows, width]);
    composed::linear_residual(hidden, fc2.0, fc2.1, x, factors)
}

/// See [`super::conv_mlp_block()`]; one autodiff node over the kernels.
pub fn fused(
    x: Tensor<2>,
    norm: Norm,
    fc1: Layer,
    dwconv: Kernels,
    fc2: Layer,
    [batch, side]: [usize; 2],
    factors: Option<Vec<f32>>,
) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::conv_mlp_block(
        x.into_dispatch(),
        norm.0.into_dispatch(),
        norm.1.into_dispatch(),
        fc1.0.into_dispatch(),
        fc1.1.into_dispatch(),
        dwconv.0.into_dispatch(),
        dwconv.1.into_dispatch(),
        fc2.0.into_dispatch(),
        fc2.1.into_dispatch(),
        norm.2,
        batch,
        side,
        factors,
    ))
}

/// The operation on a backend's primitives.
#[backend_extension(Autodiff, Flex)]
pub trait ConvMlpBlockOps: Backend {
    /// See [`super::conv_mlp_block()`].
    fn conv_mlp_block(
        x: FloatTensor<Self>,
        norm_weight: FloatTensor<Self>,
        norm_bias: FloatTensor<Self>,
        weight1: FloatTensor<Self>,
        bias1: FloatTensor<Self>,
        kernels: FloatTensor<Self>,
        conv_bias: FloatTensor<Self>,
        weight2: FloatTensor<Self>,
        bias2: FloatTensor<Self>,
        eps: f64,
        batch: usize,
        side: usize,
        factors: Option<Vec<f32>>,
    ) -> FloatTensor<Self>;
}

impl ConvMlpBlockOps for Flex {
    fn conv_mlp_block(
        x: FlexTensor,
        norm_weight: FlexTensor,
        norm_bias: FlexTensor,
        weight1: FlexTensor,
        bias1: FlexTensor,
        kernels: FlexTensor,
        conv_bias: FlexTensor,
        weight2: FlexTensor,
        bias2: FlexTensor,
        eps: f64,
        batch: usize,
        side: usize,
        factors: Option<Vec<f32>>,
    ) -> FlexTensor {
        let layers = [weight1, bias1, kernels, conv_bias, weight2, bias2];
        let inputs = Inputs::new([x, norm_weight, norm_bias], layers, eps, [batch, side]);
        inputs.forward(&inputs.kept(factors)).0
    }
}

/// Values of a hidden map, of maps that pass through all layers together: 1 MiB. In tests few, so that
/// there are several parts.
const AT_ONCE: usize = if cfg!(test) { 1024 } else { 256 * 1024 };

/// The norm with its input, the layers and the maps that the rows are, between the layers.
#[derive(Clone, Debug)]
struct Inputs {
    norm: PreNorm,
    fc1: Projection,
    kernels: FlexTensor,
    conv_bias: FlexTensor,
    fc2: Projection,
    map: MapShape,
    precision: Precision,
}

/// What the backward reads, of the maps that are kept.
#[derive(Clone, Debug)]
struct Saved {
    normed: FlexTensor,
    moments: FlexTensor,
    /// The map before the convolution, and that behind GELU.
    hidden: FlexTensor,
    activated: FlexTensor,
}

impl Inputs {
    fn new(
        norm: [FlexTensor; 3],
        [w1, b1, kernels, conv_bias, w2, b2]: [FlexTensor; 6],
        eps: f64,
        [batch, side]: [usize; 2],
    ) -> Self {
        let (norm, precision) = (PreNorm::new(norm, eps), precision::current());
        let [fc1, fc2] = [(w1, b1), (w2, b2)].map(|(w, b)| Projection::new(w, b, precision));
        let [kernels, conv_bias] = [kernels, conv_bias].map(contiguous);
        let map = MapShape { batch, height: side, width: side, channels: fc1.out() };
        Self { norm, fc1, kernels, conv_bias, fc2, map, precision }
    }

    /// Tokens of a map.
    fn tokens(&self) -> usize {
        self.map.height * self.map.width
    }

    fn kept(&self, factors: Option<Vec<f32>>) -> Kept {
        Kept::new([self.map.batch, self.tokens()], factors)
    }

    /// Maps that pass through all layers together.
    fn at_once(&self) -> usize {
        (AT_ONCE / (self.tokens() * self.map.channels)).clamp(1, self.map.batch.max(1))
    }

    /// As many maps with the channels of the hidden one.
    fn maps(&self, part: &Range<usize>) -> MapShape {
        MapShape { batch: part.len(), ..self.map }
    }

    /// Where rows of `columns` lie in the precision of the products.
    fn span(&self, rows: &Range<usize>, columns: usize) -> Range<usize> {
        let cells = self.precision.cells(columns);
        rows.start * cells..rows.end * cells
    }

    /// In that precision.
    fn matrix<T>(&self, cells: T) -> Matrix<T> {
        Matrix { cells, precision: self.precision }
    }

    /// Room for rows of the given number of columns, in that precision.
    fn buffer(&self, rows: usize, columns: usize) -> Buffer {
        Buffer::stale(rows * self.precision.cells(columns))
    }

    fn forward(&self, kept: &Kept) -> (FlexTensor, Saved) {
        let (rows, dim, width) = (self.map.batch * self.tokens(), self.fc2.out(), self.fc1.out());
        let (mut y, mut moments) = (Buffer::stale(rows * dim), Buffer::stale(rows * 2));
        // Buffers are used again by length: as long as if all maps were kept.
        let [mut normed, mut hidden, mut activated] =
            [dim, width, width].map(|columns| self.buffer(rows, columns));
        let x = slice(&self.norm.x);
        kept.pass_dropped(dim, x, &mut y);
        for part in kept.parts(self.at_once()) {
            let rows = kept.rows(&part);
            let (narrow, wide) = (self.span(&rows, dim), self.span(&rows, width));
            for Run { kept, all } in kept.runs(&part) {
                let out = self.matrix(&mut normed[self.span(&kept, dim)]);
                let moments = &mut moments[2 * kept.start..2 * kept.end];
                self.norm.forward_rows(&x[all.start * dim..all.end * dim], out, moments);
            }
            let (from, to) = (&normed[narrow], &mut hidden[wide.clone()]);
            let bias = Epilogue::Bias(self.fc1.bias());
            self.fc1.forward(rows.len(), self.matrix(from), self.matrix(to), bias);
            let (from, to) = (&hidden[wide.clone()], &mut activated[wide]);
            let (kernels, bias) = (slice(&self.kernels), slice(&self.conv_bias));
            let (from, to) = (self.matrix(from), self.matrix(to));
            depthwise_gelu_forward(&self.maps(&part), from, kernels, bias, to);
            for Run { kept: rows, all } in kept.runs(&part) {
                let from = self.matrix(&activated[self.span(&rows, width)]);
                let (factors, values) = (kept.factors(&all), all.start * dim..all.end * dim);
                let (bias, residual) = (self.fc2.bias(), &x[values.clone()]);
                let end = Epilogue::Residual { bias, residual, factors };
                self.fc2.forward(rows.len(), from, &mut y[values], end);
            }
        }
        let [normed, moments, hidden, activated] =
            [normed, moments, hidden, activated].map(Buffer::into_vector);
        (y.into_tensor([rows, dim]), Saved { normed, moments, hidden, activated })
    }

    /// Adds the gradients of the parameters and registers that of `x`, from the gradient `dy` of the
    /// output.
    fn register(
        &self,
        (saved, kept): (&Saved, &Kept),
        dy: &FlexTensor,
        [x, parents @ ..]: [Option<Parent>; 9],
        grads: &mut Gradients,
    ) {
        let (dim, dy) = (self.fc2.out(), slice(dy));
        let mut dx = Buffer::stale(dy.len());
        kept.pass_dropped(dim, dy, &mut dx);
        let [[w1, b1], [w2, b2]] = [&self.fc1, &self.fc2].map(Projection::parameters);
        let PreNorm { weight, bias, .. } = &self.norm;
        let parameters = [weight, bias, w1, b1, &self.kernels, &self.conv_bias, w2, b2];
        add_gradients_anyway(parameters, parents, grads, |[nw, nb, w1, b1, k, kb, w2, b2]| {
            let rows = self.at_once() * self.tokens();
            let [mut slopes, mut du] = [(); 2].map(|()| self.buffer(rows, self.fc1.out()));
            let (mut branch, mut d_normed) = (self.buffer(rows, dim), Buffer::stale(rows * dim));
            for part in kept.parts(self.at_once()) {
                let rows = kept.rows(&part);
                let span = |columns| self.span(&rows, columns);
                for Run { kept: to, all } in kept.runs(&part) {
                    let to = self.span(&(to.start - rows.start..to.end - rows.start), dim);
                    let (to, dy) =
                        (self.matrix(&mut branch[to]), &dy[all.start * dim..all.end * dim]);
                    scale_rows(dim, dy, kept.factors(&all), to);
                }
                let branch = self.matrix(&branch[..self.precision.cells(dim) * rows.len()]);
                let hidden = ..self.precision.cells(self.fc1.out()) * rows.len();
                let activated = self.matrix(&slice(&saved.activated)[span(self.fc1.out())]);
                self.fc2.sum_gradients(rows.len(), branch, activated, [w2, b2]);
                let out = self.matrix(&mut slopes[hidden]);
                self.fc2.backward(rows.len(), branch, out, Epilogue::Store);
                let before = &slice(&saved.hidden)[span(self.fc1.out())];
                let maps = [&slopes[hidden], before].map(|map| self.matrix(map));
                let (kernels, bias) = (slice(&self.kernels), slice(&self.conv_bias));
                let (out, sums) = (self.matrix(&mut du[hidden]), [&mut *k, &mut *kb]);
                depthwise_gelu_backward(&self.maps(&part), maps, kernels, bias, out, sums);
                let (du, normed) = (self.matrix(&du[hidden]), &slice(&saved.normed)[span(dim)]);
                self.fc1.sum_gradients(rows.len(), du, self.matrix(normed), [w1, b1]);
                self.fc1.backward(
                    rows.len(),
                    du,
                    &mut d_normed[..rows.len() * dim],
                    Epilogue::Store,
                );
                for Run { kept: from, all } in kept.runs(&part) {
                    let moments = &slice(&saved.moments)[2 * from.start..2 * from.end];
                    let from = (from.start - rows.start) * dim..(from.end - rows.start) * dim;
                    let all = all.start * dim..all.end * dim;
                    let (dy, dx) = (&dy[all.clone()], &mut dx[all.clone()]);
                    self.norm.backward_rows(all, moments, &d_normed[from], dy, dx, [nw, nb]);
                }
            }
        });
        if let Some(parent) = x {
            let [rows, dim] = dims2(&self.norm.x);
            grads.register::<Flex>(parent.id, dx.into_tensor([rows, dim]));
        }
    }
}

#[derive(Debug)]
struct ConvMlpBlock;

impl Backward<Flex, 9> for ConvMlpBlock {
    type State = (Inputs, Saved, Kept);

    fn backward(self, ops: Ops<Self::State, 9>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let (inputs, saved, kept) = ops.state;
        let [x, nw, nb, w1, b1, k, kb, w2, b2] = ops.parents;
        inputs.register((&saved, &kept), &dy, parents![x, nw, nb, w1, b1, k, kb, w2, b2], grads);
    }
}

impl<C: CheckpointStrategy> ConvMlpBlockOps for Autodiff<Flex, C> {
    fn conv_mlp_block(
        x: FloatTensor<Self>,
        norm_weight: FloatTensor<Self>,
        norm_bias: FloatTensor<Self>,
        weight1: FloatTensor<Self>,
        bias1: FloatTensor<Self>,
        kernels: FloatTensor<Self>,
        conv_bias: FloatTensor<Self>,
        weight2: FloatTensor<Self>,
        bias2: FloatTensor<Self>,
        eps: f64,
        batch: usize,
        side: usize,
        factors: Option<Vec<f32>>,
    ) -> FloatTensor<Self> {
        let norm = [x, norm_weight, norm_bias];
        let layers = [weight1, bias1, kernels, conv_bias, weight2, bias2];
        let (norm, [xn, nw, nb]) = unzip(norm.map(|tensor| tensor.into_parts()));
        let (layers, [w1, b1, k, kb, w2, b2]) = unzip(layers.map(|tensor| tensor.into_parts()));
        let nodes = [xn, nw, nb, w1, b1, k, kb, w2, b2];
        let inputs = Inputs::new(norm, layers, eps, [batch, side]);
        let kept = inputs.kept(factors);
        let (y, saved) = inputs.forward(&kept);
        match ConvMlpBlock.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(node) => node.finish((inputs, saved, kept), y),
            OpsKind::UnTracked(node) => node.finish(y),
        }
    }
}
