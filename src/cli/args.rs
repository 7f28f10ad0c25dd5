//! The command line: commands, their arguments and help texts.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Arg, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};

use super::bench_args::BenchCommand;
use super::data_args::{BadImage, DataCommand};
use super::flags::{Job, OF_RUNS, RunArgs, TrainArgs};
use super::frozen_args::{EmbedArgs, FrozenArgs, KnnArgs};
use super::reproduce::{REPRODUCE, ReproduceArgs};
use super::study::{STUDY, StudyArgs};
use super::trace_args::TraceArgs;
use crate::data::Split;
use crate::engine::Products;
use crate::run::measured::Wanted;

/// Vision transformers trained from scratch on a few hundred to ten thousand images.
#[derive(Parser, Clone, Debug)]
#[command(
    name = "fewvit",
    version,
    about = "Vision transformers trained from scratch on a few hundred to ten thousand images",
    arg_required_else_help = true,
    after_help = TOP
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// The command in the program's `words`, its name the first of them.
    ///
    /// # Errors
    /// Words that are no command, and the help or version that they ask for.
    pub fn of(words: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut command = with_negative_values(Self::command());
        let matches = command.try_get_matches_from_mut(words)?;
        Self::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
    }
}

/// The command with `-1` taken for the value of the flag before it, which then says what is wrong with it, and not
/// for a flag of that name.
fn with_negative_values(command: clap::Command) -> clap::Command {
    let takes_them = |arg: Arg| match arg.get_action().takes_values() && !arg.is_positional() {
        true => arg.allow_negative_numbers(true),
        false => arg,
    };
    command.mut_args(takes_them).mut_subcommands(with_negative_values)
}

const TOP: &str = "Examples:
  fewvit demo
  fewvit train photos/

Exit codes: 0 done, 1 failed, 2 usage or settings, 3 data, 4 device or memory, 5 diverged,
6 verification failed, 75 stopped by the system (SIGTERM) and resumable,
130 interrupted after a checkpoint.
Results go to standard output, progress to standard error.";

/// Leaves the flags out of the help.
pub(super) fn hiding(flags: &'static [&'static str]) -> impl Fn(Arg) -> Arg {
    move |arg| match flags.contains(&arg.get_id().as_str()) {
        true => arg.hide(true),
        false => arg,
    }
}

/// What to do.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Pre-train, fine-tune, evaluate, report and export: the main job
    #[command(after_help = TRAIN)]
    Train(DataArgs),
    /// Pre-train, without labels unless the method learns from them
    #[command(after_help = PRETRAIN, mut_args = hiding(Job::Pretrain.hidden()))]
    Pretrain(DataArgs),
    /// Fine-tune with labels, evaluate, report and export
    #[command(after_help = FINETUNE, mut_args = hiding(Job::Finetune.hidden()))]
    Finetune(FinetuneArgs),
    /// Measure a trained model on labelled images
    #[command(after_help = EVAL)]
    Eval(EvalArgs),
    /// Name the class of images
    #[command(after_help = PREDICT)]
    Predict(PredictArgs),
    /// Write a trained model as an ONNX file
    #[command(after_help = EXPORT)]
    Export(ExportArgs),
    /// Accuracy of frozen features by their nearest neighbours
    #[command(after_help = KNN)]
    Knn(KnnArgs),
    /// Accuracy of a linear classifier on frozen features
    #[command(after_help = PROBE)]
    Probe(FrozenArgs),
    /// Write features to a file
    #[command(after_help = EMBED)]
    Embed(EmbedArgs),
    /// Go on with a run that was stopped
    #[command(after_help = RESUME)]
    Resume(ResumeArgs),
    /// Render a small set of flowers and train on it, in minutes
    #[command(after_help = DEMO, mut_args = hiding(&["time_budget"]))]
    Demo(RunArgs),
    /// Train a grid of settings, data sets and seeds, and compare them in one table
    #[command(after_help = STUDY)]
    Study(StudyArgs),
    /// The paper's tables, ours beside the paper's numbers
    #[command(after_help = REPRODUCE)]
    Reproduce(ReproduceArgs),
    /// Training steps on tensors from a file, for checks against other frameworks
    #[command(after_help = TRACE)]
    Trace(TraceArgs),
    /// Measure this machine and how much of it training uses
    #[command(subcommand, after_help = BENCH)]
    Bench(BenchCommand),
    /// Look at a data set, fetch or render one, split or sample it
    #[command(subcommand, after_help = DATA)]
    Data(DataCommand),
    /// List and show the recipes
    #[command(subcommand, after_help = RECIPE)]
    Recipe(RecipeCommand),
    /// Print all settings of a run, or who set one of them
    #[command(after_help = CONFIG, mut_args = hiding(&OF_RUNS))]
    Config(ConfigArgs),
    /// Check this machine and say what to do about it
    #[command(after_help = DOCTOR)]
    Doctor(DoctorArgs),
    /// List the models
    #[command(after_help = MODELS)]
    Models(ListArgs),
}

