//! The model as a list of operations over numbered values, for an engine that walks it forward and
//! backward by itself.
//!
//! Sizes are those of one image; an engine multiplies them by its rows.

use std::ops::Range;

use crate::nn::init::Start;
use crate::nn::layers::{Block, Conv2d, LayerNorm, Linear};
use crate::nn::reader::{Branch, Dropout, Reader, side_of};
use crate::ops::Windows;

/// Weights of one channel of a 3 x 3 convolution of each channel by itself.
pub const TAPS: usize = 9;

/// A value by number.
pub type Id = usize;

/// What one image has of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Rows.
    pub tokens: usize,
    /// Numbers of a row.
    pub dim: usize,
}

impl Size {
    /// All its numbers.
    pub fn len(&self) -> usize {
        self.tokens * self.dim
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A parameter or its rows from one on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of the parameter in the order in which they are declared.
    pub parameter: usize,
    /// First of its values that is meant.
    pub offset: usize,
    /// Whether it has no gradient.
    pub frozen: bool,
}

/// Columns of a value from one on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// The value.
    pub of: Id,
    /// The first column.
    pub first: usize,
}

/// What a residual branch is multiplied by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// 1.
    One,
    /// A factor for each image: number of an entry of [`Plan::branches`].
    Branch(usize),
    /// A factor for each number: number of an entry of [`Plan::dropouts`].
    Dropout(usize),
}

/// An operation of the vocabulary.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(missing_docs, reason = "an operation's line says what its fields are")]
pub enum Op {
    /// The images.
    Pixels,
    /// Windows of the map `x` as rows.
    Unfold { x: Id, windows: Windows },
    /// Means over `side * side` windows of the map `x`.
    Pool { x: Id, side: usize },
    /// A 3 x 3 convolution of each channel of the map `x`.
    Depthwise { x: Id, weight: Place, bias: Place },
    /// The class token before the tokens of `x`, and the positions added.
    Embed { x: Id, class: Place, position: Place },
    /// The first token.
    Class { x: Id },
    /// The mean token.
    Mean { x: Id },
    /// Normalisation of each row.
    Norm { x: Id, weight: Place, bias: Place, eps: f32 },
    /// `x W^T + b`.
    Linear { x: Id, weight: Place, bias: Option<Place> },
    /// `x` times its factors, and the last columns of `residual` added.
    Add { x: Id, residual: Id, scale: Scale },
    /// GELU in its erf form.
    Gelu { x: Id },
    /// `max(x, 0)`.
    Relu { x: Id },
    /// `softmax(q k^T * scale) v`, of heads of `width` columns each.
    Attention { q: Columns, k: Columns, v: Columns, heads: usize, width: usize, scale: f32 },
    /// Attention by random features: `kqv` holds keys, queries and values.
    Performer { kqv: Id, w: Place, features: usize },
}

impl Op {
    /// The values that it reads.
    pub fn inputs(&self) -> Vec<Id> {
        match *self {
            Self::Pixels => vec![],
            Self::Unfold { x, .. }
            | Self::Pool { x, .. }
            | Self::Depthwise { x, .. }
            | Self::Embed { x, .. }
            | Self::Class { x }
            | Self::Mean { x }
            | Self::Norm { x, .. }
            | Self::Linear { x, .. }
            | Self::Gelu { x }
            | Self::Relu { x } => vec![x],
            Self::Add { x, residual, .. } => vec![x, residual],
            Self::Attention { q, k, v, .. } => {
                let mut inputs = vec![q.of, k.of, v.of];
                inputs.dedup();
                inputs
            }
            Self::Performer { kqv, .. } => vec![kqv],
        }
    }

    /// Whether it has a parameter that is trained.
    pub fn is_trained(&self) -> bool {
        match self {
            Self::Depthwise { weight, bias, .. } | Self::Norm { weight, bias, .. } => {
                !(weight.frozen && bias.frozen)
            }
            Self::Embed { class, position, .. } => !(class.frozen && position.frozen),
            Self::Linear { weight, .. } => !weight.frozen,
            _ => false,
        }
    }
}

