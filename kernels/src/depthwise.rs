//! 3 x 3 convolutions of each channel by itself (stride 1, one zero around the map), on channels
//! that lie side by side so that vectors run over channels.

use crate::gelu::gelu;
use crate::gemm::check_len;
use crate::simd::{Kernel, Level, Simd};

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
    fn values(&self) -> usize {
        self.batch * self.height * self.width * self.channels
    }

    /// The nine tokens around `(sample, y, x)`, row by row; `zeros` where the map ends.
    #[inline(always)]
    fn around<'a>(
        &self,
        (sample, y, x): (usize, usize, usize),
        map: &'a [f32],
        zeros: &'a [f32],
    ) -> [&'a [f32]; TAPS] {
        std::array::from_fn(|tap| {
            // One too far down and right, so that nothing is negative.
            let (row, column) = (y + tap / 3, x + tap % 3);
            if row == 0 || row > self.height || column == 0 || column > self.width {
                return zeros;
            }
            let token = (sample * self.height + row - 1) * self.width + column - 1;
            &map[token * self.channels..][..self.channels]
        })
    }

    /// Sample, row and column of all tokens.
    fn tokens(self) -> impl Iterator<Item = (usize, usize, usize)> {
        let MapShape { batch, height, width, .. } = self;
        let rows = (0..batch).flat_map(move |sample| (0..height).map(move |y| (sample, y)));
        rows.flat_map(move |(sample, y)| (0..width).map(move |x| (sample, y, x)))
    }
}

/// `out = GELU(conv(x) + bias)` and `derivative`, GELU's at the same place, both overwritten. `x`,
/// `out`, `derivative`: `[batch, height, width, channels]`; `weight`: `[channels, 3, 3]`, `bias`:
/// `[channels]`.
///
/// # Panics
/// If a slice has not the length that `shape` implies.
pub fn depthwise_gelu_forward(
    shape: &MapShape,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    out: &mut [f32],
    derivative: &mut [f32],
) {
    depthwise_gelu_forward_at(Level::current(), shape, x, weight, bias, out, derivative);
}

fn depthwise_gelu_forward_at(
    level: Level,
    shape: &MapShape,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    out: &mut [f32],
    derivative: &mut [f32],
) {
    check_len("x", x, shape.values());
    check_len("the weight", weight, TAPS * shape.channels);
    check_len("the bias", bias, shape.channels);
    check_len("the output", out, shape.values());
    check_len("the derivative", derivative, shape.values());
    let taps = taps_first(weight);
    level.run(Forward { shape, x, taps: &taps, bias, out, derivative });
}

/// `dx` (overwritten) from `dout`, the gradient of the convolution before GELU; the gradients of
/// weight and bias are added to `dweight` and `dbias`. Shapes as in [`depthwise_gelu_forward`].
///
/// # Panics
/// If a slice has not the length that `shape` implies.
pub fn depthwise_backward(
    shape: &MapShape,
    dout: &[f32],
    x: &[f32],
    weight: &[f32],
    dx: &mut [f32],
    dweight: &mut [f32],
    dbias: &mut [f32],
) {
    depthwise_backward_at(Level::current(), shape, [dout, x, weight], dx, dweight, dbias);
}

fn depthwise_backward_at(
    level: Level,
    shape: &MapShape,
    [dout, x, weight]: [&[f32]; 3],
    dx: &mut [f32],
    dweight: &mut [f32],
    dbias: &mut [f32],
) {
    check_len("dout", dout, shape.values());
    check_len("x", x, shape.values());
    check_len("the weight", weight, TAPS * shape.channels);
    check_len("dx", dx, shape.values());
    check_len("dweight", dweight, weight.len());
    check_len("dbias", dbias, shape.channels);
    let taps = taps_first(weight);
    level.run(InputGradient { shape, dout, taps: &taps, dx });
    let mut dtaps = vec![0.0; taps.len()];
    level.run(WeightGradient { shape, dout, x, dtaps: &mut dtaps, dbias });
    for (i, d) in dweight.iter_mut().enumerate() {
        *d += dtaps[i % TAPS * shape.channels + i / TAPS];
    }
}

/// `[channels, 9]` as `[9, channels]`.
fn taps_first(weight: &[f32]) -> Vec<f32> {
    let channels = weight.len() / TAPS;
    (0..weight.len()).map(|i| weight[i % channels * TAPS + i / channels]).collect()
}

