//! The main job in one run folder: check data, pre-train, fine-tune, evaluate, export, report.
//!
//! A run is a folder. [`start`] makes one and goes through the steps; [`resume`] goes on from
//! whatever is there. Both run the same code: training goes on from the last checkpoint, and what
//! comes after training is done again.

mod best;
mod environment;
mod finish;
pub mod finished;
mod first_head;
mod fitting;
pub mod folder;
pub mod forecast;
pub mod frozen;
pub mod measured;
mod observe;
pub mod prepare;
mod provenance;
mod ranks;
mod reopen;
pub mod seen;
mod settle;
mod stages;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde::{Deserialize, Serialize};

pub use crate::files::absolute;
pub use environment::Environment;
pub use finish::Summary;
pub use folder::Folder;
pub use settle::{Stages, inherited, settle};
pub use stages::{pretraining, weights_of};

use crate::backbone::Spec;
use crate::config::{AmpDtype, HeadFrom, PretrainConfig, RunConfig};
use crate::engine::device;
use crate::engine::{self, Machine, Products, TrainState, collective};
use crate::error::{Error, Result};
use crate::method;
use crate::report::facts::Paced;
use crate::train::checkpoint::{self, StageName};
use crate::words::{counted, duration};
use fitting::{Fitted, Fitting};
use folder::Found;
use forecast::{Forecast, Pace};
use prepare::Prepared;
use stages::Outcome;

/// Message to [`Ui::advance`] for units that an earlier process of the run has done: they say nothing of the
/// speed of this one.
pub const RESUMED: &str = "resumed";

/// What a run is asked to do, as kept in `run.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The data set.
    pub data: PathBuf,
    /// Whether to pre-train.
    pub pretrain: bool,
    /// Whether to fine-tune, evaluate and export.
    pub finetune: bool,
    /// Weights that fine-tuning starts from when the run does not pre-train.
    pub init: Option<PathBuf>,
    /// The command line, for the report.
    pub command: Vec<String>,
    /// Who set each setting, by dotted key; runs of earlier versions do not say.
    #[serde(default)]
    pub sources: BTreeMap<String, String>,
}

/// Receiver of a run's progress; the command line draws it as a bar.
pub trait Ui: Sync {
    /// A line of text.
    fn note(&self, text: &str);
    /// `done` of `total` files of the data set are read.
    fn reading(&self, done: usize, total: usize);
    /// The whole run is `units` long.
    fn total(&self, units: u64);
    /// A stage of `units` begins.
    fn stage(&self, name: &str, units: u64);
    /// `units` more are done.
    fn advance(&self, units: u64, message: &str);
    /// An epoch is done.
    fn epoch(&self, line: &str);
    /// Nothing more follows.
    fn finish(&self);
}

/// What every step of a run reads.
pub struct Context<'a> {
    /// The run's folder.
    pub folder: &'a Folder,
    /// What was asked for.
    pub request: &'a Request,
    /// All hyper-parameters, epochs already fitted to the time budget.
    pub config: &'a RunConfig,
    /// What it will take.
    pub forecast: &'a Forecast,
    /// The images.
    pub data: &'a Prepared,
    /// What computes.
    pub machine: Machine,
    /// Set by Ctrl-C.
    pub interrupted: &'a AtomicBool,
    /// Receives progress and notes.
    pub ui: &'a dyn Ui,
}

/// A run that is prepared and forecast but not begun.
pub struct Planned {
    /// All hyper-parameters, epochs fitted to the time budget.
    pub config: RunConfig,
    /// The images.
    pub data: Prepared,
    /// What it will take.
    pub forecast: Forecast,
}

