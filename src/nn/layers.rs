//! Layers: their parameters under timm's keys and in PyTorch's layouts.

use super::init::Start;
use super::reader::Reader;
use crate::ops::Windows;

/// Standard deviation of a transformer's linear layers (cut at 100 sigma in the original, so never).
const LINEAR_STD: f32 = 0.02;

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
#[derive(Clone, Debug)]
pub struct Linear<W> {
    /// `[out, in]`.
    pub weight: W,
    /// `[out]`.
    pub bias: Option<W>,
    /// Width of the input.
    pub input: usize,
    /// Width of the output.
    pub output: usize,
}

impl<W> Linear<W> {
    /// With a bias, as in a transformer.
    pub fn new<R: Reader<Weight = W>>(r: &mut R, key: &str, sizes: [usize; 2]) -> Self {
        Self::starting(r, key, sizes, LinearStart::Normal, true)
    }

    /// [`Self::new`] without a bias.
    pub fn without_bias<R: Reader<Weight = W>>(r: &mut R, key: &str, sizes: [usize; 2]) -> Self {
        Self::starting(r, key, sizes, LinearStart::Normal, false)
    }

    /// `sizes` are input and output, `start` the first values.
    pub fn starting<R: Reader<Weight = W>>(
        r: &mut R,
        key: &str,
        [input, output]: [usize; 2],
        start: LinearStart,
        bias: bool,
    ) -> Self {
        let bound = Start::Uniform((input as f32).sqrt().recip());
        let starts = match start {
            LinearStart::Normal => [Start::Normal(LINEAR_STD), Start::Constant(0.0)],
            LinearStart::Uniform => [bound, bound],
        };
        Self::of(r, key, [input, output], starts, bias)
    }

    /// As [`Self::new`], with the stream of the layer norm's weight that is declared before it: in the
    /// order in which the first version of the program drew them.
    fn drawn_before_norm<R: Reader<Weight = W>>(
        r: &mut R,
        key: &str,
        sizes: [usize; 2],
        bias: bool,
    ) -> Self {
        Self::of(r, key, sizes, [Start::NormalOf(LINEAR_STD, 2), Start::Constant(0.0)], bias)
    }

    fn of<R: Reader<Weight = W>>(
        r: &mut R,
        key: &str,
        [input, output]: [usize; 2],
        [of_weight, of_bias]: [Start; 2],
        bias: bool,
    ) -> Self {
        Self {
            weight: r.weight(&format!("{key}.weight"), &[output, input], of_weight),
            bias: bias.then(|| r.weight(&format!("{key}.bias"), &[output], of_bias)),
            input,
            output,
        }
    }
}

/// A convolution, or one a channel.
#[derive(Clone, Debug)]
pub struct Conv2d<W> {
    /// `[out, in / groups, kernel, kernel]`.
    pub weight: W,
    /// `[out]`.
    pub bias: W,
    /// Channels of the input.
    pub input: usize,
    /// Channels of the output.
    pub output: usize,
    /// Where it looks.
    pub windows: Windows,
    /// 1, or as many as there are channels.
    pub groups: usize,
}

impl<W> Conv2d<W> {
    /// Weight from a normal of variance 2 / fan-out, bias 0.
    pub fn new<R: Reader<Weight = W>>(
        r: &mut R,
        key: &str,
        sizes: [usize; 2],
        windows: Windows,
        groups: usize,
    ) -> Self {
        let fan_out = windows.kernel * windows.kernel * sizes[1] / groups;
        let std = (2.0 / fan_out as f32).sqrt();
        Self::starting(r, key, sizes, windows, groups, [Start::Normal(std), Start::Constant(0.0)])
    }

    /// As PyTorch starts a convolution that is left alone: weight and bias uniform within
    /// 1 / sqrt(fan-in).
    pub fn left_alone<R: Reader<Weight = W>>(
        r: &mut R,
        key: &str,
        sizes: [usize; 2],
        windows: Windows,
    ) -> Self {
        let bound = ((sizes[0] * windows.kernel * windows.kernel) as f32).powf(-0.5);
        Self::starting(r, key, sizes, windows, 1, [Start::Uniform(bound); 2])
    }

