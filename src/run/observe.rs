//! What a run records while it trains: logs, TensorBoard, k-NN probe, accuracy by epoch, pictures.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::forecast::Gone;
use super::{Context, best};
use crate::backbone::NetSpec;
use crate::config::Keep;
use crate::data::Rgb8;
use crate::data::loader::{BatchSource, CropBatch, Cutting, Rows};
use crate::data::views::ViewPlan;
use crate::engine::{Model, TrainState};
use crate::error::Result;
use crate::eval::health::{Health, Limits, Training};
use crate::eval::infer::{EvalView, Inference};
use crate::eval::knn::knn_leave_one_out;
use crate::eval::metric::Metrics;
use crate::method::{self, Kind};
use crate::report::facts::{Choice, TestUse};
use crate::report::tables::{self, EpochRow, FINAL, MetricsLog};
use crate::report::tensorboard::EventWriter;
use crate::report::{ReportData, pictures};
use crate::train::checkpoint::StageName;
use crate::train::stage::{EpochRecord, Observer, Stage, StepRecord};

/// Crops on the picture of the first batch, and the columns they are in.
const PICTURED: usize = 48;
const COLUMNS: usize = 12;

/// Measures a model while it trains.
pub struct Probe<'a> {
    context: &'a Context<'a>,
    net: NetSpec,
    stage: StageName,
    /// The loss of a model that has learned nothing.
    chance: Option<f64>,
    views: Arc<ViewPlan>,
    seed: u64,
}

/// Images whose features are looked at for collapse: enough for any rank there is.
const HEALTH_SAMPLE: usize = 2048;
/// Images of which two views are compared.
const ALIGNMENT_SAMPLE: usize = 256;

/// `most` positions spread evenly over `count`, so that a list sorted by class gives all classes.
fn evenly(count: usize, most: usize) -> impl Iterator<Item = usize> + Clone {
    let kept = count.min(most);
    (0..kept).map(move |i| i * count / kept)
}

/// What a probe found; what was not measured is `None`.
#[derive(Default)]
struct Found {
    knn_top1: Option<f64>,
    top1: Option<f64>,
    top5: Option<f64>,
    alignment: Option<f64>,
    warning: Option<String>,
}

