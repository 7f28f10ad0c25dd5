//! Filters over a neighbourhood: PIL's Gaussian blur and sharpness enhancer.

use super::color::blend;
use crate::data::Rgb8;

/// A box of `2 * reach + 1` unit taps and two fractional ones at its ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExtendedBox {
    /// Whole pixels to each side.
    pub reach: usize,
    /// Weight of a unit tap.
    pub inner: f32,
    /// Weight of each fractional one.
    pub end: f32,
}

impl ExtendedBox {
    /// The box whose threefold application has variance `sigma^2` pixels; 127 is the largest reach.
    pub fn new(sigma: f32) -> Self {
        let variance = sigma * sigma / 3.0;
        let reach = (((12.0 * variance + 1.0).sqrt() - 1.0) / 2.0).floor().min(127.0);
        let fraction = (2.0 * reach + 1.0) * (reach * (reach + 1.0) - 3.0 * variance)
            / (6.0 * (variance - (reach + 1.0).powi(2)));
        // PIL rounds the weights to 24 bit, and the ends get what the rounding leaves.
        const UNIT: f32 = (1 << 24) as f32;
        let inner = (UNIT / ((reach + fraction) * 2.0 + 1.0)).floor() / UNIT;
        let end = (1.0 - (2.0 * f64::from(reach) + 1.0) * f64::from(inner)) / 2.0;
        Self { reach: reach as usize, inner, end: end as f32 }
    }

    /// Writes the weighted sum of the `2 * reach + 3` lines `tap(0)`, `tap(1)`, ... to `out`.
    fn apply<'a>(&self, tap: impl Fn(usize) -> &'a [u8], sums: &mut [u16], out: &mut [u8]) {
        for (sum, &v) in sums.iter_mut().zip(tap(1)) {
            *sum = u16::from(v);
        }
        for k in 2..=2 * self.reach + 1 {
            for (sum, &v) in sums.iter_mut().zip(tap(k)) {
                *sum += u16::from(v);
            }
        }
        // Adding 2^23 leaves a float whose low bits are the rounded number: cheaper than a cast.
        const ROUND: f32 = 8_388_608.0;
        let ends = tap(0).iter().zip(tap(2 * self.reach + 2));
        for ((out, &sum), (&left, &right)) in out.iter_mut().zip(&*sums).zip(ends) {
            let ends = f32::from(u16::from(left) + u16::from(right));
            *out = (f32::from(sum) * self.inner + ends * self.end + ROUND).to_bits() as u8;
        }
    }
}

/// PIL's approximation of a Gaussian of standard deviation `sigma` pixels: three passes of a box
/// along each axis, edge pixels repeated outwards, rounded to 8 bit after each pass.
pub(super) fn gaussian_blur(image: &mut Rgb8, sigma: f32) {
    let kernel = ExtendedBox::new(sigma);
    let stride = image.width * 3;
    let mut sums = vec![0; stride];

    let margin = (kernel.reach + 1) * 3;
    let mut padded = vec![0; stride + 2 * margin];
    for row in image.pixels.chunks_exact_mut(stride) {
        for _ in 0..3 {
            let (left, rest) = padded.split_at_mut(margin);
            let (middle, right) = rest.split_at_mut(stride);
            left.as_chunks_mut().0.fill([row[0], row[1], row[2]]);
            middle.copy_from_slice(row);
            let last = &row[stride - 3..];
            right.as_chunks_mut().0.fill([last[0], last[1], last[2]]);
            kernel.apply(|k| &padded[3 * k..3 * k + stride], &mut sums, row);
        }
    }

    let mut before = image.pixels.clone();
    for pass in 0..3 {
        if pass > 0 {
            before.copy_from_slice(&image.pixels);
        }
        for (y, row) in image.pixels.chunks_exact_mut(stride).enumerate() {
            let tap = |k: usize| {
                let y = (y + k).saturating_sub(kernel.reach + 1).min(image.height - 1);
                &before[y * stride..(y + 1) * stride]
            };
            kernel.apply(tap, &mut sums, row);
        }
    }
}

/// Blends with the image smoothed by the 3 x 3 kernel (1 1 1 / 1 5 1 / 1 1 1) / 13; the outermost
/// pixels stay as they are.
pub(super) fn sharpness(image: &mut Rgb8, factor: f32) {
    let stride = image.width * 3;
    if image.width < 3 || image.height < 3 {
        return;
    }
    let before = image.pixels.clone();
    let mut columns = vec![0; stride];
    for y in 1..image.height - 1 {
        let row = |y: usize| &before[y * stride..(y + 1) * stride];
        let (above, here, below) = (row(y - 1), row(y), row(y + 1));
        for (i, sum) in columns.iter_mut().enumerate() {
            *sum = u16::from(above[i]) + u16::from(here[i]) + u16::from(below[i]);
        }
        let out = &mut image.pixels[y * stride + 3..(y + 1) * stride - 3];
        let sums = columns.iter().zip(&columns[3..]).zip(&columns[6..]);
        for ((out, &v), ((a, b), c)) in out.iter_mut().zip(&here[3..]).zip(sums) {
            *out = blend(((a + b + c + 4 * u16::from(v) + 6) / 13) as u8, v, factor);
        }
    }
}
