//! A run that has come to its end: all its files are there, and they say what it came to.

use std::path::Path;

use super::{Folder, Summary};
use crate::error::{Error, Result};
use crate::files::{folder_of, read_json};
use crate::report::ReportData;
use crate::report::tables::Prediction;

/// What is known of a run and its result, as it wrote it down itself.
const REPORT: &str = "report.json";
const PREDICTIONS: &str = "predictions.csv";

/// What every run leaves; the last one is written last.
const FILES: [&str; 3] = [REPORT, "results.csv", "report.html"];

/// What a run with a classifier leaves besides; the last one is written after all others.
const OF_CLASSIFIER: [&str; 6] = [
    PREDICTIONS,
    "export/model.safetensors",
    "export/config.json",
    "export/classes.txt",
    "export/model.onnx",
    "export/README.md",
];

/// Whether the run in `folder` has come to its end and nobody has deleted what it left.
///
/// # Errors
/// `run.json` is missing or was changed into something else.
pub fn is_finished(folder: &Folder) -> Result<bool> {
    let has_classifier = folder.request()?.finetune;
    let mut files = FILES.iter().chain(OF_CLASSIFIER.iter().filter(|_| has_classifier));
    Ok(files.all(|name| folder.join(name).is_file()))
}

/// What the finished run in `folder` came to.
///
/// # Errors
/// Its files cannot be read.
pub fn summary(folder: &Folder) -> Result<Summary> {
    Ok(Summary::of(folder, report(folder.root())?, correct(&folder.join(PREDICTIONS))?))
}

/// The report of the finished run in the folder `run`.
///
/// # Errors
/// It cannot be read, or is that of another version.
pub fn report(run: &Path) -> Result<ReportData> {
    read_json(&run.join(REPORT), &again(run))
}

/// What to do about a file of the finished run in the folder `run` that cannot be used.
fn again(run: &Path) -> String {
    format!("delete it, and fewvit resume {} writes it again", run.display())
}

/// Whether each image of a `predictions.csv` is right; pre-training alone leaves none.
fn correct(path: &Path) -> Result<Vec<bool>> {
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let failed = |e: csv::Error| {
        let advice = again(folder_of(path));
        Error::Failed(format!("{} cannot be used: {e}\n  {advice}", path.display()))
    };
    let rows = csv::Reader::from_path(path).map_err(failed)?.into_deserialize();
    rows.map(|row| row.map(|p: Prediction| p.correct == Some(true)).map_err(failed)).collect()
}

/// Refuses to train a run again that has come to its end and has lost its checkpoints: what it measured would go.
///
/// # Errors
/// [`Error::Usage`] if it has come to its end.
pub(super) fn refuse_to_begin_anew(folder: &Folder) -> Result<()> {
    if folder.checkpoint().is_file() || !folder.join(REPORT).is_file() {
        return Ok(());
    }
    let run = folder.root().display();
    Err(Error::Usage(format!(
        "{run} has been trained to its end, but its checkpoints are gone, from which it would be measured and \
         exported again; nothing in it is changed\n  fewvit eval {run} DATA measures its export folder; -c \
         {run}/config.toml repeats the run in a new folder"
    )))
}
