//! After training: evaluate once, write predictions, export, report.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::best::{Best, best};
use super::prepare::Prepared;
use super::provenance::{self, Images, Known};
use super::stages::{self, Trained};
use super::{Context, Folder, absolute, observe};
use crate::config::{Keep, RunConfig};
use crate::data::SplitOrigin;
use crate::engine::{self, Model};
use crate::error::{Error, Result};
use crate::eval::infer::{EvalView, Inference};
use crate::eval::metric::Metrics;
use crate::export::{Description, onnx, timm};
use crate::files::write_atomically;
use crate::report::facts::{Choice, Decided, Provenance, StageFacts, TestUse, learned_from};
use crate::report::tables::{self, EpochRow, Prediction};
use crate::report::words::{INTERVAL, shell};
use crate::report::{self, DataFacts, Mistake, ModelFacts, ReportData, card, pictures};
use crate::train::checkpoint::StageName;

/// Mistakes shown in the report, and the side of their pictures in pixels.
const MISTAKES: usize = 24;
const THUMBNAIL: usize = 96;
/// Images that the ONNX file is checked on.
pub(super) const CHECKED_IMAGES: usize = 32;

/// A run's result, one JSON object on stdout with `--json`.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The run folder.
    pub run: String,
    /// Accuracy on the held-out images, 0..1.
    pub top1: Option<f64>,
    /// Its 95% interval.
    pub top1_interval: Option<(f64, f64)>,
    /// Held-out images.
    pub images: usize,
    /// The accuracy with its interval, in one sentence.
    pub headline: Option<String>,
    /// What its interval covers.
    pub interval_covers: Option<&'static str>,
    /// Where the weights come from that the run started from.
    pub provenance: Provenance,
    /// What was done, in order.
    pub stages: Vec<StageFacts>,
    /// Data, model, weights and stages in words, one sentence an entry.
    pub done: Vec<String>,
    /// What to know before using the number, likewise.
    pub notes: Vec<String>,
    /// Whether each held-out image is right, for comparing runs image by image.
    #[serde(skip)]
    pub correct: Vec<bool>,
}

/// Measures the final weights, exports them and writes the report.
pub(super) fn finish(context: &Context, trained: &Trained) -> Result<Summary> {
    let units = context.forecast.finishing_units();
    context.ui.stage("finish", units);
    let mut facts = facts(context, trained)?;
    let finished = trained.stage == StageName::Finetune;
    let model = || context.machine.model(&trained.net, final_weights(trained));
    let model = finished.then(model).transpose()?;
    let mut correct = Vec::new();
    if let Some(model) = &model {
        let predictions = evaluate(context, &**model, &mut facts)?;
        correct = predictions.iter().map(|p| p.correct == Some(true)).collect();
        facts.history = observe::record_final(context, &facts)?;
        let exported = timm::Exported {
            spec: trained.net.spec,
            img_size: trained.net.img_size,
            classes: &context.data.manifest.classes,
            params: &trained.state.specs,
            values: final_weights(trained),
            view: EvalView::of(context.config),
        };
        timm::write(&context.folder.export(), &exported)?;
    }
    context.folder.write_json("report.json", &facts)?;
    report::write(context.folder.root(), &facts)?;
    if let Some(model) = &model {
        export_onnx(context, trained, &**model)?;
        write_card(context, &facts)?;
    }
    context.ui.advance(units, "");
    Ok(Summary::of(context.folder, facts, correct))
}

impl Summary {
    /// What the run in `folder` came to; `correct` are its held-out images.
    pub(super) fn of(folder: &Folder, facts: ReportData, correct: Vec<bool>) -> Self {
        Self {
            run: folder.root().display().to_string(),
            top1: facts.metrics.as_ref().map(|m| m.top1),
            top1_interval: facts.metrics.as_ref().map(|m| m.top1_interval),
            images: facts.metrics.as_ref().map_or(0, |m| m.n),
            headline: facts.headline(),
            interval_covers: facts.metrics.as_ref().map(|_| INTERVAL),
            done: facts.done(),
            notes: facts.notes(),
            provenance: facts.provenance,
            stages: facts.stages,
            correct,
        }
    }
}

