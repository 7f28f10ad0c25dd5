//! One source for every instruction set.
//!
//! A kernel is a type that implements [`Kernel`] and is written once, over any vector type that
//! implements [`Simd`]. [`Level::run`] compiles it for each instruction set and picks one at run
//! time. The vector types are the proof that their instructions exist: they can be named only as
//! the parameter of [`Kernel::run`], which is entered only after the processor was asked. That is
//! why arithmetic on them is safe, and only access through raw pointers is not.
//!
//! Everything generic over [`Simd`] must be `#[inline(always)]`: instructions take effect in the
//! function that [`Simd::call`] compiles for them, so the whole kernel has to end up in it.

use std::marker::PhantomData;
use std::ops::{Add, Div, Mul, Range, Sub};
use std::sync::OnceLock;

#[cfg_attr(not(target_arch = "x86_64"), path = "no_amx.rs")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod bf16;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

/// Floats in a row of a packed panel: a multiple of twice the lanes of every vector type.
pub(crate) const PANEL: usize = 32;
/// Pairs of bf16 that tiles add up in one instruction: packed pairs fill multiples of it with zeros.
pub(crate) const TILE_PAIRS: usize = 16;

/// An instruction set that this machine has. Values come from [`Level::current`] and
/// [`Level::available`] only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// What the compilation target guarantees: SSE2 on x86-64, NEON on aarch64.
    Scalar,
    /// NEON, part of every aarch64.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX-512 with products of bf16 pairs.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// AVX-512 and tiles of bf16.
    #[cfg(target_arch = "x86_64")]
    Amx,
}

impl Level {
    /// Every level of this machine, the slowest first.
    pub(crate) fn available() -> Vec<Self> {
        const ALL: &[Level] = &[
            Level::Scalar,
            #[cfg(target_arch = "aarch64")]
            Level::Neon,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16,
            #[cfg(target_arch = "x86_64")]
            Level::Amx,
        ];
        ALL.iter().copied().filter(|level| level.is_present()).collect()
    }

    /// Asks the processor.
    fn is_present(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "aarch64")]
            Self::Neon => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_present()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => Self::Avx512.is_present() && is_x86_feature_detected!("avx512bf16"),
            #[cfg(target_arch = "x86_64")]
            Self::Amx => Self::Avx512Bf16.is_present() && amx::is_present(),
        }
    }

    /// Whether it multiplies pairs of bf16 in one instruction; elsewhere that is emulated, slowly.
    pub(crate) fn has_bf16(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self >= Self::Avx512Bf16;
        #[cfg(not(target_arch = "x86_64"))]
        return false;
    }

    /// Whether products of bf16 are faster than those of f32: with Intel's vector instructions alone
    /// they take twice as long (measured on a Xeon with AMX, AVX-512 only), on AMD's half as long.
    pub(crate) fn bf16_is_faster(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.has_tiles() || self.has_bf16() && !is_intel();
        #[cfg(not(target_arch = "x86_64"))]
        return false;
    }

    /// Whether it multiplies tiles of bf16: AMX.
    pub(crate) fn has_tiles(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self == Self::Amx;
        #[cfg(not(target_arch = "x86_64"))]
        return false;
    }

    /// The level in use: `FEWVIT_SIMD` if it names one that this machine has, else the fastest.
    pub(crate) fn current() -> Self {
        static CURRENT: OnceLock<Level> = OnceLock::new();
        *CURRENT.get_or_init(|| {
            let available = Self::available();
            let wanted = std::env::var("FEWVIT_SIMD").unwrap_or_default();
            let named = available.iter().find(|level| level.name() == wanted);
            *named.unwrap_or(&available[available.len() - 1])
        })
    }

    /// The spelling used by `FEWVIT_SIMD`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            #[cfg(target_arch = "aarch64")]
            Self::Neon => "neon",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => "avx512bf16",
            #[cfg(target_arch = "x86_64")]
            Self::Amx => "amx",
        }
    }

    /// Runs a kernel with the instructions of this level.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Self::Scalar => portable::Portable::call(kernel),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => neon::Neon::call(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => avx2::Avx2::call(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => avx512::Avx512::<false>::call(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 | Self::Amx => avx512::Avx512::<true>::call(kernel),
        }
    }
}

