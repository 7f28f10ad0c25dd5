//! `fewvit reproduce`: the paper's tables.

use clap::{Args, ValueEnum};

use super::study::GridArgs;
use crate::error::Result;
use crate::study::paper;

/// Examples at the end of the help.
pub const REPRODUCE: &str = "The study files are in recipes/studies/, with the paper's numbers. --data-root takes a folder with the
data sets under their published names (102flowers, CUB_200_2011.tgz, ...); cells whose set is not there are
listed as not run. The same command goes on with what was stopped, and may run many times at once.

Examples:
  fewvit reproduce table2 --cols flowers --data flowers=flowers-102.tar --dry-run
  fewvit reproduce table5 --rows flowers-idmm,cub-idmm --cols flowers --data-root sets/ --scale 0.05";

/// `reproduce`.
#[derive(Args, Clone, Debug)]
pub struct ReproduceArgs {
    /// Which part of the paper
    pub what: What,
    /// Which cells, and how.
    #[command(flatten)]
    pub grid: GridArgs,
}

/// A part of the paper.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Pre-training methods on seven data sets, DeiT-Tiny.
    Table2,
    /// 800 epochs from scratch, then 448 px, five models.
    Table3,
    /// Three seeds of each stage.
    Table4,
    /// Pre-trained on one set, fine-tuned on another.
    Table5,
    /// Pre-trained on ten images of each ImageNet class.
    Table6,
    /// The same before training on all of ImageNet.
    Table7,
    /// Ablation of IDMM.
    Table8,
    /// With and without a projection MLP.
    Table9,
}

pub(super) fn reproduce(args: &ReproduceArgs) -> Result<()> {
    let name = args.what.to_possible_value().map(|value| value.get_name().to_owned());
    super::study::go(&paper::get(&name.unwrap_or_default())?, &args.grid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_of_the_help_is_there() {
        for what in What::value_variants() {
            let name = what.to_possible_value().expect("shown");
            assert_eq!(paper::get(name.get_name()).expect("a study").name, name.get_name());
        }
    }
}
