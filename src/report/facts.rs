//! What is recorded of a run and its weights. Reports only put these into words, see
//! [`words`](super::words).

use serde::{Deserialize, Serialize};

pub use crate::loss::Chance;

/// One stage of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageFacts {
    /// Key of the stage in [`EpochRow::stage`](super::tables::EpochRow::stage): `pretrain`,
    /// `finetune`.
    pub key: String,
    /// The method, as its paper calls it: `IDMM`.
    pub method: String,
    /// What it learns from: `self-supervised without labels`.
    pub kind: String,
    /// Sides of the training crops in pixels, each size once.
    pub sizes: Vec<usize>,
    /// Images that it learned from; 0 in facts of earlier versions.
    #[serde(default)]
    pub images: usize,
    /// Epochs done.
    pub epochs: usize,
    /// How it ended before its last epoch, if it did.
    #[serde(default)] // absent in facts of earlier versions, as all that follow
    pub stopped: Option<Stopped>,
    /// The epoch whose weights were kept, if the validation images chose one.
    #[serde(default)]
    pub kept: Option<Kept>,
    /// Wall-clock time in seconds.
    pub seconds: f64,
    /// Whether its head began with rows made of features.
    #[serde(default)]
    pub first_head: bool,
    /// What makes rare classes count more, in words: `as many images of each class in an epoch`.
    #[serde(default)]
    pub balance: Vec<String>,
    /// The loss of a model that knows nothing; `None` where the method has no such number.
    pub chance: Option<Chance>,
}

/// A stage that ended before its last epoch, because nothing better came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// The last epoch done, from 1.
    pub after: usize,
    /// Epochs that were planned.
    pub planned: usize,
    /// Evaluations in a row that were no better than the best before them.
    pub fruitless: usize,
}

/// The epoch whose weights a stage kept, since it was the best on the validation images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The epoch, from 1.
    pub epoch: usize,
    /// Epochs that were measured.
    pub measured: usize,
}

/// What was decided by the time that a run had, most of it before it began; runs of earlier versions do not say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    /// A smaller model instead of the recipe's.
    pub smaller: Option<Smaller>,
    /// Why there is no pre-training.
    #[serde(default)] // absent in runs of earlier versions, as the next one
    pub without_pretraining: Option<ManyLabels>,
    /// Small crops in all epochs of fine-tuning instead of the first ones.
    #[serde(default)]
    pub small_crops: Option<SmallCrops>,
    /// The larger crops of fine-tuning's last epochs, if it has time for them.
    #[serde(default)]
    pub large_crops: Option<LargeCrops>,
    /// Fine-tuning's epochs that were changed on the way.
    #[serde(default)]
    pub paced: Option<Paced>,
}

/// Epochs of fine-tuning that keep the time budget where the machine was slower or faster than when it was timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paced {
    /// Epochs that were planned.
    pub planned: usize,
    /// Epochs that it has instead.
    pub epochs: usize,
}

/// Small crops that all epochs of fine-tuning have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SmallCrops {
    /// Their side in pixels.
    pub img_size: usize,
    /// The recipe's for the last epochs.
    pub instead_of: usize,
    /// Optimiser steps that the epochs with these would have had.
    pub steps: usize,
    /// Steps from which on they are taken.
    pub least: usize,
}

/// Larger crops that the last epochs of fine-tuning have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LargeCrops {
    /// Their side in pixels.
    pub img_size: usize,
    /// The recipe's for the last epochs.
    pub instead_of: usize,
    /// Epochs that have them.
    pub epochs: usize,
    /// Epochs from which on they are taken.
    pub least: usize,
}

impl LargeCrops {
    /// The same in so many `epochs`; none if these are too few for them.
    pub fn with_epochs(self, epochs: usize) -> Option<Self> {
        (epochs >= self.least).then_some(Self { epochs, ..self })
    }
}

/// A smaller model that was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Smaller {
    /// Its name.
    pub name: String,
    /// The recipe's.
    pub instead_of: String,
    /// Optimiser steps that the recipe's had time for.
    pub steps: usize,
    /// Steps from which on the recipe's is trained.
    pub least: usize,
}

/// So many labels that pre-training on the same images is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManyLabels {
    /// Training images with a label.
    pub labelled: usize,
    /// All training images.
    pub images: usize,
    /// Labels up to which there is pre-training.
    pub most: usize,
}

/// Where the weights that a run starts from come from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Provenance {
    /// Drawn at random.
    #[default]
    Random,
    /// An earlier run of fewvit.
    Run(WeightsFile, Box<Past>),
    /// A model that fewvit exported, away from its run.
    Export(WeightsFile),
    /// Any other file: nothing is known of it but this.
    File(WeightsFile),
}

/// A file of weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightsFile {
    /// Its path, or that of the run or export around it.
    pub path: String,
    /// SHA-256 of the file of weights in hexadecimal; `None` in a run folder that did not record it.
    pub sha256: Option<String>,
    /// How many of its tensors were taken, and how many it has; `None` likewise.
    pub taken: Option<(usize, usize)>,
    /// Whether the classifier was among them; `None` likewise.
    pub head: Option<bool>,
}

/// What made the weights of an earlier run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Past {
    /// Its data set and the number of images that it learned from; `None` where the run folder does not say.
    pub data: Option<(String, usize)>,
    /// What was done up to these weights, in order.
    pub stages: Vec<StageFacts>,
    /// Where that run's own weights came from.
    pub from: Provenance,
}

/// How accuracy was measured along the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TestUse {
    /// Not at all: only after the last epoch.
    Once,
    /// On these very images, too. The weights are the last epoch's whatever came out.
    Watched,
    /// On the images of another split, of which there were so many.
    Other(String, usize),
    /// The epoch of the weights was chosen by them.
    Chosen(Choice),
}

/// How the epoch was chosen whose weights are the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// The epoch, from 1.
    pub epoch: usize,
    /// Epochs that were measured.
    pub measured: usize,
    /// The split by whose images, and how many there were.
    pub by: (String, usize),
    /// Whether they are the images of the final measurement too.
    pub same: bool,
}

impl Provenance {
    /// Whether no image but those of the run itself played a part.
    pub fn is_random(&self) -> bool {
        *self == Self::Random
    }

    /// The file of weights, unless they were drawn at random.
    pub fn file(&self) -> Option<&WeightsFile> {
        match self {
            Self::Random => None,
            Self::Run(file, _) | Self::Export(file) | Self::File(file) => Some(file),
        }
    }

    /// Whether the classifier was not given with the weights; a run folder that did not record it does not
    /// count.
    pub fn lacks_head(&self) -> bool {
        self.file().is_none_or(|file| file.head == Some(false))
    }
}

/// Images that the stages learned from, of the `all` training images: some learn from those with a label
/// only. All of them where no stage says.
pub fn learned_from(stages: &[StageFacts], all: usize) -> usize {
    stages.iter().map(|stage| stage.images).max().filter(|&n| n > 0).unwrap_or(all)
}
