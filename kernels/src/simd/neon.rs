//! Four floats: NEON, which every aarch64 processor has.

use super::{Kernel, Simd};
use std::arch::aarch64::*;
use std::ops::{Add, Div, Mul, Sub};

/// Four floats.
#[derive(Clone, Copy)]
pub(super) struct Neon(float32x4_t);

macro_rules! operators {
    ($($operation:ident $function:ident $intrinsic:ident),*) => {$(
        impl $operation for Neon {
            type Output = Self;
            #[inline(always)]
            fn $function(self, other: Self) -> Self {
                // SAFETY: every aarch64 has NEON.
                Self(unsafe { $intrinsic(self.0, other.0) })
            }
        }
    )*};
}
operators!(Add add vaddq_f32, Sub sub vsubq_f32, Mul mul vmulq_f32, Div div vdivq_f32);

impl Simd for Neon {
    const LANES: usize = 4;
    // 24 of the 32 registers hold sums.
    const TILE_ROWS: usize = 12;

    #[inline(never)]
    fn call<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<Self>()
    }

    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: every aarch64 has NEON.
        Self(unsafe { vdupq_n_f32(x) })
    }

    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: every aarch64 has NEON.
        Self(unsafe { vfmaq_f32(c.0, self.0, b.0) })
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // The instructions for a maximum treat not-a-number in other ways.
        // SAFETY: every aarch64 has NEON.
        Self(unsafe { vbslq_f32(vcgtq_f32(self.0, other.0), self.0, other.0) })
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: every aarch64 has NEON.
        Self(unsafe { vbslq_f32(vcltq_f32(self.0, other.0), self.0, other.0) })
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        // SAFETY: every aarch64 has NEON.
        Self(unsafe { vsqrtq_f32(self.0) })
    }

    #[inline(always)]
    fn reciprocal(self) -> Self {
        Self::splat(1.0) / self
    }

    #[inline(always)]
    fn scale_by_power_of_two(self, n: Self) -> Self {
        // SAFETY: every aarch64 has NEON.
        let power = unsafe {
            let exponent = vaddq_s32(vcvtq_s32_f32(n.0), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent))
        };
        self * Self(power)
    }

    #[inline(always)]
    fn where_negative(self, sign: Self, other: Self) -> Self {
        // SAFETY: every aarch64 has NEON.
        unsafe {
            let negative = vcltzq_s32(vreinterpretq_s32_f32(sign.0));
            Self(vbslq_f32(negative, self.0, other.0))
        }
    }

    #[inline(always)]
    fn first(self, n: usize, other: Self) -> Self {
        const LANE: [u32; 4] = [0, 1, 2, 3];
        // SAFETY: every aarch64 has NEON; there are 4 integers to load.
        unsafe {
            let wanted = vcltq_u32(vld1q_u32(LANE.as_ptr()), vdupq_n_u32(n.min(4) as u32));
            Self(vbslq_f32(wanted, self.0, other.0))
        }
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: every aarch64 has NEON.
        unsafe { vaddvq_f32(self.0) }
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        // SAFETY: every aarch64 has NEON.
        unsafe { vmaxvq_f32(self.0) }
    }

    #[inline(always)]
    unsafe fn load_full(p: *const f32) -> Self {
        // SAFETY: the caller vouches for 4 floats.
        Self(unsafe { vld1q_f32(p) })
    }

    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self {
        let mut x = Self::splat(0.0).0;
        // SAFETY: the caller vouches for n floats; each load reads the one of its lane.
        unsafe {
            if n > 0 {
                x = vld1q_lane_f32::<0>(p, x);
            }
            if n > 1 {
                x = vld1q_lane_f32::<1>(p.add(1), x);
            }
            if n > 2 {
                x = vld1q_lane_f32::<2>(p.add(2), x);
            }
        }
        Self(x)
    }

    #[inline(always)]
    unsafe fn store_full(self, p: *mut f32) {
        // SAFETY: the caller vouches for 4 floats.
        unsafe { vst1q_f32(p, self.0) }
    }

    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize) {
        // SAFETY: the caller vouches for n floats; each store writes the one of its lane.
        unsafe {
            if n > 0 {
                vst1q_lane_f32::<0>(p, self.0);
            }
            if n > 1 {
                vst1q_lane_f32::<1>(p.add(1), self.0);
            }
            if n > 2 {
                vst1q_lane_f32::<2>(p.add(2), self.0);
            }
        }
    }

    #[inline(always)]
    unsafe fn transpose_8x8(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        for row in [0, 4] {
            for column in [0, 4] {
                // SAFETY: the caller vouches for 8 x 8 floats on both sides, and these are the
                // quarter at row and column of one and at column and row of the other.
                unsafe {
                    let from = from.add(row * from_stride + column);
                    let to = to.add(column * to_stride + row);
                    transpose_4x4(from, from_stride, to, to_stride);
                }
            }
        }
    }
}

/// Transposes 4 x 4 floats in two rounds of exchanges, of 1 and 2 columns.
///
/// # Safety
/// `from` must be valid for reading 4 rows of 4 floats at distance `from_stride`, `to` for writing
/// as many at distance `to_stride`.
#[inline(always)]
unsafe fn transpose_4x4(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
    // SAFETY: the caller vouches for both blocks, and every aarch64 has NEON.
    unsafe {
        let row = |i: usize| vld1q_f32(from.add(i * from_stride));
        let (x, y) = (vtrnq_f32(row(0), row(1)), vtrnq_f32(row(2), row(3)));
        for (i, x, y) in [(0, x.0, y.0), (1, x.1, y.1)] {
            let (x, y) = (vreinterpretq_f64_f32(x), vreinterpretq_f64_f32(y));
            vst1q_f32(to.add(i * to_stride), vreinterpretq_f32_f64(vtrn1q_f64(x, y)));
            vst1q_f32(to.add((i + 2) * to_stride), vreinterpretq_f32_f64(vtrn2q_f64(x, y)));
        }
    }
}
