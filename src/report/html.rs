//! `report.html`: one file with everything inside, readable in light and dark, without scripts.

use askama::Template;

use super::words::REPEAT;
use super::{ReportData, curves, matrix, plots};
use crate::error::{Error, Result};
use crate::eval::metric::Metrics;

/// Above this many classes the page leaves the confusion matrix to `plots/confusion.png`.
const MATRIX_CLASSES: usize = 250;
/// Rows of the table of confused classes.
const CONFUSED_ROWS: usize = 12;
/// Above this many classes their table is folded.
const OPEN_CLASSES: usize = 25;

/// The page as text.
pub fn render(data: &ReportData) -> Result<String> {
    let page = Page {
        data,
        title: format!("{} \u{b7} {}", data.data.name, data.model.name),
        headline: data.headline(),
        interval: data.metrics.as_ref().map(Interval::new),
        stats: data.metrics.as_ref().map(stats).unwrap_or_default(),
        opening: data.opening(),
        unmeasured: data.unmeasured(),
        done: data.done(),
        notes: data.notes(),
        guesses: data.guesses(),
        repeat: REPEAT,
        curves: curve_plots(data)?,
        confusion: confusion(data)?,
        confused: confused(data),
        classes: class_rows(data),
        open_classes: data.data.classes.len() <= OPEN_CLASSES,
    };
    page.render().map_err(|e| Error::Failed(format!("cannot render the report: {e}")))
}

#[derive(Template)]
#[template(path = "report.html")]
struct Page<'a> {
    data: &'a ReportData,
    title: String,
    headline: Option<String>,
    interval: Option<Interval>,
    stats: Vec<Stat>,
    opening: String,
    unmeasured: &'static str,
    done: Vec<String>,
    notes: Vec<String>,
    guesses: Vec<String>,
    repeat: &'static str,
    /// SVG documents.
    curves: Vec<String>,
    /// An SVG document.
    confusion: Option<String>,
    confused: Vec<Confused>,
    classes: Vec<ClassRow>,
    open_classes: bool,
}

/// The headline as a picture; all in percent.
struct Interval {
    top1: String,
    low: String,
    width: String,
    chance: String,
}

impl Interval {
    fn new(m: &Metrics) -> Self {
        let percent = |share: f64| format!("{:.1}", 100.0 * share);
        let (low, high) = m.top1_interval;
        let (top1, chance) = (percent(m.top1), percent(m.chance()));
        Self { top1, low: percent(low), width: percent(high - low), chance }
    }
}

/// A number with its name and what it means.
struct Stat {
    name: &'static str,
    value: String,
    meaning: &'static str,
}

fn stats(m: &Metrics) -> Vec<Stat> {
    let percent = |share: f64| format!("{:.1}%", 100.0 * share);
    let mut stats = Vec::new();
    let mut add = |name, value, meaning| stats.push(Stat { name, value, meaning });
    if let Some(top5) = m.top5 {
        add("top-5", percent(top5), "label among the five best guesses");
    }
    add("balanced", percent(m.balanced), "mean over classes of the share right");
    add("macro F1", format!("{:.3}", m.macro_f1), "mean over classes of F1");
    add("log loss", format!("{:.3}", m.nll), "mean \u{2212}ln of the label's probability");
    add("calibration error", percent(m.ece), "mean gap between confidence and accuracy");
    stats
}

fn curve_plots(data: &ReportData) -> Result<Vec<String>> {
    let watched = data.watched();
    let stages = data.stages.iter();
    let panels = stages.flat_map(|stage| curves::panels(&data.history, stage, &watched));
    panels.map(|panel| plots::svg(&curves::row(vec![panel]))).collect()
}

fn confusion(data: &ReportData) -> Result<Option<String>> {
    let Some(m) = data.metrics.as_ref().filter(|m| m.confusion.len() <= MATRIX_CLASSES) else {
        return Ok(None);
    };
    let names: Vec<String> = (0..m.confusion.len()).map(|c| data.class_name(c)).collect();
    plots::svg(&matrix::Confusion::new(&m.confusion, &names)).map(Some)
}

/// A cell of the confusion matrix.
struct Confused {
    label: String,
    predicted: String,
    images: u32,
    of: usize,
}

fn confused(data: &ReportData) -> Vec<Confused> {
    let Some(m) = &data.metrics else {
        return Vec::new();
    };
    let pair = |(images, label, predicted): (u32, usize, usize)| Confused {
        label: data.class_name(label),
        predicted: data.class_name(predicted),
        images,
        of: m.per_class[label].images,
    };
    m.most_confused().into_iter().take(CONFUSED_ROWS).map(pair).collect()
}

/// A row of the table of classes.
struct ClassRow {
    name: String,
    /// Percent of the class's images that are right.
    recall: f64,
    correct: usize,
    images: usize,
    precision: String,
}

/// Classes with test images, the worst first.
fn class_rows(data: &ReportData) -> Vec<ClassRow> {
    let Some(m) = &data.metrics else {
        return Vec::new();
    };
    let row = |(class, c): (usize, &crate::eval::metric::ClassMetrics)| {
        let precision =
            c.precision.map_or("never predicted".to_string(), |p| format!("{:.0}%", 100.0 * p));
        let recall = 100.0 * c.recall?;
        Some(ClassRow {
            name: data.class_name(class),
            recall,
            correct: c.correct,
            images: c.images,
            precision,
        })
    };
    let mut rows: Vec<ClassRow> = m.per_class.iter().enumerate().filter_map(row).collect();
    rows.sort_by(|a, b| a.recall.total_cmp(&b.recall).then_with(|| a.name.cmp(&b.name)));
    rows
}
