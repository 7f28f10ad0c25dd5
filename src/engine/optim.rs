//! AdamW and SGD as PyTorch computes them, and Muon, over the flat parameter vector.

use fewvit_kernels::{AdamW, Precision, Sgd, adamw_step, average_step, sgd_step};

use self::muon::{Muon, muon_step};
use super::passes::{CHUNK, Gradient, average, for_each};
use super::{TrainState, Update};
use crate::config::{Ema, OptimConfig, OptimKind};
use crate::nn::ParamSpec;
use crate::schedule;

pub mod muon;

impl TrainState {
    /// One step on the gradient of all parameters but those that the model has frozen; counts the step.
    /// A late parameter sits out its first steps, and AdamW counts its steps from then on, as PyTorch
    /// does: bias correction belongs to its moments.
    ///
    /// One pass on the gradient's threads, the same on any number of them.
    pub fn update(&mut self, mut gradient: Gradient, update: &Update) {
        let config = update.optim;
        self.progress.step += 1;
        let decay = (config.ema == Ema::PerStep).then(|| self.count_average()).flatten();
        let (clipping, threads) = (gradient.clipping(config, &self.specs), gradient.threads);
        let precision = gradient.precision;
        let pieces = self.pieces(gradient.values, |spec, step| Rule::at(spec, step, update));
        for_each(threads, pieces.into_iter(), |(parameter, piece)| {
            piece.step(clipping.of(parameter), decay, precision);
        });
    }

    /// Moves the averaged weights towards the weights.
    pub fn average(&mut self, threads: usize) {
        let decay = self.count_average();
        if let (Some(decay), Some(ema)) = (decay, &mut self.ema) {
            average(ema, &self.values, decay, threads);
        }
    }

    /// Moves the momentum encoder, if there is one, towards the weights.
    pub fn follow(&mut self, momentum: f32, threads: usize) {
        if let Some(teacher) = &mut self.teacher {
            average(teacher, &self.values, momentum, threads);
        }
    }

    /// Decay of the next update of the averaged weights, if there are any; counts it.
    pub(super) fn count_average(&mut self) -> Option<f32> {
        self.ema.as_ref()?;
        self.progress.ema_updates += 1;
        Some(schedule::ema_decay(self.progress.ema_updates - 1) as f32)
    }

    /// All vectors in pieces of one parameter each, with its number and its rule in this step.
    fn pieces<'a>(
        &'a mut self,
        gradient: &'a mut [f32],
        rule: impl Fn(&ParamSpec, usize) -> Rule,
    ) -> Vec<(usize, Piece<'a>)> {
        let mut rest = Piece {
            rule: Rule::Rest,
            gradient,
            values: &mut self.values,
            m: &mut self.m,
            v: &mut self.v,
            ema: self.ema.as_deref_mut(),
        };
        let mut pieces = Vec::new();
        for (parameter, spec) in self.specs.iter().enumerate() {
            let rule = rule(spec, self.progress.step);
            let len = spec.range.len();
            let longest = if let Rule::Muon(_) = rule { len } else { CHUNK };
            let lens = (0..len).step_by(longest).map(|i| longest.min(len - i));
            pieces.extend(lens.map(|len| (parameter, Piece { rule, ..rest.split_off(len) })));
        }
        pieces
    }
}

/// What a step does to a parameter.
#[derive(Clone, Copy)]
pub(super) enum Rule {
    /// Neither moved nor decayed.
    Rest,
    AdamW(AdamW),
    Sgd(Sgd),
    Muon(Muon),
}

impl Rule {
    /// In the stage's `step`, from 1.
    pub(super) fn at(spec: &ParamSpec, step: usize, update: &Update) -> Self {
        let &Update { lr, optim, late } = update;
        match step.saturating_sub(late(&spec.key)) {
            0 => Self::Rest,
            _ if spec.frozen => Self::Rest,
            step => Self::of(spec, step, lr, optim),
        }
    }

    /// In the parameter's `step`, from 1.
    fn of(spec: &ParamSpec, step: usize, lr: f64, config: &OptimConfig) -> Self {
        let decayed = !(config.no_decay_1d && spec.shape.len() <= 1);
        let weight_decay = if decayed { config.weight_decay as f32 } else { 0.0 };
        let (lr, momentum) = (lr as f32, config.momentum as f32);
        match (config.kind, muon::sides(spec)) {
            (OptimKind::Muon, Some(sides)) => {
                Self::Muon(Muon { lr, momentum, weight_decay, sides })
            }
            (OptimKind::Sgd, _) => Self::Sgd(Sgd { lr, momentum, weight_decay }),
            (OptimKind::AdamW | OptimKind::Muon, _) => Self::AdamW(AdamW {
                lr,
                beta1: config.beta1 as f32,
                beta2: config.beta2 as f32,
                eps: config.eps as f32,
                weight_decay,
                step: step as u32,
            }),
        }
    }
}

/// The same places of all vectors.
struct Piece<'a> {
    rule: Rule,
    gradient: &'a mut [f32],
    values: &'a mut [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
    ema: Option<&'a mut [f32]>,
}

impl<'a> Piece<'a> {
    /// The first `len` values, which this loses.
    fn split_off(&mut self, len: usize) -> Self {
        fn first<'a>(rest: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
            rest.split_off_mut(..len).expect("vectors as long as the parameters together")
        }
        Self {
            rule: self.rule,
            gradient: first(&mut self.gradient, len),
            values: first(&mut self.values, len),
            m: first(&mut self.m, len),
            v: first(&mut self.v, len),
            ema: self.ema.as_mut().map(|ema| first(ema, len)),
        }
    }

    /// The step, with the gradient multiplied by `clipping` and products in `precision`; then averages with
    /// `decay`.
    fn step(self, clipping: Option<f32>, decay: Option<f32>, precision: Precision) {
        let Self { rule, gradient, values, m, v, ema } = self;
        if let Some(scale) = clipping {
            gradient.iter_mut().for_each(|g| *g *= scale);
        }
        match rule {
            Rule::Rest => {}
            Rule::AdamW(options) => adamw_step(values, gradient, m, v, &options),
            Rule::Sgd(options) => sgd_step(values, gradient, m, &options),
            Rule::Muon(options) => muon_step(values, gradient, m, &options, precision),
        }
        if let (Some(decay), Some(ema)) = (decay, ema) {
            average_step(ema, values, decay);
        }
    }
}

#[cfg(test)]
mod tests;
