//! Layer normalisation over the channels of each token (Ba, Kiros and Hinton, 2016).

use crate::check::check_len;
use crate::simd::{Kernel, Level, Simd};

/// `out = (x - mean) / sqrt(variance + eps) * weight + bias` for each row of `x` `[rows, dim]`;
/// `weight` and `bias` are `[dim]`. `saved`, if given, receives what [`layer_norm_backward`] needs:
/// the normalised rows `[rows, dim]` and `1 / sqrt(variance + eps)` `[rows]`.
///
/// # Panics
/// If `weight` is empty, or a slice has not the length that `x` and `weight` imply.
pub fn layer_norm_forward(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    out: &mut [f32],
    saved: Option<(&mut [f32], &mut [f32])>,
) {
    let forward = Forward { x, weight, bias, eps, out, saved };
    forward.check();
    Level::current().run(forward);
}

/// `dx` (overwritten) from `dout`, both `[rows, dim]`, and what [`layer_norm_forward`] saved. The
/// gradients of weight and bias are added to `dweight` and `dbias` `[dim]`.
///
/// # Panics
/// If `weight` is empty, or a slice has not the length that `dout` and `weight` imply.
pub fn layer_norm_backward(
    dout: &[f32],
    x_hat: &[f32],
    rstd: &[f32],
    weight: &[f32],
    dx: &mut [f32],
    dweight: &mut [f32],
    dbias: &mut [f32],
) {
    let backward = Backward { dout, x_hat, rstd, weight, dx, dweight, dbias };
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
    out: &'a mut [f32],
    saved: Option<(&'a mut [f32], &'a mut [f32])>,
}

impl Forward<'_> {
    fn check(&self) {
        let rows = rows_of(self.x, self.weight);
        check_len("the bias", self.bias, self.weight.len());
        check_len("the output", self.out, self.x.len());
        if let Some((x_hat, rstd)) = &self.saved {
            check_len("the saved rows", x_hat, self.x.len());
            check_len("the saved deviations", rstd, rows);
        }
    }
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { x, weight, bias, eps, out, mut saved } = self;
        let dim = weight.len();
        for (r, (x, out)) in x.chunks_exact(dim).zip(out.chunks_exact_mut(dim)).enumerate() {
            let mut sum = S::splat(0.0);
            for piece in S::pieces(dim) {
                sum = sum + S::load(&x[piece]);
            }
            let mean = S::splat(sum.sum() / dim as f32);
            let mut squares = S::splat(0.0);
            for piece in S::pieces(dim) {
                let centred = (S::load(&x[piece.clone()]) - mean).first(piece.len(), S::splat(0.0));
                squares = centred.mul_add(centred, squares);
            }
            let rstd = 1.0 / (squares.sum() / dim as f32 + eps).sqrt();
            for piece in S::pieces(dim) {
                let x_hat = (S::load(&x[piece.clone()]) - mean) * S::splat(rstd);
                if let Some((saved, _)) = &mut saved {
                    x_hat.store(&mut saved[r * dim..][piece.clone()]);
                }
                let y =
                    x_hat.mul_add(S::load(&weight[piece.clone()]), S::load(&bias[piece.clone()]));
                y.store(&mut out[piece]);
            }
            if let Some((_, saved)) = &mut saved {
                saved[r] = rstd;
            }
        }
    }
}

struct Backward<'a> {
    dout: &'a [f32],
    x_hat: &'a [f32],
    rstd: &'a [f32],
    weight: &'a [f32],
    dx: &'a mut [f32],
    dweight: &'a mut [f32],
    dbias: &'a mut [f32],
}

impl Backward<'_> {
    fn check(&self) {
        let rows = rows_of(self.dout, self.weight);
        check_len("the saved rows", self.x_hat, self.dout.len());
        check_len("the saved deviations", self.rstd, rows);
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
        let Self { dout, x_hat, rstd, weight, dx, dweight, dbias } = self;
        let dim = weight.len();
        let rows = dout.chunks_exact(dim).zip(x_hat.chunks_exact(dim)).zip(rstd);
        for (((dout, x_hat), &rstd), dx) in rows.zip(dx.chunks_exact_mut(dim)) {
            let (mut sum, mut sum_x_hat) = (S::splat(0.0), S::splat(0.0));
            for piece in S::pieces(dim) {
                let (d, x_hat) = (S::load(&dout[piece.clone()]), S::load(&x_hat[piece.clone()]));
                let g = d * S::load(&weight[piece.clone()]);
                sum = sum + g;
                sum_x_hat = g.mul_add(x_hat, sum_x_hat);
                let dw = d.mul_add(x_hat, S::load(&dweight[piece.clone()]));
                dw.store(&mut dweight[piece.clone()]);
                (d + S::load(&dbias[piece.clone()])).store(&mut dbias[piece]);
            }
            let mean = S::splat(sum.sum() / dim as f32);
            let slope = S::splat(-sum_x_hat.sum() / dim as f32);
            for piece in S::pieces(dim) {
                let g = S::load(&dout[piece.clone()]) * S::load(&weight[piece.clone()]);
                let x_hat = S::load(&x_hat[piece.clone()]);
                (x_hat.mul_add(slope, g - mean) * S::splat(rstd)).store(&mut dx[piece]);
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
        let mut random = Generator::new(5);
        for (rows, dim) in [(1, 1), (3, 2), (5, 15), (4, 17), (7, 64), (50, 192), (3, 385)] {
            let x: Vec<f32> = random.normal(rows * dim).iter().map(|x| 3.0 * x + 5.0).collect();
            let (weight, bias) = (random.normal(dim), random.normal(dim));
            let dout = random.normal(rows * dim);
            let exact = reference::layer_norm(&x, &weight, &bias, 1e-6, &dout);
            for level in Level::available() {
                let mut out = vec![9.0; rows * dim];
                let (mut x_hat, mut rstd) = (out.clone(), vec![9.0; rows]);
                let saved = Some((&mut x_hat[..], &mut rstd[..]));
                let forward = Forward {
                    x: &x,
                    weight: &weight,
                    bias: &bias,
                    eps: 1e-6,
                    out: &mut out,
                    saved,
                };
                forward.check();
                level.run(forward);
                let mut dx = vec![9.0; rows * dim];
                let (mut dweight, mut dbias) = (vec![1.0; dim], vec![2.0; dim]);
                let backward = Backward {
                    dout: &dout,
                    x_hat: &x_hat,
                    rstd: &rstd,
                    weight: &weight,
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
                let mut inference = vec![9.0; rows * dim];
                let (bias, out) = (&bias, &mut inference);
                level.run(Forward { x: &x, weight: &weight, bias, eps: 1e-6, out, saved: None });
                assert_eq!(out, &inference_of(&x_hat, &weight, bias, level), "{rows} x {dim}");
            }
        }
    }

    /// Saving must not change the output: it is the saved rows, scaled and shifted.
    fn inference_of(x_hat: &[f32], weight: &[f32], bias: &[f32], level: Level) -> Vec<f32> {
        let fused = level != Level::Scalar || cfg!(target_arch = "aarch64");
        let affine = |(i, &x): (usize, &f32)| {
            let (w, b) = (weight[i % weight.len()], bias[i % weight.len()]);
            if fused { x.mul_add(w, b) } else { x * w + b }
        };
        x_hat.iter().enumerate().map(affine).collect()
    }

    #[test]
    #[should_panic(expected = "the output: 7 values where 8 are needed")]
    fn a_short_output_is_refused() {
        layer_norm_forward(&[0.0; 8], &[1.0; 4], &[0.0; 4], 1e-6, &mut [0.0; 7], None);
    }
}
