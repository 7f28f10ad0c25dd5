//! The two training stages of a run, from wherever its checkpoint is.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::observe::RunObserver;
use super::provenance::{self, Taken};
use super::{Context, Folder, RESUMED, best, first_head};
use crate::backbone::{NetSpec, Spec};
use crate::config::{Keep, OptimConfig, PosEmbed, RunConfig, Sampling};
use crate::data::cache::ImageStore;
use crate::data::loader::{BatchSource, Rows};
use crate::engine::{self, TrainState};
use crate::error::{Error, Result};
use crate::export::timm;
use crate::files::RUN;
use crate::method::{self, Kind, Labels, Method, supervised::Supervised};
use crate::run::prepare::Prepared;
use crate::train::checkpoint::StageName;
use crate::train::stage::{Checkpoints, Observer as _, Stage};
use crate::weights::{self, Head, Take};
use crate::words::counted;

/// A trained model: which stage it comes from, its architecture and weights.
pub struct Trained {
    /// The last stage.
    pub stage: StageName,
    /// The architecture.
    pub net: NetSpec,
    /// The weights.
    pub state: TrainState,
}

/// The pre-training stage of `config` on `data`.
///
/// # Errors
/// An unknown model or method, an img-size that does not fit.
pub fn pretraining<'a>(config: &'a RunConfig, data: &Prepared) -> Result<Stage<'a>> {
    let c = &config.pretrain;
    let classes = data.manifest.classes.len();
    let labels = (classes > 0).then(|| Labels { of_samples: data.labels(&data.train), classes });
    let images = match method::entry(&c.method)?.kind {
        Kind::SelfSupervised => data.images.clone(),
        _ => data.labelled_images(),
    };
    let method = method::pretraining(config, images.len(), labels)?;
    let net = NetSpec {
        spec: Spec::find(&config.model.name)?,
        img_size: c.crops.first().map_or(0, |group| group.img_size),
        heads: method.heads(),
    };
    stage(config, images, StageName::Pretrain, net, method, &c.optim)
}

/// The fine-tuning stage of `config` on `data`.
///
/// # Errors
/// As [`pretraining`].
pub fn finetuning<'a>(config: &'a RunConfig, data: &Prepared) -> Result<Stage<'a>> {
    let c = &config.finetune;
    let classes = data.manifest.classes.len();
    let labels = data.labels(&data.train);
    let balance = (c.sampling == Sampling::Balanced).then(|| Arc::new(labels.clone()));
    let method = Arc::new(Supervised::finetuning(c, labels, classes));
    let net = NetSpec::classifier(Spec::find(&config.model.name)?, c.img_size, classes);
    let images = data.labelled_images();
    let mut stage = stage(config, images, StageName::Finetune, net, method, &c.optim)?;
    (stage.source.balance, stage.source.repeats) = (balance, c.repeats);
    Ok(stage)
}

fn stage<'a>(
    config: &'a RunConfig,
    images: Arc<ImageStore>,
    name: StageName,
    net: NetSpec,
    method: Arc<dyn Method>,
    optim: &'a OptimConfig,
) -> Result<Stage<'a>> {
    let machine = super::machine(config)?;
    let mixing = method.clone();
    let micro_batch =
        engine::micro_batch(optim.micro_batch, &net.spec, net.img_size, machine.device);
    let of = net.img_size;
    let rows_at = move |img_size| engine::scaled_micro_batch(micro_batch, of, img_size);
    let source = BatchSource {
        images,
        views: Arc::new(method.views().clone()),
        mix: Arc::new(move |rng, epoch, rows, size| mixing.mix(rng, epoch, rows, size)),
        seed: seed(config, name),
        batch_size: optim.batch_size,
        drop_last: optim.drop_last,
        threads: machine.threads,
        rows: engine::own_rows(&machine, &method, rows_at).map_or(Rows::All, Rows::Own),
        cutting: machine.cutting(),
        balance: None,
        repeats: 1,
    };
    let (data, dropout) = (&config.data, true);
    Ok(Stage { name, net, method, source, optim, data, machine, micro_batch, dropout })
}

