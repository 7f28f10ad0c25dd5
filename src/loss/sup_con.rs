//! SupCon's loss: Khosla et al. 2020, *Supervised Contrastive Learning*, eq. 2 (the "out" form).

use burn::tensor::{Tensor, TensorData};

use super::{logsumexp_above, without_self};

/// SupCon: every row has to find all other rows `P(a)` of its label,
/// `L_a = tau / tau_base / max(|P(a)|, 1) *
/// sum_{p in P(a)} [ log sum_{q != a} exp(z_a z_q / tau) - z_a z_p / tau ]`,
/// mean over the rows, also over those without a positive, which cost 0.
///
/// `features`: `[rows, dim]`, unit rows of any number of views; `labels`: `rows` of them; returns
/// `[1]`. Labels that name the sample make this [`nt_xent`](super::nt_xent::nt_xent) times
/// `tau / tau_base`. Equal features give chance, `tau / tau_base * ln(rows - 1)`, where every row
/// has a positive.
///
/// # Panics
/// If there is not one label a row, or fewer than two rows.
pub fn sup_con(features: Tensor<2>, labels: &[usize], tau: f64, tau_base: f64) -> Tensor<1> {
    let [rows, _] = features.dims();
    assert_eq!(rows, labels.len(), "a label for each row");
    assert!(rows > 1, "a row needs others to compare with");
    let weights = TensorData::new(positive_weights(labels), [rows, rows]);
    let weights = Tensor::<2>::from_data(weights, &features.device());
    let similarities = features.clone().matmul(features.transpose()) / tau;
    let losses = logsumexp_above(without_self(similarities.clone()), similarities);
    (losses * weights).sum() * (tau / tau_base / rows as f64)
}

/// `[rows, rows]`, `1 / |P(a)|` at the positives `P(a)` of row `a`: those of its label but itself.
fn positive_weights(labels: &[usize]) -> Vec<f32> {
    let of_row = |a: usize| {
        let positive = move |p: usize| p != a && labels[p] == labels[a];
        let count = (0..labels.len()).filter(|&p| positive(p)).count();
        let weight = 1.0 / count.max(1) as f32;
        (0..labels.len()).map(move |p| if positive(p) { weight } else { 0.0 })
    };
    (0..labels.len()).flat_map(of_row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::check::*;
    use crate::loss::normalize;
    use crate::loss::nt_xent::nt_xent;

    fn twin(features: &Matrix, labels: &[usize], tau: f64, tau_base: f64) -> f64 {
        let (z, rows) = (unit(features), features.len());
        let mut total = 0.0;
        for a in 0..rows {
            let others = || (0..rows).filter(|&q| q != a);
            let logit = |q: usize| dot(&z[a], &z[q]) / tau;
            let normaliser = log_sum_exp(others().map(logit));
            let positives: Vec<usize> = others().filter(|&p| labels[p] == labels[a]).collect();
            let sum: f64 = positives.iter().map(|&p| normaliser - logit(p)).sum();
            total += sum / positives.len().max(1) as f64;
        }
        total / rows as f64 * tau / tau_base
    }

    #[test]
    fn has_the_value_and_gradient_of_the_naive_twin() {
        let cases: [(&[usize], usize, f64); 4] = [
            (&[0, 0], 3, 0.1),
            (&[0, 1, 0, 1, 1, 2], 4, 0.1), // label 2 has no positive
            (&[5, 5, 5, 5, 5], 2, 0.5),
            (&[0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3], 8, 0.2), // three views of four samples
        ];
        for (labels, dim, tau) in cases {
            let features = random(labels.len(), dim, dim as u64);
            let loss = |t: &[Tensor<2>]| sup_con(normalize(t[0].clone()), labels, tau, 0.07);
            agrees_with_twin(&[features], loss, |m| twin(&m[0], labels, tau, 0.07));
        }
    }

    #[test]
    fn has_the_value_and_gradient_of_pytorch() {
        agrees_with_pytorch("sup_con", &["features"], |t, case| {
            let labels: Vec<usize> = case["labels"][0].iter().map(|&l| l as usize).collect();
            let (tau, tau_base) = (case["tau"][0][0], case["tau_base"][0][0]);
            sup_con(normalize(t[0].clone()), &labels, tau, tau_base)
        });
    }

    #[test]
    fn labels_that_name_the_sample_give_scaled_nt_xent() {
        let (batch, tau, tau_base) = (7, 0.1, 0.07);
        let features = [random(2 * batch, 6, 1)];
        let labels = (0..batch).collect::<Vec<_>>().repeat(2);
        let (ours, gradient) = value_and_gradients(&features, |t| {
            sup_con(normalize(t[0].clone()), &labels, tau, tau_base)
        });
        let (simclr, simclr_gradient) = value_and_gradients(&features, |t| {
            nt_xent(normalize(t[0].clone()), tau) * (tau / tau_base)
        });
        assert_close(&[ours], &[simclr], 1e-5);
        assert_close(&gradient[0], &simclr_gradient[0], 1e-5);
    }

    #[test]
    fn equal_features_give_chance() {
        let features = normalize(Tensor::ones([12, 5], &crate::ops::cpu()));
        let labels: Vec<usize> = (0..12).map(|row| row % 3).collect();
        let chance = 0.1 / 0.07 * 11f64.ln();
        assert_close(&values(sup_con(features, &labels, 0.1, 0.07)), &[chance], 1e-5);
    }

    #[test]
    fn rows_without_a_positive_cost_nothing_and_move_nothing() {
        let labels: Vec<usize> = (0..6).collect();
        let (value, gradient) = value_and_gradients(&[random(6, 4, 2)], |t| {
            sup_con(normalize(t[0].clone()), &labels, 0.1, 0.07)
        });
        assert_eq!(value, 0.0);
        assert!(gradient[0].iter().all(|&g| g == 0.0), "{gradient:?}");
    }
}
