//! The cells of a study and the runs that they need: a training that several cells start from is a
//! run of its own, and two cells that ask for the same run share it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use toml::{Table, Value};

use super::file::{From, Row, Study, Vary, changes_model, tells_runs_apart};
use crate::config::{Layers, OptimConfig, Resolved, RunConfig, Source, flatten, to_toml};
use crate::data::digest::Digest;
use crate::error::{Error, Result};
use crate::run::{self, Stages};

/// What somebody picks of a study.
#[derive(Clone, Debug, Default)]
pub struct Choices {
    /// Names of rows, or what several begin with; all if there are none.
    pub rows: Vec<String>,
    /// Names of data sets to fine-tune on; all if there are none.
    pub columns: Vec<String>,
    /// Number of seeds, from 0; the study's own if it is not said.
    pub seeds: Option<usize>,
    /// Share of the epochs of every stage.
    pub scale: Option<f64>,
    /// Where data sets lie, by name.
    pub data: BTreeMap<String, PathBuf>,
    /// Where weights lie, by name.
    pub weights: BTreeMap<String, PathBuf>,
}

impl Choices {
    /// Refuses what the study has none of.
    fn check(&self, study: &Study) -> Result<()> {
        let rows: Vec<_> = study.rows.iter().map(|row| row.name.as_str()).collect();
        let sets: Vec<_> = study.data.iter().map(|set| set.name.as_str()).collect();
        let columns: Vec<_> = study.columns().into_iter().map(|i| sets[i]).collect();
        let weights = study.rows.iter().filter_map(|row| match &row.from {
            From::Weights(name) => Some(name.as_str()),
            _ => None,
        });
        for name in &self.rows {
            if !study.rows.iter().any(|row| row.is_called(name)) {
                known("row", [name], &rows)?;
            }
        }
        known("column", &self.columns, &columns)?;
        known("data set", self.data.keys(), &sets)?;
        known("weights", self.weights.keys(), &weights.collect::<Vec<_>>())?;
        match self.scale {
            Some(scale) if !(scale > 0.0 && scale <= 1.0) => {
                Err(Error::Usage(format!("--scale is {scale}, must be more than 0 and at most 1")))
            }
            _ => Ok(()),
        }
    }
}

/// Who sets the seeds of the cells.
const SEEDS: &str = "--seeds";
/// Who sets the epochs of shortened schedules.
const SCALE: &str = "--scale";

/// Makes the settings of a run from a recipe's name, without the study's own.
pub type Base<'a> = &'a dyn Fn(&str) -> Result<Layers>;

/// A training in a run folder of its own.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its folder below the study's.
    pub name: String,
    /// The data set's name.
    pub data: String,
    /// Its stages.
    pub stages: Stages,
    /// What it starts from.
    pub start: Start,
    /// All its settings.
    pub config: RunConfig,
    /// Who set each, by key.
    pub sources: BTreeMap<String, String>,
    /// Settings that neither the study nor its recipe has made, and who did: `model.name = "deit_tiny" (--set)`.
    pub beside: Vec<String>,
    /// Two jobs with the same one give the same weights.
    pub fingerprint: String,
}

/// What a job starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// Random weights.
    Random,
    /// What the job at this position ends with.
    Job(usize),
    /// Weights given by name.
    Weights(String),
}

/// One number of the study's table with one seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Position of the row.
    pub row: usize,
    /// Position of the data set.
    pub column: usize,
    /// The seed.
    pub seed: u64,
    /// Position of the job that gives the number.
    pub job: usize,
}

/// The cells of a study and all its jobs.
#[derive(Debug)]
pub struct Grid {
    /// Each stands behind the one that it starts from.
    pub jobs: Vec<Job>,
    /// The cells that were picked, in the order of rows, columns, seeds.
    pub cells: Vec<Cell>,
    /// The study's other cells, in the same order.
    pub others: Vec<Cell>,
    /// Where data sets lie, by name.
    pub data: BTreeMap<String, PathBuf>,
    /// Where weights lie, by name.
    pub weights: BTreeMap<String, PathBuf>,
    /// Share of the epochs of every stage.
    pub scale: f64,
}

