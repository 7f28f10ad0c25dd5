//! What a run will take, from timing real steps and real measurements, and epochs that fit a time
//! budget.

mod crowd;
mod memory;
mod pace;
mod timing;
mod words;

use serde::Serialize;

use crate::config::{Layers, OptimConfig, RunConfig};
use crate::error::{Error, Result};
use crate::report::facts::{Decided, LargeCrops, ManyLabels, SmallCrops, Smaller};
use crate::train::checkpoint::StageName;
pub use crowd::Crowd;
pub use memory::Memory;
pub use pace::{Gone, Pace};
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
    /// Side in pixels of the largest crops that the stage ends with.
    pub img_size: usize,
    /// Measured crops a second, of those that the stage ends with.
    pub crops_per_second: f64,
    /// Seconds of optimiser steps.
    pub training: f64,
    /// Seconds of k-NN probes or of accuracy, measured every few epochs, and of the pass over the images that
    /// makes the head's first rows.
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
    /// Other programs that slowed the timing down.
    pub crowd: Option<Crowd>,
    /// Whether there is a time budget.
    #[serde(skip)]
    pub budgeted: bool,
    /// Epochs of fine-tuning's longest schedule, where a time budget decides how many it has.
    #[serde(skip)]
    pub longest: Option<usize>,
    /// The time budget that fine-tuning is to keep, if it is to keep any.
    #[serde(skip)]
    pub pace: Option<Pace>,
    /// What was decided by the time and the labels: the model, the crops, and whether there is pre-training.
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

/// Unused share of a time budget up to which nothing is said of it.
const UNUSED_WITHOUT_NOTE: f64 = 0.15;

/// The settings with the smaller model.
pub fn with_smaller(config: &RunConfig, smaller: &Smaller) -> RunConfig {
    let mut config = config.clone();
    config.model.name.clone_from(&smaller.name);
    config.model.small.clear();
    config
}

/// The settings with small crops throughout fine-tuning.
pub fn with_small_crops(config: &RunConfig, crops: &SmallCrops) -> RunConfig {
    let mut config = config.clone();
    config.finetune.img_size = crops.img_size;
    config
}

/// The settings with larger crops at the end of fine-tuning.
pub fn with_large_crops(config: &RunConfig) -> RunConfig {
    RunConfig { finetune: config.finetune.enlarged(), ..config.clone() }
}

/// Bounds on the epochs that a time budget may give.
struct Longest {
    /// Epochs of the paper's longest schedule.
    epochs: usize,
    /// Number of images below which a schedule may have as many steps as for so many, and so more epochs.
    few_images: usize,
    /// Whether the run begins with random weights.
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

    /// What the stage `name` will take, if the run has it.
    fn stage(&self, name: StageName) -> Option<&StageForecast> {
        self.stages.iter().find(|stage| stage.stage == name)
    }

    /// Small crops throughout fine-tuning where the epochs of `config` with large ones have too few steps.
    pub fn small_crops(&self, config: &RunConfig) -> Option<SmallCrops> {
        let finetune = &config.finetune;
        let stage = self.stage(StageName::Finetune)?;
        let steps = finetune.full_epochs() * stage.costs.steps_per_epoch;
        let (few, least) = (finetune.has_early(), finetune.least_full_steps);
        let (img_size, instead_of) = (finetune.early_img_size, finetune.img_size);
        (few && steps < least).then_some(SmallCrops { img_size, instead_of, steps, least })
    }

    /// Larger crops at the end of fine-tuning where the epochs of `config` leave enough of them.
    pub fn large_crops(&self, config: &RunConfig) -> Option<LargeCrops> {
        let finetune = &config.finetune;
        self.stage(StageName::Finetune)?;
        if !finetune.has_early() || !finetune.may_be_larger() {
            return None;
        }
        let (epochs, least) = (finetune.large_epochs(), finetune.least_large_epochs);
        let (img_size, instead_of) = (finetune.large_img_size, finetune.img_size);
        LargeCrops { img_size, instead_of, epochs, least }.with_epochs(epochs)
    }

    /// Seconds of the time budget for what is still to be done.
    fn budget(&self, config: &RunConfig) -> f64 {
        config.time_budget * 60.0 * (1.0 - RESERVE) - self.preparing
    }

