//! The paper's identities as numbers on random data: both sides and their difference.
//!
//! All in 64 bits and from the definitions, apart from what trains a model; equation numbers are those
//! of arXiv 2201.10728. Where the paper has a misprint, it stands beside what is right.

use rand::Rng as _;
use serde::Serialize;

use crate::eval::spectrum::dot;
use crate::rng::{Purpose, stream};

/// Rows of numbers.
pub type Matrix = Vec<Vec<f64>>;

/// One identity, or what the paper prints of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Identity {
    /// The paper's equation.
    pub equation: &'static str,
    /// What is compared with what.
    pub says: &'static str,
    /// The left side; of a gradient its norm.
    pub left: f64,
    /// The right side, likewise.
    pub right: f64,
    /// Largest difference of any entry.
    pub difference: f64,
    /// Whether both sides are the same up to rounding.
    pub holds: bool,
}

/// What the identities are tried on.
#[derive(Clone, Debug)]
pub struct Trial {
    /// Features of a view of each instance, `[N, d]`.
    pub view_a: Matrix,
    /// Features of another view, `[N, d]`.
    pub view_b: Matrix,
    /// Rows of the classifier, `[N, d]`.
    pub weights: Matrix,
    /// Rows of a classifier of clusters, `[K, d]`; K divides N.
    pub centres: Matrix,
    /// Label smoothing.
    pub smoothing: f64,
    /// CutMix's share of the image that is kept.
    pub lambda: f64,
}

/// Instances, clusters and features of the random trial.
const SIZES: (usize, usize, usize) = (12, 3, 5);

impl Trial {
    /// Numbers between -1 and 1 drawn with `seed`, the paper's smoothing, and a kept share of 0.7.
    pub fn random(seed: u64) -> Self {
        let (n, k, d) = SIZES;
        let mut rng = stream(seed, Purpose::Bench, 0, 0, 0);
        let mut draw = |rows: usize| -> Matrix {
            let mut number = || 2.0 * (rng.next_u32() as f64 / f64::from(u32::MAX)) - 1.0;
            (0..rows).map(|_| (0..d).map(|_| number()).collect()).collect()
        };
        Self {
            view_a: draw(n),
            view_b: draw(n),
            weights: draw(n),
            centres: draw(k),
            smoothing: 0.1,
            lambda: 0.7,
        }
    }
}

/// Agreement that rounding in 64 bits, and that of difference quotients, leaves.
const EXACT: f64 = 1e-9;
const QUOTIENT: f64 = 1e-7;

/// Natural logarithm of the sum of exponentials.
fn log_sum(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let max = values.clone().fold(f64::NEG_INFINITY, f64::max);
    max + values.map(|value| (value - max).exp()).sum::<f64>().ln()
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let log = log_sum(logits.iter().copied());
    logits.iter().map(|logit| (logit - log).exp()).collect()
}

fn logits(weights: &Matrix, feature: &[f64]) -> Vec<f64> {
    weights.iter().map(|row| dot(row, feature)).collect()
}

/// Sum over images of minus the logarithm of the own instance's probability.
fn instance_discrimination(weights: &Matrix, features: &Matrix) -> f64 {
    let of = |(i, feature): (usize, &Vec<f64>)| -softmax(&logits(weights, feature))[i].ln();
    features.iter().enumerate().map(of).sum()
}

/// Sum over queries of minus log of the positive's share among positive and negatives, all of `keys`.
fn contrast(queries: &Matrix, keys: &Matrix) -> f64 {
    let of = |(i, query): (usize, &Vec<f64>)| {
        let positive = dot(query, &keys[i]);
        let negatives = keys.iter().enumerate().filter(|(j, _)| *j != i);
        let negatives = negatives.map(|(_, key)| dot(query, key).exp());
        -positive + (positive.exp() + negatives.sum::<f64>()).ln()
    };
    queries.iter().enumerate().map(of).sum()
}

