//! The engine on the CPU: gradients data-parallel over micro-batches.
//!
//! Each worker thread runs forward and backward on its own micro-batches with single-threaded
//! kernels and sums their gradients; the sums of the workers of all processes are added in a fixed
//! order. No backbone has batch statistics, so this equals one big batch, and it is bit-equal for a
//! given number of workers in all and micro-batch.

mod coupled;

use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytemuck::cast;
use fewvit_kernels::Precision;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::batches::{MicroBatch, images, owner, split, targets};
use super::collective::Collective;
use super::passes::{Gradient, for_each};
use super::{Engine, Machine, Progress, Slope, StepInput, TrainState, Update};
use crate::backbone::{NetSpec, Weights};
use crate::data::loader::Batch;
use crate::error::{Error, Result};
use crate::loss::mixed_cross_entropy;
use crate::method::{Objective, RowLoss};
use crate::ops::{self, BufferPool, PackedWeights};

/// A model in training on worker threads.
pub struct CpuEngine {
    net: NetSpec,
    state: TrainState,
    /// Of the last gradient.
    squared: f64,
    team: Team,
}

/// Worker threads with what they keep from step to step.
struct Team {
    micro_batch: usize,
    precision: Precision,
    /// The processes whose teams work together.
    ranks: Arc<dyn Collective>,
    /// What came from them.
    arrived: Vec<f32>,
    workers: Vec<Worker>,
    packed: PackedWeights,
    /// As many threads, which live as long as the engine: a new one would begin each step with page
    /// faults. They are not pinned to cores: that was no faster (458 against 445 crops/s pinned, DeiT-Tiny
    /// on two cores), and a core that somebody else uses could not be left.
    pool: ThreadPool,
}

/// One thread's share.
struct Worker {
    /// Sum of its micro-batches' gradients.
    sum: Vec<f32>,
    buffers: BufferPool,
}

impl CpuEngine {
    /// Trains the model `net` on from `state`, `micro_batch` rows a worker at a time.
    ///
    /// # Errors
    /// The system gives no more threads.
    pub fn new(
        machine: &Machine,
        net: &NetSpec,
        micro_batch: usize,
        state: TrainState,
    ) -> Result<Self> {
        let count = machine.threads.max(1);
        let pool = ThreadPoolBuilder::new().num_threads(count).build();
        let pool = pool.map_err(|e| Error::Device(format!("{count} worker threads: {e}")))?;
        let num_params = state.values.len();
        let worker = |_| Worker { sum: vec![0.0; num_params], buffers: BufferPool::default() };
        let workers = (0..count).map(worker).collect();
        let (precision, packed) = (machine.products.on_cpu(), PackedWeights::default());
        let (ranks, arrived) = (machine.ranks.clone(), Vec::new());
        let team = Team { micro_batch, precision, ranks, arrived, workers, packed, pool };
        Ok(Self { net: *net, state, squared: 0.0, team })
    }
}

impl Engine for CpuEngine {
    fn gradient(&mut self, input: &StepInput) -> Result<Slope> {
        let Self { net, state, team, .. } = self;
        let weights = |values| Weights::new(net, values, &ops::cpu());
        let student = weights(std::mem::take(&mut state.values))?;
        let teacher = state.teacher.take().map(weights).transpose()?;
        let result = match input.objective {
            Objective::Rows(loss) => team.row_wise(&student, input, loss),
            Objective::Batch(loss) => {
                let teacher = teacher.as_ref().map(|teacher| &teacher.net);
                team.coupled(
                    &student,
                    input,
                    coupled::Coupling { loss, teacher, memory: &mut state.memory },
                )
            }
        };
        // Out of date after the step, and the last to hold on to the weights' memory.
        team.packed.forget();
        state.values = student.into_values();
        state.teacher = teacher.map(Weights::into_values);
        let loss = result?;
        self.squared = team.total()?;
        Ok(Slope { loss, squared: self.squared })
    }

    fn update(&mut self, update: &Update) -> Result<()> {
        let (threads, precision) = (self.team.workers.len(), self.team.precision);
        let values = &mut self.team.workers[0].sum;
        let gradient = Gradient { values, squared: self.squared, threads, precision };
        self.state.update(gradient, update);
        Ok(())
    }

    fn average(&mut self) -> Result<()> {
        self.state.average(self.team.workers.len());
        Ok(())
    }

    fn follow(&mut self, momentum: f32) -> Result<()> {
        self.state.follow(momentum, self.team.workers.len());
        Ok(())
    }

    fn progress(&mut self) -> &mut Progress {
        &mut self.state.progress
    }

    fn state(&mut self) -> Result<&TrainState> {
        Ok(&self.state)
    }

    fn kept_gradient(&mut self) -> Result<Vec<f32>> {
        Ok(self.team.workers[0].sum.clone())
    }

    fn into_state(self: Box<Self>) -> Result<TrainState> {
        Ok(self.state)
    }
}

