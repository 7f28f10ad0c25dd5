//! Training curves: loss, accuracy and learning rate by epoch.

use plotters::prelude::DrawingBackend;
use plotters::style::text_anchor::HPos;

use super::facts::StageFacts;
use super::plots::{BLUE, Canvas, Figure, GRID, INK, MUTED, ORANGE};
use super::tables::EpochRow;
use crate::error::Result;

/// How the values of a panel are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    /// `2.35`; the axis need not start at 0.
    Nats,
    /// `67%`.
    Share,
    /// `5e-4`.
    Rate,
}

impl Unit {
    fn show(self, value: f64, digits: usize) -> String {
        match self {
            Self::Nats => format!("{value:.digits$}"),
            Self::Share => format!("{:.*}%", digits, 100.0 * value),
            Self::Rate if value == 0.0 => "0".to_string(),
            Self::Rate => format!("{value:.digits$e}"),
        }
    }

    /// Digits that tell apart values of which each is a multiple of `step`.
    fn digits(self, values: &[f64], step: f64) -> usize {
        let behind_the_point = |step: f64| (-step.log10().floor()).max(0.0) as usize;
        let is_right = |digits: usize, value: f64| {
            let shown = self.show(value, digits).parse::<f64>();
            shown.is_ok_and(|shown| (shown - value).abs() < 0.01 * step)
        };
        match self {
            Self::Nats => behind_the_point(step),
            Self::Share => behind_the_point(100.0 * step),
            Self::Rate => usize::from(!values.iter().all(|&value| is_right(0, value))),
        }
    }
}

/// Curves over epochs that share an axis.
#[derive(Clone, Debug)]
pub struct Panel {
    title: String,
    unit: Unit,
    /// Name and `(epoch, value)`.
    series: Vec<(String, Vec<(f64, f64)>)>,
    /// A dashed line and what it means.
    reference: Option<(f64, String)>,
}

/// The curves of one stage: loss with the loss of a model that knows nothing, accuracies where
/// measured, learning rate.
///
/// `watched` says which images `top1` is of.
pub fn panels(history: &[EpochRow], stage: &StageFacts, watched: &str) -> Vec<Panel> {
    let rows: Vec<_> = history.iter().filter(|row| row.stage == stage.key).collect();
    let curve = |name: &str, value: &dyn Fn(&EpochRow) -> Option<f64>| {
        let known = rows.iter().filter_map(|row| Some((row.epoch as f64, value(row)?)));
        (name.to_string(), known.filter(|p| p.1.is_finite()).collect::<Vec<_>>())
    };
    let panel = |title: &str, unit, series: Vec<(String, Vec<(f64, f64)>)>, reference| {
        let series = series.into_iter().filter(|s| !s.1.is_empty()).collect();
        Panel { title: format!("{}: {title}", stage.key), unit, series, reference }
    };
    let chance = stage.chance.as_ref();
    let chance = chance.map(|c| (c.loss, format!("knows nothing: {}", c.formula)));
    let accuracy =
        vec![curve(watched, &|row| row.top1), curve("k-NN, training images", &|row| row.knn_top1)];
    let mut panels = vec![
        panel("loss", Unit::Nats, vec![means(curve("training loss", &|row| row.loss))], chance),
        panel("accuracy", Unit::Share, accuracy, None),
        panel("learning rate", Unit::Rate, vec![curve("learning rate", &|row| row.lr)], None),
    ];
    panels.retain(|panel| !panel.series.is_empty());
    panels
}

/// Most points of a loss curve; longer ones are drawn of means. The loss of an epoch of few steps is mostly noise.
const MOST_POINTS: usize = 400;

/// The curve, or if it has too many points means of as many neighbours each, with their number in its name.
fn means((name, points): (String, Vec<(f64, f64)>)) -> (String, Vec<(f64, f64)>) {
    let neighbours = points.len().div_ceil(MOST_POINTS);
    if neighbours < 2 {
        return (name, points);
    }
    let mean = |points: &[(f64, f64)]| {
        let sum = points.iter().fold((0.0, 0.0), |sum, p| (sum.0 + p.0, sum.1 + p.1));
        (sum.0 / points.len() as f64, sum.1 / points.len() as f64)
    };
    // Counted from the last epoch, whose point is read off, so that it is not the mean of a rest.
    let means = points.rchunks(neighbours).map(mean).rev();
    (format!("{name}, mean of {neighbours} epochs"), means.collect())
}

/// Panels side by side.
pub fn row(panels: Vec<Panel>) -> impl Figure {
    Row(panels)
}

struct Row(Vec<Panel>);

const PANEL_WIDTH: f64 = 380.0;
const PANEL_HEIGHT: f64 = 250.0;

impl Figure for Row {
    fn size(&self) -> (u32, u32) {
        ((PANEL_WIDTH * self.0.len().max(1) as f64) as u32, PANEL_HEIGHT as u32)
    }

