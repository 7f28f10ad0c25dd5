//! The training loop: our own, because a run must resume bit for bit and fit a time budget.
//!
//! `parallel` turns a batch into gradients, `optim` and `schedule` gradients into new weights by
//! `passes` over them, `checkpoint` makes that survive a kill, and `stage` is the loop over steps.

pub mod checkpoint;
pub mod coupled;
pub mod optim;
pub mod parallel;
pub mod passes;
pub mod stage;
pub mod trace;