/// Seed of a stage's random streams: the run's, with the stage's number in the upper half.
fn seed(config: &RunConfig, stage: StageName) -> u64 {
    config.seed.wrapping_add((stage as u64) << 32)
}

/// What training has come to.
pub enum Outcome {
    /// The end.
    Trained(Trained),
    /// The end of an epoch of fine-tuning that is to go on with so many epochs in all.
    Replanned(TrainState, usize),
}

/// Trains what is still to be trained.
///
/// # Errors
/// Diverged, interrupted, or a file.
pub fn train(context: &Context, reached: Option<(StageName, TrainState)>) -> Result<Outcome> {
    let (in_pretraining, in_finetuning) = match reached {
        Some((StageName::Finetune, state)) => (None, Some(state)),
        Some((StageName::Pretrain, state)) => (Some(state), None),
        None => (None, None),
    };
    let mut last = None;
    if context.request.pretrain && in_finetuning.is_none() {
        let stage = pretraining(context.config, context.data)?;
        let start = match in_pretraining {
            Some(state) => state,
            None => {
                let mut state = stage.fresh(stage.source.seed)?;
                first_head::pretraining(context, &stage, &mut state)?;
                state
            }
        };
        let (state, _) = run(context, &stage, start, 0)?;
        weights::write(&context.folder.pretrained(), &state.specs, state.representation())?;
        last = Some(Trained { stage: StageName::Pretrain, net: stage.net, state });
    }
    if context.request.finetune {
        let stage = finetuning(context.config, context.data)?;
        let start = in_finetuning.map_or_else(|| initial(context, &stage), Ok)?;
        let before = match context.request.pretrain {
            true => pretraining(context.config, context.data)?.total_steps(),
            false => 0,
        };
        if last.is_none() {
            context.ui.advance(context.forecast.units_until(StageName::Pretrain, before), RESUMED);
        }
        let (mut state, epochs) = run(context, &stage, start, before)?;
        if let Some(epochs) = epochs {
            return Ok(Outcome::Replanned(state, epochs));
        }
        if context.config.finetune.keep == Keep::Best {
            best::take(context.folder, &mut state)?;
        }
        last = Some(Trained { stage: StageName::Finetune, net: stage.net, state });
    }
    let neither = || Error::Usage("the run neither pre-trains nor fine-tunes".to_owned());
    last.map(Outcome::Trained).ok_or_else(neither)
}

/// Fine-tuning's first weights: the run's own pre-training, the given weights, or a fresh model.
fn initial(context: &Context, stage: &Stage) -> Result<TrainState> {
    let mut state = stage.fresh(stage.source.seed)?;
    let (specs, values) = (&state.specs, &mut state.values);
    let regenerate = context.config.model.pos_embed == PosEmbed::Regenerate;
    if context.request.pretrain {
        let head = Head::Left("it is that of pre-training");
        let take = Take { head, regenerate };
        weights::import_taking(&context.folder.pretrained(), specs, values, take)?;
    } else if let Some(path) = &context.request.init {
        let file = weights_of(path)?;
        provenance::check_unchanged(context.folder, &file)?;
        note_pretrained(context, &file);
        let rows = timm::label_names(&file).map(|names| {
            let row = |class| names.iter().position(|name| name == class);
            let rows: Option<Vec<usize>> = context.data.manifest.classes.iter().map(row).collect();
            rows.filter(|rows| rows.len() == names.len())
        });
        let head = match &rows {
            Some(Some(rows)) => Head::Rows(rows),
            Some(None) => Head::Left("the classes here are others"),
            None => Head::Left("nothing says which classes its rows are for"),
        };
        let seen = weights::import_taking(&file, specs, values, Take { head, regenerate })?;
        let taken = Taken { tensors: seen.taken, head: seen.complete().is_ok() };
        provenance::record(context.folder, path, taken)?;
        seen.notes.iter().for_each(|note| context.ui.note(&format!("  note: {note}")));
        if taken.head {
            return Ok(TrainState::new(state.specs, state.values, stage.optim.ema));
        }
    }
    first_head::finetuning(context, stage, &mut state)?;
    // The average starts from the weights, wherever they come from.
    Ok(TrainState::new(state.specs, state.values, stage.optim.ema))
}

