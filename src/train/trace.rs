//! Training steps on tensors from a file, for checks against other frameworks.
//!
//! Drop path 0, no augmentation, the same batch in every step, AdamW with betas (0.9, 0.999) and
//! eps 1e-8, constant lr, every parameter decayed (the paper recipe's single group). Smoothing is
//! PyTorch's (uniform form).

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use safetensors::tensor::{Dtype, SafeTensors};

use super::optim::TrainState;
use crate::backbone::{Net, NetSpec, Spec};
use crate::config::{Ema, LrSchedule, OptimConfig, OptimKind, SmoothingKind};
use crate::error::{Error, Result};
use crate::files::{refuse_to_replace, write_atomically};
use crate::loss::{MixedTarget, Smoothing, mixed_cross_entropy, soft_cross_entropy};
use crate::nn::{DropPath, Gather, Keys, Weights};
use crate::weights::{self, serialize_f32, to_le_bytes};

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
    let (images, targets) = read_batch(options, &device.autodiff())?;
    refuse_to_replace(&options.out, is_trace)?;
    let traced = run(&net, &mut state, &images, &targets, options)?;
    let mut out = weights::Named::from([
        ("loss".to_owned(), (vec![traced.losses.len()], traced.losses)),
        ("logits".to_owned(), matrix(traced.logits)),
        ("features".to_owned(), matrix(traced.features)),
    ]);
    insert_all(&mut out, "grad.", &state, &traced.gradient);
    insert_all(&mut out, "param.", &state, &state.values);
    let tensors: Vec<_> =
        out.into_iter().map(|(key, (shape, v))| (key, to_le_bytes(&v), shape)).collect();
    write_atomically(&options.out, &serialize_f32(&tensors, None)?)
}

