//! A backbone with what is trained on top of it.

use burn::tensor::Tensor;

use super::Spec;
#[cfg(feature = "cuda")]
use crate::error::Error;
use crate::error::Result;
use crate::graph::{Graph, Pixels};
#[cfg(feature = "cuda")]
use crate::nn::Plan;
use crate::nn::{
    DropPath, Linear, LinearStart, Mlp, MlpSpec, Onnx, Outline, ParamSpec, Parameter, Reader, Taps,
    Tensors,
};

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
    /// The backbone alone, whose parameters are the first ones of the whole. What is on top of it can
    /// be as wide as there are images.
    pub fn without_heads(&self) -> Self {
        Self { heads: HeadSpec::default(), ..*self }
    }

    /// Backbone and class head, as timm builds them.
    pub fn classifier(spec: Spec, img_size: usize, num_classes: usize) -> Self {
        Self { spec, img_size, heads: HeadSpec::classifier(num_classes, true) }
    }

    /// Parameters, first values and costs of the whole.
    ///
    /// # Errors
    /// An img-size the backbone cannot take.
    pub fn outline(&self) -> Result<Outline> {
        self.spec.check_img_size(self.img_size)?;
        let mut outline = self.spec.outline(self.img_size);
        self.declare_heads(&mut outline);
        Ok(outline)
    }

    /// The places of all parameters in the flat vector.
    ///
    /// # Errors
    /// As [`Self::outline`].
    pub fn parameters(&self) -> Result<Vec<ParamSpec>> {
        self.outline().map(|outline| outline.parameters)
    }

    /// The ONNX file of backbone and `head` with the weights `values`: `pixels` to `logits` and
    /// `features`, for any batch; `metadata` goes into it. An MLP between the two stays out.
    pub fn onnx(&self, values: &[f32], pixels: Pixels, metadata: &[(&str, String)]) -> Vec<u8> {
        let mut graph = Graph::default();
        let images = graph.images(pixels, self.img_size);
        let mut r = Onnx::new(graph, values, images, self.img_size);
        let features = self.spec.family.onnx(&mut r, self.img_size);
        let head = self.declare_heads(&mut r).head;
        let logits = head.map(|head| r.linear(features.clone(), &head));
        let outputs = logits.iter().map(|logits| ("logits", logits));
        r.finish(&outputs.chain([("features", &features)]).collect::<Vec<_>>(), metadata)
    }

    /// The operations of the backbone and, `with_logits`, of what makes logits of its feature.
    ///
    /// # Errors
    /// An img-size that the backbone cannot take, or a backbone with operations of its own.
    #[cfg(feature = "cuda")]
    pub fn plan(&self, with_logits: bool) -> Result<NetPlan> {
        self.spec.check_img_size(self.img_size)?;
        let mut plan = Plan::new(self.img_size);
        let features = self.spec.family.plan(&mut plan, self.img_size).ok_or_else(|| {
            let name = self.spec.name;
            Error::Device(format!("{name} has operations that cuda does not know: --device cpu"))
        })?;
        let heads = self.declare_heads(&mut plan);
        let logits = with_logits.then(|| {
            let projected = heads.projector.iter().fold(features, |x, mlp| mlp.tell(&mut plan, x));
            heads.head.iter().fold(projected, |x, head| plan.linear(x, head))
        });
        Ok(NetPlan { plan, features, logits })
    }

    /// The heads, which follow the backbone.
    fn declare_heads<R: Reader>(&self, r: &mut R) -> Heads<R::Weight> {
        let HeadSpec { projector, predictor, num_classes, head_bias, head_start } = self.heads;
        let mut width = self.spec.num_features();
        let mut mlp = |r: &mut R, key: &str, spec: Option<MlpSpec>| {
            let mlp = spec.map(|spec| Mlp::new(r, key, &spec, width));
            width = spec.map_or(width, |spec| spec.out);
            mlp
        };
        let projector = mlp(r, "projector", projector);
        let predictor = mlp(r, "predictor", predictor);
        let sizes = [width, num_classes];
        let head =
            (num_classes > 0).then(|| Linear::starting(r, "head", sizes, head_start, head_bias));
        Heads { projector, predictor, head }
    }
}

