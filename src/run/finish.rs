//! After training: evaluate once, write predictions, export, report.

use burn::tensor::Device;
use serde::Serialize;

use super::Context;
use super::stages::Trained;
use crate::backbone::Net;
use crate::config::RunConfig;
use crate::data::SplitOrigin;
use crate::error::{Error, Result};
use crate::eval::infer::{EvalView, Inference};
use crate::eval::metric::Metrics;
use crate::export::{Description, onnx, timm};
use crate::nn::Replace;
use crate::report::tables::{self, Prediction};
use crate::report::{self, DataFacts, Mistake, ModelFacts, ReportData, StageFacts, TestUse};
use crate::report::{card, pictures};
use crate::train::checkpoint::StageName;
use crate::train::parallel;

/// Mistakes shown in the report, and the side of their pictures in pixels.
const MISTAKES: usize = 24;
const THUMBNAIL: usize = 96;
/// Images that the ONNX file is checked on.
const CHECKED_IMAGES: usize = 32;

/// A run's result, one JSON object on stdout with `--json`.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The run folder.
    pub run: String,
    /// Held-out images right, 0..1.
    pub top1: Option<f64>,
    /// Its 95% interval.
    pub top1_interval: Option<(f64, f64)>,
    /// Held-out images.
    pub images: usize,
    /// The same in one sentence.
    pub headline: Option<String>,
    /// Whether each held-out image is right, for comparing runs image by image.
    #[serde(skip)]
    pub correct: Vec<bool>,
}

pub(super) fn finish(context: &Context, trained: &Trained) -> Result<Summary> {
    let mut facts = facts(context, trained)?;
    let finished = trained.stage == StageName::Finetune;
    let net = finished.then(|| final_net(trained)).transpose()?;
    let mut correct = Vec::new();
    if let Some(net) = &net {
        let predictions = evaluate(context, trained, net, &mut facts)?;
        correct = predictions.iter().map(|p| p.correct == Some(true)).collect();
        let exported = timm::Exported {
            spec: trained.net.spec,
            img_size: trained.net.img_size,
            classes: &context.data.manifest.classes,
            params: &trained.state.specs,
            values: final_weights(trained),
            view: EvalView::of(context.config),
        };
        let folder = context.folder.export();
        let card = card::render(&facts, &folder.display().to_string());
        timm::write(&folder, &exported, &card)?;
    }
    context.folder.write_json("report.json", &facts)?;
    report::write(context.folder.root(), &facts)?;
    if let Some(net) = &net {
        export_onnx(context, trained, net)?;
    }
    Ok(Summary {
        run: context.folder.root().display().to_string(),
        top1: facts.metrics.as_ref().map(|m| m.top1),
        top1_interval: facts.metrics.as_ref().map(|m| m.top1_interval),
        images: facts.metrics.as_ref().map_or(0, |m| m.n),
        headline: facts.headline(),
        correct,
    })
}

/// The weights that are measured and exported: those after the last step (recipe section 3.6), or
/// their average where the recipe keeps one.
fn final_weights(trained: &Trained) -> &[f32] {
    trained.state.representation()
}

fn final_net(trained: &Trained) -> Result<Net> {
    let template = trained.net.build(0, &Device::flex())?;
    Ok(Replace::values_of(template, final_weights(trained), &Device::flex()))
}

/// Writes `export/model.onnx`, checked on held-out images.
fn export_onnx(context: &Context, trained: &Trained, net: &Net) -> Result<()> {
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
    onnx::write(&path, net, &description, false, &images, context.threads).map(|_| ())
}

/// Measures on the held-out images; fills in the metrics and the worst mistakes.
fn evaluate(
    context: &Context,
    trained: &Trained,
    net: &Net,
    facts: &mut ReportData,
) -> Result<Vec<Prediction>> {
    let data = context.data;
    let inference = Inference {
        net,
        img_size: trained.net.img_size,
        view: EvalView::of(context.config),
        threads: context.threads,
    };
    let image = |i: usize| data.decode(data.held_out[i]);
    let outputs = inference.run(data.held_out.len(), &image, &|_| ())?;
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
    let watched = history.iter().any(|row| row.top1.is_some());
    let test = data.manifest.indices(crate::data::Split::Test);
    Ok(ReportData {
        date: date(),
        command: context.request.command.join(" "),
        model: ModelFacts {
            name: trained.net.spec.name.to_owned(),
            parameters: trained.state.values.len(),
            img_size: trained.net.img_size,
        },
        data: DataFacts {
            name: data.manifest.name.clone(),
            classes: data.manifest.classes.clone(),
            train_images: data.train.len(),
            test_images: data.held_out.len(),
            test_split: if test.is_empty() { "validation" } else { "test" }.to_owned(),
            split_made: data.manifest.split_origin == SplitOrigin::Made,
            bad_images: data.report.bad.len(),
        },
        stages: stage_facts(context, &history),
        history,
        metrics: None,
        test_use: if watched { TestUse::Watched } else { TestUse::Once },
        mistakes: Vec::new(),
        warnings: data.report.warnings.clone(),
        config: settings(config)?,
        versions: vec![
            ("fewvit".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
            ("system".to_owned(), format!("{} {}", std::env::consts::OS, std::env::consts::ARCH)),
            ("instructions".to_owned(), fewvit_kernels::simd_level().to_owned()),
            ("products".to_owned(), parallel::precision(config.amp_dtype).name().to_owned()),
            ("threads".to_owned(), context.threads.to_string()),
        ],
    })
}

/// Hyper-parameters by dotted key.
fn settings(config: &RunConfig) -> Result<Vec<(String, String, String)>> {
    let table = toml::Table::try_from(config)
        .map_err(|e| Error::Failed(format!("cannot list the settings: {e}")))?;
    let rows = crate::config::flatten(table).into_iter();
    Ok(rows.map(|(key, value)| (key, value.to_string(), String::new())).collect())
}

fn stage_facts(context: &Context, history: &[tables::EpochRow]) -> Vec<StageFacts> {
    let (config, data) = (context.config, context.data);
    let mut stages = Vec::new();
    let seconds = |key: &str| {
        history.iter().filter(|row| row.stage == key).map(|row| row.seconds).fold(0.0, f64::max)
    };
    let size = config.pretrain.crops.first().map_or(0, |group| group.img_size);
    if context.request.pretrain {
        let method = config.pretrain.method.to_uppercase();
        stages.push(StageFacts {
            key: "pretrain".to_owned(),
            summary: format!("{method} pre-training without labels at {size} px"),
            epochs: config.pretrain.optim.epochs,
            seconds: seconds("pretrain"),
            loss_classes: Some(data.train.len()),
            loss_terms: config.pretrain.crops.len(),
        });
    }
    if context.request.finetune {
        let from = match (context.request.pretrain, &context.request.init) {
            (true, _) => "from the pre-trained weights".to_owned(),
            (false, Some(path)) => format!("from {}", path.display()),
            (false, None) => "from random weights".to_owned(),
        };
        stages.push(StageFacts {
            key: "finetune".to_owned(),
            summary: format!("supervised training at {} px {from}", config.finetune.img_size),
            epochs: config.finetune.optim.epochs,
            seconds: seconds("finetune"),
            loss_classes: Some(data.manifest.classes.len()),
            loss_terms: 1,
        });
    }
    stages
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
