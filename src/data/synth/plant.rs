//! Plants: a stem, leaves, and blossoms in the arrangement of the species.

use std::f32::consts::{PI, TAU};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::blossom;
use super::foliage::{Ribbon, leaf, ribbon};
use super::petal::{Axes, Blossom, Light, Plant, facing, turned};
use super::raster::{Canvas, Frame, Rgb, V2, V3, dim, lit, plus, ramp, unit};
use super::species::Inflorescence;

/// Where a plant stands in the picture.
pub(super) struct Place {
    /// The middle of what its blossoms cover.
    pub at: V2,
    /// The radius of what they cover.
    pub radius: f32,
    /// How it is turned; a single blossom faces along the third axis.
    axes: Axes,
}

impl Place {
    /// Turned up to `tilt` radians away from the camera.
    pub fn draw(at: V2, radius: f32, tilt: f32, rng: &mut ChaCha8Rng) -> Self {
        // Flowers look up more often than down.
        let towards = -0.5 * PI + rng.random_range(-1.0..1.0f32).powi(3) * PI;
        let (sin, cos) = (tilt * rng.random_range(0.0..1.0f32).sqrt()).sin_cos();
        let z = [sin * towards.cos(), sin * towards.sin(), cos];
        Self { at, radius, axes: facing(z, rng.random_range(0.0..TAU)) }
    }

    /// Its middle in the scene.
    fn centre(&self) -> V3 {
        [self.at[0], self.at[1], 0.0]
    }

    /// The direction `angle` away from where the plant faces.
    fn direction(&self, angle: f32, azimuth: f32) -> V3 {
        let (sin, cos) = angle.sin_cos();
        turned(&self.axes, [sin * azimuth.cos(), sin * azimuth.sin(), cos])
    }

    /// A blossom at `offset` from the middle; offset and radius in radii of the plant.
    fn blossom(&self, offset: V3, face: V3, radius: f32, open: f32) -> Blossom {
        let at = plus(self.centre(), self.radius, offset);
        Blossom { at, axes: facing(face, 0.0), radius: self.radius * radius, open }
    }
}

/// Paints a plant: stem, then its blossoms from far to near.
pub(super) fn grow(
    canvas: &mut Canvas,
    light: &Light,
    plant: &Plant,
    place: &Place,
    rng: &mut ChaCha8Rng,
) {
    let lean = rng.random_range(-0.9..0.9f32) + if rng.random_bool(0.12) { PI } else { 0.0 };
    let up = unit([lean.sin(), -lean.cos(), rng.random_range(-0.3..0.3)]);
    let green = lit(plant.green, light.on([0.0, 0.0, 1.0]));
    let half_width = (0.045 * place.radius).clamp(0.004, 0.02);
    stem(canvas, plant, place, up, half_width, green, rng);
    let mut blossoms = arrange(plant.species.inflorescence, place, up, rng);
    blossoms.sort_by(|a, b| a.at[2].total_cmp(&b.at[2]));
    match plant.species.inflorescence {
        Inflorescence::Cluster | Inflorescence::Umbel => {
            let hub = plus(place.centre(), -0.75 * place.radius, place.axes[2]);
            for b in &blossoms {
                let (from, to) = (point(hub), point(b.at));
                let ray = Ribbon {
                    from,
                    to,
                    half_width: 0.5 * half_width,
                    bend: 0.02,
                    taper: 0.2,
                    soft: 0.0,
                };
                ribbon(canvas, &ray, dim(green, 0.9));
            }
        }
        Inflorescence::Ball => {
            let core = Frame::disc(place.at, 0.8 * place.radius);
            canvas.patch(&core, [-1.0, 1.0], [-1.0, 1.0], |u, v| {
                (dim(green, 0.35), ramp(1.0, 0.9, u.hypot(v)))
            });
        }
        Inflorescence::Single | Inflorescence::Raceme => {}
    }
    for b in &blossoms {
        blossom::paint(canvas, light, plant, b, rng);
    }
}

