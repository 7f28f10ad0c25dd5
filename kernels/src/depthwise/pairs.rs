//! The convolution of maps in bf16, whose products are added up two at a time: each number pairs with that of
//! the row below, so that three rows of taps are two products. Taps and the gradient before GELU are rounded
//! to bf16, too.

use super::rows::Block;
use super::{MapShape, TAPS, Taps};
use crate::gelu::gelu_for_bf16;
use crate::simd::{PANEL, Simd};

/// Two vectors of channels side by side, as one vector of pairs of neighbours holds them.
type Two<S> = [S; 2];

/// `out = GELU(conv(x) + bias)` for maps in bf16.
#[inline(always)]
pub(super) fn forward<S: Simd>(shape: &MapShape, x: &[f32], taps: &[Taps], out: &mut [f32]) {
    let sides = Sides::new::<S>(shape);
    let mut rows = PairedRows::<S>::new(&sides);
    let taps = PairedTaps::all(&sides, taps);
    for map in 0..shape.batch {
        let x = sides.map(x, map);
        rows.set(-1, &sides, None, sides.row(x, 0));
        for y in 0..shape.height {
            rows.set(y as isize, &sides, sides.row(x, y), sides.row(x, y + 1));
            let out = sides.row_mut(out, map * shape.height + y);
            for strip in 0..sides.strips {
                let taps = taps[strip];
                for (token, around) in rows.around(y as isize, strip).enumerate() {
                    let value = taps.convolve(around);
                    let (first, second) = (gelu_for_bf16(value[0]).0, gelu_for_bf16(value[1]).0);
                    let to = &mut out[sides.cells(token, strip)];
                    S::pairs_of_neighbours(first, second).store(to);
                }
            }
        }
    }
}

/// `dx` from `dout`, and the gradients of taps and biases added to `dtaps`, for maps in bf16.
#[inline(always)]
pub(super) fn backward<S: Simd>(
    shape: &MapShape,
    [dout, x]: [&[f32]; 2],
    taps: &[Taps],
    dx: &mut [f32],
    dtaps: &mut [Taps],
) {
    let sides = Sides::new::<S>(shape);
    let (mut rows, mut slopes) = (PairedRows::<S>::new(&sides), PairedRows::<S>::new(&sides));
    let (taps, reversed) = (PairedTaps::all(&sides, taps), PairedTaps::all_reversed(&sides, taps));
    // The gradient before GELU of the row above, not rounded yet.
    let mut above = vec![[S::splat(0.0); 2]; sides.strips * sides.width];
    let last = shape.height as isize - 1;
    for map in 0..shape.batch {
        let (x, dout) = (sides.map(x, map), sides.map(dout, map));
        let dx = &mut dx[map * x.len()..(map + 1) * x.len()];
        above.fill([S::splat(0.0); 2]);
        rows.set(-1, &sides, None, sides.row(x, 0));
        for y in 0..=last {
            let at = y as usize;
            rows.set(y, &sides, sides.row(x, at), sides.row(x, at + 1));
            let dout = sides.row(dout, at).expect("a row of the map");
            slopes_of_row(&sides, (&rows, y), dout, &taps, &mut slopes, &mut above);
            if y % 2 == 1 {
                add_taps(&sides, &rows, &slopes, y - 1, dtaps);
            }
            if let Some(before) = at.checked_sub(1) {
                input_gradient(&sides, &slopes, y - 1, &reversed, sides.row_mut(dx, before));
            }
        }
        slopes.end(last, &above);
        rows.set(last + 1, &sides, None, None);
        if last % 2 == 0 {
            add_taps(&sides, &rows, &slopes, last, dtaps);
        }
        input_gradient(&sides, &slopes, last, &reversed, sides.row_mut(dx, last as usize));
    }
}

