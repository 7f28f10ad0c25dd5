//! From a path to a [`Manifest`]: recognises how a data set lies there.
//!
//! In this order: a named set, a table, split folders, class folders, a flat folder. Folders and
//! archives are the same [`Listing`] from here on. What was recognised is said in one
//! sentence, what is left out in notes, and what could mean two things is refused.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::archive::is_archive;
use super::clutter::is_own_folder;
use super::digest::Digest;
use super::file_name::{folded, id_of, visible};
use super::listing::{
    Listing, extension, file_part, is_archive_name, is_for_people, is_image_name,
};
use super::manifest::{Manifest, Sample, Split, SplitOrigin};
use super::split_names::is_container;
use super::table::{self, Table};
use super::{folders, named};
use crate::config::DataConfig;
use crate::error::{Error, Result};
use crate::files;
use crate::words::{counted, shortened};

const LAYOUTS: &str = "expected DATA/CLASS/*.jpg, DATA/{train,test}/CLASS/*.jpg, a folder of \
                       images, a .tar, .tar.gz or .zip of those, or a .csv, .tsv, .json or .jsonl table";
const PACKED: [&str; 7] = ["bz2", "tbz2", "xz", "txz", "zst", "7z", "rar"];
const SPREADSHEETS: [&str; 5] = ["xlsx", "xls", "ods", "numbers", "parquet"];

/// A data set and what reading it came across.
#[derive(Debug)]
pub struct Opened {
    /// The data set.
    pub manifest: Manifest,
    /// What was recognised, such as `train/test folders, 10 classes, 300 + 100 images`.
    pub layout: String,
    /// Files that are no images, by lower-case extension.
    pub ignored: BTreeMap<String, usize>,
    /// What a person should know, in plain words; each note once.
    pub warnings: Vec<String>,
    /// What a table of fewvit says was in the files of its images, by id.
    pub digests: HashMap<String, Digest>,
}

/// The data set at `path`; [`open_noting`] without the notes.
///
/// # Errors
/// As [`open_noting`].
pub fn open(path: &Path, config: &DataConfig, seed: u64) -> Result<Manifest> {
    Ok(open_noting(path, config, seed)?.manifest)
}

/// The data set at `path`, split with `seed` if it brings no split of its own.
///
/// # Errors
/// [`Error::Data`] if the path does not exist or cannot be read, if no images are found there, or
/// if what describes them is inconsistent or could mean two things.
pub fn open_noting(path: &Path, config: &DataConfig, seed: u64) -> Result<Opened> {
    let (mut listing, mut opened);
    match located(path, 0)? {
        Located::Table(table, images) => {
            listing = images;
            let words = format!("table {}", table.name);
            opened = table::open(&listing, vec![(table, None)], words, config, seed)?;
        }
        Located::Images(images) => {
            listing = images;
            let ignored = listing.ignored();
            opened = recognise(&mut listing, config, seed).map_err(|e| match e {
                Error::Data(what) => Error::Data(format!("{}: {what}", path.display())),
                other => other,
            })?;
            opened.ignored = ignored;
        }
    }
    opened.warnings.extend(listing.unpacked_note());
    opened.warnings.extend(listing.cut_note());
    opened.warnings.extend(listing.left_out.notes());
    opened.warnings.extend(oddly_named(&listing));
    opened.warnings.extend(look_alikes(&opened.manifest));
    Ok(opened)
}

/// What lies at a path.
enum Located {
    /// Files that are to be recognised.
    Images(Listing),
    /// A table, and where its paths count from.
    Table(Table, Listing),
}

/// Tables of runs on tables of runs ... that are followed to the images.
const MOST_HOPS: usize = 8;

