//! Layers of settings, each over the one before: default recipe, `--recipe`, the recipe of the
//! method, `-c FILE`, the environment (`FEWVIT_*`), `--set`, flags. Every key remembers who set it.
//!
//! Recipes are laid last but lie at the bottom: which method and which model they are for is only
//! known when all the other layers are there.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::recipe::Recipe;
use super::{Resolved, RunConfig, parse_minutes, recipe, validate};
use crate::error::{Error, Result};

/// Who set a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An embedded recipe.
    Recipe(&'static str),
    /// An embedded recipe's table for one family of models.
    Family(&'static str, String),
    /// The warm-up's share of the epochs, of which there were so many where it was set.
    Share(i64),
    /// The run or export that `--init` names.
    Init(PathBuf),
    /// A file given with `-c`.
    File(PathBuf),
    /// An environment variable.
    Env(String),
    /// A flag of the command line, `--set` included.
    Flag(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Recipe(name) => write!(f, "recipe `{name}`"),
            Self::Family(name, family) => write!(f, "recipe `{name}`, [for.{family}]"),
            Self::Share(epochs) => {
                write!(f, "scaling it with the number of epochs ({epochs} before)")
            }
            Self::Init(path) => write!(f, "--init {}", path.display()),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => f.write_str(name),
        }
    }
}

impl Source {
    /// Whether this is no person's choice.
    pub fn is_recipe(&self) -> bool {
        matches!(self, Self::Recipe(_) | Self::Family(..) | Self::Share(_))
    }
}

/// A value and who set it.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// The value.
    pub value: Value,
    /// Who set it.
    pub source: Source,
}

/// Settings by dotted key, the weakest first; the last one counts.
pub(super) type Settings = BTreeMap<String, Vec<Setting>>;

/// Layers in the making; see the module's description.
#[derive(Clone, Debug)]
pub struct Layers {
    recipe: &'static Recipe,
    known: BTreeSet<String>,
    /// What people set, in order.
    own: Vec<(String, Setting)>,
}

/// Variables that are no keys: the kernels' instruction set and the tests' data.
const OTHER_VARIABLES: [&str; 2] = ["FEWVIT_SIMD", "FEWVIT_DATA"];

/// A table whose keys are free; it is set as a whole.
const FREE_TABLE: &str = "about.expected";

/// Settings of the chosen method, which checks itself that they are its own.
const OPTIONS: &str = "pretrain.options.";

const METHOD: &str = "pretrain.method";
/// A time budget may be a text with a unit, as its flag takes it.
const BUDGET: &str = "time_budget";
const MODEL: &str = "model.name";

impl Layers {
    /// The default recipe with the recipe `name` over it.
    ///
    /// # Errors
    /// [`Error::Usage`] if there is no such recipe.
    pub fn new(name: &str) -> Result<Self> {
        let recipe = recipe::get(name)?;
        let keys = |recipe: &Recipe| Ok(flatten(recipe.table()?).into_iter().map(|(key, _)| key));
        let known = keys(&recipe::TABLE[0])?.chain(keys(recipe)?).collect();
        Ok(Self { recipe, known, own: Vec::new() })
    }

