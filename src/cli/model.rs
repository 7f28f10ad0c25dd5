//! `fewvit eval`, `predict`, `export` and `models`.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::args::{CommonArgs, EvalArgs, ExportArgs, PredictArgs, SplitChoice};
use crate::backbone::{ImgSizes, Spec};
use crate::config::{Layers, RunConfig};
use crate::data::Rgb8;
use crate::data::manifest::{Manifest, Origin, Sample, Split};
use crate::data::source;
use crate::error::{Error, Result};
use crate::eval::metric::{Metrics, log_softmax, top};
use crate::export::{Classifier, onnx, timm};
use crate::report::tables;
use crate::run::prepare::decode_sample;

pub(super) fn eval(args: &EvalArgs) -> Result<()> {
    crate::run::check_device(&args.common.device)?;
    let model = Classifier::open(&args.model)?;
    let classes = &model.description().classes;
    let manifest = relabelled(source::open(&args.data, &defaults()?.data, 0)?, classes)?;
    let samples = chosen(&manifest, args.split);
    if samples.is_empty() {
        return Err(Error::Data(format!(
            "{} has no images in that split; --split all takes every image",
            args.data.display()
        )));
    }
    args.predictions.as_deref().map_or(Ok(()), tables::check_predictions_path)?;
    let logits = run(&model, &samples, &args.common)?;
    let labels: Vec<usize> = samples.iter().filter_map(|sample| sample.label).collect();
    if labels.len() < samples.len() {
        return Err(Error::Data(format!("{} has no labels to compare with", args.data.display())));
    }
    if let Some(path) = &args.predictions {
        let files: Vec<String> = samples.iter().map(|sample| sample.id.clone()).collect();
        let known: Vec<_> = samples.iter().map(|sample| sample.label).collect();
        let rows = tables::predictions(&files, &known, &logits, classes);
        tables::write_predictions(path, &rows)?;
    }
    let metrics = Metrics::from_logits(&logits, &labels, classes.len());
    if args.common.json {
        return super::print_json(&metrics);
    }
    let (low, high) = metrics.top1_interval;
    super::print(&format!(
        "{:.2}% of {} images right (95% interval {:.2} to {:.2}), balanced {:.2}%, macro-F1 {:.2}%, \
         log-loss {:.4}, calibration error {:.2}%",
        100.0 * metrics.top1,
        metrics.n,
        100.0 * low,
        100.0 * high,
        100.0 * metrics.balanced,
        100.0 * metrics.macro_f1,
        metrics.nll,
        100.0 * metrics.ece
    ))
}

/// The manifest with the model's class indices, matched by name.
fn relabelled(mut manifest: Manifest, classes: &[String]) -> Result<Manifest> {
    let index = |name: &String| {
        classes.iter().position(|class| class == name).ok_or_else(|| {
            Error::Data(format!("the model does not know the class `{name}` of {}", manifest.name))
        })
    };
    let map: Vec<usize> = manifest.classes.iter().map(index).collect::<Result<_>>()?;
    for sample in &mut manifest.samples {
        sample.label = sample.label.map(|label| map[label]);
    }
    Ok(manifest)
}

pub(super) fn chosen(manifest: &Manifest, split: Option<SplitChoice>) -> Vec<&Sample> {
    let of = |split: Split| -> Vec<&Sample> {
        manifest.samples.iter().filter(|sample| sample.split == split).collect()
    };
    match split {
        Some(SplitChoice::Train) => of(Split::Train),
        Some(SplitChoice::Val) => of(Split::Val),
        Some(SplitChoice::Test) => of(Split::Test),
        Some(SplitChoice::All) => manifest.samples.iter().collect(),
        None => {
            let test = of(Split::Test);
            if test.is_empty() { of(Split::Val) } else { test }
        }
    }
}

