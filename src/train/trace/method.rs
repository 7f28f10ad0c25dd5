//! Steps of a pre-training method, as a run makes them: its own loss, heads, teacher and memory
//! through [`Stage::step`], on views from a file.
//!
//! The batch stands for the whole training set, so every step is an epoch and the schedules of the
//! recipe span the traced steps. Views come as they are: no CutMix, no drop path,
//! no dropout.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::batch::BatchFile;
use super::{insert_all, is_trace, matrix};
use crate::backbone::{NetSpec, Spec};
use crate::config::{AmpDtype, CropGroup, RunConfig, to_toml};
use crate::data::Rgb8;
use crate::data::cache::ImageStore;
use crate::data::loader::{Batch, BatchSource, CropBatch, Crops, Cutting, Rows};
use crate::data::mixing::Mix;
use crate::engine::device::DeviceName;
use crate::engine::{self, Machine, Products, TrainState};
use crate::error::{Error, Result};
use crate::files::refuse_to_replace;
use crate::method::{self, Labels, Method, Objective};
use crate::train::checkpoint::StageName;
use crate::train::stage::Stage;
use crate::weights::{self, Named};

/// What to trace.
#[derive(Clone, Debug)]
pub struct MethodTrace {
    /// All settings; epochs, batch size and crop groups are made to fit the batch.
    pub config: RunConfig,
    /// Optimiser steps.
    pub steps: usize,
    /// Side of the views; as in the file where it is not given.
    pub img_size: Option<usize>,
    /// Rows of the classifier, for methods with one: training images (IDMM) or classes.
    pub num_classes: Option<usize>,
    /// Backbone, and heads as far as the file has them; drawn from the seed if not given.
    pub weights: Option<PathBuf>,
    /// safetensors with `views` f32 `[V, B, 3, S, S]`, and for methods that use them `targets` and
    /// `index` i64 `[B]`: class and training image of each column of views.
    pub batch: PathBuf,
    /// Where the results go.
    pub out: PathBuf,
    /// What the steps are made on.
    pub device: DeviceName,
}

/// Runs the steps and writes
/// - before the first: `init.KEY`, `init.teacher.KEY`, `init.state.KEY`, `features` `[V * B, d]`,
///   `grad.KEY` (of the loss, before any clipping),
/// - of each: `loss`, `lr`,
/// - after the last: `param.KEY`, `teacher.KEY`, `state.KEY`,
///
/// and all settings as TOML in the file's metadata under `config`.
///
/// # Errors
/// Files that cannot be read, keys or shapes that do not fit, views or labels that the method lacks;
/// a loss that is no number.
pub fn trace(options: &MethodTrace) -> Result<()> {
    let given = Given::read(options)?;
    refuse_to_replace(&options.out, is_trace)?;
    let config = given.fit(&options.config, options.steps);
    let spec = Spec::find(&config.model.name)?;
    let (method, batch) = given.method_and_batch(&config, options.num_classes)?;
    let net = NetSpec { spec, img_size: given.img_size, heads: method.heads() };
    let stage = stage(&config, method, net, (given.samples.len(), options.device));
    let mut state = stage.fresh(config.seed)?;
    if let Some(path) = &options.weights {
        start_from(path, &stage, &mut state)?;
    }
    let out = run(&stage, state, &batch, options.steps)?;
    let header = [("config".to_owned(), to_toml(&config)?)].into();
    super::write(&options.out, out, Some(header))
}

/// The batch as it was read.
struct Given {
    img_size: usize,
    views: usize,
    /// `[views, batch, 3, img_size, img_size]`.
    values: Vec<f32>,
    /// Training image of each column.
    samples: Vec<usize>,
    /// Class of each, where there are any.
    targets: Option<Vec<usize>>,
}

