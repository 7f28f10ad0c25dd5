//! What models are read by: one file a reader, one row an operation.

pub mod onnx;
pub mod outline;
#[cfg(feature = "cuda")]
pub mod plan;
pub mod tensors;
