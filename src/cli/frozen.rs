//! `fewvit knn`, `probe` and `embed`: what the features of a backbone are worth before fine-tuning.

use std::path::Path;

use serde_json::json;

use super::frozen_args::{EmbedArgs, FrozenArgs, KnnArgs};
use super::model::{chosen, defaults};
use crate::data::source;
use crate::data::{Sample, Split};
use crate::error::{Error, Result};
use crate::eval::infer::Inference;
use crate::eval::knn::knn;
use crate::eval::metric::{Metrics, wilson};
use crate::eval::probe::{Probe, ProbeOptions};
use crate::report::features::{self, Named};
use crate::run::frozen::{Frozen, Hints};
use crate::run::prepare::decode_sample;

/// Features and labels of a labelled split.
struct Labelled {
    features: Vec<f32>,
    labels: Vec<usize>,
}

/// Both splits of a labelled set, and the number of its classes.
struct Splits {
    train: Labelled,
    test: Labelled,
    classes: usize,
}

pub(super) fn nearest(args: &KnnArgs) -> Result<()> {
    let eval = defaults()?.eval;
    let (k, t) = (args.k.unwrap_or(eval.knn_k), args.temperature.unwrap_or(eval.knn_temperature));
    let Splits { train, test, classes } = splits(&args.frozen)?;
    let bank = (&train.features[..], &train.labels[..]);
    let top1 = knn(bank, (&test.features, &test.labels), classes, k, t);
    let n = test.labels.len();
    let (low, high) = wilson((top1 * n as f64).round() as usize, n);
    if args.frozen.common.json {
        return super::print_json(&json!({ "top1": top1, "top1_interval": [low, high], "n": n }));
    }
    super::print(&format!(
        "{:.2}% of {n} images right (95% interval {:.2} to {:.2}) by their {k} nearest of {}",
        100.0 * top1,
        100.0 * low,
        100.0 * high,
        train.labels.len()
    ))
}

pub(super) fn probe(args: &FrozenArgs) -> Result<()> {
    let config = defaults()?.eval.probe;
    let Splits { train, test, classes } = splits(args)?;
    let probe = Probe::fit(
        &train.features,
        &train.labels,
        classes,
        &ProbeOptions {
            penalties: config.penalties,
            folds: config.folds,
            iterations: config.iterations as u64,
            threads: crate::run::threads_or_all(args.common.threads),
        },
    )?;
    let metrics = Metrics::from_logits(&probe.logits(&test.features), &test.labels, classes);
    if !probe.converged {
        let most = "L-BFGS stopped at its most iterations, before it converged";
        eprintln!("note: {most}: the accuracy may be a little off");
    }
    if args.common.json {
        return super::print_json(&json!({
            "penalty": probe.penalty, "cross_validated": probe.validated,
            "converged": probe.converged, "test": metrics,
        }));
    }
    let (low, high) = metrics.top1_interval;
    super::print(&format!(
        "{:.2}% of {} images right (95% interval {:.2} to {:.2}); L2 penalty {:e}, chosen by \
         cross-validation at {:.2}% of {}",
        100.0 * metrics.top1,
        metrics.n,
        100.0 * low,
        100.0 * high,
        probe.penalty,
        100.0 * probe.validated,
        train.labels.len()
    ))
}

pub(super) fn embed(args: &EmbedArgs) -> Result<()> {
    let format = features::Format::of(&args.out)?;
    features::check_path(&args.out, format)?;
    let manifest = source::open(&args.frozen.data, &defaults()?.data, 0)?;
    let samples = match args.split {
        Some(split) => chosen(&manifest, Some(split)),
        None => manifest.samples.iter().collect(),
    };
    let values = extract(&open(&args.frozen)?, &args.frozen, &samples)?;
    let files: Vec<&str> = samples.iter().map(|sample| sample.id.as_str()).collect();
    features::write(&args.out, format, &Named { files: &files, values: &values })?;
    if args.frozen.common.json {
        let width = values.len() / files.len().max(1);
        return super::print_json(
            &json!({ "file": args.out, "images": files.len(), "num_features": width }),
        );
    }
    Ok(())
}

fn splits(args: &FrozenArgs) -> Result<Splits> {
    let manifest = source::open(&args.data, &defaults()?.data, 0)?;
    let of = |split: Split| -> Vec<&Sample> {
        let labelled = |sample: &&Sample| sample.split == split && sample.label.is_some();
        manifest.samples.iter().filter(labelled).collect()
    };
    let test = chosen(&manifest, None);
    let train = of(Split::Train);
    if train.is_empty() || test.iter().all(|sample| sample.label.is_none()) {
        return Err(lacking(&args.data));
    }
    let frozen = open(args)?;
    let labelled = |samples: Vec<&Sample>| -> Result<Labelled> {
        let labels: Option<Vec<usize>> = samples.iter().map(|sample| sample.label).collect();
        let labels = labels.ok_or_else(|| lacking(&args.data))?;
        Ok(Labelled { features: extract(&frozen, args, &samples)?, labels })
    };
    Ok(Splits { train: labelled(train)?, test: labelled(test)?, classes: manifest.classes.len() })
}

fn lacking(data: &Path) -> Error {
    Error::Data(format!("{} needs labelled training and test images", data.display()))
}

/// The backbone; what there is to say of its weights goes to standard error.
fn open(args: &FrozenArgs) -> Result<Frozen> {
    crate::run::check_device(&args.common.device)?;
    let hints = Hints { model: args.name.as_deref(), img_size: args.img_size };
    let frozen = crate::run::frozen::open(&args.model, &hints)?;
    frozen.notes.iter().for_each(|note| eprintln!("note: {note}"));
    Ok(frozen)
}

/// Features of the samples, `[samples, num_features]`.
fn extract(frozen: &Frozen, args: &FrozenArgs, samples: &[&Sample]) -> Result<Vec<f32>> {
    let inference = Inference {
        net: &frozen.net,
        img_size: frozen.img_size,
        view: frozen.view,
        threads: crate::run::threads_or_all(args.common.threads),
    };
    let outputs = inference.run(samples.len(), &|i| decode_sample(samples[i]), &|_| ())?;
    Ok(outputs.features)
}
