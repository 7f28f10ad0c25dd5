//! Layer normalisation over the channels of each token (Ba, Kiros and Hinton, 2016).

use crate::check::check_len;
use crate::matrix::{Matrix, Precision};
use crate::simd::{Kernel, Level, Simd};

/// `out = (x - mean) / sqrt(variance + eps) * weight + bias` for each row of `x` `[rows, dim]`;
/// `weight` and `bias` are `[dim]`, `out` may be bf16. `moments` `[rows, 2]`, if given, receives mean
/// and `1 / sqrt(variance + eps)` of each row for [`layer_norm_backward`].
///
/// # Panics
/// If `weight` is empty, or a slice has not the length that `x` and `weight` imply.
pub fn layer_norm_forward<'a>(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    out: impl Into<Matrix<&'a mut [f32]>>,
    moments: Option<&mut [f32]>,
) {
    let forward = Forward { x, weight, bias, eps, out: out.into(), moments };
    forward.check();
    Level::current().run(forward);
}

/// `dx` (overwritten) from `dout`, both `[rows, dim]`, the `x` of [`layer_norm_forward`] and the
/// `moments` it has left. What has come to `x` by other ways, `residual` `[rows, dim]`, is added. The
/// gradients of weight and bias are added to `dweight` and `dbias` `[dim]`.
///
/// # Panics
/// If `weight` is empty, or a slice has not the length that `dout` and `weight` imply.
#[expect(
    clippy::too_many_arguments,
    reason = "all of them slices; names at the call would not help"
)]
pub fn layer_norm_backward(
    dout: &[f32],
    x: &[f32],
    moments: &[f32],
    weight: &[f32],
    residual: Option<&[f32]>,
    dx: &mut [f32],
    dweight: &mut [f32],
    dbias: &mut [f32],
) {
    let backward = Backward { dout, x, moments, weight, residual, dx, dweight, dbias };
    backward.check();
    Level::current().run(backward);
}

fn rows_of(x: &[f32], weight: &[f32]) -> usize {
    let (len, dim) = (x.len(), weight.len());
    assert!(dim > 0 && len.is_multiple_of(dim), "{len} values are not rows of {dim} channels");
    len / dim
}

struct Forward<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
    out: Matrix<&'a mut [f32]>,
    moments: Option<&'a mut [f32]>,
}

impl Forward<'_> {
    fn check(&self) {
        let rows = rows_of(self.x, self.weight);
        check_len("the bias", self.bias, self.weight.len());
        check_len("the output", self.out.cells, rows * self.out.precision.cells(self.weight.len()));
        if let Some(moments) = &self.moments {
            check_len("the moments", moments, 2 * rows);
        }
    }
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        // Narrow rows, whose whole vectors fit the registers.
        match (self.weight.len() % S::LANES, self.weight.len() / S::LANES) {
            (0, 1) => return self.run_narrow::<S, 1>(),
            (0, 2) => return self.run_narrow::<S, 2>(),
            (0, 4) => return self.run_narrow::<S, 4>(),
            _ => {}
        }
        let Self { x, weight, bias, eps, out, mut moments } = self;
        let dim = weight.len();
        let cells = out.precision.cells(dim);
        for (r, (x, y)) in x.chunks_exact(dim).zip(out.cells.chunks_exact_mut(cells)).enumerate() {
            let [mean, rstd] = moments_of::<S>(x, eps);
            if let Some(moments) = &mut moments {
                moments[2 * r..][..2].copy_from_slice(&[mean, rstd]);
            }
            let row = Row { x, weight, bias, mean: S::splat(mean), rstd: S::splat(rstd) };
            match out.precision {
                Precision::F32 => row.normalise(y),
                Precision::Bf16 => {
                    for piece in S::pieces(cells) {
                        let first = 2 * piece.start;
                        let second = dim.min(first + S::LANES);
                        let (first, second) = (row.normalised(first), row.normalised(second));
                        S::pairs_of_neighbours(first, second).store(&mut y[piece]);
                    }
                }
            }
        }
    }
}

