//! CutMix and Mixup as in the official code: the plan for a group of rows, and the writer that
//! normalises and mixes pixels on their way into the model.

use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Beta, Distribution};

use super::augment::CropBox;
use crate::config::LambdaRule;

/// What is done to the pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MixKind {
    /// Rows stay as they are.
    None,
    /// The box, possibly empty, is taken from the partner.
    CutMix(CropBox),
    /// `lambda` of the row plus `1 - lambda` of the partner.
    Mixup,
}

/// One mixing draw, shared by all rows of a crop group in one step.
#[derive(Clone, Debug, PartialEq)]
pub struct Mix {
    /// What is done to the pixels.
    pub kind: MixKind,
    /// Weight of the row's own label; the partner's has `1 - lambda`.
    pub lambda: f32,
    /// Row `i` is mixed with row `partner[i]`, a permutation; `partner[i] == i` can happen.
    pub partner: Vec<usize>,
}

impl Mix {
    /// No mixing of `rows` rows.
    pub fn none(rows: usize) -> Self {
        Self { kind: MixKind::None, lambda: 1.0, partner: (0..rows).collect() }
    }

    /// CutMix of square crops of `img_size` pixels; `alpha` <= 0 means no mixing.
    pub fn cutmix(
        rng: &mut ChaCha8Rng,
        rows: usize,
        img_size: usize,
        alpha: f64,
        rule: LambdaRule,
    ) -> Self {
        let Some(lambda) = draw_lambda(rng, alpha, rule) else {
            return Self::none(rows);
        };
        let partner = permutation(rng, rows);
        // Halving drops a pixel of odd sides; kept, as all released results have it.
        let half = (img_size as f64 * (1.0 - lambda).sqrt()) as usize / 2;
        let mut span = || {
            let centre = rng.random_range(0..img_size);
            let start = centre.saturating_sub(half);
            (start, (centre + half).min(img_size) - start)
        };
        let ((x, w), (y, h)) = (span(), span());
        let area = CropBox { x, y, w, h };
        Self {
            kind: MixKind::CutMix(area),
            lambda: (1.0 - area.area() as f64 / (img_size * img_size) as f64) as f32,
            partner,
        }
    }

    /// Mixup; `alpha` <= 0 means no mixing.
    pub fn mixup(rng: &mut ChaCha8Rng, rows: usize, alpha: f64, rule: LambdaRule) -> Self {
        let Some(lambda) = draw_lambda(rng, alpha, rule) else {
            return Self::none(rows);
        };
        Self { kind: MixKind::Mixup, lambda: lambda as f32, partner: permutation(rng, rows) }
    }

    /// Writes row `row` of the mixed batch, normalised, to `out` `[3, s, s]`.
    ///
    /// `crops` is `[rows, s, s, 3]` before mixing, so rows can be written in any order.
    ///
    /// # Panics
    /// If a slice is shorter than its shape says.
    pub fn write_row(
        &self,
        crops: &[u8],
        row: usize,
        s: usize,
        mean: [f32; 3],
        std: [f32; 3],
        out: &mut [f32],
    ) {
        let crop = |row: usize| &crops[row * s * s * 3..(row + 1) * s * s * 3];
        self.blend((crop(row), crop(self.partner[row])), s, mean, std, out);
    }

    /// [`Self::write_row`] of a row's own crop and its partner's, both `[s, s, 3]`.
    pub(super) fn blend(
        &self,
        (own, other): (&[u8], &[u8]),
        s: usize,
        mean: [f32; 3],
        std: [f32; 3],
        out: &mut [f32],
    ) {
        let (own, other) = (own.as_chunks().0, other.as_chunks().0);
        for (c, plane) in out[..3 * s * s].chunks_exact_mut(s * s).enumerate() {
            let scale = 1.0 / (255.0 * std[c]);
            let offset = -mean[c] / std[c];
            match self.kind {
                MixKind::None => normalize(plane, own, c, scale, offset),
                MixKind::CutMix(area) => {
                    normalize(plane, own, c, scale, offset);
                    for y in area.y..area.y + area.h {
                        let line = y * s + area.x..y * s + area.x + area.w;
                        normalize(&mut plane[line.clone()], &other[line], c, scale, offset);
                    }
                }
                MixKind::Mixup => {
                    let (own_scale, other_scale) =
                        (self.lambda * scale, (1.0 - self.lambda) * scale);
                    for ((out, a), b) in plane.iter_mut().zip(own).zip(other) {
                        *out = f32::from(a[c]) * own_scale + offset + f32::from(b[c]) * other_scale;
                    }
                }
            }
        }
    }
}

/// `out = pixels[..][c] * scale + offset`.
fn normalize(out: &mut [f32], pixels: &[[u8; 3]], c: usize, scale: f32, offset: f32) {
    for (out, pixel) in out.iter_mut().zip(pixels) {
        *out = f32::from(pixel[c]) * scale + offset;
    }
}

/// The mixing of a fine-tuning step, as in the official code: Mixup in even epochs and CutMix in odd
/// ones, or whichever of the two has a positive alpha.
pub fn finetune_mix(
    rng: &mut ChaCha8Rng,
    epoch: u32,
    rows: usize,
    img_size: usize,
    cutmix_alpha: f64,
    mixup_alpha: f64,
    rule: LambdaRule,
) -> Mix {
    let both = cutmix_alpha > 0.0 && mixup_alpha > 0.0;
    let cutmix = if both { epoch % 2 == 1 } else { cutmix_alpha > 0.0 };
    if cutmix {
        Mix::cutmix(rng, rows, img_size, cutmix_alpha, rule)
    } else {
        Mix::mixup(rng, rows, mixup_alpha, rule)
    }
}

