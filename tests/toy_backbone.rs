//! A backbone and an operation that the library does not have: one file, one row a reader.

use burn::tensor::Tensor;
use fewvit::backbone::{Family, ImgSizes, NetSpec, Spec, Told};
use fewvit::engine::Machine;
use fewvit::graph::Pixels;
use fewvit::nn::readers::onnx::Node;
use fewvit::nn::readers::outline::Tokens;
use fewvit::nn::{Conv2d, LayerNorm, Linear, Onnx, Outline, Reader, Tensors};
use fewvit::ops::Windows;
use rten::Model;
use rten_tensor::prelude::*;
use rten_tensor::{NdTensor, Tensor as OnnxTensor};

// The operation: the square of every value.

trait Square: Reader {
    fn square(&mut self, x: Self::Value) -> Self::Value;
}

impl Square for Tensors<'_> {
    fn square(&mut self, x: Tensor<2>) -> Tensor<2> {
        x.square()
    }
}

impl Square for Onnx<'_> {
    fn square(&mut self, x: Node) -> Node {
        self.with(x, |graph, x| graph.mul(x, x))
    }
}

impl Square for Outline {
    fn square(&mut self, x: Tokens) -> Tokens {
        self.gelu(x)
    }
}

// The backbone: patches, a norm, squares, a linear layer, the mean.

#[derive(Debug)]
struct Squares {
    dim: usize,
    patch_size: usize,
}

impl Squares {
    fn told<R: Square>(&self, r: &mut R) -> R::Value {
        let (d, p) = (self.dim, self.patch_size);
        let windows = Windows { kernel: p, stride: p, padding: 0 };
        let embed = Conv2d::new(r, "embed", [3, d], windows, 1);
        let (norm, mix) = (LayerNorm::new(r, "norm", d, 1e-5), Linear::new(r, "mix", [d, d]));
        let pixels = r.pixels();
        let x = r.conv(pixels, &embed);
        let x = r.layer_norm(x, &norm);
        let x = r.square(x);
        let x = r.linear(x, &mix);
        r.mean_token(x)
    }
}

impl Family for Squares {
    fn num_features(&self) -> usize {
        self.dim
    }

    fn img_sizes(&self) -> ImgSizes {
        ImgSizes { smallest: self.patch_size, multiple_of: self.patch_size }
    }

    fn timm_args(&self, _: usize) -> serde_json::Value {
        serde_json::Value::Null
    }
}

impl Told for Squares {
    fn tensors(&self, r: &mut Tensors, _: usize) -> Tensor<2> {
        self.told(r)
    }

    fn onnx(&self, r: &mut Onnx, _: usize) -> Node {
        self.told(r)
    }

    fn outline(&self, r: &mut Outline, _: usize) {
        self.told(r);
    }
}

const SPEC: Spec =
    Spec { name: "squares", timm_name: None, family: &Squares { dim: 6, patch_size: 4 } };
const IMG_SIZE: usize = 8;

#[test]
fn it_is_counted_computed_and_written() {
    let net = NetSpec::classifier(SPEC, IMG_SIZE, 3);
    let outline = net.outline().expect("an outline");
    let keys: Vec<_> = outline.parameters.iter().map(|spec| spec.key.as_str()).collect();
    let layers = ["embed", "norm", "mix", "head"];
    let expected =
        layers.map(|layer| [format!("{layer}.weight"), format!("{layer}.bias")]).concat();
    assert_eq!(keys, expected);
    // 4 patches of 48 pixel values, 4 tokens through `mix`, without the head.
    assert_eq!(SPEC.macs(IMG_SIZE), 4 * 48 * 6 + 4 * 6 * 6);

    let values = outline.draw(3);
    let model = Machine::cpu(1).model(&net, &values).expect("a model");
    let pixels: Vec<f32> = (0..2 * 3 * 64).map(|i| (i * 37 % 19) as f32 / 9.0 - 1.0).collect();
    let ours = model.outputs(pixels.clone()).expect("outputs").logits;

    let file = net.onnx(&values, Pixels::Normalised, &[]);
    let written = Model::load(file).expect("an ONNX file");
    let node = |name| written.node_id(name).expect("a node");
    let images = OnnxTensor::<f32>::from_data(&[2, 3, IMG_SIZE, IMG_SIZE], pixels);
    let [logits] = written
        .run_n(vec![(node("images"), images.into())], [node("logits")], None)
        .expect("a run");
    let theirs: NdTensor<f32, 2> = logits.try_into().expect("logits");
    for (a, b) in ours.iter().zip(theirs.to_vec()) {
        assert!((a - b).abs() < 1e-5, "{a} for {b}");
    }
}