struct Forward<'a> {
    shape: &'a MapShape,
    x: &'a [f32],
    /// `[9, channels]`.
    taps: &'a [f32],
    bias: &'a [f32],
    out: &'a mut [f32],
    derivative: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { shape, x, taps, bias, out, derivative } = self;
        let channels = shape.channels;
        let zeros = vec![0.0; channels];
        for (token, at) in shape.tokens().enumerate() {
            let around = shape.around(at, x, &zeros);
            let out = &mut out[token * channels..][..channels];
            let derivative = &mut derivative[token * channels..][..channels];
            for piece in S::pieces(channels) {
                let mut sum = S::load(&bias[piece.clone()]);
                for (tap, x) in around.iter().enumerate() {
                    let weight = S::load(&taps[tap * channels..][piece.clone()]);
                    sum = S::load(&x[piece.clone()]).mul_add(weight, sum);
                }
                let (y, slope) = gelu(sum);
                y.store(&mut out[piece.clone()]);
                slope.store(&mut derivative[piece]);
            }
        }
    }
}

struct InputGradient<'a> {
    shape: &'a MapShape,
    dout: &'a [f32],
    /// `[9, channels]`.
    taps: &'a [f32],
    dx: &'a mut [f32],
}

impl Kernel for InputGradient<'_> {
    type Output = ();

    /// A convolution with the taps in reverse order.
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { shape, dout, taps, dx } = self;
        let channels = shape.channels;
        let zeros = vec![0.0; channels];
        for (token, at) in shape.tokens().enumerate() {
            let around = shape.around(at, dout, &zeros);
            let dx = &mut dx[token * channels..][..channels];
            for piece in S::pieces(channels) {
                let mut sum = S::splat(0.0);
                for (tap, dout) in around.iter().rev().enumerate() {
                    let weight = S::load(&taps[tap * channels..][piece.clone()]);
                    sum = S::load(&dout[piece.clone()]).mul_add(weight, sum);
                }
                sum.store(&mut dx[piece]);
            }
        }
    }
}

struct WeightGradient<'a> {
    shape: &'a MapShape,
    dout: &'a [f32],
    x: &'a [f32],
    /// `[9, channels]`, added to.
    dtaps: &'a mut [f32],
    /// `[channels]`, added to.
    dbias: &'a mut [f32],
}

impl Kernel for WeightGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { shape, dout, x, dtaps, dbias } = self;
        let channels = shape.channels;
        let zeros = vec![0.0; channels];
        for (token, at) in shape.tokens().enumerate() {
            let around = shape.around(at, x, &zeros);
            let dout = &dout[token * channels..][..channels];
            for piece in S::pieces(channels) {
                let d = S::load(&dout[piece.clone()]);
                for (tap, x) in around.iter().enumerate() {
                    let dtap = &mut dtaps[tap * channels..][piece.clone()];
                    d.mul_add(S::load(&x[piece.clone()]), S::load(dtap)).store(dtap);
                }
                let dbias = &mut dbias[piece];
                (d + S::load(dbias)).store(dbias);
            }
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
        for (batch, height, width, channels) in
            [(1, 1, 1, 1), (2, 1, 3, 4), (1, 4, 1, 17), (2, 3, 5, 33), (1, 7, 6, 64), (3, 2, 2, 7)]
        {
            let shape = MapShape { batch, height, width, channels };
            let (x, dout) = (random.normal(shape.values()), random.normal(shape.values()));
            let (weight, bias) = (random.normal(TAPS * channels), random.normal(channels));
            let exact = reference::depthwise(&shape, &x, &weight, &bias, &dout);
            for level in Level::available() {
                let mut out = vec![9.0; x.len()];
                let mut slope = out.clone();
                depthwise_gelu_forward_at(level, &shape, &x, &weight, &bias, &mut out, &mut slope);
                let (y, dy): (Vec<f64>, Vec<f64>) =
                    exact.out.iter().map(|&u| reference::gelu(u)).unzip();
                assert_close(&out, &y, 2e-6);
                assert_close(&slope, &dy, 5e-6);
                // Added to what is there.
                let mut dx = vec![9.0; x.len()];
                let (mut dweight, mut dbias) = (vec![1.0; weight.len()], vec![2.0; channels]);
                let inputs = [&dout[..], &x, &weight];
                depthwise_backward_at(level, &shape, inputs, &mut dx, &mut dweight, &mut dbias);
                let plus = |x: &[f64], y: f64| x.iter().map(|x| x + y).collect::<Vec<_>>();
                assert_close(&dx, &exact.dx, 5e-6);
                assert_close(&dweight, &plus(&exact.dweight, 1.0), 1e-5);
                assert_close(&dbias, &plus(&exact.dbias, 2.0), 1e-5);
            }
        }
    }

    #[test]
    #[should_panic(expected = "the weight: 9 values where 18 are needed")]
    fn a_short_weight_is_refused() {
        let shape = MapShape { batch: 1, height: 1, width: 1, channels: 2 };
        let (mut out, mut slope) = ([0.0; 2], [0.0; 2]);
        depthwise_gelu_forward(&shape, &[0.0; 2], &[0.0; 9], &[0.0; 2], &mut out, &mut slope);
    }
}
