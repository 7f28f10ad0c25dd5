//! Muon: momentum whose matrices are made orthogonal before they are added (Jordan et al. 2024), scaled
//! to the step of AdamW as in "Muon is Scalable for LLM Training" (arXiv 2502.16982, section 2.2).

use fewvit_kernels::{Epilogue, PackedB, Precision, matmul};

use crate::nn::ParamSpec;

/// Coefficients of the quintic that drives singular values towards 1 (Jordan et al. 2024).
const QUINTIC: [f32; 3] = [3.4445, -4.7750, 2.0315];
/// Times that it is applied: singular values within 0.7 to 1.2, from 1e-3 of the largest on.
const ITERATIONS: usize = 5;
/// Root mean square of AdamW's step over its learning rate, which Muon's is scaled to.
const ADAMW_RMS: f32 = 0.2;
/// Added to the norm that is divided by.
const TINY: f32 = 1e-7;

/// Hyper-parameters of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Muon {
    /// Learning rate of this step, of AdamW's size.
    pub lr: f32,
    /// Decay rate of the moment.
    pub momentum: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// Rows and columns of the parameter.
    pub sides: [usize; 2],
}

/// Rows and columns of a parameter that is moved as a matrix: weights of linear layers and of convolutions
/// over several channels, inside the backbone. Heads, which have a row a class, and single rows are not.
pub fn sides(spec: &ParamSpec) -> Option<[usize; 2]> {
    let [rows, inputs, ..] = spec.shape[..] else { return None };
    let matrix = rows > 1 && inputs > 1 && !spec.key.starts_with("head.");
    matrix.then(|| [rows, spec.range.len() / rows])
}

/// One step on a matrix `p` with gradient `g` and moment `m`, row-major: m = momentum m + (1 - momentum) g,
/// then p = (1 - lr wd) p - lr 0.2 sqrt(max(rows, columns)) O with O the orthogonal factor of Nesterov's
/// g + momentum (m - g).
pub fn muon_step(p: &mut [f32], g: &[f32], m: &mut [f32], options: &Muon) {
    let &Muon { lr, momentum, weight_decay, sides: [rows, columns] } = options;
    let mut ahead = vec![0.0; g.len()];
    for ((ahead, m), &g) in ahead.iter_mut().zip(m).zip(g) {
        *m += (1.0 - momentum) * (g - *m);
        *ahead = g + momentum * (*m - g);
    }
    let direction = orthogonal(ahead, [rows, columns]);
    let scale = lr * ADAMW_RMS * (rows.max(columns) as f32).sqrt();
    let kept = 1.0 - lr * weight_decay;
    for (p, d) in p.iter_mut().zip(direction) {
        *p = kept * *p - scale * d;
    }
}

/// Nearly U V^T of a matrix U S V^T `[rows, columns]`, by Newton-Schulz iterations.
fn orthogonal(mut x: Vec<f32>, [rows, columns]: [usize; 2]) -> Vec<f32> {
    let tall = rows > columns;
    if tall {
        x = transposed(&x, [rows, columns]);
    }
    let (m, n) = (rows.min(columns), rows.max(columns));
    let norm = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt() as f32;
    x.iter_mut().for_each(|v| *v /= norm + TINY);
    let [a, b, c] = QUINTIC;
    let (mut gram, mut factor) = (vec![0.0; m * m], vec![0.0; m * m]);
    let (mut right, mut scaled) = (PackedB::default(), Vec::new());
    for _ in 0..ITERATIONS {
        right.repack_transposed(Precision::F32, &x, n, m);
        matmul(m, &x[..], &right, &mut gram[..], Epilogue::Store);
        // b G + c G G, the factor of the new part of x.
        right.repack(Precision::F32, &gram, m, m);
        scaled.clear();
        scaled.extend(gram.iter().map(|v| v * c));
        factor.iter_mut().zip(&gram).for_each(|(f, g)| *f = b * g);
        matmul(m, &scaled[..], &right, &mut factor[..], Epilogue::Accumulate);
        right.repack(Precision::F32, &x, m, n);
        x.iter_mut().for_each(|v| *v *= a);
        matmul(m, &factor[..], &right, &mut x[..], Epilogue::Accumulate);
    }
    if tall { transposed(&x, [columns, rows]) } else { x }
}

