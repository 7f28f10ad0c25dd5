//! The first half of a PVTv2 block: a layer norm, attention to keys and values of a smaller map, and
//! what came in added to what comes out (Wang et al. 2021, section 3.3: spatial reduction).
//!
//! In one piece the maps between the layers stay in the precision of the products that read them, and
//! samples whose branch stochastic depth drops cost nothing.

#![expect(clippy::too_many_arguments, reason = "tensors inside of structures are not dispatched")]

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use fewvit_kernels::{
    AttentionShape, Epilogue, MapShape, Matrix, Precision, Qkv, Windows, attention_backward,
    attention_forward, fold, scale_rows, unfold,
};

use super::buffers::Buffer;
use super::flat::{Parent, add_gradients_anyway, parents};
use super::fused_nodes::softmax_sums;
use super::kept::{Kept, Run};
use super::pre_norm::{Normed, PreNorm};
use super::projection::{Maps, Projection};
use super::storage::{contiguous, dims2, slice, unzip};
use super::{Kernels, Layer, Norm, composed, precision, unfold as unfolded};

/// What makes fewer keys: a convolution whose windows lie side by side, and a norm behind it.
pub type Reduction = (Kernels, Norm);

/// See [`super::reduced_attention_block()`]; composed of the operations on single layers.
pub fn composed(
    x: Tensor<2>,
    norm: Norm,
    [q, kv, proj]: [Layer; 3],
    reduction: Option<Reduction>,
    [batch, side, heads]: [usize; 3],
    factors: Option<Vec<f32>>,
) -> Tensor<2> {
    let dim = x.dims()[1];
    let normed = composed::layer_norm(x.clone(), norm.0, norm.1, norm.2);
    let keys = match reduction {
        None => normed.clone(),
        Some(((weight, bias), norm)) => {
            let kernel = weight.dims()[2];
            let map = normed.clone().reshape([batch, side, side, dim]);
            let seen = unfolded::composed(map, side_by_side(kernel));
            let [_, rows, columns, size] = seen.dims();
            let seen = seen.reshape([batch * rows * columns, size]);
            let keys = composed::linear(seen, weight, bias);
            composed::layer_norm(keys, norm.0, norm.1, norm.2)
        }
    };
    let tokens = |x: Tensor<2>| -> Tensor<3> {
        let [rows, dim] = x.dims();
        x.reshape([batch, rows / batch, dim])
    };
    let [q, kv] = [(normed, q), (keys, kv)].map(|(x, (w, b))| tokens(composed::linear(x, w, b)));
    let attended = composed::cross_attention(q, kv, heads).reshape([batch * side * side, dim]);
    composed::linear_residual(attended, proj.0, proj.1, x, factors)
}

/// See [`super::reduced_attention_block()`]; one autodiff node over the kernels.
pub fn fused(
    x: Tensor<2>,
    norm: Norm,
    [q, kv, proj]: [Layer; 3],
    reduction: Option<Reduction>,
    sizes: [usize; 3],
    factors: Option<Vec<f32>>,
) -> Tensor<2> {
    // An operation takes tensors only: without a reduction, empty ones that nothing reads.
    let kernel = reduction.as_ref().map(|((weight, _), _)| weight.dims()[2]);
    let device = x.device();
    let none = || Tensor::zeros([0], &device);
    let none = || ((Tensor::zeros([0; 4], &device), none()), (none(), none(), 0.0));
    let (sr, sr_norm) = reduction.unwrap_or_else(none);
    Tensor::from_dispatch(Dispatch::reduced_attention_block(
        x.into_dispatch(),
        norm.0.into_dispatch(),
        norm.1.into_dispatch(),
        q.0.into_dispatch(),
        q.1.into_dispatch(),
        sr.0.into_dispatch(),
        sr.1.into_dispatch(),
        sr_norm.0.into_dispatch(),
        sr_norm.1.into_dispatch(),
        kv.0.into_dispatch(),
        kv.1.into_dispatch(),
        proj.0.into_dispatch(),
        proj.1.into_dispatch(),
        [norm.2, sr_norm.2],
        kernel,
        sizes,
        factors,
    ))
}

/// Windows that cover a map once.
fn side_by_side(kernel: usize) -> Windows {
    Windows { kernel, stride: kernel, padding: 0 }
}

