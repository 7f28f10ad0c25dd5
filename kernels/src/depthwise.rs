//! 3 x 3 convolutions of each channel by itself (stride 1, one zero around the map), on channels
//! that lie side by side so that vectors run over channels, with the GELU that follows them.
//!
//! A map of a first stage is larger than a core's cache, and each pass over it costs as much as the
//! arithmetic. So either direction is one pass over rows: the three rows around the current one are
//! in a small `Rows`, and what the backward needs of the forward it computes again.

use crate::check::check_len;
use crate::gelu::gelu;
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

    /// Values of a row.
    fn row(&self) -> usize {
        self.width * self.channels
    }

    /// Blocks that hold the channels of a token.
    fn blocks(&self) -> usize {
        self.channels.div_ceil(PANEL)
    }

    /// Where vectors of `S` lie: the block, the lanes in it and the channels that they hold.
    #[inline(always)]
    fn vectors<S: Simd>(&self) -> impl Iterator<Item = (usize, Range<usize>, Range<usize>)> {
        S::pieces(self.channels).map(|channels| {
            let (block, lane) = (channels.start / PANEL, channels.start % PANEL);
            (block, lane..lane + S::LANES, channels)
        })
    }
}

/// `out = GELU(conv(x) + bias)`, overwritten. `x`, `out`: `[batch, height, width, channels]`;
/// `weight`: `[channels, 3, 3]`, `bias`: `[channels]`.
///
/// # Panics
/// If a slice has not the length that `shape` implies.
pub fn depthwise_gelu_forward(
    shape: &MapShape,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    out: &mut [f32],
) {
    depthwise_gelu_forward_at(Level::current(), shape, [x, weight, bias], out);
}

fn depthwise_gelu_forward_at(
    level: Level,
    shape: &MapShape,
    [x, weight, bias]: [&[f32]; 3],
    out: &mut [f32],
) {
    check_len("x", x, shape.values());
    check_len("the weight", weight, TAPS * shape.channels);
    check_len("the bias", bias, shape.channels);
    check_len("the output", out, shape.values());
    level.run(Forward { shape, x, taps: &taps_of(weight, bias), out });
}

/// `dx` (overwritten) from `dout`, the gradient of what [`depthwise_gelu_forward`] returned for `x`;
/// the gradients of weight and bias are added to `dweight` and `dbias`. Shapes as there.
///
/// # Panics
/// If a slice has not the length that `shape` implies.
pub fn depthwise_gelu_backward(
    shape: &MapShape,
    dout: &[f32],
    [x, weight, bias]: [&[f32]; 3],
    dx: &mut [f32],
    dweight: &mut [f32],
    dbias: &mut [f32],
) {
    let inputs = [x, weight, bias];
    depthwise_gelu_backward_at(Level::current(), shape, dout, inputs, dx, [dweight, dbias]);
}

fn depthwise_gelu_backward_at(
    level: Level,
    shape: &MapShape,
    dout: &[f32],
    [x, weight, bias]: [&[f32]; 3],
    dx: &mut [f32],
    [dweight, dbias]: [&mut [f32]; 2],
) {
    check_len("dout", dout, shape.values());
    check_len("x", x, shape.values());
    check_len("the weight", weight, TAPS * shape.channels);
    check_len("the bias", bias, shape.channels);
    check_len("dx", dx, shape.values());
    check_len("dweight", dweight, weight.len());
    check_len("dbias", dbias, shape.channels);
    let taps = taps_of(weight, bias);
    let mut dtaps = vec![[[0.0; PANEL]; TAPS + 1]; taps.len()];
    level.run(Backward { shape, dout, x, taps: &taps, dx, dtaps: &mut dtaps });
    for (channel, dtap) in dweight.iter_mut().enumerate() {
        let (channel, tap) = (channel / TAPS, channel % TAPS);
        *dtap += dtaps[channel / PANEL][tap][channel % PANEL];
    }
    for (channel, dbias) in dbias.iter_mut().enumerate() {
        *dbias += dtaps[channel / PANEL][TAPS][channel % PANEL];
    }
}

/// Some channels of one token, or one tap's of them.
type Block = [f32; PANEL];

/// The taps of a block's channels, then their bias.
type Taps = [Block; TAPS + 1];

/// `weight` `[channels, 9]` and `bias` by blocks, zeros for the channels that the last one lacks.
fn taps_of(weight: &[f32], bias: &[f32]) -> Vec<Taps> {
    let mut taps = vec![[[0.0; PANEL]; TAPS + 1]; bias.len().div_ceil(PANEL)];
    for (channel, (weight, &bias)) in weight.chunks_exact(TAPS).zip(bias).enumerate() {
        let taps = &mut taps[channel / PANEL];
        for (tap, &value) in taps.iter_mut().zip(weight.iter().chain([&bias])) {
            tap[channel % PANEL] = value;
        }
    }
    taps
}

