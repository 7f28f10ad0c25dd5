//! The run's configuration: every hyper-parameter, where it comes from, and how layers combine.
//!
//! The structs here have no defaults on purpose: every value comes from a recipe file (TOML, embedded
//! in the program), so a reader finds each number together with its source in `recipes/`.

mod finetune;
mod first_head;
mod layers;
mod minutes;
pub mod recipe;
mod resolved;
mod validate;

pub use finetune::{ClassWeights, FinetuneConfig, Keep, Sampling, early_epochs};
pub use first_head::{HeadFrom, HeadInit};
pub(crate) use layers::flatten;
pub use layers::{Layers, Setting, Source, mark_fitted, to_toml};
pub use minutes::parse_minutes;
pub use resolved::{Resolved, Unread};
pub use validate::LARGEST_SIDE;

use serde::{Deserialize, Serialize};

/// Everything that determines a run, as written to `config.toml` in the run folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// What the recipe is, its source, what it costs and what it should reach.
    pub about: About,
    /// Key of every random stream.
    pub seed: u64,
    /// Where the model computes: `cpu`, `cuda`, `cuda:1`, `wgpu`, `wgpu:1` or `auto`.
    pub device: String,
    /// Precision of the matrix products.
    pub amp_dtype: AmpDtype,
    /// Worker threads, one replica of the step each; 0 = all cores we may use.
    pub threads: usize,
    /// Minutes for the whole run, 0 = no limit; epochs are scaled to fit before the run starts.
    pub time_budget: f64,
    /// Number of images below which a time budget's longest schedule has as many optimiser steps as for so
    /// many images, and so more epochs; 0 = the same epochs for any number.
    #[serde(default)] // absent in runs of earlier versions
    pub few_images: usize,
    /// The backbone.
    pub model: ModelConfig,
    /// Reading images.
    pub data: DataConfig,
    /// Stage 1.
    pub pretrain: PretrainConfig,
    /// Stage 2.
    pub finetune: FinetuneConfig,
    /// How accuracy is measured.
    pub eval: EvalConfig,
    /// Checkpoints.
    pub checkpoint: CheckpointConfig,
}

/// Precision of the matrix products; weights, norms, losses and the optimiser are f32 in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AmpDtype {
    /// `bf16` where the processor multiplies it faster; else, and on every other device, `f32`.
    Auto,
    /// 32-bit.
    F32,
    /// 16-bit with an 8-bit exponent, sums in f32; `f32` where the processor cannot multiply it.
    Bf16,
    /// 32-bit with 11 significant bits in the factors; NVIDIA's cards only.
    Tf32,
}

/// What a recipe says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// Name, as in `--recipe NAME`.
    pub name: String,
    /// One line for `recipe list`.
    pub summary: String,
    /// Paper, table, section.
    pub source: String,
    /// What it costs, in words.
    pub cost: String,
    /// Top-1 it should reach, by data set; empty where nobody has measured it.
    #[serde(default)]
    pub expected: std::collections::BTreeMap<String, f64>,
}

/// The backbone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// timm's name, for example `deit_tiny_patch16_224`.
    pub name: String,
    /// The model instead of `name` where a time budget is too short for that one; empty = none.
    #[serde(default)] // absent in runs of earlier versions
    pub small: String,
    /// A time budget is too short for `name` if it has time for fewer optimiser steps than this.
    #[serde(default)] // absent in runs of earlier versions
    pub small_below: usize,
    /// Sinusoidal position tables (T2T-ViT) when weights go on at another img-size.
    #[serde(default)] // absent in runs of earlier versions
    pub pos_embed: PosEmbed,
}

/// What becomes of a sinusoidal position table at another img-size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PosEmbed {
    /// It is resized like a learned one, as in the official code.
    #[default]
    Interpolate,
    /// It is computed for the new size.
    Regenerate,
}

