//! `fewvit demo`: the paper's claim in miniature, on flowers that the program renders itself.

use std::path::{Path, PathBuf};

use super::flags::{Job, RunArgs};
use super::progress::Progress;
use crate::config::{Layers, RunConfig};
use crate::data::synth::{self, SPECIES};
use crate::error::{Error, Result};
use crate::eval::metric::{difference_interval, mcnemar_p};
use crate::files;
use crate::report::words::interval;
use crate::run::{self, Folder, Summary, Ui};
use crate::study::{Base, Choices, Grid, Place, Study, Worker};
use crate::words::duration;

/// Images of each species for training and for testing, and their side in pixels.
const TRAIN: usize = 50;
const TEST: usize = 25;
const SIDE: usize = 64;

/// The two runs.
const STUDY: &str = include_str!("../../recipes/studies/demo.toml");

pub(super) fn demo(args: &RunArgs) -> Result<()> {
    let base =
        |recipe: &str| -> Result<Layers> { args.layers(recipe, std::env::vars_os().collect()) };
    let config = run::settle(base("demo")?, Job::Train.stages())?.config;
    refuse_budget(&config)?;
    let study = study(config.seed)?;
    if args.dry_run {
        let folder = tempfile::tempdir();
        let folder = folder.map_err(|e| Error::io("write", &std::env::temp_dir(), e))?;
        return super::study::forecast(&grid(&study, folder.path(), &base)?, None, args.json);
    }
    let folder = Folder::create(args.output.as_deref(), "demo")?;
    let grid = grid(&study, folder.root(), &base)?;
    let place = Place::make(folder.root(), &study)?;
    let interrupted = super::interrupted()?;
    let ui = |_: &crate::study::Job| -> Box<dyn Ui> { Box::new(Progress::new()) };
    let worker = Worker::new(&study, &grid, &place, &ui, interrupted);
    let results = worker.work(&grid.cells).map_err(|error| with_hint(error, &grid, &place))?;
    let results: Vec<Summary> = results.into_iter().map(|(_, summary)| summary).collect();
    let [random, idmm] = &results[..] else { return Ok(()) };
    match args.json {
        true => results.iter().try_for_each(super::print_json),
        false => compare(random, idmm, config.data.labels),
    }
}

/// Refuses a time budget: each training would fill its own, and they would no longer see as many crops.
fn refuse_budget(config: &RunConfig) -> Result<()> {
    match config.time_budget > 0.0 {
        false => Ok(()),
        true => Err(Error::Usage(
            "the demo takes no time budget: its two trainings see as many crops, so that they can be \
             compared; --dry-run says how long that takes here\n  leave the budget out, or train on \
             such flowers for as long as you like:\n  fewvit data synth flowers/\n  fewvit train \
             flowers/ --time-budget 5m"
                .to_owned(),
        )),
    }
}

/// Renders the flowers of the study's seed into `folder`; the runs on them.
fn grid(study: &Study, folder: &Path, base: Base) -> Result<Grid> {
    let data = run::absolute(&folder.join("flowers"));
    let images = SPECIES.len() * (TRAIN + TEST);
    Progress::new().note(&format!("rendering {images} flowers into {}", data.display()));
    let seed = study.seeds.first().copied().unwrap_or_default();
    synth::write(&data, seed, SIDE, TRAIN, TEST, |_, _| ())?;
    let data = [("flowers".to_owned(), data)].into_iter().collect();
    Grid::new(study, &Choices { data, ..Choices::default() }, base)
}

/// The study of one seed, a run folder a row.
fn study(seed: u64) -> Result<Study> {
    let mut study = Study::parse(STUDY, Path::new("recipes/studies/demo.toml"))?;
    study.together = true;
    study.seeds = vec![seed];
    Ok(study)
}

/// How to go on with the run that was stopped.
fn with_hint(error: Error, grid: &Grid, place: &Place) -> Error {
    let begun =
        |job: &PathBuf| job.join(files::RUN).is_file() && !job.join("report.json").is_file();
    let runs = grid.jobs.iter().map(|job| place.run(job));
    match runs.into_iter().find(begun) {
        Some(run) => super::train::with_resume(error, &run),
        None => error,
    }
}

fn compare(random: &Summary, idmm: &Summary, labels: usize) -> Result<()> {
    super::print(&comparison(random, idmm, labels))?;
    super::print(&format!("reports: {}/report.html\n         {}/report.html", random.run, idmm.run))
}

/// The two accuracies and their difference, with what both can and cannot say.
fn comparison(random: &Summary, idmm: &Summary, labels: usize) -> String {
    let line = |name: &str, s: &Summary| {
        let (top1, range) =
            (100.0 * s.top1.unwrap_or_default(), s.top1_interval.unwrap_or_default());
        let seconds: f64 = s.stages.iter().map(|stage| stage.seconds).sum();
        format!(
            "  {name:<19} {top1:5.1}%  ({}; {} of training)\n",
            interval(range),
            duration(seconds)
        )
    };
    let (low, high) = difference_interval(&idmm.correct, &random.correct);
    let p = mcnemar_p(&idmm.correct, &random.correct);
    format!(
        "top-1 on {} test images, {} images and {} labels to train on:\n{}{}  \
         these two models differ by {:+.1} to {:+.1} points (95% interval over test images, paired; p = {p:.1e})\n  \
         That compares two trained models, not two methods: other seeds give other models. \
         fewvit demo --seed N trains another pair.",
        idmm.images,
        SPECIES.len() * TRAIN,
        match labels {
            0 => SPECIES.len() * TRAIN,
            some => some,
        },
        line("from random weights", random),
        line("from IDMM weights", idmm),
        100.0 * low,
        100.0 * high
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::facts::Provenance;
    use crate::report::tests::{finetuning, pretraining};

    fn summary(correct: &[bool]) -> Summary {
        let right = correct.iter().filter(|&&c| c).count() as f64 / correct.len() as f64;
        Summary {
            notes: Vec::new(),
            run: "run".to_owned(),
            top1: Some(right),
            top1_interval: Some((right - 0.1, right + 0.1)),
            images: correct.len(),
            headline: None,
            interval_covers: None,
            provenance: Provenance::Random,
            stages: Vec::new(),
            done: Vec::new(),
            correct: correct.to_vec(),
        }
    }

    #[test]
    fn a_pair_of_models_is_not_called_the_methods_effect() {
        let [worse, better] = [20, 60].map(|n| (0..100).map(|i| i < n).collect::<Vec<_>>());
        let mut better = summary(&better);
        better.stages = vec![pretraining(), finetuning(12)];
        let text = comparison(&summary(&worse), &better, 60);
        for words in [
            "top-1 on 100 test images, 600 images and 60 labels to train on:",
            "6 h 51 min of training)",
            "from random weights  20.0%  (95% interval 10.0\u{2013}30.0% over images like these, given these weights; 0 s of training)",
            "these two models differ by",
            "not two methods",
        ] {
            assert!(text.contains(words), "{words}:\n{text}");
        }
        assert!(!text.contains("adds") && !text.contains("pre-training"), "{text}");
    }
}
