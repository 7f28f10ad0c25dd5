//! Data sets recognised by their own unpacked layout; one entry of [`SETS`] each.

use super::folders;
use super::listing::{Listing, read};
use super::manifest::{Manifest, Sample, Split, SplitOrigin};
use super::matfile::read_array;
use super::source::{Opened, finish};
use super::table::class_names;
use super::words::shortened;
use crate::error::{Error, Result};

/// A data set with a layout of its own.
pub struct NamedSet {
    /// What reports and result tables call it.
    pub name: &'static str,
    /// Files whose presence tells it, relative to its root.
    marks: &'static [&'static str],
    /// Reads labels and splits.
    open: fn(&Listing) -> Result<Opened>,
}

/// The layouts that [`super::source::open`] knows (recipe section 6.2).
pub const SETS: &[NamedSet] = &[NamedSet {
    name: "flowers-102",
    marks: &["setid.mat", "imagelabels.mat", "jpg/image_00001.jpg"],
    open: open_flowers,
}];

/// Opens the listing as the named set that it is, if it is one.
pub(super) fn open(listing: &Listing) -> Option<Result<Opened>> {
    let is_it = |set: &&NamedSet| set.marks.iter().all(|mark| listing.files.contains_key(*mark));
    SETS.iter().find(is_it).map(|set| (set.open)(listing))
}

/// Data sets whose own lists are not read, with a file of each that tells it. Their folders alone
/// would give another split, or no classes.
const UNREAD: &[(&str, &[&str])] = &[
    ("CUB-200-2011", &["train_test_split.txt", "image_class_labels.txt"]),
    ("CUB-200", &["lists/train.txt"]),
    (
        "Oxford-IIIT Pets",
        &["annotations/trainval.txt", "annotations/annotations/trainval.txt", "trainval.txt"],
    ),
    ("Describable Textures (DTD)", &["labels/train1.txt", "imdb/imdb.mat"]),
    ("Indoor67", &["TrainImages.txt"]),
    (
        "FGVC-Aircraft",
        &["data/images_variant_trainval.txt", "images_variant_trainval.txt", "variants.txt"],
    ),
    (
        "Stanford Cars",
        &[
            "cars_annos.mat",
            "devkit/cars_meta.mat",
            "devkit/cars_train_annos.mat",
            "cars_test_annos_withlabels.mat",
        ],
    ),
    ("ImageNet", &["ImageSets/CLS-LOC/train_cls.txt"]),
    ("Tiny ImageNet", &["val/val_annotations.txt"]),
];

/// Refuses the original layout of a data set whose own lists are not read.
///
/// # Errors
/// [`Error::Data`] saying which set it is and what to do.
pub(super) fn refuse_unread(listing: &Listing) -> Result<()> {
    for (name, marks) in UNREAD {
        let found = marks.iter().filter(|mark| listing.files.contains_key(**mark));
        let found: Vec<String> = found.map(|mark| mark.to_string()).collect();
        if !found.is_empty() && !folders::are_split_classes(listing) {
            return Err(Error::Data(format!(
                "looks like {name} as published, whose lists ({}) say which image is for what; \
                 fewvit does not read them\n  write a table (index.csv: file,label,split) from \
                 them, or sort the images into train/CLASS/ and test/CLASS/",
                shortened(&found)
            )));
        }
    }
    Ok(())
}