/// See the module's description. Operation `i` makes value `i`.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// In the order in which they are computed.
    pub ops: Vec<Op>,
    /// Of the values.
    pub sizes: Vec<Size>,
    /// Branches that stochastic depth may drop.
    pub branches: Vec<Branch>,
    /// Dropouts, with the numbers of an image that have a factor each.
    pub dropouts: Vec<(Dropout, usize)>,
    /// First side of each parameter declared so far.
    sides: Vec<usize>,
    img_size: usize,
}

impl Plan {
    /// Nothing yet, for images of `img_size` pixels.
    pub fn new(img_size: usize) -> Self {
        Self { img_size, ..Self::default() }
    }

    /// Side of the images in pixels.
    pub fn img_size(&self) -> usize {
        self.img_size
    }

    fn declare(&mut self, shape: &[usize], frozen: bool) -> Place {
        self.sides.push(shape.first().copied().unwrap_or(1));
        Place { parameter: self.sides.len() - 1, offset: 0, frozen }
    }

    fn push(&mut self, op: Op, tokens: usize, dim: usize) -> Id {
        self.ops.push(op);
        self.sizes.push(Size { tokens, dim });
        self.ops.len() - 1
    }

    /// As wide and long as `x`.
    fn like(&mut self, op: Op, x: Id) -> Id {
        let Size { tokens, dim } = self.sizes[x];
        self.push(op, tokens, dim)
    }

    /// Rows `range` of a layer.
    fn part(&mut self, x: Id, layer: &Linear<Place>, range: Range<usize>) -> Id {
        let moved = |place: Place, by: usize| Place { offset: place.offset + by, ..place };
        let weight = moved(layer.weight, range.start * layer.input);
        let bias = layer.bias.map(|bias| moved(bias, range.start));
        self.push(Op::Linear { x, weight, bias }, self.sizes[x].tokens, range.len())
    }

    fn add(&mut self, x: Id, residual: Id, branch: Option<Branch>) -> Id {
        // The first block drops nothing at any rate.
        let scale = match branch.filter(|branch| branch.block > 0) {
            None => Scale::One,
            Some(branch) => {
                self.branches.push(branch);
                Scale::Branch(self.branches.len() - 1)
            }
        };
        self.like(Op::Add { x, residual, scale }, x)
    }

    fn windows(&mut self, x: Id, windows: Windows) -> Id {
        let Size { tokens, dim } = self.sizes[x];
        let count = windows.count(side_of(tokens)).pow(2);
        self.push(Op::Unfold { x, windows }, count, dim * windows.kernel.pow(2))
    }
}

impl Reader for Plan {
    type Value = Id;
    type Weight = Place;

    fn weight(&mut self, _: &str, shape: &[usize], _: Start) -> Place {
        self.declare(shape, false)
    }

    fn frozen(&mut self, _: &str, shape: &[usize], _: Start) -> Place {
        self.declare(shape, true)
    }

    fn pixels(&mut self) -> Id {
        self.push(Op::Pixels, self.img_size * self.img_size, 3)
    }

    fn patches(&mut self, conv: &Conv2d<Place>) -> Id {
        let pixels = self.pixels();
        self.conv(pixels, conv)
    }

    fn conv(&mut self, map: Id, conv: &Conv2d<Place>) -> Id {
        let x = if conv.windows.kernel == 1 { map } else { self.windows(map, conv.windows) };
        let (weight, bias) = (conv.weight, Some(conv.bias));
        self.push(Op::Linear { x, weight, bias }, self.sizes[x].tokens, conv.output)
    }

    fn unfold(&mut self, map: Id, windows: Windows) -> Id {
        self.windows(map, windows)
    }

    fn pool(&mut self, x: Id, side: usize) -> Id {
        self.push(Op::Pool { x, side }, side * side, self.sizes[x].dim)
    }

