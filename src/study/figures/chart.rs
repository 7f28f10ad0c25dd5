//! A chart of points or lines over two axes, and clouds of points without axes.

use plotters::prelude::{DrawingBackend, RGBColor};
use plotters::style::text_anchor::HPos;

use crate::error::Result;
use crate::report::curves::ticks;
use crate::report::plots::{Canvas, Figure, GRID, INK, MUTED};

/// Ten colours that are told apart (Tableau's, by M. Stone).
pub const COLOURS: [RGBColor; 10] = [
    RGBColor(0x4e, 0x79, 0xa7),
    RGBColor(0xf2, 0x8e, 0x2b),
    RGBColor(0x59, 0xa1, 0x4f),
    RGBColor(0xe1, 0x57, 0x59),
    RGBColor(0x76, 0xb7, 0xb2),
    RGBColor(0xb0, 0x7a, 0xa1),
    RGBColor(0xed, 0xc9, 0x48),
    RGBColor(0xff, 0x9d, 0xa7),
    RGBColor(0x9c, 0x75, 0x5f),
    RGBColor(0x79, 0x70, 0x6e),
];

/// How the points of a series look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// A line through them.
    Line,
    /// Filled circles.
    Dots,
    /// Rings.
    Rings,
}

/// Points that belong together.
#[derive(Clone, Debug)]
pub struct Series {
    /// Their name in the legend.
    pub name: String,
    /// Position in [`COLOURS`].
    pub colour: usize,
    /// How they look.
    pub style: Style,
    /// x and y.
    pub points: Vec<(f64, f64)>,
}

/// A chart with two axes.
#[derive(Clone, Debug)]
pub struct Chart {
    /// Over it.
    pub title: String,
    /// Under the horizontal axis.
    pub x: String,
    /// Whether that axis is logarithmic.
    pub log: bool,
    /// At the vertical axis.
    pub y: String,
    /// What is drawn.
    pub series: Vec<Series>,
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 460.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 540.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = HEIGHT - 50.0;

impl Chart {
    fn scaled(&self, x: f64) -> f64 {
        if self.log { x.log10() } else { x }
    }

    /// Ranges of both axes, a little wider than the points.
    fn ranges(&self) -> [(f64, f64); 2] {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let range = |values: &mut dyn Iterator<Item = f64>| {
            let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| {
                (low.min(v), high.max(v))
            });
            match low < high {
                true => (low - 0.05 * (high - low), high + 0.05 * (high - low)),
                false if low.is_finite() => (low - 1.0, low + 1.0),
                false => (0.0, 1.0),
            }
        };
        [range(&mut points().map(|p| self.scaled(p.0))), range(&mut points().map(|p| p.1))]
    }
}

impl Figure for Chart {
    fn size(&self) -> (u32, u32) {
        (WIDTH as u32, HEIGHT as u32)
    }

