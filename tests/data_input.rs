//! What lies on disk, through the built program: what is read, what is refused, and that fewvit
//! reads what it writes.

mod common;

use std::fs;
use std::path::Path;
use std::process::Output;

use common::{fewvit, stderr, tiny_run};

/// A picture of its own colours.
fn picture(path: &Path, key: u32) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    let colour = |x: u32, y: u32| {
        let value =
            x.wrapping_mul(7919) ^ y.wrapping_mul(104_729) ^ key.wrapping_mul(2_654_435_761);
        image::Rgb([value as u8, (value >> 8) as u8, (value >> 16) as u8])
    };
    image::RgbImage::from_fn(32, 32, colour).save(path).expect("written");
}

/// Class folders of five pictures each.
fn pictures(folder: &Path, classes: &[&str]) {
    for (class, name) in classes.iter().enumerate() {
        (0..5).for_each(|i| {
            picture(&folder.join(name).join(format!("{i}.png")), 100 * class as u32 + i);
        });
    }
}

/// Runs the program in a folder.
fn run(folder: &Path, line: &str) -> Output {
    let mut command = fewvit(line.split_whitespace());
    command.current_dir(folder).output().expect("the program starts")
}

fn succeeds(folder: &Path, line: &str) -> Output {
    let output = run(folder, line);
    assert!(output.status.success(), "{line}: {}", stderr(&output));
    output
}

/// Classes and image counts, `[train, val, test]`, as `data stats` has them.
fn stats(folder: &Path, data: &str) -> (Vec<String>, [u64; 3]) {
    let output = succeeds(folder, &format!("data stats {data} --json"));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let name = |class: &serde_json::Value| class["name"].as_str().map(str::to_owned);
    let classes = report["classes"].as_array().expect("a list").iter().filter_map(name).collect();
    (classes, ["train", "val", "test"].map(|split| report["images"][split].as_u64().unwrap_or(0)))
}

fn temporary() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

#[test]
fn what_fewvit_writes_it_reads() {
    let folder = temporary();
    let root = folder.path();
    // Numbers in another order than bytes have them, and a name that tables must quote.
    pictures(&root.join("photos"), &["10", "9", "a, b"]);
    tiny_run(root);
    let split = (["10", "9", "a, b"].map(String::from).to_vec(), [12, 0, 3]);
    fs::create_dir(root.join("out")).expect("made");
    for table in ["splits.csv", "out/mine.csv", "photos/splits.csv"] {
        succeeds(root, &format!("data split photos/ --seed 1 --output {table}"));
        assert_eq!(stats(root, table), split, "{table}");
    }
    let text = fs::read_to_string(root.join("out/mine.csv")).expect("a table");
    assert!(text.contains("\n../photos/10/0.png,0,10,"), "{text}");
    let output = succeeds(root, "data stats photos");
    let line = String::from_utf8_lossy(&output.stdout).into_owned();
    let expected = "photos: table splits.csv, 3 classes, 12 train + 3 test images\n";
    assert!(line.starts_with(expected), "{line}");
    fs::remove_file(root.join("photos/splits.csv")).expect("removed");

    let output = succeeds(root, "train splits.csv -c tiny.toml --from-scratch --output r");
    let said = stderr(&output);
    assert!(said.contains(", table splits.csv, 3 classes, 12 train + 3 test images"), "{said}");
    assert!(said.contains("for the next run; of all data sets together "), "{said}");
    let classes = fs::read_to_string(root.join("r/classes.txt")).expect("classes");
    assert_eq!(classes, "10\n9\na, b\n");
    succeeds(root, "eval r photos");
    assert_eq!(stats(root, "r/splits.csv"), split);

    let refused = |data: &str, part: &str| {
        let output = run(root, &format!("data stats {data}"));
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(3), "{data}: {said}");
        assert!(said.contains(part), "{data}: {said}");
    };
    refused("r", "is a folder that fewvit wrote");
    refused("r/export", "is a folder that fewvit wrote");
    refused("r/predictions.csv", "predictions of fewvit");
    refused("r/results.csv", "the course of a training");
    // A path that does not exist is a matter of the data, whoever is to open it.
    for line in [
        "train gone -c tiny.toml",
        "pretrain gone -c tiny.toml",
        "finetune gone -c tiny.toml --from-scratch",
        "eval r gone",
        "knn r gone",
        "probe r gone",
        "embed r gone --out f.csv",
        "predict r gone.jpg",
        "data check gone",
        "data stats gone",
        "data preview gone",
        "data split gone --output new.csv",
    ] {
        let output = run(root, line);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(3), "{line}: {said}");
        assert!(said.contains("gone") && said.contains("exist"), "{line}: {said}");
    }
    // A preview is a JPEG, and so it is called.
    let output = run(root, "data preview photos --output view.png");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("view.png") && said.contains(".jpg or .jpeg"), "{said}");
    assert!(!root.join("view.png").exists());
    succeeds(root, "data preview photos --output view.JPG");
    second_run_in_the_same_folder(root);
}

