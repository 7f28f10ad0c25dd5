//! A network written down as operators of ONNX (opset 17).
//!
//! The reader of models that writes ONNX files speaks these; the export holds a file and its model
//! together on photographs. Rows of tokens are `[batch * tokens, dim]` here
//! as there, so a linear layer is one `Gemm` over weights in PyTorch's layout.

mod proto;

use prost::Message;

use crate::ops::Windows;
use proto::Attribute;

const IR_VERSION: i64 = 8;
const OPSET: i64 = 17;

/// What an operator returns, or an input or a weight: a name in the graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value(String);

/// The pixels a graph takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pixels {
    /// `images`, f32 `[batch, 3, img_size, img_size]`, normalised.
    Normalised,
    /// `pixels`, u8 `[batch, img_size, img_size, 3]`; the graph normalises them itself.
    Bytes {
        /// Channel means, of values between 0 and 1.
        mean: [f32; 3],
        /// Channel standard deviations.
        std: [f32; 3],
    },
}

/// A network, growing.
#[derive(Default)]
pub struct Graph {
    inner: proto::Graph,
}

impl Graph {
    /// The input, as `[batch, 3, img_size, img_size]` and normalised.
    pub fn images(&mut self, pixels: Pixels, img_size: usize) -> Value {
        let (name, kind, shape) = match pixels {
            Pixels::Normalised => ("images", proto::FLOAT, [3, img_size, img_size]),
            Pixels::Bytes { .. } => ("pixels", proto::UINT8, [img_size, img_size, 3]),
        };
        self.inner.input.push(proto::ValueInfo::batch(name, kind, &shape));
        let input = Value(name.to_owned());
        let Pixels::Bytes { mean, std } = pixels else { return input };
        let float = self.node("Cast", &[&input], vec![Attribute::int("to", proto::FLOAT.into())]);
        let shift = self.constant(&[3], &mean.map(|m| m * 255.0));
        let scale = self.constant(&[3], &std.map(|s| s * 255.0));
        let centred = self.node("Sub", &[&float, &shift], vec![]);
        let scaled = self.node("Div", &[&centred, &scale], vec![]);
        self.transpose(&scaled, &[0, 3, 1, 2])
    }

    /// A parameter, under its key.
    pub fn weight(&mut self, key: &str, shape: &[usize], values: &[f32]) -> Value {
        if !self.inner.initializer.iter().any(|tensor| tensor.name == key) {
            self.initializer(key, shape, values);
        }
        Value(key.to_owned())
    }

    /// Values that are no parameter.
    pub fn constant(&mut self, shape: &[usize], values: &[f32]) -> Value {
        let name = format!("constant_{}", self.inner.initializer.len());
        self.initializer(&name, shape, values);
        Value(name)
    }

    fn initializer(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        self.inner.initializer.push(proto::Tensor {
            dims: shape.iter().map(|&side| side as i64).collect(),
            data_type: proto::FLOAT,
            name: name.to_owned(),
            raw_data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        });
    }

    /// Integers, as shapes and indices are given; `dims` is empty for a scalar.
    fn integers(&mut self, dims: &[i64], values: &[i64]) -> Value {
        let name = format!("constant_{}", self.inner.initializer.len());
        self.inner.initializer.push(proto::Tensor {
            dims: dims.to_vec(),
            data_type: proto::INT64,
            name: name.clone(),
            raw_data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        });
        Value(name)
    }

    fn node(&mut self, op: &str, inputs: &[&Value], attribute: Vec<Attribute>) -> Value {
        let name = format!("{op}_{}", self.inner.node.len());
        self.inner.node.push(proto::Node {
            input: inputs.iter().map(|value| value.0.clone()).collect(),
            output: vec![name.clone()],
            name: name.clone(),
            op_type: op.to_owned(),
            attribute,
        });
        Value(name)
    }

    /// `a + b`.
    pub fn add(&mut self, a: &Value, b: &Value) -> Value {
        self.node("Add", &[a, b], vec![])
    }

    /// `a - b`.
    pub fn sub(&mut self, a: &Value, b: &Value) -> Value {
        self.node("Sub", &[a, b], vec![])
    }

    /// `a * b`, element by element.
    pub fn mul(&mut self, a: &Value, b: &Value) -> Value {
        self.node("Mul", &[a, b], vec![])
    }

    /// `a / b`.
    pub fn div(&mut self, a: &Value, b: &Value) -> Value {
        self.node("Div", &[a, b], vec![])
    }

    /// `x` times a number.
    pub fn scale(&mut self, x: &Value, factor: f64) -> Value {
        let factor = self.constant(&[], &[factor as f32]);
        self.mul(x, &factor)
    }

    /// `x` plus a number.
    pub fn offset(&mut self, x: &Value, summand: f64) -> Value {
        let summand = self.constant(&[], &[summand as f32]);
        self.add(x, &summand)
    }

