//! Learning rate as a function of the step (recipe section 2.5).

use std::f64::consts::PI;

use crate::config::{LrSchedule, OptimConfig};

/// Learning rate at optimiser step `step`, counted from 0: linear warm-up from exactly 0, then the
/// configured curve over fractional epochs.
pub fn lr(config: &OptimConfig, step: usize, steps_per_epoch: usize) -> f64 {
    let t = step as f64 / steps_per_epoch as f64;
    let (epochs, warmup) = (config.epochs as f64, config.warmup_epochs.min(config.epochs as f64));
    if t < warmup {
        return config.lr * t / warmup;
    }
    let span = (epochs - warmup).max(f64::MIN_POSITIVE);
    let phase = match config.lr_schedule {
        LrSchedule::Cosine => PI * (t - warmup) / span,
        // The official code's bracket: a constant phase of w (pi - 1) / (E - w) ahead.
        LrSchedule::IdmmQuirk => (PI * t - warmup) / span,
        LrSchedule::Constant => 0.0,
    };
    config.lr / 2.0 * (1.0 + phase.cos())
}

/// Decay of the averaged weights at their n-th update (recipe section 2.1, "EMA").
pub fn ema_decay(updates: usize) -> f64 {
    let n = updates as f64;
    ((1.0 + n) / (10.0 + n)).min(0.999)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Ema, SmoothingKind};

    fn config(epochs: usize, warmup_epochs: f64, lr_schedule: LrSchedule) -> OptimConfig {
        OptimConfig {
            epochs,
            batch_size: 256,
            lr: 1.0,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            warmup_epochs,
            lr_schedule,
            no_decay_1d: false,
            clip_grad: 0.0,
            ema: Ema::Off,
            drop_path: 0.0,
            smoothing: 0.0,
            smoothing_kind: SmoothingKind::Others,
        }
    }

    #[test]
    fn warm_up_starts_at_zero_and_is_linear() {
        let c = config(800, 2.0, LrSchedule::Cosine);
        assert_eq!(lr(&c, 0, 8), 0.0);
        assert_eq!(lr(&c, 8, 8), 0.5);
        assert_eq!(lr(&c, 16, 8), 1.0);
        assert!(lr(&c, 6400, 8).abs() < 1e-12);
        assert!((lr(&c, 8 * 401, 8) - 0.5).abs() < 1e-12, "half way through the cosine");
    }

    #[test]
    fn the_quirk_has_the_values_of_recipe_section_2_5() {
        // w, E, lr just after the warm-up, lr at t = E.
        let table = [(2.0, 800, 0.999993, 7.2e-6), (10.0, 100, 0.985911, 1.41e-2)];
        for (warmup, epochs, after, end) in table {
            let c = config(epochs, warmup, LrSchedule::IdmmQuirk);
            assert!((lr(&c, warmup as usize * 8, 8) - after).abs() < 1e-6);
            assert!((lr(&c, epochs * 8, 8) - end).abs() < 0.01 * end);
        }
    }
}
