//! Plots by class: the confusion matrix and the accuracy of each class.

use plotters::prelude::{DrawingBackend, RGBColor};
use plotters::style::text_anchor::HPos;

use super::plots::{BLUE, Canvas, Figure, GRID, INK, MUTED, ORANGE};
use crate::error::Result;
use crate::eval::metric::Metrics;

const WHITE: RGBColor = RGBColor(0xff, 0xff, 0xff);

/// Advance of an average letter, as a share of the font size.
const LETTER: f64 = 0.6;

/// A confusion matrix: one row a label, one column a prediction, colour = share of the row.
pub struct Confusion<'a> {
    counts: &'a [Vec<u32>],
    names: Vec<String>,
    /// Side of a cell.
    cell: f64,
    /// Size of the class names.
    font: f64,
    /// Room for the class names.
    margin: f64,
}

const TITLE: f64 = 22.0;

impl<'a> Confusion<'a> {
    /// `counts` is `[label][prediction]`.
    pub fn new(counts: &'a [Vec<u32>], names: &[String]) -> Self {
        let cell = (1040.0 / counts.len().max(1) as f64).clamp(2.0, 44.0);
        let font = (cell * 0.9).clamp(8.0, 12.0);
        let names: Vec<String> = names.iter().map(|name| shortened(name, 24)).collect();
        let margin = width(&names, font) + 8.0;
        Self { counts, names, cell, font, margin }
    }

    fn origin(&self) -> f64 {
        TITLE + self.margin
    }

    fn end(&self) -> f64 {
        self.origin() + self.cell * self.counts.len() as f64
    }

    fn draw_names<B: DrawingBackend>(&self, canvas: &Canvas<B>) -> Result<()> {
        // Where names do not fit below each other, every second, third ... is written.
        let every = (self.font / self.cell).ceil().max(1.0) as usize;
        for (i, name) in self.names.iter().enumerate().step_by(every) {
            let (middle, edge) =
                (self.origin() + self.cell * (i as f64 + 0.5), self.origin() - 5.0);
            canvas.text(name, (edge, middle), self.font, INK, HPos::Right)?;
            canvas.text_up(name, (middle, edge), self.font, INK, HPos::Left)?;
        }
        let middle = (self.origin() + self.end()) / 2.0;
        canvas.text("predicted", (middle, 11.0), 12.0, MUTED, HPos::Center)?;
        canvas.text_up("label", (11.0, middle), 12.0, MUTED, HPos::Center)
    }

    fn draw_cell<B: DrawingBackend>(
        &self,
        canvas: &Canvas<B>,
        row: usize,
        column: usize,
        share: f64,
    ) -> Result<()> {
        let corner = |r: usize, c: usize| {
            (self.origin() + self.cell * c as f64, self.origin() + self.cell * r as f64)
        };
        let colour = if row == column { BLUE } else { ORANGE };
        let opacity = 0.2 + 0.8 * share;
        canvas.rect([corner(row, column), corner(row + 1, column + 1)], colour, opacity)?;
        let text = self.counts[row][column].to_string();
        let size = (self.cell * 0.4).min(self.cell * 0.85 / (LETTER * text.len() as f64)).min(13.0);
        if size < 7.0 {
            return Ok(());
        }
        let (x, y) = corner(row, column);
        let colour = if opacity > 0.6 { WHITE } else { INK };
        canvas.text(&text, (x + self.cell / 2.0, y + self.cell / 2.0), size, colour, HPos::Center)
    }
}

