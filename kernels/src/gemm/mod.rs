//! Matrix products with what surrounds them in a transformer folded in.
//!
//! The right factor is packed in panels of 32 columns ([`PackedB`]), weights once a step. The left
//! factor is read where it lies: activations are used once or twice, and packing them would cost
//! more than it saves. Rows are taken in blocks small enough to stay in the second-level cache
//! while panel after panel goes through the first; tiles (`tiled`) take few rows through many panels.
//!
//! In bf16 both factors are rounded to pairs of neighbouring terms (`pairs`), the left one block
//! by block; a pair takes the place of one f32 and everything else stays as it is. Where the
//! processor multiplies whole tiles of pairs (`tiled`), left factors are rows of pairs throughout.

use crate::check::check_len;
use crate::matrix::Matrix;
use crate::simd::amx::Square;
use crate::simd::{Level, PANEL};
use std::cell::RefCell;
use std::ops::Range;

mod gradient;
mod pack;
mod pairs;
mod product;
mod tile;
mod tiled;
pub use gradient::matmul_transposed_a;
pub use pack::PackedB;
use pack::PanelRow;
pub(crate) use pairs::PairColumns;
pub(crate) use product::{Left, product};

/// Rows of the left factor that go through all panels before the next rows; of the output that are made
/// from one panel. Under Miri few, so that short matrices have several blocks too.
const ROW_BLOCK: usize = if cfg!(miri) { 16 } else { 128 };
/// Cells of the left factor that go through all panels where tiles multiply them, so fast that the
/// panels' way from memory counts: 1 MiB, half of the second-level cache of the processors with tiles.
const TILED_LEFT: usize = 256 * 1024;
/// Cells of the right factor, in whole panels, that one row of tiles after the other goes through there:
/// 1.25 MiB.
const TILED_RIGHT: usize = 320 * 1024;

/// Memory of a thread between the factors and the output of a product.
struct Work {
    /// Pairs on their way into a product: rows of its left factor, or a panel before it is transposed.
    pairs: Vec<f32>,
    /// Panels of the right factor of a weight gradient.
    panels: Vec<PanelRow>,
    /// A strip of the output that is not finished in registers.
    strip: [f32; ROW_BLOCK * PANEL],
    /// Sums of tiles.
    squares: Vec<Square>,
}

thread_local! {
    static WORK: RefCell<Work> = const {
        RefCell::new(Work {
            pairs: Vec::new(),
            panels: Vec::new(),
            strip: [0.0; ROW_BLOCK * PANEL],
            squares: Vec::new(),
        })
    };
}

/// The first `len` values of a buffer that grows on demand.
pub(crate) fn block<T: Clone + Default>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
    &mut buffer[..len]
}

/// Columns of an output of `n` that go with one row of tiles after the other, for panels of `cells` rows:
/// as few parts as there can be, of nearly equal width.
fn tiled_columns(n: usize, cells: usize) -> usize {
    let (panels, most) = (n.div_ceil(PANEL).max(1), (TILED_RIGHT / (cells.max(1) * PANEL)).max(1));
    panels.div_ceil(panels.div_ceil(most)) * PANEL
}

/// `range` in as few parts of nearly equal length as make none longer than `most`, which is even. Cuts
/// are even numbers of rows from the start, so that none divides a pair.
fn equal_parts(range: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    let (start, len) = (range.start, range.len());
    let count = len.div_ceil(most);
    let cut = move |i: usize| len.min((len * i / count).next_multiple_of(2));
    (0..count).map(move |i| start + cut(i)..start + cut(i + 1))
}

/// What [`matmul`] does with the product before it is stored, while it is still in registers or in
/// the first-level cache.
pub enum Epilogue<'a> {
    /// C = A B.
    Store,
    /// C = C + A B.
    Accumulate,
    /// C = A B + bias, a bias of `[n]` for every row.
    Bias(&'a [f32]),
    /// C = GELU(u) with u = A B + bias, in its exact form; `derivative` `[m, n]` is overwritten by
    /// GELU'(u), which the backward pass needs instead of u.
    BiasGelu {
        /// `[n]`, added to every row.
        bias: &'a [f32],
        /// `[m, n]`, overwritten.
        derivative: &'a mut [f32],
    },
    /// C = residual + factor (A B + bias), the end of a residual branch; `factors` `[m]` are 0 or
    /// 1 / keep where stochastic depth is on.
    Residual {
        /// `[n]`, added to every row.
        bias: &'a [f32],
        /// `[m, n]`.
        residual: &'a [f32],
        /// `[m]`, one a row; none = 1.
        factors: Option<&'a [f32]>,
    },
    /// C = A B times a matrix `[m, n]`, element by element: with the saved derivative this is the
    /// backward pass of GELU.
    Multiply(&'a [f32]),
}

/// C = A B with an [`Epilogue`], in the precision that `b` is packed in. `a` is `[m, k]`, `b` packs
/// `[k, n]`, `c` is `[m, n]`; matrices in the epilogue lie in memory as `c` does.
///
/// # Panics
/// If a slice has not the length that `m` and `b` imply; if `a` or `c` is bf16 and `b` is not; if `c`
/// is bf16 and the epilogue adds to it or has a residual.
pub fn matmul<'a>(
    m: usize,
    a: impl Into<Matrix<&'a [f32]>>,
    b: &PackedB,
    c: impl Into<Matrix<&'a mut [f32]>>,
    epilogue: Epilogue,
) {
    matmul_at(Level::current(), m, a.into(), b, c.into(), epilogue);
}

pub(crate) fn matmul_at(
    level: Level,
    m: usize,
    a: Matrix<&[f32]>,
    b: &PackedB,
    c: Matrix<&mut [f32]>,
    epilogue: Epilogue,
) {
    let (k, n) = (a.precision.cells(b.k()), c.precision.cells(b.n()));
    check_len("the left factor", a.cells, m * k);
    check_len("the output", c.cells, m * n);
    product(level, m, Left::rows(a, k), b, (c, n), epilogue);
}

#[cfg(test)]
mod tests;
