//! 3 x 3 convolutions of each channel by itself (stride 1, one zero around the map), on channels
//! that lie side by side so that vectors run over channels, with the GELU that follows them.
//!
//! A map of a first stage is larger than a core's cache, and each pass over it costs as much as the
//! arithmetic. So either direction is one pass over rows: the three rows around the current one are
//! in a small `Rows`, and what the backward needs of the forward it computes again. Maps may be bf16,
//! as products leave and read them: `pairs` is the same for those.

mod pairs;
mod rows;

use self::rows::{Block, Row, Rows};
use crate::check::check_len;
use crate::gelu::gelu;
use crate::matrix::{Matrix, Precision};
use crate::simd::{Kernel, Level, PANEL, Simd};
use std::ops::Range;

/// Taps of the convolution.
const TAPS: usize = 9;

/// Sizes of a batch of maps `[batch, height, width, channels]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapShape {
    /// Maps.
    pub batch: usize,
    /// Rows of a map.
    pub height: usize,
    /// Columns of a map.
    pub width: usize,
    /// Channels of a token.
    pub channels: usize,
}

impl MapShape {
    pub(crate) fn values(&self) -> usize {
        self.batch * self.height * self.width * self.channels
    }

    /// f32 or pairs of a map.
    pub(crate) fn cells(&self, precision: Precision) -> usize {
        self.batch * self.height * self.width * precision.cells(self.channels)
    }

    /// Blocks that hold the channels of a token.
    fn blocks(&self) -> usize {
        self.channels.div_ceil(PANEL)
    }

    /// Where vectors of `S` lie: the block, the lanes in it and the first channel.
    #[inline(always)]
    fn vectors<S: Simd>(&self) -> impl Iterator<Item = (usize, Range<usize>, usize)> + use<S> {
        S::pieces(self.channels).map(|channels| {
            let (block, lane) = (channels.start / PANEL, channels.start % PANEL);
            (block, lane..lane + S::LANES, channels.start)
        })
    }
}

/// `out = GELU(conv(x) + bias)`, overwritten. `x`, `out`: `[batch, height, width, channels]`, each
/// token a row of a [`Matrix`], both in f32 or both in bf16; `weight`: `[channels, 3, 3]`, `bias`:
/// `[channels]`. In bf16 the weight is rounded, too.
///
/// # Panics
/// If a slice has not the length that `shape` implies, or the maps differ in precision.
pub fn depthwise_gelu_forward<'a>(
    shape: &MapShape,
    x: impl Into<Matrix<&'a [f32]>>,
    weight: &[f32],
    bias: &[f32],
    out: impl Into<Matrix<&'a mut [f32]>>,
) {
    forward_at(Level::current(), shape, x.into(), [weight, bias], out.into());
}

fn forward_at(
    level: Level,
    shape: &MapShape,
    x: Matrix<&[f32]>,
    [weight, bias]: [&[f32]; 2],
    out: Matrix<&mut [f32]>,
) {
    check_len("x", x.cells, shape.cells(x.precision));
    check_len("the weight", weight, TAPS * shape.channels);
    check_len("the bias", bias, shape.channels);
    check_len("the output", out.cells, shape.cells(out.precision));
    assert_eq!(x.precision, out.precision, "maps of different precision");
    level.run(Forward { shape, x, taps: &taps_of(weight, bias), out });
}

/// `dx` (overwritten) from `dout`, the gradient of what [`depthwise_gelu_forward`] returned for `x`;
/// the gradients of weight and bias are added to `dweight` and `dbias`. Shapes and precisions as there;
/// in bf16 the gradient before GELU is rounded, too.
///
/// # Panics
/// If a slice has not the length that `shape` implies, or the maps differ in precision.
pub fn depthwise_gelu_backward<'a>(
    shape: &MapShape,
    [dout, x]: [Matrix<&'a [f32]>; 2],
    weight: &[f32],
    bias: &[f32],
    dx: impl Into<Matrix<&'a mut [f32]>>,
    [dweight, dbias]: [&mut [f32]; 2],
) {
    let sums = [dweight, dbias];
    backward_at(Level::current(), shape, [dout, x], [weight, bias], dx.into(), sums);
}

