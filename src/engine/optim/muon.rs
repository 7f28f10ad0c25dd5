//! Muon: steps along the momentum made orthogonal (Jordan et al., 2024, "Muon: an optimizer for hidden
//! layers in neural networks"), as long as AdamW's (Liu et al., 2025, arXiv 2502.16982).

use fewvit_kernels::{Epilogue, PackedB, Precision, matmul, matmul_transposed_a, total_of};

use crate::nn::ParamSpec;

/// Coefficients of x, x^3 and x^5 by which a round moves the singular values x towards 1 (Jordan et al.).
const ROUND: [f32; 3] = [3.4445, -4.7750, 2.0315];
/// Rounds: singular values of 0.018 of the norm and more end between 0.68 and 1.2. Five, as by the authors, reach
/// down to 0.0018 and trained no better; docs/recipes.md.
const ROUNDS: usize = 3;
/// Root mean square of AdamW's steps in units of the learning rate (Liu et al., section 2.2).
const ADAMW_RMS: f32 = 0.2;

/// Hyper-parameters of one step of a matrix `[rows, columns]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Muon {
    /// Learning rate of this step, that of AdamW.
    pub lr: f32,
    /// Decay rate of the momentum.
    pub momentum: f32,
    /// Weight decay, multiplied by the learning rate.
    pub weight_decay: f32,
    /// Rows and columns of the matrix; a convolution's rows are its output channels.
    pub sides: [usize; 2],
}

/// Rows and columns of a parameter that Muon moves: the weights of linear layers but the last one, the head,
/// and of convolutions from channels to channels. The head, vectors and what has a value for each place are
/// AdamW's.
pub fn sides(spec: &ParamSpec) -> Option<[usize; 2]> {
    if spec.key.starts_with("head.") {
        return None;
    }
    match spec.shape[..] {
        [rows, columns] => Some([rows, columns]),
        [rows, inputs, height, width] if inputs > 1 => Some([rows, inputs * height * width]),
        _ => None,
    }
}

/// One step on a matrix `p` with gradient `g` and momentum `m`, with products in `precision`: m moves towards g,
/// p is multiplied by 1 - lr wd, and p -= 0.2 lr sqrt(max(rows, columns)) U with the U of `orthogonal` for
/// Nesterov's mean of m and g.
pub fn muon_step(p: &mut [f32], g: &[f32], m: &mut [f32], options: &Muon, precision: Precision) {
    let &Muon { lr, momentum, weight_decay, sides: [rows, columns] } = options;
    let towards = |m: f32, g: f32| momentum * m + (1.0 - momentum) * g;
    m.iter_mut().zip(g).for_each(|(m, &g)| *m = towards(*m, g));
    let ahead: Vec<f32> = m.iter().zip(g).map(|(&m, &g)| towards(m, g)).collect();
    let direction = orthogonal(ahead, [rows, columns], precision);
    let rate = lr * ADAMW_RMS * (rows.max(columns) as f32).sqrt();
    let keep = 1.0 - lr * weight_decay;
    p.iter_mut().zip(direction).for_each(|(p, u)| *p = *p * keep - rate * u);
}

/// Nearly U V^T of x = U S V^T `[rows, columns]`, by Newton-Schulz rounds: of a matrix that is not wider than
/// high x (a + b x^T x + c (x^T x)^2), of a wider one likewise from the left. All zeros stay zeros.
fn orthogonal(mut x: Vec<f32>, sides @ [rows, columns]: [usize; 2], of: Precision) -> Vec<f32> {
    // With nothing added, the sum of the squares.
    let norm = total_of(&mut x, &[]).sqrt();
    if norm == 0.0 {
        return x;
    }
    let scale = (1.0 / norm) as f32;
    x.iter_mut().for_each(|v| *v *= scale);
    let [a, b, c] = ROUND;
    let side = rows.min(columns);
    let mut next = vec![0.0; x.len()];
    let [mut gram, mut factor] = [0, 1].map(|_| vec![0.0; side * side]);
    let mut packed = PackedB::default();
    for _ in 0..ROUNDS {
        gram_of(&x, sides, of, &mut packed, &mut gram);
        packed.repack(of, &gram, side, side);
        matmul(side, &gram[..], &packed, &mut factor[..], Epilogue::Store);
        factor.iter_mut().zip(&gram).for_each(|(square, gram)| *square = c * *square + b * gram);
        factor.iter_mut().step_by(side + 1).for_each(|diagonal| *diagonal += a);
        if columns <= rows {
            packed.repack(of, &factor, side, side);
            matmul(rows, &x[..], &packed, &mut next[..], Epilogue::Store);
        } else {
            packed.repack(of, &x, rows, columns);
            matmul(rows, &factor[..], &packed, &mut next[..], Epilogue::Store);
        }
        std::mem::swap(&mut x, &mut next);
    }
    x
}

/// The smaller of x^T x and x x^T.
fn gram_of(
    x: &[f32],
    [rows, columns]: [usize; 2],
    of: Precision,
    packed: &mut PackedB,
    gram: &mut [f32],
) {
    if columns <= rows {
        gram.fill(0.0);
        matmul_transposed_a(of, [rows, columns, columns], x, x, gram, None);
    } else {
        packed.repack_transposed(of, x, columns, rows);
        matmul(rows, x, packed, gram, Epilogue::Store);
    }
}
