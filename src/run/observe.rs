//! What a run records while it trains: logs, TensorBoard, k-NN probe, accuracy by epoch, pictures.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use burn::tensor::Device;

use super::Context;
use crate::backbone::Net;
use crate::data::Rgb8;
use crate::data::loader::CropBatch;
use crate::error::Result;
use crate::eval::health::{Health, Limits, Training};
use crate::eval::infer::{EvalView, Inference};
use crate::eval::knn::knn_leave_one_out;
use crate::eval::metric::Metrics;
use crate::method::{self, Kind};
use crate::nn::Replace;
use crate::report::pictures;
use crate::report::tables::{EpochRow, MetricsLog};
use crate::report::tensorboard::EventWriter;
use crate::train::checkpoint::StageName;
use crate::train::optim::TrainState;
use crate::train::stage::{EpochRecord, Observer, Stage, StepRecord};

/// Crops on the picture of the first batch.
const PICTURED: usize = 48;

/// Measures a model while it trains.
pub struct Probe<'a> {
    context: &'a Context<'a>,
    net: Net,
    stage: StageName,
    img_size: usize,
    /// The loss of a model that has learned nothing.
    chance: Option<f64>,
}

/// Images whose features are looked at for collapse: enough for any rank there is.
const HEALTH_SAMPLE: usize = 2048;

/// What a probe found; what was not measured is `None`.
#[derive(Default)]
struct Found {
    knn_top1: Option<f64>,
    top1: Option<f64>,
    top5: Option<f64>,
}

impl<'a> Probe<'a> {
    /// For the model of `stage`.
    ///
    /// # Errors
    /// An img-size that does not fit.
    pub fn new(context: &'a Context<'a>, stage: &Stage) -> Result<Self> {
        let net = stage.net.build(0, &Device::flex())?;
        let (img_size, chance) = (stage.net.img_size, stage.method.chance().map(|c| c.loss));
        Ok(Self { context, net, stage: stage.name, img_size, chance })
    }

    /// Measures after `epoch` (from 0) of `epochs`, if the recipe wants it then.
    fn measure(&self, record: &EpochRecord, epochs: usize, state: &TrainState) -> Result<Found> {
        let (config, epoch) = (self.context.config, record.epoch);
        let due =
            |every: usize| every > 0 && ((epoch + 1).is_multiple_of(every) || epoch + 1 == epochs);
        match self.stage {
            StageName::Pretrain if due(config.pretrain.probe_every) => {
                self.neighbours(record, state)
            }
            // The last epoch's accuracy is measured once, by the final evaluation.
            StageName::Finetune if due(config.finetune.eval_every) && epoch + 1 < epochs => {
                self.accuracy(state)
            }
            _ => Ok(Found::default()),
        }
    }

    /// Leave-one-out k-NN accuracy of the training images' features, where labels exist. Warns of
    /// features that have collapsed.
    fn neighbours(&self, record: &EpochRecord, state: &TrainState) -> Result<Found> {
        let data = self.context.data;
        let net = Replace::values_of(self.net.clone(), &state.values, &Device::flex());
        // The logits of N images with N classes each would fill the memory for nothing.
        let net = net.without_heads();
        let image = |i: usize| data.images.get(i).map(|image| image.into_owned());
        let outputs = self.inference(&net).run(data.train.len(), &image)?;
        let dim = outputs.features.len() / data.train.len().max(1);
        let some = &outputs.features[..data.train.len().min(HEALTH_SAMPLE) * dim];
        let warm = record.epoch as f64 >= self.context.config.pretrain.optim.warmup_epochs;
        if warm && data.train.len() > 1 {
            let health = Health::of(some, None, dim);
            let pretrain = &self.context.config.pretrain;
            let training = Training {
                loss: record.loss,
                chance: self.chance,
                labels: method::entry(&pretrain.method)?.kind != Kind::SelfSupervised,
                options: &pretrain.options,
            };
            let warning = health.warning(&training, &Limits::default());
            warning.inspect(|text| self.context.ui.note(&format!("  warning: {text}")));
        }
        if !data.manifest.is_labelled() {
            return Ok(Found::default());
        }
        let (labels, classes) = (data.labels(&data.train), data.manifest.classes.len());
        let eval = &self.context.config.eval;
        let share = knn_leave_one_out(
            &outputs.features,
            &labels,
            classes,
            eval.knn_k,
            eval.knn_temperature,
        );
        Ok(Found { knn_top1: Some(share), ..Found::default() })
    }

    /// Accuracy on the images that are watched.
    fn accuracy(&self, state: &TrainState) -> Result<Found> {
        let data = self.context.data;
        let net = Replace::values_of(self.net.clone(), &state.values, &Device::flex());
        let image = |i: usize| data.decode(data.watched[i]);
        let outputs = self.inference(&net).run(data.watched.len(), &image)?;
        let labels = data.labels(&data.watched);
        let metrics = Metrics::from_logits(&outputs.logits, &labels, data.manifest.classes.len());
        Ok(Found { top1: Some(metrics.top1), top5: metrics.top5, ..Found::default() })
    }

    fn inference<'n>(&'n self, net: &'n Net) -> Inference<'n> {
        let config = self.context.config;
        Inference {
            net,
            img_size: self.img_size,
            view: EvalView::of(config),
            threads: self.context.threads,
        }
    }
}

