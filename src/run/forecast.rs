//! What a run will take, from timing real steps, and epochs that fit a time budget.

use std::time::Instant;

use burn::tensor::Device;
use serde::Serialize;

use super::prepare::Prepared;
use super::{Request, stages};
use crate::config::{Layers, OptimConfig, RunConfig};
use crate::error::{Error, Result};
use crate::report::words::duration;
use crate::train::checkpoint::StageName;
use crate::train::parallel::Engine;
use crate::train::stage::Stage;

/// What one stage will take.
#[derive(Clone, Debug, Serialize)]
pub struct StageForecast {
    /// The stage.
    pub stage: StageName,
    /// Its epochs.
    pub epochs: usize,
    /// Its optimiser steps.
    pub steps: usize,
    /// Crops a step.
    pub crops_per_step: usize,
    /// Measured crops a second.
    pub crops_per_second: f64,
    /// Its duration.
    pub seconds: f64,
    /// Memory of weights, moments, gradients and one step's crops and activations, in bytes.
    pub memory: u64,
}

/// What a run will take.
#[derive(Clone, Debug, Serialize)]
pub struct Forecast {
    /// Its stages.
    pub stages: Vec<StageForecast>,
    /// Checkpoints, pre-trained and exported weights, in bytes.
    pub disk: u64,
}

/// Steps that are timed, with the loader beside them as in the run.
const TIMED_STEPS: usize = 4;

/// Share of the time budget that is kept back for evaluation, export and report.
const RESERVE: f64 = 0.08;

/// Scales the epochs to the time budget, if there is one, and forecasts. Stages whose epochs somebody
/// has `chosen` keep them; the others get the time that those leave.
///
/// # Errors
/// A setting that cannot be used, or a budget too short for one epoch a stage.
pub fn fit(
    request: &Request,
    config: &RunConfig,
    chosen: &[StageName],
    data: &Prepared,
) -> Result<(RunConfig, Forecast)> {
    let mut config = config.clone();
    let mut forecast = measure(request, &config, data)?;
    let minutes = config.time_budget;
    let (kept, scaled): (Vec<_>, Vec<_>) =
        forecast.stages.iter_mut().partition(|stage| chosen.contains(&stage.stage));
    if minutes > 0.0 && !scaled.is_empty() {
        let seconds = |stages: &[&mut StageForecast]| stages.iter().map(|s| s.seconds).sum::<f64>();
        let budget = minutes * 60.0 * (1.0 - RESERVE);
        let factor = (budget - seconds(&kept)) / seconds(&scaled);
        // A budget shortens the recipe's schedule; it never trains longer than the paper.
        let mut paper = Layers::new("paper")?.build()?.config;
        for stage in scaled {
            let longest = optim_of(&mut paper, stage.stage).epochs;
            shorten(stage, optim_of(&mut config, stage.stage), factor, longest);
        }
        if forecast.seconds() > budget.max(1.0) && factor < 1.0 {
            return Err(Error::Usage(too_short(minutes, &forecast, chosen)));
        }
    }
    // The epochs are part of the run from here on: they must not be fitted again on resume.
    config.time_budget = 0.0;
    Ok((config, forecast))
}

fn too_short(minutes: f64, forecast: &Forecast, chosen: &[StageName]) -> String {
    let (least, takes) = match chosen {
        [] => ("one epoch of each stage", "takes"),
        _ => ("the epochs asked for, with one of the other stage,", "take"),
    };
    format!(
        "a time budget of {minutes} minutes is too short: {least} {takes} {} here\n  give a longer \
         --time-budget (0 = none) or a smaller --img-size",
        duration(forecast.seconds())
    )
}

/// Scales a stage by `factor` to between 1 and `longest` epochs, its warm-up with it.
fn shorten(stage: &mut StageForecast, optim: &mut OptimConfig, factor: f64, longest: usize) {
    let epochs = ((optim.epochs as f64 * factor).floor() as usize).clamp(1, longest.max(1));
    let share = epochs as f64 / optim.epochs as f64;
    optim.warmup_epochs *= share;
    optim.epochs = epochs;
    stage.epochs = epochs;
    stage.steps = (stage.steps as f64 * share).round() as usize;
    stage.seconds *= share;
}

fn optim_of(config: &mut RunConfig, stage: StageName) -> &mut OptimConfig {
    match stage {
        StageName::Pretrain => &mut config.pretrain.optim,
        StageName::Finetune => &mut config.finetune.optim,
    }
}

