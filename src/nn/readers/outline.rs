//! Counts: the parameters of a model, its multiply-adds and what it keeps for the backward.

use crate::nn::init::Start;
use crate::nn::layers::{Conv2d, LayerNorm, Linear};
use crate::nn::params::ParamSpec;
use crate::nn::reader::{Branch, Dropout, Reader, side_of};
use crate::ops::Windows;

/// Weights of one channel of a 3 x 3 convolution of each channel by itself.
const DEPTHWISE_TAPS: usize = 9;

/// What a model consists of and costs, for one image.
#[derive(Clone, Debug, Default)]
pub struct Outline {
    /// The parameters in the order in which they are declared, which is that of the flat vector.
    pub parameters: Vec<ParamSpec>,
    /// First values of each.
    pub starts: Vec<Start>,
    /// Multiply-accumulates of one forward pass, in convolutions, linear layers and attention products.
    pub macs: usize,
    /// Those of the layer that reads the pixels, whose input needs no gradient.
    pub stem_macs: usize,
    /// Values that are kept between forward and backward, roughly.
    pub activations: usize,
    img_size: usize,
}

/// Tokens of one image.
#[derive(Clone, Copy, Debug)]
pub struct Tokens {
    count: usize,
    dim: usize,
    /// Whether they are the pixels themselves.
    pixels: bool,
}

impl Outline {
    /// For images of `img_size` pixels.
    pub fn new(img_size: usize) -> Self {
        Self { img_size, ..Self::default() }
    }

    /// Values of all parameters together.
    pub fn num_params(&self) -> usize {
        self.parameters.last().map_or(0, |last| last.range.end)
    }

    /// First values of all parameters for a seed, in the order of the flat vector.
    pub fn draw(&self, seed: u64) -> Vec<f32> {
        let specs = self.parameters.iter().zip(&self.starts).enumerate();
        specs.flat_map(|(i, (spec, start))| start.draw(&spec.shape, seed, i)).collect()
    }

    fn declare(&mut self, key: &str, shape: &[usize], start: Start, frozen: bool) {
        let first = self.num_params();
        let range = first..first + shape.iter().product::<usize>();
        self.parameters.push(ParamSpec {
            key: key.to_owned(),
            shape: shape.to_vec(),
            range,
            frozen,
        });
        self.starts.push(start);
    }

    /// Counts a product of `tokens` rows; returns its output, of which `kept` values a row are kept.
    fn product(&mut self, [count, dim]: [usize; 2], macs: usize, kept: usize) -> Tokens {
        self.macs += macs;
        self.kept(Tokens { count, dim, pixels: false }, kept)
    }

    fn kept(&mut self, x: Tokens, of_a_token: usize) -> Tokens {
        self.activations += x.count * of_a_token;
        x
    }
}

impl Reader for Outline {
    type Value = Tokens;
    type Weight = ();

    fn weight(&mut self, key: &str, shape: &[usize], start: Start) {
        self.declare(key, shape, start, false);
    }

    fn frozen(&mut self, key: &str, shape: &[usize], start: Start) {
        self.declare(key, shape, start, true);
    }

    fn pixels(&mut self) -> Tokens {
        Tokens { count: self.img_size * self.img_size, dim: 3, pixels: true }
    }

    fn patches(&mut self, conv: &Conv2d<()>) -> Tokens {
        let pixels = self.pixels();
        self.conv(pixels, conv)
    }

    fn conv(&mut self, map: Tokens, conv: &Conv2d<()>) -> Tokens {
        let count = conv.windows.count(side_of(map.count)).pow(2);
        let macs = count * conv.windows.kernel.pow(2) * conv.input * conv.output;
        self.stem_macs += if map.pixels { macs } else { 0 };
        self.product([count, conv.output], macs, 0)
    }

    fn unfold(&mut self, map: Tokens, windows: Windows) -> Tokens {
        let (count, dim) =
            (windows.count(side_of(map.count)).pow(2), map.dim * windows.kernel.pow(2));
        self.kept(Tokens { count, dim, pixels: false }, dim)
    }

    fn pool(&mut self, map: Tokens, side: usize) -> Tokens {
        Tokens { count: side * side, ..map }
    }

    fn depthwise_gelu(&mut self, map: Tokens, _: &Conv2d<()>) -> Tokens {
        // The output and the derivative of GELU.
        self.product([map.count, map.dim], map.count * DEPTHWISE_TAPS * map.dim, 2 * map.dim)
    }

    fn embed(&mut self, tokens: Tokens, (): &(), (): &()) -> Tokens {
        Tokens { count: tokens.count + 1, ..tokens }
    }

    fn class_token(&mut self, x: Tokens) -> Tokens {
        Tokens { count: 1, ..x }
    }

    fn mean_token(&mut self, x: Tokens) -> Tokens {
        Tokens { count: 1, ..x }
    }

    fn layer_norm(&mut self, x: Tokens, _: &LayerNorm<()>) -> Tokens {
        self.kept(Tokens { pixels: false, ..x }, x.dim)
    }

    fn linear(&mut self, x: Tokens, layer: &Linear<()>) -> Tokens {
        let (count, out) = (x.count, layer.output);
        self.product([count, out], count * layer.input * out, out)
    }

    fn linear_residual(
        &mut self,
        x: Tokens,
        layer: &Linear<()>,
        _: Tokens,
        _: Option<Branch>,
    ) -> Tokens {
        self.linear(x, layer)
    }

    fn dropout_residual(&mut self, x: Tokens, _: Tokens, _: Dropout) -> Tokens {
        // The factors and the output.
        self.kept(x, 2 * x.dim)
    }

    fn gelu(&mut self, x: Tokens) -> Tokens {
        self.kept(x, x.dim)
    }

    fn relu(&mut self, x: Tokens) -> Tokens {
        self.kept(x, x.dim)
    }

    fn attention(&mut self, qkv: Tokens, _: usize, _: usize) -> Tokens {
        let (count, dim) = (qkv.count, qkv.dim / 3);
        // The output, and as much again for the sums of the softmax and what lies around.
        self.product([count, dim], 2 * count * count * dim, 2 * dim)
    }

    fn cross_attention(&mut self, q: Tokens, kv: Tokens, _: usize) -> Tokens {
        self.product([q.count, q.dim], 2 * q.count * kv.count * q.dim, 2 * q.dim)
    }

    fn performer(&mut self, kqv: Tokens, (): &()) -> Tokens {
        let (count, dim) = (kqv.count, kqv.dim / 3);
        let features = dim / 2;
        // Features of q and k, their sums with v and 1, the sums with q.
        self.product([count, dim], count * features * (4 * dim + 1), 6 * features + dim)
    }
}