/// Writes the logs of one stage.
pub struct RunObserver<'a> {
    context: &'a Context<'a>,
    probe: Probe<'a>,
    stage: StageName,
    epochs: usize,
    images: usize,
    /// The loss of a model that has learned nothing, in words for the line of an epoch.
    chance: String,
    /// Optimiser steps of earlier stages.
    steps_before: usize,
    /// Progress units of a step.
    units: u64,
    log: MetricsLog,
    events: EventWriter,
    epoch_started: Instant,
}

impl<'a> RunObserver<'a> {
    /// For `stage`, which goes on after its optimiser step `done`.
    ///
    /// # Errors
    /// A log cannot be written.
    pub fn new(
        context: &'a Context<'a>,
        stage: &Stage,
        steps_before: usize,
        done: usize,
        units: u64,
    ) -> Result<Self> {
        let reached = (steps_before + done) as u64;
        if done == 0 {
            picture(context, stage)?;
        }
        Ok(Self {
            context,
            probe: Probe::new(context, stage)?,
            stage: stage.name,
            epochs: stage.optim.epochs,
            images: stage.source.images.len(),
            chance: (stage.method.chance())
                .map_or(String::new(), |c| format!(" (chance {:.4})", c.loss)),
            steps_before,
            units,
            log: MetricsLog::open(&context.folder.join("metrics.jsonl"), reached)?,
            events: EventWriter::create(context.folder.root(), reached)?,
            epoch_started: Instant::now(),
        })
    }
}

impl Observer for RunObserver<'_> {
    fn step(&mut self, record: &StepRecord) -> Result<()> {
        let (step, now) = ((self.steps_before + record.step + 1) as u64, wall_time());
        let stage = self.stage.as_str();
        self.events.scalar(&format!("{stage}/loss"), step, now, record.loss)?;
        self.events.scalar(&format!("{stage}/lr"), step, now, record.lr)?;
        let rate = record.crops as f64 / record.seconds;
        self.events.scalar(&format!("{stage}/crops_per_second"), step, now, rate)?;
        let message =
            format!("{stage} {}/{} loss {:.3}", record.epoch + 1, self.epochs, record.loss);
        self.context.ui.advance(self.units, &message);
        Ok(())
    }

    fn epoch(&mut self, record: &EpochRecord, state: &TrainState) -> Result<()> {
        let found = self.probe.measure(record, self.epochs, state)?;
        let seconds = self.epoch_started.elapsed().as_secs_f64();
        self.epoch_started = Instant::now();
        let row = EpochRow {
            stage: self.stage.as_str().to_owned(),
            epoch: record.epoch + 1,
            step: (self.steps_before + state.progress.step) as u64,
            seconds: state.progress.seconds,
            images_per_second: self.images as f64 / seconds,
            loss: record.loss,
            lr: record.lr,
            grad_norm: None,
            knn_top1: found.knn_top1,
            top1: found.top1,
            top5: found.top5,
        };
        self.log.append(&row)?;
        for (tag, value) in [("knn_top1", row.knn_top1), ("top1", row.top1), ("top5", row.top5)] {
            if let Some(value) = value {
                self.events.scalar(
                    &format!("{}/{tag}", row.stage),
                    row.step,
                    wall_time(),
                    value,
                )?;
            }
        }
        self.context.ui.epoch(&self.line(&row));
        Ok(())
    }
}

impl RunObserver<'_> {
    fn line(&self, row: &EpochRow) -> String {
        let mut line = format!(
            "{} epoch {}/{}  loss {:.4}{}  lr {:.2e}  {:.1} images/s",
            row.stage, row.epoch, self.epochs, row.loss, self.chance, row.lr, row.images_per_second
        );
        if let Some(share) = row.knn_top1 {
            line += &format!("  k-NN {:.1}%", 100.0 * share);
        }
        if let Some(share) = row.top1 {
            line += &format!("  top-1 {:.1}%", 100.0 * share);
        }
        line
    }
}

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Saves crops of the stage's first batch as the model sees them, CutMix and Mixup included:
/// `train_batch0.jpg` for the run's first stage, `train_batch0_finetune.jpg` for a second one.
fn picture(context: &Context, stage: &Stage) -> Result<()> {
    let batch = stage.source.batch(0)?;
    let images: Vec<Rgb8> = batch
        .groups
        .iter()
        .flat_map(|group| {
            let share = PICTURED * group.samples.len() / batch_rows(&batch.groups);
            (0..share.clamp(1, group.samples.len())).map(|row| seen(group, row))
        })
        .collect();
    let name = match (stage.name, context.request.pretrain) {
        (StageName::Finetune, true) => "train_batch0_finetune.jpg",
        _ => "train_batch0.jpg",
    };
    pictures::save_jpeg(&context.folder.join(name), &pictures::contact_sheet(&images, 12))
}

fn batch_rows(groups: &[CropBatch]) -> usize {
    groups.iter().map(|group| group.samples.len()).sum()
}

/// A row as the model sees it, back in 8 bits.
fn seen(group: &CropBatch, row: usize) -> Rgb8 {
    let size = group.img_size;
    let mut planes = vec![0.0; 3 * size * size];
    group.write_row(row, [0.0; 3], [1.0 / 255.0; 3], &mut planes);
    let mut image = Rgb8::new(size, size);
    for (i, pixel) in image.pixels.chunks_exact_mut(3).enumerate() {
        for (c, value) in pixel.iter_mut().enumerate() {
            *value = planes[c * size * size + i].round().clamp(0.0, 255.0) as u8;
        }
    }
    image
}
