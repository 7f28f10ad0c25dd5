//! `fewvit knn`, `probe` and `embed`: what the features of a backbone are worth before fine-tuning.

use std::path::Path;

use serde_json::json;

use super::args::SplitChoice;
use super::frozen_args::{EmbedArgs, FrozenArgs, KnnArgs};
use super::readable::Readable;
use crate::config::{EvalConfig, Layers, Source};
use crate::engine::Machine;
use crate::error::{Error, Result};
use crate::eval::infer::Inference;
use crate::eval::knn::knn;
use crate::eval::metric::{Metrics, wilson};
use crate::eval::probe::{Probe, ProbeOptions};
use crate::report::features::{self, Named};
use crate::report::words::interval;
use crate::run::frozen::{Frozen, Hints};
use crate::run::measured::{Measured, Standing, Wanted};
use crate::run::prepare::decode_sample;
use crate::words::counted;

/// Features and labels of a labelled split.
struct Labelled {
    /// Of the images in the data.
    positions: Vec<usize>,
    features: Vec<f32>,
    labels: Vec<usize>,
}

/// Both splits of a labelled set, and the number of its classes.
struct Splits {
    train: Labelled,
    test: Labelled,
    classes: usize,
    standing: Standing,
}

pub(super) fn nearest(args: &KnnArgs) -> Result<()> {
    let mut layers = Layers::new("paper")?;
    let k = args.k.map(|k| i64::try_from(k).unwrap_or(i64::MAX).into());
    for (flag, key, value) in [
        ("--k", "eval.knn_k", k),
        ("--temperature", "eval.knn_temperature", args.temperature.map(Into::into)),
    ] {
        value.map_or(Ok(()), |value| layers.put(key, value, Source::Flag(flag)))?;
    }
    let EvalConfig { knn_k: k, knn_temperature: t, .. } = layers.build()?.config.eval;
    let Splits { train, test, classes, standing } = splits(&args.frozen)?;
    let bank = (&train.features[..], &train.labels[..]);
    let top1 = knn(bank, (&test.features, &test.labels), classes, k, t);
    let n = test.labels.len();
    let (low, high) = wilson((top1 * n as f64).round() as usize, n);
    if args.frozen.common.json {
        return super::print_json(&json!({
            "top1": top1, "top1_interval": [low, high], "n": n, "images": standing,
        }));
    }
    super::print(&format!(
        "{:.2}% of {} right ({}) by their {} nearest of {}",
        100.0 * top1,
        counted(n, "image"),
        interval((low, high)),
        k.min(train.labels.len()),
        train.labels.len()
    ))
}

pub(super) fn probe(args: &FrozenArgs) -> Result<()> {
    let config = defaults()?.probe;
    let Splits { train, test, classes, standing } = splits(args)?;
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
        let most = counted(config.iterations, "iteration");
        eprintln!(
            "note: L-BFGS ended after {most}, before it converged: the accuracy may be a little off"
        );
    }
    if args.common.json {
        return super::print_json(&json!({
            "penalty": probe.penalty, "cross_validated": probe.validated,
            "converged": probe.converged, "test": metrics, "images": standing,
        }));
    }
    super::print(&format!(
        "{:.2}% of {} right ({}); L2 penalty {:e}, {}",
        100.0 * metrics.top1,
        counted(metrics.n, "image"),
        interval(metrics.top1_interval),
        probe.penalty,
        how_chosen(&probe, train.labels.len())
    ))
}

/// What the probe's penalty was chosen by, among so many training `images`.
fn how_chosen(probe: &Probe, images: usize) -> String {
    match probe.validated {
        Some(share) => {
            format!("chosen by cross-validation at {:.2}% of {images}", 100.0 * share)
        }
        None => "the strongest there is: with one training image a class none can be chosen by \
                 cross-validation"
            .to_owned(),
    }
}

