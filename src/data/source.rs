//! From a path to a [`Manifest`]: recognises how a data set lies there.
//!
//! In this order: a named set, a table, split folders, class folders, a flat folder. Folders and
//! tar archives are the same [`Listing`] from here on.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;

use super::listing::Listing;
use super::manifest::{Manifest, Split};
use super::table::parse_split;
use super::words::{counted, shortened};
use super::{folders, named, table};
use crate::config::DataConfig;
use crate::error::{Error, Result};

const LAYOUTS: &str = "expected DATA/CLASS/*.jpg, DATA/{train,test}/CLASS/*.jpg, a folder of \
                       images, a .tar of those, or a .csv, .tsv or .jsonl table";
const PACKED: [&str; 10] = ["zip", "gz", "tgz", "bz2", "tbz2", "xz", "txz", "zst", "7z", "rar"];

/// A data set and what reading it came across.
#[derive(Debug)]
pub struct Opened {
    /// The data set.
    pub manifest: Manifest,
    /// Files that are no images, by lower-case extension.
    pub ignored: BTreeMap<String, usize>,
    /// What a person should know, in plain words.
    pub warnings: Vec<String>,
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
/// [`Error::Io`] if the path cannot be read, [`Error::Data`] if no images are found there or what
/// describes them is inconsistent.
pub fn open_noting(path: &Path, config: &DataConfig, seed: u64) -> Result<Opened> {
    let kind = std::fs::metadata(path).map_err(|e| Error::io("read", path, e))?;
    let name = path.file_name().map_or(String::new(), |n| n.to_string_lossy().into_owned());
    let extension = super::listing::extension(&name);
    let is_tar = !kind.is_dir() && extension == "tar";
    let mut listing = if kind.is_dir() {
        Listing::of_folder(path)?
    } else if is_tar {
        Listing::of_tar(path)?
    } else if table::is_table_name(&name) {
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        return table::open(
            &Listing::unwalked(parent.unwrap_or(Path::new("."))),
            &name,
            config,
            seed,
        );
    } else {
        let what = if PACKED.contains(&extension.as_str()) {
            "is packed; unpack it and give the folder (an uncompressed .tar is read as it is)"
        } else {
            LAYOUTS
        };
        return Err(Error::Data(format!("{}: {what}", path.display())));
    };
    listing.enter_only_folder(is_tar);
    let mut opened = recognise(&listing, config, seed).map_err(|e| match e {
        Error::Data(what) => Error::Data(format!("{}: {what}", path.display())),
        other => other,
    })?;
    opened.ignored = listing.ignored();
    Ok(opened)
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
    if !empty.is_empty() {
        return fail(format!("no training image of {}", shortened(&empty)));
    }
    if manifest.samples.iter().all(|s| s.split == Split::Train) {
        return fail(
            "no image is held out to measure accuracy on; add val/ or test/, or give the folder \
             of classes itself and let fewvit hold some out"
                .into(),
        );
    }
    Ok(())
}

/// Sorts the samples as [`Manifest`] promises and refuses what no run could use.
pub(super) fn finish(mut manifest: Manifest) -> Result<Opened> {
    if manifest.samples.is_empty() {
        return Err(Error::Data("no images".into()));
    }
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
    Ok(Opened { manifest, ignored: BTreeMap::new(), warnings: Vec::new() })
}

fn recognise(listing: &Listing, config: &DataConfig, seed: u64) -> Result<Opened> {
    if let Some(opened) = named::open(listing) {
        return opened;
    }
    if let Some(name) = table::find(listing) {
        return table::open(listing, name, config, seed);
    }
    if listing.images().next().is_none() {
        let what = if listing.files.is_empty() { "is empty" } else { "holds no images" };
        return Err(Error::Data(format!("{what}; {LAYOUTS}")));
    }
    let tops: BTreeSet<&str> =
        listing.images().filter_map(|path| path.split_once('/')).map(|(top, _)| top).collect();
    let split_of = |top: &str| parse_split(top);
    let has_train = tops.iter().any(|top| split_of(top) == Some(Split::Train));
    let held_out = tops.iter().any(|top| split_of(top).is_some_and(|s| s != Split::Train));
    // A class may be called "train": alone among other folders it is one.
    if has_train && (held_out || tops.len() == 1) {
        return folders::split_folders(listing);
    }
    if tops.is_empty() {
        folders::flat(listing)
    } else {
        folders::class_folders(listing, config, seed)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::manifest::SplitOrigin;
    use super::*;
    use crate::config::OnBadImage;
    use std::fs;
    use std::io::Write;
    use std::path::PathBuf;

    pub fn config() -> DataConfig {
        DataConfig {
            on_bad_image: OnBadImage::Error,
            test_fraction: 0.25,
            cache_short_side: 256,
            cache_ram_gb: 1.0,
            depth: crate::config::Depth::Pil,
            mean: [0.0; 3],
            std: [1.0; 3],
        }
    }

    /// A temporary folder with these files; the content is the path, or what follows `=`.
    pub fn folder(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let (path, content) = file.split_once('=').unwrap_or((file, file));
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    pub fn data_file(name: &str) -> Option<PathBuf> {
        let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
        let root = std::env::var_os("FEWVIT_DATA").map_or(shared, PathBuf::from);
        let path = root.join(name);
        if !path.exists() {
            // Not `eprintln!`, which tests that pass keep to themselves.
            let note = format!("SKIPPED: {} is not there; set FEWVIT_DATA\n", path.display());
            let _ = std::io::stderr().write_all(note.as_bytes());
        }
        path.exists().then_some(path)
    }

    fn opened(files: &[&str]) -> Opened {
        open_noting(folder(files).path(), &config(), 1).unwrap()
    }

    fn refused(files: &[&str]) -> String {
        open(folder(files).path(), &config(), 1).unwrap_err().to_string()
    }

    fn ids(manifest: &Manifest, split: Split) -> Vec<&str> {
        manifest.indices(split).iter().map(|&i| manifest.samples[i].id.as_str()).collect()
    }

    #[test]
    fn split_folders_take_their_classes_from_train() {
        let opened = opened(&[
            "train/b/2.jpg",
            "train/b/10.JPG",
            "train/a/x.png",
            "train/a/deep/y.webp",
            "test/a/1.jpg",
            "test/unknown/1.jpg",
            "dev/b/1.jpg",
            "train/loose.jpg",
            "train/b/.hidden.jpg",
            "train/a/Thumbs.db",
            "__MACOSX/train/a/1.jpg",
            "notes.txt",
            "raw.HEIC",
        ]);
        let manifest = &opened.manifest;
        assert_eq!(manifest.classes, ["a", "b"]);
        assert_eq!(manifest.split_origin, SplitOrigin::Given);
        let train = ["train/a/deep/y.webp", "train/a/x.png", "train/b/10.JPG", "train/b/2.jpg"];
        assert_eq!(ids(manifest, Split::Train), train);
        assert_eq!(ids(manifest, Split::Val), ["dev/b/1.jpg"]);
        assert_eq!(ids(manifest, Split::Test), ["test/a/1.jpg"]);
        assert_eq!(opened.warnings.len(), 2);
        assert!(opened.warnings[0].contains("train/loose.jpg"));
        assert!(opened.warnings[1].contains("1 class that train/ lacks are left out: unknown"));
        let ignored = BTreeMap::from([("heic".to_owned(), 1), ("txt".to_owned(), 1)]);
        assert_eq!(opened.ignored, ignored);
        check_labelled(manifest).unwrap();
    }

    #[test]
    fn class_folders_are_split_and_flat_folders_are_not() {
        let classes = ["train/1.jpg", "train/2.jpg", "tram/1.jpg", "tram/2.jpg", "loose.jpg"];
        let classes = opened(&classes);
        assert_eq!(classes.manifest.classes, ["train", "tram"], "a class may be called train");
        assert_eq!(classes.manifest.split_origin, SplitOrigin::Made);
        assert_eq!(classes.manifest.indices(Split::Test).len(), 2);
        assert!(classes.warnings[0].contains("loose.jpg"));
        let nested = opened(&["data/a/1.jpg", "data/a/2.jpg", "data/b/1.jpg"]);
        assert_eq!(nested.manifest.classes, ["a", "b"], "the one folder around all is entered");
        assert!(nested.warnings[0].contains("nothing in the test split: b"));

        let flat = opened(&["b.jpg", "a.png"]).manifest;
        assert_eq!(ids(&flat, Split::Train), ["a.png", "b.jpg"]);
        assert_eq!(flat.split_origin, SplitOrigin::Unlabelled);
        assert!(check_labelled(&flat).unwrap_err().to_string().contains("no labels"));
    }

    #[test]
    fn what_cannot_be_used_is_refused_in_words() {
        assert!(refused(&[]).contains("is empty; expected DATA/CLASS"));
        assert!(refused(&["a/notes.txt"]).contains("holds no images"));
        assert!(refused(&["train/1.jpg", "test/1.jpg"]).contains("train/ has no class folders"));
        let root = folder(&["x.zip", "x.tar.gz", "x.tar", "x.doc"]);
        let error = |name: &str| open(&root.path().join(name), &config(), 1).unwrap_err();
        assert!(error("x.zip").to_string().contains("unpack it"));
        assert!(error("x.tar.gz").to_string().contains("unpack it"));
        assert_eq!(error("x.doc").exit_code(), 3);
        assert!(error("x.tar").to_string().contains("tar"), "{}", error("x.tar"));
        let gone = error("gone");
        assert!(matches!(gone, Error::Io { .. }));
        assert!(gone.to_string().contains("check the spelling"));
        let check =
            |files: &[&str]| check_labelled(&opened(files).manifest).unwrap_err().to_string();
        assert!(check(&["rose/1.jpg", "rose/2.jpg"]).contains("`rose` is the only class"));
        assert!(check(&["train/a/1.jpg", "train/b/1.jpg"]).contains("no image is held out"));
        let table = "m.csv=file,label,split\n1.jpg,a,train\n2.jpg,b,test\n3.jpg,a,test\n";
        let root = folder(&[table, "1.jpg", "2.jpg", "3.jpg"]);
        let manifest = open(&root.path().join("m.csv"), &config(), 1).unwrap();
        let error = check_labelled(&manifest).unwrap_err().to_string();
        assert!(error.contains("no training image of b"), "{error}");
    }

    #[test]
    #[cfg(unix)]
    fn links_are_followed_and_do_not_go_round() {
        let root = folder(&["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"]);
        let link = |to: &str, at: &str| {
            std::os::unix::fs::symlink(root.path().join(to), root.path().join(at)).unwrap();
        };
        link("a/1.jpg", "b/linked.jpg");
        link("", "b/round");
        link("a", "c");
        let manifest = open(root.path(), &config(), 1).unwrap();
        let mut ids: Vec<&str> = manifest.samples.iter().map(|s| s.id.as_str()).collect();
        ids.sort_unstable();
        let expected =
            ["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg", "b/linked.jpg", "c/1.jpg", "c/2.jpg"];
        assert_eq!(ids, expected);
    }
}
