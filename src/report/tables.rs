//! Tables for machines and spreadsheets: `metrics.jsonl`, `results.csv`, `predictions.csv`.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::eval::metric;
use crate::files;

/// Stage of the last row, which holds the final measurement.
pub const FINAL: &str = "test";

/// One epoch of one stage: a line of `metrics.jsonl`, a row of `results.csv`, whose header is the
/// list of these fields. What was not measured is `null` or empty. Shares are in 0..1.
///
/// After the last epoch one more row, of the stage `test`, holds the accuracy of the finished model
/// on the held-out images, the one that the report names; its epoch and step are those of the
/// epoch whose weights the model has: the last, or with `keep = "best"` the one kept. Its seconds are
/// those of the last epoch. Accuracies of earlier rows show the way there. All are of the weights that
/// the stage hands on: their average where the recipe keeps one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EpochRow {
    /// `pretrain`, `finetune`, `test`.
    pub stage: String,
    /// Epochs done in this stage, from 1.
    pub epoch: usize,
    /// Optimiser steps done, counted over all stages.
    pub step: u64,
    /// Seconds of training since the run began, over all stages and sittings: waiting for images,
    /// measuring and checkpoints included; pauses, and work that a resumed run did again, left out.
    pub seconds: f64,
    /// Training images a second since the row before.
    pub images_per_second: Option<f64>,
    /// Mean training loss of the epoch.
    pub loss: Option<f64>,
    /// Learning rate of the last step.
    pub lr: Option<f64>,
    /// Mean norm of the epoch's gradients, before clipping.
    pub grad_norm: Option<f64>,
    /// Leave-one-out k-NN accuracy on the training images whose class has others.
    pub knn_top1: Option<f64>,
    /// Accuracy on the held-out images.
    pub top1: Option<f64>,
    /// Top-5 accuracy on the held-out images.
    pub top5: Option<f64>,
    /// Lower end of the 95% interval of the final `top1`.
    pub top1_low: Option<f64>,
    /// Its upper end.
    pub top1_high: Option<f64>,
    /// Mean squared distance of two training views of an image on the unit sphere, 0 to 4.
    pub alignment: Option<f64>,
    /// What is wrong with the features or the loss, in words.
    pub warning: Option<String>,
}

impl EpochRow {
    /// What was measured, by name, but for the learning rate, which TensorBoard has by step.
    pub fn scalars(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let all = [
            ("seconds", Some(self.seconds)),
            ("images_per_second", self.images_per_second),
            ("epoch_loss", self.loss),
            ("grad_norm", self.grad_norm),
            ("knn_top1", self.knn_top1),
            ("top1", self.top1),
            ("top5", self.top5),
            ("top1_low", self.top1_low),
            ("top1_high", self.top1_high),
            ("alignment", self.alignment),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value?)))
    }
}

/// The last warning of each stage, with how many epochs had one.
pub fn warnings(history: &[EpochRow]) -> Vec<String> {
    let of_stage = |stage: &str| {
        let warned = history.iter().filter(|row| row.stage == stage && row.warning.is_some());
        let warned: Vec<&EpochRow> = warned.collect();
        let last = warned.last()?;
        let often = match warned.len() {
            1 => String::new(),
            n => format!(" (the last of {n} such warnings)"),
        };
        let text = last.warning.as_deref().unwrap_or_default();
        Some(format!("{stage}, epoch {}: {text}{often}", last.epoch))
    };
    ["pretrain", "finetune"].into_iter().filter_map(of_stage).collect()
}

/// `metrics.jsonl` and `results.csv` beside it, open for appending: rewriting a table would take longer than an
/// epoch of few images, of which there are tens of thousands.
#[derive(Debug)]
pub struct MetricsLog {
    lines: Growing,
    results: Growing,
    rows: Vec<EpochRow>,
}

/// A file that is written at its end.
#[derive(Debug)]
struct Growing {
    file: File,
    path: PathBuf,
}

impl Growing {
    fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().append(true).open(path);
        let file = file.map_err(|e| Error::io("write", path, e))?;
        Ok(Self { file, path: path.to_path_buf() })
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io("write", &self.path, e))
    }
}