/// The first run lies among the photos then.
fn second_run_in_the_same_folder(root: &Path) {
    fs::rename(root.join("r"), root.join("photos/r")).expect("moved");
    fs::create_dir_all(root.join("photos/runs/photos-1/checkpoints")).expect("made");
    assert_eq!(stats(root, "photos").0, ["10", "9", "a, b"]);
    let output = succeeds(root, "data stats photos");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("left out: 2 folders that fewvit wrote: r, runs/photos-1"), "{said}");
}

#[test]
fn a_sample_is_a_table_that_keeps_the_test_images() {
    let folder = temporary();
    let root = folder.path();
    pictures(&root.join("photos"), &["10", "9", "a, b"]);
    tiny_run(root);
    let classes = ["10", "9", "a, b"].map(String::from).to_vec();
    let rows = |table: &str, split: &str| -> Vec<String> {
        let text = fs::read_to_string(root.join(table)).expect("a table");
        text.lines().filter(|line| line.contains(split)).map(str::to_owned).collect()
    };
    succeeds(root, "data split photos --output split.csv");
    for (size, table, train) in [
        ("--per-class 1 --seed 5", "one.csv", 3),
        ("--per-class 2 --seed 5", "two.csv", 6),
        ("--fraction 0.75 --seed 5", "three.csv", 9),
        ("--total 7 --seed 6", "seven.csv", 7),
    ] {
        let output = succeeds(root, &format!("data sample photos {size} -o {table}"));
        assert_eq!(stats(root, table), (classes.clone(), [train, 0, 3]), "{table}");
        let said = stderr(&output);
        let line = format!("sample: {train} of 12 training images, 3 test images\n");
        assert!(said.contains(&line) && said.contains("held out first"), "{said}");
        // The test images are those of `data split`, whatever the sample's seed.
        assert_eq!(rows(table, ",test,"), rows("split.csv", ",test,"), "{table}");
    }
    let within = |small: &str, large: &str| {
        let large = rows(large, ",train,");
        rows(small, ",train,").iter().all(|row| large.contains(row))
    };
    assert!(within("one.csv", "two.csv") && within("two.csv", "three.csv"));
    succeeds(root, "data sample split.csv --per-class 2 --seed 5 -o again.csv");
    assert_eq!(rows("again.csv", ""), rows("two.csv", ""), "drawn from the table of the split");
    succeeds(root, "data sample photos --per-class 2 --seed 5 --train-only -o train.csv");
    assert_eq!(rows("train.csv", ",train,"), rows("two.csv", ",train,"));
    assert_eq!(stats(root, "train.csv"), (classes, [6, 0, 0]));
    succeeds(root, "pretrain train.csv -c tiny.toml --output r");

    let output = succeeds(root, "data sample photos --per-class 9 -o all.csv");
    let said = stderr(&output);
    assert!(said.contains("3 classes have fewer than 9") && said.contains("9 (4)"), "{said}");
    for (line, code, part) in [
        ("data sample photos -o new.csv", 2, "--per-class"),
        ("data sample photos --total 3 --fraction 0.5 -o new.csv", 2, "cannot be used with"),
        ("data sample photos --total 0 -o new.csv", 2, "0"),
        ("data sample photos --fraction 2 -o new.csv", 2, "must lie above 0"),
        ("data sample photos --total 3 -o two.csv", 2, "left as it is"),
        ("data sample photos --total 3 -o new.txt", 2, ".csv"),
        ("data sample photos --total 3 -o none/new.csv", 2, "there is no folder none; make it"),
        ("data split photos -o none/new.csv", 2, "there is no folder none; make it"),
        ("data sample gone --total 3 -o new.csv", 3, "exist"),
    ] {
        let output = run(root, line);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{line}: {said}");
        assert!(said.contains(part), "{line}: {said}");
    }
    assert!(!root.join("new.csv").exists());
}

