//! Attention by positive random features (Choromanski et al. 2021), linear in the number of tokens,
//! on the output of the key, query and value projection as it lies.
//!
//! With phi(x) = exp(w x - |x|^2 / 2) / sqrt(features), K = phi(k) and Q = phi(q) of a sequence, M =
//! K^T V and s the column sums of K, the output is Q M / (Q s + eps).

use crate::check::check_len;
use crate::gemm::{Epilogue, Left, PackedB, block, product};
use crate::matrix::Precision;
use crate::simd::{Kernel, Level, Simd, exp};
use std::cell::RefCell;

/// Sizes of a performer's attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PerformerShape {
    /// Sequences.
    pub batch: usize,
    /// Tokens of a sequence.
    pub tokens: usize,
    /// Channels of a key, a query and a value.
    pub dim: usize,
    /// Random features.
    pub features: usize,
    /// Keeps the normaliser from 0.
    pub eps: f32,
    /// Of the products; the rest is f32.
    pub precision: Precision,
}

impl PerformerShape {
    /// Values of the features of keys and queries.
    pub fn saved(&self) -> usize {
        self.batch * self.tokens * 2 * self.features
    }

    fn check(&self, kqv: &[f32], w: &[f32], out: &[f32], phi: &[f32]) {
        let values = self.batch * self.tokens * self.dim;
        check_len("keys, queries and values", kqv, 3 * values);
        check_len("the random features", w, self.features * self.dim);
        check_len("the performer's output", out, values);
        check_len("the features", phi, self.saved());
    }
}

/// What one sequence needs, kept by each thread.
#[derive(Default)]
struct Scratch {
    packed: PackedB,
    weight: PackedB,
    /// M, `[features, dim]`, and its gradient.
    memory: Vec<f32>,
    d_memory: Vec<f32>,
    /// Column sums of K, and their gradient.
    sums: Vec<f32>,
    d_sums: Vec<f32>,
    /// Gradients of Q M, `[tokens, dim]`, of Q s and of phi, laid out like it.
    d_rows: Vec<f32>,
    d_normaliser: Vec<f32>,
    d_phi: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// `out` `[batch, tokens, dim]` and `phi` `[batch, tokens, 2, features]`, the features of keys and
/// queries for [`performer_backward`], both overwritten. `kqv`: `[batch, tokens, 3, dim]`, keys,
/// queries, values; `w`: `[features, dim]`.
///
/// # Panics
/// If a slice has not the length that `shape` implies.
pub fn performer_forward(
    shape: &PerformerShape,
    kqv: &[f32],
    w: &[f32],
    out: &mut [f32],
    phi: &mut [f32],
) {
    performer_forward_at(Level::current(), shape, kqv, w, out, phi);
}

fn performer_forward_at(
    level: Level,
    shape: &PerformerShape,
    kqv: &[f32],
    w: &[f32],
    out: &mut [f32],
    phi: &mut [f32],
) {
    shape.check(kqv, w, out, phi);
    let &PerformerShape { tokens, dim, features, eps, precision, .. } = shape;
    if out.is_empty() {
        return;
    }
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.weight.fill_transposed(level, precision, w, dim, [dim, features]);
        let sequences = kqv.chunks_exact(tokens * 3 * dim).zip(out.chunks_exact_mut(tokens * dim));
        for ((kqv, out), phi) in sequences.zip(phi.chunks_exact_mut(tokens * 2 * features)) {
            for part in 0..2 {
                let (x, to) =
                    (Left::rows(&kqv[part * dim..], 3 * dim), &mut phi[part * features..]);
                product(level, tokens, x, &scratch.weight, (to, 2 * features), Epilogue::Store);
            }
            level.run(Features { kqv, dim, phi, features });
            scratch.remember(level, shape, kqv, phi);
            let Scratch { packed, memory, sums, .. } = scratch;
            packed.fill(level, precision, &memory[..], dim, [features, dim]);
            let queries = Left::rows(&phi[features..], 2 * features);
            product(level, tokens, queries, packed, (&mut out[..], dim), Epilogue::Store);
            level.run(Normalise { phi, sums: &sums[..features], eps, out, dim });
        }
    });
}

