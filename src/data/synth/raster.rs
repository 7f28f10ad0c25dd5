//! A small software painter: shapes in linear light, supersampled, then developed into 8 bits.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

use crate::data::Rgb8;

/// Linear-light colour, 1 = white paper.
pub(super) type Rgb = [f32; 3];
/// A point or direction of the picture: x right, y down, the picture spans 0 to 1.
pub(super) type V2 = [f32; 2];
/// A point or direction of the scene: x right, y down, z towards the camera.
pub(super) type V3 = [f32; 3];

/// Samples per pixel and axis. Edges are antialiased analytically as well, so two are enough.
const SAMPLES: usize = 2;

/// `a + s * b`.
pub(super) fn plus(a: V3, s: f32, b: V3) -> V3 {
    [a[0] + s * b[0], a[1] + s * b[1], a[2] + s * b[2]]
}

/// The inner product.
pub(super) fn dot(a: V3, b: V3) -> f32 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

/// The cross product.
pub(super) fn cross(a: V3, b: V3) -> V3 {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}

/// The vector of length 1 along `a`.
pub(super) fn unit(a: V3) -> V3 {
    let inverse = dot(a, a).sqrt().max(1e-6).recip();
    a.map(|x| x * inverse)
}

/// `a` at `t = 0`, `b` at `t = 1`.
pub(super) fn mix(a: Rgb, b: Rgb, t: f32) -> Rgb {
    std::array::from_fn(|c| a[c] + t * (b[c] - a[c]))
}

/// Colour times brightness.
pub(super) fn dim(a: Rgb, s: f32) -> Rgb {
    a.map(|x| x * s)
}

/// Colour seen under a light.
pub(super) fn lit(a: Rgb, light: Rgb) -> Rgb {
    std::array::from_fn(|c| a[c] * light[c])
}

