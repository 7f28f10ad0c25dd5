//! The model in burn's tensors: on the CPU over the kernels, on every other device composed of burn's
//! own operations.

use std::fmt;

use burn::tensor::activation::{relu, softmax};
use burn::tensor::module::adaptive_avg_pool2d;
use burn::tensor::{Gradients, Tensor};

use crate::nn::drop_path::DropPath;
use crate::nn::init::Start;
use crate::nn::layers::{Block, Conv2d, ConvMlp, LayerNorm, Linear, ReducedAttention};
use crate::nn::reader::{
    Branch, Dropout, Reader, attention_by_layers, reduced_attention_by_layers, side_of,
};
use crate::ops::{self, Windows};

/// A parameter as a tensor of its own number of dimensions.
#[derive(Clone, Debug)]
pub enum Parameter {
    /// Of a bias or a norm.
    One(Tensor<1>),
    /// Of a linear layer.
    Two(Tensor<2>),
    /// Of tokens.
    Three(Tensor<3>),
    /// Of a convolution.
    Four(Tensor<4>),
}

/// Calls `$work` with the tensor of a [`Parameter`], whatever its number of dimensions.
macro_rules! of_any {
    ($parameter:expr, $tensor:ident => $work:expr) => {
        match $parameter {
            Parameter::One($tensor) => $work,
            Parameter::Two($tensor) => $work,
            Parameter::Three($tensor) => $work,
            Parameter::Four($tensor) => $work,
        }
    };
}

impl Parameter {
    /// The same values as a leaf that gradients are collected for.
    ///
    /// Each worker needs its own leaves for each micro-batch: burn's autodiff merges graphs that
    /// share a node, and two merging threads can deadlock.
    pub fn leaf(&self) -> Self {
        match self.constant() {
            Self::One(t) => Self::One(t.require_grad()),
            Self::Two(t) => Self::Two(t.require_grad()),
            Self::Three(t) => Self::Three(t.require_grad()),
            Self::Four(t) => Self::Four(t.require_grad()),
        }
    }

    /// The same values on the same device with autodiff, a constant to it.
    pub fn constant(&self) -> Self {
        match self {
            Self::One(t) => Self::One(Tensor::from_inner(t.clone())),
            Self::Two(t) => Self::Two(Tensor::from_inner(t.clone())),
            Self::Three(t) => Self::Three(Tensor::from_inner(t.clone())),
            Self::Four(t) => Self::Four(Tensor::from_inner(t.clone())),
        }
    }

    /// The gradient that autodiff was handed, row-major.
    pub fn flat_gradient(&self, gradients: &Gradients) -> Option<Tensor<1>> {
        of_any!(self, tensor => tensor.grad(gradients).map(|gradient| gradient.flatten(0, -1)))
    }

    /// As a vector.
    ///
    /// # Panics
    /// If it is none; so do the others.
    pub fn one(&self) -> Tensor<1> {
        if let Self::One(tensor) = self { tensor.clone() } else { panic!("{self:?} is no vector") }
    }

    /// As a matrix.
    pub fn two(&self) -> Tensor<2> {
        if let Self::Two(tensor) = self { tensor.clone() } else { panic!("{self:?} is no matrix") }
    }

    /// With three dimensions.
    pub fn three(&self) -> Tensor<3> {
        if let Self::Three(tensor) = self {
            tensor.clone()
        } else {
            panic!("{self:?} has not three")
        }
    }

    /// With four dimensions.
    pub fn four(&self) -> Tensor<4> {
        if let Self::Four(tensor) = self { tensor.clone() } else { panic!("{self:?} has not four") }
    }
}

/// The values of an f32 tensor, row-major.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().expect("everything here is f32")
}

/// What a model computes on its way, for looking at it.
#[derive(Debug, Default)]
pub struct Taps {
    /// After each block, by the block's key: `[batch * tokens, dim]`, after the last one `[batch, dim]`.
    pub tokens: Vec<(String, Tensor<2>)>,
    /// Of each attention by softmax, in turn: `[batch, heads, queries, keys]`, rows of sum 1. Where only
    /// the class token is read, it is the only query.
    pub attention: Vec<Tensor<4>>,
}

/// Computes what it is told. Values are `[batch * tokens, dim]`.
pub struct Tensors<'a> {
    /// Those not declared yet.
    parameters: std::slice::Iter<'a, Parameter>,
    /// `[batch, 3, img_size, img_size]`, normalised; none while heads are declared.
    images: Option<Tensor<4>>,
    drop_path: &'a DropPath,
    taps: Option<&'a mut Taps>,
}

impl<'a> Tensors<'a> {
    /// For a model whose `parameters` are declared in this order.
    pub fn new(parameters: &'a [Parameter], images: Tensor<4>, drop_path: &'a DropPath) -> Self {
        Self { parameters: parameters.iter(), images: Some(images), drop_path, taps: None }
    }

