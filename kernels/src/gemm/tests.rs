use super::gradient::matmul_transposed_a_at;
use super::*;
use crate::matrix::Precision;
use crate::reference::{self, Generator, assert_close, values_of_pairs};

/// Every remainder of tiles, vectors, panels and blocks, the shapes of DeiT, and sums in several parts
/// and groups of panels.
const SHAPES: [(usize, usize, usize); 17] = [
    (1, 1, 1),
    (1, 33, 5),
    (2, 7, 100),
    (3, 0, 4),
    (7, 31, 64),
    (10, 32, 1),
    (11, 3, 31),
    (12, 1, 33),
    (13, 64, 47),
    (18, 2, 33),
    (23, 65, 70),
    (50, 50, 64),
    (197, 64, 197),
    (201, 17, 48),
    (37, 192, 100),
    (45, 600, 70),
    (5, 3000, 230),
];

/// All of them; under Miri, which takes a second for a thousand products, the smallest, (18, 2, 33) of two
/// blocks of rows and two panels among them.
fn shapes() -> impl Iterator<Item = (usize, usize, usize)> {
    let chosen = |&(m, k, n): &(usize, usize, usize)| !cfg!(miri) || m * k * n < 1500;
    SHAPES.into_iter().filter(chosen)
}

fn random_matrices(m: usize, k: usize, n: usize) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let mut random = Generator::new((m * 1000 + k * 10 + n) as u64);
    (random.normal(m * k), random.normal(k * n), random.normal(m * n))
}

const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Bf16];

/// Every combination that this machine can run.
fn levels_and_precisions() -> impl Iterator<Item = (Level, Precision)> {
    Level::available().into_iter().flat_map(|level| PRECISIONS.map(|precision| (level, precision)))
}

/// What enters a product of this precision.
fn entering(precision: Precision, x: &[f32]) -> Vec<f32> {
    match precision {
        Precision::F32 => x.to_vec(),
        Precision::Bf16 => x.iter().copied().map(reference::bf16).collect(),
    }
}

/// Tolerance of a sum of k products of normal values: partial sums grow like the root of their length,
/// and so does the sum of what each of them loses in rounding.
fn tolerance(k: usize) -> f64 {
    let k = k as f64;
    (1e-6 * k.sqrt()).max(1e-7 * k).max(1e-6)
}

#[test]
fn every_epilogue_matches_f64_at_every_level() {
    for (m, k, n) in shapes() {
        for precision in PRECISIONS {
            epilogues_match_f64(precision, [m, k, n]);
        }
    }
}

fn epilogues_match_f64(precision: Precision, [m, k, n]: [usize; 3]) {
    let (a, b, old) = random_matrices(m, k, n);
    let [rounded_a, rounded_b] = [&a, &b].map(|x| entering(precision, x));
    let product = reference::matmul(m, k, n, &rounded_a, &rounded_b);
    let packed = PackedB::pack(precision, &b, k, n);
    let bias = Generator::new(2).normal(n);
    let with_bias: Vec<f64> =
        product.iter().enumerate().map(|(i, p)| p + f64::from(bias[i % n])).collect();
    let combined = |f: fn(f64, f64) -> f64| -> Vec<f64> {
        product.iter().zip(&old).map(|(&p, &old)| f(p, f64::from(old))).collect()
    };
    let drawn = Generator::new(3).normal(m);
    for level in Level::available() {
        let run = |start: &[f32], epilogue| {
            let mut c = start.to_vec();
            matmul_at(level, m, (&a[..]).into(), &packed, (&mut c[..]).into(), epilogue);
            c
        };
        let tolerance = tolerance(k);
        assert_close(&run(&old, Epilogue::Store), &product, tolerance);
        assert_close(&run(&old, Epilogue::Accumulate), &combined(|p, c| p + c), tolerance);
        assert_close(&run(&old, Epilogue::Bias(&bias)), &with_bias, tolerance);
        let multiplied = combined(|p, d| p * d);
        assert_close(&run(&old, Epilogue::Multiply(&old)), &multiplied, 5.0 * tolerance);
        for factors in [None, Some(&drawn[..])] {
            let factor = |row: usize| factors.map_or(1.0, |f| f64::from(f[row]));
            let values = with_bias.iter().zip(&old).enumerate();
            let expected: Vec<f64> =
                values.map(|(i, (y, r))| f64::from(*r) + factor(i / n) * y).collect();
            let epilogue = Epilogue::Residual { bias: &bias, residual: &old, factors };
            assert_close(&run(&vec![9.0; m * n], epilogue), &expected, 5.0 * tolerance);
        }
        let mut derivative = vec![9.0; m * n];
        let gelu = Epilogue::BiasGelu { bias: &bias, derivative: &mut derivative };
        let (value, slope): (Vec<f64>, Vec<f64>) =
            with_bias.iter().map(|&u| reference::gelu(u)).unzip();
        assert_close(&run(&old, gelu), &value, 2.0 * tolerance);
        assert_close(&derivative, &slope, 2.0 * tolerance);
    }
}

