//! Cross-entropy of softmax over many classes with targets of two classes and a share for all, and
//! its gradient, in closed form.

use crate::check::check_len;
use crate::simd::{Kernel, Level, Simd, exp};

/// A row's target: `lambda` of class `a` and the rest of class `b`.
///
/// Keeping the two classes apart, instead of scattering into a vector, makes `a == b` right by
/// itself (recipe section 1.4, "Case i = i'").
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MixedTarget {
    /// Class of the receiving image.
    pub a: usize,
    /// Class of the image mixed in.
    pub b: usize,
    /// Share of `a`.
    pub lambda: f32,
}

/// Targets y of all rows: `off` on every class, `on lambda` more on `a`, `on (1 - lambda)` on `b`.
#[derive(Clone, Debug, PartialEq)]
pub struct SoftTargets {
    /// One a row.
    pub rows: Vec<MixedTarget>,
    /// What a row's two classes share.
    pub on: f64,
    /// What every class gets.
    pub off: f64,
}

/// `losses` `[rows]` = `sum_k y_k (log sum_j exp(o_j) - o_k)` of each row o of `logits` `[rows,
/// classes]`, and `slopes` `[rows, classes]`, the derivative of a row's loss by its logits; both
/// overwritten. The results of rows with a logit that is not a number are not numbers.
///
/// # Panics
/// If there are no classes or a slice has not the length that `targets` and `classes` imply; if a
/// target is no class.
pub fn cross_entropy(
    logits: &[f32],
    classes: usize,
    targets: &SoftTargets,
    losses: &mut [f32],
    slopes: &mut [f32],
) {
    cross_entropy_at(Level::current(), logits, classes, targets, losses, slopes);
}

pub(crate) fn cross_entropy_at(
    level: Level,
    logits: &[f32],
    classes: usize,
    targets: &SoftTargets,
    losses: &mut [f32],
    slopes: &mut [f32],
) {
    assert!(classes > 0, "no classes");
    let rows = targets.rows.len();
    check_len("the logits", logits, rows * classes);
    check_len("the losses", losses, rows);
    check_len("the slopes", slopes, rows * classes);
    level.run(CrossEntropy { logits, classes, targets, losses, slopes });
}

struct CrossEntropy<'a> {
    logits: &'a [f32],
    classes: usize,
    targets: &'a SoftTargets,
    losses: &'a mut [f32],
    slopes: &'a mut [f32],
}

impl Kernel for CrossEntropy<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { logits, classes, targets, losses, slopes } = self;
        let &SoftTargets { ref rows, on, off } = targets;
        // 1 where the targets are distributions.
        let mass = on + off * classes as f64;
        let logits = logits.chunks_exact(classes).zip(slopes.chunks_exact_mut(classes));
        for ((&MixedTarget { a, b, lambda }, (o, slopes)), loss) in
            rows.iter().zip(logits).zip(losses)
        {
            let Row { largest, sum_exp, sum } = exponentials::<S>(o, slopes);
            let (at_a, at_b) = (on * f64::from(lambda), on * f64::from(1.0 - lambda));
            // All terms count from the largest logit, so none cancels another.
            let log = sum_exp.ln();
            let above = |class: usize| log - f64::from(o[class] - largest);
            let everywhere = classes as f64 * log - sum;
            *loss = (at_a * above(a) + at_b * above(b) + off * everywhere) as f32;
            let (scale, off) = (S::splat((mass / sum_exp) as f32), S::splat(-off as f32));
            for piece in S::pieces(classes) {
                let slope = S::load(&slopes[piece.clone()]).mul_add(scale, off);
                slope.store(&mut slopes[piece]);
            }
            slopes[a] -= at_a as f32;
            slopes[b] -= at_b as f32;
        }
    }
}

/// What is seen of the logits o of a row.
struct Row {
    largest: f32,
    /// Of `exp(o_k - largest)`.
    sum_exp: f64,
    /// Of `o_k - largest`.
    sum: f64,
}

