//! The loop over the steps of one stage.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytemuck::cast_slice;
use sha2::{Digest as _, Sha256};

use super::checkpoint::{self, StageName};
use crate::backbone::NetSpec;
use crate::config::{DataConfig, Ema, OptimConfig};
use crate::data::loader::{Batch, BatchSource};
use crate::engine::{Engine, Machine, Slope, StepInput, TrainState, Update, scaled_micro_batch};
use crate::error::{Error, Result};
use crate::loss::Chance;
use crate::method::{Method, Objective};
use crate::nn::DropPath;
use crate::schedule;

/// Multiple of the loss of guessing, as the mean of an epoch, from which no run comes back: one with a
/// temperature a hundred times too low began at 20.
const HOPELESS: f64 = 1e3;

/// What a stage trains, on what, and how.
pub struct Stage<'a> {
    /// Pre-training or fine-tuning.
    pub name: StageName,
    /// The model at the size that it ends with.
    pub net: NetSpec,
    /// The loss and its targets.
    pub method: Arc<dyn Method>,
    /// The crops.
    pub source: BatchSource,
    /// Optimiser and schedule.
    pub optim: &'a OptimConfig,
    /// Input normalisation.
    pub data: &'a DataConfig,
    /// What computes.
    pub machine: Machine,
    /// Rows of the model's img-size that a worker passes through the model at a time.
    pub micro_batch: usize,
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
    /// Of these, what came after the gradient: the optimiser and averages.
    pub update_seconds: f64,
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

    /// Whether the stage ends here, before its last epoch.
    fn is_over(&self) -> bool {
        false
    }
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