#[test]
fn packing_a_transpose_is_packing() {
    for (_, k, n) in shapes() {
        let b = Generator::new(4).normal(k * n);
        let bt = reference::transpose(&b, k, n);
        for (level, precision) in levels_and_precisions() {
            let expected = PackedB::pack(precision, &b, k, n);
            // Memory that was in use before must not shine through the padding.
            let (rows, columns) = (k + 9, n + 33);
            let nines = vec![9.0; rows * columns];
            let used = || PackedB::pack(Precision::F32, &nines, rows, columns);
            let mut packed = used();
            packed.fill_transposed(level, precision, &bt[..], k, [k, n]);
            assert!(packed.same_values(&expected), "{level:?} {precision:?} {k} x {n}");
            let mut packed = used();
            packed.fill(level, precision, &b[..], n, [k, n]);
            assert!(packed.same_values(&expected), "{level:?} {precision:?} {k} x {n}");
        }
    }
}

/// Rows that are summed and sides of the gradient; the last make several blocks of rows or of pairs, and
/// several groups of panels.
fn summed_shapes() -> &'static [(usize, usize, usize)] {
    let all = &[
        (1, 1, 1),
        (3, 33, 5),
        (9, 13, 35),
        (515, 2, 3),
        (50, 13, 70),
        // A right factor that is not packed.
        (1034, 31, 64),
        (6, 48, 41),
        (257, 12, 33),
        (1035, 25, 31),
        (3001, 7, 450),
        // A left factor that is copied, in strips of which the last is lower.
        (9, 512, 97),
        (259, 512, 130),
    ];
    reference::fewer_under_miri(all, 4)
}

#[test]
fn weight_gradients_match_f64_at_every_level() {
    for &(rows, m, n) in summed_shapes() {
        let mut random = Generator::new(rows as u64);
        let (a, b) = (random.normal(rows * m), random.normal(rows * n));
        let exact = PRECISIONS.map(|precision| {
            let [a, b] = [&a, &b].map(|x| entering(precision, x));
            reference::matmul(m, rows, n, &reference::transpose(&a, rows, m), &b)
        });
        let exact_sums = reference::matmul(1, rows, m, &vec![1.0; rows], &a);
        for (level, precision) in levels_and_precisions() {
            let exact = &exact[precision as usize];
            // Added to what is there.
            let (mut c, mut sums) = (vec![2.0; m * n], vec![3.0; m]);
            let add = |c: &mut [f32], sums: Option<&mut [f32]>| {
                let (a, b) = ((&a[..]).into(), (&b[..]).into());
                matmul_transposed_a_at(level, precision, [rows, m, n], a, b, c, sums);
            };
            add(&mut c, Some(&mut sums));
            let plus = |x: &[f64], y: f64| x.iter().map(|x| x + y).collect::<Vec<_>>();
            assert_close(&c, &plus(exact, 2.0), 2.0 * tolerance(rows));
            assert_close(&sums, &plus(&exact_sums, 3.0), 2.0 * tolerance(rows));
            let mut alone = vec![2.0; m * n];
            add(&mut alone, None);
            assert_eq!(c, alone);
        }
    }
}