/// How maps lie in memory and in strips, each as wide as a vector of pairs.
struct Sides {
    height: usize,
    width: usize,
    cells_of_token: usize,
    /// Cells of a strip.
    lanes: usize,
    /// Of a token.
    strips: usize,
}

impl Sides {
    #[inline(always)]
    fn new<S: Simd>(shape: &MapShape) -> Self {
        let &MapShape { height, width, channels, .. } = shape;
        let (cells_of_token, lanes) = (channels.div_ceil(2), S::LANES);
        Self { height, width, cells_of_token, lanes, strips: cells_of_token.div_ceil(lanes) }
    }

    fn map<'a>(&self, maps: &'a [f32], map: usize) -> &'a [f32] {
        let len = self.height * self.width * self.cells_of_token;
        &maps[map * len..(map + 1) * len]
    }

    /// Row `y` of a map, none below the last.
    fn row<'a>(&self, map: &'a [f32], y: usize) -> Option<&'a [f32]> {
        let len = self.width * self.cells_of_token;
        (y < self.height).then(|| &map[y * len..(y + 1) * len])
    }

    /// Row `y` of all maps.
    fn row_mut<'a>(&self, maps: &'a mut [f32], y: usize) -> &'a mut [f32] {
        let len = self.width * self.cells_of_token;
        &mut maps[y * len..(y + 1) * len]
    }

    /// Where a token's strip lies in a row, as far as it has channels.
    #[inline(always)]
    fn cells(&self, token: usize, strip: usize) -> std::ops::Range<usize> {
        let start = strip * self.lanes;
        let end = self.cells_of_token.min(start + self.lanes);
        token * self.cells_of_token + start..token * self.cells_of_token + end
    }
}

/// Rows of numbers paired with those of the row below, strip by strip, with a token of zeros at either end
/// of each strip. Row -1 pairs zeros with the first row of the map.
struct PairedRows<S> {
    /// Tokens of a strip.
    width: usize,
    rows: [Vec<Two<S>>; 3],
}

impl<S: Simd> PairedRows<S> {
    #[inline(always)]
    fn new(sides: &Sides) -> Self {
        let width = sides.width + 2;
        let row = vec![[S::splat(0.0); 2]; width * sides.strips];
        Self { width, rows: [row.clone(), row.clone(), row] }
    }

    /// Row `y`, in the place of row `y - 3`.
    #[inline(always)]
    fn slot(y: isize) -> usize {
        (y + 1) as usize % 3
    }

    /// Makes row `y` of a row of the map and the one below it; none is zeros.
    #[inline(always)]
    fn set(&mut self, y: isize, sides: &Sides, even: Option<&[f32]>, odd: Option<&[f32]>) {
        let to = &mut self.rows[Self::slot(y)];
        let zero = S::splat(0.0);
        for token in 0..sides.width {
            for strip in 0..sides.strips {
                let cells = sides.cells(token, strip);
                let mut pair = [zero; 2];
                if let Some(even) = even {
                    pair[0] = S::load(&even[cells.clone()]);
                }
                if let Some(odd) = odd {
                    pair[1] = S::load(&odd[cells.clone()]);
                    S::prefetch(odd[cells].as_ptr().wrapping_add(odd.len()));
                }
                let (first, second) = S::pairs_of_rows(pair[0], pair[1]);
                to[strip * self.width + token + 1] = [first, second];
            }
        }
    }

    /// Row `y` of what lies in `rows` not rounded, with zeros below.
    #[inline(always)]
    fn end(&mut self, y: isize, rows: &[Two<S>]) {
        let tokens = self.width - 2;
        let strips = self.rows[Self::slot(y)].chunks_exact_mut(self.width);
        for (strip, from) in strips.zip(rows.chunks_exact(tokens)) {
            for (to, from) in strip[1..].iter_mut().zip(from) {
                *to = [S::pairs(from[0], S::splat(0.0)), S::pairs(from[1], S::splat(0.0))];
            }
        }
    }

