//! The forward pass, an arm an operation.

use super::{Factors, Network, Parameters, Sequence};
use crate::engine::cuda::gpu::{Product, View, args};
use crate::engine::cuda::layout::performer_kept;
use crate::error::Result;
use crate::nn::readers::plan::{Columns, Id, Op};
use crate::ops::performer::EPS;

/// Rows of a warp kernel's block.
pub(super) const WARPS: usize = 8;
/// Queries or keys of a block of attention, one a thread.
pub(super) const OWN: usize = 64;

impl Network {
    /// Computes all values of `images` images, whose pixels are there.
    ///
    /// # Errors
    /// The device failed.
    pub fn forward(&self, of: Parameters, factors: &Factors, images: usize) -> Result<()> {
        let mut steps = 0..self.plan.ops.len();
        let steps = || steps.try_for_each(|i| self.step_forward(i, of, factors, images));
        self.replay(Sequence::new([of.weights; 2], factors, images), steps)
    }

    fn step_forward(&self, i: Id, of: Parameters, factors: &Factors, images: usize) -> Result<()> {
        let (gpu, size) = (&self.gpu, self.plan.sizes[i]);
        let (y, rows, n) = (self.value(i, images), images * size.tokens, images * size.len());
        let value = |id: Id| self.value(id, images);
        let weight = |place| of.vectors.of(of.weights, place);
        match self.plan.ops[i] {
            Op::Pixels => Ok(()),
            Op::Unfold { x, windows } => {
                let from = self.plan.sizes[x];
                let (side, count) = (from.tokens.isqrt(), size.tokens.isqrt());
                let (kernel, stride, padding) = (windows.kernel, windows.stride, windows.padding);
                let args = args![value(x), y, side, from.dim, kernel, stride, padding, count];
                gpu.each("unfold_forward", n, args)
            }
            Op::Pool { x, side } => {
                let from = self.plan.sizes[x];
                let args = args![value(x), y, from.tokens.isqrt(), side, from.dim];
                gpu.each("pool_forward", n, args)
            }
            Op::Depthwise { x, weight: w, bias } => {
                let args =
                    args![value(x), weight(w), weight(bias), y, size.tokens.isqrt(), size.dim];
                gpu.each("depthwise_forward", n, args)
            }
            Op::Embed { x, class, position } => {
                let (class, position) = (weight(class), weight(position));
                gpu.each("embed", n, args![value(x), class, position, y, size.tokens, size.dim])
            }
            Op::Class { x } => {
                gpu.each("class_rows", n, args![value(x), y, self.plan.sizes[x].tokens, size.dim])
            }
            Op::Mean { x } => {
                gpu.each("mean_rows", n, args![value(x), y, self.plan.sizes[x].tokens, size.dim])
            }
            Op::Norm { x, weight: w, bias, eps } => {
                let (w, bias, stat) = (weight(w), weight(bias), self.kept(i));
                let args = args![value(x), w, bias, y, stat, rows, size.dim, eps];
                gpu.launch("norm_forward", [rows.div_ceil(WARPS), 1], 256, args)
            }
            Op::Linear { x, weight: w, bias } => {
                let sizes = [rows, size.dim, self.plan.sizes[x].dim];
                let (x, weight, bias) = (value(x), weight(w), bias.map(weight));
                let product = Product::Forward { x, weight, bias, y };
                gpu.multiply(sizes, product, self.products(i))
            }
            Op::Add { x, residual, scale } => {
                let (scale, of_scale) = Self::scale(factors, scale, size.len());
                let width = self.plan.sizes[residual].dim;
                let args = args![value(x), value(residual), scale, y, size.dim, width, of_scale];
                gpu.each("add_branch", n, args)
            }
            Op::Gelu { x } => gpu.each("gelu_forward", n, args![value(x), y]),
            Op::Relu { x } => gpu.each("relu_forward", n, args![value(x), y]),
            Op::Attention { q, k, v, heads, width, scale } => {
                let [qs, ks, vs] =
                    [q, k, v].map(|columns| self.columns(value(columns.of), columns));
                let (queries, keys) = (size.tokens, self.plan.sizes[k.of].tokens);
                let args = args![
                    qs.0,
                    ks.0,
                    vs.0,
                    y,
                    self.kept(i),
                    qs.1,
                    ks.1,
                    vs.1,
                    queries,
                    keys,
                    heads,
                    width,
                    scale
                ];
                let names = ["attention_32", "attention_64", "attention_wide"];
                let (name, grid, threads) = of_width(width, names, [images * heads, queries]);
                gpu.launch(name, grid, threads, args)
            }
            Op::Performer { kqv, w, features } => {
                let (dim, tokens) = (size.dim, size.tokens);
                let [phi, sums, norm] = self.performer_parts(self.kept(i), i, features);
                let kqv = value(kqv);
                let args = args![kqv, weight(w), phi, dim, features];
                gpu.each("performer_features", rows * 2 * features, args)?;
                let grid = [(features * (dim + 1)).div_ceil(256), images];
                let (values, ones): (View, Option<View>) = (kqv.from(2 * dim), None);
                let args = args![phi, values, ones, sums, 0usize, 3 * dim, tokens, dim, features];
                gpu.launch("performer_sums", grid, 256, args)?;
                let args = args![phi, sums, y, norm, EPS as f32, tokens, dim, features];
                gpu.each("performer_out", n, args)
            }
        }
    }

    /// Where some columns begin, and how far apart rows are.
    pub(super) fn columns(&self, all: View, columns: Columns) -> (View, usize) {
        (all.from(columns.first), self.plan.sizes[columns.of].dim)
    }

    /// The features, sums and norms of the performer in what it keeps.
    pub(super) fn performer_parts(&self, kept: View, i: Id, features: usize) -> [View; 3] {
        let mut rest = kept;
        performer_kept(&self.plan, i, features).map(|len| {
            let part = rest.part(0..len * self.images);
            rest = rest.from(len * self.images);
            part
        })
    }
}

/// The kernel for heads of a width, of those for up to 32 columns, up to 64 and more, with its grid and
/// threads for so many heads of so many queries or keys each.
pub(super) fn of_width(
    width: usize,
    [narrow, middle, wide]: [&'static str; 3],
    [heads, own]: [usize; 2],
) -> (&'static str, [usize; 2], u32) {
    let of_threads = [heads, own.div_ceil(OWN)];
    match width {
        0..=32 => (narrow, of_threads, OWN as u32),
        33..=64 => (middle, of_threads, OWN as u32),
        _ => (wide, [heads, own.div_ceil(WARPS)], 256),
    }
}
