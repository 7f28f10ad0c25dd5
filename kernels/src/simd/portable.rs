//! Four floats in an array: the compiler turns the loops into the target's baseline vectors.

use super::{Kernel, Simd};
use std::array::from_fn;
use std::ops::{Add, Div, Mul, Sub};

/// Four floats.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; 4]);

macro_rules! lane_by_lane {
    ($($operation:ident $function:ident $operator:tt),*) => {$(
        impl $operation for Portable {
            type Output = Self;
            #[inline(always)]
            fn $function(self, other: Self) -> Self {
                Self(from_fn(|i| self.0[i] $operator other.0[i]))
            }
        }
    )*};
}
lane_by_lane!(Add add +, Sub sub -, Mul mul *, Div div /);

impl Simd for Portable {
    const LANES: usize = 4;
    const TILE_ROWS: usize = 4;

    #[inline(never)]
    fn call<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<Self>()
    }

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self([x; 4])
    }

    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        // Without the instruction, `f32::mul_add` is a slow library call.
        if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
            Self(from_fn(|i| self.0[i].mul_add(b.0[i], c.0[i])))
        } else {
            self * b + c
        }
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Self(from_fn(|i| if self.0[i] > other.0[i] { self.0[i] } else { other.0[i] }))
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        Self(from_fn(|i| if self.0[i] < other.0[i] { self.0[i] } else { other.0[i] }))
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        Self(from_fn(|i| self.0[i].sqrt()))
    }

    #[inline(always)]
    fn reciprocal(self) -> Self {
        Self(from_fn(|i| 1.0 / self.0[i]))
    }

    #[inline(always)]
    fn scale_by_power_of_two(self, n: Self) -> Self {
        Self(from_fn(|i| self.0[i] * f32::from_bits(((n.0[i] as i32 + 127) as u32) << 23)))
    }

    #[inline(always)]
    fn where_negative(self, sign: Self, other: Self) -> Self {
        Self(from_fn(|i| if sign.0[i].is_sign_negative() { self.0[i] } else { other.0[i] }))
    }

    #[inline(always)]
    fn first(self, n: usize, other: Self) -> Self {
        Self(from_fn(|i| if i < n { self.0[i] } else { other.0[i] }))
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        let [a, b, c, d] = self.0;
        (a + c) + (b + d)
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        let [a, b, c, d] = self.0;
        a.max(c).max(b.max(d))
    }

    #[inline(always)]
    unsafe fn load_full(p: *const f32) -> Self {
        // SAFETY: the caller vouches for 4 floats; an array of floats has their alignment.
        Self(unsafe { p.cast::<[f32; 4]>().read() })
    }

    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self {
        // SAFETY: the caller vouches for n floats.
        Self(from_fn(|i| if i < n { unsafe { *p.add(i) } } else { 0.0 }))
    }

    #[inline(always)]
    unsafe fn store_full(self, p: *mut f32) {
        // SAFETY: the caller vouches for 4 floats; an array of floats has their alignment.
        unsafe { p.cast::<[f32; 4]>().write(self.0) }
    }

    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize) {
        for i in 0..n {
            // SAFETY: the caller vouches for n floats.
            unsafe { *p.add(i) = self.0[i] };
        }
    }
}
