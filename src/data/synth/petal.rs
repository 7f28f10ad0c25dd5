//! Petals: flat patches posed in three dimensions, with an outline, a pigment and a lit surface.

use std::f32::consts::PI;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::raster::{Canvas, Frame, Rgb, V3, cross, dim, dot, lit, mix, plus, ramp, srgb, unit};
use super::species::{Marking, Outline, Species, Whorl};

/// The sun and the sky of one picture.
pub(super) struct Light {
    /// Towards the sun, length 1.
    pub towards: V3,
    /// Colour and strength of the sun.
    pub sun: Rgb,
    /// Colour and strength of the light from everywhere.
    pub sky: Rgb,
}

impl Light {
    /// What falls on a surface with this normal. Petals are thin: light wraps around them.
    pub fn on(&self, normal: V3) -> Rgb {
        let facing = (0.25 + 0.75 * dot(normal, self.towards)).max(0.0);
        plus(self.sky, facing, self.sun)
    }
}

/// Three axes of length 1; the third is the direction a blossom faces.
pub(super) type Axes = [V3; 3];

/// Axes that face along `z`, turned by `spin` around it.
pub(super) fn facing(z: V3, spin: f32) -> Axes {
    let z = unit(z);
    let helper = if z[1].abs() < 0.9 { [0.0, 1.0, 0.0] } else { [1.0, 0.0, 0.0] };
    let side = unit(cross(helper, z));
    let x = plus(dim(side, spin.cos()), spin.sin(), cross(z, side));
    [x, cross(z, x), z]
}

/// `local` in the coordinates that `axes` are given in.
pub(super) fn turned(axes: &Axes, local: V3) -> V3 {
    plus(plus(dim(axes[0], local[0]), local[1], axes[1]), local[2], axes[2])
}

/// One blossom in the picture.
pub(super) struct Blossom {
    /// Centre: picture coordinates, and depth towards the camera.
    pub at: V3,
    /// How it is turned.
    pub axes: Axes,
    /// Its radius in the picture.
    pub radius: f32,
    /// 1 in full bloom, towards 0 a closing bud.
    pub open: f32,
}

/// What all blossoms of one plant share.
pub(super) struct Plant<'a> {
    /// What it is.
    pub species: &'a Species,
    /// Colour of its petals.
    pub petal: Rgb,
    /// Colour of what is drawn on them.
    pub accent: Rgb,
    /// Colour of its stem, leaves and sepals.
    pub green: Rgb,
}

impl<'a> Plant<'a> {
    /// A plant of this species: one of its colour morphs, slightly off.
    pub fn draw(species: &'a Species, rng: &mut ChaCha8Rng) -> Self {
        let [petal, accent] = species.morphs[rng.random_range(0..species.morphs.len())].map(srgb);
        let mut vary = |colour: Rgb, amount: f32| {
            let brightness = rng.random_range(1.0 - amount..1.0 + 0.5 * amount);
            let tint: Rgb =
                std::array::from_fn(|_| rng.random_range(1.0 - amount..1.0 + 0.5 * amount));
            dim(lit(colour, tint), brightness)
        };
        Self {
            species,
            petal: vary(petal, 0.2),
            accent: vary(accent, 0.2),
            green: vary(srgb([92, 140, 58]), 0.35),
        }
    }
}

/// How far inside its outline a point of a petal is: `u` from base (0) to tip (1), `v` across in
/// half widths. In half widths; negative outside.
fn margin(outline: Outline, u: f32, v: f32, aspect: f32) -> f32 {
    let side = v.abs();
    let round = |widest: f32, base: f32| {
        if u < widest {
            base + (1.0 - base) * (0.5 * PI * u / widest).sin()
        } else {
            (1.0 - ((u - widest) / (1.0 - widest)).powi(2)).max(0.0).sqrt()
        }
    };
    let (width, tip) = match outline {
        Outline::Round => (round(0.6, 0.25), 1.0),
        Outline::Pointed => ((PI * (0.14 + 0.86 * u.max(0.0))).sin().max(0.0).powf(0.85), 1.0),
        Outline::Notched => (round(0.68, 0.22), 0.84 + 0.32 * side.min(0.5)),
        Outline::Heart => (round(0.7, 0.08), 0.62 + 0.95 * side.min(0.42)),
        Outline::Strap => (round(0.75, 0.6).min(0.62 + u), 1.0),
        Outline::Frilled => {
            let tooth = (2.5 * v).rem_euclid(1.0) - 0.5;
            (0.2 + 0.85 * u, 0.97 - 0.26 * tooth.abs() - 0.12 * v * v)
        }
        Outline::Tubular => (0.62 + 0.2 * u + 0.25 * ramp(0.6, 0.85, u) - ramp(0.82, 1.05, u), 1.0),
    };
    (width - side).min((tip - u) * aspect).min(u * aspect + 0.02)
}

