//! A grid of runs: every row on every data set with every seed, in one folder that any number of
//! processes share.
//!
//! [`Study`] is what a TOML file tells, [`Grid`] the cells and the runs that they need, [`Place`] the
//! folder, [`Worker`] does the runs, and [`Results`] reads what they came to.

mod alike;
mod caveats;
pub mod figures;
mod file;
mod forecast;
mod grid;
pub mod paper;
mod place;
mod results;
mod tables;
pub mod theory;
mod work;

pub use file::{DataSet, From, Row, Study, Vary};
pub use forecast::{Line, forecast};
pub use grid::{Base, Cell, Choices, Grid, Job, Start};
pub use place::{Claim, Place, Record, State};
pub use results::{Entry, Measured, Results, percent};
pub use tables::markdown;
pub use work::Worker;

use crate::error::Result;

/// Reads the results and writes their tables into the study's folder.
///
/// # Errors
/// What a run recorded cannot be read, or the folder cannot be written.
pub fn write_tables(study: &Study, grid: &Grid, place: &Place) -> Result<Results> {
    let _alone = place.alone()?;
    let results = Results::read(study, grid, place)?;
    tables::write(place.root(), &results)?;
    Ok(results)
}

/// The failed jobs that the grid's cells need, each with its reason.
///
/// # Errors
/// A record cannot be read.
pub fn failed(grid: &Grid, place: &Place) -> Result<Vec<(String, String)>> {
    let mut failed = Vec::new();
    for job in grid.needed(&grid.cells, &|job| place.is_done(&grid.jobs[job]))? {
        let job = &grid.jobs[job];
        if let Some(State::Failed { reason, .. }) = place.record(job)?.map(|record| record.state) {
            failed.push((job.name.clone(), reason));
        }
    }
    Ok(failed)
}