/// The three rows around the current one, block by block, with a token of zeros at either end of
/// each. Rows count from the one of zeros above the map, so that nothing is negative.
struct Rows {
    /// Tokens of a row.
    width: usize,
    rows: [Vec<Block>; 3],
}

impl Rows {
    fn new(shape: &MapShape) -> Self {
        let width = shape.width + 2;
        Self { width, rows: [(); 3].map(|()| vec![[0.0; PANEL]; width * shape.blocks()]) }
    }

    /// Puts zeros in the place of row `y - 3`.
    #[inline(always)]
    fn clear(&mut self, y: usize) {
        self.rows[y % 3].fill([0.0; PANEL]);
    }

    /// Puts `tokens`, each `channels` values, in the place of row `y - 3`.
    #[inline(always)]
    fn set(&mut self, y: usize, tokens: &[f32], channels: usize) {
        let row = &mut self.rows[y % 3];
        for (x, token) in tokens.chunks_exact(channels).enumerate() {
            let (whole, rest) = token.as_chunks::<PANEL>();
            for (from, to) in whole.iter().zip(row[x + 1..].iter_mut().step_by(self.width)) {
                *to = *from;
            }
            if !rest.is_empty() {
                row[whole.len() * self.width + x + 1][..rest.len()].copy_from_slice(rest);
            }
        }
    }

    /// The tokens of row `y` without the zeros at the ends.
    #[inline(always)]
    fn inner(&mut self, y: usize, block: usize) -> &mut [Block] {
        let start = block * self.width;
        &mut self.rows[y % 3][start + 1..start + self.width - 1]
    }

    /// For each token between rows `y` and `y + 2`: it and its neighbours, row by row.
    #[inline(always)]
    fn around(&self, y: usize, block: usize) -> impl Iterator<Item = [&[Block; 3]; 3]> {
        let row = |y: usize| {
            let start = block * self.width;
            self.rows[y % 3][start..start + self.width].array_windows::<3>()
        };
        row(y).zip(row(y + 1)).zip(row(y + 2)).map(|((above, here), below)| [above, here, below])
    }
}

/// Asks for the place in the next row. Blocks of channels lie too far apart for the processor to see
/// a pattern.
#[inline(always)]
fn prefetch_below<S: Simd>(shape: &MapShape, at: &[f32]) {
    S::prefetch(at.as_ptr().wrapping_add(shape.row()));
}

/// `start` and the products of nine tokens with nine taps, summed.
#[inline(always)]
fn convolve<S: Simd>(
    around: [&[Block; 3]; 3],
    lanes: &Range<usize>,
    taps: &[S; TAPS],
    start: S,
) -> S {
    // A sum for each row: fewer steps wait for each other.
    let mut sums = [start, S::splat(0.0), S::splat(0.0)];
    for ((row, taps), sum) in around.iter().zip(taps.as_chunks::<3>().0).zip(&mut sums) {
        for (token, &tap) in row.iter().zip(taps) {
            *sum = S::load(&token[lanes.clone()]).mul_add(tap, *sum);
        }
    }
    sums[0] + sums[1] + sums[2]
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

struct Forward<'a> {
    shape: &'a MapShape,
    x: &'a [f32],
    taps: &'a [Taps],
    out: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { shape, x, taps, out } = self;
        if x.is_empty() {
            return;
        }
        let (row, mut rows) = (shape.row(), Rows::new(shape));
        let maps = x.chunks_exact(row * shape.height).zip(out.chunks_exact_mut(row * shape.height));
        for (x, out) in maps {
            rows.clear(0);
            rows.set(1, &x[..row], shape.channels);
            for (y, out) in out.chunks_exact_mut(row).enumerate() {
                match y + 1 < shape.height {
                    true => rows.set(y + 2, &x[(y + 1) * row..][..row], shape.channels),
                    false => rows.clear(y + 2),
                }
                for (block, lanes, channels) in shape.vectors::<S>() {
                    let bias = S::load(&taps[block][TAPS][lanes.clone()]);
                    let taps = load_taps::<S>(&taps[block], &lanes);
                    let tokens = out.chunks_exact_mut(shape.channels);
                    for (around, out) in rows.around(y, block).zip(tokens) {
                        prefetch_below::<S>(shape, &out[channels.start..]);
                        let (activated, _) = gelu(convolve(around, &lanes, &taps, bias));
                        activated.store(&mut out[channels.clone()]);
                    }
                }
            }
        }
    }
}