#[test]
fn products_of_parts_leave_the_rest_alone() {
    // At every level some end in a part of one vector and some in a whole one and a part.
    for n in [37, 45, 49] {
        product_of_parts_leaves_the_rest_alone(n);
    }
}

fn product_of_parts_leaves_the_rest_alone(n: usize) {
    let (m, k, stride) = (14, 9, 80);
    let mut random = Generator::new(6);
    let (a, b) = (random.normal(k * 20), random.normal(k * n));
    let at: Vec<f32> = (0..m * k).map(|i| a[i % k * 20 + i / k]).collect();
    for (level, precision) in levels_and_precisions() {
        let [at, rounded_b] = [&at, &b].map(|x| entering(precision, x));
        let exact = reference::matmul(m, k, n, &at, &rounded_b);
        let packed = PackedB::pack(precision, &b, k, n);
        let mut c = vec![9.0; m * stride];
        let left = Left::transposed(&a[..], 20);
        product(level, m, left, &packed, (&mut c[..], stride), Epilogue::Store);
        for (row, exact) in c.chunks(stride).zip(exact.chunks(n)) {
            assert_close(&row[..n], exact, 1e-5);
            assert!(row[n..].iter().all(|&x| x == 9.0), "{level:?} {n}");
        }
    }
}

/// A matrix `[rows, columns]` in bf16.
fn stored(x: &[f32], columns: usize) -> Vec<f32> {
    let mut cells = Vec::new();
    for row in x.chunks(columns) {
        let mut to = vec![9.0; columns.div_ceil(2)];
        Level::Scalar.run(PairColumns {
            from: row.into(),
            stride: columns,
            columns,
            cells: columns.div_ceil(2),
            to: &mut to,
        });
        cells.extend(to);
    }
    cells
}

fn bf16<T>(cells: T) -> Matrix<T> {
    Matrix { cells, precision: Precision::Bf16 }
}

/// Rounding the factors beforehand changes nothing, rounding the output only that and GELU.
#[test]
fn matrices_in_bf16_give_what_f32_gives_rounded() {
    for (m, k, n) in shapes().filter(|(_, k, _)| *k > 0) {
        let (a, b, d) = random_matrices(m, k, n);
        let (bias, packed) =
            (Generator::new(2).normal(n), PackedB::pack(Precision::Bf16, &b, k, n));
        let (a_cells, d_cells) = (stored(&a, k), stored(&d, n));
        let d_rounded = entering(Precision::Bf16, &d);
        for level in Level::available() {
            let exact = |epilogue| {
                let mut c = vec![9.0; m * n];
                matmul_at(level, m, (&a[..]).into(), &packed, (&mut c[..]).into(), epilogue);
                entering(Precision::Bf16, &c)
            };
            let run = |epilogue| {
                let mut c = vec![9.0; m * n.div_ceil(2)];
                let (a, out) = (bf16(&a_cells[..]), bf16(&mut c[..]));
                matmul_at(level, m, a, &packed, out, epilogue);
                values_of_pairs(&c, n)
            };
            let case = format!("{level:?} {m} {k} {n}");
            assert_eq!(run(Epilogue::Store), exact(Epilogue::Store), "{case}");
            assert_eq!(run(Epilogue::Bias(&bias)), exact(Epilogue::Bias(&bias)), "{case}");
            let multiplied = exact(Epilogue::Multiply(&d_rounded));
            assert_eq!(run(Epilogue::Multiply(&d_cells)), multiplied, "{case}");
            // GELU is a shorter one there.
            let mut with_bias = vec![9.0; m * n];
            let out = (&mut with_bias[..]).into();
            matmul_at(level, m, (&a[..]).into(), &packed, out, Epilogue::Bias(&bias));
            let (y, slope): (Vec<f64>, Vec<f64>) =
                with_bias.iter().map(|&u| reference::gelu(f64::from(u))).unzip();
            let mut cells = vec![9.0; m * n.div_ceil(2)];
            let gelu = Epilogue::BiasGelu { bias: &bias, derivative: &mut cells };
            assert_close(&run(gelu), &y, 4e-3);
            assert_close(&values_of_pairs(&cells, n), &slope, 4e-3);
        }
    }
}

