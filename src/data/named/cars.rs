//! Stanford Cars in its three forms: two folders with the annotations of the devkit, one folder
//! with `cars_annos.mat`, and folders of classes with tables.

use super::super::manifest::Split;
use super::super::matfile::Value;
use super::NamedSet;
use super::join::{Labels, Row};
use super::lists::Lists;
use crate::config::DataConfig;
use crate::error::{Error, Result};

pub(super) const SET: NamedSet = NamedSet {
    name: "cars",
    title: "Stanford Cars",
    home: "cars_train.tgz, cars_test.tgz, car_devkit.tgz and cars_test_annos_withlabels.mat belong \
           into one folder, or car_ims.tgz and cars_annos.mat; their first host is gone, mirrors \
           of these names have them",
    settings: &[],
    is_one: |lists| {
        let of_devkit = [META, TRAIN, "cars_test_annos.mat", TEST, ALL];
        lists.any(&of_devkit) || (lists.any(&["anno_train.csv"]) && lists.any(&["names.csv"]))
    },
    read,
};

const META: &str = "cars_meta.mat";
const TRAIN: &str = "cars_train_annos.mat";
const TEST: &str = "cars_test_annos_withlabels.mat";
/// What download sites and browsers make of that name.
const TEST_COPIES: [&str; 3] =
    [TEST, "cars_test_annos_withlabels", "cars_test_annos_withlabels (1).mat"];
const ALL: &str = "cars_annos.mat";

fn read(lists: &Lists, _: &DataConfig) -> Result<Labels> {
    let folder =
        |name: &str| lists.listing.folders.iter().any(|id| format!("/{id}").ends_with(name));
    match lists.find(ALL) {
        Some(all) if folder("/car_ims") => of_one_folder(lists, all),
        None if !lists.any(&[META, TRAIN, TEST, "cars_test_annos.mat"]) => of_classes(lists),
        _ => of_two_folders(lists).map_err(|e| match lists.find(ALL) {
            Some(all) => Error::Data(format!("{e}; {all} is about the files of car_ims.tgz alone")),
            None => e,
        }),
    }
}

/// `cars_train/` and `cars_test/`, with two struct arrays.
fn of_two_folders(lists: &Lists) -> Result<Labels> {
    let test = TEST_COPIES.into_iter().find(|name| lists.any(&[name])).unwrap_or(TEST);
    let [meta, train, test] = lists.require([META, TRAIN, test])?;
    let mut rows = Vec::new();
    for (id, folder, split) in
        [(train, "cars_train", Split::Train), (test, "cars_test", Split::Test)]
    {
        let annotations = Annotations::read(lists, id)?;
        let (names, classes) = (annotations.texts("fname")?, annotations.numbers("class")?);
        let row = |(name, class)| Row { image: format!("{folder}/{name}"), class, split };
        rows.extend(names.into_iter().zip(classes).map(row));
    }
    labels(rows, class_names(lists, meta)?, train)
}

/// `car_ims/`, with one struct array that also says what is for the test.
fn of_one_folder(lists: &Lists, id: &str) -> Result<Labels> {
    let annotations = Annotations::read(lists, id)?;
    let images = annotations.texts("relative_im_path")?;
    let (classes, tests) = (annotations.numbers("class")?, annotations.numbers("test")?);
    let row = |((image, class), test): ((String, usize), usize)| {
        let split = if test == 0 { Split::Train } else { Split::Test };
        Row { image, class, split }
    };
    let rows = images.into_iter().zip(classes).zip(tests).map(row).collect();
    labels(rows, class_names(lists, id)?, id)
}

/// `train/CLASS/` and `test/CLASS/`, with tables without a header: name, box, class.
fn of_classes(lists: &Lists) -> Result<Labels> {
    let [train, test, names] = lists.require(["anno_train.csv", "anno_test.csv", "names.csv"])?;
    let names = lists.lines(names)?.into_iter().map(|line| line.text.trim_matches('"').to_owned());
    let names: Vec<String> = names.collect();
    let mut rows = Vec::new();
    for (id, folder, split) in [(train, "train", Split::Train), (test, "test", Split::Test)] {
        for line in lists.lines(id)? {
            let fields: Vec<&str> = line.text.split(',').map(str::trim).collect();
            let class = match fields[..] {
                [image, .., class] => class.parse().ok().map(|class: usize| (image, class)),
                _ => None,
            };
            let (image, class) = class.ok_or_else(|| line.unfit("IMAGE,BOX,CLASS"))?;
            // A folder's name cannot hold the slash of `Ram C/V Cargo Van Minivan 2012`.
            let name = names.get(class.wrapping_sub(1)).map(|name| name.replace('/', "-"));
            let name = name.ok_or_else(|| line.unfit("a class of names.csv"))?;
            rows.push(Row { image: format!("{folder}/{name}/{image}"), class, split });
        }
    }
    labels(rows, names, train)
}

