//! The outcome of all layers, and what of it does nothing.

use std::collections::BTreeMap;

use toml::Value;

use super::layers::{Settings, number, unknown};
use super::{RunConfig, Setting, Source};
use crate::error::{Error, Result};

/// The outcome of all layers.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// A valid configuration.
    pub config: RunConfig,
    pub(super) settings: Settings,
}

/// That nothing reads a key.
#[derive(Clone, Debug)]
pub struct Unread {
    /// Why not.
    pub why: String,
    /// Whether files and the environment may set it all the same: they may be meant for other runs,
    /// too.
    pub tolerated: bool,
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
        self.origin(key).is_some_and(|source| !source.is_recipe())
    }

    /// Whether somebody has chosen how many epochs `stage` (`pretrain` or `finetune`) has. A file with a time
    /// budget has proportions, as a recipe with one: the settings that `fewvit config` prints are such a file.
    pub fn chosen_epochs(&self, stage: &str) -> bool {
        let key = format!("{stage}.optim.epochs");
        match self.origin(&key) {
            Some(source @ Source::File(_)) => !self.has_budget(source),
            _ => self.chosen(&key),
        }
    }

    /// Whether `source` sets a time budget.
    fn has_budget(&self, source: &Source) -> bool {
        let budgets = self.settings.get("time_budget").into_iter().flatten();
        let mut own = budgets.filter(|setting| setting.source == *source);
        own.any(|setting| number(&setting.value).is_some_and(|minutes| minutes > 0.0))
    }

    /// The history of the key, or of every key below it if it is a section.
    ///
    /// # Errors
    /// [`Error::Usage`] if there is no such key.
    pub fn history(&self, key: &str) -> Result<Vec<(&str, &[Setting])>> {
        let below = format!("{key}.");
        let of = |k: &str| k == key || k.starts_with(&below);
        let found = self.settings.iter().filter(|(k, _)| of(k));
        let found: Vec<_> = found.map(|(k, all)| (k.as_str(), all.as_slice())).collect();
        match found.is_empty() {
            true => Err(unknown(self.settings.keys().map(String::as_str), key, "")),
            false => Ok(found),
        }
    }

    /// Value of the key, who set it and what that replaced; of every key below if it is a section.
    ///
    /// # Errors
    /// As [`Self::history`].
    pub fn explain(&self, key: &str) -> Result<String> {
        let mut text = String::new();
        for (key, history) in self.history(key)? {
            let mut newest_first = history.iter().rev();
            if let Some(Setting { value, source }) = newest_first.next() {
                text += &format!("{key} = {value}\n  set by {source}\n");
            }
            for Setting { value, source } in newest_first {
                text += &format!("  instead of {value} from {source}\n");
            }
        }
        Ok(text)
    }

    /// Refuses what somebody set and `unread` says that nothing reads; a flag that sets several keys
    /// must be read in one of them. Returns the other keys of such flags.
    ///
    /// A file may repeat what the recipes have: every run writes all settings into its own.
    ///
    /// # Errors
    /// [`Error::Usage`] with a line for each.
    pub fn refuse_unread(&self, unread: &dyn Fn(&str) -> Option<Unread>) -> Result<Vec<String>> {
        let (mut problems, mut idle) = (Vec::new(), Vec::new());
        for (key, history) in &self.settings {
            let (Some(Setting { value, source }), Some(reason)) = (history.last(), unread(key))
            else {
                continue;
            };
            let of_recipe = history.iter().rev().find(|setting| setting.source.is_recipe());
            let repeated = of_recipe.is_some_and(|setting| equal(&setting.value, value));
            let (said, refused) = match source {
                Source::Flag(flag) if self.read_elsewhere(flag, unread) => {
                    idle.push(key.clone());
                    continue;
                }
                Source::Flag("--set") => (format!("--set {key}"), true),
                Source::Flag(flag) => ((*flag).to_owned(), flag.starts_with("--")),
                Source::Env(name) => (name.clone(), !reason.tolerated),
                Source::File(path) => {
                    (format!("{key} in {}", path.display()), !reason.tolerated && !repeated)
                }
                _ => continue,
            };
            let problem = format!("{said} does nothing: {}", reason.why);
            if refused && !problems.contains(&problem) {
                problems.push(problem);
            }
        }
        match problems.is_empty() {
            true => Ok(idle),
            false => Err(Error::Usage(problems.join("\n"))),
        }
    }

    /// Whether a flag sets another key that is read.
    fn read_elsewhere(&self, flag: &str, unread: &dyn Fn(&str) -> Option<Unread>) -> bool {
        // Each --set is one of its own.
        let sets = |history: &[Setting]| match history.last().map(|setting| &setting.source) {
            Some(Source::Flag(other)) => *other == flag && flag != "--set",
            _ => false,
        };
        self.settings.iter().any(|(key, history)| sets(history) && unread(key).is_none())
    }

    pub(super) fn blame(&self, problems: &[(String, String)]) -> String {
        let line = |(key, text): &(String, String)| match self.origin(key) {
            Some(source) => format!("{key} {text} (set by {source})"),
            None => format!("{key} {text}"),
        };
        problems.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// Whether two values are the same, 0 and 0.0 too.
fn equal(a: &Value, b: &Value) -> bool {
    a == b || number(a).is_some_and(|a| number(b) == Some(a))
}