fn backward_at(
    level: Level,
    shape: &MapShape,
    [dout, x]: [Matrix<&[f32]>; 2],
    [weight, bias]: [&[f32]; 2],
    dx: Matrix<&mut [f32]>,
    [dweight, dbias]: [&mut [f32]; 2],
) {
    check_len("dout", dout.cells, shape.cells(dout.precision));
    check_len("x", x.cells, shape.cells(x.precision));
    check_len("the weight", weight, TAPS * shape.channels);
    check_len("the bias", bias, shape.channels);
    check_len("dx", dx.cells, shape.cells(dx.precision));
    check_len("dweight", dweight, weight.len());
    check_len("dbias", dbias, shape.channels);
    assert!(
        dout.precision == x.precision && dx.precision == x.precision,
        "maps of different precision"
    );
    let taps = taps_of(weight, bias);
    let mut dtaps = vec![[Block::ZEROS; TAPS + 1]; taps.len()];
    level.run(Backward { shape, dout, x, taps: &taps, dx, dtaps: &mut dtaps });
    for (channel, dtap) in dweight.iter_mut().enumerate() {
        let (channel, tap) = (channel / TAPS, channel % TAPS);
        *dtap += dtaps[channel / PANEL][tap][channel % PANEL];
    }
    for (channel, dbias) in dbias.iter_mut().enumerate() {
        *dbias += dtaps[channel / PANEL][TAPS][channel % PANEL];
    }
}

/// The taps of a block's channels, then their bias.
type Taps = [Block; TAPS + 1];

/// `weight` `[channels, 9]` and `bias` by blocks, zeros for the channels that the last one lacks.
fn taps_of(weight: &[f32], bias: &[f32]) -> Vec<Taps> {
    let mut taps = vec![[Block::ZEROS; TAPS + 1]; bias.len().div_ceil(PANEL)];
    for (channel, (weight, &bias)) in weight.chunks_exact(TAPS).zip(bias).enumerate() {
        let taps = &mut taps[channel / PANEL];
        for (tap, &value) in taps.iter_mut().zip(weight.iter().chain([&bias])) {
            tap[channel % PANEL] = value;
        }
    }
    taps
}

/// For each token of a row: `start` and the products of the nine tokens around it with nine taps,
/// summed.
#[inline(always)]
fn convolve<'a, S: Simd>(
    around: impl Iterator<Item = [&'a [Block; 3]; 3]>,
    lanes: &Range<usize>,
    taps: &[S; TAPS],
    start: S,
    values: &mut [S],
) {
    for (around, value) in around.zip(values) {
        // A sum for each row: fewer steps wait for each other.
        let mut sums = [start, S::splat(0.0), S::splat(0.0)];
        for ((row, taps), sum) in around.iter().zip(taps.as_chunks::<3>().0).zip(&mut sums) {
            for (token, &tap) in row.iter().zip(taps) {
                *sum = S::load(&token[lanes.clone()]).mul_add(tap, *sum);
            }
        }
        *value = sums[0] + sums[1] + sums[2];
    }
}

/// The given lanes of nine taps.
#[inline(always)]
fn load_taps<S: Simd>(taps: &Taps, lanes: &Range<usize>) -> [S; TAPS] {
    let mut loaded = [S::splat(0.0); TAPS];
    for (to, tap) in loaded.iter_mut().zip(taps) {
        *to = S::load(&tap[lanes.clone()]);
    }
    loaded
}

/// Before GELU, the given lanes of a block of the row around which `rows` are.
#[inline(always)]
fn convolve_row<S: Simd>(
    (rows, y): (&Rows, usize),
    taps: &[Taps],
    block: usize,
    lanes: &Range<usize>,
    values: &mut [S],
) {
    let bias = S::load(&taps[block][TAPS][lanes.clone()]);
    let taps = load_taps::<S>(&taps[block], lanes);
    convolve(rows.around(y, block), lanes, &taps, bias, values);
}

struct Forward<'a> {
    shape: &'a MapShape,
    x: Matrix<&'a [f32]>,
    taps: &'a [Taps],
    out: Matrix<&'a mut [f32]>,
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { shape, x, taps, out } = self;
        if x.cells.is_empty() {
            return;
        }
        if x.precision == Precision::Bf16 {
            return pairs::forward::<S>(shape, x.cells, taps, out.cells);
        }
        let (x, out) = (x.cells, out.cells);
        let (mut rows, mut values) = (Rows::new(shape), vec![S::splat(0.0); shape.width]);
        for map in 0..shape.batch {
            let first = map * shape.height;
            rows.start(shape, x, first);
            for y in 0..shape.height {
                rows.advance(shape, x, [first, y]);
                let mut out = Row::of_mut(out, shape, first + y);
                for (block, lanes, channel) in shape.vectors::<S>() {
                    convolve_row((&rows, y), taps, block, &lanes, &mut values);
                    for (token, &value) in values.iter().enumerate() {
                        out.store(token, channel, gelu(value).0);
                    }
                }
            }
        }
    }
}

