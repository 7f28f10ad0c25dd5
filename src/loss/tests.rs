//! The recipe's properties T1 to T3 and eqs. 5 to 20, against naive f64 twins and closed forms.

use super::*;
use burn::tensor::Device;
use rand::RngExt as _;

use crate::rng::{Purpose, stream};

/// Row-major matrix of standard normals.
fn random(rows: usize, cols: usize, index: u64) -> Vec<f64> {
    let mut rng = stream(5, Purpose::Bench, 0, index, 0);
    let normal = rand_distr::StandardNormal;
    (0..rows * cols).map(|_| rng.sample::<f64, _>(normal)).collect()
}

fn tensor(values: &[f64], rows: usize, device: &Device) -> Tensor<2> {
    let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
    let cols = values.len() / rows;
    Tensor::from_data(TensorData::new(values, [rows, cols]), device)
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    let values = tensor.into_data().try_to_vec::<f32>().expect("f32");
    values.into_iter().map(f64::from).collect()
}

fn close(a: &[f64], b: &[f64], tolerance: f64) {
    assert_eq!(a.len(), b.len());
    for (x, y) in a.iter().zip(b) {
        assert!((x - y).abs() <= tolerance * (1.0 + y.abs()), "{x} is not {y}");
    }
}

/// `-sum_k y_k log softmax(o)_k` by slow loops in f64.
fn naive(logits: &[f64], target: &[f64]) -> f64 {
    let max = logits.iter().copied().fold(f64::MIN, f64::max);
    let lse = max + logits.iter().map(|o| (o - max).exp()).sum::<f64>().ln();
    target.iter().zip(logits).map(|(y, o)| y * (lse - o)).sum()
}

/// Softmax in f64.
fn softmax(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::MIN, f64::max);
    let sum: f64 = logits.iter().map(|o| (o - max).exp()).sum();
    logits.iter().map(|o| (o - max).exp() / sum).collect()
}

/// The mixed and smoothed target (arXiv 2201.10728, eqs. 18 to 20) for i != i'. The paper prints eq. 19 with a
/// factor lambda too many, with which the targets would not sum to 1.
fn mixed_target(classes: usize, t: &MixedTarget, epsilon: f64) -> Vec<f64> {
    let (lambda, other) = (f64::from(t.shares[0]), epsilon / (classes - 1) as f64);
    let mut target = vec![other; classes];
    target[t.a] = lambda * (1.0 - epsilon) + (1.0 - lambda) * other;
    target[t.b] = (1.0 - lambda) * (1.0 - epsilon) + lambda * other;
    target
}

const NONE: Smoothing = Smoothing { on: 1.0, off: 0.0 };

fn hard(class: usize) -> MixedTarget {
    MixedTarget::mix(class, class, 1.0)
}

#[test]
fn eq_19_has_its_reference_values() {
    let t = MixedTarget::mix(3, 8, 0.5);
    let target = mixed_target(2040, &t, 0.1);
    assert!((target[3] - 0.450_024_52).abs() < 1e-8);
    assert!((target[0] - 4.904_365e-5).abs() < 1e-11);
    assert!((target.iter().sum::<f64>() - 1.0).abs() < 1e-12);
    // The loss floor is the entropy of the smoothed, unmixed target.
    let smoothing = Smoothing::new(0.1, SmoothingKind::Others, 2040);
    let on: f64 = smoothing.on + smoothing.off;
    let entropy = -on * on.ln() - 2039.0 * smoothing.off * smoothing.off.ln();
    assert!((entropy - 1.0871).abs() < 5e-5, "{entropy}");
}

#[test]
fn eq_18_mixed_loss_and_its_gradient_equal_the_naive_twin() {
    let device = crate::ops::cpu().autodiff();
    for (rows, classes) in [(1, 2), (3, 3), (7, 10), (16, 129)] {
        let logits = random(rows, classes, (rows * classes) as u64);
        let targets: Vec<_> = (0..rows)
            .map(|r| {
                let lambda = 0.5 + 0.5 * r as f32 / rows as f32;
                MixedTarget::mix(r % classes, (r * 5 + 1) % classes, lambda)
            })
            .collect();
        let smoothing = Smoothing::new(0.1, SmoothingKind::Others, classes);
        let o = tensor(&logits, rows, &device).require_grad();
        let loss = mixed_cross_entropy(o.clone(), &targets, smoothing);
        let gradients = loss.clone().sum().backward();
        let gradient = values(o.grad(&gradients).expect("a gradient"));
        let (mut expected, mut expected_gradient) = (vec![], vec![]);
        for (row, t) in logits.chunks(classes).zip(&targets) {
            let y = match t.a == t.b {
                false => mixed_target(classes, t, 0.1),
                true => (0..classes)
                    .map(|k| smoothing.off + if k == t.a { smoothing.on } else { 0.0 })
                    .collect(),
            };
            expected.push(naive(row, &y));
            // Eq. 20: P - y, so the rows sum to zero (eq. 19's misprint would not).
            expected_gradient.extend(softmax(row).iter().zip(&y).map(|(p, y)| p - y));
        }
        close(&values(loss), &expected, 1e-5);
        close(&gradient, &expected_gradient, 1e-5);
        for row in gradient.chunks(classes) {
            assert!(row.iter().sum::<f64>().abs() < 1e-5);
        }
    }
}

