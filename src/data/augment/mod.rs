//! Random views of one image: crop, flip, colour jitter, grayscale, blur, RandAugment, erasing.
//!
//! [`Op`] and the functions of `resize` compute with explicit parameters what PIL computes;
//! [`Augment`] draws the parameters, a [`DrawnView`].

mod blur;
mod color;
mod erasing;
mod eval_view;
mod geometry;
mod op;
mod rand_augment;
mod resize;
mod view;

use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::Rgb8;
use crate::config::{AugmentConfig, Interpolation};

pub use blur::ExtendedBox;
pub use eval_view::eval_view;
pub use geometry::{CUTOUT, Rotation};
pub use op::Op;
pub use resize::{CropBox, random_resized_crop_box, resize, resize_lanczos, rows_first};
pub use view::DrawnView;

/// The order in which the operations follow the crop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AugmentOrder {
    /// Flip, jitter, grayscale, blur, solarisation, RandAugment, erasing: the order of the official
    /// pre-training code, which has none of the last three.
    Pretrain,
    /// Jitter, grayscale, RandAugment, flip, blur, solarisation, erasing: the order of the official
    /// fine-tuning code, which has none of the last three.
    Finetune,
}

/// Values from here on are inverted by solarisation, as in MoCo v3 and DINO.
const SOLARIZE_THRESHOLD: f64 = 128.0;

#[derive(Clone, Copy)]
enum Step {
    Flip,
    Jitter,
    Grayscale,
    Blur,
    Solarize,
    RandAugment,
    Erase,
}

impl AugmentOrder {
    fn steps(self) -> [Step; 7] {
        use Step::*;
        match self {
            Self::Pretrain => [Flip, Jitter, Grayscale, Blur, Solarize, RandAugment, Erase],
            Self::Finetune => [Jitter, Grayscale, RandAugment, Flip, Blur, Solarize, Erase],
        }
    }
}

/// Draws augmented square crops.
#[derive(Clone, Debug)]
pub struct Augment {
    config: AugmentConfig,
    scale: [f64; 2],
    img_size: usize,
    order: AugmentOrder,
}

impl Augment {
    /// Crops of `img_size` pixels that show a share of the image within `scale`.
    pub fn new(
        config: &AugmentConfig,
        scale: [f64; 2],
        img_size: usize,
        order: AugmentOrder,
    ) -> Self {
        Self { config: config.clone(), scale, img_size, order }
    }

    /// Side of the crops in pixels.
    pub fn img_size(&self) -> usize {
        self.img_size
    }

    /// How enlarged and shrunk crops are interpolated.
    pub fn interpolation(&self) -> Interpolation {
        self.config.interpolation
    }

    /// One random view of `image`, `[img_size, img_size, 3]`.
    pub fn apply(&self, image: &Rgb8, rng: &mut ChaCha8Rng) -> Rgb8 {
        let view = self.draw((image.width, image.height), rng);
        view.of(image, self.img_size, self.config.interpolation)
    }

    /// Draws the view of an image of `width` and `height` pixels.
    pub fn draw(&self, (width, height): (usize, usize), rng: &mut ChaCha8Rng) -> DrawnView {
        let config = &self.config;
        let area = random_resized_crop_box(rng, width, height, self.scale, config.ratio);
        let mut ops = Vec::new();
        for step in self.order.steps() {
            match step {
                Step::Flip if chance(rng, config.hflip) => ops.push(Op::HorizontalFlip),
                Step::Jitter if chance(rng, config.color_jitter_prob) => {
                    ops.extend(color_jitter(config.color_jitter, rng));
                }
                Step::Grayscale if chance(rng, config.grayscale) => ops.push(Op::Grayscale),
                Step::Blur if chance(rng, config.blur) => {
                    ops.push(Op::GaussianBlur(uniform(rng, config.blur_sigma)));
                }
                Step::Solarize if config.solarize > 0.0 && chance(rng, config.solarize) => {
                    ops.push(Op::Solarize(SOLARIZE_THRESHOLD));
                }
                Step::RandAugment if config.rand_augment => {
                    ops.extend(rand_augment::draw(self.img_size, rng));
                }
                Step::Erase if config.erasing > 0.0 && chance(rng, config.erasing) => {
                    ops.extend(erasing::draw(self.img_size, rng));
                }
                _ => {}
            }
        }
        DrawnView { area, ops }
    }
}

