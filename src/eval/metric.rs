//! Accuracy and its uncertainty. Knows logits and labels, no model.
//!
//! Intervals are 95% and closed-form: Wilson's score interval for one accuracy, Agresti and Min's
//! adjusted Wald interval for the difference of two classifiers on the same images.

use serde::{Deserialize, Serialize};
use statrs::distribution::{Binomial, DiscreteCDF};

/// Standard normal quantile at 0.975.
const Z: f64 = 1.959_963_984_540_054;

/// Equal-width confidence bins of the calibration error (Guo et al. 2017).
const CALIBRATION_BINS: usize = 15;

/// How well logits predict labels. Shares are in 0..1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Images.
    pub n: usize,
    /// Images whose largest logit is the label's.
    pub correct: usize,
    /// Share of images right.
    pub top1: f64,
    /// Share of images with the label among the five largest logits; `None` below six classes.
    pub top5: Option<f64>,
    /// 95% Wilson interval of `top1`.
    pub top1_interval: (f64, f64),
    /// Mean recall over the classes that have images: what `top1` would be on balanced classes.
    pub balanced: f64,
    /// Mean F1 over the classes that have images or predictions.
    pub macro_f1: f64,
    /// Mean negative log-likelihood of the label in nats.
    pub nll: f64,
    /// Expected calibration error over 15 bins.
    pub ece: f64,
    /// Images by `[label][prediction]`.
    pub confusion: Vec<Vec<u32>>,
    /// One entry a class.
    pub per_class: Vec<ClassMetrics>,
}

/// How well one class does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassMetrics {
    /// Images with this label.
    pub images: usize,
    /// Images predicted to be of this class.
    pub predicted: usize,
    /// Images right.
    pub correct: usize,
    /// Share of the class's images that are right; `None` without images.
    pub recall: Option<f64>,
    /// Share of the predictions of this class that are right; `None` without predictions.
    pub precision: Option<f64>,
}

impl ClassMetrics {
    /// Harmonic mean of recall and precision; `None` without images and predictions.
    pub fn f1(&self) -> Option<f64> {
        share(2 * self.correct, self.images + self.predicted)
    }
}

impl Metrics {
    /// Measures `logits` `[n, classes]` against `labels` `[n]`.
    ///
    /// Equal logits rank by class index. A logit that is not a number ranks last.
    ///
    /// # Panics
    /// If the shapes do not fit or a label is not below `classes`.
    pub fn from_logits(logits: &[f32], labels: &[usize], classes: usize) -> Self {
        assert_eq!(
            logits.len(),
            labels.len() * classes,
            "logits must be [{}, {classes}]",
            labels.len()
        );
        let n = labels.len();
        let mut confusion = vec![vec![0u32; classes]; classes];
        let mut calibration = Calibration::default();
        let (mut in_top5, mut nll) = (0, 0.0);
        for (row, &label) in logits.chunks_exact(classes.max(1)).zip(labels) {
            let log_probs = log_softmax(row);
            let order = top(&log_probs, 5);
            confusion[label][order[0]] += 1;
            in_top5 += usize::from(order.contains(&label));
            nll -= log_probs[label];
            calibration.add(log_probs[order[0]].exp(), order[0] == label);
        }
        let per_class = per_class(&confusion);
        let correct = per_class.iter().map(|c| c.correct).sum();
        Self {
            n,
            correct,
            top1: share(correct, n).unwrap_or(0.0),
            top5: if classes < 6 { None } else { share(in_top5, n) },
            top1_interval: wilson(correct, n),
            balanced: mean(per_class.iter().filter_map(|c| c.recall)),
            macro_f1: mean(per_class.iter().filter_map(ClassMetrics::f1)),
            nll: nll / n.max(1) as f64,
            ece: calibration.error(),
            confusion,
            per_class,
        }
    }

    /// The accuracy of always naming the most frequent class of these images.
    pub fn chance(&self) -> f64 {
        let most = self.per_class.iter().map(|c| c.images).max().unwrap_or(0);
        share(most, self.n).unwrap_or(0.0)
    }

    /// The wrong cells of the confusion matrix, `(images, label, prediction)`, most images first.
    pub fn most_confused(&self) -> Vec<(u32, usize, usize)> {
        let mut pairs = Vec::new();
        for (label, row) in self.confusion.iter().enumerate() {
            for (predicted, &images) in row.iter().enumerate() {
                if images > 0 && predicted != label {
                    pairs.push((images, label, predicted));
                }
            }
        }
        pairs.sort_by_key(|&(images, label, predicted)| {
            (std::cmp::Reverse(images), label, predicted)
        });
        pairs
    }
}