#[test]
fn weight_gradients_of_matrices_in_bf16_are_those_of_their_values() {
    for &(rows, m, n) in summed_shapes() {
        let mut random = Generator::new(rows as u64);
        let [a, b] = [m, n].map(|n| entering(Precision::Bf16, &random.normal(rows * n)));
        let (a_cells, b_cells) = (stored(&a, m), stored(&b, n));
        for level in Level::available() {
            let run = |a, b| {
                let (mut c, mut sums) = (vec![2.0; m * n], vec![3.0; m]);
                let (precision, sides) = (Precision::Bf16, [rows, m, n]);
                matmul_transposed_a_at(level, precision, sides, a, b, &mut c, Some(&mut sums));
                (c, sums)
            };
            let expected = run((&a[..]).into(), (&b[..]).into());
            let (c, sums) = run(bf16(&a_cells), bf16(&b_cells));
            assert_eq!(c, expected.0, "{level:?} {rows}");
            // Added up two rows at a time.
            let expected: Vec<f64> = expected.1.iter().map(|&sum| sum.into()).collect();
            assert_close(&sums, &expected, tolerance(rows));
        }
    }
}

#[test]
fn an_empty_product_is_no_error() {
    let b = |values: &[f32], k, n| PackedB::pack(Precision::F32, values, k, n);
    matmul(0, &[][..], &b(&[1.0; 6], 2, 3), &mut [][..], Epilogue::Store);
    matmul(2, &[1.0; 4][..], &b(&[], 2, 0), &mut [][..], Epilogue::Store);
    let sides = [2, 0, 40];
    matmul_transposed_a(Precision::F32, sides, &[][..], &[1.0; 80][..], &mut [], Some(&mut []));
}

/// Nothing to point at, in blocks of rows and tiles below each other and parts of a panel beside each
/// other.
#[test]
fn sums_of_no_terms_are_zero() {
    let (m, n) = (130, 40);
    for (level, precision) in levels_and_precisions() {
        let b = PackedB::pack(precision, &[], 0, n);
        for left in [Left::rows(&[][..], 0), Left::transposed(&[][..], m)] {
            let mut c = vec![9.0; m * n];
            product(level, m, left, &b, (&mut c[..], n), Epilogue::Store);
            assert_eq!(c, vec![0.0; m * n], "{level:?} {precision:?}");
        }
    }
}

#[test]
#[should_panic(expected = "the left factor: 5 values where 6 are needed")]
fn a_short_left_factor_is_refused() {
    let b = PackedB::pack(Precision::F32, &[1.0; 6], 3, 2);
    matmul(2, &[0.0; 5][..], &b, &mut [0.0; 4][..], Epilogue::Store);
}

#[test]
#[should_panic(expected = "the bias: 3 values where 2 are needed")]
fn a_long_bias_is_refused() {
    let b = PackedB::pack(Precision::F32, &[1.0; 6], 3, 2);
    matmul(2, &[0.0; 6][..], &b, &mut [0.0; 4][..], Epilogue::Bias(&[0.0; 3]));
}

#[test]
#[should_panic(expected = "the column sums: 3 values where 2 are needed")]
fn short_column_sums_are_refused() {
    let (a, b) = (&[0.0; 4][..], &[0.0; 4][..]);
    matmul_transposed_a(Precision::F32, [2, 2, 2], a, b, &mut [0.0; 4], Some(&mut [0.0; 3]));
}

#[test]
fn parts_are_even_and_not_too_long() {
    for len in 0..1000 {
        let parts: Vec<_> = equal_parts(7..7 + len, 128).collect();
        let mut end = 7;
        for part in &parts {
            assert_eq!(part.start, end);
            assert!(part.len() <= 128 && (part.start - 7).is_multiple_of(2), "{part:?} of {len}");
            end = part.end;
        }
        assert_eq!((end, parts.len()), (7 + len, len.div_ceil(128)));
    }
}
