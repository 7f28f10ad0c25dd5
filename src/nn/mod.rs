//! What backbones and heads are told in: layers, the vocabulary of operations, and its readers.

mod drop_path;
mod init;
mod layers;
mod mlp;
mod params;
mod reader;
pub mod readers;

pub use drop_path::DropPath;
pub use init::Start;
pub use layers::{
    Block, BlockSpec, Conv2d, ConvMlp, LayerNorm, Linear, LinearStart, ReducedAttention,
};
pub use mlp::{Activation, BatchNorms, Mlp, MlpSpec};
pub use params::ParamSpec;
pub use reader::{Branch, Dropout, Reader};
#[cfg(feature = "cuda")]
pub use readers::plan::Plan;
pub use readers::{
    onnx::Onnx, outline::Outline, tensors::Parameter, tensors::Taps, tensors::Tensors,
};
