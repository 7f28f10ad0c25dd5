//! Rows times their factors, as stochastic depth scales a branch (Huang et al. 2016).

use crate::check::check_len;
use crate::matrix::{Matrix, Precision};
use crate::simd::{Kernel, Level, Simd};

/// `out` = the rows of `x` `[rows, columns]`, each times its factor; `factors` is `[rows]`, none = 1.
/// `out` may be bf16.
///
/// # Panics
/// If there are no columns, or a slice has not the length that `x` and `columns` imply.
pub fn scale_rows<'a>(
    columns: usize,
    x: &[f32],
    factors: Option<&[f32]>,
    out: impl Into<Matrix<&'a mut [f32]>>,
) {
    let out = out.into();
    let len = x.len();
    let whole = columns > 0 && len.is_multiple_of(columns);
    assert!(whole, "{len} values are not rows of {columns} columns");
    check_len("the output", out.cells, len / columns * out.precision.cells(columns));
    factors.inspect(|factors| check_len("the factors", factors, len / columns));
    Level::current().run(Scale { columns, x, factors, out });
}

struct Scale<'a> {
    columns: usize,
    x: &'a [f32],
    factors: Option<&'a [f32]>,
    out: Matrix<&'a mut [f32]>,
}

impl Kernel for Scale<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { columns, x, factors, out } = self;
        let rows = out.cells.chunks_exact_mut(out.precision.cells(columns));
        for (r, (out_row, x)) in rows.zip(x.chunks_exact(columns)).enumerate() {
            let factor = S::splat(factors.map_or(1.0, |factors| factors[r]));
            for piece in S::pieces(out_row.len()) {
                let scaled = match out.precision {
                    Precision::F32 => S::load(&x[piece.clone()]) * factor,
                    Precision::Bf16 => {
                        let first = 2 * piece.start;
                        let second = columns.min(first + S::LANES);
                        let [first, second] = [first, second].map(|at| S::load(&x[at..]) * factor);
                        S::pairs_of_neighbours(first, second)
                    }
                };
                scaled.store(&mut out_row[piece]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{self, Generator};

    #[test]
    fn rows_are_scaled_and_rounded_at_every_level() {
        let mut random = Generator::new(31);
        for (rows, columns) in [(0, 3), (1, 1), (2, 7), (3, 16), (4, 33), (2, 64)] {
            let (x, factors) = (random.normal(rows * columns), random.normal(rows));
            for factors in [None, Some(&factors[..])] {
                let factor = |i: usize| factors.map_or(1.0, |factors| factors[i / columns]);
                let exact: Vec<f32> = x.iter().enumerate().map(|(i, x)| x * factor(i)).collect();
                for (level, precision) in Level::available()
                    .into_iter()
                    .flat_map(|level| [(level, Precision::F32), (level, Precision::Bf16)])
                {
                    let cells = precision.cells(columns);
                    let mut out = vec![9.0; rows * cells];
                    let to = Matrix { cells: &mut out[..], precision };
                    level.run(Scale { columns, x: &x, factors, out: to });
                    let (values, rounded) = match precision {
                        Precision::F32 => (out, exact.clone()),
                        Precision::Bf16 => (
                            reference::values_of_pairs(&out, columns),
                            exact.iter().map(|&x| reference::bf16(x)).collect(),
                        ),
                    };
                    assert_eq!(values, rounded, "{level:?} {rows} x {columns}");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "the factors: 3 values where 2 are needed")]
    fn a_factor_too_many_is_refused() {
        scale_rows(2, &[0.0; 4], Some(&[1.0; 3]), &mut [0.0; 4][..]);
    }
}
