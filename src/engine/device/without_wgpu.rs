//! What stands in for wgpu in a binary that was built without it.

use burn::tensor::Device;

use super::Adapter;
use crate::error::{Error, Result};

/// The adapters of this machine: none can be asked for.
///
/// # Errors
/// Always.
pub fn adapters() -> Result<Vec<Adapter>> {
    Err(missing())
}

/// Never reached: there is no adapter to open.
pub fn open(_: &Adapter) -> Result<Device> {
    Err(missing())
}

fn missing() -> Error {
    Error::Device(
        "this binary was built without the feature wgpu: cargo build --release --features wgpu"
            .to_owned(),
    )
}
