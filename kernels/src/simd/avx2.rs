//! Eight floats: AVX2 with fused multiplication.

use super::{Kernel, Simd};
use std::arch::x86_64::*;
use std::ops::{Add, Div, Mul, Sub};

/// Eight floats. A value exists only where AVX2 and FMA do, as [`super`] explains.
#[derive(Clone, Copy)]
pub(super) struct Avx2(__m256);

macro_rules! operators {
    ($($operation:ident $function:ident $intrinsic:ident),*) => {$(
        impl $operation for Avx2 {
            type Output = Self;
            #[inline(always)]
            fn $function(self, other: Self) -> Self {
                // SAFETY: a value of this type proves AVX2.
                Self(unsafe { $intrinsic(self.0, other.0) })
            }
        }
    )*};
}
operators!(Add add _mm256_add_ps, Sub sub _mm256_sub_ps, Mul mul _mm256_mul_ps, Div div _mm256_div_ps);

/// All bits set in the first `n <= 8` lanes.
#[inline(always)]
fn mask(n: usize) -> __m256i {
    const ONES_THEN_ZEROS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    let window = &ONES_THEN_ZEROS[8 - n..16 - n];
    // SAFETY: the window holds 8 integers; only kernels for AVX2 call this.
    unsafe { _mm256_loadu_si256(window.as_ptr().cast()) }
}

impl Simd for Avx2 {
    const LANES: usize = 8;
    const TILE_ROWS: usize = 6;

    #[inline(always)]
    fn call<K: Kernel>(kernel: K) -> K::Output {
        #[inline(never)]
        #[target_feature(enable = "avx2,fma")]
        fn compiled<K: Kernel>(kernel: K) -> K::Output {
            kernel.run::<Avx2>()
        }
        // SAFETY: reached from `Level::Avx2`, which exists where the instructions do, or from a
        // kernel that already runs with them.
        unsafe { compiled(kernel) }
    }

    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: called in kernels for AVX2 only.
        Self(unsafe { _mm256_set1_ps(x) })
    }

    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: a value of this type proves FMA.
        Self(unsafe { _mm256_fmadd_ps(self.0, b.0, c.0) })
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: a value of this type proves AVX2.
        Self(unsafe { _mm256_max_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: a value of this type proves AVX2.
        Self(unsafe { _mm256_min_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        // SAFETY: a value of this type proves AVX2.
        Self(unsafe { _mm256_sqrt_ps(self.0) })
    }

    #[inline(always)]
    fn reciprocal(self) -> Self {
        Self::splat(1.0) / self
    }

    #[inline(always)]
    fn scale_by_power_of_two(self, n: Self) -> Self {
        // SAFETY: a value of this type proves AVX2.
        let power = unsafe {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.0), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
        };
        self * Self(power)
    }

    #[inline(always)]
    fn where_negative(self, sign: Self, other: Self) -> Self {
        // SAFETY: a value of this type proves AVX2.
        Self(unsafe { _mm256_blendv_ps(other.0, self.0, sign.0) })
    }

    #[inline(always)]
    fn first(self, n: usize, other: Self) -> Self {
        let mask = mask(n.min(8));
        // SAFETY: a value of this type proves AVX2.
        Self(unsafe { _mm256_blendv_ps(other.0, self.0, _mm256_castsi256_ps(mask)) })
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: a value of this type proves AVX2.
        unsafe {
            let x = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        }
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        // SAFETY: a value of this type proves AVX2.
        unsafe {
            let x = _mm_max_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        }
    }

    #[inline(always)]
    unsafe fn load_full(p: *const f32) -> Self {
        // SAFETY: the caller vouches for 8 floats.
        Self(unsafe { _mm256_loadu_ps(p) })
    }

    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self {
        // SAFETY: the caller vouches for n floats; masked lanes are not read.
        Self(unsafe { _mm256_maskload_ps(p, mask(n)) })
    }

    #[inline(always)]
    unsafe fn store_full(self, p: *mut f32) {
        // SAFETY: the caller vouches for 8 floats.
        unsafe { _mm256_storeu_ps(p, self.0) }
    }

    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize) {
        // SAFETY: the caller vouches for n floats; masked lanes are not written.
        unsafe { _mm256_maskstore_ps(p, mask(n), self.0) }
    }

    #[inline(always)]
    fn prefetch(p: *const f32) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }

    #[inline(always)]
    unsafe fn transpose_8x8(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: the caller vouches for both blocks.
        unsafe { transpose_8x8(from, from_stride, to, to_stride) }
    }
}

/// [`Simd::transpose_8x8`] in three rounds of exchanges, of 1, 2 and 4 columns.
///
/// # Safety
/// As there, on a machine with AVX2.
#[inline(always)]
pub(super) unsafe fn transpose_8x8(
    from: *const f32,
    from_stride: usize,
    to: *mut f32,
    to_stride: usize,
) {
    // SAFETY: the caller vouches for the instructions and for both blocks of 8 x 8 floats.
    unsafe {
        let mut x = [_mm256_setzero_ps(); 8];
        let mut y = x;
        for (i, row) in x.iter_mut().enumerate() {
            *row = _mm256_loadu_ps(from.add(i * from_stride));
        }
        for i in 0..4 {
            y[2 * i] = _mm256_unpacklo_ps(x[2 * i], x[2 * i + 1]);
            y[2 * i + 1] = _mm256_unpackhi_ps(x[2 * i], x[2 * i + 1]);
        }
        for i in [0, 4] {
            x[i] = _mm256_shuffle_ps::<0x44>(y[i], y[i + 2]);
            x[i + 1] = _mm256_shuffle_ps::<0xee>(y[i], y[i + 2]);
            x[i + 2] = _mm256_shuffle_ps::<0x44>(y[i + 1], y[i + 3]);
            x[i + 3] = _mm256_shuffle_ps::<0xee>(y[i + 1], y[i + 3]);
        }
        for i in 0..4 {
            let low = _mm256_permute2f128_ps::<0x20>(x[i], x[i + 4]);
            let high = _mm256_permute2f128_ps::<0x31>(x[i], x[i + 4]);
            _mm256_storeu_ps(to.add(i * to_stride), low);
            _mm256_storeu_ps(to.add((i + 4) * to_stride), high);
        }
    }
}
