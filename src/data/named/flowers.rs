//! Oxford 102 Flowers: numbered images, labels and splits in MATLAB arrays.

use std::collections::BTreeMap;

use super::super::manifest::Split;
use super::super::table::class_names;
use super::NamedSet;
use super::join::{Labels, Row};
use super::lists::Lists;
use crate::config::DataConfig;
use crate::error::{Error, Result};

pub(super) const SET: NamedSet = NamedSet {
    name: "flowers-102",
    title: "Flowers-102",
    home: "102flowers.tgz, imagelabels.mat and setid.mat from \
           https://www.robots.ox.ac.uk/~vgg/data/flowers/102/ belong into one folder",
    settings: &[],
    is_one: |lists| lists.any(&["setid.mat", "imagelabels.mat"]),
    read,
};

/// `trnid` and `valid` together are the training images of the paper, `tstid` the test images. Some
/// published code swaps the two sides; this is the official one.
fn read(lists: &Lists, _: &DataConfig) -> Result<Labels> {
    let [ids, labels] = lists.require(["setid.mat", "imagelabels.mat"])?;
    let labels = lists.array(labels, "labels")?;
    let mut rows = Vec::with_capacity(labels.len());
    for (key, split) in [("trnid", Split::Train), ("valid", Split::Train), ("tstid", Split::Test)] {
        for number in lists.array(ids, key)? {
            let position = (number as usize).wrapping_sub(1);
            let Some(label) = labels.get(position).filter(|label| **label >= 1.0) else {
                return Err(Error::Data(format!(
                    "{ids} names image {number}, of which imagelabels.mat has no label"
                )));
            };
            let image = format!("jpg/image_{number:05}.jpg");
            rows.push(Row { image, class: *label as usize, split });
        }
    }
    // Not official, but of use where somebody has added it.
    let names = class_names(lists.listing)?;
    let numbered = |(label, name): (&String, &String)| Some((label.parse().ok()?, name.clone()));
    let names: BTreeMap<usize, String> = names.iter().filter_map(numbered).collect();
    Ok(Labels::new(rows, names))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::super::listing::{Listing, read};
    use super::super::super::source::{check_labelled, open, open_noting, tests};
    use super::super::tests::{Miniature, annotation, counts, refused};
    use crate::data::{Manifest, Split};

    fn per_class(manifest: &Manifest, split: Split) -> Vec<usize> {
        let mut counts = vec![0; manifest.classes.len()];
        manifest
            .indices(split)
            .iter()
            .for_each(|&i| counts[manifest.samples[i].label.unwrap()] += 1);
        counts
    }

    /// Figures of the published set; labels and splits also against `index.csv`, which other software
    /// wrote.
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

        let mut listing = Listing::of_archive(&path).unwrap();
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

    #[test]
    fn the_genuine_lists_give_the_papers_split() {
        let lists = ["setid.mat", "imagelabels.mat"];
        let [Some(ids), Some(labels)] = lists.map(|name| annotation("flowers102", name)) else {
            return;
        };
        let images = (1..=8189).map(|i| format!("102flowers/jpg/image_{i:05}.jpg"));
        let mini = Miniature::new().file("setid.mat", &ids).images(images);
        let opened = mini.clone().file("imagelabels.mat", &labels).open();
        assert_eq!(counts(&opened.manifest), [2040, 0, 6149]);
        assert_eq!(opened.manifest.classes[101], "class_102");
        assert!(opened.describe().starts_with("Flowers-102 with the paper's counts, 102 classes"));
        let text = refused(mini.clone());
        assert!(text.contains("looks like Flowers-102: imagelabels.mat is missing"), "{text}");
        let mini = mini.file("imagelabels.mat", &labels);
        let text = refused(mini.without("102flowers/jpg/image_00007.jpg"));
        assert!(
            text.contains("1 image that the lists name is missing:\n  jpg/image_00007.jpg"),
            "{text}"
        );
    }

    /// `tests/golden/decode_plain.mat` has neither array.
    #[test]
    fn damaged_lists_are_named() {
        let other = include_bytes!("../../../tests/golden/decode_plain.mat");
        let mini = Miniature::new().images(["jpg/image_00001.jpg"]).bytes("setid.mat", other);
        let text = refused(mini.clone().list("imagelabels.mat=x"));
        assert!(text.contains("imagelabels.mat: not a MATLAB version 5 file"), "{text}");
        let text = refused(mini.bytes("imagelabels.mat", other));
        assert!(text.contains("imagelabels.mat: no array called `labels`"), "{text}");
    }
}
