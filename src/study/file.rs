//! A study as a TOML file tells it: data sets, rows, seeds, settings, and the numbers of a paper.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};

use crate::error::{Error, Result};

/// A grid of trainings: every row on every data set with every seed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Study {
    /// Names its folder: `runs/NAME`.
    pub name: String,
    /// What it is about, for the head of its tables.
    #[serde(default)]
    pub title: String,
    /// Where the paper's numbers are from.
    #[serde(default)]
    pub source: String,
    /// What a reader of the tables has to know, one sentence an entry.
    #[serde(default)]
    pub notes: Vec<String>,
    /// The recipe of rows that name none.
    #[serde(default = "paper")]
    pub recipe: String,
    /// Seeds of every cell.
    #[serde(default = "one_seed")]
    pub seeds: Vec<u64>,
    /// Settings of every cell, by key.
    #[serde(default)]
    pub settings: Table,
    /// Values to try of some keys: every combination is a row.
    #[serde(default)]
    pub grid: Table,
    /// The data sets.
    #[serde(default)]
    pub data: Vec<DataSet>,
    /// Names of those that rows are fine-tuned on, in order; all if there are none.
    #[serde(default)]
    pub columns: Vec<String>,
    /// The rows, in order.
    #[serde(default)]
    pub rows: Vec<Row>,
    /// Each row is one run folder, `DIR/ROW`, its pre-training in it; for one data set and seed.
    #[serde(skip)]
    pub together: bool,
    /// File of the study, named as the source of its settings.
    #[serde(skip)]
    pub path: PathBuf,
    /// Keys of the grid, whose values the rows are named after.
    #[serde(skip)]
    pub grid_keys: Vec<String>,
}

/// A data set of a study.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSet {
    /// What rows and flags call it.
    pub name: String,
    /// What tables call it; its name if empty.
    #[serde(default)]
    pub title: String,
    /// Where it lies, seen from the study's file.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// Names of its folder or archive below `--data-root`, beside its own.
    #[serde(default)]
    pub names: Vec<String>,
    /// The paper's training images.
    #[serde(default)]
    pub train: Option<usize>,
    /// The paper's test images.
    #[serde(default)]
    pub test: Option<usize>,
    /// The paper's classes.
    #[serde(default)]
    pub classes: Option<usize>,
}

/// A row of a study: what is trained, on whatever data set the column says.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// What flags and folders call it.
    pub name: String,
    /// What tables call it; its name if empty.
    #[serde(default)]
    pub title: String,
    /// Its recipe; the study's if there is none.
    #[serde(default)]
    pub recipe: Option<String>,
    /// What fine-tuning starts from.
    #[serde(default)]
    pub from: From,
    /// Which stages get the seed of the cell.
    #[serde(default)]
    pub vary: Vary,
    /// Its settings, by key.
    #[serde(default)]
    pub settings: Table,
    /// The paper's top-1 in percent, by data set.
    #[serde(default)]
    pub paper: BTreeMap<String, f64>,
    /// The paper's standard deviation in points, by data set.
    #[serde(default)]
    pub paper_std: BTreeMap<String, f64>,
}

impl Row {
    /// Whether a person means it by `name`: its own, or what rows of one kind begin with, as `flowers` of
    /// `flowers-idmm` and `flowers-simclr`, or of `flowers.lr-0.001`, which a grid made of it.
    pub fn is_called(&self, name: &str) -> bool {
        let rest = self.name.strip_prefix(name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '.']))
    }
}

/// What fine-tuning starts from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum From {
    /// Random weights.
    Random,
    /// Weights pre-trained on the very images of the column.
    #[default]
    Own,
    /// Weights pre-trained on another data set.
    Data(String),
    /// The model that another row ends with, of the same column and seed.
    Row(String),
    /// A file or folder of weights, given as `--init NAME=PATH`.
    Weights(String),
}

/// Which stages have the seed of the cell; the others have the study's first one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Vary {
    /// Both.
    #[default]
    Both,
    /// Pre-training.
    Pretrain,
    /// Fine-tuning.
    Finetune,
}

