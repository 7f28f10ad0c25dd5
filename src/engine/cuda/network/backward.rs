//! The backward pass, an arm an operation.

use super::forward::{WARPS, of_width};
use super::{Factors, Network, Parameters, Sequence};
use crate::engine::cuda::gpu::{Product, View, args};
use crate::error::Result;
use crate::nn::readers::plan::{Id, Op, Place, TAPS};

/// The gradient of a value, and whether it is added to what is there; nothing where it is not needed.
#[derive(Clone, Copy)]
struct Given {
    to: Option<View>,
    add: bool,
}

impl Network {
    /// Adds the gradients of the parameters to `gradient`, a vector as the weights are, from the gradient
    /// that lies at the value of [`Self::training`].
    ///
    /// # Errors
    /// The device failed.
    pub fn backward(
        &self,
        of: Parameters,
        gradient: View,
        factors: &Factors,
        images: usize,
    ) -> Result<()> {
        let pass = Pass { net: self, of, gradient, factors, images };
        let steps = || (0..self.plan.ops.len()).rev().try_for_each(|i| pass.step(i));
        self.replay(Sequence::new([of.weights, gradient], factors, images), steps)
    }
}

struct Pass<'a> {
    net: &'a Network,
    of: Parameters<'a>,
    gradient: View,
    factors: &'a Factors,
    images: usize,
}