impl Grid {
    /// The cells of `study` that `choices` pick.
    ///
    /// # Errors
    /// A row or data set that there is none of, a setting that cannot be used.
    pub fn new(study: &Study, choices: &Choices, base: Base) -> Result<Self> {
        choices.check(study)?;
        let scale = choices.scale.unwrap_or(1.0);
        let seeds = match choices.seeds {
            Some(n) => (0..n as u64).collect(),
            None => study.seeds.clone(),
        };
        let Some(&first) = seeds.first() else {
            return Err(Error::Usage("--seeds is 0; a study needs one at least".to_owned()));
        };
        let given = study.data.iter().filter_map(|set| Some((set.name.clone(), set.path.clone()?)));
        let mut data: BTreeMap<_, _> = given.collect();
        data.extend(choices.data.clone());
        let weights = choices.weights.clone();
        let mut making = Making { study, base, scale, first, weights: &weights, jobs: Vec::new() };
        // All cells, picked or not: names of folders must not depend on what is picked, and a table has what
        // was done before.
        let (mut cells, mut others) = (Vec::new(), Vec::new());
        let (rows, columns) = (&choices.rows, &choices.columns);
        let further = study.seeds.iter().filter(|seed| !seeds.contains(seed));
        let all_seeds: Vec<u64> = seeds.iter().chain(further).copied().collect();
        for (row, spec) in study.rows.iter().enumerate() {
            for column in study.columns() {
                let name = &study.data[column].name;
                let picked = (rows.is_empty() || rows.iter().any(|wanted| spec.is_called(wanted)))
                    && (columns.is_empty() || columns.contains(name));
                for &seed in &all_seeds {
                    let job = making.cell(spec, name, seed)?;
                    let picked = picked && seeds.contains(&seed);
                    let cells = if picked { &mut cells } else { &mut others };
                    cells.push(Cell { row, column, seed, job });
                }
            }
        }
        Ok(Self { jobs: making.jobs, cells, others, data, weights, scale })
    }

    /// Positions of the jobs that `cells` need, in an order in which they can be done. Nothing more is needed
    /// for a job that `is_done`.
    ///
    /// # Errors
    /// Those of `is_done`.
    pub fn needed(
        &self,
        cells: &[Cell],
        is_done: &dyn Fn(usize) -> Result<bool>,
    ) -> Result<Vec<usize>> {
        let mut needed = vec![false; self.jobs.len()];
        for cell in cells {
            let mut next = Some(cell.job);
            while let Some(job) = next {
                needed[job] = true;
                next = if is_done(job)? { None } else { self.parent(job) };
            }
        }
        Ok((0..self.jobs.len()).filter(|&job| needed[job]).collect())
    }

    /// The job that a job starts from.
    pub fn parent(&self, job: usize) -> Option<usize> {
        match self.jobs[job].start {
            Start::Job(parent) => Some(parent),
            Start::Random | Start::Weights(_) => None,
        }
    }

    /// What a job or one before it lacks and nobody gave, in words.
    pub fn missing(&self, job: usize) -> Option<String> {
        let Job { data, start, .. } = &self.jobs[job];
        if !self.data.contains_key(data) {
            return Some(format!("no data given for {data} (--data {data}=PATH)"));
        }
        match start {
            Start::Weights(name) if !self.weights.contains_key(name) => {
                Some(format!("no weights given for {name} (--init {name}=PATH)"))
            }
            Start::Job(parent) => self.missing(*parent),
            Start::Random | Start::Weights(_) => None,
        }
    }
}

/// Refuses `names` that are not among the `known` ones.
fn known<'a>(
    what: &str,
    names: impl IntoIterator<Item = &'a String>,
    known: &[&str],
) -> Result<()> {
    match names.into_iter().find(|name| !known.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => Err(Error::Usage(format!(
            "the study has no {what} `{name}`; there are {}",
            if known.is_empty() { "none".to_owned() } else { known.join(", ") }
        ))),
    }
}

/// A grid in the making.
struct Making<'a> {
    study: &'a Study,
    base: Base<'a>,
    scale: f64,
    /// The seed of stages that do not vary.
    first: u64,
    weights: &'a BTreeMap<String, PathBuf>,
    jobs: Vec<Job>,
}

