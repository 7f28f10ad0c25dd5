//! The training loop: our own, because a run must resume bit for bit and fit a time budget.
//!
//! `stage` is the loop over steps, each of which is the engine's; `checkpoint` makes it survive a kill.

pub mod checkpoint;
pub mod stage;
pub mod trace;
