//! A backbone with what is trained on top of it.

use burn::module::Module;
use burn::tensor::{Device, Tensor, activation::relu};

use super::{Backbone, Spec};
use crate::error::Result;
use crate::nn::{DropPath, Init, Linear};

/// What a [`Net`] is built from.
#[derive(Clone, Copy, Debug)]
pub struct NetSpec {
    /// The backbone.
    pub spec: Spec,
    /// Side of the images in pixels.
    pub img_size: usize,
    /// Rows of the head: instance classes in pre-training, classes in fine-tuning.
    pub num_classes: usize,
    /// Output width of the projector, 0 = none.
    pub projector: usize,
    /// Whether the head has a bias.
    pub head_bias: bool,
}

impl NetSpec {
    /// Backbone and class head, as timm builds them.
    pub fn classifier(spec: Spec, img_size: usize, num_classes: usize) -> Self {
        Self { spec, img_size, num_classes, projector: 0, head_bias: true }
    }

    /// Freshly initialised.
    ///
    /// # Errors
    /// An img-size the backbone cannot take.
    pub fn build(&self, seed: u64, device: &Device) -> Result<Net> {
        let mut init = Init::new(seed, device);
        let backbone = self.spec.build(self.img_size, &mut init)?;
        let d = self.spec.num_features();
        let projector = (self.projector > 0).then(|| Projector {
            fc1: Linear::new(d, d, &mut init),
            fc2: Linear::new(d, self.projector, &mut init),
        });
        let width = if self.projector > 0 { self.projector } else { d };
        let head = match self.head_bias {
            true => Linear::new(width, self.num_classes, &mut init),
            false => Linear::without_bias(width, self.num_classes, &mut init),
        };
        Ok(Net { backbone, projector, head })
    }
}

/// Backbone, optional projector (Table 9) and one linear layer, named `head` in both stages.
#[derive(Module, Debug)]
pub struct Net {
    backbone: Backbone,
    projector: Option<Projector>,
    head: Linear,
}

/// `d -> d`, ReLU, `d -> width` (recipe section 4.7).
#[derive(Module, Debug)]
struct Projector {
    fc1: Linear,
    fc2: Linear,
}

impl Net {
    /// Images `[batch, 3, img_size, img_size]` to features `[batch, num_features]`.
    pub fn features(&self, images: Tensor<4>, drop_path: &DropPath) -> Tensor<2> {
        self.backbone.forward(images, drop_path)
    }

    /// Features `[batch, num_features]` to logits `[batch, num_classes]`.
    pub fn logits(&self, features: Tensor<2>) -> Tensor<2> {
        let x = match &self.projector {
            Some(p) => p.fc2.forward(relu(p.fc1.forward(features))),
            None => features,
        };
        self.head.forward(x)
    }
}