    fn depthwise_gelu(&mut self, map: Id, conv: &Conv2d<Place>) -> Id {
        let x = self.like(Op::Depthwise { x: map, weight: conv.weight, bias: conv.bias }, map);
        self.gelu(x)
    }

    fn embed(&mut self, x: Id, class: &Place, position: &Place) -> Id {
        let Size { tokens, dim } = self.sizes[x];
        self.push(Op::Embed { x, class: *class, position: *position }, tokens + 1, dim)
    }

    fn class_token(&mut self, x: Id) -> Id {
        self.push(Op::Class { x }, 1, self.sizes[x].dim)
    }

    fn mean_token(&mut self, x: Id) -> Id {
        self.push(Op::Mean { x }, 1, self.sizes[x].dim)
    }

    fn layer_norm(&mut self, x: Id, norm: &LayerNorm<Place>) -> Id {
        let (weight, bias, eps) = (norm.weight, norm.bias, norm.eps as f32);
        self.like(Op::Norm { x, weight, bias, eps }, x)
    }

    fn linear(&mut self, x: Id, layer: &Linear<Place>) -> Id {
        self.part(x, layer, 0..layer.output)
    }

    fn linear_residual(
        &mut self,
        x: Id,
        layer: &Linear<Place>,
        residual: Id,
        branch: Option<Branch>,
    ) -> Id {
        let x = self.linear(x, layer);
        self.add(x, residual, branch)
    }

    fn dropout_residual(&mut self, x: Id, residual: Id, dropout: Dropout) -> Id {
        self.dropouts.push((dropout, self.sizes[x].len()));
        let scale = Scale::Dropout(self.dropouts.len() - 1);
        self.like(Op::Add { x, residual, scale }, x)
    }

    fn gelu(&mut self, x: Id) -> Id {
        self.like(Op::Gelu { x }, x)
    }

    fn relu(&mut self, x: Id) -> Id {
        self.like(Op::Relu { x }, x)
    }

    fn attention(&mut self, qkv: Id, heads: usize, scaled_by: usize) -> Id {
        let Size { tokens, dim } = self.sizes[qkv];
        let dim = dim / 3;
        let [q, k, v] = [0, 1, 2].map(|i| Columns { of: qkv, first: i * dim });
        let (width, scale) = (dim / heads, (scaled_by as f32).powf(-0.5));
        self.push(Op::Attention { q, k, v, heads, width, scale }, tokens, dim)
    }

    fn cross_attention(&mut self, q: Id, kv: Id, heads: usize) -> Id {
        let Size { tokens, dim } = self.sizes[q];
        let [k, v] = [0, dim].map(|first| Columns { of: kv, first });
        let (width, q) = (dim / heads, Columns { of: q, first: 0 });
        let scale = (width as f32).powf(-0.5);
        self.push(Op::Attention { q, k, v, heads, width, scale }, tokens, dim)
    }

    fn performer(&mut self, kqv: Id, w: &Place) -> Id {
        let Size { tokens, dim } = self.sizes[kqv];
        let (dim, features) = (dim / 3, self.sides[w.parameter]);
        self.push(Op::Performer { kqv, w: *w, features }, tokens, dim)
    }

    fn last_block(&mut self, x: Id, block: &Block<Place>, [attn, mlp]: [Option<Branch>; 2]) -> Id {
        let d = block.proj.input;
        let normed = self.layer_norm(x, &block.norm1);
        let class = self.class_token(normed);
        let q = self.part(class, &block.qkv, 0..d);
        let kv = self.part(normed, &block.qkv, d..3 * d);
        let attended = self.cross_attention(q, kv, block.num_heads);
        let class = self.class_token(x);
        let x = self.linear_residual(attended, &block.proj, class, attn);
        self.mlp_half(x, &block.norm2, [&block.fc1, &block.fc2], mlp)
    }
}
