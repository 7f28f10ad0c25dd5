//! Operations that move or cover pixels.

use super::resize::CropBox;
use crate::data::Rgb8;

/// What shows where a moved image leaves the canvas empty.
const UNCOVERED: [u8; 3] = [128; 3];
/// What a cutout is filled with: the rounded ImageNet mean.
pub const CUTOUT: [u8; 3] = [125, 122, 113];

fn pixels(image: &mut Rgb8) -> &mut [[u8; 3]] {
    image.pixels.as_chunks_mut().0
}

/// Mirrors left and right.
pub(super) fn horizontal_flip(image: &mut Rgb8) {
    let width = image.width;
    for row in pixels(image).chunks_exact_mut(width) {
        row.reverse();
    }
}

/// Fills the part of `area` that lies inside the image.
pub(super) fn cutout(image: &mut Rgb8, area: CropBox) {
    let width = image.width;
    let columns = area.x.min(width)..(area.x + area.w).min(width);
    let rows = pixels(image).chunks_exact_mut(width);
    for row in rows.skip(area.y).take(area.h) {
        row[columns.clone()].fill(CUTOUT);
    }
}

/// Replaces every pixel by the one that `source(x, y)` names; `None` leaves it uncovered.
fn rearrange(image: &mut Rgb8, source: impl Fn(usize, usize) -> Option<usize>) {
    let width = image.width;
    let before = image.pixels.clone();
    let before = before.as_chunks().0;
    for (y, row) in pixels(image).chunks_exact_mut(width).enumerate() {
        for (x, pixel) in row.iter_mut().enumerate() {
            *pixel = source(x, y).map_or(UNCOVERED, |i| before[i]);
        }
    }
}

/// Nearest-neighbour shift by fractions of a pixel: the source of column `x` is `x + dx`.
pub(super) fn translate(image: &mut Rgb8, dx: f64, dy: f64) {
    let (width, height) = (image.width, image.height);
    let source = |i: usize, shift: f64, len: usize| {
        let at = i as f64 + 0.5 + shift;
        (at >= 0.0 && at < len as f64).then_some(at as usize)
    };
    let columns: Vec<_> = (0..width).map(|x| source(x, dx, width)).collect();
    rearrange(image, |x, y| Some(source(y, dy, height)? * width + columns[x]?));
}

/// A counter-clockwise rotation about the centre, on the same canvas: the source of pixel `(x, y)` is
/// `start + x along + y down`, as (column, row) in 16.16 fixed point, in which PIL walks the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// The source of the first pixel.
    pub start: [i64; 2],
    /// From one column to the next.
    pub along: [i64; 2],
    /// From one row to the next.
    pub down: [i64; 2],
}

impl Rotation {
    /// Of an image of `width` and `height` pixels.
    pub fn new(degrees: f64, width: usize, height: usize) -> Self {
        let (sin, cos) = degrees.to_radians().sin_cos();
        let (cx, cy) = (width as f64 / 2.0, height as f64 / 2.0);
        let fixed = |v: f64| (v * 65536.0 + 0.5).floor() as i64;
        let x0 = fixed(cx - cos * (cx - 0.5) + sin * (cy - 0.5));
        let y0 = fixed(cy - sin * (cx - 0.5) - cos * (cy - 0.5));
        let (sin, minus_sin, cos) = (fixed(sin), fixed(-sin), fixed(cos));
        Self { start: [x0, y0], along: [cos, sin], down: [minus_sin, cos] }
    }
}

/// Nearest-neighbour rotation about the centre, counter-clockwise, on the same canvas.
pub(super) fn rotate(image: &mut Rgb8, degrees: f64) {
    let (width, height) = (image.width, image.height);
    let Rotation { start, along, down } = Rotation::new(degrees, width, height);
    rearrange(image, |x, y| {
        let source =
            |axis: usize| (start[axis] + along[axis] * x as i64 + down[axis] * y as i64) >> 16;
        let (x, y) = (usize::try_from(source(0)).ok()?, usize::try_from(source(1)).ok()?);
        (x < width && y < height).then_some(y * width + x)
    });
}

/// Bicubic shear along rows: the source of column `x` is `x + slope * y`, in pixel-centre
/// coordinates from the top-left corner.
pub(super) fn shear_x(image: &mut Rgb8, slope: f64) {
    let width = image.width;
    let before = image.pixels.clone();
    let rows = before.as_chunks().0.chunks_exact(width);
    for (y, (row, from)) in pixels(image).chunks_exact_mut(width).zip(rows).enumerate() {
        let shift = slope * (y as f64 + 0.5);
        for (x, pixel) in row.iter_mut().enumerate() {
            *pixel = cubic(x as f64 + 0.5 + shift, width, |x| from[x]);
        }
    }
}

/// Bicubic shear along columns: the source of row `y` is `y + slope * x`.
pub(super) fn shear_y(image: &mut Rgb8, slope: f64) {
    let (width, height) = (image.width, image.height);
    let before = image.pixels.clone();
    let before = before.as_chunks().0;
    for (y, row) in pixels(image).chunks_exact_mut(width).enumerate() {
        for (x, pixel) in row.iter_mut().enumerate() {
            let at = y as f64 + 0.5 + slope * (x as f64 + 0.5);
            *pixel = cubic(at, height, |y| before[y * width + x]);
        }
    }
}

/// PIL's cubic interpolation of a line of `len` pixels at `at` (pixel `i` covers `i..i + 1`), edge
/// pixels repeated. In geometric transforms PIL's coefficient is a = -1, not the resize's -0.5.
fn cubic(at: f64, len: usize, pixel: impl Fn(usize) -> [u8; 3]) -> [u8; 3] {
    if at < 0.0 || at >= len as f64 {
        return UNCOVERED;
    }
    let base = (at - 0.5).floor();
    let d = at - 0.5 - base;
    let tap = |k: isize| pixel((base as isize + k).clamp(0, len as isize - 1) as usize);
    let taps = [tap(-1), tap(0), tap(1), tap(2)];
    std::array::from_fn(|c| {
        let [a, b, e, f] = taps.map(|pixel| f64::from(pixel[c]));
        let cube = b - a + f - e;
        (b + d * (e - a + d * (2.0 * (a - b) + e - f + d * cube))) as u8
    })
}