    /// The tokens of a strip of row `y`, with the zeros at the ends.
    #[inline(always)]
    fn strip(&self, y: isize, strip: usize) -> &[Two<S>] {
        &self.rows[Self::slot(y)][strip * self.width..(strip + 1) * self.width]
    }

    /// For each token of a strip of row `y`: it and its neighbours in row `y - 1` and in row `y`.
    #[inline(always)]
    fn around(&self, y: isize, strip: usize) -> impl Iterator<Item = [&[Two<S>; 3]; 2]> {
        let above = self.strip(y - 1, strip).array_windows::<3>();
        let below = self.strip(y, strip).array_windows::<3>();
        above.zip(below).map(|(above, below)| [above, below])
    }
}

/// Taps of a strip, for rows of pairs.
#[derive(Clone, Copy)]
struct PairedTaps<S> {
    /// By column, for the row that pairs the one above with the current one.
    above: [Two<S>; 3],
    /// For the row that pairs the current one with the one below: zeros and the last row of taps.
    below: [Two<S>; 3],
    /// The bias, or zeros.
    start: Two<S>,
}

impl<S: Simd> PairedTaps<S> {
    /// Those of all strips with their biases.
    #[inline(always)]
    fn all(sides: &Sides, taps: &[Taps]) -> Vec<Self> {
        let mut all = Vec::with_capacity(sides.strips);
        for strip in 0..sides.strips {
            let start = of_strip::<S>(taps, strip, TAPS);
            all.push(Self { start, ..Self::of(taps, strip, false) });
        }
        all
    }

    /// Those of the gradient of the input: from the last tap to the first.
    #[inline(always)]
    fn all_reversed(sides: &Sides, taps: &[Taps]) -> Vec<Self> {
        let mut all = Vec::with_capacity(sides.strips);
        for strip in 0..sides.strips {
            all.push(Self::of(taps, strip, true));
        }
        all
    }

    #[inline(always)]
    fn of(taps: &[Taps], strip: usize, reversed: bool) -> Self {
        let zero = S::splat(0.0);
        let nothing = [[zero; 2]; 3];
        let mut paired = Self { above: nothing, below: nothing, start: [zero; 2] };
        for column in 0..3 {
            let mut by_row = [[zero; 2]; 3];
            for (row, values) in by_row.iter_mut().enumerate() {
                let tap = 3 * row + column;
                *values = of_strip::<S>(taps, strip, if reversed { TAPS - 1 - tap } else { tap });
            }
            let [[first, second], [third, fourth], [last, end]] = by_row;
            paired.above[column] = [S::pairs(first, third), S::pairs(second, fourth)];
            paired.below[column] = [S::pairs(zero, last), S::pairs(zero, end)];
        }
        paired
    }

    /// The sum over the taps around a token.
    #[inline(always)]
    fn convolve(&self, [above, below]: [&[Two<S>; 3]; 2]) -> Two<S> {
        // Two sums each: fewer steps wait for each other.
        let (mut sums, mut others) = (self.start, [S::splat(0.0); 2]);
        for column in 0..3 {
            for v in 0..2 {
                sums[v] = sums[v].add_products(above[column][v], self.above[column][v]);
                others[v] = others[v].add_products(below[column][v], self.below[column][v]);
            }
        }
        [sums[0] + others[0], sums[1] + others[1]]
    }
}

/// The block of a strip and where its two vectors begin there.
#[inline(always)]
fn lanes_of<S: Simd>(strip: usize) -> (usize, [usize; 2]) {
    let channel = 2 * S::LANES * strip;
    (channel / PANEL, [channel % PANEL, channel % PANEL + S::LANES])
}

/// One tap of a strip's channels.
#[inline(always)]
fn of_strip<S: Simd>(taps: &[Taps], strip: usize, tap: usize) -> Two<S> {
    let (block, lanes) = lanes_of::<S>(strip);
    let tap: &Block = &taps[block][tap];
    [S::load(&tap[lanes[0]..]), S::load(&tap[lanes[1]..])]
}

