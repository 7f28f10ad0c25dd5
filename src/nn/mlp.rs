//! Heads of the self-supervised methods: linear layers with an activation between them, with or
//! without batch normalisation.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::activation::{gelu, relu};

use super::{Init, Linear, LinearStart};

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
    /// `d -> d`, ReLU, `d -> out`: SimCLR's and MoCo v2's, and IDMM's of Table 9 (recipe section
    /// 4.7).
    pub const fn two_layers(out: usize) -> Self {
        let (activation, norm) = (Activation::Relu, BatchNorms::Off);
        let start = LinearStart::Uniform;
        Self { layers: 2, hidden: 0, out, activation, norm, bias: true, start }
    }
}

/// See the module's description. Keys: `layers.I.weight`, `layers.I.bias`, `norms.I.weight`,
/// `norms.I.bias`.
#[derive(Module, Debug)]
pub struct Mlp {
    layers: Vec<Linear>,
    norms: Vec<BatchNorm>,
    normed: bool,
    gelu: bool,
}

impl Mlp {
    /// Freshly initialised for an input of `input` channels.
    pub fn new(spec: &MlpSpec, input: usize, init: &mut Init) -> Self {
        let hidden = if spec.hidden == 0 { input } else { spec.hidden };
        let width = |layer: usize| if layer + 1 == spec.layers { spec.out } else { hidden };
        let layer = |i: usize, init: &mut Init| {
            let from = if i == 0 { input } else { hidden };
            Linear::starting(spec.start, [from, width(i)], spec.bias, init)
        };
        let layers = (0..spec.layers).map(|i| layer(i, init)).collect();
        let normed = spec.norm != BatchNorms::Off;
        let norms = if normed { spec.layers - 1 } else { 0 };
        let norms = (0..norms).map(|i| BatchNorm::new(width(i), init)).collect();
        Self { layers, norms, normed, gelu: spec.activation == Activation::Gelu }
    }

    /// `[rows, in]` to `[rows, out]`; statistics are those of the rows.
    pub fn forward(&self, mut x: Tensor<2>) -> Tensor<2> {
        let last = self.layers.len() - 1;
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(x);
            if self.normed {
                x = normalised(x);
                x = self.norms.get(i).map_or(x.clone(), |norm| norm.scaled(x));
            }
            if i < last {
                x = if self.gelu { gelu(x) } else { relu(x) };
            }
        }
        x
    }
}

/// Scale and shift after a normalisation over the batch. Heads are dropped after pre-training, so
/// no running statistics are kept.
#[derive(Module, Debug)]
struct BatchNorm {
    weight: Param<Tensor<1>>,
    bias: Param<Tensor<1>>,
}

impl BatchNorm {
    fn new(width: usize, init: &mut Init) -> Self {
        Self { weight: init.constant([width], 1.0), bias: init.constant([width], 0.0) }
    }

    fn scaled(&self, x: Tensor<2>) -> Tensor<2> {
        x * self.weight.val().unsqueeze() + self.bias.val().unsqueeze()
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
    use burn::tensor::Device;

    use super::*;

    /// `torch.nn.Linear(192, 512)`: weight and bias uniform within 1 / sqrt(192) = 0.0721688, so with a
    /// deviation of that over sqrt(3), 0.0416667.
    #[test]
    fn heads_start_as_their_originals_do() {
        let spec = MlpSpec { hidden: 512, ..MlpSpec::two_layers(256) };
        let start = |spec: &MlpSpec| Mlp::new(spec, 192, &mut Init::new(3, &Device::flex()));
        let values = |t: Tensor<2>| t.into_data().try_to_vec::<f32>().expect("f32");
        let moments = |v: &[f32]| {
            let n = v.len() as f64;
            let mean = v.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
            let squares = v.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
            let largest = v.iter().fold(0f32, |m, x| m.max(x.abs()));
            (mean, squares.sqrt(), f64::from(largest))
        };
        let mlp = start(&spec);
        let (mean, deviation, largest) = moments(&values(mlp.layers[0].weight.val()));
        assert!(mean.abs() < 5e-4 && (deviation - 0.041_666_7).abs() < 2e-4, "{mean} {deviation}");
        assert!((0.0721..=0.072_168_8).contains(&largest), "{largest}");
        let bias = mlp.layers[1].bias.as_ref().expect("a bias").val().unsqueeze();
        let (_, deviation, largest) = moments(&values(bias));
        // 1 / sqrt(512) = 0.0441942; 256 values.
        assert!((deviation - 0.025_515_5).abs() < 2e-3, "{deviation}");
        assert!((0.043..=0.044_194_2).contains(&largest), "{largest}");
        let mlp = start(&MlpSpec { start: LinearStart::Normal, ..spec });
        let (_, deviation, largest) = moments(&values(mlp.layers[0].weight.val()));
        assert!((deviation - 0.02).abs() < 2e-4 && largest > 0.07, "{deviation} {largest}");
        let bias = mlp.layers[0].bias.as_ref().expect("a bias").val();
        assert_eq!(bias.into_data().try_to_vec::<f32>().expect("f32"), [0.0; 512]);
    }
}