/// Whether a file holds an earlier trace.
fn is_trace(content: &[u8]) -> bool {
    let file = SafeTensors::deserialize(content);
    file.is_ok_and(|file| ["loss", "logits", "features"].iter().all(|key| file.tensor(key).is_ok()))
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
        let net = Weights::new(template.clone(), &state.values, &Device::flex());
        let mut gradient = vec![0.0; state.values.len()];
        let mut seen = None;
        let loss = net.add_gradients(&mut gradient, |net| {
            let features = net.features(images.clone(), &DropPath::OFF);
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
        state.update(&mut gradient, options.lr, &optim, &|_| false);
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
        lr: options.lr,
        weight_decay: options.weight_decay,
        momentum: 0.0,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        warmup_epochs: 0.0,
        lr_schedule: LrSchedule::Constant,
        no_decay_1d: false,
        clip_grad: 0.0,
        ema: Ema::Off,
        drop_path: 0.0,
        smoothing: options.smoothing,
        smoothing_kind: SmoothingKind::Uniform,
    }
}

fn matrix(tensor: Tensor<2>) -> (Vec<usize>, Vec<f32>) {
    let shape = tensor.dims().to_vec();
    (shape, tensor.into_data().try_to_vec().expect("f32"))
}

fn insert_all(out: &mut weights::Named, prefix: &str, state: &TrainState, values: &[f32]) {
    for spec in &state.specs {
        let tensor = (spec.shape.clone(), values[spec.range.clone()].to_vec());
        out.insert(format!("{prefix}{}", spec.key), tensor);
    }
}

fn read_batch(options: &TraceOptions, device: &Device) -> Result<(Tensor<4>, Targets)> {
    let path = &options.batch;
    let bytes = std::fs::read(path).map_err(|source| Error::io("read", path, source))?;
    let file = weights::open(path, &bytes)?;
    let images = read_images(options, path, &file, device)?;
    let targets = read_targets(options, path, &file, images.dims()[0], device)?;
    Ok((images, targets))
}

fn read_images(
    options: &TraceOptions,
    path: &Path,
    file: &SafeTensors,
    device: &Device,
) -> Result<Tensor<4>> {
    let view = file.tensor("images").map_err(|_| misfit(path, "it has no tensor `images`"))?;
    let size = options.img_size;
    let &[rows, 3, height, width] = view.shape() else {
        return Err(misfit(path, &format!("`images` is {:?}, not [B, 3, H, W]", view.shape())));
    };
    if (height, width) != (size, size) || rows == 0 {
        let text = format!("`images` is {:?}, --img-size is {size}", view.shape());
        return Err(misfit(path, &text));
    }
    let values = weights::floats(&view).ok_or_else(|| misfit(path, "`images` is not f32"))?;
    Ok(Tensor::from_data(TensorData::new(values, [rows, 3, size, size]), device))
}

fn read_targets(
    options: &TraceOptions,
    path: &Path,
    file: &SafeTensors,
    rows: usize,
    device: &Device,
) -> Result<Targets> {
    let view = file.tensor("targets").map_err(|_| misfit(path, "it has no tensor `targets`"))?;
    let classes = options.num_classes;
    match (view.dtype(), view.shape()) {
        (Dtype::I64, shape) if shape == [rows] => {
            let integers =
                view.data().chunks_exact(8).map(|b| b.try_into().map(i64::from_le_bytes));
            let class = |c: std::result::Result<i64, _>| {
                let class = c.ok().and_then(|c| usize::try_from(c).ok()).filter(|&c| c < classes);
                let class = class.ok_or_else(|| misfit(path, "a target is no class of the model"));
                class.map(|c| MixedTarget { a: c, b: c, lambda: 1.0 })
            };
            integers.map(class).collect::<Result<_>>().map(Targets::Classes)
        }
        (Dtype::F32, shape) if shape == [rows, classes] => {
            let values = weights::floats(&view).unwrap_or_default();
            let data = TensorData::new(values, [rows, classes]);
            Ok(Targets::Distributions(Box::new(Tensor::from_data(data, device))))
        }
        (dtype, shape) => Err(misfit(
            path,
            &format!(
                "`targets` is {dtype:?} {shape:?}; wanted I64 [{rows}] or F32 [{rows}, {classes}]"
            ),
        )),
    }
}

fn misfit(path: &Path, why: &str) -> Error {
    Error::Usage(format!("the batch {} cannot be used: {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backbone::t2t_vit::{T2tVitSpec, TokenAttention};
    use crate::backbone::{Family, deit::DeitSpec, pvt_v2::PvtV2Spec};

    /// Holds a tiny model against a file that `tests/golden/{deit,backbones}.py` made.
    fn assert_same_as_in_pytorch(file: &str, family: &'static dyn Family) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let golden = weights::read(&folder.join(file)).expect("the golden file");
        let (shape, pixels) = golden["images"].clone();
        let (batch, img_size) = (shape[0], shape[3]);
        let spec = Spec { name: "tiny", timm_name: None, family };
        let net = NetSpec::classifier(spec, img_size, 5);
        let template = net.build(0, &Device::flex()).expect("a net");
        let start = golden.iter().filter_map(|(key, value)| {
            Some((key.strip_prefix("param.")?.to_owned(), value.clone()))
        });
        let start: weights::Named = start.collect();
        let device = Device::flex().autodiff();
        let images = TensorData::new(pixels, [batch, 3, img_size, img_size]);
        let images = Tensor::from_data(images, &device);
        let hard = |&class: &usize| MixedTarget { a: class, b: class, lambda: 1.0 };
        let soft = TensorData::new(golden["soft"].1.clone(), [batch, 5]);
        let kinds = [
            ("classes", Targets::Classes([4, 0, 2][..batch].iter().map(hard).collect())),
            ("soft", Targets::Distributions(Box::new(Tensor::from_data(soft, &device)))),
        ];
        for (kind, targets) in kinds {
            let mut state = TrainState::new(Keys::of(&template), Gather::of(&template), Ema::Off);
            weights::fill_strictly(&state.specs, &mut state.values, &start).expect("same keys");
            let traced = run(&template, &mut state, &images, &targets, &options()).expect("a run");
            // Measured: logits 3e-7, gradients 1e-6 of their largest, losses 3e-7.
            assert_close(&matrix(traced.logits).1, &golden["logits"].1, 1e-5, "logits");
            assert_close(&matrix(traced.features).1, &golden["features"].1, 1e-5, "features");
            assert_close(&traced.losses, &golden[&format!("losses.{kind}")].1, 1e-5, kind);
            for spec in &state.specs {
                let key = format!("grad.{kind}.{}", spec.key);
                if spec.frozen {
                    assert_eq!(state.values[spec.range.clone()], start[&spec.key].1, "{key}");
                }
                if let Some((_, gradient)) = golden.get(&key) {
                    assert_close(&traced.gradient[spec.range.clone()], gradient, 1e-4, &key);
                }
            }
        }
        let gradients = golden.keys().filter(|key| key.starts_with("grad.classes.")).count();
        assert!(gradients > 30, "{file} has gradients");
    }

    #[test]
    fn a_deit_of_timm_gives_the_same_logits_gradients_and_ten_losses() {
        let tiny = &DeitSpec { embed_dim: 16, depth: 3, num_heads: 2, patch_size: 8 };
        assert_same_as_in_pytorch("deit.safetensors", tiny);
    }

    #[test]
    fn so_does_a_pvt_v2_of_timm() {
        const TINY: PvtV2Spec = PvtV2Spec {
            embed_dims: [4, 8, 10, 16],
            depths: [1, 2, 1, 1],
            mlp_ratios: [8, 8, 4, 4],
            linear: false,
        };
        assert_same_as_in_pytorch("pvt_v2.safetensors", &TINY);
        assert_same_as_in_pytorch("pvt_v2_li.safetensors", &PvtV2Spec { linear: true, ..TINY });
    }

    #[test]
    fn so_does_a_t2t_vit() {
        const TINY: T2tVitSpec = T2tVitSpec {
            embed_dim: 16,
            depth: 2,
            num_heads: 2,
            mlp_ratio: 3,
            token_dim: 8,
            attention: TokenAttention::Performer,
        };
        const SOFTMAX: T2tVitSpec = T2tVitSpec { attention: TokenAttention::Transformer, ..TINY };
        assert_same_as_in_pytorch("t2t_vit.safetensors", &TINY);
        assert_same_as_in_pytorch("t2t_vit_t.safetensors", &SOFTMAX);
    }

    fn options() -> TraceOptions {
        TraceOptions {
            model: String::new(),
            num_classes: 5,
            img_size: 24,
            weights: PathBuf::new(),
            batch: PathBuf::new(),
            out: PathBuf::new(),
            smoothing: 0.1,
            lr: 1e-3,
            weight_decay: 0.05,
            steps: 10,
        }
    }

    fn assert_close(a: &[f32], b: &[f32], tolerance: f32, what: &str) {
        assert_eq!(a.len(), b.len(), "{what}");
        let largest = b.iter().fold(1e-4f32, |m, v| m.max(v.abs()));
        let difference = a.iter().zip(b).fold(0f32, |m, (x, y)| m.max((x - y).abs()));
        assert!(difference <= tolerance * largest, "{what}: {difference} of {largest}");
    }
}