/// What the appendix prints for the view whose features are the classifier: another view's similarity
/// among the negatives.
fn contrast_as_misprinted(view: &Matrix, other: &Matrix) -> f64 {
    let of = |(i, anchor): (usize, &Vec<f64>)| {
        let negatives = view.iter().enumerate().filter(|(j, _)| *j != i);
        let negatives = negatives.map(|(_, key)| dot(anchor, key).exp());
        -dot(anchor, anchor) + (dot(anchor, &other[i]).exp() + negatives.sum::<f64>()).ln()
    };
    view.iter().enumerate().map(of).sum()
}

/// Cross-entropy of the feature against targets, which need not add up to 1.
fn cross_entropy(weights: &Matrix, feature: &[f64], targets: &[f64]) -> f64 {
    let logits = logits(weights, feature);
    let log = log_sum(logits.iter().copied());
    logits.iter().zip(targets).map(|(logit, target)| target * (log - logit)).sum()
}

/// `1 - smoothing` on the class, the rest spread over the others (Eq. 17).
fn smoothed(class: usize, classes: usize, smoothing: f64) -> Vec<f64> {
    let off = smoothing / (classes - 1) as f64;
    (0..classes).map(|k| if k == class { 1.0 - smoothing } else { off }).collect()
}

fn equal(
    equation: &'static str,
    says: &'static str,
    (left, right): (f64, f64),
    tolerance: f64,
) -> Identity {
    let difference = (left - right).abs();
    Identity { equation, says, left, right, difference, holds: difference <= tolerance }
}

fn equal_all(
    equation: &'static str,
    says: &'static str,
    (left, right): (Vec<f64>, Vec<f64>),
    tolerance: f64,
) -> Identity {
    let difference = left.iter().zip(&right).map(|(l, r)| (l - r).abs()).fold(0.0, f64::max);
    let norm = |all: &[f64]| dot(all, all).sqrt();
    let (left, right) = (norm(&left), norm(&right));
    Identity { equation, says, left, right, difference, holds: difference <= tolerance }
}

/// Step of the difference quotients.
const STEP: f64 = 1e-5;

/// The gradient of `loss` at `at` by central difference quotients.
fn quotients(at: &[f64], loss: &dyn Fn(&[f64]) -> f64) -> Vec<f64> {
    let moved = |i: usize, by: f64| {
        let mut values = at.to_vec();
        values[i] += by;
        loss(&values)
    };
    (0..at.len()).map(|i| (moved(i, STEP) - moved(i, -STEP)) / (2.0 * STEP)).collect()
}

/// The identities on `trial`, in the paper's order.
pub fn identities(trial: &Trial) -> Vec<Identity> {
    [special_cases(trial), clusters(trial), gradients(trial), mixed_targets(trial)].concat()
}

/// Equations 5 to 7: contrastive losses as instance discrimination.
fn special_cases(trial: &Trial) -> Vec<Identity> {
    let Trial { view_a, view_b, weights, .. } = trial;
    let both = |w: &Matrix| instance_discrimination(w, view_a) + instance_discrimination(w, view_b);
    let stacked = || -> f64 {
        let views = view_a.iter().zip(view_b).enumerate();
        let of = |(i, (a, b)): (usize, (&Vec<f64>, &Vec<f64>))| {
            let each = [a, b].map(|z| log_sum(logits(weights, z).into_iter()));
            each.iter().sum::<f64>() - dot(&weights[i], a) - dot(&weights[i], b)
        };
        views.map(of).sum()
    };
    let contrasts = contrast(view_a, view_a) + contrast(view_b, view_a);
    let misprinted = contrast_as_misprinted(view_a, view_b) + contrast(view_b, view_a);
    vec![
        equal(
            "5",
            "instance discrimination with w_j = z_j is contrast with every other image",
            (instance_discrimination(view_a, view_a), contrast(view_a, view_a)),
            EXACT,
        ),
        equal(
            "6",
            "instance discrimination of two views is the sum over views of -w_i z_i + log sum exp w_j z_i",
            (both(weights), stacked()),
            EXACT,
        ),
        equal(
            "7",
            "with w_j = z_jA it is the contrast of B with A, and of A with itself",
            (both(view_a), contrasts),
            EXACT,
        ),
        equal(
            "7, as the appendix prints it",
            "with z_iA z_iB for z_iA z_iA in the logarithm of view A",
            (both(view_a), misprinted),
            EXACT,
        ),
    ]
}