impl<'a> Probe<'a> {
    /// For the model of `stage`.
    pub fn new(context: &'a Context<'a>, stage: &Stage) -> Self {
        let (net, chance) = (stage.net, stage.method.chance().map(|c| c.loss));
        let (views, seed) = (stage.source.views.clone(), stage.source.seed);
        Self { context, net, stage: stage.name, chance, views, seed }
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
            StageName::Finetune if due(config.finetune.eval_every) => {
                let data = self.context.data;
                // What the final evaluation measures is not measured twice after the last epoch.
                let last = epoch + 1 == epochs && config.finetune.keep == Keep::Last;
                match last && data.watched == data.held_out {
                    true => Ok(Found::default()),
                    false => self.accuracy(state),
                }
            }
            _ => Ok(Found::default()),
        }
    }

    /// Leave-one-out k-NN accuracy of the training images' features, which is `None` unless some class has at least
    /// two labelled images, and how far apart two views of an image lie. Warns of features that have collapsed.
    fn neighbours(&self, record: &EpochRecord, state: &TrainState) -> Result<Found> {
        let data = self.context.data;
        // The logits of N images with N classes each would fill the memory for nothing.
        let net = self.net.without_heads();
        let values = &state.representation()[..net.outline()?.num_params()];
        let model = self.context.machine.model(&net, values)?;
        let image = |i: usize| data.images.get(i).map(|image| image.into_owned());
        let outputs = self.inference(&*model).run(data.train.len(), &image)?;
        let dim = outputs.features.len() / data.train.len().max(1);
        let mut found = Found::default();
        if data.train.len() > 1 {
            let rows = evenly(data.train.len(), HEALTH_SAMPLE);
            let some = rows.flat_map(|i| outputs.features[i * dim..][..dim].iter().copied());
            let views =
                (self.views(&*model, record.epoch)?, self.views(&*model, record.epoch + 1)?);
            let health = Health::of(&some.collect::<Vec<_>>(), Some((&views.0, &views.1)), dim);
            found.alignment = health.alignment;
            let pretrain = &self.context.config.pretrain;
            if record.epoch as f64 >= pretrain.optim.warmup_epochs {
                let training = Training {
                    loss: record.loss,
                    chance: self.chance,
                    labels: method::entry(&pretrain.method)?.kind != Kind::SelfSupervised,
                    options: &pretrain.options,
                };
                found.warning = health.warning(&training, &Limits::default());
            }
            let say = |text: &String| self.context.ui.note(&format!("  warning: {text}"));
            found.warning.iter().for_each(say);
        }
        if !data.manifest.is_labelled() {
            return Ok(found);
        }
        let (labels, classes) = (data.labels(&data.train), data.manifest.classes.len());
        let rows = data.labelled();
        let labelled = match rows.len() == data.train.len() {
            true => Cow::Borrowed(&outputs.features[..]),
            false => {
                rows.iter().flat_map(|i| &outputs.features[i * dim..][..dim]).copied().collect()
            }
        };
        let eval = &self.context.config.eval;
        let knn_top1 =
            knn_leave_one_out(&labelled, &labels, classes, eval.knn_k, eval.knn_temperature);
        Ok(Found { knn_top1, ..found })
    }

    /// Features of the recipe's first view of some training images, as `epoch` draws it.
    fn views(&self, model: &dyn Model, epoch: usize) -> Result<Vec<f32>> {
        let images = &self.context.data.images;
        let samples: Vec<usize> = evenly(images.len(), ALIGNMENT_SAMPLE).collect();
        let view = |i: usize| {
            let (image, sample) = (images.get(samples[i])?, samples[i] as u64);
            Ok(self.views.crop(&image, self.seed, epoch as u32, sample, 0))
        };
        self.inference(model).features_of_views(samples.len(), &view)
    }

    /// Accuracy on the images that are watched.
    fn accuracy(&self, state: &TrainState) -> Result<Found> {
        let data = self.context.data;
        let model = self.context.machine.model(&self.net, state.representation())?;
        let image = |i: usize| data.decode(data.watched[i]);
        let outputs = self.inference(&*model).run(data.watched.len(), &image)?;
        let labels = data.labels(&data.watched);
        let metrics = Metrics::from_logits(&outputs.logits, &labels, data.manifest.classes.len());
        Ok(Found { top1: Some(metrics.top1), top5: metrics.top5, ..Found::default() })
    }

    fn inference<'n>(&'n self, model: &'n dyn Model) -> Inference<'n> {
        let config = self.context.config;
        Inference { model, view: EvalView::of(config), machine: &self.context.machine }
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
    /// Progress units until an optimiser step.
    units: &'a dyn Fn(usize) -> u64,
    /// Seconds that earlier stages took.
    seconds_before: f64,
    log: MetricsLog,
    events: EventWriter,
    /// When the stage began or went on, and after which of its optimiser steps.
    began: (Instant, usize),
    /// Epochs that the stage is to go on with instead of those planned.
    replanned: Option<usize>,
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
        units: &'a dyn Fn(usize) -> u64,
    ) -> Result<Self> {
        let reached = (steps_before + done) as u64;
        if done == 0 {
            picture(context, stage)?;
        }
        let log = MetricsLog::open(&context.folder.join("metrics.jsonl"), reached)?;
        let earlier = log.rows().iter().filter(|row| row.stage != stage.name.as_str());
        let seconds_before = earlier.map(|row| row.seconds).fold(0.0, f64::max);
        Ok(Self {
            context,
            probe: Probe::new(context, stage),
            stage: stage.name,
            epochs: stage.optim.epochs,
            images: stage.source.images_per_epoch(),
            chance: (stage.method.chance())
                .map_or(String::new(), |c| format!(" (chance {:.4})", c.loss)),
            steps_before,
            units,
            seconds_before,
            log,
            events: EventWriter::create(context.folder.root(), reached + 1)?,
            began: (Instant::now(), done),
            replanned: None,
        })
    }

    /// Epochs that the stage, which ends here, is to go on with instead of those planned, if it is.
    pub fn replanned(&self) -> Option<usize> {
        self.replanned
    }

    /// Epochs that fine-tuning shall have after optimiser step `step` to keep its time budget, if others than planned.
    fn replan(&self, step: usize) -> Option<usize> {
        let pace = self.context.forecast.pace?;
        let (began, from) = self.began;
        let gone = Gone {
            from,
            to: step,
            seconds: began.elapsed().as_secs_f64(),
            spent: pace.began.elapsed().as_secs_f64(),
        };
        self.context.forecast.epochs_in_time(&self.context.config.finetune, &pace, &gone)
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
        let units = (self.units)(record.step + 1) - (self.units)(record.step);
        self.context.ui.advance(units, &message);
        Ok(())
    }

    fn epoch(&mut self, record: &EpochRecord, state: &TrainState) -> Result<()> {
        let found = self.probe.measure(record, self.epochs, state)?;
        let seconds = self.seconds_before + state.progress.seconds;
        let last = self.log.rows().last().map_or(0.0, |row| row.seconds);
        let row = EpochRow {
            stage: self.stage.as_str().to_owned(),
            epoch: record.epoch + 1,
            step: (self.steps_before + state.progress.step) as u64,
            seconds,
            images_per_second: Some(self.images as f64 / (seconds - last))
                .filter(|r| r.is_finite()),
            loss: Some(record.loss),
            lr: Some(record.lr),
            grad_norm: Some(record.grad_norm),
            knn_top1: found.knn_top1,
            top1: found.top1,
            top5: found.top5,
            top1_low: None,
            top1_high: None,
            alignment: found.alignment,
            warning: found.warning,
        };
        write_scalars(&mut self.events, &row)?;
        self.context.ui.epoch(&self.line(&row, record));
        self.log.append(row)?;
        let keep = self.context.config.finetune.keep;
        let best = best::best(self.log.rows()).map(|best| best.epoch);
        if self.stage == StageName::Finetune && keep == Keep::Best && best == Some(record.epoch + 1)
        {
            best::write(self.context.folder, state)?;
        }
        if let Some(stopped) = best::stopped(&self.context.config.finetune, self.log.rows()) {
            self.context.ui.note(&format!("  note: fine-tuning {}", stopped.words()));
        } else if self.stage == StageName::Finetune {
            self.replanned = self.replan(state.progress.step);
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        let finetune = &self.context.config.finetune;
        let stopped = || best::is_over(finetune, self.log.rows());
        self.stage == StageName::Finetune && (self.replanned.is_some() || stopped())
    }
}

