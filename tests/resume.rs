//! A run that is killed and resumed ends with the same bytes as one that never stopped.

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{fewvit, flowers, run, stderr, tiny_run};

/// Kills, each at another moment of the run.
const KILLS: u32 = 4;

fn train<'a>(data: &'a Path, settings: &'a Path, output: &'a Path) -> Vec<&'a str> {
    let text = |path: &'a Path| path.to_str().expect("a UTF-8 path");
    vec!["train", text(data), "-c", text(settings), "--output", text(output)]
}

#[test]
fn killed_at_any_moment_and_resumed_gives_the_same_weights() {
    kill(&[]);
}

/// As above with a model that trains on smaller crops for the first two of three epochs.
#[test]
fn killed_before_or_after_crops_grow_it_gives_the_same_weights() {
    let sizes = ["--set", "finetune.early_share=0.6", "--set", "finetune.early_img_size=32"];
    let larger = ["--set", "finetune.img_size=48", "--model", "pvt_v2_b0_small"];
    let run = kill(&[&sizes[..], &larger, &["--crops", "2x32@0.3-1"]].concat());
    let read = |name: &str| std::fs::read_to_string(run.path().join("whole").join(name));
    let report = read("report.html").expect("a report");
    assert!(report.contains("3 epochs of fine-tuning at 32 and 48 px"), "{report}");
}

/// Kills runs with these settings; the folder around them.
fn kill(more: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = flowers(folder.path(), 2);
    let settings = tiny_run(folder.path());
    let whole = folder.path().join("whole");
    let started = Instant::now();
    let output = run([&train(&data, &settings, &whole)[..], more].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let duration = started.elapsed();
    let expected = std::fs::read(whole.join("export/model.safetensors")).expect("exported");
    for kill in 0..KILLS {
        let stopped = folder.path().join(format!("stopped-{kill}"));
        let arguments = [&train(&data, &settings, &stopped)[..], more].concat();
        let mut child = fewvit(arguments).spawn().expect("started");
        while !stopped.join("run.json").exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(duration.mul_f64(f64::from(kill) / f64::from(KILLS)));
        child.kill().expect("SIGKILL");
        child.wait().expect("ended");
        let output = run(["resume", stopped.to_str().expect("a UTF-8 path")]);
        assert!(output.status.success(), "kill {kill}: {}", stderr(&output));
        let resumed = std::fs::read(stopped.join("export/model.safetensors")).expect("exported");
        assert!(resumed == expected, "kill {kill}: other weights");
        let history = |run: &Path| -> Vec<(u64, Option<u64>)> {
            let rows = fewvit::report::tables::read_history(&run.join("metrics.jsonl"));
            rows.expect("a log").iter().map(|row| (row.step, row.loss.map(f64::to_bits))).collect()
        };
        assert_eq!(history(&stopped), history(&whole), "kill {kill}: another log");
    }
    folder
}

#[test]
fn asked_to_stop_it_writes_a_checkpoint_and_says_who_asked() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = flowers(folder.path(), 2);
    let settings = tiny_run(folder.path());
    for (signal, code) in [("INT", 130), ("TERM", 75)] {
        let stopped = folder.path().join(signal);
        let mut arguments = train(&data, &settings, &stopped);
        // Long enough to be alive when the signal comes.
        arguments.extend(["--pretrain-epochs", "100000", "--yes"]);
        let child = fewvit(arguments).stderr(Stdio::piped()).spawn().expect("started");
        while !stopped.join("checkpoints/last.safetensors").exists() {
            std::thread::sleep(Duration::from_millis(20));
        }
        let id = child.id().to_string();
        Command::new("kill").args(["-s", signal, &id]).status().expect("kill");
        let output = child.wait_with_output().expect("ended");
        assert_eq!(output.status.code(), Some(code), "{signal}: {}", stderr(&output));
        assert!(stderr(&output).contains("go on with: fewvit resume"), "{}", stderr(&output));
    }
}

#[test]
fn an_occupied_folder_is_not_overwritten() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = flowers(folder.path(), 1);
    let settings = tiny_run(folder.path());
    let occupied = folder.path().join("mine");
    std::fs::create_dir(&occupied).expect("made");
    std::fs::write(occupied.join("thesis.txt"), "years of work").expect("written");
    let output = run(train(&data, &settings, &occupied));
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("left as it is"), "{}", stderr(&output));
    assert_eq!(std::fs::read_dir(&occupied).expect("there").count(), 1);
}
