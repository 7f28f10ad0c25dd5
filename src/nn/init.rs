//! Initial weights, each parameter from a random stream of its own.

use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal, StandardNormal, Uniform};

use crate::rng::{Purpose, stream};

/// First values of a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Start {
    /// Normal with mean 0 and this standard deviation.
    Normal(f32),
    /// [`Self::Normal`] from the stream of the parameter so many places before this one.
    NormalOf(f32, usize),
    /// Uniform within plus and minus this bound.
    Uniform(f32),
    /// All the same.
    Constant(f32),
    /// Orthogonal rows of this length in random directions; at most as many rows as columns.
    Orthogonal(f32),
    /// Sines and cosines of the position in the sequence (Vaswani et al. 2017), for `[1, tokens, dim]`.
    Sinusoids,
}

impl Start {
    /// The values of a parameter of `shape`, the `index`-th of a model that starts from `seed`. They
    /// come from the stream (seed, `Init`, index), so weights depend on the seed and the architecture
    /// alone.
    pub fn draw(self, shape: &[usize], seed: u64, index: usize) -> Vec<f32> {
        let index = if let Self::NormalOf(_, before) = self { index - before } else { index };
        let mut rng = stream(seed, Purpose::Init, 0, index as u64, 0);
        let (size, columns) = (shape.iter().product(), shape.last().copied().unwrap_or(1));
        match self {
            Self::Normal(std) | Self::NormalOf(std, _) => {
                let normal = Normal::new(0.0, std).expect("a finite standard deviation");
                normal.sample_iter(&mut rng).take(size).collect()
            }
            Self::Uniform(bound) => {
                let uniform = Uniform::new(-bound, bound).expect("a positive bound");
                uniform.sample_iter(&mut rng).take(size).collect()
            }
            Self::Constant(value) => vec![value; size],
            Self::Orthogonal(norm) => orthogonal([size / columns, columns], norm, &mut rng),
            Self::Sinusoids => {
                (0..size).map(|i| sinusoid(i / columns, i % columns, columns)).collect()
            }
        }
    }
}

fn orthogonal([rows, columns]: [usize; 2], norm: f32, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let mut basis: Vec<Vec<f64>> = Vec::new();
    for _ in 0..rows {
        let mut row: Vec<f64> = (0..columns).map(|_| StandardNormal.sample(rng)).collect();
        // Gram and Schmidt; the rest of a random direction is far from 0.
        for unit in &basis {
            let along: f64 = row.iter().zip(unit).map(|(a, b)| a * b).sum();
            row.iter_mut().zip(unit).for_each(|(a, b)| *a -= along * b);
        }
        let length = row.iter().map(|a| a * a).sum::<f64>().sqrt();
        basis.push(row.iter().map(|a| a / length).collect());
    }
    basis.concat().iter().map(|&a| norm * a as f32).collect()
}

fn sinusoid(position: usize, j: usize, dim: usize) -> f32 {
    let angle = position as f64 / 10_000f64.powf((j / 2 * 2) as f64 / dim as f64);
    if j.is_multiple_of(2) { angle.sin() as f32 } else { angle.cos() as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orthogonal_rows_have_the_norm_and_no_product() {
        let w = Start::Orthogonal(3.0).draw(&[8, 16], 5, 0);
        let row = |i: usize| &w[i * 16..(i + 1) * 16];
        for (i, j) in (0..8).flat_map(|i| (0..8).map(move |j| (i, j))) {
            let product: f32 = row(i).iter().zip(row(j)).map(|(a, b)| a * b).sum();
            let expected = if i == j { 9.0 } else { 0.0 };
            assert!((product - expected).abs() < 1e-4, "{i} {j}: {product}");
        }
    }

    #[test]
    fn every_parameter_has_a_stream_of_its_own() {
        let draw = |seed, index| Start::Normal(0.02).draw(&[4, 3], seed, index);
        assert_eq!(draw(1, 2), draw(1, 2));
        assert_ne!(draw(1, 2), draw(1, 3));
        assert_ne!(draw(1, 2), draw(2, 2));
    }
}
