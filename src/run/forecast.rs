//! What a run will take, from timing real steps and real measurements, and epochs that fit a time
//! budget.

mod memory;
mod timing;

use serde::Serialize;

use crate::config::{Layers, OptimConfig, RunConfig};
use crate::error::{Error, Result};
use crate::report::facts::{Decided, LeftOut, Smaller};
use crate::report::words::{counted, duration};
use crate::train::checkpoint::StageName;
pub use memory::Memory;
pub use timing::{Costs, measure};

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
    /// Seconds of optimiser steps.
    pub training: f64,
    /// Seconds of k-NN probes or of accuracy, measured every few epochs.
    pub measuring: f64,
    /// Seconds in which checkpoints are written.
    pub checkpoints: f64,
    /// Memory at its peak, in bytes.
    pub memory: Memory,
    /// What all this follows from.
    #[serde(skip)]
    costs: Costs,
}

impl StageForecast {
    /// Its duration in seconds.
    pub fn seconds(&self) -> f64 {
        self.training + self.measuring + self.checkpoints
    }

    /// Seconds of it until optimiser step `step`.
    fn seconds_until(&self, step: usize) -> f64 {
        let Costs { steps_per_epoch, .. } = self.costs;
        let (epochs, rest) = (step / steps_per_epoch, step % steps_per_epoch);
        let done = |epochs| self.costs.training(epochs, self.epochs);
        let part = rest as f64 / steps_per_epoch as f64 * (done(epochs + 1) - done(epochs));
        self.seconds() * (done(epochs) + part) / self.training
    }

    /// The same stage with `epochs`.
    fn resized(&self, epochs: usize) -> Self {
        let costs = &self.costs;
        let training = costs.training(epochs, epochs);
        let measuring = costs.first_head + costs.measurement * costs.measurements(epochs) as f64;
        let steps = costs.steps_per_epoch * epochs;
        let saved = ((training + measuring) / costs.checkpoint_every).min(steps as f64).floor();
        let checkpoints = costs.checkpoint * (1.0 + saved);
        Self { epochs, steps, training, measuring, checkpoints, ..self.clone() }
    }
}

/// What a run will take.
#[derive(Clone, Debug, Serialize)]
pub struct Forecast {
    /// Seconds that reading the images and timing took; they are over.
    pub preparing: f64,
    /// What the time budget decided: the model, and whether there is pre-training.
    #[serde(flatten)]
    pub decided: Decided,
    /// Its stages.
    pub stages: Vec<StageForecast>,
    /// Epochs that fine-tuning would have in the same budget without the pre-training before it.
    pub alone: Option<usize>,
    /// Whether the first stage begins with random weights.
    pub from_random: bool,
    /// Seconds of the time budget that are left although every stage has its longest schedule.
    pub unused: Option<f64>,
    /// Seconds of the final measurement, the ONNX file and its check, and the report.
    pub finishing: f64,
    /// Checkpoints, pre-trained and exported weights, in bytes.
    pub disk: u64,
}

/// Share of the time budget that is kept back because no forecast is exact.
const RESERVE: f64 = 0.05;

/// Fine-tuning from random weights may have the epochs of both stages' longest schedules.
const ALONE: usize = 2;

/// Share of a time budget that nobody misses.
const NOT_WORTH_SAYING: f64 = 0.15;

/// The settings with the smaller model.
pub fn with_smaller(config: &RunConfig, smaller: &Smaller) -> RunConfig {
    let mut config = config.clone();
    config.model.name.clone_from(&smaller.name);
    config.model.small.clear();
    config
}

/// The longest schedules that a budget is scaled to.
struct Longest {
    /// Epochs of the paper's longest.
    epochs: usize,
    /// Number of images below which a schedule may have as many steps as for so many, and so more epochs.
    few_images: usize,
    /// Whether nobody has trained the weights that the run begins with.
    from_random: bool,
}

impl Longest {
    /// For a run with these settings.
    fn of(config: &RunConfig, from_random: bool) -> Result<Self> {
        let epochs = Layers::new("paper")?.build()?.config.pretrain.optim.epochs;
        Ok(Self { epochs, few_images: config.few_images, from_random })
    }