fn located(path: &Path, hops: usize) -> Result<Located> {
    let fail = |what: &str| Err(Error::Data(format!("{} {what}", path.display())));
    let Ok(kind) = std::fs::metadata(path) else {
        return match path.is_symlink() {
            true => fail("is a link to nowhere"),
            false => fail("does not exist\n  check the spelling of the path"),
        };
    };
    let name = path.file_name().map_or(String::new(), |name| id_of(Path::new(name)));
    let extension = extension(&name);
    if kind.is_dir() {
        if is_own_folder(|name| path.join(name).exists()) {
            return fail(
                "is a folder that fewvit wrote, not a data set; give the images (a run's run.json \
                 names them)",
            );
        }
        let mut listing = Listing::of_folder(path)?;
        listing.enter_only_folder(false);
        Ok(Located::Images(listing))
    } else if !kind.is_file() {
        fail("is no file, but a pipe, socket or device")
    } else if table::is_table_name(&name) {
        let table = table::read_file(path)?;
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let images = match data_of_run(parent).filter(|_| name == "splits.csv") {
            Some(_) if hops == MOST_HOPS => return fail("leads to itself; give the images"),
            Some(data) => match located(&data, hops + 1)? {
                Located::Images(listing) | Located::Table(_, listing) => listing,
            },
            None => Listing::unwalked(parent),
        };
        Ok(Located::Table(table, images))
    } else if PACKED.contains(&extension.as_str()) {
        fail(
            "is packed; unpack it and give the folder (.tar, .tar.gz and .zip are read as they are)",
        )
    } else if SPREADSHEETS.contains(&extension.as_str()) {
        fail("is a table in a format that fewvit does not read; save it as .csv")
    } else if is_image_name(&name) {
        fail("is a single image; give the folder of images")
    } else if is_archive_name(&name) || is_archive(path) {
        let mut listing = Listing::of_archive(path)?;
        listing.enter_only_folder(true);
        Ok(Located::Images(listing))
    } else {
        fail(&format!("is nothing that can be read as a data set; {LAYOUTS}"))
    }
}

/// Where the images of the run in this folder lie, if it holds one.
fn data_of_run(folder: &Path) -> Option<PathBuf> {
    let text = std::fs::read(folder.join(files::RUN)).ok()?;
    let run: serde_json::Value = serde_json::from_slice(&text).ok()?;
    Some(run.get("data")?.as_str()?.into())
}

/// Whether classes can be learned from this: labels, at least two classes, each with training
/// images, and something held out to measure on.
///
/// # Errors
/// [`Error::Data`] saying what is missing.
pub fn check_labelled(manifest: &Manifest) -> Result<()> {
    let fail = |what: String| Err(Error::Data(format!("{}: {what}", manifest.name)));
    if !manifest.is_labelled() {
        return fail("the images have no labels; they serve pre-training only".into());
    }
    if let [only] = manifest.classes.as_slice() {
        return fail(format!("`{only}` is the only class; training a classifier needs two"));
    }
    let mut counts = vec![0; manifest.classes.len()];
    for sample in manifest.samples.iter().filter(|s| s.split == Split::Train) {
        sample.label.into_iter().for_each(|label| counts[label] += 1);
    }
    let empty = manifest.classes.iter().zip(&counts).filter(|(_, n)| **n == 0);
    let empty: Vec<String> = empty.map(|(class, _)| class.clone()).collect();
    let mut train = manifest.samples.iter().filter(|s| s.split == Split::Train);
    let unlabelled = train.any(|sample| sample.label.is_none());
    if unlabelled && empty.len() == counts.len() {
        return fail(
            "no training image has a label, so there are no classes to learn; label some, or use \
             them for `fewvit pretrain` alone"
                .into(),
        );
    }
    if !empty.is_empty() {
        let (has, some) = match unlabelled {
            true => (" has a label", "label some"),
            false => ("", "add some"),
        };
        return fail(format!(
            "no training image of {}{has}\n  {some}, or leave out the images that are held out of such classes",
            shortened(&empty)
        ));
    }
    if manifest.samples.iter().all(|s| s.split == Split::Train) {
        let what = match manifest.split_origin.is_made() {
            true => {
                "no class has two images (or two groups of images), so none can be held out to \
                 measure accuracy on; add images to the classes, or a test split of their own"
            }
            false => {
                "no image is held out to measure accuracy on; add a val or test split, in a folder or \
                 in the table's column, or leave splits out and let fewvit hold some images out"
            }
        };
        return fail(what.into());
    }
    Ok(())
}

/// Refuses names of classes that take more than a line: lists of classes and of answers have one line for each.
///
/// # Errors
/// [`Error::Data`] with the names.
fn check_class_names(classes: &[String], layout: &str) -> Result<()> {
    let breaks = |c: char| c.is_control() || ['\u{2028}', '\u{2029}'].contains(&c);
    let odd = classes.iter().filter(|class| class.contains(breaks));
    let odd: Vec<String> = odd.map(|class| format!("{class:?}")).collect();
    match odd.is_empty() {
        true => Ok(()),
        false => Err(Error::Data(format!(
            "{layout}: {} with a line break or another control character in the name: {}\n  \
             change the labels in the table, or rename the folders",
            counted(odd.len(), "class"),
            shortened(&odd)
        ))),
    }
}

