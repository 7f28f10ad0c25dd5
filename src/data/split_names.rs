//! Names of splits: `train`, `training_set`, `seg_test`, `valImages2017`, `hold-out` and their kin.

use super::manifest::Split;

/// What names a split: each word with the split it stands for. Folders of images that wait for a
/// prediction are test images if they have classes.
const SPLITS: [(Split, &[&str]); 3] = [
    (Split::Train, &["train", "training", "trn", "tr", "trainval", "learn", "learning"]),
    (
        Split::Val,
        &[
            "val",
            "valid",
            "validate",
            "validation",
            "validating",
            "dev",
            "devel",
            "development",
            "eval",
            "evaluate",
            "evaluation",
            "holdout",
            "heldout",
        ],
    ),
    (
        Split::Test,
        &[
            "test",
            "tests",
            "testing",
            "tst",
            "unseen",
            "pred",
            "predict",
            "prediction",
            "predictions",
            "infer",
            "inference",
        ],
    ),
];

/// Words that say no more than that images are there.
const CONTAINERS: [&str; 42] = [
    "image",
    "images",
    "img",
    "imgs",
    "im",
    "ims",
    "picture",
    "pictures",
    "pic",
    "pics",
    "photo",
    "photos",
    "photograph",
    "photographs",
    "jpg",
    "jpgs",
    "jpeg",
    "jpegs",
    "png",
    "pngs",
    "data",
    "dataset",
    "datasets",
    "set",
    "sets",
    "file",
    "files",
    "folder",
    "folders",
    "dir",
    "raw",
    "all",
    "sample",
    "samples",
    "split",
    "frames",
    "fold",
    "folds",
    "batch",
    "batches",
    "chunk",
    "shard",
];

/// Further words that a split's name may have beside it.
const FILLERS: [&str; 7] = ["seg", "subset", "cls", "part", "final", "public", "private"];

/// Words of folders that describe images: segmentations, boxes, labels.
const ANNOTATIONS: [&str; 18] = [
    "mask",
    "masks",
    "label",
    "labels",
    "annotation",
    "annotations",
    "annot",
    "annots",
    "segmentation",
    "segmentations",
    "trimap",
    "trimaps",
    "bbox",
    "bboxes",
    "xml",
    "xmls",
    "groundtruth",
    "gt",
];

/// A name that stands for a split, and the words in it that do not say so.
///
/// Two folders whose other words are the same (`cars_train`, `cars_test`) are two splits of one
/// set; `train_station` and `test_tube` are not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SplitName {
    /// The split.
    pub split: Split,
    /// The other words, joined.
    pub rest: String,
}

/// The split that a word of a table or a folder's name says, and nothing else.
pub(super) fn parse_split(name: &str) -> Option<Split> {
    split_name(name).filter(|found| found.rest.is_empty()).map(|found| found.split)
}

/// The split in a folder's name; `None` if no word or more than one is a split's.
pub(super) fn split_name(name: &str) -> Option<SplitName> {
    let words = words(name);
    let words: Vec<&str> = words.iter().map(String::as_str).filter(|w| !is_filler(w)).collect();
    // `hold-out`, `train_val`.
    if let Some(split) = split_of_word(&words.concat()) {
        return Some(SplitName { split, rest: String::new() });
    }
    let splits: Vec<Split> = words.iter().filter_map(|word| split_of_word(word)).collect();
    let [split] = splits[..] else { return None };
    let rest: Vec<&str> = words.into_iter().filter(|word| split_of_word(word).is_none()).collect();
    Some(SplitName { split, rest: rest.join(" ") })
}

/// Whether a name says only that there are images: `images`, `JPEGImages`, `raw_data`.
pub(super) fn is_container(name: &str) -> bool {
    all_words(name, &|word| CONTAINERS.contains(&word))
}