/// Says where the pre-trained weights are of a run whose fine-tuned model is gone on with.
fn note_pretrained(context: &Context, weights: &Path) {
    let run = weights.ancestors().nth(2).filter(|_| weights.ends_with("export/model.safetensors"));
    let pretrained = run.map(|run| run.join("checkpoints/pretrained.safetensors"));
    if let Some(path) = pretrained.filter(|path| path.is_file()) {
        let what = "it goes on from the fine-tuned model of that run; --init takes the pre-trained";
        context.ui.note(&format!("  note: {what} weights from {}", path.display()));
    }
}

/// The weights file that `--init` means: the file itself, or what the run of a folder ended with, its
/// exported model or its pre-trained weights.
///
/// # Errors
/// A folder without either.
pub fn weights_of(path: &Path) -> Result<PathBuf> {
    if !path.exists() {
        return Err(Error::Usage(format!(
            "--init {}: there is no such file or folder\n  check the spelling",
            path.display()
        )));
    }
    if !path.is_dir() {
        return Ok(path.to_path_buf());
    }
    let candidates =
        ["export/model.safetensors", "model.safetensors", "checkpoints/pretrained.safetensors"];
    let found = candidates.iter().map(|name| path.join(name)).find(|file| file.is_file());
    found.ok_or_else(|| {
        let shown = path.display();
        let what = match path.join(RUN).is_file() {
            true => format!(
                "the run has not come to its end: fewvit resume {shown} goes on with it, and then \
                 it has some"
            ),
            false => "name the folder of a run that has finished pre-training, or a weights file"
                .to_owned(),
        };
        Error::Usage(format!(
            "{shown} holds no weights; looked for {}\n  {what}",
            candidates.join(", ")
        ))
    })
}

/// Trains a stage from `start`. Returns what it came to and, if it is to go on with another number of epochs, that
/// number.
fn run(
    context: &Context,
    stage: &Stage,
    start: TrainState,
    steps_before: usize,
) -> Result<(TrainState, Option<usize>)> {
    let (config, folder): (&RunConfig, &Folder) = (context.config, context.folder);
    let path = folder.checkpoint();
    let checkpoints = Checkpoints {
        path: &path,
        every: Duration::from_secs_f64(config.checkpoint.every_minutes * 60.0),
        interrupted: context.interrupted,
    };
    let units = |step| context.forecast.units_until(stage.name, step);
    let done = start.progress.step;
    context.ui.stage(stage.name.as_str(), units(stage.total_steps()));
    context.ui.advance(units(done), RESUMED);
    let mut observer = RunObserver::new(context, stage, steps_before, done, &units)?;
    // A run that was stopped after its last epoch has nothing left to train.
    let state = match observer.is_over() {
        true => start,
        false => stage.run(start, &checkpoints, &mut observer)?,
    };
    if let Some(epochs) = observer.replanned() {
        return Ok((state, Some(epochs)));
    }
    let left = units(stage.total_steps()) - units(state.progress.step);
    if left > 0 {
        let measurements = counted(config.finetune.patience, "measurement");
        context.ui.advance(left, &format!("stopped early: no better for {measurements}"));
    }
    Ok((state, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_without_weights_is_to_be_resumed_and_another_folder_is_not() {
        let place = tempfile::tempdir().expect("a folder");
        let said = || {
            let error = weights_of(place.path()).expect_err("no weights");
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        };
        assert!(!said().contains("resume") && said().contains("or a weights file"), "{}", said());
        std::fs::write(place.path().join(RUN), "{}").expect("written");
        let resume = format!("fewvit resume {} goes on", place.path().display());
        assert!(said().contains(&resume), "{}", said());
        let weights = place.path().join("model.safetensors");
        std::fs::write(&weights, "").expect("written");
        assert_eq!(weights_of(place.path()).expect("weights"), weights);
    }
}