/// Sorts the samples as [`Manifest`] promises and refuses what no run could use. `layout` is what
/// was recognised, without numbers.
pub(super) fn finish(mut manifest: Manifest, layout: String) -> Result<Opened> {
    if manifest.samples.is_empty() {
        return Err(Error::Data("no images".into()));
    }
    check_class_names(&manifest.classes, &layout)?;
    manifest.samples.sort_by(|a, b| (a.label, &a.id).cmp(&(b.label, &b.id)));
    let mut seen = HashSet::new();
    let twice = manifest.samples.iter().filter(|s| !seen.insert(&s.id));
    let twice: Vec<String> = twice.map(|s| s.id.clone()).collect();
    if !twice.is_empty() {
        return Err(Error::Data(format!(
            "{} more than once: {}",
            counted(twice.len(), "image"),
            shortened(&twice)
        )));
    }
    let (ignored, warnings) = (BTreeMap::new(), Vec::new());
    Ok(Opened { manifest, layout, ignored, warnings, digests: HashMap::new() })
}

pub(super) fn recognise(listing: &mut Listing, config: &DataConfig, seed: u64) -> Result<Opened> {
    if let Some(opened) = named::open(listing, config) {
        return opened;
    }
    let found = table::find(listing)?;
    if !found.tables.is_empty() {
        let names: Vec<&str> = found.tables.iter().map(|(table, _)| table.name.as_str()).collect();
        let words = format!("table {}", names.join(" + "));
        let mut opened = table::open(listing, found.tables, words, config, seed)?;
        opened.warnings.extend(found.notes);
        return Ok(opened);
    }
    named::refuse_unread(listing)?;
    let mut opened = recognise_folders(listing, config, seed)?;
    opened.warnings.extend(found.notes);
    Ok(opened)
}

fn recognise_folders(listing: &mut Listing, config: &DataConfig, seed: u64) -> Result<Opened> {
    if listing.images().next().is_none() {
        let inside: Vec<String> =
            listing.files.keys().filter(|path| is_archive_name(path)).cloned().collect();
        let what = if listing.files.is_empty() {
            "is empty".to_owned()
        } else if !inside.is_empty() {
            format!("holds no images, but archives; unpack those first: {}", shortened(&inside))
        } else {
            format!("holds no images, but {}", folders::contents(listing, ""))
        };
        return Err(Error::Data(format!("{what}; {LAYOUTS}")));
    }
    let splits = folders::splits_below(listing, "");
    let filled: Vec<String> = folders::filled(listing, "").map(str::to_owned).collect();
    let loose = listing.images().any(|path| !path.contains('/'));
    if let ([only], false) = (filled.as_slice(), loose) {
        let inside = format!("{only}/");
        let around_splits = folders::splits_below(listing, &inside).len() > 1;
        let loose = listing.files_below(&inside).any(|p| !p.contains('/') && is_image_name(p));
        if around_splits || (splits.is_empty() && !loose) {
            return recognise_inside(listing, only, config, seed);
        }
        if loose && is_container(only) {
            return Err(Error::Data(format!(
                "all images lie directly in {only}/, and no class is called so\n  \
                 put them into folders of their classes, or write a table (file,label), or give \
                 {only}/ itself to pre-train without labels"
            )));
        }
    }
    if !splits.is_empty() {
        folders::split_folders(listing, &splits, config)
    } else if filled.is_empty() {
        folders::flat(listing)
    } else {
        folders::class_folders(listing, config, seed)
    }
}

/// Goes on in the only folder with images, if nothing beside it could say more about them.
fn recognise_inside(
    listing: &mut Listing,
    only: &str,
    config: &DataConfig,
    seed: u64,
) -> Result<Opened> {
    let files = listing.files_below("").filter(|path| !path.contains('/') && !is_for_people(path));
    let folders = listing.folders_below("").filter(|folder| *folder != only);
    let beside: Vec<String> =
        files.map(str::to_owned).chain(folders.map(|folder| format!("{folder}/"))).collect();
    if !beside.is_empty() {
        return Err(Error::Data(format!(
            "all images lie in {only}/, and fewvit cannot tell what lies beside it: {}\n  \
             give {only}/ itself if its folders say all, or write a table (file,label,split)",
            shortened(&beside)
        )));
    }
    listing.enter(only);
    let mut opened = recognise(listing, config, seed)?;
    opened.layout.push_str(&format!(" in {only}/"));
    Ok(opened)
}

impl Opened {
    /// What was recognised, with the numbers of the manifest as it is now.
    pub fn describe(&self) -> String {
        sentence(&self.layout, &self.manifest)
    }