/// Whether a name says only that images or what describes them are there: `masks`, `annotations`.
pub(super) fn is_no_class(name: &str) -> bool {
    all_words(name, &|word| CONTAINERS.contains(&word) || ANNOTATIONS.contains(&word))
}

fn all_words(name: &str, test: &dyn Fn(&str) -> bool) -> bool {
    let words = words(name);
    // `JPEGImages` has no small letter before its second capital.
    let fused = |word: &str| {
        let mut starts = CONTAINERS.iter().filter_map(|end| word.strip_suffix(end));
        starts.any(|start| CONTAINERS.contains(&start))
    };
    !words.is_empty() && words.iter().all(|word| test(word) || fused(word))
}

fn is_filler(word: &str) -> bool {
    CONTAINERS.contains(&word) || FILLERS.contains(&word)
}

/// The split of a word, also where it is written together with a filler: `trainset`, `imgtest`.
fn split_of_word(word: &str) -> Option<Split> {
    let exact = |word: &str| {
        SPLITS.iter().find(|(_, words)| words.contains(&word)).map(|(split, _)| *split)
    };
    let without = |filler: &&str| {
        let part = word.strip_suffix(filler).or_else(|| word.strip_prefix(filler));
        part.and_then(exact)
    };
    exact(word).or_else(|| CONTAINERS.iter().filter(|w| w.len() > 2).find_map(without))
}

/// The words of a name in small letters, numbers left out: split at everything that is no letter,
/// and before a capital that follows a small letter.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut after_small = false;
    for c in name.chars() {
        if !c.is_alphabetic() || (after_small && c.is_uppercase()) {
            words.push(String::new());
        }
        if c.is_alphabetic() {
            words.last_mut().into_iter().for_each(|word| word.extend(c.to_lowercase()));
        }
        after_small = c.is_lowercase();
    }
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_spellings_are_splits() {
        let train = "train training trainset train_set training_set training-set train_images \
                     images_train seg_train TRAIN Train train_data TrainImages trainingData \
                     train2017 trainval train-val 01_train tr imgs-train trainimages TRAINSET";
        let val = "val valid validation dev eval holdout hold-out held_out valid_set \
                   validation_set valset val2017 VAL evaluation seg_val holdoutset";
        let test = "test testing test_set seg_test test_images predict pred seg_pred unseen \
                    inference Test testImages test_data imgtest images-test";
        for (split, names) in [(Split::Train, train), (Split::Val, val), (Split::Test, test)] {
            for name in names.split_whitespace() {
                assert_eq!(parse_split(name), Some(split), "{name}");
            }
        }
        assert_eq!(parse_split("Training Set"), Some(Split::Train));
        assert_eq!(parse_split("hold out"), Some(Split::Val));
    }

    #[test]
    fn classes_are_no_splits() {
        for name in [
            "rose",
            "trains",
            "trained",
            "testimonial",
            "valley",
            "device",
            "trainer",
            "contest",
            "images",
            "set",
            "0",
            "",
            "train_test",
            "val_test",
            "de",
            "te",
            "va",
            "general",
            "predator",
            "devil",
            "attest",
        ] {
            assert_eq!(parse_split(name), None, "{name}");
        }
        let rest = |name| split_name(name).map(|found| found.rest);
        assert_eq!(rest("train_station"), Some("station".into()));
        assert_ne!(rest("train_station"), rest("test_tube"));
        assert_eq!(rest("cars_train"), rest("Cars-Test"));
    }

    #[test]
    fn containers_are_told_from_classes() {
        for name in
            ["images", "Images", "IMG", "jpg", "JPEGImages", "raw_data", "photos-1", "fold_1"]
        {
            assert!(is_container(name) && is_no_class(name), "{name}");
        }
        for name in ["masks", "image_labels", "Annotations", "trimaps"] {
            assert!(!is_container(name) && is_no_class(name), "{name}");
        }
        for name in ["rose", "photographer", "flower_images", "7", ""] {
            assert!(!is_no_class(name), "{name}");
        }
    }
}