    /// The recipes, the weakest first. A method has its own recipe's crops, optimiser and options,
    /// whichever way it was chosen; they are what the other layers change.
    fn recipes(&self) -> Result<Vec<&'static Recipe>> {
        let base = &recipe::TABLE[0];
        let given = (self.recipe.name != base.name).then_some(self.recipe);
        let mut recipes: Vec<_> = std::iter::once(base).chain(given).collect();
        let Some(Setting { value: Value::String(method), source }) = self.last(METHOD) else {
            return Ok(recipes);
        };
        let of_given = given.map(Recipe::method).transpose()?.flatten();
        match of_given {
            Some(other) if other == *method => {}
            Some(other) => {
                return Err(Error::Usage(format!(
                    "the recipe `{}` is one of {other}, and {source} asks for {method}\n  \
                     leave one of the two out",
                    self.recipe.name
                )));
            }
            None => recipes.extend(recipe::TABLE.iter().find(|recipe| recipe.name == method)),
        }
        Ok(recipes)
    }

    /// All settings, those of the recipes first.
    fn resolve(&self) -> Result<Settings> {
        let mut settings = Settings::new();
        let mut lay = |table: Table, source: Source| {
            for (key, value) in flatten(table) {
                let source = source.clone();
                settings.entry(key).or_default().push(Setting { value, source });
            }
        };
        let recipes = self.recipes()?;
        let model = self.model(&recipes)?;
        for recipe in recipes {
            lay(recipe.table()?, Source::Recipe(recipe.name));
            for (family, table) in recipe.families_of(&model)? {
                lay(table, Source::Family(recipe.name, family));
            }
        }
        for (key, setting) in &self.own {
            let (family, key) = of_family(key);
            if family.is_none_or(|family| model.starts_with(family)) {
                settings.entry(key.to_owned()).or_default().push(setting.clone());
            }
        }
        // Whoever names a model wants that one and no smaller one, whoever names a method of pre-training wants
        // it however many labels there are, whoever names a size no other crops, and whoever says when to
        // measure no fewer measurements.
        let follow = [
            (MODEL, "model.small", Value::from("")),
            (METHOD, "pretrain.few_labels", Value::from(1.0)),
            ("finetune.img_size", "finetune.least_full_steps", Value::from(0)),
            ("finetune.img_size", "finetune.large_img_size", Value::from(0)),
            ("pretrain.probe_every", "pretrain.probe_share", Value::from(0.0)),
            ("finetune.eval_every", "finetune.eval_share", Value::from(0.0)),
        ];
        for (key, beside, value) in follow {
            if let (Some(named), None) = (self.last(key), self.last(beside)) {
                let follows = Setting { value, source: named.source.clone() };
                settings.entry(beside.to_owned()).or_default().push(follows);
            }
        }
        Ok(settings)
    }

    /// The model's name that counts in the end.
    fn model(&self, recipes: &[&'static Recipe]) -> Result<String> {
        let own = self.last(MODEL).and_then(|setting| setting.value.as_str());
        let mut name = String::new();
        for recipe in recipes {
            let said = flatten(recipe.table()?).into_iter().find(|(key, _)| key == MODEL);
            name = said.and_then(|(_, value)| Some(value.as_str()?.to_owned())).unwrap_or(name);
        }
        Ok(own.map_or(name, str::to_owned))
    }

    /// What people set of a key last.
    fn last(&self, key: &str) -> Option<&Setting> {
        self.own.iter().rev().find(|(own, _)| own == key).map(|(_, setting)| setting)
    }

    /// Lays a TOML file over.
    ///
    /// # Errors
    /// The file cannot be read, is no TOML or holds an unknown key.
    pub fn file(&mut self, path: &Path) -> Result<()> {
        let text = std::fs::read_to_string(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                Error::Usage(format!("-c {}: there is no such file", path.display()))
            }
            _ => Error::io("read", path, e),
        })?;
        let table = text
            .parse()
            .map_err(|e| Error::Usage(format!("{} is no TOML: {e}", path.display())))?;
        self.table(table, &Source::File(path.to_path_buf()))
    }

    /// Lays the `FEWVIT_*` variables over: `FEWVIT_SEED`, `FEWVIT_FINETUNE__OPTIM__LR`. Others are
    /// passed by.
    ///
    /// # Errors
    /// A `FEWVIT_*` variable that names no key.
    pub fn env(&mut self, variables: impl IntoIterator<Item = (OsString, OsString)>) -> Result<()> {
        let text = |s: OsString| s.to_string_lossy().into_owned();
        let variables: BTreeMap<_, _> =
            variables.into_iter().map(|(name, value)| (text(name), text(value))).collect();
        for (name, value) in variables {
            if let Some(key) = name.strip_prefix("FEWVIT_")
                && !OTHER_VARIABLES.contains(&name.as_str())
            {
                let key = key.to_lowercase().replace("__", ".");
                self.put(&key, parse(&value), Source::Env(name))?;
            }
        }
        Ok(())
    }

    /// Lays one `key=value` over, as in `--set finetune.optim.lr=1e-3`. A value that is no TOML is
    /// a text.
    ///
    /// # Errors
    /// No `=`, or an unknown key.
    pub fn set(&mut self, assignment: &str, source: Source) -> Result<()> {
        let Some((key, value)) = assignment.split_once('=') else {
            return Err(Error::Usage(format!(
                "{source} {assignment}: expected KEY=VALUE, for example finetune.optim.lr=1e-3"
            )));
        };
        self.put(key.trim(), parse(value.trim()), source)
    }

    /// Lays one value over.
    ///
    /// # Errors
    /// [`Error::Usage`] if there is no such key.
    pub fn put(&mut self, key: &str, value: Value, source: Source) -> Result<()> {
        if let Value::Table(table) = &value
            && key != FREE_TABLE
        {
            let inner = flatten_below(key, table.clone());
            return inner.into_iter().try_for_each(|(k, v)| self.put(&k, v, source.clone()));
        }
        let (_, bare) = of_family(key);
        if !self.known.contains(bare) && !bare.starts_with(OPTIONS) {
            let known = self.known.iter().map(String::as_str);
            return Err(unknown(known, key, &format!(" (from {source})")));
        }
        let value = match (bare, &value) {
            (BUDGET, Value::String(text)) => {
                let minutes = parse_minutes(text);
                minutes
                    .map(Value::Float)
                    .map_err(|e| Error::Usage(format!("{key} = {value} (from {source}): {e}")))?
            }
            _ => value,
        };
        self.own.push((key.to_owned(), Setting { value, source }));
        Ok(())
    }

    /// Lays what the weights at `init` were trained with over the recipes, under all that people set.
    ///
    /// # Errors
    /// A key that there is none of.
    pub fn inherit(&mut self, settings: Vec<(String, Value)>, init: &Path) -> Result<()> {
        self.beneath(settings, &Source::Init(init.to_path_buf()))
    }

    /// Lays settings over the recipes, under all that was set so far.
    ///
    /// # Errors
    /// A key that there is none of.
    pub fn beneath(&mut self, settings: Vec<(String, Value)>, source: &Source) -> Result<()> {
        let over = std::mem::take(&mut self.own);
        let mut each = settings.into_iter();
        each.try_for_each(|(key, value)| self.put(&key, value, source.clone()))?;
        self.own.extend(over);
        Ok(())
    }

    /// Takes back what flags set of the keys. Says whether they set any.
    pub fn withdraw(&mut self, keys: &[String]) -> bool {
        let (before, by_flag) =
            (self.own.len(), |setting: &Setting| matches!(setting.source, Source::Flag(_)));
        self.own.retain(|(key, setting)| !(keys.contains(key) && by_flag(setting)));
        self.own.len() < before
    }

    /// The value of a key so far.
    ///
    /// # Errors
    /// A recipe and a method that do not go together.
    pub fn get(&self, key: &str) -> Result<Option<Value>> {
        let mut settings = self.resolve()?;
        Ok(settings.remove(key).and_then(|mut all| all.pop()).map(|setting| setting.value))
    }

    /// Who set a key last, if it was a person.
    pub fn setter(&self, key: &str) -> Option<&Source> {
        self.last(key).map(|setting| &setting.source)
    }

    /// The configuration, checked.
    ///
    /// # Errors
    /// [`Error::Usage`] naming each value of the wrong type or out of range and who set it.
    pub fn build(self) -> Result<Resolved> {
        let mut settings = self.resolve()?;
        ["pretrain", "finetune"].iter().for_each(|stage| share_warmup(&mut settings, stage));
        let winners = settings.iter().filter_map(|(key, all)| Some((key, &all.last()?.value)));
        let config: RunConfig = match nest(winners).try_into() {
            Ok(config) => config,
            Err(e) => {
                return Err(misfit(&settings).unwrap_or_else(|| Error::Usage(e.to_string())));
            }
        };
        let problems = validate::problems(&config);
        let resolved = Resolved { config, settings };
        match problems.is_empty() {
            true => Ok(resolved),
            false => Err(Error::Usage(resolved.blame(&problems))),
        }
    }

    fn table(&mut self, table: Table, source: &Source) -> Result<()> {
        flatten(table)
            .into_iter()
            .try_for_each(|(key, value)| self.put(&key, value, source.clone()))
    }
}

