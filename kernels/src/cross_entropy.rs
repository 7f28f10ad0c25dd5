//! Cross-entropy of softmax over many classes with targets of two classes and a share for all, and
//! its gradient, in closed form.

use crate::check::check_len;
use crate::simd::{Kernel, Level, Simd, exp};

/// A row's target: a share of class `a` and one of class `b`.
///
/// Keeping the two classes apart, instead of scattering into a vector, makes `a == b` right by
/// itself: an image may be mixed with itself or with another view of itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MixedTarget {
    /// Class of the receiving image.
    pub a: usize,
    /// Class of the image mixed in.
    pub b: usize,
    /// Shares of `a` and `b`: `lambda` and the rest, each times the weight of its class if classes have
    /// weights.
    pub shares: [f32; 2],
}

impl MixedTarget {
    /// `lambda` of class `a` and the rest of class `b`, of weight 1 both.
    pub fn mix(a: usize, b: usize, lambda: f32) -> Self {
        Self { a, b, shares: [lambda, 1.0 - lambda] }
    }

    /// Both shares together: what the smoothed part of the target is multiplied by.
    fn total(&self) -> f64 {
        self.shares.iter().map(|&share| f64::from(share)).sum()
    }
}

/// Targets y of all rows: `off` times both shares on every class, and more on `a` and `b`, `on` times the
/// share of each.
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
        let logits = logits.chunks_exact(classes).zip(slopes.chunks_exact_mut(classes));
        for ((target, (o, slopes)), loss) in rows.iter().zip(logits).zip(losses) {
            let &MixedTarget { a, b, shares } = target;
            let off = off * target.total();
            // 1 where the target is a distribution.
            let mass = on * target.total() + off * classes as f64;
            let Row { largest, sum_exp, sum } = exponentials::<S>(o, slopes);
            let [at_a, at_b] = shares.map(|share| on * f64::from(share));
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
        let row = |r: usize| {
            let b = if r % 4 == 3 { r * 5 % classes } else { (r * 7 + 1) % classes };
            MixedTarget::mix(r * 5 % classes, b, (r % 3) as f32 / 2.0)
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
    fn weights_of_classes_multiply_what_their_part_of_the_target_costs() {
        let logits = Generator::new(18).normal(7);
        let run = |row| {
            let targets = SoftTargets { rows: vec![row], ..targets(1, 7, 0.1) };
            run(Level::current(), &logits, 7, &targets)
        };
        let [of_a, of_b] = [2, 5].map(|class| run(MixedTarget::mix(class, class, 1.0)));
        let both = run(MixedTarget { a: 2, b: 5, shares: [0.75 * 3.0, 0.25 * 0.5] });
        for (i, both) in both.iter().enumerate() {
            let parts = of_a[i].iter().zip(&of_b[i]);
            let sums: Vec<_> =
                parts.map(|(&a, &b)| 2.25 * f64::from(a) + 0.125 * f64::from(b)).collect();
            assert_close(both, &sums, 1e-6);
        }
    }

    #[test]
    fn extreme_logits_neither_overflow_nor_lose_small_losses() {
        for level in Level::available() {
            let sure = SoftTargets { rows: vec![MixedTarget::mix(1, 1, 1.0)], on: 1.0, off: 0.0 };
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
