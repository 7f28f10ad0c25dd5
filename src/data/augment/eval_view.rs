//! The evaluation view, equal to PIL bit for bit: exported models must give the same logits here and
//! in timm, so the arithmetic is PIL's 8-bit resampling in fixed point (recipe appendix A), not the
//! faster one of the training crops.

use std::ops::Range;

use crate::config::Interpolation;
use crate::data::Rgb8;

/// Fractional bits of a weight: 32 less 8 of the pixel and 2 for overshoot.
const FRACTION_BITS: u32 = 22;

/// Source positions that one output position is made from.
struct Taps {
    start: usize,
    weights: Vec<i32>,
}

/// The evaluation view (recipe section 3.6): short side resized to `round(img_size / crop_pct)`,
/// then the central `img_size` x `img_size` pixels, with torchvision's rounding of both.
///
/// `crop_pct` is in (0, 1]; images smaller than the crop are enlarged.
pub fn eval_view(
    image: &Rgb8,
    img_size: usize,
    crop_pct: f64,
    interpolation: Interpolation,
) -> Rgb8 {
    let short = image.width.min(image.height);
    let target = ((img_size as f64 / crop_pct).round() as usize).max(img_size);
    // Only the part of the resized image that is kept is computed.
    let axis = |len: usize| {
        let resized = len * target / short;
        let start = ((resized - img_size) as f64 / 2.0).round_ties_even() as usize;
        (start..start + img_size).map(|i| taps(i, len, resized, interpolation)).collect::<Vec<_>>()
    };
    let (columns, rows) = (axis(image.width), axis(image.height));
    let first = rows.iter().map(|t| t.start).min().unwrap_or(0);
    let last = rows.iter().map(|t| t.start + t.weights.len()).max().unwrap_or(0);
    let between = horizontal(image, first..last, &columns);
    vertical(&between, first, &rows)
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
    let weight = |x: usize| filter((x as f64 - centre + 0.5) / stretch);
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

/// Resizes the given rows of `image` along x.
fn horizontal(image: &Rgb8, rows: Range<usize>, columns: &[Taps]) -> Rgb8 {
    let mut out = Rgb8::new(columns.len(), rows.len());
    let lines = out.pixels.chunks_exact_mut(columns.len() * 3);
    for (line, y) in lines.zip(rows) {
        let source = &image.pixels[y * image.width * 3..(y + 1) * image.width * 3];
        for (pixel, taps) in line.chunks_exact_mut(3).zip(columns) {
            let source = source[taps.start * 3..].chunks_exact(3);
            let mut sums = [1 << (FRACTION_BITS - 1); 3];
            for (from, weight) in source.zip(&taps.weights) {
                (0..3).for_each(|c| sums[c] += i32::from(from[c]) * weight);
            }
            (0..3).for_each(|c| pixel[c] = to_pixel(sums[c]));
        }
    }
    out
}

/// Resizes along y; `image` begins with source row `first`.
fn vertical(image: &Rgb8, first: usize, rows: &[Taps]) -> Rgb8 {
    let stride = image.width * 3;
    let mut out = Rgb8::new(image.width, rows.len());
    let mut sums = vec![0; stride];
    for (line, taps) in out.pixels.chunks_exact_mut(stride).zip(rows) {
        sums.fill(1 << (FRACTION_BITS - 1));
        for (source, weight) in
            image.pixels[(taps.start - first) * stride..].chunks_exact(stride).zip(&taps.weights)
        {
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

    /// Goldens are named eval_MODE_size_short.
    #[test]
    fn evaluation_views_are_pils_bit_for_bit() {
        let expected = golden::read("augment_resize");
        let image = &expected["image"];
        let views = expected.iter().filter(|(name, _)| name.starts_with("eval"));
        let mut compared = 0;
        for (name, expected) in views {
            let interpolation = match name.contains("bilinear") {
                true => Interpolation::Bilinear,
                false => Interpolation::Bicubic,
            };
            let n: Vec<usize> = name.split('_').filter_map(|part| part.parse().ok()).collect();
            let ours = eval_view(image, n[0], n[0] as f64 / n[1] as f64, interpolation);
            assert_eq!(golden::difference(&ours, expected), (0, 0.0), "{name}");
            compared += 1;
        }
        assert!(compared >= 4, "{compared} goldens");
    }

    #[test]
    fn long_and_tiny_images_have_an_evaluation_view() {
        for (width, height) in [(1, 1), (3, 20_000), (20_000, 1)] {
            let view = eval_view(&Rgb8::new(width, height), 32, 0.875, Interpolation::Bicubic);
            assert_eq!((view.width, view.height), (32, 32));
        }
    }
}