/// Oxford 102 Flowers: `trnid` and `valid` together are the 2,040 training images, `tstid` the
/// 6,149 test images. Some published code swaps the two sides; this is the official one.
fn open_flowers(listing: &Listing) -> Result<Opened> {
    let array = |file: &str, name: &str| {
        let bytes = read(&listing.files[file])?;
        let numbers = read_array(&bytes, name);
        numbers.map_err(|e| Error::Data(format!("{}, {file}: {e}", listing.name)))
    };
    let labels = array("imagelabels.mat", "labels")?;
    let num_classes = labels.iter().fold(0.0, |a: f64, &b| a.max(b)).min(1e6) as usize;
    let mut samples = Vec::with_capacity(labels.len());
    for (key, split) in [("trnid", Split::Train), ("valid", Split::Train), ("tstid", Split::Test)] {
        for number in array("setid.mat", key)? {
            let id = format!("jpg/image_{number:05}.jpg");
            let position = (number as usize).wrapping_sub(1);
            let label = labels.get(position).filter(|label| **label >= 1.0);
            let (Some(origin), Some(label)) = (listing.files.get(&id), label) else {
                return Err(Error::Data(format!(
                    "{}: {id} is listed in setid.mat but missing; unpack 102flowers.tgz again",
                    listing.name
                )));
            };
            let label = Some(*label as usize - 1);
            samples.push(Sample { id, origin: origin.clone(), label, split });
        }
    }
    let names = class_names(listing)?;
    let name = |label: usize| names.get(&label.to_string()).cloned();
    let classes = (1..=num_classes).map(|l| name(l).unwrap_or(format!("class_{l:03}"))).collect();
    let manifest =
        Manifest { name: "flowers-102".into(), classes, samples, split_origin: SplitOrigin::Given };
    finish(manifest, "Flowers-102".into())
}

#[cfg(test)]
mod tests {
    use super::super::source::{check_labelled, open, open_noting, tests};
    use super::*;
    use std::collections::BTreeMap;

    fn per_class(manifest: &Manifest, split: Split) -> Vec<usize> {
        let mut counts = vec![0; manifest.classes.len()];
        manifest
            .indices(split)
            .iter()
            .for_each(|&i| counts[manifest.samples[i].label.unwrap()] += 1);
        counts
    }

    /// Figures of recipe section 6.2; labels and splits also against `index.csv`, which other
    /// software wrote.
    #[test]
    fn flowers_is_split_as_published() {
        let Some(path) = tests::data_file("flowers-102.tar") else {
            return;
        };
        let manifest = open(&path, &tests::config(), 1).unwrap();
        check_labelled(&manifest).unwrap();
        assert_eq!((manifest.name.as_str(), manifest.samples.len()), ("flowers-102", 8189));
        assert_eq!(manifest.indices(Split::Test).len(), 6149);
        assert_eq!(per_class(&manifest, Split::Train), [20; 102]);
        let test = per_class(&manifest, Split::Test);
        assert_eq!((test.iter().min(), test.iter().max()), (Some(&20), Some(&238)));
        assert_eq!(manifest.classes[0], "pink primrose");
        assert_eq!(manifest.samples[0].id, "jpg/image_06734.jpg");

        let mut listing = Listing::of_tar(&path).unwrap();
        listing.enter_only_folder(true);
        let index = String::from_utf8(read(&listing.files["index.csv"]).unwrap()).unwrap();
        let rows: BTreeMap<&str, Vec<&str>> = index
            .lines()
            .skip(1)
            .map(|l| l.split(',').collect())
            .map(|r: Vec<_>| (r[0], r))
            .collect();
        for sample in &manifest.samples {
            let row = &rows[sample.id.as_str()];
            assert_eq!(row[1], (sample.label.unwrap() + 1).to_string());
            assert_eq!(row[2] == "test", sample.split == Split::Test);
        }
    }

    #[test]
    fn the_tiny_archive_is_a_table_with_class_names() {
        let Some(path) = tests::data_file("flowers-102-tiny.tar") else {
            return;
        };
        let opened = open_noting(&path, &tests::config(), 1).unwrap();
        let manifest = opened.manifest;
        assert_eq!(manifest.name, "flowers-102-tiny");
        assert_eq!(manifest.classes[9], "globe thistle");
        assert_eq!(per_class(&manifest, Split::Train), [10; 10]);
        assert_eq!(per_class(&manifest, Split::Val), [10; 10]);
        assert_eq!((opened.warnings.len(), manifest.samples.len()), (0, 200));
        check_labelled(&manifest).unwrap();
    }
}