/// Equation 12: deep clustering as instance discrimination with one row for all of a cluster.
fn clusters(trial: &Trial) -> Vec<Identity> {
    let Trial { view_a, centres, .. } = trial;
    let (n, k) = (view_a.len(), centres.len());
    let sums = |cluster: &dyn Fn(usize) -> usize, sizes: &[f64]| {
        let tied: Matrix = (0..n).map(|i| centres[cluster(i)].clone()).collect();
        let clustering = |shift: &[f64]| -> f64 {
            let of = |(i, z): (usize, &Vec<f64>)| {
                let logits: Vec<f64> =
                    logits(centres, z).iter().zip(shift).map(|(l, s)| l + s).collect();
                -softmax(&logits)[cluster(i)].ln()
            };
            view_a.iter().enumerate().map(of).sum()
        };
        let logs: Vec<f64> = sizes.iter().map(|size| size.ln()).collect();
        let constant: f64 = sizes.iter().zip(&logs).map(|(size, log)| size * log).sum();
        let plain = clustering(&vec![0.0; k]);
        (instance_discrimination(&tied, view_a), plain, clustering(&logs) + constant, constant)
    };
    let alike = vec![(n / k) as f64; k];
    let (tied, plain, _, constant) = sums(&|i| i % k, &alike);
    // The last clusters take an image each from the first one.
    let moved = |i: usize| if i.is_multiple_of(k) && i > 0 { (i / k) % k } else { i % k };
    let mut sizes = vec![0.0; k];
    (0..n).for_each(|i| sizes[moved(i)] += 1.0);
    let (uneven, _, shifted, _) = sums(&moved, &sizes);
    vec![
        equal(
            "12, as printed",
            "tied rows: instance discrimination is deep clustering",
            (tied, plain),
            EXACT,
        ),
        equal(
            "12, clusters of one size n",
            "it is deep clustering + N log n, so the gradients are the same",
            (tied, plain + constant),
            EXACT,
        ),
        equal(
            "12, clusters of any size",
            "it is deep clustering with log n_k on the logits, + sum n_k log n_k",
            (uneven, shifted),
            EXACT,
        ),
    ]
}

/// The classifier with row `k` replaced.
fn with_row(weights: &Matrix, k: usize, row: &[f64]) -> Matrix {
    let mut weights = weights.clone();
    weights[k] = row.to_vec();
    weights
}

/// `factor * feature`.
fn scaled(feature: &[f64], factor: f64) -> Vec<f64> {
    feature.iter().map(|value| factor * value).collect()
}

/// The sum of the classifier's rows, each times its weight.
fn mixture(weights: &Matrix, factors: &[f64]) -> Vec<f64> {
    let mut sum = vec![0.0; weights[0].len()];
    for (row, factor) in weights.iter().zip(factors) {
        sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += factor * value);
    }
    sum
}

/// The image and the other row that gradients are looked at for.
const IMAGE: usize = 0;
const OTHER: usize = 1;