/// The operation on a backend's primitives.
#[backend_extension(Autodiff, Flex)]
pub trait ReducedAttentionBlockOps: Backend {
    /// See [`super::reduced_attention_block()`]; `kernel` is the side of the reduction's windows, if there
    /// is one.
    fn reduced_attention_block(
        x: FloatTensor<Self>,
        norm_weight: FloatTensor<Self>,
        norm_bias: FloatTensor<Self>,
        q_weight: FloatTensor<Self>,
        q_bias: FloatTensor<Self>,
        sr_weight: FloatTensor<Self>,
        sr_bias: FloatTensor<Self>,
        sr_norm_weight: FloatTensor<Self>,
        sr_norm_bias: FloatTensor<Self>,
        kv_weight: FloatTensor<Self>,
        kv_bias: FloatTensor<Self>,
        proj_weight: FloatTensor<Self>,
        proj_bias: FloatTensor<Self>,
        eps: [f64; 2],
        kernel: Option<usize>,
        sizes: [usize; 3],
        factors: Option<Vec<f32>>,
    ) -> FloatTensor<Self>;
}

impl ReducedAttentionBlockOps for Flex {
    fn reduced_attention_block(
        x: FlexTensor,
        norm_weight: FlexTensor,
        norm_bias: FlexTensor,
        q_weight: FlexTensor,
        q_bias: FlexTensor,
        sr_weight: FlexTensor,
        sr_bias: FlexTensor,
        sr_norm_weight: FlexTensor,
        sr_norm_bias: FlexTensor,
        kv_weight: FlexTensor,
        kv_bias: FlexTensor,
        proj_weight: FlexTensor,
        proj_bias: FlexTensor,
        eps: [f64; 2],
        kernel: Option<usize>,
        sizes: [usize; 3],
        factors: Option<Vec<f32>>,
    ) -> FlexTensor {
        let norm = [x, norm_weight, norm_bias];
        let reduction = [sr_weight, sr_bias, sr_norm_weight, sr_norm_bias];
        let layers = [q_weight, q_bias, kv_weight, kv_bias, proj_weight, proj_bias];
        Inputs::new(norm, reduction, layers, eps, kernel, sizes, factors).forward().0
    }
}

/// The norm with its input, the layers and the sizes.
#[derive(Clone, Debug)]
struct Inputs {
    norm: PreNorm,
    q: Projection,
    reduction: Option<Reduced>,
    kv: Projection,
    proj: Projection,
    /// The maps of the samples that are kept.
    map: MapShape,
    /// Of them.
    shape: AttentionShape,
    kept: Kept,
}

/// See [`Reduction`].
#[derive(Clone, Debug)]
struct Reduced {
    windows: Windows,
    conv: Projection,
    norm: [FlexTensor; 2],
    eps: f64,
}

/// What the backward reads, of the samples that are kept.
#[derive(Clone, Debug)]
struct Saved {
    normed: FlexTensor,
    moments: FlexTensor,
    q: FlexTensor,
    /// The windows that the reduction sees, its norm and what that makes: the keys' map.
    reduced: Option<(FlexTensor, PreNorm, Normed)>,
    kv: FlexTensor,
    /// The largest scaled score and 1 / the sum of each softmax, `[batch, heads, queries, 2]`.
    sums: FlexTensor,
    attended: FlexTensor,
}

impl Inputs {
    fn new(
        norm: [FlexTensor; 3],
        [srw, srb, snw, snb]: [FlexTensor; 4],
        [qw, qb, kvw, kvb, pw, pb]: [FlexTensor; 6],
        eps: [f64; 2],
        kernel: Option<usize>,
        [batch, side, heads]: [usize; 3],
        factors: Option<Vec<f32>>,
    ) -> Self {
        let (norm, precision) = (PreNorm::new(norm, eps[0]), precision::current());
        let [q, kv, proj] =
            [(qw, qb), (kvw, kvb), (pw, pb)].map(|(w, b)| Projection::new(w, b, precision));
        let reduction = kernel.map(|kernel| Reduced {
            windows: side_by_side(kernel),
            conv: Projection::new(srw, srb, precision),
            norm: [snw, snb].map(contiguous),
            eps: eps[1],
        });
        let kept = Kept::new([batch, side * side], factors);
        let dim = q.out();
        let map = MapShape { batch: kept.count(), height: side, width: side, channels: dim };
        let keys = reduction.as_ref().map_or(side, |reduced| reduced.windows.count(side));
        let head_dim = dim / heads;
        let shape = AttentionShape {
            batch: map.batch,
            queries: side * side,
            keys: keys * keys,
            heads,
            head_dim,
            scale: (head_dim as f32).powf(-0.5),
            precision,
            // A pair must not belong to two heads.
            stored: if head_dim.is_multiple_of(2) { precision } else { Precision::F32 },
        };
        Self { norm, q, reduction, kv, proj, map, shape, kept }
    }