struct Backward<'a> {
    shape: &'a MapShape,
    dout: Matrix<&'a [f32]>,
    x: Matrix<&'a [f32]>,
    taps: &'a [Taps],
    dx: Matrix<&'a mut [f32]>,
    /// Added to.
    dtaps: &'a mut [Taps],
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { shape, dout, x, taps, dx, dtaps } = self;
        if x.cells.is_empty() {
            return;
        }
        if x.precision == Precision::Bf16 {
            return pairs::backward::<S>(shape, [dout.cells, x.cells], taps, dx.cells, dtaps);
        }
        let (dout, x, dx) = (dout.cells, x.cells, dx.cells);
        // The gradient before GELU in the second.
        let (mut rows, mut slopes) = (Rows::new(shape), Rows::new(shape));
        let mut values = vec![S::splat(0.0); shape.width];
        for map in 0..shape.batch {
            let first = map * shape.height;
            rows.start(shape, x, first);
            slopes.clear(0);
            for y in 0..shape.height {
                rows.advance(shape, x, [first, y]);
                let dout = Row::of(dout, shape, first + y);
                let around = (&rows, y);
                slopes_of_row(shape, around, dout, (taps, dtaps), &mut slopes, &mut values);
                // The row above has all its neighbours now.
                if let Some(above) = y.checked_sub(1) {
                    let dx = Row::of_mut(dx, shape, first + above);
                    input_gradient(shape, (&slopes, above), taps, dx, &mut values);
                }
            }
            let last = shape.height - 1;
            slopes.clear(last + 2);
            let dx = Row::of_mut(dx, shape, first + last);
            input_gradient(shape, (&slopes, last), taps, dx, &mut values);
        }
    }
}

/// Row `y + 1` of `slopes`: `dout GELU'(conv(x) + bias)`; adds its products with x to `dtaps`.
#[inline(always)]
fn slopes_of_row<S: Simd>(
    shape: &MapShape,
    (rows, y): (&Rows, usize),
    dout: Row<&[f32]>,
    (taps, dtaps): (&[Taps], &mut [Taps]),
    slopes: &mut Rows,
    values: &mut [S],
) {
    for (block, lanes, channel) in shape.vectors::<S>() {
        convolve_row((rows, y), taps, block, &lanes, values);
        for value in values.iter_mut() {
            (_, *value) = gelu(*value);
        }
        // In registers over the whole row.
        let mut sums = [S::splat(0.0); TAPS + 1];
        let tokens = slopes.inner(y + 1, block).iter_mut().zip(&*values).enumerate();
        for (around, (token, (to, derivative))) in rows.around(y, block).zip(tokens) {
            let slope = dout.load::<S>(token, channel) * *derivative;
            slope.store(&mut to[lanes.clone()]);
            for (tap, sum) in sums[..TAPS].iter_mut().enumerate() {
                *sum = S::load(&around[tap / 3][tap % 3][lanes.clone()]).mul_add(slope, *sum);
            }
            sums[TAPS] = sums[TAPS] + slope;
        }
        for (dtap, sum) in dtaps[block].iter_mut().zip(sums) {
            let dtap = &mut dtap[lanes.clone()];
            (S::load(dtap) + sum).store(dtap);
        }
    }
}