impl Forward<'_> {
    /// The same for rows of `N` vectors.
    #[inline(always)]
    fn run_narrow<S: Simd, const N: usize>(self) {
        let Self { x, weight, bias, eps, out, mut moments } = self;
        let dim = N * S::LANES;
        let (weight, bias) = (vectors::<S, N>(weight), vectors::<S, N>(bias));
        let rows = out.cells.chunks_exact_mut(out.precision.cells(dim));
        for (r, (x, y)) in x.chunks_exact(dim).zip(rows).enumerate() {
            let mut values = vectors::<S, N>(x);
            let mut sum = values[0];
            for value in &values[1..] {
                sum = sum + *value;
            }
            let mean = sum.sum() / dim as f32;
            let mut squares = S::splat(0.0);
            for value in &mut values {
                *value = *value - S::splat(mean);
                squares = value.mul_add(*value, squares);
            }
            let rstd = 1.0 / (squares.sum() / dim as f32 + eps).sqrt();
            if let Some(moments) = &mut moments {
                moments[2 * r..][..2].copy_from_slice(&[mean, rstd]);
            }
            for (i, value) in values.iter_mut().enumerate() {
                *value = (*value * S::splat(rstd)).mul_add(weight[i], bias[i]);
            }
            match out.precision {
                Precision::F32 => store_vectors(values, y),
                Precision::Bf16 => {
                    for (i, y) in y.chunks_mut(S::LANES).enumerate() {
                        let second = values.get(2 * i + 1).copied().unwrap_or(S::splat(0.0));
                        S::pairs_of_neighbours(values[2 * i], second).store(y);
                    }
                }
            }
        }
    }
}

/// The vectors of a row that has no others.
#[inline(always)]
fn vectors<S: Simd, const N: usize>(row: &[f32]) -> [S; N] {
    let mut vectors = [S::splat(0.0); N];
    for (vector, piece) in vectors.iter_mut().zip(row.chunks_exact(S::LANES)) {
        *vector = S::load(piece);
    }
    vectors
}

/// Writes what [`vectors`] has read.
#[inline(always)]
fn store_vectors<S: Simd, const N: usize>(vectors: [S; N], row: &mut [f32]) {
    for (vector, piece) in vectors.into_iter().zip(row.chunks_exact_mut(S::LANES)) {
        vector.store(piece);
    }
}

/// Mean of a row and 1 / its deviation.
#[inline(always)]
fn moments_of<S: Simd>(x: &[f32], eps: f32) -> [f32; 2] {
    // Whole vectors apart: rows are short, and each step more counts.
    let vectors = x.chunks_exact(S::LANES);
    let rest = vectors.remainder();
    let mut sum = S::load(rest);
    for x in vectors.clone() {
        sum = sum + S::load(x);
    }
    let mean = sum.sum() / x.len() as f32;
    let mut squares = S::splat(0.0);
    if !rest.is_empty() {
        let centred = S::load(rest) - S::splat(mean);
        let centred = centred.first(rest.len(), S::splat(0.0));
        squares = centred * centred;
    }
    for x in vectors {
        let centred = S::load(x) - S::splat(mean);
        squares = centred.mul_add(centred, squares);
    }
    [mean, 1.0 / (squares.sum() / x.len() as f32 + eps).sqrt()]
}

/// A row on its way to its normalised form.
struct Row<'a, S> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    mean: S,
    rstd: S,
}

impl<S: Simd> Row<'_, S> {
    /// All channels.
    #[inline(always)]
    fn normalise(&self, out: &mut [f32]) {
        let parameters = self.weight.chunks(S::LANES).zip(self.bias.chunks(S::LANES));
        let rows = self.x.chunks(S::LANES).zip(out.chunks_mut(S::LANES));
        for ((weight, bias), (x, out)) in parameters.zip(rows) {
            let x_hat = (S::load(x) - self.mean) * self.rstd;
            x_hat.mul_add(S::load(weight), S::load(bias)).store(out);
        }
    }

    /// The vector from channel `first` on, zeros behind the last channel.
    #[inline(always)]
    fn normalised(&self, first: usize) -> S {
        let x_hat = (S::load(&self.x[first..]) - self.mean) * self.rstd;
        x_hat.mul_add(S::load(&self.weight[first..]), S::load(&self.bias[first..]))
    }
}

struct Backward<'a> {
    dout: &'a [f32],
    x: &'a [f32],
    moments: &'a [f32],
    weight: &'a [f32],
    residual: Option<&'a [f32]>,
    dx: &'a mut [f32],
    dweight: &'a mut [f32],
    dbias: &'a mut [f32],
}

