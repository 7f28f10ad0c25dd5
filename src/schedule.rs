//! Hyper-parameters as functions of the step alone, so that a resumed run needs nothing but its
//! step number.

use std::f64::consts::PI;

use crate::config::{LrSchedule, OptimConfig};

/// Learning rate at optimiser step `step`, counted from 0: linear warm-up from exactly 0, then the
/// configured curve over fractional epochs, down to `min_lr`. A warm-up of one step or less would
/// only waste that step, which may be the only one, so there is none. With `decay_epochs` the cosine
/// takes these last epochs, and the rate between warm-up and cosine is `lr`.
pub fn lr(config: &OptimConfig, step: usize, steps_per_epoch: usize) -> f64 {
    let t = step as f64 / steps_per_epoch as f64;
    let (epochs, warmup) = (config.epochs as f64, config.warmup_epochs.min(config.epochs as f64));
    if t < warmup && warmup * steps_per_epoch as f64 > 1.0 {
        return config.lr * t / warmup;
    }
    let start = warmup.max(config.decay_from() as f64);
    let span = (epochs - start).max(f64::MIN_POSITIVE);
    let phase = match config.lr_schedule {
        LrSchedule::Cosine => PI * (t - start).max(0.0) / span,
        // The official code's bracket: a constant phase of w (pi - 1) / (E - w) ahead.
        LrSchedule::IdmmQuirk => (PI * t - warmup) / span,
        LrSchedule::Constant => 0.0,
    };
    config.min_lr + (config.lr - config.min_lr) / 2.0 * (1.0 + phase.cos())
}

/// Weight decay at optimiser step `step` of `total_steps`: along half a cosine where it has an end of
/// its own.
pub fn weight_decay(config: &OptimConfig, step: usize, total_steps: usize) -> f64 {
    match config.weight_decay_end {
        0.0 => config.weight_decay,
        end => cosine(config.weight_decay, end, step, total_steps),
    }
}

/// Decay of the averaged weights at their n-th update, as in the official code.
pub fn ema_decay(updates: usize) -> f64 {
    let n = updates as f64;
    ((1.0 + n) / (10.0 + n)).min(0.999)
}

/// Half a cosine from `start` at step 0 to `end` at step `total_steps`, which is never reached:
/// `end + (start - end) * (1 + cos(pi * step / total_steps)) / 2`.
///
/// The teacher's momentum of MoCo v3 (0.99 to 1) and DINO (0.996 to 1), and DINO's weight decay
/// (0.04 to 0.4) follow it.
pub fn cosine(start: f64, end: f64, step: usize, total_steps: usize) -> f64 {
    let phase = PI * step as f64 / total_steps.max(1) as f64;
    end + (start - end) * (1.0 + phase.cos()) / 2.0
}

