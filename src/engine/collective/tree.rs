//! The one order in which the vectors of all workers of all ranks are added.
//!
//! Workers are numbered through all ranks. Neighbours are added in pairs, then neighbouring pairs,
//! then fours, and so on; what has no neighbour waits for the next round. So six workers give
//! `((0 + 1) + (2 + 3)) + (4 + 5)` whether one rank has all of them or six ranks have one each. A rank
//! adds up the largest parts of this tree that lie within its own workers. Every rank then receives
//! its slice of all those parts, adds them up and sends the result to the others: about two vectors'
//! worth of traffic a rank where a rank's workers are one part, as with powers of two.

use std::ops::Range;

use fewvit_kernels::total_of;

use super::{Collective, places};
use crate::engine::passes::{CHUNK, for_each};
use crate::error::Result;

/// See [`Collective::all_reduce`].
pub(super) fn all_reduce<C: Collective + ?Sized>(
    ranks: &C,
    workers: &mut [&mut [f32]],
    arrived: &mut Vec<f32>,
    threads: usize,
) -> Result<f64> {
    let (rank, size, count) = (ranks.rank(), ranks.size(), workers.len());
    if size == 1 {
        return Ok(fold(workers, threads).iter().sum());
    }
    let slices = slices(workers[0].len(), size);
    let parts: Vec<Vec<Range<usize>>> =
        (0..size).map(|rank| parts(rank * count..(rank + 1) * count)).collect();
    let local = |part: &Range<usize>| part.start - rank * count..part.end - rank * count;
    for part in parts[rank].iter().filter(|part| part.len() > 1) {
        fold(&mut workers[local(part)], threads);
    }

    let own = slices[rank].len();
    let of_ranks = places(parts.iter().map(Vec::len));
    arrived.resize(of_ranks[size - 1].end * own, 0.0);
    for round in 0..parts.iter().map(Vec::len).max().unwrap_or(0) {
        let from = of_ranks.iter().map(|numbers| match numbers.start + round {
            number if number < numbers.end => number * own..(number + 1) * own,
            _ => 0..0,
        });
        let from: Vec<Range<usize>> = from.collect();
        match parts[rank].get(round) {
            Some(part) => {
                ranks.all_to_all(workers[local(part).start], &slices, arrived, &from)?;
            }
            None => ranks.all_to_all(&[], &vec![0..0; size], arrived, &from)?,
        }
    }

    let mut all: Vec<&mut [f32]> = (0..size * count).map(|_| Default::default()).collect();
    for (part, values) in parts.iter().flatten().zip(arrived.chunks_mut(own.max(1))) {
        all[part.start] = values;
    }
    let squares = fold(&mut all, threads);
    // The first part begins with the first worker.
    ranks.all_gather_into(&arrived[..own], workers[0], &slices)?;
    // As floats, 64 bits are two.
    let of_ranks = places(slices.iter().map(|slice| 2 * slice.len().div_ceil(CHUNK)));
    let mut all = vec![0.0f64; of_ranks[size - 1].end / 2];
    let words = bytemuck::cast_slice_mut(&mut all);
    ranks.all_gather_into(bytemuck::cast_slice(&squares), words, &of_ranks)?;
    Ok(all.iter().sum())
}

/// The largest parts of the tree within neighbouring workers: as many as a power of two, from a
/// multiple of their number on.
fn parts(mut workers: Range<usize>) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    while !workers.is_empty() {
        let len = 1 << workers.start.trailing_zeros().min(workers.len().ilog2());
        parts.push(workers.start..workers.start + len);
        workers.start += len;
    }
    parts
}

/// What each rank adds up of vectors of `len` values: whole chunks, so that squares are summed alike
/// on any number of ranks.
fn slices(len: usize, ranks: usize) -> Vec<Range<usize>> {
    let chunks = len.div_ceil(CHUNK);
    let start = |rank: usize| (chunks * rank / ranks * CHUNK).min(len);
    (0..ranks).map(|rank| start(rank)..start(rank + 1)).collect()
}

/// Adds the vectors up to the first one, chunk by chunk; the sum of the squares of each chunk.
/// Empty ones belong to a part that was added up before: its first one holds the sum.
fn fold(vectors: &mut [&mut [f32]], threads: usize) -> Vec<f64> {
    let mut squares = vec![0.0; vectors[0].len().div_ceil(CHUNK)];
    let mut columns: Vec<_> = vectors.iter_mut().map(|vector| vector.chunks_mut(CHUNK)).collect();
    let chunks = squares.iter_mut().map(move |squared| {
        let column: Vec<_> = columns.iter_mut().map(|c| c.next().unwrap_or_default()).collect();
        (column, squared)
    });
    for_each(threads, chunks, |(mut column, squared)| *squared = fold_chunk(&mut column));
    squares
}