/// Writes the model card, the last file of a run. One that is there is its owner's by now and stays.
fn write_card(context: &Context, facts: &ReportData) -> Result<()> {
    let folder = context.folder.export();
    let path = folder.join("README.md");
    let card = card::render(facts, &folder.display().to_string());
    if !path.exists() {
        return write_atomically(&path, card.as_bytes());
    }
    let there = std::fs::read(&path).map_err(|source| Error::io("read", &path, source))?;
    if there != card.as_bytes() {
        context.ui.note(&format!(
            "  note: {} was there already and is left as it is; without it, resume writes a new one",
            path.display()
        ));
    }
    Ok(())
}

/// The weights that are measured and exported: those after the last step, those of the best epoch with
/// `keep = "best"`, or their running average if `ema` is on.
fn final_weights(trained: &Trained) -> &[f32] {
    trained.state.representation()
}

/// Writes `export/model.onnx`, checked on held-out images.
fn export_onnx(context: &Context, trained: &Trained, model: &dyn Model) -> Result<()> {
    let data = context.data;
    let description = Description {
        model: trained.net.spec.name.to_owned(),
        img_size: trained.net.img_size,
        classes: data.manifest.classes.clone(),
        view: EvalView::of(context.config),
    };
    let some = data.held_out.iter().chain(&data.train).take(CHECKED_IMAGES);
    let images: Vec<_> = some.map(|&i| data.decode(i)).collect::<Result<_>>()?;
    let path = context.folder.export().join("model.onnx");
    let written = (model, final_weights(trained));
    onnx::write(&path, written, &description, false, &images, &context.machine).map(|_| ())
}

/// Measures on the held-out images; fills in the metrics and the worst mistakes.
fn evaluate(
    context: &Context,
    model: &dyn Model,
    facts: &mut ReportData,
) -> Result<Vec<Prediction>> {
    let data = context.data;
    let inference =
        Inference { model, view: EvalView::of(context.config), machine: &context.machine };
    let image = |i: usize| data.decode(data.held_out[i]);
    let outputs = inference.run(data.held_out.len(), &image)?;
    facts.warnings.extend(data.changed_note(&data.held_out, context.machine.threads));
    let samples: Vec<_> = data.held_out.iter().map(|&i| &data.manifest.samples[i]).collect();
    let files: Vec<String> = samples.iter().map(|s| s.id.clone()).collect();
    let labels: Vec<Option<usize>> = samples.iter().map(|s| s.label).collect();
    let classes = &data.manifest.classes;
    let predictions = tables::predictions(&files, &labels, &outputs.logits, classes);
    tables::write_predictions(&context.folder.join("predictions.csv"), &predictions)?;
    let known = data.labels(&data.held_out);
    facts.metrics = Some(Metrics::from_logits(&outputs.logits, &known, classes.len()));
    for i in tables::worst_mistakes(&predictions, MISTAKES) {
        let p = &predictions[i];
        facts.mistakes.push(Mistake {
            file: p.file.clone(),
            label: p.label.clone().unwrap_or_default(),
            predicted: p.predicted.clone(),
            confidence: p.confidence,
            thumbnail: Some(pictures::thumbnail(&image(i)?, THUMBNAIL)?),
        });
    }
    Ok(predictions)
}