#[test]
fn eq_17_others_form_is_uniform_form_with_the_converted_epsilon() {
    for classes in [2, 3, 10, 2040] {
        let n = classes as f64;
        let others = Smoothing::new(0.1, SmoothingKind::Others, classes);
        let uniform = Smoothing::new(0.1 * n / (n - 1.0), SmoothingKind::Uniform, classes);
        assert!((others.on - uniform.on).abs() < 1e-12 && (others.off - uniform.off).abs() < 1e-12);
        assert!((others.on + n * others.off - 1.0).abs() < 1e-12, "targets sum to one");
    }
}

#[test]
fn soft_targets_are_used_as_they_are() {
    let logits = random(4, 6, 1);
    let targets: Vec<f64> = random(4, 6, 2).chunks(6).flat_map(softmax).collect();
    let device = crate::ops::cpu();
    let loss = soft_cross_entropy(tensor(&logits, 4, &device), tensor(&targets, 4, &device));
    let expected: Vec<f64> =
        logits.chunks(6).zip(targets.chunks(6)).map(|(o, y)| naive(o, y)).collect();
    close(&values(loss), &expected, 1e-5);
}

#[test]
fn eqs_13_to_16_gradients_of_instance_discrimination() {
    let (n, d) = (9, 4);
    let device = crate::ops::cpu().autodiff();
    let (z, w) = (random(n, d, 3), random(n, d, 4));
    let zt = tensor(&z, n, &device).require_grad();
    let wt = tensor(&w, n, &device).require_grad();
    let targets: Vec<_> = (0..n).map(hard).collect();
    let logits = zt.clone().matmul(wt.clone().transpose());
    let gradients = mixed_cross_entropy(logits, &targets, NONE).sum().backward();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let (mut dz, mut dw) = (vec![0.0; n * d], vec![0.0; n * d]);
    for i in 0..n {
        let zi = &z[i * d..][..d];
        let p = softmax(&(0..n).map(|j| dot(zi, &w[j * d..][..d])).collect::<Vec<_>>());
        for k in 0..n {
            let c = p[k] - f64::from(u8::from(k == i));
            for e in 0..d {
                dz[i * d + e] += c * w[k * d + e]; // eq. 15
                dw[k * d + e] += c * zi[e]; // eq. 16
            }
        }
    }
    close(&values(zt.grad(&gradients).expect("dz")), &dz, 1e-5);
    close(&values(wt.grad(&gradients).expect("dw")), &dw, 1e-5);
}

#[test]
fn eqs_5_to_7_instance_discrimination_with_tied_weights_is_infonce() {
    let (n, d) = (8, 5);
    let (za, zb) = (random(n, d, 6), random(n, d, 7));
    let device = crate::ops::cpu();
    let targets: Vec<_> = (0..n).map(hard).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let row = |m: &[f64], i: usize| m[i * d..(i + 1) * d].to_vec();
    let keys = tensor(&za, n, &device).transpose();
    // View B: queries B, keys A, positive on the diagonal (eq. 6).
    let view_b = mixed_cross_entropy(tensor(&zb, n, &device).matmul(keys.clone()), &targets, NONE);
    // View A: logsumexp_j(z_iA z_jA) - |z_iA|^2, pure uniformity for unit features (eq. 7); with
    // one view and w_j = z_j it is eq. 5.
    let view_a = mixed_cross_entropy(tensor(&za, n, &device).matmul(keys), &targets, NONE);
    let (mut info_nce, mut uniformity) = (vec![], vec![]);
    for i in 0..n {
        let lse = |q: &[f64]| (0..n).map(|j| dot(q, &row(&za, j)).exp()).sum::<f64>().ln();
        info_nce.push(lse(&row(&zb, i)) - dot(&row(&zb, i), &row(&za, i)));
        uniformity.push(lse(&row(&za, i)) - dot(&row(&za, i), &row(&za, i)));
    }
    close(&values(view_b), &info_nce, 1e-5);
    close(&values(view_a), &uniformity, 1e-5);
}