impl Backward<'_> {
    fn check(&self) {
        let rows = rows_of(self.dout, self.weight);
        check_len("x", self.x, self.dout.len());
        check_len("the moments", self.moments, 2 * rows);
        if let Some(residual) = self.residual {
            check_len("the residual's gradient", residual, self.dout.len());
        }
        check_len("dx", self.dx, self.dout.len());
        check_len("dweight", self.dweight, self.weight.len());
        check_len("dbias", self.dbias, self.weight.len());
    }
}

impl Kernel for Backward<'_> {
    type Output = ();

    /// With g = dout * weight: dx = (g - mean(g) - x_hat mean(g x_hat)) / deviation.
    #[inline(always)]
    fn run<S: Simd>(self) {
        match (self.weight.len() % S::LANES, self.weight.len() / S::LANES) {
            (0, 1) => return self.run_narrow::<S, 1>(),
            (0, 2) => return self.run_narrow::<S, 2>(),
            (0, 4) => return self.run_narrow::<S, 4>(),
            _ => {}
        }
        let Self { dout, x, moments, weight, residual, dx, dweight, dbias } = self;
        let dim = weight.len();
        for (r, (dout, dx)) in dout.chunks_exact(dim).zip(dx.chunks_exact_mut(dim)).enumerate() {
            let row = r * dim..(r + 1) * dim;
            let (x, residual) = (&x[row.clone()], residual.map(|residual| &residual[row]));
            let [mean, rstd] = [S::splat(moments[2 * r]), S::splat(moments[2 * r + 1])];
            let (mut sum, mut sum_x_hat) = (S::splat(0.0), S::splat(0.0));
            for piece in S::pieces(dim) {
                let d = S::load(&dout[piece.clone()]);
                let x_hat = (S::load(&x[piece.clone()]) - mean) * rstd;
                let g = d * S::load(&weight[piece.clone()]);
                sum = sum + g;
                sum_x_hat = g.mul_add(x_hat, sum_x_hat);
                let dw = d.mul_add(x_hat, S::load(&dweight[piece.clone()]));
                dw.store(&mut dweight[piece.clone()]);
                (d + S::load(&dbias[piece.clone()])).store(&mut dbias[piece]);
            }
            let mean_g = S::splat(sum.sum() / dim as f32);
            let slope = S::splat(-sum_x_hat.sum() / dim as f32);
            for piece in S::pieces(dim) {
                let g = S::load(&dout[piece.clone()]) * S::load(&weight[piece.clone()]);
                let x_hat = (S::load(&x[piece.clone()]) - mean) * rstd;
                let d = x_hat.mul_add(slope, g - mean_g);
                let d = match residual {
                    Some(residual) => d.mul_add(rstd, S::load(&residual[piece.clone()])),
                    None => d * rstd,
                };
                d.store(&mut dx[piece]);
            }
        }
    }
}

