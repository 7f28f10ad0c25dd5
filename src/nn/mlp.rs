//! Heads of the self-supervised methods: linear layers with an activation between them, with or
//! without batch normalisation.

use burn::tensor::Tensor;
use burn::tensor::activation::relu;

use super::{Linear, LinearStart, Parameter, Reader, Start};
use crate::ops;

/// PyTorch's default.
const NORM_EPS: f64 = 1e-5;

/// Sizes of an [`Mlp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MlpSpec {
    /// Linear layers.
    pub layers: usize,
    /// Width between them; 0 = the input's.
    pub hidden: usize,
    /// Output width.
    pub out: usize,
    /// Between layers.
    pub activation: Activation,
    /// After which layers the batch is normalised.
    pub norm: BatchNorms,
    /// Whether the linear layers have a bias.
    pub bias: bool,
    /// How the linear layers start.
    pub start: LinearStart,
}

/// Between the layers of an [`Mlp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// max(x, 0).
    Relu,
    /// In its exact form.
    Gelu,
}

/// Batch normalisation in an [`Mlp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchNorms {
    /// None.
    Off,
    /// After every layer, the last one without scale and shift (MoCo v3).
    LastPlain,
}

impl MlpSpec {
    /// `d -> d`, ReLU, `d -> out`: SimCLR's and MoCo v2's, and IDMM's with a projector (the paper's Table 9).
    pub const fn two_layers(out: usize) -> Self {
        let (activation, norm) = (Activation::Relu, BatchNorms::Off);
        let start = LinearStart::Uniform;
        Self { layers: 2, hidden: 0, out, activation, norm, bias: true, start }
    }
}

/// See the module's description. Keys: `layers.I.weight`, `layers.I.bias`, `norms.I.weight`,
/// `norms.I.bias`.
#[derive(Clone, Debug)]
pub struct Mlp<W> {
    layers: Vec<Linear<W>>,
    /// Scale and shift after a normalisation over the batch. Heads are dropped after pre-training, so
    /// no running statistics are kept.
    norms: Vec<[W; 2]>,
    normed: bool,
    gelu: bool,
}

impl<W> Mlp<W> {
    /// For an input of `input` channels, under keys that begin with `key`.
    pub fn new<R: Reader<Weight = W>>(r: &mut R, key: &str, spec: &MlpSpec, input: usize) -> Self {
        let hidden = if spec.hidden == 0 { input } else { spec.hidden };
        let width = |layer: usize| if layer + 1 == spec.layers { spec.out } else { hidden };
        let layer = |i: usize, r: &mut R| {
            let (key, from) = (format!("{key}.layers.{i}"), if i == 0 { input } else { hidden });
            Linear::starting(r, &key, [from, width(i)], spec.start, spec.bias)
        };
        let layers = (0..spec.layers).map(|i| layer(i, r)).collect();
        let normed = spec.norm != BatchNorms::Off;
        let norm = |i: usize, r: &mut R| {
            let starts = [("weight", 1.0), ("bias", 0.0)];
            starts.map(|(name, value)| {
                r.weight(&format!("{key}.norms.{i}.{name}"), &[width(i)], Start::Constant(value))
            })
        };
        let norms = if normed { spec.layers - 1 } else { 0 };
        let norms = (0..norms).map(|i| norm(i, r)).collect();
        Self { layers, norms, normed, gelu: spec.activation == Activation::Gelu }
    }
}

#[cfg(feature = "cuda")]
impl<W> Mlp<W> {
    /// Tells the MLP to a reader, which knows no statistics over the rows of a batch.
    ///
    /// # Panics
    /// If the batch is normalised; the heads of row-wise losses do not do that.
    pub fn tell<R: Reader<Weight = W>>(&self, r: &mut R, mut x: R::Value) -> R::Value {
        assert!(!self.normed, "rows that pass through one by one have no statistics");
        let last = self.layers.len() - 1;
        for (i, layer) in self.layers.iter().enumerate() {
            x = match (i < last, self.gelu) {
                (false, _) => r.linear(x, layer),
                (true, true) => r.linear_gelu(x, layer),
                (true, false) => {
                    let x = r.linear(x, layer);
                    r.relu(x)
                }
            };
        }
        x
    }
}

impl Mlp<Parameter> {
    /// `[rows, in]` to `[rows, out]`; statistics are those of the rows.
    pub fn forward(&self, mut x: Tensor<2>) -> Tensor<2> {
        let last = self.layers.len() - 1;
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(x);
            if self.normed {
                x = normalised(x);
            }
            if let Some([weight, bias]) = self.norms.get(i) {
                x = x * weight.one().unsqueeze() + bias.one().unsqueeze();
            }
            if i < last {
                x = if self.gelu { ops::gelu(x) } else { relu(x) };
            }
        }
        x
    }
}

/// Each channel with mean 0 and (biased) variance 1 over the rows (Ioffe & Szegedy 2015).
fn normalised(x: Tensor<2>) -> Tensor<2> {
    let centred = x.clone() - x.mean_dim(0);
    let variance = centred.clone().square().mean_dim(0);
    centred / (variance + NORM_EPS).sqrt()
}

#[cfg(test)]
mod tests {
    use super::super::Outline;
    use super::*;

    /// `torch.nn.Linear(192, 512)`: weight and bias uniform within 1 / sqrt(192) = 0.0721688, so with a
    /// deviation of that over sqrt(3), 0.0416667.
    #[test]
    fn heads_start_as_their_originals_do() {
        let spec = MlpSpec { hidden: 512, ..MlpSpec::two_layers(256) };
        let start = |spec: &MlpSpec, key: &str| -> Vec<f32> {
            let mut outline = Outline::default();
            Mlp::new(&mut outline, "projector", spec, 192);
            let place = outline.parameters.iter().find(|spec| spec.key == key).expect(key);
            outline.draw(3)[place.range.clone()].to_vec()
        };
        let moments = |v: &[f32]| {
            let n = v.len() as f64;
            let mean = v.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
            let squares = v.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
            let largest = v.iter().fold(0f32, |m, x| m.max(x.abs()));
            (mean, squares.sqrt(), f64::from(largest))
        };
        let (mean, deviation, largest) = moments(&start(&spec, "projector.layers.0.weight"));
        assert!(mean.abs() < 5e-4 && (deviation - 0.041_666_7).abs() < 2e-4, "{mean} {deviation}");
        assert!((0.0721..=0.072_168_8).contains(&largest), "{largest}");
        let (_, deviation, largest) = moments(&start(&spec, "projector.layers.1.bias"));
        // 1 / sqrt(512) = 0.0441942; 256 values.
        assert!((deviation - 0.025_515_5).abs() < 2e-3, "{deviation}");
        assert!((0.043..=0.044_194_2).contains(&largest), "{largest}");
        let normal = MlpSpec { start: LinearStart::Normal, ..spec };
        let (_, deviation, largest) = moments(&start(&normal, "projector.layers.0.weight"));
        assert!((deviation - 0.02).abs() < 2e-4 && largest > 0.07, "{deviation} {largest}");
        assert_eq!(start(&normal, "projector.layers.0.bias"), [0.0; 512]);
    }
}