pub(super) fn embed(args: &EmbedArgs) -> Result<()> {
    let format = features::Format::of(&args.out)?;
    features::check_path(&args.out, format)?;
    let data = data(&args.frozen)?;
    let wanted = args.split.map_or(Wanted::All, SplitChoice::wanted);
    let (positions, values) =
        extract(&open(&args.frozen)?, &args.frozen, &data, &data.positions(wanted)?)?;
    let files: Vec<&str> =
        positions.iter().map(|&i| data.manifest.samples[i].id.as_str()).collect();
    features::write(&args.out, format, &Named { files: &files, values: &values })?;
    if args.frozen.common.json {
        let width = values.len() / files.len().max(1);
        return super::print_json(
            &json!({ "file": args.out, "images": files.len(), "num_features": width }),
        );
    }
    Ok(())
}

/// The recipe's settings of measurements.
fn defaults() -> Result<EvalConfig> {
    Ok(Layers::new("paper")?.build()?.config.eval)
}

fn data(args: &FrozenArgs) -> Result<Measured> {
    let threads = crate::run::threads_or_all(args.common.threads);
    super::measured(&args.model, &args.data, args.on_bad_image, threads)
}

fn splits(args: &FrozenArgs) -> Result<Splits> {
    let data = data(args)?;
    let (mut train, mut test) = data.halves();
    let has_label = |i: &usize| data.manifest.samples[*i].label.is_some();
    train.retain(has_label);
    test.retain(has_label);
    if train.is_empty() {
        return Err(lacking(&args.data, "training"));
    }
    if test.is_empty() {
        return Err(lacking(&args.data, "test"));
    }
    let frozen = open(args)?;
    let labelled = |positions: &[usize]| -> Result<Labelled> {
        let (positions, features) = extract(&frozen, args, &data, positions)?;
        let label = |i: usize| data.manifest.samples[i].label;
        let labels = positions.iter().filter_map(|&i| label(i)).collect();
        Ok(Labelled { positions, features, labels })
    };
    let (train, test) = (labelled(&train)?, labelled(&test)?);
    let mut standing = data.standing(&test.positions);
    if !frozen.exported {
        // An epoch of fine-tuning was chosen, and these are other weights.
        standing.chosen_by = 0;
    }
    eprintln!("note: {}", standing.describe());
    super::note_single_class(data.manifest.classes.len());
    Ok(Splits { train, test, classes: data.manifest.classes.len(), standing })
}

fn lacking(data: &Path, what: &str) -> Error {
    Error::Data(format!(
        "{} has no {what} images with a label\n  sort the images into train/CLASS/ and test/CLASS/, or \
         write a table (file,label,split)",
        data.display()
    ))
}

/// The backbone; what there is to say of its weights goes to standard error.
fn open(args: &FrozenArgs) -> Result<Frozen> {
    let hints = Hints { model: args.name.as_deref(), img_size: args.img_size };
    let threads = crate::run::threads_or_all(args.common.threads);
    let machine = Machine::named(&args.common.device, threads)?;
    let frozen = crate::run::frozen::open(&args.model, &hints, &machine)?;
    frozen.notes.iter().for_each(|note| eprintln!("note: {note}"));
    Ok(frozen)
}

/// Positions of the readable samples and their features, `[samples, num_features]`.
fn extract(
    frozen: &Frozen,
    args: &FrozenArgs,
    data: &Measured,
    positions: &[usize],
) -> Result<(Vec<usize>, Vec<f32>)> {
    let inference = Inference {
        model: &*frozen.model,
        view: frozen.view,
        machine: &Machine::cpu(crate::run::threads_or_all(args.common.threads)),
    };
    let image = |i: usize| decode_sample(&data.manifest.samples[positions[i]], frozen.view.depth);
    let mut readable = Readable::new(args.on_bad_image, &args.model);
    inference.each(positions.len(), &image, |i, outputs| {
        readable.take(positions[i], outputs.map(|outputs| outputs.features))
    })?;
    readable.all(&args.data)
}
