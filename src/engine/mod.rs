//! The engine room: what turns a batch into new weights, and images into features, on some device.
//!
//! A stage knows [`Engine`] and [`Model`] alone. Each engine is one room behind them: [`cpu`] over the
//! kernels, data-parallel over threads; `cuda` on NVIDIA cards, over kernels of its own; [`composed`] over
//! burn's own operations, on any device that burn knows and, on the CPU, the oracle of the others.

pub mod batches;
pub mod collective;
pub mod composed;
mod coupling;
pub mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(not(feature = "cuda"))]
#[path = "without_cuda.rs"]
mod cuda;
pub mod device;
mod model;
pub mod optim;
pub mod passes;
pub mod pixels;
pub mod state;

use std::sync::Arc;

use fewvit_kernels::{Precision, bf16_is_faster, has_bf16};

use crate::backbone::NetSpec;
use crate::config::{AmpDtype, OptimConfig, RunConfig};
use crate::data::loader::{Batch, Cutting};
use crate::error::{Error, Result};
use crate::method::Objective;
use crate::nn::DropPath;
pub use batches::{micro_batch, own_rows, scaled_micro_batch};
use collective::{Collective, Single};
use composed::ComposedEngine;
use cpu::CpuEngine;
use device::DeviceName;
use model::BurnModel;
pub use model::{Model, Outputs};
pub use state::{Progress, TrainState, TunedProducts};

/// A model in training: its weights, what the optimiser and the method remember, and the gradient of
/// the step.
pub trait Engine {
    /// The loss of the weights on a batch and its gradient, which the engine keeps for
    /// [`Self::update`]. What the method remembers is brought up to date.
    ///
    /// # Errors
    /// The device or a worker failed.
    fn gradient(&mut self, input: &StepInput) -> Result<Slope>;

    /// Moves the weights along the kept gradient and counts the step.
    ///
    /// # Errors
    /// The device failed.
    fn update(&mut self, update: &Update) -> Result<()>;

    /// Moves the averaged weights towards the weights, where the recipe keeps an average by epoch.
    ///
    /// # Errors
    /// The device failed.
    fn average(&mut self) -> Result<()>;

    /// Moves the momentum encoder towards the weights: `t = m t + (1 - m) s`.
    ///
    /// # Errors
    /// The device failed.
    fn follow(&mut self, momentum: f32) -> Result<()>;

    /// How far the stage is.
    fn progress(&mut self) -> &mut Progress;

    /// All that a checkpoint holds.
    ///
    /// # Errors
    /// The device failed.
    fn state(&mut self) -> Result<&TrainState>;

    /// The kept gradient before clipping, in the order of the flat vector.
    ///
    /// # Errors
    /// The device failed.
    fn kept_gradient(&mut self) -> Result<Vec<f32>>;

    /// The state, without a copy of what the engine holds on the host.
    ///
    /// # Errors
    /// The device failed.
    fn into_state(self: Box<Self>) -> Result<TrainState>;
}

/// What a step computes on besides the weights.
pub struct StepInput<'a> {
    /// The crops.
    pub batch: &'a Batch,
    /// The loss.
    pub objective: Objective<'a>,
    /// Stochastic depth of this step; its `first_row` is set for each micro-batch.
    pub drop_path: DropPath,
    /// Input normalisation.
    pub mean: [f32; 3],
    /// Input normalisation.
    pub std: [f32; 3],
    /// The stage's epoch, from 0.
    pub epoch: usize,
}

/// Loss of a step, and the sum of the squares of its gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slope {
    /// Mean over the rows of a group, groups summed.
    pub loss: f64,
    /// Sum of the squares of the gradient's values: finite exactly if all of them are.
    pub squared: f64,
}

/// How a step moves the weights.
pub struct Update<'a> {
    /// Learning rate of this step.
    pub lr: f64,
    /// Optimiser, with the weight decay of this step.
    pub optim: &'a OptimConfig,
    /// Number of first steps in which the parameter of a key keeps its value; 0 = it moves at once.
    pub late: &'a dyn Fn(&str) -> usize,
}

/// What computes: one process of this machine, and those that it works with.
#[derive(Clone)]
pub struct Machine {
    /// Worker threads of this process.
    pub threads: usize,
    /// Precision of the products in backbones and in the heads of coupled losses. Those of classifiers are f32.
    pub products: Products,
    /// The processes that train together.
    pub ranks: Arc<dyn Collective>,
    /// Where models are; the threads are the CPU's.
    pub device: DeviceName,
}

impl Machine {
    /// A device by name, for models that are asked and not trained.
    ///
    /// # Errors
    /// There is no such device, or it answers wrongly.
    pub fn named(device: &str, threads: usize) -> Result<Self> {
        let device = device::settle(device.parse()?)?;
        device::check(device)?;
        Ok(Self { device, ..Self::cpu(threads) })
    }

    /// The CPU and this process alone, all products in f32.
    pub fn cpu(threads: usize) -> Self {
        Self { threads, products: Products::F32, ranks: Arc::new(Single), device: DeviceName::Cpu }
    }

    /// Who makes crops for what trains here: the CPU beside the step, or a card that does it faster.
    pub fn cutting(&self) -> Cutting {
        match self.device {
            DeviceName::Cuda(_) => Cutting::Engine,
            _ => Cutting::Loader,
        }
    }