/// A [`NetSpec`] as operations.
#[cfg(feature = "cuda")]
pub struct NetPlan {
    /// All of them.
    pub plan: Plan,
    /// Number of the feature.
    pub features: usize,
    /// Number of the logits, if they were asked for.
    pub logits: Option<usize>,
}

/// The layers of a [`HeadSpec`].
#[derive(Clone, Debug)]
struct Heads<W> {
    projector: Option<Mlp<W>>,
    predictor: Option<Mlp<W>>,
    head: Option<Linear<W>>,
}

/// Backbone, optional MLPs and an optional linear layer, named `head` in every stage, with their
/// weights on a device.
#[derive(Clone, Debug)]
pub struct Net {
    spec: NetSpec,
    /// Number of the backbone's parameters.
    of_backbone: usize,
    /// In the order of the flat vector.
    parameters: Vec<Parameter>,
    heads: Heads<Parameter>,
}

impl Net {
    /// `parameters` are those of [`NetSpec::parameters`], in their order.
    pub(super) fn new(spec: NetSpec, parameters: Vec<Parameter>) -> Self {
        let mut of_heads = Outline::default();
        spec.declare_heads(&mut of_heads);
        let of_backbone = parameters.len() - of_heads.parameters.len();
        Self::of(spec, of_backbone, parameters)
    }

    /// The same model over other tensors.
    pub(super) fn over(&self, parameters: Vec<Parameter>) -> Self {
        Self::of(self.spec, self.of_backbone, parameters)
    }

    fn of(spec: NetSpec, of_backbone: usize, parameters: Vec<Parameter>) -> Self {
        let heads = spec.declare_heads(&mut Tensors::declaring(&parameters[of_backbone..]));
        Self { spec, of_backbone, parameters, heads }
    }

    /// The parameters in the order of the flat vector.
    pub(super) fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Width of the backbone's feature.
    pub fn num_features(&self) -> usize {
        self.spec.spec.num_features()
    }

    /// Images `[batch, 3, img_size, img_size]`, normalised, to features `[batch, num_features]`.
    pub fn features(&self, images: Tensor<4>, drop_path: &DropPath) -> Tensor<2> {
        let mut r = Tensors::new(&self.parameters, images, drop_path);
        self.spec.spec.family.tensors(&mut r, self.spec.img_size)
    }

    /// [`Self::features`] with what is computed on the way.
    pub fn tapped(&self, images: Tensor<4>) -> (Tensor<2>, Taps) {
        let mut taps = Taps::default();
        let mut r = Tensors::new(&self.parameters, images, &DropPath::OFF).with_taps(&mut taps);
        let features = self.spec.spec.family.tensors(&mut r, self.spec.img_size);
        (features, taps)
    }

    /// Features `[batch, num_features]` through the projector, if there is one.
    pub fn projected(&self, features: Tensor<2>) -> Tensor<2> {
        self.heads.projector.iter().fold(features, |x, mlp| mlp.forward(x))
    }

    /// Projected features through the predictor, if there is one.
    pub fn predicted(&self, projected: Tensor<2>) -> Tensor<2> {
        self.heads.predictor.iter().fold(projected, |x, mlp| mlp.forward(x))
    }

    /// Features `[batch, num_features]` to logits `[batch, num_classes]`; without a head, to their
    /// projection.
    pub fn logits(&self, features: Tensor<2>) -> Tensor<2> {
        let x = self.projected(features);
        self.heads.head.iter().fold(x, |x, head| head.forward(x))
    }

    /// The rows of `head`, `[num_classes, width]`, each scaled to length 1 (DINO's prototypes).
    ///
    /// # Panics
    /// If the net has no head.
    pub fn prototypes(&self) -> Tensor<2> {
        let weight = self.heads.head.as_ref().expect("a head of prototypes").weight.two();
        let norms = weight.clone().square().sum_dim(1).sqrt();
        weight / norms
    }
}