fn paper() -> String {
    "paper".to_owned()
}

fn one_seed() -> Vec<u64> {
    vec![0]
}

impl DataSet {
    /// What tables call it.
    pub fn title(&self) -> &str {
        if self.title.is_empty() { &self.name } else { &self.title }
    }
}

impl Row {
    /// What tables call it.
    pub fn title(&self) -> &str {
        if self.title.is_empty() { &self.name } else { &self.title }
    }
}

impl Study {
    /// The study in the file at `path`; its data sets lie where the file says, seen from its folder.
    ///
    /// # Errors
    /// [`Error::Usage`] if the file is not there, is no study, or contradicts itself.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                Error::Usage(format!("{}: there is no such study file", path.display()))
            }
            _ => Error::io("read", path, e),
        })?;
        let mut study = Self::parse(&text, path)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        for set in &mut study.data {
            set.path = set.path.take().map(|inner| folder.join(inner));
        }
        Ok(study)
    }

    /// The study that `text` tells; errors name `path`.
    ///
    /// # Errors
    /// [`Error::Usage`] if it is no study, or contradicts itself.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let unusable = |why: &dyn std::fmt::Display| {
            Error::Usage(format!("{} is no study: {why}", path.display()))
        };
        let mut study: Self = toml::from_str(text).map_err(|e| unusable(&e))?;
        study.path = path.to_path_buf();
        study.expand();
        study.check().map_err(|why| unusable(&why))?;
        Ok(study)
    }

    /// Puts a row for each combination of the grid in the place of each row.
    fn expand(&mut self) {
        if self.rows.is_empty() {
            self.rows.push(Row {
                name: "run".to_owned(),
                title: String::new(),
                recipe: None,
                from: From::Own,
                vary: Vary::Both,
                settings: Table::new(),
                paper: BTreeMap::new(),
                paper_std: BTreeMap::new(),
            });
        }
        for (key, values) in crate::config::flatten(std::mem::take(&mut self.grid)) {
            let values = match values {
                Value::Array(values) => values,
                one => vec![one],
            };
            let with = |row: &Row, value: &Value| {
                let mut row = row.clone();
                let last = key.rsplit('.').next().unwrap_or(&key);
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let named = |name: &str| format!("{name}.{last}-{}", slug(&text));
                row.title = format!("{}, {key} = {text}", row.title());
                row.name = named(&row.name);
                // A row goes on from the one with the same values.
                if let From::Row(other) = &row.from {
                    row.from = From::Row(named(other));
                }
                row.settings.insert(key.clone(), value.clone());
                row
            };
            let each = |row: &Row| values.iter().map(|v| with(row, v)).collect::<Vec<_>>();
            self.rows = self.rows.iter().flat_map(each).collect();
            self.grid_keys.push(key);
        }
    }

    /// What in it cannot be meant.
    fn check(&self) -> std::result::Result<(), String> {
        self.check_names()?;
        if self.data.is_empty() {
            return Err("it has no data set; add [[data]] with a name".to_owned());
        }
        if let Some(name) = self.columns.iter().find(|name| self.set(name).is_none()) {
            return Err(format!("the column `{name}` is no data set"));
        }
        if self.seeds.is_empty() {
            return Err("it has no seeds".to_owned());
        }
        let again = |(i, seed): &(usize, &u64)| self.seeds[..*i].contains(seed);
        if let Some((_, seed)) = self.seeds.iter().enumerate().find(again) {
            return Err(format!("the seed {seed} is there twice"));
        }
        if self.grid_keys.iter().any(|key| key == "seed") {
            return Err("[grid] has `seed`; write seeds = [...], which are averaged".to_owned());
        }
        if let Some(key) = self.grid_keys.iter().find(|key| !tells_runs_apart(key)) {
            return Err(format!("[grid] has `{key}`, with which no run is another; leave it out"));
        }
        (0..self.rows.len()).try_for_each(|i| self.check_row(i))
    }

    /// Names that cannot be a folder's, or that two have.
    fn check_names(&self) -> std::result::Result<(), String> {
        let rows: Vec<&String> = self.rows.iter().map(|row| &row.name).collect();
        let sets: Vec<&String> = self.data.iter().map(|set| &set.name).collect();
        if let Some(name) = rows.iter().chain(&sets).chain([&&self.name]).find(|n| !is_name(n)) {
            return Err(format!(
                "`{name}` cannot name a folder; take letters, digits, - and _, at most 100"
            ));
        }
        for (what, names) in [("row", rows), ("data set", sets)] {
            let twice = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name));
            if let Some((_, name)) = twice {
                return Err(format!("the {what} `{name}` is there twice"));
            }
        }
        Ok(())
    }

    /// What the row at `i` starts from or compares with that is not there.
    fn check_row(&self, i: usize) -> std::result::Result<(), String> {
        let (row, before) = (&self.rows[i], &self.rows[..i]);
        let wrong = |what: String| Err(format!("the row `{}` {what}", row.name));
        if row.vary == Vary::Pretrain && matches!(row.from, From::Random | From::Weights(_)) {
            return wrong(
                "has vary = \"pretrain\" and no pre-training, so every seed would be the same run"
                    .to_owned(),
            );
        }
        match &row.from {
            From::Data(name) if self.set(name).is_none() => {
                return wrong(format!("starts from `{name}`, no data set"));
            }
            From::Row(name) if !before.iter().any(|other| other.name == *name) => {
                return wrong(format!(
                    "starts from the row `{name}`, which does not stand before it"
                ));
            }
            _ => {}
        }
        let mut numbers = row.paper.keys().chain(row.paper_std.keys());
        match numbers.find(|name| self.set(name).is_none()) {
            Some(name) => wrong(format!("has a number for `{name}`, no data set")),
            None => Ok(()),
        }
    }

    /// Positions of the data sets that are fine-tuned on, in order.
    pub fn columns(&self) -> Vec<usize> {
        let position = |name: &String| self.data.iter().position(|set| set.name == *name);
        match self.columns.is_empty() {
            true => (0..self.data.len()).collect(),
            false => self.columns.iter().filter_map(position).collect(),
        }
    }

    /// The data set called `name`.
    pub fn set(&self, name: &str) -> Option<&DataSet> {
        self.data.iter().find(|set| set.name == name)
    }
}

