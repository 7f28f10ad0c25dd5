//! Operations that treat each pixel by itself, with PIL's arithmetic.

use crate::data::Rgb8;

/// PIL's luma, `0.299 R + 0.587 G + 0.114 B` in 16-bit fixed point.
pub(super) fn luma([r, g, b]: [u8; 3]) -> u8 {
    let [r, g, b] = [r, g, b].map(u32::from);
    ((19595 * r + 38470 * g + 7471 * b + 32768) >> 16) as u8
}

/// `from + factor * (to - from)`, truncated and clamped to 0..=255.
pub(super) fn blend(from: u8, to: u8, factor: f32) -> u8 {
    (f32::from(from) + factor * (f32::from(to) - f32::from(from))) as u8
}

fn pixels(image: &mut Rgb8) -> &mut [[u8; 3]] {
    image.pixels.as_chunks_mut().0
}

/// Replaces every channel value `v` by `f(v)`.
pub(super) fn map(image: &mut Rgb8, f: impl Fn(u8) -> u8) {
    let table: [u8; 256] = std::array::from_fn(|v| f(v as u8));
    for v in &mut image.pixels {
        *v = table[usize::from(*v)];
    }
}

/// Like [`map`], with a table of its own for each channel, made from the channel's histogram.
fn map_by_histogram(image: &mut Rgb8, table: impl Fn(&[usize; 256]) -> [u8; 256]) {
    let mut counts = [[0; 256]; 3];
    for pixel in pixels(image) {
        for (count, &v) in counts.iter_mut().zip(&*pixel) {
            count[usize::from(v)] += 1;
        }
    }
    let tables = counts.each_ref().map(table);
    for pixel in pixels(image) {
        for (v, table) in pixel.iter_mut().zip(&tables) {
            *v = table[usize::from(*v)];
        }
    }
}

const IDENTITY: [u8; 256] = {
    let mut table = [0; 256];
    let mut v = 0;
    while v < 256 {
        table[v] = v as u8;
        v += 1;
    }
    table
};

/// Blends with black.
pub(super) fn brightness(image: &mut Rgb8, factor: f32) {
    map(image, |v| blend(0, v, factor));
}

/// Blends with the rounded mean luma.
pub(super) fn contrast(image: &mut Rgb8, factor: f32) {
    let sum: u64 = pixels(image).iter().map(|&p| u64::from(luma(p))).sum();
    let mean = (sum as f64 / (image.width * image.height) as f64 + 0.5) as u8;
    map(image, |v| blend(mean, v, factor));
}

/// Blends with the luma of the pixel.
pub(super) fn saturation(image: &mut Rgb8, factor: f32) {
    for pixel in pixels(image) {
        let gray = luma(*pixel);
        *pixel = pixel.map(|v| blend(gray, v, factor));
    }
}

/// Luma in all three channels.
pub(super) fn grayscale(image: &mut Rgb8) {
    for pixel in pixels(image) {
        *pixel = [luma(*pixel); 3];
    }
}

/// Adds `trunc(255 * shift)` to the hue of 8-bit HSV, modulo 256.
pub(super) fn hue(image: &mut Rgb8, shift: f64) {
    let shift = (shift * 255.0) as i32 as u8;
    for pixel in pixels(image) {
        let (h, s, v) = hsv(*pixel);
        *pixel = rgb(h.wrapping_add(shift), s, v);
    }
}

/// 8-bit hue, saturation and value. The mix of f32 and f64 is PIL's, as truncation makes the hue
/// sensitive to it. No branches: in photographs they would often be mispredicted.
fn hsv(pixel: [u8; 3]) -> (u8, u8, u8) {
    let [r, g, b] = pixel;
    let (max, min) = (r.max(g).max(b), r.min(g).min(b));
    // The largest channel, the first of equals; its successors are `behind` and `ahead`.
    let largest = usize::from(r != max) * (1 + usize::from(g != max));
    let (behind, ahead) = (pixel[(largest + 1) % 3], pixel[(largest + 2) % 3]);
    // Grey pixels get hue and saturation 0.
    let chroma = f32::from((max - min).max(1));
    let below = |c: u8| f64::from(f32::from(max - c) / chroma);
    let sixths = ((2 * largest) as f64 + below(ahead) - below(behind)) as f32;
    let turn = f64::from(sixths) / 6.0 + 1.0;
    let turn = (turn - f64::from(u8::from(turn >= 1.0))) as f32;
    let s = f32::from(max - min) / f32::from(max.max(1));
    let byte = |v: f32| (f64::from(v) * 255.0) as i32 as u8;
    (byte(turn), byte(s), max)
}

/// The inverse, in whole numbers: each channel is `v (1 - s x)` with `x` at most 1, rounded.
fn rgb(h: u8, s: u8, v: u8) -> [u8; 3] {
    const ONE: u32 = 255 * 255;
    /// For each sixth of the circle, which of v, low, falling and rising R, G and B are.
    const SECTORS: [[usize; 3]; 7] =
        [[0, 3, 1], [2, 0, 1], [1, 0, 3], [1, 2, 0], [3, 1, 0], [0, 1, 2], [0, 3, 1]];
    let position = u32::from(h) * 6;
    let (sector, through) = (position / 255, position % 255);
    let (s, value) = (u32::from(s), u32::from(v));
    let lessened = |by: u32| ((value * (ONE - s * by) + ONE / 2) / ONE) as u8;
    let levels = [v, lessened(255), lessened(through), lessened(255 - through)];
    SECTORS[sector as usize].map(|level| levels[level])
}

/// Stretches each channel so that its extremes become 0 and 255.
pub(super) fn auto_contrast(image: &mut Rgb8) {
    map_by_histogram(image, |counts| {
        let low = counts.iter().position(|&n| n > 0).unwrap_or(0);
        let high = counts.iter().rposition(|&n| n > 0).unwrap_or(0);
        if high <= low {
            return IDENTITY;
        }
        let scale = 255.0 / (high - low) as f64;
        let offset = -(low as f64) * scale;
        IDENTITY.map(|v| (f64::from(v) * scale + offset) as u8)
    });
}

/// Flattens the histogram of each channel.
pub(super) fn equalize(image: &mut Rgb8) {
    map_by_histogram(image, |counts| {
        let last = counts.iter().rfind(|&&n| n > 0).unwrap_or(&0);
        let step = (counts.iter().sum::<usize>() - last) / 255;
        if step == 0 {
            return IDENTITY;
        }
        let mut cumulated = step / 2;
        counts.map(|n| {
            let level = (cumulated / step).min(255) as u8;
            cumulated += n;
            level
        })
    });
}
