//! The epoch that is kept follows from the validation images, and ends training where that is asked for.

mod common;

use std::fs;
use std::path::Path;

use common::{flowers, run, stderr, tiny_run};
use serde_json::Value;

/// Gives the set a validation split: one of the training images of each class.
fn with_validation_images(flowers: &Path) {
    for class in fs::read_dir(flowers.join("train")).expect("there") {
        let class = class.expect("an entry").path();
        let place = flowers.join("val").join(class.file_name().expect("a name"));
        fs::create_dir_all(&place).expect("made");
        let first = fs::read_dir(&class).expect("there").next().expect("an image").expect("read");
        fs::rename(first.path(), place.join(first.file_name())).expect("moved");
    }
}

#[test]
fn the_best_epoch_is_kept_and_patience_ends_training() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (data, settings) = (flowers(folder.path(), 3), tiny_run(folder.path()));
    let out = folder.path().join("out");
    let [data_name, settings, out] =
        [&data, &settings, &out].map(|path| path.to_str().expect("UTF-8"));
    let words = ["finetune", data_name, "--from-scratch", "-c", settings, "--keep", "best"];
    let words = [&words[..], &["--set", "finetune.eval_every=1", "--epochs", "30"]].concat();
    let refused = run(&words);
    assert_eq!(refused.status.code(), Some(2));
    let text = stderr(&refused);
    assert!(text.contains("only test images") && text.contains("the split `val`"), "{text}");

    with_validation_images(&data);
    let output = run(words.iter().chain(&["--patience", "2", "-o", out]));
    assert!(output.status.success(), "{}", stderr(&output));
    let read = |name: &str| fs::read_to_string(Path::new(out).join(name)).expect("written");
    let all: Vec<Value> = read("metrics.jsonl")
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let rows: Vec<&Value> = all.iter().filter(|row| row["stage"] == "finetune").collect();
    let top1: Vec<f64> = rows.iter().map(|row| row["top1"].as_f64().expect("measured")).collect();
    let highest = top1.iter().copied().fold(0.0, f64::max);
    let best = top1.iter().position(|&share| share == highest).expect("one");
    assert!(rows.len() < 30, "nothing was better for two epochs: {top1:?}");
    assert_eq!(rows.len(), best + 1 + 2, "{top1:?}");

    let report: Value = serde_json::from_str(&read("report.json")).expect("JSON");
    let chosen = &report["test_use"]["chosen"];
    assert_eq!(chosen["epoch"], best + 1);
    assert_eq!(chosen["by"], serde_json::json!(["validation", 12]));
    assert_eq!(chosen["same"], false);
    let card = read("export/README.md");
    assert!(
        card.contains(&format!("those of epoch {}, the best of {}", best + 1, rows.len())),
        "{card}"
    );

    let since = "since 2 evaluations in a row were no better";
    let stopped = format!("stopped after epoch {} of the 30 planned, {since}", rows.len());
    assert!(card.contains(&stopped), "{card}");
    let told = stderr(&output);
    assert!(told.contains(&format!("note: fine-tuning {stopped}")), "{told}");
    // The final measurement is of that epoch's weights.
    let last = all.iter().find(|row| row["stage"] == "test").expect("a final measurement");
    assert_eq!([&last["epoch"], &last["step"]], [&rows[best]["epoch"], &rows[best]["step"]]);
    assert_eq!(last["seconds"], rows[rows.len() - 1]["seconds"]);

    // The exported model has the accuracy of that epoch, not that of the last.
    let measured = run(["eval", out, data_name, "--split", "val", "--json"]);
    assert!(measured.status.success(), "{}", stderr(&measured));
    let measured: Value = serde_json::from_slice(&measured.stdout).expect("JSON");
    assert_eq!(measured["top1"].as_f64(), Some(highest), "{top1:?}");

    // What chose the epoch is said wherever it is measured, and of no other images.
    assert_eq!(measured["images"]["chosen_by"], 12);
    let said = stderr(&run(["eval", out, data_name, "--split", "val"]));
    assert!(said.contains("chose the epoch of its weights by 12 of these images"), "{said}");
    let said = stderr(&run(["eval", out, data_name]));
    assert!(said.contains("12 images that the run held out"), "{said}");
    assert!(!said.contains("chose the epoch"), "{said}");
    let except = "no other images except the 12 images of the validation split, by which the epoch was chosen";
    assert!(card.contains(except), "{card}");

    let weights = || fs::read(Path::new(out).join("export/model.safetensors")).expect("exported");
    let before = weights();
    fs::remove_file(Path::new(out).join("report.html")).expect("there");
    let resumed = run(["resume", out]);
    assert!(resumed.status.success(), "{}", stderr(&resumed));
    assert!(before == weights(), "a run that patience ended goes on no further");
}
