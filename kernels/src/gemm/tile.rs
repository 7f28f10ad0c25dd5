//! The microkernel: a tile of the output, accumulated in registers.

use crate::simd::{Kernel, PANEL, Simd};

/// A strip of the output, up to [`PANEL`] columns wide, and the operands that make it. The
/// pointers are at the strip's first element; [`Strip::run`] says what they must cover.
#[derive(Clone, Copy)]
pub(super) struct Strip {
    /// Terms of each sum, or pairs of them.
    pub k: usize,
    /// Left factor: rows at distance `a_stride`, or columns if transposed.
    pub a: *const f32,
    pub a_stride: usize,
    /// Right factor: `k` rows of one panel, or rows of a matrix as they lie in memory.
    pub b: *const f32,
    /// Between rows of the right factor.
    pub b_stride: usize,
    /// Output rows at distance `c_stride`, of which `columns` are written.
    pub c: *mut f32,
    pub c_stride: usize,
    pub columns: usize,
    /// `columns` floats added to every row; null for none.
    pub bias: *const f32,
    pub combine: Combine,
    /// Another matrix laid out like the output that is needed soon, or null.
    pub fetch: *const f32,
}

/// What happens to product + bias before it is stored.
#[derive(Clone, Copy)]
pub(super) enum Combine {
    /// Nothing.
    Replace,
    /// It is rounded to bf16, and the output is pairs of neighbours, as are the matrices below.
    Round,
    /// It is multiplied by a matrix laid out like the output and rounded.
    MultiplyAndRound(*const f32),
    /// The old output is added.
    Add,
    /// It is multiplied by a matrix laid out like the output.
    Multiply(*const f32),
    /// It is multiplied by the row's factor, unless null, and a matrix laid out like the output is
    /// added.
    AddScaled { residual: *const f32, factors: *const f32 },
}

impl Combine {
    /// The same for the part of the output that begins `rows` rows, `c_stride` apart, and
    /// `columns` columns further on.
    #[inline(always)]
    fn at(self, rows: usize, columns: usize, c_stride: usize) -> Self {
        let offset = rows * c_stride + self.cells(columns);
        match self {
            Self::MultiplyAndRound(d) => Self::MultiplyAndRound(d.wrapping_add(offset)),
            Self::Multiply(d) => Self::Multiply(d.wrapping_add(offset)),
            Self::AddScaled { residual, factors } => {
                let factors = moved(factors, rows);
                Self::AddScaled { residual: residual.wrapping_add(offset), factors }
            }
            other => other,
        }
    }

    /// Floats or pairs that `columns` of the output fill.
    #[inline(always)]
    fn cells(self, columns: usize) -> usize {
        match self {
            Self::Round | Self::MultiplyAndRound(_) => columns.div_ceil(2),
            _ => columns,
        }
    }
}

/// The pointer moved on, unless it is null.
#[inline(always)]
fn moved(p: *const f32, by: usize) -> *const f32 {
    if p.is_null() { p } else { p.wrapping_add(by) }
}