#[test]
fn eq_12_deep_clustering_is_instance_discrimination_with_tied_rows() {
    let d = 5;
    for sizes in [[4usize, 4, 4], [2, 4, 6]] {
        let n: usize = sizes.iter().sum();
        let centres = random(3, d, 8);
        let z = random(n, d, 9);
        let cluster: Vec<usize> = (0..3).flat_map(|k| vec![k; sizes[k]]).collect();
        let tied: Vec<f64> =
            cluster.iter().flat_map(|&k| centres[k * d..(k + 1) * d].to_vec()).collect();
        let device = crate::ops::cpu().autodiff();
        let run =
            |weights: &[f64], rows: usize, targets: &[MixedTarget], shift: Option<Vec<f64>>| {
                let zt = tensor(&z, n, &device).require_grad();
                let wt = tensor(weights, rows, &device).require_grad();
                let mut logits = zt.clone().matmul(wt.clone().transpose());
                if let Some(shift) = shift {
                    logits = logits + tensor(&shift, 1, &device);
                }
                let loss = mixed_cross_entropy(logits, targets, NONE).sum();
                let gradients = loss.clone().backward();
                let [dz, dw] = [zt, wt].map(|t| values(t.grad(&gradients).expect("a gradient")));
                (values(loss)[0], dz, dw)
            };
        let instances: Vec<_> = (0..n).map(hard).collect();
        let clusters: Vec<_> = cluster.iter().map(|&k| hard(k)).collect();
        let (insdis, insdis_dz, insdis_dw) = run(&tied, n, &instances, None);
        // Exact for any sizes: logits shifted by log n_m, plus sum_k n_k log n_k.
        let log_sizes: Vec<f64> = sizes.iter().map(|&s| (s as f64).ln()).collect();
        let offset: f64 = sizes.iter().map(|&s| s as f64 * (s as f64).ln()).sum();
        let (shifted, shifted_dz, _) = run(&centres, 3, &clusters, Some(log_sizes));
        close(&[insdis], &[shifted + offset], 1e-5);
        close(&insdis_dz, &shifted_dz, 1e-4);
        if sizes == [4, 4, 4] {
            // Equal sizes: plain deep clustering plus N log n, and tied gradients add up.
            let (clustering, clustering_dz, clustering_dw) = run(&centres, 3, &clusters, None);
            close(&[insdis], &[clustering + n as f64 * 4f64.ln()], 1e-5);
            close(&insdis_dz, &clustering_dz, 1e-4);
            let mut summed = vec![0.0; 3 * d];
            for (j, &k) in cluster.iter().enumerate() {
                (0..d).for_each(|e| summed[k * d + e] += insdis_dw[j * d + e]);
            }
            close(&summed, &clustering_dw, 1e-4);
        }
    }
}

#[test]
fn t3_update_frequency_of_the_other_rows() {
    // At uniform P = 1/N the gradient of a row's logits is 1/N - C (eq. 20).
    let (classes, epsilon) = (50, 0.1);
    let device = crate::ops::cpu().autodiff();
    let o = Tensor::<2>::zeros([1, classes], &device).require_grad();
    let t = MixedTarget::mix(2, 7, 0.7);
    let smoothing = Smoothing::new(epsilon, SmoothingKind::Others, classes);
    let gradients = mixed_cross_entropy(o.clone(), &[t], smoothing).sum().backward();
    let expected: Vec<f64> =
        mixed_target(classes, &t, epsilon).iter().map(|c| 1.0 / classes as f64 - c).collect();
    close(&values(o.grad(&gradients).expect("a gradient")), &expected, 1e-6);
}

#[test]
fn normalised_rows_have_length_one_and_zero_rows_a_finite_gradient() {
    // Summed with unequal weights, or the gradient would hide a row's direction.
    let weights = tensor(&[1.0, -2.0, 0.5], 1, &crate::ops::cpu());
    check::agrees_with_twin(
        &[check::random(4, 3, 1)],
        |t| (normalize(t[0].clone()) * weights.clone()).sum(),
        |m| check::unit(&m[0]).iter().map(|row| row[0] - 2.0 * row[1] + 0.5 * row[2]).sum(),
    );
    let rows = tensor(&[3.0, 4.0, 0.0, 0.0, 1e-3, 0.0], 3, &crate::ops::cpu());
    close(&values(normalize(rows)), &[0.6, 0.8, 0.0, 0.0, 1.0, 0.0], 1e-6);
    let (_, gradient) =
        check::value_and_gradients(&[vec![vec![0.0; 3]]], |t| normalize(t[0].clone()).sum());
    assert!(gradient[0].iter().all(|g| g.is_finite()), "{gradient:?}");
}

#[test]
fn logsumexp_stands_large_numbers_and_masked_entries() {
    let masked = f64::NEG_INFINITY;
    let rows = tensor(&[900.0, 900.0, masked, -900.0, masked, -900.0], 2, &crate::ops::cpu());
    let references = tensor(&[900.0, 0.0, 0.0, -900.0], 2, &crate::ops::cpu());
    let ln2 = std::f64::consts::LN_2;
    let expected = [ln2, 900.0 + ln2, -900.0 + ln2, ln2];
    close(&values(logsumexp_above(rows, references)), &expected, 1e-6);
}
