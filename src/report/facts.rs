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
    /// Epochs done.
    pub epochs: usize,
    /// Wall-clock time in seconds.
    pub seconds: f64,
    /// Whether its head began with rows made of features.
    #[serde(default)] // absent in facts of earlier versions
    pub first_head: bool,
    /// The loss of a model that knows nothing; `None` where the method has no such number.
    pub chance: Option<Chance>,
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
}

/// What made the weights of an earlier run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Past {
    /// Its data set and the number of its training images; `None` where the run folder does not say.
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
}