impl Strip {
    /// Computes `rows` rows of the strip. `TRANSPOSED` means that element `(i, k)` of the left
    /// factor lies at `a[k * a_stride + i]`, otherwise at `a[i * a_stride + k]`; `PAIRS`, that both
    /// factors are pairs of bf16; `LOOSE`, that the right one has not been packed: of pairs of neighbours two
    /// rows make one of a panel.
    ///
    /// # Safety
    /// All pointers must be valid for these rows, `k` and `columns`, and nothing that is read may
    /// overlap `c`.
    #[inline(always)]
    pub unsafe fn run<S: Simd, const TRANSPOSED: bool, const PAIRS: bool, const LOOSE: bool>(
        self,
        rows: usize,
    ) {
        // Tiles of nearly equal height rather than full ones and a small rest.
        let tiles = rows.div_ceil(S::TILE_ROWS);
        for tile in 0..tiles {
            let (start, end) = (rows * tile / tiles, rows * (tile + 1) / tiles);
            // SAFETY: start < rows.
            let strip = unsafe { self.below::<TRANSPOSED>(start) };
            match end - start {
                1 => S::call(Tile::<1, TRANSPOSED, PAIRS, LOOSE>(strip)),
                2 => S::call(Tile::<2, TRANSPOSED, PAIRS, LOOSE>(strip)),
                3 => S::call(Tile::<3, TRANSPOSED, PAIRS, LOOSE>(strip)),
                4 => S::call(Tile::<4, TRANSPOSED, PAIRS, LOOSE>(strip)),
                5 => S::call(Tile::<5, TRANSPOSED, PAIRS, LOOSE>(strip)),
                6 => S::call(Tile::<6, TRANSPOSED, PAIRS, LOOSE>(strip)),
                7 => S::call(Tile::<7, TRANSPOSED, PAIRS, LOOSE>(strip)),
                8 => S::call(Tile::<8, TRANSPOSED, PAIRS, LOOSE>(strip)),
                9 => S::call(Tile::<9, TRANSPOSED, PAIRS, LOOSE>(strip)),
                10 => S::call(Tile::<10, TRANSPOSED, PAIRS, LOOSE>(strip)),
                11 => S::call(Tile::<11, TRANSPOSED, PAIRS, LOOSE>(strip)),
                12 => S::call(Tile::<12, TRANSPOSED, PAIRS, LOOSE>(strip)),
                rows => unreachable!("a tile of {rows} rows"),
            }
        }
    }

    /// The strip without its first `rows` rows.
    #[inline(always)]
    pub unsafe fn below<const TRANSPOSED: bool>(self, rows: usize) -> Self {
        let a_offset = if TRANSPOSED { rows } else { rows * self.a_stride };
        // SAFETY: the caller has more than `rows` rows.
        unsafe {
            Self {
                // A factor without terms is no memory to stay within.
                a: self.a.wrapping_add(a_offset),
                c: self.c.add(rows * self.c_stride),
                fetch: moved(self.fetch, rows * self.c_stride),
                combine: self.combine.at(rows, 0, self.c_stride),
                ..self
            }
        }
    }
}

/// The first `ROWS` rows of a strip.
struct Tile<const ROWS: usize, const TRANSPOSED: bool, const PAIRS: bool, const LOOSE: bool>(Strip);

impl<const ROWS: usize, const TRANSPOSED: bool, const PAIRS: bool, const LOOSE: bool> Kernel
    for Tile<ROWS, TRANSPOSED, PAIRS, LOOSE>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        if ROWS > S::TILE_ROWS {
            return;
        }
        let strip = self.0;
        let mut start = 0;
        // Where a panel is two vectors wide, one round.
        while start < if 2 * S::LANES < PANEL { strip.columns } else { 1 } {
            // SAFETY: tiles are made by `Strip::run` only, whose caller vouches for the pointers;
            // a panel is PANEL wide whatever `columns` says.
            unsafe {
                let part = strip.right_of::<PAIRS, LOOSE>(start);
                prefetch_output::<S>(&part, ROWS);
                let product = if part.columns > S::LANES {
                    accumulate::<S, ROWS, 2, TRANSPOSED, PAIRS, LOOSE>(&part)
                } else {
                    // The second vector would multiply the zeros that fill the panel.
                    let product = accumulate::<S, ROWS, 1, TRANSPOSED, PAIRS, LOOSE>(&part);
                    product.map(|[first]| [first, S::splat(0.0)])
                };
                if part.columns >= 2 * S::LANES {
                    finish::<S, ROWS, true>(&part, product);
                } else {
                    finish::<S, ROWS, false>(&part, product);
                }
            }
            start += 2 * S::LANES;
        }
    }
}

impl Strip {
    /// The strip without its first `columns` columns.
    #[inline(always)]
    unsafe fn right_of<const PAIRS: bool, const LOOSE: bool>(self, columns: usize) -> Self {
        // SAFETY: the caller has more than `columns` columns.
        unsafe {
            Self {
                // As in `below`.
                b: self.b.wrapping_add(if LOOSE && PAIRS { columns / 2 } else { columns }),
                c: self.c.add(self.combine.cells(columns)),
                fetch: moved(self.fetch, self.combine.cells(columns)),
                columns: self.columns - columns,
                bias: moved(self.bias, columns),
                combine: self.combine.at(0, columns, self.c_stride),
                ..self
            }
        }
    }
}