struct Backward<'a> {
    shape: &'a MapShape,
    dout: &'a [f32],
    x: &'a [f32],
    taps: &'a [Taps],
    dx: &'a mut [f32],
    /// Added to.
    dtaps: &'a mut [Taps],
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { shape, dout, x, taps, dx, dtaps } = self;
        if x.is_empty() {
            return;
        }
        let row = shape.row();
        // The gradient before GELU in the second.
        let (mut rows, mut slopes) = (Rows::new(shape), Rows::new(shape));
        let maps = x.chunks_exact(row * shape.height).zip(dout.chunks_exact(row * shape.height));
        for ((x, dout), dx) in maps.zip(dx.chunks_exact_mut(row * shape.height)) {
            rows.clear(0);
            slopes.clear(0);
            rows.set(1, &x[..row], shape.channels);
            for (y, dout) in dout.chunks_exact(row).enumerate() {
                match y + 1 < shape.height {
                    true => rows.set(y + 2, &x[(y + 1) * row..][..row], shape.channels),
                    false => rows.clear(y + 2),
                }
                slopes_of_row::<S>(shape, (&rows, y), dout, (taps, dtaps), &mut slopes);
                // The row above has all its neighbours now.
                if y > 0 {
                    input_gradient::<S>(
                        shape,
                        (&slopes, y - 1),
                        taps,
                        &mut dx[(y - 1) * row..][..row],
                    );
                }
            }
            slopes.clear(shape.height + 1);
            let last = shape.height - 1;
            input_gradient::<S>(shape, (&slopes, last), taps, &mut dx[last * row..]);
        }
    }
}

/// Row `y + 1` of `slopes`: `dout GELU'(conv(x) + bias)`; adds its products with x to `dtaps`.
#[inline(always)]
fn slopes_of_row<S: Simd>(
    shape: &MapShape,
    (rows, y): (&Rows, usize),
    dout: &[f32],
    (taps, dtaps): (&[Taps], &mut [Taps]),
    slopes: &mut Rows,
) {
    for (block, lanes, channels) in shape.vectors::<S>() {
        let bias = S::load(&taps[block][TAPS][lanes.clone()]);
        let taps = load_taps::<S>(&taps[block], &lanes);
        // In registers over the whole row.
        let mut sums = [S::splat(0.0); TAPS + 1];
        let tokens = dout.chunks_exact(shape.channels).zip(slopes.inner(y + 1, block));
        for (around, (dout, to)) in rows.around(y, block).zip(tokens) {
            prefetch_below::<S>(shape, &dout[channels.start..]);
            let (_, derivative) = gelu(convolve(around, &lanes, &taps, bias));
            let slope = S::load(&dout[channels.clone()]) * derivative;
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
    dx: &mut [f32],
) {
    for (block, lanes, channels) in shape.vectors::<S>() {
        let mut taps = load_taps::<S>(&taps[block], &lanes);
        taps.reverse();
        let tokens = dx.chunks_exact_mut(shape.channels);
        for (around, dx) in slopes.around(y, block).zip(tokens) {
            prefetch_below::<S>(shape, &dx[channels.start..]);
            convolve(around, &lanes, &taps, S::splat(0.0)).store(&mut dx[channels.clone()]);
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
        for (batch, height, width, channels) in [
            (0, 3, 3, 4),
            (1, 1, 1, 1),
            (2, 1, 3, 4),
            (1, 4, 1, 17),
            (2, 3, 5, 33),
            (1, 7, 6, 64),
            (3, 2, 2, 7),
            (2, 5, 4, 81),
        ] {
            let shape = MapShape { batch, height, width, channels };
            let (x, dout) = (random.normal(shape.values()), random.normal(shape.values()));
            let (weight, bias) = (random.normal(TAPS * channels), random.normal(channels));
            let exact = reference::depthwise_gelu(&shape, &x, &weight, &bias, &dout);
            for level in Level::available() {
                let inputs = [&x[..], &weight, &bias];
                let mut out = vec![9.0; x.len()];
                depthwise_gelu_forward_at(level, &shape, inputs, &mut out);
                assert_close(&out, &exact.out, 2e-6);
                // Added to what is there.
                let mut dx = vec![9.0; x.len()];
                let (mut dweight, mut dbias) = (vec![1.0; weight.len()], vec![2.0; channels]);
                let sums = [&mut dweight[..], &mut dbias];
                depthwise_gelu_backward_at(level, &shape, &dout, inputs, &mut dx, sums);
                let plus = |x: &[f64], y: f64| x.iter().map(|x| x + y).collect::<Vec<_>>();
                assert_close(&dx, &exact.dx, 1e-5);
                assert_close(&dweight, &plus(&exact.dweight, 1.0), 2e-5);
                assert_close(&dbias, &plus(&exact.dbias, 2.0), 2e-5);
            }
        }
    }

    #[test]
    #[should_panic(expected = "the weight: 9 values where 18 are needed")]
    fn a_short_weight_is_refused() {
        let shape = MapShape { batch: 1, height: 1, width: 1, channels: 2 };
        depthwise_gelu_forward(&shape, &[0.0; 2], &[0.0; 9], &[0.0; 2], &mut [0.0; 2]);
    }
}