    fn draw<B: DrawingBackend>(&self, canvas: &Canvas<B>) -> Result<()> {
        for (i, panel) in self.0.iter().enumerate() {
            Axes::fit(panel, i as f64 * PANEL_WIDTH).draw(panel, canvas)?;
        }
        Ok(())
    }
}

/// Where a panel's values go.
struct Axes {
    left: f64,
    right: f64,
    epochs: (f64, f64),
    values: (f64, f64),
}

const TOP: f64 = 52.0;
const BOTTOM: f64 = PANEL_HEIGHT - 34.0;

impl Axes {
    fn fit(panel: &Panel, offset: f64) -> Self {
        let points = || panel.series.iter().flat_map(|s| &s.1);
        let range = |values: &mut dyn Iterator<Item = f64>| {
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| {
                (low.min(v), high.max(v))
            })
        };
        let epochs = range(&mut points().map(|p| p.0));
        let reference = panel.reference.iter().map(|r| r.0);
        let (low, high) = range(&mut points().map(|p| p.1).chain(reference));
        let low = if panel.unit == Unit::Nats { low } else { low.min(0.0) };
        let margin = if high > low { 0.06 * (high - low) } else { 0.5 };
        let low = if low == 0.0 { 0.0 } else { low - margin };
        let epochs = if epochs.1 > epochs.0 { epochs } else { (epochs.0 - 1.0, epochs.1 + 1.0) };
        Self {
            left: offset + 52.0,
            right: offset + PANEL_WIDTH - 16.0,
            epochs,
            values: (low, high + margin),
        }
    }

    fn at(&self, (epoch, value): (f64, f64)) -> (f64, f64) {
        let along = |v: f64, (low, high): (f64, f64)| (v - low) / (high - low);
        let x = self.left + (self.right - self.left) * along(epoch, self.epochs);
        (x, BOTTOM + (TOP - BOTTOM) * along(value, self.values))
    }

    fn draw<B: DrawingBackend>(&self, panel: &Panel, canvas: &Canvas<B>) -> Result<()> {
        canvas.text(&panel.title, (self.left, 14.0), 14.0, INK, HPos::Left)?;
        self.draw_grid(panel.unit, canvas)?;
        if let Some((value, meaning)) = &panel.reference {
            let (_, y) = self.at((self.epochs.0, *value));
            let mut x = self.left;
            while x < self.right {
                canvas.line(&[(x, y), ((x + 5.0).min(self.right), y)], 1.0, MUTED)?;
                x += 9.0;
            }
            canvas.text(meaning, (self.right, y + 9.0), 11.0, MUTED, HPos::Right)?;
        }
        let mut legend = self.left;
        for ((name, points), colour) in panel.series.iter().zip([BLUE, ORANGE]) {
            let line: Vec<_> = points.iter().map(|&p| self.at(p)).collect();
            canvas.line(&line, 1.6, colour)?;
            for &point in &line[if line.len() > 30 { line.len() - 1 } else { 0 }..] {
                canvas.dot(point, 2.4, colour)?;
            }
            let last = points.last().map_or(0.0, |p| p.1);
            let label = match panel.unit {
                Unit::Nats => format!("{name} {last:.3}"),
                Unit::Share => format!("{name} {:.1}%", 100.0 * last),
                Unit::Rate => name.clone(),
            };
            canvas.line(&[(legend, 34.0), (legend + 12.0, 34.0)], 2.4, colour)?;
            canvas.text(&label, (legend + 17.0, 34.0), 11.5, INK, HPos::Left)?;
            legend += 17.0 + 6.6 * label.chars().count() as f64 + 14.0;
        }
        Ok(())
    }

    fn draw_grid<B: DrawingBackend>(&self, unit: Unit, canvas: &Canvas<B>) -> Result<()> {
        let (values, step) = ticks(self.values, 4);
        let digits = unit.digits(&values, step);
        for value in values {
            let (_, y) = self.at((0.0, value));
            canvas.line(&[(self.left, y), (self.right, y)], 0.7, GRID)?;
            canvas.text(
                &unit.show(value, digits),
                (self.left - 6.0, y),
                11.0,
                MUTED,
                HPos::Right,
            )?;
        }
        for epoch in whole_ticks(self.epochs, 5) {
            let (x, _) = self.at((epoch, 0.0));
            canvas.line(&[(x, BOTTOM), (x, BOTTOM + 4.0)], 1.0, MUTED)?;
            canvas.text(&format!("{epoch}"), (x, BOTTOM + 12.5), 11.0, MUTED, HPos::Center)?;
        }
        canvas.line(&[(self.left, BOTTOM), (self.right, BOTTOM)], 1.0, MUTED)?;
        canvas.text(
            "epoch",
            ((self.left + self.right) / 2.0, BOTTOM + 26.0),
            11.0,
            MUTED,
            HPos::Center,
        )
    }
}

/// Round numbers within `low..=high`, about `count` of them, and the step between them.
pub(crate) fn ticks((low, high): (f64, f64), count: usize) -> (Vec<f64>, f64) {
    let rough = (high - low) / count as f64;
    let decade = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * decade).into_iter().find(|&s| s >= rough * 0.999);
    let step = step.unwrap_or(10.0 * decade);
    let first = (low / step - 1e-9).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    ((first..=last).map(|i| i as f64 * step).collect(), step)
}

