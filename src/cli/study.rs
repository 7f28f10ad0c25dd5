//! `fewvit study`: a grid of runs that a file tells.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;

use super::flags::{MachineArgs, RunArgs};
use super::progress::Progress;
use super::train::with_hint;
use crate::config::{Layers, Source};
use crate::data::listing::ARCHIVES;
use crate::error::{Error, Result};
use crate::run::Ui;
use crate::study::{self, Choices, Grid, Job, Line, Place, Study, Worker};
use crate::words::{bytes, duration};

/// Examples at the end of the help.
pub const STUDY: &str = "A study file names data sets, rows and seeds; every row is trained on every data set:

name = \"rates\"                        # the folder: runs/rates
recipe = \"quick\"
seeds = [0, 1, 2]
[settings]                            # of every cell, as in -c FILE
finetune.optim.epochs = 30
[grid]                                # every combination is a row
finetune.optim.lr = [1e-3, 5e-4]
[[data]]
name = \"photos\"
path = \"photos/\"                      # seen from the file
[[rows]]                              # if not given: one, pre-trained on its own images
name = \"idmm\"
[[rows]]
name = \"random\"
from = \"random\"                       # or from.data, from.row, from.weights = \"NAME\"

The same command goes on with a study that was stopped, and may run any number of times at once, on one
machine or on many that share the folder. The table is in results.md, .csv and .html.

Examples:
  fewvit study mine.toml --dry-run
  fewvit study mine.toml --output runs/mine --jobs 2";

/// `study`.
#[derive(Args, Clone, Debug)]
pub struct StudyArgs {
    /// The study's TOML file
    pub file: PathBuf,
    /// Which cells, and how.
    #[command(flatten)]
    pub grid: GridArgs,
}

/// Flags of every grid of runs.
#[derive(Args, Clone, Debug)]
pub struct GridArgs {
    /// Rows to do, or what their names begin with, separated by commas [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', help_heading = "Cells")]
    pub rows: Vec<String>,
    /// Data sets to fine-tune on, separated by commas [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', help_heading = "Cells")]
    pub cols: Vec<String>,
    /// Seeds 0 to N - 1 for every cell [default: those of the study]
    #[arg(long, value_name = "N", help_heading = "Cells", value_parser = clap::value_parser!(u16).range(1..))]
    pub seeds: Option<u16>,
    /// Share of the epochs of every stage, such as 0.05; said in every table
    #[arg(long, value_name = "SHARE", help_heading = "Cells")]
    pub scale: Option<f64>,
    /// Where a data set lies; can be repeated
    #[arg(long, value_name = "NAME=PATH", help_heading = "Cells", value_parser = named_path)]
    pub data: Vec<(String, PathBuf)>,
    /// A folder with a folder or an archive for each data set, of its name
    #[arg(long, value_name = "DIR", help_heading = "Cells")]
    pub data_root: Option<PathBuf>,
    /// Weights for rows that start from some; can be repeated
    #[arg(long, value_name = "NAME=PATH", help_heading = "Cells", value_parser = named_path)]
    pub init: Vec<(String, PathBuf)>,
    /// Do every Nth cell from the Kth on, such as 2/8; without it processes share the cells as they come
    #[arg(long, value_name = "K/N", help_heading = "Cells", value_parser = shard)]
    pub shard: Option<(usize, usize)>,
    /// Runs at once in this process, each with its part of the cores
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Cells", value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: u16,
    /// The study's folder; one that was begun is gone on with [default: runs/NAME]
    #[arg(short, long, value_name = "DIR", help_heading = "Run")]
    pub output: Option<PathBuf>,
    /// What computes.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// TOML file of settings, laid over those of the study; can be repeated
    #[arg(short, long, value_name = "FILE", help_heading = "Run")]
    pub config: Vec<PathBuf>,
    /// One setting of every cell, such as finetune.optim.lr=1e-3; can be repeated
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Run")]
    pub set: Vec<String>,
    /// Print results as JSON, one object a line
    #[arg(long, help_heading = "Run")]
    pub json: bool,
    /// Read the data, measure the speed, print cells, hours and disk, and stop
    #[arg(long, help_heading = "Run")]
    pub dry_run: bool,
}

pub(super) fn study(args: &StudyArgs) -> Result<()> {
    go(&Study::read(&args.file)?, &args.grid, &|_, _| Ok(()))
}

/// Draws something from the study's runs.
pub(super) type Draw<'a> = &'a dyn Fn(&Grid, &Place) -> Result<()>;