impl Given {
    fn read(options: &MethodTrace) -> Result<Self> {
        let file = BatchFile::read(&options.batch)?;
        let (shape, values) = file.pixels("views")?;
        let &[views, rows, _, img_size, _] = &shape[..] else {
            return Err(file.misfit(&format!("`views` is {shape:?}, not [V, B, 3, S, S]")));
        };
        if let Some(wanted) = options.img_size.filter(|&wanted| wanted != img_size) {
            return Err(file.misfit(&format!("`views` is {shape:?}, --img-size is {wanted}")));
        }
        let integers = |name| file.has(name).then(|| file.integers(name, rows)).transpose();
        let samples = integers("index")?.unwrap_or_else(|| (0..rows).collect());
        Ok(Self { img_size, views, values, samples, targets: integers("targets")? })
    }

    /// `config` for this batch: every step an epoch, the crop groups as far as there are views.
    fn fit(&self, config: &RunConfig, steps: usize) -> RunConfig {
        let mut config = config.clone();
        let pretrain = &mut config.pretrain;
        (pretrain.cutmix, pretrain.optim.drop_path) = (0.0, 0.0);
        (pretrain.optim.epochs, pretrain.optim.batch_size) = (steps, self.samples.len());
        pretrain.crops = dealt(&pretrain.crops, self.views, self.img_size);
        config
    }

    /// The method for a training set that holds this batch, and the batch in its groups.
    fn method_and_batch(
        &self,
        config: &RunConfig,
        num_classes: Option<usize>,
    ) -> Result<(Arc<dyn Method>, Batch)> {
        let above = |positions: &[usize]| positions.iter().max().map_or(0, |last| last + 1);
        let wanted = num_classes.unwrap_or(0);
        let images = above(&self.samples).max(wanted);
        let labels = self.targets.as_ref().map(|targets| {
            let mut of_samples = vec![0; images];
            self.samples.iter().zip(targets).for_each(|(&sample, &t)| of_samples[sample] = t);
            Labels { of_samples, classes: above(targets).max(wanted) }
        });
        let method = method::pretraining(config, images, labels)?;
        let rows = method.heads().num_classes;
        match (method.objective(), num_classes) {
            (Objective::Batch(_), Some(_)) => Err(Error::Usage(format!(
                "--num-classes does nothing: {} has no classifier",
                config.pretrain.method
            ))),
            (Objective::Rows(_), Some(wanted)) if rows > wanted => Err(Error::Usage(format!(
                "--num-classes is {wanted}, but the batch names class {} of {}",
                rows - 1,
                config.pretrain.method
            ))),
            _ => Ok((method.clone(), self.batch(&config.pretrain.crops))),
        }
    }

    fn batch(&self, crops: &[CropGroup]) -> Batch {
        let view = self.samples.len() * 3 * self.img_size.pow(2);
        let mut first = 0;
        let group = |group: &CropGroup| {
            let values = self.values[first * view..(first + group.count) * view].to_vec();
            first += group.count;
            let samples = self.samples.repeat(group.count);
            CropBatch {
                img_size: self.img_size,
                views: group.count,
                crops: Crops::Ready(values),
                mix: Mix::none(samples.len()),
                samples,
            }
        };
        Batch { groups: crops.iter().map(group).collect() }
    }
}

/// `views` views dealt out to the crop groups in turn; the last one takes what is left.
fn dealt(crops: &[CropGroup], views: usize, img_size: usize) -> Vec<CropGroup> {
    let mut left = views;
    let last = crops.len() - 1;
    let group = |(i, group): (usize, &CropGroup)| {
        let count = if i == last { left } else { group.count.min(left) };
        left -= count;
        CropGroup { count, img_size, ..group.clone() }
    };
    crops.iter().enumerate().map(group).filter(|group| group.count > 0).collect()
}

