//! What a run says of itself follows from what it did: where its weights come from, what was measured
//! when, and how to repeat it.

mod common;

use std::fs;
use std::path::Path;

use common::{flowers, run, stderr, tiny_run};

/// Runs a job into `out`; its report.
fn job(words: &[&str], settings: &Path, out: &Path) -> serde_json::Value {
    let paths = [settings, out].map(|path| path.to_str().expect("UTF-8"));
    let more = ["-c", paths[0], "--output", paths[1], "--json"];
    let output = run(words.iter().chain(&more));
    assert!(output.status.success(), "{}", stderr(&output));
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one object");
    let report = fs::read(out.join("report.json")).expect("a report");
    let report: serde_json::Value = serde_json::from_slice(&report).expect("JSON");
    assert_eq!(summary["provenance"], report["provenance"]);
    assert_eq!(summary["stages"], report["stages"]);
    report
}

fn card(out: &Path) -> String {
    fs::read_to_string(out.join("export/README.md")).expect("a card")
}

#[track_caller]
fn says(text: &str, yes: &[&str], no: &[&str]) {
    yes.iter().for_each(|word| assert!(text.contains(word), "{word:?} is missing:\n{text}"));
    no.iter().for_each(|word| assert!(!text.contains(word), "{word:?} is said:\n{text}"));
}

#[test]
fn the_command_in_the_report_repeats_the_run_bit_for_bit() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = flowers(folder.path(), 2);
    let (settings, first) = (tiny_run(folder.path()), folder.path().join("first"));
    let data = data.to_str().expect("UTF-8");
    let words = ["train", data, "--yes", "--seed", "3", "--method", "simclr"];
    let words = [&words[..], &["--set", "finetune.eval_every=1"]].concat();
    let report = job(&words, &settings, &first);
    assert_eq!(report["test_use"], "watched", "there are no other images to watch");
    let (repeat, command) = (report["repeat"].as_str(), report["command"].as_str());
    let (repeat, command) = (repeat.expect("a command"), command.expect("a command"));
    says(command, &["--yes", "--seed 3"], &[]);
    says(repeat, &["fewvit train ", "first/config.toml"], &["--yes", "--seed"]);
    says(&card(&first), &[repeat, command, "SimCLR pre-training at 16 px"], &[]);
    let second = folder.path().join("second");
    let arguments: Vec<&str> = repeat.split(' ').skip(1).collect();
    let output = run(arguments.iter().chain(&["--output", second.to_str().expect("UTF-8")]));
    assert!(output.status.success(), "{}", stderr(&output));
    let weights = |out: &Path| fs::read(out.join("export/model.safetensors")).expect("exported");
    assert!(weights(&first) == weights(&second), "other weights");
}

#[test]
fn few_labels_are_pre_trained_around_and_said() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = flowers(folder.path(), 3);
    let (settings, out) = (tiny_run(folder.path()), folder.path().join("few"));
    let data = data.to_str().expect("UTF-8");
    let report = job(&["train", data, "--labels", "20"], &settings, &out);
    let images = |key: &str| report["data"][key].as_u64();
    assert_eq!((images("train_images"), images("labelled_images")), (Some(36), Some(20)));
    says(&card(&out), &["(labels for 20 of the training images)"], &[]);
    // Steps of 8 images: 36 are five an epoch, 20 are three.
    let metrics = fs::read_to_string(out.join("metrics.jsonl")).expect("metrics");
    let rows = metrics.lines().map(|line| serde_json::from_str(line).expect("JSON"));
    let rows: Vec<serde_json::Value> = rows.collect();
    let steps = |stage: &str| {
        rows.iter().rfind(|row| row["stage"] == stage).expect("rows")["step"].as_u64()
    };
    let [before, with] = ["pretrain", "finetune"].map(steps);
    assert_eq!((before, with), (Some(15), Some(15 + 9)));
    let labels = fs::read_to_string(out.join("splits.csv")).expect("splits");
    assert_eq!(labels.lines().filter(|line| line.contains(",,,train,")).count(), 16, "{labels}");
    let all = job(&["train", data], &settings, &folder.path().join("all"));
    assert_eq!(all["data"]["labelled_images"], 36);
    says(&card(&folder.path().join("all")), &[], &["labels for"]);

    // Without pre-training nothing is learned from the others.
    let out = folder.path().join("none");
    let report = job(&["train", data, "--labels", "20", "--from-scratch"], &settings, &out);
    assert_eq!(report["stages"][0]["images"], 20);
    let unused = [
        "trained from random weights on 20 images; 16 without a label were not used.",
        "(labels for 20 of the training images; 16 without a label were not used).",
    ];
    says(&card(&out), &unused, &["36 images"]);
}

#[test]
fn where_weights_come_from_and_what_was_measured_when() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let flowers = flowers(folder.path(), 2);
    // The second copy of the test images stands for validation images.
    for class in fs::read_dir(flowers.join("test")).expect("there") {
        let class = class.expect("an entry").path();
        let copy = flowers.join("val").join(class.file_name().expect("a name"));
        fs::create_dir_all(&copy).expect("made");
        for image in fs::read_dir(&class).expect("there") {
            let image = image.expect("an entry").path();
            fs::copy(&image, copy.join(image.file_name().expect("a name"))).expect("copied");
        }
    }
    let (data, settings) = (flowers.to_str().expect("UTF-8"), tiny_run(folder.path()));
    let out = |name: &str| folder.path().join(name);
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let report = job(&["pretrain", data, "--method", "supcon"], &settings, &out("pre"));
    assert_eq!(report["provenance"], "random");
    assert_eq!(report["stages"][0]["kind"], "supervised contrastive with labels");
    assert_eq!(report["stages"][0]["epochs"], 3);
    let page = fs::read_to_string(out("pre/report.html")).expect("a page");
    says(&page, &["this run pre-trained only", "contrastive with labels"], &["without labels"]);

    let watched = ["--set", "finetune.eval_every=1"];
    let pre = text(&out("pre"));
    let from_run = [&["finetune", data, "--init", &pre][..], &watched].concat();
    let report = job(&from_run, &settings, &out("fine"));
    assert_eq!(report["test_use"], serde_json::json!({ "other": ["validation", 12] }));
    let story = [
        &*format!("The weights started from the run {}", text(&out("pre"))),
        "That run trained on 24 images of flowers: 3 epochs of SupCon pre-training at 16 px",
        "12 images of the validation split were measured, and the test images once",
    ];
    let only = "no other images were used";
    says(&card(&out("fine")), &story, &[only, "without labels", "measured during training, but"]);

    // The same weights under another name are anybody's.
    let stray = text(&out("stray.safetensors"));
    fs::copy(out("fine/export/model.safetensors"), &stray).expect("copied");
    let report = job(&["finetune", data, "--init", &stray], &settings, &out("third"));
    assert_eq!(report["test_use"], "once", "three epochs are too few for an evaluation on the way");
    let unknown =
        [&*format!("The weights started from {stray} (sha256 "), "does not know what those"];
    says(&card(&out("third")), &unknown, &[only, "SupCon"]);

    // And a run that goes on from that one passes on the doubt.
    let third = text(&out("third"));
    let report = job(&["finetune", data, "--init", &third], &settings, &out("fourth"));
    says(&card(&out("fourth")), &["3 epochs of fine-tuning at 32 px", "Before that: "], &[only]);
    says(report["repeat"].as_str().expect("a command"), &["--init ", "fourth/config.toml"], &[]);
}
