//! Flags that change a run's configuration, and the keys they stand for.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use toml::Value;

use super::values::parse_crops;
use crate::config::{Layers, Source, parse_minutes};
use crate::error::{Error, Result};
use crate::run::Stages;

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// Both stages.
    Train,
    /// Pre-training only.
    Pretrain,
    /// Fine-tuning only.
    Finetune,
}

impl Job {
    /// Its stages.
    pub fn stages(self) -> Stages {
        Stages { pretrain: self != Self::Finetune, finetune: self != Self::Pretrain }
    }

    /// Flags that are about another job: they are not in the help, and refused with the reason.
    pub fn hidden(self) -> &'static [&'static str] {
        match self {
            Self::Train => &[],
            Self::Pretrain => &[
                "mixup",
                "keep",
                "patience",
                "from_scratch",
                "pretrain_epochs",
                "pretrain_img_size",
                "pretrain_smoothing",
            ],
            Self::Finetune => &[
                "method",
                "student",
                "pretrain_epochs",
                "pretrain_img_size",
                "pretrain_smoothing",
                "crops",
                "projector",
                "no_probe",
            ],
        }
    }
}

/// Flags of a run that commands without one refuse, and leave out of their help.
pub const OF_RUNS: [&str; 3] = ["output", "yes", "dry_run"];

/// What every run computes with.
#[derive(Args, Clone, Debug, Default)]
pub struct MachineArgs {
    /// Device to train on: cpu, auto, or cuda:1, wgpu:1 in a fewvit that was built for it
    #[arg(long, help_heading = "Run")]
    pub device: Option<String>,
    /// Worker threads of a run, 0 = all cores we may use
    #[arg(long, value_name = "N", help_heading = "Run")]
    pub threads: Option<usize>,
    /// Precision of matrix products: f32, bf16 (where the processor has it), tf32 (on cuda) or auto (the faster)
    #[arg(long, value_name = "DTYPE", help_heading = "Run")]
    pub amp_dtype: Option<String>,
}

/// Flags of every command that trains.
#[derive(Args, Clone, Debug, Default)]
pub struct RunArgs {
    /// Key of every random draw; the same seed gives the same weights
    #[arg(long, value_name = "N", help_heading = "Run", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    pub seed: Option<u64>,
    /// Run folder; it must not hold anything yet [default: runs/NAME-N]
    #[arg(short, long, value_name = "DIR", help_heading = "Run")]
    pub output: Option<PathBuf>,
    /// What computes.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Minutes for the whole run, or 90s, 45m, 2h; epochs that are not given are scaled to fit
    /// before it starts
    #[arg(long, value_name = "MINUTES", help_heading = "Run", value_parser = parse_minutes, allow_negative_numbers = true)]
    pub time_budget: Option<f64>,
    /// TOML file of settings, laid over the recipe; can be repeated
    #[arg(short, long, value_name = "FILE", help_heading = "Run")]
    pub config: Vec<PathBuf>,
    /// One setting, such as finetune.optim.lr=1e-3; `fewvit config` lists them; can be repeated
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Run")]
    pub set: Vec<String>,
    /// Print results as JSON, one object a line
    #[arg(long, help_heading = "Run")]
    pub json: bool,
    /// Begin long runs without asking
    #[arg(short, long, help_heading = "Run")]
    pub yes: bool,
    /// Check the data, measure the speed, print the forecast, and stop
    #[arg(long, help_heading = "Run")]
    pub dry_run: bool,
}