/// Times a few real steps of each stage of the request.
///
/// # Errors
/// A setting that cannot be used.
pub fn measure(request: &Request, config: &RunConfig, data: &Prepared) -> Result<Forecast> {
    let mut forecasts = Vec::new();
    let mut disk = 0;
    if request.pretrain {
        forecasts.push(of_stage(&stages::pretraining(config, data)?, &mut disk)?);
    }
    if request.finetune {
        forecasts.push(of_stage(&stages::finetuning(config, data)?, &mut disk)?);
    }
    Ok(Forecast { stages: forecasts, disk })
}

fn of_stage(stage: &Stage, disk: &mut u64) -> Result<StageForecast> {
    let (samples, batch) = (stage.source.images.len(), stage.source.batch_size);
    let crops_per_image = stage.method.views().views();
    let mut state = stage.fresh(stage.source.seed)?;
    let params = state.values.len() as u64 * 4;
    // Just enough images for two micro-batches a worker.
    let rows = 2 * stage.workers * stage.micro_batch;
    let mut source = stage.source.clone();
    source.batch_size = rows.div_ceil(crops_per_image).clamp(1, samples.min(batch));
    let timed = TIMED_STEPS.min(source.steps_per_epoch());
    let probe = Stage { source, method: stage.method.clone(), ..*stage };
    let template = stage.net.build(0, &Device::flex())?;
    let mut engine = Engine::new(stage.workers, stage.micro_batch, state.values.len())?;
    let (mut started, mut crops) = (Instant::now(), 0);
    for (i, batch) in probe.source.prefetch(0, 1 + timed).enumerate() {
        let record = probe.step(&template, &mut engine, &mut state, &batch?)?;
        // The first step warms caches and clocks.
        match i {
            0 => started = Instant::now(),
            _ => crops += record.crops,
        }
    }
    let crops_per_second = crops as f64 / started.elapsed().as_secs_f64();
    let steps = stage.total_steps();
    let crops = stage.source.images_per_epoch() * crops_per_image * stage.optim.epochs;
    *disk += 2 * 3 * params + params;
    let activations = activation_bytes(stage) * stage.workers as u64;
    let side = stage.net.img_size as u64;
    Ok(StageForecast {
        stage: stage.name,
        epochs: stage.optim.epochs,
        steps,
        crops_per_step: batch.min(samples) * crops_per_image,
        crops_per_second,
        seconds: crops as f64 / crops_per_second,
        memory: params * (4 + 3 * stage.workers as u64)
            + activations
            + 3 * (batch * crops_per_image) as u64 * side * side * 3,
    })
}

/// Bytes a worker keeps between forward and backward.
fn activation_bytes(stage: &Stage) -> u64 {
    let values = stage.net.spec.family.activations(stage.net.img_size);
    (stage.micro_batch * values * size_of::<f32>()) as u64
}

impl Forecast {
    /// Duration of all stages.
    pub fn seconds(&self) -> f64 {
        self.stages.iter().map(|stage| stage.seconds).sum()
    }

    /// Progress units of the run: milliseconds.
    pub fn units(&self) -> u64 {
        self.stages.iter().map(|s| self.units_per_step(s.stage) * s.steps as u64).sum()
    }

    /// Progress units of one optimiser step.
    pub fn units_per_step(&self, stage: StageName) -> u64 {
        let found = self.stages.iter().find(|s| s.stage == stage);
        found.map_or(1, |s| (1000.0 * s.seconds / s.steps.max(1) as f64).ceil() as u64)
    }

    /// The forecast in words, with the flag that would make the run shorter.
    pub fn describe(&self) -> String {
        let mut text = String::from("forecast:\n");
        for s in &self.stages {
            text += &format!(
                "  {:<9} {} epochs, {} steps, {} ({:.0} crops/s here), {} of memory\n",
                s.stage.as_str(),
                s.epochs,
                s.steps,
                duration(s.seconds),
                s.crops_per_second,
                bytes(s.memory)
            );
        }
        let total = self.seconds();
        text += &format!("  in all    {}, {} of disk", duration(total), bytes(self.disk));
        if total > 1800.0 {
            text += "\n  shorter:  --recipe quick --time-budget MINUTES, or fewer --epochs";
        }
        text
    }
}

/// `1.5 GB`, `320 MB`.
pub fn bytes(n: u64) -> String {
    match n {
        0..1_000_000_000 => format!("{} MB", n.div_ceil(1_000_000)),
        _ => format!("{:.1} GB", n as f64 / 1e9),
    }
}