/// Reads the data, times real steps and fits the epochs of all stages but the `chosen` to the time
/// budget.
///
/// # Errors
/// The data or a setting cannot be used.
pub fn plan(
    request: &Request,
    config: &RunConfig,
    chosen: &[StageName],
    ui: &dyn Ui,
) -> Result<Planned> {
    let began = Instant::now();
    let settings = resolved(config)?;
    check_threads(settings.threads)?;
    frozen::check_init(request, &settings)?;
    let data = prepare::prepare(request, &settings, ui)?;
    if request.finetune {
        best::check(&settings.finetune, &data)?;
    }
    ranks::check(&settings, &data)?;
    let fitting = Fitting { request, data: &data, chosen, began };
    let budget = 60.0 * config.time_budget;
    let Fitted { wanted, config, mut forecast } = fitting.decide(config, settings)?;
    // Processes that train together would have to agree at what speed.
    let alone = collective::ranks().size() == 1;
    forecast.pace = (alone && forecast.longest.is_some()).then_some(Pace { began, budget });
    // Now that the model is settled, which the notes name.
    not_possible_with(request, &wanted, &config).iter().for_each(|note| ui.note(note));
    without_effect(request, &config, &data).iter().for_each(|note| ui.note(note));
    Ok(Planned { config, data, forecast })
}

/// What a run on `data` that is prepared already will take, whatever it starts from.
///
/// # Errors
/// A setting that cannot be used.
pub fn forecast_on(request: &Request, config: &RunConfig, data: &Prepared) -> Result<Forecast> {
    forecast::measure(request, &resolved(config)?, data, std::time::Duration::ZERO)
}

/// Runs a plan in a new folder.
///
/// # Errors
/// Anything that goes wrong; the folder keeps what was reached.
pub fn start(
    folder: &Folder,
    request: &Request,
    planned: &Planned,
    ui: &dyn Ui,
    interrupted: &AtomicBool,
) -> Result<Summary> {
    planned.data.write(folder)?;
    let found = Found::of(&planned.data, &planned.forecast);
    folder.write_request(request, &found, &planned.config)?;
    execute(folder, request, planned, None, (ui, interrupted))
}

/// Goes on with the run in `folder`, bit for bit as if it had never stopped; `data` is where its
/// images lie now, if they were moved. A run that is finished stays as it is.
///
/// # Errors
/// Another process has the folder, the data changed, or anything that goes wrong in the run.
pub fn resume(
    folder: &mut Folder,
    data: Option<&Path>,
    ui: &dyn Ui,
    interrupted: &AtomicBool,
) -> Result<Summary> {
    if ranks::first(finished::is_finished(folder)?)? {
        ui.note(&format!(
            "{} is finished: nothing is left to do, and nothing in it is changed",
            folder.root().display()
        ));
        return finished::summary(folder);
    }
    finished::refuse_to_begin_anew(folder)?;
    let first = collective::ranks().rank() == 0;
    if first {
        folder.lock()?;
    }
    folder.check_pinned()?;
    let (mut request, mut config) = folder.read_request()?;
    if let Some(data) = data {
        request.data = data.to_path_buf();
    }
    if let Some(before) = folder.read_environment()? {
        config.threads = ranks::threads(&before);
        let differences = before.differences(&Environment::here(&config), threads_or_all(0));
        differences.iter().for_each(|text| ui.note(&format!("note: {text}")));
    }
    let began = Instant::now();
    let data = reopen::reopen(&request, &config, folder, ui)?;
    ranks::check(&config, &data)?;
    let reached = checkpoint::load(&folder.checkpoint())?;
    if reached.is_none() {
        folder.make_checkpoints()?;
        ui.note(&format!(
            "there is no checkpoint in {}, so training begins anew",
            folder.root().join("checkpoints").display()
        ));
    }
    let forecast = forecast::measure(&request, &config, &data, began.elapsed())?;
    let planned = Planned { config, data, forecast };
    if !first {
        let scratch = folder.copy_for(collective::ranks().rank())?;
        return execute(&scratch, &request, &planned, reached, (ui, interrupted));
    }
    // What was found and decided when it began stays.
    if let Some(found) = folder.read_found()? {
        folder.write_run(&request, &found)?;
    }
    execute(folder, &request, &planned, reached, (ui, interrupted))
}

