//! Linear probe: multinomial logistic regression on frozen features, fitted by L-BFGS, with the
//! strength of its L2 penalty chosen by cross-validation on the training images.

use argmin::core::{
    CostFunction, Error as Unsolved, Executor, Gradient, TerminationReason, TerminationStatus,
};
use argmin::solver::linesearch::MoreThuenteLineSearch;
use argmin::solver::quasinewton::LBFGS;

use crate::error::{Error, Result};

/// How the probe is fitted.
#[derive(Clone, Debug)]
pub struct ProbeOptions {
    /// Penalties to choose from: factors of half the squared weights, beside the mean loss.
    pub penalties: Vec<f64>,
    /// Parts of the cross-validation.
    pub folds: usize,
    /// Most iterations of one fit.
    pub iterations: u64,
    /// Threads.
    pub threads: usize,
}

/// A fitted probe.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The penalty: that which the cross-validation chose, else the strongest.
    pub penalty: f64,
    /// Share of the training images that the cross-validation named right at that penalty; `None` where there
    /// was nothing to choose by, as no class has two images.
    pub validated: Option<f64>,
    /// Whether the search for the weights ended at a minimum and not at its most iterations.
    pub converged: bool,
    scaling: Scaling,
    model: Linear,
}

/// Features with mean 0 and deviation 1 over the training images, so that one penalty suits all.
#[derive(Clone, Debug)]
struct Scaling {
    mean: Vec<f64>,
    factor: Vec<f64>,
}

/// `[dim + 1, classes]`, the biases last.
#[derive(Clone, Debug)]
struct Linear {
    weights: Vec<f64>,
    classes: usize,
}

impl Probe {
    /// Fits `features` `[n, dim]` with `labels` `[n]`, each below `classes`.
    ///
    /// # Errors
    /// No images, or features that are no numbers.
    pub fn fit(
        features: &[f32],
        labels: &[usize],
        classes: usize,
        options: &ProbeOptions,
    ) -> Result<Self> {
        if labels.is_empty() || features.iter().any(|v| !v.is_finite()) {
            return Err(Error::Data(
                "a probe needs labelled training images with finite features".to_owned(),
            ));
        }
        let scaling = Scaling::of(features, features.len() / labels.len());
        let x = scaling.apply(features);
        let positions = positions_in_class(labels, classes);
        let jobs: Vec<(f64, usize)> = options
            .penalties
            .iter()
            .flat_map(|&penalty| (0..options.folds).map(move |fold| (penalty, fold)))
            .collect();
        let all: Vec<usize> = (0..labels.len()).collect();
        let problem = Regression { x: &x, labels, rows: &all, classes, penalty: 0.0 };
        let hits =
            crate::data::parallel::map_in_order(&jobs, options.threads, |&(penalty, fold)| {
                let held_out = |&i: &usize| positions[i] % options.folds == fold;
                let (rows_out, rows_in): (Vec<_>, Vec<_>) = all.iter().partition(|i| held_out(i));
                if rows_in.is_empty() {
                    return Ok(0);
                }
                let part = Regression { rows: &rows_in, penalty, ..problem };
                let (model, _) = fit(part, options.iterations)?;
                let mut z = vec![0.0; classes];
                let right = rows_out.into_iter().filter(|&i| {
                    logits(&model.weights, x.row(i), &mut z);
                    largest(&z) == labels[i]
                });
                Ok(right.count())
            })?;
        let by_penalty = hits.chunks_exact(options.folds.max(1)).map(|h| h.iter().sum::<usize>());
        // Of equal ones the strongest, listed first.
        let best = options.penalties.iter().zip(by_penalty).fold(None, |best, (&penalty, hits)| {
            if best.is_none_or(|(_, most)| hits > most) { Some((penalty, hits)) } else { best }
        });
        let (penalty, hits) =
            best.ok_or_else(|| Error::Usage("a probe needs at least one penalty".to_owned()))?;
        let (model, converged) = fit(Regression { penalty, ..problem }, options.iterations)?;
        // Where every image is alone in its class, all are in the first part, and none is left to fit.
        let several = positions.iter().any(|&position| position > 0);
        let validated = several.then(|| hits as f64 / labels.len() as f64);
        Ok(Self { penalty, validated, converged, scaling, model })
    }

    /// Logits `[n, classes]` of `features` `[n, dim]`.
    pub fn logits(&self, features: &[f32]) -> Vec<f32> {
        let dim = self.scaling.mean.len().max(1);
        let mut z = vec![0.0; self.model.classes];
        let mut all = Vec::with_capacity(features.len() / dim * z.len());
        for row in features.chunks_exact(dim) {
            logits(&self.model.weights, &self.scaling.apply(row).values, &mut z);
            all.extend(z.iter().map(|&z| z as f32));
        }
        all
    }
}

