//! What models are read by: one file a reader, one row an operation.

pub mod onnx;
pub mod outline;
pub mod tensors;