/// Who made the processor.
#[cfg(target_arch = "x86_64")]
fn is_intel() -> bool {
    let vendor = std::arch::x86_64::__cpuid(0);
    let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
    name.as_flattened() == b"GenuineIntel"
}

/// A computation written once for all vector types; its fields are its arguments.
pub(crate) trait Kernel {
    /// What the computation returns.
    type Output;

    /// The computation. Implementations are `#[inline(always)]`.
    fn run<S: Simd>(self) -> Self::Output;
}

/// A vector of [`Self::LANES`] floats.
pub(crate) trait Simd:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    /// Floats in a vector.
    const LANES: usize;
    /// Rows of an output tile, two vectors wide, that fit the registers.
    const TILE_ROWS: usize;

    /// Runs a kernel in a function of its own, compiled for this instruction set.
    fn call<K: Kernel>(kernel: K) -> K::Output;

    /// The same value in every lane.
    fn splat(x: f32) -> Self;
    /// `self * b + c`, rounded once where the hardware can.
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// The larger of each pair, `other` where one is not a number.
    fn max(self, other: Self) -> Self;
    /// The smaller of each pair, `other` where one is not a number.
    fn min(self, other: Self) -> Self;
    /// Square root of each lane.
    fn sqrt(self) -> Self;
    /// `1 / self` to within 2 units in the last place, for finite normal values.
    fn reciprocal(self) -> Self;
    /// `self * 2^n` for integral `n` in -126..=127.
    fn scale_by_power_of_two(self, n: Self) -> Self;
    /// Lanes of `self` where `sign` is negative, of `other` elsewhere.
    fn where_negative(self, sign: Self, other: Self) -> Self;
    /// The first `n` lanes of `self`, the rest of `other`.
    fn first(self, n: usize, other: Self) -> Self;
    /// Sum of the lanes.
    fn sum(self) -> f32;
    /// Largest lane.
    fn largest(self) -> f32;

    /// Lane i: the pair of lane i of `even`, in the lower half, and lane i of `odd`; see [`bf16`].
    #[inline(always)]
    fn pairs(even: Self, odd: Self) -> Self {
        bf16::pairs(even, odd)
    }

    /// The pairs of neighbours in `first`, then those in `second`.
    #[inline(always)]
    fn pairs_of_neighbours(first: Self, second: Self) -> Self {
        bf16::pairs_of_neighbours(first, second)
    }

    /// The numbers of pairs that [`Self::pairs_of_neighbours`] has made: those of its first and of its
    /// second argument.
    #[inline(always)]
    fn neighbours(self) -> (Self, Self) {
        bf16::neighbours(self)
    }

    /// Two vectors of neighbours, `even` of one row and `odd` of another, as [`Self::pairs`] of one number
    /// of each row: those of the first half of the columns, then of the second.
    #[inline(always)]
    fn pairs_of_rows(even: Self, odd: Self) -> (Self, Self) {
        let (even, odd) = (even.neighbours(), odd.neighbours());
        (Self::pairs(even.0, odd.0), Self::pairs(even.1, odd.1))
    }

    /// `self` plus the products of both halves of the pairs `a` and `b`, summed in f32.
    #[inline(always)]
    fn add_products(self, a: Self, b: Self) -> Self {
        bf16::add_products(self, a, b)
    }

    /// Loads a full vector.
    ///
    /// # Safety
    /// `p` must be valid for reading `LANES` floats.
    unsafe fn load_full(p: *const f32) -> Self;
    /// Loads `n < LANES` floats; the other lanes are zero.
    ///
    /// # Safety
    /// `p` must be valid for reading `n` floats.
    unsafe fn load_first(p: *const f32, n: usize) -> Self;
    /// Stores a full vector.
    ///
    /// # Safety
    /// `p` must be valid for writing `LANES` floats.
    unsafe fn store_full(self, p: *mut f32);
    /// Stores the first `n < LANES` lanes.
    ///
    /// # Safety
    /// `p` must be valid for writing `n` floats.
    unsafe fn store_first(self, p: *mut f32, n: usize);

    /// Asks for a cache line; any address will do.
    fn prefetch(_p: *const f32) {}

    /// Transposes 8 x 8 floats.
    ///
    /// # Safety
    /// `from` must be valid for reading 8 rows of 8 floats at distance `from_stride`, `to` for
    /// writing as many at distance `to_stride`.
    #[inline(always)]
    unsafe fn transpose_8x8(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        for row in 0..8 {
            for column in 0..8 {
                // SAFETY: both offsets lie in the 8 x 8 blocks that the caller vouches for.
                unsafe {
                    *to.add(column * to_stride + row) = *from.add(row * from_stride + column)
                };
            }
        }
    }

    /// The first `LANES` floats of `x`, zeros where it is shorter.
    #[inline(always)]
    fn load(x: &[f32]) -> Self {
        // SAFETY: the slice holds as many floats as are read.
        unsafe {
            if x.len() >= Self::LANES {
                Self::load_full(x.as_ptr())
            } else {
                Self::load_first(x.as_ptr(), x.len())
            }
        }
    }

    /// Writes the first `LANES` floats of `x`, fewer where it is shorter.
    #[inline(always)]
    fn store(self, x: &mut [f32]) {
        // SAFETY: the slice holds as many floats as are written.
        unsafe {
            if x.len() >= Self::LANES {
                self.store_full(x.as_mut_ptr());
            } else {
                self.store_first(x.as_mut_ptr(), x.len());
            }
        }
    }

    /// The ranges that cut `0..len` into vectors; the last may be short.
    #[inline(always)]
    fn pieces(len: usize) -> Pieces<Self> {
        Pieces { rest: 0..len, vectors: PhantomData }
    }
}