/// Rows whose classes count from 1 into the names.
fn labels(rows: Vec<Row>, names: Vec<String>, id: &str) -> Result<Labels> {
    let outside = rows.iter().find(|row| !(1..=names.len()).contains(&row.class));
    match outside {
        Some(Row { image, class, .. }) => Err(Error::Data(format!(
            "{id} has class {class} for {image}, but there are {} names of classes",
            names.len()
        ))),
        None => Ok(Labels::new(rows, (1..).zip(names).collect())),
    }
}

fn class_names(lists: &Lists, id: &str) -> Result<Vec<String>> {
    let names = match lists.value(id, "class_names")? {
        Value::Cells(names) => {
            names.iter().map(|name| name.text().map(str::to_owned)).collect::<Option<_>>()
        }
        _ => None,
    };
    names.ok_or_else(|| Error::Data(format!("{id}: `class_names` should be a list of names")))
}

/// The struct array `annotations` of a file, with its fields by name: the devkit's readme has them
/// in another order than the files.
struct Annotations<'a> {
    id: &'a str,
    structs: super::super::matfile::Structs,
}

impl<'a> Annotations<'a> {
    fn read(lists: &Lists, id: &'a str) -> Result<Self> {
        match lists.value(id, "annotations")? {
            Value::Structs(structs) => Ok(Self { id, structs }),
            _ => Err(Error::Data(format!("{id}: `annotations` should be a struct array"))),
        }
    }

    fn field<T>(&self, name: &str, get: impl Fn(&Value) -> Option<T>) -> Result<Vec<T>> {
        let values = self.structs.field(name);
        let values = values.and_then(|values| values.into_iter().map(get).collect());
        values.ok_or_else(|| {
            Error::Data(format!("{}: `annotations` should have a field `{name}`", self.id))
        })
    }

    fn texts(&self, name: &str) -> Result<Vec<String>> {
        self.field(name, |value| value.text().map(str::to_owned))
    }

