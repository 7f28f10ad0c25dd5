//! Several processes that train one model: they must see the same, and the first one decides.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::environment::Environment;
use super::prepare::Prepared;
use crate::config::{RunConfig, flatten, to_toml};
use crate::data::pass::Share;
use crate::engine::collective::{self, Collective};
use crate::error::{Error, Result};

/// Whether all processes have the same version, settings and images.
///
/// # Errors
/// They have not ([`Error::Usage`]), or cannot be asked.
pub fn check(config: &RunConfig, data: &Prepared) -> Result<()> {
    let ranks = collective::ranks();
    if ranks.size() == 1 {
        return Ok(());
    }
    same(&*ranks, "version of fewvit", env!("CARGO_PKG_VERSION").as_bytes())?;
    settings(&*ranks, config)?;
    let samples = data.manifest.samples.iter().enumerate().map(|(i, sample)| {
        let digest = data.digests.get(i);
        format!("{}\t{:?}\t{:?}\t{digest:?}\n", sample.id, sample.label, sample.split)
    });
    same(&*ranks, "images", samples.collect::<String>().as_bytes())
}

/// A name for this job that no other job on a machine has.
///
/// # Errors
/// The first process cannot tell the others.
pub fn job() -> Result<String> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut name = format!("{}-{}", std::process::id(), now.as_nanos()).into_bytes();
    collective::ranks().broadcast(&mut name)?;
    Ok(String::from_utf8_lossy(&name).into_owned())
}

/// This process's share of the reading on its machine.
pub fn share<'a>(job: &'a str, wait: &'a dyn Fn() -> Result<()>) -> Share<'a> {
    let ranks = collective::ranks();
    Share { rank: ranks.local_rank(), ranks: ranks.local_size(), job, wait }
}

/// Names the settings that differ from those of process 0.
fn settings(ranks: &dyn Collective, config: &RunConfig) -> Result<()> {
    let own = to_toml(config)?;
    if ranks.differing(own.as_bytes())?.is_empty() {
        return Ok(());
    }
    let mut first = own.clone().into_bytes();
    ranks.broadcast(&mut first)?;
    let keys = differing_keys(&own, &String::from_utf8_lossy(&first));
    Err(Error::Usage(match &keys[..] {
        [] => "another process has other settings than process 0".to_owned(),
        keys => format!(
            "process {} has other settings than process 0: {}\n  start all with the same options; \
             --threads sets how many workers each has",
            ranks.rank(),
            keys.join(", ")
        ),
    }))
}

/// Dotted keys with the values of both.
fn differing_keys(own: &str, first: &str) -> Vec<String> {
    let table = |text: &str| flatten(text.parse().unwrap_or_default());
    let first: BTreeMap<String, toml::Value> = table(first).into_iter().collect();
    let differs = |(key, value): (String, toml::Value)| {
        let other = first.get(&key).map_or_else(|| "nothing".to_owned(), ToString::to_string);
        (other != value.to_string())
            .then(|| format!("{key} is {value} here and {other} in process 0"))
    };
    table(own).into_iter().filter_map(differs).collect()
}

fn same(ranks: &dyn Collective, what: &str, own: &[u8]) -> Result<()> {
    let others = ranks.differing(own)?;
    if others.is_empty() {
        return Ok(());
    }
    let others: Vec<String> = others.iter().map(ToString::to_string).collect();
    Err(Error::Usage(format!(
        "process {} of {} does not see the same {what} as process 0\n  start all with the same \
         program, data and options, --threads among them",
        others.join(", "),
        ranks.size()
    )))
}

/// What the first process has decided: it follows from the speed that it measured.
///
/// # Errors
/// The first process cannot send its decision to the others.
pub fn first<T: Serialize + DeserializeOwned>(decided: T) -> Result<T> {
    let ranks = collective::ranks();
    if ranks.size() == 1 {
        return Ok(decided);
    }
    let failed = |e: serde_json::Error| {
        Error::Failed(format!(
            "process 0 cannot send its decision to the others: {e}\n  start all processes with the \
             same program"
        ))
    };
    let mut bytes = serde_json::to_vec(&decided).map_err(failed)?;
    ranks.broadcast(&mut bytes)?;
    serde_json::from_slice(&bytes).map_err(failed)
}

/// Worker threads of each of today's processes for a run that began in `before`: as many workers in
/// all, if they can be divided, for the same weights to the bit.
pub fn threads(before: &Environment) -> usize {
    let (workers, ranks) = (before.ranks * before.threads, collective::ranks().size());
    if workers.is_multiple_of(ranks) { workers / ranks } else { super::threads_or_all(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_differ_are_named() {
        let (own, first) = ("seed = 5\n[a]\nb = 1\nc = 2", "seed = 0\n[a]\nb = 1");
        assert_eq!(
            differing_keys(own, first),
            ["seed is 5 here and 0 in process 0", "a.c is 2 here and nothing in process 0"]
        );
        assert!(differing_keys(own, own).is_empty());
    }
}
