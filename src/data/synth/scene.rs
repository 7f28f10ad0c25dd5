//! One photograph: a background out of focus, a plant that fills the picture, light and camera.

use std::f32::consts::TAU;
use std::ops::Range;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::foliage::{Ribbon, leaf, ribbon};
use super::petal::{Light, Plant};
use super::plant::{Place, grow};
use super::raster::{Canvas, Frame, dim, lit, mix, noise, ramp, srgb, unit};
use super::species::SPECIES;
use crate::data::Rgb8;

/// What a plant covers of the picture's width.
const DIAMETER: Range<f32> = 0.9..1.15;
/// How far its middle is from the picture's, along each side, at most.
const SLACK: f32 = 0.06;
/// Radians that it is turned away from the camera at most.
const TILT: f32 = 0.5;

/// Scales the size of what grows behind it.
const BOLD: f32 = 0.9;

/// Renders a picture of `size` pixels a side.
pub(super) fn photograph(species: usize, size: usize, rng: &mut ChaCha8Rng) -> Rgb8 {
    let light = draw_light(rng);
    let mut canvas = Canvas::new(size);
    backdrop(&mut canvas, &light, rng);
    canvas.blur(rng.random_range(0.006..0.028));

    let kind = &SPECIES[species];
    let at = [0, 1].map(|_| 0.5 + SLACK * rng.random_range(-1.0..1.0f32));
    let place = Place::draw(at, 0.5 * rng.random_range(DIAMETER), TILT, rng);
    cast_shadow(&mut canvas, &light, &place);
    let plant = Plant::draw(kind, rng);
    grow(&mut canvas, &light, &plant, &place, rng);

    canvas.blur(rng.random_range(0.0..0.008));
    let (exposure, grain) = (rng.random_range(0.7..1.35), rng.random_range(0.004..0.028));
    canvas.develop(exposure, grain, rng)
}

/// Sun or overcast, warm or cool, from any side above.
fn draw_light(rng: &mut ChaCha8Rng) -> Light {
    let warmth = rng.random_range(-1.0..1.0f32);
    let sunny = rng.random_range(0.15..1.0f32);
    let side = rng.random_range(0.0..TAU);
    let height = rng.random_range(0.35..1.2f32);
    Light {
        towards: unit([side.cos(), side.sin() - 0.3, height]),
        sun: dim([1.0 + 0.16 * warmth, 1.0, 1.0 - 0.24 * warmth], 0.25 + 0.75 * sunny),
        sky: dim([1.0 - 0.05 * warmth, 1.0, 1.06 + 0.08 * warmth], 0.72 - 0.47 * sunny),
    }
}

/// What lies far behind: lawn, soil, foliage or a bright blur.
fn backdrop(canvas: &mut Canvas, light: &Light, rng: &mut ChaCha8Rng) {
    let [dark, bright] = match rng.random_range(0..5u32) {
        0 => [[60, 42, 28], [134, 104, 76]],     // soil
        1 => [[24, 44, 26], [84, 122, 52]],      // foliage
        2 => [[66, 96, 38], [158, 176, 84]],     // lawn
        3 => [[120, 140, 160], [206, 216, 224]], // haze
        _ => [[18, 22, 24], [58, 66, 60]],       // shade
    }
    .map(|colour| lit(srgb(colour), light.on([0.0, 0.0, 1.0])));
    let salt: u32 = rng.random();
    let (scale, slope) = (rng.random_range(2.0..14.0f32), rng.random_range(-0.6..0.6f32));
    canvas.repaint(|[x, y], _| {
        let coarse = noise([x * scale, y * scale], salt);
        let fine = noise([x * scale * 3.1, y * scale * 3.1], salt ^ 1);
        mix(dark, bright, 0.65 * coarse + 0.35 * fine + slope * (y - 0.5))
    });
    greenery(canvas, light, rng.random_range(0..26), rng);
    for _ in 0..rng.random_range(0..14) {
        let at = [rng.random_range(0.0..1.0), rng.random_range(0.0..1.0f32)];
        let radius = rng.random_range(0.02..0.1f32);
        let glow = dim(mix(bright, [1.0, 0.95, 0.8], 0.5), rng.random_range(0.5..1.3));
        canvas.patch(&Frame::disc(at, radius), [-1.0, 1.0], [-1.0, 1.0], |u, v| {
            (glow, 0.4 * ramp(1.0, 0.85, u.hypot(v)))
        });
    }
}

/// Leaves and blades of grass across the picture.
fn greenery(canvas: &mut Canvas, light: &Light, count: usize, rng: &mut ChaCha8Rng) {
    let grass = rng.random_bool(0.5);
    for _ in 0..count {
        let tint = mix(srgb([44, 78, 30]), srgb([150, 176, 78]), rng.random_range(0.0..1.0));
        let normal = unit([rng.random_range(-0.8..0.8f32), rng.random_range(-0.8..0.8f32), 1.0]);
        let colour = lit(tint, light.on(normal));
        let x = rng.random_range(-0.1..1.1f32);
        let lean = rng.random_range(-0.9..0.9f32);
        let soft = rng.random_range(0.1..0.9f32);
        if grass {
            let (from, to) = ([x, 1.1], [x + 0.7 * lean, rng.random_range(-0.2..0.7)]);
            let half_width = BOLD * rng.random_range(0.008..0.022);
            let bend = rng.random_range(-0.12..0.12);
            ribbon(canvas, &Ribbon { from, to, half_width, bend, taper: 0.9, soft }, colour);
        } else {
            let from = [x, rng.random_range(-0.1..1.1f32)];
            let angle = rng.random_range(0.0..TAU);
            let length = rng.random_range(0.2..0.45) * (0.5 + 0.5 * BOLD);
            let to = [from[0] + length * angle.cos(), from[1] + length * angle.sin()];
            leaf(canvas, from, to, length * rng.random_range(0.12..0.26), 0.3 * soft, colour);
        }
    }
}

/// The soft shadow that a plant throws on what is behind it.
fn cast_shadow(canvas: &mut Canvas, light: &Light, place: &Place) {
    let away = |axis: usize| place.at[axis] - 0.35 * place.radius * light.towards[axis];
    let frame = Frame::disc([away(0), away(1)], place.radius);
    canvas.patch(&frame, [-1.3, 1.3], [-1.3, 1.3], |u, v| {
        ([0.01, 0.015, 0.01], 0.5 * ramp(1.3, 0.4, u.hypot(v)))
    });
}
