//! A classifier as one ONNX file (opset 17), which says its classes and pre-processing itself, and
//! is run on images before it counts as written.

use std::path::Path;

use rten::Model;
use rten_tensor::prelude::*;
use rten_tensor::{NdTensor, Tensor};

use super::{Description, Preprocessing};
use crate::data::Rgb8;
use crate::engine;
use crate::error::{Error, Result};
use crate::eval::infer::Inference;
use crate::files::{refuse_to_replace, write_atomically};
use crate::graph::Pixels;

/// Largest difference of a logit between the file and the model it was made from.
const TOLERANCE: f32 = 1e-4;

/// Keys of what the file says of itself.
const MODEL: &str = "fewvit_model";
const CLASSES: &str = "class_names";
const PREPROCESSING: &str = "preprocessing";

/// The name of the input that takes bytes and normalises them itself.
const BYTES: &str = "pixels";

/// Writes `model`, whose weights are `values`, to `path`, with its normalisation inside if `embed`;
/// returns the largest difference of the file's logits from the model's on `images`.
///
/// # Errors
/// No images; a difference above 1e-4 ([`Error::Verification`], and nothing is written);
/// `path` holds something else or cannot be written.
pub fn write(
    path: &Path,
    (model, values): (&dyn engine::Model, &[f32]),
    description: &Description,
    embed: bool,
    images: &[Rgb8],
    machine: &engine::Machine,
) -> Result<f32> {
    if images.is_empty() {
        return Err(Error::Usage("an ONNX file is checked on images, and there are none".into()));
    }
    refuse_to_replace(path, |content| load(path, content.to_vec()).is_ok())?;
    let view = description.view;
    let pixels = match embed {
        true => Pixels::Bytes { mean: view.mean, std: view.std },
        false => Pixels::Normalised,
    };
    let bytes = model.spec().onnx(values, pixels, &metadata(description)?);
    let written = load(path, bytes.clone())?;
    let image = |i: usize| Ok(images[i].clone());
    let mut theirs = Vec::new();
    written.each(images.len(), &image, machine.threads, |_, logits| {
        theirs.extend(logits?);
        Ok(())
    })?;
    let inference = Inference { model, view, machine };
    let ours = inference.run(images.len(), &image)?.logits;
    let difference = largest_difference(&ours, &theirs);
    if difference.is_nan() || difference > TOLERANCE {
        return Err(Error::Verification(format!(
            "the ONNX file of {} gives other logits than the model (by {difference:.1e}, \
             {TOLERANCE:.0e} is allowed); it was not written",
            description.model
        )));
    }
    write_atomically(path, &bytes)?;
    Ok(difference)
}

/// NaN where the two are no numbers or not of one length.
fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    if a.len() != b.len() {
        return f32::NAN;
    }
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |m, d| if d.is_nan() || m.is_nan() { f32::NAN } else { m.max(d) })
}

