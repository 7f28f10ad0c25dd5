//! `fewvit eval`, `predict`, `export` and `models`.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::json;

use super::args::{EvalArgs, ExportArgs, PredictArgs, SplitChoice};
use super::data_args::BadImage;
use super::readable::{Readable, refuse_not_finite, unreadable_image};
use crate::backbone::{ImgSizes, Spec};
use crate::data::Rgb8;
use crate::data::digest::digests;
use crate::data::file_name;
use crate::data::manifest::{Manifest, Origin, Sample, Split, Treatment};
use crate::engine::Machine;
use crate::error::{Error, Result};
use crate::eval::metric::{Metrics, log_softmax, top};
use crate::export::{Classifier, is_onnx, onnx, timm};
use crate::report::tables;
use crate::report::words::interval;
use crate::run::Folder;
use crate::run::measured::{Standing, Wanted};
use crate::run::prepare::decode_sample;
use crate::run::seen::Seen;
use crate::words::{counted, shortened};

pub(super) fn eval(args: &EvalArgs) -> Result<()> {
    let threads = crate::run::threads_or_all(args.common.threads);
    let machine = Machine::named(&args.common.device, threads)?;
    let model = Classifier::open(&args.model, &machine)?;
    let classes = &model.description().classes;
    let mut data = super::measured(&args.model, &args.data, args.on_bad_image, threads)?;
    relabel(&mut data.manifest, classes)?;
    let mut positions = data.positions(args.split.map_or(Wanted::HeldOut, SplitChoice::wanted))?;
    let samples = &data.manifest.samples;
    positions.retain(|&i| samples[i].label.is_some());
    if positions.is_empty() {
        return Err(Error::Data(format!("{} has no labels to compare with", args.data.display())));
    }
    args.predictions.as_deref().map_or(Ok(()), tables::check_predictions_path)?;
    let mut readable = Readable::new(args.on_bad_image, &args.model);
    let depth = model.description().view.depth;
    let image = |i: usize| decode_sample(&samples[positions[i]], depth);
    model
        .each(positions.len(), &image, threads, |i, logits| readable.take(positions[i], logits))?;
    let (positions, logits) = readable.all(&args.data)?;
    let files: Vec<String> = positions.iter().map(|&i| samples[i].id.clone()).collect();
    let labels: Vec<usize> = positions.iter().filter_map(|&i| samples[i].label).collect();
    if let Some(path) = &args.predictions {
        let known: Vec<_> = labels.iter().copied().map(Some).collect();
        let rows = tables::predictions(&files, &known, &logits, classes);
        tables::write_predictions(path, &rows)?;
    }
    let metrics = Metrics::from_logits(&logits, &labels, classes.len());
    let standing = data.standing(&positions);
    if args.common.json {
        return super::print_json(&Evaluation { metrics, images: standing });
    }
    eprintln!("note: {}", standing.describe());
    super::note_single_class(classes.len());
    super::print(&format!(
        "{:.2}% of {} right ({}), balanced {:.2}%, macro-F1 {:.2}%, \
         log-loss {:.4}, calibration error {:.2}%",
        100.0 * metrics.top1,
        counted(metrics.n, "image"),
        interval(metrics.top1_interval),
        100.0 * metrics.balanced,
        100.0 * metrics.macro_f1,
        metrics.nll,
        100.0 * metrics.ece
    ))
}

/// What `eval --json` prints.
#[derive(Serialize)]
struct Evaluation {
    #[serde(flatten)]
    metrics: Metrics,
    images: Standing,
}

/// Gives the manifest the model's class indices, matched by name.
fn relabel(manifest: &mut Manifest, classes: &[String]) -> Result<()> {
    let index = |name: &String| {
        classes.iter().position(|class| class == name).ok_or_else(|| {
            Error::Data(format!(
                "the model does not know the class `{name}` of {}; it knows {}\n  rename the folder, or leave \
                 those images out",
                manifest.name,
                shortened(classes)
            ))
        })
    };
    let map: Vec<usize> = manifest.classes.iter().map(index).collect::<Result<_>>()?;
    for sample in &mut manifest.samples {
        sample.label = sample.label.map(|label| map[label]);
    }
    Ok(())
}

pub(super) fn predict(args: &PredictArgs) -> Result<()> {
    let threads = crate::run::threads_or_all(args.common.threads);
    let machine = Machine::named(&args.common.device, threads)?;
    let model = Classifier::open(&args.model, &machine)?;
    let classes = &model.description().classes;
    let mut unreadable = 0;
    let mut samples = Vec::new();
    for path in &args.images {
        match images_at(path) {
            Ok(found) => samples.extend(found),
            Err(error) if args.on_bad_image == BadImage::Error => {
                return Err(unreadable_image(error));
            }
            Err(error) => {
                unreadable += 1;
                eprintln!("fewvit: {error}");
            }
        }
    }
    let depth = model.description().view.depth;
    let image = |i: usize| decode_sample(&samples[i], depth);
    model.each(samples.len(), &image, threads, |i, logits| match logits {
        Ok(logits) => say(args, &samples[i].id, &logits, classes),
        Err(error) if args.on_bad_image == BadImage::Error => Err(unreadable_image(error)),
        Err(error) => {
            unreadable += 1;
            eprintln!("fewvit: {error}");
            Ok(())
        }
    })?;
    trained_on(&args.model, &samples, threads)?;
    match unreadable {
        0 => Ok(()),
        1 => Err(Error::Data("1 image or folder has no answer, see above".to_owned())),
        n => Err(Error::Data(format!("{n} images or folders have no answer, see above"))),
    }
}