fn transposed(x: &[f32], [rows, columns]: [usize; 2]) -> Vec<f32> {
    (0..columns * rows).map(|i| x[i % rows * columns + i / rows]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `[rows, columns]` with the given singular values: a diagonal matrix, turned in the planes of its
    /// first rows and of its first columns.
    fn turned(singular: &[f64], [rows, columns]: [usize; 2]) -> Vec<f32> {
        let mut x = vec![0.0; rows * columns];
        singular.iter().enumerate().for_each(|(i, &value)| x[i * columns + i] = value);
        for plane in 0..rows - 1 {
            let (sin, cos) = (0.3 + plane as f64).sin_cos();
            for column in 0..columns {
                let (i, j) = (plane * columns + column, (plane + 1) * columns + column);
                (x[i], x[j]) = (cos * x[i] - sin * x[j], sin * x[i] + cos * x[j]);
            }
        }
        for plane in 0..columns - 1 {
            let (sin, cos) = (1.1 * plane as f64).sin_cos();
            for row in 0..rows {
                let (i, j) = (row * columns + plane, row * columns + plane + 1);
                (x[i], x[j]) = (cos * x[i] - sin * x[j], sin * x[i] + cos * x[j]);
            }
        }
        x.into_iter().map(|value| value as f32).collect()
    }

    /// What the iterations make of one singular value.
    fn driven(value: f64) -> f64 {
        let [a, b, c] = QUINTIC.map(f64::from);
        (0..ITERATIONS).fold(value, |s, _| a * s + b * s.powi(3) + c * s.powi(5))
    }

    #[test]
    fn singular_values_are_driven_towards_one_and_directions_stay() {
        for sides in [[5, 5], [4, 9], [40, 33], [3, 70]] {
            let least = sides[0].min(sides[1]);
            let singular: Vec<f64> = (0..least).map(|i| 3.0 / (1.0 + i as f64)).collect();
            let norm = singular.iter().map(|s| s * s).sum::<f64>().sqrt();
            let exact: Vec<f64> = singular.iter().map(|s| driven(s / norm)).collect();
            assert!(exact.iter().all(|s| (0.65..1.25).contains(s)), "{exact:?}");
            let found = orthogonal(turned(&singular, sides), sides);
            for (found, exact) in found.iter().zip(turned(&exact, sides)) {
                assert!((found - exact).abs() < 2e-5, "{found} {exact}");
            }
        }
    }

    #[test]
    fn a_step_goes_along_the_orthogonal_factor_by_the_size_of_adamw() {
        let sides = [3, 2];
        let (mut p, mut m) = (vec![1.0; 6], vec![0.0; 6]);
        let g = turned(&[2.0, 0.5], sides);
        let options = Muon { lr: 0.1, momentum: 0.9, weight_decay: 0.5, sides };
        muon_step(&mut p, &g, &mut m, &options);
        // The first moment is a tenth of the gradient, and Nesterov's vector a multiple of it.
        assert!(m.iter().zip(&g).all(|(m, g)| (m - 0.1 * g).abs() < 1e-6));
        let norm = 4.25f64.sqrt();
        let factor = turned(&[driven(2.0 / norm), driven(0.5 / norm)], sides);
        let scale = 0.1 * 0.2 * 3f32.sqrt();
        for (p, factor) in p.iter().zip(factor) {
            assert!((p - (0.95 - scale * factor)).abs() < 1e-6, "{p}");
        }
    }

    #[test]
    fn no_gradient_moves_nothing_but_by_decay() {
        let (mut p, mut m) = (vec![1.0; 6], vec![0.0; 6]);
        let options = Muon { lr: 0.1, momentum: 0.95, weight_decay: 0.5, sides: [2, 3] };
        muon_step(&mut p, &[0.0; 6], &mut m, &options);
        assert!(p.iter().all(|p| (p - 0.95).abs() < 1e-7));
    }

    #[test]
    fn matrices_of_the_backbone_are_moved_as_such() {
        let of = |key: &str, shape: &[usize]| {
            let range = 7..7 + shape.iter().product::<usize>();
            sides(&ParamSpec { key: key.into(), shape: shape.to_vec(), range, frozen: false })
        };
        assert_eq!(of("blocks.0.mlp.fc1.weight", &[768, 192]), Some([768, 192]));
        assert_eq!(of("patch_embed.proj.weight", &[192, 3, 16, 16]), Some([192, 768]));
        let others: [(&str, &[usize]); 5] = [
            ("head.weight", &[102, 192]),
            ("norm.weight", &[192]),
            ("pos_embed", &[1, 197, 192]),
            ("cls_token", &[1, 1, 192]),
            ("stages.0.blocks.0.mlp.dwconv.weight", &[256, 1, 3, 3]),
        ];
        assert!(others.iter().all(|(key, shape)| of(key, shape).is_none()));
    }
}