/// 0 below `from`, 1 above `to`, smooth between.
pub(super) fn ramp(from: f32, to: f32, x: f32) -> f32 {
    let t = ((x - from) / (to - from)).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

/// Smooth lattice noise in 0 to 1 with cells of side 1.
pub(super) fn noise(p: V2, salt: u32) -> f32 {
    let corner = |x: i32, y: i32| {
        let mut h = (x as u32).wrapping_mul(0x9e37_79b1) ^ (y as u32).wrapping_mul(0x85eb_ca77);
        h = (h ^ salt).wrapping_mul(0xc2b2_ae3d);
        h = (h ^ (h >> 15)).wrapping_mul(0x27d4_eb2f);
        (h >> 8) as f32 / (1 << 24) as f32
    };
    let (x, y) = (p[0].floor(), p[1].floor());
    let (fx, fy) = (ramp(0.0, 1.0, p[0] - x), ramp(0.0, 1.0, p[1] - y));
    let (x, y) = (x as i32, y as i32);
    let top = corner(x, y) + fx * (corner(x + 1, y) - corner(x, y));
    let bottom = corner(x, y + 1) + fx * (corner(x + 1, y + 1) - corner(x, y + 1));
    top + fy * (bottom - top)
}

/// Where a flat patch lies in the picture: `(u, v)` is at `origin + u * along + v * across`.
#[derive(Clone, Copy)]
pub(super) struct Frame {
    pub origin: V2,
    pub along: V2,
    pub across: V2,
}

impl Frame {
    /// A disc's frame: `u` and `v` in radii.
    pub fn disc(origin: V2, radius: f32) -> Self {
        Self { origin, along: [radius, 0.0], across: [0.0, radius] }
    }

    /// From `from` to `to` along `u` in 0 to 1; `v = 1` is `half_width` to the side.
    pub fn between(from: V2, to: V2, half_width: f32) -> Self {
        let along = [to[0] - from[0], to[1] - from[1]];
        let s = half_width / along[0].hypot(along[1]).max(1e-6);
        Self { origin: from, along, across: [-along[1] * s, along[0] * s] }
    }

    /// Lengths of `along` and `across` in the picture.
    pub fn lengths(&self) -> (f32, f32) {
        (self.along[0].hypot(self.along[1]), self.across[0].hypot(self.across[1]))
    }
}

/// The picture while it is painted: linear light, `SAMPLES` samples per pixel and axis.
pub(super) struct Canvas {
    side: usize,
    samples: Vec<Rgb>,
}

impl Canvas {
    /// A black picture of `size` pixels a side.
    pub fn new(size: usize) -> Self {
        let side = size * SAMPLES;
        Self { side, samples: vec![[0.0; 3]; side * side] }
    }

    /// The distance between samples, in picture units.
    pub fn grain(&self) -> f32 {
        1.0 / self.side as f32
    }

    /// Replaces every sample by a function of its place and its colour.
    pub fn repaint(&mut self, paint: impl Fn(V2, Rgb) -> Rgb) {
        let grain = self.grain();
        for (i, sample) in self.samples.iter_mut().enumerate() {
            let (x, y) = (i % self.side, i / self.side);
            *sample = paint([(x as f32 + 0.5) * grain, (y as f32 + 0.5) * grain], *sample);
        }
    }

    /// Paints a patch over the picture: `paint(u, v)` gives colour and opacity for `u` and `v`
    /// within `[min, max]`; outside nothing changes.
    pub fn patch(
        &mut self,
        frame: &Frame,
        u: [f32; 2],
        v: [f32; 2],
        paint: impl Fn(f32, f32) -> (Rgb, f32),
    ) {
        let det = frame.along[0] * frame.across[1] - frame.along[1] * frame.across[0];
        if det.abs() < 1e-9 {
            return; // seen edge on
        }
        let range = |axis: usize| {
            let corners = [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(i, j)| {
                frame.origin[axis] + u[i] * frame.along[axis] + v[j] * frame.across[axis]
            });
            let low = corners.iter().fold(f32::MAX, |a, &b| a.min(b)) * self.side as f32;
            let high = corners.iter().fold(f32::MIN, |a, &b| a.max(b)) * self.side as f32;
            low.max(0.0) as usize..((high + 1.0).max(0.0) as usize).min(self.side)
        };
        let (columns, grain) = (range(0), self.grain());
        for y in range(1) {
            let dy = (y as f32 + 0.5) * grain - frame.origin[1];
            for x in columns.clone() {
                let dx = (x as f32 + 0.5) * grain - frame.origin[0];
                let pu = (dx * frame.across[1] - dy * frame.across[0]) / det;
                let pv = (dy * frame.along[0] - dx * frame.along[1]) / det;
                if pu < u[0] || pu > u[1] || pv < v[0] || pv > v[1] {
                    continue;
                }
                let (colour, opacity) = paint(pu, pv);
                if opacity > 0.0 {
                    let sample = &mut self.samples[y * self.side + x];
                    *sample = mix(*sample, colour, opacity.min(1.0));
                }
            }
        }
    }

    /// Throws the picture out of focus: three box filters, nearly a Gaussian of deviation `sigma`
    /// (picture units).
    pub fn blur(&mut self, sigma: f32) {
        let radius = (sigma * self.side as f32).round() as usize;
        if radius == 0 {
            return;
        }
        let n = self.side;
        let mut line = vec![[0.0; 3]; n];
        for _ in 0..3 {
            for row in 0..n {
                box_filter(&mut self.samples, row * n, 1, radius, &mut line);
            }
            for column in 0..n {
                box_filter(&mut self.samples, column, n, radius, &mut line);
            }
        }
    }

    /// The 8-bit photograph: samples averaged, a soft shoulder instead of clipped highlights,
    /// sensor noise of relative strength `grain`, sRGB encoding.
    pub fn develop(&self, exposure: f32, grain: f32, rng: &mut ChaCha8Rng) -> Rgb8 {
        let size = self.side / SAMPLES;
        let mut out = Rgb8::new(size, size);
        for (i, pixel) in out.pixels.chunks_exact_mut(3).enumerate() {
            let corner = i / size * SAMPLES * self.side + i % size * SAMPLES;
            let luma_noise: f32 = rng.sample(StandardNormal);
            for (c, byte) in pixel.iter_mut().enumerate() {
                let sum: f32 = (0..SAMPLES * SAMPLES)
                    .map(|s| self.samples[corner + s / SAMPLES * self.side + s % SAMPLES][c])
                    .sum();
                let light = exposure * sum / (SAMPLES * SAMPLES) as f32;
                let film = (light * (1.0 + 0.18 * light) / (0.82 + 0.4 * light)).max(0.0);
                let own_noise: f32 = rng.sample(StandardNormal);
                let noise = grain * (0.7 * luma_noise + 0.7 * own_noise);
                *byte = (255.0 * (encode(film) + noise)).round().clamp(0.0, 255.0) as u8;
            }
        }
        out
    }
}

/// A running mean of `2 * radius + 1` samples along one row or column, edges repeated.
fn box_filter(samples: &mut [Rgb], start: usize, step: usize, radius: usize, line: &mut [Rgb]) {
    let n = line.len();
    for (i, value) in line.iter_mut().enumerate() {
        *value = samples[start + i * step];
    }
    let at = |i: isize| line[i.clamp(0, n as isize - 1) as usize];
    let r = radius as isize;
    let mut sum = (-r..=r).fold([0.0; 3], |sum, i| plus(sum, 1.0, at(i)));
    for i in 0..n as isize {
        samples[start + i as usize * step] = dim(sum, 1.0 / (2 * r + 1) as f32);
        sum = plus(plus(sum, 1.0, at(i + r + 1)), -1.0, at(i - r));
    }
}

/// sRGB's transfer curve.
fn encode(linear: f32) -> f32 {
    if linear <= 0.003_130_8 { 12.92 * linear } else { 1.055 * linear.powf(1.0 / 2.4) - 0.055 }
}

/// Linear light of an 8-bit sRGB colour.
pub(super) fn srgb(colour: [u8; 3]) -> Rgb {
    colour.map(|byte| (f32::from(byte) / 255.0).powf(2.2))
}