    /// `e^x`.
    pub fn exp(&mut self, x: &Value) -> Value {
        self.node("Exp", &[x], vec![])
    }

    /// `max(x, 0)`.
    pub fn relu(&mut self, x: &Value) -> Value {
        self.node("Relu", &[x], vec![])
    }

    /// `x (1 + erf(x / sqrt 2)) / 2`.
    pub fn gelu(&mut self, x: &Value) -> Value {
        let scaled = self.scale(x, std::f64::consts::FRAC_1_SQRT_2);
        let erf = self.node("Erf", &[&scaled], vec![]);
        let raised = self.offset(&erf, 1.0);
        let product = self.mul(x, &raised);
        self.scale(&product, 0.5)
    }

    /// Matrix products over all leading dimensions.
    pub fn matmul(&mut self, a: &Value, b: &Value) -> Value {
        self.node("MatMul", &[a, b], vec![])
    }

    /// `x W^T + b` of rows; `weight`: `[out, in]`.
    pub fn linear(&mut self, x: &Value, weight: &Value, bias: Option<&Value>) -> Value {
        let inputs: Vec<_> = [x, weight].into_iter().chain(bias).collect();
        self.node("Gemm", &inputs, vec![Attribute::int("transB", 1)])
    }

    /// Normalisation over the last dimension.
    pub fn layer_norm(&mut self, x: &Value, weight: &Value, bias: &Value, eps: f64) -> Value {
        let eps = Attribute::float("epsilon", eps as f32);
        self.node("LayerNormalization", &[x, weight, bias], vec![Attribute::int("axis", -1), eps])
    }

    /// Convolution of `[batch, in, height, width]` with `[weight, bias]` or without a bias;
    /// `weight`: `[out, in / groups, kernel, kernel]`.
    pub fn conv(
        &mut self,
        x: &Value,
        weights: &[&Value],
        windows: Windows,
        groups: usize,
    ) -> Value {
        let Windows { kernel, stride, padding } = windows;
        let inputs = [&[x], weights].concat();
        let twice = |name, side: usize| Attribute::ints(name, &[side as i64; 2]);
        let attributes = vec![
            twice("kernel_shape", kernel),
            twice("strides", stride),
            Attribute::ints("pads", &[padding as i64; 4]),
            Attribute::int("group", groups as i64),
        ];
        self.node("Conv", &inputs, attributes)
    }

    /// Flattened windows of a map `[batch, channels, height, width]`, as rows in the order of
    /// [`crate::ops::unfold()`]: a convolution whose every filter picks one place.
    pub fn unfold(&mut self, map: &Value, channels: usize, windows: Windows) -> Value {
        let (side, places) = (windows.kernel, windows.kernel.pow(2));
        let picks = |i: usize| f32::from(u8::from(i / places % places == i % places));
        let values: Vec<f32> = (0..channels * places * places).map(picks).collect();
        let filters = self.constant(&[channels * places, 1, side, side], &values);
        let unfolded = self.conv(map, &[&filters], windows, channels);
        self.rows(&unfolded, channels * places)
    }

    /// A map `[batch, dim, height, width]` as rows `[batch * height * width, dim]`.
    pub fn rows(&mut self, map: &Value, dim: usize) -> Value {
        let last = self.transpose(map, &[0, 2, 3, 1]);
        self.reshape(&last, &[-1, dim as i64])
    }

    /// Rows as a map again, `[batch, dim, side, side]`.
    pub fn map(&mut self, rows: &Value, side: usize, dim: usize) -> Value {
        let map = self.reshape(rows, &[-1, side as i64, side as i64, dim as i64]);
        self.transpose(&map, &[0, 3, 1, 2])
    }

    /// Means over windows of a map of `side`, of equal number `out` along both sides and as equal
    /// in size as can be (PyTorch's `adaptive_avg_pool2d`): rows of `dim` to rows of `dim`.
    pub fn pool(&mut self, rows: &Value, [side, out]: [usize; 2], dim: usize) -> Value {
        let window = |i: usize| (i * side / out)..((i + 1) * side).div_ceil(out);
        let share = |i: usize, at: usize| match window(i).contains(&at) {
            true => 1.0 / window(i).len() as f32,
            false => 0.0,
        };
        let tokens = side * side;
        let weight = |i: usize| {
            let (to, from) = (i / tokens, i % tokens);
            share(to / out, from / side) * share(to % out, from % side)
        };
        let weights: Vec<f32> = (0..out * out * tokens).map(weight).collect();
        let weights = self.constant(&[out * out, tokens], &weights);
        let x = self.reshape(rows, &[-1, tokens as i64, dim as i64]);
        let pooled = self.matmul(&weights, &x);
        self.reshape(&pooled, &[-1, dim as i64])
    }

