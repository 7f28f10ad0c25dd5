//! Where a run's weights come from: found out when they are read, and kept in `provenance.json`, since
//! files move and change afterwards.

use std::io::Read as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::{Folder, Request, absolute, best, weights_of};
use crate::config::{ClassWeights, FinetuneConfig, HeadFrom, Keep, RunConfig, Sampling};
use crate::data::data_report::DataReport;
use crate::data::digest::hex;
use crate::data::{Split, split};
use crate::error::{Error, Result};
use crate::export::timm;
use crate::files::{DAMAGED, read_json};
use crate::method::{self, Kind};
use crate::report::facts::{Kept, Past, Provenance, StageFacts, WeightsFile, learned_from};
use crate::report::tables::{self, EpochRow};
use crate::train::checkpoint::StageName;

const FILE: &str = "provenance.json";

/// What a run took of a file of weights.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// How many of its tensors, and how many it has.
    pub tensors: (usize, usize),
    /// Whether the classifier was among them.
    pub head: bool,
}

/// Keeps in the run's `folder` what is known of the weights at `path`, of which so much is `taken`.
///
/// # Errors
/// They cannot be read, or the folder cannot be written.
pub fn record(folder: &Folder, path: &Path, taken: Taken) -> Result<()> {
    folder.write_json(FILE, &of(path, taken)?)
}

/// Refuses weights in `file` that are others than the run in `folder` recorded when it began; a run that has
/// recorded none yet takes any.
///
/// # Errors
/// [`Error::Usage`] naming the file; a file cannot be read.
pub fn check_unchanged(folder: &Folder, file: &Path) -> Result<()> {
    let path = folder.join(FILE);
    if !path.is_file() {
        return Ok(());
    }
    let recorded: Provenance = read_json(&path, DAMAGED)?;
    let before = recorded.file().and_then(|weights| weights.sha256.as_ref());
    match before {
        Some(before) if *before != digest(file)? => Err(Error::Usage(format!(
            "{} was changed after the run began, and a run goes on as it is\n  put the weights back, or start \
             a new run with these: fewvit finetune DATA --init {0}",
            file.display()
        ))),
        _ => Ok(()),
    }
}

/// What the run in `folder` started from. A run folder from before this was recorded says no more than
/// the name of the file.
///
/// # Errors
/// What is recorded cannot be used.
pub fn read(folder: &Folder, request: &Request) -> Result<Provenance> {
    let path = folder.join(FILE);
    if path.is_file() {
        return read_json(&path, DAMAGED);
    }
    Ok(match &request.init {
        Some(init) if !request.pretrain => {
            let path = init.display().to_string();
            Provenance::File(WeightsFile { path, sha256: None, taken: None, head: None })
        }
        _ => Provenance::Random,
    })
}

/// What there is to know of the weights at `path`, a file or the folder of a run or an export.
fn of(path: &Path, taken: Taken) -> Result<Provenance> {
    let file = weights_of(path)?;
    let known = |path: &Path| -> Result<WeightsFile> {
        let (path, sha256) = (absolute(path).display().to_string(), Some(digest(&file)?));
        Ok(WeightsFile { path, sha256, taken: Some(taken.tensors), head: Some(taken.head) })
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
            let mut past = past(&run, stages);
            if file == run.checkpoint() {
                // Training goes on from its last epoch, whichever one the run kept.
                past.stages.iter_mut().for_each(|stage| stage.kept = None);
            }
            return Ok(Provenance::Run(known(run.root())?, Box::new(past)));
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
        let (name, images) = data(folder)?;
        let from = read(folder, &request)?;
        let known =
            Known { request: &request, config: &config, history: &history, images, from: &from };
        let mut done = known.stages()?;
        done.retain(|stage| stages.iter().any(|name| name.as_str() == stage.key));
        let images = learned_from(&done, images.train);
        Ok(Past { data: Some((name, images)), stages: done, from })
    };
    known().unwrap_or(Past { data: None, stages: Vec::new(), from: Provenance::Random })
}

/// The name of a run's data set and its images.
fn data(folder: &Folder) -> Result<(String, Images)> {
    let report: DataReport = read_json(&folder.join("data_report.json"), DAMAGED)?;
    let listed = split::read_csv(&folder.join("splits.csv"))?;
    let train = || listed.iter().filter(|listed| listed.split == Split::Train);
    let labelled = train().filter(|listed| listed.class.is_some()).count();
    Ok((report.name, Images { train: train().count(), labelled }))
}

