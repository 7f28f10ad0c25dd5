//! The engine over burn's own operations, on any device that burn knows.
//!
//! Gradients come from burn's autodiff and are summed on the device; weights cross to it and the
//! gradient back once a step, and the step itself is the CPU's. It is the breadth path, not the fast
//! one. On the CPU it computes what the other engines are held against.

use burn::tensor::{Device, Tensor};
use fewvit_kernels::Precision;

use super::batches::{pixels, rows_of, samples, split, targets};
use super::collective::{Collective, Single};
use super::device::{read, watched};
use super::passes::Gradient;
use super::{Engine, Progress, Slope, StepInput, TrainState, Update};
use crate::backbone::{Net, NetSpec, Weights};
use crate::error::{Error, Result};
use crate::loss::mixed_cross_entropy;
use crate::method::{BatchFeatures, BatchLoss, Objective, RowLoss};
use crate::nn::DropPath;
use crate::ops;

/// A model in training on a device.
pub struct ComposedEngine {
    net: NetSpec,
    state: TrainState,
    device: Device,
    /// Rows of a mean over rows that pass through the model together.
    micro_batch: usize,
    gradient: Vec<f32>,
    squared: f64,
    /// Of the optimiser.
    threads: usize,
}

impl ComposedEngine {
    /// Trains the model `net` on from `state` on `device`, `threads` of the CPU making the steps.
    pub fn new(
        device: &Device,
        threads: usize,
        net: &NetSpec,
        micro_batch: usize,
        state: TrainState,
    ) -> Self {
        let gradient = vec![0.0; state.values.len()];
        let device = device.clone();
        Self { net: *net, state, device, micro_batch, gradient, squared: 0.0, threads }
    }

    /// The loss; its gradient is kept.
    fn compute(&mut self, input: &StepInput) -> Result<f64> {
        let weights = |values: &Vec<f32>| Weights::new(&self.net, values.clone(), &self.device);
        let student = weights(&self.state.values)?;
        let sums = match input.objective {
            Objective::Rows(loss) => self.row_wise(&student, input, loss),
            Objective::Batch(loss) => {
                let teacher = self.state.teacher.as_ref().map(weights).transpose()?;
                let teacher = teacher.as_ref().map(|teacher| &teacher.net);
                self.coupled(&student, input, loss, teacher)
            }
        };
        let sums = sums.ok_or_else(|| Error::Failed("a batch without rows".to_owned()))?;
        let (loss, gradient) = sums.read(student.len())?;
        self.gradient = gradient;
        Ok(loss)
    }

    /// Sums over the micro-batches.
    fn row_wise(&self, net: &Weights, input: &StepInput, loss: &dyn RowLoss) -> Option<Sums> {
        let device = self.device.clone().autodiff();
        let parts = split(input.batch, 0..usize::MAX, self.micro_batch, 1);
        let sums = parts.iter().map(|part| {
            let targets = targets(part, loss);
            Sums::of(net, |net| {
                let (path, images) = (&input.drop_path, pixels(part, input, &device));
                let features = input.features(net, (part, images), path, Precision::F32);
                let losses = mixed_cross_entropy(net.logits(features), &targets, loss.smoothing());
                losses.sum() / part.group.samples.len() as f64
            })
        });
        sums.reduce(Sums::plus)
    }

    /// The whole batch in one graph.
    fn coupled(
        &mut self,
        student: &Weights,
        input: &StepInput,
        loss: &dyn BatchLoss,
        teacher: Option<&Net>,
    ) -> Option<Sums> {
        let samples = samples(input.batch);
        let rows = |views| rows_of(views, samples.len());
        let features = |net: &Net, rows, drop_path: &DropPath, device: &Device| {
            let parts = split(input.batch, rows, usize::MAX, 1);
            let of_part = |part| {
                let images = pixels(part, input, device);
                input.features(net, (part, images), drop_path, Precision::F32)
            };
            Tensor::cat(parts.iter().map(of_part).collect(), 0)
        };
        let taught = teacher.zip(loss.teacher()).map(|(net, teacher)| {
            (net, features(net, rows(teacher.views()), &DropPath::OFF, &self.device))
        });
        let (device, memory) = (self.device.clone().autodiff(), &mut self.state.memory);
        Some(Sums::of(student, |net| {
            let batch = BatchFeatures {
                net,
                features: features(net, rows(0..loss.student_views()), &input.drop_path, &device),
                teacher: taught,
                samples,
                epoch: input.epoch,
                step: input.drop_path.step as usize,
            };
            loss.loss(batch, memory)
        }))
    }
}

/// A loss and its gradient, on the device.
struct Sums {
    loss: Tensor<1>,
    /// Gradients of the parameters, flattened, in the order of the flat vector.
    gradients: Vec<Tensor<1>>,
}

impl Sums {
    fn of(weights: &Weights, loss: impl FnOnce(&Net) -> Tensor<1>) -> Self {
        let (loss, gradients) = weights.gradients(loss);
        Self { loss, gradients }
    }

    fn plus(self, other: Self) -> Self {
        let gradients = self.gradients.into_iter().zip(other.gradients).map(|(a, b)| a + b);
        Self { loss: self.loss + other.loss, gradients: gradients.collect() }
    }

    /// The loss, and the gradient as one vector.
    fn read(self, len: usize) -> Result<(f64, Vec<f32>)> {
        let all = std::iter::once(self.loss).chain(self.gradients).collect();
        let mut values = read(Tensor::cat(all, 0))?;
        if values.len() != 1 + len {
            let lens = (values.len(), 1 + len);
            return Err(Error::Device(format!("the device gave {} values of {}", lens.0, lens.1)));
        }
        Ok((f64::from(values.remove(0)), values))
    }
}

impl Engine for ComposedEngine {
    fn gradient(&mut self, input: &StepInput) -> Result<Slope> {
        let loss = watched(|| ops::composed_only(|| self.compute(input)))??;
        let sums = &mut [&mut self.gradient[..]];
        self.squared = Single.all_reduce(sums, &mut Vec::new(), self.threads)?;
        Ok(Slope { loss, squared: self.squared })
    }

    fn update(&mut self, update: &Update) -> Result<()> {
        let (values, squared, threads) = (&mut self.gradient[..], self.squared, self.threads);
        let gradient = Gradient { values, squared, threads, precision: Precision::F32 };
        self.state.update(gradient, update);
        Ok(())
    }

    fn average(&mut self) -> Result<()> {
        self.state.average(self.threads);
        Ok(())
    }

    fn follow(&mut self, momentum: f32) -> Result<()> {
        self.state.follow(momentum, self.threads);
        Ok(())
    }

    fn progress(&mut self) -> &mut Progress {
        &mut self.state.progress
    }

    fn state(&mut self) -> Result<&TrainState> {
        Ok(&self.state)
    }

    fn kept_gradient(&mut self) -> Result<Vec<f32>> {
        Ok(self.gradient.clone())
    }

    fn into_state(self: Box<Self>) -> Result<TrainState> {
        Ok(self.state)
    }
}