impl MetricsLog {
    /// Opens or creates the log and drops what a run that resumes after `keep_through_step` will
    /// write again: rows of later steps with the final measurement after them, and a line that was cut
    /// short.
    pub fn open(path: &Path, keep_through_step: u64) -> Result<Self> {
        let mut rows = match path.exists() {
            true => read_history(path)?,
            false => Vec::new(),
        };
        let later = |row: &EpochRow| row.step > keep_through_step;
        let goes_on = rows.iter().any(later);
        rows.retain(|row| !(later(row) || goes_on && row.stage == FINAL));
        let results = path.with_file_name("results.csv");
        write_lines(path, &rows)?;
        write_results(&results, &rows)?;
        Ok(Self { lines: Growing::open(path)?, results: Growing::open(&results)?, rows })
    }

    /// The rows so far.
    pub fn rows(&self) -> &[EpochRow] {
        &self.rows
    }

    /// Adds a row.
    pub fn append(&mut self, row: EpochRow) -> Result<()> {
        self.lines.append(line(&row)?.as_bytes())?;
        // The first row comes with the header.
        let first = self.rows.is_empty();
        self.results.append(&csv_of(&self.results.path, &[&row], first)?)?;
        self.rows.push(row);
        Ok(())
    }
}

/// Puts the final measurement behind the rows of a `metrics.jsonl` and of the `results.csv` beside
/// it, in place of an earlier one; returns all rows.
pub fn write_final(path: &Path, row: EpochRow) -> Result<Vec<EpochRow>> {
    let mut rows = read_history(path)?;
    rows.retain(|row| row.stage != FINAL);
    rows.push(row);
    write_lines(path, &rows)?;
    write_results(&path.with_file_name("results.csv"), &rows)?;
    Ok(rows)
}

fn write_lines(path: &Path, rows: &[EpochRow]) -> Result<()> {
    let lines = rows.iter().map(line).collect::<Result<String>>()?;
    crate::files::write_atomically(path, lines.as_bytes())
}

fn line(row: &EpochRow) -> Result<String> {
    let json = serde_json::to_string(row)
        .map_err(|e| Error::Failed(format!("cannot write a metric: {e}")))?;
    Ok(json + "\n")
}

/// The rows of a `metrics.jsonl`. A last line without its end, as a crash leaves, is ignored.
pub fn read_history(path: &Path) -> Result<Vec<EpochRow>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    let parse = |(number, line)| {
        serde_json::from_str(line).map_err(|e| {
            Error::Failed(format!(
                "{}, line {}: {e}\n  repair or delete this line",
                path.display(),
                number + 1
            ))
        })
    };
    whole.lines().enumerate().map(parse).collect()
}

/// Writes `results.csv`: one row an epoch, columns as in [`EpochRow`].
pub fn write_results(path: &Path, history: &[EpochRow]) -> Result<()> {
    write_csv(path, history)
}

/// One image of `predictions.csv`, whose header is the list of these fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// The image's name in the data set.
    pub file: String,
    /// Its label's name, empty where unknown.
    pub label: Option<String>,
    /// The most probable class.
    pub predicted: String,
    /// That class's probability.
    pub confidence: f64,
    /// Whether the prediction is the label, empty where the label is unknown.
    pub correct: Option<bool>,
    /// The five most probable classes with probabilities: `rose 0.912; tulip 0.031; ...`.
    pub top5: String,
}

/// What `logits` `[files, classes]` say about each file. `labels` is empty or one per file.
pub fn predictions(
    files: &[String],
    labels: &[Option<usize>],
    logits: &[f32],
    classes: &[String],
) -> Vec<Prediction> {
    let rows = files.iter().zip(logits.chunks_exact(classes.len().max(1))).enumerate();
    rows.map(|(i, (file, row))| {
        let log_probs = metric::log_softmax(row);
        let best = metric::top(&log_probs, 5);
        let label = labels.get(i).copied().flatten();
        let named = |&class: &usize| format!("{} {:.3}", classes[class], log_probs[class].exp());
        Prediction {
            file: file.clone(),
            label: label.map(|class| classes[class].clone()),
            predicted: classes[best[0]].clone(),
            confidence: log_probs[best[0]].exp(),
            correct: label.map(|class| class == best[0]),
            top5: best.iter().map(named).collect::<Vec<_>>().join("; "),
        }
    })
    .collect()
}

