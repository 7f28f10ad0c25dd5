//! Where a head's first rows come from.

use serde::{Deserialize, Serialize};

/// The head that a stage begins with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadInit {
    /// What its rows follow from.
    pub from: HeadFrom,
    /// Root mean square of the logits that it begins with.
    pub spread: f64,
    /// What is added to the variance of the features along each axis, in multiples of the mean variance.
    pub ridge: f64,
}

/// What a head's first rows follow from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeadFrom {
    /// Chance.
    #[default]
    Random,
    /// The features that the first weights give the training images.
    Features,
}
