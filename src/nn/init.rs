//! Initial weights, each parameter from a random stream of its own.

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use rand_distr::{Distribution, Normal, Uniform};

use crate::rng::{Purpose, stream};

/// Draws parameters in declaration order: the n-th parameter has the stream (seed, `Init`, n), so
/// weights depend on the seed and the architecture alone.
pub struct Init {
    seed: u64,
    drawn: u64,
    device: Device,
    shapes_only: bool,
}

impl Init {
    /// Parameters on `device`.
    pub fn new(seed: u64, device: &Device) -> Self {
        Self { seed, drawn: 0, device: device.clone(), shapes_only: false }
    }

    /// Parameters of the right shapes that take no time and no memory, for counting.
    pub fn shapes() -> Self {
        Self { seed: 0, drawn: 0, device: Device::flex(), shapes_only: true }
    }

    /// Normal with mean 0.
    pub fn normal<const D: usize>(&mut self, shape: [usize; D], std: f32) -> Param<Tensor<D>> {
        self.draw(shape, Normal::new(0.0, std).expect("a finite standard deviation"))
    }

    /// Uniform in `[-bound, bound)`.
    pub fn uniform<const D: usize>(&mut self, shape: [usize; D], bound: f32) -> Param<Tensor<D>> {
        self.draw(shape, Uniform::new(-bound, bound).expect("a positive bound"))
    }

    /// All entries `value`.
    pub fn constant<const D: usize>(&mut self, shape: [usize; D], value: f32) -> Param<Tensor<D>> {
        self.filled(shape, || vec![value; shape.iter().product()])
    }

    fn draw<const D: usize>(
        &mut self,
        shape: [usize; D],
        distribution: impl Distribution<f32>,
    ) -> Param<Tensor<D>> {
        let mut rng = stream(self.seed, Purpose::Init, 0, self.drawn, 0);
        let size = shape.iter().product();
        self.filled(shape, || (0..size).map(|_| distribution.sample(&mut rng)).collect())
    }

    fn filled<const D: usize>(
        &mut self,
        shape: [usize; D],
        values: impl FnOnce() -> Vec<f32>,
    ) -> Param<Tensor<D>> {
        self.drawn += 1;
        if self.shapes_only {
            return Param::from_tensor(Tensor::<D>::zeros([1; D], &self.device).expand(shape));
        }
        Param::from_data(TensorData::new(values(), shape), &self.device)
    }
}