const KNN: &str = "Examples:
  fewvit knn runs/photos-1 photos/
  fewvit knn weights.safetensors photos/ --model deit_tiny_patch16_224 --img-size 112";

const PROBE: &str = "Examples:
  fewvit probe runs/photos-1 photos/ --json
  fewvit probe runs/photos-1/export photos/ --img-size 224";

const EMBED: &str = "Examples:
  fewvit embed runs/photos-1 photos/ --out features.npy
  fewvit embed runs/photos-1 new-photos/ --out features.csv";

const BENCH: &str = "Examples:
  fewvit bench limits
  fewvit bench step --model deit_tiny_patch16_224 --img-size 112 -b 256
  fewvit bench epoch photos/";

const TRAIN: &str = "Examples:
  fewvit train photos/
  fewvit train photos/ --time-budget 2h
  fewvit train flowers-102/ --recipe paper --epochs 100 --pretrain-epochs 400 --lr 5e-4 --seed 1";

/// `train` and `pretrain`.
#[derive(Args, Clone, Debug)]
pub struct DataArgs {
    /// Images: DIR/CLASS/*, DIR/{train,test}/CLASS/*, a table or an archive; unlabelled for `pretrain`
    pub data: PathBuf,
    /// How to train.
    #[command(flatten)]
    pub train: TrainArgs,
}

const PRETRAIN: &str = "Examples:
  fewvit pretrain photos/ --epochs 200 --img-size 96 --output runs/pre
  fewvit pretrain photos/ --crops 2x112@0.14-1,4x112@0.05-0.4 --cutmix 0.5

Rows of the paper's ablation (Table 8):
  fewvit pretrain flowers-102/ --crops 2x224@0.14-1 --cutmix 0 --smoothing 0
  fewvit pretrain flowers-102/ --crops 2x224@0.14-1 --cutmix 0
  fewvit pretrain flowers-102/ --crops 2x112@0.14-1 --cutmix 0
  fewvit pretrain flowers-102/ --cutmix 0
  fewvit pretrain flowers-102/";

const FINETUNE: &str = "Examples:
  fewvit finetune photos/ --init runs/pre --epochs 100
  fewvit finetune photos/ --init runs/photos-1 --recipe paper-448
  fewvit finetune photos/ --from-scratch --recipe quick";

/// `finetune`.
#[derive(Args, Clone, Debug)]
pub struct FinetuneArgs {
    /// Images: DIR/CLASS/*, DIR/{train,test}/CLASS/*, a table or an archive
    pub data: PathBuf,
    /// Run folder (its fine-tuned model, or else its pre-trained weights) or weights to start from:
    /// safetensors, or what torch.save wrote (.pth, .pt, .bin). The head is kept where a config.json
    /// beside the weights names the same classes
    #[arg(
        long,
        value_name = "RUN|FILE",
        required_unless_present = "from_scratch",
        conflicts_with = "from_scratch"
    )]
    pub init: Option<PathBuf>,
    /// How to train.
    #[command(flatten)]
    pub train: TrainArgs,
}

const EVAL: &str = "Examples:
  fewvit eval runs/photos-1 photos/
  fewvit eval runs/photos-1 photos/ --split val --json
  fewvit eval runs/photos-1/export/model.onnx new-photos/";

