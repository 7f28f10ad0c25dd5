//! Backbones: one file a family, with a table of its members.

pub mod deit;
mod net;
mod pos_embed;

use burn::module::Module;
use burn::tensor::Tensor;

use crate::error::{Error, Result};
use crate::nn::{DropPath, Init};
pub use net::{HeadSpec, Net, NetSpec};
pub use pos_embed::resize_pos_embed;

/// A named model.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// timm's name.
    pub name: &'static str,
    /// Its sizes.
    pub family: Family,
}

/// Sizes by family.
#[derive(Clone, Copy, Debug)]
pub enum Family {
    /// Plain vision transformer.
    Deit(deit::DeitSpec),
}

/// Every family's table.
const TABLES: &[&[Spec]] = &[deit::TABLE];

impl Spec {
    /// `sizes`: embed_dim, depth, num_heads, patch_size.
    const fn deit(name: &'static str, sizes: [usize; 4]) -> Self {
        let [embed_dim, depth, num_heads, patch_size] = sizes;
        let sizes = deit::DeitSpec { embed_dim, depth, num_heads, patch_size };
        Self { name, family: Family::Deit(sizes) }
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

    /// Width of the feature, `embed_dim`.
    pub fn num_features(&self) -> usize {
        let Family::Deit(sizes) = self.family;
        sizes.embed_dim
    }

    /// Side of a patch; img-sizes are multiples of it.
    pub fn patch_size(&self) -> usize {
        let Family::Deit(sizes) = self.family;
        sizes.patch_size
    }

    /// Multiply-accumulates of one forward pass of one image, without the head.
    pub fn macs(&self, img_size: usize) -> u64 {
        let Family::Deit(sizes) = self.family;
        sizes.macs(img_size)
    }

    /// Matrix-product operations of one training step of one image: two a multiply-accumulate in the
    /// forward pass, four in the backward, less the gradient of the pixels, which nobody needs.
    pub fn train_flops(&self, img_size: usize) -> u64 {
        let Family::Deit(sizes) = self.family;
        6 * self.macs(img_size) - 2 * sizes.stem_macs(img_size)
    }

    /// Parameters without a head, at an img-size (position embeddings depend on it).
    pub fn num_params(&self, img_size: usize) -> usize {
        let Family::Deit(s) = self.family;
        let (d, p) = (s.embed_dim, s.patch_size);
        let tokens = (img_size / p).pow(2) + 1;
        (3 * p * p + 1) * d + d + tokens * d + s.depth * (12 * d * d + 13 * d) + 2 * d
    }

    /// A freshly initialised backbone for square images of `img_size` pixels.
    ///
    /// # Errors
    /// An img-size that is not a multiple of the patch.
    pub fn build(&self, img_size: usize, init: &mut Init) -> Result<Backbone> {
        let patch = self.patch_size();
        if img_size == 0 || !img_size.is_multiple_of(patch) {
            return Err(Error::Usage(format!(
                "{} takes images whose side is a multiple of {patch}; {img_size} is not",
                self.name
            )));
        }
        let Family::Deit(sizes) = &self.family;
        Ok(Backbone::Deit(deit::Deit::new(sizes, img_size, init)))
    }
}

/// A backbone of any family.
#[derive(Module, Debug)]
pub enum Backbone {
    /// Plain vision transformer.
    Deit(deit::Deit),
}

impl Backbone {
    /// Images to features: `[batch, 3, img_size, img_size]` to `[batch, num_features]`.
    pub fn forward(&self, images: Tensor<4>, drop_path: &DropPath) -> Tensor<2> {
        match self {
            Self::Deit(deit) => deit.forward(images, drop_path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Keys;
    use burn::tensor::Device;

    #[test]
    fn parameter_counts_and_macs_are_the_recipes() {
        // Recipe sections 5.1 and 5.6.
        let counts = [
            ("deit_tiny_patch16_224", 112, 5_496_192),
            ("deit_tiny_patch16_224", 224, 5_524_416),
            ("deit_small_patch16_224", 112, 21_609_216),
        ];
        for (name, img_size, expected) in counts {
            let spec = Spec::find(name).expect(name);
            let backbone = spec.build(img_size, &mut Init::new(0, &Device::flex())).expect(name);
            let last = Keys::of(&backbone).last().expect("parameters").range.end;
            assert_eq!((last, spec.num_params(img_size)), (expected, expected), "{name}");
        }
        let macs = |name, size| Spec::find(name).expect(name).macs(size);
        assert_eq!(macs("deit_tiny_patch16_224", 112), 284_166_144);
        assert_eq!(macs("deit_tiny_patch16_224", 224), 1_253_491_200);
    }

    #[test]
    fn an_unknown_name_suggests_a_known_one() {
        let error = Spec::find("deit_tiny").expect_err("no such model");
        assert!(error.to_string().contains("did you mean `deit_tiny_patch16_224`"), "{error}");
        assert_eq!(error.exit_code(), 2);
    }
}
