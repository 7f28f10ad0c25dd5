//! AdamW over the flat parameter vector (recipe appendix B).

use fewvit_kernels::{AdamW, adamw_step};
use serde::{Deserialize, Serialize};

use crate::config::{Ema, OptimConfig, OptimKind};
use crate::method::State;
use crate::nn::ParamSpec;
use crate::schedule;

/// Weights and everything the optimiser remembers.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainState {
    /// Places of the parameters in the vectors below.
    pub specs: Vec<ParamSpec>,
    /// Weights.
    pub values: Vec<f32>,
    /// First moments.
    pub m: Vec<f32>,
    /// Second moments.
    pub v: Vec<f32>,
    /// Averaged weights, when the recipe keeps them.
    pub ema: Option<Vec<f32>>,
    /// Weights of the method's momentum encoder, if it has one.
    pub teacher: Option<Vec<f32>>,
    /// What else the method remembers.
    pub memory: State,
    /// Scalars.
    pub progress: Progress,
}

/// How far a stage is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Optimiser steps done.
    pub step: usize,
    /// Updates of the averaged weights.
    pub ema_updates: usize,
    /// Sum of the losses of the unfinished epoch's steps.
    pub epoch_loss: f64,
    /// Seconds trained, over all sittings.
    pub seconds: f64,
}

impl TrainState {
    /// At step 0 with the given weights.
    pub fn new(specs: Vec<ParamSpec>, values: Vec<f32>, ema: Ema) -> Self {
        let zeros = vec![0.0; values.len()];
        Self {
            specs,
            m: zeros.clone(),
            v: zeros,
            ema: (ema != Ema::Off).then(|| values.clone()),
            values,
            teacher: None,
            memory: State::new(),
            progress: Progress::default(),
        }
    }

    /// One step with learning rate `lr` on the gradient of all parameters but those that the model
    /// has frozen; counts the step. The parameter `key` sits out the first `late(key)` steps, and
    /// AdamW counts its steps from then on, as PyTorch does: bias correction belongs to its moments.
    pub fn update(
        &mut self,
        gradient: &mut [f32],
        lr: f64,
        config: &OptimConfig,
        late: &dyn Fn(&str) -> usize,
    ) {
        clip(gradient, config.clip_grad);
        self.progress.step += 1;
        for i in 0..self.specs.len() {
            let step = self.progress.step.saturating_sub(late(&self.specs[i].key));
            // Neither moved nor decayed.
            if self.specs[i].frozen || step == 0 {
                continue;
            }
            let (range, rank) = (self.specs[i].range.clone(), self.specs[i].shape.len());
            let decayed = !(config.no_decay_1d && rank <= 1);
            let weight_decay = if decayed { config.weight_decay as f32 } else { 0.0 };
            if config.kind == OptimKind::Sgd {
                let (values, m) = (&mut self.values[range.clone()], &mut self.m[range.clone()]);
                sgd_step(values, &gradient[range], m, [lr, config.momentum], weight_decay);
                continue;
            }
            let adamw = AdamW {
                lr: lr as f32,
                beta1: config.beta1 as f32,
                beta2: config.beta2 as f32,
                eps: config.eps as f32,
                weight_decay,
                step: step as u32,
            };
            adamw_step(
                &mut self.values[range.clone()],
                &gradient[range.clone()],
                &mut self.m[range.clone()],
                &mut self.v[range],
                &adamw,
            );
        }
        if config.ema == Ema::PerStep {
            self.average();
        }
    }

    /// Moves the averaged weights towards the weights.
    pub fn average(&mut self) {
        let Some(ema) = &mut self.ema else { return };
        let decay = schedule::ema_decay(self.progress.ema_updates) as f32;
        for (e, w) in ema.iter_mut().zip(&self.values) {
            *e = decay * *e + (1.0 - decay) * w;
        }
        self.progress.ema_updates += 1;
    }
}

/// SGD with momentum as PyTorch has it: `m = momentum m + (g + wd p)`, `p = p - lr m`. Moments start
/// at 0, so the first step's is the gradient itself.
fn sgd_step(p: &mut [f32], g: &[f32], m: &mut [f32], [lr, momentum]: [f64; 2], wd: f32) {
    let (lr, momentum) = (lr as f32, momentum as f32);
    for ((p, g), m) in p.iter_mut().zip(g).zip(m) {
        *m = momentum * *m + (g + wd * *p);
        *p -= lr * *m;
    }
}

/// Scales `gradient` to a Euclidean norm of at most `bound`; 0 = no bound.
fn clip(gradient: &mut [f32], bound: f64) {
    if bound == 0.0 {
        return;
    }
    let norm = gradient.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
    if norm > bound {
        let scale = (bound / norm) as f32;
        gradient.iter_mut().for_each(|g| *g *= scale);
    }
}
