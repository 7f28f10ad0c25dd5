use super::*;
use crate::reference::{self, Generator};

/// Runs one expression over `x` at a level.
struct Map<'a, F>(&'a [f32], &'a mut [f32], F);

trait Expression {
    fn of<S: Simd>(&self, x: S) -> S;
}

impl<F: Expression> Kernel for Map<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        for piece in S::pieces(self.0.len()) {
            self.2.of(S::load(&self.0[piece.clone()])).store(&mut self.1[piece]);
        }
    }
}

struct Exp;
impl Expression for Exp {
    #[inline(always)]
    fn of<S: Simd>(&self, x: S) -> S {
        exp(x)
    }
}

struct Reciprocal;
impl Expression for Reciprocal {
    #[inline(always)]
    fn of<S: Simd>(&self, x: S) -> S {
        x.reciprocal()
    }
}

#[test]
fn exp_and_reciprocal_are_accurate_at_every_level() {
    let step = if cfg!(miri) { 997 } else { 1 };
    let x: Vec<f32> = (-80_000..88_000).step_by(step).map(|i| i as f32 / 1000.0).collect();
    for level in Level::available() {
        let (mut e, mut r) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        level.run(Map(&x, &mut e, Exp));
        level.run(Map(&x, &mut r, Reciprocal));
        for ((&x, &e), &r) in x.iter().zip(&e).zip(&r) {
            let exact = f64::from(x).exp();
            assert!((f64::from(e) / exact - 1.0).abs() < 2e-7, "{level:?}: exp({x}) = {e}");
            if x != 0.0 {
                assert!(
                    (f64::from(r) * f64::from(x) - 1.0).abs() < 2.4e-7,
                    "{level:?}: 1/{x} = {r}"
                );
            }
        }
        let mut edge = [0.0; 3];
        level.run(Map(&[f32::NEG_INFINITY, -1000.0, f32::NAN], &mut edge, Exp));
        assert!(edge[0] > 0.0 && edge[0] < 2e-35 && edge[0] == edge[1] && edge[2].is_nan());
    }
}

/// Between -1 and 1.
struct Clamp;
impl Expression for Clamp {
    #[inline(always)]
    fn of<S: Simd>(&self, x: S) -> S {
        S::splat(1.0).min(S::splat(-1.0).max(x))
    }
}

#[test]
fn clamping_keeps_what_is_not_a_number() {
    for level in Level::available() {
        let mut y = [9.0; 5];
        level.run(Map(&[-3.0, 0.5, f32::NAN, 7.0, f32::NEG_INFINITY], &mut y, Clamp));
        assert_eq!([y[0], y[1], y[3], y[4]], [-1.0, 0.5, 1.0, -1.0], "{level:?}");
        assert!(y[2].is_nan(), "{level:?}");
    }
}

/// Sum, largest, and what `first` and `where_negative` select.
struct Lanewise<'a>(&'a [f32]);

impl Kernel for Lanewise<'_> {
    type Output = [f32; 3];

    #[inline(always)]
    fn run<S: Simd>(self) -> [f32; 3] {
        let x = S::load(self.0);
        let low = S::splat(-100.0);
        let first = x.first(self.0.len(), low);
        let chosen = low.where_negative(x, x).first(self.0.len(), S::splat(0.0));
        [x.sum(), first.largest(), chosen.sum()]
    }
}

#[test]
fn partial_vectors_touch_only_what_is_theirs() {
    for level in Level::available() {
        for len in 1..=4 {
            let x = &[-3.0, 2.0, -1.0, -7.0][4 - len..];
            let sum: f32 = x.iter().sum();
            let largest = x.iter().copied().fold(f32::MIN, f32::max);
            let chosen: f32 = x.iter().map(|&x| if x < 0.0 { -100.0 } else { x }).sum();
            assert_eq!(level.run(Lanewise(x)), [sum, largest, chosen], "{level:?} {len}");
        }
    }
}

struct Transpose<'a>(&'a [f32], &'a mut [f32]);

impl Kernel for Transpose<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        assert!(self.0.len() >= 7 * 11 + 8 && self.1.len() >= 7 * 9 + 8);
        // SAFETY: both slices cover 8 rows at these distances.
        unsafe { S::transpose_8x8(self.0.as_ptr(), 11, self.1.as_mut_ptr(), 9) };
    }
}