#[test]
fn images_without_a_label_are_counted_and_in_no_sample_by_class() {
    let folder = temporary();
    let root = folder.path();
    pictures(&root.join("photos"), &["ash", "elm", "oak"]);
    // Five of ash and of elm with a label, those of oak without; one of each for the test.
    let row = |class: &str, i: usize| match (class, i) {
        (_, 0) => format!("photos/{class}/0.png,{class},test\n"),
        ("oak", _) => format!("photos/oak/{i}.png,,train\n"),
        _ => format!("photos/{class}/{i}.png,{class},train\n"),
    };
    let rows = ["ash", "elm", "oak"].map(|class| (0..5).map(|i| row(class, i)).collect::<String>());
    fs::write(root.join("few.csv"), format!("file,label,split\n{}", rows.concat()))
        .expect("written");
    let rows_of = |table: &str| {
        let output = succeeds(root, &format!("data stats {table} --allow-empty-class"));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let numbers = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().rev().collect();
            (words.len() > 5 && words[0] == "test").then(|| format!("{} {}", words[5], words[1]))
        };
        let unlabelled = text.lines().find(|line| line.trim_start().starts_with("without a label"));
        unlabelled.and_then(numbers)
    };
    assert_eq!(rows_of("few.csv").as_deref(), Some("4 0"));
    for (size, sample, without) in [
        ("--per-class 1", "2 of 12 training", None),
        ("--fraction 0.5", "6 of 12 training", Some("2 0")),
        ("--total 12", "12 of 12 training", Some("4 0")),
    ] {
        let table = format!("{}.csv", size.trim_start_matches('-').replace(' ', "-"));
        let said = stderr(&succeeds(root, &format!("data sample few.csv {size} -o {table}")));
        assert!(said.contains(&format!("sample: {sample}")), "{size}: {said}");
        let left_out = said.contains("4 training images without a label left out");
        assert_eq!(left_out, without.is_none(), "{size}: {said}");
        assert_eq!(rows_of(&table).as_deref(), without, "{size}");
    }
}

