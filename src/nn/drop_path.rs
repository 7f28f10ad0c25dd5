//! Stochastic depth: whole residual branches switched off per sample.

use burn::tensor::{Device, Tensor, TensorData};
use rand::RngExt as _;

use crate::rng::{Purpose, stream};

/// Which branches of which rows are dropped in one forward pass (Huang et al. 2016, as in timm).
///
/// The draw of a branch depends on (seed, step, row of the step's batch, branch) alone, so it is
/// the same however the batch is cut into micro-batches.
#[derive(Clone, Debug)]
pub struct DropPath {
    /// Drop probability at the last block; 0 at the first, linear between.
    pub rate: f64,
    /// The stage's seed.
    pub seed: u64,
    /// The stage's optimiser step.
    pub step: u32,
    /// Position in the step's batch of the first row of this micro-batch.
    pub first_row: usize,
}

impl DropPath {
    /// Switched off: evaluation, or a rate of 0.
    pub const OFF: Self = Self { rate: 0.0, seed: 0, step: 0, first_row: 0 };

    /// Factors of the residual branch `branch` of `block`: 0 or `1 / keep`, `[rows, 1, 1]`;
    /// `None` where nothing is dropped.
    pub fn factors(
        &self,
        rows: usize,
        block: usize,
        depth: usize,
        branch: u32,
        device: &Device,
    ) -> Option<Tensor<3>> {
        let rate = self.rate * block as f64 / (depth - 1).max(1) as f64;
        if rate == 0.0 {
            return None;
        }
        let kept = (1.0 / (1.0 - rate)) as f32;
        let view = block as u32 * 2 + branch;
        let factor = |row: usize| {
            let row = (self.first_row + row) as u64;
            let dropped =
                stream(self.seed, Purpose::DropPath, self.step, row, view).random_bool(rate);
            if dropped { 0.0 } else { kept }
        };
        let factors: Vec<f32> = (0..rows).map(factor).collect();
        Some(Tensor::from_data(TensorData::new(factors, [rows, 1, 1]), device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_block_drops_at_the_rate_and_the_first_never() {
        let path = DropPath { rate: 0.25, seed: 3, step: 7, first_row: 0 };
        let device = Device::flex();
        assert!(path.factors(8, 0, 12, 0, &device).is_none());
        let factors = path.factors(20_000, 11, 12, 1, &device).expect("a rate above 0");
        let values = factors.into_data().try_to_vec::<f32>().expect("f32");
        let dropped = values.iter().filter(|&&v| v == 0.0).count() as f64 / 20_000.0;
        // 4 standard deviations of a binomial share with p = 0.25.
        assert!((dropped - 0.25).abs() < 4.0 * (0.25 * 0.75 / 20_000.0f64).sqrt(), "{dropped}");
        assert!(values.iter().all(|&v| v == 0.0 || (v - 1.0 / 0.75).abs() < 1e-6));
    }

    #[test]
    fn rows_keep_their_draw_in_any_micro_batch() {
        let device = Device::flex();
        let at = |first_row, rows| {
            let path = DropPath { rate: 0.5, seed: 1, step: 2, first_row };
            path.factors(rows, 5, 6, 0, &device)
                .expect("a rate above 0")
                .into_data()
                .try_to_vec::<f32>()
        };
        let whole = at(0, 10).expect("f32");
        let parts = [at(0, 4).expect("f32"), at(4, 6).expect("f32")].concat();
        assert_eq!(whole, parts);
    }
}
