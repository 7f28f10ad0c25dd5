//! The model as an ONNX file.

use std::ops::Range;

use crate::graph::{Graph, Value};
use crate::nn::init::Start;
use crate::nn::layers::{Conv2d, LayerNorm, Linear};
use crate::nn::reader::{Branch, Dropout, Reader, side_of};
use crate::ops::{self, Windows};

/// Writes what it is told into a graph.
pub struct Onnx<'a> {
    /// The graph so far.
    graph: Graph,
    /// All parameters, in the order in which they are declared.
    values: &'a [f32],
    declared: usize,
    images: Value,
    img_size: usize,
    /// Columns that were cut out before: of what, which, and the value.
    columns: Vec<(Value, Range<usize>, Value)>,
}

/// A parameter.
#[derive(Clone, Debug)]
pub struct Stored {
    key: String,
    shape: Vec<usize>,
    range: Range<usize>,
}

/// A value in the graph, of images of `tokens` each.
#[derive(Clone, Debug)]
pub struct Node {
    value: Value,
    form: Form,
    tokens: usize,
    dim: usize,
}

/// How the values of a [`Node`] lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// `[batch * tokens, dim]`.
    Rows,
    /// `[batch, tokens, dim]`.
    Tokens,
    /// `[batch, dim, side, side]`.
    Map,
    /// `[batch, heads, tokens, head_dim]`.
    Heads,
}

impl<'a> Onnx<'a> {
    /// For parameters of the given `values`; `images` are `[batch, 3, img_size, img_size]`.
    pub fn new(graph: Graph, values: &'a [f32], images: Value, img_size: usize) -> Self {
        Self { graph, values, declared: 0, images, img_size, columns: Vec::new() }
    }

    /// `x` with the values that `make` writes in terms of its own, of the same shape.
    pub fn with(&mut self, x: Node, make: impl FnOnce(&mut Graph, &Value) -> Value) -> Node {
        Node { value: make(&mut self.graph, &x.value), ..x }
    }

    /// The ONNX file of a model that ends in `outputs`, each `[batch, dim]`, by name.
    pub fn finish(self, outputs: &[(&str, &Node)], metadata: &[(&str, String)]) -> Vec<u8> {
        let outputs: Vec<_> = outputs.iter().map(|(name, x)| (*name, &x.value, x.dim)).collect();
        self.graph.finish(&outputs, metadata)
    }

    /// A parameter in the graph.
    fn stored(&mut self, weight: &Stored) -> Value {
        let Stored { key, shape, range } = weight;
        self.graph.weight(key, shape, &self.values[range.clone()])
    }

    fn rows(&self, value: Value, tokens: usize, dim: usize) -> Node {
        Node { value, form: Form::Rows, tokens, dim }
    }

    /// A map as convolutions take it.
    fn map(&mut self, x: &Node) -> Value {
        match x.form {
            Form::Map => x.value.clone(),
            _ => self.graph.map(&x.value, side_of(x.tokens), x.dim),
        }
    }

    /// The last `dim` columns of rows.
    fn last_columns(&mut self, x: &Node, dim: usize) -> Value {
        if x.dim == dim { x.value.clone() } else { self.cut(x, x.dim - dim..x.dim) }
    }

    fn cut(&mut self, x: &Node, range: Range<usize>) -> Value {
        let known = self.columns.iter().find(|(of, seen, _)| *of == x.value && *seen == range);
        if let Some((.., cut)) = known {
            return cut.clone();
        }
        let cut = self.graph.columns(&x.value, range.start, range.end);
        self.columns.push((x.value.clone(), range, cut.clone()));
        cut
    }

    /// `parts` values of heads.
    fn heads(&mut self, x: &Node, parts: usize, heads: usize) -> Vec<Value> {
        self.graph.split_heads(&x.value, [x.tokens, parts, heads], x.dim / parts)
    }