/// Reading images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// `error` or `skip`: what a file that does not decode does.
    pub on_bad_image: OnBadImage,
    /// Whether a class folder without an image is left out with a note instead of refused.
    #[serde(default)]
    pub allow_empty_class: bool,
    /// Share of each class held out when the data has no split of its own.
    pub test_fraction: f64,
    /// Training images that keep their label; the others serve pre-training only. 0 = all. Runs of
    /// earlier versions do not say.
    #[serde(default)]
    pub labels: usize,
    /// Decoded images are kept with their short side at most this many pixels.
    pub cache_short_side: usize,
    /// Decoded training images are held in memory up to this many GB.
    pub cache_ram_gb: f64,
    /// Decoded training images of all data sets stay on disk for later runs up to this many GB; 0 =
    /// none. What neither takes is decoded at each use. Runs of earlier versions do not say.
    #[serde(default)]
    pub cache_disk_gb: f64,
    /// The folder for them; empty = `fewvit` in the user's folder for caches.
    #[serde(default)]
    pub cache_folder: String,
    /// What becomes of 16-bit channels; runs of earlier versions do not say.
    #[serde(default)]
    pub depth: Depth,
    /// Which of DTD's ten published splits is taken, 1 to 10.
    #[serde(default = "first_split")]
    pub dtd_split: usize,
    /// What the classes of FGVC-Aircraft are.
    #[serde(default)]
    pub aircraft_labels: AircraftLabels,
    /// Rows cut off at the bottom of FGVC-Aircraft's images, where a banner names the photographer.
    #[serde(default)]
    pub aircraft_banner: usize,
    /// Channel means of the input normalisation, RGB in 0..1.
    pub mean: [f32; 3],
    /// Channel standard deviations of the input normalisation.
    pub std: [f32; 3],
}

/// Runs of earlier versions do not say.
fn first_split() -> usize {
    1
}

/// The three levels at which FGVC-Aircraft is labelled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AircraftLabels {
    /// 100 variants, such as 737-200.
    #[default]
    Variant,
    /// 70 families, such as Boeing 737.
    Family,
    /// 30 manufacturers, such as Boeing.
    Manufacturer,
}

/// How 16-bit channels of PNG and TIFF files become 8-bit levels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Depth {
    /// The upper byte, as PIL has it.
    #[default]
    Pil,
    /// The 8 bits from the highest one down that the file uses: for scans of 10 to 14 bits. Each
    /// file decides for itself, so that a picture gives the same levels in any company.
    Auto,
}

/// What a file that does not decode does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnBadImage {
    /// Stop before training.
    Error,
    /// List, count and leave out.
    Skip,
}

/// Optimiser and schedule of one stage.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimConfig {
    /// The rule of the update.
    pub kind: OptimKind,
    /// Passes over the training images.
    pub epochs: usize,
    /// Images a step.
    pub batch_size: usize,
    /// Crops a worker passes through the model at a time; of the smaller ones of early epochs as many as have
    /// as many pixels, up to 64. 0 = chosen for the model and img-size, on `cuda` as many as its memory holds.
    pub micro_batch: usize,
    /// Peak learning rate; never scaled by the batch size.
    pub lr: f64,
    /// Learning rate at the end of the curve.
    #[serde(default)] // absent in runs of earlier versions, as the others here with a default
    pub min_lr: f64,
    /// Last epochs, which the cosine's fall takes; between the warm-up and them the rate is `lr`. 0 = all
    /// epochs after the warm-up.
    #[serde(default)]
    pub decay_epochs: usize,
    /// Largest share of all epochs that the fall may take; 1 = no limit.
    #[serde(default = "all_epochs")]
    pub decay_share: f64,
    /// Weight decay: decoupled in AdamW and Muon, added to the gradient in SGD.
    pub weight_decay: f64,
    /// Weight decay at the end, reached along half a cosine; 0 = `weight_decay` throughout.
    #[serde(default)]
    pub weight_decay_end: f64,
    /// Momentum of SGD and of Muon.
    pub momentum: f64,
    /// AdamW's decay of the first moment, also of what Muon leaves to it.
    pub beta1: f64,
    /// AdamW's decay of the second moment.
    pub beta2: f64,
    /// AdamW's epsilon.
    pub eps: f64,
    /// Epochs of linear warm-up from 0.
    pub warmup_epochs: f64,
    /// The curve after the warm-up.
    pub lr_schedule: LrSchedule,
    /// Leave biases, norms and other one-dimensional parameters undecayed.
    pub no_decay_1d: bool,
    /// Bound on the gradient norm, 0 = none.
    pub clip_grad: f64,
    /// Whose norm is bounded.
    #[serde(default)]
    pub clip_mode: ClipMode,
    /// Leave out the last batch of an epoch if it is not full, unless it is the only one.
    #[serde(default)]
    pub drop_last: bool,
    /// Average of the weights.
    pub ema: Ema,
    /// Stochastic depth at the last block, growing linearly from 0.
    pub drop_path: f64,
    /// Label smoothing epsilon.
    pub smoothing: f64,
    /// How the smoothed mass is spread.
    pub smoothing_kind: SmoothingKind,
}