fn metadata(description: &Description) -> Result<[(&'static str, String); 3]> {
    let failed = |e| Error::Failed(format!("cannot describe the model: {e}"));
    let preprocessing = Preprocessing::of(description.img_size, description.view);
    Ok([
        (MODEL, description.model.clone()),
        (CLASSES, serde_json::to_string(&description.classes).map_err(failed)?),
        (PREPROCESSING, serde_json::to_string(&preprocessing).map_err(failed)?),
    ])
}

/// An ONNX file, ready to run.
pub struct Loaded {
    /// What it says of itself.
    pub description: Description,
    model: Model,
    /// Whether it takes bytes.
    bytes: bool,
}

/// Reads what [`write()`] wrote.
///
/// # Errors
/// No ONNX file, or one that does not say its classes and pre-processing.
pub fn read(path: &Path) -> Result<Loaded> {
    load(path, std::fs::read(path).map_err(|source| Error::io("read", path, source))?)
}

fn load(path: &Path, bytes: Vec<u8>) -> Result<Loaded> {
    let unusable = |why: String| {
        Error::Failed(format!(
            "{} cannot be used: {why}\n  give the model.onnx of a run or another file that fewvit \
             exported",
            path.display()
        ))
    };
    let model = Model::load(bytes).map_err(|e| unusable(e.to_string()))?;
    let say = |key: &str| {
        let value = model.metadata().get(key);
        value.ok_or_else(|| unusable(format!("it was not exported by fewvit: it lacks `{key}`")))
    };
    let classes = serde_json::from_str(say(CLASSES)?).map_err(|e| unusable(e.to_string()))?;
    let preprocessing: Preprocessing =
        serde_json::from_str(say(PREPROCESSING)?).map_err(|e| unusable(e.to_string()))?;
    preprocessing.check().map_err(unusable)?;
    let description = Description {
        model: say(MODEL)?.to_owned(),
        img_size: preprocessing.input_size[1],
        classes,
        view: preprocessing.view(),
    };
    let bytes = model.find_node(BYTES).is_some();
    Ok(Loaded { description, model, bytes })
}

impl Loaded {
    /// Hands `sink` the logits of each of `count` images, as [`super::Classifier::each`].
    ///
    /// # Errors
    /// Those of `sink`; the file cannot be run.
    pub fn each(
        &self,
        count: usize,
        image: &(dyn Fn(usize) -> Result<Rgb8> + Sync),
        threads: usize,
        sink: impl FnMut(usize, Result<Vec<f32>>) -> Result<()>,
    ) -> Result<()> {
        let Description { img_size, view, ref classes, .. } = self.description;
        let work = |views: &[Rgb8]| {
            let logits = self.run(views)?;
            Ok(logits.chunks_exact(classes.len().max(1)).map(<[f32]>::to_vec).collect())
        };
        view.of_images(img_size, (count, threads), image, work, sink)
    }

    /// Logits of square images of the right side.
    fn run(&self, views: &[Rgb8]) -> Result<Vec<f32>> {
        let size = self.description.img_size;
        let failed = |e: String| Error::Failed(format!("the ONNX file cannot be run: {e}"));
        let input = match self.bytes {
            true => {
                let pixels: Vec<u8> =
                    views.iter().flat_map(|view| view.pixels.iter().copied()).collect();
                Tensor::<u8>::from_data(&[views.len(), size, size, 3], pixels).into()
            }
            false => {
                let pixels = self.description.view.normalised(views, size);
                Tensor::<f32>::from_data(&[views.len(), 3, size, size], pixels).into()
            }
        };
        let node = |name: &str| self.model.node_id(name).map_err(|e| failed(e.to_string()));
        let name = if self.bytes { BYTES } else { "images" };
        let [logits] = self
            .model
            .run_n(vec![(node(name)?, input)], [node("logits")?], None)
            .map_err(|e| failed(e.to_string()))?;
        let logits: NdTensor<f32, 2> = logits.try_into().map_err(|e| failed(format!("{e:?}")))?;
        let (named, given) = (self.description.classes.len(), logits.size(1));
        if named != given {
            return Err(failed(format!(
                "its `{CLASSES}` name {named} classes, and its network has {given}\n  export the model anew"
            )));
        }
        Ok(logits.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backbone::{NetSpec, Spec, Told, tiny};
    use crate::config::{Depth, Interpolation};
    use crate::eval::infer::EvalView;

    const FAMILIES: [&dyn Told; 5] =
        [&tiny::DEIT, &tiny::PVT, &tiny::PVT_LINEAR, &tiny::T2T, &tiny::T2T_TRANSFORMER];

    /// A model, its weights and what is said of it.
    struct Tiny {
        model: Box<dyn engine::Model>,
        values: Vec<f32>,
        description: Description,
    }

    fn model(family: &'static dyn Told, img_size: usize) -> Tiny {
        let spec = Spec { name: "tiny", timm_name: None, family };
        let net = NetSpec::classifier(spec, img_size, 3);
        let values = net.outline().expect("a net").draw(7);
        let model = engine::Machine::cpu(2).model(&net, &values).expect("a model");
        let view = EvalView {
            crop_pct: 0.875,
            interpolation: Interpolation::Bicubic,
            depth: Depth::Pil,
            mean: [0.5, 0.4, 0.3],
            std: [0.2, 0.25, 0.3],
        };
        let classes = ["a", "b", "\"c\""].map(str::to_owned).to_vec();
        let description = Description { model: "tiny".to_owned(), img_size, classes, view };
        Tiny { model, values, description }
    }

    fn images(count: usize) -> Vec<Rgb8> {
        let pixels = |seed: usize| (0..90 * 80 * 3).map(move |i| (i * (7919 + seed) % 253) as u8);
        (0..count).map(|i| Rgb8 { width: 90, height: 80, pixels: pixels(i).collect() }).collect()
    }

    #[test]
    fn every_family_is_written_and_gives_the_same_logits_in_another_program() {
        let folder = tempfile::tempdir().expect("a folder");
        for (i, family) in FAMILIES.into_iter().enumerate() {
            for (img_size, embed) in [(48, false), (64, true)] {
                let path = folder.path().join(format!("{i}-{img_size}.onnx"));
                let Tiny { model, values, description } = model(family, img_size);
                let difference = write(
                    &path,
                    (&*model, &values),
                    &description,
                    embed,
                    &images(9),
                    &engine::Machine::cpu(2),
                )
                .unwrap_or_else(|e| panic!("{family:?} at {img_size} px: {e}"));
                assert!(difference < 2e-5, "{family:?} at {img_size} px: {difference}");
                let read = read(&path).expect("what was written");
                assert_eq!(read.description, description);
            }
        }
    }

    #[test]
    fn a_file_that_gives_other_logits_is_not_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.onnx");
        let Tiny { model, values, description } = model(FAMILIES[0], 48);
        let mut lying = description.clone();
        lying.img_size = 40;
        let error =
            write(&path, (&*model, &values), &lying, false, &images(1), &engine::Machine::cpu(1));
        assert!(error.is_err() && !path.exists());
        let (a, b) = ([0.0, 1.0], [0.0, 1.1]);
        assert!(largest_difference(&a, &b) > TOLERANCE);
        assert!(largest_difference(&a, &[0.0, f32::NAN]).is_nan());
        let mut short = description.clone();
        short.classes.pop();
        let error =
            write(&path, (&*model, &values), &short, false, &images(1), &engine::Machine::cpu(1))
                .expect_err("two names for three classes");
        assert!(error.to_string().contains("name 2 classes, and its network has 3"), "{error}");
        assert!(largest_difference(&a, &a[..1]).is_nan());
        assert_eq!(largest_difference(&a, &a), 0.0);
        let error =
            write(&path, (&*model, &values), &description, false, &[], &engine::Machine::cpu(1))
                .expect_err("no images");
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn files_that_are_no_classifier_of_ours_are_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.onnx");
        let Tiny { model, values, description } = model(FAMILIES[0], 48);
        let written = metadata(&description).expect("metadata");
        let bytes = model.spec().onnx(&values, Pixels::Normalised, &written);
        let bare = model.spec().onnx(&values, Pixels::Normalised, &[]);
        for content in [&b"nothing"[..], b"", &bytes[..bytes.len() / 2], &bare] {
            std::fs::write(&path, content).expect("written");
            let error = read(&path).map(|_| ()).expect_err("unusable");
            assert!(error.to_string().contains("model.onnx cannot be used"), "{error}");
        }
        let refused = write(
            &path,
            (&*model, &values),
            &description,
            false,
            &images(1),
            &engine::Machine::cpu(1),
        );
        assert_eq!(refused.expect_err("somebody's file").exit_code(), 2);
    }
}
