//! Eigenvalues of symmetric matrices, by a way that ends for every matrix: reflections to three diagonals,
//! then bisection on the number of eigenvalues below a point (Golub & Van Loan, sections 8.3 and 8.4).

/// Halvings of an interval: more than there are between any two doubles of one size.
const HALVINGS: usize = 80;

/// Eigenvalues of a symmetric matrix `[side, side]`, row-major, of finite values; the least first.
pub fn eigenvalues(matrix: Vec<f64>, side: usize) -> Vec<f64> {
    let (diagonal, beside) = tridiagonal(matrix, side);
    let squares: Vec<f64> = beside.iter().map(|b| b * b).collect();
    // No eigenvalue lies outside (Gershgorin).
    let reach = |i: usize| {
        let left = if i > 0 { beside[i - 1].abs() } else { 0.0 };
        left + beside.get(i).map_or(0.0, |b| b.abs())
    };
    let edge = (0..side).map(|i| diagonal[i].abs() + reach(i)).fold(0.0, f64::max);
    let mut found = Vec::with_capacity(side);
    let mut low = -edge;
    for k in 0..side {
        let mut high = edge;
        for _ in 0..HALVINGS {
            let middle = low + (high - low) / 2.0;
            if middle <= low || middle >= high {
                break;
            }
            match below(&diagonal, &squares, middle) > k {
                true => high = middle,
                false => low = middle,
            }
        }
        found.push(low + (high - low) / 2.0);
    }
    found
}

/// How many eigenvalues of the matrix with that diagonal, and those squares beside it, are less than `x`:
/// as many as the pivots of its elimination that are negative (Sylvester).
fn below(diagonal: &[f64], squares: &[f64], x: f64) -> usize {
    let (mut count, mut pivot) = (0, 1.0);
    for (i, value) in diagonal.iter().enumerate() {
        let coupling = if i > 0 { squares[i - 1] / pivot } else { 0.0 };
        pivot = value - x - coupling;
        if pivot == 0.0 {
            pivot = f64::MIN_POSITIVE;
        }
        count += usize::from(pivot < 0.0);
    }
    count
}

/// The diagonal, and what lies beside it, of a matrix with the same eigenvalues and nothing elsewhere.
fn tridiagonal(mut a: Vec<f64>, side: usize) -> (Vec<f64>, Vec<f64>) {
    let mut beside = Vec::with_capacity(side.saturating_sub(1));
    for k in 0..side.saturating_sub(1) {
        let rest = k + 1..side;
        let mut v: Vec<f64> = rest.clone().map(|i| a[i * side + k]).collect();
        let length = dot(&v, &v).sqrt();
        // Away from the first entry, so that nothing cancels.
        let target = if v[0] > 0.0 { -length } else { length };
        beside.push(target);
        v[0] -= target;
        let size = dot(&v, &v).sqrt();
        if size == 0.0 {
            continue;
        }
        v.iter_mut().for_each(|value| *value /= size);
        let along: Vec<f64> = rest.clone().map(|i| dot(&a[i * side..][rest.clone()], &v)).collect();
        let half = dot(&along, &v);
        let w: Vec<f64> = along.iter().zip(&v).map(|(p, v)| 2.0 * (p - half * v)).collect();
        for (i, row) in rest.clone().enumerate() {
            let row = &mut a[row * side..][rest.clone()];
            for ((value, vj), wj) in row.iter_mut().zip(&v).zip(&w) {
                *value -= v[i] * wj + w[i] * vj;
            }
        }
    }
    ((0..side).map(|i| a[i * side + i]).collect(), beside)
}

/// Inner product.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A matrix with the given eigenvalues: a diagonal, reflected at some planes.
    fn of(eigenvalues: &[f64]) -> Vec<f64> {
        let n = eigenvalues.len();
        let mut a = vec![0.0; n * n];
        (0..n).for_each(|i| a[i * n + i] = eigenvalues[i]);
        for turn in 1..4 {
            let mut v: Vec<f64> = (0..n).map(|i| ((turn * (i + 1)) as f64).sin()).collect();
            let size = dot(&v, &v).sqrt();
            v.iter_mut().for_each(|value| *value /= size);
            let reflect = |x: &mut [f64]| {
                let along = 2.0 * dot(x, &v);
                x.iter_mut().zip(&v).for_each(|(x, v)| *x -= along * v);
            };
            a.chunks_exact_mut(n).for_each(reflect);
            a = (0..n * n).map(|i| a[i % n * n + i / n]).collect();
            a.chunks_exact_mut(n).for_each(reflect);
        }
        a
    }

    #[track_caller]
    fn check(mut exact: Vec<f64>) {
        let found = eigenvalues(of(&exact), exact.len());
        exact.sort_by(f64::total_cmp);
        let largest = exact.iter().fold(0.0, |l: f64, v| l.max(v.abs()));
        for (found, exact) in found.iter().zip(&exact) {
            assert!((found - exact).abs() <= 1e-13 * largest, "{found} {exact}");
        }
    }

    #[test]
    fn eigenvalues_of_matrices_that_were_made_of_them() {
        check(vec![3.5]);
        check(vec![2.0, -1.0]);
        check((0..33).map(|i| f64::from(i * i) - 100.0).collect());
        check(vec![1.0; 20]);
        check(vec![0.0; 7]);
    }

    /// Features that are all but equal have one value of 1 and many of nothing.
    #[test]
    fn one_value_above_many_of_nothing() {
        check((0..256).map(|i| 2048.0 * 1e-7f64.powi(i.min(3))).collect());
        check((0..200).map(|i| if i == 7 { 1.0 } else { 1e-18 * f64::from(i) }).collect());
    }

    /// Closed form: 2 - 2 cos(k pi / (n + 1)) of the second differences.
    #[test]
    fn second_differences() {
        let n = 50;
        let entry = |i: usize| match (i / n).abs_diff(i % n) {
            0 => 2.0,
            1 => -1.0,
            _ => 0.0,
        };
        let found = eigenvalues((0..n * n).map(entry).collect(), n);
        for (k, found) in found.iter().enumerate() {
            let angle = (k + 1) as f64 * std::f64::consts::PI / (n + 1) as f64;
            assert!((found - (2.0 - 2.0 * angle.cos())).abs() < 1e-13);
        }
    }
}