    /// Epochs of `stage`, which is `alone` if no other is before or after it.
    fn of_stage(&self, stage: &StageForecast, alone: bool) -> usize {
        let Costs { batch_size, steps_per_epoch, .. } = stage.costs;
        let steps = self.epochs * self.few_images.div_ceil(batch_size);
        let longest = self.epochs.max(steps / steps_per_epoch);
        if alone && self.from_random { ALONE * longest } else { longest }
    }
}

fn too_short(minutes: f64, forecast: &Forecast, chosen: &[StageName]) -> String {
    let (least, takes) = match chosen {
        [] => ("one epoch of each stage", "takes"),
        _ => ("the epochs asked for, with one of the other stage,", "take"),
    };
    format!(
        "a time budget of {} is too short: {least} {takes} {} here\n  give a longer --time-budget (0 = \
         none) or a smaller --img-size",
        duration(60.0 * minutes),
        duration(forecast.preparing + forecast.seconds())
    )
}

fn optim_of(config: &mut RunConfig, stage: StageName) -> &mut OptimConfig {
    match stage {
        StageName::Pretrain => &mut config.pretrain.optim,
        StageName::Finetune => &mut config.finetune.optim,
    }
}

fn every_of(config: &mut RunConfig, stage: StageName) -> &mut usize {
    match stage {
        StageName::Pretrain => &mut config.pretrain.probe_every,
        StageName::Finetune => &mut config.finetune.eval_every,
    }
}

impl Forecast {
    /// The smaller model of the settings, if there is one and the time budget is too short for the steps of
    /// the other. Where somebody has `chosen` the epochs of every stage, the model stays.
    pub fn smaller(&self, config: &RunConfig, chosen: &[StageName]) -> Option<Smaller> {
        let model = &config.model;
        let fixed = self.stages.iter().all(|stage| chosen.contains(&stage.stage));
        if config.time_budget == 0.0 || model.small.is_empty() || fixed {
            return None;
        }
        // Counted by time alone: a set of few labels has few steps, however long the budget is.
        let last = self.stages.last()?;
        let steps = (self.budget(config) / last.training * last.steps as f64) as usize;
        (steps < model.small_below).then(|| Smaller {
            name: model.small.clone(),
            instead_of: model.name.clone(),
            steps,
            least: model.small_below,
        })
    }

    /// Seconds of the time budget for what is still to be done.
    fn budget(&self, config: &RunConfig) -> f64 {
        config.time_budget * 60.0 * (1.0 - RESERVE) - self.preparing
    }

    /// Scales the epochs to the time budget, if there is one. Stages whose epochs somebody has `chosen`
    /// keep them; the others get the time that those leave. Returns the settings with these epochs.
    ///
    /// # Errors
    /// A budget too short for one epoch a stage.
    pub fn fit(&mut self, config: &RunConfig, chosen: &[StageName]) -> Result<RunConfig> {
        let (mut config, budget) = (config.clone(), self.budget(config));
        let free = |stage: &StageForecast| !chosen.contains(&stage.stage);
        if config.time_budget > 0.0 && self.stages.iter().any(free) {
            let longest = Longest::of(&config, self.from_random)?;
            let mut fits = self.scale(budget, free, &longest);
            let may = !chosen.contains(&StageName::Pretrain)
                && self.labelled().is_some_and(|share| share > config.pretrain.few_labels);
            if may && self.leave_out(config.pretrain.least_steps, &longest) {
                fits = self.scale(budget, free, &longest);
                config.pretrain.optim.epochs = 0;
            }
            self.unused = self.left_of(budget, free, &longest);
            // Epochs that somebody chose are no choice of ours.
            self.alone = match chosen {
                [] => self.without_pretraining(budget, &longest),
                _ => None,
            };
            if !fits {
                return Err(Error::Usage(too_short(config.time_budget, self, chosen)));
            }
            for stage in &self.stages {
                let optim = optim_of(&mut config, stage.stage);
                optim.warmup_epochs *= stage.epochs as f64 / optim.epochs as f64;
                optim.epochs = stage.epochs;
            }
        }
        for stage in &self.stages {
            *every_of(&mut config, stage.stage) = stage.costs.every(stage.epochs);
        }
        // The epochs are part of the run from here on: they must not be fitted again on resume.
        config.time_budget = 0.0;
        Ok(config)
    }

