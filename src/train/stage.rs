//! The loop over the steps of one stage.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use burn::tensor::Device;
use fewvit_kernels::Precision;

use super::checkpoint::{self, StageName};
use super::coupled::Coupling;
use super::optim::TrainState;
use super::parallel::{Engine, StepInput};
use super::passes::{Gradient, average};
use crate::backbone::{Net, NetSpec};
use crate::config::{DataConfig, Ema, OptimConfig};
use crate::data::loader::{Batch, BatchSource};
use crate::error::{Error, Result};
use crate::loss::Chance;
use crate::method::{BatchLoss, Method, Objective};
use crate::nn::{DropPath, Weights};
use crate::ops;
use crate::schedule;

/// Multiple of the loss of guessing, as the mean of an epoch, from which no run comes back: one with a
/// temperature a hundred times too low began at 20.
const HOPELESS: f64 = 1e3;

/// What a stage trains, on what, and how.
pub struct Stage<'a> {
    /// Pre-training or fine-tuning.
    pub name: StageName,
    /// The model.
    pub net: NetSpec,
    /// The loss and its targets.
    pub method: Arc<dyn Method>,
    /// The crops.
    pub source: BatchSource,
    /// Optimiser and schedule.
    pub optim: &'a OptimConfig,
    /// Input normalisation.
    pub data: &'a DataConfig,
    /// Worker threads.
    pub workers: usize,
    /// Rows a worker passes through the model at a time.
    pub micro_batch: usize,
    /// Of the backbone's products.
    pub precision: Precision,
    /// Whether dropout that a model is built with acts.
    pub dropout: bool,
}

/// What was seen in one step.
#[derive(Clone, Copy, Debug)]
pub struct StepRecord {
    /// Optimiser step of the stage, from 0.
    pub step: usize,
    /// Its epoch, from 0.
    pub epoch: usize,
    /// Loss, groups summed.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Crops that passed through the model.
    pub crops: usize,
    /// Duration of the step.
    pub seconds: f64,
}

/// What was seen in one epoch.
#[derive(Clone, Copy, Debug)]
pub struct EpochRecord {
    /// The epoch, from 0.
    pub epoch: usize,
    /// Mean loss of its steps.
    pub loss: f64,
    /// Learning rate of its last step.
    pub lr: f64,
    /// Mean norm of its steps' gradients, before clipping.
    pub grad_norm: f64,
}

/// Who hears of a stage's progress.
pub trait Observer {
    /// After each step.
    ///
    /// # Errors
    /// A log cannot be written.
    fn step(&mut self, record: &StepRecord) -> Result<()>;

    /// After each epoch, with the weights.
    ///
    /// # Errors
    /// A log cannot be written or an evaluation failed.
    fn epoch(&mut self, record: &EpochRecord, state: &TrainState) -> Result<()>;
}

/// When checkpoints are written, and where.
pub struct Checkpoints<'a> {
    /// The file.
    pub path: &'a Path,
    /// Time between two.
    pub every: Duration,
    /// Set by Ctrl-C: finish the step, write a checkpoint, stop.
    pub interrupted: &'a AtomicBool,
}