impl Scaling {
    fn of(features: &[f32], dim: usize) -> Self {
        let n = (features.len() / dim.max(1)) as f64;
        let (mut mean, mut squares) = (vec![0.0; dim], vec![0.0; dim]);
        for row in features.chunks_exact(dim.max(1)) {
            row.iter().zip(&mut mean).for_each(|(&v, m)| *m += f64::from(v) / n);
        }
        for row in features.chunks_exact(dim.max(1)) {
            for ((&v, m), s) in row.iter().zip(&mean).zip(&mut squares) {
                *s += (f64::from(v) - m).powi(2) / n;
            }
        }
        // A constant feature says nothing; it stays 0.
        let factor = squares.iter().map(|&s: &f64| if s > 0.0 { s.sqrt().recip() } else { 0.0 });
        Self { factor: factor.collect(), mean }
    }

    /// `[n, dim + 1]`, a 1 for the bias last.
    fn apply(&self, features: &[f32]) -> Matrix {
        let dim = self.mean.len();
        let mut values = Vec::with_capacity(features.len() + features.len() / dim.max(1));
        for row in features.chunks_exact(dim.max(1)) {
            let scaled = row.iter().zip(&self.mean).zip(&self.factor);
            values.extend(scaled.map(|((&v, m), f)| (f64::from(v) - m) * f));
            values.push(1.0);
        }
        Matrix { values, columns: dim + 1 }
    }
}

struct Matrix {
    values: Vec<f64>,
    columns: usize,
}

impl Matrix {
    fn row(&self, i: usize) -> &[f64] {
        &self.values[i * self.columns..(i + 1) * self.columns]
    }
}

/// Each image's position among those of its class: dealing these out to the parts of a
/// cross-validation keeps every class in every part.
fn positions_in_class(labels: &[usize], classes: usize) -> Vec<usize> {
    let mut seen = vec![0; classes];
    let mut next = |&label: &usize| {
        seen[label] += 1;
        seen[label] - 1
    };
    labels.iter().map(&mut next).collect()
}

/// Logits `z` `[classes]` of one image's features `[dim + 1]`. Those of many images are never kept
/// together: they would grow with images times classes.
fn logits(weights: &[f64], row: &[f64], z: &mut [f64]) {
    z.fill(0.0);
    for (&v, weights) in row.iter().zip(weights.chunks_exact(z.len())) {
        z.iter_mut().zip(weights).for_each(|(z, w)| *z += v * w);
    }
}

fn largest(row: &[f64]) -> usize {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

/// Mean cross-entropy plus `penalty / 2` times the squared weights; biases are free.
#[derive(Clone, Copy)]
struct Regression<'a> {
    x: &'a Matrix,
    labels: &'a [usize],
    /// The images that it is fitted to.
    rows: &'a [usize],
    classes: usize,
    penalty: f64,
}

impl Regression<'_> {
    /// The value and, into `gradient` if given, the gradient at `weights`.
    fn at(&self, weights: &[f64], mut gradient: Option<&mut [f64]>) -> f64 {
        let (n, c) = (self.rows.len() as f64, self.classes);
        let mut z = vec![0.0; c];
        let mut loss = 0.0;
        for &i in self.rows {
            let (row, label) = (self.x.row(i), self.labels[i]);
            logits(weights, row, &mut z);
            let max = z.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(v));
            let at_label = z[label];
            z.iter_mut().for_each(|v| *v = (*v - max).exp());
            let sum: f64 = z.iter().sum();
            loss += (sum.ln() + max - at_label) / n;
            let Some(gradient) = &mut gradient else { continue };
            z.iter_mut().for_each(|v| *v /= sum * n);
            z[label] -= 1.0 / n;
            for (&v, g) in row.iter().zip(gradient.chunks_exact_mut(c)) {
                g.iter_mut().zip(&z).for_each(|(g, d)| *g += v * d);
            }
        }
        let free = weights.len() - c;
        if let Some(gradient) = gradient {
            let pairs = gradient[..free].iter_mut().zip(weights);
            pairs.for_each(|(g, w)| *g += self.penalty * w);
        }
        loss + self.penalty / 2.0 * weights[..free].iter().map(|w| w * w).sum::<f64>()
    }
}

impl CostFunction for Regression<'_> {
    type Param = Vec<f64>;
    type Output = f64;

    fn cost(&self, weights: &Vec<f64>) -> std::result::Result<f64, Unsolved> {
        Ok(self.at(weights, None))
    }
}

impl Gradient for Regression<'_> {
    type Param = Vec<f64>;
    type Gradient = Vec<f64>;

    fn gradient(&self, weights: &Vec<f64>) -> std::result::Result<Vec<f64>, Unsolved> {
        let mut gradient = vec![0.0; weights.len()];
        self.at(weights, Some(&mut gradient));
        Ok(gradient)
    }
}

/// Pairs of steps that L-BFGS remembers, scikit-learn's number.
const HISTORY: usize = 10;
/// A gradient of this length ends the search.
const TOLERANCE: f64 = 1e-5;

