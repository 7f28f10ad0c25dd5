//! A model that is asked and not trained.

use burn::tensor::{Device, Tensor, TensorData};

use super::device;
use crate::backbone::{NetSpec, Weights};
use crate::error::Result;
use crate::nn::DropPath;
use crate::ops::PackedWeights;

/// Weights on a device, for evaluation. Threads may ask at the same time.
pub trait Model: Send + Sync {
    /// What it is built from.
    fn spec(&self) -> &NetSpec;

    /// What it says of `images`, normalised, `[rows, 3, img_size, img_size]`.
    ///
    /// # Errors
    /// The device failed.
    fn outputs(&self, images: Vec<f32>) -> Result<Outputs>;
}

/// What a model says of images.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outputs {
    /// `[images, num_features]`.
    pub features: Vec<f32>,
    /// `[images, num_classes]`; nothing where the model has no classes.
    pub logits: Vec<f32>,
}

/// A model in burn's tensors.
pub(super) struct BurnModel {
    spec: NetSpec,
    weights: Weights,
    device: Device,
    packed: PackedWeights,
}

impl BurnModel {
    /// On a device without autodiff.
    pub(super) fn new(spec: &NetSpec, values: &[f32], device: Device) -> Result<Self> {
        let weights = Weights::new(spec, values.to_vec(), &device)?;
        Ok(Self { spec: *spec, weights, device, packed: PackedWeights::default() })
    }
}

impl Model for BurnModel {
    fn spec(&self) -> &NetSpec {
        &self.spec
    }

    fn outputs(&self, images: Vec<f32>) -> Result<Outputs> {
        let size = self.spec.img_size;
        let shape = [images.len() / (3 * size * size), 3, size, size];
        let images = Tensor::from_data(TensorData::new(images, shape), &self.device);
        let compute = || {
            let net = &self.weights.net;
            let features = net.features(images, &DropPath::OFF);
            let logits = (self.spec.heads.num_classes > 0).then(|| net.logits(features.clone()));
            let logits = logits.map(device::read).transpose()?.unwrap_or_default();
            Ok(Outputs { features: device::read(features)?, logits })
        };
        device::watched(|| self.packed.serve(compute))?
    }
}