/// Positions of the wrong predictions, the most confident first, at most `limit`.
pub fn worst_mistakes(predictions: &[Prediction], limit: usize) -> Vec<usize> {
    let mut wrong: Vec<usize> =
        (0..predictions.len()).filter(|&i| predictions[i].correct == Some(false)).collect();
    wrong.sort_by(|&a, &b| predictions[b].confidence.total_cmp(&predictions[a].confidence));
    wrong.truncate(limit);
    wrong
}

/// The first line of a `predictions.csv`, as [`Prediction`] has it.
const PREDICTIONS_HEADER: &[u8] = b"file,label,predicted,confidence,correct,top5";

/// Refuses to write predictions over a file that holds something else.
///
/// # Errors
/// The file is taken.
pub fn check_predictions_path(path: &Path) -> Result<()> {
    let run = files::folder_of(path).join(files::RUN);
    if path.exists() && run.is_file() {
        return Err(Error::Usage(format!(
            "{} belongs to a run, whose measurement it is; it is left as it is\n  give another name",
            path.display()
        )));
    }
    files::refuse_to_replace(path, |content| files::first_line(content) == PREDICTIONS_HEADER)
}

/// Writes `predictions.csv`.
pub fn write_predictions(path: &Path, predictions: &[Prediction]) -> Result<()> {
    write_csv(path, predictions)
}

fn write_csv(path: &Path, rows: &[impl Serialize]) -> Result<()> {
    crate::files::write_atomically(path, &csv_of(path, rows, true)?)
}