/// The colour of a petal's surface before light falls on it.
fn pigment(plant: &Plant, whorl: &Whorl, u: f32, v: f32) -> Rgb {
    let (petal, accent) = (plant.petal, plant.accent);
    let base = mix(petal, accent, 0.35 * (1.0 - ramp(0.0, 0.5, u)));
    match plant.species.marking {
        Marking::Plain => base,
        Marking::Eye => {
            let distance = u.hypot(v * whorl.half_width / whorl.length);
            mix(base, accent, 0.9 * (1.0 - ramp(0.3, 0.42, distance)))
        }
        Marking::Veined => {
            let vein = (9.0 * v / (0.4 + u)).cos().max(0.0).powi(4);
            dim(base, 1.0 - 0.35 * vein * (1.0 - u))
        }
        Marking::Stripe => mix(base, accent, 0.85 * (1.0 - ramp(0.1, 0.28, v.abs() + 0.2 * u))),
        Marking::Edged => {
            let inside = margin(whorl.outline, u, v, whorl.length / whorl.half_width);
            mix(base, accent, 0.85 * (1.0 - ramp(0.0, 0.3, inside)))
        }
        Marking::Spotted => {
            let freckle = (19.0 * u).sin() * (6.5 * v + 9.0 * u).sin();
            mix(base, accent, 0.9 * ramp(0.35, 0.6, freckle) * (1.0 - ramp(0.5, 0.7, u)))
        }
    }
}

/// One petal of a blossom.
pub(super) struct Petal<'a> {
    /// The whorl it belongs to.
    pub whorl: &'a Whorl,
    /// Where it points in the blossom's plane, radians.
    pub azimuth: f32,
    /// How far it rises out of that plane, radians.
    pub lift: f32,
    /// Its length relative to its whorl's.
    pub stretch: f32,
}

impl Petal<'_> {
    /// Directions in the scene: outwards in the blossom's plane, along the petal, across it.
    pub fn directions(&self, blossom: &Blossom) -> [V3; 3] {
        let (sin, cos) = self.azimuth.sin_cos();
        let radial = turned(&blossom.axes, [cos, sin, 0.0]);
        let along = plus(dim(radial, self.lift.cos()), self.lift.sin(), blossom.axes[2]);
        [radial, along, turned(&blossom.axes, [-sin, cos, 0.0])]
    }

    /// Paints it, and its shadow on what lies below.
    pub fn paint(&self, canvas: &mut Canvas, light: &Light, plant: &Plant, blossom: &Blossom) {
        let whorl = self.whorl;
        let [_, along, across] = self.directions(blossom);
        let near = 1.0 + 0.3 * along[2] * whorl.length; // perspective of a close-up
        let long = blossom.radius * whorl.length * self.stretch * near.sqrt();
        let wide = blossom.radius * whorl.half_width * near;
        let frame = Frame {
            origin: [blossom.at[0], blossom.at[1]],
            along: [along[0] * long, along[1] * long],
            across: [across[0] * wide, across[1] * wide],
        };
        let aspect = whorl.length / whorl.half_width;
        let fallen = |axis: usize| blossom.at[axis] - 0.07 * blossom.radius * light.towards[axis];
        let shadow = Frame { origin: [fallen(0), fallen(1)], ..frame };
        canvas.patch(&shadow, [0.1, 1.1], [-1.2, 1.2], |u, v| {
            ([0.01, 0.012, 0.02], 0.45 * ramp(-0.12, 0.3, margin(whorl.outline, u, v, aspect)))
        });
        let front = cross(along, across);
        let (normal, side) = if front[2] < 0.0 { (dim(front, -1.0), 0.72) } else { (front, 1.0) };
        let edge = (canvas.grain() / frame.lengths().1.max(1e-4)).min(0.5);
        canvas.patch(&frame, [-0.02, 1.02], [-1.1, 1.1], |u, v| {
            let inside = margin(whorl.outline, u, v, aspect);
            if inside < -edge {
                return ([0.0; 3], 0.0);
            }
            let colour = if whorl.sepals { plant.green } else { pigment(plant, whorl, u, v) };
            let bent = unit(plus(plus(normal, 0.55 * v, across), 0.7 * (u - 0.35), along));
            let crevice = 0.45 + 0.55 * ramp(0.0, 0.45, u);
            let rim = 0.7 + 0.3 * ramp(0.0, 0.2, inside);
            (lit(dim(colour, crevice * rim * side), light.on(bent)), 0.5 + 0.5 * inside / edge)
        });
    }
}