    /// The queries' maps.
    fn queries(&self) -> Maps {
        Maps { rows: self.map.batch * self.shape.queries, precision: self.shape.stored }
    }

    /// The keys' maps.
    fn keys(&self) -> Maps {
        Maps { rows: self.map.batch * self.shape.keys, precision: self.shape.stored }
    }

    /// In the precision of the products.
    fn matrix<T>(&self, cells: T) -> Matrix<T> {
        Matrix { cells, precision: self.shape.precision }
    }

    /// Where some of the queries' rows lie among values of the given precision.
    fn span(&self, rows: &std::ops::Range<usize>, precision: Precision) -> std::ops::Range<usize> {
        let cells = precision.cells(self.map.channels);
        rows.start * cells..rows.end * cells
    }

    /// All samples that are kept.
    fn runs(&self) -> impl Iterator<Item = Run> {
        self.kept.runs(&(0..self.map.batch))
    }

    fn forward(&self) -> (FlexTensor, Saved) {
        let (dim, precision, stored) = (self.map.channels, self.shape.precision, self.shape.stored);
        let (queries, keys, x) = (self.queries(), self.keys(), slice(&self.norm.x));
        let mut normed = Buffer::stale(queries.rows * precision.cells(dim));
        let mut moments = Buffer::stale(2 * queries.rows);
        for Run { kept, all } in self.runs() {
            let out = self.matrix(&mut normed[self.span(&kept, precision)]);
            let moments = &mut moments[2 * kept.start..2 * kept.end];
            self.norm.forward_rows(&x[self.span(&all, Precision::F32)], out, moments);
        }
        let mut q = queries.buffer(dim);
        let (from, to) = (self.matrix(&normed[..]), queries.matrix(&mut q[..]));
        self.q.forward(queries.rows, from, to, Epilogue::Bias(self.q.bias()));
        let reduced = self.reduction.as_ref().map(|reduced| self.reduce(reduced, &normed));
        let from = self.keys_of(&normed, reduced.as_ref());
        let mut kv = keys.buffer(2 * dim);
        let to = keys.matrix(&mut kv[..]);
        self.kv.forward(keys.rows, from, to, Epilogue::Bias(self.kv.bias()));
        let (mut attended, mut sums) = (queries.buffer(dim), softmax_sums(&self.shape));
        let split = Qkv::Split { q: &q[..], kv: &kv[..] };
        attention_forward(&self.shape, split, &mut attended, Some(&mut sums));
        let mut y = Buffer::stale(x.len());
        self.kept.pass_dropped(dim, x, &mut y);
        for Run { kept, all } in self.runs() {
            let from = queries.matrix(&attended[self.span(&kept, stored)]);
            let (factors, values) = (self.kept.factors(&all), self.span(&all, Precision::F32));
            let (bias, residual) = (self.proj.bias(), &x[values.clone()]);
            let end = Epilogue::Residual { bias, residual, factors };
            self.proj.forward(kept.len(), from, &mut y[values], end);
        }
        let [normed, moments, q, kv, sums, attended] =
            [normed, moments, q, kv, sums, attended].map(Buffer::into_vector);
        let saved = Saved { normed, moments, q, reduced, kv, sums, attended };
        (y.into_tensor(dims2(&self.norm.x)), saved)
    }