/// `dkqv` (overwritten, laid out like `kqv`) from `dout`, the gradient of the output `out` of
/// [`performer_forward`], which has left `phi`.
///
/// # Panics
/// If a slice has not the length that `shape` implies.
pub fn performer_backward(
    shape: &PerformerShape,
    dout: &[f32],
    [kqv, w, out, phi]: [&[f32]; 4],
    dkqv: &mut [f32],
) {
    performer_backward_at(Level::current(), shape, dout, [kqv, w, out, phi], dkqv);
}

fn performer_backward_at(
    level: Level,
    shape: &PerformerShape,
    dout: &[f32],
    [kqv, w, out, phi]: [&[f32]; 4],
    dkqv: &mut [f32],
) {
    shape.check(kqv, w, dout, phi);
    shape.check(dkqv, w, out, phi);
    let &PerformerShape { tokens, dim, features, precision, .. } = shape;
    if out.is_empty() {
        return;
    }
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.weight.fill(level, precision, w, dim, [features, dim]);
        let rows = dout.chunks_exact(tokens * dim).zip(out.chunks_exact(tokens * dim));
        let sequences =
            kqv.chunks_exact(tokens * 3 * dim).zip(dkqv.chunks_exact_mut(tokens * 3 * dim));
        let phis = phi.chunks_exact(tokens * 2 * features);
        for (((dout, out), (kqv, dkqv)), phi) in rows.zip(sequences).zip(phis) {
            scratch.backward(level, shape, [dout, out, kqv, phi], dkqv);
        }
    });
}

impl Scratch {
    /// M and s of one sequence.
    fn remember(&mut self, level: Level, shape: &PerformerShape, kqv: &[f32], phi: &[f32]) {
        let &PerformerShape { tokens, dim, features, precision, .. } = shape;
        self.packed.fill(level, precision, &kqv[2 * dim..], 3 * dim, [tokens, dim]);
        let memory = block(&mut self.memory, features * dim);
        let keys = Left::transposed(phi, 2 * features);
        product(level, features, keys, &self.packed, (memory, dim), Epilogue::Store);
        let sums = block(&mut self.sums, features);
        level.run(WeightedSum { phi, part: 0, weights: None, sums });
    }

    /// The gradient of one sequence: with U = Q M, n = Q s + eps and Y = U / n, dU = dY / n, dn =
    /// -rowsum(dY Y) / n, dQ = dU M^T + dn s^T, dM = Q^T dU, ds = Q^T dn, dK = V dM^T + ds, dV = K dM.
    fn backward(
        &mut self,
        level: Level,
        shape: &PerformerShape,
        [dout, out, kqv, phi]: [&[f32]; 4],
        dkqv: &mut [f32],
    ) {
        let &PerformerShape { tokens, dim, features, eps, precision, .. } = shape;
        self.remember(level, shape, kqv, phi);
        let (memory, sums) = (&self.memory[..features * dim], &self.sums[..features]);
        let (packed, stride) = (&mut self.packed, 2 * features);
        let d_rows = block(&mut self.d_rows, tokens * dim);
        let d_normaliser = block(&mut self.d_normaliser, tokens);
        level.run(NormaliseBackward { phi, sums, eps, dout, out, d_rows, d_normaliser });
        let d_phi = block(&mut self.d_phi, tokens * stride);
        packed.fill_transposed(level, precision, memory, dim, [dim, features]);
        let (rows, to) = (Left::rows(&*d_rows, dim), (&mut d_phi[features..], stride));
        product(level, tokens, rows, packed, to, Epilogue::Store);

        let d_memory = block(&mut self.d_memory, features * dim);
        packed.fill(level, precision, &*d_rows, dim, [tokens, dim]);
        let queries = Left::transposed(&phi[features..], stride);
        product(level, features, queries, packed, (&mut d_memory[..], dim), Epilogue::Store);
        let d_sums = block(&mut self.d_sums, features);
        level.run(WeightedSum { phi, part: 1, weights: Some(d_normaliser), sums: d_sums });

        packed.fill_transposed(level, precision, &*d_memory, dim, [dim, features]);
        let values = Left::rows(&kqv[2 * dim..], 3 * dim);
        product(level, tokens, values, packed, (&mut d_phi[..], stride), Epilogue::Store);
        packed.fill(level, precision, &*d_memory, dim, [features, dim]);
        let (keys, to) = (Left::rows(phi, stride), (&mut dkqv[2 * dim..], 3 * dim));
        product(level, tokens, keys, packed, to, Epilogue::Store);

        let added = [(d_sums as &[f32], None), (sums, Some(d_normaliser as &[f32]))];
        level.run(FeaturesBackward { kqv, dim, phi, features, added, d_phi, dkqv });
        for part in 0..2 {
            let d_phi = Left::rows(&d_phi[part * features..], stride);
            let to = (&mut dkqv[part * dim..], 3 * dim);
            product(level, tokens, d_phi, &self.weight, to, Epilogue::Accumulate);
        }
    }
}

