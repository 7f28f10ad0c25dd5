//! The images of a real set through the pre-training pipeline: crops alone, and whole steps.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::peak_rss_gib;
use crate::data::loader::{BatchSource, Cutting};
use crate::error::Result;
use crate::train::stage::Stage;

/// How fast a set passes.
#[derive(Clone, Debug, Serialize)]
pub struct PipelineSpeed {
    /// Images a second, all crops of each.
    pub images_per_s: f64,
    /// Crops a second.
    pub crops_per_s: f64,
    /// An epoch of the whole set at this speed.
    pub epoch_s: f64,
    /// Share of the wall time that the step waited for crops; none for crops alone.
    pub waiting_for_data: Option<f64>,
    /// The most memory this process has held, in GiB.
    pub peak_rss_gib: f64,
}

/// Cuts and augments batches for `duration`, without a model.
///
/// # Errors
/// The image cache cannot be read.
pub fn data(stage: &Stage, duration: Duration) -> Result<PipelineSpeed> {
    let source = BatchSource { cutting: Cutting::Loader, ..stage.source.clone() };
    let (started, mut crops) = (Instant::now(), 0);
    for step in 0.. {
        crops += source.batch(step)?.groups.iter().map(|g| g.samples.len()).sum::<usize>();
        if started.elapsed() >= duration {
            break;
        }
    }
    Ok(speed(stage, crops, started.elapsed(), None))
}

/// Trains for `duration`, crops made beside the steps as in a run.
///
/// # Errors
/// The image cache cannot be read, the loss is no number.
pub fn epoch(stage: &Stage, duration: Duration) -> Result<PipelineSpeed> {
    let mut engine = stage.engine(stage.fresh(stage.source.seed)?)?;
    let mut batches = stage.source.prefetch(0, usize::MAX);
    let (mut started, mut crops, mut waited) = (Instant::now(), 0, Duration::ZERO);
    for i in 0.. {
        let waiting = Instant::now();
        let Some(batch) = batches.next() else { break };
        waited += waiting.elapsed();
        crops += stage.step(&mut *engine, &batch?)?.crops;
        if i == 0 {
            (started, crops, waited) = (Instant::now(), 0, Duration::ZERO);
        } else if started.elapsed() >= duration {
            break;
        }
    }
    let share = waited.as_secs_f64() / started.elapsed().as_secs_f64();
    Ok(speed(stage, crops, started.elapsed(), Some(share)))
}

fn speed(
    stage: &Stage,
    crops: usize,
    elapsed: Duration,
    waiting_for_data: Option<f64>,
) -> PipelineSpeed {
    let crops_per_s = crops as f64 / elapsed.as_secs_f64();
    let images_per_s = crops_per_s / stage.method.views().views() as f64;
    PipelineSpeed {
        images_per_s,
        crops_per_s,
        epoch_s: stage.source.images.len() as f64 / images_per_s,
        waiting_for_data,
        peak_rss_gib: peak_rss_gib(),
    }
}
