//! The place of a parameter among all of a model's.
//!
//! The parameters of a model are one flat vector in the order in which the model declares them. The
//! optimiser, checkpoints, import and export all work on that vector.

/// One parameter's place in the flat vector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamSpec {
    /// timm's key, for example `blocks.0.attn.qkv.weight`.
    pub key: String,
    /// timm's shape.
    pub shape: Vec<usize>,
    /// Its values' range in the flat vector.
    pub range: std::ops::Range<usize>,
    /// Whether the optimiser leaves it alone.
    pub frozen: bool,
}
