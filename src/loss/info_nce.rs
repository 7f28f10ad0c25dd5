//! InfoNCE with queries on one side and keys on the other, as MoCo uses it. The keys come from the
//! momentum encoder and get no gradient: pass them plain or detached.

use burn::tensor::Tensor;

use super::{entries, logsumexp_above};

/// InfoNCE in one direction: query `i` has to find key `i` among the batch's keys,
/// `mean_i [ log sum_j exp(q_i k_j / tau) - q_i k_i / tau ]`.
///
/// `queries`, `keys`: `[batch, dim]`; returns `[1]`. Equal features give chance, `ln(batch)`. With
/// `tau` 1 and rows of any length this is instance discrimination whose classifier holds the keys
/// (arXiv 2201.10728, eqs. 4 to 7).
///
/// # Panics
/// If the shapes differ.
pub fn info_nce(queries: Tensor<2>, keys: Tensor<2>, tau: f64) -> Tensor<1> {
    assert_eq!(queries.dims(), keys.dims(), "a key for each query");
    let [batch, _] = queries.dims();
    let logits = queries.matmul(keys.transpose()) / tau;
    let positives = entries(&logits, 0..batch);
    logsumexp_above(logits, positives).mean()
}

/// MoCo v3's `ctr(q, k)` (Chen, Xie & He 2021, Algorithm 1): [`info_nce`] times `2 tau`, which
/// keeps the gradient's size independent of `tau`. The method's loss is
/// `ctr(q1, k2) + ctr(q2, k1)`.
///
/// `queries`, `keys`: `[batch, dim]`, unit rows; returns `[1]`. Chance is `2 tau ln(batch)`.
///
/// # Panics
/// If the shapes differ.
pub fn ctr(queries: Tensor<2>, keys: Tensor<2>, tau: f64) -> Tensor<1> {
    info_nce(queries, keys, tau) * (2.0 * tau)
}

