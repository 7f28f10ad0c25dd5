//! Initial weights, each parameter from a random stream of its own.

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use rand_distr::{Distribution, Normal, StandardNormal, Uniform};

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

    /// The given values.
    pub fn given<const D: usize>(
        &mut self,
        shape: [usize; D],
        values: impl FnOnce() -> Vec<f32>,
    ) -> Param<Tensor<D>> {
        self.filled(shape, values)
    }

    /// Orthogonal rows of length `norm` in random directions; at most as many rows as columns.
    pub fn orthogonal(&mut self, [rows, columns]: [usize; 2], norm: f32) -> Param<Tensor<2>> {
        let mut rng = stream(self.seed, Purpose::Init, 0, self.drawn, 0);
        self.filled([rows, columns], || {
            let mut basis: Vec<Vec<f64>> = Vec::new();
            for _ in 0..rows {
                let mut row: Vec<f64> =
                    (0..columns).map(|_| StandardNormal.sample(&mut rng)).collect();
                // Gram and Schmidt; the rest of a random direction is far from 0.
                for unit in &basis {
                    let along: f64 = row.iter().zip(unit).map(|(a, b)| a * b).sum();
                    row.iter_mut().zip(unit).for_each(|(a, b)| *a -= along * b);
                }
                let length = row.iter().map(|a| a * a).sum::<f64>().sqrt();
                basis.push(row.iter().map(|a| a / length).collect());
            }
            basis.concat().iter().map(|&a| norm * a as f32).collect()
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orthogonal_rows_have_the_norm_and_no_product() {
        let w = Init::new(5, &Device::flex()).orthogonal([8, 16], 3.0).val();
        let products =
            w.clone().matmul(w.transpose()).into_data().try_to_vec::<f32>().expect("f32");
        for (i, product) in products.iter().enumerate() {
            let expected = if i / 8 == i % 8 { 9.0 } else { 0.0 };
            assert!((product - expected).abs() < 1e-4, "{i}: {product}");
        }
    }
}
