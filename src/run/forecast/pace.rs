//! How a run keeps its time budget: fine-tuning gets fewer or more epochs than planned where the machine turns out slower
//! or faster than when it was timed.
//!
//! Until its rate falls, a schedule is the same however many epochs follow (Hu et al. 2024 call it
//! warm-up, stable, decay), so that the run ends as if it had been planned with them.

use std::time::Instant;

use super::{Forecast, RESERVE};
use crate::config::FinetuneConfig;
use crate::train::checkpoint::StageName;

/// A time budget that fine-tuning is to keep.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// When the run began.
    pub began: Instant,
    /// The budget in seconds.
    pub budget: f64,
}

/// How fine-tuning has gone in this process.
#[derive(Clone, Copy, Debug)]
pub struct Gone {
    /// Optimiser step that it began with.
    pub from: usize,
    /// Optimiser step that it has come to, the last of an epoch.
    pub to: usize,
    /// Seconds that these took.
    pub seconds: f64,
    /// Seconds since the run began.
    pub spent: f64,
}

/// Share of the planned epochs that a run is lengthened by at least.
const WORTHWHILE: f64 = 0.05;

impl Forecast {
    /// Epochs that fine-tuning shall have instead of those forecast, to end within the budget of `pace` or to use it;
    /// `None` where the forecast ones are right, or can be changed later as well.
    pub fn epochs_in_time(
        &self,
        finetune: &FinetuneConfig,
        pace: &Pace,
        gone: &Gone,
    ) -> Option<usize> {
        let stage = self.stage(StageName::Finetune)?;
        let (planned, done) = (stage.epochs, gone.to / stage.costs.steps_per_epoch);
        let forecast = stage.seconds_until(gone.to) - stage.seconds_until(gone.from);
        let slowness = gone.seconds / forecast;
        let end = |epochs: usize| {
            let stage = stage.resized(epochs);
            let left = stage.seconds() - stage.seconds_until(gone.to) + self.finishing;
            gone.spent + slowness * left
        };
        let is_in_time = |epochs: usize| end(epochs) <= pace.budget * (1.0 - RESERVE);
        let may_have = |epochs: usize| finetune.is_alike_until(done, epochs);
        let may_still = |epochs: usize| finetune.is_alike_until(done + 1, epochs);
        if end(planned) > pace.budget {
            let fewer = || (done + 1..planned).filter(|&epochs| may_have(epochs));
            let best =
                fewer().rev().find(|&epochs| is_in_time(epochs)).or_else(|| fewer().next())?;
            return (!may_still(best)).then_some(best);
        }
        if may_still(planned + 1) {
            return None;
        }
        let more = (planned + 1..=self.longest?).take_while(|&epochs| may_have(epochs));
        let best = more.take_while(|&epochs| is_in_time(epochs)).last()?;
        (best as f64 >= (1.0 + WORTHWHILE) * planned as f64).then_some(best)
    }

    /// The same with `epochs` of fine-tuning.
    pub fn with_epochs(&self, epochs: usize) -> Self {
        let mut forecast = self.clone();
        for stage in forecast.stages.iter_mut().filter(|s| s.stage == StageName::Finetune) {
            *stage = stage.resized(epochs);
        }
        forecast
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{costs, forecast, quick, stage};
    use super::*;

    /// What a schedule of 100 epochs of a second each becomes after `done` of them, each of which took `slowness`
    /// seconds, with 110 seconds for all.
    fn epochs_after(done: usize, slowness: f64, longest: usize) -> Option<usize> {
        let stages = vec![stage(StageName::Finetune, costs(0, false), 100)];
        let forecast = Forecast { stages, longest: Some(longest), ..forecast() };
        let mut finetune = quick().finetune;
        (finetune.optim.epochs, finetune.optim.warmup_epochs) = (100, 5.0);
        assert_eq!(finetune.optim.decay_from(), 70, "of which the settled part ends");
        let pace = Pace { began: Instant::now(), budget: 110.0 };
        let seconds = done as f64 * slowness;
        let gone = Gone { from: 0, to: 10 * done, seconds, spent: seconds };
        forecast.epochs_in_time(&finetune, &pace, &gone)
    }

    #[test]
    fn a_run_in_time_has_the_epochs_that_were_planned() {
        assert!((1..100).all(|done| epochs_after(done, 1.0, 1000).is_none()));
    }

    /// 104.5 seconds are to be used, 7 of them for the checkpoints and the finish: at half the speed 49 epochs end in
    /// time, and the rate of these falls in the last 15.
    #[test]
    fn a_slow_run_is_shortened_when_its_rate_is_to_fall() {
        assert!((1..34).all(|done| epochs_after(done, 2.0, 1000).is_none()));
        assert_eq!(epochs_after(34, 2.0, 1000), Some(49));
    }

    #[test]
    fn a_run_that_cannot_end_in_time_ends_as_soon_as_it_can() {
        assert_eq!(
            epochs_after(33, 4.0, 1000),
            Some(48),
            "the shortest whose rate begins to fall now"
        );
        assert_eq!(epochs_after(71, 4.0, 1000), None, "the fall has begun");
    }

    /// At twice the speed there is room for 205 epochs, but from 156 on the first ones would have been mixed.
    #[test]
    fn a_fast_run_is_lengthened_as_far_as_its_epochs_stay_what_they_were() {
        assert!((1..70).all(|done| epochs_after(done, 0.5, 1000).is_none()));
        assert_eq!(epochs_after(70, 0.5, 1000), Some(155));
        assert_eq!(epochs_after(70, 0.5, 120), Some(120), "the longest schedule");
        assert_eq!(epochs_after(70, 0.5, 104), None, "not worth a change");
    }
}