/// The sum of the products of two rows.
#[inline(always)]
fn dot<S: Simd>(a: &[f32], b: &[f32]) -> f32 {
    let mut sum = S::splat(0.0);
    for piece in S::pieces(a.len()) {
        sum = S::load(&a[piece.clone()]).mul_add(S::load(&b[piece]), sum);
    }
    sum.sum()
}

/// w x becomes phi(x), for keys and queries.
struct Features<'a> {
    kqv: &'a [f32],
    dim: usize,
    phi: &'a mut [f32],
    features: usize,
}

impl Kernel for Features<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { kqv, dim, phi, features } = self;
        let factor = S::splat((features as f32).powf(-0.5));
        for (kqv, phi) in kqv.chunks_exact(3 * dim).zip(phi.chunks_exact_mut(2 * features)) {
            for (x, phi) in kqv.chunks_exact(dim).zip(phi.chunks_exact_mut(features)) {
                let half_square = S::splat(0.5 * dot::<S>(x, x));
                for piece in S::pieces(features) {
                    let e = exp(S::load(&phi[piece.clone()]) - half_square);
                    (e * factor).store(&mut phi[piece]);
                }
            }
        }
    }
}

/// The sum of the features of keys (`part` 0) or queries, each token's times its weight.
struct WeightedSum<'a> {
    phi: &'a [f32],
    part: usize,
    weights: Option<&'a [f32]>,
    sums: &'a mut [f32],
}

impl Kernel for WeightedSum<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { phi, part, weights, sums } = self;
        let features = sums.len();
        sums.fill(0.0);
        for (token, phi) in phi.chunks_exact(2 * features).enumerate() {
            let weight = S::splat(weights.map_or(1.0, |weights| weights[token]));
            let phi = &phi[part * features..][..features];
            for piece in S::pieces(features) {
                let sum = &mut sums[piece.clone()];
                S::load(&phi[piece]).mul_add(weight, S::load(sum)).store(sum);
            }
        }
    }
}

/// Q M becomes the output.
struct Normalise<'a> {
    phi: &'a [f32],
    sums: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
    dim: usize,
}

impl Kernel for Normalise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { phi, sums, eps, out, dim } = self;
        let features = sums.len();
        for (phi, out) in phi.chunks_exact(2 * features).zip(out.chunks_exact_mut(dim)) {
            let factor = S::splat(1.0 / (dot::<S>(&phi[features..], sums) + eps));
            for piece in S::pieces(dim) {
                let out = &mut out[piece];
                (S::load(out) * factor).store(out);
            }
        }
    }
}

/// The gradients of Q M and of Q s.
struct NormaliseBackward<'a> {
    phi: &'a [f32],
    sums: &'a [f32],
    eps: f32,
    dout: &'a [f32],
    out: &'a [f32],
    d_rows: &'a mut [f32],
    d_normaliser: &'a mut [f32],
}