    /// For layers that are declared now and used later.
    pub fn declaring(parameters: &'a [Parameter]) -> Self {
        let drop_path = &DropPath::OFF;
        Self { parameters: parameters.iter(), images: None, drop_path, taps: None }
    }

    /// Puts what is computed on the way into `taps`; branches are then computed layer by layer.
    pub fn with_taps(self, taps: &'a mut Taps) -> Self {
        Self { taps: Some(taps), ..self }
    }

    /// Notes how queries `[batch, queries, dim]` attend to keys `[batch, keys, dim]`.
    fn note_attention(&mut self, q: &Tensor<3>, k: Tensor<3>, heads: usize, scaled_by: usize) {
        let Some(taps) = &mut self.taps else { return };
        let split = |x: Tensor<3>| -> Tensor<4> {
            let [batch, tokens, dim] = x.dims();
            x.reshape([batch, tokens, heads, dim / heads]).swap_dims(1, 2)
        };
        let scores = split(q.clone()).matmul(split(k).transpose());
        taps.attention.push(softmax(scores * (scaled_by as f64).powf(-0.5), 3));
    }

    fn images(&self) -> &Tensor<4> {
        self.images.as_ref().expect("a backbone is given images")
    }

    fn batch(&self) -> usize {
        self.images().dims()[0]
    }

    /// Rows as `[batch, tokens, dim]`.
    fn tokens(&self, x: Tensor<2>) -> Tensor<3> {
        let ([rows, dim], batch) = (x.dims(), self.batch());
        x.reshape([batch, rows / batch, dim])
    }

    /// Rows as `[batch, side, side, dim]`.
    fn map(&self, x: Tensor<2>) -> Tensor<4> {
        let ([rows, dim], batch) = (x.dims(), self.batch());
        let side = side_of(rows / batch);
        x.reshape([batch, side, side, dim])
    }

    fn factors(&self, rows: usize, branch: Option<Branch>) -> Option<Vec<f32>> {
        let Branch { block, depth, index } = branch?;
        let batch = self.batch();
        self.drop_path.factors([batch, rows / batch], [block, depth], index)
    }

    /// The class tokens of rows, `[batch, dim]`.
    fn class_rows(&self, x: &Tensor<2>) -> Tensor<2> {
        let (batch, dim) = (self.batch(), x.dims()[1]);
        self.tokens(x.clone()).narrow(1, 0, 1).reshape([batch, dim])
    }
}

/// `[.., tokens, dim]` as rows again.
fn rows<const D: usize>(x: Tensor<D>) -> Tensor<2> {
    let dims = x.dims();
    let dim = dims[D - 1];
    x.reshape([dims.iter().product::<usize>() / dim, dim])
}

/// The last `dim` columns of rows.
fn last_columns(x: Tensor<2>, dim: usize) -> Tensor<2> {
    let width = x.dims()[1];
    if width == dim { x } else { x.narrow(1, width - dim, dim) }
}

impl Linear<Parameter> {
    /// Weight and bias as operations take them.
    pub fn layer(&self) -> ops::Layer {
        let weight = self.weight.two();
        let zeros = |weight: &Tensor<2>| Tensor::zeros([self.output], &weight.device());
        let bias = self.bias.as_ref().map_or_else(|| zeros(&weight), Parameter::one);
        (weight, bias)
    }

    /// `[rows, in]` to `[rows, out]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let (weight, bias) = self.layer();
        ops::linear(x, weight, bias)
    }

    /// [`Self::forward`] for the outputs in `range` only.
    fn forward_part(&self, x: Tensor<2>, range: std::ops::Range<usize>) -> Tensor<2> {
        let (weight, bias) = self.layer();
        let (start, length) = (range.start, range.len());
        let bias = bias.narrow(0, start, length);
        ops::linear(x, weight.narrow(0, start, length), bias)
    }
}

impl LayerNorm<Parameter> {
    fn norm(&self) -> ops::Norm {
        (self.weight.one(), self.bias.one(), self.eps)
    }
}

impl Conv2d<Parameter> {
    fn kernels(&self) -> ops::Kernels {
        (self.weight.four(), self.bias.one())
    }
}

