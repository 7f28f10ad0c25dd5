//! GELU in its exact form, x Phi(x) with Phi the normal distribution function (Hendrycks and
//! Gimpel, 2016), and its derivative Phi(x) + x phi(x).

use crate::check::check_len;
use crate::simd::{Kernel, Level, Simd};

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

/// GELU and its derivative, by way of b = -|x|. The tail is Phi(b) = 1 / r(b)^4, and the ratio of density
/// and tail h(b), with polynomials r and h that `tests/golden/gelu_polynomials.py` has fitted. Then
/// GELU(x) = max(x, 0) + b Phi(b) without cancellation, and GELU'(b) = Phi(b) (1 + b h(b)).
#[inline(always)]
pub(crate) fn gelu<S: Simd>(x: S) -> (S, S) {
    /// The tail beyond is nothing beside 1.
    const FAR: f32 = -8.0;
    const ROOT: [f32; 12] = [
        -1.189_535_2e-6,
        -1.508_238_2e-5,
        -9.486_651e-5,
        -3.144_494_6e-4,
        -7.576_534e-4,
        -6.556_381e-4,
        -2.534_208_7e-3,
        5.986_281e-3,
        -3.139_863e-2,
        1.182_700_8e-1,
        -2.372_138_3e-1,
        1.189_207_1,
    ];
    const RATIO: [f32; 8] = [
        -1.199_891e-5,
        -1.525_704_8e-4,
        -6.197_62e-4,
        7.808_907e-4,
        1.989_873_8e-2,
        1.093_230_6e-1,
        -6.365_633_5e-1,
        7.978_872e-1,
    ];
    let (zero, one) = (S::splat(0.0), S::splat(1.0));
    // In this order not-a-number stays what it is.
    let b = S::splat(FAR).max(x.min(zero - x));
    let root = polynomial_in_fours(&ROOT, b);
    let square = root * root;
    let tail = (square * square).reciprocal();
    let y = b.mul_add(tail, zero.max(x));
    let slope = (polynomial_in_fours(&RATIO, b) * b).mul_add(tail, tail);
    (y, slope.where_negative(x, one - slope))
}

/// The same for results that are rounded to bf16: absolute errors below 1e-4 and 3e-4 for |x| < 40,
/// where rounding errs by up to 4e-3, in half the instructions. Both factors of x are 1/2 + x P(x^2)
/// with polynomials that `tests/golden/gelu_polynomials.py` has fitted, constant beyond `FLAT`.
#[inline(always)]
pub(crate) fn gelu_for_bf16<S: Simd>(x: S) -> (S, S) {
    const FLAT: f32 = 4.2;
    const PHI: [f32; 8] = [
        -9.017_534e-10,
        7.941_341e-8,
        -3.037_932e-6,
        6.689_07e-5,
        -9.506_575_5e-4,
        9.298_23e-3,
        -6.552_82e-2,
        0.398_465_87,
    ];
    const DERIVATIVE: [f32; 9] = [
        3.517_855_5e-10,
        -3.823_523_6e-8,
        1.763_809_2e-6,
        -4.570_780_5e-5,
        7.410_973e-4,
        -7.906_505e-3,
        5.637_992e-2,
        -0.262_462_1,
        0.796_836,
    ];
    // In this order not-a-number stays what it is.
    let clamped = S::splat(FLAT).min(S::splat(-FLAT).max(x));
    let square = clamped * clamped;
    let phi = polynomial(&PHI, square).mul_add(clamped, S::splat(0.5));
    let derivative = polynomial(&DERIVATIVE, square).mul_add(clamped, S::splat(0.5));
    (x * phi, derivative)
}

/// The polynomial with these coefficients, that of the highest power first.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(coefficients: &[f32; N], x: S) -> S {
    let mut sum = S::splat(0.0);
    for (i, &coefficient) in coefficients.iter().enumerate() {
        let coefficient = S::splat(coefficient);
        sum = if i == 0 { coefficient } else { sum.mul_add(x, coefficient) };
    }
    sum
}

/// The same, in other places rounded: four terms are added up in pairs (Estrin, 1960), where one after
/// the other each step waits for the one before it.
#[inline(always)]
fn polynomial_in_fours<S: Simd, const N: usize>(coefficients: &[f32; N], x: S) -> S {
    let (first, fours) = coefficients.as_rchunks::<4>();
    let (square, mut sum) = (x * x, None);
    let fourth = square * square;
    let add = |sum: Option<S>, power: S, term: S| match sum {
        Some(sum) => sum.mul_add(power, term),
        None => term,
    };
    for &coefficient in first {
        sum = Some(add(sum, x, S::splat(coefficient)));
    }
    for &[c3, c2, c1, c0] in fours {
        let [c3, c2, c1, c0] = [S::splat(c3), S::splat(c2), S::splat(c1), S::splat(c0)];
        let four = c3.mul_add(x, c2).mul_add(square, c1.mul_add(x, c0));
        sum = Some(add(sum, fourth, four));
    }
    sum.unwrap_or(S::splat(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{self, Generator};

    #[test]
    fn gelu_is_exact_to_5e_7_at_every_level() {
        let step = if cfg!(miri) { 1999 } else { 1 };
        let x = (-160_000..160_000).step_by(step);
        let mut x: Vec<f32> = x.map(|i| i as f32 / 10_000.0).collect();
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

    struct ForBf16<'a>(Gelu<'a>);

    impl Kernel for ForBf16<'_> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self) {
            let Gelu { x, y, derivative } = self.0;
            for piece in S::pieces(x.len()) {
                let (value, slope) = gelu_for_bf16(S::load(&x[piece.clone()]));
                value.store(&mut y[piece.clone()]);
                slope.store(&mut derivative[piece]);
            }
        }
    }

    #[test]
    fn for_bf16_it_is_better_than_rounding() {
        let step = if cfg!(miri) { 4999 } else { 1 };
        let x = (-400_000..400_000).step_by(step);
        let x: Vec<f32> = x.map(|i| i as f32 / 10_000.0).collect();
        for level in Level::available() {
            let (mut y, mut dy) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            level.run(ForBf16(Gelu { x: &x, y: &mut y, derivative: &mut dy }));
            for ((&x, &y), &dy) in x.iter().zip(&y).zip(&dy) {
                let (exact, slope) = reference::gelu(f64::from(x));
                assert!((f64::from(y) - exact).abs() < 1e-4, "{level:?}: GELU({x}) = {y}");
                assert!((f64::from(dy) - slope).abs() < 3e-4, "{level:?}: GELU'({x}) = {dy}");
            }
            let (mut y, mut dy) = ([0.0], [0.0]);
            level.run(ForBf16(Gelu { x: &[f32::NAN], y: &mut y, derivative: &mut dy }));
            assert!(y[0].is_nan() && dy[0].is_nan(), "{level:?} hides a diverged run");
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