/// Prints what the logits say of one image.
fn say(args: &PredictArgs, file: &str, logits: &[f32], classes: &[String]) -> Result<()> {
    refuse_not_finite(&args.model, logits)?;
    let log_p = log_softmax(logits);
    let best = top(&log_p, args.top_k.get());
    if args.common.json {
        let named =
            |&class: &usize| json!({ "class": classes[class], "probability": log_p[class].exp() });
        let top: Vec<_> = best.iter().map(named).collect();
        return super::print_json(&json!({ "file": file, "top": top, "logits": logits }));
    }
    let named = |&class: &usize| format!("{} {:.1}%", classes[class], 100.0 * log_p[class].exp());
    let line: Vec<_> = best.iter().map(named).collect();
    super::print(&format!("{file}: {}", line.join(", ")))
}

/// Notes how many of the images the model was trained on.
fn trained_on(model: &Path, samples: &[Sample], threads: usize) -> Result<()> {
    let Some(run) = Folder::around(model) else { return Ok(()) };
    let samples: Vec<&Sample> = samples.iter().collect();
    let seen = Seen::read(&run)?.recognise(&samples, &digests(&samples, threads));
    let trained: Vec<usize> = (0..samples.len()).filter(|&i| seen.trained[i]).collect();
    let unlabelled = match trained.iter().filter(|&&i| seen.unlabelled[i]).count() {
        0 => String::new(),
        n => format!(", on {n} of them without a label"),
    };
    if !trained.is_empty() {
        eprintln!(
            "note: the model was trained on {} of {}{unlabelled}; how it does on those says nothing about new ones",
            trained.len(),
            counted(samples.len(), "image")
        );
    }
    Ok(())
}

pub(super) fn export(args: &ExportArgs) -> Result<()> {
    args.output.as_deref().map_or(Ok(()), check_onnx_path)?;
    let threads = crate::run::threads_or_all(args.threads);
    let machine = Machine::cpu(threads);
    let timm::Loaded { model, values, description } = timm::read(&args.model, &machine)?;
    let path = args.output.clone().unwrap_or_else(|| timm::inner(&args.model).join("model.onnx"));
    let samples = all_images_at(&args.images)?;
    let decode = |sample| decode_sample(sample, description.view.depth);
    let images: Vec<Rgb8> = samples.iter().map(decode).collect::<Result<_>>()?;
    let embed = args.embed_preprocessing;
    let difference =
        onnx::write(&path, (&*model, &values), &description, embed, &images, &machine)?;
    if args.json {
        return super::print_json(&json!({
            "file": path,
            "images": images.len(),
            "largest_difference": difference,
        }));
    }
    super::print(&format!(
        "{}: the same logits as the model on {} (largest difference {difference:.1e})",
        path.display(),
        counted(images.len(), "image")
    ))
}

/// Refuses a path that eval and predict would not take for an ONNX file, before the work.
fn check_onnx_path(path: &Path) -> Result<()> {
    let shown = path.display();
    match (path.is_dir(), is_onnx(path)) {
        (true, _) => Err(Error::Usage(format!(
            "--output {shown} is a folder\n  name a file in it: {}",
            path.join("model.onnx").display()
        ))),
        (false, false) => Err(Error::Usage(format!(
            "--output {shown} does not end in .onnx, by which eval and predict know an ONNX file\n  \
             name it {}",
            path.with_extension("onnx").display()
        ))),
        (false, true) => Ok(()),
    }
}

fn all_images_at(paths: &[PathBuf]) -> Result<Vec<Sample>> {
    let samples: Result<Vec<_>> = paths.iter().map(|path| images_at(path)).collect();
    Ok(samples?.concat())
}

/// An image file, or every image in a folder.
fn images_at(path: &Path) -> Result<Vec<Sample>> {
    let sample = |path: PathBuf| Sample {
        id: file_name::id_of(&path),
        origin: Origin::File(path),
        label: None,
        split: Split::Test,
        treatment: Treatment::default(),
    };
    if !path.is_dir() {
        return Ok(vec![sample(path.to_path_buf())]);
    }
    let listing = crate::data::listing::Listing::of_folder(path)?;
    let samples: Vec<_> =
        listing.images().map(|id| sample(path.join(file_name::path_of(id)))).collect();
    match samples.is_empty() {
        true => Err(Error::Data(format!("{} holds no images", path.display()))),
        false => Ok(samples),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::SplitOrigin;

    #[test]
    fn an_onnx_file_is_called_one_and_is_no_folder() {
        let place = tempfile::tempdir().expect("a temporary folder");
        let said = |path: &Path| {
            let error = check_onnx_path(path).expect_err("refused");
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        };
        check_onnx_path(&place.path().join("new.onnx")).expect("a file's name");
        assert!(said(place.path()).contains("is a folder\n  name a file in it: "));
        let other = place.path().join("x.txt");
        assert!(said(&other).contains("does not end in .onnx") && said(&other).ends_with("x.onnx"));
    }

    #[test]
    fn a_class_that_the_model_does_not_know_is_told_with_those_it_does() {
        let mut manifest = Manifest {
            name: "other".to_owned(),
            classes: vec!["rose".to_owned()],
            samples: Vec::new(),
            split_origin: SplitOrigin::Given,
        };
        let classes = ["aster", "lily"].map(str::to_owned);
        let error = relabel(&mut manifest, &classes).expect_err("no rose");
        assert_eq!(error.exit_code(), 3);
        let text = error.to_string();
        assert!(text.contains("the class `rose` of other; it knows aster, lily\n"), "{text}");
    }
}
