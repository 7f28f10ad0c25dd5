//! What a stage trains for: one file a method and one line in [`TABLE`].

pub mod dino;
pub mod idmm;
pub mod moco_v2;
pub mod moco_v3;
pub mod simclr;
pub mod sup_con;
pub mod supervised;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use serde::de::DeserializeOwned;

use crate::backbone::{HeadSpec, Net};
use crate::config::{Encoder, PretrainConfig, RunConfig};
use crate::data::mixing::Mix;
use crate::data::views::ViewPlan;
use crate::error::{Error, Result};
use crate::loss::{Chance, Smoothing};

/// A training objective with the views it needs. Its hyper-parameters come from the recipe; what it
/// remembers from step to step, such as a queue, lies in [`State`] and so in every checkpoint.
pub trait Method: Send + Sync {
    /// The views of a training image.
    fn views(&self) -> &ViewPlan;

    /// What is trained on top of the backbone.
    fn heads(&self) -> HeadSpec;

    /// How the loss is computed.
    fn objective(&self) -> Objective<'_>;

    /// The loss of a model that has learned nothing; `None` where there is no such number.
    fn chance(&self) -> Option<Chance>;

    /// How the `rows` crops of one group of one step are mixed.
    fn mix(&self, _rng: &mut ChaCha8Rng, _epoch: usize, rows: usize, _img_size: usize) -> Mix {
        Mix::none(rows)
    }

    /// Which encoder is the model that comes out.
    fn encoder(&self) -> Encoder {
        Encoder::Student
    }

    /// First epochs in which the parameter `key` keeps its value; [`usize::MAX`] = always.
    fn frozen_epochs(&self, _key: &str) -> usize {
        0
    }
}

/// How a method's loss is computed.
#[derive(Clone, Copy)]
pub enum Objective<'a> {
    /// Row by row: crops pass through the model in any grouping.
    Rows(&'a dyn RowLoss),
    /// From the features of the whole batch together.
    Batch(&'a dyn BatchLoss),
}

/// A mean over rows, each row one crop with a (mixed, smoothed) class.
pub trait RowLoss: Sync {
    /// The class of training sample `sample`.
    fn target(&self, sample: usize) -> usize;

    /// How targets are smoothed.
    fn smoothing(&self) -> Smoothing;

    /// What the loss of the samples of a class is multiplied by.
    fn weight(&self, _class: usize) -> f32 {
        1.0
    }
}

/// A loss that couples the rows of a batch.
pub trait BatchLoss: Sync {
    /// What the method remembers, before the first step.
    fn state(&self, _seed: u64) -> State {
        State::new()
    }

    /// The momentum encoder, for methods that have one.
    fn teacher(&self) -> Option<&dyn Teacher> {
        None
    }

    /// The first views of every sample that pass through the trained model; the others are only the
    /// teacher's.
    fn student_views(&self) -> usize {
        usize::MAX
    }

    /// The loss, `[1]`; `state` is brought up to date for the next step.
    fn loss(&self, batch: BatchFeatures, state: &mut State) -> Tensor<1>;
}

/// A copy of the model whose weights follow the trained ones: `t = m t + (1 - m) s`.
pub trait Teacher: Sync {
    /// The views of every sample that pass through the teacher.
    fn views(&self) -> Range<usize>;

    /// `m` at a step of `total_steps`.
    fn momentum(&self, step: usize, total_steps: usize) -> f64;

    /// Whether it follows before the step's forward pass instead of after its update.
    fn follows_before(&self) -> bool;
}

/// What a [`BatchLoss`] is computed from. Rows are view-major: `view * samples.len() + i`.
pub struct BatchFeatures<'a> {
    /// The model, with gradients; only its heads are called.
    pub net: &'a Net,
    /// Backbone features of the student's views, `[views * batch, num_features]`, with gradients.
    pub features: Tensor<2>,
    /// The teacher and its features of its views, `[teacher_views * batch, num_features]`.
    pub teacher: Option<(&'a Net, Tensor<2>)>,
    /// Training sample of each row of one view.
    pub samples: &'a [usize],
    /// The stage's epoch, from 0.
    pub epoch: usize,
    /// The stage's optimiser step, from 0.
    pub step: usize,
}

impl BatchFeatures<'_> {
    /// The teacher, which the engine provides for methods that declare one.
    ///
    /// # Panics
    /// For other methods.
    pub fn teacher(&self) -> (&Net, Tensor<2>) {
        let (net, features) = self.teacher.as_ref().expect("declared by `BatchLoss::teacher`");
        (net, features.clone())
    }

    /// The rows of view `view`, counted from the first that `rows` has.
    pub fn view(&self, rows: &Tensor<2>, view: usize) -> Tensor<2> {
        let batch = self.samples.len();
        rows.clone().narrow(0, view * batch, batch)
    }
}

/// Named tensors that a method remembers, under the keys they have in a checkpoint.
pub type State = BTreeMap<String, StateTensor>;

/// A tensor of a method's state.
#[derive(Clone, Debug, PartialEq)]
pub struct StateTensor {
    /// Sizes of its dimensions.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub values: Vec<f32>,
}

impl StateTensor {
    fn tensor<const D: usize>(&self, device: &Device) -> Tensor<D> {
        Tensor::from_data(TensorData::new(self.values.clone(), self.shape.clone()), device)
    }
}

/// Classes of the training images.
#[derive(Clone, Debug)]
pub struct Labels {
    /// Class of each, below `classes`.
    pub of_samples: Vec<usize>,
    /// Number of classes.
    pub classes: usize,
}

