//! What the kernels must compute, element by element in f64, and seeded inputs to compare on.

use crate::adamw::AdamW;
use crate::attention::AttentionShape;
use crate::cross_entropy::SoftTargets;
use crate::depthwise::MapShape;
use crate::performer::PerformerShape;
use crate::sgd::Sgd;
use crate::unfold::Windows;
use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// SplitMix64 (Steele, Lea and Flood, 2014).
pub(crate) struct Generator(u64);

impl Generator {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn uniform(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32
    }

    /// Roughly standard normal values: sums of 12 uniform ones.
    pub fn normal(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| (0..12).map(|_| self.uniform()).sum::<f32>() - 6.0).collect()
    }
}

/// Shapes to try; under Miri, which takes a second for a thousand products, the first `few`.
pub(crate) fn fewer_under_miri<T>(all: &[T], few: usize) -> &[T] {
    if cfg!(miri) { &all[..few] } else { all }
}

/// Panics unless `|x - exact| <= tolerance (1 + |exact|)` everywhere.
#[track_caller]
pub(crate) fn assert_close(x: &[f32], exact: &[f64], tolerance: f64) {
    assert_eq!(x.len(), exact.len());
    for (i, (&x, &exact)) in x.iter().zip(exact).enumerate() {
        let error = (f64::from(x) - exact).abs();
        assert!(error <= tolerance * (1.0 + exact.abs()), "element {i}: {x} instead of {exact}");
    }
}

/// `|x - exact| / |exact|` in Euclidean length.
pub(crate) fn relative_error(x: &[f32], exact: &[f64]) -> f64 {
    assert_eq!(x.len(), exact.len());
    let difference = x.iter().zip(exact).map(|(&x, e)| (f64::from(x) - e).powi(2)).sum::<f64>();
    (difference / exact.iter().map(|e| e * e).sum::<f64>()).sqrt()
}

/// The nearest number of 8 significant bits, the even one of two.
pub(crate) fn bf16(x: f32) -> f32 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    let unit = 2f64.powf(f64::from(x.abs()).log2().floor() - 7.0);
    ((f64::from(x) / unit).round_ties_even() * unit) as f32
}

/// The values of rows of pairs, `columns` in each.
pub(crate) fn values_of_pairs(cells: &[f32], columns: usize) -> Vec<f32> {
    let rows = cells.chunks(columns.div_ceil(2).max(1));
    let numbers = |c: &f32| [c.to_bits() << 16, c.to_bits() & 0xffff_0000].map(f32::from_bits);
    rows.flat_map(|row| row.iter().flat_map(numbers).take(columns).collect::<Vec<_>>()).collect()
}

/// C `[m, n]` = A `[m, k]` B `[k, n]`.
pub(crate) fn matmul(m: usize, k: usize, n: usize, a: &[f32], b: &[f32]) -> Vec<f64> {
    let mut c = vec![0.0; m * n];
    for i in 0..m {
        for l in 0..k {
            for j in 0..n {
                c[i * n + j] += f64::from(a[i * k + l]) * f64::from(b[l * n + j]);
            }
        }
    }
    c
}

/// The transpose of `[rows, columns]`.
pub(crate) fn transpose(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..rows * columns).map(|i| x[i % rows * columns + i / rows]).collect()
}

/// Error function: Taylor series, and the continued fraction of erfc from 3 on.
fn erf(x: f64) -> f64 {
    if x < 0.0 {
        return -erf(-x);
    }
    if x < 3.0 {
        let (mut sum, mut term) = (x, x);
        for n in 1..100 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return sum * 2.0 / PI.sqrt();
    }
    let fraction = (1..80).rev().fold(x, |tail, n| x + f64::from(n) / 2.0 / tail);
    1.0 - (-x * x).exp() / PI.sqrt() / fraction
}

/// GELU and its derivative.
pub(crate) fn gelu(x: f64) -> (f64, f64) {
    let phi = 0.5 * (1.0 + erf(x * FRAC_1_SQRT_2));
    let density = (-0.5 * x * x).exp() / (2.0 * PI).sqrt();
    if density == 0.0 { (x.max(0.0), phi) } else { (x * phi, phi + x * density) }
}

/// Results of [`layer_norm`].
pub(crate) struct LayerNorm {
    pub out: Vec<f64>,
    pub dx: Vec<f64>,
    pub dweight: Vec<f64>,
    pub dbias: Vec<f64>,
}

