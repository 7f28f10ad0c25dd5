//! The program and machine of a run, `env.json`, and what it means when a run goes on elsewhere.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::RunConfig;
use crate::engine::{self, collective, device};

/// The program and machine that a run began on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Version of fewvit.
    pub fewvit: String,
    /// Operating system.
    pub os: String,
    /// Processor architecture.
    pub arch: String,
    /// Instructions that the kernels use.
    pub simd: String,
    /// Precision of the matrix products.
    pub products: String,
    /// The NVIDIA card with its driver and library, for runs on one.
    #[serde(default)]
    pub card: Option<String>,
    /// Worker threads of each process.
    pub threads: usize,
    /// Processes that train together; runs of earlier versions had one.
    #[serde(default = "one")]
    pub ranks: usize,
    /// Where the command was given.
    pub working_directory: Option<PathBuf>,
}

fn one() -> usize {
    1
}

impl Environment {
    /// This program on this machine, with the settings of a run.
    pub fn here(config: &RunConfig) -> Self {
        Self {
            fewvit: env!("CARGO_PKG_VERSION").to_owned(),
            os: std::env::consts::OS.to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            simd: fewvit_kernels::simd_level().to_owned(),
            products: engine::products(config).name().to_owned(),
            card: config.device.parse().ok().and_then(device::card_and_libraries),
            threads: super::threads(config),
            ranks: collective::ranks().size(),
            working_directory: std::env::current_dir().ok(),
        }
    }

    /// Sentences on what changes for a run that began on `self` and goes on on `now`, where it has `cores` cores.
    pub fn differences(&self, now: &Self, cores: usize) -> Vec<String> {
        let mut differences = Vec::new();
        let mut rounding = |change: String| {
            differences.push(format!(
                "the run {change}: its weights will differ by rounding from those of a run that \
                 never stopped"
            ));
        };
        for (what, before, now) in [
            ("fewvit", &self.fewvit, &now.fewvit),
            ("instructions", &self.simd, &now.simd),
            ("products in", &self.products, &now.products),
        ] {
            if before != now {
                rounding(format!("began with {what} {before} and goes on with {now}"));
            }
        }
        match (&self.card, &now.card) {
            (Some(before), Some(now)) if before != now => {
                rounding(format!("began with the card {before} and goes on with {now}"));
            }
            (Some(before), None) => {
                rounding(format!("began with the card {before} and goes on without one"));
            }
            (None, Some(now)) => {
                rounding(format!("began without an NVIDIA card and goes on with {now}"));
            }
            _ => {}
        }
        let workers = |at: &Self| at.ranks * at.threads;
        let [before, after] = [workers(self), workers(now)];
        if before != after {
            rounding(format!(
                "began with {before} workers in all and goes on with {after}, which add gradients \
                 in another order"
            ));
        }
        if now.threads > cores {
            differences.push(format!(
                "the run's {} worker threads share {cores} {} here: slower, with the same weights",
                now.threads,
                if cores == 1 { "core" } else { "cores" }
            ));
        }
        differences
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_machine_lacks_is_said() {
        let before = Environment {
            fewvit: "0.1.0".to_owned(),
            os: "linux".to_owned(),
            arch: "x86_64".to_owned(),
            simd: "avx512".to_owned(),
            products: "bf16".to_owned(),
            card: Some("H100, driver 13000, cuBLASLt 130000".to_owned()),
            threads: 4,
            ranks: 1,
            working_directory: None,
        };
        assert!(before.differences(&before, 4).is_empty());
        let fewer = before.differences(&before, 1);
        assert_eq!(fewer.len(), 1);
        assert!(fewer[0].contains("4 worker threads share 1 core here"), "{fewer:?}");
        let now = Environment {
            simd: "avx2".to_owned(),
            products: "f32".to_owned(),
            card: Some("H200, driver 13000, cuBLASLt 130000".to_owned()),
            ..before.clone()
        };
        let other = before.differences(&now, 8);
        assert_eq!(other.len(), 3);
        assert!(other[0].contains("instructions avx512 and goes on with avx2"), "{other:?}");
        assert!(other[1].contains("products in bf16 and goes on with f32"), "{other:?}");
        assert!(other[2].contains("the card H100, driver 13000"), "{other:?}");
        let without = Environment { card: None, ..before.clone() };
        let elsewhere = before.differences(&without, 8);
        assert!(elsewhere[0].contains("and goes on without one"), "{elsewhere:?}");
        let onto_a_card = without.differences(&before, 8);
        assert!(onto_a_card[0].contains("began without an NVIDIA card"), "{onto_a_card:?}");
        let more = before.differences(&Environment { threads: 8, ..before.clone() }, 8);
        assert!(more[0].contains("began with 4 workers in all and goes on with 8"), "{more:?}");
    }
}