/// Iterator of [`Simd::pieces`]. Written out because `step_by` leaves twice the instructions.
pub(crate) struct Pieces<S> {
    rest: Range<usize>,
    vectors: PhantomData<S>,
}

impl<S: Simd> Iterator for Pieces<S> {
    type Item = Range<usize>;

    #[inline(always)]
    fn next(&mut self) -> Option<Range<usize>> {
        let Range { start, end } = self.rest;
        if start >= end {
            return None;
        }
        self.rest.start = start + S::LANES;
        Some(start..end.min(start + S::LANES))
    }
}

/// `e^x` for `x <= 88`, relative error below 2e-7; arguments under -80 give `e^-80` (1.8e-35), so
/// that neither this nor a small part of it is denormal, which would be slow. Not-a-number goes
/// through.
#[inline(always)]
pub(crate) fn exp<S: Simd>(x: S) -> S {
    // x = n ln 2 + r with |r| <= ln 2 / 2. Adding 1.5 * 2^23 rounds to an integer; ln 2 is split in
    // two parts, the first of 9 bits, so that n times it is exact without fused multiplication.
    const LN_2_HIGH: f32 = 355.0 / 512.0;
    const LN_2_LOW: f32 = (std::f64::consts::LN_2 - LN_2_HIGH as f64) as f32;
    const ROUNDER: f32 = 12_582_912.0;
    let x = S::splat(-80.0).max(x);
    let rounder = S::splat(ROUNDER);
    let n = x.mul_add(S::splat(std::f32::consts::LOG2_E), rounder) - rounder;
    let r = n.mul_add(S::splat(-LN_2_HIGH), x);
    let r = n.mul_add(S::splat(-LN_2_LOW), r);
    // Taylor: the first term left out, r^8 / 8!, is below 6e-9.
    let mut series = S::splat(1.0 / 5040.0);
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        series = series.mul_add(r, S::splat(coefficient));
    }
    series.scale_by_power_of_two(n)
}

#[cfg(test)]
mod tests;
