//! Oxford-IIIT Pets: one folder of images, two lists of name, class, species and breed.

use std::collections::BTreeMap;

use super::super::manifest::Split;
use super::NamedSet;
use super::join::{Labels, Row};
use super::lists::{Line, Lists};
use crate::config::DataConfig;
use crate::error::{Error, Result};

pub(super) const SET: NamedSet = NamedSet {
    name: "pets",
    title: "Oxford-IIIT Pets",
    home: "images.tar.gz and annotations.tar.gz from \
           https://www.robots.ox.ac.uk/~vgg/data/pets/ belong into one folder",
    settings: &[],
    is_one,
    read,
};

/// Many sets have lists of these names; the columns tell.
fn is_one(lists: &Lists) -> bool {
    let names = ["trainval.txt", "test.txt", "list.txt"];
    let at_root = names.into_iter().filter_map(|name| lists.find(name).filter(|id| *id == name));
    let beside = names.map(|name| format!("annotations/{name}"));
    let mut found = at_root.chain(beside.iter().filter_map(|name| lists.find(name)));
    found.any(|id| {
        let first = lists.lines(id).ok().and_then(|lines| lines.into_iter().next());
        first.is_some_and(|line| columns(&line).is_ok())
    })
}

fn read(lists: &Lists, _: &DataConfig) -> Result<Labels> {
    let (mut rows, mut names) = (Vec::new(), BTreeMap::new());
    let [train, test] = lists.require(["trainval.txt", "test.txt"])?;
    for (id, split) in [(train, Split::Train), (test, Split::Test)] {
        for line in lists.lines(id)? {
            let (image, class) = columns(&line)?;
            let name = image.rsplit_once('_').map_or(image, |(name, _)| name);
            let known = names.entry(class).or_insert_with(|| name.to_owned());
            if known != name {
                return Err(Error::Data(format!(
                    "{} has class {class} for {name}, which is {known}",
                    line.at
                )));
            }
            rows.push(Row { image: format!("{image}.jpg"), class, split });
        }
    }
    Ok(Labels::new(rows, names))
}