/// What a method is made from.
pub struct Setting<'a> {
    /// The stage's settings.
    pub config: &'a PretrainConfig,
    /// Training images.
    pub samples: usize,
    /// Their classes, where they have any.
    pub labels: Option<Labels>,
    /// Width of the backbone's feature.
    pub num_features: usize,
}

impl Setting<'_> {
    /// The method's own settings, `[pretrain.options]` of its recipe.
    ///
    /// # Errors
    /// One is missing, unknown or of the wrong type.
    pub fn options<T: DeserializeOwned>(&self) -> Result<T> {
        let name = &self.config.method;
        self.config.options.clone().try_into().map_err(|e: toml::de::Error| {
            let why = e.message().trim().to_owned();
            Error::Usage(format!(
                "pretrain.options do not fit the method `{name}`: {why}\n  \
                 see them all with: fewvit recipe show {name}"
            ))
        })
    }

    /// The classes of the training images.
    ///
    /// # Errors
    /// The data has none.
    pub fn labels(&self) -> Result<Labels> {
        self.labels.clone().ok_or_else(|| {
            let name = &self.config.method;
            Error::Data(format!(
                "{name} learns from labels, and this data has none\n  label the images, or choose a \
                 self-supervised method with --method"
            ))
        })
    }
}

/// Checks options that must be more than 0, by name.
///
/// # Errors
/// The first one that is not.
pub fn positive(options: &[(&str, f64)]) -> Result<()> {
    check(options, "more than 0", |value| value > 0.0 && value.is_finite())
}

/// Checks options that must be from 0 to 1, by name.
///
/// # Errors
/// The first one that is not.
pub fn shares(options: &[(&str, f64)]) -> Result<()> {
    check(options, "0 to 1", |value| (0.0..=1.0).contains(&value))
}

fn check(options: &[(&str, f64)], must: &str, good: impl Fn(f64) -> bool) -> Result<()> {
    match options.iter().find(|(_, value)| !good(*value)) {
        Some((name, value)) => {
            Err(Error::Usage(format!("pretrain.options: {name} is {value:?}, must be {must}")))
        }
        None => Ok(()),
    }
}

/// What a method learns from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Images alone.
    SelfSupervised,
    /// Which images share a label.
    Contrastive,
    /// Labels.
    Supervised,
}

impl Kind {
    /// In words, to stand after a method's name.
    pub fn words(self) -> &'static str {
        match self {
            Self::SelfSupervised => "self-supervised without labels",
            Self::Contrastive => "supervised contrastive with labels",
            Self::Supervised => "with labels",
        }
    }
}

/// A pre-training method's name, one line on it, and how it is made.
pub struct Entry {
    /// `--method NAME`.
    pub name: &'static str,
    /// Its name in its paper, for reports.
    pub title: &'static str,
    /// What it learns from.
    pub kind: Kind,
    /// For `--help` and lists.
    pub summary: &'static str,
    /// Keys of `[pretrain]` that not every method reads and this one does; a section stands for all
    /// keys in it.
    pub reads: &'static [&'static str],
    /// Makes it, or says what it lacks.
    pub build: fn(&Setting) -> Result<Arc<dyn Method>>,
}

/// The pre-training methods.
pub const TABLE: &[Entry] = &[
    idmm::ENTRY,
    supervised::ENTRY,
    simclr::ENTRY,
    sup_con::ENTRY,
    moco_v2::ENTRY,
    moco_v3::ENTRY,
    dino::ENTRY,
];

/// The row of the pre-training method `name`.
///
/// # Errors
/// An unknown name.
pub fn entry(name: &str) -> Result<&'static Entry> {
    TABLE.iter().find(|entry| entry.name == name).ok_or_else(|| {
        let known: Vec<_> = TABLE.iter().map(|entry| entry.name).collect();
        Error::Usage(format!(
            "there is no pre-training method `{name}`; known methods: {}",
            known.join(", ")
        ))
    })
}

/// The pre-training method that `config` names.
///
/// # Errors
/// An unknown name, settings that do not fit it, labels that it needs and does not get.
pub fn pretraining(
    config: &RunConfig,
    samples: usize,
    labels: Option<Labels>,
) -> Result<Arc<dyn Method>> {
    let entry = entry(&config.pretrain.method)?;
    let num_features = crate::backbone::Spec::find(&config.model.name)?.num_features();
    let setting = Setting { config: &config.pretrain, samples, labels, num_features };
    (entry.build)(&setting)
}

/// Checks the method that `config` names and its options before there is any data.
///
/// # Errors
/// An unknown name, or settings that do not fit it.
pub fn check_settings(config: &RunConfig) -> Result<()> {
    let labels = Labels { of_samples: vec![0, 1], classes: 2 };
    pretraining(config, labels.of_samples.len(), Some(labels)).map(|_| ())
}

/// Why the pre-training method `name` does not read `key`, a dotted key of the run; none if it does,
/// or if all methods do.
pub fn unread(name: &str, key: &str) -> Option<String> {
    let key = key.strip_prefix("pretrain.")?;
    let reads = |entry: &&Entry| {
        let within = |rest: &str| rest.is_empty() || rest.starts_with('.');
        entry.reads.iter().any(|own| key.strip_prefix(own).is_some_and(within))
    };
    let readers: Vec<_> = TABLE.iter().filter(reads).map(|entry| entry.name).collect();
    let all_do = readers.is_empty() || readers.contains(&name);
    (!all_do)
        .then(|| format!("{name} does not read pretrain.{key}; these do: {}", readers.join(", ")))
}
