//! Exponential moving averages: averaged weights, and teachers that follow their students.

use crate::check::check_len;
use crate::simd::{Kernel, Level, Simd};

/// `average = decay average + (1 - decay) x`, both of one length.
///
/// # Panics
/// If the slices differ in length.
pub fn average_step(average: &mut [f32], x: &[f32], decay: f32) {
    average_step_at(Level::current(), average, x, decay);
}

pub(crate) fn average_step_at(level: Level, average: &mut [f32], x: &[f32], decay: f32) {
    check_len("the new values", x, average.len());
    level.run(Step { average, x, decay });
}

struct Step<'a> {
    average: &'a mut [f32],
    x: &'a [f32],
    decay: f32,
}

impl Kernel for Step<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { average, x, decay } = self;
        let (keep, rest) = (S::splat(decay), S::splat(1.0 - decay));
        for piece in S::pieces(x.len()) {
            let old = S::load(&average[piece.clone()]);
            (keep * old + rest * S::load(&x[piece.clone()])).store(&mut average[piece]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{Generator, assert_close};

    #[test]
    fn follows_f64_over_twenty_steps_at_every_level() {
        for level in Level::available() {
            for len in [1, 5, 16, 77] {
                let mut random = Generator::new(13);
                let mut average = random.normal(len);
                let mut exact: Vec<f64> = average.iter().map(|&x| x.into()).collect();
                for decay in (0..20).map(|i| i as f32 / 20.0) {
                    let x = random.normal(len);
                    average_step_at(level, &mut average, &x, decay);
                    let keep = f64::from(decay);
                    for (e, x) in exact.iter_mut().zip(x) {
                        *e = keep * *e + (1.0 - keep) * f64::from(x);
                    }
                }
                assert_close(&average, &exact, 1e-6);
            }
        }
    }
}