/// Fetches the output tile, and what will be read or written with it, while the sums are made.
#[inline(always)]
pub(super) fn prefetch_output<S: Simd>(strip: &Strip, rows: usize) {
    for matrix in [strip.c, strip.fetch] {
        if matrix.is_null() {
            continue;
        }
        for row in 0..rows {
            for v in 0..2 {
                S::prefetch(matrix.wrapping_add(row * strip.c_stride + v * S::LANES));
            }
        }
    }
}

/// The product of `ROWS` rows and one or two `VECTORS` of columns.
#[inline(always)]
unsafe fn accumulate<
    S: Simd,
    const ROWS: usize,
    const VECTORS: usize,
    const TRANSPOSED: bool,
    const PAIRS: bool,
    const LOOSE: bool,
>(
    strip: &Strip,
) -> [[S; VECTORS]; ROWS] {
    let mut sums = [[S::splat(0.0); VECTORS]; ROWS];
    let stride = strip.a_stride;
    // A base pointer for every third row: x86 addresses base, base + stride and base + 2 stride
    // directly, and one pointer a row would not fit the registers.
    let mut bases = [strip.a; 4];
    if !TRANSPOSED {
        for (i, base) in bases.iter_mut().enumerate() {
            *base = base.wrapping_add(3 * i * stride);
        }
    }
    let mut b = strip.b;
    for _ in 0..strip.k {
        // SAFETY: the caller vouches for k rows of the panel and k x ROWS elements of the left
        // factor; bases past the last row are never read.
        unsafe {
            let mut vectors = [S::splat(0.0); VECTORS];
            if LOOSE && !PAIRS {
                for (i, vector) in vectors.iter_mut().enumerate() {
                    let from = i * S::LANES;
                    let columns = S::LANES.min(strip.columns - from);
                    *vector = load::<S, false>(b.wrapping_add(from), columns);
                }
            } else if LOOSE {
                let cells = S::LANES.min(strip.columns.div_ceil(2));
                let even = load::<S, false>(b, cells);
                let odd = load::<S, false>(b.add(strip.b_stride), cells);
                let pairs = S::pairs_of_rows(even, odd);
                for (vector, pairs) in vectors.iter_mut().zip([pairs.0, pairs.1]) {
                    *vector = pairs;
                }
            } else {
                for (i, vector) in vectors.iter_mut().enumerate() {
                    *vector = S::load_full(b.add(i * S::LANES));
                }
            }
            for (row, sum) in sums.iter_mut().enumerate() {
                let a = if TRANSPOSED {
                    bases[0].add(row)
                } else {
                    bases[row / 3].add(row % 3 * stride)
                };
                let a = S::splat(*a);
                for (sum, b) in sum.iter_mut().zip(vectors) {
                    *sum = if PAIRS { sum.add_products(a, b) } else { a.mul_add(b, *sum) };
                }
            }
        }
        if LOOSE {
            let rows = if PAIRS { 2 } else { 1 };
            for row in 0..rows {
                S::prefetch(b.wrapping_add((16 + row) * strip.b_stride));
            }
            b = b.wrapping_add(rows * strip.b_stride);
        } else {
            b = b.wrapping_add(PANEL);
        }
        if TRANSPOSED {
            S::prefetch(bases[0].wrapping_add(16 * stride));
            bases[0] = bases[0].wrapping_add(stride);
        } else {
            bases = bases.map(|base| base.wrapping_add(1));
        }
    }
    sums
}

