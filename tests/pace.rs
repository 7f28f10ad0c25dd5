//! A run keeps its time budget, and ends as if it had been planned with the epochs that it had.
#![cfg(unix)]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{fewvit, flowers, run, stderr};

/// Seconds of the budget, and those in which the run gets nothing done.
const BUDGET: u64 = 24;
const SUSPENDED: u64 = 10;

fn epochs(out: &Path) -> i64 {
    let config = fs::read_to_string(out.join("config.toml")).expect("settings");
    let config: toml::Table = config.parse().expect("TOML");
    config["finetune"]["optim"]["epochs"].as_integer().expect("a number")
}

#[test]
fn a_run_that_was_suspended_has_fewer_epochs_and_is_repeated_bit_for_bit() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = flowers(folder.path(), 4);
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let budget = format!("{BUDGET}s");
    let words = ["train", &text(&data), "--time-budget", &budget, "--output", &text(&first)];
    let began = Instant::now();
    let child = fewvit(words).stderr(Stdio::piped()).stdout(Stdio::null()).spawn();
    let child = child.expect("started");
    while !first.join("metrics.jsonl").exists() && began.elapsed().as_secs() < BUDGET {
        sleep(Duration::from_millis(10));
    }
    let planned = epochs(&first);
    let signal = |name: &str| {
        let sent = Command::new("kill").args([name, &child.id().to_string()]).status();
        assert!(sent.expect("sent").success());
    };
    signal("-STOP");
    sleep(Duration::from_secs(SUSPENDED));
    signal("-CONT");
    let output = child.wait_with_output().expect("ended");
    assert!(output.status.success(), "{}", stderr(&output));
    let said =
        format!("Fine-tuning has {} epochs instead of the {planned} planned", epochs(&first));
    assert!(stderr(&output).replace(',', "").contains(&said), "{said}\n{}", stderr(&output));
    let report = fs::read_to_string(first.join("report.html")).expect("a report");
    assert!(report.replace(',', "").contains(&said), "the report does not say it");
    let settings = text(&first.join("config.toml"));
    let words = ["train", &text(&data), "-c", &settings, "--output", &text(&second)];
    let output = run(words);
    assert!(output.status.success(), "{}", stderr(&output));
    let weights = |out: &Path| fs::read(out.join("export/model.safetensors")).expect("exported");
    assert!(weights(&first) == weights(&second), "other weights");
}