    /// What to say of images whose content, of the manifest's samples in order, is not what a table of fewvit says.
    pub(super) fn changed_note(&self, contents: &[Option<Digest>]) -> Option<String> {
        let samples = self.manifest.samples.iter().zip(contents);
        let is_changed = |(sample, content): (&Sample, &Option<Digest>)| {
            let listed = self.digests.get(&sample.id)?;
            content.as_ref().is_some_and(|content| content != listed).then(|| sample.id.clone())
        };
        let changed: Vec<String> = samples.filter_map(is_changed).collect();
        (!changed.is_empty()).then(|| {
            format!(
                "{} changed since the table was written (another digest): {}",
                counted(changed.len(), "image"),
                shortened(&changed)
            )
        })
    }
}

fn sentence(layout: &str, manifest: &Manifest) -> String {
    let train = manifest.indices(Split::Train);
    let has_label = |i: &&usize| manifest.samples[**i].label.is_some();
    let few = match (manifest.is_labelled(), train.iter().filter(has_label).count()) {
        (true, labelled) if labelled < train.len() => {
            format!("; {labelled} of the {} have a label", counted(train.len(), "training image"))
        }
        _ => String::new(),
    };
    what_and_how_many(layout, manifest) + &few
}

fn what_and_how_many(layout: &str, manifest: &Manifest) -> String {
    let count = |split| manifest.indices(split).len();
    let splits: Vec<(&str, usize)> =
        [("train", count(Split::Train)), ("val", count(Split::Val)), ("test", count(Split::Test))]
            .into_iter()
            .filter(|(_, n)| *n > 0)
            .collect();
    let join = |parts: Vec<String>, by: &str| parts.join(by);
    let numbers = join(splits.iter().map(|(_, n)| n.to_string()).collect(), " + ");
    let named = join(splits.iter().map(|(name, n)| format!("{n} {name}")).collect(), " + ");
    let names = join(splits.iter().map(|(name, _)| name.to_string()).collect(), "/");
    let classes = counted(manifest.classes.len(), "class");
    let images = counted(manifest.samples.len(), "image");
    match manifest.split_origin {
        SplitOrigin::Given if layout.starts_with(&names) => {
            format!("{layout}, {classes}, {numbers} images")
        }
        SplitOrigin::Given => format!("{layout}, {classes}, {named} images"),
        SplitOrigin::Made => {
            format!("{layout}, {classes}, {images}; split drawn by fewvit: {named}")
        }
        SplitOrigin::MadeByGroup => {
            format!(
                "{layout}, {classes}, {images}; split drawn by fewvit, groups together: {named}"
            )
        }
        SplitOrigin::Unlabelled => format!("{layout}, no labels, {images}"),
    }
}

/// Files that may be images by another name.
fn oddly_named(listing: &Listing) -> Option<String> {
    let odd: Vec<String> = listing.oddly_named().cloned().collect();
    (!odd.is_empty()).then(|| {
        let [files, are] = if odd.len() == 1 { ["file", "is"] } else { ["files", "are"] };
        let names = shortened(&odd);
        format!("{} {files} without an image extension {are} passed over: {names}", odd.len())
    })
}

/// Classes and files that people cannot tell apart by their names.
fn look_alikes(manifest: &Manifest) -> Vec<String> {
    let alike = |names: &mut dyn Iterator<Item = (&str, &str)>| {
        let mut same: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
        for (folder, name) in names {
            let id = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
            let visible = visible(name);
            let key = (folder.to_owned(), folded(&visible));
            let shown = if visible == name { id } else { format!("{id:?}") };
            same.entry(key).or_default().push(shown);
        }
        same.into_values().filter(|ids| ids.len() > 1).map(|ids| ids.join(" = ")).collect()
    };
    let classes: Vec<String> = alike(&mut manifest.classes.iter().map(|c| ("", c.as_str())));
    let ids = manifest.samples.iter().map(|sample| sample.id.as_str());
    let files: Vec<String> = alike(&mut ids.map(|id| match id.rsplit_once('/') {
        Some((folder, _)) => (folder, file_part(id)),
        None => ("", id),
    }));
    let note = |what: &str, names: &[String]| {
        (!names.is_empty()).then(|| {
            format!(
                "{what} whose names differ only in capitals, blanks, what cannot be seen or how accents are \
                 stored: {}",
                shortened(names)
            )
        })
    };
    [note("different classes", &classes), note("different files", &files)]
        .into_iter()
        .flatten()
        .collect()
}

#[cfg(test)]
pub(super) mod tests;
