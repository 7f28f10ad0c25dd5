//! Data for a run: opened, split, checked, and decoded once.

use std::sync::Arc;

use super::{Folder, Request, Ui, threads};
use crate::config::{Depth, RunConfig};
use crate::data::cache::{ImageStore, StoreLimits};
use crate::data::check;
use crate::data::data_report::DataReport;
use crate::data::{Manifest, Rgb8, Sample, Split, SplitOrigin, decode, source, split};
use crate::error::{Error, Result};

/// The images of a run.
pub struct Prepared {
    /// All usable images.
    pub manifest: Manifest,
    /// What was found when they were checked.
    pub report: DataReport,
    /// Positions in the manifest of the training images.
    pub train: Vec<usize>,
    /// Positions in the manifest of the images that accuracy is measured on.
    pub held_out: Vec<usize>,
    /// The training images, decoded.
    pub images: Arc<ImageStore>,
    /// What becomes of 16-bit samples.
    pub depth: Depth,
}

/// Opens and checks the data of a new run.
///
/// # Errors
/// Data that cannot be used, with what to do about it.
pub fn prepare(request: &Request, config: &RunConfig, ui: &dyn Ui) -> Result<Prepared> {
    let opened = source::open_noting(&request.data, &config.data, config.seed)?;
    ui.note(&describe(&opened.manifest));
    let mut report = check::check(&opened.manifest, config.data.depth, threads(config), &|_, _| ());
    report.add_notes(&opened);
    let manifest = check::apply_bad_policy(&opened.manifest, &report, config.data.on_bad_image)?;
    for bad in report.bad.iter().take(10) {
        ui.note(&format!("  skipped: {} {}", bad.file, bad.reason));
    }
    for warning in report.warnings.iter().chain(&opened.warnings) {
        ui.note(&format!("  note: {warning}"));
    }
    decoded(request, config, manifest, report)
}

/// The data of an earlier run, with the very same images and splits.
///
/// # Errors
/// An image is gone or changed its class.
pub fn reopen(request: &Request, config: &RunConfig, folder: &Folder) -> Result<Prepared> {
    let manifest = source::open(&request.data, &config.data, config.seed)?;
    let manifest = split::read_csv(&manifest, &folder.join("splits.csv"))?;
    let path = folder.join("data_report.json");
    let text = std::fs::read(&path).map_err(|source| Error::io("read", &path, source))?;
    let report = serde_json::from_slice(&text)
        .map_err(|e| Error::Failed(format!("{} cannot be used: {e}", path.display())))?;
    decoded(request, config, manifest, report)
}

fn decoded(
    request: &Request,
    config: &RunConfig,
    manifest: Manifest,
    report: DataReport,
) -> Result<Prepared> {
    if request.finetune {
        source::check_labelled(&manifest)?;
    }
    let train = manifest.indices(Split::Train);
    if train.is_empty() {
        return Err(Error::Data(format!("{} has no training images", request.data.display())));
    }
    let limits = StoreLimits {
        short_side: config.data.cache_short_side,
        depth: config.data.depth,
        ram_bytes: (config.data.cache_ram_gb * 1e9) as u64,
        spill: std::env::temp_dir().join(format!("fewvit-{}.cache", std::process::id())),
    };
    let (images, bad) = ImageStore::build(&manifest, &train, &limits, threads(config), &|_, _| ())?;
    if let Some(bad) = bad.first() {
        return Err(Error::Data(format!("{} changed while it was read: {}", bad.id, bad.reason)));
    }
    let held_out = held_out(&manifest);
    let (images, depth) = (Arc::new(images), config.data.depth);
    Ok(Prepared { manifest, report, train, held_out, images, depth })
}

/// The test split, or the validation split where there is no other.
fn held_out(manifest: &Manifest) -> Vec<usize> {
    let test = manifest.indices(Split::Test);
    if test.is_empty() { manifest.indices(Split::Val) } else { test }
}

fn describe(manifest: &Manifest) -> String {
    let count = |split| manifest.indices(split).len();
    let splits: Vec<String> = [(Split::Train, "train"), (Split::Val, "val"), (Split::Test, "test")]
        .iter()
        .map(|&(split, name)| (count(split), name))
        .filter(|(n, _)| *n > 0)
        .map(|(n, name)| format!("{n} {name}"))
        .collect();
    let origin = match manifest.split_origin {
        SplitOrigin::Given => "",
        SplitOrigin::Made => " (split drawn by fewvit, kept in splits.csv)",
        SplitOrigin::Unlabelled => " (no labels)",
    };
    let classes = manifest.classes.len();
    format!("data: {}, {classes} classes, images: {}{origin}", manifest.name, splits.join(" + "))
}

impl Prepared {
    /// Writes `splits.csv`, `classes.txt` and `data_report.json`.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write(&self, folder: &Folder) -> Result<()> {
        split::write_csv(&self.manifest, &folder.join("splits.csv"))?;
        let classes: String = self.manifest.classes.iter().map(|c| format!("{c}\n")).collect();
        crate::files::write_atomically(&folder.join("classes.txt"), classes.as_bytes())?;
        folder.write_json("data_report.json", &self.report)
    }

    /// Labels of the samples at `positions` in the manifest; empty if there are none.
    pub fn labels(&self, positions: &[usize]) -> Vec<usize> {
        positions.iter().filter_map(|&i| self.manifest.samples[i].label).collect()
    }

    /// The image at a position of the manifest, decoded now.
    ///
    /// # Errors
    /// It cannot be read any more.
    pub fn decode(&self, position: usize) -> Result<Rgb8> {
        decode_sample(&self.manifest.samples[position], self.depth)
    }
}

/// The pixels of a sample.
///
/// # Errors
/// It cannot be read or decoded.
pub fn decode_sample(sample: &Sample, depth: Depth) -> Result<Rgb8> {
    let bytes = crate::data::listing::read(&sample.origin)?;
    decode::decode(&bytes, depth).map_err(|why| Error::Data(format!("{} {why}", sample.id)))
}
