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

    /// What a run that began in `self` cannot have on a machine that is `now`, with `cores` for it;
    /// each in a sentence.
    pub fn losses(&self, now: &Self, cores: usize) -> Vec<String> {
        let mut losses = Vec::new();
        let mut rounding = |what: &str, before: &str, now: &str| {
            if before != now {
                losses.push(format!(
                    "the run began with {what} {before} and goes on with {now}: its weights will \
                     differ by rounding from those of a run that never stopped"
                ));
            }
        };
        rounding("fewvit", &self.fewvit, &now.fewvit);
        rounding("instructions", &self.simd, &now.simd);
        rounding("products in", &self.products, &now.products);
        let card = |at: &Self| at.card.clone().unwrap_or_else(|| "no card".to_owned());
        rounding("the card", &card(self), &card(now));
        let workers = |at: &Self| (at.ranks * at.threads).to_string();
        rounding("gradients summed over workers, in all", &workers(self), &workers(now));
        if now.threads > cores {
            losses.push(format!(
                "the run's {} worker threads share {cores} {} here: slower, with the same weights",
                now.threads,
                if cores == 1 { "core" } else { "cores" }
            ));
        }
        losses
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
        assert!(before.losses(&before, 4).is_empty());
        let fewer = before.losses(&before, 1);
        assert_eq!(fewer.len(), 1);
        assert!(fewer[0].contains("4 worker threads share 1 core here"), "{fewer:?}");
        let now = Environment {
            simd: "avx2".to_owned(),
            products: "f32".to_owned(),
            card: Some("H200, driver 13000, cuBLASLt 130000".to_owned()),
            ..before.clone()
        };
        let other = before.losses(&now, 8);
        assert_eq!(other.len(), 3);
        assert!(other[0].contains("instructions avx512 and goes on with avx2"), "{other:?}");
        assert!(other[1].contains("products in bf16 and goes on with f32"), "{other:?}");
        assert!(other[2].contains("the card H100, driver 13000"), "{other:?}");
        let elsewhere = before.losses(&Environment { card: None, ..before.clone() }, 8);
        assert!(elsewhere[0].contains("and goes on with no card"), "{elsewhere:?}");
    }
}