/// Paints the stem, up to the top of a raceme or the middle of anything else, and its leaves.
fn stem(
    canvas: &mut Canvas,
    plant: &Plant,
    place: &Place,
    up: V3,
    half_width: f32,
    green: Rgb,
    rng: &mut ChaCha8Rng,
) {
    let raceme = plant.species.inflorescence == Inflorescence::Raceme;
    let (top, bow) = if raceme { (0.95 * place.radius, 0.0) } else { (0.0, 0.04) };
    let (foot, to) = (plus(place.centre(), -1.5, up), point(plus(place.centre(), top, up)));
    let bend = bow * rng.random_range(-1.0..1.0);
    let stalk = Ribbon { from: point(foot), to, half_width, bend, taper: 0.3, soft: 0.0 };
    ribbon(canvas, &stalk, green);
    for _ in 0..rng.random_range(0..3) {
        let from = point(plus(foot, rng.random_range(0.3..1.3), up));
        let angle = rng.random_range(0.0..TAU);
        let length = place.radius * rng.random_range(0.4..1.0);
        let to = [from[0] + length * angle.cos(), from[1] + length * angle.sin()];
        leaf(canvas, from, to, 0.18 * length, 0.05, green);
    }
}

/// The picture point of a scene point.
fn point(p: V3) -> V2 {
    [p[0], p[1]]
}

/// The blossoms of a plant; `up` is the direction of the stem.
fn arrange(kind: Inflorescence, place: &Place, up: V3, rng: &mut ChaCha8Rng) -> Vec<Blossom> {
    let spin = rng.random_range(0.0..TAU);
    let few = rng.random_range(5..=7);
    let mut jitter = |x: f32| rng.random_range(-x..x);
    let facing_us = place.axes[2];
    match kind {
        Inflorescence::Single => vec![place.blossom([0.0; 3], facing_us, 1.0, 1.0)],
        Inflorescence::Cluster => spiral(few, spin, |k, azimuth| {
            let angle = 1.1 * ((k as f32 + 0.1) / few as f32).sqrt() + jitter(0.12);
            let d = place.direction(angle, azimuth + jitter(0.3));
            place.blossom(dim(d, 0.75), plus(d, 0.8, facing_us), 0.42 + jitter(0.07), 1.0)
        }),
        Inflorescence::Umbel => spiral(19, spin, |k, azimuth| {
            let d =
                place.direction(1.15 * ((k as f32 + 0.4) / 19.0).sqrt() + jitter(0.05), azimuth);
            let offset = plus(dim(d, 0.92), -0.35, facing_us);
            place.blossom(offset, plus(d, 0.4, facing_us), 0.2 + jitter(0.03), 1.0)
        }),
        Inflorescence::Ball => {
            let mut florets = spiral(64, spin, |k, azimuth| {
                let angle = (1.0 - 2.0 * (k as f32 + 0.5) / 64.0).acos() + jitter(0.08);
                let d = place.direction(angle, azimuth);
                place.blossom(dim(d, 0.8), d, 0.24 + jitter(0.03), 1.0)
            });
            florets.retain(|floret| floret.axes[2][2] > -0.1); // the rest is behind the ball
            florets
        }
        Inflorescence::Raceme => {
            let stem = facing(up, 0.0);
            spiral(12, spin, |k, azimuth| {
                let height = k as f32 / 11.0;
                let (sin, cos) = (azimuth + jitter(0.2)).sin_cos();
                let out = turned(&stem, [cos, sin, 0.0]);
                let offset = plus(dim(out, 0.1 * (1.2 - height)), -0.85 + 1.75 * height, up);
                let hanging = plus(out, -0.75 + jitter(0.2), up);
                let radius = 0.34 - 0.2 * height + jitter(0.015);
                place.blossom(offset, hanging, radius, ramp(1.15, 0.55, height))
            })
        }
    }
}

/// `count` blossoms, each a golden angle further around than the last: `place(k, azimuth)`.
fn spiral(count: usize, spin: f32, mut place: impl FnMut(usize, f32) -> Blossom) -> Vec<Blossom> {
    const GOLDEN: f32 = 2.399_963;
    (0..count).map(|k| place(k, spin + GOLDEN * k as f32)).collect()
}