/// The weights of least loss, and whether they were found within the iterations.
fn fit(problem: Regression, iterations: u64) -> Result<(Linear, bool)> {
    let classes = problem.classes;
    let start = vec![0.0; problem.x.columns * classes];
    let unsolved = |e: Unsolved| Error::Failed(format!("the linear probe found no fit: {e}"));
    let solver = LBFGS::new(MoreThuenteLineSearch::new(), HISTORY)
        .with_tolerance_grad(TOLERANCE)
        .map_err(unsolved)?;
    let found = Executor::new(problem, solver)
        .configure(|state| state.param(start.clone()).max_iters(iterations))
        .run()
        .map_err(unsolved)?;
    let converged = matches!(
        found.state.termination_status,
        TerminationStatus::Terminated(TerminationReason::SolverConverged)
    );
    Ok((Linear { weights: found.state.best_param.unwrap_or(start), classes }, converged))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> ProbeOptions {
        ProbeOptions { penalties: vec![0.1, 1e-3], folds: 3, iterations: 100, threads: 2 }
    }

    /// Three classes in the plane, one of them between the others.
    fn data(n: usize) -> (Vec<f32>, Vec<usize>) {
        let point = |i: usize| {
            let (class, jitter) = (i % 3, ((i * 7919) % 101) as f32 / 101.0 - 0.5);
            [class as f32 * 2.0 + jitter, 50.0 + jitter * (class as f32 - 1.0)]
        };
        ((0..n).flat_map(point).collect(), (0..n).map(|i| i % 3).collect())
    }

    #[test]
    fn separable_classes_are_told_apart() {
        let (features, labels) = data(90);
        let probe = Probe::fit(&features, &labels, 3, &options()).expect("a fit");
        assert_eq!(probe.validated, Some(1.0));
        let logits: Vec<f64> = probe.logits(&features).iter().map(|&z| f64::from(z)).collect();
        assert!(logits.chunks(3).zip(&labels).all(|(row, label)| largest(row) == *label));
    }

    #[test]
    fn with_one_image_a_class_nothing_is_chosen() {
        let (features, labels) = data(3);
        let probe = Probe::fit(&features, &labels, 3, &options()).expect("a fit");
        assert_eq!((probe.validated, probe.penalty), (None, 0.1));
        let (features, labels) = data(6);
        let probe = Probe::fit(&features, &labels, 3, &options()).expect("a fit");
        assert!(probe.validated.is_some());
    }

    /// Points that no plane parts exactly, so that there is a minimum to be found.
    #[test]
    fn a_search_that_was_cut_short_is_called_one() {
        let (features, mut labels) = data(90);
        labels.swap(0, 1);
        for (iterations, converged) in [(1, false), (3, false), (500, true)] {
            let options = ProbeOptions { penalties: vec![0.1], iterations, ..options() };
            let probe = Probe::fit(&features, &labels, 3, &options).expect("a fit");
            assert_eq!(probe.converged, converged, "{iterations}");
        }
    }

    #[test]
    fn the_gradient_is_the_slope() {
        let (features, labels) = data(7);
        let x = Scaling::of(&features, 2).apply(&features);
        let rows: Vec<usize> = (0..7).collect();
        let problem = Regression { x: &x, labels: &labels, rows: &rows, classes: 3, penalty: 0.3 };
        let weights: Vec<f64> = (0..9).map(|i| (i as f64 * 0.7).sin()).collect();
        let mut gradient = vec![0.0; 9];
        problem.at(&weights, Some(&mut gradient));
        for (i, slope) in gradient.iter().enumerate() {
            let at = |step: f64| {
                let mut moved = weights.clone();
                moved[i] += step;
                problem.at(&moved, None)
            };
            let difference = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((difference - slope).abs() < 1e-8, "{i}: {slope} for {difference}");
        }
    }

    /// With a huge penalty only the biases are left: the classes' shares.
    #[test]
    fn a_heavy_penalty_leaves_the_shares() {
        let (features, mut labels) = data(60);
        labels.iter_mut().for_each(|label| *label = usize::from(*label == 2));
        let x = Scaling::of(&features, 2).apply(&features);
        let rows: Vec<usize> = (0..60).collect();
        let problem = Regression { x: &x, labels: &labels, rows: &rows, classes: 2, penalty: 1e6 };
        let (model, _) = fit(problem, 200).expect("a fit");
        let [a, b] = [model.weights[4], model.weights[5]];
        assert!((a - b - 2f64.ln()).abs() < 1e-3, "{a} {b}");
    }

    #[test]
    fn features_that_are_no_numbers_are_refused() {
        let error = Probe::fit(&[f32::NAN, 1.0], &[0, 1], 2, &options()).expect_err("NaN");
        assert_eq!(error.exit_code(), 3);
    }
}