/// The whole numbers among [`ticks`].
fn whole_ticks(range: (f64, f64), count: usize) -> Vec<f64> {
    let is_whole = |tick: &f64| (tick - tick.round()).abs() < 1e-6;
    ticks(range, count).0.into_iter().filter(is_whole).map(f64::round).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    #[test]
    fn ticks_are_round_numbers_within_the_range() {
        assert_eq!(ticks((0.0, 1.0), 4), (vec![0.0, 0.5, 1.0], 0.5));
        assert_eq!(ticks((1.0, 800.0), 5), (vec![200.0, 400.0, 600.0, 800.0], 200.0));
        let (values, step) = ticks((3.93, 7.83), 4);
        assert_eq!((values, step), (vec![4.0, 5.0, 6.0, 7.0], 1.0));
    }

    #[test]
    fn labels_of_axes_are_short_and_tell_the_ticks_apart() {
        assert_eq!(whole_ticks((1.0, 2.0), 5), [1.0, 2.0], "there is no epoch 1.2");
        assert_eq!(whole_ticks((1.0, 3.0), 5), [1.0, 2.0, 3.0]);
        assert_eq!(whole_ticks((1.0, 800.0), 5), [200.0, 400.0, 600.0, 800.0]);
        let labels = |unit: Unit, range| {
            let (values, step) = ticks(range, 4);
            let digits = unit.digits(&values, step);
            values.iter().map(|&value| unit.show(value, digits)).collect::<Vec<_>>()
        };
        assert_eq!(labels(Unit::Nats, (0.95, 1.75)), ["1.0", "1.2", "1.4", "1.6"]);
        assert_eq!(labels(Unit::Share, (0.0, 0.21)), ["0%", "10%", "20%"]);
        assert_eq!(labels(Unit::Rate, (0.0, 2.1e-4)), ["0", "1e-4", "2e-4"]);
        assert_eq!(labels(Unit::Rate, (0.0, 1.9e-4)), ["0", "5.0e-5", "1.0e-4", "1.5e-4"]);
        let mut data = sample(5, 4);
        data.history.truncate(2);
        let short = panels(&data.history, &data.stages[0], "test images");
        let drawn = crate::report::plots::svg(&row(short)).unwrap();
        assert!(!drawn.contains("1.2000000000000002"), "{drawn}");
    }

    #[test]
    fn panels_hold_what_was_measured() {
        let mut data = sample(5, 4);
        data.history[3].loss = Some(f64::NAN);
        let made = panels(&data.history, &data.stages[0], "test images");
        let titles: Vec<_> = made.iter().map(|panel| panel.title.as_str()).collect();
        assert_eq!(titles, ["pretrain: loss", "pretrain: accuracy", "pretrain: learning rate"]);
        assert_eq!(made[0].reference.as_ref().unwrap().0, 2040f64.ln());
        // 800 epochs less the one that is not a number, in pairs; a probe every 40.
        assert_eq!((made[0].series[0].1.len(), made[1].series[0].1.len()), (400, 20));
        assert_eq!(made[0].series[0].0, "training loss, mean of 2 epochs");
        data.stages[0].chance = None;
        let without = panels(&data.history, &data.stages[0], "test images");
        assert_eq!(without[0].reference, None, "no line where the method has no such loss");
        data.history.iter_mut().for_each(|row| row.knn_top1 = None);
        assert_eq!(panels(&data.history, &data.stages[0], "test images").len(), 2);
    }

    #[test]
    fn curves_of_very_many_epochs_are_means_of_neighbours() {
        let curve =
            |n| means(("loss".into(), (1..=n).map(|i| (i as f64, (i % 3) as f64)).collect()));
        assert_eq!((curve(400).0.as_str(), curve(400).1.len()), ("loss", 400));
        // Three epochs of 2, 0 and 1 each, and one of 1 before them.
        let (name, points) = curve(1000);
        assert_eq!((name.as_str(), points.len()), ("loss, mean of 3 epochs", 334));
        assert!(points[1..].iter().all(|p| p.1 == 1.0));
        assert_eq!((points[0], points[1].0, points[333].0), ((1.0, 1.0), 3.0, 999.0));
    }

    #[test]
    fn axes_put_low_values_low_and_survive_a_single_point() {
        let data = sample(5, 4);
        let panel = &panels(&data.history, &data.stages[0], "test images")[0];
        let axes = Axes::fit(panel, 0.0);
        // Means of two epochs each.
        let (first, last) = (axes.at((1.5, 7.0)), axes.at((799.5, 5.0)));
        assert_eq!((first.0, last.0), (axes.left, axes.right));
        assert!(TOP < first.1 && first.1 < last.1 && last.1 < BOTTOM);
        let single = panels(&data.history[..1], &data.stages[0], "test images");
        assert!(crate::report::plots::svg(&row(single)).unwrap().contains("<circle"));
    }
}