/// Does the study, or says what it would take; `draw` follows the runs.
pub(super) fn go(study: &Study, args: &GridArgs, draw: Draw) -> Result<()> {
    let grid = args.grid(study)?;
    let default = Path::new("runs").join(&study.name);
    let root = args.output.as_deref().unwrap_or(&default);
    if args.dry_run {
        let place = root.exists().then(|| Place::open(root, study)).transpose()?;
        return forecast(&grid, place.as_ref(), args.json);
    }
    let place = Place::open(root, study)?;
    let interrupted = super::interrupted()?;
    let ui = |job: &Job| progress(job, args.jobs > 1);
    let mut worker = Worker::new(study, &grid, &place, &ui, interrupted);
    worker.jobs = usize::from(args.jobs);
    let own = grid.cells.iter().enumerate().filter(|(i, _)| match args.shard {
        Some((k, n)) => i % n == k - 1,
        None => true,
    });
    let own: Vec<_> = own.map(|(_, cell)| *cell).collect();
    let hint = "the same command goes on with the study";
    worker.work(&own).map_err(|error| with_hint(error, hint))?;
    let results = study::write_tables(study, &grid, &place)?;
    match args.json {
        true => results
            .rows
            .iter()
            .try_for_each(|entry| super::print_json(&entry.json(results.scale)))?,
        false => super::print(&study::markdown(&results))?,
    }
    eprintln!("tables: {}/results.md, results.csv, results.html", place.root().display());
    draw(&grid, &place)?;
    complain(&grid, &place)
}

/// Fails if a run did.
fn complain(grid: &Grid, place: &Place) -> Result<()> {
    let failed = study::failed(grid, place)?;
    let Some((run, reason)) = failed.first() else { return Ok(()) };
    Err(Error::Failed(format!(
        "{} of {} runs failed, the first being {run}: {reason}\n  the same command tries them again",
        failed.len(),
        grid.needed(&grid.cells, &|_| Ok(false))?.len()
    )))
}

/// Prints what the grid's runs will take.
pub(super) fn forecast(grid: &Grid, place: Option<&Place>, json: bool) -> Result<()> {
    let lines = study::forecast(grid, place, &Progress::new())?;
    if json {
        return lines.iter().try_for_each(super::print_json);
    }
    for Line { run, state, seconds, disk, memory } in &lines {
        let takes = match (seconds, disk, memory) {
            (Some(seconds), Some(disk), Some(memory)) => format!(
                ", {}, {} of disk, {} of memory",
                duration(*seconds),
                bytes(*disk),
                bytes(*memory)
            ),
            _ => String::new(),
        };
        super::print(&format!("{run}: {state}{takes}"))?;
    }
    let seconds: f64 = lines.iter().filter_map(|line| line.seconds).sum();
    let disk: u64 = lines.iter().filter_map(|line| line.disk).sum();
    let left = lines.iter().filter(|line| line.seconds.is_some()).count();
    let shortened = match grid.scale < 1.0 {
        true => format!("; schedules shortened to {}", study::percent(grid.scale)),
        false => String::new(),
    };
    super::print(&format!(
        "{} cells from {} runs, {left} of them to do: {} one after the other on this machine, {} of \
         disk{shortened}",
        grid.cells.len(),
        lines.len(),
        duration(seconds),
        bytes(disk)
    ))
}

impl GridArgs {
    /// The cells of `study` that the flags pick.
    fn grid(&self, study: &Study) -> Result<Grid> {
        let mut data = BTreeMap::new();
        if let Some(root) = &self.data_root {
            data = below(root, study)?;
        }
        data.extend(self.data.iter().cloned());
        let choices = Choices {
            rows: self.rows.clone(),
            columns: self.cols.clone(),
            seeds: self.seeds.map(usize::from),
            scale: self.scale,
            data,
            weights: self.init.iter().cloned().collect(),
        };
        let run = RunArgs {
            machine: MachineArgs {
                threads: self.machine.threads.or_else(|| self.share_of_cores()),
                ..self.machine.clone()
            },
            config: self.config.clone(),
            ..RunArgs::default()
        };
        let base = |recipe: &str| -> Result<Layers> {
            let mut layers = run.layers(recipe, std::env::vars_os().collect())?;
            self.set.iter().try_for_each(|set| layers.set(set, Source::Flag(SET)))?;
            Ok(layers)
        };
        Grid::new(study, &choices, &base)
    }

    /// A flag but `--json` that was given.
    pub(super) fn given(&self) -> Option<&'static str> {
        let all = [
            ("--rows", !self.rows.is_empty()),
            ("--cols", !self.cols.is_empty()),
            ("--seeds", self.seeds.is_some()),
            ("--scale", self.scale.is_some()),
            ("--data", !self.data.is_empty()),
            ("--data-root", self.data_root.is_some()),
            ("--init", !self.init.is_empty()),
            ("--shard", self.shard.is_some()),
            ("--jobs", self.jobs != 1),
            ("--output", self.output.is_some()),
            ("--device", self.machine.device.is_some()),
            ("--threads", self.machine.threads.is_some()),
            ("--amp-dtype", self.machine.amp_dtype.is_some()),
            ("--config", !self.config.is_empty()),
            ("--set", !self.set.is_empty()),
            ("--dry-run", self.dry_run),
        ];
        all.into_iter().find_map(|(flag, given)| given.then_some(flag))
    }

    /// Threads of each of several runs at once.
    fn share_of_cores(&self) -> Option<usize> {
        let jobs = usize::from(self.jobs);
        (jobs > 1).then(|| (crate::run::threads_or_all(0) / jobs).max(1))
    }
}