/// MoCo v2's loss (He et al. 2020, eq. 1): query `i` has to tell key `i` from the keys of earlier
/// batches,
/// `mean_i [ log(exp(q_i k_i / tau) + sum_n exp(q_i queue_n / tau)) - q_i k_i / tau ]`.
///
/// `queries`, `keys`: `[batch, dim]`, `queue`: `[length, dim]`, all unit rows; returns `[1]`. The
/// queue is the one before the batch's keys enter it. Chance is `ln(1 + length)`.
///
/// # Panics
/// If the shapes do not fit.
pub fn info_nce_with_queue(
    queries: Tensor<2>,
    keys: Tensor<2>,
    queue: Tensor<2>,
    tau: f64,
) -> Tensor<1> {
    assert_eq!(queries.dims(), keys.dims(), "a key for each query");
    let positives = (queries.clone() * keys).sum_dim(1) / tau;
    let negatives = queries.matmul(queue.transpose()) / tau;
    let logits = Tensor::cat(vec![positives.clone(), negatives], 1);
    logsumexp_above(logits, positives).mean()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::check::*;
    use crate::loss::{MixedTarget, Smoothing, mixed_cross_entropy, normalize};

    fn twin(queries: &Matrix, keys: &Matrix, tau: f64) -> f64 {
        let logit = |i: usize, j: usize| dot(&queries[i], &keys[j]) / tau;
        let rows = queries.len();
        let of_query = |i| log_sum_exp((0..rows).map(|j| logit(i, j))) - logit(i, i);
        (0..rows).map(of_query).sum::<f64>() / rows as f64
    }

    fn twin_with_queue(queries: &Matrix, keys: &Matrix, queue: &Matrix, tau: f64) -> f64 {
        let of_pair = |(q, k): (&Vec<f64>, &Vec<f64>)| {
            let positive = dot(q, k) / tau;
            let negatives = queue.iter().map(|n| dot(q, n) / tau);
            log_sum_exp(negatives.chain([positive])) - positive
        };
        queries.iter().zip(keys).map(of_pair).sum::<f64>() / queries.len() as f64
    }

    #[test]
    fn both_forms_have_the_value_and_gradient_of_their_naive_twins() {
        for (batch, dim, length, tau) in [(1, 2, 3, 0.2), (3, 4, 1, 1.0), (6, 8, 10, 0.1)] {
            let inputs = [(batch, 1), (batch, 2), (length, 3)].map(|(n, i)| random(n, dim, i));
            agrees_with_twin(
                &inputs[..2],
                |t| info_nce(normalize(t[0].clone()), normalize(t[1].clone()), tau),
                |m| twin(&unit(&m[0]), &unit(&m[1]), tau),
            );
            agrees_with_twin(
                &inputs,
                |t| {
                    let [q, k, queue] = [0, 1, 2].map(|i| normalize(t[i].clone()));
                    info_nce_with_queue(q, k, queue, tau)
                },
                |m| twin_with_queue(&unit(&m[0]), &unit(&m[1]), &unit(&m[2]), tau),
            );
        }
    }

    #[test]
    fn one_direction_has_the_value_and_gradient_of_pytorch() {
        agrees_with_pytorch("info_nce", &["queries", "keys"], |t, case| {
            info_nce(normalize(t[0].clone()), normalize(t[1].clone()), case["tau"][0][0])
        });
    }

    #[test]
    fn moco_v3_has_the_value_and_gradient_of_pytorch() {
        agrees_with_pytorch("moco_v3", &["q1", "q2", "k1", "k2"], |t, case| {
            let [q1, q2, k1, k2] = [0, 1, 2, 3].map(|i| normalize(t[i].clone()));
            let tau = case["tau"][0][0];
            ctr(q1, k2, tau) + ctr(q2, k1, tau)
        });
    }

    #[test]
    fn moco_v2_has_the_value_and_gradient_of_pytorch() {
        agrees_with_pytorch("moco_v2", &["queries", "keys", "queue"], |t, case| {
            let [q, k, queue] = [0, 1, 2].map(|i| normalize(t[i].clone()));
            info_nce_with_queue(q, k, queue, case["tau"][0][0])
        });
    }

    /// A classifier whose rows are the keys (arXiv 2201.10728, eqs. 4 to 7).
    #[test]
    fn at_temperature_one_it_is_instance_discrimination() {
        let inputs = [random(8, 5, 4), random(8, 5, 5)];
        let targets: Vec<_> = (0..8).map(|i| MixedTarget::mix(i, i, 1.0)).collect();
        let (contrast, gradients) =
            value_and_gradients(&inputs, |t| info_nce(t[0].clone(), t[1].clone(), 1.0));
        let (insdis, insdis_gradients) = value_and_gradients(&inputs, |t| {
            let logits = t[0].clone().matmul(t[1].clone().transpose());
            mixed_cross_entropy(logits, &targets, Smoothing { on: 1.0, off: 0.0 }).mean()
        });
        assert_close(&[contrast], &[insdis], 1e-6);
        for (ours, theirs) in gradients.iter().zip(&insdis_gradients) {
            assert_close(ours, theirs, 1e-5);
        }
    }

    #[test]
    fn plain_keys_get_no_gradient_and_leave_the_queries_gradient_as_it_is() {
        let (queries, keys) = (random(6, 4, 6), random(6, 4, 7));
        let (_, both) = value_and_gradients(&[queries.clone(), keys.clone()], |t| {
            info_nce(t[0].clone(), t[1].clone(), 0.5)
        });
        let plain = |t: &[Tensor<2>]| info_nce(t[0].clone(), tensor(&keys), 0.5);
        let (_, alone) = value_and_gradients(&[queries], plain);
        assert_close(&alone[0], &both[0], 1e-6);
    }

    #[test]
    fn equal_features_give_chance_and_orthogonal_ones_the_closed_form() {
        let (device, tau) = (crate::ops::cpu(), 0.2f64);
        let ones = |rows| normalize(Tensor::<2>::ones([rows, 3], &device));
        assert_close(&values(info_nce(ones(9), ones(9), tau)), &[9f64.ln()], 1e-5);
        assert_close(&values(ctr(ones(9), ones(9), tau)), &[2.0 * tau * 9f64.ln()], 1e-5);
        let queued = info_nce_with_queue(ones(4), ones(4), ones(32), tau);
        assert_close(&values(queued), &[33f64.ln()], 1e-5);
        // Perfect positives: log(1 + negatives exp(-1 / tau)), with cosine 0 to every negative.
        let best = |negatives: f64| [(1.0 + negatives * (-1.0 / tau).exp()).ln()];
        let rows = |first, count| Tensor::<2>::eye(12, &device).narrow(0, first, count);
        assert_close(&values(info_nce(rows(0, 8), rows(0, 8), tau)), &best(7.0), 1e-5);
        let queued = info_nce_with_queue(rows(0, 4), rows(0, 4), rows(4, 8), tau);
        assert_close(&values(queued), &best(8.0), 1e-5);
    }
}