/// The default of `decay_share`: no limit.
fn all_epochs() -> f64 {
    1.0
}

impl OptimConfig {
    /// The first epoch of the cosine's fall, from 0; 0 if it takes all epochs, or the curve is another one.
    pub fn decay_from(&self) -> usize {
        if self.lr_schedule != LrSchedule::Cosine {
            return 0;
        }
        let share = (self.decay_share * self.epochs as f64).ceil() as usize;
        let last = if self.decay_epochs == 0 { share } else { share.min(self.decay_epochs) };
        self.epochs.saturating_sub(last)
    }
}

/// The rule of the update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimKind {
    /// Adam with decoupled weight decay (Loshchilov & Hutter 2019).
    AdamW,
    /// Stochastic gradient descent with momentum, as PyTorch has it.
    Sgd,
    /// Momentum made orthogonal for the matrices of all layers but the head, AdamW for all else (Jordan et al.
    /// 2024).
    Muon,
}

/// Whose gradient norm `clip_grad` bounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClipMode {
    /// That of all parameters together.
    #[default]
    Global,
    /// That of each parameter by itself (DINO).
    Parameter,
}

/// Learning rate after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LrSchedule {
    /// Half a cosine to `min_lr`, per iteration.
    Cosine,
    /// The official code's cosine with its misplaced bracket.
    IdmmQuirk,
    /// No decay.
    Constant,
}

/// Exponential moving average of the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ema {
    /// None kept.
    Off,
    /// Updated once an epoch with decay min(0.999, (1+n)/(10+n)), as in the official code.
    PerEpoch,
    /// Updated every step with the same decay rule.
    PerStep,
}

/// How label smoothing spreads its mass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SmoothingKind {
    /// `1 - e` on the class, `e / (N - 1)` on each other one (the paper).
    Others,
    /// `e / N` on every class, the rest on the class (the official code, timm).
    Uniform,
}

/// Which lambda CutMix and Mixup use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LambdaRule {
    /// `max(l, 1 - l)`, as all released results.
    Fold,
    /// The Beta draw itself.
    Raw,
}

/// One group of crops: same size, scale and CutMix draw; its loss is the mean over its rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CropGroup {
    /// Crops of each image.
    pub count: usize,
    /// Side in pixels.
    pub img_size: usize,
    /// Area range of RandomResizedCrop.
    pub scale: [f64; 2],
    /// Probability of the blur in this group, where it differs from the augmentation's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blur: Option<f64>,
    /// Probability of solarisation in this group, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub solarize: Option<f64>,
}

