//! Stochastic gradient descent with momentum as PyTorch has it, in one pass.

use crate::check::check_len;
use crate::simd::{Kernel, Level, Simd};

/// Hyper-parameters of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay rate of the moment.
    pub momentum: f32,
    /// Weight decay, a part of the gradient.
    pub weight_decay: f32,
}

/// One step on parameters `p` with gradient `g` and moment `m`, all of one length:
/// m = momentum m + (g + wd p), then p -= lr m. Moments start at 0, so the first step's is the
/// gradient itself.
///
/// # Panics
/// If the slices differ in length.
pub fn sgd_step(p: &mut [f32], g: &[f32], m: &mut [f32], options: &Sgd) {
    sgd_step_at(Level::current(), p, g, m, options);
}

pub(crate) fn sgd_step_at(level: Level, p: &mut [f32], g: &[f32], m: &mut [f32], options: &Sgd) {
    check_len("the gradient", g, p.len());
    check_len("the moment", m, p.len());
    level.run(Step { p, g, m, options });
}

struct Step<'a> {
    p: &'a mut [f32],
    g: &'a [f32],
    m: &'a mut [f32],
    options: &'a Sgd,
}

impl Kernel for Step<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { p, g, m, options } = self;
        let &Sgd { lr, momentum, weight_decay } = options;
        let [lr, momentum, decay] = [lr, momentum, weight_decay].map(S::splat);
        for piece in S::pieces(p.len()) {
            let weight = S::load(&p[piece.clone()]);
            let slope = S::load(&g[piece.clone()]) + decay * weight;
            let moment = momentum * S::load(&m[piece.clone()]) + slope;
            moment.store(&mut m[piece.clone()]);
            (weight - lr * moment).store(&mut p[piece]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{self, Generator, assert_close};

    #[test]
    fn follows_f64_over_twenty_steps_at_every_level() {
        let options = Sgd { lr: 1e-2, momentum: 0.9, weight_decay: 0.05 };
        for level in Level::available() {
            for len in [1, 5, 16, 77] {
                let mut random = Generator::new(12);
                let mut p = random.normal(len);
                let mut m = vec![0.0; len];
                let mut exact = [&p, &m].map(|x| x.iter().map(|&x| f64::from(x)).collect());
                for _ in 0..20 {
                    let g = random.normal(len);
                    sgd_step_at(level, &mut p, &g, &mut m, &options);
                    reference::sgd(&mut exact, &g, &options);
                }
                assert_close(&p, &exact[0], 2e-6);
                assert_close(&m, &exact[1], 2e-6);
            }
        }
    }

    #[test]
    fn the_first_moment_is_the_decayed_gradient() {
        let (mut p, mut m) = ([2.0, -4.0], [0.0; 2]);
        sgd_step(&mut p, &[3.0, 1.0], &mut m, &Sgd { lr: 0.5, momentum: 0.9, weight_decay: 0.25 });
        assert_eq!((p, m), ([0.25, -4.0], [3.5, 0.0]));
    }
}
