//! The gradients of several workers as one.

use crate::check::check_len;
use crate::simd::{Kernel, Level, Simd};

/// Values that are added up and squared while they lie in the first-level cache.
const BLOCK: usize = 1024;
/// Squares are summed in as many sums, the same at every level.
const SUMS: usize = 16;

/// Adds `others` to `total`, one after the other, all of one length. Returns the sum of the squares
/// of the results, which is finite exactly if every one of them is.
///
/// # Panics
/// If the slices differ in length.
pub fn total_of(total: &mut [f32], others: &[&[f32]]) -> f64 {
    total_of_at(Level::current(), total, others)
}

pub(crate) fn total_of_at(level: Level, total: &mut [f32], others: &[&[f32]]) -> f64 {
    others.iter().for_each(|other| check_len("a part", other, total.len()));
    level.run(Total { total, others })
}

struct Total<'a> {
    total: &'a mut [f32],
    others: &'a [&'a [f32]],
}

impl Kernel for Total<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self) -> f64 {
        let Self { total, others } = self;
        let mut sums = [0.0; SUMS];
        for (i, block) in total.chunks_mut(BLOCK).enumerate() {
            for other in others {
                let other = &other[i * BLOCK..][..block.len()];
                for piece in S::pieces(block.len()) {
                    let sum = S::load(&block[piece.clone()]) + S::load(&other[piece.clone()]);
                    sum.store(&mut block[piece]);
                }
            }
            add_squares(&mut sums, block);
        }
        sums.iter().sum()
    }
}

/// In f64, where the square of no finite f32 overflows.
#[inline(always)]
fn add_squares(sums: &mut [f64; SUMS], x: &[f32]) {
    let (rows, rest) = x.as_chunks::<SUMS>();
    // A copy, which stays in registers.
    let mut own = *sums;
    for row in rows {
        for i in 0..SUMS {
            own[i] += f64::from(row[i]) * f64::from(row[i]);
        }
    }
    for (sum, &x) in own.iter_mut().zip(rest) {
        *sum += f64::from(x) * f64::from(x);
    }
    *sums = own;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::Generator;

    #[test]
    fn adds_in_order_and_squares_in_f64_at_every_level() {
        for level in Level::available() {
            for len in [1, 5, 16, 77, 2 * BLOCK + 3] {
                for count in 0..4 {
                    let mut random = Generator::new(14);
                    let mut total = random.normal(len);
                    let others: Vec<_> = (0..count).map(|_| random.normal(len)).collect();
                    let mut expected = total.clone();
                    for other in &others {
                        expected.iter_mut().zip(other).for_each(|(e, o)| *e += o);
                    }
                    let others: Vec<_> = others.iter().map(|other| &other[..]).collect();
                    let squared = total_of_at(level, &mut total, &others);
                    assert_eq!(total, expected);
                    let exact: f64 = expected.iter().map(|&e| f64::from(e).powi(2)).sum();
                    assert!((squared / exact - 1.0).abs() < 1e-13, "{squared} for {exact}");
                }
            }
        }
    }

    #[test]
    fn squares_are_finite_exactly_if_all_values_are() {
        for level in Level::available() {
            for place in [0, 20, 76] {
                for (value, finite) in [(f32::MAX, true), (f32::NAN, false), (f32::INFINITY, false)]
                {
                    let mut total = [f32::MAX; 77];
                    total[place] = value;
                    assert_eq!(total_of_at(level, &mut total, &[]).is_finite(), finite);
                }
            }
        }
    }
}