impl Team {
    /// The loss of a mean over rows; its gradient is in the workers' sums.
    fn row_wise(&mut self, net: &Weights, input: &StepInput, loss: &dyn RowLoss) -> Result<f64> {
        let parts = self.split(input.batch, 0..usize::MAX);
        self.clear();
        let losses = self.each(&parts, |part, precision, sum| {
            backward(net, (input, precision), part, loss, sum)
        })?;
        // As floats, 64 bits are two.
        let words: Vec<f32> = losses.iter().flat_map(|&loss| cast::<f64, [f32; 2]>(loss)).collect();
        let words = self.gathered(&words, &vec![2; parts.len()])?;
        let losses = words.as_chunks().0.iter().map(|&words| cast::<[f32; 2], f64>(words));
        Ok(losses.sum())
    }

    /// The batch's `wanted` rows in micro-batches for the workers of all processes.
    fn split<'b>(&self, batch: &'b Batch, wanted: Range<usize>) -> Vec<MicroBatch<'b>> {
        split(batch, wanted, self.micro_batch, self.workers.len() * self.ranks.size())
    }

    /// The process whose worker has part `part`.
    fn owner(&self, part: usize) -> usize {
        owner(part, self.workers.len(), self.ranks.size())
    }

    /// What all processes made of their parts, in the order of the parts: `own` is this one's, `lens`
    /// how many values each part has.
    fn gathered(&self, own: &[f32], lens: &[usize]) -> Result<Vec<f32>> {
        if self.ranks.size() == 1 {
            return Ok(own.to_vec());
        }
        let all = self.ranks.all_gather(own)?;
        let owners: Vec<usize> = (0..lens.len()).map(|part| self.owner(part)).collect();
        let of_rank = |rank: usize| {
            let own = owners.iter().zip(lens).filter(move |(owner, _)| **owner == rank);
            own.map(|(_, len)| len).sum::<usize>()
        };
        let mut next: Vec<usize> = vec![0; self.ranks.size()];
        for rank in 1..next.len() {
            next[rank] = next[rank - 1] + of_rank(rank - 1);
        }
        let mut in_order = Vec::with_capacity(all.len());
        for (&owner, &len) in owners.iter().zip(lens) {
            in_order.extend_from_slice(&all[next[owner]..next[owner] + len]);
            next[owner] += len;
        }
        Ok(in_order)
    }

    /// Sets all sums to zero.
    fn clear(&mut self) {
        let threads = self.workers.len();
        for_each(threads, self.workers.iter_mut(), |worker| worker.sum.fill(0.0));
    }

    /// Adds up the sums of the workers of all processes to the first one's; returns the sum of the
    /// squares.
    fn total(&mut self) -> Result<f64> {
        let threads = self.workers.len();
        let mut sums: Vec<_> = self.workers.iter_mut().map(|worker| &mut worker.sum[..]).collect();
        self.ranks.all_reduce(&mut sums, &mut self.arrived, threads)
    }

    /// Calls `work(part, precision, sum of its worker)` for each part of this process, the parts dealt
    /// out to the workers of all processes in turn; results in the order of the parts.
    ///
    /// # Errors
    /// A worker panicked. Its sum is then worth nothing, and so is the engine.
    fn each<T: Send>(
        &mut self,
        parts: &[MicroBatch],
        work: impl Fn(&MicroBatch, Precision, &mut Vec<f32>) -> T + Sync,
    ) -> Result<Vec<T>> {
        let (count, work, precision) = (self.workers.len(), &work, self.precision);
        let own = parts.iter().enumerate().filter(|(i, _)| self.owner(*i) == self.ranks.rank());
        let parts: Vec<&MicroBatch> = own.map(|(_, part)| part).collect();
        let parts = &parts;
        let packed = &self.packed;
        let mut by_worker: Vec<Vec<T>> = (0..count).map(|_| Vec::new()).collect();
        let workers = self.workers.iter_mut().zip(&mut by_worker).enumerate();
        let run = || {
            self.pool.in_place_scope(|scope| {
                for (i, (Worker { sum, buffers }, done)) in workers {
                    let mine = parts.iter().skip(i).step_by(count);
                    let work = move || done.extend(mine.map(|&part| work(part, precision, sum)));
                    scope.spawn(move |_| packed.serve(|| buffers.serve(work)));
                }
            });
        };
        std::panic::catch_unwind(AssertUnwindSafe(run))
            .map_err(|_| Error::Failed("a training worker panicked".to_owned()))?;
        let mut dealt: Vec<_> = by_worker.into_iter().map(Vec::into_iter).collect();
        Ok((0..parts.len()).filter_map(|i| dealt[i % count].next()).collect())
    }
}

/// Adds the gradients of one micro-batch to `sum`; returns its share of the loss.
fn backward(
    net: &Weights,
    (input, precision): (&StepInput, Precision),
    part: &MicroBatch,
    loss: &dyn RowLoss,
    sum: &mut Vec<f32>,
) -> f64 {
    let targets = targets(part, loss);
    net.add_gradients(sum, |net| {
        let device = ops::cpu().autodiff();
        let images = images(part, input, &device);
        let features = input.features(net, (part, images), &input.drop_path, precision);
        let losses = mixed_cross_entropy(net.logits(features), &targets, loss.smoothing());
        losses.sum() / part.group.samples.len() as f64
    })
}
