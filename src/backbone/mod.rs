//! Backbones: one file a family, which tells the model once and lists its members. A new family is its
//! file and a line in `TABLES`.

pub mod deit;
mod net;
mod pos_embed;
pub mod pvt_v2;
pub mod t2t_vit;
#[cfg(test)]
pub(crate) mod tiny;
mod token_module;
mod weights;

use std::fmt::Debug;

use burn::tensor::Tensor;

use crate::error::{Error, Result};
#[cfg(feature = "cuda")]
use crate::nn::Plan;
use crate::nn::readers::onnx::Node;
use crate::nn::{Onnx, Outline, Reader, Tensors};
#[cfg(feature = "cuda")]
pub use net::NetPlan;
pub use net::{HeadSpec, Net, NetSpec};
pub use pos_embed::resize_pos_embed;
pub use weights::Weights;

/// A named model.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// timm's name where timm has the model, else the paper's.
    pub name: &'static str,
    /// The timm model that an export is loaded as, sizes given; none = timm has no such family.
    pub timm_name: Option<&'static str>,
    /// Its sizes.
    pub family: &'static dyn Told,
}

/// The sizes of one member of a family.
pub trait Family: Debug + Sync {
    /// Width of the feature.
    fn num_features(&self) -> usize;

    /// The sides of images that it takes.
    fn img_sizes(&self) -> ImgSizes;

    /// The arguments that make timm's model this one.
    fn timm_args(&self, img_size: usize) -> serde_json::Value;
}

/// A [`Family`] that tells its model to any reader.
pub trait Tell: Family {
    /// The model for square images of `img_size` pixels, told to a reader: images to one feature each,
    /// `[batch, num_features]`. The order in which it declares parameters is that of checkpoints.
    fn tell<R: Reader>(&self, r: &mut R, img_size: usize) -> R::Value;
}

/// A [`Family`] behind a pointer, which tells its model to each of the readers there are.
pub trait Told: Family {
    /// See [`Tensors`].
    fn tensors(&self, r: &mut Tensors, img_size: usize) -> Tensor<2>;
    /// See [`Onnx`].
    fn onnx(&self, r: &mut Onnx, img_size: usize) -> Node;
    /// See [`Outline`].
    fn outline(&self, r: &mut Outline, img_size: usize);
    /// See [`Plan`]; the feature's number. None for a family with operations of its own.
    #[cfg(feature = "cuda")]
    fn plan(&self, _: &mut Plan, _img_size: usize) -> Option<usize> {
        None
    }
}

impl<F: Tell> Told for F {
    fn tensors(&self, r: &mut Tensors, img_size: usize) -> Tensor<2> {
        self.tell(r, img_size)
    }

    fn onnx(&self, r: &mut Onnx, img_size: usize) -> Node {
        self.tell(r, img_size)
    }

    fn outline(&self, r: &mut Outline, img_size: usize) {
        self.tell(r, img_size);
    }

    #[cfg(feature = "cuda")]
    fn plan(&self, r: &mut Plan, img_size: usize) -> Option<usize> {
        Some(self.tell(r, img_size))
    }
}

/// Sides of images, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImgSizes {
    /// The smallest.
    pub smallest: usize,
    /// All are multiples of this.
    pub multiple_of: usize,
}

/// Every family's table.
const TABLES: &[&[Spec]] = &[deit::TABLE, pvt_v2::TABLE, t2t_vit::TABLE];

impl Spec {
    /// A model that timm knows by the same name.
    const fn new(name: &'static str, family: &'static dyn Told) -> Self {
        Self { name, timm_name: Some(name), family }
    }

