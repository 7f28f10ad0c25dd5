//! What stands in for NVIDIA cards in a binary that was built without them.

use super::device::Card;
use super::{Engine, Machine, Model, TrainState};
use crate::backbone::NetSpec;
use crate::error::{Error, Result};

/// The cards of this machine: none can be asked for.
///
/// # Errors
/// Always.
pub fn cards() -> Result<Vec<Card>> {
    Err(missing())
}

/// A card with the versions of its driver and library: there are none.
pub fn with_versions(_: &Card) -> Option<String> {
    None
}

/// Never reached: there is no card to open; so are the others.
///
/// # Errors
/// Always.
pub fn check(_: usize) -> Result<()> {
    Err(missing())
}

/// See [`check`].
///
/// # Errors
/// Always.
pub fn engine(
    _: usize,
    _: &Machine,
    _: &NetSpec,
    _: usize,
    _: TrainState,
) -> Result<Box<dyn Engine>> {
    Err(missing())
}

/// See [`check`].
///
/// # Errors
/// Always.
pub fn model(_: usize, _: &NetSpec, _: &[f32]) -> Result<Box<dyn Model>> {
    Err(missing())
}

fn missing() -> Error {
    Error::Device(
        "this binary was built without the feature cuda: cargo build --release --features cuda"
            .to_owned(),
    )
}
