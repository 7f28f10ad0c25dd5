//! AdamW, Adam with decoupled weight decay (Loshchilov and Hutter, 2019), in one pass.

use crate::check::check_len;
use crate::simd::{Kernel, Level, Simd};

/// Hyper-parameters of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay rate of the first moment.
    pub beta1: f32,
    /// Decay rate of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Weight decay, multiplied by the learning rate.
    pub weight_decay: f32,
    /// Steps so far, this one included: 1 for the first.
    pub step: u32,
}

/// One step on parameters `p` with gradient `g` and moments `m` and `v`, all of one length:
/// p is first multiplied by 1 - lr wd; m and v move towards g and g^2; then
/// p -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps).
///
/// # Panics
/// If the slices differ in length or `step` is 0.
pub fn adamw_step(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], options: &AdamW) {
    adamw_step_at(Level::current(), p, g, m, v, options);
}

pub(crate) fn adamw_step_at(
    level: Level,
    p: &mut [f32],
    g: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    options: &AdamW,
) {
    check_len("the gradient", g, p.len());
    check_len("the first moment", m, p.len());
    check_len("the second moment", v, p.len());
    assert!(options.step > 0, "the first step of AdamW is step 1, not 0");
    level.run(Step { p, g, m, v, options });
}

struct Step<'a> {
    p: &'a mut [f32],
    g: &'a [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
    options: &'a AdamW,
}

impl Kernel for Step<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { p, g, m, v, options } = self;
        let &AdamW { lr, beta1, beta2, eps, weight_decay, step } = options;
        // Corrections in f64: 1 - 0.999 loses half its digits in f32.
        let corrected = |beta: f32| 1.0 - f64::from(beta).powf(f64::from(step));
        let rate = S::splat((f64::from(lr) / corrected(beta1)) as f32);
        let root = S::splat((1.0 / corrected(beta2).sqrt()) as f32);
        let keep = S::splat((1.0 - f64::from(lr) * f64::from(weight_decay)) as f32);
        let (beta1, rest1) = (S::splat(beta1), S::splat(1.0 - beta1));
        let (beta2, rest2) = (S::splat(beta2), S::splat(1.0 - beta2));
        let eps = S::splat(eps);
        for piece in S::pieces(p.len()) {
            let gradient = S::load(&g[piece.clone()]);
            let first = S::load(&m[piece.clone()]) * beta1 + gradient * rest1;
            let second = S::load(&v[piece.clone()]) * beta2 + gradient * gradient * rest2;
            let change = rate * first / second.sqrt().mul_add(root, eps);
            first.store(&mut m[piece.clone()]);
            second.store(&mut v[piece.clone()]);
            (S::load(&p[piece.clone()]) * keep - change).store(&mut p[piece]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{self, Generator, assert_close};

    #[test]
    fn follows_f64_over_twenty_steps_at_every_level() {
        let options = |step| AdamW {
            lr: 1e-2,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.05,
            step,
        };
        for level in Level::available() {
            for len in [1, 5, 16, 77] {
                let mut random = Generator::new(11);
                let mut p = random.normal(len);
                let (mut m, mut v) = (vec![0.0; len], vec![0.0; len]);
                let mut exact = reference::AdamWState::new(&p);
                for step in 1..=20 {
                    let g = random.normal(len);
                    adamw_step_at(level, &mut p, &g, &mut m, &mut v, &options(step));
                    exact.step(&g, &options(step));
                }
                assert_close(&p, &exact.p, 2e-6);
                assert_close(&m, &exact.m, 2e-6);
                assert_close(&v, &exact.v, 2e-6);
            }
        }
    }

    #[test]
    fn the_first_step_has_the_length_of_the_learning_rate() {
        let options =
            AdamW { lr: 0.5, beta1: 0.9, beta2: 0.999, eps: 0.0, weight_decay: 0.1, step: 1 };
        let (mut p, mut m, mut v) = ([2.0, 2.0], [0.0; 2], [0.0; 2]);
        adamw_step(&mut p, &[3.0, -0.01], &mut m, &mut v, &options);
        assert_close(&p, &[2.0 * 0.95 - 0.5, 2.0 * 0.95 + 0.5], 1e-6);
    }
}
