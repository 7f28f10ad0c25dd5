//! Short trials of what a run spends its time on.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::crowd::Ticks;
use super::memory::{Memory, bytes_of};
use super::{Forecast, StageForecast};
use crate::config::{HeadFrom, Keep, OptimConfig, RunConfig, early_epochs};
use crate::data::Rgb8;
use crate::engine::TrainState;
use crate::error::Result;
use crate::eval::health::Health;
use crate::eval::infer::{EvalView, Inference};
use crate::eval::knn::knn_leave_one_out;
use crate::report::facts::Decided;
use crate::run::prepare::Prepared;
use crate::run::{Request, finish, stages};
use crate::train::checkpoint::StageName;
use crate::train::stage::{Stage, StepRecord};

/// Steps that are timed at least, with the loader beside them as in the run.
const TIMED_STEPS: usize = 4;
/// Seconds that steps are timed for at least: the first ones are slower than those of a run, and four of
/// a small model take a sixteenth of a second.
const TIMED_SECONDS: f64 = 0.5;
/// Images a thread that inference is timed on.
const TIMED_IMAGES: usize = 16;
/// Features that the k-NN probe is timed on.
const TIMED_FEATURES: usize = 2048;
/// Bytes of a checkpoint that reach the disk in a second: little for a disk of today.
const WRITTEN_PER_SECOND: f64 = 200e6;
/// Seconds an image takes in the check of the ONNX file, over those of inference: an estimate.
const ONNX_CHECK: f64 = 3.0;
/// Seconds for plots, the page and small pictures of mistakes: an estimate.
const REPORT: f64 = 1.5;

/// What the duration of a stage follows from.
#[derive(Clone, Copy, Debug)]
pub struct Costs {
    /// Images that the stage trains on.
    pub images: usize,
    /// Seconds of an epoch's optimiser steps, with the crops that the stage ends with.
    pub epoch: f64,
    /// Seconds of an epoch's optimiser steps, with the crops that the stage begins with.
    pub early_epoch: f64,
    /// Share of the epochs that have the crops which the stage begins with.
    pub early_share: f64,
    /// Images a step.
    pub batch_size: usize,
    /// Optimiser steps per epoch.
    pub steps_per_epoch: usize,
    /// Seconds of the pass over all images that makes the head's first rows.
    pub first_head: f64,
    /// Seconds of one measurement during training.
    pub measurement: f64,
    /// Epochs from one measurement to the next, as asked for; 0 = none.
    pub every: usize,
    /// Largest share of the time of the steps that measurements may take; 0 = no limit.
    pub share: f64,
    /// Whether the last epoch is measured, too, whatever its number.
    pub at_end: bool,
    /// Seconds of writing one checkpoint.
    pub checkpoint: f64,
    /// Seconds between two checkpoints.
    pub checkpoint_every: f64,
}

impl Costs {
    /// Seconds of the optimiser steps of the first `done` of `epochs` epochs.
    pub fn training(&self, done: usize, epochs: usize) -> f64 {
        let large = done.saturating_sub(early_epochs(epochs, self.early_share));
        self.early_epoch * (done - large) as f64 + self.epoch * large as f64
    }

    /// Epochs from one measurement to the next in a stage of `epochs`: as asked for, or as many as keep the
    /// measurements before the end within their share of the time.
    pub fn every(&self, epochs: usize) -> usize {
        if self.every == 0 || self.share == 0.0 {
            return self.every;
        }
        let most = (self.share * self.training(epochs, epochs) / self.measurement).floor() as usize;
        self.every.max(epochs.saturating_sub(1) / most.saturating_add(1) + 1)
    }

    /// Measurements in a stage of `epochs`.
    pub fn measurements(&self, epochs: usize) -> usize {
        match self.every(epochs) {
            0 => 0,
            every if self.at_end => epochs.div_ceil(every),
            every => epochs.saturating_sub(1) / every,
        }
    }
}

/// Times a few real steps and measurements of each stage of the request, after `spent` was spent on the
/// data.
///
/// # Errors
/// A setting that cannot be used.
pub fn measure(
    request: &Request,
    config: &RunConfig,
    data: &Prepared,
    spent: Duration,
) -> Result<Forecast> {
    let (began, before) = (Instant::now(), Ticks::now());
    let trial = Trial { config, data };
    let (mut forecasts, mut disk, mut finishing) = (Vec::new(), 0, REPORT);
    if request.pretrain {
        let stage = stages::pretraining(config, data)?;
        let (forecast, _) = trial.stage(&stage, &mut disk)?;
        forecasts.push(forecast);
    }
    if request.finetune {
        let stage = stages::finetuning(config, data)?;
        let (forecast, an_image) = trial.stage(&stage, &mut disk)?;
        let checked = data.manifest.samples.len().min(finish::CHECKED_IMAGES) as f64;
        finishing += an_image * (data.held_out.len() as f64 + ONNX_CHECK * checked);
        forecasts.push(forecast);
    }
    Ok(Forecast {
        preparing: (spent + began.elapsed()).as_secs_f64(),
        crowd: before.and_then(|before| Ticks::now()?.crowd(&before, config.threads)),
        budgeted: config.time_budget > 0.0,
        longest: None,
        pace: None,
        decided: Decided::default(),
        stages: forecasts,
        alone: None,
        from_random: request.init.is_none(),
        unused: None,
        finishing,
        disk,
    })
}

