//! Layers of settings, each over the one before: default recipe, `--recipe`, `-c FILE`, the
//! environment (`FEWVIT_*`), `--set`, flags. Every key remembers who set it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::{RunConfig, recipe, validate};
use crate::error::{Error, Result};

/// Who set a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An embedded recipe.
    Recipe(&'static str),
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
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => f.write_str(name),
        }
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
type Settings = BTreeMap<String, Vec<Setting>>;

/// Layers in the making; see the module's description.
#[derive(Clone, Debug)]
pub struct Layers {
    settings: Settings,
}

/// The outcome of all layers.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// A valid configuration.
    pub config: RunConfig,
    settings: Settings,
}

/// Variables that are no keys: the kernels' instruction set and the tests' data.
const OTHER_VARIABLES: [&str; 2] = ["FEWVIT_SIMD", "FEWVIT_DATA"];

/// A table whose keys are free; it is set as a whole.
const FREE_TABLE: &str = "about.expected";

/// Settings of the chosen method, which checks itself that they are its own.
const OPTIONS: &str = "pretrain.options.";

impl Layers {
    /// The default recipe with the recipe `name` over it.
    ///
    /// # Errors
    /// [`Error::Usage`] if there is no such recipe.
    pub fn new(name: &str) -> Result<Self> {
        let base = &recipe::TABLE[0];
        let mut layers = Self { settings: Settings::new() };
        for (key, value) in flatten(base.table()?) {
            let setting = Setting { value, source: Source::Recipe(base.name) };
            layers.settings.insert(key, vec![setting]);
        }
        layers.recipe(recipe::get(name)?)?;
        Ok(layers)
    }

    /// Lays the recipe of the pre-training method `method` over, unless that method is chosen
    /// already: its own crops, optimiser and options are what the flags then change.
    ///
    /// # Errors
    /// An embedded recipe that cannot be read; an unknown method is found out later.
    pub fn method(&mut self, method: &str) -> Result<()> {
        let chosen = self.get("pretrain.method").and_then(Value::as_str) == Some(method);
        match recipe::TABLE.iter().find(|recipe| recipe.name == method) {
            Some(recipe) if !chosen => self.recipe(recipe),
            _ => Ok(()),
        }
    }

    fn recipe(&mut self, recipe: &recipe::Recipe) -> Result<()> {
        if recipe.name == recipe::TABLE[0].name {
            return Ok(());
        }
        self.table(recipe.table()?, &Source::Recipe(recipe.name))
    }

    /// Lays a TOML file over.
    ///
    /// # Errors
    /// The file cannot be read, is no TOML or holds an unknown key.
    pub fn file(&mut self, path: &Path) -> Result<()> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
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
        if key.starts_with(OPTIONS) {
            self.settings.entry(key.to_owned()).or_default();
        }
        match self.settings.get_mut(key) {
            Some(history) => history.push(Setting { value, source }),
            None => return Err(unknown(&self.settings, key, &format!(" (from {source})"))),
        }
        Ok(())
    }

    /// The value of a key so far.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.settings.get(key).and_then(|history| history.last()).map(|setting| &setting.value)
    }

    /// The configuration, checked.
    ///
    /// # Errors
    /// [`Error::Usage`] naming each value of the wrong type or out of range and who set it.
    pub fn build(self) -> Result<Resolved> {
        let winners = self.settings.iter().filter_map(|(key, all)| Some((key, all.last()?)));
        let config: RunConfig = match nest(winners.map(|(key, s)| (key, &s.value))).try_into() {
            Ok(config) => config,
            Err(e) => return Err(self.misfit().unwrap_or_else(|| Error::Usage(e.to_string()))),
        };
        let resolved = Resolved { config, settings: self.settings };
        let problems = validate::problems(&resolved.config);
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

    /// The first setting that, alone over the default recipe, is of the wrong type.
    fn misfit(&self) -> Option<Error> {
        self.settings.iter().find_map(|(key, history)| {
            let (base, wrong) = (history.first()?, history.last()?);
            let alone = self.settings.iter().filter_map(|(k, all)| {
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
}

impl Resolved {
    /// Who set the key; none for an unknown key.
    pub fn origin(&self, key: &str) -> Option<&Source> {
        self.settings.get(key).and_then(|history| history.last()).map(|setting| &setting.source)
    }

    /// Who set each value, in words, by dotted key.
    pub fn sources(&self) -> BTreeMap<String, String> {
        let last = |(key, history): (&String, &Vec<Setting>)| {
            Some((key.clone(), history.last()?.source.to_string()))
        };
        self.settings.iter().filter_map(last).collect()
    }

    /// Whether somebody, not a recipe, has chosen the key's value.
    pub fn chosen(&self, key: &str) -> bool {
        self.origin(key).is_some_and(|source| !matches!(source, Source::Recipe(_)))
    }

    /// Value of the key, who set it and what that replaced; of every key below if it is a section.
    ///
    /// # Errors
    /// [`Error::Usage`] if there is no such key.
    pub fn explain(&self, key: &str) -> Result<String> {
        let below = format!("{key}.");
        let of = |k: &str| k == key || k.starts_with(&below);
        let mut text = String::new();
        for (key, history) in self.settings.iter().filter(|(k, _)| of(k)) {
            let mut newest_first = history.iter().rev();
            if let Some(Setting { value, source }) = newest_first.next() {
                text += &format!("{key} = {value}\n  set by {source}\n");
            }
            for Setting { value, source } in newest_first {
                text += &format!("  instead of {value} from {source}\n");
            }
        }
        match text.is_empty() {
            true => Err(unknown(&self.settings, key, "")),
            false => Ok(text),
        }
    }

    fn blame(&self, problems: &[(String, String)]) -> String {
        let line = |(key, text): &(String, String)| match self.origin(key) {
            Some(source) => format!("{key} {text} (set by {source})"),
            None => format!("{key} {text}"),
        };
        problems.iter().map(line).collect::<Vec<_>>().join("\n")
    }
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

fn unknown(settings: &Settings, key: &str, from: &str) -> Error {
    let below = format!("{key}.");
    let inner: Vec<_> = settings.keys().filter_map(|k| k.strip_prefix(&below)).collect();
    if !inner.is_empty() {
        let keys = inner.join(", ");
        return Error::Usage(format!("{key}{from} is a section, not a value; in it: {keys}"));
    }
    let last = |k: &str| k.rsplit('.').next().map(str::to_owned);
    let likeness = |k: &str| {
        let same_name = if last(k) == last(key) { 1.0 } else { 0.0 };
        same_name + strsim::normalized_damerau_levenshtein(k, key)
    };
    let best = settings.keys().map(|k| likeness(k)).fold(0.0, f64::max);
    let near: Vec<_> =
        settings.keys().filter(|k| likeness(k) >= best).map(String::as_str).collect();
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
