//! Steps of a classifier on labelled images.
//!
//! AdamW with betas (0.9, 0.999) and eps 1e-8, constant lr, every parameter decayed (the paper
//! recipe's single group). Smoothing is PyTorch's (uniform form).

use std::path::PathBuf;

use burn::tensor::{Device, Tensor, TensorData};
use fewvit_kernels::Precision;
use safetensors::tensor::Dtype;

use super::batch::BatchFile;
use super::{insert_all, is_trace, matrix};
use crate::backbone::{Net, NetSpec, Spec};
use crate::config::{ClipMode, Ema, LrSchedule, OptimConfig, OptimKind, SmoothingKind};
use crate::error::{Error, Result};
use crate::files::refuse_to_replace;
use crate::loss::{MixedTarget, Smoothing, mixed_cross_entropy, soft_cross_entropy};
use crate::nn::{DropPath, Gather, Keys, Weights};
use crate::ops;
use crate::train::optim::TrainState;
use crate::train::passes::Gradient;
use crate::weights;

/// What to trace.
#[derive(Clone, Debug)]
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
    /// Of the backbone's products.
    pub precision: Precision,
}

enum Targets {
    Classes(Vec<MixedTarget>),
    Distributions(Box<Tensor<2>>),
}

/// What was seen in the steps.
struct Traced {
    losses: Vec<f32>,
    /// Of step 0.
    logits: Tensor<2>,
    /// Of step 0.
    features: Tensor<2>,
    /// Of step 0, in the order of the flat parameter vector.
    gradient: Vec<f32>,
}

/// Runs the steps and writes `loss`, `logits`, `features`, `grad.<key>` and `param.<key>`.
///
/// # Errors
/// Files that cannot be read, keys or shapes that do not fit.
pub fn trace(options: &TraceOptions) -> Result<()> {
    let spec = Spec::find(&options.model)?;
    let device = Device::flex();
    let net = NetSpec::classifier(spec, options.img_size, options.num_classes).build(0, &device)?;
    let mut state = TrainState::new(Keys::of(&net), Gather::of(&net), Ema::Off);
    weights::import(&options.weights, &state.specs, &mut state.values)?.complete()?;
    let (images, targets) = read(options, &device.autodiff())?;
    refuse_to_replace(&options.out, is_trace)?;
    let traced = run(&net, &mut state, &images, &targets, options)?;
    let mut out = weights::Named::from([
        ("loss".to_owned(), (vec![traced.losses.len()], traced.losses)),
        ("logits".to_owned(), matrix(traced.logits)),
        ("features".to_owned(), matrix(traced.features)),
    ]);
    insert_all(&mut out, "grad.", &state.specs, &traced.gradient);
    insert_all(&mut out, "param.", &state.specs, &state.values);
    super::write(&options.out, out, None)
}

fn run(
    template: &Net,
    state: &mut TrainState,
    images: &Tensor<4>,
    targets: &Targets,
    options: &TraceOptions,
) -> Result<Traced> {
    let optim = optim(options);
    let smoothing = Smoothing::new(options.smoothing, SmoothingKind::Uniform, options.num_classes);
    let (mut losses, mut first) = (Vec::new(), None);
    for _ in 0..options.steps {
        let net = Weights::new(template.clone(), state.values.clone(), &Device::flex());
        let mut gradient = vec![0.0; state.values.len()];
        let mut seen = None;
        let loss = net.add_gradients(&mut gradient, |net| {
            let features =
                ops::autocast(options.precision, || net.features(images.clone(), &DropPath::OFF));
            let logits = net.logits(features.clone());
            seen = Some((logits.clone(), features));
            match targets {
                Targets::Classes(t) => mixed_cross_entropy(logits, t, smoothing),
                Targets::Distributions(t) => soft_cross_entropy(logits, *t.clone()),
            }
            .mean()
        });
        losses.push(loss as f32);
        first =
            first.or_else(|| seen.map(|(logits, features)| (logits, features, gradient.clone())));
        state.update(Gradient::total(&mut gradient, &[], 1), options.lr, &optim, &|_| 0);
        crate::ops::forget_packed_weights();
    }
    let (logits, features, gradient) =
        first.ok_or_else(|| Error::Usage("--steps 0 leaves nothing to trace".to_owned()))?;
    Ok(Traced { losses, logits, features, gradient })
}

fn optim(options: &TraceOptions) -> OptimConfig {
    OptimConfig {
        kind: OptimKind::AdamW,
        epochs: 1,
        batch_size: 1,
        drop_last: false,
        micro_batch: 0,
        lr: options.lr,
        min_lr: 0.0,
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

fn read(options: &TraceOptions, device: &Device) -> Result<(Tensor<4>, Targets)> {
    let file = BatchFile::read(&options.batch)?;
    let (shape, values) = file.pixels("images")?;
    let (rows, size) = (shape[0], options.img_size);
    if shape != [rows, 3, size, size] {
        return Err(file.misfit(&format!("`images` is {shape:?}, --img-size is {size}")));
    }
    let images = Tensor::from_data(TensorData::new(values, [rows, 3, size, size]), device);
    Ok((images, read_targets(&file, rows, options.num_classes, device)?))
}

fn read_targets(file: &BatchFile, rows: usize, classes: usize, device: &Device) -> Result<Targets> {
    match file.kind("targets")? {
        (Dtype::I64, _) => {
            let targets = file.integers("targets", rows)?;
            if targets.iter().any(|&target| target >= classes) {
                return Err(file.misfit("a target is no class of the model"));
            }
            let hard = |class: usize| MixedTarget { a: class, b: class, lambda: 1.0 };
            Ok(Targets::Classes(targets.into_iter().map(hard).collect()))
        }
        (Dtype::F32, shape) if shape == [rows, classes] => {
            let data = TensorData::new(file.floats("targets")?.1, [rows, classes]);
            Ok(Targets::Distributions(Box::new(Tensor::from_data(data, device))))
        }
        (dtype, shape) => Err(file.misfit(&format!(
            "`targets` is {dtype:?} {shape:?}; wanted I64 [{rows}] or F32 [{rows}, {classes}]"
        ))),
    }
}

#[cfg(test)]
mod tests;
