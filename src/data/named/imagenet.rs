//! ImageNet (ILSVRC2012): training images in folders of WordNet numbers, validation images in such
//! folders too or in one, with their classes in one of several lists.
//!
//! Classes are numbered in two ways: the order of the WordNet numbers, and the devkit's own.

use std::collections::{BTreeSet, HashMap};

use super::super::listing::{Listing, file_part, is_image_name};
use super::super::manifest::Split;
use super::super::matfile::Value;
use super::NamedSet;
use super::join::Labels;
use super::lists::{Line, Lists};
use crate::config::DataConfig;
use crate::error::{Error, Result};

pub(super) const SET: NamedSet = NamedSet {
    name: "imagenet",
    title: "ImageNet",
    home: "ILSVRC2012_img_train.tar (with the archives inside unpacked to train/n01440764/ ...), \
           ILSVRC2012_img_val.tar (to val/) and ILSVRC2012_devkit_t12.tar.gz from \
           https://image-net.org after registration",
    settings: &[],
    is_one: |lists| lists.any(&[SOLUTION, GROUND_TRUTH]) || has_folders(lists.listing),
    read,
};

/// Lists of the validation images: by name with the WordNet number, and by order with the devkit's
/// number.
const SOLUTION: &str = "LOC_val_solution.csv";
const GROUND_TRUTH: &str = "ILSVRC2012_validation_ground_truth.txt";
/// Classes in the order of their WordNet numbers.
const ORDERED: [&str; 2] = ["LOC_synset_mapping.txt", "labels.txt"];
/// Classes with the devkit's numbers.
const NUMBERED: [&str; 2] = ["ILSVRC2012_mapping.txt", "map_clsloc.txt"];
const META: &str = "meta.mat";
const NUM_CLASSES: usize = 1000;

fn read(lists: &Lists, _: &DataConfig) -> Result<Labels> {
    let mut images = in_folders(lists.listing, "train", Split::Train);
    let wnids: BTreeSet<String> = images.iter().map(|(_, wnid, _)| wnid.clone()).collect();
    let held_out = in_folders(lists.listing, "val", Split::Test);
    match held_out.is_empty() {
        false => images.extend(held_out),
        true => images.extend(listed(lists, &wnids)?),
    }
    Ok(Labels::by_name(images))
}

/// Whether there are folders of WordNet numbers in `train`, images right inside, and validation
/// images.
fn has_folders(listing: &Listing) -> bool {
    let Some(train) = base(listing, "train") else { return false };
    let val = train.strip_suffix("train/").map(|around| format!("{around}val/"));
    let mut held_out = val.iter().flat_map(|val| listing.files_below(val));
    let of_val = |path: &str| {
        path.starts_with("ILSVRC2012_val_")
            || path.split_once('/').is_some_and(|(folder, _)| is_wnid(folder))
    };
    let mut images = listing.files_below(&train).filter(|path| is_image_name(path));
    images.next().is_some_and(|path| path.matches('/').count() == 1)
        && held_out.find(|path| is_image_name(path)).is_some_and(of_val)
}

/// The folder `name/` with folders of WordNet numbers inside.
fn base(listing: &Listing, name: &str) -> Option<String> {
    let around = |folder: &String| {
        let (parent, last) = folder.rsplit_once('/')?;
        (is_wnid(last) && file_part(parent) == name).then(|| format!("{parent}/"))
    };
    listing.folders.iter().find_map(around)
}

