//! SimCLR's loss: Chen et al. 2020, *A Simple Framework for Contrastive Learning*, eq. 1.

use burn::tensor::Tensor;

use super::{entries, logsumexp_above, without_self};

/// NT-Xent: every view has to find the sample's other view among all other rows,
/// `mean_a [ log sum_{q != a} exp(z_a z_q / tau) - z_a z_p(a) / tau ]` over the `2 batch` anchors.
///
/// `features`: `[2 * batch, dim]`, view-major unit rows; returns `[1]`. Equal features give chance,
/// `ln(2 batch - 1)`.
///
/// # Panics
/// If the number of rows is odd.
pub fn nt_xent(features: Tensor<2>, tau: f64) -> Tensor<1> {
    let [rows, _] = features.dims();
    assert!(rows.is_multiple_of(2), "two views of each sample");
    let similarities = features.clone().matmul(features.transpose()) / tau;
    let positives = entries(&similarities, (0..rows).map(|a| (a + rows / 2) % rows));
    logsumexp_above(without_self(similarities), positives).mean()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::check::*;
    use crate::loss::normalize;

    fn twin(features: &Matrix, tau: f64) -> f64 {
        let (z, rows) = (unit(features), features.len());
        let of_anchor = |a: usize| {
            let logit = |q: usize| dot(&z[a], &z[q]) / tau;
            log_sum_exp((0..rows).filter(|&q| q != a).map(logit)) - logit((a + rows / 2) % rows)
        };
        (0..rows).map(of_anchor).sum::<f64>() / rows as f64
    }

    #[test]
    fn has_the_value_and_gradient_of_the_naive_twin() {
        for (batch, dim, tau) in [(1, 2, 0.5), (2, 3, 0.1), (5, 4, 1.0), (8, 12, 0.2)] {
            let features = random(2 * batch, dim, batch as u64);
            let loss = |t: &[Tensor<2>]| nt_xent(normalize(t[0].clone()), tau);
            agrees_with_twin(&[features], loss, |m| twin(&m[0], tau));
        }
    }

    #[test]
    fn has_the_value_and_gradient_of_pytorch() {
        agrees_with_pytorch("nt_xent", &["features"], |t, case| {
            nt_xent(normalize(t[0].clone()), case["tau"][0][0])
        });
    }

    #[test]
    fn equal_features_give_chance() {
        for batch in [2usize, 7, 32] {
            let features = normalize(Tensor::ones([2 * batch, 6], &crate::ops::cpu()));
            let chance = ((2 * batch - 1) as f64).ln();
            assert_close(&values(nt_xent(features, 0.1)), &[chance], 1e-5);
        }
    }

    #[test]
    fn orthogonal_samples_with_equal_views_are_the_best_case_of_non_negative_features() {
        let (batch, tau) = (6, 0.2f64);
        let eye = Tensor::<2>::eye(batch, &crate::ops::cpu());
        let expected = (1.0 + (2 * batch - 2) as f64 * (-1.0 / tau).exp()).ln();
        let features = Tensor::cat(vec![eye.clone(), eye], 0);
        assert_close(&values(nt_xent(features, tau)), &[expected], 1e-5);
    }

    /// Without this, the last epochs of a good run are rounding.
    #[test]
    fn a_loss_near_zero_keeps_its_digits() {
        let tau = 0.1f64;
        let noisy = random(6, 6, 9).into_iter().enumerate().map(|(i, row)| {
            let along = |(j, v)| f64::from(u8::from(i % 3 == j)) * 2.0 + 0.05 * v;
            row.into_iter().enumerate().map(along).collect()
        });
        let features: Matrix = noisy.collect();
        let expected = twin(&features, tau);
        let loss = values(nt_xent(normalize(tensor(&features)), tau))[0];
        assert!(expected < 1e-3 && (loss / expected - 1.0).abs() < 1e-3, "{loss} for {expected}");
    }
}