    /// The keys' map with what its backward reads.
    fn reduce(&self, reduced: &Reduced, normed: &[f32]) -> (FlexTensor, PreNorm, Normed) {
        let (rows, dim) = (self.keys().rows, self.map.channels);
        let size = dim * reduced.windows.kernel.pow(2);
        let mut seen = Buffer::stale(rows * self.shape.precision.cells(size));
        unfold(&self.map, &reduced.windows, self.matrix(normed), self.matrix(&mut seen[..]));
        let mut x = Buffer::stale(rows * dim);
        let bias = Epilogue::Bias(reduced.conv.bias());
        reduced.conv.forward(rows, self.matrix(&seen[..]), &mut x[..], bias);
        let [weight, bias] = reduced.norm.clone();
        let norm = PreNorm::new([x.into_tensor([rows, dim]), weight, bias], reduced.eps);
        let keys = norm.forward(self.shape.precision);
        (seen.into_vector(), norm, keys)
    }

    /// What keys and values are made of.
    fn keys_of<'a>(
        &self,
        normed: &'a [f32],
        reduced: Option<&'a (FlexTensor, PreNorm, Normed)>,
    ) -> Matrix<&'a [f32]> {
        reduced.map_or(self.matrix(normed), |(_, _, keys)| keys.matrix())
    }

    /// Adds the gradients of the parameters and registers that of `x`, from the gradient `dy` of the
    /// output.
    fn register(
        &self,
        saved: &Saved,
        dy: &FlexTensor,
        [x, nw, nb, qw, qb, srw, srb, snw, snb, kvw, kvb, pw, pb]: [Option<Parent>; 13],
        grads: &mut Gradients,
    ) {
        let (dim, rows, dy) = (self.map.channels, self.queries().rows, slice(dy));
        let (dq, dkv) = self.attention_backward(saved, dy, [pw, pb], grads);
        let (dq, dkv) = (self.queries().matrix(&dq[..]), self.keys().matrix(&dkv[..]));
        let normed = slice(&saved.normed);
        self.q.add_gradients(rows, dq, self.matrix(normed), [qw, qb], grads);
        let keys = self.keys_of(normed, saved.reduced.as_ref());
        self.kv.add_gradients(self.keys().rows, dkv, keys, [kvw, kvb], grads);
        let mut d_normed = Buffer::stale(rows * dim);
        self.q.backward(rows, dq, &mut d_normed[..], Epilogue::Store);
        match (&self.reduction, &saved.reduced) {
            (Some(reduced), Some(saved)) => {
                let parents = [srw, srb, snw, snb];
                self.reduction_backward((reduced, saved), dkv, &mut d_normed, parents, grads);
            }
            _ => self.kv.backward(rows, dkv, &mut d_normed[..], Epilogue::Accumulate),
        }
        let mut dx = Buffer::stale(dy.len());
        self.kept.pass_dropped(dim, dy, &mut dx);
        let PreNorm { weight, bias, .. } = &self.norm;
        add_gradients_anyway([weight, bias], [nw, nb], grads, |[nw, nb]| {
            for Run { kept, all } in self.runs() {
                let moments = &slice(&saved.moments)[2 * kept.start..2 * kept.end];
                let [kept, all] = [kept, all].map(|rows| self.span(&rows, Precision::F32));
                let (dy, dx) = (&dy[all.clone()], &mut dx[all.clone()]);
                self.norm.backward_rows(all, moments, &d_normed[kept], dy, dx, [nw, nb]);
            }
        });
        if let Some(parent) = x {
            grads.register::<Flex>(parent.id, dx.into_tensor(dims2(&self.norm.x)));
        }
    }

    /// The gradients of queries, and of keys and values; adds those of the output projection.
    fn attention_backward(
        &self,
        saved: &Saved,
        dy: &[f32],
        parents: [Option<Parent>; 2],
        grads: &mut Gradients,
    ) -> (Buffer, Buffer) {
        let (queries, dim, precision) = (self.queries(), self.map.channels, self.shape.precision);
        let mut branch = Buffer::stale(queries.rows * precision.cells(dim));
        for Run { kept, all } in self.runs() {
            let (to, from) = (self.span(&kept, precision), self.span(&all, Precision::F32));
            let to = self.matrix(&mut branch[to]);
            scale_rows(dim, &dy[from], self.kept.factors(&all), to);
        }
        let (branch, attended) = (self.matrix(&branch[..]), queries.matrix(slice(&saved.attended)));
        self.proj.add_gradients(queries.rows, branch, attended, parents, grads);
        let mut d_attended = queries.buffer(dim);
        let to = queries.matrix(&mut d_attended[..]);
        self.proj.backward(queries.rows, branch, to, Epilogue::Store);
        let (mut dq, mut dkv) = (queries.buffer(dim), self.keys().buffer(2 * dim));
        let split = Qkv::Split { q: slice(&saved.q), kv: slice(&saved.kv) };
        let gradient = Qkv::Split { q: &mut dq[..], kv: &mut dkv[..] };
        attention_backward(&self.shape, &d_attended, split, slice(&saved.sums), gradient);
        (dq, dkv)
    }

    /// Adds to `d_normed` what comes back from keys and values, and the gradients of the reduction.
    fn reduction_backward(
        &self,
        (reduced, (seen, norm, keys)): (&Reduced, &(FlexTensor, PreNorm, Normed)),
        dkv: Matrix<&[f32]>,
        d_normed: &mut [f32],
        [srw, srb, snw, snb]: [Option<Parent>; 4],
        grads: &mut Gradients,
    ) {
        let (rows, dim) = (self.keys().rows, self.map.channels);
        let mut d_keys = Buffer::stale(rows * dim);
        self.kv.backward(rows, dkv, &mut d_keys[..], Epilogue::Store);
        let dx = norm.backward(keys.moments(), &d_keys, None, [snw, snb], grads);
        let (seen, conv) = (self.matrix(slice(seen)), &reduced.conv);
        conv.add_gradients(rows, &dx[..], seen, [srw, srb], grads);
        let mut d_seen = Buffer::stale(rows * dim * reduced.windows.kernel.pow(2));
        conv.backward(rows, &dx[..], &mut d_seen[..], Epilogue::Store);
        fold(&self.map, &reduced.windows, &d_seen, d_normed);
    }
}