/// Flags of `train`, `pretrain` and `finetune`. On `train`, a flag that has a `--pretrain-*` twin
/// is about fine-tuning, any other one about every stage that has such a setting.
#[derive(Args, Clone, Debug)]
pub struct TrainArgs {
    /// Recipe that the flags change; `fewvit recipe list` shows them [default: quick on `train`
    /// and `config` without -c, else paper]
    #[arg(long, value_name = "NAME")]
    pub recipe: Option<String>,
    /// Model under timm's name; `fewvit models` shows them
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Side of the training images in pixels, for DeiT a multiple of 16; on `train` that of
    /// fine-tuning
    #[arg(long, value_name = "PIXELS")]
    pub img_size: Option<usize>,
    /// Training images that keep their label, each class its share; all others are pre-trained on
    /// only, if there is pre-training; 0 = all [default: all]
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub labels: Option<usize>,
    /// Epochs; on `train` those of fine-tuning
    #[arg(long, value_name = "N", help_heading = "Optimiser")]
    pub epochs: Option<usize>,
    /// Images a step; on `train` of both stages, as all flags here without a --pretrain-* twin
    #[arg(short, long, value_name = "N", help_heading = "Optimiser")]
    pub batch_size: Option<usize>,
    /// Peak learning rate; it is not scaled by the batch size
    #[arg(long, help_heading = "Optimiser", allow_negative_numbers = true)]
    pub lr: Option<f64>,
    /// Decoupled weight decay
    #[arg(long, value_name = "WD", help_heading = "Optimiser", allow_negative_numbers = true)]
    pub weight_decay: Option<f64>,
    /// Epochs of linear warm-up; if not given, fewer --epochs shorten the recipe's alike
    #[arg(long, value_name = "N", help_heading = "Optimiser", allow_negative_numbers = true)]
    pub warmup_epochs: Option<f64>,
    /// Which epoch's weights are the model: last, or best on the validation images
    #[arg(long, value_name = "EPOCH", help_heading = "Optimiser")]
    pub keep: Option<String>,
    /// With --keep best, end after so many evaluations without a better one
    #[arg(long, value_name = "N", help_heading = "Optimiser")]
    pub patience: Option<usize>,
    /// Stochastic depth at the last block; on `train` of both stages
    #[arg(long, value_name = "P", help_heading = "Regularisation", allow_negative_numbers = true)]
    pub drop_path: Option<f64>,
    /// Label smoothing; on `train` that of fine-tuning
    #[arg(
        long,
        value_name = "EPS",
        help_heading = "Regularisation",
        allow_negative_numbers = true
    )]
    pub smoothing: Option<f64>,
    /// Alpha of CutMix, 0 = off; on `train` of both stages
    #[arg(
        long,
        value_name = "ALPHA",
        help_heading = "Regularisation",
        allow_negative_numbers = true
    )]
    pub cutmix: Option<f64>,
    /// Alpha of fine-tuning's Mixup, 0 = off
    #[arg(
        long,
        value_name = "ALPHA",
        help_heading = "Regularisation",
        allow_negative_numbers = true
    )]
    pub mixup: Option<f64>,
    /// Pre-training method: idmm, simclr, supcon, moco-v2, moco-v3, dino or supervised; with `quick` it also
    /// takes place where many images have a label
    #[arg(long, value_name = "NAME", help_heading = "Pre-training")]
    pub method: Option<String>,
    /// Go on with the student of a method whose recipe takes the teacher (dino)
    #[arg(long, help_heading = "Pre-training")]
    pub student: bool,
    /// Epochs of pre-training, 0 = none
    #[arg(long, value_name = "N", help_heading = "Pre-training")]
    pub pretrain_epochs: Option<usize>,
    /// Side of all crops of pre-training, for DeiT a multiple of 16
    #[arg(long, value_name = "PIXELS", help_heading = "Pre-training")]
    pub pretrain_img_size: Option<usize>,
    /// Label smoothing of pre-training
    #[arg(
        long,
        visible_alias = "pretrain-ls",
        value_name = "EPS",
        help_heading = "Pre-training",
        allow_negative_numbers = true
    )]
    pub pretrain_smoothing: Option<f64>,
    /// Crop groups as COUNTxSIZE@LOW-HIGH, LOW-HIGH being the share of the image's area
    #[arg(long, value_name = "GROUPS", help_heading = "Pre-training", value_parser = parse_crops)]
    pub crops: Option<Value>,
    /// Width of an MLP before the instance classifier (Table 9), 0 = none
    #[arg(long, value_name = "DIM", help_heading = "Pre-training")]
    pub projector: Option<usize>,
    /// No k-NN probes during pre-training
    #[arg(long, help_heading = "Pre-training")]
    pub no_probe: bool,
    /// Skip pre-training: fine-tune from random weights
    #[arg(long, help_heading = "Pre-training", conflicts_with = "pretrain_epochs")]
    pub from_scratch: bool,
    /// What an image that cannot be read does: error, or skip
    #[arg(long, value_name = "POLICY", help_heading = "Data")]
    pub on_bad_image: Option<String>,
    /// Go on without a class whose folder holds no image
    #[arg(long, help_heading = "Data")]
    pub allow_empty_class: bool,
    /// How the run is done.
    #[command(flatten)]
    pub run: RunArgs,
}