/// The stage whose steps are traced, `batch_size` images in all.
fn stage(
    config: &RunConfig,
    method: Arc<dyn Method>,
    net: NetSpec,
    (batch_size, device): (usize, DeviceName),
) -> Stage<'_> {
    let source = BatchSource {
        // Only their number counts: the batch is given.
        images: Arc::new(ImageStore::of(vec![Rgb8::new(1, 1); batch_size])),
        views: Arc::new(method.views().clone()),
        mix: Arc::new(|_, _, rows, _| Mix::none(rows)),
        seed: config.seed,
        batch_size,
        drop_last: false,
        threads: 1,
        rows: Rows::All,
        cutting: Cutting::Loader,
        balance: None,
        repeats: 1,
    };
    let wanted = config.pretrain.optim.micro_batch;
    let micro_batch = engine::micro_batch(wanted, &net.spec, net.img_size, device);
    let (optim, data) = (&config.pretrain.optim, &config.data);
    let name = StageName::Pretrain;
    // Asked for, it is shown on any machine, emulated if need be.
    let products = match config.amp_dtype {
        AmpDtype::Bf16 => Products::Bf16,
        AmpDtype::Tf32 => Products::Tf32,
        AmpDtype::Auto | AmpDtype::F32 => Products::F32,
    };
    let machine = Machine { products, device, ..Machine::cpu(config.threads) };
    // Other programs draw other dropout.
    let dropout = false;
    Stage { name, net, method, source, optim, data, machine, micro_batch, dropout }
}

/// Puts the weights in a file into a fresh `state`: the whole backbone, heads as far as they are
/// there; the teacher starts as a copy.
fn start_from(path: &Path, stage: &Stage, state: &mut TrainState) -> Result<()> {
    let given = weights::read(path)?;
    let backbone = stage.net.without_heads().parameters()?;
    let needed = |key: &str| given.contains_key(key) || backbone.iter().any(|own| own.key == key);
    let specs: Vec<_> = state.specs.iter().filter(|spec| needed(&spec.key)).cloned().collect();
    weights::fill_strictly(&specs, &mut state.values, &given)?;
    state.teacher = state.teacher.as_ref().map(|_| state.values.clone());
    Ok(())
}

fn run(stage: &Stage, state: TrainState, batch: &Batch, steps: usize) -> Result<Named> {
    let mut out = Named::new();
    insert_state(&mut out, ["init.", "init.teacher.", "init.state."], &state);
    out.insert("features".to_owned(), features(stage, &state, batch)?);
    // On a copy: the step itself moves the teacher and the memory, and clips the gradient.
    let mut copy = stage.engine(state.clone())?;
    stage.gradient(&mut *copy, batch)?;
    insert_all(&mut out, "grad.", &state.specs, &copy.kept_gradient()?);
    let mut engine = stage.engine(state)?;
    let mut step = || stage.step(&mut *engine, batch);
    let records = (0..steps).map(|_| step()).collect::<Result<Vec<_>>>()?;
    out.insert("loss".to_owned(), (vec![steps], records.iter().map(|r| r.loss as f32).collect()));
    out.insert("lr".to_owned(), (vec![steps], records.iter().map(|r| r.lr as f32).collect()));
    insert_state(&mut out, ["param.", "teacher.", "state."], engine.state()?);
    Ok(out)
}

fn insert_state(out: &mut Named, [param, teacher, memory]: [&str; 3], state: &TrainState) {
    insert_all(out, param, &state.specs, &state.values);
    if let Some(values) = &state.teacher {
        insert_all(out, teacher, &state.specs, values);
    }
    for (key, tensor) in &state.memory {
        out.insert(format!("{memory}{key}"), (tensor.shape.clone(), tensor.values.clone()));
    }
}

/// Features of all views, `[V * B, num_features]`.
fn features(stage: &Stage, state: &TrainState, batch: &Batch) -> Result<(Vec<usize>, Vec<f32>)> {
    let net = stage.net.without_heads();
    let values = &state.values[..net.outline()?.num_params()];
    let (model, mut features) = (stage.machine.model(&net, values)?, Vec::new());
    for group in &batch.groups {
        let Crops::Ready(pixels) = &group.crops else { continue };
        features.extend(model.outputs(pixels.clone())?.features);
    }
    Ok(matrix(net.spec.num_features(), features))
}

#[cfg(test)]
mod tests;
