use super::super::manifest::SplitOrigin;
use super::*;
use crate::config::OnBadImage;
use std::fs;
use std::io::Write;
use std::path::PathBuf;

pub fn config() -> DataConfig {
    DataConfig {
        on_bad_image: OnBadImage::Error,
        allow_empty_class: false,
        test_fraction: 0.25,
        labels: 0,
        cache_short_side: 256,
        cache_ram_gb: 1.0,
        cache_disk_gb: 0.0,
        cache_folder: String::new(),
        depth: crate::config::Depth::Pil,
        dtd_split: 1,
        aircraft_labels: Default::default(),
        aircraft_banner: 0,
        mean: [0.0; 3],
        std: [1.0; 3],
    }
}

/// A temporary folder with these files; the content is the path, or what follows `=`.
pub fn folder(files: &[&str]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for file in files {
        let (path, content) = file.split_once('=').unwrap_or((file, file));
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    root
}

pub fn data_file(name: &str) -> Option<PathBuf> {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    let root = std::env::var_os("FEWVIT_DATA").map_or(shared, PathBuf::from);
    let path = root.join(name);
    if !path.exists() {
        // Not `eprintln!`, which tests that pass keep to themselves.
        let note = format!("SKIPPED: {} is not there; set FEWVIT_DATA\n", path.display());
        let _ = std::io::stderr().write_all(note.as_bytes());
    }
    path.exists().then_some(path)
}

fn opened(files: &[&str]) -> Opened {
    open_noting(folder(files).path(), &config(), 1).unwrap()
}

fn refused(files: &[&str]) -> String {
    open(folder(files).path(), &config(), 1).unwrap_err().to_string()
}

fn ids(manifest: &Manifest, split: Split) -> Vec<&str> {
    manifest.indices(split).iter().map(|&i| manifest.samples[i].id.as_str()).collect()
}

#[test]
fn split_folders_take_their_classes_from_train() {
    let opened = opened(&[
        "train/b/2.jpg",
        "train/b/10.JPG",
        "train/a/x.png",
        "train/a/deep/y.webp",
        "test/a/1.jpg",
        "test/unknown/1.jpg",
        "dev/b/1.jpg",
        "train/loose.jpg",
        "train/b/.hidden.jpg",
        "train/a/Thumbs.db",
        "__MACOSX/train/a/1.jpg",
        "notes.txt",
        "raw.HEIC",
    ]);
    let manifest = &opened.manifest;
    assert_eq!(manifest.classes, ["a", "b"]);
    assert_eq!(manifest.split_origin, SplitOrigin::Given);
    let train = ["train/a/deep/y.webp", "train/a/x.png", "train/b/10.JPG", "train/b/2.jpg"];
    assert_eq!(ids(manifest, Split::Train), train);
    assert_eq!(ids(manifest, Split::Val), ["dev/b/1.jpg"]);
    assert_eq!(ids(manifest, Split::Test), ["test/a/1.jpg"]);
    assert_eq!(
        opened.describe(),
        "train/val/test folders (dev, test, train), 2 classes, 4 + 1 + 1 images"
    );
    let expected = [
        "1 image outside the class folders are left out: train/loose.jpg",
        "held-out images of 1 class that train/ lacks are left out: unknown",
        "left out: 3 files and folders of the system's: __MACOSX, train/a/Thumbs.db, train/b/.hidden.jpg",
    ];
    assert_eq!(opened.warnings, expected);
    let ignored = BTreeMap::from([("heic".to_owned(), 1), ("txt".to_owned(), 1)]);
    assert_eq!(opened.ignored, ignored);
    check_labelled(manifest).unwrap();
}

#[test]
fn class_folders_are_split_and_flat_folders_are_not() {
    let classes = ["train/1.jpg", "train/2.jpg", "tram/1.jpg", "tram/2.jpg", "loose.jpg"];
    let classes = opened(&classes);
    assert_eq!(classes.manifest.classes, ["train", "tram"], "a class may be called train");
    assert_eq!(classes.manifest.split_origin, SplitOrigin::Made);
    assert_eq!(classes.manifest.indices(Split::Test).len(), 2);
    assert!(classes.warnings[0].contains("loose.jpg"));
    let nested = opened(&["data/a/1.jpg", "data/a/2.jpg", "data/b/1.jpg"]);
    assert_eq!(nested.manifest.classes, ["a", "b"], "the one folder around all is entered");
    let untested = "no test images for 1 class with a single image or a single group: b";
    assert_eq!(nested.warnings[0], untested);

    let flat = opened(&["b.jpg", "a.png"]).manifest;
    assert_eq!(ids(&flat, Split::Train), ["a.png", "b.jpg"]);
    assert_eq!(flat.split_origin, SplitOrigin::Unlabelled);
    assert!(check_labelled(&flat).unwrap_err().to_string().contains("no labels"));
}

#[test]
fn what_cannot_be_used_is_refused_in_words() {
    assert!(refused(&[]).contains("is empty; expected DATA/CLASS"));
    assert!(refused(&["a/notes.txt"]).contains("holds no images, but 1 file, none with"));
    assert!(refused(&["train/1.jpg", "test/1.jpg"]).contains("train/ has no class folders"));
    let root = folder(&["x.zip", "x.tar.gz", "x.tar", "x.7z", "x.doc"]);
    let error = |name: &str| open(&root.path().join(name), &config(), 1).unwrap_err();
    assert!(error("x.7z").to_string().contains("unpack it"));
    assert!(error("x.zip").to_string().contains("is a text file, not an archive"));
    assert!(error("x.tar.gz").to_string().contains("is a text file, not an archive"));
    assert_eq!(error("x.doc").exit_code(), 3);
    assert!(error("x.tar").to_string().contains("tar"), "{}", error("x.tar"));
    let gone = error("gone");
    assert_eq!(gone.exit_code(), 3);
    assert!(gone.to_string().contains("check the spelling"));
    let check = |files: &[&str]| check_labelled(&opened(files).manifest).unwrap_err().to_string();
    assert!(check(&["rose/1.jpg", "rose/2.jpg"]).contains("`rose` is the only class"));
    assert!(check(&["train/a/1.jpg", "train/b/1.jpg"]).contains("no image is held out"));
    let alone = check(&["a/1.jpg", "b/1.jpg"]);
    assert!(alone.contains("no class has two images") && alone.contains("test split"), "{alone}");
    let table = "m.csv=file,label,split\n1.jpg,a,train\n2.jpg,b,test\n3.jpg,a,test\n";
    let root = folder(&[table, "1.jpg", "2.jpg", "3.jpg"]);
    let manifest = open(&root.path().join("m.csv"), &config(), 1).unwrap();
    let error = check_labelled(&manifest).unwrap_err().to_string();
    assert!(error.contains("no training image of b"), "{error}");
}

#[test]
#[cfg(unix)]
fn links_are_followed_and_do_not_go_round() {
    let root = folder(&["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"]);
    let link = |to: &str, at: &str| {
        std::os::unix::fs::symlink(root.path().join(to), root.path().join(at)).unwrap();
    };
    link("a/1.jpg", "b/linked.jpg");
    link("", "b/round");
    link("a", "c");
    let manifest = open(root.path(), &config(), 1).unwrap();
    let mut ids: Vec<&str> = manifest.samples.iter().map(|s| s.id.as_str()).collect();
    ids.sort_unstable();
    let expected =
        ["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg", "b/linked.jpg", "c/1.jpg", "c/2.jpg"];
    assert_eq!(ids, expected);
}

/// Classes, layout sentence and warnings of a folder with these files.
fn recognised(files: &[&str]) -> (Vec<String>, String, Vec<String>) {
    let opened = opened(files);
    (opened.manifest.classes.clone(), opened.describe(), opened.warnings)
}

#[test]
fn split_folders_in_other_spellings_are_splits() {
    let cases: [(&[&str], &str); 8] = [
        (
            &["training_set/a/1.jpg", "test_set/a/1.jpg", "training_set/b/1.jpg"],
            "train/test folders (test_set, training_set), 2 classes, 2 + 1 images",
        ),
        (
            &[
                "seg_train/seg_train/a/1.jpg",
                "seg_train/seg_train/b/1.jpg",
                "seg_test/seg_test/a/1.jpg",
                "seg_pred/seg_pred/1.jpg",
            ],
            "train/test folders (seg_pred, seg_test, seg_train), 2 classes, 2 + 1 images",
        ),
        (
            &["train/a/1.jpg", "train/b/1.jpg", "holdout/a/1.jpg", "test/b/1.jpg"],
            "train/val/test folders (holdout, test, train), 2 classes, 2 + 1 + 1 images",
        ),
        (
            &["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "test/b/1.jpg", "test/a/1.jpg"],
            "train/val/test folders, 2 classes, 2 + 1 + 2 images",
        ),
        (
            &["cars_train/a/1.jpg", "cars_test/a/1.jpg", "cars_train/b/1.jpg"],
            "train/test folders (cars_test, cars_train), 2 classes, 2 + 1 images",
        ),
        (
            &["data/train/train/a/1.jpg", "data/train/train/b/1.jpg", "data/test/a/1.jpg"],
            "train/test folders, 2 classes, 2 + 1 images",
        ),
        (
            &["a/train/1.jpg", "a/test/2.jpg", "b/training/1.jpg", "b/val/1.jpg"],
            "class folders with splits inside, 2 classes, 2 train + 1 val + 1 test images",
        ),
        (
            &["README.md", "images/train/a/1.jpg", "images/train/b/1.jpg", "images/val/b/1.jpg"],
            "train/val folders in images/, 2 classes, 2 + 1 images",
        ),
    ];
    for (files, layout) in cases {
        let (classes, found, warnings) = recognised(files);
        assert_eq!((classes, found.as_str()), (vec!["a".into(), "b".into()], layout));
        let left_out: Vec<&String> =
            warnings.iter().filter(|w| w.contains("outside the class folders")).collect();
        assert_eq!(left_out.len(), usize::from(layout.contains("pred")), "{warnings:?}");
    }
    // Alone among classes, a name of a split is a class.
    for classes in [["test_tube", "train_station"], ["rose", "train"], ["dev", "plane"]] {
        let files = classes.map(|class| [format!("{class}/1.jpg"), format!("{class}/2.jpg")]);
        let files = files.as_flattened().iter().map(String::as_str).collect::<Vec<_>>();
        let (found, layout, _) = recognised(&files);
        assert_eq!(found, classes);
        assert_eq!(
            layout,
            "class folders, 2 classes, 4 images; split drawn by fewvit: 2 train + 2 test"
        );
    }
    let text = refused(&["a/train/1.jpg", "a/test/2.jpg", "b/1.jpg"]);
    assert!(text.contains("1 other not: b/"), "{text}");
    let text = refused(&["train/a/1.jpg", "train/b/1.jpg", "extra/a/1.jpg", "extra/b/1.jpg"]);
    assert!(text.contains("train/ has folders inside as a split has"), "{text}");
    let beside = recognised(&["train/a/1.jpg", "train/b/1.jpg", "unlabelled/1.jpg"]);
    assert_eq!(beside.0, ["a", "b"]);
    assert!(beside.2[0].ends_with("left out: unlabelled/1.jpg"), "{:?}", beside.2);
    let only_test = opened(&["test/a/1.jpg", "test/b/1.jpg"]).manifest;
    assert_eq!(only_test.indices(Split::Test).len(), 2, "a set to measure on");
}

#[test]
fn a_class_is_never_lost_without_a_word() {
    let files = ["ash/1.jpg", "beech/1.jpg", "dogwood/IMG_1", "dogwood/1.png?w640", "ash/IMG_2"];
    let root = folder(&files);
    fs::create_dir(root.path().join("elm")).unwrap();
    fs::create_dir(root.path().join("@eaDir")).unwrap();
    let error = open(root.path(), &config(), 1).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    let text = error.to_string();
    for part in [
        "2 class folders without an image:",
        "dogwood/ holds 2 files, none with the extension of an image that fewvit reads: 1.png?w640, IMG_1",
        "elm/ is empty",
        "--allow-empty-class",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let allowed = DataConfig { allow_empty_class: true, ..config() };
    let opened = open_noting(root.path(), &allowed, 1).unwrap();
    assert_eq!(opened.manifest.classes, ["ash", "beech"]);
    let notes = opened.warnings.join("\n");
    assert!(notes.contains("left out: dogwood/ holds 2 files"), "{notes}");
    assert!(notes.contains("3 files without an image extension are passed over"), "{notes}");

    let root = folder(&["train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg"]);
    fs::create_dir(root.path().join("val")).unwrap();
    fs::create_dir(root.path().join("train/c")).unwrap();
    let text = open(root.path(), &config(), 1).unwrap_err().to_string();
    assert!(text.contains("train/c/ is empty"), "{text}");
    fs::remove_dir(root.path().join("train/c")).unwrap();
    let opened = open_noting(root.path(), &config(), 1).unwrap();
    assert_eq!(
        opened.warnings,
        ["no class folder with images in val/, so nothing is taken from there"]
    );
    let flat = folder(&["1.jpg", "2.jpg"]);
    fs::create_dir(flat.path().join("old")).unwrap();
    let opened = open_noting(flat.path(), &config(), 1).unwrap();
    assert_eq!(opened.describe(), "folder of images, no labels, 2 images");
    assert_eq!(opened.warnings, ["folders without images: old/ is empty"]);
}

#[test]
fn folders_that_name_no_class_are_refused_or_entered() {
    let refusals: [(&[&str], &str); 8] = [
        (&["images/1.jpg", "README.md"], "all images lie directly in images/"),
        (&["JPEGImages/1.jpg"], "all images lie directly in JPEGImages/"),
        (&["images/1.jpg", "masks/1.png"], "are not those of classes: images/, masks/"),
        (&["train/images/1.jpg", "train/labels/1.txt", "test/images/1.jpg"], "train/images/"),
        (&["images/a/1.jpg", "images/b/1.jpg", "lists.txt"], "what lies beside it: lists.txt"),
        (&["images/a/1.jpg", "images/b/1.jpg", "scans/1.pdf"], "what lies beside it: scans/"),
        (
            &["images/001.Albatross/1.jpg", "train_test_split.txt", "images.txt"],
            "looks like CUB-200-2011: image_class_labels.txt and classes.txt are missing",
        ),
        (
            &[
                "images/Abyssinian_1.jpg",
                "annotations/trainval.txt=Abyssinian_1 1 1 1",
                "annotations/trimaps/A.png",
            ],
            "looks like Oxford-IIIT Pets: test.txt is missing",
        ),
    ];
    for (files, part) in refusals {
        let text = refused(files);
        assert!(text.contains(part), "{text}");
    }
    for wrapper in ["images", "flowers"] {
        let files = ["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"];
        let files = files.map(|file| format!("{wrapper}/{file}"));
        let mut files: Vec<&str> = files.iter().map(String::as_str).collect();
        files.push("README.md");
        let (classes, layout, _) = recognised(&files);
        assert_eq!(classes, ["a", "b"]);
        assert!(layout.starts_with(&format!("class folders in {wrapper}/, ")), "{layout}");
    }
    // Published sets that were sorted into folders are what their folders say.
    for list in ["images_variant_trainval.txt", "train_test_split.txt", "TrainImages.txt=a/2.jpg"] {
        let sorted = ["train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg", "test/b/1.jpg", list];
        assert_eq!(recognised(&sorted).0, ["a", "b"], "{list}");
    }
}

#[test]
fn what_fewvit_and_systems_wrote_is_no_class() {
    let files = [
        "ash/1.jpg",
        "ash/2.jpg",
        "beech/1.jpg",
        "beech/2.jpg",
        "ash/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg",
        "$RECYCLE.BIN/1.jpg",
        "#recycle/1.jpg",
        "lost+found/1.jpg",
        "System Volume Information/1.jpg",
        ".thumbnails/1.jpg",
        "runs/x-1/run.json",
        "runs/x-1/plots/1.png",
        "old/config.toml",
        "old/splits.csv",
        "old/1.png",
        "model/config.json",
        "model/model.onnx",
        "model/1.png",
    ];
    let (classes, _, warnings) = recognised(&files);
    assert_eq!(classes, ["ash", "beech"]);
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].starts_with("left out: 6 files and folders of the system's: #recycle, "));
    assert_eq!(warnings[1], "left out: 3 folders that fewvit wrote: model, old, runs/x-1");
    let root = folder(&["run.json", "splits.csv", "plots/1.png"]);
    let text = open(root.path(), &config(), 1).unwrap_err().to_string();
    assert!(text.contains("is a folder that fewvit wrote"), "{text}");
}

#[test]
fn names_that_look_the_same_are_warned_of() {
    let files = ["Rose/1.jpg", "rose/1.jpg", "\u{e9}/A.jpg", "\u{e9}/a.JPG", "e\u{301}/1.jpg"];
    let (classes, _, warnings) = recognised(&files);
    assert_eq!(classes.len(), 4);
    let notes = warnings.join("\n");
    assert!(notes.contains("different classes whose names differ only"), "{notes}");
    assert!(notes.contains("Rose = rose") && notes.contains("e\u{301} = \u{e9}"), "{notes}");
    assert!(notes.contains("different files whose names differ only"), "{notes}");
    assert!(notes.contains("\u{e9}/A.jpg = \u{e9}/a.JPG"), "{notes}");
    let files = [
        "rose/1.jpg",
        "rose /1.jpg",
        "red\u{a0}oak/1.jpg",
        "red oak/1.jpg",
        "o\u{200b}x/1.jpg",
        "ox/1.jpg",
    ];
    let notes = recognised(&files).2.join("\n");
    for alike in [r#"rose = "rose ""#, r#"red oak = "red\u{a0}oak""#, r#"ox = "o\u{200b}x""#] {
        assert!(notes.contains(alike), "{alike}: {notes}");
    }
    let files = ["train/Rose/1.jpg", "train/ox/1.jpg", "test/rose/1.jpg", "test/ox/1.jpg"];
    assert!(recognised(&files).2[0].contains("rose (train has Rose)"));
}

#[test]
fn a_runs_own_splits_are_read_where_its_data_lies() {
    let data = folder(&["b/1.jpg", "a/1.jpg"]);
    let splits =
        "splits.csv=file,label,class,split,digest\nb/1.jpg,0,b,train,x\na/1.jpg,1,a,test,y\n";
    let run = folder(&[splits]);
    let request = serde_json::json!({ "data": data.path() });
    fs::write(run.path().join("run.json"), request.to_string()).unwrap();
    let manifest = open(&run.path().join("splits.csv"), &config(), 1).unwrap();
    assert_eq!(manifest.classes, ["b", "a"], "in the order of the run");
    assert_eq!(ids(&manifest, Split::Test), ["a/1.jpg"]);
    assert_eq!(ids(&manifest, Split::Train), ["b/1.jpg"]);
    fs::remove_file(data.path().join("b/1.jpg")).unwrap();
    let text = open(&run.path().join("splits.csv"), &config(), 1).unwrap_err().to_string();
    assert!(text.contains(&format!("(paths count from {})", data.path().display())), "{text}");
}

#[test]
#[cfg(unix)]
fn a_class_behind_a_broken_link_is_named() {
    let root = folder(&["README.md", "images/a/1.jpg", "images/b/1.jpg"]);
    std::os::unix::fs::symlink("/nowhere", root.path().join("images/elm")).unwrap();
    let text = open(root.path(), &config(), 1).unwrap_err().to_string();
    assert!(text.contains("elm/ is a link to nowhere"), "{text}");
}

#[test]
fn folders_that_could_mean_two_things_are_said_or_refused() {
    // FER2013's names.
    let inside = opened(&[
        "a/Training/1.jpg",
        "a/PublicTest/2.jpg",
        "b/Training/1.jpg",
        "b/PublicTest/2.jpg",
    ]);
    assert_eq!(ids(&inside.manifest, Split::Test), ["a/PublicTest/2.jpg", "b/PublicTest/2.jpg"]);
    let parts = opened(&["fold_x/a/1.jpg", "fold_x/b/1.jpg", "fold_y/a/1.jpg", "fold_y/b/1.jpg"]);
    let note = "every class (fold_x, fold_y) has the same folders inside: a, b";
    assert!(parts.warnings.iter().any(|w| w.starts_with(note)), "{:?}", parts.warnings);
    let some = refused(&["a/1.jpg", "b/1.jpg", "b/Test/2.jpg"]);
    assert!(some.contains("a class has folders named as one split inside"), "{some}");
    let sizes = ["224/train/a/1.jpg", "224/train/b/1.jpg", "224/test/a/2.jpg", "224/test/b/2.jpg"];
    let twice: Vec<String> = sizes.iter().map(|path| path.replace("224", "512")).collect();
    let both: Vec<&str> = sizes.iter().copied().chain(twice.iter().map(String::as_str)).collect();
    assert!(refused(&both).contains("those have folders, which may be the classes"));
    for (folder, advice) in [
        ("test", "sort all images into train/CLASS/ and test/CLASS/"),
        ("unlabeled", "write a table (file,label)"),
        ("Unlabelled", "write a table (file,label)"),
    ] {
        let files = ["rose", "testimonial", folder];
        let files = files.map(|class| [format!("{class}/1.jpg"), format!("{class}/2.jpg")]);
        let files: Vec<&str> = files.as_flattened().iter().map(String::as_str).collect();
        let (classes, _, warnings) = recognised(&files);
        assert_eq!(classes.len(), 3);
        let named = format!("{folder}/ is taken for a class");
        let notes = warnings.iter().filter(|note| note.contains("is taken for a class"));
        let fits = |note: &String| note.starts_with(&named) && note.contains(advice);
        assert_eq!(notes.map(fits).collect::<Vec<_>>(), [true], "{warnings:?}");
    }
    let untrained = refused(&["rose/1.jpg", "tulip/1.jpg", "test/rose/1.jpg", "test/tulip/1.jpg"]);
    let part = "folders beside test/ look like the training classes: rose/, tulip/\n  move them \
                into train/";
    assert!(untrained.contains(part), "{untrained}");
    let others = opened(&["extra/1.jpg", "test/rose/1.jpg", "test/tulip/1.jpg"]);
    assert!(others.warnings[0].contains("outside the class folders"), "{:?}", others.warnings);
    // A folder with a run.json of somebody else's is a class.
    let alien = opened(&["a/1.jpg", "a/2.jpg", "a/run.json={\"km\":5}", "b/1.jpg", "b/2.jpg"]);
    assert_eq!(alien.manifest.classes, ["a", "b"]);
}