/// A row of the gradient: a convolution of `slopes` with the taps in reverse order.
#[inline(always)]
fn input_gradient<S: Simd>(
    shape: &MapShape,
    (slopes, y): (&Rows, usize),
    taps: &[Taps],
    mut dx: Row<&mut [f32]>,
    values: &mut [S],
) {
    for (block, lanes, channel) in shape.vectors::<S>() {
        let mut taps = load_taps::<S>(&taps[block], &lanes);
        taps.reverse();
        convolve(slopes.around(y, block), &lanes, &taps, S::splat(0.0), values);
        for (token, value) in values.iter().enumerate() {
            dx.store(token, channel, *value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{self, Generator, assert_close};

    #[test]
    fn matches_f64_at_every_level() {
        let mut random = Generator::new(9);
        let all = [
            (0, 3, 3, 4),
            (1, 1, 1, 1),
            (2, 1, 3, 4),
            (1, 4, 1, 17),
            (3, 2, 2, 7),
            (2, 3, 5, 33),
            (1, 7, 6, 64),
            (2, 5, 4, 81),
        ];
        for &(batch, height, width, channels) in reference::fewer_under_miri(&all, 5) {
            let shape = MapShape { batch, height, width, channels };
            let (x, dout) = (random.normal(shape.values()), random.normal(shape.values()));
            let (weight, bias) = (random.normal(TAPS * channels), random.normal(channels));
            let exact = reference::depthwise_gelu(&shape, &x, &weight, &bias, &dout);
            let (rounded_x, x_pairs) = pairs(&x, channels);
            let (rounded_dout, dout_pairs) = pairs(&dout, channels);
            let rounded_weight: Vec<f32> = weight.iter().map(|&w| reference::bf16(w)).collect();
            let rounded = reference::depthwise_gelu(
                &shape,
                &rounded_x,
                &rounded_weight,
                &bias,
                &rounded_dout,
            );
            let f32_maps = [Matrix::from(&x[..]), Matrix::from(&dout[..])];
            let bf16_maps = [&x_pairs[..], &dout_pairs].map(bf16);
            for level in Level::available() {
                // In bf16 the gradient before GELU is rounded on its way into dx and the sums.
                for (maps, exact, [of_out, of_dx, of_sums]) in [
                    (f32_maps, &exact, [2e-6, 1e-5, 2e-5]),
                    (bf16_maps, &rounded, [4e-3, 2e-2, 3e-2]),
                ] {
                    let (out, dx, sums) = run(level, &shape, maps, [&weight, &bias]);
                    // The sums are added to what is there.
                    assert_close(&out, &exact.out, of_out);
                    assert_close(&dx, &exact.dx, of_dx);
                    let plus = |x: &[f64], y: f64| x.iter().map(|x| x + y).collect::<Vec<_>>();
                    assert_close(&sums[0], &plus(&exact.dweight, 1.0), of_sums);
                    assert_close(&sums[1], &plus(&exact.dbias, 2.0), of_sums);
                }
            }
        }
    }

    /// Output, dx and sums in f32, from `[x, dout]`, whose precision all maps have.
    fn run(
        level: Level,
        shape: &MapShape,
        [x, dout]: [Matrix<&[f32]>; 2],
        parameters: [&[f32]; 2],
    ) -> (Vec<f32>, Vec<f32>, [Vec<f32>; 2]) {
        let precision = x.precision;
        let mut map = vec![9.0; x.cells.len()];
        let out = Matrix { cells: &mut map[..], precision };
        forward_at(level, shape, x, parameters, out);
        let out = values(&map, precision, shape.channels);
        let mut sums = [vec![1.0; parameters[0].len()], vec![2.0; shape.channels]];
        let dx = Matrix { cells: &mut map[..], precision };
        backward_at(level, shape, [dout, x], parameters, dx, sums.each_mut().map(|s| &mut s[..]));
        (out, values(&map, precision, shape.channels), sums)
    }

    fn bf16(cells: &[f32]) -> Matrix<&[f32]> {
        Matrix { cells, precision: Precision::Bf16 }
    }

    /// The values rounded, and as pairs.
    fn pairs(x: &[f32], channels: usize) -> (Vec<f32>, Vec<f32>) {
        let rounded: Vec<f32> = x.iter().map(|&x| reference::bf16(x)).collect();
        let pair = |pair: &[f32]| {
            let high = pair.get(1).map_or(0, |x| x.to_bits());
            f32::from_bits(high | pair[0].to_bits() >> 16)
        };
        let tokens = rounded.chunks(channels.max(1));
        let pairs = tokens.flat_map(|token| token.chunks(2).map(pair)).collect();
        (rounded, pairs)
    }

    /// The values of tokens of `channels`.
    fn values(cells: &[f32], precision: Precision, channels: usize) -> Vec<f32> {
        match precision {
            Precision::F32 => cells.to_vec(),
            Precision::Bf16 => reference::values_of_pairs(cells, channels),
        }
    }

    #[test]
    #[should_panic(expected = "the weight: 9 values where 18 are needed")]
    fn a_short_weight_is_refused() {
        let shape = MapShape { batch: 1, height: 1, width: 1, channels: 2 };
        depthwise_gelu_forward(&shape, &[0.0; 2][..], &[0.0; 9], &[0.0; 2], &mut [0.0; 2][..]);
    }
}