    fn starting<R: Reader<Weight = W>>(
        r: &mut R,
        key: &str,
        [input, output]: [usize; 2],
        windows: Windows,
        groups: usize,
        [weight, bias]: [Start; 2],
    ) -> Self {
        let shape = [output, input / groups, windows.kernel, windows.kernel];
        Self {
            weight: r.weight(&format!("{key}.weight"), &shape, weight),
            bias: r.weight(&format!("{key}.bias"), &[output], bias),
            input,
            output,
            windows,
            groups,
        }
    }
}

/// Normalisation over the last dimension, with scale and shift.
#[derive(Clone, Debug)]
pub struct LayerNorm<W> {
    /// `[dim]`.
    pub weight: W,
    /// `[dim]`.
    pub bias: W,
    /// What it adds to the variance.
    pub eps: f64,
}

impl<W> LayerNorm<W> {
    /// Weight 1, bias 0.
    pub fn new<R: Reader<Weight = W>>(r: &mut R, key: &str, dim: usize, eps: f64) -> Self {
        Self {
            weight: r.weight(&format!("{key}.weight"), &[dim], Start::Constant(1.0)),
            bias: r.weight(&format!("{key}.bias"), &[dim], Start::Constant(0.0)),
            eps,
        }
    }
}

/// The layers of a pre-norm transformer block (Dosovitskiy et al. 2021).
#[derive(Clone, Debug)]
pub struct Block<W> {
    /// Before the attention.
    pub norm1: LayerNorm<W>,
    /// Queries, keys and values.
    pub qkv: Linear<W>,
    /// After the attention.
    pub proj: Linear<W>,
    /// Before the MLP.
    pub norm2: LayerNorm<W>,
    /// First layer of the MLP.
    pub fc1: Linear<W>,
    /// Second layer of the MLP.
    pub fc2: Linear<W>,
    /// Attention heads.
    pub num_heads: usize,
}

/// Sizes of a [`Block`].
#[derive(Clone, Copy, Debug)]
pub struct BlockSpec {
    /// Width of a token.
    pub dim: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Width inside the MLP.
    pub hidden: usize,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Of the layer norms.
    pub norm_eps: f64,
}

impl<W> Block<W> {
    /// Under the keys of timm's blocks, which begin with `key`.
    pub fn new<R: Reader<Weight = W>>(r: &mut R, key: &str, spec: &BlockSpec) -> Self {
        let BlockSpec { dim, num_heads, hidden, qkv_bias, norm_eps } = *spec;
        let key = |name: &str| format!("{key}.{name}");
        Self {
            norm1: LayerNorm::new(r, &key("norm1"), dim, norm_eps),
            qkv: Linear::drawn_before_norm(r, &key("attn.qkv"), [dim, 3 * dim], qkv_bias),
            proj: Linear::new(r, &key("attn.proj"), [dim, dim]),
            norm2: LayerNorm::new(r, &key("norm2"), dim, norm_eps),
            fc1: Linear::new(r, &key("mlp.fc1"), [dim, hidden]),
            fc2: Linear::new(r, &key("mlp.fc2"), [hidden, dim]),
            num_heads,
        }
    }

    /// Width of an attention head.
    pub fn head_dim(&self) -> usize {
        self.proj.input / self.num_heads
    }
}

/// The first half of a PVTv2 block (Wang et al. 2022): attention whose keys and values are fewer than its
/// queries where the map is large.
#[derive(Clone, Debug)]
pub struct ReducedAttention<W> {
    /// Before all else.
    pub norm1: LayerNorm<W>,
    /// Queries.
    pub q: Linear<W>,
    /// Keys and values.
    pub kv: Linear<W>,
    /// After the attention.
    pub proj: Linear<W>,
    /// What makes the map smaller for keys and values, and the norm behind it.
    pub reduction: Option<(Conv2d<W>, LayerNorm<W>)>,
    /// Attention heads.
    pub num_heads: usize,
}

/// An MLP with a convolution of each channel by itself between its layers.
#[derive(Clone, Debug)]
pub struct ConvMlp<W> {
    /// First layer.
    pub fc1: Linear<W>,
    /// 3 x 3, between them.
    pub dwconv: Conv2d<W>,
    /// Second layer.
    pub fc2: Linear<W>,
}
