//! Pairs of bf16 numbers in the lanes of f32 vectors.
//!
//! bf16 is the upper half of an f32. A pair fills one lane, the number that comes first in its lower
//! half; no arithmetic on lanes makes sense of it but [`Simd::add_products`]. The functions here do
//! with any instruction set, slowly, what AVX-512 with bf16 has instructions for.

use super::Simd;

/// Lanes of the longest vector type.
const MOST_LANES: usize = 16;
type Lanes = [f32; MOST_LANES];

/// Both numbers rounded to bf16, to nearest or even.
fn pair(first: f32, second: f32) -> f32 {
    f32::from_bits(rounded(second) << 16 | rounded(first))
}

fn rounded(x: f32) -> u32 {
    let bits = x.to_bits();
    match x.is_nan() {
        // Rounding could make a not-a-number infinite.
        true => bits >> 16 | 1 << 6,
        false => (bits + 0x7fff + (bits >> 16 & 1)) >> 16,
    }
}

/// See [`Simd::pairs`].
#[inline(always)]
pub(super) fn pairs<S: Simd>(even: S, odd: S) -> S {
    lane_by_lane([even, odd], |i, [even, odd]| pair(even[i], odd[i]))
}

/// See [`Simd::pairs_of_neighbours`].
#[inline(always)]
pub(super) fn pairs_of_neighbours<S: Simd>(first: S, second: S) -> S {
    lane_by_lane([first, second], |i, [first, second]| {
        let (from, i) = if 2 * i < S::LANES { (first, i) } else { (second, i - S::LANES / 2) };
        pair(from[2 * i], from[2 * i + 1])
    })
}

/// See [`Simd::neighbours`].
#[inline(always)]
pub(super) fn neighbours<S: Simd>(pairs: S) -> (S, S) {
    let number = |pair: f32, i: usize| if i.is_multiple_of(2) { first(pair) } else { second(pair) };
    let lower = lane_by_lane([pairs], |i, [pairs]| number(pairs[i / 2], i));
    let upper = lane_by_lane([pairs], |i, [pairs]| number(pairs[S::LANES / 2 + i / 2], i));
    (lower, upper)
}

/// See [`Simd::add_products`].
#[inline(always)]
pub(super) fn add_products<S: Simd>(sum: S, a: S, b: S) -> S {
    lane_by_lane([sum, a, b], |i, [sum, a, b]| {
        second(a[i]).mul_add(second(b[i]), first(a[i]).mul_add(first(b[i]), sum[i]))
    })
}

fn first(pair: f32) -> f32 {
    f32::from_bits(pair.to_bits() << 16)
}

fn second(pair: f32) -> f32 {
    f32::from_bits(pair.to_bits() & 0xffff_0000)
}

/// The vector whose lane i is `lane(i, lanes of the arguments)`.
#[inline(always)]
fn lane_by_lane<S: Simd, const N: usize>(
    arguments: [S; N],
    lane: impl Fn(usize, [&Lanes; N]) -> f32,
) -> S {
    let mut lanes = [[0.0; MOST_LANES]; N];
    for (lanes, argument) in lanes.iter_mut().zip(arguments) {
        argument.store(lanes);
    }
    let mut result = [0.0; MOST_LANES];
    for (i, result) in result.iter_mut().enumerate().take(S::LANES) {
        *result = lane(i, lanes.each_ref());
    }
    S::load(&result)
}