/// Textures of two classes, whose second published split tests on another image than the first.
#[test]
fn a_published_set_keeps_its_ways_in_tables_and_under_settings() {
    let folder = temporary();
    let root = folder.path();
    let labels = root.join("dtd/labels");
    fs::create_dir_all(&labels).expect("made");
    pictures(&root.join("dtd/images"), &["banded", "dotted"]);
    for (split, test) in [(1, 3), (2, 0)] {
        let rows = |keep: &dyn Fn(usize) -> bool| -> String {
            let images = (0..4).filter(|&i| keep(i));
            images.map(|i| format!("banded/{i}.png\ndotted/{i}.png\n")).collect()
        };
        for (part, text) in [
            ("train", rows(&|i| i != test && i != 1)),
            ("val", rows(&|i| i == 1)),
            ("test", rows(&|i| i == test)),
        ] {
            fs::write(labels.join(format!("{part}{split}.txt")), text).expect("written");
        }
    }
    let output = succeeds(root, "data check dtd");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    for part in [
        "dtd: Describable Textures (DTD), 2 classes, 6 train + 2 test images\n",
        "note: not the paper's counts: 6 of 3760 training and 2 of 1880 test images\n",
        "note: 2 images are in no list of the set and left out: images/banded/4.png",
    ] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    let table = |name: &str| fs::read_to_string(root.join(name)).expect("a table");
    succeeds(root, "data sample dtd --per-class 2 -o one.csv");
    succeeds(root, "data sample dtd --per-class 2 --set data.dtd_split=2 -o two.csv");
    let head = "file,label,class,split,digest,treatment\n";
    for (name, test) in [("one.csv", 3), ("two.csv", 0)] {
        let text = table(name);
        let row = format!("\ndtd/images/dotted/{test}.png,1,dotted,test,,published\n");
        assert!(text.starts_with(head) && text.contains(&row), "{text}");
    }
    succeeds(root, "data sample one.csv --per-class 1 -o less.csv");
    assert_eq!(table("less.csv").matches(",published\n").count(), 4, "{}", table("less.csv"));

    fs::remove_file(root.join("dtd/images/dotted/2.png")).expect("removed");
    let output = run(root, "data check dtd");
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("is missing:\n  dotted/2.png"), "{}", stderr(&output));
    for skip in ["--on-bad-image skip", "--set data.on_bad_image=skip"] {
        let output = succeeds(root, &format!("data check dtd {skip}"));
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains("1 image of the lists is missing, left out: dotted/2.png"), "{said}");
    }
    pictures(&root.join("photos"), &["ash", "beech"]);
    let output = run(root, "data check photos --set data.dtd_split=2");
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("has no such choice"), "{}", stderr(&output));
}

#[test]
fn an_empty_class_is_refused_unless_allowed() {
    let folder = temporary();
    let root = folder.path();
    pictures(&root.join("d"), &["ash", "beech"]);
    fs::create_dir(root.join("d/dogwood")).expect("made");
    tiny_run(root);
    for line in [
        "data check d",
        "data stats d",
        "data split d",
        "train d -c tiny.toml --dry-run",
        "pretrain d -c tiny.toml --dry-run",
        "finetune d -c tiny.toml --from-scratch --dry-run",
    ] {
        let output = run(root, line);
        assert_eq!(output.status.code(), Some(3), "{line}: {}", stderr(&output));
        assert!(stderr(&output).contains("dogwood/ is empty"), "{line}: {}", stderr(&output));
        let output = succeeds(root, &format!("{line} --allow-empty-class"));
        let said = [output.stdout.as_slice(), &output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert_eq!(said.matches("dogwood/ is empty").count(), 1, "{line}: {said}");
    }
}

#[test]
#[cfg(unix)]
fn bad_entries_neither_hang_nor_fail_the_rest_and_notes_come_once() {
    use std::os::unix::ffi::OsStrExt as _;
    let folder = temporary();
    let root = folder.path();
    pictures(&root.join("d"), &["ash", "beech"]);
    for name in [&b"Gr\xe4ser"[..], b"Gr\xf6ser"] {
        let class = root.join("d").join(std::ffi::OsStr::from_bytes(name));
        picture(&class.join("1.png"), u32::from(name[2]));
    }
    fs::create_dir(root.join("d/ash/folder.png")).expect("made");
    let made = std::process::Command::new("mkfifo").arg(root.join("d/ash/pipe.png")).status();
    assert!(made.is_ok_and(|status| status.success()));
    assert_eq!(
        stats(root, "d"),
        (["Gr\\xE4ser", "Gr\\xF6ser", "ash", "beech"].map(String::from).to_vec(), [10, 0, 2],)
    );
    std::os::unix::fs::symlink("/nowhere", root.join("d/ash/gone.png")).expect("linked");
    let output = run(root, "data check d");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("ash/gone.png is a link to nowhere"), "{said}");
    assert!(!said.contains("--output"), "{said}");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let notes: Vec<&str> = printed.lines().filter(|line| line.starts_with("note: ")).collect();
    let distinct: std::collections::BTreeSet<&&str> = notes.iter().collect();
    assert_eq!(distinct.len(), notes.len(), "{printed}");
    assert!(
        printed.contains("note: left out: 1 pipe, socket or device: ash/pipe.png"),
        "{printed}"
    );
    assert!(printed.contains("single image"), "{printed}");
}