impl Checkpoints<'_> {
    /// Says with the error of a stage that diverged that there is a checkpoint from before, where there is.
    fn told_with(&self, error: Error) -> Error {
        match error {
            Error::Diverged(text) if self.path.is_file() => {
                Error::Diverged(format!("{text}\n  the last checkpoint is kept"))
            }
            error => error,
        }
    }
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
        let outline = self.net.outline()?;
        let values = outline.draw(seed);
        let mut state = TrainState::new(outline.parameters, values, self.optim.ema);
        if let Objective::Batch(loss) = self.method.objective() {
            state.memory = loss.state(seed);
            state.teacher = loss.teacher().map(|_| state.values.clone());
        }
        state.encoder = self.method.encoder();
        Ok(state)
    }

    /// Trains from `state` to the end of the stage, or until the observer ends it.
    ///
    /// # Errors
    /// The loss is no number ([`Error::Diverged`]), Ctrl-C ([`Error::Interrupted`]), a file.
    pub fn run(
        &self,
        state: TrainState,
        checkpoints: &Checkpoints,
        observer: &mut dyn Observer,
    ) -> Result<TrainState> {
        let mut size = self.img_size(state.progress.step);
        let mut engine = self.engine(state)?;
        let (mut saved, mut counted) = (Instant::now(), Instant::now());
        let ranks = &self.machine.ranks;
        let batches = self.source.prefetch(engine.progress().step, self.total_steps());
        for batch in batches {
            let stepped = self.step(&mut *engine, &batch?);
            let record = stepped.map_err(|error| checkpoints.told_with(error))?;
            let progress = engine.progress();
            progress.seconds += counted.elapsed().as_secs_f64();
            counted = Instant::now();
            observer.step(&record)?;
            let done = record.step + 1;
            if done.is_multiple_of(self.source.steps_per_epoch()) {
                let ended = self.end_epoch(&mut *engine, &record, observer);
                ended.map_err(|error| checkpoints.told_with(error))?;
                if ranks.agree(u64::from(observer.is_over()))? > 0 {
                    break;
                }
                if done < self.total_steps() && self.img_size(done) != size {
                    size = self.img_size(done);
                    engine = self.engine(engine.into_state()?)?;
                }
            }
            let interrupted = checkpoints.interrupted.load(Ordering::Relaxed);
            // All processes stop after the same step.
            let interrupted = ranks.agree(u64::from(interrupted))? > 0;
            if interrupted || saved.elapsed() >= checkpoints.every {
                self.save(&mut *engine, checkpoints)?;
                saved = Instant::now();
            }
            if interrupted {
                // Nobody ends before the checkpoint is there.
                ranks.agree(0)?;
                return Err(Error::Interrupted(format!(
                    "stopped after step {done} of {} with a checkpoint in {}",
                    self.total_steps(),
                    checkpoints.path.display()
                )));
            }
        }
        self.save(&mut *engine, checkpoints)?;
        engine.into_state()
    }

    /// Writes a checkpoint; of several processes the first one does.
    fn save(&self, engine: &mut dyn Engine, checkpoints: &Checkpoints) -> Result<()> {
        match self.machine.ranks.rank() {
            0 => checkpoint::save(checkpoints.path, self.name, engine.state()?),
            _ => Ok(()),
        }
    }

    /// Whether all processes have come to the same weights and memory.
    fn check_ranks(&self, state: &TrainState) -> Result<()> {
        if self.machine.ranks.size() == 1 {
            return Ok(());
        }
        let mut digest = Sha256::new();
        digest.update(cast_slice(&state.values));
        state.memory.values().for_each(|tensor| digest.update(cast_slice(&tensor.values)));
        match self.machine.ranks.differing(&digest.finalize())?[..] {
            [] => Ok(()),
            [first, ..] => Err(Error::Failed(format!(
                "the weights of process {first} have come apart from those of process 0: the processors \
                 differ or one computes wrongly\n  the last checkpoint is kept; train on machines of one \
                 kind"
            ))),
        }
    }

    /// An engine that goes on from `state`.
    ///
    /// # Errors
    /// As [`Machine::engine`].
    pub fn engine(&self, state: TrainState) -> Result<Box<dyn Engine>> {
        let step = state.progress.step;
        self.machine.engine(&self.net_at(step), self.micro_batch_at(step), state)
    }

    /// Rows a worker passes through the model at a time in optimiser step `step`.
    pub fn micro_batch_at(&self, step: usize) -> usize {
        scaled_micro_batch(self.micro_batch, self.net.img_size, self.img_size(step))
    }

    /// The model at the size of the crops of optimiser step `step`.
    pub fn net_at(&self, step: usize) -> NetSpec {
        NetSpec { img_size: self.img_size(step), ..self.net }
    }

    /// Side of the crops of optimiser step `step` in pixels.
    fn img_size(&self, step: usize) -> usize {
        let epoch = step / self.source.steps_per_epoch();
        self.method.views().img_size(epoch as u32).unwrap_or(self.net.img_size)
    }

    /// One optimiser step on one batch.
    ///
    /// # Errors
    /// The loss or its gradient is no number; the weights are then those from before the step.
    pub fn step(&self, engine: &mut dyn Engine, batch: &Batch) -> Result<StepRecord> {
        let started = Instant::now();
        let (step, steps_per_epoch) = (engine.progress().step, self.source.steps_per_epoch());
        let epoch = step / steps_per_epoch;
        let lr = schedule::lr(self.optim, step, steps_per_epoch);
        let Slope { loss, squared } = self.gradient(engine, batch)?;
        // Checked before the update, so that no checkpoint ever holds weights that are no numbers.
        if !loss.is_finite() || !squared.is_finite() {
            return Err(self.diverged(step, lr, loss));
        }
        let late = |key: &str| self.method.frozen_epochs(key).saturating_mul(steps_per_epoch);
        let weight_decay = schedule::weight_decay(self.optim, step, self.total_steps());
        let optim = OptimConfig { weight_decay, ..*self.optim };
        let slope_known = started.elapsed();
        engine.update(&Update { lr, optim: &optim, late: &late })?;
        self.follow(engine, false)?;
        let seconds = started.elapsed().as_secs_f64();
        let update_seconds = seconds - slope_known.as_secs_f64();
        let progress = engine.progress();
        progress.epoch_grad_norm += squared.sqrt();
        progress.epoch_loss += loss;
        let crops = batch.groups.iter().map(|group| group.samples.len()).sum();
        Ok(StepRecord { step, epoch, loss, lr, crops, seconds, update_seconds })
    }

    /// The loss of the next step on `batch` and its gradient, which the engine keeps. What the method
    /// remembers is brought up to date, and so is a teacher that follows before the forward pass.
    ///
    /// # Errors
    /// As [`Engine::gradient`].
    pub(super) fn gradient(&self, engine: &mut dyn Engine, batch: &Batch) -> Result<Slope> {
        self.follow(engine, true)?;
        let step = engine.progress().step;
        let drop_path = DropPath {
            rate: self.optim.drop_path,
            seed: self.source.seed,
            step: step as u32,
            first_row: 0,
            training: self.dropout,
        };
        let (objective, epoch) = (self.method.objective(), step / self.source.steps_per_epoch());
        let (mean, std) = (self.data.mean, self.data.std);
        engine.gradient(&StepInput { batch, objective, drop_path, mean, std, epoch })
    }

    /// Moves the teacher towards the trained weights, if there is one and this is its time: `before`
    /// the forward pass or after the update, in which the step has been counted.
    fn follow(&self, engine: &mut dyn Engine, before: bool) -> Result<()> {
        let Objective::Batch(loss) = self.method.objective() else { return Ok(()) };
        let Some(teacher) = loss.teacher().filter(|t| t.follows_before() == before) else {
            return Ok(());
        };
        let step = engine.progress().step - usize::from(!before);
        engine.follow(teacher.momentum(step, self.total_steps()) as f32)
    }

    fn end_epoch(
        &self,
        engine: &mut dyn Engine,
        last: &StepRecord,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        if self.optim.ema == Ema::PerEpoch {
            engine.average()?;
        }
        let progress = engine.progress();
        let mean = |sum: &mut f64| std::mem::take(sum) / self.source.steps_per_epoch() as f64;
        let loss = mean(&mut progress.epoch_loss);
        let grad_norm = mean(&mut progress.epoch_grad_norm);
        if let Some(Chance { loss: chance, .. }) = self.method.chance()
            && loss > HOPELESS * chance
        {
            return Err(Error::Diverged(format!(
                "the mean loss of {} in epoch {} is {loss:.3e}, that of guessing {chance:.3}: training \
                 has run away\n  try a lower --lr, a longer --warmup-epochs or \
                 --set {0}.optim.clip_grad=1.0",
                self.name.as_str(),
                last.epoch + 1
            )));
        }
        self.check_ranks(engine.state()?)?;
        let record = EpochRecord { epoch: last.epoch, loss, lr: last.lr, grad_norm };
        observer.epoch(&record, engine.state()?)
    }

    fn diverged(&self, step: usize, lr: f64, loss: f64) -> Error {
        let what = if loss.is_finite() { "gradient" } else { "loss" };
        Error::Diverged(format!(
            "the {what} of {} became infinite or not a number at step {step} (lr {lr:.2e})\n  \
             try a lower --lr, a longer --warmup-epochs or \
             --set {0}.optim.clip_grad=1.0",
            self.name.as_str()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_called_kept_only_where_one_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("last.safetensors");
        let interrupted = &AtomicBool::new(false);
        let checkpoints = Checkpoints { path: &path, every: Duration::ZERO, interrupted };
        let told = || checkpoints.told_with(Error::Diverged("it ran away".to_owned()));
        assert_eq!(told().to_string(), "it ran away");
        std::fs::write(&path, "").expect("written");
        assert_eq!(told().to_string(), "it ran away\n  the last checkpoint is kept");
        assert_eq!(told().exit_code(), 5);
        let other = checkpoints.told_with(Error::Failed("another".to_owned()));
        assert_eq!(other.to_string(), "another");
    }
}
