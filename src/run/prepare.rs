//! Data for a run: opened, split, checked, and decoded once.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::seen::Seen;
use super::{Folder, Request, Ui, ranks, threads};
use crate::config::{Depth, RunConfig};
use crate::data::cache::{ImageStore, Keeping, kept};
use crate::data::check::{self, Checked};
use crate::data::data_report::DataReport;
use crate::data::digest::{Digest, digests};
use crate::data::pass::Pass;
use crate::data::sample::keep_labels;
use crate::data::{Manifest, Rgb8, Sample, Split, decode, named, source, split};
use crate::engine::collective;
use crate::error::{Error, Result};
use crate::words::{SHOWN, bytes, counted, shortened};

/// The images of a run.
pub struct Prepared {
    /// All usable images.
    pub manifest: Manifest,
    /// Content of each; `None` where a run of an earlier version did not write it down.
    pub digests: Vec<Option<Digest>>,
    /// What was found when they were checked.
    pub report: DataReport,
    /// Positions in the manifest of the training images.
    pub train: Vec<usize>,
    /// Positions in the manifest of the images that accuracy is measured on, after the last epoch.
    pub held_out: Vec<usize>,
    /// Those that are measured during training: the validation split; `held_out` where there is none.
    pub watched: Vec<usize>,
    /// Held-out images that the run whose weights this one starts from was trained on.
    pub seen_before: usize,
    /// The training images, decoded.
    pub images: Arc<ImageStore>,
    /// What becomes of 16-bit channels.
    pub depth: Depth,
}

/// Opens and checks the data of a new run.
///
/// # Errors
/// Data that cannot be used, with what to do about it.
pub fn prepare(request: &Request, config: &RunConfig, ui: &dyn Ui) -> Result<Prepared> {
    let mut opened = source::open_noting(&request.data, &config.data, config.seed)?;
    named::check_settings(&opened, &config.data)?;
    let seen_before = match &request.init {
        Some(init) => keep_splits(init, &mut opened.manifest, threads(config), ui)?,
        None => 0,
    };
    if config.data.labels > 0 {
        keep_labels(&mut opened.manifest, config.data.labels, config.seed)?;
    }
    ui.note(&format!("data: {}, {}", opened.manifest.name, opened.describe()));
    let keeping = keeping(config);
    let pass = pass(&opened.manifest, config, &keeping, ui)?;
    let Checked { mut report, digests } = check::check(&opened.manifest, &pass.found);
    report.add_notes(&opened, &digests);
    if request.finetune {
        report.heed(&config.finetune);
    }
    let manifest = check::apply_bad_policy(&opened.manifest, &report, config.data.on_bad_image)?;
    // Those that cannot be read have no digest.
    let usable: Vec<usize> = (0..digests.len()).filter(|&i| digests[i].is_some()).collect();
    let digests = digests.into_iter().filter(Option::is_some).collect();
    for bad in report.bad.iter().take(SHOWN) {
        ui.note(&format!("  skipped: {} {}", bad.file, bad.reason));
    }
    let more = report.bad.len().saturating_sub(SHOWN);
    if more > 0 {
        ui.note(&format!("  skipped: {more} more"));
    }
    for warning in &report.warnings {
        ui.note(&format!("  note: {warning}"));
    }
    let images = |train: &[usize]| {
        let train: Vec<usize> = train.iter().map(|&i| usable[i]).collect();
        pass.store(&opened.manifest, &train, &keeping)
    };
    let data = prepared(request, config, (manifest, digests, report), images)?;
    say_what_streams(&data.images, ui);
    Ok(Prepared { seen_before, ..data })
}

/// How decoded images are kept: by processes that share a machine in files that all of them read.
pub(super) fn keeping(config: &RunConfig) -> Keeping {
    let data = &config.data;
    let in_bytes = |gigabytes: f64| (gigabytes * 1e9) as u64;
    let alone = collective::ranks().local_size() == 1;
    Keeping {
        short_side: data.cache_short_side,
        depth: data.depth,
        ram_bytes: if alone { in_bytes(data.cache_ram_gb) } else { 0 },
        disk_bytes: in_bytes(data.cache_disk_gb),
        folder: cache_folder(&data.cache_folder),
    }
}