impl Backward<'_> {
    /// The same for rows of `N` vectors; the sums of the parameters' gradients stay in registers.
    #[inline(always)]
    fn run_narrow<S: Simd, const N: usize>(self) {
        let Self { dout, x, moments, weight, residual, dx, dweight, dbias } = self;
        let dim = N * S::LANES;
        let weight = vectors::<S, N>(weight);
        let (mut dw, mut db) = (vectors::<S, N>(dweight), vectors::<S, N>(dbias));
        for (r, (dout, dx)) in dout.chunks_exact(dim).zip(dx.chunks_exact_mut(dim)).enumerate() {
            let row = r * dim..(r + 1) * dim;
            let [mean, rstd] = [S::splat(moments[2 * r]), S::splat(moments[2 * r + 1])];
            let (mut g, mut x_hat) = (vectors::<S, N>(dout), vectors::<S, N>(&x[row.clone()]));
            let (mut sum, mut sum_x_hat) = (S::splat(0.0), S::splat(0.0));
            for i in 0..N {
                x_hat[i] = (x_hat[i] - mean) * rstd;
                dw[i] = g[i].mul_add(x_hat[i], dw[i]);
                db[i] = g[i] + db[i];
                g[i] = g[i] * weight[i];
                sum = sum + g[i];
                sum_x_hat = g[i].mul_add(x_hat[i], sum_x_hat);
            }
            let mean_g = S::splat(sum.sum() / dim as f32);
            let slope = S::splat(-sum_x_hat.sum() / dim as f32);
            for i in 0..N {
                g[i] = x_hat[i].mul_add(slope, g[i] - mean_g);
            }
            match residual {
                Some(residual) => {
                    let residual = vectors::<S, N>(&residual[row]);
                    for i in 0..N {
                        g[i] = g[i].mul_add(rstd, residual[i]);
                    }
                }
                None => {
                    for g in &mut g {
                        *g = *g * rstd;
                    }
                }
            }
            store_vectors(g, dx);
        }
        store_vectors(dw, dweight);
        store_vectors(db, dbias);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{self, Generator, assert_close};

    #[test]
    fn matches_f64_at_every_level() {
        let mut random = Generator::new(5);
        let all =
            [(1, 1), (3, 2), (5, 15), (4, 17), (7, 64), (50, 192), (3, 385), (5, 16), (3, 32)];
        for &(rows, dim) in reference::fewer_under_miri(&all, 5) {
            let x: Vec<f32> = random.normal(rows * dim).iter().map(|x| 3.0 * x + 5.0).collect();
            let (weight, bias) = (random.normal(dim), random.normal(dim));
            let dout = random.normal(rows * dim);
            let exact = reference::layer_norm(&x, &weight, &bias, 1e-6, &dout);
            for level in Level::available() {
                let mut out = vec![9.0; rows * dim];
                let mut moments = vec![9.0; 2 * rows];
                let forward = Forward {
                    x: &x,
                    weight: &weight,
                    bias: &bias,
                    eps: 1e-6,
                    out: (&mut out[..]).into(),
                    moments: Some(&mut moments),
                };
                forward.check();
                level.run(forward);
                let mut dx = vec![9.0; rows * dim];
                let (mut dweight, mut dbias) = (vec![1.0; dim], vec![2.0; dim]);
                let backward = Backward {
                    dout: &dout,
                    x: &x,
                    moments: &moments,
                    weight: &weight,
                    residual: None,
                    dx: &mut dx,
                    dweight: &mut dweight,
                    dbias: &mut dbias,
                };
                backward.check();
                level.run(backward);
                assert_close(&out, &exact.out, 2e-5);
                assert_close(
                    &dbias,
                    &exact.dbias.iter().map(|d| d + 2.0).collect::<Vec<_>>(),
                    1e-5,
                );
                assert_close(
                    &dweight,
                    &exact.dweight.iter().map(|d| d + 1.0).collect::<Vec<_>>(),
                    1e-4,
                );
                // A single channel has no variance: 1 / sqrt(eps) magnifies rounding.
                if dim > 2 {
                    assert_close(&dx, &exact.dx, 2e-5);
                }
                let mut with_residual = vec![9.0; rows * dim];
                level.run(Backward {
                    dout: &dout,
                    x: &x,
                    moments: &moments,
                    weight: &weight,
                    residual: Some(&x),
                    dx: &mut with_residual,
                    dweight: &mut dweight,
                    dbias: &mut dbias,
                });
                let sums: Vec<f64> =
                    dx.iter().zip(&x).map(|(&d, &x)| f64::from(d) + f64::from(x)).collect();
                assert_close(&with_residual, &sums, 1e-6);
                let cells = Precision::Bf16.cells(dim);
                let mut pairs = vec![9.0; rows * cells];
                let rounded = Matrix { cells: &mut pairs[..], precision: Precision::Bf16 };
                let (x, weight, bias) = (&x, &weight, &bias);
                level.run(Forward { x, weight, bias, eps: 1e-6, out: rounded, moments: None });
                for (pairs, out) in pairs.chunks(cells).zip(out.chunks(dim)) {
                    let bits = out.iter().map(|&y| reference::bf16(y).to_bits() >> 16);
                    let expected: Vec<u32> = bits.chain([0]).take(2 * cells).collect();
                    let pairs =
                        pairs.iter().flat_map(|p| [p.to_bits() & 0xffff, p.to_bits() >> 16]);
                    assert_eq!(pairs.collect::<Vec<_>>(), expected, "{level:?} {rows} x {dim}");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "the output: 7 values where 8 are needed")]
    fn a_short_output_is_refused() {
        layer_norm_forward(&[0.0; 8], &[1.0; 4], &[0.0; 4], 1e-6, &mut [0.0; 7][..], None);
    }
}