/// Writes `exp(o_k - largest)`; the first pass finds the row in the cache for the others.
#[inline(always)]
fn exponentials<S: Simd>(o: &[f32], out: &mut [f32]) -> Row {
    let lowest = S::splat(f32::NEG_INFINITY);
    let mut largest = lowest;
    for piece in S::pieces(o.len()) {
        largest = S::load(&o[piece.clone()]).first(piece.len(), lowest).max(largest);
    }
    let largest = largest.largest();
    let zero = S::splat(0.0);
    let (mut sum_exp, mut sum) = (zero, zero);
    for piece in S::pieces(o.len()) {
        let shifted = S::load(&o[piece.clone()]) - S::splat(largest);
        let e = exp(shifted);
        sum_exp = sum_exp + e.first(piece.len(), zero);
        sum = sum + shifted.first(piece.len(), zero);
        e.store(&mut out[piece]);
    }
    Row { largest, sum_exp: sum_exp.sum().into(), sum: sum.sum().into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{self, Generator, assert_close};

    fn targets(rows: usize, classes: usize, smoothing: f64) -> SoftTargets {
        let off = smoothing / classes as f64;
        // Shares of 0, 1 and between; every fourth row has one class alone.
        let row = |r: usize| MixedTarget {
            a: r * 5 % classes,
            b: if r % 4 == 3 { r * 5 % classes } else { (r * 7 + 1) % classes },
            lambda: (r % 3) as f32 / 2.0,
        };
        SoftTargets { rows: (0..rows).map(row).collect(), on: 1.0 - smoothing, off }
    }

    fn run(level: Level, logits: &[f32], classes: usize, t: &SoftTargets) -> [Vec<f32>; 2] {
        let [mut losses, mut slopes] = [vec![9.0; t.rows.len()], vec![9.0; logits.len()]];
        cross_entropy_at(level, logits, classes, t, &mut losses, &mut slopes);
        [losses, slopes]
    }

    #[test]
    fn matches_f64_at_every_level() {
        for level in Level::available() {
            let all = [1, 5, 33, 2, 16, 77, 2040];
            for &classes in reference::fewer_under_miri(&all, 3) {
                for (smoothing, spread) in [(0.0, 1.0), (0.1, 1.0), (0.1, 30.0)] {
                    let targets = targets(13, classes, smoothing);
                    let mut logits = Generator::new(15).normal(13 * classes);
                    logits.iter_mut().for_each(|o| *o *= spread);
                    let [losses, slopes] = run(level, &logits, classes, &targets);
                    let exact = reference::cross_entropy(&logits, classes, &targets);
                    assert_close(&losses, &exact[0], 1e-6);
                    assert_close(&slopes, &exact[1], 1e-6);
                }
            }
        }
    }

    #[test]
    fn targets_that_are_no_distributions_have_their_gradient_too() {
        let targets = SoftTargets { on: 0.5, off: 0.25, ..targets(3, 5, 0.0) };
        let logits = Generator::new(16).normal(15);
        let [losses, slopes] = run(Level::current(), &logits, 5, &targets);
        let exact = reference::cross_entropy(&logits, 5, &targets);
        assert_close(&losses, &exact[0], 1e-6);
        assert_close(&slopes, &exact[1], 1e-6);
    }

    #[test]
    fn extreme_logits_neither_overflow_nor_lose_small_losses() {
        for level in Level::available() {
            let sure = SoftTargets {
                rows: vec![MixedTarget { a: 1, b: 1, lambda: 1.0 }],
                on: 1.0,
                off: 0.0,
            };
            let mut logits = vec![3000.0; 21];
            logits[1] = 3010.0;
            let [losses, _] = run(level, &logits, 21, &sure);
            let exact = 20.0 * (-10f64).exp();
            assert!((f64::from(losses[0]) / exact.ln_1p() - 1.0).abs() < 1e-3, "{losses:?}");
            logits[1] = -3e38;
            let [losses, slopes] = run(level, &logits, 21, &sure);
            assert_close(&losses, &[3e38], 1e-6);
            assert!(
                (slopes[1] + 1.0).abs() < 1e-6 && (slopes[0] - 0.05).abs() < 1e-6,
                "{slopes:?}"
            );
        }
    }

    #[test]
    fn not_a_number_stays_in_its_row() {
        for level in Level::available() {
            for place in [0, 16, 20] {
                let mut logits = Generator::new(17).normal(3 * 21);
                logits[21 + place] = f32::NAN;
                let [losses, slopes] = run(level, &logits, 21, &targets(3, 21, 0.1));
                assert_eq!([0, 1, 2].map(|row| losses[row].is_nan()), [false, true, false]);
                let nan = slopes.chunks(21).map(|row| row.iter().all(|slope| slope.is_nan()));
                assert_eq!(nan.collect::<Vec<_>>(), [false, true, false]);
                assert!(slopes[..21].iter().chain(&slopes[42..]).all(|slope| slope.is_finite()));
            }
        }
    }

    #[test]
    #[should_panic = "the logits: 9 values where 10 are needed"]
    fn short_logits_are_refused() {
        run(Level::current(), &[0.0; 9], 5, &targets(2, 5, 0.0));
    }
}
