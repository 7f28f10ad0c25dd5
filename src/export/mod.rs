//! What comes out of a run, for use elsewhere.

pub mod onnx;
pub mod timm;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::{Depth, Interpolation, LARGEST_SIDE};
use crate::data::Rgb8;
use crate::engine::Machine;
use crate::error::Result;
use crate::eval::infer::{EvalView, Inference};

/// What an export says of its model.
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    /// Its name here.
    pub model: String,
    /// Side of its images.
    pub img_size: usize,
    /// Class names in the order of the logits.
    pub classes: Vec<String>,
    /// How an image becomes its input.
    pub view: EvalView,
}

/// How an image becomes an input, in timm's words.
#[derive(Serialize, Deserialize)]
struct Preprocessing {
    input_size: [usize; 3],
    crop_pct: f64,
    #[serde(default = "center")]
    crop_mode: String,
    interpolation: Interpolation,
    mean: [f32; 3],
    std: [f32; 3],
    /// Not one of timm's words.
    #[serde(default, skip_serializing_if = "is_pils")]
    depth: Depth,
}

/// The only crop that is made here, in timm's word.
const CENTER: &str = "center";

fn is_pils(depth: &Depth) -> bool {
    *depth == Depth::Pil
}

fn center() -> String {
    CENTER.to_owned()
}

impl Preprocessing {
    fn of(img_size: usize, view: EvalView) -> Self {
        let EvalView { crop_pct, interpolation, depth, mean, std } = view;
        let input_size = [3, img_size, img_size];
        Self { input_size, crop_pct, crop_mode: center(), interpolation, mean, std, depth }
    }

    /// Refuses what no input can be made by.
    ///
    /// # Errors
    /// The key, its value and what it must be, in words.
    fn check(&self) -> std::result::Result<(), String> {
        let &Self { input_size, crop_pct, ref crop_mode, mean, std, .. } = self;
        let [channels, height, width] = input_size;
        let square = channels == 3 && height == width && (1..=LARGEST_SIDE).contains(&height);
        let sides = format!("[3, SIDE, SIDE] with a SIDE of 1 to {LARGEST_SIDE} pixels");
        let values = [
            (square, "input_size", format!("{input_size:?}"), &*sides),
            (
                crop_pct > 0.0 && crop_pct <= 1.0,
                "crop_pct",
                format!("{crop_pct:?}"),
                "more than 0 and at most 1",
            ),
            (crop_mode == CENTER, "crop_mode", format!("{crop_mode:?}"), "\"center\" or left out"),
            (
                mean.iter().all(|m| m.is_finite()),
                "mean",
                format!("{mean:?}"),
                "three finite numbers",
            ),
            (
                std.iter().all(|s| s.is_finite() && *s > 0.0),
                "std",
                format!("{std:?}"),
                "three finite numbers above 0",
            ),
        ];
        match values.into_iter().find(|(ok, ..)| !ok) {
            Some((_, key, value, must)) => Err(format!("`{key}` is {value}, must be {must}")),
            None => Ok(()),
        }
    }

    fn view(&self) -> EvalView {
        let &Self { crop_pct, interpolation, depth, mean, std, .. } = self;
        EvalView { crop_pct, interpolation, depth, mean, std }
    }
}

/// What commands say of an ONNX file that need the weights themselves.
pub const ONNX_IS_FOR: &str =
    "an ONNX file is only for eval and predict: give the run folder or the export folder";

/// Whether `path` is called an ONNX file.
pub fn is_onnx(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "onnx")
}

/// An exported classifier, ready to use.
// One exists at a time.
#[expect(clippy::large_enum_variant)]
pub enum Classifier {
    /// A folder that timm loads too.
    Timm(timm::Loaded),
    /// An ONNX file.
    Onnx(onnx::Loaded),
}

impl Classifier {
    /// A run folder, an export folder or an ONNX file.
    ///
    /// # Errors
    /// Nothing of that kind, or weights that do not fit.
    pub fn open(path: &Path, machine: &Machine) -> Result<Self> {
        match is_onnx(path) {
            true => onnx::read(path).map(Self::Onnx),
            false => timm::read(path, machine).map(Self::Timm),
        }
    }

    /// What it says of itself.
    pub fn description(&self) -> &Description {
        match self {
            Self::Timm(model) => &model.description,
            Self::Onnx(model) => &model.description,
        }
    }

    /// Hands `sink` the logits of each of `count` images, in order and as soon as they are there;
    /// `image(i)` decodes one, and what it cannot decode reaches `sink` as its error.
    ///
    /// # Errors
    /// Those of `sink`; the model cannot be run.
    pub fn each(
        &self,
        count: usize,
        image: &(dyn Fn(usize) -> Result<Rgb8> + Sync),
        threads: usize,
        mut sink: impl FnMut(usize, Result<Vec<f32>>) -> Result<()>,
    ) -> Result<()> {
        match self {
            Self::Timm(timm::Loaded { model, description, .. }) => {
                let machine = &Machine::cpu(threads);
                let inference = Inference { model: &**model, view: description.view, machine };
                inference.each(count, image, |i, outputs| sink(i, outputs.map(|o| o.logits)))
            }
            Self::Onnx(model) => model.each(count, image, threads, sink),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_input_can_be_made_by_is_refused_by_its_key() {
        let made = || Preprocessing {
            input_size: [3, 96, 96],
            crop_pct: 1.0,
            crop_mode: center(),
            interpolation: Interpolation::Bicubic,
            mean: [0.0; 3],
            std: [0.2; 3],
            depth: Depth::Pil,
        };
        assert_eq!(made().check(), Ok(()));
        let side = LARGEST_SIDE + 1;
        let crop = |crop_pct| Preprocessing { crop_pct, ..made() };
        let size = |input_size| Preprocessing { input_size, ..made() };
        let deviation = |last| Preprocessing { std: [0.2, 0.2, last], ..made() };
        for (key, wrong) in [
            ("crop_pct", vec![crop(0.0), crop(-0.5), crop(1.5), crop(f64::NAN)]),
            ("input_size", [[3, 96, 64], [1, 96, 96], [3, 0, 0], [3, side, side]].map(size).into()),
            ("crop_mode", vec![Preprocessing { crop_mode: "squash".to_owned(), ..made() }]),
            ("mean", vec![Preprocessing { mean: [0.5, f32::INFINITY, 0.5], ..made() }]),
            ("std", [0.0, -1.0, f32::NAN, f32::INFINITY].map(deviation).into()),
        ] {
            for wrong in wrong {
                let said = wrong.check().expect_err(key);
                assert!(
                    said.starts_with(&format!("`{key}` is ")) && said.contains(", must be "),
                    "{said}"
                );
            }
        }
    }

    #[test]
    fn depth_is_told_only_where_it_is_not_pils() {
        let view = EvalView {
            crop_pct: 0.875,
            interpolation: Interpolation::Bicubic,
            depth: Depth::Auto,
            mean: [0.5; 3],
            std: [0.2; 3],
        };
        let told = serde_json::to_string(&Preprocessing::of(96, view)).expect("JSON");
        assert!(told.contains(r#""depth":"auto""#), "{told}");
        let read: Preprocessing = serde_json::from_str(&told).expect("JSON");
        assert_eq!(read.view(), view);
        let pils = EvalView { depth: Depth::Pil, ..view };
        let told = serde_json::to_string(&Preprocessing::of(96, pils)).expect("JSON");
        assert!(!told.contains("depth"), "timm would refuse the word: {told}");
        let read: Preprocessing = serde_json::from_str(&told).expect("JSON");
        assert_eq!(read.view(), pils);
    }
}
