//! Stochastic depth: whole residual branches switched off per sample. And dropout of single values.

use rand::{Rng as _, RngExt as _};

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
    /// Whether this is a step of training: dropout that a model is built with acts in no other pass.
    pub training: bool,
}

impl DropPath {
    /// Switched off: evaluation, or a rate of 0.
    pub const OFF: Self = Self { rate: 0.0, seed: 0, step: 0, first_row: 0, training: false };

    /// Factors of the residual branch `branch` of `block`, 0 or `1 / keep`: one for each of the
    /// `batch` samples, repeated for each of its `tokens`; `None` where nothing is dropped.
    pub fn factors(
        &self,
        [batch, tokens]: [usize; 2],
        [block, depth]: [usize; 2],
        branch: u32,
    ) -> Option<Vec<f32>> {
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
        Some((0..batch).flat_map(|row| std::iter::repeat_n(factor(row), tokens)).collect())
    }

    /// Threshold and factor of dropout: a value whose random 32-bit word is below the threshold becomes 0, any other
    /// is multiplied by the factor.
    pub fn dropped_below(rate: f64) -> (u32, f32) {
        ((rate * (f64::from(u32::MAX) + 1.0)) as u32, (1.0 / (1.0 - rate)) as f32)
    }

    /// Factors of dropout with probability `rate` in a layer, 0 or `1 / keep`: one for each of the
    /// `values` of each of the `batch` samples; `None` outside training.
    pub fn dropout(&self, [batch, values]: [usize; 2], rate: f64, layer: u32) -> Option<Vec<f32>> {
        if !self.training {
            return None;
        }
        let (threshold, kept) = Self::dropped_below(rate);
        let mut factors = Vec::with_capacity(batch * values);
        for row in self.first_row..self.first_row + batch {
            let mut rng = stream(self.seed, Purpose::Dropout, self.step, row as u64, layer);
            let factor = |_| if rng.next_u32() < threshold { 0.0 } else { kept };
            factors.extend((0..values).map(factor));
        }
        Some(factors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_block_drops_at_the_rate_and_the_first_never() {
        let path = DropPath { rate: 0.25, seed: 3, step: 7, ..DropPath::OFF };
        assert!(path.factors([8, 1], [0, 12], 0).is_none());
        let values = path.factors([20_000, 1], [11, 12], 1).expect("a rate above 0");
        let dropped = values.iter().filter(|&&v| v == 0.0).count() as f64 / 20_000.0;
        // 4 standard deviations of a binomial share with p = 0.25.
        assert!((dropped - 0.25).abs() < 4.0 * (0.25 * 0.75 / 20_000.0f64).sqrt(), "{dropped}");
        assert!(values.iter().all(|&v| v == 0.0 || (v - 1.0 / 0.75).abs() < 1e-6));
    }

    #[test]
    fn rows_keep_their_draw_in_any_micro_batch_and_tokens_share_it() {
        let at = |first_row, batch, tokens| {
            let path = DropPath { rate: 0.5, seed: 1, step: 2, first_row, training: true };
            path.factors([batch, tokens], [5, 6], 0).expect("a rate above 0")
        };
        let whole = at(0, 10, 1);
        assert_eq!(whole, [at(0, 4, 1), at(4, 6, 1)].concat());
        let tokens: Vec<f32> = whole.iter().flat_map(|&f| [f, f, f]).collect();
        assert_eq!(at(0, 10, 3), tokens);
    }

    #[test]
    fn dropout_keeps_the_mean_and_is_the_same_in_any_micro_batch() {
        assert!(DropPath::OFF.dropout([2, 3], 0.1, 0).is_none());
        let at = |first_row, batch, layer| {
            let path = DropPath { seed: 1, step: 2, first_row, training: true, ..DropPath::OFF };
            path.dropout([batch, 1000], 0.1, layer).expect("training")
        };
        let whole = at(0, 20, 3);
        assert_eq!(whole, [at(0, 7, 3), at(7, 13, 3)].concat());
        assert_ne!(whole, at(0, 20, 4));
        let dropped = whole.iter().filter(|&&v| v == 0.0).count() as f64 / 20_000.0;
        // 4 standard deviations of a binomial share with p = 0.1.
        assert!((dropped - 0.1).abs() < 4.0 * (0.1 * 0.9 / 20_000.0f64).sqrt(), "{dropped}");
        assert!(whole.iter().all(|&v| v == 0.0 || (v - 1.0 / 0.9).abs() < 1e-6));
    }
}