/// `eval`.
#[derive(Args, Clone, Debug)]
pub struct EvalArgs {
    /// Run folder, export folder or ONNX file
    pub model: PathBuf,
    /// Labelled images
    pub data: PathBuf,
    /// Which images: of data that the model's run saw, a split of the run [default: those it was not
    /// trained on]; of other data, a split of its own [default: all]
    #[arg(long)]
    pub split: Option<SplitChoice>,
    /// What an image that cannot be read does: error, or skip (named and left out)
    #[arg(long, value_name = "POLICY", default_value = "skip")]
    pub on_bad_image: BadImage,
    /// Write one line an image to this CSV file
    #[arg(long, value_name = "FILE")]
    pub predictions: Option<PathBuf>,
    /// How to run.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// A split of a data set.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitChoice {
    /// Training images.
    Train,
    /// Validation images.
    Val,
    /// Test images.
    Test,
    /// Training images that had no label when the model's run was trained.
    Unlabelled,
    /// All images.
    All,
}

impl SplitChoice {
    /// What it means in [`crate::run::measured`].
    pub(super) fn wanted(self) -> Wanted {
        match self {
            Self::Train => Wanted::Split(Split::Train),
            Self::Val => Wanted::Split(Split::Val),
            Self::Test => Wanted::Split(Split::Test),
            Self::Unlabelled => Wanted::Unlabelled,
            Self::All => Wanted::All,
        }
    }
}

/// The environment variable of commands that compute for `--threads`.
const THREADS: &str = "FEWVIT_THREADS";

/// Flags whose value may come from an environment variable and may be refused, each with the variable.
pub(super) const FROM_ENVIRONMENT: [(&str, &str); 1] = [("--threads", THREADS)];

/// Arguments of commands that compute but do not train.
#[derive(Args, Clone, Debug)]
pub struct CommonArgs {
    /// Worker threads, 0 = all cores we may use
    #[arg(long, value_name = "N", env = THREADS, default_value_t = 0)]
    pub threads: usize,
    /// Device: cpu, auto, or cuda:1, wgpu:1 in a fewvit that was built for it
    #[arg(long, env = "FEWVIT_DEVICE", default_value = "cpu")]
    pub device: String,
    /// Print results as JSON, one object a line
    #[arg(long)]
    pub json: bool,
}

const PREDICT: &str = "Examples:
  fewvit predict runs/photos-1 new/rose.jpg
  fewvit predict runs/photos-1/export/model.onnx new/ --top-k 3 --json";

/// `predict`.
#[derive(Args, Clone, Debug)]
pub struct PredictArgs {
    /// Run folder, export folder or ONNX file
    pub model: PathBuf,
    /// Image files or folders of images
    #[arg(required = true)]
    pub images: Vec<PathBuf>,
    /// Classes to name for each image
    #[arg(long, value_name = "N", default_value = "5")]
    pub top_k: NonZeroUsize,
    /// What an image that cannot be read does: error (ends here), or skip (named, and exit code 3 after
    /// all others)
    #[arg(long, value_name = "POLICY", default_value = "skip")]
    pub on_bad_image: BadImage,
    /// How to run.
    #[command(flatten)]
    pub common: CommonArgs,
}

const EXPORT: &str =
    "Every run with labels writes export/model.onnx; this writes it again, or in another form.

Examples:
  fewvit export runs/photos-1 photos/test
  fewvit export runs/photos-1 photos/test --embed-preprocessing --output flowers.onnx";

/// `export`.
#[derive(Args, Clone, Debug)]
pub struct ExportArgs {
    /// Run folder or export folder
    pub model: PathBuf,
    /// Image files or folders of images to check the file on: its logits must be the model's
    #[arg(required = true)]
    pub images: Vec<PathBuf>,
    /// The file; model.onnx in the export folder if not given
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Normalise inside the file: it takes `pixels`, bytes [batch, height, width, 3], instead of
    /// `images`, normalised floats [batch, 3, height, width]
    #[arg(long)]
    pub embed_preprocessing: bool,
    /// Worker threads, 0 = all cores we may use
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Print results as JSON, one object a line
    #[arg(long)]
    pub json: bool,
}

const RESUME: &str = "A run that is finished is shown, and nothing in it is written. If report.html or a file of export/
was deleted, it is measured and exported again; an export/README.md that is there stays as it is.

Examples:
  fewvit resume runs/photos-1
  fewvit resume runs/photos-1 --data /mnt/photos";

/// `resume`.
#[derive(Args, Clone, Debug)]
pub struct ResumeArgs {
    /// Run folder
    pub run: PathBuf,
    /// Where the run's images lie now, if they were moved; they must be the same files
    #[arg(long, value_name = "PLACE")]
    pub data: Option<PathBuf>,
    /// Print results as JSON, one object a line
    #[arg(long)]
    pub json: bool,
}

