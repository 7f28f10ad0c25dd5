//! Random erasing (Zhong et al., AAAI 2020), with timm's ranges: a box of a crop becomes noise.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::op::Op;
use super::resize::CropBox;
use super::{uniform, uniform_index};
use crate::data::Rgb8;

/// Share of the crop that a box covers.
const AREA: [f64; 2] = [0.02, 1.0 / 3.0];
/// Height over width at least; at most one over it.
const LEAST_ASPECT: f64 = 0.3;
/// Draws until a box fits; nothing is erased if none does.
const TRIES: usize = 10;
/// Mean and standard deviation of the noise in each channel: ImageNet's, of pixels as the model sees them
/// 0 and 1.
const NOISE: [(i32, i32); 3] = [(124, 58), (116, 57), (104, 57)];

/// Draws a box in a square crop of `side` pixels, and the seed of the noise in it.
pub(super) fn draw(side: usize, rng: &mut ChaCha8Rng) -> Option<Op> {
    let most = -LEAST_ASPECT.ln();
    for _ in 0..TRIES {
        let area = uniform(rng, AREA) * (side * side) as f64;
        let aspect = uniform(rng, [-most, most]).exp();
        let [h, w] = [area * aspect, area / aspect].map(|v| v.sqrt().round() as usize);
        if w < side && h < side {
            let [x, y] = [w, h].map(|len| uniform_index(rng, side - len + 1));
            return Some(Op::Erase { area: CropBox { x, y, w, h }, seed: rng.random() });
        }
    }
    None
}

/// Fills `area`, which lies inside the image, with noise.
pub(super) fn erase(image: &mut Rgb8, area: CropBox, seed: u64) {
    let mut i = 0;
    for row in image.pixels.chunks_exact_mut(3 * image.width).skip(area.y).take(area.h) {
        for pixel in row[3 * area.x..][..3 * area.w].as_chunks_mut().0 {
            *pixel = noise(seed, i);
            i += 1;
        }
    }
}

/// Noise for pixel `i` of a box. The sum of twelve random bytes is all but normal, 1530 in the mean with a
/// standard deviation of 256, and whole numbers are the same on every machine.
fn noise(seed: u64, i: u32) -> [u8; 3] {
    let (low, high) = (seed as u32, (seed >> 32) as u32);
    std::array::from_fn(|c| {
        let first = low.wrapping_add(9 * i + 3 * c as u32);
        let word = |word| scrambled(scrambled(first.wrapping_add(word)) ^ high);
        let bytes = (0..3).flat_map(|i| word(i).to_le_bytes());
        let sum: i32 = bytes.map(i32::from).sum();
        let (mean, std) = NOISE[c];
        (mean + ((std * (sum - 1530)) >> 8)).clamp(0, 255) as u8
    })
}

/// 32 bits that look random (the finaliser of MurmurHash3).
fn scrambled(mut x: u32) -> u32 {
    x = (x ^ (x >> 16)).wrapping_mul(0x85eb_ca6b);
    x = (x ^ (x >> 13)).wrapping_mul(0xc2b2_ae35);
    x ^ (x >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;

    #[test]
    fn the_noise_is_normal_in_the_box_and_nothing_else_changes() {
        let mut image = Rgb8 { width: 220, height: 200, pixels: vec![7; 3 * 220 * 200] };
        let area = CropBox { x: 11, y: 3, w: 200, h: 190 };
        erase(&mut image, area, 99);
        let inside = |i: usize| {
            let (x, y) = (i % 220, i / 220);
            (11..211).contains(&x) && (3..193).contains(&y)
        };
        let mut values = [const { Vec::new() }; 3];
        for (i, pixel) in image.pixels.as_chunks::<3>().0.iter().enumerate() {
            match inside(i) {
                true => (0..3).for_each(|c| values[c].push(f64::from(pixel[c]))),
                false => assert_eq!(*pixel, [7; 3]),
            }
        }
        for (values, (mean, std)) in values.iter().zip(NOISE) {
            let (mean, std) = (f64::from(mean), f64::from(std));
            let n = values.len() as f64;
            assert_eq!(n, 38_000.0);
            let below = |z: f64| values.iter().filter(|v| **v < mean + z * std).count() as f64 / n;
            // The normal distribution's shares.
            for (z, share) in
                [(-1.5, 0.0668), (-1.0, 0.1587), (0.0, 0.5), (1.0, 0.8413), (1.5, 0.9332)]
            {
                assert!((below(z) - share).abs() < 0.012, "{z}: {} for {share}", below(z));
            }
            // Neighbours have nothing to do with each other.
            let product = |pair: &[f64]| (pair[0] - mean) * (pair[1] - mean);
            let correlation = values.windows(2).map(product).sum::<f64>() / (n * std * std);
            assert!(correlation.abs() < 0.02, "{correlation}");
        }
    }

    #[test]
    fn boxes_are_within_the_ranges_everywhere_in_the_crop() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let side = 112;
        let (mut shares, mut covered, mut tall) = (Vec::new(), vec![0_u32; side * side], 0);
        for _ in 0..4000 {
            let Some(Op::Erase { area, .. }) = draw(side, &mut rng) else { continue };
            assert!(area.x + area.w <= side && area.y + area.h <= side);
            let aspect = area.h as f64 / area.w as f64;
            assert!((0.26..3.9).contains(&aspect), "{aspect}: 0.3 to 3.33 but for rounding");
            tall += u32::from(area.h > area.w);
            shares.push(area.area() as f64 / (side * side) as f64);
            for y in area.y..area.y + area.h {
                covered[y * side + area.x..][..area.w].iter_mut().for_each(|n| *n += 1);
            }
        }
        assert!(shares.len() > 3950, "{} of 4000 fit", shares.len());
        let mean = shares.iter().sum::<f64>() / shares.len() as f64;
        assert!((mean - (0.02 + 1.0 / 3.0) / 2.0).abs() < 0.01, "{mean}: uniform");
        assert!((1800..2200).contains(&tall), "{tall} are taller than wide");
        let row = |y: usize| covered[y * side..][..side].iter().any(|n| *n > 0);
        let column = |x: usize| (0..side).any(|y| covered[y * side + x] > 0);
        assert!((0..side).all(|i| row(i) && column(i)));
    }
}
