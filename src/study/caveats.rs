//! What a reader of a study's table must know before using its numbers, from what the runs recorded.

use super::alike::Images;
use super::file::Study;
use super::grid::Grid;
use super::results::{Entry, percent};
use crate::report::ReportData;
use crate::report::facts::{Choice, Past, Provenance, TestUse};
use crate::words::counted;

/// A finished run that the table counts.
pub struct Finished {
    /// Position of its row.
    pub row: usize,
    /// Position of its data set.
    pub column: usize,
    /// Name of the data set that its pre-training was on, if that is a run of the study.
    pub before: Option<String>,
    /// What its report says.
    pub data: ReportData,
    /// Its images.
    pub images: Images,
}

/// That a number cannot be held against the paper's.
const NO_COMPARISON: &str = " A difference from the paper's numbers says nothing of the method.";

/// All there is to say, one sentence an entry, each once.
pub fn caveats(study: &Study, grid: &Grid, rows: &[Entry], finished: &[Finished]) -> Vec<String> {
    let mut notes = study.notes.clone();
    notes.extend(of_paper(study, rows));
    notes.extend(shortened(grid.scale, rows));
    notes.extend(beside(grid, rows));
    for run in finished {
        notes.extend(other_numbers(study, run));
        notes.extend(other_pretraining(study, run));
        notes.extend(of_images(study, run));
        notes.extend(of_measurement(study, run));
    }
    notes.extend(intervals(study, rows, finished));
    let mut once: Vec<String> = Vec::new();
    notes.into_iter().for_each(|note| {
        if !once.contains(&note) {
            once.push(note);
        }
    });
    once
}

fn is_compared(rows: &[Entry]) -> bool {
    rows.iter().any(|entry| entry.paper.is_some())
}

fn of_paper(study: &Study, rows: &[Entry]) -> Option<String> {
    let some = is_compared(rows) && !study.source.is_empty();
    some.then(|| format!("The paper's numbers: {}.", study.source))
}

/// That the schedules are not the whole ones.
fn shortened(scale: f64, rows: &[Entry]) -> Option<String> {
    let compared = if is_compared(rows) { NO_COMPARISON } else { "" };
    (scale < 1.0).then(|| {
        format!(
            "Schedules are shortened: every stage has {} of its epochs, rounded up, and its warm-up the same share \
             of them (--scale {scale}).{compared}",
            percent(scale)
        )
    })
}

/// Settings that come from the command line, a file beside the study's or the environment.
fn beside(grid: &Grid, rows: &[Entry]) -> Option<String> {
    let mut settings: Vec<&str> = Vec::new();
    for setting in grid.cells.iter().flat_map(|cell| &grid.jobs[cell.job].beside) {
        if !settings.contains(&setting.as_str()) {
            settings.push(setting);
        }
    }
    let compared = if is_compared(rows) { NO_COMPARISON } else { "" };
    (!settings.is_empty())
        .then(|| format!("Not as the study says: {}.{compared}", settings.join(", ")))
}

/// Whether a run had as many images and classes as the study says that there are.
pub fn has_the_numbers(study: &Study, column: usize, data: &ReportData) -> bool {
    let set = &study.data[column];
    let meant = [set.train, set.test, set.classes];
    meant.iter().zip(numbers(data)).all(|(meant, found)| meant.is_none_or(|meant| meant == found))
}

/// Training images, test images and classes.
fn numbers(data: &ReportData) -> [usize; 3] {
    [data.data.train_images, data.data.test_images, data.data.classes.len()]
}

fn other_numbers(study: &Study, run: &Finished) -> Option<String> {
    let set = &study.data[run.column];
    let [train, test, classes] = numbers(&run.data);
    let meant = [set.train, set.test, set.classes];
    let [train_there, test_there, classes_there] =
        meant.map(|n| n.map_or("?".to_owned(), |n| n.to_string()));
    (!has_the_numbers(study, run.column, &run.data)).then(|| {
        format!(
            "{} is not the paper's set: {train} training images, {test} test images, {classes} classes here, \
             {train_there}, {test_there}, {classes_there} there.",
            set.title()
        )
    })
}

