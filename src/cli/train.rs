//! `fewvit train`, `pretrain`, `finetune` and `resume`.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::Path;
use std::sync::atomic::Ordering;

use super::args::{DataArgs, FinetuneArgs, ResumeArgs};
use super::flags::{Job, RunArgs, TrainArgs};
use super::progress::Progress;
use crate::config::{RunConfig, mark_fitted};
use crate::engine::collective;
use crate::error::{Error, Result};
use crate::run::{self, Folder, Request, Summary, Ui as _, absolute};
use crate::train::checkpoint::StageName;
use crate::words::duration;

/// Longer runs ask before they begin on a terminal.
const ASK_ABOVE_SECONDS: f64 = 3600.0;

pub(super) fn train(args: &DataArgs, job: Job) -> Result<()> {
    launch(&args.data, &args.train, job, None)
}

pub(super) fn finetune(args: &FinetuneArgs) -> Result<()> {
    launch(&args.data, &args.train, Job::Finetune, args.init.as_deref())
}

fn launch(data: &Path, args: &TrainArgs, job: Job, init: Option<&Path>) -> Result<()> {
    let mut layers = args.layers(job, std::env::vars_os().collect())?;
    // Before anything else, so that a name that is not there is said first.
    let weights = init.map(run::weights_of).transpose()?;
    if let Some(init) = init {
        layers.inherit(run::inherited(init)?, init)?;
    }
    let resolved = run::settle(layers, job.stages())?;
    let chosen: Vec<StageName> = [StageName::Pretrain, StageName::Finetune]
        .into_iter()
        .filter(|stage| resolved.chosen_epochs(stage.as_str()))
        .collect();
    let stages = job.stages();
    let pretrain = stages.pretrain && resolved.config.pretrain.optim.epochs > 0;
    let finetune = stages.finetune;
    if !pretrain && !finetune {
        return Err(Error::Usage(
            "nothing is to be trained: pre-training has 0 epochs\n  give --epochs, or use `fewvit \
             finetune`"
                .to_owned(),
        ));
    }
    let trained = [(pretrain, StageName::Pretrain), (finetune, StageName::Finetune)];
    let trained = trained.into_iter().filter_map(|(trained, stage)| trained.then_some(stage));
    let epochs = Epochs::of(&trained.collect::<Vec<_>>(), &chosen);
    let minutes = resolved.config.time_budget;
    let chosen_budget = resolved.chosen("time_budget");
    if epochs == Epochs::Given && chosen_budget && minutes > 0.0 {
        return Err(Error::Usage(
            "the time budget does nothing: the epochs of every stage are given\n  leave one of the \
             two out"
                .to_owned(),
        ));
    }
    if args.is_quick_by_default(job) {
        Progress::new().note(&quick_by_default(minutes, epochs, chosen_budget));
    } else if job == Job::Train && args.recipe.is_none() && !resolved.chosen("about.name") {
        Progress::new().note(PAPER_UNDER_A_FILE);
    } else {
        Progress::new().note(&recipe_line(&resolved.config.about.name, minutes, epochs));
    }
    let sources = resolved.sources();
    let config = resolved.config;
    let request = Request {
        data: absolute(data),
        pretrain,
        finetune,
        init: weights.as_deref().map(absolute),
        command: std::env::args().collect(),
        sources,
    };
    let Some(summary) = go(&request, &config, &chosen, &args.run)? else { return Ok(()) };
    report(&summary, args.run.json)
}

/// Note for a run with a file of settings and without --recipe.
const PAPER_UNDER_A_FILE: &str = "recipe `paper`, as -c was given and no --recipe: --recipe quick fits its \
                                  epochs to a time budget";

/// Whether somebody gave the epochs of a run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Epochs {
    /// Those of no stage.
    Free,
    /// Those of one of two stages.
    GivenOfOneStage,
    /// Those of every stage.
    Given,
}

impl Epochs {
    /// From the stages that run and those whose epochs the user gave.
    fn of(trained: &[StageName], chosen: &[StageName]) -> Self {
        match trained.iter().filter(|stage| chosen.contains(stage)).count() {
            given if given == trained.len() => Self::Given,
            0 => Self::Free,
            _ => Self::GivenOfOneStage,
        }
    }
}

/// Note for a run without --recipe: which recipe it has, what its `epochs` follow from, and how to get more.
/// `chosen` says whether the user gave the time budget.
fn quick_by_default(minutes: f64, epochs: Epochs, chosen: bool) -> String {
    let more = match epochs == Epochs::Given || chosen {
        true => "",
        false => "--time-budget 2h gives it more, ",
    };
    let line = recipe_line("quick", minutes, epochs);
    format!("{line}: {more}--recipe paper is the paper's whole schedule")
}

/// The recipe of a run, and what its epochs go by.
fn recipe_line(name: &str, minutes: f64, epochs: Epochs) -> String {
    let budget = match minutes {
        0.0 => "without a time budget".to_owned(),
        minutes => format!("within {}", duration(60.0 * minutes)),
    };
    let goes_by = match epochs {
        Epochs::Given => "with the epochs asked for".to_owned(),
        Epochs::GivenOfOneStage => {
            format!("with the epochs asked for of one stage, the other {budget}")
        }
        Epochs::Free => budget,
    };
    format!("recipe `{name}`, {goes_by}")
}

