//! The RandAugment variant of the official fine-tuning code.

use rand_chacha::ChaCha8Rng;

use super::op::Op;
use super::resize::CropBox;
use super::{chance, uniform_index};

/// Number of operations that [`op`] knows.
const KINDS: usize = 15;
/// Bits that posterising keeps, by magnitude; 0 is never drawn.
const POSTERIZE_BITS: [u32; 10] = [8, 8, 7, 7, 6, 6, 5, 5, 4, 4];
/// Sides of cutouts in pixels, by magnitude.
const CUTOUT_SIDE: [usize; 10] = [0, 2, 4, 7, 9, 11, 13, 16, 18, 20];

/// Two draws of (operation, magnitude) for a square image, each of which fires with probability 1/2.
pub(super) fn draw(side: usize, rng: &mut ChaCha8Rng) -> Vec<Op> {
    let mut ops = Vec::new();
    for _ in 0..2 {
        let kind = uniform_index(rng, KINDS);
        let magnitude = 1 + uniform_index(rng, 9);
        let sign = if chance(rng, 0.5) { 1.0 } else { -1.0 };
        let centre = (uniform_index(rng, side), uniform_index(rng, side));
        if chance(rng, 0.5) {
            ops.push(op(kind, magnitude, sign, centre, (side, side)));
        }
    }
    ops
}

/// Operation `kind` at `magnitude` 1 to 9 for an image of `size` (width, height). Rotations are
/// counter-clockwise whatever the sign, and cutouts have the same side in pixels at every image size, as in
/// the official code.
fn op(
    kind: usize,
    magnitude: usize,
    sign: f64,
    centre: (usize, usize),
    size: (usize, usize),
) -> Op {
    let level = magnitude as f64 / 9.0;
    // The official code's ranges; its shifts are up to 150 pixels of an image of 331.
    let factor = 1.0 + sign * 0.9 * level;
    let shift = |len: usize| sign * level * 150.0 / 331.0 * len as f64;
    match kind {
        0 => Op::Invert,
        1 => Op::Cutout(square(centre, CUTOUT_SIDE[magnitude] / 2)),
        2 => Op::Sharpness(factor),
        3 => Op::AutoContrast,
        4 => Op::Posterize(POSTERIZE_BITS[magnitude]),
        5 => Op::ShearX(sign * 0.3 * level),
        6 => Op::TranslateX(shift(size.0)),
        7 => Op::TranslateY(shift(size.1)),
        8 => Op::ShearY(sign * 0.3 * level),
        9 => Op::Rotate(30.0 * level),
        10 => Op::Equalize,
        11 => Op::Contrast(factor),
        12 => Op::Saturation(factor),
        13 => Op::Solarize(256.0 * (1.0 - level)),
        _ => Op::Brightness(factor),
    }
}

/// The box from `centre - half` to `centre + half`, cut off at 0.
fn square(centre: (usize, usize), half: usize) -> CropBox {
    let span = |c: usize| (c.saturating_sub(half), c + half);
    let ((x, right), (y, bottom)) = (span(centre.0), span(centre.1));
    CropBox { x, y, w: right - x, h: bottom - y }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Rgb8;
    use crate::rng::{Purpose, stream};

    #[test]
    fn magnitudes_are_those_of_the_paper_code() {
        let at = |kind, magnitude, sign| op(kind, magnitude, sign, (1, 30), (331, 662));
        assert_eq!(at(1, 7, 1.0), Op::Cutout(CropBox { x: 0, y: 22, w: 9, h: 16 }));
        assert_eq!(at(4, 3, 1.0), Op::Posterize(7));
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
        for (op, expected) in [
            (at(2, 9, -1.0), 0.1),
            (at(5, 9, -1.0), -0.3),
            (at(6, 3, 1.0), 50.0),
            (at(7, 9, -1.0), -300.0),
            (at(8, 6, 1.0), 0.2),
            (at(9, 3, -1.0), 10.0),
            (at(11, 9, 1.0), 1.9),
            (at(12, 3, 1.0), 1.3),
            (at(13, 9, 1.0), 0.0),
            (at(14, 5, -1.0), 0.5),
        ] {
            match op {
                Op::Sharpness(v) | Op::ShearX(v) | Op::TranslateX(v) | Op::TranslateY(v) => {
                    close(v, expected)
                }
                Op::ShearY(v) | Op::Rotate(v) | Op::Contrast(v) => close(v, expected),
                Op::Saturation(v) | Op::Solarize(v) | Op::Brightness(v) => close(v, expected),
                other => panic!("{other:?}"),
            }
        }
    }

    /// A quarter of the images is left alone by both draws; some more by draws without effect.
    #[test]
    fn each_of_two_draws_fires_half_the_time() {
        let pixels = (0..32 * 32 * 3).map(|i| (i * 91 % 241) as u8).collect();
        let image = Rgb8 { width: 32, height: 32, pixels };
        let mut rng = stream(1, Purpose::Augment, 0, 0, 0);
        let unchanged = |_: &i32| {
            let mut copy = image.clone();
            draw(32, &mut rng).into_iter().for_each(|op| op.apply(&mut copy));
            copy == image
        };
        let share = (0..4000).filter(unchanged).count() as f64 / 4000.0;
        assert!((0.22..0.33).contains(&share), "{share}");
    }
}
