//! GELU in its exact form, x Phi(x) with Phi the normal distribution function (Hendrycks and
//! Gimpel, 2016), and its derivative Phi(x) + x phi(x).

use crate::check::check_len;
use crate::simd::{Kernel, Level, Simd, exp};
use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

/// `y = GELU(x)` and `derivative = GELU'(x)`, both overwritten, absolute error below 5e-7 for |x| <
/// 1e28. Infinities may become not-a-number.
///
/// # Panics
/// If the slices differ in length.
pub fn gelu_forward(x: &[f32], y: &mut [f32], derivative: &mut [f32]) {
    gelu_forward_at(Level::current(), x, y, derivative);
}

pub(crate) fn gelu_forward_at(level: Level, x: &[f32], y: &mut [f32], derivative: &mut [f32]) {
    check_len("the output", y, x.len());
    check_len("the derivative", derivative, x.len());
    level.run(Gelu { x, y, derivative });
}

struct Gelu<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    derivative: &'a mut [f32],
}

impl Kernel for Gelu<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        for piece in S::pieces(self.x.len()) {
            let (y, derivative) = gelu(S::load(&self.x[piece.clone()]));
            y.store(&mut self.y[piece.clone()]);
            derivative.store(&mut self.derivative[piece]);
        }
    }
}

/// GELU and its derivative. The upper tail Q(a) = 1 - Phi(a) is formula 7.1.26 of Abramowitz and
/// Stegun for erfc(a / sqrt 2) / 2, error 7.5e-8; then GELU(x) = max(x, 0) - |x| Q(|x|) without
/// cancellation.
#[inline(always)]
pub(crate) fn gelu<S: Simd>(x: S) -> (S, S) {
    let zero = S::splat(0.0);
    let magnitude = x.max(zero - x);
    let density = exp(x * x * S::splat(-0.5));
    let t = magnitude.mul_add(S::splat(0.327_591_1 * FRAC_1_SQRT_2), S::splat(1.0)).reciprocal();
    let mut tail = S::splat(0.5 * 1.061_405_4);
    for coefficient in [-1.453_152, 1.421_413_8, -0.284_496_74, 0.254_829_6] {
        tail = tail.mul_add(t, S::splat(0.5 * coefficient));
    }
    let tail = tail * t * density;
    let y = zero.max(x) - magnitude * tail;
    let phi = tail.where_negative(x, S::splat(1.0) - tail);
    let density_at_zero = S::splat(0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2);
    let derivative = (x * density).mul_add(density_at_zero, phi);
    (y, derivative)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{self, Generator};

    #[test]
    fn gelu_is_exact_to_5e_7_at_every_level() {
        let mut x: Vec<f32> = (-160_000..160_000).map(|i| i as f32 / 10_000.0).collect();
        x.extend([0.0, -0.0, 1e-30, -1e-30, 1e28, -1e28]);
        for level in Level::available() {
            let (mut y, mut dy) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            gelu_forward_at(level, &x, &mut y, &mut dy);
            let mut worst = [0.0f64; 2];
            for ((&x, &y), &dy) in x.iter().zip(&y).zip(&dy) {
                let (exact, slope) = reference::gelu(f64::from(x));
                let error = if y == exact as f32 { 0.0 } else { (f64::from(y) - exact).abs() };
                worst = [worst[0].max(error), worst[1].max((f64::from(dy) - slope).abs())];
            }
            assert!(worst[0] < 5e-7 && worst[1] < 5e-7, "{level:?}: {worst:?}");
        }
    }

    #[test]
    fn short_slices_and_not_a_number() {
        let mut random = Generator::new(3);
        for level in Level::available() {
            for len in [0, 1, 3, 7, 15, 17, 33] {
                let x = random.normal(len);
                let (mut y, mut dy) = (vec![9.0; len], vec![9.0; len]);
                gelu_forward_at(level, &x, &mut y, &mut dy);
                for i in 0..len {
                    let (exact, slope) = reference::gelu(f64::from(x[i]));
                    assert!((f64::from(y[i]) - exact).abs() < 5e-7);
                    assert!((f64::from(dy[i]) - slope).abs() < 5e-7);
                }
            }
            let (mut y, mut dy) = ([0.0], [0.0]);
            gelu_forward_at(level, &[f32::NAN], &mut y, &mut dy);
            assert!(y[0].is_nan() && dy[0].is_nan(), "{level:?} hides a diverged run");
        }
    }
}
