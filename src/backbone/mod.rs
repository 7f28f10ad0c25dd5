//! Backbones: one file a family, with a table of its members. A new family is its file, a line in
//! `TABLES` and a variant of [`Backbone`].

mod block;
pub mod deit;
mod net;
mod pos_embed;
pub mod pvt_v2;
pub mod t2t_vit;
mod token_module;

use burn::module::Module;
use burn::tensor::Tensor;

use crate::error::{Error, Result};
use crate::graph::{Graph, Value};
use crate::nn::{DropPath, Init, Keys};
pub use net::{HeadSpec, Net, NetSpec};
pub use pos_embed::resize_pos_embed;

/// A named model.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// timm's name where timm has the model, else the paper's.
    pub name: &'static str,
    /// The timm model that an export is loaded as, sizes given; none = timm has no such family.
    pub timm_name: Option<&'static str>,
    /// Its sizes.
    pub family: &'static dyn Family,
}

/// The sizes of one member of a family, and what follows from them.
pub trait Family: std::fmt::Debug + Sync {
    /// Width of the feature.
    fn num_features(&self) -> usize;

    /// The sides of images that it takes.
    fn img_sizes(&self) -> ImgSizes;

    /// Multiply-accumulates of one forward pass of one image, without the head (recipe section
    /// 5.6: convolutions, linear layers and attention products).
    fn macs(&self, img_size: usize) -> u64;

    /// Those of the layer that reads the pixels, whose input needs no gradient.
    fn stem_macs(&self, img_size: usize) -> u64;

    /// Values that are kept between forward and backward for one image, roughly.
    fn activations(&self, img_size: usize) -> usize;

    /// The arguments that make timm's model this one.
    fn timm_args(&self, img_size: usize) -> serde_json::Value;

    /// A freshly initialised backbone; `img_size` is one it takes.
    fn build(&self, img_size: usize, init: &mut Init) -> Backbone;
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
    const fn new(name: &'static str, family: &'static dyn Family) -> Self {
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

    /// Multiply-accumulates of one forward pass of one image, without the head.
    pub fn macs(&self, img_size: usize) -> u64 {
        self.family.macs(img_size)
    }

    /// Matrix-product operations of one training step of one image: two a multiply-accumulate in the
    /// forward pass, four in the backward, less the gradient of the pixels, which nobody needs.
    pub fn train_flops(&self, img_size: usize) -> u64 {
        6 * self.macs(img_size) - 2 * self.family.stem_macs(img_size)
    }

    /// Parameters without a head, at an img-size (position embeddings depend on it).
    pub fn num_params(&self, img_size: usize) -> usize {
        let backbone = self.family.build(img_size, &mut Init::shapes());
        Keys::of(&backbone).last().map_or(0, |last| last.range.end)
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

    /// A freshly initialised backbone for square images of `img_size` pixels.
    ///
    /// # Errors
    /// An img-size that [`Self::check_img_size`] refuses.
    pub fn build(&self, img_size: usize, init: &mut Init) -> Result<Backbone> {
        self.check_img_size(img_size)?;
        Ok(self.family.build(img_size, init))
    }
}

/// A backbone of any family.
// One exists at a time, and its parts live on the heap.
#[expect(clippy::large_enum_variant)]
#[derive(Module, Debug)]
pub enum Backbone {
    /// Plain vision transformer.
    Deit(deit::Deit),
    /// Pyramid vision transformer.
    PvtV2(pvt_v2::PvtV2),
    /// Tokens-to-token vision transformer.
    T2tVit(t2t_vit::T2tVit),
}

impl Backbone {
    /// Images to features: `[batch, 3, img_size, img_size]` to `[batch, num_features]`.
    pub fn forward(&self, images: Tensor<4>, drop_path: &DropPath) -> Tensor<2> {
        match self {
            Self::Deit(deit) => deit.forward(images, drop_path),
            Self::PvtV2(pvt) => pvt.forward(images, drop_path),
            Self::T2tVit(t2t) => t2t.forward(images, drop_path),
        }
    }

    /// [`Self::forward`] in ONNX operators, for images of `img_size` pixels.
    pub fn graph(&self, g: &mut Graph, images: &Value, img_size: usize) -> Value {
        match self {
            Self::Deit(deit) => deit.graph(g, images),
            Self::PvtV2(pvt) => pvt.graph(g, images, img_size),
            Self::T2tVit(t2t) => t2t.graph(g, images, img_size),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Gather;
    use burn::tensor::Device;

    /// Model, img-size, parameters without a head, and multiply-accumulates.
    const COSTS: &[(&str, usize, usize, u64)] = &[
        // Recipe sections 5.1, 5.2 and 5.6.
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
        // Section 5.3, less the heads of 1000 classes; with the frozen values.
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
    fn parameter_counts_and_macs_are_the_recipes() {
        for &(name, img_size, params, macs) in COSTS {
            let spec = Spec::find(name).expect(name);
            assert_eq!(spec.num_params(img_size), params, "{name} at {img_size}");
            // The recipe's table has four decimals of 10^9; its exact values are longer.
            let seen = spec.macs(img_size);
            let equal = if macs.is_multiple_of(100_000) {
                (seen + 50_000) / 100_000 * 100_000 == macs
            } else {
                seen == macs
            };
            assert!(equal, "{name} at {img_size}: {seen}, not {macs}");
        }
        // Of the linear variant the recipe gives parameters only.
        assert_eq!(Spec::find("pvt_v2_b2_li").expect("li").num_params(112), 22_040_512);
    }

    #[test]
    fn counted_parameters_are_those_of_a_built_model() {
        for name in ["deit_tiny_patch16_224", "pvt_v2_b0", "t2t_vit_7"] {
            let spec = Spec::find(name).expect(name);
            let backbone = spec.build(112, &mut Init::new(0, &Device::flex())).expect(name);
            assert_eq!(Gather::of(&backbone).len(), spec.num_params(112), "{name}");
        }
    }

    #[test]
    fn what_is_not_trained_is_marked() {
        // Recipe section 5.3, less the heads of 1000 classes.
        for (name, trained) in
            [("t2t_vit_7", 3_998_694), ("t2t_vit_14", 21_080_806), ("t2t_vit_t_14", 21_080_422)]
        {
            let spec = Spec::find(name).expect(name);
            let keys = Keys::of(&spec.build(112, &mut Init::shapes()).expect(name));
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
}