impl Reader for Tensors<'_> {
    type Value = Tensor<2>;
    type Weight = Parameter;

    fn weight(&mut self, key: &str, _: &[usize], _: Start) -> Parameter {
        let next = self.parameters.next();
        next.unwrap_or_else(|| panic!("no parameter is left for {key}")).clone()
    }

    fn frozen(&mut self, key: &str, shape: &[usize], start: Start) -> Parameter {
        self.weight(key, shape, start)
    }

    fn pixels(&mut self) -> Tensor<2> {
        rows(self.images().clone().permute([0, 2, 3, 1]))
    }

    fn patches(&mut self, conv: &Conv2d<Parameter>) -> Tensor<2> {
        let images = self.images().clone();
        let ([batch, channels, side, _], p) = (images.dims(), conv.windows.kernel);
        let grid = side / p;
        let patches = images
            .reshape([batch, channels, grid, p, grid, p])
            .permute([0, 2, 4, 1, 3, 5])
            .reshape([batch * grid * grid, channels * p * p]);
        let (weight, bias) = conv.kernels();
        ops::linear(patches, weight, bias)
    }

    fn conv(&mut self, map: Tensor<2>, conv: &Conv2d<Parameter>) -> Tensor<2> {
        let (weight, bias) = conv.kernels();
        let size = conv.input * conv.windows.kernel.pow(2);
        let seen = if size == conv.input { map } else { self.unfold(map, conv.windows) };
        ops::linear(seen, weight, bias)
    }

    fn patch_embed(
        &mut self,
        map: Option<Tensor<2>>,
        conv: &Conv2d<Parameter>,
        norm: &LayerNorm<Parameter>,
    ) -> Tensor<2> {
        let (kernels, norm, windows) = (conv.kernels(), norm.norm(), conv.windows);
        match map {
            None => ops::image_embed(self.images().clone(), kernels, norm, windows),
            Some(map) => ops::patch_embed(self.map(map), kernels, norm, windows),
        }
    }

    fn unfold(&mut self, map: Tensor<2>, windows: Windows) -> Tensor<2> {
        rows(ops::unfold(self.map(map), windows))
    }

    fn pool(&mut self, map: Tensor<2>, side: usize) -> Tensor<2> {
        let pooled = adaptive_avg_pool2d(self.map(map).permute([0, 3, 1, 2]), [side; 2]);
        rows(pooled.permute([0, 2, 3, 1]))
    }

    fn depthwise_gelu(&mut self, map: Tensor<2>, conv: &Conv2d<Parameter>) -> Tensor<2> {
        let (weight, bias) = conv.kernels();
        rows(ops::depthwise_conv3x3_gelu(self.map(map), weight, bias))
    }

    fn embed(&mut self, x: Tensor<2>, class: &Parameter, position: &Parameter) -> Tensor<2> {
        let tokens = self.tokens(x);
        let class = class.three().expand([self.batch() as i64, -1, -1]);
        rows(Tensor::cat(vec![class, tokens], 1) + position.three())
    }

    fn class_token(&mut self, x: Tensor<2>) -> Tensor<2> {
        self.class_rows(&x)
    }

    fn mean_token(&mut self, x: Tensor<2>) -> Tensor<2> {
        let dim = x.dims()[1];
        self.tokens(x).mean_dim(1).reshape([self.batch(), dim])
    }

    fn layer_norm(&mut self, x: Tensor<2>, norm: &LayerNorm<Parameter>) -> Tensor<2> {
        let (weight, bias, eps) = norm.norm();
        ops::layer_norm(x, weight, bias, eps)
    }

    fn linear(&mut self, x: Tensor<2>, layer: &Linear<Parameter>) -> Tensor<2> {
        layer.forward(x)
    }

    fn linear_residual(
        &mut self,
        x: Tensor<2>,
        layer: &Linear<Parameter>,
        residual: Tensor<2>,
        branch: Option<Branch>,
    ) -> Tensor<2> {
        let factors = self.factors(x.dims()[0], branch);
        let (weight, bias) = layer.layer();
        ops::linear_residual(x, weight, bias, last_columns(residual, layer.output), factors)
    }

    fn dropout_residual(
        &mut self,
        x: Tensor<2>,
        residual: Tensor<2>,
        dropout: Dropout,
    ) -> Tensor<2> {
        let ([rows, dim], batch) = (x.dims(), self.batch());
        let Dropout { rate, layer } = dropout;
        let factors = self.drop_path.dropout([batch, rows / batch * dim], rate, layer);
        ops::dropout_residual(x, residual, factors)
    }

    fn gelu(&mut self, x: Tensor<2>) -> Tensor<2> {
        ops::gelu(x)
    }

    fn relu(&mut self, x: Tensor<2>) -> Tensor<2> {
        relu(x)
    }

    fn attention(&mut self, qkv: Tensor<2>, heads: usize, scaled_by: usize) -> Tensor<2> {
        let (dim, qkv) = (qkv.dims()[1] / 3, self.tokens(qkv));
        let head_dim = dim / heads;
        if self.taps.is_some() {
            let part = |start| qkv.clone().narrow(2, start, dim);
            self.note_attention(&part(0), part(dim), heads, scaled_by);
        }
        if scaled_by == head_dim {
            return rows(ops::attention(qkv, heads));
        }
        // The operation scales by the width of a head.
        let q = qkv.clone().narrow(2, 0, dim) * (head_dim as f64 / scaled_by as f64).sqrt();
        rows(ops::cross_attention(q, qkv.narrow(2, dim, 2 * dim), heads))
    }

    fn cross_attention(&mut self, q: Tensor<2>, kv: Tensor<2>, heads: usize) -> Tensor<2> {
        let (dim, q, kv) = (q.dims()[1], self.tokens(q), self.tokens(kv));
        if self.taps.is_some() {
            self.note_attention(&q, kv.clone().narrow(2, 0, dim), heads, dim / heads);
        }
        rows(ops::cross_attention(q, kv, heads))
    }

    fn tap(&mut self, name: fmt::Arguments, tokens: &Tensor<2>) {
        if let Some(taps) = &mut self.taps {
            taps.tokens.push((name.to_string(), tokens.clone()));
        }
    }

    fn performer(&mut self, kqv: Tensor<2>, features: &Parameter) -> Tensor<2> {
        rows(ops::performer(self.tokens(kqv), features.two()))
    }

    fn linear_gelu(&mut self, x: Tensor<2>, layer: &Linear<Parameter>) -> Tensor<2> {
        let (weight, bias) = layer.layer();
        ops::linear_gelu(x, weight, bias)
    }

    fn attention_half(
        &mut self,
        x: Tensor<2>,
        block: &Block<Parameter>,
        branch: Option<Branch>,
    ) -> Tensor<2> {
        if self.taps.is_some() {
            return attention_by_layers(self, x, block, branch);
        }
        let factors = self.factors(x.dims()[0], branch);
        let sizes = [self.batch(), block.num_heads];
        let (qkv, proj) = (block.qkv.layer(), block.proj.layer());
        ops::attention_block(x, block.norm1.norm(), qkv, proj, sizes, factors)
    }

    fn mlp_half(
        &mut self,
        x: Tensor<2>,
        norm: &LayerNorm<Parameter>,
        [fc1, fc2]: [&Linear<Parameter>; 2],
        branch: Option<Branch>,
    ) -> Tensor<2> {
        let factors = self.factors(x.dims()[0], branch);
        ops::mlp_block(x, norm.norm(), fc1.layer(), fc2.layer(), factors)
    }

    fn reduced_attention_half(
        &mut self,
        x: Tensor<2>,
        attention: &ReducedAttention<Parameter>,
        branch: Option<Branch>,
    ) -> Tensor<2> {
        if self.taps.is_some() {
            return reduced_attention_by_layers(self, x, attention, branch);
        }
        let ReducedAttention { norm1, q, kv, proj, reduction, num_heads } = attention;
        let (rows, batch) = (x.dims()[0], self.batch());
        let factors = self.factors(rows, branch);
        let sizes = [batch, side_of(rows / batch), *num_heads];
        let reduction = reduction.as_ref().map(|(conv, norm)| (conv.kernels(), norm.norm()));
        let layers = [q, kv, proj].map(Linear::layer);
        ops::reduced_attention_block(x, norm1.norm(), layers, reduction, sizes, factors)
    }

    fn conv_mlp_half(
        &mut self,
        x: Tensor<2>,
        norm: &LayerNorm<Parameter>,
        mlp: &ConvMlp<Parameter>,
        branch: Option<Branch>,
    ) -> Tensor<2> {
        let (rows, batch) = (x.dims()[0], self.batch());
        let factors = self.factors(rows, branch);
        let sizes = [batch, side_of(rows / batch)];
        let (fc1, fc2) = (mlp.fc1.layer(), mlp.fc2.layer());
        ops::conv_mlp_block(x, norm.norm(), fc1, mlp.dwconv.kernels(), fc2, sizes, factors)
    }

    fn last_block(
        &mut self,
        x: Tensor<2>,
        block: &Block<Parameter>,
        [attn, mlp]: [Option<Branch>; 2],
    ) -> Tensor<2> {
        let (batch, d) = (self.batch(), block.proj.input);
        let normed = self.layer_norm(x.clone(), &block.norm1);
        let q = block.qkv.forward_part(self.class_rows(&normed), 0..d);
        let kv = block.qkv.forward_part(normed, d..3 * d);
        let attended = self.cross_attention(q, kv, block.num_heads);
        let (weight, bias) = block.proj.layer();
        let factors = self.factors(batch, attn);
        let x = ops::linear_residual(attended, weight, bias, self.class_rows(&x), factors);
        self.mlp_half(x, &block.norm2, [&block.fc1, &block.fc2], mlp)
    }
}