/// Pixel augmentation of one stage; a probability of 0 switches an operation off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AugmentConfig {
    /// Filter of RandomResizedCrop.
    pub interpolation: Interpolation,
    /// Aspect range of RandomResizedCrop, log-uniform.
    pub ratio: [f64; 2],
    /// Probability of the horizontal flip.
    pub hflip: f64,
    /// Strength of brightness, contrast, saturation and hue jitter.
    pub color_jitter: [f64; 4],
    /// Probability of the jitter.
    pub color_jitter_prob: f64,
    /// Probability of grayscale.
    pub grayscale: f64,
    /// Probability of the blur.
    pub blur: f64,
    /// Range of the blur's sigma in pixels.
    pub blur_sigma: [f64; 2],
    /// Probability of solarisation: values of 128 and more are inverted.
    pub solarize: f64,
    /// Whether the RandAugment variant of the official fine-tuning code is on.
    pub rand_augment: bool,
    /// Probability that a box of the crop becomes noise (random erasing, with timm's ranges).
    #[serde(default)] // absent in runs of earlier versions
    pub erasing: f64,
}

/// Resampling filter, as PIL defines it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// Triangle, antialiased.
    Bilinear,
    /// Cubic convolution, a = -0.5, antialiased.
    Bicubic,
}

/// Stage 1: pre-training, without labels unless the method learns from them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PretrainConfig {
    /// A name of the table of methods, such as `idmm`.
    pub method: String,
    /// Which encoder is the model that comes out, for methods that have two.
    #[serde(default)] // absent in runs of earlier versions
    pub encoder: Encoder,
    /// The method's own settings, as its recipe lists them; IDMM's are below.
    #[serde(default, skip_serializing_if = "toml::Table::is_empty")]
    pub options: toml::Table,
    /// Optimiser and schedule.
    pub optim: OptimConfig,
    /// Crop groups; the model is built for the first group's size.
    pub crops: Vec<CropGroup>,
    /// Augmentation of every crop.
    pub augment: AugmentConfig,
    /// Alpha of CutMix, 0 = off.
    pub cutmix: f64,
    /// Which lambda CutMix uses.
    pub cutmix_lambda: LambdaRule,
    /// An MLP of this output width between feature and instance classifier (Table 9), 0 = none.
    pub projector: usize,
    /// Bias of the instance classifier.
    pub classifier_bias: bool,
    /// The instance classifier that training begins with.
    #[serde(default)] // absent in runs of earlier versions
    pub first_head: HeadInit,
    /// Epochs between two k-NN probes, 0 = none.
    pub probe_every: usize,
    /// With a time budget: the most of pre-training's time that probes before the end take, which are further
    /// apart where they would take more; 0 = however long they take.
    #[serde(default)] // absent in runs of earlier versions
    pub probe_share: f64,
    /// Where a larger share of the images has a label, there is no pre-training before fine-tuning unless somebody
    /// gives its epochs.
    #[serde(default)] // absent in runs of earlier versions
    pub few_labels: f64,
}

/// The encoder that k-NN, probe, export and fine-tuning take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoder {
    /// The one that gradients train.
    #[default]
    Student,
    /// Its momentum average.
    Teacher,
}

/// How accuracy is measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalConfig {
    /// The centre crop's share of the resized short side: 224 / 256.
    pub crop_pct: f64,
    /// Filter of the resize.
    pub interpolation: Interpolation,
    /// Of runs of earlier versions, which wrote it down and never read it.
    #[serde(default, skip_serializing)]
    batch_size: serde::de::IgnoredAny,
    /// Neighbours of the k-NN probe.
    pub knn_k: usize,
    /// Temperature of its votes.
    pub knn_temperature: f64,
    /// The linear probe.
    pub probe: ProbeConfig,
}

/// Multinomial logistic regression on frozen features.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeConfig {
    /// L2 penalties that cross-validation chooses from, the strongest first.
    pub penalties: Vec<f64>,
    /// Parts of the cross-validation.
    pub folds: usize,
    /// Most iterations of L-BFGS.
    pub iterations: usize,
}

/// Checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Minutes between checkpoints: one is written after the first optimiser step that ends later than this;
    /// 0 = after every step.
    pub every_minutes: f64,
}