/// Plans and runs, the epochs of the `chosen` stages as they are; `None` after a dry run.
fn go(
    request: &Request,
    config: &RunConfig,
    chosen: &[StageName],
    args: &RunArgs,
) -> Result<Option<Summary>> {
    let ui = Progress::new();
    let first = collective::ranks().rank() == 0;
    if let Some(output) = args.output.as_deref().filter(|_| first && !args.dry_run) {
        Folder::check_free(output)?;
    }
    let planned = run::plan(request, config, chosen, &ui)?;
    ui.note(&planned.forecast.describe());
    if args.dry_run {
        if args.json {
            super::print_json(&planned.forecast)?;
        }
        return Ok(None);
    }
    let folder = match collective::ranks().rank() {
        0 => {
            confirm(planned.forecast.seconds(), args.yes)?;
            Folder::create(args.output.as_deref(), &planned.data.manifest.name)?
        }
        rank => Folder::scratch(rank)?,
    };
    ui.note(&format!("run folder: {}", folder.root().display()));
    let interrupted = super::interrupted()?;
    let mut request = request.clone();
    // A time budget may leave it out.
    request.pretrain &= planned.config.pretrain.optim.epochs > 0;
    mark_fitted(&mut request.sources, config, &planned.config);
    let summary = run::start(&folder, &request, &planned, &ui, interrupted)
        .map_err(|error| with_resume(error, folder.root()))?;
    Ok(Some(summary))
}

pub(super) fn resume(args: &ResumeArgs) -> Result<()> {
    let mut folder = Folder::open(&args.run)?;
    let (ui, interrupted) = (Progress::new(), super::interrupted()?);
    let data = args.data.as_deref().map(absolute);
    let summary = run::resume(&mut folder, data.as_deref(), &ui, interrupted)
        .map_err(|error| with_resume(error, folder.root()))?;
    report(&summary, args.json)
}

/// Says how to go on where that is possible, after data that cannot be used when it is put right.
pub(super) fn with_resume(error: Error, run: &Path) -> Error {
    let hint = format!("go on with: fewvit resume {}", run.display());
    match with_hint(error, &hint) {
        Error::Data(text) => Error::Data(format!("{text}\n  put that right, then {hint}")),
        other => other,
    }
}

/// Says how to go on, and whether the system stopped what a person did not.
pub(super) fn with_hint(error: Error, hint: &str) -> Error {
    match error {
        Error::Interrupted(text) if super::BY_SYSTEM.load(Ordering::Relaxed) => {
            Error::Stopped(format!("{text}\n  {hint}"))
        }
        Error::Interrupted(text) => Error::Interrupted(format!("{text}\n  {hint}")),
        other => other,
    }
}

/// Asks before a long run, where somebody is there to answer.
fn confirm(seconds: f64, yes: bool) -> Result<()> {
    if yes || seconds < ASK_ABOVE_SECONDS || !std::io::stdin().is_terminal() {
        return Ok(());
    }
    let _ = write!(std::io::stderr(), "begin? It takes {}. [y/N] ", duration(seconds));
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    match read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes") {
        true => Ok(()),
        false => Err(Error::Usage("not begun; --yes begins without asking".to_owned())),
    }
}

fn report(summary: &Summary, json: bool) -> Result<()> {
    if json {
        return super::print_json(summary);
    }
    if let Some(headline) = &summary.headline {
        super::print(headline)?;
    }
    summary.interval_covers.map_or(Ok(()), super::print)?;
    summary.done.iter().try_for_each(|sentence| super::print(sentence))?;
    super::print(&format!("report: {}/report.html", summary.run))
}

#[cfg(test)]
mod tests {
    use super::StageName::{Finetune, Pretrain};
    use std::path::Path;

    use super::{Epochs, Error, quick_by_default, recipe_line, with_resume};

    #[test]
    fn a_run_whose_data_went_away_can_be_gone_on_with() {
        let gone = Error::Data("a.jpg does not exist".to_owned());
        let error = with_resume(gone, Path::new("runs/a"));
        assert_eq!(error.exit_code(), 3);
        assert!(
            error.to_string().ends_with("put that right, then go on with: fewvit resume runs/a")
        );
        let failed = with_resume(Error::Failed("x".to_owned()), Path::new("runs/a"));
        assert_eq!(failed.to_string(), "x");
    }

    #[test]
    fn a_stage_that_is_left_out_has_no_epochs_that_were_asked_for() {
        assert!(Epochs::of(&[Finetune], &[Pretrain]) == Epochs::Free);
        assert!(Epochs::of(&[Pretrain, Finetune], &[Pretrain]) == Epochs::GivenOfOneStage);
        assert!(Epochs::of(&[Finetune], &[Pretrain, Finetune]) == Epochs::Given);
    }

    #[test]
    fn the_budget_that_counts_is_said() {
        let said = [
            (
                quick_by_default(30.0, Epochs::Free, false),
                "within 30 min 00 s: --time-budget 2h gives it more",
            ),
            (quick_by_default(120.0, Epochs::Free, true), "within 2 h 00 min: --recipe paper"),
            (quick_by_default(0.0, Epochs::Free, true), "without a time budget: --recipe paper"),
            (
                quick_by_default(30.0, Epochs::Given, false),
                "with the epochs asked for: --recipe paper",
            ),
            (
                quick_by_default(30.0, Epochs::GivenOfOneStage, true),
                "with the epochs asked for of one stage, the other within 30 min 00 s: --recipe paper",
            ),
        ];
        for (text, words) in said {
            assert!(text.starts_with(&format!("recipe `quick`, {words}")), "{text}");
        }
        assert_eq!(
            recipe_line("paper", 0.0, Epochs::Free),
            "recipe `paper`, without a time budget"
        );
    }
}
