//! Crop and resize with the semantics of PIL 13: separable, antialiased when
//! shrinking, 8-bit between the two passes, the rows of much taller images first.

use std::cell::RefCell;

use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ImageView, ResizeAlg, ResizeOptions, Resizer};
use rand_chacha::ChaCha8Rng;

use super::{uniform, uniform_index};
use crate::config::Interpolation;
use crate::data::Rgb8;

thread_local! {
    /// The resizer and the pixels between its two passes keep their memory from crop to crop.
    static SCRATCH: RefCell<(Resizer, Vec<u8>)> = RefCell::default();
}

/// A rectangle of whole pixels inside an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CropBox {
    /// Left column.
    pub x: usize,
    /// Top row.
    pub y: usize,
    /// Columns.
    pub w: usize,
    /// Rows.
    pub h: usize,
}

impl CropBox {
    /// Number of pixels.
    pub fn area(&self) -> usize {
        self.w * self.h
    }
}

/// Cuts `crop` out of `image`, then resizes it to `out_w` x `out_h`; pixels outside the box have no
/// influence.
///
/// # Panics
/// If the box is not inside the image.
pub fn resize(
    image: &Rgb8,
    crop: CropBox,
    out_w: usize,
    out_h: usize,
    interpolation: Interpolation,
) -> Rgb8 {
    let [x, y, w, h] = [crop.x, crop.y, crop.w, crop.h].map(|v| v as u32);
    let image = view(&image.pixels, image.width, image.height);
    let source = TypedCroppedImage::new(image, x, y, w, h).expect("box inside image");
    let filter = match interpolation {
        Interpolation::Bilinear => FilterType::Bilinear,
        Interpolation::Bicubic => FilterType::CatmullRom,
    };
    convolve(&source, (out_w, out_h), filter)
}

/// Resizes all of `image` with PIL's Lanczos filter.
pub fn resize_lanczos(image: &Rgb8, out_w: usize, out_h: usize) -> Rgb8 {
    let source = view(&image.pixels, image.width, image.height);
    convolve(&source, (out_w, out_h), FilterType::Lanczos3)
}

/// Whether PIL filters along y first: where rows shrink by more than twice what columns do. Versions
/// before 13 never did. Sizes are width and height in pixels.
pub fn rows_first((width, height): (usize, usize), (out_w, out_h): (usize, usize)) -> bool {
    height.saturating_sub(out_h) > 2 * width.saturating_sub(out_w)
}

/// Draws the box of torchvision's RandomResizedCrop: area share uniform in `scale`, aspect ratio
/// log-uniform in `ratio`, ten tries, then the largest central box whose aspect is allowed.
pub fn random_resized_crop_box(
    rng: &mut ChaCha8Rng,
    width: usize,
    height: usize,
    scale: [f64; 2],
    ratio: [f64; 2],
) -> CropBox {
    for _ in 0..10 {
        let area = (width * height) as f64 * uniform(rng, scale);
        let aspect = uniform(rng, ratio.map(f64::ln)).exp();
        let w = (area * aspect).sqrt().round_ties_even() as usize;
        let h = (area / aspect).sqrt().round_ties_even() as usize;
        if (1..=width).contains(&w) && (1..=height).contains(&h) {
            let y = uniform_index(rng, height - h + 1);
            let x = uniform_index(rng, width - w + 1);
            return CropBox { x, y, w, h };
        }
    }
    central_box(width, height, ratio)
}

fn central_box(width: usize, height: usize, ratio: [f64; 2]) -> CropBox {
    let aspect = width as f64 / height as f64;
    let (w, h) = if aspect < ratio[0] {
        (width, (width as f64 / ratio[0]).round_ties_even() as usize)
    } else if aspect > ratio[1] {
        ((height as f64 * ratio[1]).round_ties_even() as usize, height)
    } else {
        (width, height)
    };
    let (w, h) = (w.clamp(1, width), h.clamp(1, height));
    CropBox { x: (width - w) / 2, y: (height - h) / 2, w, h }
}

/// Resizes all of `source`.
///
/// The crate filters along y first, PIL mostly along x, which differs where the first pass
/// overshoots and is clamped to 8 bit; so each pass is a call of its own.
fn convolve(
    source: &impl ImageView<Pixel = U8x3>,
    (out_w, out_h): (usize, usize),
    filter: FilterType,
) -> Rgb8 {
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter));
    let (width, height) = (source.width() as usize, source.height() as usize);
    let between_size = match rows_first((width, height), (out_w, out_h)) {
        true => (width, out_h),
        false => (out_w, height),
    };
    let mut out = Rgb8::new(out_w, out_h);
    SCRATCH.with_borrow_mut(|(resizer, between)| {
        let len = between_size.0 * between_size.1 * 3;
        between.resize(len.max(between.len()), 0);
        let mut target = view_mut(&mut between[..len], between_size.0, between_size.1);
        resizer.resize_typed(source, &mut target, &options).expect("a size above zero");
        let source = view(&between[..len], between_size.0, between_size.1);
        let mut target = view_mut(&mut out.pixels, out_w, out_h);
        resizer.resize_typed(&source, &mut target, &options).expect("a size above zero");
    });
    out
}