/// What a flag sets.
#[derive(Clone, Copy)]
enum Key {
    /// A key of the run.
    Run(&'static str),
    /// A key of each stage of the job.
    Stages(&'static str),
    /// A key of the job's last stage; pre-training's on `train` has a flag of its own.
    LastStage(&'static str),
    /// A key of pre-training.
    Pretrain(&'static str),
    /// A key of fine-tuning.
    Finetune(&'static str),
}

impl Key {
    /// The dotted keys in a job; none if it lacks the stage.
    fn dotted(self, job: Job) -> Vec<String> {
        let stages: &[&str] = match (self, job) {
            (Self::Run(key), _) => return vec![key.to_owned()],
            (Self::Stages(_), Job::Train) => &["pretrain", "finetune"],
            (Self::Pretrain(_), Job::Finetune) | (Self::Finetune(_), Job::Pretrain) => &[],
            (Self::Pretrain(_), _) => &["pretrain"],
            (Self::Finetune(_), _) => &["finetune"],
            (_, Job::Pretrain) => &["pretrain"],
            _ => &["finetune"],
        };
        let (Self::Run(key)
        | Self::Stages(key)
        | Self::LastStage(key)
        | Self::Pretrain(key)
        | Self::Finetune(key)) = self;
        stages.iter().map(|stage| format!("{stage}.{key}")).collect()
    }
}

/// A flag, what it sets, and the value if it was given.
type Row = (&'static str, Key, Option<Value>);

impl RunArgs {
    fn rows(&self) -> [Row; 5] {
        [
            (
                "--seed",
                Key::Run("seed"),
                self.seed.and_then(|n| Some(i64::try_from(n).ok()?.into())),
            ),
            ("--device", Key::Run("device"), text(&self.machine.device)),
            ("--threads", Key::Run("threads"), whole(self.machine.threads)),
            ("--time-budget", Key::Run("time_budget"), number(self.time_budget)),
            ("--amp-dtype", Key::Run("amp_dtype"), text(&self.machine.amp_dtype)),
        ]
    }

    /// Layers below the flags: recipe, files, environment, `--set`.
    fn base(&self, recipe: &str, env: Variables) -> Result<Layers> {
        let mut layers = Layers::new(recipe)?;
        self.config.iter().try_for_each(|path| layers.file(path))?;
        layers.env(env)?;
        self.set.iter().try_for_each(|set| layers.set(set, Source::Flag("--set")))?;
        Ok(layers)
    }

    /// Refuses flags of runs, for a command that makes none.
    ///
    /// # Errors
    /// [`Error::Usage`] naming one that was given.
    pub fn refuse_of_runs(&self) -> Result<()> {
        let given =
            [("--output", self.output.is_some()), ("--yes", self.yes), ("--dry-run", self.dry_run)];
        match given.iter().find(|(_, given)| *given) {
            Some((flag, _)) => Err(Error::Usage(format!(
                "{flag} does nothing here: this command begins no run\n  leave it out"
            ))),
            None => Ok(()),
        }
    }

    /// All layers of a command that has only these flags.
    ///
    /// # Errors
    /// [`Error::Usage`] or an unreadable file.
    pub fn layers(&self, recipe: &str, env: Variables) -> Result<Layers> {
        let mut layers = self.base(recipe, env)?;
        apply(&mut layers, self.rows(), Job::Train)?;
        Ok(layers)
    }
}

/// The recipe of a `train` that says nothing else.
const QUICK: &str = "quick";

/// Environment variables, as [`std::env::vars_os`] gives them.
pub type Variables = Vec<(OsString, OsString)>;

impl TrainArgs {
    /// The recipe that was asked for, or what a command takes without: `train` one that answers
    /// within half an hour; files are laid over the paper's.
    fn recipe(&self, job: Job) -> &str {
        match &self.recipe {
            Some(recipe) => recipe,
            None if self.is_quick_by_default(job) => QUICK,
            None => "paper",
        }
    }

    /// Whether the command takes the recipe `quick` without having been asked to.
    pub fn is_quick_by_default(&self, job: Job) -> bool {
        self.recipe.is_none() && job == Job::Train && self.run.config.is_empty()
    }

    /// Every flag with its key: the table that the help texts describe.
    fn rows(&self) -> [Row; 22] {
        use Key::{Finetune, LastStage, Pretrain, Run, Stages};
        [
            ("--model", Run("model.name"), text(&self.model)),
            ("--on-bad-image", Run("data.on_bad_image"), text(&self.on_bad_image)),
            (
                "--allow-empty-class",
                Run("data.allow_empty_class"),
                self.allow_empty_class.then_some(Value::Boolean(true)),
            ),
            ("--labels", Run("data.labels"), whole(self.labels)),
            ("--epochs", LastStage("optim.epochs"), whole(self.epochs)),
            ("--smoothing", LastStage("optim.smoothing"), number(self.smoothing)),
            ("--batch-size", Stages("optim.batch_size"), whole(self.batch_size)),
            ("--lr", Stages("optim.lr"), number(self.lr)),
            ("--weight-decay", Stages("optim.weight_decay"), number(self.weight_decay)),
            ("--warmup-epochs", Stages("optim.warmup_epochs"), number(self.warmup_epochs)),
            ("--keep", Finetune("keep"), text(&self.keep)),
            ("--patience", Finetune("patience"), whole(self.patience)),
            ("--drop-path", Stages("optim.drop_path"), number(self.drop_path)),
            ("--cutmix", Stages("cutmix"), number(self.cutmix)),
            ("--mixup", Finetune("mixup"), number(self.mixup)),
            ("--method", Pretrain("method"), text(&self.method)),
            ("--student", Pretrain("encoder"), self.student.then(|| "student".into())),
            ("--pretrain-epochs", Pretrain("optim.epochs"), whole(self.pretrain_epochs)),
            ("--pretrain-smoothing", Pretrain("optim.smoothing"), number(self.pretrain_smoothing)),
            ("--crops", Pretrain("crops"), self.crops.clone()),
            ("--projector", Pretrain("projector"), whole(self.projector)),
            ("--no-probe", Pretrain("probe_every"), self.no_probe.then_some(Value::Integer(0))),
        ]
    }

    /// All layers of a job, flags included.
    ///
    /// # Errors
    /// [`Error::Usage`] for unknown keys and flags of a stage that the job lacks; an unreadable file.
    pub fn layers(&self, job: Job, env: Variables) -> Result<Layers> {
        let mut layers = self.run.base(self.recipe(job), env)?;
        apply(&mut layers, self.run.rows(), job)?;
        apply(&mut layers, self.rows(), job)?;
        match job {
            Job::Train if self.from_scratch => {
                let flag = Source::Flag("--from-scratch");
                layers.put("pretrain.optim.epochs", Value::Integer(0), flag)?;
            }
            Job::Pretrain if self.from_scratch => return Err(not_of("--from-scratch", job)),
            _ => {}
        }
        self.sizes(&mut layers, job)?;
        Ok(layers)
    }

    /// Pre-training has a size in each crop group.
    fn sizes(&self, layers: &mut Layers, job: Job) -> Result<()> {
        if job == Job::Pretrain {
            if self.img_size.is_some() && self.pretrain_img_size.is_some() {
                return Err(twice("--img-size", "--pretrain-img-size"));
            }
            resize_crops(layers, "--img-size", self.img_size)?;
        } else {
            let key = Key::Finetune("img_size");
            apply(layers, [("--img-size", key, whole(self.img_size))], job)?;
        }
        if job == Job::Finetune && self.pretrain_img_size.is_some() {
            return Err(not_of("--pretrain-img-size", job));
        }
        resize_crops(layers, "--pretrain-img-size", self.pretrain_img_size)
    }
}

fn apply(layers: &mut Layers, rows: impl IntoIterator<Item = Row>, job: Job) -> Result<()> {
    for (flag, key, value) in rows {
        let Some(value) = value else { continue };
        let keys = key.dotted(job);
        if keys.is_empty() {
            return Err(not_of(flag, job));
        }
        for key in keys {
            if let Some(Source::Flag(other)) = layers.setter(&key)
                && *other != "--set"
            {
                return Err(twice(other, flag));
            }
            layers.put(&key, value.clone(), Source::Flag(flag))?;
        }
    }
    Ok(())
}

fn twice(one: &str, other: &str) -> Error {
    Error::Usage(format!("{one} and {other} set the same here; leave one of them out"))
}

fn not_of(flag: &str, job: Job) -> Error {
    let (other, this) = match job {
        Job::Pretrain => ("fine-tuning", "pretrain"),
        _ => ("pre-training", "finetune"),
    };
    Error::Usage(format!(
        "{flag} is about {other}, which `fewvit {this}` does not do\n  leave it out, or use `fewvit train`"
    ))
}

fn resize_crops(layers: &mut Layers, flag: &'static str, size: Option<usize>) -> Result<()> {
    let Some(size) = whole(size) else { return Ok(()) };
    let Some(Value::Array(mut groups)) = layers.get("pretrain.crops")? else { return Ok(()) };
    for group in groups.iter_mut().filter_map(Value::as_table_mut) {
        group.insert("img_size".to_owned(), size.clone());
    }
    layers.put("pretrain.crops", groups.into(), Source::Flag(flag))
}

fn text(value: &Option<String>) -> Option<Value> {
    value.clone().map(Value::String)
}

fn number(value: Option<f64>) -> Option<Value> {
    value.map(Value::Float)
}

/// Counts beyond 2^63 are out of every range.
fn whole(value: Option<usize>) -> Option<Value> {
    value.map(|n| Value::Integer(i64::try_from(n).unwrap_or(i64::MAX)))
}

#[cfg(test)]
mod tests;