/// Rows of the table at `path`, below their header if it is wanted; no rows have none.
fn csv_of(path: &Path, rows: &[impl Serialize], header: bool) -> Result<Vec<u8>> {
    let unwritable =
        |e: &dyn std::fmt::Display| Error::Failed(format!("cannot write {}: {e}", path.display()));
    let mut writer = csv::WriterBuilder::new().has_headers(header).from_writer(Vec::new());
    for row in rows {
        writer.serialize(row).map_err(|e| unwritable(&e))?;
    }
    writer.into_inner().map_err(|e| unwritable(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_measurement_of_a_run_is_not_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("predictions.csv");
        std::fs::write(&path, PREDICTIONS_HEADER).expect("written");
        check_predictions_path(&path).expect("an earlier output");
        std::fs::write(&path, [PREDICTIONS_HEADER, b",my notes\n"].concat()).expect("written");
        check_predictions_path(&path).expect_err("somebody has added a column");
        std::fs::write(&path, [PREDICTIONS_HEADER, b"\r\n"].concat()).expect("written");
        std::fs::write(folder.path().join(files::RUN), "{}").expect("written");
        check_predictions_path(&folder.path().join("other.csv")).expect("a name that is free");
        let error = check_predictions_path(&path).expect_err("the run's");
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("belongs to a run"), "{error}");
    }

    fn row(step: u64) -> EpochRow {
        EpochRow {
            stage: "pretrain".to_string(),
            epoch: step as usize / 10,
            step,
            seconds: 1.5,
            images_per_second: Some(100.0),
            loss: Some(7.25),
            lr: Some(5e-4),
            grad_norm: None,
            knn_top1: (step == 20).then_some(0.25),
            top1: None,
            top5: None,
            top1_low: None,
            top1_high: None,
            alignment: None,
            warning: None,
        }
    }

    #[test]
    fn resumed_log_has_every_step_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(&path, 0).unwrap();
        for step in [10, 20, 30] {
            log.append(row(step)).unwrap();
        }
        let mut torn = OpenOptions::new().append(true).open(&path).unwrap();
        torn.write_all(b"{\"stage\":\"pre").unwrap();
        assert_eq!(read_history(&path).unwrap().len(), 3);
        let mut log = MetricsLog::open(&path, 20).unwrap();
        log.append(row(30)).unwrap();
        assert_eq!(read_history(&path).unwrap(), [row(10), row(20), row(30)]);
        let results = || std::fs::read_to_string(folder.path().join("results.csv")).unwrap();
        let grown = results();
        write_results(&folder.path().join("results.csv"), log.rows()).unwrap();
        assert_eq!((grown.lines().count(), grown), (4, results()), "a header and the same rows");
        // A run may be finished more than once; one that goes on has not been measured.
        let measured = |top1| EpochRow { stage: FINAL.to_owned(), top1: Some(top1), ..row(30) };
        write_final(&path, measured(0.5)).unwrap();
        let rows = write_final(&path, measured(0.25)).unwrap();
        assert_eq!(rows, [row(10), row(20), row(30), measured(0.25)]);
        assert_eq!(MetricsLog::open(&path, 30).unwrap().rows(), rows);
        assert_eq!(MetricsLog::open(&path, 29).unwrap().rows(), [row(10), row(20)]);
        // Nor has one whose measurement was of an earlier epoch's weights.
        MetricsLog::open(&path, 20).unwrap().append(row(30)).unwrap();
        write_final(&path, EpochRow { step: 10, ..measured(0.5) }).unwrap();
        assert_eq!(MetricsLog::open(&path, 30).unwrap().rows().len(), 4);
        assert_eq!(MetricsLog::open(&path, 20).unwrap().rows(), [row(10), row(20)]);
        let mut log = MetricsLog::open(&path, 20).unwrap();
        log.append(row(30)).unwrap();
        std::fs::write(&path, "{\"stage\":3}\n").unwrap();
        assert!(read_history(&path).unwrap_err().to_string().contains("metrics.jsonl, line 1"));
    }

    #[test]
    fn csv_files_have_the_documented_columns() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.csv");
        write_results(&path, &[row(10), row(20)]).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "stage,epoch,step,seconds,images_per_second,loss,lr,grad_norm,knn_top1,top1,top5,\
             top1_low,top1_high,alignment,warning\n\
             pretrain,1,10,1.5,100.0,7.25,0.0005,,,,,,,,\n\
             pretrain,2,20,1.5,100.0,7.25,0.0005,,0.25,,,,,,\n"
        );
    }

    #[test]
    fn rows_of_earlier_versions_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let old = r#"{"stage":"pretrain","epoch":1,"step":10,"seconds":1.5,"images_per_second":100.0,
            "loss":7.25,"lr":0.0005,"grad_norm":null,"knn_top1":null,"top1":null,"top5":null}"#;
        std::fs::write(&path, old.replace('\n', "") + "\n").unwrap();
        assert_eq!(read_history(&path).unwrap(), [row(10)]);
    }

    #[test]
    fn warnings_are_those_of_the_last_epoch_that_had_one() {
        let warned = |step, text: &str| EpochRow { warning: Some(text.to_owned()), ..row(step) };
        assert!(warnings(&[row(10), row(20)]).is_empty());
        assert_eq!(warnings(&[row(10), warned(20, "Collapse")]), ["pretrain, epoch 2: Collapse"]);
        let finetune = EpochRow { stage: "finetune".to_owned(), ..warned(40, "runs away") };
        assert_eq!(
            warnings(&[warned(10, "a"), warned(20, "b"), row(30), finetune]),
            ["pretrain, epoch 2: b (the last of 2 such warnings)", "finetune, epoch 4: runs away"]
        );
    }

    #[test]
    fn predictions_name_what_the_logits_say() {
        let classes = ["rose", "tulip, red"].map(String::from);
        let files = ["a.jpg", "b.jpg", "c.jpg"].map(String::from);
        let ln3 = 3f32.ln();
        let logits = [ln3, 0.0, 0.0, ln3, 0.0, 2.0 * ln3];
        let made = predictions(&files, &[Some(0), None, Some(0)], &logits, &classes);
        assert_eq!(made[0].top5, "rose 0.750; tulip, red 0.250");
        assert_eq!(
            (made[0].correct, made[1].correct, made[2].correct),
            (Some(true), None, Some(false))
        );
        assert!((made[2].confidence - 0.9).abs() < 1e-6);
        assert_eq!(worst_mistakes(&made, 5), [2]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("predictions.csv");
        write_predictions(&path, &made[1..2]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(
            "file,label,predicted,confidence,correct,top5\nb.jpg,,\"tulip, red\",0.7"
        ));
    }
}