const DEMO: &str = "Examples:
  fewvit demo
  fewvit demo --output runs/first --seed 1";

const TRACE: &str = "Without --method: AdamW with betas (0.9, 0.999) and eps 1e-8 on all parameters. With --method: the
optimiser and settings of the method's recipe, at a constant rate unless -c or --set say otherwise
(pretrain.optim.lr_schedule, .warmup_epochs); every step is an epoch. No CutMix and no drop path.

The batch of a method holds `views` f32 [V, B, 3, S, S], normalised, dealt out to the recipe's crop
groups in turn (all have one size). `index` i64 [B] is the training image of each column (idmm; 0 to
B - 1 if it is not there), `targets` i64 [B] its class (supervised, supcon).

Output, KEY being timm's name or the one in the header of the method's file:
- loss of each step, features and grad.KEY (of the loss) of step 0, param.KEY after the last step;
- without a method also logits of step 0;
- with one also lr of each step; init.KEY, init.teacher.KEY and init.state.KEY: parameters, momentum
encoder and memory (queue, centre) before the first step; teacher.KEY and state.KEY after the last;
all settings as TOML in the metadata under `config`.

Examples:
  fewvit trace --model deit_tiny_patch16_224 --num-classes 10 --img-size 112 --weights w.safetensors --batch b.safetensors --out t.safetensors --steps 10
  fewvit trace --model deit_tiny_patch16_224 --method dino --batch views.safetensors --out t.safetensors --steps 10 --set pretrain.options.prototypes=512";

/// A precision.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit.
    F32,
    /// 16-bit with an 8-bit exponent, sums in f32.
    Bf16,
    /// 32-bit with 11 significant bits in the factors, on NVIDIA's cards.
    Tf32,
}

impl Dtype {
    /// That of the engines.
    pub fn products(self) -> Products {
        match self {
            Self::F32 => Products::F32,
            Self::Bf16 => Products::Bf16,
            Self::Tf32 => Products::Tf32,
        }
    }
}

const DATA: &str = "Examples:
  fewvit data check photos/
  fewvit data synth flowers/ --train 16 --test 8";

const RECIPE: &str = "Examples:
  fewvit recipe list
  fewvit recipe show paper";

/// `recipe`.
#[derive(Subcommand, Clone, Debug)]
pub enum RecipeCommand {
    /// One line a recipe
    #[command(after_help = "Examples:\n  fewvit recipe list\n  fewvit recipe list --json")]
    List(ListArgs),
    /// A recipe's file, with the source of each number
    #[command(after_help = "Examples:\n  fewvit recipe show paper\n  fewvit recipe show quick")]
    Show {
        /// The recipe.
        #[arg(default_value = "paper")]
        name: String,
    },
}

/// Arguments of lists.
#[derive(Args, Clone, Copy, Debug)]
pub struct ListArgs {
    /// Print JSON, one object a line
    #[arg(long)]
    pub json: bool,
}

const CONFIG: &str = "Examples:
  fewvit config --recipe quick > mine.toml
  fewvit config --model pvt_v2_b0 --explain finetune.optim --json
  fewvit config --recipe quick --lr 2e-4 --explain finetune.optim.lr";

/// `config`.
#[derive(Args, Clone, Debug)]
pub struct ConfigArgs {
    /// Say the value of this key, who set it and what it replaced; a section says all of its keys
    #[arg(long, value_name = "KEY")]
    pub explain: Option<String>,
    /// The flags of `train`.
    #[command(flatten)]
    pub train: TrainArgs,
}

const DOCTOR: &str = "Examples:
  fewvit doctor
  fewvit doctor photos/ --output runs --json";

/// `doctor`.
#[derive(Args, Clone, Debug)]
pub struct DoctorArgs {
    /// A data set that should be readable
    pub data: Option<PathBuf>,
    /// Where runs would be written
    #[arg(short, long, value_name = "DIR", default_value = "runs")]
    pub output: PathBuf,
    /// Print JSON, one object a line
    #[arg(long)]
    pub json: bool,
}

const MODELS: &str = "Examples:
  fewvit models
  fewvit models --json";

#[cfg(test)]
mod tests;