/// Brightness, contrast, saturation and hue changes of the given strengths, in random order.
fn color_jitter(strength: [f64; 4], rng: &mut ChaCha8Rng) -> impl Iterator<Item = Op> {
    let [brightness, contrast, saturation, hue] = strength;
    let mut factor = |v: f64| uniform(rng, [(1.0 - v).max(0.0), 1.0 + v]);
    let mut ops = [
        (brightness, Op::Brightness(factor(brightness))),
        (contrast, Op::Contrast(factor(contrast))),
        (saturation, Op::Saturation(factor(saturation))),
        (hue, Op::Hue(uniform(rng, [-hue, hue]))),
    ];
    ops.shuffle(rng);
    ops.into_iter().filter(|(strength, _)| *strength > 0.0).map(|(_, op)| op)
}

/// A number in `[low, high)`, or `low` where the two are equal.
fn uniform(rng: &mut ChaCha8Rng, [low, high]: [f64; 2]) -> f64 {
    low + (high - low) * rng.random::<f64>()
}

/// A whole number in `0..n`; `n` is at least 1.
fn uniform_index(rng: &mut ChaCha8Rng, n: usize) -> usize {
    rng.random_range(0..n)
}

fn chance(rng: &mut ChaCha8Rng, probability: f64) -> bool {
    rng.random::<f64>() < probability
}

#[cfg(test)]
mod golden {
    //! Images that PIL computed: tests/golden/augment_*.safetensors.

    use super::Rgb8;
    use std::collections::BTreeMap;

    pub(super) fn read(file: &str) -> BTreeMap<String, Rgb8> {
        let root = env!("CARGO_MANIFEST_DIR");
        let bytes = std::fs::read(format!("{root}/tests/golden/{file}.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let image = |tensor: safetensors::tensor::TensorView| Rgb8 {
            width: tensor.shape()[1],
            height: tensor.shape()[0],
            pixels: tensor.data().to_vec(),
        };
        let named = tensors.iter().map(|(name, tensor)| (name.to_owned(), image(tensor)));
        named.collect()
    }

    /// The made-up image of a size such as `30x20`, the same as in tests/golden/augment.py.
    pub(super) fn pattern(size: &str) -> Rgb8 {
        let (width, height) = size.split_once('x').expect("WIDTHxHEIGHT");
        let mut image = Rgb8::new(width.parse().unwrap(), height.parse().unwrap());
        for (i, value) in image.pixels.iter_mut().enumerate() {
            let (c, x, y) = (i % 3, i / 3 % image.width, i / 3 / image.width);
            *value = ((31 * x * x + 57 * y * y + 13 * x * y + 101 * c + 7 * x) % 256) as u8;
        }
        image
    }

    /// Every `step`-th pixel of every `step`-th row.
    pub(super) fn every(image: &Rgb8, step: usize) -> Rgb8 {
        let [width, height] = [image.width, image.height].map(|side| side.div_ceil(step));
        let row = |y: usize| {
            let row = &image.pixels[y * step * image.width * 3..][..image.width * 3];
            row.chunks(3).step_by(step).flatten().copied()
        };
        Rgb8 { width, height, pixels: (0..height).flat_map(row).collect() }
    }

    /// Largest and mean difference in grey levels.
    pub(super) fn difference(a: &Rgb8, b: &Rgb8) -> (u8, f64) {
        assert_eq!((a.width, a.height), (b.width, b.height));
        let each = || a.pixels.iter().zip(&b.pixels).map(|(a, b)| a.abs_diff(*b));
        let sum: u64 = each().map(u64::from).sum();
        (each().max().unwrap(), sum as f64 / a.pixels.len() as f64)
    }
}