fn execute(
    folder: &Folder,
    request: &Request,
    planned: &Planned,
    mut reached: Option<(StageName, TrainState)>,
    (ui, interrupted): (&dyn Ui, &AtomicBool),
) -> Result<Summary> {
    let (mut config, mut forecast) = (planned.config.clone(), planned.forecast.clone());
    let wanted = config.amp_dtype == AmpDtype::Bf16;
    if wanted && engine::products(&config) == Products::F32 {
        ui.note("  note: this processor does not multiply bf16, so training uses f32");
    }
    ui.total(forecast.units());
    if let Some((stage, state)) = &reached {
        let left = forecast.seconds_left(*stage, state.progress.step);
        let (stage, step) = (stage.as_str(), state.progress.step);
        ui.note(&format!("going on after step {step} of {stage}: {} left", duration(left)));
    }
    loop {
        let context = Context {
            folder,
            request,
            config: &config,
            forecast: &forecast,
            data: &planned.data,
            machine: machine(&config)?,
            interrupted,
            ui,
        };
        let (state, epochs) = match stages::train(&context, reached)? {
            Outcome::Trained(trained) => {
                let summary = finish::finish(&context, &trained)?;
                ui.finish();
                return Ok(summary);
            }
            Outcome::Replanned(state, epochs) => (state, epochs),
        };
        reached = Some((StageName::Finetune, state));
        forecast = forecast.with_epochs(epochs);
        replan(folder, request, &mut config, (epochs, ui))?;
        ui.total(forecast.units());
    }
}

/// Gives the run other `epochs` of fine-tuning on the way, in its settings and in what it says of itself.
fn replan(
    folder: &Folder,
    request: &Request,
    config: &mut RunConfig,
    (epochs, ui): (usize, &dyn Ui),
) -> Result<()> {
    let before = config.finetune.optim.epochs;
    config.finetune.optim.epochs = epochs;
    folder.write_settings(config)?;
    let Some(mut found) = folder.read_found()? else { return Ok(()) };
    let decided = &mut found.decided;
    if let Some(crops) = &mut decided.large_crops {
        crops.epochs = config.finetune.full_epochs();
    }
    // The second change is one of the plan, too, and may undo the first.
    let planned = decided.paced.map_or(before, |paced| paced.planned);
    decided.paced = (epochs != planned).then_some(Paced { planned, epochs });
    if let Some(paced) = decided.paced {
        ui.note(&format!("  note: {}", paced.sentence()));
    }
    folder.write_run(request, &found)
}

/// Refuses a new run with many times as many threads as cores, which would wait for each other. A run that
/// goes on keeps its threads, as its results depend on their number.
fn check_threads(threads: usize) -> Result<()> {
    let most = THREADS_A_CORE * std::thread::available_parallelism().map_or(1, usize::from);
    match threads > most {
        true => Err(Error::Usage(format!(
            "threads is {threads}, and this machine has cores for at most {most}\n  leave --threads out, \
             which takes one for each core"
        ))),
        false => Ok(()),
    }
}

/// Threads of a new run for each core that it may use, at most.
const THREADS_A_CORE: usize = 8;

/// What of the planned run will have no effect, in words.
fn without_effect(request: &Request, config: &RunConfig, data: &Prepared) -> Vec<String> {
    let mut notes = Vec::new();
    let unlabelled = data.train.len() - data.labelled().len();
    let pretrains = request.pretrain && config.pretrain.optim.epochs > 0;
    if request.finetune && !pretrains && unlabelled > 0 {
        let images = counted(unlabelled, "training image");
        notes.push(format!(
            "  note: {images} without a label will not be used: there is no pre-training"
        ));
    }
    let finetune = &config.finetune;
    let evaluations = best::evaluations_that_count(finetune);
    if request.finetune && finetune.patience > evaluations {
        notes.push(format!(
            "  note: --patience {} will not end this run: only {} before its last epoch can count \
             (finetune.eval_every = {})",
            finetune.patience,
            counted(evaluations, "evaluation"),
            finetune.eval_every
        ));
    }
    notes
}

