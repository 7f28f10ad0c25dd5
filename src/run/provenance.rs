//! Where a run's weights come from: found out when they are read, and kept in `provenance.json`, since
//! files move and change afterwards.

use std::io::Read as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::{Folder, Request, absolute, weights_of};
use crate::config::{HeadFrom, RunConfig};
use crate::data::digest::hex;
use crate::data::{Split, split};
use crate::error::{Error, Result};
use crate::export::timm;
use crate::method::{self, Kind};
use crate::report::facts::{Past, Provenance, StageFacts, WeightsFile};
use crate::report::tables::{self, EpochRow};
use crate::train::checkpoint::StageName;

const FILE: &str = "provenance.json";

/// Keeps in the run's `folder` what is known of the weights at `path`, of whose tensors so many are
/// `taken`.
///
/// # Errors
/// They cannot be read, or the folder cannot be written.
pub fn record(folder: &Folder, path: &Path, taken: (usize, usize)) -> Result<()> {
    folder.write_json(FILE, &of(path, taken)?)
}

/// What the run in `folder` started from. A run folder from before this was recorded says no more than
/// the name of the file.
///
/// # Errors
/// What is recorded cannot be used.
pub fn read(folder: &Folder, request: &Request) -> Result<Provenance> {
    let path = folder.join(FILE);
    if path.is_file() {
        let text = std::fs::read(&path).map_err(|source| Error::io("read", &path, source))?;
        return serde_json::from_slice(&text)
            .map_err(|e| Error::Failed(format!("{} cannot be used: {e}", path.display())));
    }
    Ok(match &request.init {
        Some(init) if !request.pretrain => {
            let path = init.display().to_string();
            Provenance::File(WeightsFile { path, sha256: None, taken: None })
        }
        _ => Provenance::Random,
    })
}

/// What there is to know of the weights at `path`, a file or the folder of a run or an export.
fn of(path: &Path, taken: (usize, usize)) -> Result<Provenance> {
    let file = weights_of(path)?;
    let known = |path: &Path| -> Result<WeightsFile> {
        let (path, sha256) = (absolute(path).display().to_string(), Some(digest(&file)?));
        Ok(WeightsFile { path, sha256, taken: Some(taken) })
    };
    let Some(inner) = file.parent() else { return Ok(Provenance::File(known(&file)?)) };
    let run = inner.parent().and_then(|root| Folder::open(root).ok());
    if let Some(run) = run {
        let stages: &[StageName] = match &file {
            file if *file == run.pretrained() => &[StageName::Pretrain],
            file if *file == run.checkpoint()
                || *file == run.export().join("model.safetensors") =>
            {
                &[StageName::Pretrain, StageName::Finetune]
            }
            _ => &[],
        };
        if !stages.is_empty() {
            return Ok(Provenance::Run(known(run.root())?, Box::new(past(&run, stages))));
        }
    }
    match timm::describe(inner).is_ok() && file.ends_with("model.safetensors") {
        true => Ok(Provenance::Export(known(inner)?)),
        false => Ok(Provenance::File(known(&file)?)),
    }
}

/// What `stages` of the run in `folder` did, as far as the folder says so.
fn past(folder: &Folder, stages: &[StageName]) -> Past {
    let known = || -> Result<Past> {
        let (request, config) = folder.read_request()?;
        let history = tables::read_history(&folder.join("metrics.jsonl"))?;
        let mut done = self::stages(&request, &config, &history)?;
        done.retain(|stage| stages.iter().any(|name| name.as_str() == stage.key));
        Ok(Past { data: Some(data(folder)?), stages: done, from: read(folder, &request)? })
    };
    known().unwrap_or(Past { data: None, stages: Vec::new(), from: Provenance::Random })
}

/// The name of a run's data set and the number of its training images.
fn data(folder: &Folder) -> Result<(String, usize)> {
    let unusable = |name: &str, e: &dyn std::fmt::Display| {
        Error::Failed(format!("{} cannot be used: {e}", folder.join(name).display()))
    };
    let path = folder.join("data_report.json");
    let text = std::fs::read(&path).map_err(|source| Error::io("read", &path, source))?;
    let report: crate::data::data_report::DataReport =
        serde_json::from_slice(&text).map_err(|e| unusable("data_report.json", &e))?;
    let listed = split::read_csv(&folder.join("splits.csv"))?;
    Ok((report.name, listed.iter().filter(|listed| listed.split == Split::Train).count()))
}

/// The stages of a run, with the epochs in its `history`.
///
/// # Errors
/// A pre-training method that does not exist.
pub fn stages(
    request: &Request,
    config: &RunConfig,
    history: &[EpochRow],
) -> Result<Vec<StageFacts>> {
    // The clock goes on from stage to stage.
    let end = |name: StageName| {
        let rows = history.iter().filter(|row| row.stage == name.as_str());
        rows.map(|row| row.seconds).fold(0.0, f64::max)
    };
    let facts = |name: StageName, method: &str, kind: Kind, sizes: Vec<usize>| {
        let before = match name {
            StageName::Pretrain => 0.0,
            StageName::Finetune => end(StageName::Pretrain).min(end(name)),
        };
        let rows = || history.iter().filter(|row| row.stage == name.as_str());
        StageFacts {
            key: name.as_str().to_owned(),
            method: method.to_owned(),
            kind: kind.words().to_owned(),
            sizes,
            epochs: rows().map(|row| row.epoch).max().unwrap_or(0),
            seconds: end(name) - before,
            first_head: false,
            chance: None,
        }
    };
    let mut stages = Vec::new();
    if request.pretrain {
        let method = method::entry(&config.pretrain.method)?;
        let mut sizes: Vec<_> = config.pretrain.crops.iter().map(|group| group.img_size).collect();
        sizes.dedup();
        let first_head = config.pretrain.first_head.from == HeadFrom::Features;
        let facts = facts(StageName::Pretrain, method.title, method.kind, sizes);
        stages.push(StageFacts { first_head, ..facts });
    }
    if request.finetune {
        let method = &method::supervised::ENTRY;
        let finetune = &config.finetune;
        let mut facts = facts(StageName::Finetune, method.title, method.kind, Vec::new());
        let early = finetune.early_of(finetune.optim.epochs);
        facts.sizes.extend((early > 0).then_some(finetune.early_img_size));
        facts.sizes.extend((facts.epochs > early).then_some(finetune.img_size));
        stages.push(facts);
    }
    Ok(stages)
}

/// SHA-256 of a file, in hexadecimal.
fn digest(path: &Path) -> Result<String> {
    let failed = |source| Error::io("read", path, source);
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    Ok(hex(&hasher.finalize()))
}

#[cfg(test)]
mod tests;
