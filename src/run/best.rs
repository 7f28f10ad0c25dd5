//! The best of fine-tuning's epochs on the images that are measured along the way: which it is, its
//! weights, and when no better one is to be expected.

use std::path::PathBuf;

use super::Folder;
use crate::config::{FinetuneConfig, Keep};
use crate::engine::TrainState;
use crate::error::{Error, Result};
use crate::report::facts::Stopped;
use crate::report::tables::EpochRow;
use crate::run::prepare::Prepared;
use crate::train::checkpoint::StageName;
use crate::weights;

/// The epoch of the highest accuracy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Best {
    /// From 1.
    pub epoch: usize,
    /// Epochs that were measured.
    pub measured: usize,
}

/// Epochs of fine-tuning that were measured, with their accuracies.
fn measured(history: &[EpochRow]) -> impl Iterator<Item = (usize, f64)> {
    let epochs = history.iter().filter(|row| row.stage == StageName::Finetune.as_str());
    epochs.filter_map(|row| Some((row.epoch, row.top1?)))
}

/// The best epoch of a log, the first of several alike; `None` if none was measured.
pub fn best(history: &[EpochRow]) -> Option<Best> {
    let measured: Vec<_> = measured(history).collect();
    let highest = measured.iter().map(|&(_, top1)| top1).max_by(f64::total_cmp)?;
    let place = measured.iter().position(|&(_, top1)| top1 == highest)?;
    Some(Best { epoch: measured[place].0, measured: measured.len() })
}

/// The epoch that the last part of fine-tuning follows: from there on crops have their full size, images are
/// plain and the rate falls.
fn last_part(config: &FinetuneConfig) -> usize {
    let early = config.early_of(config.optim.epochs);
    early.max(config.plain_from().unwrap_or(0)).max(config.optim.decay_from())
}

/// Evaluations before the last epoch that patience counts: those in the last part of fine-tuning.
pub fn evaluations_that_count(config: &FinetuneConfig) -> usize {
    let until = |epoch: usize| epoch.checked_div(config.eval_every).unwrap_or(0);
    let last = config.optim.epochs.saturating_sub(1);
    until(last).saturating_sub(until(last_part(config)))
}

/// Number of measurements since the best one. Only epochs of the last part count: its larger crops, plain images
/// and falling rate may still make the model better.
fn fruitless(config: &FinetuneConfig, history: &[EpochRow]) -> Option<usize> {
    let best = best(history)?.epoch.max(last_part(config));
    Some(measured(history).filter(|(epoch, _)| *epoch > best).count())
}

/// Whether training ends before its last epoch: so many measurements as `patience` were no better.
pub fn is_over(config: &FinetuneConfig, history: &[EpochRow]) -> bool {
    config.patience > 0 && fruitless(config, history).is_some_and(|n| n >= config.patience)
}

/// How training ended before its last epoch, if it did.
pub fn stopped(config: &FinetuneConfig, history: &[EpochRow]) -> Option<Stopped> {
    let fruitless = fruitless(config, history)?;
    let epochs = history.iter().filter(|row| row.stage == StageName::Finetune.as_str());
    let (after, planned) = (epochs.map(|row| row.epoch).max()?, config.optim.epochs);
    let early = after < planned && is_over(config, history);
    early.then_some(Stopped { after, planned, fruitless })
}

/// Checks that a run which keeps its best epoch has images to choose it by.
///
/// # Errors
/// The only ones that are not trained on are for the test, or there are none.
pub fn check(config: &FinetuneConfig, data: &Prepared) -> Result<()> {
    if config.keep == Keep::Last {
        return Ok(());
    }
    let has = match data.watched.is_empty() {
        true => "no images but those it trains on",
        false if data.split_name(&data.watched) == "validation" => return Ok(()),
        false => "only test images, whose result would then be too good",
    };
    Err(Error::Usage(format!(
        "--keep best chooses the epoch by validation images, and {} has {has}\n  give some of the training \
         images the split `val` (a folder val/, or the column `split` of a table), or leave --keep best out",
        data.manifest.name
    )))
}