/// Who sets what `--set` says. It may do nothing in some rows, as a setting in a file may.
const SET: &str = "the study's --set";

/// The data sets of `study` in the folder `root`, by name: a folder before an archive.
fn below(root: &Path, study: &Study) -> Result<BTreeMap<String, PathBuf>> {
    let entries = std::fs::read_dir(root).map_err(|source| Error::io("read", root, source))?;
    let mut entries: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    entries.sort_by_key(|path| (!path.is_dir(), path.clone()));
    let stem = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let ending = ARCHIVES.iter().find(|ending| name.ends_with(**ending));
        ending
            .filter(|_| path.is_file())
            .map_or(name.clone(), |e| name[..name.len() - e.len()].to_owned())
    };
    let mut found = BTreeMap::new();
    for set in &study.data {
        let names = std::iter::once(&set.name).chain(&set.names).map(|name| name.to_lowercase());
        let place = |name: String| entries.iter().find(|path| stem(path) == name);
        if let Some(path) = names.into_iter().find_map(place) {
            found.insert(set.name.clone(), path.clone());
        }
    }
    Ok(found)
}

fn named_path(text: &str) -> std::result::Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => {
            Ok((name.to_owned(), PathBuf::from(path)))
        }
        _ => Err("expected NAME=PATH, for example flowers=data/102flowers".to_owned()),
    }
}

fn shard(text: &str) -> std::result::Result<(usize, usize), String> {
    let numbers = text.split_once('/').and_then(|(k, n)| Some((k.parse().ok()?, n.parse().ok()?)));
    match numbers {
        Some((k, n)) if (1..=n).contains(&k) => Ok((k, n)),
        _ => Err("expected K/N with K from 1 to N, for example 2/8".to_owned()),
    }
}

/// Who hears of a job: the terminal, or lines with its name where several speak at once.
fn progress(job: &Job, several: bool) -> Box<dyn Ui> {
    match several {
        false => Box::new(Progress::new()),
        true => Box::new(Progress::lines(Box::new(Prefixed {
            prefix: format!("[{}] ", job.name),
            line: Vec::new(),
        }))),
    }
}

/// Lines on standard error that begin with a name.
struct Prefixed {
    prefix: String,
    line: Vec<u8>,
}

impl Write for Prefixed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        for &byte in bytes {
            self.line.push(byte);
            if byte == b'\n' {
                let whole = [self.prefix.as_bytes(), &self.line].concat();
                self.line.clear();
                std::io::stderr().write_all(&whole)?;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_study_of_the_help_is_one() {
        let text = STUDY.split("\n\n").nth(1).expect("an example");
        let study = Study::parse(text, Path::new("x.toml")).expect("a study");
        let grid = Grid::new(&study, &Choices::default(), &Layers::new).expect("a grid");
        assert_eq!((study.rows.len(), grid.cells.len()), (4, 12));
    }

    #[test]
    fn shards_and_places_are_read() {
        assert_eq!(shard("2/8"), Ok((2, 8)));
        for text in ["0/8", "9/8", "2", "a/b"] {
            assert!(shard(text).is_err(), "{text}");
        }
        assert_eq!(named_path("a=b=c"), Ok(("a".to_owned(), PathBuf::from("b=c"))));
        assert!(named_path("flowers").is_err() && named_path("=x").is_err());
    }

    #[test]
    fn data_sets_are_found_by_name_a_folder_before_an_archive() {
        let root = tempfile::tempdir().expect("a folder");
        for name in ["102flowers.tgz", "CUB_200_2011.tar.gz", "cub.zip", "notes.txt"] {
            std::fs::write(root.path().join(name), "").expect("written");
        }
        for name in ["102flowers", "oxford-iiit-pet.tar"] {
            std::fs::create_dir(root.path().join(name)).expect("made");
        }
        let text = "name = 'x'\n[[data]]\nname = 'flowers'\nnames = ['102flowers']\n\
                    [[data]]\nname = 'cub'\nnames = ['CUB_200_2011']\n\
                    [[data]]\nname = 'pets'\nnames = ['oxford-iiit-pet']\n";
        let study = Study::parse(text, Path::new("x.toml")).expect("a study");
        let found = below(root.path(), &study).expect("a folder");
        let of =
            |name: &str| found.get(name).map(|path| path.file_name().expect("a name").to_owned());
        assert_eq!(of("flowers"), Some("102flowers".into()));
        assert_eq!(of("cub"), Some("cub.zip".into()), "its own name comes first");
        assert_eq!(of("pets"), None, "a folder called .tar is no archive");
    }
}
