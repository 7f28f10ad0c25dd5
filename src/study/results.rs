//! What the cells of a study came to, from what their runs recorded.

use serde::Serialize;
use serde_json::json;
use statrs::distribution::{ContinuousCDF, StudentsT};

use super::alike::{Images, Kinds};
use super::caveats::{Finished, caveats, has_the_numbers};
use super::file::Study;
use super::grid::{Cell, Grid};
use super::place::{Place, State};
use crate::error::Result;
use crate::report::ReportData;
use crate::report::facts::Provenance;
use crate::run::finished::report;

/// The table of a study.
#[derive(Clone, Debug)]
pub struct Results {
    /// What it is about.
    pub title: String,
    /// What to know before reading it, one sentence an entry.
    pub notes: Vec<String>,
    /// Rows in order; each has an entry a column.
    pub rows: Vec<Entry>,
    /// Hours of training in all, each run counted once.
    pub hours: f64,
    /// Share of the epochs of every stage.
    pub scale: f64,
}

/// A row on a data set.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The row's name.
    pub row: String,
    /// What tables call it.
    pub row_title: String,
    /// The data set's name.
    pub column: String,
    /// What tables call it.
    pub column_title: String,
    /// The runs that are done, by seed.
    pub runs: Vec<Measured>,
    /// Why others are not, in words.
    pub missing: Vec<String>,
    /// The paper's top-1 in percent.
    pub paper: Option<f64>,
    /// The paper's standard deviation in points.
    pub paper_std: Option<f64>,
    /// Whether the runs are what the study says: whole schedules, no settings from beside it, as many images.
    pub as_meant: bool,
}

/// A finished run.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Its seed.
    pub seed: u64,
    /// Top-1 in percent.
    pub top1: f64,
    /// 95% interval over test images, in percent.
    pub interval: (f64, f64),
    /// Images that it is measured on.
    pub images: usize,
    /// Hours of training behind it, those of the runs that it started from included.
    pub hours: f64,
    /// Trainable numbers.
    pub parameters: usize,
    /// Its folder.
    pub run: String,
}

/// The paper prints one decimal: what it calls 79.9 lies between 79.85 and 79.95.
const ROUNDED: f64 = 0.05;

impl Entry {
    /// Mean top-1 of the runs in percent.
    pub fn mean(&self) -> Option<f64> {
        let n = self.runs.len();
        (n > 0).then(|| self.runs.iter().map(|run| run.top1).sum::<f64>() / n as f64)
    }

    /// Standard deviation over seeds in points; `None` for fewer than two.
    pub fn std(&self) -> Option<f64> {
        let (n, mean) = (self.runs.len(), self.mean()?);
        let squares: f64 = self.runs.iter().map(|run| (run.top1 - mean).powi(2)).sum();
        (n > 1).then(|| (squares / (n - 1) as f64).sqrt())
    }

    /// 95% interval in percent: of one run over test images, of several of their mean over seeds
    /// (Student's t), as far as there are percents. Runs that tie by chance on few images have no interval of a
    /// point: an accuracy is known to an image, and steps of that size have a standard deviation of their own.
    pub fn interval(&self) -> Option<(f64, f64)> {
        let (mean, n) = (self.mean()?, self.runs.len());
        let Some(std) = self.std() else { return Some(self.runs[0].interval) };
        let images = self.runs.iter().map(|run| run.images).min()?;
        let step = 100.0 / images.max(1) as f64;
        let t = StudentsT::new(0.0, 1.0, (n - 1) as f64).ok()?.inverse_cdf(0.975);
        let half = t * std.max(step / 12_f64.sqrt()) / (n as f64).sqrt();
        Some(((mean - half).max(0.0), (mean + half).min(100.0)))
    }

    /// Ours minus the paper's, in points.
    pub fn difference(&self) -> Option<f64> {
        Some(self.mean()? - self.paper?)
    }

