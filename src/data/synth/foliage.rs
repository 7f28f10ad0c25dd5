//! Stems, blades of grass and leaves.

use super::raster::{Canvas, Frame, Rgb, V2, dim, ramp};

/// A stem, ray or blade of grass.
pub(super) struct Ribbon {
    /// Where it starts.
    pub from: V2,
    /// Where it ends.
    pub to: V2,
    /// Half its width at the start.
    pub half_width: f32,
    /// Sideways bow in lengths.
    pub bend: f32,
    /// Share of the width lost at the end.
    pub taper: f32,
    /// Width of the edge's blur, in half widths.
    pub soft: f32,
}

/// Paints a ribbon, rounded like a stem.
pub(super) fn ribbon(canvas: &mut Canvas, shape: &Ribbon, colour: Rgb) {
    let frame = Frame::between(shape.from, shape.to, shape.half_width);
    let (length, width) = frame.lengths();
    let bow = 4.0 * shape.bend * length / width.max(1e-6);
    let reach = 1.0 + shape.soft + 0.25 * bow.abs();
    let edge = canvas.grain() / width.max(1e-6) + shape.soft;
    canvas.patch(&frame, [0.0, 1.0], [-reach - 0.5, reach + 0.5], |u, v| {
        let off = v - bow * u * (1.0 - u);
        let inside = 1.0 - shape.taper * u - off.abs();
        (dim(colour, 1.0 - 0.35 * off.clamp(-1.0, 1.0)), 0.5 + inside / edge)
    });
}

/// Paints a pointed leaf with a midrib from `from` to `to`; `soft` blurs its edge (half widths).
pub(super) fn leaf(canvas: &mut Canvas, from: V2, to: V2, half_width: f32, soft: f32, colour: Rgb) {
    let frame = Frame::between(from, to, half_width);
    let edge = canvas.grain() / half_width + soft;
    canvas.patch(&frame, [0.0, 1.0], [-1.2, 1.2], |u, v| {
        let inside = (std::f32::consts::PI * u.powf(0.8)).sin().max(0.0) - v.abs();
        let rib = ramp(0.1, 0.0, v.abs());
        let vein = 0.12 * (40.0 * (u - 0.25 * v.abs())).sin();
        let side = if v > 0.0 { 0.88 } else { 1.06 };
        (dim(colour, side + vein + 0.35 * rib), 0.5 + inside / edge)
    });
}