/// Row `y - 1` of `slopes`, which pairs `above` with `dout GELU'(conv(x) + bias)`; the latter is `above`
/// for the next row.
#[inline(always)]
fn slopes_of_row<S: Simd>(
    sides: &Sides,
    (rows, y): (&PairedRows<S>, isize),
    dout: &[f32],
    taps: &[PairedTaps<S>],
    slopes: &mut PairedRows<S>,
    above: &mut [Two<S>],
) {
    let width = slopes.width;
    let to = &mut slopes.rows[PairedRows::<S>::slot(y - 1)];
    for strip in 0..sides.strips {
        let taps = taps[strip];
        let to = to[strip * width + 1..].iter_mut();
        let above = above[strip * sides.width..(strip + 1) * sides.width].iter_mut();
        let tokens = rows.around(y, strip).zip(to.zip(above)).enumerate();
        for (token, (around, (to, above))) in tokens {
            let value = taps.convolve(around);
            let dout = &dout[sides.cells(token, strip)];
            S::prefetch(dout.as_ptr().wrapping_add(sides.width * sides.cells_of_token));
            let dout = S::load(dout).neighbours();
            let first = dout.0 * gelu_for_bf16(value[0]).1;
            let second = dout.1 * gelu_for_bf16(value[1]).1;
            *to = [S::pairs(above[0], first), S::pairs(above[1], second)];
            *above = [first, second];
        }
    }
}

/// Adds the products of rows `y` and `y + 1` of the gradient before GELU, row `y` of `slopes`, with the
/// tokens around them.
#[inline(always)]
fn add_taps<S: Simd>(
    sides: &Sides,
    rows: &PairedRows<S>,
    slopes: &PairedRows<S>,
    y: isize,
    dtaps: &mut [Taps],
) {
    let ones = S::pairs(S::splat(1.0), S::splat(1.0));
    for strip in 0..sides.strips {
        let mut sums = [[S::splat(0.0); 2]; TAPS + 1];
        let above = rows.strip(y - 1, strip).array_windows::<3>();
        let here = rows.strip(y, strip).array_windows::<3>();
        let below = rows.strip(y + 1, strip).array_windows::<3>();
        let slopes = slopes.strip(y, strip)[1..].iter();
        for (((above, here), below), slope) in above.zip(here).zip(below).zip(slopes) {
            for (row, tokens) in [above, here, below].into_iter().enumerate() {
                for (column, token) in tokens.iter().enumerate() {
                    let sum = &mut sums[3 * row + column];
                    sum[0] = sum[0].add_products(token[0], slope[0]);
                    sum[1] = sum[1].add_products(token[1], slope[1]);
                }
            }
            sums[TAPS][0] = sums[TAPS][0].add_products(slope[0], ones);
            sums[TAPS][1] = sums[TAPS][1].add_products(slope[1], ones);
        }
        let (block, lanes) = lanes_of::<S>(strip);
        for (dtap, sum) in dtaps[block].iter_mut().zip(sums) {
            for v in 0..2 {
                let dtap = &mut dtap[lanes[v]..];
                (S::load(dtap) + sum[v]).store(dtap);
            }
        }
    }
}

/// A row of the gradient: a convolution of `slopes` with the taps in reverse order.
#[inline(always)]
fn input_gradient<S: Simd>(
    sides: &Sides,
    slopes: &PairedRows<S>,
    y: isize,
    reversed: &[PairedTaps<S>],
    dx: &mut [f32],
) {
    for strip in 0..sides.strips {
        let taps = reversed[strip];
        for (token, around) in slopes.around(y, strip).enumerate() {
            let value = taps.convolve(around);
            let to = &mut dx[sides.cells(token, strip)];
            S::pairs_of_neighbours(value[0], value[1]).store(to);
        }
    }
}