impl Figure for Confusion<'_> {
    fn size(&self) -> (u32, u32) {
        let side = (self.end() + 12.0) as u32;
        (side, side)
    }

    fn draw<B: DrawingBackend>(&self, canvas: &Canvas<B>) -> Result<()> {
        self.draw_names(canvas)?;
        for i in 0..=self.counts.len() {
            let frame = i == 0 || i == self.counts.len();
            if self.cell < 8.0 && !frame {
                continue;
            }
            let at = self.origin() + self.cell * i as f64;
            canvas.line(&[(self.origin(), at), (self.end(), at)], 0.6, GRID)?;
            canvas.line(&[(at, self.origin()), (at, self.end())], 0.6, GRID)?;
        }
        for (row, counts) in self.counts.iter().enumerate() {
            let images: u32 = counts.iter().sum();
            for (column, &count) in counts.iter().enumerate().filter(|c| *c.1 > 0) {
                self.draw_cell(canvas, row, column, f64::from(count) / f64::from(images))?;
            }
        }
        Ok(())
    }
}

/// The share of each class's images that are right, worst class last.
pub struct ClassBars {
    /// Name, images right, images; sorted.
    rows: Vec<(String, usize, usize)>,
    /// The mean over all images, a line through the bars.
    top1: f64,
    /// Height of a bar's row.
    pitch: f64,
    /// Room for the names.
    margin: f64,
}

/// Length of the bar of a class without a mistake.
const BAR: f64 = 420.0;

impl ClassBars {
    /// Classes without images are left out.
    pub fn new(metrics: &Metrics, names: &[String]) -> Self {
        let with_images = metrics.per_class.iter().zip(names).filter(|(class, _)| class.images > 0);
        let mut rows: Vec<_> =
            with_images.map(|(c, name)| (shortened(name, 32), c.correct, c.images)).collect();
        rows.sort_by(|a, b| (b.1 * a.2).cmp(&(a.1 * b.2)).then_with(|| a.0.cmp(&b.0)));
        let pitch = if rows.len() > 40 { 13.0 } else { 22.0 };
        let names: Vec<String> = rows.iter().map(|row| row.0.clone()).collect();
        Self {
            rows,
            top1: metrics.top1,
            pitch,
            margin: width(&names, pitch.min(16.0) * 0.75) + 14.0,
        }
    }
}

impl Figure for ClassBars {
    fn size(&self) -> (u32, u32) {
        ((self.margin + BAR + 110.0) as u32, (self.pitch * self.rows.len() as f64 + 40.0) as u32)
    }

    fn draw<B: DrawingBackend>(&self, canvas: &Canvas<B>) -> Result<()> {
        let font = self.pitch.min(16.0) * 0.75;
        for (i, (name, correct, images)) in self.rows.iter().enumerate() {
            let (top, share) = (28.0 + self.pitch * i as f64, *correct as f64 / *images as f64);
            let (bar_top, bar_end) = (top + self.pitch * 0.12, top + self.pitch * 0.88);
            let middle = top + self.pitch / 2.0;
            canvas.text(name, (self.margin - 8.0, middle), font, INK, HPos::Right)?;
            canvas.rect([(self.margin, bar_top), (self.margin + BAR, bar_end)], GRID, 0.45)?;
            canvas.rect(
                [(self.margin, bar_top), (self.margin + BAR * share, bar_end)],
                BLUE,
                1.0,
            )?;
            let label = format!("{:.0}%  {correct} of {images}", 100.0 * share);
            canvas.text(&label, (self.margin + BAR + 8.0, middle), font, MUTED, HPos::Left)?;
        }
        let x = self.margin + BAR * self.top1;
        let bottom = 30.0 + self.pitch * self.rows.len() as f64;
        canvas.line(&[(x, 22.0), (x, bottom)], 1.2, ORANGE)?;
        let label = format!("all images: {:.1}%", 100.0 * self.top1);
        canvas.text(&label, (x, 11.0), 11.0, ORANGE, HPos::Center)
    }
}

fn shortened(name: &str, letters: usize) -> String {
    if name.chars().count() <= letters {
        return name.to_string();
    }
    name.chars().take(letters - 1).chain(['\u{2026}']).collect()
}

/// Estimated width of the longest of `names`.
fn width(names: &[String], font: f64) -> f64 {
    LETTER * font * names.iter().map(|name| name.chars().count()).max().unwrap_or(0) as f64
}
