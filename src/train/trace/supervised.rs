//! Steps of a classifier on labelled images.
//!
//! AdamW with betas (0.9, 0.999) and eps 1e-8, constant lr, every parameter decayed (the paper
//! recipe's single group). Smoothing is PyTorch's (uniform form).

use std::path::PathBuf;
use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use fewvit_kernels::Precision;
use safetensors::tensor::Dtype;

use super::batch::BatchFile;
use super::{insert_all, is_trace, matrix};
use crate::backbone::{HeadSpec, NetSpec, Spec};
use crate::config::{
    ClipMode, DataConfig, Ema, Layers, LrSchedule, OptimConfig, OptimKind, SmoothingKind,
};
use crate::data::Rgb8;
use crate::data::cache::ImageStore;
use crate::data::loader::{Batch, BatchSource, CropBatch, Crops, Cutting, Rows};
use crate::data::mixing::Mix;
use crate::data::views::ViewPlan;
use crate::engine::{Machine, Outputs, TrainState};
use crate::error::{Error, Result};
use crate::files::refuse_to_replace;
use crate::loss::{Chance, Smoothing, soft_cross_entropy};
use crate::method::{BatchFeatures, BatchLoss, Method, Objective, RowLoss, State};
use crate::ops;
use crate::train::checkpoint::StageName;
use crate::train::stage::Stage;
use crate::weights;

/// What to trace.
#[derive(Clone)]
pub struct TraceOptions {
    /// timm's name of the model.
    pub model: String,
    /// Rows of the head.
    pub num_classes: usize,
    /// Side of the images.
    pub img_size: usize,
    /// Weights of backbone and head, in any file that [`weights::import()`] takes.
    pub weights: PathBuf,
    /// safetensors with `images` f32 `[B, 3, H, W]` and `targets` (i64 `[B]` or f32 `[B, K]`).
    pub batch: PathBuf,
    /// Where the results go.
    pub out: PathBuf,
    /// Label smoothing of integer targets.
    pub smoothing: f64,
    /// Learning rate.
    pub lr: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// AdamW steps.
    pub steps: usize,
    /// What computes.
    pub machine: Machine,
}

/// What the images are to be recognised as.
enum Targets {
    /// A class each.
    Classes(Classes),
    /// A share of each class.
    Distributions(Distributions),
}

struct Classes {
    of_rows: Vec<usize>,
    smoothing: Smoothing,
}

struct Distributions {
    /// `[rows, num_classes]`.
    rows: Vec<f32>,
}

/// The labelled images as a method: no views of its own, one row a training sample.
struct Labelled {
    views: ViewPlan,
    targets: Targets,
    num_classes: usize,
}

/// What was seen in the steps.
struct Traced {
    losses: Vec<f32>,
    /// Of step 0.
    outputs: Outputs,
    /// Of step 0, in the order of the flat parameter vector.
    gradient: Vec<f32>,
    /// After the last step.
    state: TrainState,
}

impl Method for Labelled {
    fn views(&self) -> &ViewPlan {
        &self.views
    }

    fn heads(&self) -> HeadSpec {
        HeadSpec::classifier(self.num_classes, true)
    }

    fn objective(&self) -> Objective<'_> {
        match &self.targets {
            Targets::Classes(classes) => Objective::Rows(classes),
            Targets::Distributions(distributions) => Objective::Batch(distributions),
        }
    }

    fn chance(&self) -> Option<Chance> {
        None
    }
}

impl Classes {
    fn new(of_rows: Vec<usize>, options: &TraceOptions) -> Self {
        let kind = SmoothingKind::Uniform;
        Self { of_rows, smoothing: Smoothing::new(options.smoothing, kind, options.num_classes) }
    }
}

impl RowLoss for Classes {
    fn target(&self, sample: usize) -> usize {
        self.of_rows[sample]
    }

    fn smoothing(&self) -> Smoothing {
        self.smoothing
    }
}

impl BatchLoss for Distributions {
    fn loss(&self, batch: BatchFeatures, _: &mut State) -> Tensor<1> {
        // Classifiers are f32, whatever the backbone is.
        let logits = ops::autocast(Precision::F32, || batch.net.logits(batch.features));
        let targets = TensorData::new(self.rows.clone(), logits.dims());
        let targets = Tensor::from_data(targets, &logits.device());
        soft_cross_entropy(logits, targets).mean()
    }
}

/// Runs the steps and writes `loss`, `logits`, `features`, `grad.<key>` and `param.<key>`.
///
/// # Errors
/// Files that cannot be read, keys or shapes that do not fit.
pub fn trace(options: &TraceOptions) -> Result<()> {
    let spec = Spec::find(&options.model)?;
    let net = NetSpec::classifier(spec, options.img_size, options.num_classes);
    let outline = net.outline()?;
    let values = vec![0.0; outline.num_params()];
    let mut state = TrainState::new(outline.parameters, values, Ema::Off);
    weights::import(&options.weights, &state.specs, &mut state.values)?.complete()?;
    let (images, targets) = read(options)?;
    refuse_to_replace(&options.out, is_trace)?;
    let traced = run(net, state, images, targets, options)?;
    let mut out = weights::Named::from([
        ("loss".to_owned(), (vec![traced.losses.len()], traced.losses)),
        ("logits".to_owned(), matrix(options.num_classes, traced.outputs.logits)),
        ("features".to_owned(), matrix(spec.num_features(), traced.outputs.features)),
    ]);
    let state = &traced.state;
    insert_all(&mut out, "grad.", &state.specs, &traced.gradient);
    insert_all(&mut out, "param.", &state.specs, &state.values);
    super::write(&options.out, out, None)
}