/// Layer normalisation and its gradients.
pub(crate) fn layer_norm(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f64,
    dout: &[f32],
) -> LayerNorm {
    let dim = weight.len();
    let size = dim as f64;
    let zeros = |n| vec![0.0; n];
    let mut y = LayerNorm { out: vec![], dx: vec![], dweight: zeros(dim), dbias: zeros(dim) };
    for (x, dout) in x.chunks(dim).zip(dout.chunks(dim)) {
        let x: Vec<f64> = x.iter().map(|&x| x.into()).collect();
        let mean = x.iter().sum::<f64>() / size;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / size;
        let rstd = 1.0 / (variance + eps).sqrt();
        let x_hat: Vec<f64> = x.iter().map(|x| (x - mean) * rstd).collect();
        let g: Vec<f64> =
            dout.iter().zip(weight).map(|(&d, &w)| f64::from(d) * f64::from(w)).collect();
        let mean_g = g.iter().sum::<f64>() / size;
        let slope = g.iter().zip(&x_hat).map(|(g, x)| g * x).sum::<f64>() / size;
        for i in 0..dim {
            y.out.push(x_hat[i] * f64::from(weight[i]) + f64::from(bias[i]));
            y.dx.push(rstd * (g[i] - mean_g - x_hat[i] * slope));
            y.dweight[i] += f64::from(dout[i]) * x_hat[i];
            y.dbias[i] += f64::from(dout[i]);
        }
    }
    y
}

/// Results of [`depthwise_gelu`].
pub(crate) struct Depthwise {
    pub out: Vec<f64>,
    pub dx: Vec<f64>,
    pub dweight: Vec<f64>,
    pub dbias: Vec<f64>,
}

/// GELU of a 3 x 3 convolution of each channel (`weight` `[channels, 3, 3]`), and its gradients.
pub(crate) fn depthwise_gelu(
    shape: &MapShape,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    dout: &[f32],
) -> Depthwise {
    let &MapShape { height, width, channels, .. } = shape;
    let zeros = |n| vec![0.0; n];
    let (dx, dweight) = (zeros(x.len()), zeros(weight.len()));
    let mut y = Depthwise { out: vec![], dx, dweight, dbias: zeros(channels) };
    for (i, &dy) in dout.iter().enumerate() {
        let (token, c) = (i / channels, i % channels);
        let (row, column) = (token / width % height, token % width);
        let inside = |&(down, right): &(usize, usize)| {
            (1..=height).contains(&(row + down)) && (1..=width).contains(&(column + right))
        };
        // Places in x and in the weight.
        let taps: Vec<(usize, usize)> = (0..3)
            .flat_map(|down| (0..3).map(move |right| (down, right)))
            .filter(inside)
            .map(|(down, right)| {
                let from = ((token + down * width + right - width - 1) * channels) + c;
                (from, c * 9 + down * 3 + right)
            })
            .collect();
        let product = |&(from, tap): &(usize, usize)| f64::from(x[from]) * f64::from(weight[tap]);
        let (out, slope) = gelu(f64::from(bias[c]) + taps.iter().map(product).sum::<f64>());
        let dy = f64::from(dy) * slope;
        y.out.push(out);
        y.dbias[c] += dy;
        for (from, tap) in taps {
            y.dx[from] += dy * f64::from(weight[tap]);
            y.dweight[tap] += dy * f64::from(x[from]);
        }
    }
    y
}

/// Results of [`unfold`].
pub(crate) struct Unfold {
    pub out: Vec<f64>,
    pub dx: Vec<f64>,
}

/// Windows of a map, place by place, and their gradient.
pub(crate) fn unfold(shape: &MapShape, windows: &Windows, x: &[f32], dout: &[f32]) -> Unfold {
    let &MapShape { height, width, channels, .. } = shape;
    let &Windows { kernel, stride, padding } = windows;
    let [rows, columns] = [height, width].map(|side| windows.count(side));
    let mut y = Unfold { out: vec![], dx: vec![0.0; x.len()] };
    for (i, &d) in dout.iter().enumerate() {
        let (window, inside) = (i / (channels * kernel * kernel), i % (channels * kernel * kernel));
        let (c, down, right) =
            (inside / kernel / kernel, inside / kernel % kernel, inside % kernel);
        // One padding too far down and right, so that nothing is negative.
        let row = window / columns % rows * stride + down;
        let column = window % columns * stride + right;
        let on_map = (padding..padding + height).contains(&row)
            && (padding..padding + width).contains(&column);
        let sample = window / columns / rows;
        let from = on_map
            .then(|| ((sample * height + row - padding) * width + column - padding) * channels + c);
        y.out.push(from.map_or(0.0, |from| x[from].into()));
        if let Some(from) = from {
            y.dx[from] += f64::from(d);
        }
    }
    y
}

