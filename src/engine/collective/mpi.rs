//! Ranks over the MPI library of the machine.
//!
//! MPI itself ends the job with a message when a rank is lost or a call fails.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::thread::{panicking, sleep};
use std::time::{Duration, Instant};

use mpi::Threading;
use mpi::collective::SystemOperation;
use mpi::datatype::{Partition, PartitionMut};
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Root};

use super::Collective;
use crate::error::{Error, Result};

/// How long a rank that failed waits for the others to fail, too.
const GRACE: Duration = Duration::from_secs(5);

/// The processes that mpirun, or another launcher of the same MPI, started. Dropping it waits for
/// the other ranks to drop theirs.
pub struct Mpi {
    rank: usize,
    size: usize,
    local_rank: usize,
    local_size: usize,
    /// MPI is told that threads call it one at a time.
    universe: Mutex<Universe>,
}

impl Mpi {
    /// Connects this process with the others.
    ///
    /// # Errors
    /// [`Error::Failed`] if it was called before or if MPI wants to be called by one thread alone.
    pub fn start() -> Result<Self> {
        let failed = |what: &str| Error::Failed(format!("MPI cannot be used: {what}"));
        let (universe, threading) = mpi::initialize_with_threading(Threading::Serialized)
            .ok_or_else(|| failed("this process has started it before"))?;
        if threading < Threading::Serialized {
            return Err(failed("it was built without support for threads"));
        }
        let world = universe.world();
        let local = world.split_shared(world.rank());
        let number = |value: i32| usize::try_from(value).unwrap_or(0);
        Ok(Self {
            rank: number(world.rank()),
            size: number(world.size()),
            local_rank: number(local.rank()),
            local_size: number(local.size()),
            universe: Mutex::new(universe),
        })
    }

    /// What `call` returns, while no other thread calls MPI.
    fn world<T>(&self, call: impl FnOnce(SimpleCommunicator) -> T) -> T {
        let universe = self.universe.lock().unwrap_or_else(PoisonError::into_inner);
        call(universe.world())
    }
}

impl Drop for Mpi {
    /// After a panic the other ranks would wait for ever.
    fn drop(&mut self) {
        if panicking() {
            self.world(|world| world.abort(1));
        }
    }
}

impl Collective for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn local_rank(&self) -> usize {
        self.local_rank
    }

    fn local_size(&self) -> usize {
        self.local_size
    }

    fn all_to_all(
        &self,
        send: &[f32],
        to: &[Range<usize>],
        receive: &mut [f32],
        from: &[Range<usize>],
    ) -> Result<()> {
        fits(send.len())?;
        fits(receive.len())?;
        let send = Partition::new(send, lengths(to), starts(to));
        let mut receive = PartitionMut::new(receive, lengths(from), starts(from));
        self.world(|world| world.all_to_all_varcount_into(&send, &mut receive));
        Ok(())
    }

    fn all_gather_into(&self, own: &[f32], all: &mut [f32], places: &[Range<usize>]) -> Result<()> {
        fits(all.len())?;
        let mut all = PartitionMut::new(all, lengths(places), starts(places));
        self.world(|world| world.all_gather_varcount_into(own, &mut all));
        Ok(())
    }

    fn agree(&self, value: u64) -> Result<u64> {
        let mut largest = value;
        self.world(|world| world.all_reduce_into(&value, &mut largest, SystemOperation::max()));
        Ok(largest)
    }

    fn broadcast(&self, bytes: &mut Vec<u8>) -> Result<()> {
        let mut len = bytes.len() as u64;
        self.world(|world| world.process_at_rank(0).broadcast_into(&mut len));
        // On every rank alike, so that no rank waits.
        fits(len as usize)?;
        bytes.resize(len as usize, 0);
        self.world(|world| world.process_at_rank(0).broadcast_into(&mut bytes[..]));
        Ok(())
    }

    fn fail(&self, code: u8) {
        self.world(|world| {
            let end = Instant::now() + GRACE;
            let mut others = world.immediate_barrier();
            while let Err(waiting) = others.test() {
                if Instant::now() > end {
                    world.abort(code.into());
                }
                others = waiting;
                sleep(Duration::from_millis(10));
            }
        });
    }
}

/// MPI counts in 32 bits.
fn fits(count: usize) -> Result<()> {
    match i32::try_from(count) {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::Failed(format!(
            "{count} values are more than MPI sends at once ({}); use a smaller model or batch",
            i32::MAX
        ))),
    }
}

/// Lengths of the ranges of a buffer whose own length [`fits`].
fn lengths(ranges: &[Range<usize>]) -> Vec<i32> {
    ranges.iter().map(|range| range.len() as i32).collect()
}

/// Starts of the ranges of such a buffer.
fn starts(ranges: &[Range<usize>]) -> Vec<i32> {
    ranges.iter().map(|range| range.start as i32).collect()
}
