//! Muon: steps along the momentum made orthogonal (Jordan et al., 2024, "Muon: an optimizer for hidden
//! layers in neural networks"), as long as AdamW's (Liu et al., 2025, arXiv 2502.16982).

use fewvit_kernels::{Epilogue, PackedB, Precision, matmul, matmul_transposed_a, total_of};

use crate::nn::ParamSpec;

/// Coefficients of x, x^3 and x^5 of two rounds, which move singular values x of 0.03 and more of the largest to
/// between 0.62 and 1.38. Of all odd polynomials of this degree each is the one that stays nearest to 1 on what
/// the one before it leaves of [0.03, 1] (Amsel et al., 2025, "The Polar Express", arXiv 2505.16932, who take more
/// rounds). Five rounds of one polynomial, as by Muon's authors, trained no better; docs/recipes.md.
const ROUNDS: [[f32; 3]; 2] = [[7.3625, -20.7434, 15.1606], [2.9175, -2.1824, 0.4755]];
/// Room for what bf16 does to the largest singular value's square, beyond which the polynomials grow fast.
const MARGIN: f64 = 1.02;
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
/// p is multiplied by 1 - lr wd, and p -= 0.2 lr sqrt(max(rows, columns)) U with nearly the U V^T of U S V^T,
/// Nesterov's mean of m and g.
pub fn muon_step(p: &mut [f32], g: &[f32], m: &mut [f32], options: &Muon, precision: Precision) {
    let &Muon { lr, momentum, weight_decay, sides: [rows, columns] } = options;
    let towards = |m: f32, g: f32| momentum * m + (1.0 - momentum) * g;
    m.iter_mut().zip(g).for_each(|(m, &g)| *m = towards(*m, g));
    let ahead: Vec<f32> = m.iter().zip(g).map(|(&m, &g)| towards(m, g)).collect();
    let keep = 1.0 - lr * weight_decay;
    p.iter_mut().for_each(|p| *p *= keep);
    let rate = lr * ADAMW_RMS * (rows.max(columns) as f32).sqrt();
    add_orthogonal(p, &ahead, [rows, columns], -rate, precision);
}

/// p += rate U for nearly the U V^T of x = U S V^T `[rows, columns]`, which is x (x^T x)^(-1/2), or of a matrix that is wider
/// than high (x x^T)^(-1/2) x. Nothing for zeros.
fn add_orthogonal(
    p: &mut [f32],
    x: &[f32],
    sides @ [rows, columns]: [usize; 2],
    rate: f32,
    of: Precision,
) {
    let side = rows.min(columns);
    let mut packed = PackedB::default();
    let mut gram = gram_of(x, sides, of, &mut packed);
    let squares: f64 = gram.iter().step_by(side + 1).map(|&square| f64::from(square)).sum();
    if squares < f64::from(f32::MIN_POSITIVE) {
        return;
    }
    scale(&mut gram, 1.0 / squares);
    let mut root = inverse_root(&gram, side, of);
    scale(&mut root, f64::from(rate) / squares.sqrt());
    if columns <= rows {
        packed.repack(of, &root, side, side);
        matmul(rows, x, &packed, p, Epilogue::Accumulate);
    } else {
        packed.repack(of, x, rows, columns);
        matmul(rows, &root[..], &packed, p, Epilogue::Accumulate);
    }
}

/// The smaller of x^T x and x x^T.
fn gram_of(
    x: &[f32],
    [rows, columns]: [usize; 2],
    of: Precision,
    packed: &mut PackedB,
) -> Vec<f32> {
    let side = rows.min(columns);
    let mut gram = vec![0.0; side * side];
    if columns <= rows {
        matmul_transposed_a(of, [rows, columns, columns], x, x, &mut gram, None);
    } else {
        packed.repack_transposed(of, x, columns, rows);
        matmul(rows, x, packed, &mut gram[..], Epilogue::Store);
    }
    gram
}

/// Nearly gram^(-1/2) of a symmetric matrix without negative eigenvalues: the product of what [`ROUNDS`] multiply x by
/// where gram = x^T x. Both are polynomials of gram and commute, so the second one is of first * gram * first.
fn inverse_root(gram: &[f32], side: usize, of: Precision) -> Vec<f32> {
    let packed = |x: &[f32]| PackedB::pack(of, x, side, side);
    let times = |a: &[f32], b: &PackedB| {
        let mut product = vec![0.0; side * side];
        matmul(side, a, b, &mut product[..], Epilogue::Store);
        product
    };
    let packed_gram = packed(gram);
    let mut square = times(gram, &packed_gram);
    // The fourth root of the sum of the eigenvalues' fourth powers, little more than the largest one.
    let bound = MARGIN * total_of(&mut square, &[]).powf(0.25);
    let round = |[a, b, c]: [f32; 3], gram: &[f32], square: &[f32]| {
        let (b, c) = (b / bound as f32, c / (bound * bound) as f32);
        let terms = gram.iter().zip(square).map(|(gram, square)| b * gram + c * square);
        let mut factor: Vec<f32> = terms.collect();
        factor.iter_mut().step_by(side + 1).for_each(|diagonal| *diagonal += a);
        factor
    };
    let first = round(ROUNDS[0], gram, &square);
    let packed_first = packed(&first);
    let gram = times(&times(&first, &packed_gram), &packed_first);
    let second = round(ROUNDS[1], &gram, &times(&gram, &packed(&gram)));
    let mut root = times(&second, &packed_first);
    scale(&mut root, 1.0 / bound.sqrt());
    root
}

fn scale(x: &mut [f32], factor: f64) {
    x.iter_mut().for_each(|x| *x *= factor as f32);
}
