//! t-SNE (van der Maaten and Hinton 2008), exact: every pair of points at every step.
//!
//! It starts from the first two principal components, so the same points give the same picture.

use super::pca::pca;

/// Points beyond which [`tsne`] takes too long.
pub const MOST: usize = 3000;

/// Neighbours that count for each point, more or less.
const PERPLEXITY: f64 = 30.0;
/// Steps in which similarities are exaggerated, by how much, and steps in all.
const EXAGGERATED: usize = 250;
const EXAGGERATION: f64 = 12.0;
const STEPS: usize = 1000;
/// Momentum of the exaggerated steps and of the others.
const MOMENTA: [f64; 2] = [0.5, 0.8];
/// Standard deviation of the first coordinate at the start.
const SPREAD: f64 = 1e-4;
/// Least learning rate; otherwise points / exaggeration / 4 (Belkina et al. 2019).
const LEAST_RATE: f64 = 50.0;
/// Gains of single coordinates (Jacobs 1988): added, multiplied, and the least.
const GAINS: (f64, f64, f64) = (0.2, 0.8, 0.01);
/// Halvings in the search for a point's bandwidth.
const HALVINGS: usize = 100;
/// Probabilities are at least this much.
const LEAST: f64 = 1e-12;

/// Places in the plane for `points`, rows of equal length.
pub fn tsne(points: &[Vec<f64>]) -> Vec<[f64; 2]> {
    after(points, STEPS)
}

/// The places after so many steps.
fn after(points: &[Vec<f64>], steps: usize) -> Vec<[f64; 2]> {
    let n = points.len();
    let mut places = start(points);
    if n < 3 {
        return places;
    }
    let p = similarities(points, PERPLEXITY.min((n - 1) as f64 / 3.0));
    let rate = (n as f64 / EXAGGERATION / 4.0).max(LEAST_RATE);
    let (mut velocity, mut gains) = (vec![[0.0; 2]; n], vec![[1.0; 2]; n]);
    for step in 0..steps {
        let (factor, momentum) = match step < EXAGGERATED {
            true => (EXAGGERATION, MOMENTA[0]),
            false => (1.0, MOMENTA[1]),
        };
        let slope = slope(&p, factor, &places);
        for i in 0..n {
            for c in 0..2 {
                let (gain, moving) = (&mut gains[i][c], &mut velocity[i][c]);
                *gain = match *moving * slope[i][c] < 0.0 {
                    true => *gain + GAINS.0,
                    false => (*gain * GAINS.1).max(GAINS.2),
                };
                *moving = momentum * *moving - rate * *gain * slope[i][c];
                places[i][c] += *moving;
            }
        }
    }
    places
}

/// The first two principal components, small.
fn start(points: &[Vec<f64>]) -> Vec<[f64; 2]> {
    let places = pca(points);
    let square: f64 = places.iter().map(|place| place[0] * place[0]).sum();
    let deviation = (square / places.len().max(1) as f64).sqrt();
    let scale = if deviation > 0.0 { SPREAD / deviation } else { 0.0 };
    places.into_iter().map(|place| place.map(|value| scale * value)).collect()
}

/// Joint probabilities `[n * n]` of pairs, each point having neighbours of the same perplexity.
fn similarities(points: &[Vec<f64>], perplexity: f64) -> Vec<f64> {
    let n = points.len();
    let mut p = vec![0.0; n * n];
    for (i, row) in p.chunks_mut(n).enumerate() {
        let distances: Vec<f64> = points.iter().map(|other| squared(&points[i], other)).collect();
        conditional(&distances, i, perplexity, row);
    }
    let total = 2.0 * n as f64;
    let joint = |k: usize| (p[k] + p[(k % n) * n + k / n]) / total;
    (0..n * n).map(|k| joint(k).max(LEAST)).collect()
}

/// Fills `row` with the probabilities of the neighbours of point `i` at squared `distances`: normal, its
/// bandwidth such that the entropy is the logarithm of the perplexity.
fn conditional(distances: &[f64], i: usize, perplexity: f64, row: &mut [f64]) {
    let nearest = distances.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, d)| *d);
    let nearest = nearest.fold(f64::INFINITY, f64::min);
    let (mut precision, mut low, mut high) = (1.0, 0.0, f64::INFINITY);
    for _ in 0..HALVINGS {
        let (mut sum, mut weighted) = (0.0, 0.0);
        for (j, value) in row.iter_mut().enumerate() {
            let beyond = distances[j] - nearest;
            *value = if j == i { 0.0 } else { (-precision * beyond).exp() };
            sum += *value;
            weighted += *value * beyond;
        }
        row.iter_mut().for_each(|value| *value /= sum);
        let entropy = sum.ln() + precision * weighted / sum;
        match entropy > perplexity.ln() {
            true => low = precision,
            false => high = precision,
        }
        precision = if high.is_finite() { (low + high) / 2.0 } else { 2.0 * precision };
    }
}

fn squared(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

/// Gradient of the Kullback-Leibler divergence by the places.
fn slope(p: &[f64], factor: f64, places: &[[f64; 2]]) -> Vec<[f64; 2]> {
    let n = places.len();
    let near = |i: usize, j: usize| 1.0 / (1.0 + squared(&places[i], &places[j]));
    let total: f64 = (0..n).map(|i| (0..i).map(|j| 2.0 * near(i, j)).sum::<f64>()).sum();
    let of = |i: usize| {
        let mut sum = [0.0; 2];
        for j in (0..n).filter(|&j| j != i) {
            let near = near(i, j);
            let pull = 4.0 * (factor * p[i * n + j] - (near / total).max(LEAST)) * near;
            (0..2).for_each(|c| sum[c] += pull * (places[i][c] - places[j][c]));
        }
        sum
    };
    (0..n).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::super::pca::tests::made_up;
    use super::*;

    /// `tests/golden/tsne.py` prints the first three of forty places after five steps; every step blows up
    /// differences in rounding.
    #[test]
    fn five_steps_are_numpys() {
        let places = after(&made_up(40, 6), 5);
        for (place, expected) in places.iter().zip(NUMPY) {
            for (value, expected) in place.iter().zip(expected) {
                assert!((value - expected).abs() < 1e-6 * expected.abs().max(1e-3), "{places:?}");
            }
        }
    }

    #[test]
    fn groups_that_are_apart_stay_apart() {
        let point = |i: usize| {
            let mut point = vec![0.0; 4];
            point[i % 3] = 20.0;
            point[3] = (i as f64 * 1.3).sin();
            point
        };
        let points: Vec<_> = (0..60).map(point).collect();
        let places = tsne(&points);
        assert_eq!(places, tsne(&points), "the same every time");
        for i in 0..60 {
            let nearest = (0..60).filter(|&j| j != i).min_by(|&a, &b| {
                squared(&places[i], &places[a]).total_cmp(&squared(&places[i], &places[b]))
            });
            assert_eq!(nearest.expect("another") % 3, i % 3);
        }
    }

    #[test]
    fn a_few_points_or_equal_ones_are_no_reason_to_stop() {
        assert!(tsne(&[]).is_empty());
        assert_eq!(tsne(&[vec![1.0, 2.0]]).len(), 1);
        let same = tsne(&vec![vec![1.0, 2.0]; 5]);
        assert!(same.iter().flatten().all(|value| value.is_finite()), "{same:?}");
    }

    const NUMPY: &[[f64; 2]] = &[
        [-4.203677525008672, 5.512073498904642],
        [1.6072451383600361, -8.627822457078373],
        [0.8974406023094005, -6.886800834991389],
    ];
}
