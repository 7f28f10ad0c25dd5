//! Losses: pure functions of tensors. They know no model.
//!
//! Classification (IDMM, fine-tuning) maps logits and targets to one value a row, below. The
//! self-supervised baselines have a file each and return the mean, `[1]`, from the features of a
//! whole batch: rows in view-major order, `v * batch + i` for view `v` of sample `i`, and scaled
//! to length 1 by [`normalize`] where the method asks for it.
//!
//! No loss stops gradients by itself except where its docstring says so: what must be constant
//! (keys, queue) is passed as a plain or detached tensor.

mod chance;
pub mod dino;
pub mod info_nce;
pub mod nt_xent;
pub mod sup_con;

use burn::tensor::activation::log_softmax;
use burn::tensor::{Bool, Int, Tensor, TensorData};

use crate::config::SmoothingKind;
use crate::ops::{self, SoftTargets};

pub use crate::ops::MixedTarget;
pub use chance::Chance;

/// Label smoothing over `classes` classes: the target of a row is `off` everywhere plus `on` at its
/// class.
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

/// Cross-entropy with mixed, smoothed targets:
/// `logsumexp(o) - on * (lambda * o_a + (1 - lambda) * o_b) - off * sum(o)`,
/// the closed form of `lambda * CE(a) + (1 - lambda) * CE(b)` (eqs. 18 to 20).
///
/// `logits`: `[rows, classes]`; returns `[rows]`. Panics unless there is a target for each row.
pub fn mixed_cross_entropy(
    logits: Tensor<2>,
    targets: &[MixedTarget],
    smoothing: Smoothing,
) -> Tensor<1> {
    let Smoothing { on, off } = smoothing;
    ops::mixed_cross_entropy(logits, SoftTargets { rows: targets.to_vec(), on, off })
}

/// Cross-entropy with given target distributions, `[rows, classes]` each; returns `[rows]`.
pub fn soft_cross_entropy(logits: Tensor<2>, targets: Tensor<2>) -> Tensor<1> {
    -(log_softmax(logits, 1) * targets).sum_dim(1).squeeze_dim::<1>(1)
}

/// Rows scaled to length 1, `[rows, dim]` in and out: `x / max(|x|, 1e-12)`, so that zero rows stay
/// zero with a finite gradient.
pub fn normalize(x: Tensor<2>) -> Tensor<2> {
    // Bounded before the root, whose slope at zero is infinite.
    let norms = x.clone().square().sum_dim(1).clamp_min(SMALLEST_NORM * SMALLEST_NORM).sqrt();
    x / norms
}

/// PyTorch's `F.normalize`.
const SMALLEST_NORM: f64 = 1e-12;

/// `log sum_k exp(x_k) - r` of each row of `x`, `[rows, columns]`, for each `r` of the row of
/// `references`, `[rows, n]`; returns `[rows, n]`. Entries of negative infinity count for nothing.
///
/// Where `r` is the largest `x_k` itself, taken from the same matrix, a result near zero keeps its
/// digits.
fn logsumexp_above(x: Tensor<2>, references: Tensor<2>) -> Tensor<2> {
    // The shift cancels, so it needs no gradient.
    let max = x.clone().detach().max_dim(1);
    (x - max.clone()).exp().sum_dim(1).log() + (max - references)
}

/// Entry `columns[i]` of each row `i`, `[rows, 1]`.
fn entries(x: &Tensor<2>, columns: impl Iterator<Item = usize>) -> Tensor<2> {
    let columns: Vec<i64> = columns.map(|c| c as i64).collect();
    let rows = columns.len();
    let columns = Tensor::<2, Int>::from_data(TensorData::new(columns, [rows, 1]), &x.device());
    x.clone().gather(1, columns)
}

/// Similarities `[rows, rows]` with negative infinity where a row meets itself.
fn without_self(similarities: Tensor<2>) -> Tensor<2> {
    let itself = Tensor::<2, Bool>::diag_mask(similarities.dims(), 0, &similarities.device());
    // burn's mask is false on the diagonal.
    similarities.mask_fill(itself.bool_not(), f64::NEG_INFINITY)
}

#[cfg(test)]
mod check;
#[cfg(test)]
mod tests;