/// Results of [`attention`].
pub(crate) struct Attention {
    pub out: Vec<f64>,
    pub probs: Vec<f64>,
    pub dq: Vec<f64>,
    pub dkv: Vec<f64>,
}

/// Attention and its gradient, straight from the formulas, for queries and keys of two projections.
pub(crate) fn attention(s: &AttentionShape, q: &[f32], kv: &[f32], dout: &[f32]) -> Attention {
    let &AttentionShape { batch, queries, keys, heads, head_dim, scale, .. } = s;
    let dim = heads * head_dim;
    let (dq, dkv) = (vec![0.0; q.len()], vec![0.0; kv.len()]);
    let mut y = Attention { out: vec![0.0; dout.len()], probs: vec![], dq, dkv };
    for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
        let q_at = |t, d| (b * queries + t) * dim + h * head_dim + d;
        let kv_at = |part, t, d| ((b * keys + t) * 2 + part) * dim + h * head_dim + d;
        let query = |t, d| f64::from(q[q_at(t, d)]);
        let key = |t, d| f64::from(kv[kv_at(0, t, d)]);
        let value = |t, d| f64::from(kv[kv_at(1, t, d)]);
        for i in 0..queries {
            let score = |j| (0..head_dim).map(|d| query(i, d) * key(j, d)).sum::<f64>();
            let scores: Vec<f64> = (0..keys).map(|j| score(j) * f64::from(scale)).collect();
            let largest = scores.iter().fold(f64::MIN, |a, &b| a.max(b));
            let sum: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
            let p: Vec<f64> = scores.iter().map(|s| (s - largest).exp() / sum).collect();
            let d_out = |d| f64::from(dout[q_at(i, d)]);
            let dp: Vec<f64> =
                (0..keys).map(|j| (0..head_dim).map(|d| d_out(d) * value(j, d)).sum()).collect();
            let mean: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
            for j in 0..keys {
                let ds = p[j] * (dp[j] - mean) * f64::from(scale);
                for d in 0..head_dim {
                    y.out[q_at(i, d)] += p[j] * value(j, d);
                    y.dq[q_at(i, d)] += ds * key(j, d);
                    y.dkv[kv_at(0, j, d)] += ds * query(i, d);
                    y.dkv[kv_at(1, j, d)] += p[j] * d_out(d);
                }
            }
            y.probs.extend(p);
        }
    }
    y
}

/// Results of [`performer`].
pub(crate) struct Performer {
    pub out: Vec<f64>,
    pub dkqv: Vec<f64>,
}

/// Attention by random features and its gradient, token by token: scores phi(q_i) phi(k_j), each row
/// divided by its sum.
pub(crate) fn performer(s: &PerformerShape, kqv: &[f32], w: &[f32], dout: &[f32]) -> Performer {
    let &PerformerShape { batch, tokens, dim, features, .. } = s;
    let at = |b: usize, t: usize, part: usize, d: usize| ((b * tokens + t) * 3 + part) * dim + d;
    let mut y = Performer { out: vec![0.0; dout.len()], dkqv: vec![0.0; kqv.len()] };
    for b in 0..batch {
        let x = |t, part, d| f64::from(kqv[at(b, t, part, d)]);
        let weight = |f: usize, d: usize| f64::from(w[f * dim + d]);
        let phi = |t, part, f| {
            let exponent = (0..dim).map(|d| (weight(f, d) - x(t, part, d) / 2.0) * x(t, part, d));
            exponent.sum::<f64>().exp() / (features as f64).sqrt()
        };
        let [k, q] = [0, 1].map(|part| -> Vec<Vec<f64>> {
            (0..tokens).map(|t| (0..features).map(|f| phi(t, part, f)).collect()).collect()
        });
        let [mut dk, mut dq] = [0, 1].map(|_| vec![vec![0.0; features]; tokens]);
        for i in 0..tokens {
            let score = |j: usize| q[i].iter().zip(&k[j]).map(|(q, k)| q * k).sum::<f64>();
            let scores: Vec<f64> = (0..tokens).map(score).collect();
            let sum = scores.iter().sum::<f64>() + f64::from(s.eps);
            let (row, d_out) =
                ((b * tokens + i) * dim, |d| f64::from(dout[(b * tokens + i) * dim + d]));
            for d in 0..dim {
                y.out[row + d] = (0..tokens).map(|j| scores[j] * x(j, 2, d)).sum::<f64>() / sum;
            }
            for j in 0..tokens {
                let slope = (0..dim).map(|d| d_out(d) * (x(j, 2, d) - y.out[row + d])).sum::<f64>();
                for f in 0..features {
                    dq[i][f] += slope / sum * k[j][f];
                    dk[j][f] += slope / sum * q[i][f];
                }
                for d in 0..dim {
                    y.dkqv[at(b, j, 2, d)] += scores[j] / sum * d_out(d);
                }
            }
        }
        for (t, (part, phi, d_phi)) in
            (0..tokens).flat_map(|t| [(t, (0, &k, &dk)), (t, (1, &q, &dq))])
        {
            for (f, d) in (0..features).flat_map(|f| (0..dim).map(move |d| (f, d))) {
                let slope = weight(f, d) - x(t, part, d);
                y.dkqv[at(b, t, part, d)] += d_phi[t][f] * phi[t][f] * slope;
            }
        }
    }
    y
}