/// Adds the bias, combines with what is there and stores. `FULL`: both vectors are complete.
#[inline(always)]
pub(super) unsafe fn finish<S: Simd, const ROWS: usize, const FULL: bool>(
    strip: &Strip,
    mut tile: [[S; 2]; ROWS],
) {
    let width = [strip.columns.min(S::LANES), strip.columns.saturating_sub(S::LANES).min(S::LANES)];
    // SAFETY: the caller vouches for `columns` floats in each row of `c`, of the matrix to combine
    // and of the bias, and for a factor of each row.
    unsafe {
        if !strip.bias.is_null() {
            for v in 0..2 {
                let bias = load::<S, FULL>(strip.bias.wrapping_add(v * S::LANES), width[v]);
                for row in &mut tile {
                    row[v] = row[v] + bias;
                }
            }
        }
        let part = |matrix: *const f32, row: usize, v: usize| {
            let offset = row * strip.c_stride + v * S::LANES;
            load::<S, FULL>(matrix.wrapping_add(offset), width[v])
        };
        match strip.combine {
            Combine::Round => store_pairs::<S, ROWS, FULL>(strip, &tile, None),
            Combine::MultiplyAndRound(d) => store_pairs::<S, ROWS, FULL>(strip, &tile, Some(d)),
            Combine::Replace => store::<S, ROWS, FULL>(strip, width, |row, v| tile[row][v]),
            Combine::Add => {
                store::<S, ROWS, FULL>(strip, width, |row, v| tile[row][v] + part(strip.c, row, v))
            }
            Combine::Multiply(d) => {
                store::<S, ROWS, FULL>(strip, width, |row, v| tile[row][v] * part(d, row, v))
            }
            Combine::AddScaled { residual, factors } if factors.is_null() => {
                store::<S, ROWS, FULL>(strip, width, |row, v| {
                    tile[row][v] + part(residual, row, v)
                });
            }
            Combine::AddScaled { residual, factors } => {
                store::<S, ROWS, FULL>(strip, width, |row, v| {
                    S::splat(*factors.add(row)).mul_add(tile[row][v], part(residual, row, v))
                });
            }
        }
    }
}

/// Stores the values of a tile, each given by row and vector.
#[inline(always)]
unsafe fn store<S: Simd, const ROWS: usize, const FULL: bool>(
    strip: &Strip,
    width: [usize; 2],
    value: impl Fn(usize, usize) -> S,
) {
    for row in 0..ROWS {
        for (v, width) in width.into_iter().enumerate() {
            let c = strip.c.wrapping_add(row * strip.c_stride + v * S::LANES);
            // SAFETY: the caller vouches for `columns` floats in each row.
            unsafe {
                if FULL || width == S::LANES {
                    value(row, v).store_full(c);
                } else {
                    value(row, v).store_first(c, width);
                }
            }
        }
    }
}

/// Stores a tile as pairs of neighbours, multiplied by a matrix of pairs if one is given.
// Not a closure for each, as in `store`: longer ones end up as functions without the instructions.
#[inline(always)]
unsafe fn store_pairs<S: Simd, const ROWS: usize, const FULL: bool>(
    strip: &Strip,
    tile: &[[S; 2]; ROWS],
    factors: Option<*const f32>,
) {
    let cells = strip.columns.div_ceil(2).min(S::LANES);
    for (row, &[mut first, mut second]) in tile.iter().enumerate() {
        let offset = row * strip.c_stride;
        // SAFETY: the caller vouches for the pairs of `columns` in each row of both matrices.
        unsafe {
            if let Some(factors) = factors {
                let d = load::<S, FULL>(factors.wrapping_add(offset), cells).neighbours();
                (first, second) = (first * d.0, second * d.1);
            }
            let (pairs, c) = (S::pairs_of_neighbours(first, second), strip.c.wrapping_add(offset));
            if FULL || cells == S::LANES {
                pairs.store_full(c);
            } else {
                pairs.store_first(c, cells);
            }
        }
    }
}

#[inline(always)]
unsafe fn load<S: Simd, const FULL: bool>(p: *const f32, n: usize) -> S {
    // SAFETY: the caller vouches for n floats, or for a full vector.
    unsafe { if FULL || n == S::LANES { S::load_full(p) } else { S::load_first(p, n) } }
}