/// Log-probabilities of one row of logits. What is not a number counts as the smallest `f32`.
pub fn log_softmax(row: &[f32]) -> Vec<f64> {
    let finite =
        |z: f32| f64::from(if z.is_nan() { f32::MIN } else { z.clamp(f32::MIN, f32::MAX) });
    let max = row.iter().map(|&z| finite(z)).fold(f64::NEG_INFINITY, f64::max);
    let log_sum = row.iter().map(|&z| (finite(z) - max).exp()).sum::<f64>().ln();
    row.iter().map(|&z| finite(z) - max - log_sum).collect()
}

/// Indices of the `k` largest values, largest first, equal ones by index.
pub fn top(values: &[f64], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    order.truncate(k);
    order
}

/// 95% Wilson score interval of the share `successes / n`; `(0, 1)` for `n = 0`.
pub fn wilson(successes: usize, n: usize) -> (f64, f64) {
    if n == 0 {
        return (0.0, 1.0);
    }
    let (p, n) = (successes as f64 / n as f64, n as f64);
    let scale = 1.0 + Z * Z / n;
    let centre = (p + Z * Z / (2.0 * n)) / scale;
    let half = Z / scale * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    // Rounding must not push an end past the share itself: of none right the lower end is 0.
    ((centre - half).clamp(0.0, p), (centre + half).clamp(p, 1.0))
}

/// 95% interval of the accuracy of `a` minus that of `b`, both measured on the same images.
///
/// Agresti and Min (2005), adjusted Wald: half an image is added to each cell of the 2x2 table of
/// right and wrong, then the normal interval of the paired difference is taken.
pub fn difference_interval(a_correct: &[bool], b_correct: &[bool]) -> (f64, f64) {
    let (only_a, only_b) = discordant(a_correct, b_correct);
    let (only_a, only_b) = (only_a as f64 + 0.5, only_b as f64 + 0.5);
    let n = a_correct.len() as f64 + 2.0;
    let difference = (only_a - only_b) / n;
    let half = Z * (only_a + only_b - (only_a - only_b).powi(2) / n).sqrt() / n;
    ((difference - half).max(-1.0), (difference + half).min(1.0))
}

/// Two-sided exact McNemar test that `a` and `b` are equally accurate on the same images.
pub fn mcnemar_p(a_correct: &[bool], b_correct: &[bool]) -> f64 {
    let (only_a, only_b) = discordant(a_correct, b_correct);
    match Binomial::new(0.5, only_a + only_b) {
        Ok(fair) => (2.0 * fair.cdf(only_a.min(only_b))).min(1.0),
        Err(_) => 1.0,
    }
}

/// Images that only `a`, and only `b`, got right.
fn discordant(a_correct: &[bool], b_correct: &[bool]) -> (u64, u64) {
    assert_eq!(a_correct.len(), b_correct.len(), "both must be measured on the same images");
    let count = |want: (bool, bool)| {
        a_correct.iter().zip(b_correct).filter(|&(&a, &b)| (a, b) == want).count() as u64
    };
    (count((true, false)), count((false, true)))
}

fn per_class(confusion: &[Vec<u32>]) -> Vec<ClassMetrics> {
    (0..confusion.len())
        .map(|class| {
            let images = confusion[class].iter().sum::<u32>() as usize;
            let predicted = confusion.iter().map(|row| row[class]).sum::<u32>() as usize;
            let correct = confusion[class][class] as usize;
            let (recall, precision) = (share(correct, images), share(correct, predicted));
            ClassMetrics { images, predicted, correct, recall, precision }
        })
        .collect()
}

/// Confidence and accuracy by bin, bins open below and closed above.
#[derive(Default)]
struct Calibration {
    bins: [(usize, f64); CALIBRATION_BINS],
}

impl Calibration {
    fn add(&mut self, confidence: f64, correct: bool) {
        let bin = (confidence * CALIBRATION_BINS as f64).ceil() as usize;
        let (count, gap) = &mut self.bins[bin.clamp(1, CALIBRATION_BINS) - 1];
        *count += 1;
        *gap += f64::from(u8::from(correct)) - confidence;
    }

    fn error(&self) -> f64 {
        let n: usize = self.bins.iter().map(|bin| bin.0).sum();
        self.bins.iter().map(|bin| bin.1.abs()).sum::<f64>() / n.max(1) as f64
    }
}