/// What settings begin with that say where a run is done, what it keeps on disk, and whether it goes on after an
/// image that cannot be read. The processes of a study may differ in them.
const APART: [&str; 6] =
    ["device", "threads", "about.", "checkpoint.", "data.cache_", "data.on_bad_image"];

/// Whether runs that differ in the setting `key` are two runs.
pub(super) fn tells_runs_apart(key: &str) -> bool {
    !APART.iter().any(|start| key.starts_with(start))
}

/// Ends of settings that change a model by rounding alone.
const ROUNDING: [&str; 2] = ["amp_dtype", "micro_batch"];

/// Whether another value of the setting `key` gives another model, beyond rounding.
pub(super) fn changes_model(key: &str) -> bool {
    tells_runs_apart(key) && !ROUNDING.iter().any(|end| key.ends_with(end))
}

/// Longest name of a row or data set: three make a file name.
const LONGEST_NAME: usize = 100;

/// Whether files and folders may have it in their names.
fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=LONGEST_NAME).contains(&name.len()) && !name.starts_with('.') && name.chars().all(plain)
}

/// The text as part of a file name.
fn slug(text: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || ".-_".contains(c) { c } else { '-' };
    text.chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Study> {
        Study::parse(text, Path::new("mine.toml"))
    }

    #[test]
    fn a_grid_makes_a_row_of_every_combination() {
        let text = "name = 'mine'\n[[data]]\nname = 'photos'\n\
                    [grid]\nfinetune.optim.lr = [1e-3, 5e-4]\npretrain.method = ['idmm', 'dino']\n";
        let study = parse(text).expect("a study");
        let names: Vec<_> = study.rows.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "run.lr-0.001.method-idmm",
                "run.lr-0.001.method-dino",
                "run.lr-0.0005.method-idmm",
                "run.lr-0.0005.method-dino"
            ]
        );
        assert_eq!(study.rows[3].title, "run, finetune.optim.lr = 0.0005, pretrain.method = dino");
        assert_eq!(study.rows[3].settings["finetune.optim.lr"].as_float(), Some(5e-4));
        let called = |name: &str| study.rows.iter().filter(|row| row.is_called(name)).count();
        assert_eq!([called("run"), called("run.lr-0.001"), called("ru")], [4, 2, 0]);
    }

    #[test]
    fn a_row_of_a_grid_goes_on_from_the_row_with_the_same_values() {
        let text = "name = 'mine'\n[grid]\nfinetune.optim.lr = [1e-3, 5e-4]\n[[data]]\nname = 'photos'\n\
                    [[rows]]\nname = 'a'\n[[rows]]\nname = 'b'\nfrom.row = 'a'\n";
        let study = parse(text).expect("a study");
        assert_eq!(study.rows[2].name, "b.lr-0.001");
        assert_eq!(study.rows[2].from, From::Row("a.lr-0.001".to_owned()));
        assert_eq!(study.rows[3].from, From::Row("a.lr-0.0005".to_owned()));
    }

    #[test]
    fn mistakes_are_said() {
        let data = "[[data]]\nname = 'photos'\n";
        for (text, expected) in [
            ("", "missing field `name`"),
            ("name = 'a'", "it has no data set"),
            (&format!("name = 'a'\ncolumns = ['z']\n{data}"), "column `z` is no data set"),
            ("name = 'a/b'\n[[data]]\nname = 'photos'", "cannot name a folder"),
            ("name = 'a'\nseed = 3\n[[data]]\nname = 'photos'", "unknown field `seed`"),
            (&format!("name = 'a'\nseeds = []\n{data}"), "no seeds"),
            (&format!("name = 'a'\nseeds = [3, 3]\n{data}"), "the seed 3 is there twice"),
            (&format!("name = 'a'\n{data}{data}"), "`photos` is there twice"),
            (&format!("name = 'a'\n{data}[[rows]]\nname = 'x'\nfrom.row = 'y'"), "stand before"),
            (&format!("name = 'a'\n{data}[[rows]]\nname = 'x'\nfrom.data = 'y'"), "no data set"),
            (&format!("name = 'a'\n{data}[[rows]]\nname = 'x'\npaper.y = 1.0"), "no data set"),
            (&format!("name = 'a'\ngrid.seed = [1, 2]\n{data}"), "write seeds = [...]"),
            (
                &format!("name = 'a'\ngrid.threads = [1, 2]\n{data}"),
                "`threads`, with which no run is another",
            ),
            (
                &format!(
                    "name = 'a'\n{data}[[rows]]\nname = 'x'\nfrom = 'random'\nvary = 'pretrain'"
                ),
                "every seed would be the same run",
            ),
        ] {
            let error = parse(text).expect_err(text);
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(expected), "{error}");
            assert!(error.to_string().contains("mine.toml"), "{error}");
        }
    }

    #[test]
    fn what_rows_start_from_is_told_in_a_word() {
        let rows = "[[rows]]\nname = 'a'\nfrom = 'random'\n[[rows]]\nname = 'b'\n\
                    [[rows]]\nname = 'c'\nfrom.data = 'photos'\nvary = 'finetune'\n\
                    [[rows]]\nname = 'd'\nfrom.row = 'b'\n[[rows]]\nname = 'e'\nfrom.weights = 'w'";
        let study = parse(&format!("name = 'a'\n[[data]]\nname = 'photos'\n{rows}")).expect("one");
        let froms: Vec<_> = study.rows.into_iter().map(|row| row.from).collect();
        let name = |name: &str| name.to_owned();
        let expected = [
            From::Random,
            From::Own,
            From::Data(name("photos")),
            From::Row(name("b")),
            From::Weights(name("w")),
        ];
        assert_eq!(froms, expected);
    }
}