/// The image and its class of 1 to 37. The last column counts breeds within a species.
fn columns(line: &Line) -> Result<(&str, usize)> {
    let columns: Vec<&str> = line.text.split_whitespace().collect();
    let class = match columns[..] {
        [image, class, species, breed] => {
            let is_number = |text: &str| text.parse::<u8>().is_ok();
            let others = is_number(species) && is_number(breed);
            class.parse().ok().filter(|class| others && *class > 0).map(|class| (image, class))
        }
        _ => None,
    };
    class.ok_or_else(|| line.unfit("IMAGE CLASS SPECIES BREED"))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Miniature, annotation, counts, refused};
    use crate::config::Depth;
    use crate::data::look::look_at_all;
    use crate::data::source::tests::{config, data_file};
    use crate::data::{Split, Treatment, check, source};

    const TRAINVAL: &str = "annotations/trainval.txt=Abyssinian_1 1 1 1\nAbyssinian_2 1 1 1\n\
                            american_bulldog_10 2 2 1\r\nBirman_3 7 1 4";
    const TEST: &str = "annotations/test.txt=# a comment\nAbyssinian_5 1 1 1\nBirman_8 7 1 4\n";
    const IMAGES: [&str; 6] = [
        "Abyssinian_1",
        "Abyssinian_2",
        "american_bulldog_10",
        "Birman_3",
        "Abyssinian_5",
        "Birman_8",
    ];

    #[test]
    fn classes_are_numbered_and_a_part_keeps_its_own() {
        for (images, lists) in [("images", ""), ("images/images", "annotations/"), ("jpg", "x/y/")]
        {
            let mut mini = Miniature::new().list(&format!("{lists}{TRAINVAL}"));
            mini = mini.list(&format!("{lists}{TEST}")).list("annotations/trimaps/Birman_3.png=");
            let files = IMAGES.map(|image| format!("{images}/{image}.jpg"));
            let opened = mini.images(&files).images(["images/Abyssinian_82.jpg"]).open();
            let manifest = &opened.manifest;
            assert_eq!(manifest.classes, ["Abyssinian", "american_bulldog", "Birman"]);
            assert_eq!(counts(manifest), [4, 0, 2]);
            let test = manifest.indices(Split::Test);
            assert_eq!(manifest.samples[test[1]].id, format!("{images}/Birman_8.jpg"));
            assert_eq!(manifest.samples[test[1]].label, Some(2));
            let as_published = |s: &crate::data::Sample| s.treatment == Treatment::PUBLISHED;
            assert!(manifest.samples.iter().all(as_published));
            let notes = opened.warnings.join("\n");
            assert!(notes.contains("4 of 3680 training and 2 of 3669 test"), "{notes}");
            let lone = "1 image is in no list of the set and left out: images/Abyssinian_82.jpg";
            assert_eq!(
                notes.contains(lone),
                images != "jpg" && images != "images/images",
                "{notes}"
            );
        }
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let files = IMAGES.map(|image| format!("images/{image}.jpg"));
        let mini = || Miniature::new().list(TEST).images(&files);
        let text = refused(mini());
        assert!(text.contains("looks like Oxford-IIIT Pets: trainval.txt is missing"), "{text}");
        assert!(text.contains("https://www.robots.ox.ac.uk"), "{text}");
        let text = refused(mini().list(&format!("{TRAINVAL}\nBirman_9 7 1 4\n")));
        assert!(text.contains("1 image that the lists name is missing:\n  Birman_9.jpg"), "{text}");
        let text = refused(mini().list(&format!("{TRAINVAL}\nBirman_8 2 1 4\n")));
        assert!(
            text.contains("line 5 has class 2 for Birman, which is american_bulldog"),
            "{text}"
        );
        let text = refused(mini().list(&format!("{TRAINVAL}\nBirman_8 7\n")));
        assert!(text.contains("line 5 should have IMAGE CLASS SPECIES BREED"), "{text}");
        let text = refused(Miniature::new().list(TEST).list(TRAINVAL));
        assert!(text.contains("6 images that the lists name are missing"), "{text}");
    }

    #[test]
    fn other_lists_of_these_names_are_not_pets() {
        let trees = ["ash/1.jpg", "ash/2.jpg", "oak/1.jpg", "oak/2.jpg"];
        let mini = Miniature::new().images(trees);
        let mini = mini.list("trainval.txt=2007_000032\n").list("test.txt=nothing 1 2 cat\n");
        assert_eq!(mini.clone().open().manifest.classes, ["ash", "oak"]);
        let text = refused(mini.list("annotations/list.txt=2007_000032 1\n"));
        assert!(text.contains("annotations/ holds 1 file, none with the extension"), "{text}");
    }

    #[test]
    fn the_genuine_lists_give_the_papers_split() {
        let lists = ["trainval.derived.txt", "test.derived.txt", "list.txt"];
        let [Some(train), Some(test), Some(all)] = lists.map(|name| annotation("pets", name))
        else {
            return;
        };
        let text = std::fs::read_to_string(&all).unwrap();
        let ids = text.lines().filter(|line| !line.starts_with('#'));
        let ids = ids.map(|line| format!("images/{}.jpg", line.split(' ').next().unwrap()));
        let junk = (0..41).map(|i| format!("images/junk_{i}.jpg"));
        let mini = Miniature::new()
            .file("annotations/annotations/trainval.txt", &train)
            .file("annotations/annotations/test.txt", &test)
            .file("annotations/annotations/list.txt", &all)
            .images(ids.chain(junk))
            .images(["annotations/trimaps/Abyssinian_1.png"]);
        let opened = mini.open();
        assert_eq!(counts(&opened.manifest), [3680, 0, 3669]);
        assert_eq!(opened.manifest.classes.len(), 37);
        assert_eq!(opened.manifest.classes[1], "american_bulldog");
        assert_eq!(
            opened.describe(),
            "Oxford-IIIT Pets with the paper's counts, 37 classes, 3680 train + 3669 test images"
        );
        assert!(
            opened.warnings[0].starts_with("41 images are in no list"),
            "{:?}",
            opened.warnings
        );
    }

    #[test]
    fn the_part_at_hand_is_read_as_it_lies() {
        let Some(path) = data_file("pets-7.tar") else { return };
        let opened = source::open_noting(&path, &config(), 1).unwrap();
        assert_eq!(counts(&opened.manifest), [700, 0, 698]);
        let classes = opened.manifest.classes.iter().map(String::as_str);
        assert_eq!(
            classes.collect::<Vec<_>>()[1..4],
            ["american_bulldog", "Bengal", "german_shorthaired"]
        );
        let notes = opened.warnings.join("\n");
        assert!(notes.contains("700 of 3680 training and 698 of 3669 test"), "{notes}");
        assert!(notes.contains("2 images are in no list of the set"), "{notes}");
        let found = look_at_all(&opened.manifest, Depth::Pil, 2, &|_, _| ());
        let report = check::check(&opened.manifest, &found).report;
        assert_eq!((report.bad.len(), report.alpha), (0, 1), "{:?}", report.bad);
    }
}