/// The family of `for.FAMILY.KEY`, and the key; other keys are for every family.
fn of_family(key: &str) -> (Option<&str>, &str) {
    let own = key.strip_prefix("for.").and_then(|rest| rest.split_once('.'));
    own.map_or((None, key), |(family, key)| (Some(family), key))
}

/// Where the epochs of a stage were lowered and its warm-up was not touched, the warm-up keeps its
/// share of them. A recipe or file that has both means them together.
fn share_warmup(settings: &mut Settings, stage: &str) {
    let warmup_key = format!("{stage}.optim.warmup_epochs");
    let last = |key: &str| settings.get(key).and_then(|all| all.last());
    let (Some(warmup), Some(epochs)) =
        (last(&warmup_key), settings.get(&format!("{stage}.optim.epochs")))
    else {
        return;
    };
    let meant = epochs.iter().rev().find(|setting| match &warmup.source {
        Source::File(_) => setting.source == warmup.source,
        source => source.is_recipe() && setting.source.is_recipe(),
    });
    let meant = meant.and_then(|setting| setting.value.as_integer());
    let now = epochs.last().and_then(|setting| setting.value.as_integer());
    let (Some(meant), Some(now), Some(long)) = (meant, now, number(&warmup.value)) else { return };
    if (1..meant).contains(&now) && long > 0.0 {
        let value = Value::Float(long * now as f64 / meant as f64);
        let setting = Setting { value, source: Source::Share(meant) };
        settings.entry(warmup_key).or_default().push(setting);
    }
}