fn write_scalars(events: &mut EventWriter, row: &EpochRow) -> Result<()> {
    let now = wall_time();
    row.scalars().try_for_each(|(name, value)| {
        events.scalar(&format!("{}/{name}", row.stage), row.step, now, value)
    })
}

/// Adds the row of the final measurement to the logs, in place of that of an earlier process, and
/// returns all rows.
pub(super) fn record_final(context: &Context, facts: &ReportData) -> Result<Vec<EpochRow>> {
    let trained = facts.history.iter().rfind(|row| row.stage != FINAL);
    let (Some(metrics), Some(last)) = (&facts.metrics, trained) else {
        return Ok(facts.history.clone());
    };
    let EpochRow { epoch, step, .. } = *measured(facts).unwrap_or(last);
    let row = EpochRow {
        stage: FINAL.to_owned(),
        epoch,
        step,
        images_per_second: None,
        loss: None,
        lr: None,
        grad_norm: None,
        knn_top1: None,
        top1: Some(metrics.top1),
        top5: metrics.top5,
        top1_low: Some(metrics.top1_interval.0),
        top1_high: Some(metrics.top1_interval.1),
        alignment: None,
        warning: None,
        ..*last
    };
    // A run that is finished once more has these events already.
    if facts.history.iter().all(|row| row.stage != FINAL) {
        let mut events = EventWriter::create(context.folder.root(), last.step + 1)?;
        write_scalars(&mut events, &row)?;
    }
    tables::write_final(&context.folder.join("metrics.jsonl"), row)
}

/// The row of the epoch whose weights were chosen, where one was.
fn measured(facts: &ReportData) -> Option<&EpochRow> {
    let TestUse::Chosen(Choice { epoch, .. }) = &facts.test_use else { return None };
    let finetune = StageName::Finetune.as_str();
    facts.history.iter().find(|row| row.stage == finetune && row.epoch == *epoch)
}

impl RunObserver<'_> {
    fn line(&self, row: &EpochRow, record: &EpochRecord) -> String {
        let mut line = format!(
            "{} epoch {}/{}  loss {:.4}{}  lr {:.2e}  {:.1} images/s",
            row.stage,
            row.epoch,
            self.epochs,
            record.loss,
            self.chance,
            record.lr,
            row.images_per_second.unwrap_or_default()
        );
        if let Some(share) = row.knn_top1 {
            let data = self.context.data;
            let of = match data.labelled().len() {
                n if n == data.train.len() => String::new(),
                n => format!(" of {n} with a label"),
            };
            line += &format!("  k-NN {:.1}%{of}", 100.0 * share);
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
    // Of several processes the one that draws needs all rows, and in pixels.
    let (rows, cutting) = (Rows::All, Cutting::Loader);
    let batch = BatchSource { rows, cutting, ..stage.source.clone() }.batch(0)?;
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
    pictures::save_jpeg(&context.folder.join(name), &pictures::contact_sheet(&images, COLUMNS))
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

#[cfg(test)]
mod tests {
    use super::evenly;

    #[test]
    fn a_sample_of_a_list_sorted_by_class_has_all_classes() {
        // 102 classes of 60 images: the first 2,048 would hold 35 of them.
        let classes: std::collections::BTreeSet<usize> =
            evenly(6120, 2048).map(|i| i / 60).collect();
        assert_eq!(classes.len(), 102);
        assert_eq!(evenly(6120, 2048).count(), 2048);
        assert_eq!(evenly(3, 2048).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(evenly(0, 5).count(), 0);
    }
}