    /// Whether the interval holds the paper's number; `None` for runs that are not [`as_meant`](Self::as_meant).
    pub fn holds_paper(&self) -> Option<bool> {
        let ((low, high), paper) = (self.interval()?, self.paper.filter(|_| self.as_meant)?);
        Some(low <= paper + ROUNDED && paper - ROUNDED <= high)
    }

    /// Mean hours of training behind a run.
    pub fn hours(&self) -> Option<f64> {
        let n = self.runs.len();
        (n > 0).then(|| self.runs.iter().map(|run| run.hours).sum::<f64>() / n as f64)
    }

    /// All of it, for programs; `scale` is the share of the epochs.
    pub fn json(&self, scale: f64) -> serde_json::Value {
        json!({
            "row": self.row, "data": self.column, "state": self.state(), "top1": self.mean(),
            "interval": self.interval(), "std": self.std(), "paper": self.paper,
            "paper_std": self.paper_std, "difference": self.difference(),
            "holds_paper": self.holds_paper(), "hours": self.hours(), "runs": self.runs,
            "scale": scale,
        })
    }

    /// `done`, or what is missing and why.
    pub fn state(&self) -> String {
        match (self.runs.is_empty(), self.missing.is_empty()) {
            (_, true) => "done".to_owned(),
            (false, false) => format!("{} done; {}", self.runs.len(), self.missing.join("; ")),
            (true, false) => self.missing.join("; "),
        }
    }
}

impl Results {
    /// What the cells of `grid` in `place` came to: those that were picked, and others that were begun before.
    ///
    /// # Errors
    /// What a run recorded cannot be read.
    pub fn read(study: &Study, grid: &Grid, place: &Place) -> Result<Self> {
        let mut rows: Vec<Entry> = Vec::new();
        let (mut finished, mut kinds) = (Vec::new(), Kinds::default());
        let cells = shown(grid, place);
        for cell in &cells {
            let (row, column) = (&study.rows[cell.row], &study.data[cell.column]);
            let same = |entry: &Entry| entry.row == row.name && entry.column == column.name;
            if !rows.last().is_some_and(same) {
                rows.push(Entry::empty(study, cell));
            }
            let Some(entry) = rows.last_mut() else { continue };
            entry.as_meant &= grid.scale >= 1.0 && grid.jobs[cell.job].beside.is_empty();
            let (run, data) = match measured(grid, place, cell)? {
                Ok(there) => there,
                Err(why) if entry.missing.contains(&why) => continue,
                Err(why) => {
                    entry.missing.push(why);
                    continue;
                }
            };
            // Seeds of a stage that a row has not, or does not vary, are one run.
            if entry.runs.iter().any(|other| other.run == run.run) {
                continue;
            }
            let images = Images::of(&place.run(&grid.jobs[cell.job]))?;
            if let Some(why) = kinds.other((study, grid, cell), &data, &images) {
                entry.missing.push(why);
                continue;
            }
            entry.runs.push(run);
            entry.as_meant &= has_the_numbers(study, cell.column, &data);
            let before = grid.parent(cell.job).map(|job| grid.jobs[job].data.clone());
            let (row, column) = (cell.row, cell.column);
            finished.push(Finished { row, column, before, data, images });
        }
        let notes = caveats(study, grid, &rows, &finished);
        let hours = hours(grid, place, &cells)?;
        Ok(Self { title: title(study), notes, rows, hours, scale: grid.scale })
    }
}

impl Entry {
    /// The row of a cell on its data set, without runs.
    fn empty(study: &Study, cell: &Cell) -> Self {
        let (row, column) = (&study.rows[cell.row], &study.data[cell.column]);
        Self {
            row: row.name.clone(),
            row_title: row.title().to_owned(),
            column: column.name.clone(),
            column_title: column.title().to_owned(),
            runs: Vec::new(),
            missing: Vec::new(),
            paper: row.paper.get(&column.name).copied(),
            paper_std: row.paper_std.get(&column.name).copied(),
            as_meant: true,
        }
    }
}