/// Where decoded images stay for later runs: the folder of the setting, or the user's for caches.
pub fn cache_folder(setting: &str) -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    match setting {
        "" => variable("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(variable("HOME")?).join(".cache")))
            .map(|folder| folder.join("fewvit")),
        folder => Some(folder.into()),
    }
}

/// Goes through all files, together with the other processes of this machine, and says what stays.
pub(super) fn pass(
    manifest: &Manifest,
    config: &RunConfig,
    keeping: &Keeping,
    ui: &dyn Ui,
) -> Result<Pass> {
    let job = ranks::job()?;
    let wait = || collective::ranks().agree(0).map(drop);
    let progress = |done, total| ui.reading(done, total);
    let share = ranks::share(&job, &wait);
    let pass = Pass::over(manifest, keeping, &share, threads(config), &progress)?;
    if let Some(why) = &pass.not_kept {
        ui.note(&format!(
            "  note: decoded images are not kept for the next run (data.cache_folder says where): {why}"
        ));
    }
    match &pass.kept {
        Some(_) if pass.known => ui.note("  an earlier run had read them"),
        Some(folder) => ui.note(&format!(
            "  decoded images stay in {} for the next run; of all data sets together {} are kept, and \
             at most {} GB (data.cache_disk_gb)",
            folder.display(),
            bytes(keeping.folder.as_deref().map_or(0, kept::total)),
            config.data.cache_disk_gb
        )),
        None => {}
    }
    Ok(pass)
}

/// Says how many images may have no place in memory and on disk.
fn say_what_streams(images: &ImageStore, ui: &dyn Ui) {
    let streamed = images.streamed();
    if streamed > 0 {
        ui.note(&format!(
            "  note: data.cache_ram_gb and data.cache_disk_gb leave too little room for all decoded \
             images, so up to {} of {} are decoded at each use, which may be slower than training",
            streamed,
            counted(images.len(), "training image")
        ));
    }
}

/// Splits drawn anew become those of the run that the weights `init` come from, so that what it
/// trained on is not measured on. Returns the number of held-out images that it trained on.
fn keep_splits(init: &Path, manifest: &mut Manifest, threads: usize, ui: &dyn Ui) -> Result<usize> {
    let Some(run) = Folder::around(init) else { return Ok(0) };
    let samples: Vec<&Sample> = manifest.samples.iter().collect();
    let seen = Seen::read(&run)?.recognise(&samples, &digests(&samples, threads));
    let name = run.root().display();
    let held_out = seen.count(Some(Split::Test)) + seen.count(Some(Split::Val));
    if manifest.split_origin.is_made() && held_out > 0 {
        let known = manifest.samples.iter_mut().zip(&seen.splits);
        known.for_each(|(sample, split)| sample.split = split.unwrap_or(sample.split));
        ui.note(&format!("  note: images that {name} saw stay in the splits they had there"));
    }
    let [measured, _] = self::held_out(manifest);
    let seen_before = measured.iter().filter(|&&i| seen.trained[i]).count();
    if seen_before > 0 {
        ui.note(&format!(
            "  note: {} here were in the training of {name} or of a run before it, so the accuracy \
             may be too good",
            counted(seen_before, "held-out image")
        ));
    }
    Ok(seen_before)
}

/// The data of a run, with the `images` at given positions of the manifest.
pub(super) fn prepared(
    request: &Request,
    config: &RunConfig,
    (manifest, digests, report): (Manifest, Vec<Option<Digest>>, DataReport),
    images: impl FnOnce(&[usize]) -> ImageStore,
) -> Result<Prepared> {
    if request.finetune {
        source::check_labelled(&manifest)?;
    }
    let train = manifest.indices(Split::Train);
    if train.is_empty() {
        return Err(Error::Data(format!(
            "{} has no training images\n  put them into train/, or name their split `train` in the \
             table",
            request.data.display()
        )));
    }
    let images = images(&train);
    let [held_out, watched] = held_out(&manifest);
    Ok(Prepared {
        manifest,
        digests,
        report,
        train,
        held_out,
        watched,
        seen_before: 0,
        images: Arc::new(images),
        depth: config.data.depth,
    })
}

