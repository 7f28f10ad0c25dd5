//! Losses: pure functions from logits and targets to one value a row. They know no model.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::config::SmoothingKind;

/// Label smoothing over `classes` classes: the target of a row is `off` everywhere plus `on` at its
/// class (recipe section 1.3).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Smoothing {
    /// Added at the class.
    pub on: f64,
    /// Every class's share.
    pub off: f64,
}

impl Smoothing {
    /// `others`: `1 - e` on the class and `e / (classes - 1)` on each other (eq. 17);
    /// `uniform`: `e / classes` on every class and `1 - e` more on the class.
    pub fn new(epsilon: f64, kind: SmoothingKind, classes: usize) -> Self {
        let off = match kind {
            SmoothingKind::Others => epsilon / (classes - 1).max(1) as f64,
            SmoothingKind::Uniform => epsilon / classes as f64,
        };
        let at_class = match kind {
            SmoothingKind::Others => 1.0 - epsilon,
            SmoothingKind::Uniform => 1.0 - epsilon + off,
        };
        Self { on: at_class - off, off }
    }
}

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

/// Cross-entropy with mixed, smoothed targets:
/// `logsumexp(o) - on * (lambda * o_a + (1 - lambda) * o_b) - off * sum(o)`,
/// the closed form of `lambda * CE(a) + (1 - lambda) * CE(b)` (eqs. 18 to 20).
///
/// `logits`: `[rows, classes]`; returns `[rows]`.
pub fn mixed_cross_entropy(
    logits: Tensor<2>,
    targets: &[MixedTarget],
    smoothing: Smoothing,
) -> Tensor<1> {
    let [rows, _] = logits.dims();
    assert_eq!(rows, targets.len(), "a target for each row");
    let device = logits.device();
    // Gathering log-probabilities subtracts the logsumexp once for each unit of target mass.
    let log_p = log_softmax(logits, 1);
    let at = |class: fn(&MixedTarget) -> usize, share: fn(&MixedTarget) -> f32| {
        let picked = log_p.clone().gather(1, column(targets, class, &device)).squeeze_dim::<1>(1);
        let shares: Vec<f32> = targets.iter().map(share).collect();
        picked * Tensor::from_data(TensorData::new(shares, [rows]), &device)
    };
    let mixed = at(|t| t.a, |t| t.lambda) + at(|t| t.b, |t| 1.0 - t.lambda);
    -(mixed * smoothing.on) - log_p.clone().sum_dim(1).squeeze_dim::<1>(1) * smoothing.off
}

/// Cross-entropy with given target distributions, `[rows, classes]` each; returns `[rows]`.
pub fn soft_cross_entropy(logits: Tensor<2>, targets: Tensor<2>) -> Tensor<1> {
    -(log_softmax(logits, 1) * targets).sum_dim(1).squeeze_dim::<1>(1)
}

fn column(
    targets: &[MixedTarget],
    class: fn(&MixedTarget) -> usize,
    device: &Device,
) -> Tensor<2, Int> {
    let classes: Vec<i64> = targets.iter().map(|t| class(t) as i64).collect();
    Tensor::from_data(TensorData::new(classes, [targets.len(), 1]), device)
}

#[cfg(test)]
mod tests;
