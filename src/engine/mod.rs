//! The engine room: what a training step is computed with.

pub mod collective;
mod passes;
