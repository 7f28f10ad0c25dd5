//! Sixteen floats: AVX-512.

use super::{Kernel, Simd, bf16};
use std::arch::x86_64::*;
use std::mem::transmute;
use std::ops::{Add, Div, Mul, Sub};

/// Sixteen floats. A value exists only where AVX-512 does, and with `BF16` also its products of bf16
/// pairs, as [`super`] explains.
#[derive(Clone, Copy)]
pub(super) struct Avx512<const BF16: bool>(__m512);

macro_rules! operators {
    ($($operation:ident $function:ident $intrinsic:ident),*) => {$(
        impl<const BF16: bool> $operation for Avx512<BF16> {
            type Output = Self;
            #[inline(always)]
            fn $function(self, other: Self) -> Self {
                // SAFETY: a value of this type proves AVX-512.
                Self(unsafe { $intrinsic(self.0, other.0) })
            }
        }
    )*};
}
operators!(Add add _mm512_add_ps, Sub sub _mm512_sub_ps, Mul mul _mm512_mul_ps, Div div _mm512_div_ps);

/// Of 16 bf16 numbers and 16 others behind them, one of each in turn.
static IN_TURN: [u16; 32] = {
    let mut order = [0; 32];
    let mut i = 0;
    while i < 32 {
        order[i] = (i / 2 + i % 2 * 16) as u16;
        i += 1;
    }
    order
};

/// Of 32 bf16 numbers and 32 others behind them, one of each in turn: of the first 16 columns, and of the
/// others.
static ROWS_IN_TURN: [[u16; 32]; 2] = {
    let mut orders = [[0; 32]; 2];
    let mut i = 0;
    while i < 64 {
        orders[i / 32][i % 32] = (i / 2 + i % 2 * 32) as u16;
        i += 1;
    }
    orders
};

/// The first `n` of 16 lanes.
#[inline(always)]
fn mask(n: usize) -> __mmask16 {
    ((1u32 << n.min(16)) - 1) as __mmask16
}

impl<const BF16: bool> Simd for Avx512<BF16> {
    const LANES: usize = 16;
    const TILE_ROWS: usize = 12;

