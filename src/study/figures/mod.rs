//! The paper's figures from the runs of a study: PNG, SVG and the numbers behind them as CSV.

mod chart;
mod features;
mod pca;
mod tsne;

use std::path::Path;

pub use features::features;

use super::file::Study;
use super::grid::{Cell, Grid};
use super::place::Place;
use super::results::{Results, percent};
use crate::backbone::Spec;
use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::report::plots;
use crate::report::tables::{EpochRow, FINAL, read_history};
use crate::run::finished::report;
use chart::{Chart, Series, Style};

/// The finished cells of the first picked data set with their first seed, one a row.
fn first_cells(grid: &Grid, place: &Place) -> Result<Vec<Cell>> {
    let mut cells: Vec<Cell> = Vec::new();
    for cell in &grid.cells {
        let new = cells.last().is_none_or(|last| last.row != cell.row);
        let same = cells.first().is_none_or(|first| first.column == cell.column);
        if new && same && place.is_done(&grid.jobs[cell.job])? {
            cells.push(*cell);
        }
    }
    Ok(cells)
}

/// A table as CSV.
fn write_csv(path: &Path, header: &[&str], rows: &[Vec<String>]) -> Result<()> {
    let failed =
        |e: &dyn std::fmt::Display| Error::Failed(format!("cannot write {}: {e}", path.display()));
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(header).map_err(|e| failed(&e))?;
    for row in rows {
        writer.write_record(row).map_err(|e| failed(&e))?;
    }
    write_atomically(path, &writer.into_inner().map_err(|e| failed(&e))?)
}

/// Figure 3: parameters of each row's model against its accuracy, and the paper's numbers. Rows that
/// start from given weights have another colour. Writes `fig3.png`, `.svg` and `.csv`.
///
/// # Errors
/// An unknown model, a run that cannot be read, or a folder that cannot be written.
pub fn parameters(study: &Study, grid: &Grid, place: &Place) -> Result<()> {
    let results = Results::read(study, grid, place)?;
    let (mut rows, mut points) = (Vec::new(), vec![Vec::new(); 4]);
    for cell in &grid.cells {
        let (row, config) = (&study.rows[cell.row], &grid.jobs[cell.job].config);
        let Some(entry) = results
            .rows
            .iter()
            .find(|entry| entry.row == row.name && entry.column == study.data[cell.column].name)
        else {
            continue;
        };
        let spec = Spec::find(&config.model.name)?;
        let millions = spec.num_params(config.finetune.img_size) as f64 / 1e6;
        let given = usize::from(matches!(row.from, super::From::Weights(_)));
        points[given].extend(entry.mean().map(|top1| (millions, top1)));
        points[2 + given].extend(entry.paper.map(|top1| (millions, top1)));
        let number = |value: Option<f64>| value.map_or_else(String::new, |v| format!("{v:.4}"));
        let interval = entry.interval();
        rows.push(vec![
            entry.row.clone(),
            entry.column.clone(),
            format!("{millions:.4}"),
            number(entry.mean()),
            number(interval.map(|interval| interval.0)),
            number(interval.map(|interval| interval.1)),
            number(entry.paper),
            grid.scale.to_string(),
        ]);
    }
    rows.dedup();
    let names = ["IDMM, ours", "ImageNet weights, ours", "IDMM, paper", "ImageNet weights, paper"];
    let styles = [Style::Dots, Style::Dots, Style::Rings, Style::Rings];
    let series = names.iter().zip(styles).zip(points).enumerate();
    let series = series.map(|(i, ((name, style), points))| Series {
        name: (*name).to_owned(),
        colour: i % 2,
        style,
        points,
    });
    let chart = Chart {
        title: title("parameters and accuracy", &results, grid),
        x: "parameters without classifier, millions".to_owned(),
        log: true,
        y: "top-1, %".to_owned(),
        series: series.filter(|series| !series.points.is_empty()).collect(),
    };
    plots::save(&place.root().join("fig3"), &chart)?;
    let header = ["row", "data", "parameters_millions", "top1", "low", "high", "paper", "scale"];
    write_csv(&place.root().join("fig3.csv"), &header, &rows)
}

/// Figure 4: accuracy of each row over the epochs of fine-tuning, as measured along the way and, where that was
/// on the same images, at the end. Writes `fig4.png`, `.svg` and `.csv`.
///
/// # Errors
/// A run that cannot be read, or a folder that cannot be written.
pub fn epochs(study: &Study, grid: &Grid, place: &Place) -> Result<()> {
    let results = Results::read(study, grid, place)?;
    let (mut rows, mut series) = (Vec::new(), Vec::new());
    for (i, cell) in first_cells(grid, place)?.iter().enumerate() {
        let row = &study.rows[cell.row];
        let run = place.run(&grid.jobs[cell.job]);
        let data = report(&run)?;
        let images = data.watched();
        let at_end = images == format!("{} images", data.data.test_split);
        let points = accuracies(&read_history(&run.join("metrics.jsonl"))?, at_end);
        let line = |&(epoch, top1): &(f64, f64)| {
            let scale = grid.scale.to_string();
            vec![row.name.clone(), format!("{epoch}"), format!("{top1:.4}"), scale, images.clone()]
        };
        rows.extend(points.iter().map(line));
        let name = format!("{}, {images}", row.title());
        series.push(Series { name, colour: i, style: Style::Line, points });
    }
    let chart = Chart {
        title: title("accuracy over fine-tuning", &results, grid),
        x: "epochs of fine-tuning".to_owned(),
        log: false,
        y: "top-1, %".to_owned(),
        series,
    };
    plots::save(&place.root().join("fig4"), &chart)?;
    let header = ["row", "epoch", "top1", "scale", "images"];
    write_csv(&place.root().join("fig4.csv"), &header, &rows)
}

/// Epochs of fine-tuning and top-1 in percent, in order; those of the final measurement `at_end`, too.
fn accuracies(history: &[EpochRow], at_end: bool) -> Vec<(f64, f64)> {
    let last = history.iter().rfind(|line| line.stage == FINAL).map(|line| line.epoch);
    let wanted = history.iter().filter(|line| match line.stage == FINAL {
        true => at_end,
        // The last epoch's number is that of the final measurement.
        false => line.stage == "finetune" && !(at_end && Some(line.epoch) == last),
    });
    let mut points: Vec<_> =
        wanted.filter_map(|line| Some((line.epoch as f64, 100.0 * line.top1?))).collect();
    // The epoch that was kept need not be the last.
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    points
}

/// What a figure shows, on which data, with which share of the epochs.
fn title(what: &str, results: &Results, grid: &Grid) -> String {
    let data = results.rows.first().map_or("", |entry| &entry.column_title);
    let parts = [Some(format!("{data}: {what}")), shortened(grid.scale)];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// That the schedules are not the whole ones.
fn shortened(scale: f64) -> Option<String> {
    (scale < 1.0).then(|| format!("schedules shortened to {}", percent(scale)))
}
