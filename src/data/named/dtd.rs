//! Describable Textures: ten splits, each of three lists of `CLASS/IMAGE`.

use super::super::manifest::Split;
use super::NamedSet;
use super::join::Labels;
use super::lists::Lists;
use crate::config::DataConfig;
use crate::error::{Error, Result};

pub(super) const SET: NamedSet = NamedSet {
    name: "dtd",
    title: "Describable Textures (DTD)",
    home: "dtd-r1.0.1.tar.gz from https://www.robots.ox.ac.uk/~vgg/data/dtd/ has images and lists, \
           dtd-r1.0.1-labels.tar.gz the lists alone",
    settings: &["data.dtd_split"],
    is_one: |lists| {
        lists.any(&[
            "labels/train1.txt",
            "labels/test1.txt",
            "labels/labels_joint_anno.txt",
            "imdb/imdb.mat",
            OTHER_SPLIT,
        ])
    },
    read,
};

/// A later split of 2820, 1128 and 1692 images, whose accuracies compare with no published split.
const OTHER_SPLIT: &str = "split_zhou_DescribableTextures.json";

fn read(lists: &Lists, config: &DataConfig) -> Result<Labels> {
    let split = config.dtd_split;
    let names = ["train", "val", "test"].map(|part| format!("labels/{part}{split}.txt"));
    let found = lists.require(names.each_ref().map(String::as_str)).map_err(|e| {
        match lists.find(OTHER_SPLIT) {
            Some(other) => Error::Data(format!("{e}; {other} is another split than the paper's")),
            None => e,
        }
    })?;
    let mut images = Vec::new();
    for (id, split) in found.into_iter().zip([Split::Train, Split::Train, Split::Test]) {
        for line in lists.lines(id)? {
            images.push((line.text.clone(), line.folder()?.to_owned(), split));
        }
    }
    let other = (split != 1).then(|| format!("split {split} of ten; the paper's is the first"));
    Ok(Labels { notes: other.into_iter().collect(), ..Labels::by_name(images) })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Miniature, annotation, counts, refused};
    use crate::config::DataConfig;
    use crate::data::Split;
    use crate::data::source::tests::config;

    const IMAGES: [&str; 6] = [
        "images/polka-dotted/polka-dotted_0002.jpg",
        "images/polka-dotted/polka-dotted_0004.jpg",
        "images/polka-dotted/polka-dotted_0005.jpg",
        "images/banded/banded_0002.jpg",
        "images/banded/banded_0004.jpg",
        "images/banded/banded_0005.jpg",
    ];

    /// Split `k` tests on image `k` of each class.
    fn miniature() -> Miniature {
        let mut mini = Miniature::new().images(IMAGES);
        for k in 0..3 {
            let line = |i: usize| {
                let [a, b] = [i % 3, 3 + i % 3].map(|i| IMAGES[i].strip_prefix("images/").unwrap());
                format!("{a}\n{b}")
            };
            for (part, i) in [("test", k), ("train", k + 1), ("val", k + 2)] {
                mini = mini.list(&format!("labels/{part}{}.txt={}", k + 1, line(i)));
            }
        }
        mini
    }

    #[test]
    fn train_and_val_are_trained_on_and_the_split_is_a_setting() {
        for split in 1..=3 {
            let config = DataConfig { dtd_split: split, ..config() };
            let opened = miniature().try_open(&config).unwrap();
            let said = format!("split {split} of ten; the paper's is the first");
            assert_eq!(opened.warnings.contains(&said), split != 1, "{:?}", opened.warnings);
            let manifest = opened.manifest;
            assert_eq!(manifest.classes, ["banded", "polka-dotted"]);
            assert_eq!(counts(&manifest), [4, 0, 2]);
            let test = manifest.indices(Split::Test);
            let ids: Vec<&str> = test.iter().map(|&i| manifest.samples[i].id.as_str()).collect();
            assert_eq!(ids, [IMAGES[2 + split], IMAGES[split - 1]]);
        }
        let config = DataConfig { dtd_split: 7, ..config() };
        let text = miniature().try_open(&config).unwrap_err().to_string();
        let part = "labels/train7.txt and labels/val7.txt and labels/test7.txt are missing";
        assert!(text.contains(part), "{text}");
    }

    #[test]
    fn another_split_is_not_taken_for_the_papers() {
        let mini = Miniature::new().images(IMAGES).list("split_zhou_DescribableTextures.json={}");
        let text = refused(mini);
        assert!(text.contains("is another split than the paper's"), "{text}");
        let text = refused(Miniature::new().images(IMAGES).list("imdb/imdb.mat="));
        assert!(text.contains("dtd-r1.0.1-labels.tar.gz the lists alone"), "{text}");
        let text = refused(miniature().list("labels/val1.txt=banded_0002.jpg"));
        assert!(text.contains("labels/val1.txt, line 1 should have CLASS/IMAGE"), "{text}");
    }

    /// The genuine names; the genuine lists are not to be had, so these are made, 40 a class.
    #[test]
    fn lists_over_the_genuine_names_give_the_papers_counts() {
        let names = ["all_5640_names.derived.txt", "tfds_dtd_key_attributes.txt"];
        let [Some(names), Some(classes)] = names.map(|name| annotation("dtd", name)) else {
            return;
        };
        let names = std::fs::read_to_string(names).unwrap();
        let mut lists = [String::new(), String::new(), String::new()];
        for (i, name) in names.lines().enumerate() {
            lists[i % 3] += &format!("{name}\n");
        }
        let mut mini =
            Miniature::new().images(names.lines().map(|name| format!("dtd/dtd/images/{name}")));
        for (part, text) in ["train", "val", "test"].iter().zip(lists) {
            mini = mini.list(&format!("dtd/dtd/labels/{part}1.txt={text}"));
        }
        let opened = mini.open();
        assert_eq!(counts(&opened.manifest), [3760, 0, 1880]);
        let classes = std::fs::read_to_string(classes).unwrap();
        assert_eq!(opened.manifest.classes, classes.lines().collect::<Vec<_>>());
        assert!(opened.describe().contains("with the paper's counts, 47 classes"));
        assert_eq!(opened.warnings, [""; 0]);
    }
}