/// Equations 14 to 16: gradients of instance discrimination for one image.
fn gradients(trial: &Trial) -> Vec<Identity> {
    let Trial { view_a, weights, .. } = trial;
    let z = &view_a[IMAGE];
    let one_hot: Vec<f64> = (0..weights.len()).map(|k| f64::from(u8::from(k == IMAGE))).collect();
    let p = softmax(&logits(weights, z));
    let minus: Vec<f64> = p.iter().zip(&one_hot).map(|(p, y)| p - y).collect();
    let by_row = |k: usize| {
        let loss = |row: &[f64]| cross_entropy(&with_row(weights, k, row), z, &one_hot);
        quotients(&weights[k], &loss)
    };
    let by_feature = quotients(z, &|z| cross_entropy(weights, z, &one_hot));
    vec![
        equal_all(
            "14 to 16",
            "gradient by z_i: -w_i + sum P_j w_j, against difference quotients",
            (mixture(weights, &minus), by_feature),
            QUOTIENT,
        ),
        equal_all(
            "14 to 16",
            "gradient by the own row w_i: (P_i - 1) z_i",
            (scaled(z, p[IMAGE] - 1.0), by_row(IMAGE)),
            QUOTIENT,
        ),
        equal_all(
            "14 to 16",
            "gradient by another row w_k: P_k z_i",
            (scaled(z, p[OTHER]), by_row(OTHER)),
            QUOTIENT,
        ),
    ]
}

/// Equations 19 and 20: targets of label smoothing with CutMix, and their gradients.
fn mixed_targets(trial: &Trial) -> Vec<Identity> {
    let Trial { view_a, weights, smoothing, lambda, .. } = trial;
    let (n, e, l) = (weights.len(), *smoothing, *lambda);
    let off = e / (n - 1) as f64;
    let [own, partner] = [IMAGE, OTHER].map(|class| smoothed(class, n, e));
    let mixed: Vec<f64> = own.iter().zip(&partner).map(|(a, b)| l * a + (1.0 - l) * b).collect();
    let last = n - 1;
    let formula = |rest: f64| -> Vec<f64> {
        let of = |k| match k {
            IMAGE => l * (1.0 - e) + (1.0 - l) * off,
            OTHER => (1.0 - l) * (1.0 - e) + l * off,
            _ => rest,
        };
        (0..n).map(of).collect()
    };
    let z = &view_a[IMAGE];
    let convex =
        |w: &Matrix| l * cross_entropy(w, z, &own) + (1.0 - l) * cross_entropy(w, z, &partner);
    let p = softmax(&logits(weights, z));
    let gradient = |k: usize, y: &[f64]| scaled(z, p[k] - y[k]);
    let by_row = |k: usize| quotients(&weights[k], &|row| convex(&with_row(weights, k, row)));
    let (right, printed) = (formula(off), formula(l * off));
    let sum = |targets: &[f64]| targets.iter().sum::<f64>();
    vec![
        equal("19, C_i", "mixing two smoothed targets", (mixed[IMAGE], right[IMAGE]), EXACT),
        equal("19, C_i'", "mixing two smoothed targets", (mixed[OTHER], right[OTHER]), EXACT),
        equal("19, C of others", "it is e / (N - 1)", (mixed[last], right[last]), EXACT),
        equal("19, C as printed", "lambda e / (N - 1)", (mixed[last], printed[last]), EXACT),
        equal("19, sum of targets", "1", (1.0, sum(&right)), EXACT),
        equal(
            "19, sum as printed",
            "less than 1, which the log-sum-exp contradicts",
            (1.0, sum(&printed)),
            EXACT,
        ),
        equal_all(
            "20",
            "gradient by w_i: (P_i - C_i) z, against difference quotients of the mixed loss",
            (gradient(IMAGE, &right), by_row(IMAGE)),
            QUOTIENT,
        ),
        equal_all(
            "20",
            "gradient by another row w_k: (P_k - C) z",
            (gradient(last, &right), by_row(last)),
            QUOTIENT,
        ),
        equal_all(
            "20, C as printed",
            "gradient by another row w_k with lambda e / (N - 1)",
            (gradient(last, &printed), by_row(last)),
            QUOTIENT,
        ),
    ]
}

#[cfg(test)]
mod tests;