/// Everything the report says but for the final measurement.
fn facts(context: &Context, trained: &Trained) -> Result<ReportData> {
    let (data, config) = (context.data, context.config);
    let history = tables::read_history(&context.folder.join("metrics.jsonl"))?;
    let training_warnings = tables::warnings(&history);
    let provenance = provenance::read(context.folder, context.request)?;
    let found = context.folder.read_found()?;
    let stages = stage_facts(context, &history, &provenance)?;
    let train_images = data.train.len();
    let leaks = data.leaks(learned_from(&stages, train_images) == train_images);
    Ok(ReportData {
        date: date(),
        command: shell(&context.request.command),
        repeat: repeat(context),
        model: ModelFacts {
            name: trained.net.spec.name.to_owned(),
            timm: trained.net.spec.timm_name.is_some(),
            parameters: trained.state.values.len(),
            img_size: trained.net.img_size,
        },
        data: DataFacts {
            name: data.manifest.name.clone(),
            classes: data.manifest.classes.clone(),
            train_images,
            labelled_images: data.labelled().len(),
            val_images: data.val_beside_held_out(),
            test_images: data.held_out.len(),
            test_split: data.split_name(&data.held_out).to_owned(),
            split_made: data.manifest.split_origin.is_made(),
            split_grouped: data.manifest.split_origin == SplitOrigin::MadeByGroup,
            leaks: leaks.all(),
            leaks_of_other_label: leaks.other_label,
            leaks_without_label: leaks.without_label,
            bad_images: data.report.bad.len(),
            seen_before: data.seen_before,
        },
        stages,
        provenance,
        decided: found.map_or_else(Decided::default, |found| found.decided),
        test_use: test_use(config, &history, data),
        history,
        metrics: None,
        mistakes: Vec::new(),
        warnings: [data.report.warnings.clone(), training_warnings].concat(),
        config: settings(config, &context.request.sources)?,
        versions: vec![
            ("fewvit".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
            ("system".to_owned(), format!("{} {}", std::env::consts::OS, std::env::consts::ARCH)),
            ("instructions".to_owned(), fewvit_kernels::simd_level().to_owned()),
            ("products".to_owned(), engine::products(config).name().to_owned()),
            ("device".to_owned(), context.machine.device.to_string()),
            ("threads".to_owned(), context.machine.threads.to_string()),
        ],
    })
}

/// Hyper-parameters by dotted key, and who set them.
fn settings(
    config: &RunConfig,
    sources: &BTreeMap<String, String>,
) -> Result<Vec<(String, String, String)>> {
    let table = toml::Table::try_from(config)
        .map_err(|e| Error::Failed(format!("cannot list the settings: {e}")))?;
    let rows = crate::config::flatten(table).into_iter();
    let row = |(key, value): (String, toml::Value)| {
        let source = sources.get(&key).cloned().unwrap_or_default();
        (key, value.to_string(), source)
    };
    Ok(rows.map(row).collect())
}

/// Facts of each stage, with the loss that its method has when it guesses.
fn stage_facts(
    context: &Context,
    history: &[EpochRow],
    from: &Provenance,
) -> Result<Vec<StageFacts>> {
    let (request, config, data) = (context.request, context.config, context.data);
    let images = Images { train: data.train.len(), labelled: data.labelled().len() };
    let mut facts = Known { request, config, history, images, from }.stages()?;
    for stage in &mut facts {
        let trained = match stage.key == StageName::Pretrain.as_str() {
            true => stages::pretraining(config, data)?,
            false => stages::finetuning(config, data)?,
        };
        stage.chance = trained.method.chance();
    }
    Ok(facts)
}

/// Which images were measured during training, by the accuracies in the log. The last epoch's is that of
/// the final measurement.
fn test_use(config: &RunConfig, history: &[EpochRow], data: &Prepared) -> TestUse {
    let other = || (data.split_name(&data.watched).to_owned(), data.watched.len());
    if config.finetune.keep == Keep::Best
        && let Some(Best { epoch, measured, .. }) = best(history)
    {
        let same = data.watched == data.held_out;
        return TestUse::Chosen(Choice { epoch, measured, by: other(), same });
    }
    let rows = || history.iter().filter(|row| row.stage == StageName::Finetune.as_str());
    let last = rows().map(|row| row.epoch).max().unwrap_or(0);
    match rows().any(|row| row.top1.is_some() && row.epoch < last) {
        false => TestUse::Once,
        true if data.watched == data.held_out => TestUse::Watched,
        true => {
            let (split, images) = other();
            TestUse::Other(split, images)
        }
    }
}

/// The command that repeats the run, wherever it is typed: the same data, and its own settings.
fn repeat(context: &Context) -> String {
    let request = context.request;
    let absolute = |path: &Path| absolute(path).display().to_string();
    let job = match (request.pretrain, request.finetune) {
        (true, true) => "train",
        (true, false) => "pretrain",
        (false, _) => "finetune",
    };
    let start = match (&request.init, request.pretrain) {
        (_, true) => Vec::new(),
        (Some(init), false) => vec!["--init".to_owned(), absolute(init)],
        (None, false) => vec!["--from-scratch".to_owned()],
    };
    let settings = ["-c".to_owned(), absolute(&context.folder.join("config.toml"))];
    let mut words = vec!["fewvit".to_owned(), job.to_owned(), absolute(&request.data)];
    words.extend(start.into_iter().chain(settings));
    shell(&words)
}

/// Today in UTC, `2026-05-01 14:03` (days to civil date after Howard Hinnant's algorithm).
fn date() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seconds = now.map_or(0, |d| d.as_secs());
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", rest / 3_600, rest % 3_600 / 60)
}