#[test]
fn transposes_blocks_at_every_level() {
    let x = Generator::new(1).normal(88);
    for level in Level::available() {
        let mut y = vec![9.0; 72];
        level.run(Transpose(&x, &mut y));
        for (row, column) in (0..8).flat_map(|r| (0..8).map(move |c| (r, c))) {
            assert_eq!(y[column * 9 + row], x[row * 11 + column], "{level:?}");
        }
        assert!((0..8).all(|row| y[row * 9 + 8] == 9.0));
    }
}

/// Pairs of two vectors both ways, their products with each other, the latter taken apart, and both as
/// rows whose numbers pair.
struct Pairs<'a>([&'a [f32]; 2]);

impl Kernel for Pairs<'_> {
    type Output = [Vec<f32>; 7];

    #[inline(always)]
    fn run<S: Simd>(self) -> [Vec<f32>; 7] {
        let [a, b] = self.0.map(S::load);
        let (pairs, neighbours) = (S::pairs(a, b), S::pairs_of_neighbours(a, b));
        let (first, second) = neighbours.neighbours();
        let products = S::splat(2.0).add_products(pairs, neighbours);
        let rows = S::pairs_of_rows(pairs, neighbours);
        [pairs, neighbours, products, first, second, rows.0, rows.1].map(|x| {
            let mut lanes = vec![0.0; S::LANES];
            x.store(&mut lanes);
            lanes
        })
    }
}

#[test]
fn pairs_are_rounded_placed_and_multiplied_at_every_level() {
    let mut random = Generator::new(5);
    for level in Level::available() {
        let (mut a, b) = (random.normal(16), random.normal(16));
        // Halfway between two numbers, once towards the even one below and once above.
        (a[0], a[1]) = (1.0 + 2f32.powi(-8), 1.0 + 3.0 * 2f32.powi(-8));
        let [pairs, neighbours, products, first, second, rows @ ..] = level.run(Pairs([&a, &b]));
        let lanes = pairs.len();
        let halves = |x: f32| [x.to_bits() << 16, x.to_bits() & 0xffff_0000].map(f32::from_bits);
        let both = [&a[..lanes], &b[..lanes]].concat();
        let rounded: Vec<f32> = both.iter().copied().map(reference::bf16).collect();
        // A column of both rows after the other.
        let columns = pairs.iter().zip(&neighbours).flat_map(|(&even, &odd)| {
            let (even, odd) = (halves(even), halves(odd));
            [[even[0], odd[0]], [even[1], odd[1]]]
        });
        assert!(rows.concat().into_iter().map(halves).eq(columns), "{level:?}");
        assert_eq!([first, second].concat(), rounded, "{level:?}");
        for i in 0..lanes {
            let (x, y) = (halves(pairs[i]), halves(neighbours[i]));
            assert_eq!(x, [a[i], b[i]].map(reference::bf16), "{level:?}");
            assert_eq!(y, [both[2 * i], both[2 * i + 1]].map(reference::bf16), "{level:?}");
            let exact = 2.0 + f64::from(x[0]) * f64::from(y[0]) + f64::from(x[1]) * f64::from(y[1]);
            assert!((f64::from(products[i]) - exact).abs() < 1e-6, "{level:?}");
        }
        let [pairs, ..] = level.run(Pairs([&[f32::NAN, f32::INFINITY], &[f32::MAX, -0.0]]));
        let [nan, inf] = [pairs[0], pairs[1]].map(halves);
        assert!(nan[0].is_nan() && nan[1] == f32::INFINITY, "{level:?}: {nan:?}");
        assert!(inf == [f32::INFINITY, 0.0] && inf[1].is_sign_negative(), "{level:?}: {inf:?}");
    }
}

#[test]
fn the_level_in_use_is_one_of_those_available() {
    assert!(Level::available().contains(&Level::current()));
    assert!(Level::available().is_sorted());
}

#[cfg(target_arch = "aarch64")]
#[test]
fn every_aarch64_has_neon() {
    assert_eq!(Level::available(), [Level::Scalar, Level::Neon]);
}
