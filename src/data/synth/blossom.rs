//! Blossoms: whorls of petals around a centre, painted back to front.

use std::f32::consts::TAU;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::foliage::{Ribbon, ribbon};
use super::petal::{Blossom, Light, Petal, Plant, turned};
use super::raster::{Canvas, Frame, Rgb, V2, V3, dim, lit, mix, plus, ramp, srgb, unit};
use super::species::Centre;

/// Paints a blossom: far petals, centre, then the near petals that fold over it.
pub(super) fn paint(
    canvas: &mut Canvas,
    light: &Light,
    plant: &Plant,
    blossom: &Blossom,
    rng: &mut ChaCha8Rng,
) {
    let spin = rng.random_range(0.0..TAU);
    let droop = rng.random_range(-0.12..0.12);
    let mut petals = Vec::new();
    for (w, whorl) in plant.species.whorls.iter().enumerate() {
        let step = TAU / whorl.petals as f32;
        for k in 0..whorl.petals {
            let azimuth = spin + step * (k as f32 + 0.5 * w as f32 + rng.random_range(-0.09..0.09));
            let lift = whorl.lift + droop + rng.random_range(-0.07..0.07);
            let lift = lift + (1.0 - blossom.open) * (1.35 - lift);
            let petal = Petal { whorl, azimuth, lift, stretch: rng.random_range(0.9..1.08) };
            petals.push((order(&petal, w, blossom), petal));
        }
    }
    petals.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let split = petals.partition_point(|(order, _)| *order < 0.0);
    let from_below = blossom.axes[2][2] < -0.2; // petals hide the centre
    if from_below {
        centre(canvas, light, plant, blossom, rng);
    }
    for (_, petal) in &petals[..split] {
        petal.paint(canvas, light, plant, blossom);
    }
    if !from_below && blossom.open > 0.5 {
        centre(canvas, light, plant, blossom, rng);
    }
    for (_, petal) in &petals[split..] {
        petal.paint(canvas, light, plant, blossom);
    }
}

/// When to paint a petal: the centre is at 0, what is nearer to the camera comes later.
///
/// Outer whorls lie under inner ones, except where a cup's near wall rises before the centre.
fn order(petal: &Petal, whorl: usize, blossom: &Blossom) -> f32 {
    let [radial, along, _] = petal.directions(blossom);
    let leans_in = along[0] * radial[0] + along[1] * radial[1] < 0.0;
    let from_below = blossom.axes[2][2] < 0.0 && along[2] > 0.0;
    let row = 10.0 * (whorl + 1) as f32;
    along[2] + if leans_in || from_below { 50.0 - row } else { row - 50.0 }
}

/// A point of a blossom (in radii) in the picture.
fn project(blossom: &Blossom, local: V3) -> V2 {
    let p = plus(blossom.at, blossom.radius, turned(&blossom.axes, local));
    [p[0], p[1]]
}

/// Paints the middle of a blossom.
fn centre(
    canvas: &mut Canvas,
    light: &Light,
    plant: &Plant,
    blossom: &Blossom,
    rng: &mut ChaCha8Rng,
) {
    let (pollen, heart) = (srgb([232, 178, 40]), srgb([112, 62, 30]));
    match plant.species.centre {
        Centre::Hidden => {}
        Centre::Dome(radius, height) => {
            let ripe = rng.random_range(0.0..0.9);
            dome(canvas, light, blossom, [radius, height], mix(pollen, heart, ripe));
        }
        Centre::Star(radius) => star(canvas, light, blossom, radius, plant.accent),
        Centre::Stamens(count, length) => {
            let tint = mix(mix(plant.accent, pollen, 0.6), [0.8, 0.9, 0.6], 0.4);
            let colour = lit(tint, light.on([0.0, 0.0, 1.0]));
            let half_width = (0.022 * blossom.radius).max(0.6 * canvas.grain());
            for k in 0..count {
                // A tuft fills a dome, a few stamens splay alike.
                let splay = if count > 8 { ((k as f32 + 0.5) / count as f32).sqrt() } else { 0.75 };
                let (sin, cos) = (2.4 * k as f32 + rng.random_range(-0.2..0.2)).sin_cos();
                let (reach, rise) = (length * splay, length * (1.1 - 0.6 * splay));
                let from = project(blossom, [0.0; 3]);
                let to = project(blossom, [cos * reach, sin * reach, rise]);
                let filament = Ribbon { from, to, half_width, bend: 0.1, taper: 0.2, soft: 0.0 };
                ribbon(canvas, &filament, colour);
                let anther = mix(pollen, heart, if k % 2 == 0 { 0.1 } else { 0.55 });
                ball(canvas, light, to, 2.6 * half_width, anther);
            }
        }
    }
}