    /// Scales the epochs to the time budget, if there is one. Stages whose epochs somebody has `chosen`
    /// keep them; the others get the time that those leave. Returns the settings with these epochs.
    ///
    /// # Errors
    /// A budget too short for one epoch of each stage.
    pub fn fit(&mut self, config: &RunConfig, chosen: &[StageName]) -> Result<RunConfig> {
        let (mut config, budget) = (config.clone(), self.budget(config));
        let free = |stage: &StageForecast| !chosen.contains(&stage.stage);
        let scaled = config.time_budget > 0.0 && self.stages.iter().any(free);
        let may = !chosen.contains(&StageName::Pretrain);
        if may && self.leave_out(config.pretrain.few_labels) {
            config.pretrain.optim.epochs = 0;
        }
        if scaled {
            let longest = Longest::of(&config, self.from_random)?;
            if !chosen.contains(&StageName::Finetune) {
                self.lengthen_for_few_labels();
            }
            let fits = self.scale(budget, free, &longest);
            self.unused = self.left_of(60.0 * config.time_budget, free, &longest);
            let alone = self.stages.len() == 1;
            let last = self.stages.iter().find(|s| s.stage == StageName::Finetune && free(s));
            self.longest = last.map(|stage| longest.of_stage(stage, alone));
            // Epochs that somebody chose are no choice of ours.
            self.alone = match chosen {
                [] => self.without_pretraining(budget, &longest),
                _ => None,
            };
            if !fits {
                return Err(Error::Usage(self.too_short(config.time_budget, chosen)));
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

    /// What is left of a budget of `seconds`, where the `free` stages have their `longest` schedules and it is
    /// worth saying.
    fn left_of(
        &self,
        seconds: f64,
        free: impl Fn(&StageForecast) -> bool,
        longest: &Longest,
    ) -> Option<f64> {
        let left = seconds - self.preparing - self.seconds();
        let alone = self.stages.len() == 1;
        let is_longest = |s: &StageForecast| s.epochs == longest.of_stage(s, alone);
        let mut scaled = self.stages.iter().filter(|stage| free(stage)).peekable();
        let all = scaled.peek().is_some() && scaled.all(is_longest);
        (all && left > UNUSED_WITHOUT_NOTE * seconds).then_some(left)
    }

    /// Epochs of fine-tuning alone in `budget` seconds; none if nothing is before it or they do not fit.
    fn without_pretraining(&self, budget: f64, longest: &Longest) -> Option<usize> {
        let [_, finetune] = &self.stages[..] else { return None };
        let mut alone = Self { stages: vec![finetune.clone()], ..self.clone() };
        alone.scale(budget, |_| true, longest).then(|| alone.stages[0].epochs)
    }

    /// Takes out a pre-training before fine-tuning if more than a share `few_labels` of its images have a label.
    /// Says whether it has taken it out.
    fn leave_out(&mut self, few_labels: f64) -> bool {
        let [pretrain, finetune] = &self.stages[..] else { return false };
        let (labelled, images) = (finetune.costs.images, pretrain.costs.images);
        let most = (few_labels * images as f64 + ROUNDING).floor() as usize;
        if labelled <= most {
            return false;
        }
        self.decided.without_pretraining = Some(ManyLabels { labelled, images, most });
        self.stages.remove(0);
        true
    }

    /// Gives fine-tuning after pre-training as many times the epochs as pre-training has times the images: a part
    /// of them with labels gets the share of the time that all of them would get.
    fn lengthen_for_few_labels(&mut self) {
        if let [pretrain, finetune] = &mut self.stages[..] {
            let epochs = finetune.epochs * pretrain.costs.images / finetune.costs.images;
            *finetune = finetune.resized(epochs);
        }
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
        self.stage(stage).map_or(0, |s| (1000.0 * s.seconds_until(step)).round() as u64)
    }

    /// Progress units of what follows the last step.
    pub fn finishing_units(&self) -> u64 {
        (1000.0 * self.finishing).ceil() as u64
    }
}

/// Epochs are not scaled to more than this times the recipe's, before the paper's bound.
const LARGEST_FACTOR: f64 = 1e4;
/// What a product of a share and a number of images may miss by.
const ROUNDING: f64 = 1e-6;
/// Halvings of the interval in which the factor lies: 40 narrow one of 1e4 to 1e-8.
const BISECTIONS: usize = 40;

#[cfg(test)]
mod tests;
