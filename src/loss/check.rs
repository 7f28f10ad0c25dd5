//! How the tests of the self-supervised losses compare: value and gradient of a loss against a
//! naive f64 twin (central differences) and against PyTorch (`tests/golden/losses.py`).

use std::collections::BTreeMap;

use burn::tensor::{Tensor, TensorData};
use rand::RngExt as _;
use safetensors::SafeTensors;

use crate::rng::{Purpose, stream};

/// Rows of numbers: what the twins work on.
pub type Matrix = Vec<Vec<f64>>;

/// Standard normals; `index` names the matrix.
pub fn random(rows: usize, cols: usize, index: u64) -> Matrix {
    let mut rng = stream(6, Purpose::Bench, 0, index, 0);
    let mut row = || (0..cols).map(|_| rng.sample::<f64, _>(rand_distr::StandardNormal)).collect();
    (0..rows).map(|_| row()).collect()
}

/// A plain tensor, without gradient.
pub fn tensor(matrix: &Matrix) -> Tensor<2> {
    let shape = [matrix.len(), matrix[0].len()];
    let values: Vec<f32> = matrix.iter().flatten().map(|&v| v as f32).collect();
    Tensor::from_data(TensorData::new(values, shape), &crate::ops::cpu())
}

/// The values of a tensor, row-major.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().try_to_vec::<f32>().expect("f32").into_iter().map(f64::from).collect()
}

/// Fails unless `got` is `expected` up to `tolerance` times the largest expected size.
pub fn assert_close(got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    let scale = expected.iter().fold(1e-2, |scale: f64, v| scale.max(v.abs()));
    for (g, e) in got.iter().zip(expected) {
        assert!((g - e).abs() <= tolerance * scale, "{g} is not {e} (scale {scale})");
    }
}

/// The loss of `inputs` and its gradient in each of them.
pub fn value_and_gradients(
    inputs: &[Matrix],
    loss: impl Fn(&[Tensor<2>]) -> Tensor<1>,
) -> (f64, Vec<Vec<f64>>) {
    let device = crate::ops::cpu().autodiff();
    let leaf = |m: &Matrix| Tensor::from_data(tensor(m).into_data(), &device).require_grad();
    let leaves: Vec<Tensor<2>> = inputs.iter().map(leaf).collect();
    let loss = loss(&leaves);
    assert_eq!(loss.dims(), [1]);
    let gradients = loss.clone().backward();
    let of_leaf = |leaf: &Tensor<2>| values(leaf.grad(&gradients).expect("a gradient"));
    (values(loss)[0], leaves.iter().map(of_leaf).collect())
}

/// Fails unless `loss` has the value and the gradients of its naive twin.
pub fn agrees_with_twin(
    inputs: &[Matrix],
    loss: impl Fn(&[Tensor<2>]) -> Tensor<1>,
    twin: impl Fn(&[Matrix]) -> f64,
) {
    let (value, gradients) = value_and_gradients(inputs, loss);
    assert_close(&[value], &[twin(inputs)], 1e-5);
    for (which, gradient) in gradients.iter().enumerate() {
        assert_close(gradient, &central_differences(inputs, which, &twin), 1e-4);
    }
}

fn central_differences(
    inputs: &[Matrix],
    which: usize,
    twin: &impl Fn(&[Matrix]) -> f64,
) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    let cols = inputs[which][0].len();
    let moved = |at: usize, by: f64| {
        let mut inputs = inputs.to_vec();
        inputs[which][at / cols][at % cols] += by;
        twin(&inputs)
    };
    let slope = |at| (moved(at, STEP) - moved(at, -STEP)) / (2.0 * STEP);
    (0..inputs[which].len() * cols).map(slope).collect()
}

/// A case of the golden file: tensors by name, one-dimensional ones as one row.
pub type Case = BTreeMap<String, Matrix>;

/// The cases `NAME.0.*`, `NAME.1.*`, ... of `tests/golden/losses.safetensors`.
pub fn golden_cases(name: &str) -> Vec<Case> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/losses.safetensors");
    let bytes = std::fs::read(path).expect("the golden file");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let mut cases: BTreeMap<usize, Case> = BTreeMap::new();
    for (key, view) in file.tensors() {
        let Some(rest) = key.strip_prefix(name).and_then(|rest| rest.strip_prefix('.')) else {
            continue;
        };
        let (index, tensor) = rest.split_once('.').expect("LOSS.CASE.TENSOR");
        let values = view.data().as_chunks().0.iter().map(|&b| f64::from(f32::from_le_bytes(b)));
        let values: Vec<f64> = values.collect();
        let cols = view.shape().last().copied().unwrap_or(1);
        let rows = values.chunks(cols).map(<[f64]>::to_vec).collect();
        let index = index.parse().expect("a case number");
        cases.entry(index).or_default().insert(tensor.to_owned(), rows);
    }
    assert!(cases.len() >= 4, "{name} has {} cases", cases.len());
    cases.into_values().collect()
}

/// Fails unless `loss` of the tensors called `inputs` has PyTorch's value and gradients in every
/// case. A one-number tensor of the case, such as `tau`, is `case["tau"][0][0]`.
pub fn agrees_with_pytorch(
    name: &str,
    inputs: &[&str],
    loss: impl Fn(&[Tensor<2>], &Case) -> Tensor<1>,
) {
    for case in golden_cases(name) {
        let matrices: Vec<Matrix> = inputs.iter().map(|&input| case[input].clone()).collect();
        let (value, gradients) = value_and_gradients(&matrices, |tensors| loss(tensors, &case));
        assert_close(&[value], &case["loss"][0], 1e-5);
        for (input, gradient) in inputs.iter().zip(gradients) {
            assert_close(&gradient, &case[&format!("grad.{input}")].concat(), 2e-5);
        }
    }
}

// What the twins share.

/// Inner product.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// Rows over their lengths.
pub fn unit(matrix: &Matrix) -> Matrix {
    let scaled = |row: &Vec<f64>| row.iter().map(|v| v / dot(row, row).sqrt()).collect();
    matrix.iter().map(scaled).collect()
}

/// `log sum exp`, without any shift: the twins' numbers are small.
pub fn log_sum_exp(terms: impl Iterator<Item = f64>) -> f64 {
    terms.map(f64::exp).sum::<f64>().ln()
}