    /// An engine that trains the model `net` on from `state`, `micro_batch` rows at a time.
    ///
    /// # Errors
    /// The system gives no more threads, the device is not there.
    pub fn engine(
        &self,
        net: &NetSpec,
        micro_batch: usize,
        state: TrainState,
    ) -> Result<Box<dyn Engine>> {
        if self.device == DeviceName::Cpu {
            return Ok(Box::new(CpuEngine::new(self, net, micro_batch, state)?));
        }
        if self.ranks.size() > 1 {
            return Err(Error::Usage(format!(
                "several processes train together on the CPU only, not on {}",
                self.device
            )));
        }
        if let DeviceName::Cuda(index) = self.device {
            return cuda::engine(index, self, net, micro_batch, state);
        }
        let device = device::open(self.device)?;
        Ok(Box::new(ComposedEngine::new(&device, self.threads, net, micro_batch, state)))
    }

    /// The model `net` with the given weights, to be asked.
    ///
    /// # Errors
    /// An img-size that the backbone cannot take, the device is not there.
    pub fn model(&self, net: &NetSpec, values: &[f32]) -> Result<Box<dyn Model>> {
        if let DeviceName::Cuda(index) = self.device {
            return cuda::model(index, net, values);
        }
        let device = device::open(self.device)?;
        Ok(Box::new(BurnModel::new(net, values, device)?))
    }
}

/// What matrix products are computed in; sums are f32 in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Products {
    /// 32-bit.
    F32,
    /// Factors with 11 significant bits, on NVIDIA's cards.
    Tf32,
    /// Factors with 8 significant bits.
    Bf16,
}

impl Products {
    /// `"f32"`, `"tf32"` or `"bf16"`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        }
    }

    /// Of the same products where the CPU computes them, which has no TF32.
    pub const fn on_cpu(self) -> Precision {
        match self {
            Self::F32 | Self::Tf32 => Precision::F32,
            Self::Bf16 => Precision::Bf16,
        }
    }

    /// Whether a device has them.
    ///
    /// # Errors
    /// It computes in f32 whatever it is asked for.
    pub fn check(self, device: DeviceName) -> Result<()> {
        match (self, device) {
            (Self::Tf32, DeviceName::Cpu | DeviceName::Wgpu(_)) => Err(Error::Usage(format!(
                "--amp-dtype tf32: only NVIDIA's cards multiply TF32, and this is {device}\n  leave \
                 --amp-dtype out, or use --device cuda"
            ))),
            (Self::Bf16, DeviceName::Wgpu(_)) => {
                Err(Error::Usage(format!("on {device} training is in f32; leave --amp-dtype out")))
            }
            _ => Ok(()),
        }
    }
}

/// What `amp_dtype` means where a run computes: on the CPU bf16 only where the processor does and
/// multiplies it, `auto` where that is faster; on `cuda` what is asked for, `auto` = f32; elsewhere f32.
pub fn products(config: &RunConfig) -> Products {
    match (config.device.parse(), config.amp_dtype) {
        (Ok(DeviceName::Cuda(_)), AmpDtype::Bf16) => Products::Bf16,
        (Ok(DeviceName::Cuda(_)), AmpDtype::Tf32) => Products::Tf32,
        (Ok(DeviceName::Cpu), AmpDtype::Bf16) if has_bf16() => Products::Bf16,
        (Ok(DeviceName::Cpu), AmpDtype::Auto) if bf16_is_faster() => Products::Bf16,
        _ => Products::F32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Layers;

    #[test]
    fn devices_are_said_to_compute_in_what_they_do() {
        let mut config = Layers::new("paper").and_then(Layers::build).expect("a recipe").config;
        config.device = "wgpu:0".to_owned();
        for amp_dtype in [AmpDtype::Auto, AmpDtype::Bf16, AmpDtype::F32] {
            config.amp_dtype = amp_dtype;
            assert_eq!(products(&config), Products::F32);
        }
        config.device = "cuda:0".to_owned();
        assert_eq!(products(&config), Products::F32);
        config.amp_dtype = AmpDtype::Auto;
        assert_eq!(products(&config), Products::F32);
        config.amp_dtype = AmpDtype::Tf32;
        assert_eq!(products(&config), Products::Tf32);
        config.amp_dtype = AmpDtype::Bf16;
        assert_eq!(products(&config), Products::Bf16);
        config.device = "cpu".to_owned();
        assert_eq!(products(&config) == Products::Bf16, has_bf16());
    }

    #[test]
    fn what_a_device_does_not_multiply_is_refused() {
        for device in [DeviceName::Cpu, DeviceName::Wgpu(0)] {
            let error = Products::Tf32.check(device).expect_err("no TF32");
            assert_eq!(error.exit_code(), 2);
            let text = error.to_string();
            assert!(text.contains(&format!("and this is {device}\n")), "{text}");
        }
        assert!(Products::Bf16.check(DeviceName::Wgpu(0)).is_err());
        for products in [Products::F32, Products::Tf32, Products::Bf16] {
            assert!(products.check(DeviceName::Cuda(1)).is_ok());
        }
        assert!(Products::Bf16.check(DeviceName::Cpu).is_ok());
    }
}