    fn convolved(&mut self, x: &Node, conv: &Conv2d<Stored>) -> (Value, usize) {
        let map = self.map(x);
        let (weight, bias) = (self.stored(&conv.weight), self.stored(&conv.bias));
        let map = self.graph.conv(&map, &[&weight, &bias], conv.windows, conv.groups);
        (map, conv.windows.count(side_of(x.tokens)).pow(2))
    }

    /// Positive random features of [`Self::performer`].
    fn phi(&mut self, x: &Value, features: &Stored) -> Value {
        let square = self.graph.mul(x, x);
        let sum = self.graph.sum(&square, 1);
        let half_square = self.graph.scale(&sum, 0.5);
        let w = self.stored(features);
        let projected = self.graph.linear(x, &w, None);
        let exponent = self.graph.sub(&projected, &half_square);
        let y = self.graph.exp(&exponent);
        self.graph.scale(&y, (features.shape[0] as f64).powf(-0.5))
    }
}

impl Reader for Onnx<'_> {
    type Value = Node;
    type Weight = Stored;

    fn weight(&mut self, key: &str, shape: &[usize], _: Start) -> Stored {
        let range = self.declared..self.declared + shape.iter().product::<usize>();
        self.declared = range.end;
        Stored { key: key.to_owned(), shape: shape.to_vec(), range }
    }

    fn frozen(&mut self, key: &str, shape: &[usize], start: Start) -> Stored {
        self.weight(key, shape, start)
    }

    fn pixels(&mut self) -> Node {
        Node { value: self.images.clone(), form: Form::Map, tokens: self.img_size.pow(2), dim: 3 }
    }

    fn patches(&mut self, conv: &Conv2d<Stored>) -> Node {
        let pixels = self.pixels();
        let (map, tokens) = self.convolved(&pixels, conv);
        let dim = conv.output;
        let x = self.graph.reshape(&map, &[-1, dim as i64, tokens as i64]);
        Node { value: self.graph.transpose(&x, &[0, 2, 1]), form: Form::Tokens, tokens, dim }
    }

    fn conv(&mut self, map: Node, conv: &Conv2d<Stored>) -> Node {
        let (map, tokens) = self.convolved(&map, conv);
        let rows = self.graph.rows(&map, conv.output);
        self.rows(rows, tokens, conv.output)
    }

    fn unfold(&mut self, map: Node, windows: Windows) -> Node {
        let tokens = windows.count(side_of(map.tokens)).pow(2);
        let value = self.map(&map);
        let rows = self.graph.unfold(&value, map.dim, windows);
        self.rows(rows, tokens, map.dim * windows.kernel.pow(2))
    }

    fn pool(&mut self, map: Node, side: usize) -> Node {
        let rows = self.graph.pool(&map.value, [side_of(map.tokens), side], map.dim);
        self.rows(rows, side * side, map.dim)
    }

    fn depthwise_gelu(&mut self, map: Node, conv: &Conv2d<Stored>) -> Node {
        let rows = self.conv(map, conv);
        self.gelu(rows)
    }

    fn embed(&mut self, tokens: Node, class: &Stored, position: &Stored) -> Node {
        let Node { value, form, tokens, dim } = tokens;
        let x = match form {
            Form::Tokens => value,
            _ => self.graph.reshape(&value, &[-1, tokens as i64, dim as i64]),
        };
        let (class, position) = (self.stored(class), self.stored(position));
        let x = self.graph.prepend(&class, &x, dim);
        let x = self.graph.add(&x, &position);
        let rows = self.graph.reshape(&x, &[-1, dim as i64]);
        self.rows(rows, tokens + 1, dim)
    }

    fn class_token(&mut self, x: Node) -> Node {
        let tokens = self.graph.reshape(&x.value, &[-1, x.tokens as i64, x.dim as i64]);
        let class = self.graph.entry(&tokens, 1, 0);
        self.rows(class, 1, x.dim)
    }

    fn mean_token(&mut self, x: Node) -> Node {
        let tokens = self.graph.reshape(&x.value, &[-1, x.tokens as i64, x.dim as i64]);
        let mean = self.graph.mean(&tokens, 1);
        self.rows(mean, 1, x.dim)
    }

    fn layer_norm(&mut self, x: Node, norm: &LayerNorm<Stored>) -> Node {
        let (weight, bias) = (self.stored(&norm.weight), self.stored(&norm.bias));
        Node { value: self.graph.layer_norm(&x.value, &weight, &bias, norm.eps), ..x }
    }

    fn linear(&mut self, x: Node, layer: &Linear<Stored>) -> Node {
        let weight = self.stored(&layer.weight);
        let bias = layer.bias.as_ref().map(|bias| self.stored(bias));
        let value = self.graph.linear(&x.value, &weight, bias.as_ref());
        Node { value, dim: layer.output, ..x }
    }

    fn linear_residual(
        &mut self,
        x: Node,
        layer: &Linear<Stored>,
        residual: Node,
        _: Option<Branch>,
    ) -> Node {
        let x = self.linear(x, layer);
        let residual = self.last_columns(&residual, x.dim);
        Node { value: self.graph.add(&residual, &x.value), ..x }
    }

    fn dropout_residual(&mut self, x: Node, residual: Node, _: Dropout) -> Node {
        let residual = self.last_columns(&residual, x.dim);
        Node { value: self.graph.add(&residual, &x.value), ..x }
    }

    fn gelu(&mut self, x: Node) -> Node {
        Node { value: self.graph.gelu(&x.value), ..x }
    }

    fn relu(&mut self, x: Node) -> Node {
        Node { value: self.graph.relu(&x.value), ..x }
    }

    fn attention(&mut self, qkv: Node, heads: usize, scaled_by: usize) -> Node {
        let dim = qkv.dim / 3;
        let parts = self.heads(&qkv, 3, heads);
        let scale = (scaled_by as f64).powf(-0.5);
        let attended = self.graph.attention([&parts[0], &parts[1], &parts[2]], scale, dim);
        self.rows(attended, qkv.tokens, dim)
    }

    fn queries(&mut self, x: Node, layer: &Linear<Stored>, heads: usize) -> Node {
        let q = self.linear(x, layer);
        Node { value: self.heads(&q, 1, heads).swap_remove(0), form: Form::Heads, ..q }
    }

    fn cross_attention(&mut self, q: Node, kv: Node, heads: usize) -> Node {
        let (dim, tokens) = (q.dim, q.tokens);
        let q = match q.form {
            Form::Heads => q.value,
            _ => self.heads(&q, 1, heads).swap_remove(0),
        };
        let kv = self.heads(&kv, 2, heads);
        let scale = ((dim / heads) as f64).powf(-0.5);
        let attended = self.graph.attention([&q, &kv[0], &kv[1]], scale, dim);
        self.rows(attended, tokens, dim)
    }

    fn performer(&mut self, kqv: Node, features: &Stored) -> Node {
        let (dim, tokens) = (kqv.dim / 3, kqv.tokens);
        let [k, q, v] = [0, 1, 2].map(|i| self.cut(&kqv, i * dim..(i + 1) * dim));
        let [k, q] = [self.phi(&k, features), self.phi(&q, features)];
        let g = &mut self.graph;
        let count = features.shape[0] as i64;
        let [k, q] = [k, q].map(|x| g.reshape(&x, &[-1, tokens as i64, count]));
        let v = g.reshape(&v, &[-1, tokens as i64, dim as i64]);
        let total = g.sum(&k, 1);
        let shares = g.mul(&q, &total);
        let normaliser = g.sum(&shares, 2);
        let normaliser = g.offset(&normaliser, ops::performer::EPS);
        let k = g.transpose(&k, &[0, 2, 1]);
        let memory = g.matmul(&k, &v);
        let y = g.matmul(&q, &memory);
        let y = g.div(&y, &normaliser);
        let rows = g.reshape(&y, &[-1, dim as i64]);
        self.rows(rows, tokens, dim)
    }
}