fn other_pretraining(study: &Study, run: &Finished) -> Option<String> {
    let Provenance::Run(_, past) = &run.data.provenance else { return None };
    let Past { data: Some((_, images)), .. } = &**past else { return None };
    let set = run.before.as_ref().and_then(|name| study.set(name))?;
    let meant = set.train.filter(|meant| meant != images)?;
    Some(format!("Pre-trained on {images} images of {}, the paper on {meant}.", set.title()))
}

/// What is the matter with a run's images.
fn of_images(study: &Study, run: &Finished) -> Vec<String> {
    let (set, data) = (study.data[run.column].title(), &run.data.data);
    let split = &data.test_split;
    let mut notes = Vec::new();
    if split != "test" {
        notes.push(format!(
            "{set}: the numbers are of the {split} images; there are no test images."
        ));
    }
    if data.split_made {
        notes.push(format!(
            "{set} came without a split: fewvit drew the {split} images at random from each class."
        ));
    }
    match data.leaks {
        0 => {}
        1 => notes.push(format!("{set}: 1 {split} image is a copy of a training image.")),
        n => notes.push(format!("{set}: {n} {split} images are copies of training images.")),
    }
    match data.bad_images {
        0 => {}
        n => notes.push(format!(
            "{set}: {} that could not be read {} left out.",
            counted(n, "image file"),
            if n == 1 { "was" } else { "were" }
        )),
    }
    notes
}

/// What makes a run's number better than it is.
fn of_measurement(study: &Study, run: &Finished) -> Vec<String> {
    let (set, row) = (study.data[run.column].title(), study.rows[run.row].title());
    let split = &run.data.data.test_split;
    let mut notes = Vec::new();
    if run.data.data.seen_before > 0 {
        notes.push(format!(
            "{row} on {set}: {} of the {split} split served to train the weights that it started from, so its number \
             may be too good.",
            counted(run.data.data.seen_before, "image")
        ));
    }
    if let TestUse::Chosen(Choice { same: true, .. }) = run.data.test_use {
        notes.push(format!(
            "{row} on {set}: the epoch was chosen by the very images that the number is of, so it is optimistic."
        ));
    }
    notes
}

/// What the intervals cover.
fn intervals(study: &Study, rows: &[Entry], finished: &[Finished]) -> Vec<String> {
    let mut notes = Vec::new();
    if rows.iter().any(|entry| entry.runs.len() == 1) {
        notes.push(
            "The 95% interval of a single run is Wilson's, over test images, given its weights: another seed gives \
             another number."
                .to_owned(),
        );
    }
    let several = |column: usize| {
        let name = &study.data[column].name;
        rows.iter().any(|entry| entry.runs.len() > 1 && entry.column == *name)
    };
    let columns = (0..study.data.len()).filter(|&column| several(column));
    let (fixed, drawn): (Vec<_>, Vec<_>) = columns.partition(|&column| {
        let mut of = finished.iter().filter(|run| run.column == column).map(|run| &run.images);
        let first = of.next();
        of.all(|images| first.is_none_or(|first| first.held_out == images.held_out))
    });
    if !fixed.is_empty() {
        notes.push(
            "The 95% interval of several runs is Student's t for their mean over seeds, given the images that they are measured on."
                .to_owned(),
        );
    }
    if !drawn.is_empty() {
        let titles: Vec<_> = drawn.iter().map(|&column| study.data[column].title()).collect();
        notes.push(format!(
            "On {} each seed also drew which images are held out: there the 95% interval of several runs, Student's \
             t for their mean, is over both.",
            titles.join(", ")
        ));
    }
    notes
}

#[cfg(test)]
mod tests;
