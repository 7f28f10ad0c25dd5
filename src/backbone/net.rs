//! A backbone with what is trained on top of it.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::{Backbone, Spec};
use crate::error::Result;
use crate::graph::{Graph, Pixels};
use crate::nn::{DropPath, Init, Keys, Linear, LinearStart, Mlp, MlpSpec};

/// What is trained on top of a backbone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadSpec {
    /// After the feature.
    pub projector: Option<MlpSpec>,
    /// After the projector, in the trained model only (MoCo v3).
    pub predictor: Option<MlpSpec>,
    /// Rows of the linear layer `head`: instance classes, classes or prototypes; 0 = no such layer.
    pub num_classes: usize,
    /// Whether that layer has a bias.
    pub head_bias: bool,
    /// How that layer starts.
    pub head_start: LinearStart,
}

impl Default for HeadSpec {
    /// Nothing.
    fn default() -> Self {
        let (projector, predictor, head_start) = (None, None, LinearStart::Normal);
        Self { projector, predictor, num_classes: 0, head_bias: false, head_start }
    }
}

impl HeadSpec {
    /// One linear layer.
    pub fn classifier(num_classes: usize, head_bias: bool) -> Self {
        Self { num_classes, head_bias, ..Self::default() }
    }
}

/// What a [`Net`] is built from.
#[derive(Clone, Copy, Debug)]
pub struct NetSpec {
    /// The backbone.
    pub spec: Spec,
    /// Side of the images in pixels.
    pub img_size: usize,
    /// What comes after it.
    pub heads: HeadSpec,
}

impl NetSpec {
    /// Backbone and class head, as timm builds them.
    pub fn classifier(spec: Spec, img_size: usize, num_classes: usize) -> Self {
        Self { spec, img_size, heads: HeadSpec::classifier(num_classes, true) }
    }

    /// Freshly initialised.
    ///
    /// # Errors
    /// An img-size the backbone cannot take.
    pub fn build(&self, seed: u64, device: &Device) -> Result<Net> {
        let mut init = Init::new(seed, device);
        let backbone = self.spec.build(self.img_size, &mut init)?;
        let num_features = self.spec.num_features();
        let mut width = num_features;
        let mut mlp = |spec: Option<MlpSpec>, init: &mut Init| {
            let mlp = spec.map(|spec| Mlp::new(&spec, width, init));
            width = spec.map_or(width, |spec| spec.out);
            mlp
        };
        let projector = mlp(self.heads.projector, &mut init);
        let predictor = mlp(self.heads.predictor, &mut init);
        let HeadSpec { num_classes, head_bias: bias, head_start, .. } = self.heads;
        let head = (num_classes > 0)
            .then(|| Linear::starting(head_start, [width, num_classes], bias, &mut init));
        Ok(Net { backbone, projector, predictor, head, num_features })
    }
}

/// Backbone, optional MLPs and an optional linear layer, named `head` in every stage.
#[derive(Module, Debug)]
pub struct Net {
    backbone: Backbone,
    projector: Option<Mlp>,
    predictor: Option<Mlp>,
    head: Option<Linear>,
    num_features: usize,
}

impl Net {
    /// The backbone alone. What is on top of it can be as wide as there are images.
    pub fn without_heads(self) -> Self {
        Self { projector: None, predictor: None, head: None, ..self }
    }

    /// Width of the backbone's feature.
    pub fn num_features(&self) -> usize {
        self.num_features
    }

    /// Images `[batch, 3, img_size, img_size]` to features `[batch, num_features]`.
    pub fn features(&self, images: Tensor<4>, drop_path: &DropPath) -> Tensor<2> {
        self.backbone.forward(images, drop_path)
    }

    /// Features `[batch, num_features]` through the projector, if there is one.
    pub fn projected(&self, features: Tensor<2>) -> Tensor<2> {
        self.projector.iter().fold(features, |x, mlp| mlp.forward(x))
    }

    /// Projected features through the predictor, if there is one.
    pub fn predicted(&self, projected: Tensor<2>) -> Tensor<2> {
        self.predictor.iter().fold(projected, |x, mlp| mlp.forward(x))
    }

    /// Features `[batch, num_features]` to logits `[batch, num_classes]`; without a head, to their
    /// projection.
    pub fn logits(&self, features: Tensor<2>) -> Tensor<2> {
        let x = self.projected(features);
        self.head.iter().fold(x, |x, head| head.forward(x))
    }

    /// The ONNX file of backbone and `head`: `pixels` to `logits` and `features`, for images of
    /// `img_size` pixels and any batch; `metadata` goes into it. An MLP between the two stays out.
    pub fn onnx(&self, img_size: usize, pixels: Pixels, metadata: &[(&str, String)]) -> Vec<u8> {
        let mut g = Graph::new(Keys::by_id(self));
        let images = g.images(pixels, img_size);
        let features = self.backbone.graph(&mut g, &images, img_size);
        let logits = self
            .head
            .as_ref()
            .map(|head| ("logits", head.graph(&mut g, &features), head.weight.val().dims()[0]));
        let features = ("features", features, self.num_features);
        let outputs: Vec<_> =
            logits.iter().chain([&features]).map(|(n, v, w)| (*n, v, *w)).collect();
        g.finish(&outputs, metadata)
    }

    /// The rows of `head`, `[num_classes, width]`, each scaled to length 1 (DINO's prototypes).
    ///
    /// # Panics
    /// If the net has no head.
    pub fn prototypes(&self) -> Tensor<2> {
        let weight = self.head.as_ref().expect("a head of prototypes").weight.val();
        let norms = weight.clone().square().sum_dim(1).sqrt();
        weight / norms
    }
}