impl Kernel for NormaliseBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { phi, sums, eps, dout, out, d_rows, d_normaliser } = self;
        let (features, dim) = (sums.len(), dout.len() / d_normaliser.len());
        let rows = dout.chunks_exact(dim).zip(out.chunks_exact(dim));
        let gradients = d_rows.chunks_exact_mut(dim).zip(d_normaliser);
        let tokens = rows.zip(gradients).zip(phi.chunks_exact(2 * features));
        for (((dout, out), (d_row, d_normaliser)), phi) in tokens {
            let factor = 1.0 / (dot::<S>(&phi[features..], sums) + eps);
            *d_normaliser = -dot::<S>(dout, out) * factor;
            for piece in S::pieces(dim) {
                (S::load(&dout[piece.clone()]) * S::splat(factor)).store(&mut d_row[piece]);
            }
        }
    }
}

/// `d_phi` becomes the gradient of w x, and keys and queries in `dkqv` what flows to them beside it.
struct FeaturesBackward<'a> {
    kqv: &'a [f32],
    dim: usize,
    phi: &'a [f32],
    features: usize,
    /// What the gradients of K and Q still lack: a row, times each token's weight.
    added: [(&'a [f32], Option<&'a [f32]>); 2],
    d_phi: &'a mut [f32],
    dkqv: &'a mut [f32],
}

impl Kernel for FeaturesBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { kqv, dim, phi, features, added, d_phi, dkqv } = self;
        let inputs = kqv.chunks_exact(3 * dim).zip(phi.chunks_exact(2 * features));
        let gradients = d_phi.chunks_exact_mut(2 * features).zip(dkqv.chunks_exact_mut(3 * dim));
        for (token, ((kqv, phi), (d_phi, dkqv))) in inputs.zip(gradients).enumerate() {
            for (part, (row, weights)) in added.iter().enumerate() {
                let weight = S::splat(weights.map_or(1.0, |weights| weights[token]));
                let phi = &phi[part * features..][..features];
                let d_phi = &mut d_phi[part * features..][..features];
                let mut sum = S::splat(0.0);
                for piece in S::pieces(features) {
                    let to = &mut d_phi[piece.clone()];
                    let d = S::load(&row[piece.clone()]).mul_add(weight, S::load(to));
                    let d = d * S::load(&phi[piece]);
                    sum = sum + d;
                    d.store(to);
                }
                let slope = S::splat(-sum.sum());
                let (x, dx) = (&kqv[part * dim..][..dim], &mut dkqv[part * dim..][..dim]);
                for piece in S::pieces(dim) {
                    (S::load(&x[piece.clone()]) * slope).store(&mut dx[piece]);
                }
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
        let mut random = Generator::new(31);
        let all = [(1, 1, 1, 1), (2, 5, 7, 3), (0, 3, 2, 2), (1, 37, 64, 32), (3, 16, 18, 33)];
        for &(batch, tokens, dim, features) in reference::fewer_under_miri(&all, 3) {
            let eps = 1e-8;
            let precision = Precision::F32;
            let shape = PerformerShape { batch, tokens, dim, features, eps, precision };
            let values = batch * tokens * dim;
            let kqv: Vec<f32> = random.normal(3 * values).iter().map(|x| 0.5 * x).collect();
            let (w, dout) = (random.normal(features * dim), random.normal(values));
            let exact = reference::performer(&shape, &kqv, &w, &dout);
            for level in Level::available() {
                let (mut out, mut phi) = (vec![9.0; values], vec![9.0; shape.saved()]);
                performer_forward_at(level, &shape, &kqv, &w, &mut out, &mut phi);
                assert_close(&out, &exact.out, 1e-5);
                let mut dkqv = vec![9.0; kqv.len()];
                let inputs = [&kqv[..], &w, &out, &phi];
                performer_backward_at(level, &shape, &dout, inputs, &mut dkqv);
                assert_close(&dkqv, &exact.dkqv, 5e-5);
            }
        }
    }

    #[test]
    #[should_panic(expected = "the random features: 3 values where 4 are needed")]
    fn too_few_features_are_refused() {
        let (batch, tokens, dim, features) = (1, 1, 2, 2);
        let precision = Precision::F32;
        let shape = PerformerShape { batch, tokens, dim, features, eps: 1e-8, precision };
        performer_forward(&shape, &[0.0; 6], &[0.0; 3], &mut [0.0; 2], &mut [0.0; 4]);
    }
}
