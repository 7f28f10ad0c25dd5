//! A run that is killed and resumed ends with the same bytes as one that never stopped.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

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

/// Every file below a folder: what is in it, and when it was written.
fn files(folder: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let written = path.metadata().and_then(|file| file.modified()).expect("a time");
            found.insert(path.clone(), (std::fs::read(&path).expect("a file"), written));
        }
    }
    found
}

#[test]
fn a_finished_run_says_so_and_what_somebody_wrote_there_stays() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = flowers(folder.path(), 2);
    let settings = tiny_run(folder.path());
    let resume = |out: &Path| {
        let output = run(["resume", out.to_str().expect("a UTF-8 path")]);
        assert!(output.status.success(), "{}", stderr(&output));
        (stderr(&output), output.stdout)
    };
    for job in ["train", "pretrain"] {
        let out = folder.path().join(job);
        let mut arguments = train(&data, &settings, &out);
        arguments[0] = job;
        let output = run(arguments);
        assert!(output.status.success(), "{}", stderr(&output));
        let card = out.join("export/README.md");
        let edit = |text: String| std::fs::write(&card, text + "LICENCE: CC0, my edit\n");
        std::fs::read_to_string(&card).map_or(Ok(()), edit).expect("written");
        let before = files(&out);
        let (said, result) = resume(&out);
        assert!(said.contains("is finished: nothing is left to do"), "{said}");
        assert!(!said.contains("going on"), "{said}");
        assert_eq!(result, output.stdout, "the result as the run itself printed it");
        assert!(files(&out) == before, "{job}: something was written");
    }
    // What was deleted is written again, and nothing is written over the card.
    let (out, other) = (folder.path().join("train"), folder.path().join("pretrain"));
    for deleted in ["report.html", "export/model.onnx"] {
        std::fs::remove_file(out.join(deleted)).expect("there");
        let (said, _) = resume(&out);
        assert!(out.join(deleted).is_file() && said.contains("README.md was there"), "{said}");
        let card = std::fs::read_to_string(out.join("export/README.md")).expect("a card");
        assert!(card.ends_with("LICENCE: CC0, my edit\n"), "{card}");
    }
    std::fs::remove_file(out.join("export/README.md")).expect("there");
    assert!(!resume(&out).0.contains("is finished"), "the card is the last file of a run");
    let card = std::fs::read_to_string(out.join("export/README.md")).expect("a card");
    assert!(card.contains("## Licence") && !card.contains("my edit"), "{card}");
    std::fs::remove_file(other.join("report.html")).expect("there");
    assert!(!resume(&other).0.contains("is finished") && other.join("report.html").is_file());
    // Without its checkpoints it is not trained again.
    std::fs::remove_dir_all(out.join("checkpoints")).expect("there");
    std::fs::remove_file(out.join("report.html")).expect("there");
    let before = files(&out);
    let output = run(["resume", out.to_str().expect("a UTF-8 path")]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("its checkpoints are gone"), "{}", stderr(&output));
    assert!(files(&out) == before, "something was written");
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
    assert!(!stderr(&output).contains("fewvit resume"), "it is no run: {}", stderr(&output));
    assert_eq!(std::fs::read_dir(&occupied).expect("there").count(), 1);
}