    #[inline(always)]
    fn call<K: Kernel>(kernel: K) -> K::Output {
        #[inline(never)]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        fn compiled<K: Kernel>(kernel: K) -> K::Output {
            kernel.run::<Avx512<false>>()
        }
        #[inline(never)]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
        fn with_bf16<K: Kernel>(kernel: K) -> K::Output {
            kernel.run::<Avx512<true>>()
        }
        // SAFETY: reached from the levels of these names, which exist where the instructions do, or
        // from a kernel that already runs with them.
        unsafe { if BF16 { with_bf16(kernel) } else { compiled(kernel) } }
    }

    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: called in kernels for AVX-512 only.
        Self(unsafe { _mm512_set1_ps(x) })
    }

    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: a value of this type proves AVX-512.
        Self(unsafe { _mm512_fmadd_ps(self.0, b.0, c.0) })
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: a value of this type proves AVX-512.
        Self(unsafe { _mm512_max_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: a value of this type proves AVX-512.
        Self(unsafe { _mm512_min_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        // SAFETY: a value of this type proves AVX-512.
        Self(unsafe { _mm512_sqrt_ps(self.0) })
    }

    #[inline(always)]
    fn reciprocal(self) -> Self {
        // 14 bits from the table, doubled by one Newton step: faster than a division.
        // SAFETY: a value of this type proves AVX-512.
        unsafe {
            let r = _mm512_rcp14_ps(self.0);
            Self(_mm512_mul_ps(r, _mm512_fnmadd_ps(self.0, r, _mm512_set1_ps(2.0))))
        }
    }

    #[inline(always)]
    fn scale_by_power_of_two(self, n: Self) -> Self {
        // SAFETY: a value of this type proves AVX-512.
        Self(unsafe { _mm512_scalef_ps(self.0, n.0) })
    }

    #[inline(always)]
    fn where_negative(self, sign: Self, other: Self) -> Self {
        // SAFETY: a value of this type proves AVX-512.
        unsafe {
            let negative = _mm512_movepi32_mask(_mm512_castps_si512(sign.0));
            Self(_mm512_mask_blend_ps(negative, other.0, self.0))
        }
    }

    #[inline(always)]
    fn first(self, n: usize, other: Self) -> Self {
        // SAFETY: a value of this type proves AVX-512.
        Self(unsafe { _mm512_mask_blend_ps(mask(n), other.0, self.0) })
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: a value of this type proves AVX-512.
        unsafe { _mm512_reduce_add_ps(self.0) }
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        // SAFETY: a value of this type proves AVX-512.
        unsafe { _mm512_reduce_max_ps(self.0) }
    }

    #[inline(always)]
    fn pairs(even: Self, odd: Self) -> Self {
        if !BF16 {
            return bf16::pairs(even, odd);
        }
        // SAFETY: a value of this type proves AVX-512 with bf16; both types are 64 bytes of bits.
        unsafe {
            let both: __m512i = transmute(_mm512_cvtne2ps_pbh(odd.0, even.0));
            let in_turn = _mm512_loadu_si512((&raw const IN_TURN).cast());
            Self(_mm512_castsi512_ps(_mm512_permutexvar_epi16(in_turn, both)))
        }
    }

    #[inline(always)]
    fn pairs_of_neighbours(first: Self, second: Self) -> Self {
        if !BF16 {
            return bf16::pairs_of_neighbours(first, second);
        }
        // SAFETY: as in `pairs`.
        Self(unsafe { transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(second.0, first.0)) })
    }

    #[inline(always)]
    fn neighbours(self) -> (Self, Self) {
        // SAFETY: a value of this type proves AVX-512.
        unsafe {
            let pairs = _mm512_castps_si512(self.0);
            // A number of 16 bits becomes the upper half of its lane.
            let widened = |half: __m256i| {
                let lanes = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half));
                Self(_mm512_castsi512_ps(lanes))
            };
            let upper = _mm512_extracti64x4_epi64::<1>(pairs);
            (widened(_mm512_castsi512_si256(pairs)), widened(upper))
        }
    }

    #[inline(always)]
    fn pairs_of_rows(even: Self, odd: Self) -> (Self, Self) {
        // SAFETY: a value of this type proves AVX-512; both types are 64 bytes of bits.
        unsafe {
            let [even, odd] = [even, odd].map(|row| _mm512_castps_si512(row.0));
            let columns = |order: &[u16; 32]| {
                let order = _mm512_loadu_si512(order.as_ptr().cast());
                Self(_mm512_castsi512_ps(_mm512_permutex2var_epi16(even, order, odd)))
            };
            (columns(&ROWS_IN_TURN[0]), columns(&ROWS_IN_TURN[1]))
        }
    }

    #[inline(always)]
    fn add_products(self, a: Self, b: Self) -> Self {
        if !BF16 {
            return bf16::add_products(self, a, b);
        }
        // SAFETY: as in `pairs`.
        unsafe {
            let [a, b] = [a.0, b.0].map(|pairs| transmute::<__m512, __m512bh>(pairs));
            Self(_mm512_dpbf16_ps(self.0, a, b))
        }
    }

    #[inline(always)]
    unsafe fn load_full(p: *const f32) -> Self {
        // SAFETY: the caller vouches for 16 floats.
        Self(unsafe { _mm512_loadu_ps(p) })
    }

    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self {
        // SAFETY: the caller vouches for n floats; masked lanes are not read.
        Self(unsafe { _mm512_maskz_loadu_ps(mask(n), p) })
    }

    #[inline(always)]
    unsafe fn store_full(self, p: *mut f32) {
        // SAFETY: the caller vouches for 16 floats.
        unsafe { _mm512_storeu_ps(p, self.0) }
    }

    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize) {
        // SAFETY: the caller vouches for n floats; masked lanes are not written.
        unsafe { _mm512_mask_storeu_ps(p, mask(n), self.0) }
    }

    #[inline(always)]
    fn prefetch(p: *const f32) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }

    #[inline(always)]
    unsafe fn transpose_8x8(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: the caller vouches for both blocks, and AVX-512 includes AVX2.
        unsafe { super::avx2::transpose_8x8(from, from_stride, to, to_stride) }
    }
}