fn path(folder: &Folder) -> PathBuf {
    folder.join("checkpoints/best.safetensors")
}

/// Writes the weights of the best epoch so far.
///
/// # Errors
/// The file cannot be written.
pub fn write(folder: &Folder, state: &TrainState) -> Result<()> {
    weights::write(&path(folder), &state.specs, state.representation())
}

/// Puts the weights of the best epoch in the place of the last one's.
///
/// # Errors
/// The file cannot be read.
pub fn take(folder: &Folder, state: &mut TrainState) -> Result<()> {
    let best = weights::read(&path(folder))?;
    state.ema = None;
    weights::fill_strictly(&state.specs, &mut state.values, &best)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Layers;

    fn history(top1: &[Option<f64>]) -> Vec<EpochRow> {
        let row = |(i, &top1): (usize, &Option<f64>)| EpochRow {
            stage: "finetune".to_owned(),
            epoch: i + 1,
            top1,
            ..EpochRow::default()
        };
        let before =
            EpochRow { stage: "pretrain".to_owned(), top1: Some(1.0), ..Default::default() };
        std::iter::once(before).chain(top1.iter().enumerate().map(row)).collect()
    }

    #[test]
    fn evaluations_before_the_last_part_do_not_count() {
        let mut config =
            Layers::new("quick").and_then(Layers::build).expect("a recipe").config.finetune;
        (config.optim.epochs, config.eval_every, config.plain_epochs) = (100, 10, 30);
        (config.optim.decay_epochs, config.early_share) = (30, 0.8);
        // After epoch 90 alone: crops are small until 80, and the last epoch ends training anyway.
        assert_eq!(evaluations_that_count(&config), 1);
        (config.early_share, config.eval_every) = (0.0, 5);
        assert_eq!(evaluations_that_count(&config), 5, "75 to 95");
        config.eval_every = 0;
        assert_eq!(evaluations_that_count(&config), 0);
    }

    #[test]
    fn the_first_of_the_highest_is_the_best() {
        let rows = history(&[None, Some(0.4), Some(0.6), None, Some(0.6), Some(0.5)]);
        assert_eq!(best(&rows), Some(Best { epoch: 3, measured: 4 }));
        assert_eq!(best(&history(&[None, None])), None);
    }

    #[test]
    fn training_ends_when_nothing_better_came_for_as_long_as_patience_lasts() {
        let paper = Layers::new("paper").and_then(Layers::build).expect("the recipe").config;
        let over = |patience: usize, top1: &[Option<f64>]| {
            is_over(&FinetuneConfig { patience, ..paper.finetune.clone() }, &history(top1))
        };
        let falling = [Some(0.4), Some(0.3), None, Some(0.4)];
        assert_eq!(
            [0, 1, 2, 3].map(|patience| over(patience, &falling)),
            [false, true, true, false]
        );
        assert!(!over(1, &[Some(0.1), Some(0.2)]) && !over(1, &[]));
        // Small crops in the first three of four epochs.
        let mut config = FinetuneConfig { patience: 1, ..paper.finetune.clone() };
        (config.optim.epochs, config.early_share) = (4, 0.75);
        assert!(!is_over(&config, &history(&falling[..3])));
        assert!(is_over(&config, &history(&falling)));
        // The same where the last epoch is plain, or the rate falls in it.
        for (plain, decay, over) in [(0, 0, true), (1, 0, false), (0, 1, false)] {
            let mut config = FinetuneConfig { patience: 1, ..paper.finetune.clone() };
            (config.optim.epochs, config.plain_epochs, config.optim.decay_epochs) =
                (4, plain, decay);
            assert_eq!(is_over(&config, &history(&falling[..3])), over);
            assert!(is_over(&config, &history(&falling)));
        }
        // All four epochs were done where no more were planned.
        let stopped = |epochs: usize| {
            let mut config = FinetuneConfig { patience: 2, ..paper.finetune.clone() };
            config.optim.epochs = epochs;
            super::stopped(&config, &history(&falling))
        };
        assert_eq!(stopped(9), Some(Stopped { after: 4, planned: 9, fruitless: 2 }));
        assert_eq!(stopped(4), None);
    }
}