    /// Scales the `free` stages alike, to between one epoch and their `longest` schedule, so that all of the
    /// run fits into `budget` seconds. Says whether it does; if not, they have one epoch each.
    fn scale(
        &mut self,
        budget: f64,
        free: impl Fn(&StageForecast) -> bool,
        longest: &Longest,
    ) -> bool {
        let whole: Vec<_> = self.stages.clone();
        let alone = whole.len() == 1;
        let mut resize = |factor: f64| {
            for (stage, whole) in self.stages.iter_mut().zip(&whole) {
                if free(whole) {
                    let epochs = (whole.epochs as f64 * factor).floor() as usize;
                    *stage = whole.resized(epochs.clamp(1, longest.of_stage(whole, alone)));
                }
            }
            self.stages.iter().map(StageForecast::seconds).sum::<f64>() + self.finishing <= budget
        };
        // Durations grow with the factor, but in steps: bisect between too little and too much.
        let (mut fits, mut too_much) = (0.0, 1.0);
        while resize(too_much) && too_much < LARGEST_FACTOR {
            (fits, too_much) = (too_much, 2.0 * too_much);
        }
        for _ in 0..BISECTIONS {
            let middle = (fits + too_much) / 2.0;
            match resize(middle) {
                true => fits = middle,
                false => too_much = middle,
            }
        }
        resize(fits)
    }

    /// What is left of `budget` seconds, where the `free` stages have their `longest` schedules and it is worth
    /// saying.
    fn left_of(
        &self,
        budget: f64,
        free: impl Fn(&StageForecast) -> bool,
        longest: &Longest,
    ) -> Option<f64> {
        let left = budget - self.seconds();
        let alone = self.stages.len() == 1;
        let is_longest = |s: &StageForecast| s.epochs == longest.of_stage(s, alone);
        let all = self.stages.iter().filter(|stage| free(stage)).all(is_longest);
        (all && left > NOT_WORTH_SAYING * budget).then_some(left)
    }

    /// Epochs of fine-tuning alone in `budget` seconds; none if nothing is before it or they do not fit.
    fn without_pretraining(&self, budget: f64, longest: &Longest) -> Option<usize> {
        let [_, finetune] = &self.stages[..] else { return None };
        let mut alone = Self { stages: vec![finetune.clone()], ..self.clone() };
        alone.scale(budget, |_| true, longest).then(|| alone.stages[0].epochs)
    }

    /// Share of the images of pre-training that have a label; none if there are not both stages.
    fn labelled(&self) -> Option<f64> {
        let [pretrain, finetune] = &self.stages[..] else { return None };
        Some(finetune.costs.images as f64 / pretrain.costs.images as f64)
    }

    /// Takes out a pre-training before fine-tuning of fewer than `least_steps`, unless it has the `longest`
    /// schedule. Says whether it has taken it out.
    fn leave_out(&mut self, least_steps: usize, longest: &Longest) -> bool {
        let [pretrain, finetune] = &self.stages[..] else { return false };
        let most = longest.of_stage(pretrain, false);
        let least = least_steps.div_ceil(pretrain.costs.steps_per_epoch).min(most);
        if pretrain.epochs >= least {
            return false;
        }
        let factor = least as f64 / pretrain.epochs as f64;
        let after = finetune.resized((finetune.epochs as f64 * factor).round() as usize);
        let all = pretrain.resized(least).seconds() + after.seconds() + self.finishing;
        let from = (all + self.preparing) / (1.0 - RESERVE);
        let minutes = (from / 60.0).ceil() as usize;
        self.decided.left_out = Some(LeftOut { epochs: pretrain.epochs, least, minutes });
        self.stages.remove(0);
        true
    }

    /// Duration of all that is still to be done.
    pub fn seconds(&self) -> f64 {
        self.stages.iter().map(StageForecast::seconds).sum::<f64>() + self.finishing
    }

