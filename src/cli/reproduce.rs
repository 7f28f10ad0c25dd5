//! `fewvit reproduce`: the paper's tables, figures and identities.

use clap::{Args, ValueEnum};

use super::study::GridArgs;
use crate::engine::Machine;
use crate::error::{Error, Result};
use crate::study::theory::{self, Trial};
use crate::study::{figures, paper};

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
    /// Features in the plane before and after fine-tuning, from runs of Table 2.
    Fig2,
    /// Parameters against accuracy.
    Fig3,
    /// Accuracy over the epochs of fine-tuning, from runs of Table 2.
    Fig4,
    /// The identities as numbers on random data.
    Theory,
}

pub(super) fn reproduce(args: &ReproduceArgs) -> Result<()> {
    if args.what == What::Theory {
        return theory(args);
    }
    let mut grid = args.grid.clone();
    let name = match args.what {
        What::Fig2 | What::Fig4 => "table2".to_owned(),
        what => what.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned()),
    };
    let study = paper::get(&name)?;
    let (rows, columns) = cells(args.what);
    grid.rows.extend(rows.iter().filter(|_| args.grid.rows.is_empty()).map(|&row| row.to_owned()));
    grid.cols
        .extend(columns.iter().filter(|_| args.grid.cols.is_empty()).map(|&set| set.to_owned()));
    super::study::go(&study, &grid, &|cells, place| {
        match args.what {
            What::Fig2 => {
                let threads = crate::run::threads_or_all(grid.machine.threads.unwrap_or(0));
                let machine =
                    Machine::named(grid.machine.device.as_deref().unwrap_or("cpu"), threads)?;
                figures::features(&study, cells, place, &machine, &|text| eprintln!("{text}"))?;
            }
            What::Fig3 => figures::parameters(&study, cells, place)?,
            What::Fig4 => figures::epochs(&study, cells, place)?,
            _ => return Ok(()),
        }
        eprintln!("figure: {}/fig*.png, .svg and .csv", place.root().display());
        Ok(())
    })
}

/// The cells of a figure's study that the paper shows.
fn cells(what: What) -> (&'static [&'static str], &'static [&'static str]) {
    match what {
        What::Fig2 => (&["idmm", "simclr", "supcon"], &["flowers"]),
        What::Fig4 => (&[], &["flowers"]),
        _ => (&[], &[]),
    }
}

/// Prints the identities.
fn theory(args: &ReproduceArgs) -> Result<()> {
    let json = args.grid.json;
    if let Some(flag) = args.grid.given() {
        return Err(Error::Usage(format!(
            "{flag} does nothing here: the identities are computed on random numbers\n  leave it out"
        )));
    }
    let identities = theory::identities(&Trial::random(0));
    if json {
        return identities.iter().try_for_each(super::print_json);
    }
    super::print("| equation | what | left | right | difference | holds |")?;
    super::print("| --- | --- | ---: | ---: | ---: | --- |")?;
    identities.iter().try_for_each(|i| {
        let holds = if i.holds { "yes" } else { "no" };
        super::print(&format!(
            "| {} | {} | {:.9} | {:.9} | {:.1e} | {holds} |",
            i.equation, i.says, i.left, i.right, i.difference
        ))
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::args::{Cli, Command};

    fn parsed(line: &str) -> ReproduceArgs {
        let cli = Cli::try_parse_from(line.split_whitespace()).expect(line);
        let Command::Reproduce(args) = cli.command else { panic!("{line}") };
        args
    }

    #[test]
    fn every_table_of_the_help_is_there_with_the_cells_of_its_figures() {
        let own = |what: &&What| !matches!(what, What::Theory | What::Fig2 | What::Fig4);
        for what in What::value_variants().iter().filter(own) {
            let name = what.to_possible_value().expect("shown");
            assert_eq!(paper::get(name.get_name()).expect("a study").name, name.get_name());
        }
        let study = paper::get("table2").expect("a study");
        for what in [What::Fig2, What::Fig4] {
            let (rows, columns) = cells(what);
            assert!(rows.iter().all(|name| study.rows.iter().any(|row| row.name == *name)));
            assert!(columns.iter().all(|name| study.set(name).is_some()));
        }
    }

    #[test]
    fn flags_of_runs_are_refused_where_nothing_runs() {
        theory(&parsed("fewvit reproduce theory --json")).expect("numbers");
        for flag in ["--rows idmm", "--jobs 2", "--scale 0.5", "--dry-run", "-o runs/x"] {
            let error = theory(&parsed(&format!("fewvit reproduce theory {flag}")));
            let error = error.expect_err(flag);
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains("does nothing here"), "{error}");
        }
    }
}
