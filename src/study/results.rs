//! What the cells of a study came to, from what their runs recorded.

use serde::Serialize;
use serde_json::json;
use statrs::distribution::{ContinuousCDF, StudentsT};

use super::file::Study;
use super::grid::{Cell, Grid};
use super::place::{Place, State};
use crate::error::Result;
use crate::report::ReportData;
use crate::report::facts::{Past, Provenance};
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
    /// (Student's t).
    pub fn interval(&self) -> Option<(f64, f64)> {
        let (mean, n) = (self.mean()?, self.runs.len());
        let Some(std) = self.std() else { return Some(self.runs[0].interval) };
        let t = StudentsT::new(0.0, 1.0, (n - 1) as f64).ok()?.inverse_cdf(0.975);
        let half = t * std / (n as f64).sqrt();
        Some((mean - half, mean + half))
    }

    /// Ours minus the paper's, in points.
    pub fn difference(&self) -> Option<f64> {
        Some(self.mean()? - self.paper?)
    }

    /// Whether the interval holds the paper's number.
    pub fn holds_paper(&self) -> Option<bool> {
        let ((low, high), paper) = (self.interval()?, self.paper?);
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
    /// What the cells of `grid` in `place` came to.
    ///
    /// # Errors
    /// What a run recorded cannot be read.
    pub fn read(study: &Study, grid: &Grid, place: &Place) -> Result<Self> {
        let mut rows: Vec<Entry> = Vec::new();
        let mut facts = Vec::new();
        for cell in &grid.cells {
            let (row, column) = (&study.rows[cell.row], &study.data[cell.column]);
            let same = |entry: &Entry| entry.row == row.name && entry.column == column.name;
            if !rows.last().is_some_and(same) {
                rows.push(Entry {
                    row: row.name.clone(),
                    row_title: row.title().to_owned(),
                    column: column.name.clone(),
                    column_title: column.title().to_owned(),
                    runs: Vec::new(),
                    missing: Vec::new(),
                    paper: row.paper.get(&column.name).copied(),
                    paper_std: row.paper_std.get(&column.name).copied(),
                });
            }
            let Some(entry) = rows.last_mut() else { continue };
            match measured(grid, place, cell)? {
                Ok((run, data)) => {
                    entry.runs.push(run);
                    let before = grid.parent(cell.job).map(|job| grid.jobs[job].data.as_str());
                    facts.push((cell.column, before, data));
                }
                Err(why) if entry.missing.contains(&why) => {}
                Err(why) => entry.missing.push(why),
            }
        }
        let mut notes = study.notes.clone();
        notes.extend(of_paper(study, &rows));
        notes.extend(shortened(grid.scale, &rows));
        notes.extend(other_data(study, &facts));
        notes.extend(intervals(&rows));
        let hours = hours(grid, place)?;
        Ok(Self { title: title(study), notes, rows, hours, scale: grid.scale })
    }
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
        let first = reason.lines().next().unwrap_or_default().to_owned();
        return Ok(Some(format!("failed (exit code {code}): {first}")));
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

/// Hours of all finished jobs that the cells need.
fn hours(grid: &Grid, place: &Place) -> Result<f64> {
    let mut total = 0.0;
    for job in grid.needed(&grid.cells) {
        if unfinished(grid, place, job)?.is_none() {
            let data = report(&place.run(&grid.jobs[job]))?;
            total += data.stages.iter().map(|stage| stage.seconds).sum::<f64>() / 3600.0;
        }
    }
    Ok(total)
}

fn of_paper(study: &Study, rows: &[Entry]) -> Option<String> {
    let some = rows.iter().any(|entry| entry.paper.is_some());
    (some && !study.source.is_empty()).then(|| format!("The paper's numbers: {}.", study.source))
}

/// That the schedules are not the whole ones.
fn shortened(scale: f64, rows: &[Entry]) -> Option<String> {
    let compared = match rows.iter().any(|entry| entry.paper.is_some()) {
        true => " A difference from the paper's numbers says nothing of the method.",
        false => "",
    };
    (scale < 1.0).then(|| {
        format!(
            "Schedules are shortened: {}% of the epochs and of the warm-up of every stage (--scale \
             {scale}).{compared}",
            100.0 * scale
        )
    })
}

/// Where the images are not as many as the paper's, one sentence a set.
fn other_data(study: &Study, facts: &[(usize, Option<&str>, ReportData)]) -> Vec<String> {
    let mut notes = Vec::new();
    let mut add = |note: String| {
        if !notes.contains(&note) {
            notes.push(note);
        }
    };
    for (column, before, data) in facts {
        let (set, data, provenance) = (&study.data[*column], &data.data, &data.provenance);
        let found = [data.train_images, data.test_images, data.classes.len()];
        let meant = [set.train, set.test, set.classes];
        if meant.iter().zip(found).any(|(meant, found)| meant.is_some_and(|meant| meant != found)) {
            let number = |n: Option<usize>| n.map_or("?".to_owned(), |n| n.to_string());
            add(format!(
                "{} is not the paper's set: {} training images, {} test images, {} classes here, {}, \
                 {}, {} there.",
                set.title(),
                found[0],
                found[1],
                found[2],
                number(meant[0]),
                number(meant[1]),
                number(meant[2])
            ));
        }
        if data.leaks > 0 {
            add(format!(
                "{}: {} test images are copies of training images.",
                set.title(),
                data.leaks
            ));
        }
        if let Provenance::Run(_, past) = provenance
            && let Past { data: Some((_, images)), .. } = &**past
            && let Some(set) = before.and_then(|name| study.set(name))
            && let Some(meant) = set.train
            && meant != *images
        {
            let title = set.title();
            add(format!("Pre-trained on {images} images of {title}, the paper on {meant}."));
        }
    }
    notes
}

/// What the intervals cover.
fn intervals(rows: &[Entry]) -> Vec<String> {
    let mut notes = Vec::new();
    if rows.iter().any(|entry| entry.runs.len() == 1) {
        notes.push(
            "The 95% interval of a single run is Wilson's, over test images, given its weights: \
             another seed gives another number."
                .to_owned(),
        );
    }
    if rows.iter().any(|entry| entry.runs.len() > 1) {
        notes.push(
            "The 95% interval of several runs is Student's t for their mean over seeds, given these \
             test images."
                .to_owned(),
        );
    }
    notes
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::report::facts::WeightsFile;

    pub(in super::super) fn entry(top1: &[f64], paper: Option<f64>) -> Entry {
        let run = |(seed, &top1): (usize, &f64)| Measured {
            seed: seed as u64,
            top1,
            interval: (top1 - 1.0, top1 + 1.0),
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
    fn a_shortened_schedule_is_said() {
        assert_eq!(shortened(1.0, &[entry(&[1.0], Some(2.0))]), None);
        let text = shortened(0.05, &[entry(&[1.0], Some(2.0))]).expect("a note");
        assert!(text.contains("5% of the epochs") && text.contains("says nothing"), "{text}");
        let text = shortened(0.5, &[entry(&[1.0], None)]).expect("a note");
        assert!(!text.contains("paper"), "{text}");
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

    #[test]
    fn other_numbers_of_images_than_the_papers_are_said() {
        let text = "name = 'x'\n[[data]]\nname = 'flowers'\ntrain = 2040\ntest = 60\nclasses = 5\n";
        let study = Study::parse(text, std::path::Path::new("x.toml")).expect("a study");
        let mut data = crate::report::tests::sample(5, 12);
        assert!(other_data(&study, &[(0, None, data.clone())]).is_empty());
        data.data.train_images = 1020;
        let notes = other_data(&study, &[(0, None, data.clone()), (0, None, data.clone())]);
        assert_eq!(notes.len(), 1);
        assert!(
            notes[0].contains("1020 training images, 60 test images, 5 classes here"),
            "{notes:?}"
        );
        let past = Past {
            data: Some(("jpg".to_owned(), 7)),
            stages: Vec::new(),
            from: Provenance::Random,
        };
        let file = WeightsFile { path: String::new(), sha256: None, taken: None, head: None };
        data.provenance = Provenance::Run(file, Box::new(past));
        let notes = other_data(&study, &[(0, Some("flowers"), data)]);
        assert!(
            notes[1].contains("Pre-trained on 7 images of flowers, the paper on 2040"),
            "{notes:?}"
        );
    }
}
