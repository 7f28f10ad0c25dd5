//! Every file of a finished run is read back the way other programs read it.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{flowers, run, stderr, tiny_run};
use serde_json::Value;

const COLUMNS: [&str; 15] = [
    "stage",
    "epoch",
    "step",
    "seconds",
    "images_per_second",
    "loss",
    "lr",
    "grad_norm",
    "knn_top1",
    "top1",
    "top5",
    "top1_low",
    "top1_high",
    "alignment",
    "warning",
];

/// A row of results.csv: what is not empty, by column.
type Row = BTreeMap<String, String>;

fn csv_rows(path: &Path) -> (Vec<String>, Vec<Row>) {
    let mut reader = csv::Reader::from_path(path).expect("a table");
    let header: Vec<String> =
        reader.headers().expect("a header").iter().map(str::to_owned).collect();
    let rows = reader.records().map(|record| {
        let record = record.expect("as many fields as the header");
        let fields = header.iter().cloned().zip(record.iter().map(str::to_owned));
        fields.filter(|(_, value)| !value.is_empty()).collect()
    });
    let rows = rows.collect();
    (header, rows)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("the file")).expect("JSON")
}

/// CRC-32C by its definition, one bit at a time, masked as TFRecords have it.
fn masked_crc(data: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in data {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    (!crc).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Payloads of the records of an event file, checksums verified.
fn records(bytes: &[u8]) -> Vec<&[u8]> {
    let (mut rest, mut found) = (bytes, Vec::new());
    let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes"));
    while !rest.is_empty() {
        let len = u64::from_le_bytes(rest[..8].try_into().expect("a length")) as usize;
        assert_eq!(number(&rest[8..12]), masked_crc(&rest[..8]));
        let payload = &rest[12..12 + len];
        assert_eq!(number(&rest[12 + len..16 + len]), masked_crc(payload));
        found.push(payload);
        rest = &rest[16 + len..];
    }
    found
}

#[test]
fn every_file_of_a_run_reads_back() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (data, settings) = (flowers(folder.path(), 2), tiny_run(folder.path()));
    let out = folder.path().join("run");
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let output = run([
        "train".into(),
        text(&data),
        "-c".into(),
        text(&settings),
        "--output".into(),
        text(&out),
        "--json".into(),
        "--set".into(),
        "pretrain.probe_every=1".into(),
    ]);
    assert!(output.status.success(), "{}", stderr(&output));
    let summary: Value = serde_json::from_slice(&output.stdout).expect("one object");

    let (header, rows) = csv_rows(&out.join("results.csv"));
    assert_eq!(header, COLUMNS);
    let stages: Vec<&str> = rows.iter().map(|row| row["stage"].as_str()).collect();
    assert_eq!(
        stages,
        ["pretrain", "pretrain", "pretrain", "finetune", "finetune", "finetune", "test"]
    );
    let number = |row: &Row, column: &str| -> f64 {
        row.get(column).unwrap_or_else(|| panic!("{column} of {row:?}")).parse().expect("a number")
    };
    let mut before = (0.0, 0.0);
    for row in &rows[..6] {
        for column in ["images_per_second", "loss", "lr", "grad_norm"] {
            assert!(number(row, column) >= 0.0 && number(row, column).is_finite());
        }
        assert!(number(row, "grad_norm") > 0.0);
        // Images a second are those of the time between two rows: 24 images an epoch.
        let (step, seconds) = (number(row, "step"), number(row, "seconds"));
        assert!(step > before.0 && seconds > before.1, "both count on over the stages");
        let rate = 24.0 / (seconds - before.1);
        assert!((number(row, "images_per_second") / rate - 1.0).abs() < 1e-6);
        before = (step, seconds);
    }
    for row in &rows[..3] {
        assert!((0.0..=1.0).contains(&number(row, "knn_top1")));
        assert!((0.0..=4.0).contains(&number(row, "alignment")));
    }
    let last = &rows[6];
    assert_eq!(number(last, "top1"), summary["top1"].as_f64().expect("an accuracy"));
    assert!(number(last, "top1_low") <= number(last, "top1"));
    assert!(number(last, "top1_high") >= number(last, "top1"));
    assert!(number(last, "top5") >= number(last, "top1"));
    assert_eq!(number(last, "step"), before.0);

    // metrics.jsonl holds the same rows, null for what is empty.
    let lines = std::fs::read_to_string(out.join("metrics.jsonl")).expect("the log");
    assert_eq!(lines.lines().count(), rows.len());
    for (line, row) in lines.lines().zip(&rows) {
        let object: BTreeMap<String, Value> = serde_json::from_str(line).expect("an object");
        assert_eq!(object.len(), COLUMNS.len());
        for (column, value) in object.into_iter().filter(|(_, value)| !value.is_null()) {
            match value {
                Value::String(text) => assert_eq!(text, row[&column]),
                value => assert_eq!(value.as_f64().expect("a number"), number(row, &column)),
            }
        }
    }

    // Every file of events is whole, and TensorBoard drops nothing: a session starts at the step
    // after the last one before it.
    let events =
        std::fs::read_dir(&out).expect("the run").map(|entry| entry.expect("a file").path());
    let events = events.filter(|path| text(path).contains("events.out.tfevents."));
    let mut events: Vec<_> = events.collect();
    events.sort();
    assert_eq!(events.len(), 3, "pre-training, fine-tuning, the final measurement");
    let all: Vec<Vec<u8>> =
        events.iter().map(|path| std::fs::read(path).expect("events")).collect();
    let tag = |name: &str| {
        let holds = |payload: &&[u8]| payload.windows(name.len()).any(|w| w == name.as_bytes());
        all.iter().map(|file| records(file).iter().filter(|p| holds(p)).count()).collect::<Vec<_>>()
    };
    assert_eq!(tag("pretrain/knn_top1"), [3, 0, 0]);
    assert_eq!(tag("finetune/grad_norm"), [0, 3, 0]);
    assert_eq!(tag("test/top1"), [0, 0, 3], "with its interval");
    let start = |file: &[u8]| {
        let payload = records(file)[1];
        assert_eq!(payload[9], 0x10, "a step behind the time");
        assert_eq!(payload[11..], [0x3a, 2, 8, 1], "the start of a session");
        payload[10]
    };
    let ends = [&rows[2], &rows[5]].map(|row| number(row, "step") as u8);
    assert_eq!([start(&all[0]), start(&all[1]), start(&all[2])], [1, ends[0] + 1, ends[1] + 1]);

    // Settings, with who set them.
    let config: toml::Table =
        std::fs::read_to_string(out.join("config.toml")).expect("settings").parse().expect("TOML");
    assert_eq!(config["finetune"]["optim"]["ema"].as_str(), Some("per-step"));
    assert_eq!(config["data"]["depth"].as_str(), Some("pil"));
    assert!(config["eval"].get("batch_size").is_none());
    let report = json(&out.join("report.json"));
    let settings_of_report = report["config"].as_array().expect("a list");
    let source = |key: &str| {
        let row = settings_of_report.iter().find(|row| row[0] == key).expect(key);
        row[2].as_str().expect("words").to_owned()
    };
    assert_eq!(source("data.mean"), "recipe `paper`");
    assert_eq!(source("finetune.optim.ema"), format!("file {}", settings.display()));
    assert_eq!(source("pretrain.probe_every"), "--set");
    assert_eq!(source("threads"), "environment variable FEWVIT_THREADS");
    assert!(settings_of_report.iter().all(|row| row[2] != ""), "every setting has one");

    let predictions = csv_rows(&out.join("predictions.csv")).1;
    let right = predictions.iter().filter(|row| row["correct"] == "true").count();
    assert_eq!(right as f64 / predictions.len() as f64, number(last, "top1"));
    assert_eq!(csv_rows(&out.join("splits.csv")).1.len(), 36);
    for name in ["run.json", "env.json", "data_report.json", "export/config.json"] {
        assert!(json(&out.join(name)).is_object(), "{name}");
    }
    let classes = std::fs::read_to_string(out.join("classes.txt")).expect("classes");
    assert_eq!(classes.lines().count(), 12);
    let weights = std::fs::read(out.join("export/model.safetensors")).expect("weights");
    safetensors::SafeTensors::deserialize(&weights).expect("safetensors");

    // Finished once more, because the report was deleted, nothing is there twice.
    std::fs::remove_file(out.join("report.html")).expect("a report");
    let events = || {
        std::fs::read_dir(&out).expect("the run").filter(|entry| {
            let path = entry.as_ref().expect("a file").path();
            let holds = |payload: &[u8]| payload.windows(9).any(|w| w == b"test/top1");
            text(&path).contains("tfevents")
                && records(&std::fs::read(path).expect("events")).into_iter().any(holds)
        })
    };
    let output = run(["resume".into(), text(&out)]);
    assert_eq!(events().count(), 1, "one file with the final measurement");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(csv_rows(&out.join("results.csv")).1, rows);
    assert_eq!(std::fs::read_to_string(out.join("metrics.jsonl")).expect("the log"), lines);
    assert_eq!(json(&out.join("report.json"))["config"], report["config"], "sources are kept");
}

#[test]
fn settings_of_earlier_versions_are_read() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (data, settings) = (flowers(folder.path(), 2), tiny_run(folder.path()));
    let out = folder.path().join("run");
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let arguments =
        ["train", &text(&data), "-c", &text(&settings), "--from-scratch", "--output", &text(&out)];
    assert!(run(arguments).status.success());
    let path = out.join("config.toml");
    let config = std::fs::read_to_string(&path).expect("settings");
    let old =
        config.replace("[eval]\n", "[eval]\nbatch_size = 64\n").replace("depth = \"pil\"\n", "");
    assert_ne!(old, config);
    std::fs::write(&path, old).expect("written");
    // Nor did they write down the content of their files.
    let run_file = out.join("run.json");
    let mut asked = json(&run_file);
    asked.as_object_mut().expect("an object").remove("files");
    std::fs::write(&run_file, asked.to_string()).expect("written");
    // A finished run would only be shown.
    std::fs::remove_file(out.join("report.html")).expect("a report");
    let output = run(["resume", &text(&out)]);
    assert!(output.status.success(), "{}", stderr(&output));
    // A new run is told that the key is gone.
    let output = run(["train", &text(&data), "--set", "eval.batch_size=64", "--dry-run"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("there is no key eval.batch_size"), "{}", stderr(&output));
}
