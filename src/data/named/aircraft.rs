//! FGVC-Aircraft: numbered images, lists of number and class for each of three levels.

use super::super::manifest::Split;
use super::NamedSet;
use super::join::Labels;
use super::lists::{Line, Lists};
use crate::config::{AircraftLabels, DataConfig};
use crate::error::Result;

pub(super) const SET: NamedSet = NamedSet {
    name: "aircraft",
    title: "FGVC-Aircraft",
    home: "fgvc-aircraft-2013b.tar.gz from https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/ \
           has images and lists, fgvc-aircraft-2013b-annotations.tar.gz the lists alone",
    settings: &["data.aircraft_labels", "data.aircraft_banner"],
    is_one: |lists| {
        lists.any(&[
            "images_variant_trainval.txt",
            "images_variant_train.txt",
            "images_variant_val.txt",
            "images_variant_test.txt",
            "images_family_trainval.txt",
            "images_manufacturer_trainval.txt",
        ])
    },
    read,
};

fn read(lists: &Lists, config: &DataConfig) -> Result<Labels> {
    let level = match config.aircraft_labels {
        AircraftLabels::Variant => "variant",
        AircraftLabels::Family => "family",
        AircraftLabels::Manufacturer => "manufacturer",
    };
    let name = |part: &str| format!("images_{level}_{part}.txt");
    let [train, test] = lists.require([&name("trainval"), &name("test")])?;
    let mut images = Vec::new();
    for (id, split) in [(train, Split::Train), (test, Split::Test)] {
        let mut lines = lists.lines(id)?;
        // Some copies have a header.
        if lines.first().is_some_and(|line| !line.text.starts_with(|c: char| c.is_ascii_digit())) {
            lines.remove(0);
        }
        for line in lines {
            // Only the first blank separates: `1025794 Boeing 717`.
            let (number, Line { text: class, .. }) = line.pair()?;
            images.push((format!("{number}.jpg"), class, split));
        }
    }
    let cut_rows = config.aircraft_banner;
    let of_level = (config.aircraft_labels != AircraftLabels::Variant)
        .then(|| format!("the labels are those of the {level}; the paper's are of the variant"));
    let cut = (cut_rows > 0).then(|| format!("{cut_rows} rows are cut off below each image"));
    let notes = of_level.into_iter().chain(cut).collect();
    Ok(Labels { cut_rows, notes, ..Labels::by_name(images) })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Miniature, annotation, counts, refused};
    use crate::config::{AircraftLabels, DataConfig};
    use crate::data::Split;
    use crate::data::source::tests::config;

    const LISTS: [&str; 4] = [
        "data/images_variant_trainval.txt=1025794 707-320\n0034309 Boeing 717\n0056978 F-16A/B\n",
        "data/images_variant_test.txt=1514522 707-320\n0747566 Boeing 717\n1008575 F-16A/B",
        "data/images_family_trainval.txt=Image Family\n1025794 Boeing 707\n0034309 Boeing 717\n\
         0056978 F-16\n",
        "data/images_family_test.txt=Family\n1514522 Boeing 707\n0747566 Boeing 717\n1008575 F-16\n",
    ];

    fn miniature(root: &str) -> Miniature {
        let ids = ["1025794", "0034309", "0056978", "1514522", "0747566", "1008575"];
        let files = ids.map(|id| format!("{root}data/images/{id}.jpg"));
        let mini = Miniature::new().images(&files).list("train.csv=filename,Classes,Labels\n");
        LISTS.iter().fold(mini, |mini, list| mini.list(&format!("{root}{list}")))
    }

    #[test]
    fn class_names_hold_blanks_and_slashes_and_numbers_keep_their_zeros() {
        for root in ["", "fgvc-aircraft-2013b/fgvc-aircraft-2013b/"] {
            let manifest = miniature(root).open().manifest;
            assert_eq!(manifest.classes, ["707-320", "Boeing 717", "F-16A/B"]);
            assert_eq!(counts(&manifest), [3, 0, 3]);
            let train = manifest.indices(Split::Train);
            assert_eq!(manifest.samples[train[1]].id, format!("{root}data/images/0034309.jpg"));
            assert_eq!(manifest.samples[train[1]].treatment.cut_rows, 0);
        }
    }

    #[test]
    fn level_and_banner_are_settings_and_a_header_is_no_image() {
        let with = |labels| DataConfig { aircraft_labels: labels, aircraft_banner: 20, ..config() };
        let opened = miniature("").try_open(&with(AircraftLabels::Family)).unwrap();
        assert_eq!(opened.manifest.classes, ["Boeing 707", "Boeing 717", "F-16"]);
        assert_eq!(counts(&opened.manifest), [3, 0, 3]);
        assert_eq!(
            opened.warnings[..2],
            [
                "the labels are those of the family; the paper's are of the variant",
                "20 rows are cut off below each image"
            ]
        );
        assert!(opened.manifest.samples.iter().all(|sample| sample.treatment.cut_rows == 20));
        let error = miniature("").try_open(&with(AircraftLabels::Manufacturer)).unwrap_err();
        let part = "images_manufacturer_trainval.txt and images_manufacturer_test.txt are missing";
        assert!(error.to_string().contains(part), "{error}");
        let text = refused(miniature("").without("data/images/0747566.jpg"));
        assert!(text.contains("is missing:\n  0747566.jpg"), "{text}");
        let text = refused(miniature("").list("data/images_variant_test.txt=1514522\n"));
        assert!(text.contains("images_variant_test.txt, line 1 should have two columns"), "{text}");
    }

    #[test]
    fn the_genuine_lists_give_the_papers_split_at_every_level() {
        let mut mini = Miniature::new();
        let mut ids = Vec::new();
        for level in ["variant", "family", "manufacturer"] {
            for part in ["trainval", "test"] {
                let name = format!("images_{level}_{part}.txt");
                let Some(path) = annotation("aircraft", &name) else { return };
                let text = std::fs::read_to_string(&path).unwrap();
                let of_list = text.lines().map(|line| format!("data/images/{}.jpg", &line[..7]));
                ids.extend(of_list.filter(|_| level == "variant"));
                mini = mini.file(&format!("data/{name}"), &path);
            }
        }
        let mini = mini.images(ids);
        for (level, names, number) in [
            (AircraftLabels::Variant, "variants.txt", 100),
            (AircraftLabels::Family, "families.txt", 70),
            (AircraftLabels::Manufacturer, "manufacturers.txt", 30),
        ] {
            let config = DataConfig { aircraft_labels: level, ..config() };
            let opened = mini.clone().try_open(&config).unwrap();
            assert_eq!(counts(&opened.manifest), [6667, 0, 3333]);
            let Some(names) = annotation("aircraft", names) else { return };
            let names = std::fs::read_to_string(names).unwrap();
            let names: Vec<&str> = names.lines().map(str::trim).collect();
            assert_eq!(
                (names.len(), opened.manifest.classes),
                (number, names.iter().map(|n| n.to_string()).collect())
            );
            assert_eq!(opened.warnings.len(), usize::from(number != 100), "{:?}", opened.warnings);
        }
    }
}
