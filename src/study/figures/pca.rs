//! The first two principal components of points.

use crate::eval::spectrum::dot;

/// Rounds of orthogonal iteration, at most.
const ROUNDS: usize = 1000;
/// Change of any entry of a direction below which it is found.
const FOUND: f64 = 1e-13;

/// Coordinates of `points`, rows of equal length, along the two directions in which they vary most; the
/// largest entry of each direction is positive.
pub fn pca(points: &[Vec<f64>]) -> Vec<[f64; 2]> {
    let Some(first) = points.first() else { return Vec::new() };
    let (n, d) = (points.len() as f64, first.len());
    let mean: Vec<f64> =
        (0..d).map(|c| points.iter().map(|point| point[c]).sum::<f64>() / n).collect();
    let centred: Vec<Vec<f64>> =
        points.iter().map(|point| point.iter().zip(&mean).map(|(v, m)| v - m).collect()).collect();
    // Any start will do that is not at right angles to the directions.
    let mut directions =
        [1.0, 2.0].map(|k: f64| (0..d).map(|i| (k * i as f64 + k).cos()).collect::<Vec<_>>());
    for _ in 0..ROUNDS {
        let before = directions.clone();
        directions = directions.map(|direction| spread(&centred, &direction));
        orthonormal(&mut directions);
        let changes = before.iter().flatten().zip(directions.iter().flatten());
        if changes.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) < FOUND {
            break;
        }
    }
    directions.iter_mut().for_each(|direction| point_up(direction));
    centred.iter().map(|point| [dot(point, &directions[0]), dot(point, &directions[1])]).collect()
}

/// The covariance matrix, but for a factor, times the direction.
fn spread(centred: &[Vec<f64>], direction: &[f64]) -> Vec<f64> {
    let mut sum = vec![0.0; direction.len()];
    for point in centred {
        let along = dot(point, direction);
        sum.iter_mut().zip(point).for_each(|(sum, value)| *sum += along * value);
    }
    sum
}

fn orthonormal(directions: &mut [Vec<f64>; 2]) {
    let [first, second] = directions;
    unit(first);
    let along = dot(first, second);
    second.iter_mut().zip(&*first).for_each(|(value, other)| *value -= along * other);
    unit(second);
}

fn unit(direction: &mut [f64]) {
    let length = dot(direction, direction).sqrt();
    let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
    direction.iter_mut().for_each(|value| *value *= scale);
}

fn point_up(direction: &mut [f64]) {
    let largest =
        direction.iter().copied().fold(0.0, |l: f64, v| if v.abs() > l.abs() { v } else { l });
    if largest < 0.0 {
        direction.iter_mut().for_each(|value| *value = -*value);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The points of `tests/golden/tsne.py`.
    pub(in super::super) fn made_up(n: usize, d: usize) -> Vec<Vec<f64>> {
        let value = |i: usize, j: usize| {
            (1.0 + j as f64) * (1.7 * i as f64 + 0.9 * (j * j) as f64).sin() + (i % 3 * j) as f64
        };
        (0..n).map(|i| (0..d).map(|j| value(i, j)).collect()).collect()
    }

    /// `tests/golden/tsne.py`, by `numpy.linalg.eigh`.
    #[test]
    fn components_are_numpys() {
        let found = pca(&made_up(40, 6));
        for (found, expected) in found.iter().zip(PCA_NUMPY) {
            assert!((found[0] - expected[0]).abs() < 1e-6, "{found:?} {expected:?}");
            assert!((found[1] - expected[1]).abs() < 1e-6, "{found:?} {expected:?}");
        }
    }

    const PCA_NUMPY: &[[f64; 2]] = &[
        [-5.740511380513818, 6.174686820980218],
        [-5.45794279124564, 1.741364109421188],
        [7.790602172902253, -6.636106777832092],
    ];
}
