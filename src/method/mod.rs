//! What a stage trains for: one file a method and one line in [`TABLE`].

pub mod idmm;
pub mod supervised;

use std::sync::Arc;

use rand_chacha::ChaCha8Rng;

use crate::config::{PretrainConfig, RunConfig};
use crate::data::mixing::Mix;
use crate::data::views::ViewPlan;
use crate::error::{Error, Result};
use crate::loss::Smoothing;

/// A method whose loss is a mean over rows, each row one crop with a (mixed, smoothed) class.
pub trait Method: Send + Sync {
    /// Rows of the head.
    fn num_classes(&self) -> usize;

    /// The views of a training image.
    fn views(&self) -> &ViewPlan;

    /// The class of training sample `sample`.
    fn target(&self, sample: usize) -> usize;

    /// How targets are smoothed.
    fn smoothing(&self) -> Smoothing;

    /// How the `rows` crops of one group of one step are mixed.
    fn mix(&self, rng: &mut ChaCha8Rng, epoch: usize, rows: usize, img_size: usize) -> Mix;
}

/// A pre-training method's name, one line on it, and how it is made.
pub struct Entry {
    /// `--method NAME`.
    pub name: &'static str,
    /// For `--help` and lists.
    pub summary: &'static str,
    build: fn(&PretrainConfig, samples: usize) -> Arc<dyn Method>,
}

/// The pre-training methods.
pub const TABLE: &[Entry] = &[Entry {
    name: "idmm",
    summary: "instance discrimination with multi-crop and CutMix (ECCV 2022)",
    build: |config, samples| Arc::new(idmm::Idmm::new(config, samples)),
}];

/// The pre-training method that `config` names, for `samples` training images.
///
/// # Errors
/// An unknown name.
pub fn pretraining(config: &RunConfig, samples: usize) -> Result<Arc<dyn Method>> {
    let name = &config.pretrain.method;
    match TABLE.iter().find(|entry| entry.name == name) {
        Some(entry) => Ok((entry.build)(&config.pretrain, samples)),
        None => {
            let known: Vec<_> = TABLE.iter().map(|entry| entry.name).collect();
            Err(Error::Usage(format!(
                "there is no pre-training method `{name}`; known methods: {}",
                known.join(", ")
            )))
        }
    }
}