fn run(
    net: NetSpec,
    state: TrainState,
    images: Vec<f32>,
    targets: Targets,
    options: &TraceOptions,
) -> Result<Traced> {
    let rows = images.len() / (3 * net.img_size.pow(2));
    let (optim, data) = (optim(options, rows), Layers::new("paper")?.build()?.config.data);
    let stage = stage(net, targets, options, (&optim, &data));
    let machine = &stage.machine;
    let outputs = machine.model(&net, &state.values)?.outputs(images.clone())?;
    let group = CropBatch {
        img_size: net.img_size,
        views: 1,
        crops: Crops::Ready(images),
        samples: (0..rows).collect(),
        mix: Mix::none(rows),
    };
    let batch = Batch { groups: vec![group] };
    let mut engine = stage.engine(state)?;
    let (mut losses, mut first) = (Vec::new(), None);
    for _ in 0..options.steps {
        losses.push(stage.step(&mut *engine, &batch)?.loss as f32);
        if first.is_none() {
            first = Some(engine.kept_gradient()?);
        }
    }
    let gradient =
        first.ok_or_else(|| Error::Usage("--steps 0 leaves nothing to trace".to_owned()))?;
    Ok(Traced { losses, outputs, gradient, state: engine.into_state()? })
}

/// The stage whose steps are traced, on one thread and all rows at once.
fn stage<'a>(
    net: NetSpec,
    targets: Targets,
    options: &TraceOptions,
    (optim, data): (&'a OptimConfig, &'a DataConfig),
) -> Stage<'a> {
    let views = ViewPlan { groups: Vec::new(), later: Vec::new() };
    let num_classes = options.num_classes;
    let method = Labelled { views: views.clone(), targets, num_classes };
    let rows = optim.batch_size;
    let source = BatchSource {
        // Only their number counts: the batch is given.
        images: Arc::new(ImageStore::of(vec![Rgb8::new(1, 1); rows])),
        views: Arc::new(views),
        mix: Arc::new(|_, _, rows, _| Mix::none(rows)),
        seed: 0,
        batch_size: rows,
        drop_last: false,
        threads: 1,
        rows: Rows::All,
        cutting: Cutting::Loader,
        balance: None,
        repeats: 1,
    };
    Stage {
        name: StageName::Finetune,
        net,
        method: Arc::new(method),
        source,
        optim,
        data,
        machine: options.machine.clone(),
        micro_batch: rows,
        dropout: false,
    }
}

fn optim(options: &TraceOptions, rows: usize) -> OptimConfig {
    OptimConfig {
        kind: OptimKind::AdamW,
        epochs: options.steps,
        batch_size: rows,
        drop_last: false,
        micro_batch: 0,
        lr: options.lr,
        min_lr: 0.0,
        decay_epochs: 0,
        decay_share: 1.0,
        weight_decay_end: 0.0,
        weight_decay: options.weight_decay,
        momentum: 0.0,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        warmup_epochs: 0.0,
        lr_schedule: LrSchedule::Constant,
        no_decay_1d: false,
        clip_grad: 0.0,
        clip_mode: ClipMode::Global,
        ema: Ema::Off,
        drop_path: 0.0,
        smoothing: options.smoothing,
        smoothing_kind: SmoothingKind::Uniform,
    }
}

/// The images, `[rows, 3, img_size, img_size]`, and their targets.
fn read(options: &TraceOptions) -> Result<(Vec<f32>, Targets)> {
    let file = BatchFile::read(&options.batch)?;
    let (shape, values) = file.pixels("images")?;
    let (rows, size) = (shape[0], options.img_size);
    if shape != [rows, 3, size, size] {
        return Err(file.misfit(&format!("`images` is {shape:?}, --img-size is {size}")));
    }
    Ok((values, read_targets(&file, rows, options)?))
}

fn read_targets(file: &BatchFile, rows: usize, options: &TraceOptions) -> Result<Targets> {
    let classes = options.num_classes;
    match file.kind("targets")? {
        (Dtype::I64, _) => {
            let targets = file.integers("targets", rows)?;
            if targets.iter().any(|&target| target >= classes) {
                return Err(file.misfit("a target is no class of the model"));
            }
            Ok(Targets::Classes(Classes::new(targets, options)))
        }
        (Dtype::F32, shape) if shape == [rows, classes] => {
            let rows = file.floats("targets")?.1;
            Ok(Targets::Distributions(Distributions { rows }))
        }
        (dtype, shape) => Err(file.misfit(&format!(
            "`targets` is {dtype:?} {shape:?}; wanted I64 [{rows}] or F32 [{rows}, {classes}]"
        ))),
    }
}

#[cfg(test)]
mod tests;
