//! What the optimiser does to a parameter, in the words of the kernel `step`.

use fewvit_kernels::{AdamW, Sgd};

use crate::engine::optim::Rule;

impl Rule {
    /// Values of a `Rule` in `kernels/optim.cu`.
    pub const WORDS: usize = 8;
    const REST: f32 = 0.0;
    const ADAMW: f32 = 1.0;
    const SGD: f32 = 2.0;

    /// Those values, for a gradient that is multiplied by `scale`: kind, scale, lr, decay, beta1, beta2,
    /// eps and root.
    pub fn words(self, scale: f32) -> [f32; Self::WORDS] {
        match self {
            Self::Muon(_) => unreachable!("the CPU makes Muon's steps"),
            Self::Rest => [Self::REST, scale, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            Self::Sgd(Sgd { lr, momentum, weight_decay }) => {
                [Self::SGD, scale, lr, weight_decay, momentum, 0.0, 0.0, 0.0]
            }
            Self::AdamW(AdamW { lr, beta1, beta2, eps, weight_decay, step }) => {
                let correction = |beta: f32| 1.0 - f64::from(beta).powi(step as i32);
                let lr_now = f64::from(lr) / correction(beta1);
                let root = correction(beta2).sqrt().recip();
                let decay = 1.0 - lr * weight_decay;
                [Self::ADAMW, scale, lr_now as f32, decay, beta1, beta2, eps, root as f32]
            }
        }
    }
}