fn view(bytes: &[u8], width: usize, height: usize) -> TypedImageRef<'_, U8x3> {
    TypedImageRef::from_buffer(width as u32, height as u32, bytes).expect("3 bytes a pixel")
}

fn view_mut(bytes: &mut [u8], width: usize, height: usize) -> TypedImage<'_, U8x3> {
    TypedImage::from_buffer(width as u32, height as u32, bytes).expect("3 bytes a pixel")
}

#[cfg(test)]
mod tests {
    use super::super::golden;
    use super::*;
    use crate::rng::{Purpose, stream};

    /// Goldens are named crop_MODE_x_y_w_h_outw_outh. The tall ones differ by far more than a level
    /// where the passes are in the other order.
    #[test]
    fn crops_equal_pil() {
        let expected = golden::read("augment_resize");
        let mut compared = 0;
        for (name, expected) in expected.iter().filter(|(name, _)| name.starts_with("crop")) {
            let n: Vec<usize> = name.split('_').filter_map(|part| part.parse().ok()).collect();
            let crop = CropBox { x: n[0], y: n[1], w: n[2], h: n[3] };
            let image = match name.contains("tall") {
                true => &golden::pattern("20x90"),
                false => &expected_image(),
            };
            let ours = match name.split('_').nth(1) {
                Some("bilinear") => resize(image, crop, n[4], n[5], Interpolation::Bilinear),
                Some("bicubic") => resize(image, crop, n[4], n[5], Interpolation::Bicubic),
                _ => resize_lanczos(image, n[4], n[5]),
            };
            let (worst, mean) = golden::difference(&ours, expected);
            assert!(worst <= 1 && mean < 0.1, "{name}: {worst} at most, {mean} on average");
            compared += 1;
        }
        assert_eq!(compared, 8 + 12, "goldens");
    }

    fn expected_image() -> Rgb8 {
        golden::read("augment_resize").remove("image").expect("the image")
    }

    #[test]
    fn rows_come_first_where_they_shrink_by_more_than_twice_as_much() {
        // Measured with Pillow 13.0.0: the smallest height that is filtered along y first.
        for (width, out, height) in [
            (40, (20, 20), 61),
            (40, (20, 40), 81),
            (40, (64, 64), 65),
            (40, (30, 64), 85),
            (60, (20, 20), 101),
        ] {
            assert!(rows_first((width, height), out), "{width} to {out:?}");
            assert!(!rows_first((width, height - 1), out), "{width} to {out:?}");
        }
    }

    #[test]
    fn pixels_outside_the_box_have_no_influence() {
        let image = &golden::read("augment_resize")["image"];
        let crop = CropBox { x: 7, y: 6, w: 9, h: 7 };
        let mut masked = Rgb8::new(image.width, image.height);
        for y in crop.y..crop.y + crop.h {
            let row = (y * image.width + crop.x) * 3..(y * image.width + crop.x + crop.w) * 3;
            masked.pixels[row.clone()].copy_from_slice(&image.pixels[row]);
        }
        for (w, h) in [(5, 3), (20, 16)] {
            let ours = |image| resize(image, crop, w, h, Interpolation::Bicubic);
            assert_eq!(ours(image), ours(&masked));
        }
    }

    #[test]
    fn boxes_have_the_area_and_aspect_asked_for() {
        let mut rng = stream(1, Purpose::Augment, 0, 0, 0);
        let (width, height) = (400, 300);
        let (scale, ratio) = ([0.05, 0.4], [0.75, 4.0 / 3.0]);
        let draws = 20_000;
        let (mut area, mut log_aspect, mut left) = (0.0, 0.0, 0.0);
        for _ in 0..draws {
            let b = random_resized_crop_box(&mut rng, width, height, scale, ratio);
            assert!(b.x + b.w <= width && b.y + b.h <= height);
            let share = b.area() as f64 / (width * height) as f64;
            let aspect = b.w as f64 / b.h as f64;
            assert!((0.049..0.402).contains(&share), "{b:?}");
            assert!((0.735..1.36).contains(&aspect), "{b:?}");
            area += share / f64::from(draws);
            log_aspect += aspect.ln() / f64::from(draws);
            left += b.x as f64 / (width - b.w) as f64 / f64::from(draws);
        }
        // Nothing is rejected at these scales, so the means are those of the uniform draws; the
        // bounds are five standard errors.
        assert!((area - 0.225).abs() < 0.0036, "{area}");
        assert!(log_aspect.abs() < 0.006, "{log_aspect}");
        assert!((left - 0.5).abs() < 0.0105, "{left}");
    }

    #[test]
    fn impossible_aspects_give_the_central_box() {
        let mut rng = stream(1, Purpose::Augment, 0, 0, 0);
        let mut draw =
            |w, h| random_resized_crop_box(&mut rng, w, h, [1.0, 1.0], [0.75, 4.0 / 3.0]);
        assert_eq!(draw(1000, 30), CropBox { x: 480, y: 0, w: 40, h: 30 });
        assert_eq!(draw(30, 1000), CropBox { x: 0, y: 480, w: 30, h: 40 });
        assert_eq!(draw(1, 1), CropBox { x: 0, y: 0, w: 1, h: 1 });
    }
}