impl Stage<'_> {
    /// Optimiser steps of the whole stage.
    pub fn total_steps(&self) -> usize {
        self.optim.epochs * self.source.steps_per_epoch()
    }

    /// Freshly initialised weights at step 0.
    ///
    /// # Errors
    /// An img-size that the backbone cannot take.
    pub fn fresh(&self, seed: u64) -> Result<TrainState> {
        let net = self.net.build(seed, &Device::flex())?;
        let specs = crate::nn::Keys::of(&net);
        let mut state = TrainState::new(specs, crate::nn::Gather::of(&net), self.optim.ema);
        if let Objective::Batch(loss) = self.method.objective() {
            state.memory = loss.state(seed);
            state.teacher = loss.teacher().map(|_| state.values.clone());
        }
        state.encoder = self.method.encoder();
        Ok(state)
    }

    /// Trains from `state` to the end of the stage.
    ///
    /// # Errors
    /// The loss is no number ([`Error::Diverged`]), Ctrl-C ([`Error::Interrupted`]), a file.
    pub fn run(
        &self,
        mut state: TrainState,
        checkpoints: &Checkpoints,
        observer: &mut dyn Observer,
    ) -> Result<TrainState> {
        let template = self.net.build(0, &Device::flex())?;
        let mut engine = Engine::new(self.workers, self.micro_batch, state.values.len())?;
        let (mut saved, mut counted) = (Instant::now(), Instant::now());
        let batches = self.source.prefetch(state.progress.step, self.total_steps());
        for batch in batches {
            let record = self.step(&template, &mut engine, &mut state, &batch?)?;
            state.progress.seconds += counted.elapsed().as_secs_f64();
            counted = Instant::now();
            observer.step(&record)?;
            if state.progress.step.is_multiple_of(self.source.steps_per_epoch()) {
                self.end_epoch(&mut state, &record, observer)?;
            }
            let interrupted = checkpoints.interrupted.load(Ordering::Relaxed);
            if interrupted || saved.elapsed() >= checkpoints.every {
                checkpoint::save(checkpoints.path, self.name, &state)?;
                saved = Instant::now();
            }
            if interrupted {
                return Err(Error::Interrupted(format!(
                    "stopped after step {} of {} with a checkpoint in {}",
                    state.progress.step,
                    self.total_steps(),
                    checkpoints.path.display()
                )));
            }
        }
        checkpoint::save(checkpoints.path, self.name, &state)?;
        Ok(state)
    }

    /// One optimiser step on one batch.
    ///
    /// # Errors
    /// The loss or its gradient is no number; the weights are then those from before the step.
    pub fn step(
        &self,
        template: &Net,
        engine: &mut Engine,
        state: &mut TrainState,
        batch: &Batch,
    ) -> Result<StepRecord> {
        let started = Instant::now();
        let (step, steps_per_epoch) = (state.progress.step, self.source.steps_per_epoch());
        let epoch = step / steps_per_epoch;
        let lr = schedule::lr(self.optim, step, steps_per_epoch);
        let (loss, gradient) = self.gradient(template, engine, state, batch)?;
        // Checked before the update, so that no checkpoint ever holds weights that are no numbers.
        if !loss.is_finite() || !gradient.squared.is_finite() {
            return Err(self.diverged(step, lr, loss));
        }
        let late = |key: &str| self.method.frozen_epochs(key).saturating_mul(steps_per_epoch);
        state.progress.epoch_grad_norm += gradient.squared.sqrt();
        let weight_decay = schedule::weight_decay(self.optim, step, self.total_steps());
        state.update(gradient, lr, &OptimConfig { weight_decay, ..*self.optim }, &late);
        if let Objective::Batch(loss) = self.method.objective() {
            self.follow(loss, state, false);
        }
        let seconds = started.elapsed().as_secs_f64();
        state.progress.epoch_loss += loss;
        let crops = batch.groups.iter().map(|group| group.samples.len()).sum();
        Ok(StepRecord { step, epoch, loss, lr, crops, seconds })
    }

    /// The loss of the next step on `batch` and its gradient, in the order of the flat parameter
    /// vector. What the method remembers is brought up to date, and so is a teacher that follows
    /// before the forward pass.
    ///
    /// # Errors
    /// A worker panicked.
    pub(super) fn gradient<'e>(
        &self,
        template: &Net,
        engine: &'e mut Engine,
        state: &mut TrainState,
        batch: &Batch,
    ) -> Result<(f64, Gradient<'e>)> {
        let objective = self.method.objective();
        if let Objective::Batch(loss) = objective {
            self.follow(loss, state, true);
        }
        let step = state.progress.step;
        let drop_path = DropPath {
            rate: self.optim.drop_path,
            seed: self.source.seed,
            step: step as u32,
            first_row: 0,
            training: self.dropout,
        };
        let (mean, std, precision) = (self.data.mean, self.data.std, self.precision);
        let input = StepInput { batch, drop_path, mean, std, precision };
        let weights = |values| Weights::new(template.clone(), values, &Device::flex());
        let net = weights(std::mem::take(&mut state.values));
        let teacher = state.teacher.take().map(weights);
        let result = match objective {
            Objective::Rows(loss) => engine.gradients(&net, &input, loss),
            Objective::Batch(loss) => {
                let teacher = teacher.as_ref().map(|teacher| &teacher.module);
                let epoch = step / self.source.steps_per_epoch();
                let coupling = Coupling { loss, teacher, memory: &mut state.memory, epoch };
                engine.coupled_gradients(&net, &input, coupling)
            }
        };
        // Out of date after the step, and the last to hold on to the weights' memory.
        ops::forget_packed_weights();
        state.values = net.into_values();
        state.teacher = teacher.map(Weights::into_values);
        result
    }

    /// Moves the teacher towards the trained weights, if this is its time: `before` the forward
    /// pass or after the update, in which the step has been counted.
    fn follow(&self, loss: &dyn BatchLoss, state: &mut TrainState, before: bool) {
        let (Some(teacher), Some(values)) = (loss.teacher(), &mut state.teacher) else { return };
        if teacher.follows_before() != before {
            return;
        }
        let step = state.progress.step - usize::from(!before);
        let momentum = teacher.momentum(step, self.total_steps()) as f32;
        average(values, &state.values, momentum, self.workers);
    }

    fn end_epoch(
        &self,
        state: &mut TrainState,
        last: &StepRecord,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        if self.optim.ema == Ema::PerEpoch {
            state.average(self.workers);
        }
        let mean = |sum: &mut f64| std::mem::take(sum) / self.source.steps_per_epoch() as f64;
        let loss = mean(&mut state.progress.epoch_loss);
        let grad_norm = mean(&mut state.progress.epoch_grad_norm);
        if let Some(Chance { loss: chance, .. }) = self.method.chance()
            && loss > HOPELESS * chance
        {
            return Err(Error::Diverged(format!(
                "the mean loss of {} in epoch {} is {loss:.3e}, that of guessing {chance:.3}: training \
                 has run away\n  the last checkpoint is kept; try a lower --lr, a longer \
                 --warmup-epochs or --set {0}.optim.clip_grad=1.0",
                self.name.as_str(),
                last.epoch + 1
            )));
        }
        observer.epoch(&EpochRecord { epoch: last.epoch, loss, lr: last.lr, grad_norm }, state)
    }

    fn diverged(&self, step: usize, lr: f64, loss: f64) -> Error {
        let what = if loss.is_finite() { "gradient" } else { "loss" };
        Error::Diverged(format!(
            "the {what} of {} became infinite or not a number at step {step} (lr {lr:.2e})\n  \
             the last checkpoint is kept; try a lower --lr, a longer --warmup-epochs or \
             --set {0}.optim.clip_grad=1.0",
            self.name.as_str()
        ))
    }
}
