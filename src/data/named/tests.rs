//! Miniatures of data sets: their lists, and names of images that are all one tiny file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::super::catalog;
use super::super::listing::Listing;
use super::super::source::tests::{config, data_file};
use super::super::source::{Opened, recognise};
use super::{SETS, check_settings};
use crate::config::DataConfig;
use crate::data::{Manifest, Split};
use crate::error::Result;

/// A listing in the making.
#[derive(Clone, Default)]
pub struct Miniature {
    lists: BTreeMap<String, Vec<u8>>,
    files: BTreeMap<String, PathBuf>,
    images: BTreeSet<String>,
}

impl Miniature {
    pub fn new() -> Self {
        Self::default()
    }

    /// A list in the form `PATH=CONTENT`.
    pub fn list(self, list: &str) -> Self {
        let (path, content) = list.split_once('=').unwrap();
        self.bytes(path, content.as_bytes())
    }

    pub fn bytes(mut self, path: &str, content: &[u8]) -> Self {
        self.lists.insert(path.to_owned(), content.to_vec());
        self
    }

    /// A list that lies elsewhere.
    pub fn file(mut self, path: &str, file: &Path) -> Self {
        self.files.insert(path.to_owned(), file.to_path_buf());
        self
    }

    pub fn images(mut self, ids: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        self.images.extend(ids.into_iter().map(|id| id.as_ref().to_owned()));
        self
    }

    pub fn without(mut self, path: &str) -> Self {
        let found = self.lists.remove(path).is_some() | self.images.remove(path);
        assert!(found | self.files.remove(path).is_some(), "{path}");
        self
    }

    pub fn try_open(self, config: &DataConfig) -> Result<Opened> {
        let folder = tempfile::tempdir().unwrap();
        let picture = folder.path().join("tiny.png");
        image::RgbImage::new(4, 3).save(&picture).unwrap();
        let lists = self.lists.into_iter().enumerate().map(|(i, (id, content))| {
            let path = folder.path().join(i.to_string());
            std::fs::write(&path, content).unwrap();
            (id, path)
        });
        let images = self.images.into_iter().map(|id| (id, picture.clone()));
        let mut listing = Listing::of_files(lists.chain(self.files).chain(images));
        listing.enter_only_folder(false);
        recognise(&mut listing, config, 1)
    }

    pub fn open(self) -> Opened {
        self.try_open(&config()).unwrap()
    }
}

/// Why a miniature is refused.
pub fn refused(mini: Miniature) -> String {
    let error = mini.try_open(&config()).unwrap_err();
    assert_eq!(error.exit_code(), 3, "{error}");
    error.to_string()
}

/// Training, validation and test images.
pub fn counts(manifest: &Manifest) -> [usize; 3] {
    [Split::Train, Split::Val, Split::Test].map(|split| manifest.indices(split).len())
}

/// A genuine list, if it is at hand.
pub fn annotation(set: &str, name: &str) -> Option<PathBuf> {
    data_file(&format!("annotations/{set}/{name}"))
}

#[test]
fn settings_of_another_set_are_refused() {
    let opened = Miniature::new()
        .list("TrainImages.txt=mall/1.jpg")
        .list("TestImages.txt=mall/2.jpg")
        .images(["Images/mall/1.jpg", "Images/mall/2.jpg"])
        .open();
    check_settings(&opened, &config()).unwrap();
    let other = DataConfig { dtd_split: 2, aircraft_banner: 20, ..config() };
    let error = check_settings(&opened, &other).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    let expected = "data.dtd_split and data.aircraft_banner: indoor67 has no such choice";
    assert!(error.to_string().contains(expected), "{error}");
}

/// `data fetch`, `data list` and the readers are about the same sets.
#[test]
fn what_is_read_is_what_is_listed() {
    let read: Vec<_> = SETS.iter().map(|set| (set.name, set.counts())).collect();
    let listed: Vec<_> =
        catalog::SETS.iter().map(|set| (set.name, [set.train, set.test])).collect();
    assert_eq!(read, listed);
}
