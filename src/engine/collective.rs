//! Many processes that train one model: who they are and what they tell each other.
//!
//! A *rank* is one process; every rank has the same number of *workers*, each with its own vector of
//! gradients. Their sum is the same to the last bit however a number of workers is divided between
//! ranks: see `collective/tree.rs`.

mod launcher;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(test)]
pub(crate) mod threads;
mod tree;

use std::ops::Range;

use sha2::{Digest as _, Sha256};

pub use launcher::{Job, ranks, start};
#[cfg(feature = "mpi")]
pub use mpi::Mpi;

use crate::error::Result;

/// The processes of a job, as one of them sees them.
///
/// Every rank calls the same methods in the same order; each call waits until the others have made
/// theirs, as far as it needs them. All errors are [`crate::Error::Failed`]: more values than one
/// message holds. A rank that is lost ends the job, so no call reports it.
pub trait Collective: Send + Sync {
    /// The number of this process, from 0.
    fn rank(&self) -> usize;

    /// How many processes there are.
    fn size(&self) -> usize;

    /// The number of this process among those of its machine, from 0.
    fn local_rank(&self) -> usize;

    /// How many processes there are on this machine.
    fn local_size(&self) -> usize;

    /// Sends `send[to[r]]` to each rank `r`; what rank `r` sends arrives in `receive[from[r]]`.
    ///
    /// # Errors
    /// See the trait.
    fn all_to_all(
        &self,
        send: &[f32],
        to: &[Range<usize>],
        receive: &mut [f32],
        from: &[Range<usize>],
    ) -> Result<()>;

    /// Every rank's `own` values on every rank: those of rank `r` arrive in `all[places[r]]`.
    ///
    /// # Errors
    /// See the trait.
    fn all_gather_into(&self, own: &[f32], all: &mut [f32], places: &[Range<usize>]) -> Result<()>;

    /// The largest of the ranks' values. Cheap enough for every step.
    ///
    /// # Errors
    /// See the trait.
    fn agree(&self, value: u64) -> Result<u64>;

    /// Rank 0's `bytes` in place of each other rank's.
    ///
    /// # Errors
    /// See the trait.
    fn broadcast(&self, bytes: &mut Vec<u8>) -> Result<()>;

    /// To be called by a rank that ends with an error, after it has said so and with its exit code:
    /// returns if all ranks fail together; otherwise it ends the whole job after a few seconds,
    /// since the others would wait for this rank for ever.
    fn fail(&self, code: u8);

    /// Adds up the vectors of all workers of all ranks, of one length, as many on each rank. The sum
    /// arrives in the first of `workers` on every rank; the others keep no meaning. Returns the sum
    /// of its squares, which is finite exactly if all its values are.
    ///
    /// `arrived` is memory for what the other ranks send, kept by the caller from step to step;
    /// `threads` share the additions.
    ///
    /// # Errors
    /// See the trait.
    ///
    /// # Panics
    /// If there are no workers or their vectors differ in length.
    fn all_reduce(
        &self,
        workers: &mut [&mut [f32]],
        arrived: &mut Vec<f32>,
        threads: usize,
    ) -> Result<f64> {
        tree::all_reduce(self, workers, arrived, threads)
    }

    /// All ranks' values, in the order of the ranks, on every rank; each may have another number.
    ///
    /// # Errors
    /// See the trait.
    fn all_gather(&self, own: &[f32]) -> Result<Vec<f32>> {
        let mut lengths = vec![0u64; self.size()];
        // As floats, 64 bits are two.
        let length = bytemuck::cast::<u64, [f32; 2]>(own.len() as u64);
        let places = places((0..self.size()).map(|_| length.len()));
        self.all_gather_into(&length, bytemuck::cast_slice_mut(&mut lengths), &places)?;
        let places = self::places(lengths.iter().map(|&length| length as usize));
        let mut all = vec![0.0; places.last().map_or(0, |last| last.end)];
        self.all_gather_into(own, &mut all, &places)?;
        Ok(all)
    }

    /// The ranks that hold other bytes than rank 0: none if all see the same data and settings.
    ///
    /// # Errors
    /// See the trait.
    fn differing(&self, bytes: &[u8]) -> Result<Vec<usize>> {
        let digest: [u8; 32] = Sha256::digest(bytes).into();
        let digests = self.all_gather(&bytemuck::cast::<_, [f32; 8]>(digest))?;
        let digests: Vec<&[u8]> = digests.chunks(8).map(bytemuck::cast_slice).collect();
        Ok((0..self.size()).filter(|&rank| digests[rank] != digests[0]).collect())
    }
}

/// Ranges of these lengths, one behind the other.
fn places(lengths: impl Iterator<Item = usize>) -> Vec<Range<usize>> {
    let place = |end: &mut usize, length| {
        let start = *end;
        *end += length;
        Some(start..*end)
    };
    lengths.scan(0, place).collect()
}

/// One process by itself.
pub struct Single;

impl Collective for Single {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn local_rank(&self) -> usize {
        0
    }

    fn local_size(&self) -> usize {
        1
    }

    fn all_to_all(
        &self,
        send: &[f32],
        to: &[Range<usize>],
        receive: &mut [f32],
        from: &[Range<usize>],
    ) -> Result<()> {
        receive[from[0].clone()].copy_from_slice(&send[to[0].clone()]);
        Ok(())
    }

    fn all_gather_into(&self, own: &[f32], all: &mut [f32], places: &[Range<usize>]) -> Result<()> {
        all[places[0].clone()].copy_from_slice(own);
        Ok(())
    }

    fn agree(&self, value: u64) -> Result<u64> {
        Ok(value)
    }

    fn broadcast(&self, _: &mut Vec<u8>) -> Result<()> {
        Ok(())
    }

    fn fail(&self, _: u8) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_gathered_in_the_order_of_the_ranks() {
        for size in [1, 2, 5] {
            let all = threads::run(size, |ranks| {
                let own: Vec<f32> =
                    (0..ranks.rank()).map(|i| (10 * ranks.rank() + i) as f32).collect();
                ranks.all_gather(&own)
            });
            let expected: Vec<f32> =
                (0..size).flat_map(|rank| (0..rank).map(move |i| (10 * rank + i) as f32)).collect();
            for gathered in all {
                assert_eq!(gathered.expect("few values"), expected);
            }
        }
        assert_eq!(Single.all_gather(&[3.0, 4.0]).expect("few values"), [3.0, 4.0]);
    }

    #[test]
    fn ranks_agree_on_the_largest_flag_and_on_what_rank_0_says() {
        let all = threads::run(3, |ranks| {
            let mut bytes = vec![ranks.rank() as u8; 4 + ranks.rank()];
            ranks.broadcast(&mut bytes).expect("few bytes");
            (ranks.agree([2, 130, 75][ranks.rank()]).expect("a number"), bytes)
        });
        assert_eq!(all, vec![(130, vec![0; 4]); 3]);
    }

    #[test]
    fn ranks_that_see_something_else_are_named() {
        let differing = |told: [&'static str; 4]| {
            threads::run(4, move |ranks| ranks.differing(told[ranks.rank()].as_bytes()))
        };
        for named in differing(["a", "a", "b", "a"]) {
            assert_eq!(named.expect("a digest"), [2]);
        }
        // Digests whose words are not numbers as floats would be unequal to themselves.
        for i in 0..200 {
            let text = i.to_string();
            assert_eq!(Single.differing(text.as_bytes()).expect("a digest"), [0usize; 0], "{text}");
        }
        for named in differing(["b", "a", "a", "a"]) {
            assert_eq!(named.expect("a digest"), [1, 2, 3]);
        }
    }
}