#[derive(Debug)]
struct ReducedAttentionBlock;

impl Backward<Flex, 13> for ReducedAttentionBlock {
    type State = (Inputs, Saved);

    fn backward(self, ops: Ops<Self::State, 13>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let (inputs, saved) = ops.state;
        let [x, nw, nb, qw, qb, srw, srb, snw, snb, kvw, kvb, pw, pb] = ops.parents;
        let parents = parents![x, nw, nb, qw, qb, srw, srb, snw, snb, kvw, kvb, pw, pb];
        inputs.register(&saved, &dy, parents, grads);
    }
}

impl<C: CheckpointStrategy> ReducedAttentionBlockOps for Autodiff<Flex, C> {
    fn reduced_attention_block(
        x: FloatTensor<Self>,
        norm_weight: FloatTensor<Self>,
        norm_bias: FloatTensor<Self>,
        q_weight: FloatTensor<Self>,
        q_bias: FloatTensor<Self>,
        sr_weight: FloatTensor<Self>,
        sr_bias: FloatTensor<Self>,
        sr_norm_weight: FloatTensor<Self>,
        sr_norm_bias: FloatTensor<Self>,
        kv_weight: FloatTensor<Self>,
        kv_bias: FloatTensor<Self>,
        proj_weight: FloatTensor<Self>,
        proj_bias: FloatTensor<Self>,
        eps: [f64; 2],
        kernel: Option<usize>,
        sizes: [usize; 3],
        factors: Option<Vec<f32>>,
    ) -> FloatTensor<Self> {
        let norm = [x, norm_weight, norm_bias];
        let reduction = [sr_weight, sr_bias, sr_norm_weight, sr_norm_bias];
        let layers = [q_weight, q_bias, kv_weight, kv_bias, proj_weight, proj_bias];
        let (norm, [xn, nw, nb]) = unzip(norm.map(|tensor| tensor.into_parts()));
        let (reduction, [srw, srb, snw, snb]) = unzip(reduction.map(|tensor| tensor.into_parts()));
        let (layers, [qw, qb, kvw, kvb, pw, pb]) = unzip(layers.map(|tensor| tensor.into_parts()));
        let nodes = [xn, nw, nb, qw, qb, srw, srb, snw, snb, kvw, kvb, pw, pb];
        let inputs = Inputs::new(norm, reduction, layers, eps, kernel, sizes, factors);
        let (y, saved) = inputs.forward();
        match ReducedAttentionBlock.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(node) => node.finish((inputs, saved), y),
            OpsKind::UnTracked(node) => node.finish(y),
        }
    }
}