fn draw_lambda(rng: &mut ChaCha8Rng, alpha: f64, rule: LambdaRule) -> Option<f64> {
    let lambda = Beta::new(alpha, alpha).ok()?.sample(rng);
    Some(match rule {
        LambdaRule::Fold => lambda.max(1.0 - lambda),
        LambdaRule::Raw => lambda,
    })
}

fn permutation(rng: &mut ChaCha8Rng, rows: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rows).collect();
    order.shuffle(rng);
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, stream};

    const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
    const STD: [f32; 3] = [0.229, 0.224, 0.225];

    fn rng(step: u64) -> ChaCha8Rng {
        stream(1, Purpose::Mix, 0, step, 0)
    }

    /// Row `r`, pixel (x, y), channel c has a value of its own.
    fn value(r: usize, x: usize, y: usize, c: usize) -> u8 {
        ((r * 61 + x * 7 + y * 13 + c * 29) % 256) as u8
    }

    fn crops(rows: usize, s: usize) -> Vec<u8> {
        let at = |i: usize| value(i / (s * s * 3), i / 3 % s, i / (s * 3) % s, i % 3);
        (0..rows * s * s * 3).map(at).collect()
    }

    fn write(mix: &Mix, row: usize, s: usize) -> Vec<f32> {
        let mut out = vec![f32::NAN; 3 * s * s];
        mix.write_row(&crops(mix.partner.len(), s), row, s, MEAN, STD, &mut out);
        out
    }

    #[test]
    fn folded_lambda_has_the_mean_of_the_arcsine_law() {
        let draws = 40_000;
        let mut rng = rng(0);
        let (mut folded, mut raw) = (0.0, 0.0);
        for _ in 0..draws {
            folded += f64::from(Mix::mixup(&mut rng, 1, 0.5, LambdaRule::Fold).lambda);
            raw += f64::from(Mix::mixup(&mut rng, 1, 0.5, LambdaRule::Raw).lambda);
        }
        // 1/2 + 1/pi; the standard errors are 0.0008 and 0.0018.
        assert!((folded / f64::from(draws) - 0.81831).abs() < 0.004);
        assert!((raw / f64::from(draws) - 0.5).abs() < 0.009);
    }

    #[test]
    fn cutmix_lambda_is_the_share_of_own_pixels() {
        let mut empty = 0;
        for step in 0..2000 {
            let mix = Mix::cutmix(&mut rng(step), 12, 112, 0.5, LambdaRule::Fold);
            let MixKind::CutMix(area) = mix.kind else { panic!("{mix:?}") };
            assert!(area.x + area.w <= 112 && area.y + area.h <= 112);
            // floor(112 sqrt(1/2)) = 79, halved twice over.
            assert!(area.w <= 78 && area.h <= 78);
            assert_eq!(mix.lambda, (1.0 - area.area() as f64 / 12544.0) as f32);
            empty += usize::from(area.area() == 0);
            let mut rows = mix.partner.clone();
            rows.sort_unstable();
            assert!(rows.into_iter().eq(0..12));
        }
        // A box is empty when 112 sqrt(1 - lambda) < 2: P = (4/pi) asin(2/112) = 0.0227.
        assert!((15..85).contains(&empty), "{empty}");
    }

    #[test]
    fn cutmix_takes_the_box_from_the_unmixed_partner() {
        let s = 8;
        let area = CropBox { x: 2, y: 3, w: 4, h: 5 };
        let mix =
            Mix { kind: MixKind::CutMix(area), lambda: 1.0 - 20.0 / 64.0, partner: vec![1, 2, 0] };
        for row in 0..3 {
            let out = write(&mix, row, s);
            for (i, &ours) in out.iter().enumerate() {
                let (x, y, c) = (i % s, i / s % s, i / (s * s));
                let inside = (2..6).contains(&x) && (3..8).contains(&y);
                let from = if inside { (row + 1) % 3 } else { row };
                let expected = (f32::from(value(from, x, y, c)) / 255.0 - MEAN[c]) / STD[c];
                assert!((ours - expected).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn mixup_averages_with_the_partner() {
        let mix = Mix { kind: MixKind::Mixup, lambda: 0.75, partner: vec![1, 0] };
        let (plain, mixed) = (Mix::none(2), write(&mix, 0, 5));
        for ((own, other), ours) in write(&plain, 0, 5).iter().zip(write(&plain, 1, 5)).zip(mixed) {
            assert!((ours - (0.75 * own + 0.25 * other)).abs() < 1e-5);
        }
    }

    #[test]
    fn lambda_one_leaves_a_row_as_it_is() {
        let area = CropBox { x: 3, y: 3, w: 0, h: 2 };
        for kind in [MixKind::Mixup, MixKind::CutMix(area)] {
            let mix = Mix { kind, lambda: 1.0, partner: vec![1, 0] };
            assert_eq!(write(&mix, 1, 6), write(&Mix::none(2), 1, 6));
        }
    }

    #[test]
    fn finetuning_alternates_by_epoch() {
        let kind = |epoch, cutmix, mixup| {
            finetune_mix(&mut rng(5), epoch, 4, 64, cutmix, mixup, LambdaRule::Fold).kind
        };
        assert!(matches!(kind(0, 0.5, 0.5), MixKind::Mixup));
        assert!(matches!(kind(1, 0.5, 0.5), MixKind::CutMix(_)));
        assert!(matches!(kind(2, 0.5, 0.0), MixKind::CutMix(_)));
        assert!(matches!(kind(3, 0.0, 0.5), MixKind::Mixup));
        assert!(matches!(kind(3, 0.0, 0.0), MixKind::None));
    }
}
