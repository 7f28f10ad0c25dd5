//! What a study will take, from timing real steps of each kind of run.

use serde::Serialize;

use super::grid::{Grid, Job};
use super::place::{Place, State};
use super::results::first_lines;
use crate::config::to_toml;
use crate::error::{Error, Result};
use crate::run::forecast::Forecast;
use crate::run::prepare::{self, Prepared};
use crate::run::{self, Request, Ui};

/// What a run of a study will take.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Its folder below the study's.
    pub run: String,
    /// `done`, `begun`, `new`, how it failed before, or why it is not run.
    pub state: String,
    /// Seconds from its beginning; none for one that is done or not run.
    pub seconds: Option<f64>,
    /// Bytes of disk, likewise.
    pub disk: Option<u64>,
    /// Bytes of memory at its peak, likewise.
    pub memory: Option<u64>,
}

/// Forecasts every run that the cells need. Runs that differ in the seed alone are timed once, and a
/// data set is read once for all.
///
/// # Errors
/// Data or a setting that cannot be used.
pub fn forecast(grid: &Grid, place: Option<&Place>, ui: &dyn Ui) -> Result<Vec<Line>> {
    let is_done = |job: usize| place.map_or(Ok(false), |place| place.is_done(&grid.jobs[job]));
    let needed = grid.needed(&grid.cells, &is_done)?;
    let mut lines: Vec<Line> = Vec::new();
    let mut timed: Vec<(String, Forecast)> = Vec::new();
    let mut images: Option<(String, Prepared)> = None;
    // Set by set, so that the images of one are in memory at a time.
    let mut by_data = needed.clone();
    by_data.sort_by(|&a, &b| grid.jobs[a].data.cmp(&grid.jobs[b].data).then(a.cmp(&b)));
    for i in by_data {
        let job = &grid.jobs[i];
        let record = place.map(|place| place.record(job)).transpose()?.flatten();
        let state = record.map(|record| record.state);
        let words = match (&state, grid.missing(i)) {
            (Some(State::Done), _) => "done".to_owned(),
            (_, Some(why)) => format!("not run: {why}"),
            (Some(State::Failed { .. }), None) => "failed before, to be tried again".to_owned(),
            (Some(State::Begun), None) => "begun".to_owned(),
            (None, None) => "new".to_owned(),
        };
        let is_to_do = state != Some(State::Done) && grid.missing(i).is_none();
        let mut line =
            Line { run: job.name.clone(), state: words, seconds: None, disk: None, memory: None };
        match is_to_do.then(|| of(grid, job, &mut images, &mut timed, ui)) {
            None => {}
            Some(Ok(forecast)) => {
                line.seconds = Some(forecast.seconds());
                line.disk = Some(forecast.disk);
                line.memory = Some(forecast.memory());
            }
            // The study goes on after data that cannot be used.
            Some(Err(error @ Error::Data(_))) => {
                line.state = format!("will fail: {}", first_lines(&error.to_string()));
            }
            Some(Err(error)) => return Err(error),
        }
        lines.push(line);
    }
    let position = |run: &str| needed.iter().position(|&i| grid.jobs[i].name == run);
    lines.sort_by_key(|line| position(&line.run));
    Ok(lines)
}

fn of(
    grid: &Grid,
    job: &Job,
    images: &mut Option<(String, Prepared)>,
    timed: &mut Vec<(String, Forecast)>,
    ui: &dyn Ui,
) -> Result<Forecast> {
    let mut config = job.config.clone();
    config.seed = 0;
    let kind = format!("{}\n{:?}\n{}", job.data, job.stages, to_toml(&config)?);
    if let Some((_, forecast)) = timed.iter().find(|(other, _)| *other == kind) {
        return Ok(forecast.clone());
    }
    let request = Request {
        data: grid.data.get(&job.data).cloned().unwrap_or_default(),
        pretrain: job.stages.pretrain,
        finetune: job.stages.finetune,
        // What it starts from may not be there yet, and does not change how long it takes.
        init: None,
        command: Vec::new(),
        sources: Default::default(),
    };
    let read = format!("{}\n{:?}", job.data, job.config.data);
    if images.as_ref().is_some_and(|(other, _)| *other != read) {
        *images = None;
    }
    let (_, data) = match images {
        Some(there) => there,
        None => images.insert((read, prepare::prepare(&request, &job.config, ui)?)),
    };
    let forecast = run::forecast_on(&request, &config, data)?;
    timed.push((kind, forecast.clone()));
    Ok(forecast)
}