    /// [`Self::seconds`] after optimiser step `step` of `stage`.
    pub fn seconds_left(&self, stage: StageName, step: usize) -> f64 {
        let left = |s: &StageForecast| match (s.stage as u8).cmp(&(stage as u8)) {
            std::cmp::Ordering::Less => 0.0,
            std::cmp::Ordering::Equal => s.seconds() - s.seconds_until(step),
            std::cmp::Ordering::Greater => s.seconds(),
        };
        self.stages.iter().map(left).sum::<f64>() + self.finishing
    }

    /// Memory at the run's peak, in bytes.
    pub fn memory(&self) -> u64 {
        self.stages.iter().map(|stage| stage.memory.total()).max().unwrap_or(0)
    }

    /// Progress units of the run: milliseconds.
    pub fn units(&self) -> u64 {
        let stages = self.stages.iter().map(|s| self.units_until(s.stage, s.steps));
        stages.sum::<u64>() + self.finishing_units()
    }

    /// Progress units of a stage until optimiser step `step`, a share of its measurements and checkpoints
    /// included.
    pub fn units_until(&self, stage: StageName, step: usize) -> u64 {
        let found = self.stages.iter().find(|s| s.stage == stage);
        found.map_or(0, |s| (1000.0 * s.seconds_until(step)).round() as u64)
    }

    /// Progress units of what follows the last step.
    pub fn finishing_units(&self) -> u64 {
        (1000.0 * self.finishing).ceil() as u64
    }

    /// The forecast in words, with the flag that would make the run shorter.
    pub fn describe(&self) -> String {
        let mut text = String::from("forecast:\n");
        if let Some(Smaller { name, instead_of, steps, least }) = &self.decided.smaller {
            text += &format!(
                "  model     {name}: {instead_of} has time for {steps} optimiser steps, and is taken for {least} \
                 (docs/recipes.md)\n"
            );
        }
        if let Some(LeftOut { epochs, least, minutes }) = self.decided.left_out {
            text += &format!(
                "  pre-training is left out: {} of it would fit, and it is done from {least} on (docs/recipes.md \
                 says why): from about --time-budget {minutes}m on\n",
                counted(epochs, "epoch", "epochs"),
            );
        }
        if let Some(epochs) = self.alone {
            text += &format!(
                "  turned down: no pre-training, {} of fine-tuning in this time (docs/recipes.md says where which \
                 was ahead)\n",
                counted(epochs, "epoch", "epochs")
            );
        }
        for s in &self.stages {
            let beside = s.measuring + s.checkpoints;
            text += &format!(
                "  {:<9} {} epochs, {} steps, {} ({:.0} crops/s here; {} of it measuring and \
                 checkpoints), {} of memory\n",
                s.stage.as_str(),
                s.epochs,
                s.steps,
                duration(s.seconds()),
                s.crops_per_second,
                duration(beside),
                bytes(s.memory.total())
            );
        }
        let finishing = duration(self.finishing);
        let what = match self.stages.iter().any(|stage| stage.stage == StageName::Finetune) {
            true => "final measurement, ONNX file, report",
            false => "report",
        };
        text += &format!("  finish    {finishing}: {what}\n");
        let total = self.seconds();
        text += &format!(
            "  in all    {}, {} of memory, {} of disk (reading the images took {})",
            duration(total),
            bytes(self.memory()),
            bytes(self.disk),
            duration(self.preparing)
        );
        if let Some(seconds) = self.unused {
            text += &format!(
                "\n  note: {} of the time budget are left: that many epochs are the longest that it is scaled to \
                 (--epochs asks for more)",
                duration(seconds)
            );
        }
        if total > 1800.0 {
            text += "\n  shorter:  --recipe quick --time-budget MINUTES, or fewer --epochs";
        }
        text
    }
}

/// Epochs are not scaled to more than this times the recipe's, before the paper's bound.
const LARGEST_FACTOR: f64 = 1e4;
/// Halvings that find a factor of an epoch in 10,000.
const BISECTIONS: usize = 40;

/// `1.5 GB`, `320 MB`.
pub fn bytes(n: u64) -> String {
    match n {
        0..1_000_000_000 => format!("{} MB", n.div_ceil(1_000_000)),
        _ => format!("{:.1} GB", n as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests;