/// How many training images a run has.
#[derive(Clone, Copy, Debug)]
pub struct Images {
    /// All.
    pub train: usize,
    /// Those with a label.
    pub labelled: usize,
}

/// Facts of a run from which the descriptions of its stages follow.
pub struct Known<'a> {
    /// What was asked for.
    pub request: &'a Request,
    /// The settings it ran with.
    pub config: &'a RunConfig,
    /// Its epochs.
    pub history: &'a [EpochRow],
    /// Its images.
    pub images: Images,
    /// What it started from.
    pub from: &'a Provenance,
}

impl Known<'_> {
    /// The stages, in order.
    ///
    /// # Errors
    /// A pre-training method that does not exist.
    pub fn stages(&self) -> Result<Vec<StageFacts>> {
        let pretrain = self.request.pretrain.then(|| self.pretraining()).transpose()?;
        let finetune = self.request.finetune.then(|| self.finetuning());
        Ok(pretrain.into_iter().chain(finetune).collect())
    }

    fn pretraining(&self) -> Result<StageFacts> {
        let pretrain = &self.config.pretrain;
        let method = method::entry(&pretrain.method)?;
        let mut sizes: Vec<_> = pretrain.crops.iter().map(|group| group.img_size).collect();
        sizes.dedup();
        let first_head = pretrain.first_head.from == HeadFrom::Features;
        let stage = self.stage(StageName::Pretrain, method.title, method.kind);
        Ok(StageFacts { sizes, first_head, ..stage })
    }

    fn finetuning(&self) -> StageFacts {
        let finetune = &self.config.finetune;
        let method = &method::supervised::ENTRY;
        let stage = self.stage(StageName::Finetune, method.title, method.kind);
        let early = finetune.early_of(finetune.optim.epochs);
        let early_size = (early > 0).then_some(finetune.early_img_size);
        let size = (stage.epochs > early).then_some(finetune.img_size);
        let made = finetune.first_head.from == HeadFrom::Features;
        StageFacts {
            sizes: early_size.into_iter().chain(size).collect(),
            stopped: best::stopped(finetune, self.history),
            kept: self.kept(),
            first_head: made && (self.request.pretrain || self.from.lacks_head()),
            balance: balance(finetune).into_iter().map(str::to_owned).collect(),
            ..stage
        }
    }

    /// The facts that both kinds of stages have.
    fn stage(&self, name: StageName, method: &str, kind: Kind) -> StageFacts {
        let epochs = self.epochs(name);
        StageFacts {
            key: name.as_str().to_owned(),
            method: method.to_owned(),
            kind: kind.words().to_owned(),
            sizes: Vec::new(),
            images: match kind {
                Kind::SelfSupervised => self.images.train,
                _ => self.images.labelled,
            },
            epochs: epochs.map(|row| row.epoch).max().unwrap_or(0),
            stopped: None,
            kept: None,
            seconds: self.end(name) - self.start(name),
            first_head: false,
            balance: Vec::new(),
            chance: None,
        }
    }

    /// The epoch whose weights fine-tuning ended with, if it took the best one.
    fn kept(&self) -> Option<Kept> {
        let best = best::best(self.history).filter(|_| self.config.finetune.keep == Keep::Best)?;
        Some(Kept { epoch: best.epoch, measured: best.measured })
    }

    fn epochs(&self, stage: StageName) -> impl Iterator<Item = &EpochRow> {
        self.history.iter().filter(move |row| row.stage == stage.as_str())
    }

    /// The second at which a stage began: the clock goes on from stage to stage.
    fn start(&self, stage: StageName) -> f64 {
        match stage {
            StageName::Pretrain => 0.0,
            StageName::Finetune => self.end(StageName::Pretrain).min(self.end(stage)),
        }
    }

    fn end(&self, stage: StageName) -> f64 {
        self.epochs(stage).map(|row| row.seconds).fold(0.0, f64::max)
    }
}

/// What makes rare classes count more in fine-tuning, in words.
fn balance(finetune: &FinetuneConfig) -> Vec<&'static str> {
    let sampling = match finetune.sampling {
        Sampling::Once => None,
        Sampling::Balanced => Some("as many images of each class in an epoch"),
    };
    let weights = match finetune.class_weights {
        ClassWeights::None => None,
        ClassWeights::Balanced => {
            Some("classes weighted in the loss by one over their numbers of images")
        }
        ClassWeights::Effective => {
            Some("classes weighted in the loss by one over their effective numbers of images")
        }
    };
    sampling.into_iter().chain(weights).collect()
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