/// The first setting that, alone over the default recipe, is of the wrong type.
fn misfit(settings: &Settings) -> Option<Error> {
    settings.iter().find_map(|(key, history)| {
        let (base, wrong) = (history.first()?, history.last()?);
        let alone = settings.iter().filter_map(|(k, all)| {
            Some((k, if k == key { &wrong.value } else { &all.first()?.value }))
        });
        let error = nest(alone).try_into::<RunConfig>().err()?;
        Some(Error::Usage(format!(
            "{key} = {} (from {}): {}",
            wrong.value,
            wrong.source,
            expectation(&base.value, &wrong.value, &error)
        )))
    })
}

/// Renames the source of values that differ between two configurations.
pub fn mark_fitted(sources: &mut BTreeMap<String, String>, chosen: &RunConfig, fitted: &RunConfig) {
    let flat = |config| Table::try_from(config).map(flatten).unwrap_or_default();
    for ((key, before), (_, after)) in flat(chosen).into_iter().zip(flat(fitted)) {
        if before != after {
            sources.insert(key, "fitted by fewvit".to_owned());
        }
    }
}

/// The configuration as TOML that reads back to the same, the same text every time.
///
/// # Errors
/// [`Error::Failed`] if a number has no TOML form (a seed of 2^63 or more).
pub fn to_toml(config: &RunConfig) -> Result<String> {
    toml::to_string(config).map_err(|e| Error::Failed(format!("cannot write config.toml: {e}")))
}

/// A whole number or another one.
pub(super) fn number(value: &Value) -> Option<f64> {
    value.as_float().or(value.as_integer().map(|n| n as f64))
}

/// A value as TOML, or else as a number like `.5`, or else as a text.
fn parse(text: &str) -> Value {
    let number = || text.parse().map(Value::Float).ok();
    let as_toml = text.parse::<Value>().ok();
    as_toml.or_else(number).unwrap_or_else(|| Value::String(text.to_owned()))
}

pub(crate) fn flatten(table: Table) -> Vec<(String, Value)> {
    flatten_below("", table)
}

/// Values by dotted key; lists are values.
fn flatten_below(prefix: &str, table: Table) -> Vec<(String, Value)> {
    let mut flat = Vec::new();
    for (name, value) in table {
        let key = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
        match value {
            Value::Table(inner) if key != FREE_TABLE => flat.extend(flatten_below(&key, inner)),
            value => flat.push((key, value)),
        }
    }
    flat
}

/// The table of which the values are the leaves.
fn nest<'a>(leaves: impl Iterator<Item = (&'a String, &'a Value)>) -> Table {
    fn insert(table: &mut Table, key: &str, value: Value) {
        let Some((section, rest)) = key.split_once('.') else {
            table.insert(key.to_owned(), value);
            return;
        };
        let inner = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
        if let Value::Table(inner) = inner {
            insert(inner, rest, value);
        }
    }
    let mut root = Table::new();
    leaves.for_each(|(key, value)| insert(&mut root, key, value.clone()));
    root
}

/// The error for a key that is not among the `known` ones.
pub(super) fn unknown<'a>(
    known: impl Iterator<Item = &'a str> + Clone,
    key: &str,
    from: &str,
) -> Error {
    let below = format!("{key}.");
    let inner: Vec<_> = known.clone().filter_map(|k| k.strip_prefix(&below)).collect();
    if !inner.is_empty() {
        let keys = inner.join(", ");
        return Error::Usage(format!("{key}{from} is a section, not a value; in it: {keys}"));
    }
    let last = |k: &str| k.rsplit('.').next().map(str::to_owned);
    let likeness = |k: &str| {
        let same_name = if last(k) == last(key) { 1.0 } else { 0.0 };
        same_name + strsim::normalized_damerau_levenshtein(k, key)
    };
    let best = known.clone().map(likeness).fold(0.0, f64::max);
    let near: Vec<_> = known.filter(|k| likeness(k) >= best).collect();
    Error::Usage(format!(
        "there is no key {key}{from}; did you mean {}?\n  all keys: fewvit config",
        near.join(" or ")
    ))
}

/// What was expected in place of a value, judging by the default recipe's.
fn expectation(base: &Value, wrong: &Value, error: &toml::de::Error) -> String {
    let kind = |value: &Value| match value {
        Value::String(_) => "a text",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Array(_) => "a list",
        Value::Datetime(_) => "a date",
        Value::Table(_) => "a section",
    };
    match (base, wrong) {
        (Value::Integer(_), Value::Integer(_)) => "expected 0 or more".to_owned(),
        (Value::Array(_), _) => format!("expected a list like {base}"),
        _ if kind(base) == kind(wrong) => error.message().to_owned(),
        _ => format!("expected {}, found {}", kind(base), kind(wrong)),
    }
}

#[cfg(test)]
mod tests;
