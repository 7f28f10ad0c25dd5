//! The augmentation operations with explicit parameters: no randomness here.

use super::resize::CropBox;
use super::{blur, color, erasing, geometry};
use crate::data::Rgb8;

/// One operation on an 8-bit image, as PIL computes it.
///
/// Factors of 1 leave the image as it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Op {
    /// Mirrors left and right.
    HorizontalFlip,
    /// Blends with black by a factor.
    Brightness(f64),
    /// Blends with the mean luma by a factor.
    Contrast(f64),
    /// Blends with the grayscale image by a factor (PIL's and RandAugment's "Color").
    Saturation(f64),
    /// Turns the hue by a share of the circle, -0.5 to 0.5.
    Hue(f64),
    /// Luma in all three channels.
    Grayscale,
    /// Blurs with a standard deviation in pixels.
    GaussianBlur(f64),
    /// Blends with the smoothed image by a factor.
    Sharpness(f64),
    /// Inverts every value.
    Invert,
    /// Stretches each channel to 0..=255.
    AutoContrast,
    /// Flattens the histogram of each channel.
    Equalize,
    /// Keeps this many high bits, 1 to 8.
    Posterize(u32),
    /// Inverts values at or above the threshold.
    Solarize(f64),
    /// Covers a box.
    Cutout(CropBox),
    /// Covers a box with noise that follows from a seed.
    Erase {
        /// The box.
        area: CropBox,
        /// Of the noise.
        seed: u64,
    },
    /// Samples column `x + v * y` for column `x`.
    ShearX(f64),
    /// Samples row `y + v * x` for row `y`.
    ShearY(f64),
    /// Samples this many columns further right.
    TranslateX(f64),
    /// Samples this many rows further down.
    TranslateY(f64),
    /// Turns counter-clockwise by degrees.
    Rotate(f64),
}

impl Op {
    /// Applies the operation in place.
    pub fn apply(&self, image: &mut Rgb8) {
        match *self {
            Self::HorizontalFlip => geometry::horizontal_flip(image),
            Self::Brightness(factor) => color::brightness(image, factor as f32),
            Self::Contrast(factor) => color::contrast(image, factor as f32),
            Self::Saturation(factor) => color::saturation(image, factor as f32),
            Self::Hue(shift) => color::hue(image, shift),
            Self::Grayscale => color::grayscale(image),
            Self::GaussianBlur(sigma) => blur::gaussian_blur(image, sigma as f32),
            Self::Sharpness(factor) => blur::sharpness(image, factor as f32),
            Self::Invert => color::map(image, |v| !v),
            Self::AutoContrast => color::auto_contrast(image),
            Self::Equalize => color::equalize(image),
            Self::Posterize(bits) => color::map(image, |v| v & !(0xff_u32 >> bits) as u8),
            Self::Solarize(from) => {
                color::map(image, |v| if f64::from(v) < from { v } else { !v });
            }
            Self::Cutout(area) => geometry::cutout(image, area),
            Self::Erase { area, seed } => erasing::erase(image, area, seed),
            Self::ShearX(slope) => geometry::shear_x(image, slope),
            Self::ShearY(slope) => geometry::shear_y(image, slope),
            Self::TranslateX(shift) => geometry::translate(image, shift, 0.0),
            Self::TranslateY(shift) => geometry::translate(image, 0.0, shift),
            Self::Rotate(degrees) => geometry::rotate(image, degrees),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::golden;
    use super::*;

    /// The expected images were computed by PIL and torchvision (tests/golden/augment.py).
    #[test]
    fn operations_equal_pil() {
        let expected = golden::read("augment_ops");
        let area = CropBox { x: 26, y: 18, w: 11, h: 4 };
        let cases = [
            ("horizontal_flip", Op::HorizontalFlip),
            ("brightness_0.35", Op::Brightness(0.35)),
            ("brightness_1.7", Op::Brightness(1.7)),
            ("contrast_0.35", Op::Contrast(0.35)),
            ("contrast_1.7", Op::Contrast(1.7)),
            ("saturation_0.35", Op::Saturation(0.35)),
            ("saturation_1.7", Op::Saturation(1.7)),
            ("hue_0.17", Op::Hue(0.17)),
            ("hue_-0.2", Op::Hue(-0.2)),
            ("grayscale", Op::Grayscale),
            ("gaussian_blur_0.1", Op::GaussianBlur(0.1)),
            ("gaussian_blur_0.9", Op::GaussianBlur(0.9)),
            ("gaussian_blur_1.9", Op::GaussianBlur(1.9)),
            ("gaussian_blur_6", Op::GaussianBlur(6.0)),
            ("sharpness_0.3", Op::Sharpness(0.3)),
            ("sharpness_1.8", Op::Sharpness(1.8)),
            ("invert", Op::Invert),
            ("auto_contrast", Op::AutoContrast),
            ("equalize", Op::Equalize),
            ("posterize_5", Op::Posterize(5)),
            ("solarize_113.8", Op::Solarize(256.0 * (1.0 - 5.0 / 9.0))),
            ("cutout", Op::Cutout(area)),
            ("shear_x_0.2", Op::ShearX(0.2)),
            ("shear_x_-0.3", Op::ShearX(-0.3)),
            ("shear_y_0.2", Op::ShearY(0.2)),
            ("shear_y_-0.3", Op::ShearY(-0.3)),
            ("translate_x_6.3", Op::TranslateX(6.3)),
            ("translate_x_-4.8", Op::TranslateX(-4.8)),
            ("translate_y_5.5", Op::TranslateY(5.5)),
            ("rotate_10", Op::Rotate(10.0)),
            ("rotate_30", Op::Rotate(30.0)),
        ];
        assert_eq!(cases.len() + 1, expected.len());
        for (name, op) in cases {
            let mut image = expected["image"].clone();
            if op == Op::AutoContrast {
                image.pixels.iter_mut().for_each(|v| *v = 40 + *v / 2);
            }
            op.apply(&mut image);
            let (worst, mean) = golden::difference(&image, &expected[name]);
            // The blur works in f32 where PIL has 8.24 fixed point: ties may round either way.
            let allowed = u8::from(matches!(op, Op::GaussianBlur(_)));
            assert!(worst <= allowed && mean < 0.01, "{name}: {worst}, {mean} on average");
        }
    }

    #[test]
    fn images_of_one_pixel_survive_every_operation() {
        let pixel = Rgb8 { width: 1, height: 1, pixels: vec![9, 99, 199] };
        let area = CropBox { x: 0, y: 0, w: 0, h: 1 };
        for op in [
            Op::HorizontalFlip,
            Op::GaussianBlur(2.0),
            Op::Sharpness(1.9),
            Op::AutoContrast,
            Op::Equalize,
            Op::Cutout(area),
            Op::ShearX(0.3),
            Op::ShearY(-0.3),
            Op::Rotate(30.0),
        ] {
            let mut image = pixel.clone();
            op.apply(&mut image);
            assert_eq!(image, pixel, "{op:?}");
        }
    }
}