    fn draw<B: DrawingBackend>(&self, canvas: &Canvas<B>) -> Result<()> {
        let [xs, ys] = self.ranges();
        let along = |v: f64, (low, high): (f64, f64)| (v - low) / (high - low);
        let across = |x: f64| LEFT + (RIGHT - LEFT) * along(x, xs);
        let up = |y: f64| BOTTOM + (TOP - BOTTOM) * along(y, ys);
        canvas.text(&self.title, (LEFT, 18.0), 14.0, INK, HPos::Left)?;
        let (levels, step) = ticks(ys, TICKS);
        for y in levels {
            canvas.line(&[(LEFT, up(y)), (RIGHT, up(y))], 0.7, GRID)?;
            canvas.text(&rounded(y, step), (LEFT - 7.0, up(y)), 11.0, MUTED, HPos::Right)?;
        }
        let (marks, step) = match self.log {
            false => ticks(xs, TICKS),
            true => {
                let decade = |e| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(e));
                ((-3..6).flat_map(decade).collect(), 0.0)
            }
        };
        for x in marks {
            let at = self.scaled(x);
            if (xs.0..=xs.1).contains(&at) {
                canvas.line(&[(across(at), BOTTOM), (across(at), BOTTOM + 4.0)], 1.0, MUTED)?;
                canvas.text(
                    &rounded(x, step),
                    (across(at), BOTTOM + 13.0),
                    11.0,
                    MUTED,
                    HPos::Center,
                )?;
            }
        }
        canvas.line(&[(LEFT, BOTTOM), (RIGHT, BOTTOM)], 1.0, MUTED)?;
        canvas.text(&self.x, ((LEFT + RIGHT) / 2.0, BOTTOM + 32.0), 12.0, MUTED, HPos::Center)?;
        canvas.text_up(&self.y, (16.0, (TOP + BOTTOM) / 2.0), 12.0, MUTED, HPos::Center)?;
        for (i, series) in self.series.iter().enumerate() {
            let colour = COLOURS[series.colour % COLOURS.len()];
            let points: Vec<_> =
                series.points.iter().map(|p| (across(self.scaled(p.0)), up(p.1))).collect();
            let legend = (RIGHT + 22.0, TOP + 8.0 + 19.0 * i as f64);
            mark(canvas, series.style, &points, colour)?;
            let sample = match series.style {
                Style::Line => vec![(legend.0 - 6.0, legend.1), (legend.0 + 6.0, legend.1)],
                Style::Dots | Style::Rings => vec![legend],
            };
            mark(canvas, series.style, &sample, colour)?;
            canvas.text(&series.name, (legend.0 + 14.0, legend.1), 12.0, INK, HPos::Left)?;
        }
        Ok(())
    }
}

/// Numbers at an axis, about.
const TICKS: usize = 6;

/// A number at an axis with so many digits that the next one, a `step` away, looks different; all of
/// them where the steps differ.
fn rounded(value: f64, step: f64) -> String {
    match step > 0.0 {
        true => format!("{value:.*}", (-step.log10().floor()).max(0.0) as usize),
        false => format!("{value}"),
    }
}

/// Longest line that shows its points.
const DOTTED: usize = 30;

fn mark<B: DrawingBackend>(
    canvas: &Canvas<B>,
    style: Style,
    points: &[(f64, f64)],
    colour: RGBColor,
) -> Result<()> {
    match style {
        Style::Line => {
            canvas.line(points, 1.8, colour)?;
            let shown = if points.len() > DOTTED { &[] } else { points };
            shown.iter().try_for_each(|&p| canvas.dot(p, 2.6, colour))?;
        }
        Style::Dots => points.iter().try_for_each(|&p| canvas.dot(p, 4.5, colour))?,
        Style::Rings => points.iter().try_for_each(|&p| {
            canvas.dot(p, 5.0, colour)?;
            canvas.dot(p, 3.2, RGBColor(255, 255, 255))
        })?,
    }
    Ok(())
}

/// Points of classes, without axes.
#[derive(Clone, Debug)]
pub struct Cloud {
    /// Over it.
    pub title: String,
    /// Place and class of each point.
    pub points: Vec<([f64; 2], usize)>,
}

/// Clouds in columns.
#[derive(Clone, Debug)]
pub struct Clouds {
    /// Row by row.
    pub clouds: Vec<Cloud>,
    /// Clouds in a row.
    pub columns: usize,
    /// Under them, a line each.
    pub caption: Vec<String>,
}

const SIDE: f64 = 260.0;
const MARGIN: f64 = 12.0;
const HEAD: f64 = 26.0;

impl Figure for Clouds {
    fn size(&self) -> (u32, u32) {
        let rows = self.clouds.len().div_ceil(self.columns.max(1)).max(1);
        (
            (SIDE * self.columns.max(1) as f64) as u32,
            ((SIDE + HEAD) * rows as f64 + HEAD * self.caption.len() as f64) as u32,
        )
    }