/// A dome or cone of florets: discs stacked along the axis, each with a spiral of bumps.
fn dome(canvas: &mut Canvas, light: &Light, blossom: &Blossom, size: [f32; 2], colour: Rgb) {
    let [radius, height] = size;
    const SLICES: usize = 7;
    for slice in 0..SLICES {
        let t = slice as f32 / SLICES as f32;
        let r = radius * (1.0 - t * t).sqrt() * blossom.radius;
        let origin = project(blossom, [0.0, 0.0, height * t]);
        let [x, y, z] = blossom.axes;
        let frame = Frame { origin, along: [x[0] * r, x[1] * r], across: [y[0] * r, y[1] * r] };
        let edge = canvas.grain() / r;
        canvas.patch(&frame, [-1.0, 1.0], [-1.0, 1.0], |u, v| {
            let d = u.hypot(v);
            let angle = v.atan2(u); // two families of spirals, as in a sunflower
            let bump = (8.0 * angle + 26.0 * d * (1.0 - 0.6 * t)).sin()
                * (5.0 * angle - 20.0 * d + 2.0 * t).sin();
            let slope = (d * (1.0 - t) + t).min(1.0);
            let outward = plus(dim(x, u), v, y);
            let normal = unit(plus(z, 1.2 * slope, outward));
            let tone = (0.55 + 0.45 * t + 0.4 * bump) * (0.6 + 0.4 * ramp(1.0, 0.6, d));
            (lit(dim(colour, tone), light.on(normal)), 0.5 + (1.0 - d) / edge)
        });
    }
}

/// A flat star with five points and a dark eye.
fn star(canvas: &mut Canvas, light: &Light, blossom: &Blossom, radius: f32, colour: Rgb) {
    let r = radius * blossom.radius;
    let origin = project(blossom, [0.0, 0.0, 0.08]);
    let [x, y, z] = blossom.axes;
    let frame = Frame { origin, along: [x[0] * r, x[1] * r], across: [y[0] * r, y[1] * r] };
    let (edge, shade) = (canvas.grain() / r, light.on(z));
    canvas.patch(&frame, [-1.0, 1.0], [-1.0, 1.0], |u, v| {
        let (d, angle) = (u.hypot(v), v.atan2(u));
        let fold = ((angle / TAU * 5.0).rem_euclid(1.0) - 0.5).abs() * 2.0; // 1 at a point
        let inside = 0.38 + 0.62 * fold.powf(1.6) - d;
        let tone = mix(dim(colour, 0.75 + 0.25 * fold), [0.02, 0.015, 0.01], ramp(0.26, 0.16, d));
        (lit(tone, shade), 0.5 + inside / edge)
    });
}

/// A small lit ball.
fn ball(canvas: &mut Canvas, light: &Light, at: V2, radius: f32, colour: Rgb) {
    let edge = canvas.grain() / radius;
    canvas.patch(&Frame::disc(at, radius), [-1.0, 1.0], [-1.0, 1.0], |u, v| {
        let d2 = (u * u + v * v).min(1.0);
        (lit(colour, light.on([u, v, (1.0 - d2).sqrt()])), 0.5 + (1.0 - d2.sqrt()) / edge)
    });
}
