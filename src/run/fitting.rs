//! What a time budget decides: the model, the size of its crops, and the epochs.

use std::time::Instant;

use super::forecast::{self, Forecast};
use super::prepare::Prepared;
use super::{Request, ranks, resolved};
use crate::config::RunConfig;
use crate::error::Result;
use crate::train::checkpoint::StageName;

/// A run whose settings are to be fitted to its time budget.
pub(super) struct Fitting<'a> {
    /// What was asked for.
    pub(super) request: &'a Request,
    /// The images.
    pub(super) data: &'a Prepared,
    /// Stages whose epochs somebody chose, and which keep them.
    pub(super) chosen: &'a [StageName],
    /// When reading the images began.
    pub(super) began: Instant,
}

/// Settings and what they will take.
pub(super) struct Fitted {
    /// The settings before they were resolved.
    pub(super) wanted: RunConfig,
    /// All hyper-parameters.
    pub(super) config: RunConfig,
    /// What they will take.
    pub(super) forecast: Forecast,
}

impl Fitting<'_> {
    /// Times real steps of the settings `wanted`, resolved as `config`, and fits their model, crops and epochs to the
    /// time budget.
    ///
    /// # Errors
    /// A setting that cannot be used, or a budget too short for one epoch of each stage.
    pub(super) fn decide(&self, wanted: &RunConfig, config: RunConfig) -> Result<Fitted> {
        let mut timed = self.time(wanted.clone(), config)?;
        let smaller = ranks::first(timed.forecast.smaller(&timed.config, self.chosen))?;
        if let Some(smaller) = &smaller {
            timed = self.resolve_and_time(forecast::with_smaller(wanted, smaller))?;
        }
        let mut fitted = self.with_other_crops(self.fit(timed)?)?;
        fitted.forecast.decided.smaller = smaller;
        Ok(fitted)
    }

    /// The same run with other crops at the end of fine-tuning, where they pay.
    fn with_other_crops(&self, fitted: Fitted) -> Result<Fitted> {
        let Fitted { wanted, config, forecast } = &fitted;
        if let Some(crops) = forecast.small_crops(config) {
            let small = forecast::with_small_crops(wanted, &crops);
            let mut small = self.fit(self.resolve_and_time(small)?)?;
            small.forecast.decided.small_crops = Some(crops);
            return Ok(small);
        }
        let Some(crops) = forecast.large_crops(config) else { return Ok(fitted) };
        let mut large = self.fit(self.resolve_and_time(forecast::with_large_crops(wanted))?)?;
        // They may take longer than their area says, and leave time for too few epochs.
        let Some(crops) = crops.with_epochs(large.config.finetune.full_epochs()) else {
            return Ok(fitted);
        };
        large.forecast.decided.large_crops = Some(crops);
        Ok(large)
    }

    /// Times real steps of the settings `wanted`.
    fn resolve_and_time(&self, wanted: RunConfig) -> Result<Fitted> {
        let config = resolved(&wanted)?;
        self.time(wanted, config)
    }

    /// Times real steps of the settings `wanted`, resolved as `config`.
    fn time(&self, wanted: RunConfig, config: RunConfig) -> Result<Fitted> {
        let forecast = forecast::measure(self.request, &config, self.data, self.began.elapsed())?;
        Ok(Fitted { wanted, config, forecast })
    }

    /// Scales the epochs to the time budget, on all processes as on the first.
    fn fit(&self, mut timed: Fitted) -> Result<Fitted> {
        timed.config = ranks::first(timed.forecast.fit(&timed.config, self.chosen)?)?;
        Ok(timed)
    }
}
