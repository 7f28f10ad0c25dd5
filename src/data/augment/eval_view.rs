//! The evaluation view, equal to PIL bit for bit: exported models must give the same logits here and
//! in timm, so the arithmetic is PIL's 8-bit resampling in fixed point, not the faster one of the
//! training crops.

use std::ops::Range;

use super::resize::rows_first;
use crate::config::Interpolation;
use crate::data::Rgb8;

/// Fractional bits of a weight: 32 less 8 of the pixel and 2 for overshoot.
const FRACTION_BITS: u32 = 22;

/// Source positions that one output position is made from.
struct Taps {
    start: usize,
    weights: Vec<i32>,
}

/// The evaluation view: the short side resized to `floor(img_size / crop_pct)` as timm does, then the
/// central `img_size` x `img_size` pixels, with torchvision's rounding of the long side and of the
/// offsets.
///
/// `crop_pct` is in (0, 1]; images smaller than the crop are enlarged.
pub fn eval_view(
    image: &Rgb8,
    img_size: usize,
    crop_pct: f64,
    interpolation: Interpolation,
) -> Rgb8 {
    let short = image.width.min(image.height);
    let target = ((img_size as f64 / crop_pct).floor() as usize).max(img_size);
    let resized = |len: usize| len * target / short;
    // Only the part of the resized image that is kept is computed.
    let axis = |len: usize| {
        let resized = resized(len);
        let start = ((resized - img_size) as f64 / 2.0).round_ties_even() as usize;
        (start..start + img_size).map(|i| taps(i, len, resized, interpolation)).collect::<Vec<_>>()
    };
    let (columns, rows) = (axis(image.width), axis(image.height));
    let (out_w, out_h) = (resized(image.width), resized(image.height));
    if rows_first((image.width, image.height), (out_w, out_h)) {
        let used = span(&columns);
        let first = used.start;
        let between = vertical(image, 0, used, &rows);
        horizontal(&between, first, 0..img_size, &columns)
    } else {
        let used = span(&rows);
        let first = used.start;
        let between = horizontal(image, 0, used, &columns);
        vertical(&between, first, 0..img_size, &rows)
    }
}

/// The source positions that `taps` read.
fn span(taps: &[Taps]) -> Range<usize> {
    let first = taps.iter().map(|t| t.start).min().unwrap_or(0);
    first..taps.iter().map(|t| t.start + t.weights.len()).max().unwrap_or(0)
}

/// Output `i` of `out` positions over `len` source positions.
fn taps(i: usize, len: usize, out: usize, interpolation: Interpolation) -> Taps {
    let (radius, filter): (f64, fn(f64) -> f64) = match interpolation {
        Interpolation::Bilinear => (1.0, triangle),
        Interpolation::Bicubic => (2.0, cubic),
    };
    let scale = len as f64 / out as f64;
    let stretch = scale.max(1.0);
    let (centre, support) = ((i as f64 + 0.5) * scale, radius * stretch);
    let start = (centre - support + 0.5).max(0.0) as usize;
    let end = ((centre + support + 0.5) as usize).min(len);
    // Times the inverse, as PIL has it: dividing would round otherwise.
    let inverse = 1.0 / stretch;
    let weight = |x: usize| filter((x as f64 - centre + 0.5) * inverse);
    let sum: f64 = (start..end).map(weight).sum();
    let fixed = |x: usize| (weight(x) / sum * f64::from(1 << FRACTION_BITS)).round() as i32;
    Taps { start, weights: (start..end).map(fixed).collect() }
}

fn triangle(x: f64) -> f64 {
    (1.0 - x.abs()).max(0.0)
}

/// Keys' cubic convolution with PIL's a = -0.5.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// Resizes the given rows of `image` along x; `image` begins with source column `first`.
fn horizontal(image: &Rgb8, first: usize, rows: Range<usize>, columns: &[Taps]) -> Rgb8 {
    let mut out = Rgb8::new(columns.len(), rows.len());
    let lines = out.pixels.chunks_exact_mut(columns.len() * 3);
    for (line, y) in lines.zip(rows) {
        let source = &image.pixels[y * image.width * 3..(y + 1) * image.width * 3];
        for (pixel, taps) in line.chunks_exact_mut(3).zip(columns) {
            let source = source[(taps.start - first) * 3..].chunks_exact(3);
            let mut sums = [1 << (FRACTION_BITS - 1); 3];
            for (from, weight) in source.zip(&taps.weights) {
                (0..3).for_each(|c| sums[c] += i32::from(from[c]) * weight);
            }
            (0..3).for_each(|c| pixel[c] = to_pixel(sums[c]));
        }
    }
    out
}

/// Resizes the given columns of `image` along y; `image` begins with source row `first`.
fn vertical(image: &Rgb8, first: usize, columns: Range<usize>, rows: &[Taps]) -> Rgb8 {
    let (stride, kept) = (image.width * 3, columns.start * 3..columns.end * 3);
    let mut out = Rgb8::new(columns.len(), rows.len());
    let mut sums = vec![0; kept.len()];
    for (line, taps) in out.pixels.chunks_exact_mut(kept.len()).zip(rows) {
        sums.fill(1 << (FRACTION_BITS - 1));
        for (source, weight) in
            image.pixels[(taps.start - first) * stride..].chunks_exact(stride).zip(&taps.weights)
        {
            let source = &source[kept.clone()];
            sums.iter_mut().zip(source).for_each(|(sum, &v)| *sum += i32::from(v) * weight);
        }
        line.iter_mut().zip(&sums).for_each(|(pixel, &sum)| *pixel = to_pixel(sum));
    }
    out
}

fn to_pixel(sum: i32) -> u8 {
    (sum >> FRACTION_BITS).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::super::golden;
    use super::*;

    /// Goldens are named eval_MODE_IMAGE_size; the crop's share is that of the recipes.
    #[test]
    fn evaluation_views_are_timms_bit_for_bit() {
        let expected = golden::read("augment_resize");
        let mut compared = 0;
        for (name, expected) in expected.iter().filter(|(name, _)| name.starts_with("eval")) {
            let [_, mode, image, size] = name.split('_').collect::<Vec<_>>()[..] else {
                panic!("{name}")
            };
            let interpolation = match mode {
                "bilinear" => Interpolation::Bilinear,
                _ => Interpolation::Bicubic,
            };
            let image = golden::pattern(image);
            let size: usize = size.parse().expect("a size");
            let ours = eval_view(&image, size, 224.0 / 256.0, interpolation);
            // Of the large ones the golden has every so many pixels.
            let step = size.div_ceil(expected.width);
            let kept = golden::every(&ours, step);
            assert_eq!(golden::difference(&kept, expected), (0, 0.0), "{name}");
            compared += 1;
        }
        assert!(compared >= 48, "{compared} goldens");
    }

    #[test]
    fn long_and_tiny_images_have_an_evaluation_view() {
        for (width, height) in [(1, 1), (3, 20_000), (20_000, 1)] {
            let view = eval_view(&Rgb8::new(width, height), 32, 0.875, Interpolation::Bicubic);
            assert_eq!((view.width, view.height), (32, 32));
        }
    }
}