impl Pass<'_> {
    fn value(&self, id: Id) -> View {
        self.net.value(id, self.images)
    }

    fn weight(&self, place: Place) -> View {
        self.of.vectors.of(self.of.weights, place)
    }

    /// The place of a parameter's gradient, if it has one.
    fn sum(&self, place: Place) -> Option<View> {
        (!place.frozen).then(|| self.of.vectors.of(self.gradient, place))
    }

    fn given(&self, i: Id, x: Id) -> Given {
        let add = self.net.layout.adds(i, x);
        let to = add.and_then(|_| self.net.gradient(x, self.images));
        Given { to, add: add.unwrap_or_default() }
    }

    /// From the gradient of value `i`, if it has one, to those of what it was made of.
    fn step(&self, i: Id) -> Result<()> {
        let (net, gpu) = (self.net, &self.net.gpu);
        let Some(dy) = net.gradient(i, self.images) else { return Ok(()) };
        let (images, size) = (self.images, net.plan.sizes[i]);
        let rows = images * size.tokens;
        let of_input = |x: Id| (net.plan.sizes[x], images * net.plan.sizes[x].len());
        match net.plan.ops[i] {
            Op::Pixels => Ok(()),
            Op::Unfold { x, windows } => {
                let Given { to: Some(dx), add } = self.given(i, x) else { return Ok(()) };
                let (from, n) = of_input(x);
                let (side, count) = (from.tokens.isqrt(), size.tokens.isqrt());
                let (kernel, stride, padding) = (windows.kernel, windows.stride, windows.padding);
                let args = args![dy, dx, add, side, from.dim, kernel, stride, padding, count];
                gpu.each("unfold_backward", n, args)
            }
            Op::Pool { x, side } => {
                let Given { to: Some(dx), add } = self.given(i, x) else { return Ok(()) };
                let (from, n) = of_input(x);
                let args = args![dy, dx, add, from.tokens.isqrt(), side, from.dim];
                gpu.each("pool_backward", n, args)
            }
            Op::Depthwise { x, weight, bias } => {
                let (side, dim) = (size.tokens.isqrt(), size.dim);
                let partial = self.partial(rows, (TAPS + 1) * dim);
                let args = args![dy, self.value(x), partial.at, side, dim, rows];
                gpu.launch("depthwise_sums", [dim.div_ceil(32), partial.blocks], 256, args)?;
                self.add(&partial, 0, TAPS * dim, weight)?;
                self.add(&partial, TAPS * dim, dim, bias)?;
                let Given { to: Some(dx), add } = self.given(i, x) else { return Ok(()) };
                let args = args![dy, self.weight(weight), dx, add, side, dim];
                gpu.each("depthwise_backward", images * size.len(), args)
            }
            Op::Embed { x, class, position } => {
                let (tokens, dim) = (size.tokens, size.dim);
                self.add_columns(dy, images, size.len(), size.len(), Some(position))?;
                self.add_columns(dy, images, dim, size.len(), Some(class))?;
                let Given { to: Some(dx), add } = self.given(i, x) else { return Ok(()) };
                gpu.each("embed_backward", of_input(x).1, args![dy, dx, add, tokens, dim])
            }
            Op::Class { x } => self.spread("class_rows_backward", i, x, dy),
            Op::Mean { x } => self.spread("mean_rows_backward", i, x, dy),
            Op::Norm { x, weight, bias, .. } => {
                let (dim, stat, from) = (size.dim, net.kept(i), self.value(x));
                let partial = self.partial(rows, 2 * dim);
                let args = args![dy, from, stat, partial.at, rows, dim];
                gpu.launch("norm_sums", [dim.div_ceil(32), partial.blocks], 256, args)?;
                self.add(&partial, 0, dim, weight)?;
                self.add(&partial, dim, dim, bias)?;
                let Given { to: Some(dx), add } = self.given(i, x) else { return Ok(()) };
                let args = args![dy, from, self.weight(weight), stat, dx, add, rows, dim];
                gpu.launch("norm_backward", [rows.div_ceil(WARPS), 1], 256, args)
            }
            Op::Linear { x, weight, bias } => {
                let sizes = [rows, size.dim, net.plan.sizes[x].dim];
                if let Some(dweight) = self.sum(weight) {
                    let product = Product::ToWeight { dy, x: self.value(x), dweight };
                    gpu.multiply(sizes, product, net.products(i))?;
                }
                self.add_columns(dy, rows, size.dim, size.dim, bias)?;
                let Given { to: Some(dx), add } = self.given(i, x) else { return Ok(()) };
                let weight = self.weight(weight);
                let product = Product::ToInput { dy, weight, dx, add };
                gpu.multiply(sizes, product, net.products(i))
            }
            Op::Add { x, residual, scale } => {
                let (to_x, to_residual) = (self.given(i, x), self.given(i, residual));
                let (scale, of_scale) = Network::scale(self.factors, scale, size.len());
                let (from, n) = of_input(residual);
                let args = args![
                    dy,
                    scale,
                    to_x.to,
                    to_residual.to,
                    to_x.add,
                    to_residual.add,
                    size.dim,
                    from.dim,
                    of_scale
                ];
                gpu.each("add_branch_backward", n, args)
            }
            Op::Gelu { x } => self.activation("gelu_backward", i, x, dy),
            Op::Relu { x } => self.activation("relu_backward", i, x, dy),
            Op::Attention { .. } => self.attention(i, dy),
            Op::Performer { .. } => self.performer(i, dy),
        }
    }

    /// Rows that got something from one or all tokens.
    fn spread(&self, kernel: &'static str, i: Id, x: Id, dy: View) -> Result<()> {
        let Given { to: Some(dx), add } = self.given(i, x) else { return Ok(()) };
        let from = self.net.plan.sizes[x];
        let args = args![dy, dx, add, from.tokens, from.dim];
        self.net.gpu.each(kernel, self.images * from.len(), args)
    }

    fn activation(&self, kernel: &'static str, i: Id, x: Id, dy: View) -> Result<()> {
        let Given { to: Some(dx), add } = self.given(i, x) else { return Ok(()) };
        self.net.gpu.each(kernel, dx.len, args![dy, self.value(x), dx, add])
    }

    fn attention(&self, i: Id, dy: View) -> Result<()> {
        let (net, images, gpu) = (self.net, self.images, &*self.net.gpu);
        let Op::Attention { q, k, v, heads, width, scale } = net.plan.ops[i] else {
            return Ok(());
        };
        let [qs, ks, vs] = [q, k, v].map(|part| net.columns(self.value(part.of), part));
        let [to_q, to_k, to_v] = [q, k, v].map(|part| self.given(i, part.of));
        let to = |given: Given, first: usize| given.to.map(|to| to.from(first));
        // Whoever asks for one of them asks for all: they are made of the same tokens.
        let (Some(dq), Some(dk), Some(dv)) =
            (to(to_q, q.first), to(to_k, k.first), to(to_v, v.first))
        else {
            return Ok(());
        };
        let (queries, keys) = (net.plan.sizes[i].tokens, net.plan.sizes[k.of].tokens);
        let (sums, delta) = (net.kept(i), net.scratch(i));
        let args = args![
            qs.0,
            ks.0,
            vs.0,
            self.value(i),
            dy,
            sums,
            delta,
            dq,
            qs.1,
            ks.1,
            vs.1,
            to_q.add,
            queries,
            keys,
            heads,
            width,
            scale
        ];
        let names = [
            "attention_queries_backward_32",
            "attention_queries_backward_64",
            "attention_queries_backward_wide",
        ];
        let (name, grid, threads) = of_width(width, names, [images * heads, queries]);
        gpu.launch(name, grid, threads, args)?;
        let args = args![
            qs.0, ks.0, vs.0, dy, sums, delta, dk, dv, qs.1, ks.1, vs.1, to_k.add, to_v.add,
            queries, keys, heads, width, scale
        ];
        let names = [
            "attention_keys_backward_32",
            "attention_keys_backward_64",
            "attention_keys_backward_wide",
        ];
        let (name, grid, threads) = of_width(width, names, [images * heads, keys]);
        gpu.launch(name, grid, threads, args)
    }

    fn performer(&self, i: Id, dy: View) -> Result<()> {
        let (net, images, gpu) = (self.net, self.images, &*self.net.gpu);
        let Op::Performer { kqv, w, features } = net.plan.ops[i] else { return Ok(()) };
        let Given { to: Some(dkqv), add } = self.given(i, kqv) else { return Ok(()) };
        let (size, kqv, w) = (net.plan.sizes[i], self.value(kqv), self.weight(w));
        let (dim, tokens, rows) = (size.dim, size.tokens, images * size.tokens);
        let [phi, sums, norm] = net.performer_parts(net.kept(i), i, features);
        let scratch = net.scratch(i);
        let slopes = scratch.part(0..size.len() * net.images);
        let [exponents, dsums, of_norm] =
            net.performer_parts(scratch.from(size.len() * net.images), i, features);
        let args = args![dy, self.value(i), norm, slopes, of_norm, dim];
        gpu.each("performer_slopes", rows * dim, args)?;
        let grid = [(features * (dim + 1)).div_ceil(256), images];
        let args = args![phi, slopes, of_norm, dsums, 1usize, dim, tokens, dim, features];
        gpu.launch("performer_sums", grid, 256, args)?;
        let args = args![kqv, phi, sums, dsums, slopes, of_norm, exponents, tokens, dim, features];
        gpu.each("performer_exponents", rows * 2 * features, args)?;
        let args = args![kqv, w, phi, dsums, exponents, dkqv, add, tokens, dim, features];
        gpu.each("performer_backward", rows * 3 * dim, args)
    }

    /// Adds the sums of the first `columns` columns of `rows` rows, `stride` apart, to a parameter's
    /// gradient.
    fn add_columns(
        &self,
        x: View,
        rows: usize,
        columns: usize,
        stride: usize,
        to: Option<Place>,
    ) -> Result<()> {
        let Some(to) = to.filter(|place| !place.frozen) else { return Ok(()) };
        let partial = self.partial(rows, columns);
        let args = args![x, partial.at, rows, columns, stride];
        let grid = [columns.div_ceil(32), partial.blocks];
        self.net.gpu.launch("column_sums", grid, 256, args)?;
        self.add(&partial, 0, columns, to)
    }

    fn partial(&self, rows: usize, columns: usize) -> Partial {
        let blocks = Network::shares(rows, columns);
        Partial { at: self.net.partials.view().part(0..blocks * columns), blocks, columns }
    }

    /// Adds `n` of the sums from column `first` on to a parameter's gradient.
    fn add(&self, partial: &Partial, first: usize, n: usize, to: Place) -> Result<()> {
        let Some(to) = self.sum(to) else { return Ok(()) };
        let Partial { at, blocks, columns } = *partial;
        let args = args![at, to.part(0..n), blocks, columns, first];
        self.net.gpu.each("add_partials", n, args)
    }
}

/// Sums of blocks over their rows.
struct Partial {
    at: View,
    blocks: usize,
    columns: usize,
}