/// Losses and slopes of cross-entropy, from targets written out.
pub(crate) fn cross_entropy(o: &[f32], classes: usize, targets: &SoftTargets) -> [Vec<f64>; 2] {
    let (mut losses, mut slopes) = (vec![], vec![]);
    for (o, target) in o.chunks(classes).zip(&targets.rows) {
        let o: Vec<f64> = o.iter().map(|&o| o.into()).collect();
        let [of_a, of_b] = target.shares.map(f64::from);
        let mut y = vec![targets.off * (of_a + of_b); classes];
        y[target.a] += targets.on * of_a;
        y[target.b] += targets.on * of_b;
        let largest = o.iter().fold(f64::MIN, |a, &b| a.max(b));
        let log_sum = o.iter().map(|o| (o - largest).exp()).sum::<f64>().ln();
        let log_p: Vec<f64> = o.iter().map(|o| o - largest - log_sum).collect();
        losses.push(-y.iter().zip(&log_p).map(|(y, log_p)| y * log_p).sum::<f64>());
        let mass: f64 = y.iter().sum();
        slopes.extend(y.iter().zip(&log_p).map(|(y, log_p)| mass * log_p.exp() - y));
    }
    [losses, slopes]
}

/// Parameters and moments of AdamW.
pub(crate) struct AdamWState {
    pub p: Vec<f64>,
    pub m: Vec<f64>,
    pub v: Vec<f64>,
}

impl AdamWState {
    pub fn new(p: &[f32]) -> Self {
        let zeros = vec![0.0; p.len()];
        Self { p: p.iter().map(|&p| p.into()).collect(), m: zeros.clone(), v: zeros }
    }

    pub fn step(&mut self, g: &[f32], options: &AdamW) {
        let [lr, beta1, beta2, eps, decay] =
            [options.lr, options.beta1, options.beta2, options.eps, options.weight_decay]
                .map(f64::from);
        let t = options.step as i32;
        for (i, &g) in g.iter().enumerate() {
            let g = f64::from(g);
            self.m[i] = beta1 * self.m[i] + (1.0 - beta1) * g;
            self.v[i] = beta2 * self.v[i] + (1.0 - beta2) * g * g;
            let m = self.m[i] / (1.0 - beta1.powi(t));
            let v = self.v[i] / (1.0 - beta2.powi(t));
            self.p[i] = self.p[i] * (1.0 - lr * decay) - lr * m / (v.sqrt() + eps);
        }
    }
}

/// One step of SGD on parameters and moments.
pub(crate) fn sgd([p, m]: &mut [Vec<f64>; 2], g: &[f32], options: &Sgd) {
    let [lr, momentum, decay] = [options.lr, options.momentum, options.weight_decay].map(f64::from);
    for ((p, m), &g) in p.iter_mut().zip(m).zip(g) {
        *m = momentum * *m + f64::from(g) + decay * *p;
        *p -= lr * *m;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_equals_scipy() {
        // scipy.special.erf, 1.15
        for (x, y) in [
            (0.1, 0.112_462_916_018_284_89),
            (1.0, 0.842_700_792_949_714_9),
            (-2.5, -0.999_593_047_982_555),
            (3.5, 0.999_999_256_901_627_7),
        ] {
            assert!((erf(x) - y).abs() < 1e-13, "erf({x}) = {}", erf(x));
        }
    }
}