fn share(part: usize, whole: usize) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (count, sum) = values.fold((0usize, 0.0), |(count, sum), v| (count + 1, sum + v));
    sum / count.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-9, "{a} is not {b}");
    }

    /// The made-up logits of `tests/golden/report_metric.py`: 120 images, 7 classes, class 6 unused.
    fn example() -> (Vec<f32>, Vec<usize>) {
        let labels: Vec<usize> = (0..120).map(|i| (i * i / 3) % 6).collect();
        let noise = |i: u64, c: u64| {
            let h = (i * 7919 + c * 104_729 + 1) * 2_654_435_761 % (1 << 32);
            let h = (h ^ (h >> 15)) * 2_246_822_519 % (1 << 32);
            (h ^ (h >> 13)) as f64 / (1u64 << 32) as f64 * 6.0 - 3.0
        };
        let logit = |i: usize, c: usize| {
            (noise(i as u64, c as u64) + if labels[i] == c { 2.0 } else { 0.0 }) as f32
        };
        let logits = (0..120).flat_map(|i| (0..7).map(move |c| (i, c))).map(|(i, c)| logit(i, c));
        (logits.collect(), labels)
    }

    #[test]
    fn agrees_with_numpy() {
        let (logits, labels) = example();
        let m = Metrics::from_logits(&logits, &labels, 7);
        assert_eq!((m.n, m.correct), (120, 49));
        close(m.top1, 49.0 / 120.0);
        close(m.top5.unwrap(), 0.941_666_666_666_666_7);
        close(m.balanced, 0.404_605_198_722_845_8);
        close(m.macro_f1, 0.344_146_784_567_617_5);
        close(m.nll, 1.753_875_138_643_843_1);
        close(m.ece, 0.169_385_411_523_084_92);
        assert_eq!(m.confusion.iter().flatten().sum::<u32>(), 120);
        assert_eq!(m.per_class[6].recall, None);
        let (most, label, predicted) = m.most_confused()[0];
        assert_eq!(m.confusion[label][predicted], most);
        assert!(m.most_confused().iter().all(|p| p.0 <= most && p.1 != p.2));
    }

    #[test]
    fn survives_what_diverged_models_and_empty_sets_give() {
        let nan = Metrics::from_logits(&[f32::NAN; 12], &[0, 1], 6);
        assert_eq!((nan.correct, nan.top5), (1, Some(1.0)));
        close(nan.nll, 6f64.ln());
        let infinite = Metrics::from_logits(&[f32::INFINITY, f32::NAN], &[0], 2);
        assert!(infinite.correct == 1 && infinite.nll.is_finite() && infinite.top5.is_none());
        let none = Metrics::from_logits(&[], &[], 3);
        assert_eq!((none.top1, none.top1_interval, none.nll), (0.0, (0.0, 1.0), 0.0));
        let text = serde_json::to_string(&nan).unwrap();
        assert_eq!(serde_json::from_str::<Metrics>(&text).unwrap().confusion, nan.confusion);
    }

    /// scipy.stats.binomtest(k, n).proportion_ci(0.95, "wilson")
    #[test]
    fn wilson_agrees_with_scipy() {
        for (k, n, low, high) in [
            (0, 10, 0.0, 0.277_532_799_862_889_26),
            (7, 10, 0.396_778_147_461_145_26, 0.892_208_732_593_699),
            (4138, 6149, 0.661_124_329_183_508_2, 0.684_569_609_825_880_6),
        ] {
            close(wilson(k, n).0, low);
            close(wilson(k, n).1, high);
        }
        // Rounding once left 2.8e-17 for the lower end.
        assert!((1..500).all(|n| wilson(0, n).0 == 0.0 && wilson(n, n).1 == 1.0));
    }

    /// `only_a` images right in the first list only, `only_b` in the second only, of `n`.
    fn paired(only_a: usize, only_b: usize, n: usize) -> (Vec<bool>, Vec<bool>) {
        let a = (0..n).map(|i| i < only_a || i >= only_a + only_b && i % 2 == 0);
        let b = (0..n)
            .map(|i| (only_a..only_a + only_b).contains(&i) || i >= only_a + only_b && i % 2 == 0);
        (a.collect(), b.collect())
    }

    /// `agresti_min` of `tests/golden/report_metric.py`, which covers 95.2% on 20,000 draws.
    #[test]
    fn paired_difference_agrees_with_numpy() {
        for (only_a, only_b, n, low, high) in [
            (9, 2, 50, 0.009_279_047_679_625_285, 0.259_951_721_551_143_93),
            (40, 25, 1000, -0.000_893_924_752_866_433_2, 0.030_834_044_513_345_475),
        ] {
            let (a, b) = paired(only_a, only_b, n);
            let interval = difference_interval(&a, &b);
            close(interval.0, low);
            close(interval.1, high);
            close(difference_interval(&b, &a).0, -high);
        }
    }

    /// scipy.stats.binomtest(only_a, only_a + only_b, 0.5).pvalue
    #[test]
    fn mcnemar_agrees_with_scipy() {
        for (only_a, only_b, p) in [
            (9, 2, 0.065_429_687_5),
            (40, 25, 0.081_681_533_941_540_03),
            (600, 520, 0.018_207_019_279_300_136),
        ] {
            let (a, b) = paired(only_a, only_b, 2000);
            close(mcnemar_p(&a, &b), p);
            close(mcnemar_p(&b, &a), p);
        }
        close(mcnemar_p(&[true; 5], &[true; 5]), 1.0);
        close(mcnemar_p(&[true, false], &[false, true]), 1.0);
    }
}
