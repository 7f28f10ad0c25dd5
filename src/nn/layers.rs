//! Layers with timm's field names and weight layouts.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::Init;
use crate::graph::{Graph, Value};
use crate::ops::{self, Windows};

/// First values of a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinearStart {
    /// As in a transformer: weights from a normal of standard deviation 0.02, biases 0.
    Normal,
    /// As PyTorch starts a `Linear` that is left alone: weights and biases uniform within
    /// 1 / sqrt(inputs).
    Uniform,
}

/// `x W^T + b`.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Param<Tensor<2>>,
    /// `[out]`.
    pub bias: Option<Param<Tensor<1>>>,
}

impl Linear {
    /// Weight from a normal of standard deviation 0.02 (cut at 100 sigma in the original, so never),
    /// bias 0 (recipe section 5, "Conventions").
    pub fn new(input: usize, output: usize, init: &mut Init) -> Self {
        Self {
            weight: init.normal([output, input], 0.02),
            bias: Some(init.constant([output], 0.0)),
        }
    }

    /// With a start of its own, and with or without a bias.
    pub fn starting(
        start: LinearStart,
        [input, output]: [usize; 2],
        bias: bool,
        init: &mut Init,
    ) -> Self {
        let bound = (input as f32).sqrt().recip();
        match (start, bias) {
            (LinearStart::Normal, true) => Self::new(input, output, init),
            (LinearStart::Normal, false) => Self::without_bias(input, output, init),
            (LinearStart::Uniform, _) => Self {
                weight: init.uniform([output, input], bound),
                bias: bias.then(|| init.uniform([output], bound)),
            },
        }
    }

    /// [`Linear::new`] without a bias.
    pub fn without_bias(input: usize, output: usize, init: &mut Init) -> Self {
        Self { weight: init.normal([output, input], 0.02), bias: None }
    }

    /// `[rows, in]` to `[rows, out]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let bias = self.bias_or_zeros();
        ops::linear(x, self.weight.val(), bias)
    }

    /// `gelu(x W^T + b)`, `[rows, in]` to `[rows, out]`.
    pub fn forward_gelu(&self, x: Tensor<2>) -> Tensor<2> {
        let bias = self.bias_or_zeros();
        ops::linear_gelu(x, self.weight.val(), bias)
    }

    /// `residual + factor (x W^T + b)`, `[rows, in]` to `[rows, out]`; `factors` as
    /// [`super::DropPath`] draws them.
    pub fn forward_residual(
        &self,
        x: Tensor<2>,
        residual: Tensor<2>,
        factors: Option<Vec<f32>>,
    ) -> Tensor<2> {
        let bias = self.bias_or_zeros();
        ops::linear_residual(x, self.weight.val(), bias, residual, factors)
    }

    /// [`Self::forward`] for the outputs in `range` only.
    pub fn forward_part(&self, x: Tensor<2>, range: std::ops::Range<usize>) -> Tensor<2> {
        let (start, length) = (range.start, range.len());
        let bias = self.bias_or_zeros().narrow(0, start, length);
        ops::linear(x, self.weight.val().narrow(0, start, length), bias)
    }

    /// [`Self::forward`] in ONNX operators.
    pub fn graph(&self, g: &mut Graph, x: &Value) -> Value {
        let weight = g.weight(&self.weight);
        let bias = self.bias.as_ref().map(|bias| g.weight(bias));
        g.linear(x, &weight, bias.as_ref())
    }

    /// Weight and bias.
    pub fn layer(&self) -> ops::Layer {
        (self.weight.val(), self.bias_or_zeros())
    }

    fn bias_or_zeros(&self) -> Tensor<1> {
        let weight = self.weight.val();
        match &self.bias {
            Some(bias) => bias.val(),
            None => Tensor::zeros([weight.dims()[0]], &weight.device()),
        }
    }
}

/// A convolution, or one a channel.
#[derive(Module, Debug)]
pub struct Conv2d {
    /// `[out, in / groups, kernel, kernel]`.
    pub weight: Param<Tensor<4>>,
    /// `[out]`.
    pub bias: Param<Tensor<1>>,
}

impl Conv2d {
    /// Weight from a normal of variance 2 / fan-out, bias 0.
    pub fn new([input, output]: [usize; 2], groups: usize, kernel: usize, init: &mut Init) -> Self {
        let fan_out = kernel * kernel * output / groups;
        let std = (2.0 / fan_out as f32).sqrt();
        Self {
            weight: init.normal([output, input / groups, kernel, kernel], std),
            bias: init.constant([output], 0.0),
        }
    }

    /// `[batch, side, side, in]` to one place a window.
    pub fn forward(&self, map: Tensor<4>, windows: Windows) -> Tensor<4> {
        ops::conv2d(map, self.weight.val(), self.bias.val(), windows)
    }

    /// Weight and bias of one convolution a channel.
    pub fn kernels(&self) -> ops::Kernels {
        (self.weight.val(), self.bias.val())
    }

    /// [`Self::forward`] in ONNX operators, of maps `[batch, channels, side, side]`.
    pub fn graph(&self, g: &mut Graph, map: &Value, windows: Windows, groups: usize) -> Value {
        let (weight, bias) = (g.weight(&self.weight), g.weight(&self.bias));
        g.conv(map, &[&weight, &bias], windows, groups)
    }
}

/// Normalisation over the last dimension, with scale and shift.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// `[dim]`.
    pub weight: Param<Tensor<1>>,
    /// `[dim]`.
    pub bias: Param<Tensor<1>>,
    eps: f64,
}

impl LayerNorm {
    /// Weight 1, bias 0.
    pub fn new(dim: usize, eps: f64, init: &mut Init) -> Self {
        Self { weight: init.constant([dim], 1.0), bias: init.constant([dim], 0.0), eps }
    }

    /// `[rows, dim]` to `[rows, dim]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        ops::layer_norm(x, self.weight.val(), self.bias.val(), self.eps)
    }

    /// What the operations on whole blocks take.
    pub fn norm(&self) -> ops::Norm {
        (self.weight.val(), self.bias.val(), self.eps)
    }

    /// [`Self::forward`] in ONNX operators.
    pub fn graph(&self, g: &mut Graph, x: &Value) -> Value {
        let (weight, bias) = (g.weight(&self.weight), g.weight(&self.bias));
        g.layer_norm(x, &weight, &bias, self.eps)
    }
}
