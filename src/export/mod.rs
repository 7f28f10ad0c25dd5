//! What comes out of a run, for use elsewhere.

pub mod onnx;
pub mod timm;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::{Depth, Interpolation};
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

fn is_pils(depth: &Depth) -> bool {
    *depth == Depth::Pil
}

fn center() -> String {
    "center".to_owned()
}

impl Preprocessing {
    fn of(img_size: usize, view: EvalView) -> Self {
        let EvalView { crop_pct, interpolation, depth, mean, std } = view;
        let input_size = [3, img_size, img_size];
        Self { input_size, crop_pct, crop_mode: center(), interpolation, mean, std, depth }
    }

    fn view(&self) -> EvalView {
        let &Self { crop_pct, interpolation, depth, mean, std, .. } = self;
        EvalView { crop_pct, interpolation, depth, mean, std }
    }
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
        match path.extension().is_some_and(|e| e == "onnx") {
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