/// `n` and eight digits.
fn is_wnid(name: &str) -> bool {
    let digits = name.strip_prefix('n').filter(|digits| digits.len() == 8);
    digits.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Images of `NAME/WNID/`, with the class and the split.
fn in_folders(listing: &Listing, name: &str, split: Split) -> Vec<(String, String, Split)> {
    let Some(base) = base(listing, name) else { return Vec::new() };
    let image = |path: &str| {
        let (folder, file) = path.split_once('/')?;
        let is_one = is_wnid(folder) && !file.contains('/') && is_image_name(file);
        is_one.then(|| (format!("{name}/{path}"), folder.to_owned(), split))
    };
    listing.files_below(&base).filter_map(image).collect()
}

/// Validation images that lie in one folder, with the class that a list gives them.
fn listed(lists: &Lists, wnids: &BTreeSet<String>) -> Result<Vec<(String, String, Split)>> {
    let caffe = lists.called("val.txt").find(|id| {
        // Kaggle's list of this name numbers the images and leaves the extension off.
        let first = lists.lines(id).ok().and_then(|lines| lines.into_iter().next());
        first.is_some_and(|line| line.text.contains(".JPEG "))
    });
    let images = match (lists.find(SOLUTION), caffe, lists.find(GROUND_TRUTH)) {
        (Some(id), ..) => solution(lists.lines(id)?)?,
        (_, Some(id), _) => by_order(lists, lists.lines(id)?, wnids)?,
        (.., Some(id)) => by_devkit(lists, lists.lines(id)?)?,
        _ => {
            return Err(Error::Data(format!(
                "val/ has no folders of classes, and what says which image is of which class is \
                 missing: {SOLUTION}, val.txt, or {GROUND_TRUTH} with {META}"
            )));
        }
    };
    Ok(images.into_iter().map(|(image, wnid)| (image, wnid, Split::Test)).collect())
}

/// `ILSVRC2012_val_00048981,n03995372 85 1 499 272`, after a header.
fn solution(lines: Vec<Line>) -> Result<Vec<(String, String)>> {
    let row = |line: Line| {
        let (image, rest) = line.text.split_once(',').unwrap_or_default();
        match rest.split_whitespace().next().filter(|wnid| is_wnid(wnid)) {
            Some(wnid) => Ok((format!("{image}.JPEG"), wnid.to_owned())),
            None => Err(line.unfit("IMAGE,WNID")),
        }
    };
    lines.into_iter().filter(|line| !line.text.starts_with("ImageId")).map(row).collect()
}

/// `ILSVRC2012_val_00000001.JPEG 65`, counted from 0 in the order of the WordNet numbers.
fn by_order(
    lists: &Lists,
    lines: Vec<Line>,
    wnids: &BTreeSet<String>,
) -> Result<Vec<(String, String)>> {
    let list = ORDERED.iter().find_map(|name| lists.find(name));
    let ordered: BTreeSet<String> = match list {
        Some(id) => {
            let first = |line: Line| line.text.split(' ').next().unwrap_or_default().to_owned();
            lists.lines(id)?.into_iter().map(first).collect()
        }
        None => wnids.clone(),
    };
    if ordered.len() != NUM_CLASSES {
        return Err(Error::Data(format!(
            "val.txt counts the classes among all {NUM_CLASSES}, of which {} are known: {} is \
             missing",
            ordered.len(),
            ORDERED[0]
        )));
    }
    let ordered: Vec<String> = ordered.into_iter().collect();
    let row = |line: Line| {
        let (image, class) = line.pair()?;
        match ordered.get(class.number()?) {
            Some(wnid) => Ok((file_part(&image).to_owned(), wnid.clone())),
            None => Err(class.unfit("a class of 0 to 999")),
        }
    };
    lines.into_iter().map(row).collect()
}

/// A number a line, of the image with that number, in the devkit's count of classes.
fn by_devkit(lists: &Lists, lines: Vec<Line>) -> Result<Vec<(String, String)>> {
    let wnid_of = match (lists.find(META), NUMBERED.iter().find_map(|name| lists.find(name))) {
        (Some(id), _) => of_meta(lists, id)?,
        (None, Some(id)) => of_pairs(lists, id)?,
        (None, None) => {
            return Err(Error::Data(format!(
                "{META}, which says what the numbers of {GROUND_TRUTH} mean, is missing"
            )));
        }
    };
    let row = |(i, line): (usize, Line)| match wnid_of.get(&line.number()?) {
        Some(wnid) => Ok((format!("ILSVRC2012_val_{:08}.JPEG", i + 1), wnid.clone())),
        None => Err(line.unfit("a class of the devkit")),
    };
    lines.into_iter().enumerate().map(row).collect()
}

/// The devkit's table of all nodes of the tree; classes are those without children.
fn of_meta(lists: &Lists, id: &str) -> Result<HashMap<usize, String>> {
    let Value::Structs(synsets) = lists.value(id, "synsets")? else {
        return Err(Error::Data(format!("{id}: `synsets` should be a struct array")));
    };
    let field = |name| {
        let missing = || Error::Data(format!("{id}: `synsets` should have a field `{name}`"));
        synsets.field(name).ok_or_else(missing)
    };
    let numbers = field("ILSVRC2012_ID")?.into_iter().zip(field("num_children")?);
    let classes = numbers.zip(field("WNID")?).filter_map(|((number, children), wnid)| {
        let is_class = children.number() == Some(0.0);
        is_class.then_some((number.number()? as usize, wnid.text()?.to_owned()))
    });
    Ok(classes.collect())
}

/// `1 n02119789` or `n02119789 1 kit_fox`.
fn of_pairs(lists: &Lists, id: &str) -> Result<HashMap<usize, String>> {
    let row = |line: Line| {
        let words: Vec<&str> = line.text.split_whitespace().take(2).collect();
        let pair = match words[..] {
            [wnid, number] | [number, wnid] if is_wnid(wnid) => {
                number.parse().ok().map(|number| (number, wnid.to_owned()))
            }
            _ => None,
        };
        pair.ok_or_else(|| line.unfit("NUMBER WNID"))
    };
    lists.lines(id)?.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::tests::{Miniature, annotation, counts, refused};
    use crate::data::Manifest;

    const WNIDS: [&str; 2] = ["n01440764", "n07920052"];

    fn miniature(base: &str) -> Miniature {
        let train = WNIDS.map(|wnid| format!("{base}train/{wnid}/{wnid}_10026.JPEG"));
        Miniature::new().images(train)
    }

    fn flat(base: &str) -> Miniature {
        let val = (1..=3).map(|i| format!("{base}val/ILSVRC2012_val_0000000{i}.JPEG"));
        miniature(base).images(val)
    }

    /// The class of each validation image, by the number of the image.
    fn classes(manifest: &Manifest) -> Vec<&str> {
        let mut of: BTreeMap<&str, &str> = BTreeMap::new();
        for sample in manifest.samples.iter().filter(|sample| sample.id.contains("val/")) {
            let (_, name) = sample.id.rsplit_once('/').unwrap();
            of.insert(name, &manifest.classes[sample.label.unwrap()]);
        }
        of.into_values().collect()
    }

    #[test]
    fn both_are_folders_or_a_list_has_the_validation_images() {
        let val = [(2, 0), (1, 1), (3, 1)];
        let folders = val.map(|(i, c)| format!("val/{}/ILSVRC2012_val_0000000{i}.JPEG", WNIDS[c]));
        let kaggle = "ILSVRC/Data/CLS-LOC/";
        let meta = include_bytes!("../../../tests/golden/structs_packed.mat");
        let ordered: String = (0..998).map(|i| format!("n{:08} x\n", 20_000_000 + i)).collect();
        let ordered = format!("LOC_synset_mapping.txt=n07920052 a\nn01440764 tench, x\n{ordered}");
        let forms = [
            miniature("").images(folders).images(["test/1.JPEG"]),
            flat(kaggle)
                .list(
                    "LOC_val_solution.csv=ImageId,PredictionString\nILSVRC2012_val_00000002,\
                       n01440764 1 2 3 4\nILSVRC2012_val_00000003,n07920052 1 2 3 4 n07920052 1 2 \
                       3 4\nILSVRC2012_val_00000001,n07920052 1 2 3 4\n",
                )
                .list("ILSVRC/ImageSets/CLS-LOC/val.txt=ILSVRC2012_val_00000001 1\n")
                .images([format!("{kaggle}test/ILSVRC2012_test_00000001.JPEG")]),
            flat("")
                .list(
                    "meta/val.txt=ILSVRC2012_val_00000001.JPEG 1\nILSVRC2012_val_00000002.JPEG 0\n\
                       ILSVRC2012_val_00000003.JPEG 1",
                )
                .list(&ordered),
            flat("")
                .list("d/data/ILSVRC2012_validation_ground_truth.txt=1\n2\n1\n")
                .bytes("d/data/meta.mat", meta),
            flat("")
                .list("ILSVRC2012_validation_ground_truth.txt=1\n2\n1\n")
                .list("ILSVRC2012_mapping.txt=1 n07920052\n2 n01440764\n"),
            // Ten classes of ImageNet as a course site packs them, under both names.
            miniature("imagenette2/")
                .images(val.map(|(i, c)| {
                    format!("imagenette2/val/{}/ILSVRC2012_val_0000000{i}.JPEG", WNIDS[c])
                }))
                .list("imagenette2/noisy_imagenette.csv=path,noisy_labels_0,is_valid\n"),
            // The blacklist is of another task.
            flat("")
                .list("ILSVRC2014_clsloc_validation_blacklist.txt=1\n2\n")
                .list("ILSVRC2012_validation_ground_truth.txt=1\r\n2\r\n1")
                .list("map_clsloc.txt=n07920052 1 eggnog\r\nn01440764 2 tench\r\n"),
        ];
        for (i, mini) in forms.into_iter().enumerate() {
            let opened = mini.open();
            assert_eq!(opened.manifest.name, "imagenet", "{i}");
            assert_eq!(opened.manifest.classes, WNIDS, "{i}");
            assert_eq!(counts(&opened.manifest), [2, 0, 3], "{i}");
            assert_eq!(classes(&opened.manifest), [WNIDS[1], WNIDS[0], WNIDS[1]], "{i}");
        }
    }

    #[test]
    fn what_cannot_be_joined_is_refused_with_what_is_missing() {
        let text = refused(flat(""));
        assert!(text.contains("val.txt, or ILSVRC2012_validation_ground_truth.txt with"), "{text}");
        assert!(text.contains("image-net.org"), "{text}");
        let text = refused(flat("").list("ILSVRC2012_validation_ground_truth.txt=1\n2\n1\n"));
        assert!(text.contains("meta.mat, which says what the numbers"), "{text}");
        let text = refused(flat("").list("val.txt=ILSVRC2012_val_00000001.JPEG 1"));
        assert!(text.contains("of which 2 are known: LOC_synset_mapping.txt is missing"), "{text}");
        let numbers = flat("").list("val.txt=ILSVRC2012_val_00000001 1");
        assert!(refused(numbers).contains("which image is of which class is missing"));
        let solution = "LOC_val_solution.csv=ILSVRC2012_val_00000001,n01440764\n\
                        ILSVRC2012_val_00000009,n01440764\n";
        let text = refused(flat("").list(solution));
        assert!(text.contains("is missing:\n  ILSVRC2012_val_00000009.JPEG"), "{text}");
        let text = refused(flat("").list("LOC_val_solution.csv=ILSVRC2012_val_00000001,tench\n"));
        assert!(text.contains("LOC_val_solution.csv, line 1 should have IMAGE,WNID"), "{text}");
        // Another set, whose images lie a folder deeper.
        let tiny = Miniature::new()
            .images(["train/n01440764/images/n01440764_0.JPEG", "val/images/val_0.JPEG"])
            .list("val/val_annotations.txt=val_0.JPEG\tn01440764");
        assert!(refused(tiny).contains("looks like Tiny ImageNet"));
    }

    #[test]
    fn every_genuine_list_gives_the_same_fifty_thousand() {
        let names = [
            "LOC_val_solution.csv",
            "ILSVRC2012_validation_ground_truth.txt",
            "ILSVRC2012_mapping.txt",
            "map_clsloc.txt",
            "validation_labels.txt",
            "LOC_synset_mapping.txt",
        ];
        let [Some(solution), Some(truth), Some(mapping), Some(clsloc), Some(expected), Some(names)] =
            names.map(|name| annotation("imagenet", name))
        else {
            return;
        };
        let expected = std::fs::read_to_string(expected).unwrap();
        let expected: Vec<&str> = expected.lines().map(str::trim).collect();
        let text = std::fs::read_to_string(&names).unwrap();
        let wnids: Vec<&str> = text.lines().map(|line| &line[..9]).collect();
        let train = wnids.iter().map(|wnid| format!("train/{wnid}/{wnid}_1.JPEG"));
        let name = |i: usize| format!("ILSVRC2012_val_{:08}.JPEG", i + 1);
        let val = (0..expected.len()).map(|i| format!("val/{}", name(i)));
        let mini = Miniature::new().images(train).images(val);
        let caffe = expected.iter().enumerate().map(|(i, wnid)| {
            let index = wnids.iter().position(|other| other == wnid).unwrap();
            format!("{} {index}\n", name(i))
        });
        let caffe: String = caffe.collect();
        let truth = |mini: Miniature| mini.file(super::GROUND_TRUTH, &truth);
        for mini in [
            mini.clone().file("LOC_val_solution.csv", &solution),
            truth(mini.clone()).file("devkit/ILSVRC2012_mapping.txt", &mapping),
            truth(mini.clone()).file("map_clsloc.txt", &clsloc),
            mini.list(&format!("meta/val.txt={caffe}")),
        ] {
            let manifest = mini.open().manifest;
            assert_eq!(counts(&manifest), [1000, 0, 50_000]);
            assert_eq!(manifest.classes, wnids);
            assert!(classes(&manifest) == expected, "the labels of other software");
        }
    }
}