/// Steps of fewer crops than a run's.
#[derive(Default)]
struct Tried {
    steps: usize,
    /// Of all steps together.
    crops: usize,
    /// Seconds for batches, losses and gradients.
    passes: f64,
    /// Seconds for the optimiser, as many a step whatever its crops.
    updates: f64,
}

impl Tried {
    fn add(&mut self, record: &StepRecord) {
        self.steps += 1;
        self.crops += record.crops;
        self.updates += record.update_seconds;
    }

    /// Crops a second in steps of `whole` crops.
    fn crops_per_second(&self, whole: usize) -> f64 {
        let update = self.updates / (self.steps * whole) as f64;
        (self.passes / self.crops as f64 + update).recip()
    }
}

/// What is tried out.
struct Trial<'a> {
    config: &'a RunConfig,
    data: &'a Prepared,
}

impl Trial<'_> {
    /// A stage's forecast, and the seconds of inference of one image.
    fn stage(&self, stage: &Stage, disk: &mut u64) -> Result<(StageForecast, f64)> {
        let (samples, batch) = (stage.source.images.len(), stage.source.batch_size);
        let crops_per_image = stage.method.views().views();
        let early = match stage.name {
            StageName::Pretrain => 0,
            StageName::Finetune => self.config.finetune.early_of(stage.optim.epochs),
        };
        let (crops_per_second, an_image, state) = self.steps(stage, early..stage.optim.epochs)?;
        let early_per_second = match early {
            0 => crops_per_second,
            _ => self.steps(stage, 0..early)?.0,
        };
        let from_features = match stage.name {
            StageName::Pretrain => &self.config.pretrain.first_head,
            StageName::Finetune => &self.config.finetune.first_head,
        }
        .from
            == HeadFrom::Features;
        let crops = (stage.source.images_per_epoch() * crops_per_image) as f64;
        let (state_bytes, params) = (bytes_of(&state), 4 * state.values.len() as u64);
        // The last checkpoint, the one before it and one that is being written; the weights at the
        // stage's end, as exported and as ONNX file.
        *disk = (*disk).max(3 * state_bytes) + 2 * params;
        let pretrain = stage.name == StageName::Pretrain;
        let checked = if pretrain { 0 } else { finish::CHECKED_IMAGES.min(samples) };
        let RunConfig { pretrain: before, finetune, time_budget, .. } = self.config;
        let (every, share) = match pretrain {
            true => (before.probe_every, before.probe_share),
            false => (finetune.eval_every, finetune.eval_share),
        };
        // Without a budget there is nothing to share, and where measurements choose the weights they are needed.
        let bounded = *time_budget > 0.0 && (pretrain || finetune.keep == Keep::Last);
        let measured = if pretrain { samples } else { self.data.watched.len() };
        let compared = match pretrain && every > 0 {
            true => self.comparing(stage.net.spec.num_features()),
            false => 0.0,
        };
        let costs = Costs {
            images: samples,
            epoch: crops / crops_per_second,
            early_epoch: crops / early_per_second,
            early_share: if early > 0 { self.config.finetune.early_share } else { 0.0 },
            batch_size: batch,
            steps_per_epoch: stage.source.steps_per_epoch(),
            first_head: samples as f64 * if from_features { an_image } else { 0.0 },
            measurement: measured as f64 * an_image + compared,
            every,
            share: if bounded { share } else { 0.0 },
            at_end: pretrain,
            checkpoint: state_bytes as f64 / WRITTEN_PER_SECOND,
            checkpoint_every: (self.config.checkpoint.every_minutes * 60.0).max(1e-3),
        };
        let forecast = StageForecast {
            stage: stage.name,
            epochs: 0,
            steps: 0,
            crops_per_step: batch.min(samples) * crops_per_image,
            img_size: stage.net.img_size,
            crops_per_second,
            training: 0.0,
            measuring: 0.0,
            checkpoints: 0.0,
            memory: Memory::of(stage, &state, self.data, checked),
            costs,
        };
        Ok((forecast.resized(stage.optim.epochs), an_image))
    }

    /// Crops a second of training in `epochs`, which have crops of one size, seconds an image of inference,
    /// and the state that was trained.
    fn steps(&self, stage: &Stage, epochs: Range<usize>) -> Result<(f64, f64, TrainState)> {
        let (samples, batch) = (stage.source.images.len(), stage.source.batch_size);
        let mut fresh = stage.fresh(stage.source.seed)?;
        // Just enough images for two micro-batches a worker; a card takes all it can.
        let rows = match stage.micro_batch_at(epochs.start * stage.source.steps_per_epoch()) {
            0 => usize::MAX,
            rows => 2 * stage.machine.threads * rows,
        };
        let mut source = stage.source.clone();
        let views = stage.method.views().views();
        source.batch_size = rows.div_ceil(views).clamp(1, samples.min(batch));
        // With weights that stay as they are nothing can run away.
        let still = OptimConfig { lr: 0.0, min_lr: 0.0, ..*stage.optim };
        let trial = Stage {
            optim: &still,
            source,
            method: stage.method.clone(),
            machine: stage.machine.clone(),
            ..*stage
        };
        let first = epochs.start * trial.source.steps_per_epoch();
        // One step before the ones that are timed, even in a stage of a single step.
        let end = (epochs.end * trial.source.steps_per_epoch()).max(first + 2);
        fresh.progress.step = first;
        let mut engine = trial.engine(fresh)?;
        let mut tried = Tried::default();
        let mut started = Instant::now();
        for (i, batch) in trial.source.prefetch(first, end).enumerate() {
            let record = trial.step(&mut *engine, &batch?)?;
            // The first step warms caches and clocks.
            match i {
                0 => started = Instant::now(),
                _ => tried.add(&record),
            }
            let over = i >= TIMED_STEPS && started.elapsed().as_secs_f64() >= TIMED_SECONDS;
            // Every process makes as many steps, since they add their gradients in each.
            if trial.machine.ranks.agree(u64::from(over))? > 0 {
                break;
            }
        }
        tried.passes = started.elapsed().as_secs_f64() - tried.updates;
        let crops_per_second = tried.crops_per_second(samples.min(batch) * views);
        let state = engine.into_state()?;
        Ok((crops_per_second, self.seconds_per_image(stage, &state)?, state))
    }

    /// Seconds of inference per image: of decoded images in pre-training, from their files in fine-tuning.
    fn seconds_per_image(&self, stage: &Stage, state: &TrainState) -> Result<f64> {
        let data = self.data;
        // A probe looks at features only.
        let net = match stage.name {
            StageName::Pretrain => stage.net.without_heads(),
            StageName::Finetune => stage.net,
        };
        let values = &state.values[..net.outline()?.num_params()];
        let model = stage.machine.model(&net, values)?;
        let (view, machine) = (EvalView::of(self.config), &stage.machine);
        let inference = Inference { model: &*model, view, machine };
        let decoded = |i: usize| -> Result<Rgb8> { Ok(data.images.get(i)?.into_owned()) };
        let from_file = |i: usize| data.decode(data.held_out[i]);
        let (all, image): (usize, &(dyn Fn(usize) -> Result<Rgb8> + Sync)) = match stage.name {
            StageName::Finetune if !data.held_out.is_empty() => (data.held_out.len(), &from_file),
            _ => (data.train.len(), &decoded),
        };
        let count = all.min(TIMED_IMAGES * machine.threads);
        let started = Instant::now();
        inference.run(count, image)?;
        Ok(started.elapsed().as_secs_f64() / count.max(1) as f64)
    }

    /// Seconds of what a probe does with the features of the training images, of width `dim`.
    fn comparing(&self, dim: usize) -> f64 {
        let some = self.data.train.len().min(TIMED_FEATURES);
        if some < 2 {
            return 0.0;
        }
        // What the values are does not matter to the time.
        let features: Vec<f32> =
            (0..some * dim).map(|i| (i * 7919 % 1009) as f32 - 504.0).collect();
        let started = Instant::now();
        Health::of(&features, None, dim);
        let health = started.elapsed().as_secs_f64();
        if !self.data.manifest.is_labelled() {
            return health;
        }
        let (classes, eval) = (self.data.manifest.classes.len(), &self.config.eval);
        // In pairs: the only image of a class is not judged.
        let labels: Vec<usize> = (0..some).map(|i| i / 2 % classes.max(1)).collect();
        let started = Instant::now();
        knn_leave_one_out(&features, &labels, classes, eval.knn_k, eval.knn_temperature);
        // Every image with a label is compared with every other.
        let labelled = self.data.labelled().len() as f64;
        health + started.elapsed().as_secs_f64() * (labelled / some as f64).powi(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_optimiser_is_as_slow_in_a_step_of_all_crops_as_in_one_of_few() {
        let mut tried = Tried { passes: 8.0, ..Tried::default() };
        let record = StepRecord {
            step: 0,
            epoch: 0,
            loss: 1.0,
            lr: 0.1,
            crops: 8,
            seconds: 2.5,
            update_seconds: 0.5,
        };
        (0..4).for_each(|_| tried.add(&record));
        // Two seconds for 8 crops, then half a second: 8 and a half for 32.
        assert_eq!(tried.crops_per_second(8), 8.0 / 2.5);
        assert!((tried.crops_per_second(32) - 32.0 / 8.5).abs() < 1e-9);
    }
}
