//! Ranks as threads of one process, for tests.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::Collective;
use crate::error::Result;

/// One of the ranks of [`run`]. If another one panics, this one panics at its next call.
pub(crate) struct Threads {
    rank: usize,
    to: Vec<Sender<Vec<f32>>>,
    from: Mutex<Vec<Receiver<Vec<f32>>>>,
}

/// Calls `work` on `size` ranks at the same time; results in their order.
pub(crate) fn run<T: Send>(size: usize, work: impl Fn(&dyn Collective) -> T + Sync) -> Vec<T> {
    let mut senders: Vec<Vec<_>> = (0..size).map(|_| Vec::new()).collect();
    let mut receivers = Vec::new();
    for _ in 0..size {
        let (to, from): (Vec<_>, Vec<_>) = (0..size).map(|_| channel()).unzip();
        to.into_iter().zip(&mut senders).for_each(|(to, rank)| rank.push(to));
        receivers.push(Mutex::new(from));
    }
    let ranks = senders.into_iter().zip(receivers).enumerate();
    let ranks = ranks.map(|(rank, (to, from))| Threads { rank, to, from });
    std::thread::scope(|scope| {
        let work = &work;
        let ranks: Vec<_> = ranks.map(|rank| scope.spawn(move || work(&rank))).collect();
        ranks.into_iter().map(|rank| rank.join().expect("a rank that ends")).collect()
    })
}

impl Threads {
    /// Sends `message(r)` to each rank `r`; what arrives from each.
    fn exchange(&self, message: impl Fn(usize) -> Vec<f32>) -> Vec<Vec<f32>> {
        for (rank, to) in self.to.iter().enumerate() {
            to.send(message(rank)).expect("the other rank lives");
        }
        let from = self.from.lock().expect("one call at a time");
        from.iter().map(|from| from.recv().expect("the other rank lives")).collect()
    }
}

impl Collective for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.to.len()
    }

    fn local_rank(&self) -> usize {
        self.rank
    }

    fn local_size(&self) -> usize {
        self.to.len()
    }

    fn all_to_all(
        &self,
        send: &[f32],
        to: &[Range<usize>],
        receive: &mut [f32],
        from: &[Range<usize>],
    ) -> Result<()> {
        let messages = self.exchange(|rank| send[to[rank].clone()].to_vec());
        for (message, place) in messages.iter().zip(from) {
            receive[place.clone()].copy_from_slice(message);
        }
        Ok(())
    }

    fn all_gather_into(&self, own: &[f32], all: &mut [f32], places: &[Range<usize>]) -> Result<()> {
        for (message, place) in self.exchange(|_| own.to_vec()).iter().zip(places) {
            all[place.clone()].copy_from_slice(message);
        }
        Ok(())
    }

    fn agree(&self, value: u64) -> Result<u64> {
        let words: [f32; 2] = bytemuck::cast(value);
        let values = self.exchange(|_| words.to_vec());
        let values =
            values.iter().map(|words| bytemuck::pod_read_unaligned(bytemuck::cast_slice(words)));
        Ok(values.max().unwrap_or(value))
    }

    fn broadcast(&self, bytes: &mut Vec<u8>) -> Result<()> {
        let values = self.exchange(|_| bytes.iter().map(|&byte| f32::from(byte)).collect());
        *bytes = values[0].iter().map(|&value| value as u8).collect();
        Ok(())
    }

    fn fail(&self, _: u8) {}
}