/// The cells that a table shows, in the order of rows, columns and seeds: those that were picked, and others of
/// which there is something. Others that were begun with other settings are left to the command that had those.
fn shown(grid: &Grid, place: &Place) -> Vec<Cell> {
    let begun = |cell: &&Cell| place.record(&grid.jobs[cell.job]).is_ok_and(|r| r.is_some());
    let mut cells: Vec<Cell> =
        grid.cells.iter().chain(grid.others.iter().filter(begun)).copied().collect();
    cells.sort_by_key(|cell| (cell.row, cell.column, cell.seed));
    cells
}

fn title(study: &Study) -> String {
    if study.title.is_empty() { study.name.clone() } else { study.title.clone() }
}

/// The run of a cell with its report, or why there is none.
fn measured(
    grid: &Grid,
    place: &Place,
    cell: &Cell,
) -> Result<std::result::Result<(Measured, ReportData), String>> {
    if let Some(why) = unfinished(grid, place, cell.job)? {
        return Ok(Err(why));
    }
    let run = place.run(&grid.jobs[cell.job]);
    let data = report(&run)?;
    let Some(metrics) = &data.metrics else {
        return Ok(Err("it has no held-out images with labels".to_owned()));
    };
    let (low, high) = metrics.top1_interval;
    let measured = Measured {
        seed: cell.seed,
        top1: 100.0 * metrics.top1,
        interval: (100.0 * low, 100.0 * high),
        images: metrics.n,
        hours: seconds(&data) / 3600.0,
        parameters: data.model.parameters,
        run: run.display().to_string(),
    };
    Ok(Ok((measured, data)))
}

/// Why a job is not done; `None` if it is.
fn unfinished(grid: &Grid, place: &Place, job: usize) -> Result<Option<String>> {
    let spec = &grid.jobs[job];
    let state = place.record(spec)?.map(|record| record.state);
    if state == Some(State::Done) {
        return Ok(None);
    }
    if let Some(why) = grid.missing(job) {
        return Ok(Some(format!("not run: {why}")));
    }
    if let Some(State::Failed { reason, code, .. }) = state {
        return Ok(Some(format!("failed (exit code {code}): {}", first_lines(&reason))));
    }
    if let Some(parent) = grid.parent(job)
        && let Some(why) = unfinished(grid, place, parent)?
    {
        return Ok(Some(format!("waits for {} ({why})", grid.jobs[parent].name)));
    }
    Ok(Some(match (state, place.holder(spec)) {
        (Some(_), Some(holder)) => format!("begun by {holder}, not ended"),
        (Some(_), None) => "begun, not ended".to_owned(),
        (None, _) => "not begun".to_owned(),
    }))
}

/// Seconds of training behind a run, those of the runs that it started from included.
fn seconds(data: &ReportData) -> f64 {
    data.stages.iter().map(|stage| stage.seconds).sum::<f64>() + before(&data.provenance)
}

fn before(provenance: &Provenance) -> f64 {
    match provenance {
        Provenance::Run(_, past) => {
            past.stages.iter().map(|stage| stage.seconds).sum::<f64>() + before(&past.from)
        }
        Provenance::Random | Provenance::Export(_) | Provenance::File(_) => 0.0,
    }
}

/// Hours of all finished jobs behind the cells of the table.
fn hours(grid: &Grid, place: &Place, cells: &[Cell]) -> Result<f64> {
    let mut total = 0.0;
    for job in grid.needed(cells, &|_| Ok(false))? {
        if unfinished(grid, place, job)?.is_none() {
            let data = report(&place.run(&grid.jobs[job]))?;
            total += data.stages.iter().map(|stage| stage.seconds).sum::<f64>() / 3600.0;
        }
    }
    Ok(total)
}

/// A share in percent: `7%` of 0.07.
pub fn percent(share: f64) -> String {
    let digits = format!("{:.6}", 100.0 * share);
    format!("{}%", digits.trim_end_matches('0').trim_end_matches('.'))
}

