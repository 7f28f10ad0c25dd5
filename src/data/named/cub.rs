//! CUB-200-2011: four lists that belong together by the number of the image.

use std::collections::{BTreeMap, HashMap};

use super::super::manifest::Split;
use super::NamedSet;
use super::join::{Labels, Row};
use super::lists::{Line, Lists};
use crate::config::DataConfig;
use crate::error::{Error, Result};

pub(super) const SET: NamedSet = NamedSet {
    name: "cub-200-2011",
    title: "CUB-200-2011",
    home: "CUB_200_2011.tgz from https://data.caltech.edu/records/65de6-vp158 has images and lists",
    settings: &[],
    is_one: |lists| lists.any(&["train_test_split.txt", "image_class_labels.txt"]),
    read,
};

fn read(lists: &Lists, _: &DataConfig) -> Result<Labels> {
    let [images, labels, splits, classes] = lists.require([
        "images.txt",
        "image_class_labels.txt",
        "train_test_split.txt",
        "classes.txt",
    ])?;
    let by_id =
        |id| -> Result<HashMap<String, Line>> { Ok(lists.pairs(id)?.into_iter().collect()) };
    let (label_of, split_of) = (by_id(labels)?, by_id(splits)?);
    let mut rows = Vec::new();
    for (id, image) in lists.pairs(images)? {
        let (Some(label), Some(split)) = (label_of.get(&id), split_of.get(&id)) else {
            return Err(Error::Data(format!(
                "{}: image {id} is not in both {labels} and {splits}",
                image.at
            )));
        };
        let split = match split.number()? {
            0 => Split::Test,
            1 => Split::Train,
            _ => return Err(split.unfit("1 for training or 0")),
        };
        rows.push(Row { image: image.text, class: label.number()?, split });
    }
    let number = |(number, name): (String, Line)| match number.parse() {
        Ok(number) => Ok((number, name.text)),
        Err(_) => Err(name.unfit("NUMBER CLASS")),
    };
    let names: Result<BTreeMap<usize, String>> =
        lists.pairs(classes)?.into_iter().map(number).collect();
    Ok(Labels::new(rows, names?))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Miniature, annotation, counts, refused};
    use crate::data::source::tests::{config, data_file};
    use crate::data::{Split, source};

    const LISTS: [&str; 4] = [
        "images.txt=1 001.Black_footed_Albatross/Black_Footed_1.jpg\n2 001.Black_footed_Albatross/2.jpg\n\
         3 007.Auklet/3.jpg\n4 007.Auklet/4.jpg\n",
        // In another order than the images: the number counts, not the line.
        "image_class_labels.txt=4 7\n3 7\n2 1\n1 1\n",
        "train_test_split.txt=2 0\n1 1\n4 1\n3 0\n",
        "classes.txt=1 001.Black_footed_Albatross\n2 002.Laysan\n7 007.Auklet\n",
    ];
    const IMAGES: [&str; 5] = [
        "001.Black_footed_Albatross/Black_Footed_1.jpg",
        "001.Black_footed_Albatross/2.jpg",
        "007.Auklet/3.jpg",
        "007.Auklet/4.jpg",
        "007.Auklet/4_rgb.jpg",
    ];

    fn miniature(root: &str) -> Miniature {
        let files = IMAGES.map(|image| format!("{root}images/{image}"));
        let mini = Miniature::new().images(&files).list("attributes.txt=1 has_bill::curved\n");
        LISTS.iter().fold(mini, |mini, list| mini.list(&format!("{root}{list}")))
    }

    #[test]
    fn lists_belong_together_by_the_number_of_the_image() {
        for root in ["", "CUB_200_2011/", "CUB_200_2011/CUB_200_2011/"] {
            let opened = miniature(root).open();
            let manifest = &opened.manifest;
            assert_eq!(manifest.classes, ["001.Black_footed_Albatross", "007.Auklet"]);
            assert_eq!(counts(manifest), [2, 0, 2]);
            let train = manifest.indices(Split::Train);
            let train: Vec<_> = train.iter().map(|&i| &manifest.samples[i]).collect();
            assert!(train[0].id.ends_with("Black_Footed_1.jpg") && train[0].label == Some(0));
            assert!(train[1].id.ends_with("4.jpg") && train[1].label == Some(1));
            assert!(opened.warnings[1].contains("4_rgb.jpg"), "{:?}", opened.warnings);
        }
    }

    /// As a download site sorts them: the lists still say what is for what.
    #[test]
    fn images_sorted_into_splits_are_joined_too() {
        let files = ["val/", "train/", "train/", "val/"];
        let files = files.iter().zip([1, 0, 3, 2]).map(|(split, i)| (split, IMAGES[i]));
        let files = files.map(|(split, image)| format!("images_train_test/{split}{image}"));
        let mini = LISTS.iter().fold(Miniature::new().images(files), |mini, list| mini.list(list));
        let manifest = mini.open().manifest;
        assert_eq!((manifest.name.as_str(), counts(&manifest)), ("cub-200-2011", [2, 0, 2]));
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let text = refused(miniature("").without("image_class_labels.txt"));
        assert!(text.contains("CUB-200-2011: image_class_labels.txt is missing"), "{text}");
        let text = refused(miniature("").list("image_class_labels.txt=1 1\n2 1\n3 7\n"));
        assert!(text.contains("images.txt, line 4: image 4 is not in both"), "{text}");
        let text = refused(miniature("").list("train_test_split.txt=1 1\n2 2\n3 0\n4 1\n"));
        assert!(text.contains("train_test_split.txt, line 2 should have 1 for training"), "{text}");
        let text = refused(miniature("").without("images/007.Auklet/4.jpg"));
        assert!(text.contains("is missing:\n  007.Auklet/4.jpg"), "{text}");
        // CUB-200 of 2010 is another set, with 3,000 training images.
        let text = refused(Miniature::new().images(IMAGES).list("lists/train.txt=x"));
        assert!(text.contains("looks like CUB-200 as published"), "{text}");
    }

    #[test]
    fn the_genuine_lists_give_the_papers_split() {
        let lists = ["images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt"];
        let [Some(images), Some(labels), Some(splits), Some(classes)] =
            lists.map(|name| annotation("cub200", name))
        else {
            return;
        };
        let text = std::fs::read_to_string(&images).unwrap();
        let ids = text.lines().map(|line| line.split_once(' ').unwrap().1);
        let opened = Miniature::new()
            .file("CUB_200_2011/images.txt", &images)
            .file("CUB_200_2011/image_class_labels.txt", &labels)
            .file("CUB_200_2011/train_test_split.txt", &splits)
            .file("CUB_200_2011/classes.txt", &classes)
            .images(ids.map(|id| format!("CUB_200_2011/images/{id}")))
            .images(["segmentations/001.Black_footed_Albatross/1.png"])
            .open();
        assert_eq!(counts(&opened.manifest), [5994, 0, 5794]);
        assert_eq!(opened.manifest.classes.len(), 200);
        let as_folder = opened.manifest.samples.iter().all(|sample| {
            sample.id.split('/').nth(2) == Some(&opened.manifest.classes[sample.label.unwrap()])
        });
        assert!(as_folder);
        assert_eq!(opened.warnings, [""; 0]);
    }

    #[test]
    fn the_part_at_hand_is_read_as_it_lies() {
        let Some(path) = data_file("cub-45.tar") else { return };
        let opened = source::open_noting(&path, &config(), 1).unwrap();
        assert_eq!(counts(&opened.manifest), [1350, 0, 1239]);
        assert_eq!(opened.manifest.classes.len(), 45);
        assert!(opened.warnings[0].contains("1350 of 5994 training"), "{:?}", opened.warnings);
        source::check_labelled(&opened.manifest).unwrap();
    }
}