/// Whether the method has a head whose first rows may follow from features.
fn has_instance_classifier(pretrain: &PretrainConfig) -> bool {
    method::unread(&pretrain.method, "pretrain.first_head").is_none()
}

/// Notes on the `wanted` settings that the chosen model or method does not allow.
fn not_possible_with(request: &Request, wanted: &RunConfig, config: &RunConfig) -> Vec<String> {
    let mut notes = Vec::new();
    let finetune = &config.finetune;
    if request.finetune && finetune.early_share != wanted.finetune.early_share {
        let (model, size) = (&config.model.name, finetune.img_size);
        notes.push(format!(
            "  note: {model} has weights for one image size, so all epochs have crops of {size} px"
        ));
    }
    let pretrain = &config.pretrain;
    if request.pretrain
        && pretrain.optim.epochs > 0
        && has_instance_classifier(pretrain)
        && pretrain.first_head != wanted.pretrain.first_head
    {
        notes.push(
            "  note: the head begins with random rows: rows from features need a head with a bias \
             and no projector before it"
                .to_owned(),
        );
    }
    notes
}

/// The configuration with everything settled that depends on the machine or the version: threads,
/// precision, micro-batches.
///
/// # Errors
/// An unknown model.
fn resolved(config: &RunConfig) -> Result<RunConfig> {
    let mut config = config.clone();
    config.threads = threads(&config);
    let name = device::settle(config.device.parse()?)?;
    device::check(name)?;
    config.device = name.to_string();
    match config.amp_dtype {
        AmpDtype::Bf16 => Products::Bf16.check(name)?,
        AmpDtype::Tf32 => Products::Tf32.check(name)?,
        AmpDtype::Auto | AmpDtype::F32 => {}
    }
    config.amp_dtype = match engine::products(&config) {
        Products::Bf16 => AmpDtype::Bf16,
        Products::Tf32 => AmpDtype::Tf32,
        // This processor cannot multiply bf16: a note says so when training begins.
        Products::F32 if config.amp_dtype == AmpDtype::Bf16 => AmpDtype::Bf16,
        Products::F32 => AmpDtype::F32,
    };
    let spec = Spec::find(&config.model.name)?;
    let finetune = &mut config.finetune;
    let shapes = |side| spec.outline(side).parameters;
    let pretrain = &mut config.pretrain;
    if !has_instance_classifier(pretrain) || pretrain.projector > 0 || !pretrain.classifier_bias {
        pretrain.first_head.from = HeadFrom::Random;
    }
    if finetune.early_share > 0.0 && shapes(finetune.early_img_size) != shapes(finetune.img_size) {
        finetune.early_share = 0.0;
    }
    let size = config.pretrain.crops.first().map_or(0, |group| group.img_size);
    for (optim, size) in
        [(&mut config.pretrain.optim, size), (&mut config.finetune.optim, config.finetune.img_size)]
    {
        optim.micro_batch = engine::micro_batch(optim.micro_batch, &spec, size, name);
    }
    Ok(config)
}

/// What computes a run.
///
/// # Errors
/// Another device than any fewvit has.
pub fn machine(config: &RunConfig) -> Result<Machine> {
    Ok(Machine {
        threads: threads(config),
        products: engine::products(config),
        ranks: collective::ranks(),
        device: config.device.parse()?,
    })
}

/// Worker threads of a run.
pub fn threads(config: &RunConfig) -> usize {
    threads_or_all(config.threads)
}

/// `wanted` threads; for 0 all cores we may use, cgroup limits included, shared out between the
/// processes of this machine that train together.
pub fn threads_or_all(wanted: usize) -> usize {
    match wanted {
        0 => {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            (cores / collective::ranks().local_size()).max(1)
        }
        n => n,
    }
}