/// The first line of an error, and the next one where the first announces it.
pub(super) fn first_lines(text: &str) -> String {
    let mut lines = text.lines().map(str::trim);
    let first = lines.next().unwrap_or_default();
    match (first.ends_with(':'), lines.next()) {
        (true, Some(next)) => format!("{first} {next}"),
        _ => first.to_owned(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn entry(top1: &[f64], paper: Option<f64>) -> Entry {
        let run = |(seed, &top1): (usize, &f64)| Measured {
            seed: seed as u64,
            top1,
            interval: (top1 - 1.0, top1 + 1.0),
            images: 6149,
            hours: 2.0,
            parameters: 5_500_000,
            run: format!("runs/x/cells/idmm.flowers.seed-{seed}"),
        };
        Entry {
            row: "idmm".to_owned(),
            row_title: "IDMM".to_owned(),
            column: "flowers".to_owned(),
            column_title: "Flowers".to_owned(),
            runs: top1.iter().enumerate().map(run).collect(),
            missing: Vec::new(),
            paper,
            paper_std: None,
            as_meant: true,
        }
    }

    #[test]
    fn one_run_has_the_interval_of_its_test_images() {
        let entry = entry(&[79.0], Some(79.9));
        assert_eq!((entry.std(), entry.interval()), (None, Some((78.0, 80.0))));
        assert!((entry.difference().expect("one") + 0.9).abs() < 1e-12);
        assert_eq!(entry.holds_paper(), Some(true));
    }

    /// `scipy.stats.t.interval(.95, 2, 79.0, scipy.stats.sem([78, 79, 80]))`.
    #[test]
    fn several_runs_have_students_interval_of_their_mean() {
        let entry = entry(&[78.0, 79.0, 80.0], Some(81.53));
        let (low, high) = entry.interval().expect("three runs");
        assert!((low - 76.515_862_288_249_66).abs() < 1e-9, "{low}");
        assert!((high - 81.484_137_711_750_34).abs() < 1e-9, "{high}");
        assert_eq!(entry.std(), Some(1.0));
        assert_eq!(entry.holds_paper(), Some(true), "81.53 is printed for what may be 81.48");
        assert_eq!(super::tests::entry(&[78.0, 79.0, 80.0], Some(81.6)).holds_paper(), Some(false));
    }

    #[test]
    fn an_interval_is_of_percents_and_never_a_point() {
        let far = entry(&[20.0, 60.0], Some(50.0));
        assert_eq!(far.interval(), Some((0.0, 100.0)));
        let mut tied = entry(&[25.0, 25.0], Some(30.0));
        tied.runs.iter_mut().for_each(|run| run.images = 12);
        // A step of 1/12 has a standard deviation of 100 / 12 / sqrt(12), times t(1) / sqrt(2): 8.985.
        let (low, high) = tied.interval().expect("two runs");
        assert!((high - 46.612).abs() < 1e-2 && (low - 3.388).abs() < 1e-2, "{low} {high}");
    }

    #[test]
    fn runs_that_are_not_as_the_study_says_hold_nothing_against_the_paper() {
        let mut entry = entry(&[79.0], Some(79.9));
        entry.as_meant = false;
        assert_eq!(entry.holds_paper(), None);
        assert!(entry.difference().is_some());
    }

    #[test]
    fn shares_and_reasons_are_short() {
        let shares = [0.07, 0.001, 0.125, 1.0].map(percent);
        assert_eq!(shares, ["7%", "0.1%", "12.5%", "100%"]);
        assert_eq!(
            first_lines("1 image cannot be read:\n  a.jpg\n  leave it out"),
            "1 image cannot be read: a.jpg"
        );
        assert_eq!(first_lines("no data\n  give some"), "no data");
    }

    #[test]
    fn states_are_said_in_words() {
        let mut entry = entry(&[79.0], None);
        assert_eq!(entry.state(), "done");
        entry.missing.push("begun by process 7 on host, not ended".to_owned());
        assert_eq!(entry.state(), "1 done; begun by process 7 on host, not ended");
        entry.runs.clear();
        assert_eq!(entry.state(), "begun by process 7 on host, not ended");
        assert_eq!((entry.mean(), entry.interval(), entry.holds_paper()), (None, None, None));
    }
}