/// What is measured at the end, and what during training: test and validation images where both are
/// there, so that test is measured once; otherwise both times the same.
fn held_out(manifest: &Manifest) -> [Vec<usize>; 2] {
    let [test, val] = [Split::Test, Split::Val].map(|split| manifest.indices(split));
    match (test.is_empty(), val.is_empty()) {
        (false, false) => [test, val],
        (false, true) => [test.clone(), test],
        (true, _) => [val.clone(), val],
    }
}

/// Images measured at the end that have the content of images that were trained on, by the labels of those.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leaks {
    /// One of those has the same label.
    pub same_label: usize,
    /// Those with a label have another one.
    pub other_label: usize,
    /// None of those has a label.
    pub without_label: usize,
}

impl Leaks {
    /// All of them.
    pub fn all(self) -> usize {
        self.same_label + self.other_label + self.without_label
    }
}

impl Prepared {
    /// Writes `splits.csv`, `classes.txt` and `data_report.json`.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write(&self, folder: &Folder) -> Result<()> {
        split::write_csv(&self.manifest, &self.digests, &folder.join("splits.csv"))?;
        let classes: String = self.manifest.classes.iter().map(|c| format!("{c}\n")).collect();
        crate::files::write_atomically(&folder.join("classes.txt"), classes.as_bytes())?;
        folder.write_json("data_report.json", &self.report)
    }

    /// What the split of the samples at `positions` is called; all are of one.
    pub fn split_name(&self, positions: &[usize]) -> &'static str {
        match positions.first().map(|&i| self.manifest.samples[i].split) {
            Some(Split::Val) => "validation",
            Some(Split::Train) => "training",
            Some(Split::Test) | None => "test",
        }
    }

    /// Validation images, where others are measured at the end.
    pub fn val_beside_held_out(&self) -> usize {
        match self.held_out.first().map(|&i| self.manifest.samples[i].split) {
            Some(Split::Val) => 0,
            _ => self.manifest.indices(Split::Val).len(),
        }
    }

    /// Images measured at the end that have the content of an image that was trained on: of a training
    /// image with a label, or of any if the run learned from all of them.
    pub fn leaks(&self, from_all: bool) -> Leaks {
        let label = |i: usize| self.manifest.samples[i].label;
        let mut trained: HashMap<&Digest, Vec<Option<usize>>> = HashMap::new();
        for &i in self.train.iter().filter(|&&i| from_all || label(i).is_some()) {
            if let Some(digest) = &self.digests[i] {
                trained.entry(digest).or_default().push(label(i));
            }
        }
        let mut leaks = Leaks::default();
        for &i in &self.held_out {
            let copies = self.digests[i].as_ref().and_then(|digest| trained.get(digest));
            let Some(copies) = copies else { continue };
            let labels = || copies.iter().flatten();
            let of_kind = match (labels().any(|copy| Some(*copy) == label(i)), labels().next()) {
                (true, _) => &mut leaks.same_label,
                (false, Some(_)) => &mut leaks.other_label,
                (false, None) => &mut leaks.without_label,
            };
            *of_kind += 1;
        }
        leaks
    }

    /// Positions among the training images of those that have a label.
    pub fn labelled(&self) -> Vec<usize> {
        let has_label = |&i: &usize| self.manifest.samples[self.train[i]].label.is_some();
        (0..self.train.len()).filter(has_label).collect()
    }

    /// The training images that have a label, decoded.
    pub fn labelled_images(&self) -> Arc<ImageStore> {
        let labelled = self.labelled();
        match labelled.len() == self.train.len() {
            true => self.images.clone(),
            false => Arc::new(self.images.subset(&labelled)),
        }
    }

    /// Labels of those samples at `positions` in the manifest that have one.
    pub fn labels(&self, positions: &[usize]) -> Vec<usize> {
        positions.iter().filter_map(|&i| self.manifest.samples[i].label).collect()
    }

    /// What to say of the images at `positions` whose files are no longer what they were when the run began; `None`
    /// if there are none.
    pub fn changed_note(&self, positions: &[usize], threads: usize) -> Option<String> {
        let samples: Vec<_> = positions.iter().map(|&i| &self.manifest.samples[i]).collect();
        let before = positions.iter().map(|&i| &self.digests[i]);
        let both = before.zip(digests(&samples, threads));
        let changed = samples
            .iter()
            .zip(both)
            .filter(|(_, (before, now))| before.is_some() && now.is_some() && *before != now);
        let changed: Vec<String> = changed.map(|(sample, _)| sample.id.clone()).collect();
        (!changed.is_empty()).then(|| {
            let images = counted(changed.len(), &format!("{} image", self.split_name(positions)));
            format!(
                "{images} changed while the run trained; what was measured is the files as they are at its end: {}",
                shortened(&changed)
            )
        })
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
    crate::data::listing::bytes(&sample.origin)
        .and_then(|bytes| decode::decode(&bytes, depth, sample.treatment))
        .map_err(|why| Error::Data(format!("{} {why}", sample.id)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Origin, SplitOrigin};

    /// Name, content, label and split of an image.
    type Image<'a> = (&'a str, &'a str, Option<usize>, Split);

    /// A run on images whose files lie in `folder`, if they are read at all.
    fn run_on(images: &[Image], folder: &Path) -> Prepared {
        let sample = |&(id, _, label, split): &Image| Sample {
            id: id.to_owned(),
            origin: Origin::File(folder.join(id)),
            label,
            split,
            treatment: Default::default(),
        };
        let manifest = Manifest {
            name: "data".to_owned(),
            classes: vec!["a".to_owned(), "b".to_owned()],
            samples: images.iter().map(sample).collect(),
            split_origin: SplitOrigin::Given,
        };
        let digests = images.iter().map(|(_, content, ..)| Some(Digest::of(content.as_bytes())));
        let [held_out, watched] = held_out(&manifest);
        Prepared {
            digests: digests.collect(),
            report: check::check(&manifest, &[]).report,
            train: manifest.indices(Split::Train),
            held_out,
            watched,
            seen_before: 0,
            images: Arc::new(ImageStore::of(Vec::new())),
            depth: Depth::Pil,
            manifest,
        }
    }

    #[test]
    fn copies_of_training_images_are_told_apart_by_their_labels() {
        let images = [
            ("one of the same label", "1", Some(0), Split::Train),
            ("one of another label", "2", Some(0), Split::Train),
            ("one of each", "3", Some(0), Split::Train),
            ("the other of each", "3", Some(1), Split::Train),
            ("one without a label", "4", None, Split::Train),
            ("same", "1", Some(0), Split::Test),
            ("other", "2", Some(1), Split::Test),
            ("both", "3", Some(1), Split::Test),
            ("pre-trained on", "4", Some(1), Split::Test),
            ("no copy", "5", Some(1), Split::Test),
        ];
        let data = run_on(&images, Path::new(""));
        let labelled = Leaks { same_label: 2, other_label: 1, without_label: 0 };
        assert_eq!(data.leaks(false), labelled);
        let all = data.leaks(true);
        assert_eq!((all, all.all()), (Leaks { without_label: 1, ..labelled }, 4));
    }

    #[test]
    fn test_images_that_changed_during_a_run_are_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let images = [
            ("1", "one", Some(0), Split::Train),
            ("2", "two", Some(0), Split::Test),
            ("3", "three", Some(1), Split::Test),
        ];
        for (name, content, ..) in images {
            std::fs::write(folder.path().join(name), content).expect("written");
        }
        let data = run_on(&images, folder.path());
        assert_eq!(data.changed_note(&data.held_out, 1), None);
        for name in ["1", "3"] {
            std::fs::write(folder.path().join(name), "other").expect("written");
        }
        let said = "1 test image changed while the run trained; what was measured is the files as they are at its end: 3";
        assert_eq!(data.changed_note(&data.held_out, 1).as_deref(), Some(said));
    }
}