pub(super) fn predict(args: &PredictArgs) -> Result<()> {
    crate::run::check_device(&args.common.device)?;
    let model = Classifier::open(&args.model)?;
    let classes = &model.description().classes;
    let samples = all_images_at(&args.images)?;
    let logits = run(&model, &samples.iter().collect::<Vec<_>>(), &args.common)?;
    for (sample, logits) in samples.iter().zip(logits.chunks(classes.len())) {
        let log_p = log_softmax(logits);
        let best = top(&log_p, args.top_k);
        if args.common.json {
            let named = |&class: &usize| json!({ "class": classes[class], "probability": log_p[class].exp() });
            let top: Vec<_> = best.iter().map(named).collect();
            super::print_json(&json!({ "file": sample.id, "top": top, "logits": logits }))?;
        } else {
            let named =
                |&class: &usize| format!("{} {:.1}%", classes[class], 100.0 * log_p[class].exp());
            let line: Vec<_> = best.iter().map(named).collect();
            super::print(&format!("{}: {}", sample.id, line.join(", ")))?;
        }
    }
    Ok(())
}

pub(super) fn export(args: &ExportArgs) -> Result<()> {
    let timm::Loaded { net, description } = timm::read(&args.model)?;
    let path = args.output.clone().unwrap_or_else(|| timm::inner(&args.model).join("model.onnx"));
    let samples = all_images_at(&args.images)?;
    let decode = |sample| decode_sample(sample, description.view.depth);
    let images: Vec<Rgb8> = samples.iter().map(decode).collect::<Result<_>>()?;
    let threads = crate::run::threads_or_all(args.threads);
    let embed = args.embed_preprocessing;
    let difference = onnx::write(&path, &net, &description, embed, &images, threads)?;
    if args.json {
        return super::print_json(&json!({
            "file": path,
            "images": images.len(),
            "largest_difference": difference,
        }));
    }
    super::print(&format!(
        "{}: the same logits as the model on {} images (largest difference {difference:.1e})",
        path.display(),
        images.len()
    ))
}

fn all_images_at(paths: &[PathBuf]) -> Result<Vec<Sample>> {
    let samples: Result<Vec<_>> = paths.iter().map(|path| images_at(path)).collect();
    Ok(samples?.concat())
}

/// An image file, or every image in a folder.
fn images_at(path: &Path) -> Result<Vec<Sample>> {
    let sample = |path: PathBuf| Sample {
        id: path.display().to_string(),
        origin: Origin::File(path),
        label: None,
        split: Split::Test,
    };
    if !path.is_dir() {
        return Ok(vec![sample(path.to_path_buf())]);
    }
    let listing = crate::data::listing::Listing::of_folder(path)?;
    Ok(listing.images().map(|name| sample(path.join(name))).collect())
}

fn run(model: &Classifier, samples: &[&Sample], common: &CommonArgs) -> Result<Vec<f32>> {
    let threads = crate::run::threads_or_all(common.threads);
    let depth = model.description().view.depth;
    model.logits(samples.len(), &|i| decode_sample(samples[i], depth), threads)
}

pub(super) fn defaults() -> Result<RunConfig> {
    Ok(Layers::new("paper")?.build()?.config)
}

pub(super) fn list(as_json: bool) -> Result<()> {
    for spec in Spec::all() {
        let giga = |size| spec.macs(size) as f64 / 1e9;
        let (name, params) = (spec.name, spec.num_params(224));
        let ImgSizes { smallest, multiple_of } = spec.family.img_sizes();
        if as_json {
            super::print_json(&json!({
                "name": name,
                "params": params,
                "macs_112": spec.macs(112),
                "macs_224": spec.macs(224),
                "macs_448": spec.macs(448),
                "img_size_min": smallest,
                "img_size_multiple_of": multiple_of,
            }))?;
        } else {
            let sizes = match multiple_of {
                1 => format!("from {smallest} px"),
                _ => format!("multiples of {multiple_of} px"),
            };
            super::print(&format!(
                "{name:<24} {:>5.1} M parameters, {:.2} / {:.2} / {:.2} G multiply-adds at 112 / 224 / 448 px; images {sizes}",
                params as f64 / 1e6,
                giga(112),
                giga(224),
                giga(448)
            ))?;
        }
    }
    Ok(())
}
