//! A forecast as the user reads it.

use super::{Crowd, Forecast, RESERVE};
use crate::report::facts::{LargeCrops, SmallCrops, Smaller};
use crate::train::checkpoint::StageName;
use crate::words::{bytes, counted, duration, thousands};

/// Seconds from which on a run is told how it could be shorter.
const LONG: f64 = 1800.0;

impl Forecast {
    /// The forecast in words, with the flag that would make the run shorter.
    pub fn describe(&self) -> String {
        let mut text = format!("forecast:\n{}", self.decisions());
        for s in &self.stages {
            text += &format!(
                "  {:<9} {}, {}, {} ({:.0} crops of {} px a second here; {} of it measuring and \
                 checkpoints), {} of memory\n",
                s.stage.as_str(),
                counted(s.epochs, "epoch"),
                counted(s.steps, "step"),
                duration(s.seconds()),
                s.crops_per_second,
                s.img_size,
                duration(s.measuring + s.checkpoints),
                bytes(s.memory.total())
            );
        }
        let what = match self.stage(StageName::Finetune).is_some() {
            true => "final measurement, ONNX file, report",
            false => "report",
        };
        let total = self.seconds();
        text += &format!(
            "  finish    {}: {what}\n  in all    {}, {} of memory, {} of disk (reading the images and timing \
             all this took {})",
            duration(self.finishing),
            duration(total),
            bytes(self.memory()),
            bytes(self.disk),
            duration(self.preparing)
        );
        if let Some(Crowd { others, cores }) = self.crowd {
            text += &format!(
                "\n  note: other programs kept {others:.1} of {} busy while this was timed: without \
                 them this machine does more in the same time",
                counted(cores, "core")
            );
        }
        if let Some(seconds) = self.unused {
            let larger = self.decided.smaller.as_ref().map(|smaller| &smaller.instead_of);
            let larger =
                larger.map_or(String::new(), |name| format!(", --model {name} for the larger one"));
            text += &format!(
                "\n  note: {} of the time budget are left: a budget gives no longer schedule than \
                 this (--epochs N gives more{larger})",
                duration(seconds)
            );
        }
        if total > LONG {
            text += match self.budgeted {
                true => "\n  shorter:  a shorter --time-budget, or fewer --epochs",
                false => "\n  shorter:  --recipe quick --time-budget MINUTES, or fewer --epochs",
            };
        }
        text
    }

    /// What was decided, a line each.
    fn decisions(&self) -> String {
        let mut text = String::new();
        if let Some(Smaller { name, instead_of, steps, least }) = &self.decided.smaller {
            text += &format!(
                "  model     {name}: the budget has room for {} of {instead_of}, which is trained from {} \
                 on (docs/recipes.md says why)\n",
                counted(*steps, "step"),
                thousands(*least)
            );
        }
        if let Some(SmallCrops { img_size, instead_of, steps, least }) = self.decided.small_crops {
            text += &format!(
                "  crops     of {img_size} px in all epochs of fine-tuning: crops of {instead_of} \
                 px would have only {}, and help from {least} on (docs/recipes.md says why)\n",
                counted(steps, "step")
            );
        }
        if let Some(LargeCrops { img_size, instead_of, epochs, least }) = self.decided.large_crops {
            text += &format!(
                "  crops     of {img_size} px in the last {} of fine-tuning, not {instead_of}: they \
                 help from {least} on (docs/recipes.md says why)\n",
                counted(epochs, "epoch")
            );
        }
        if let Some(many) = self.decided.without_pretraining {
            text += &format!("  no pre-training: {} (docs/recipes.md says why)\n", many.why());
        }
        if let Some(epochs) = self.alone {
            text += &format!(
                "  not chosen: no pre-training and {} of fine-tuning, which take as long \
                 (docs/recipes.md compares the two)\n",
                counted(epochs, "epoch")
            );
        }
        text
    }

    /// Why a budget of `minutes` is too short for what is left of the run when each stage that is not
    /// `chosen` has one epoch, and which is long enough.
    pub(super) fn too_short(&self, minutes: f64, chosen: &[StageName]) -> String {
        let asked_for = self.stages.iter().filter(|s| chosen.contains(&s.stage)).count();
        let least = match (asked_for, self.stages.len() - asked_for) {
            (0, 1) => "one epoch takes",
            (0, _) => "one epoch of each stage takes",
            (_, 0) => "the epochs asked for take",
            _ => "the epochs asked for, with one of the other stage, take",
        };
        let takes = self.preparing + self.seconds();
        let reserve = match takes < 60.0 * minutes {
            true => format!(
                ", and {:.0}% of the budget are kept back because no forecast is exact",
                100.0 * RESERVE
            ),
            false => String::new(),
        };
        format!(
            "a time budget of {} is too short: with all that belongs to a run, {least} {} here{reserve}\n  give \
             --time-budget {}m or more (0 = none), or a smaller --img-size",
            duration(60.0 * minutes),
            duration(takes),
            (takes / (1.0 - RESERVE) / 60.0).ceil()
        )
    }
}
