//! Layers and other parts that backbones and heads are made of.

mod drop_path;
mod frozen;
mod init;
mod layers;
mod mlp;
mod params;

pub use drop_path::DropPath;
pub use frozen::Frozen;
pub use init::Init;
pub use layers::{Conv2d, LayerNorm, Linear, LinearStart};
pub use mlp::{Activation, BatchNorms, Mlp, MlpSpec};
pub use params::{Gather, Keys, ParamSpec, Replace, Weights};
