//! Matrices in memory and what their values are rounded to.

use crate::simd::TILE_PAIRS;

/// How exactly the factors of a product enter it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// As they are.
    #[default]
    F32,
    /// Rounded to bf16, 8 significant bits; products and sums are f32. See
    /// [`crate::bf16_is_faster`].
    Bf16,
}

impl Precision {
    /// `"f32"` or `"bf16"`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// Terms of a sum that are multiplied at a time.
    pub(crate) const fn terms(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 => 2,
        }
    }

    /// f32 or pairs that `k` columns of a [`Matrix`], or terms of a sum, fill.
    pub const fn cells(self, k: usize) -> usize {
        k.div_ceil(self.terms())
    }

    /// [`Self::cells`] and the zeros that fill the last tile of pairs.
    pub(crate) const fn padded_cells(self, k: usize) -> usize {
        match self {
            Self::F32 => k,
            Self::Bf16 => self.cells(k).next_multiple_of(TILE_PAIRS),
        }
    }
}

/// A row-major matrix in memory.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<T> {
    /// f32 values; in bf16 pairs of neighbouring columns instead, each in the place of one f32, an odd
    /// last column with a zero. Only the functions of this crate make sense of pairs.
    pub cells: T,
    /// What the values are rounded to.
    pub precision: Precision,
}

impl<T> From<T> for Matrix<T> {
    /// f32 values.
    fn from(cells: T) -> Self {
        Self { cells, precision: Precision::F32 }
    }
}

/// Panics if a matrix is bf16 in a product that is not.
#[track_caller]
pub(crate) fn check_precision(name: &str, precision: Precision, of_product: Precision) {
    let fits = precision == Precision::F32 || of_product == Precision::Bf16;
    assert!(fits, "{name} is bf16 in a product of f32");
}