    fn numbers(&self, name: &str) -> Result<Vec<usize>> {
        self.field(name, |value| value.number().map(|number| number as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Miniature, annotation, counts, refused};
    use crate::data::Split;

    /// See tests/golden/cars.py.
    const GOLDEN: [(&str, &[u8]); 4] = [
        ("cars_meta.mat", include_bytes!("../../../tests/golden/cars_meta.mat")),
        ("cars_train_annos.mat", include_bytes!("../../../tests/golden/cars_train_annos.mat")),
        (
            "cars_test_annos_withlabels.mat",
            include_bytes!("../../../tests/golden/cars_test_annos_withlabels.mat"),
        ),
        ("cars_annos.mat", include_bytes!("../../../tests/golden/cars_annos.mat")),
    ];

    fn golden(mini: Miniature, folder: &str, which: std::ops::Range<usize>) -> Miniature {
        GOLDEN[which]
            .iter()
            .fold(mini, |mini, (name, bytes)| mini.bytes(&format!("{folder}{name}"), bytes))
    }

    fn two_folders() -> Miniature {
        let train = (1..=3).map(|i| format!("cars_train/cars_train/0000{i}.jpg"));
        let test = (1..=2).map(|i| format!("cars_test/0000{i}.jpg"));
        Miniature::new().images(train.chain(test))
    }

    #[test]
    fn two_folders_are_joined_with_the_devkit() {
        let with_test = |name| golden(two_folders(), "devkit/", 0..2).bytes(name, GOLDEN[2].1);
        for mini in [
            golden(two_folders(), "devkit/", 0..3),
            golden(two_folders(), "car_devkit/devkit/", 0..3),
            with_test("cars_test_annos_withlabels.mat"),
            with_test("cars_test_annos_withlabels"),
            with_test("cars_test_annos_withlabels (1).mat"),
        ] {
            let manifest = mini.open().manifest;
            assert_eq!(manifest.classes, ["Audi 80", "Ram C/V Cargo Van Minivan 2012"]);
            assert_eq!(counts(&manifest), [3, 0, 2]);
            let labels: Vec<_> =
                manifest.samples.iter().map(|s| (s.id.as_str(), s.label)).collect();
            let expected = [
                ("cars_test/00002.jpg", Some(0)),
                ("cars_train/cars_train/00001.jpg", Some(0)),
                ("cars_test/00001.jpg", Some(1)),
                ("cars_train/cars_train/00002.jpg", Some(1)),
                ("cars_train/cars_train/00003.jpg", Some(1)),
            ];
            assert_eq!(labels, expected);
        }
    }

    #[test]
    fn one_folder_is_joined_with_its_own_list() {
        let images = (1..=5).map(|i| format!("car_ims/00000{i}.jpg"));
        let manifest = golden(Miniature::new().images(images), "", 3..4).open().manifest;
        assert_eq!(manifest.classes, ["Audi 80", "Ram C/V Cargo Van Minivan 2012"]);
        assert_eq!(counts(&manifest), [3, 0, 2]);
        let test = manifest.indices(Split::Test);
        assert_eq!(manifest.samples[test[0]].id, "car_ims/000001.jpg");
    }

    #[test]
    fn folders_of_classes_with_tables_are_read() {
        let mini = Miniature::new()
            .list("anno_train.csv=00001.jpg,39,116,569,375,2\n00002.jpg,36,116,868,587,1\n")
            .list("anno_test.csv=00001.jpg,30,52,246,147,2\n")
            .list("names.csv=Audi 80\n\"Ram C/V Cargo Van Minivan 2012\"\n")
            .images([
                "car_data/car_data/train/Ram C-V Cargo Van Minivan 2012/00001.jpg",
                "car_data/car_data/train/Audi 80/00002.jpg",
                "car_data/car_data/test/Ram C-V Cargo Van Minivan 2012/00001.jpg",
            ]);
        let manifest = mini.clone().open().manifest;
        assert_eq!(manifest.classes, ["Audi 80", "Ram C/V Cargo Van Minivan 2012"]);
        assert_eq!(counts(&manifest), [2, 0, 1]);
        let text = refused(mini.clone().list("anno_test.csv=00001.jpg,30,52,246,147,3\n"));
        assert!(text.contains("anno_test.csv, line 1 should have a class of names.csv"), "{text}");
        assert!(refused(mini.without("anno_test.csv")).contains("anno_test.csv is missing"));
    }

    #[test]
    fn what_cannot_be_joined_is_refused_with_what_is_missing() {
        // As a much copied repackaging has it.
        let text = refused(golden(two_folders(), "", 3..4));
        for part in [
            "cars_meta.mat and cars_train_annos.mat and cars_test_annos_withlabels.mat are missing",
            "cars_annos.mat is about the files of car_ims.tgz alone",
        ] {
            assert!(text.contains(part), "{text}");
        }
        let unlabelled =
            golden(two_folders(), "devkit/", 0..2).list("devkit/cars_test_annos.mat=x");
        let text = refused(unlabelled);
        assert!(text.contains(": cars_test_annos_withlabels.mat is missing"), "{text}");
        let text = refused(golden(two_folders(), "", 0..3).bytes("cars_meta.mat", GOLDEN[1].1));
        assert!(text.contains("cars_meta.mat: no array called `class_names`"), "{text}");
        let text =
            refused(golden(two_folders(), "", 0..3).bytes("cars_train_annos.mat", GOLDEN[3].1));
        assert!(
            text.contains("cars_train_annos.mat: `annotations` should have a field `fname`"),
            "{text}"
        );
        let text = refused(golden(two_folders(), "", 0..3).without("cars_test/00002.jpg"));
        assert!(text.contains("is missing:\n  cars_test/00002.jpg"), "{text}");
    }

    #[test]
    fn the_genuine_lists_give_the_papers_split_in_both_forms() {
        let names = GOLDEN.map(|(name, _)| name);
        let [Some(meta), Some(train), Some(test), Some(all)] =
            names.map(|name| annotation("cars", name))
        else {
            return;
        };
        let Some(without_classes) = annotation("cars", "cars_test_annos.mat") else { return };
        let Some(perfect) = annotation("cars", "train_perfect_preds.txt") else { return };
        let images = (1..=8144).map(|i| format!("cars_train/cars_train/{i:05}.jpg"));
        let images = images.chain((1..=8041).map(|i| format!("cars_test/cars_test/{i:05}.jpg")));
        let form_a = Miniature::new()
            .images(images)
            .file("devkit/cars_meta.mat", &meta)
            .file("devkit/cars_train_annos.mat", &train)
            .file("devkit/cars_test_annos.mat", &without_classes);
        let text = refused(form_a.clone());
        assert!(text.contains("cars_test_annos_withlabels.mat is missing"), "{text}");
        let form_a = form_a.file("cars_test_annos_withlabels.mat", &test).open();
        let form_b = Miniature::new()
            .images((1..=16185).map(|i| format!("car_ims/{i:06}.jpg")))
            .file("cars_annos.mat", &all)
            .open();
        for opened in [&form_a, &form_b] {
            assert_eq!(counts(&opened.manifest), [8144, 0, 8041]);
            assert_eq!(opened.manifest.classes.len(), 196);
            assert_eq!(opened.manifest.classes[173], "Ram C/V Cargo Van Minivan 2012");
            assert_eq!(opened.warnings, [""; 0]);
        }
        // The devkit's own predictions, one a line, all of them right.
        let perfect = std::fs::read_to_string(perfect).unwrap();
        let perfect: Vec<usize> =
            perfect.lines().map(|line| line.trim().parse().unwrap()).collect();
        let manifest = &form_a.manifest;
        for i in manifest.indices(Split::Train) {
            let sample = &manifest.samples[i];
            let number: usize = sample.id[22..27].parse().unwrap();
            assert_eq!(sample.label, Some(perfect[number - 1] - 1), "{}", sample.id);
        }
        let sizes = |manifest: &crate::data::Manifest| {
            let mut sizes = vec![0; 196];
            let train = manifest.indices(Split::Train);
            train.iter().for_each(|&i| sizes[manifest.samples[i].label.unwrap()] += 1);
            sizes
        };
        assert_eq!(sizes(&form_a.manifest), sizes(&form_b.manifest));
    }
}