impl Making<'_> {
    /// The job of a cell, made with all that it starts from.
    fn cell(&mut self, row: &Row, column: &str, seed: u64) -> Result<usize> {
        let of_stage = |stage: Vary| match row.vary == Vary::Both || row.vary == stage {
            true => seed,
            false => self.first,
        };
        let (before, after) = (of_stage(Vary::Pretrain), of_stage(Vary::Finetune));
        let name = match self.study.together {
            true => row.name.clone(),
            false => format!("cells/{}.{column}.seed-{seed}", row.name),
        };
        let finetune = Stages { pretrain: false, finetune: true };
        let source = match &row.from {
            From::Random => return self.job(row, name, column, after, finetune, Start::Random),
            From::Weights(weights) => {
                let start = Start::Weights(weights.clone());
                return self.job(row, name, column, after, finetune, start);
            }
            From::Row(other) => {
                let rows = &self.study.rows;
                let other = rows.iter().find(|row| row.name == *other).cloned();
                let other = other.ok_or_else(|| Error::Failed("a row is not there".to_owned()))?;
                let start = Start::Job(self.cell(&other, column, seed)?);
                return self.job(row, name, column, after, finetune, start);
            }
            From::Own => column,
            From::Data(other) => other,
        };
        if self.study.together {
            let both = Stages { pretrain: true, finetune: true };
            return self.job(row, name, column, seed, both, Start::Random);
        }
        let pretrain = Stages { pretrain: true, finetune: false };
        let earlier = format!("pretrained/{}.{source}.seed-{before}", row.name);
        let start = self.job(row, earlier, source, before, pretrain, Start::Random)?;
        self.job(row, name, column, after, finetune, Start::Job(start))
    }

    /// The job with these stages, a new one or one that is there already.
    fn job(
        &mut self,
        row: &Row,
        name: String,
        data: &str,
        seed: u64,
        stages: Stages,
        start: Start,
    ) -> Result<usize> {
        // Settings are checked as those of a whole training: a study has some for each stage.
        let pretrain = self.study.together || matches!(row.from, From::Own | From::Data(_));
        let whole = Stages { pretrain, finetune: true };
        let layers = self.layers(row, seed, whole).map_err(|e| in_row(e, &row.name))?;
        let resolved = run::settle(layers, whole).map_err(|e| in_row(e, &row.name))?;
        self.check_grid(&resolved).map_err(|e| in_row(e, &row.name))?;
        let beside = self.beside(&resolved)?;
        let (sources, config) = (resolved.sources(), resolved.config);
        if config.time_budget > 0.0 && !self.study.together {
            return Err(in_row(
                Error::Usage(
                    "time_budget would give cells other epochs than their neighbours\n  leave it out, \
                     and give epochs or --scale"
                        .to_owned(),
                ),
                &row.name,
            ));
        }
        if stages.pretrain && config.pretrain.optim.epochs == 0 {
            let why = "pre-training has 0 epochs; say from = \"random\"".to_owned();
            return Err(in_row(Error::Usage(why), &row.name));
        }
        let fingerprint = self.fingerprint(data, stages, &start, &config)?;
        if let Some(same) = self.jobs.iter().position(|job| job.fingerprint == fingerprint) {
            return Ok(same);
        }
        let data = data.to_owned();
        self.jobs.push(Job { name, data, stages, start, config, sources, beside, fingerprint });
        Ok(self.jobs.len() - 1)
    }

    /// Refuses a row whose name says another value of a grid's key than it has.
    fn check_grid(&self, resolved: &Resolved) -> Result<()> {
        let own = [Source::File(self.study.path.clone()), Source::Flag(SCALE)];
        let is_other =
            |key: &&String| resolved.origin(key).is_some_and(|source| !own.contains(source));
        match self.study.grid_keys.iter().find(is_other) {
            None => Ok(()),
            Some(key) => Err(Error::Usage(format!(
                "{key} is a key of [grid], and all its rows would have one value of it, from {}\n  leave it out of \
                 one of the two",
                resolved.origin(key).map_or(String::new(), Source::to_string)
            ))),
        }
    }

    /// What of a job's settings came from beside the study; see [`Job::beside`].
    fn beside(&self, resolved: &Resolved) -> Result<Vec<String>> {
        let own = Source::File(self.study.path.clone());
        let of = |(key, value): (String, Value)| {
            let source = resolved.origin(&key).filter(|source| match source {
                Source::Flag(name) => ![SEEDS, SCALE].contains(name),
                Source::Env(_) => true,
                Source::File(_) => **source != own,
                _ => false,
            })?;
            changes_model(&key).then(|| format!("{key} = {value} ({source})"))
        };
        Ok(settings(&resolved.config)?.into_iter().filter_map(of).collect())
    }

    /// All layers of a row's settings.
    fn layers(&self, row: &Row, seed: u64, stages: Stages) -> Result<Layers> {
        let study = self.study;
        let mut layers = (self.base)(row.recipe.as_ref().unwrap_or(&study.recipe))?;
        let mut settings = Vec::new();
        if !study.together {
            settings.push(("time_budget".to_owned(), Value::Float(0.0)));
        }
        let own = [&study.settings, &row.settings].map(|table| flatten(table.clone()));
        settings.extend(own.into_iter().flatten());
        layers.beneath(settings, &Source::File(study.path.clone()))?;
        if let From::Weights(name) = &row.from
            && let Some(path) = self.weights.get(name)
        {
            layers.inherit(run::inherited(path)?, path)?;
        }
        // The one seed of runs that stand alone is set already, by whoever did.
        if !study.together {
            if let Some(source) = layers.setter("seed").filter(|source| !source.is_recipe()) {
                return Err(Error::Usage(format!(
                    "{source} sets `seed`, and every cell has a seed of its own\n  take --seeds N, or write seeds = \
                     [...] at the top of the study's file"
                )));
            }
            let seed = Value::Integer(i64::try_from(seed).unwrap_or(i64::MAX));
            layers.put("seed", seed, Source::Flag(SEEDS))?;
        }
        if self.scale < 1.0 {
            self.shorten(&mut layers, stages)?;
        }
        Ok(layers)
    }

    /// Gives every stage its share of the epochs and of the warm-up.
    fn shorten(&self, layers: &mut Layers, stages: Stages) -> Result<()> {
        let config = layers.clone().build()?.config;
        let each = [
            ("pretrain", stages.pretrain, &config.pretrain.optim),
            ("finetune", stages.finetune, &config.finetune.optim),
        ];
        for (stage, _, optim) in each.into_iter().filter(|(_, there, _)| *there) {
            let OptimConfig { epochs, warmup_epochs, .. } = optim;
            let fewer = ((*epochs as f64 * self.scale).ceil() as usize).min(*epochs);
            let warmup = match epochs {
                0 => 0.0,
                _ => warmup_epochs * fewer as f64 / *epochs as f64,
            };
            let flag = Source::Flag(SCALE);
            let key = format!("{stage}.optim.epochs");
            layers.put(&key, Value::Integer(fewer as i64), flag.clone())?;
            layers.put(&format!("{stage}.optim.warmup_epochs"), Value::Float(warmup), flag)?;
        }
        Ok(())
    }

    /// A digest of all that the job's weights follow from.
    fn fingerprint(
        &self,
        data: &str,
        stages: Stages,
        start: &Start,
        config: &RunConfig,
    ) -> Result<String> {
        let read = |key: &str| match key.split('.').next() {
            Some("pretrain") => stages.pretrain,
            Some("finetune" | "eval") => stages.finetune,
            _ => tells_runs_apart(key),
        };
        let settings = settings(config)?.into_iter().filter(|(key, _)| read(key));
        let settings: Vec<String> = settings.map(|(key, v)| format!("{key} = {v}")).collect();
        let start = match start {
            Start::Random => "random".to_owned(),
            Start::Job(parent) => self.jobs[*parent].fingerprint.clone(),
            Start::Weights(name) => format!("weights {name}"),
        };
        let text = format!("{data}\n{stages:?}\n{start}\n{}", settings.join("\n"));
        Ok(Digest::of(text.as_bytes()).as_str().to_owned())
    }
}

/// All settings by key, written as in a run's `config.toml`.
pub(super) fn settings(config: &RunConfig) -> Result<Vec<(String, Value)>> {
    let table: std::result::Result<Table, _> = to_toml(config)?.parse();
    table.map(flatten).map_err(|e| Error::Failed(format!("cannot read settings again: {e}")))
}

fn in_row(error: Error, row: &str) -> Error {
    match error {
        Error::Usage(text) => Error::Usage(format!("row `{row}`: {text}")),
        other => other,
    }
}

#[cfg(test)]
mod tests;