/// [`fold`] of one chunk. Along the tree's first branch the pass is one: `0 + 1`, then the sum of 2
/// and 3, then that of 4 to 7, and so on are added to the first one while it stays in the cache.
fn fold_chunk(chunks: &mut [&mut [f32]]) -> f64 {
    let starts = (0..).map(|k| 1usize << k).take_while(|&start| start < chunks.len());
    let starts: Vec<usize> = starts.collect();
    for &start in starts.iter().skip(1) {
        let end = chunks.len().min(2 * start);
        fold_chunk(&mut chunks[start..end]);
    }
    let (first, rest) = chunks.split_at_mut(1);
    let others = starts.iter().map(|start| &*rest[start - 1]);
    let others: Vec<&[f32]> = others.filter(|other| !other.is_empty()).collect();
    total_of(first[0], &others)
}

#[cfg(test)]
mod tests {
    use super::super::{Single, threads};
    use super::*;

    /// Values of many magnitudes, so that another order of additions gives other bits.
    fn vector(worker: usize, len: usize) -> Vec<f32> {
        let value = |i: usize| {
            let mixed =
                (worker * 7919 + i * 104_729 + 13).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
            (mixed as f32 / 8_388_608.0 - 1.0) * [1.0, 1e-3, 37.0][(worker + i) % 3]
        };
        (0..len).map(value).collect()
    }

    /// The tree as it is told, value by value.
    fn plain(values: &[f32]) -> f32 {
        match values.len() {
            1 => values[0],
            len => {
                let half = len.next_power_of_two() / 2;
                plain(&values[..half]) + plain(&values[half..])
            }
        }
    }

    fn expected(workers: usize, len: usize) -> Vec<f32> {
        let vectors: Vec<Vec<f32>> = (0..workers).map(|worker| vector(worker, len)).collect();
        (0..len).map(|i| plain(&vectors.iter().map(|v| v[i]).collect::<Vec<_>>())).collect()
    }

    fn sum(ranks: &dyn Collective, workers: usize, len: usize, threads: usize) -> (Vec<f32>, f64) {
        let first = ranks.rank() * workers;
        let mut own: Vec<Vec<f32>> = (first..first + workers).map(|w| vector(w, len)).collect();
        let mut vectors: Vec<&mut [f32]> = own.iter_mut().map(|v| &mut v[..]).collect();
        let squared = ranks.all_reduce(&mut vectors, &mut vec![], threads).expect("few values");
        (own.swap_remove(0), squared)
    }

    #[test]
    fn the_sum_is_one_to_the_bit_however_the_workers_are_divided() {
        for len in [1, 5, CHUNK, 3 * CHUNK + 77] {
            for workers in [1, 2, 3, 4, 5, 6, 7, 8, 12, 15] {
                let expected = expected(workers, len);
                let (total, squared) = sum(&Single, workers, len, 1);
                assert_eq!(total, expected, "{workers} workers, {len} values");
                let exact: f64 = expected.iter().map(|&e| f64::from(e).powi(2)).sum();
                assert!((squared / exact - 1.0).abs() < 1e-12, "{squared} for {exact}");
                for ranks in (1..=workers).filter(|ranks| workers % ranks == 0) {
                    let share = workers / ranks;
                    let all = threads::run(ranks, |ranks| sum(ranks, share, len, 1 + share % 2));
                    for (rank, (values, square)) in all.iter().enumerate() {
                        let what = format!("rank {rank} of {ranks} with {share}, {len} values");
                        assert_eq!(*values, expected, "{what}");
                        assert_eq!(square.to_bits(), squared.to_bits(), "{what}");
                    }
                }
            }
        }
    }

    #[test]
    fn up_to_three_workers_are_added_one_after_the_other() {
        let vectors = [0, 1, 2].map(|worker| vector(worker, 1000));
        let [a, b, c] = &vectors;
        let in_order: Vec<f32> = (0..1000).map(|i| a[i] + b[i] + c[i]).collect();
        assert_eq!(sum(&Single, 3, 1000, 2).0, in_order);
        // And the values do tell orders apart.
        let other: Vec<f32> = (0..1000).map(|i| a[i] + (b[i] + c[i])).collect();
        assert_ne!(other, in_order);
    }

    #[test]
    fn a_value_that_is_no_number_is_seen_by_every_rank() {
        let squares = threads::run(3, |ranks| {
            let mut own = vector(ranks.rank(), 2 * CHUNK);
            if ranks.rank() == 2 {
                own[CHUNK + 1] = f32::NAN;
            }
            ranks.all_reduce(&mut [&mut own], &mut vec![], 1).expect("few values")
        });
        assert!(squares.iter().all(|squared| squared.is_nan()), "{squares:?}");
    }

    #[test]
    fn parts_are_aligned_and_as_large_as_they_fit() {
        assert_eq!(parts(0..3), [0..2, 2..3]);
        assert_eq!(parts(3..6), [3..4, 4..6]);
        assert_eq!(parts(4..9), [4..8, 8..9]);
        assert_eq!(parts(10..15), [10..12, 12..14, 14..15]);
    }

    #[test]
    fn slices_are_whole_chunks_and_some_ranks_may_have_none() {
        assert_eq!(slices(CHUNK + 5, 2), [0..CHUNK, CHUNK..CHUNK + 5]);
        assert_eq!(slices(5, 3), [0..0, 0..0, 0..5]);
        assert_eq!(slices(0, 2), [0..0, 0..0]);
    }
}