    /// The model called `name`.
    ///
    /// # Errors
    /// Unknown names, with the closest known one.
    pub fn find(name: &str) -> Result<Self> {
        if let Some(spec) = Self::all().find(|spec| spec.name == name) {
            return Ok(spec);
        }
        let known: Vec<_> = Self::all().map(|spec| spec.name).collect();
        let near = known
            .iter()
            .max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)));
        Err(Error::Usage(format!(
            "there is no model `{name}`; did you mean `{}`?\n  known models: {}",
            near.unwrap_or(&""),
            known.join(", ")
        )))
    }

    /// All models.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLES.iter().flat_map(|table| table.iter().copied())
    }

    /// Width of the feature.
    pub fn num_features(&self) -> usize {
        self.family.num_features()
    }

    /// What the model without a head consists of and costs at an img-size that it takes.
    pub fn outline(&self, img_size: usize) -> Outline {
        let mut outline = Outline::new(img_size);
        self.family.outline(&mut outline, img_size);
        outline
    }

    /// Multiply-accumulates of one forward pass of one image, without the head.
    pub fn macs(&self, img_size: usize) -> u64 {
        self.outline(img_size).macs as u64
    }

    /// Matrix-product operations of one training step of one image: two a multiply-accumulate in the
    /// forward pass, four in the backward, less the gradient of the pixels, which nobody needs.
    pub fn train_flops(&self, img_size: usize) -> u64 {
        let outline = self.outline(img_size);
        6 * outline.macs as u64 - 2 * outline.stem_macs as u64
    }

    /// Parameters without a head, at an img-size (position embeddings depend on it).
    pub fn num_params(&self, img_size: usize) -> usize {
        self.outline(img_size).num_params()
    }

    /// Whether the model takes square images of `img_size` pixels.
    ///
    /// # Errors
    /// It does not; the message says which it takes.
    pub fn check_img_size(&self, img_size: usize) -> Result<()> {
        let ImgSizes { smallest, multiple_of } = self.family.img_sizes();
        if img_size >= smallest && img_size.is_multiple_of(multiple_of) {
            return Ok(());
        }
        let wanted = match multiple_of {
            1 => format!("of {smallest} pixels or more"),
            _ => format!("whose side is a multiple of {multiple_of}"),
        };
        Err(Error::Usage(format!("{} takes images {wanted}; {img_size} is not", self.name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Model, img-size, parameters without a head, and multiply-accumulates.
    const COSTS: &[(&str, usize, usize, u64)] = &[
        // Parameters of timm's models; multiply-accumulates by a formula that a counter of operations confirmed.
        ("deit_tiny_patch16_224", 112, 5_496_192, 284_166_144),
        ("deit_tiny_patch16_224", 224, 5_524_416, 1_253_491_200),
        ("deit_small_patch16_224", 112, 21_609_216, 1_099_200_000),
        ("deit_base_patch16_224", 448, 86_250_240, 78_494_400_000),
        ("pvt_v2_b0_small", 112, 870_320, 37_780_672),
        ("pvt_v2_b0_small", 224, 870_320, 160_876_800),
        ("pvt_v2_b0", 112, 3_409_760, 139_257_216),
        ("pvt_v2_b0", 224, 3_409_760, 565_809_664),
        ("pvt_v2_b1", 112, 13_496_000, 533_300_000),
        ("pvt_v2_b1", 224, 13_496_000, 2_107_800_000),
        ("pvt_v2_b1", 448, 13_496_000, 9_346_000_000),
        ("pvt_v2_b2", 224, 24_849_856, 4_026_200_000),
        ("pvt_v2_b3", 112, 44_725_696, 1_679_200_000),
        ("pvt_v2_b4", 448, 62_043_072, 44_134_600_000),
        ("pvt_v2_b5", 224, 81_443_008, 11_716_700_000),
        // The official T2T-ViT, less the heads of 1000 classes; with the frozen values.
        ("t2t_vit_7", 112, 4_310_222 - 257_000 - 147 * 256, 263_591_552),
        ("t2t_vit_7", 224, 4_310_222 - 257_000, 1_146_607_616),
        ("t2t_vit_10", 224, 5_889_230 - 257_000, 1_516_100_000),
        ("t2t_vit_12", 224, 6_941_902 - 257_000, 1_762_400_000),
        ("t2t_vit_14", 224, 21_545_550 - 385_000, 4_783_100_000),
        ("t2t_vit_19", 224, 39_177_422 - 449_000, 8_479_200_000),
        ("t2t_vit_24", 224, 64_105_934 - 513_000, 13_661_400_000),
        ("t2t_vit_t_14", 112, 21_541_070 - 385_000 - 147 * 384, 1_209_349_120),
        ("t2t_vit_t_14", 224, 21_541_070 - 385_000, 6_088_337_920),
        ("t2t_vit_t_19", 224, 39_172_942 - 449_000, 9_784_500_000),
        ("t2t_vit_t_24", 224, 64_101_454 - 513_000, 14_966_600_000),
    ];

    #[test]
    fn parameter_counts_and_macs_are_those_of_the_originals() {
        for &(name, img_size, params, macs) in COSTS {
            let spec = Spec::find(name).expect(name);
            assert_eq!(spec.num_params(img_size), params, "{name} at {img_size}");
            // Rounded numbers have four decimals of 10^9; the others are exact.
            let seen = spec.macs(img_size);
            let equal = if macs.is_multiple_of(100_000) {
                (seen + 50_000) / 100_000 * 100_000 == macs
            } else {
                seen == macs
            };
            assert!(equal, "{name} at {img_size}: {seen}, not {macs}");
        }
        // Of the linear variant only the parameters are known.
        assert_eq!(Spec::find("pvt_v2_b2_li").expect("li").num_params(112), 22_040_512);
    }

    #[test]
    fn what_is_not_trained_is_marked() {
        // The official T2T-ViT, less the heads of 1000 classes.
        for (name, trained) in
            [("t2t_vit_7", 3_998_694), ("t2t_vit_14", 21_080_806), ("t2t_vit_t_14", 21_080_422)]
        {
            let spec = Spec::find(name).expect(name);
            let keys = spec.outline(112).parameters;
            let counted = keys.iter().filter(|key| !key.frozen).map(|key| key.range.len());
            assert_eq!(counted.sum::<usize>(), trained, "{name}");
            let frozen: Vec<_> = keys.iter().filter(|key| key.frozen).map(|k| &*k.key).collect();
            let features = ["tokens_to_token.attention1.w", "tokens_to_token.attention2.w"];
            let expected = match name {
                "t2t_vit_t_14" => vec!["pos_embed"],
                _ => [&features[..], &["pos_embed"]].concat(),
            };
            assert_eq!(frozen, expected, "{name}");
        }
    }

    #[test]
    fn an_img_size_it_cannot_take_is_refused_with_those_it_can() {
        let spec = Spec::find("deit_tiny_patch16_224").expect("a model");
        assert!(spec.check_img_size(112).is_ok());
        for img_size in [0, 8, 100] {
            let error = spec.check_img_size(img_size).expect_err("not a multiple of the patch");
            assert!(error.to_string().contains("a multiple of 16"), "{error}");
            assert_eq!(error.exit_code(), 2);
        }
    }

    #[test]
    fn an_unknown_name_suggests_a_known_one() {
        let error = Spec::find("deit_tiny").expect_err("no such model");
        assert!(error.to_string().contains("did you mean `deit_tiny_patch16_224`"), "{error}");
        assert_eq!(error.exit_code(), 2);
    }

    /// Attention that is looked at is that of the model: its rows are shares, and with the branches
    /// computed layer by layer the features stay.
    #[test]
    fn taps_show_the_way_and_change_nothing() {
        // Model, blocks, attentions by softmax, and the shape of the first and the last one.
        for (name, blocks, attentions, first, last) in [
            ("deit_tiny_patch16_224", 12, 12, [2, 3, 17, 17], [2, 3, 1, 17]),
            ("pvt_v2_b0", 8, 8, [2, 1, 256, 4], [2, 8, 4, 4]),
            ("t2t_vit_7", 7, 7, [2, 4, 17, 17], [2, 4, 1, 17]),
        ] {
            let net = NetSpec::classifier(Spec::find(name).expect(name), 64, 3);
            let values = net.outline().expect(name).draw(5);
            let weights = Weights::new(&net, values, &crate::ops::cpu()).expect(name);
            let pixels = (0..2 * 3 * 64 * 64).map(|i| (i * 37 % 19) as f32 / 9.0 - 1.0).collect();
            let pixels = burn::tensor::TensorData::new::<f32, _>(pixels, [2, 3, 64, 64]);
            let images = Tensor::from_data(pixels, &crate::ops::cpu());
            let plain = weights.net.features(images.clone(), &crate::nn::DropPath::OFF);
            let (features, taps) = weights.net.tapped(images);
            let apart = (features - plain).abs().max().into_scalar::<f32>();
            assert!(apart < 1e-4, "{name}: {apart}");
            assert_eq!((taps.tokens.len(), taps.attention.len()), (blocks, attentions), "{name}");
            let shape = |tensor: Option<&Tensor<4>>| tensor.expect(name).dims();
            assert_eq!(shape(taps.attention.first()), first, "{name}");
            assert_eq!(shape(taps.attention.last()), last, "{name}");
            for shares in taps.attention {
                let off = (shares.sum_dim(3) - 1.0).abs().max().into_scalar::<f32>();
                assert!(off < 1e-5, "{name}: {off}");
            }
        }
    }
}
