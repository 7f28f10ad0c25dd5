//! Plots as PNG and SVG from the same drawing code.
//!
//! A [`Figure`] draws in logical pixels on a [`Canvas`]. Bitmaps are drawn larger than they end up
//! and averaged down, which smooths lines and text. The text is DejaVu Sans (Bitstream Vera
//! licence) compiled into the program, so plots do not depend on the fonts of the machine.

use std::io::Cursor;
use std::path::Path;
use std::sync::OnceLock;

use image::imageops::{self, FilterType};
use image::{ImageFormat, RgbImage};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::error::{Error, Result};

/// Text and axes.
pub const INK: RGBColor = RGBColor(0x1f, 0x23, 0x28);
/// Secondary text.
pub const MUTED: RGBColor = RGBColor(0x6b, 0x72, 0x80);
/// Grid lines.
pub const GRID: RGBColor = RGBColor(0xd9, 0xdd, 0xe3);
/// First series, and what is right.
pub const BLUE: RGBColor = RGBColor(0x2f, 0x6f, 0xdb);
/// Second series, and what is wrong.
pub const ORANGE: RGBColor = RGBColor(0xd9, 0x6b, 0x0b);

/// Backend units of a logical pixel in SVG, where coordinates are whole numbers.
const SVG_SCALE: u32 = 8;
/// Bitmaps end up with at most this many pixels on a side, two for each logical pixel if they fit.
const MAX_SIDE: u32 = 4096;

/// Something that can be drawn.
pub trait Figure {
    /// Width and height in logical pixels.
    fn size(&self) -> (u32, u32);
    /// Draws everything but the background.
    fn draw<B: DrawingBackend>(&self, canvas: &Canvas<B>) -> Result<()>;
}

/// A plotters drawing area measured in logical pixels.
pub struct Canvas<B: DrawingBackend> {
    area: DrawingArea<B, Shift>,
    scale: f64,
    /// What the backend's text sits too high, as a share of its size.
    lift: f64,
}

impl<B: DrawingBackend> Canvas<B> {
    fn at(&self, (x, y): (f64, f64)) -> (i32, i32) {
        ((x * self.scale).round() as i32, (y * self.scale).round() as i32)
    }

    /// A line through `points`.
    pub fn line(&self, points: &[(f64, f64)], width: f64, colour: RGBColor) -> Result<()> {
        let style = colour.stroke_width((width * self.scale).round().max(1.0) as u32);
        let points: Vec<_> = points.iter().map(|&p| self.at(p)).collect();
        self.area.draw(&PathElement::new(points, style)).map_err(failed)
    }

    /// A filled rectangle between two corners, `opacity` in 0..1.
    pub fn rect(&self, corners: [(f64, f64); 2], colour: RGBColor, opacity: f64) -> Result<()> {
        let corners = corners.map(|p| self.at(p));
        self.area.draw(&Rectangle::new(corners, colour.mix(opacity).filled())).map_err(failed)
    }

    /// A filled circle.
    pub fn dot(&self, centre: (f64, f64), radius: f64, colour: RGBColor) -> Result<()> {
        let radius = (radius * self.scale).round() as i32;
        self.area.draw(&Circle::new(self.at(centre), radius, colour.filled())).map_err(failed)
    }

    /// Horizontal text of `size` pixels, `at` being its left, middle or right end at half height.
    pub fn text(
        &self,
        text: &str,
        at: (f64, f64),
        size: f64,
        colour: RGBColor,
        end: HPos,
    ) -> Result<()> {
        self.write(text, at, size, colour, end, FontTransform::None)
    }

    /// Text that reads upwards, `at` being its lower or upper end or its middle.
    pub fn text_up(
        &self,
        text: &str,
        at: (f64, f64),
        size: f64,
        colour: RGBColor,
        end: HPos,
    ) -> Result<()> {
        self.write(text, at, size, colour, end, FontTransform::Rotate270)
    }

    fn write(
        &self,
        text: &str,
        at: (f64, f64),
        size: f64,
        colour: RGBColor,
        end: HPos,
        transform: FontTransform,
    ) -> Result<()> {
        let drop = self.lift * size;
        let at = if matches!(transform, FontTransform::None) {
            (at.0, at.1 + drop)
        } else {
            (at.0 + drop, at.1)
        };
        // plotters' font size is the height of a line, 1.24 times what others call the size.
        let font = ("sans-serif", size * 1.24 * self.scale).into_font().transform(transform);
        let style = font.color(&colour).pos(Pos::new(end, VPos::Center));
        self.area.draw(&Text::new(text, self.at(at), style)).map_err(failed)
    }
}

/// The figure as an SVG document with transparent background.
pub fn svg(figure: &impl Figure) -> Result<String> {
    register_fonts()?;
    let (width, height) = figure.size();
    let (full_width, full_height) = (width * SVG_SCALE, height * SVG_SCALE);
    let mut text = String::new();
    let backend = SVGBackend::with_string(&mut text, (full_width, full_height));
    paint(
        figure,
        Canvas { area: backend.into_drawing_area(), scale: f64::from(SVG_SCALE), lift: 0.0 },
    )?;
    // Shown at its logical size; the view box keeps the fine coordinates.
    let full = format!("width=\"{full_width}\" height=\"{full_height}\"");
    Ok(text.replacen(&full, &format!("width=\"{width}\" height=\"{height}\""), 1))
}

/// The figure as a bitmap on white.
pub fn bitmap(figure: &impl Figure) -> Result<RgbImage> {
    register_fonts()?;
    let (width, height) = figure.size();
    let scale = (MAX_SIDE / width.max(height).max(1)).clamp(1, 2);
    let (large_width, large_height) = (width * scale * 2, height * scale * 2);
    let mut pixels = vec![255; (large_width * large_height * 3) as usize];
    let backend = BitMapBackend::with_buffer(&mut pixels, (large_width, large_height));
    paint(
        figure,
        Canvas { area: backend.into_drawing_area(), scale: f64::from(scale * 2), lift: 0.12 },
    )?;
    let large = RgbImage::from_raw(large_width, large_height, pixels)
        .ok_or_else(|| Error::Failed("a plot does not fit its bitmap".to_string()))?;
    Ok(imageops::resize(&large, width * scale, height * scale, FilterType::Triangle))
}

/// Writes `STEM.png` and `STEM.svg`.
pub fn save(stem: &Path, figure: &impl Figure) -> Result<()> {
    let mut png = Cursor::new(Vec::new());
    bitmap(figure)?.write_to(&mut png, ImageFormat::Png).map_err(failed)?;
    crate::files::write_atomically(&stem.with_extension("png"), png.get_ref())?;
    crate::files::write_atomically(&stem.with_extension("svg"), svg(figure)?.as_bytes())
}

fn paint<B: DrawingBackend>(figure: &impl Figure, canvas: Canvas<B>) -> Result<()> {
    figure.draw(&canvas)?;
    canvas.area.present().map_err(failed)
}

fn register_fonts() -> Result<()> {
    static DONE: OnceLock<bool> = OnceLock::new();
    let font = || register_font("sans-serif", FontStyle::Normal, dejavu::sans::regular()).is_ok();
    if *DONE.get_or_init(font) {
        Ok(())
    } else {
        Err(Error::Failed("the font compiled into the program cannot be read".to_string()))
    }
}

fn failed(reason: impl std::fmt::Display) -> Error {
    Error::Failed(format!("cannot draw a plot: {reason}"))
}