    /// Sum over `axis`, which stays with one entry.
    pub fn sum(&mut self, x: &Value, axis: i64) -> Value {
        let axes = self.integers(&[1], &[axis]);
        self.node("ReduceSum", &[x, &axes], vec![])
    }

    /// Mean over `axis`, which goes.
    pub fn mean(&mut self, x: &Value, axis: i64) -> Value {
        let attributes = vec![Attribute::ints("axes", &[axis]), Attribute::int("keepdims", 0)];
        self.node("ReduceMean", &[x], attributes)
    }

    /// The same values in another shape; one side may be -1.
    pub fn reshape(&mut self, x: &Value, shape: &[i64]) -> Value {
        let shape = self.integers(&[shape.len() as i64], shape);
        self.node("Reshape", &[x, &shape], vec![])
    }

    /// Axes in another order.
    pub fn transpose(&mut self, x: &Value, axes: &[i64]) -> Value {
        self.node("Transpose", &[x], vec![Attribute::ints("perm", axes)])
    }

    /// Entry `index` of `axis`, which goes.
    pub fn entry(&mut self, x: &Value, axis: i64, index: i64) -> Value {
        let index = self.integers(&[], &[index]);
        self.node("Gather", &[x, &index], vec![Attribute::int("axis", axis)])
    }

    /// Columns `start..end` of rows.
    pub fn columns(&mut self, x: &Value, start: usize, end: usize) -> Value {
        let [start, end, axis] =
            [start as i64, end as i64, 1].map(|value| self.integers(&[1], &[value]));
        self.node("Slice", &[x, &start, &end, &axis], vec![])
    }

    /// A token `[1, 1, dim]` before the tokens `[batch, tokens, dim]` of each image.
    pub fn prepend(&mut self, token: &Value, tokens: &Value, dim: usize) -> Value {
        let shape = self.node("Shape", &[tokens], vec![]);
        let zero = self.integers(&[1], &[0]);
        let batch = self.node("Gather", &[&shape, &zero], vec![Attribute::int("axis", 0)]);
        let rest = self.integers(&[2], &[1, dim as i64]);
        let shape = self.node("Concat", &[&batch, &rest], vec![Attribute::int("axis", 0)]);
        let repeated = self.node("Expand", &[token, &shape], vec![]);
        self.node("Concat", &[&repeated, tokens], vec![Attribute::int("axis", 1)])
    }

    /// Rows `[batch * tokens, parts * dim]` as `parts` values `[batch, heads, tokens, head_dim]`.
    pub fn split_heads(
        &mut self,
        x: &Value,
        [tokens, parts, heads]: [usize; 3],
        dim: usize,
    ) -> Vec<Value> {
        let shape = [-1, tokens as i64, parts as i64, heads as i64, (dim / heads) as i64];
        let x = self.reshape(x, &shape);
        let x = self.transpose(&x, &[2, 0, 3, 1, 4]);
        (0..parts).map(|part| self.entry(&x, 0, part as i64)).collect()
    }

    /// `softmax(scale q k^T) v` of values as [`Self::split_heads`] makes them, as rows of `dim`.
    pub fn attention(&mut self, [q, k, v]: [&Value; 3], scale: f64, dim: usize) -> Value {
        let k = self.transpose(k, &[0, 1, 3, 2]);
        let q = self.scale(q, scale);
        let scores = self.matmul(&q, &k);
        let weights = self.node("Softmax", &[&scores], vec![Attribute::int("axis", -1)]);
        let attended = self.matmul(&weights, v);
        let tokens_first = self.transpose(&attended, &[0, 2, 1, 3]);
        self.reshape(&tokens_first, &[-1, dim as i64])
    }

    /// The ONNX file of a graph that ends in `outputs`: name, value and width, each `[batch, width]`.
    pub fn finish(
        mut self,
        outputs: &[(&str, &Value, usize)],
        metadata: &[(&str, String)],
    ) -> Vec<u8> {
        for (name, value, width) in outputs {
            self.inner.node.push(proto::Node {
                input: vec![value.0.clone()],
                output: vec![(*name).to_owned()],
                name: (*name).to_owned(),
                op_type: "Identity".to_owned(),
                attribute: vec![],
            });
            self.inner.output.push(proto::ValueInfo::batch(name, proto::FLOAT, &[*width]));
        }
        self.inner.name = "fewvit".to_owned();
        let property = |(key, value): &(&str, String)| proto::Property {
            key: (*key).to_owned(),
            value: value.clone(),
        };
        proto::Model {
            ir_version: IR_VERSION,
            producer_name: "fewvit".to_owned(),
            producer_version: env!("CARGO_PKG_VERSION").to_owned(),
            graph: Some(self.inner),
            opset_import: vec![proto::OperatorSet { domain: String::new(), version: OPSET }],
            metadata_props: metadata.iter().map(property).collect(),
        }
        .encode_to_vec()
    }
}