/// DINO's teacher temperature in `epoch`, counted from 0: in equal steps from `start` in the first
/// to `end` in the last of `warmup_epochs`, then `end`. One epoch of warm-up is spent at `start`.
pub fn teacher_temp(start: f64, end: f64, epoch: usize, warmup_epochs: usize) -> f64 {
    if epoch >= warmup_epochs {
        return end;
    }
    start + (end - start) * epoch as f64 / (warmup_epochs - 1).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Ema, SmoothingKind};

    fn config(epochs: usize, warmup_epochs: f64, lr_schedule: LrSchedule) -> OptimConfig {
        OptimConfig {
            kind: crate::config::OptimKind::AdamW,
            momentum: 0.0,
            epochs,
            batch_size: 256,
            drop_last: false,
            micro_batch: 0,
            lr: 1.0,
            min_lr: 0.0,
            decay_epochs: 0,
            decay_share: 1.0,
            weight_decay: 0.0,
            weight_decay_end: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            warmup_epochs,
            lr_schedule,
            no_decay_1d: false,
            clip_grad: 0.0,
            clip_mode: crate::config::ClipMode::Global,
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

    /// DINO's `cosine_scheduler(1, 0.1, ...)` ends there and is half way in the middle.
    #[test]
    fn the_curve_ends_at_the_least_rate() {
        let c = OptimConfig { min_lr: 0.1, ..config(100, 0.0, LrSchedule::Cosine) };
        for (step, expected) in [(0, 1.0), (400, 0.55), (800, 0.1)] {
            assert!((lr(&c, step, 8) - expected).abs() < 1e-12, "{step}");
        }
        let c = OptimConfig { warmup_epochs: 2.0, ..c };
        assert_eq!([lr(&c, 0, 8), lr(&c, 8, 8)], [0.0, 0.5]);
    }

    #[test]
    fn the_fall_takes_the_last_epochs_where_they_are_named() {
        let c = OptimConfig { decay_epochs: 20, ..config(100, 4.0, LrSchedule::Cosine) };
        let rates = [2, 4, 60, 80, 90, 95, 100].map(|epoch| lr(&c, 8 * epoch, 8));
        // (1 + cos(3 pi / 4)) / 2 after three quarters of the fall.
        let expected = [0.5, 1.0, 1.0, 1.0, 0.5, 0.5 - 0.125f64.sqrt(), 0.0];
        assert!(rates.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{rates:?}");
        // A share of all epochs bounds them, and is all that counts where they are not named.
        for (decay_epochs, decay_share, from) in
            [(20, 0.3, 80), (40, 0.3, 70), (0, 0.3, 70), (0, 1.0, 0)]
        {
            assert_eq!(OptimConfig { decay_epochs, decay_share, ..c }.decay_from(), from);
        }
        // No fall begins before the warm-up has ended.
        let (long, all) =
            (OptimConfig { decay_epochs: 97, ..c }, OptimConfig { decay_epochs: 0, ..c });
        assert!((0..800).all(|step| lr(&long, step, 8) == lr(&all, step, 8)));
        // The other curves have no such epochs.
        for curve in [LrSchedule::IdmmQuirk, LrSchedule::Constant] {
            let all = config(100, 4.0, curve);
            let named = OptimConfig { decay_epochs: 20, ..all };
            assert_eq!(named.decay_from(), 0);
            assert!((0..800).all(|step| lr(&named, step, 8) == lr(&all, step, 8)));
        }
    }

    #[test]
    fn no_run_is_so_short_that_its_rate_stays_zero() {
        for epochs in 1..4 {
            for steps_per_epoch in 1..4 {
                for warmup in [0.0, 0.1, 0.3, 0.5, 1.0, epochs as f64] {
                    let c = config(epochs, warmup, LrSchedule::Cosine);
                    let rates = (0..epochs * steps_per_epoch).map(|s| lr(&c, s, steps_per_epoch));
                    let highest = rates.fold(0.0, f64::max);
                    assert!(highest >= 0.5, "{epochs} {steps_per_epoch} {warmup}: {highest}");
                }
            }
        }
        let c = config(1, 1.0, LrSchedule::Cosine);
        assert_eq!(lr(&c, 0, 1), 1.0, "one step in all");
    }

    /// `0.4 + 0.5 * (0.04 - 0.4) * (1 + cos(pi * i / n))`, DINO's own.
    #[test]
    fn the_weight_decay_rises_where_it_has_an_end() {
        let c = OptimConfig { weight_decay: 0.04, ..config(1, 0.0, LrSchedule::Cosine) };
        assert_eq!([0, 50, 99].map(|step| weight_decay(&c, step, 100)), [0.04; 3]);
        let c = OptimConfig { weight_decay_end: 0.4, ..c };
        for (step, expected) in [(0, 0.04), (25, 0.092_720_779_386_421_42), (50, 0.22), (100, 0.4)]
        {
            assert!((weight_decay(&c, step, 100) - expected).abs() < 1e-12, "{step}");
        }
    }

    #[test]
    fn the_cosine_has_its_closed_form_at_quarters() {
        // MoCo v3: m_t = 1 - (1 - m0) (1 + cos(pi t / E)) / 2, E = 800 epochs of 7 steps.
        let momentum = |step| cosine(0.99, 1.0, step, 5600);
        assert_eq!(momentum(0), 0.99);
        assert!((momentum(2800) - 0.995).abs() < 1e-12);
        let quarter = 1.0 - 0.01 * (1.0 + 0.5f64.sqrt()) / 2.0;
        assert!((momentum(1400) - quarter).abs() < 1e-12);
        assert!((momentum(5600) - 1.0).abs() < 1e-12);
        for step in 0..5600 {
            let published = 1.0 - 0.01 * (1.0 + (PI * step as f64 / 5600.0).cos()) / 2.0;
            assert!((momentum(step) - published).abs() < 1e-12);
            assert!(momentum(step) < momentum(step + 1), "it only rises");
        }
        // DINO's weight decay rises, too.
        let decays = [0, 50, 100].map(|step| cosine(0.04, 0.4, step, 100));
        for (decay, expected) in decays.iter().zip([0.04, 0.22, 0.4]) {
            assert!((decay - expected).abs() < 1e-12);
        }
    }

    /// `numpy.linspace(0.04, 0.07, warm-up)` and then the end, as DINO has it.
    #[test]
    fn the_teacher_temperature_reaches_its_end_in_the_last_warm_up_epoch() {
        let temp = |epoch| teacher_temp(0.04, 0.07, epoch, 4);
        for (epoch, expected) in [0.04, 0.05, 0.06, 0.07, 0.07, 0.07].into_iter().enumerate() {
            assert!((temp(epoch) - expected).abs() < 1e-12, "epoch {epoch}");
        }
        assert_eq!(teacher_temp(0.04, 0.07, 0, 0), 0.07);
        assert_eq!(teacher_temp(0.04, 0.07, 0, 1), 0.04);
        assert_eq!(teacher_temp(0.04, 0.07, 1, 1), 0.07);
    }

    /// Held against the epochs themselves: what can be told of a step, whether images are mixed, and their size.
    #[test]
    fn schedules_are_alike_until_the_first_epoch_that_differs() {
        let quick = || crate::config::Layers::new("quick").and_then(crate::config::Layers::build);
        let mut first = quick().expect("a recipe").config.finetune;
        first.optim.warmup_epochs = 5.0;
        let with = |epochs: usize| {
            let mut config = first.clone();
            config.optim.epochs = epochs;
            config
        };
        let epoch = |config: &crate::config::FinetuneConfig, epoch: usize| {
            let rates: Vec<f64> = (0..4).map(|i| lr(&config.optim, 4 * epoch + i, 4)).collect();
            let is_small = epoch < config.early_of(config.optim.epochs);
            (rates, config.mixed_epochs().contains(&epoch), is_small)
        };
        for (one, other) in
            [(60, 61), (60, 90), (100, 155), (100, 170), (170, 160), (400, 700), (900, 2000)]
        {
            let (one, other) = (with(one), with(other));
            let ends = one.optim.epochs.min(other.optim.epochs);
            let differs = |e: &usize| epoch(&one, *e) != epoch(&other, *e);
            let alike = (0..ends).find(differs).unwrap_or(ends);
            for done in 0..ends {
                let said = one.is_alike_until(done, other.optim.epochs);
                assert_eq!(
                    said,
                    done <= alike,
                    "{} and {}, {done} done",
                    one.optim.epochs,
                    other.optim.epochs
                );
            }
        }
    }
}
