//! Refuses a device that answers wrongly, before hours of training go into it.

use burn::tensor::{Device, Tensor, TensorData};
use rand::RngExt as _;

use super::read;
use crate::error::{Error, Result};
use crate::ops::{self, MixedTarget, SoftTargets};
use crate::rng::{Purpose, stream};

/// Largest difference of an answer to the CPU's, relative to the largest value of it.
///
/// 32 to 192 products summed in another order differ by up to 192 * 2^-24 = 1.1e-5, and drivers round
/// exp and erf in their own way by 1e-6. Products of 16 bits, which are not asked for, differ by some
/// 1e-3, and a wrong index by 1.
const TOLERANCE: f32 = 1e-4;

/// An operation, and what a device makes of it.
type Answer = (&'static str, Vec<f32>);

/// Compares a small forward and backward on `device` with the same operations on the CPU.
///
/// # Errors
/// They differ, or the device fails.
pub fn self_check(device: &Device) -> Result<()> {
    compare(&answers(device)?, &ops::composed_only(|| answers(&ops::cpu()))?)
}

fn compare(device: &[Answer], cpu: &[Answer]) -> Result<()> {
    for ((what, seen), (_, expected)) in device.iter().zip(cpu) {
        let largest = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
        let wrong = |(a, b): &(&f32, &f32)| {
            let difference = (*a - *b).abs();
            difference.is_nan() || difference > TOLERANCE * largest
        };
        if let Some((a, b)) = seen.iter().zip(expected).find(wrong) {
            return Err(Error::Device(format!(
                "the device answers wrongly and is not used: {what} should be {b} and is {a}\n  update its driver, or use --device cpu"
            )));
        }
        if seen.len() != expected.len() {
            return Err(Error::Device(format!(
                "the device answers wrongly and is not used: {what} has {} values for {}",
                seen.len(),
                expected.len()
            )));
        }
    }
    Ok(())
}

/// Values and gradients of each operation by itself, so that the wrong one has a name.
fn answers(device: &Device) -> Result<Vec<Answer>> {
    let device = device.clone().autodiff();
    let random = |shape: Vec<usize>, index: u64| {
        let mut rng = stream(1, Purpose::Bench, 0, index, 0);
        let values: Vec<f32> =
            (0..shape.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
        TensorData::new(values, shape)
    };
    let leaf = |shape: [usize; 2], index| {
        Tensor::<2>::from_data(random(shape.to_vec(), index), &device).require_grad()
    };
    let vector =
        |size, index| Tensor::<1>::from_data(random(vec![size], index), &device).require_grad();
    let mut answers = Vec::new();
    // A gradient that differs in every element, so that mixed-up indices show.
    let mut ask = |names: [&'static str; 2], x: Tensor<2>, y: Tensor<2>| -> Result<()> {
        let weights = Tensor::from_data(random(y.dims().to_vec(), 9), &device);
        let grads = (y.clone() * weights).sum().backward();
        answers.push((names[0], read(y)?));
        let gradient = x.grad(&grads).ok_or_else(|| missing(names[1]))?;
        answers.push((names[1], read(gradient)?));
        Ok(())
    };
    let x = leaf([40, 64], 0);
    let y = ops::linear(x.clone(), leaf([96, 64], 1), vector(96, 2));
    ask(["a linear layer", "a linear layer's gradient"], x, y)?;
    let w = leaf([96, 64], 1);
    let y = ops::linear(leaf([40, 64], 0), w.clone(), vector(96, 2));
    ask(["a linear layer", "the gradient of a linear layer's weight"], w, y)?;
    let x = leaf([40, 64], 3);
    let y = ops::layer_norm(x.clone(), vector(64, 4), vector(64, 5), 1e-6);
    ask(["a layer norm", "a layer norm's gradient"], x, y)?;
    let x = leaf([40, 192], 6);
    let y = ops::attention(x.clone().reshape([2, 20, 192]), 2).reshape([40, 64]);
    ask(["attention", "the gradient of attention"], x, y)?;
    let (x, eye) = (leaf([40, 64], 7) * 3.0, Tensor::<2>::eye(64, &device));
    let x = x.detach().require_grad();
    let y = ops::linear_gelu(x.clone(), eye, Tensor::zeros([64], &device));
    ask(["GELU", "the gradient of GELU"], x, y)?;
    let x = leaf([40, 64], 8);
    let rows = (0..40).map(|row| MixedTarget::mix(row, 63 - row, 0.7)).collect();
    let y = ops::mixed_cross_entropy(x.clone(), SoftTargets { rows, on: 0.9, off: 0.1 / 64.0 });
    ask(["cross-entropy", "the gradient of cross-entropy"], x, y.unsqueeze_dim(1))?;
    Ok(answers)
}

fn missing(what: &str) -> Error {
    Error::Device(format!("the device gives no answer: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_pass_and_every_planted_error_is_refused_by_name() {
        self_check(&ops::cpu()).expect("the fused operations agree with the composed ones");
        let right = ops::composed_only(|| answers(&ops::cpu())).expect("answers");
        for i in 0..right.len() {
            for corrupt in [|v: f32| v + 3e-3, |_: f32| f32::NAN, |v: f32| -v] {
                let mut wrong = right.clone();
                let largest = (0..wrong[i].1.len())
                    .max_by(|&a, &b| right[i].1[a].abs().total_cmp(&right[i].1[b].abs()));
                let value = &mut wrong[i].1[largest.expect("values")];
                *value = corrupt(*value);
                let error = compare(&wrong, &right).expect_err("refused");
                assert_eq!(error.exit_code(), 4);
                assert!(error.to_string().contains(right[i].0), "{error}");
            }
            let mut short = right.clone();
            short[i].1.pop();
            assert!(compare(&short, &right).is_err());
        }
    }
}