    fn draw<B: DrawingBackend>(&self, canvas: &Canvas<B>) -> Result<()> {
        for (i, cloud) in self.clouds.iter().enumerate() {
            let left = SIDE * (i % self.columns.max(1)) as f64;
            let top = (SIDE + HEAD) * (i / self.columns.max(1)) as f64;
            let middle = (left + SIDE / 2.0, top + HEAD / 2.0);
            canvas.text(&cloud.title, middle, 12.5, INK, HPos::Center)?;
            let (low, side) = frame(cloud);
            let scale = (SIDE - 2.0 * MARGIN) / side;
            for (place, class) in &cloud.points {
                let x = left + MARGIN + scale * (place[0] - low[0]);
                let y = top + HEAD + MARGIN + scale * (place[1] - low[1]);
                canvas.dot((x, y), 2.6, COLOURS[class % COLOURS.len()])?;
            }
        }
        let (width, height) = self.size();
        for (line, from_below) in self.caption.iter().rev().zip(0..) {
            let y = f64::from(height) - HEAD * (0.5 + f64::from(from_below));
            canvas.text(line, (f64::from(width) / 2.0, y), 11.0, MUTED, HPos::Center)?;
        }
        Ok(())
    }
}

/// The corner and the side of the square around a cloud.
fn frame(cloud: &Cloud) -> ([f64; 2], f64) {
    let range = |c: usize| {
        let values = cloud.points.iter().map(|(place, _)| place[c]);
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)))
    };
    let [x, y] = [range(0), range(1)];
    let side = (x.1 - x.0).max(y.1 - y.0);
    let side = if side > 0.0 && side.is_finite() { side } else { 1.0 };
    let low = |(low, high): (f64, f64)| (low + high - side) / 2.0;
    ([low(x), low(y)], side)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::plots;

    #[test]
    fn a_chart_has_its_points_names_and_round_numbers() {
        let series = |name: &str, style, points: &[(f64, f64)]| Series {
            name: name.to_owned(),
            colour: 1,
            style,
            points: points.to_vec(),
        };
        let chart = Chart {
            title: "Fig. 3".to_owned(),
            x: "parameters, millions".to_owned(),
            log: true,
            y: "top-1, %".to_owned(),
            series: vec![
                series("IDMM", Style::Dots, &[(0.8, 93.8), (45.0, 95.9)]),
                series("paper", Style::Rings, &[(3.4, 94.6)]),
                series("way", Style::Line, &[(1.0, 94.0), (10.0, 95.0)]),
            ],
        };
        let text = plots::svg(&chart).expect("drawn");
        // Two dots, one ring of two, two points on a line, each with a sample in the legend.
        assert_eq!(text.matches("<circle").count(), (2 + 1) + (2 + 2) + (2 + 2));
        for word in ["Fig. 3", "IDMM", ">\n10\n<", "top-1, %"] {
            assert!(text.contains(word), "{word}\n{text}");
        }
        plots::svg(&Chart { series: Vec::new(), ..chart }).expect("an empty one");
    }

    #[test]
    fn numbers_at_an_axis_are_short() {
        let numbers: Vec<_> = [1.0, 1.2, 1.4].map(|x| rounded(x + 2e-16, 0.2)).to_vec();
        assert_eq!(numbers, ["1.0", "1.2", "1.4"]);
        assert_eq!((rounded(200.0, 50.0), rounded(0.5, 0.0)), ("200".to_owned(), "0.5".to_owned()));
    }

    #[test]
    fn clouds_keep_their_shape() {
        let points = vec![([0.0, 0.0], 0), ([4.0, 1.0], 1)];
        let cloud = Cloud { title: "IDMM".to_owned(), points };
        assert_eq!(frame(&cloud), ([0.0, -1.5], 4.0));
        let clouds = vec![cloud.clone(), cloud.clone(), cloud];
        let clouds = Clouds { clouds, columns: 2, caption: vec!["Flowers".to_owned(); 2] };
        assert_eq!(clouds.size(), (520, 624));
        assert_eq!(plots::svg(&clouds).expect("drawn").matches("<circle").count(), 6);
    }
}
