//! A study that is killed and continued, and shared by two processes, ends with the same bytes as one
//! that never stopped.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use common::{fewvit, flowers, run, stderr};
use fewvit::config::Layers;
use fewvit::run::Ui;
use fewvit::study::{Choices, Grid, Job, Place, Study, Worker, failed};

const SETTINGS: &str = "
    [settings]
    model.name = \"deit_micro_patch8_96\"
    pretrain.crops = [{ count = 2, img_size = 16, scale = [0.3, 1.0] }]
    pretrain.optim.epochs = 3
    pretrain.optim.batch_size = 8
    pretrain.optim.warmup_epochs = 0.5
    finetune.img_size = 32
    finetune.optim.epochs = 3
    finetune.optim.batch_size = 8
    finetune.optim.warmup_epochs = 0.5
    checkpoint.every_minutes = 0.0
";

/// Two rows that share a pre-training, and one from random weights.
const ROWS: &str = "
    [[rows]]
    name = \"idmm\"
    title = \"IDMM\"
    paper = { flowers = 79.9 }
    [[rows]]
    name = \"longer\"
    settings.finetune.optim.epochs = 5
    [[rows]]
    name = \"random\"
    from = \"random\"
    paper = { flowers = 58.1 }
";

/// A study of `ROWS` on the flowers in `folder`.
fn study(folder: &Path) -> PathBuf {
    flowers(folder, 2);
    let data = "[[data]]\nname = \"flowers\"\npath = \"flowers\"\ntrain = 2040\ntest = 6149\n";
    let path = folder.join("mine.toml");
    fs::write(&path, format!("name = \"mine\"\n{SETTINGS}{data}{ROWS}")).expect("written");
    path
}

fn arguments<'a>(file: &'a Path, out: &'a Path) -> Vec<&'a str> {
    let text = |path: &'a Path| path.to_str().expect("a UTF-8 path");
    vec!["study", text(file), "--output", text(out)]
}

const RUNS: [&str; 4] = [
    "pretrained/idmm.flowers.seed-0",
    "cells/idmm.flowers.seed-0",
    "cells/longer.flowers.seed-0",
    "cells/random.flowers.seed-0",
];

/// What the runs and the table of a study hold, but for times and places.
fn content(out: &Path) -> Vec<Vec<u8>> {
    let files =
        ["export/model.safetensors", "predictions.csv", "checkpoints/pretrained.safetensors"];
    let read = |run: &&str| {
        files.iter().filter_map(|file| fs::read(out.join(run).join(file)).ok()).collect::<Vec<_>>()
    };
    let mut content: Vec<_> = RUNS.iter().flat_map(read).collect();
    assert_eq!(content.len(), 7, "three models, three predictions, one pre-training");
    let table = fs::read_to_string(out.join("results.csv")).expect("a table");
    let mut reader = csv::Reader::from_reader(table.as_bytes());
    let header = reader.headers().expect("a header").clone();
    for record in reader.records() {
        let record = record.expect("a record");
        let kept =
            header.iter().zip(&record).filter(|(title, _)| !["runs", "hours"].contains(title));
        content.push(kept.map(|(_, value)| format!("{value};")).collect::<String>().into_bytes());
    }
    content
}

#[test]
fn killed_continued_and_shared_it_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = study(folder.path());
    let whole = folder.path().join("whole");
    let started = Instant::now();
    let output = run(arguments(&file, &whole));
    assert!(output.status.success(), "{}", stderr(&output));
    let duration = started.elapsed();
    let expected = content(&whole);
    let broken = folder.path().join("broken");
    for kill in 1..=3 {
        let mut child = fewvit(arguments(&file, &broken))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        std::thread::sleep(duration.mul_f64(0.1 * f64::from(kill)));
        child.kill().expect("SIGKILL");
        child.wait().expect("ended");
    }
    let both: Vec<_> = (0..2)
        .map(|_| {
            fewvit(arguments(&file, &broken))
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("started")
        })
        .collect();
    for child in both {
        let output = child.wait_with_output().expect("ended");
        assert!(output.status.success(), "{}", stderr(&output));
    }
    assert!(content(&broken) == expected, "other bytes");
    // Nothing runs again, and the table is as it was.
    let before = modified(&broken);
    std::thread::sleep(Duration::from_millis(20));
    let output = run(arguments(&file, &broken));
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(modified(&broken), before);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("| IDMM | flowers |") && text.contains("| 79.9 |"), "{text}");
    assert!(text.contains("flowers is not the paper's set: 24 training images"), "{text}");
    // Other settings are not mixed with what is there.
    let mut other = arguments(&file, &broken);
    other.extend(["--set", "finetune.optim.lr=0.1"]);
    let output = run(other);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("finetune.optim.lr 0.0005, now 0.1"), "{}", stderr(&output));
}

/// When each run's report was written.
fn modified(out: &Path) -> Vec<std::time::SystemTime> {
    let of =
        |run: &&str| fs::metadata(out.join(run).join("report.json")).and_then(|m| m.modified());
    RUNS.iter().map(|run| of(run).expect("a report")).collect()
}

#[test]
fn a_cell_that_fails_or_lacks_its_data_leaves_the_others_alone() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    flowers(folder.path(), 1);
    let data = "[[data]]\nname = \"gone\"\npath = \"gone\"\n[[data]]\nname = \"flowers\"\n\
                path = \"flowers\"\n[[data]]\nname = \"never\"\n";
    let rows = "[[rows]]\nname = \"random\"\nfrom = \"random\"\n[[rows]]\nname = \"idmm\"\n";
    let file = folder.path().join("mine.toml");
    fs::write(&file, format!("name = \"mine\"\n{SETTINGS}{data}{rows}")).expect("written");
    let out = folder.path().join("out");
    let mut scaled = arguments(&file, &out);
    scaled.extend(["--rows", "random,idmm", "--scale", "0.3", "--jobs", "2"]);
    let output = run(scaled.clone());
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let text = stderr(&output);
    assert!(text.contains("2 of 9 runs failed"), "{text}");
    assert!(text.contains("[cells/random.flowers.seed-0] "), "{text}");
    let table = fs::read_to_string(out.join("results.md")).expect("a table");
    let line = |start: &str| {
        let found = table.lines().find(|line| line.starts_with(start));
        found.unwrap_or_else(|| panic!("{start}\n{table}")).to_owned()
    };
    assert!(line("| random | flowers |").ends_with("| done |"), "{table}");
    assert!(line("| idmm | flowers |").ends_with("| done |"), "{table}");
    assert!(line("| random | gone |").contains("failed (exit code 3)"), "{table}");
    assert!(line("| idmm | gone |").contains("waits for pretrained/idmm.gone"), "{table}");
    assert!(line("| random | never |").contains("not run: no data given for never"), "{table}");
    assert!(
        table.contains("Schedules are shortened: every stage has 30% of its epochs"),
        "{table}"
    );
    // What was wrong is put right, and the same command does the rest.
    let gone = folder.path().join("gone");
    fs::rename(folder.path().join("flowers"), &gone).expect("moved");
    std::os::unix::fs::symlink(&gone, folder.path().join("flowers")).expect("linked");
    let output = run(scaled);
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn a_dry_run_says_what_it_would_take_and_makes_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = study(folder.path());
    let out = folder.path().join("out");
    let mut dry = arguments(&file, &out);
    dry.extend(["--dry-run", "--seeds", "2"]);
    let output = run(dry);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("pretrained/idmm.flowers.seed-1: new, "), "{text}");
    assert!(text.contains("6 cells from 8 runs, 8 of them to do"), "{text}");
    assert!(!out.exists());
}

#[test]
fn somebody_elses_folder_is_left_alone() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = study(folder.path());
    let out = folder.path().join("out");
    fs::create_dir(&out).expect("made");
    fs::write(out.join("thesis.txt"), "years of work").expect("written");
    let output = run(arguments(&file, &out));
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert_eq!(fs::read_dir(&out).expect("there").count(), 1);
}

/// The paper's tables and figures with a micro model and a thousandth of the epochs.
#[test]
fn tables_and_figures_of_the_paper_are_drawn_from_the_same_runs() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let root = folder.path().join("sets");
    fs::create_dir(&root).expect("made");
    fewvit::data::synth::write(&root.join("102flowers"), 0, 32, 2, 1, |_, _| ()).expect("rendered");
    let out = folder.path().join("out");
    let micro = [
        "model.name=deit_micro_patch8_96",
        "pretrain.crops=[{count=2,img_size=16,scale=[0.3,1.0]}]",
        "finetune.img_size=32",
    ];
    let reproduce = |what: &str, rows: &str, out: &Path| {
        let mut line = vec!["reproduce", what, "--rows", rows, "--scale", "0.001"];
        micro.iter().for_each(|set| line.extend(["--set", set]));
        line.extend(["--data-root", root.to_str().expect("UTF-8")]);
        line.extend(["--output", out.to_str().expect("UTF-8")]);
        let output = run(line);
        assert!(output.status.success(), "{what}: {}", stderr(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let lines = |name: &str| fs::read_to_string(out.join(name)).expect(name).lines().count();
    let table = reproduce("fig2", "idmm,simclr", &out);
    assert!(table.contains("every stage has 0.1% of its epochs"), "{table}");
    assert!(table.contains("Not as the study says: "), "{table}");
    assert!(table.contains("| IDMM | Flowers |") && table.contains("| 79.9 |"), "{table}");
    // One test image of each of ten classes, before and after, for two methods.
    assert_eq!(lines("fig2.csv"), 1 + 10 * 2 * 2);
    let before = fs::metadata(out.join("cells/idmm.flowers.seed-0/report.json")).expect("there");
    reproduce("fig4", "idmm,simclr", &out);
    let after = fs::metadata(out.join("cells/idmm.flowers.seed-0/report.json")).expect("there");
    assert_eq!(before.modified().expect("a time"), after.modified().expect("a time"));
    assert_eq!(lines("fig4.csv"), 1 + 2, "one epoch each");
    let third = folder.path().join("third");
    reproduce("fig3", "pvt-v2-b0-small-idmm", &third);
    let numbers = fs::read_to_string(third.join("fig3.csv")).expect("numbers");
    assert!(numbers.ends_with(",93.8000,0.001\n") && numbers.lines().count() == 2, "{numbers}");
    for file in ["out/fig2-tsne", "out/fig2-pca", "out/fig4", "third/fig3"] {
        let stem = folder.path().join(file);
        assert!(image::open(stem.with_extension("png")).is_ok(), "{file}");
        assert!(stem.with_extension("svg").is_file(), "{file}");
    }
    let table = reproduce("table2", "dino", &folder.path().join("none"));
    assert!(table.contains("not run: no data given for pets (--data pets=PATH)"), "{table}");
}

/// Breaks down when it hears how many images are read.
struct Breaks(bool);

impl Ui for Breaks {
    fn note(&self, _: &str) {}
    fn reading(&self, _: usize, _: usize) {
        assert!(!self.0, "the screen fell down");
    }
    fn total(&self, _: u64) {}
    fn stage(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64, _: &str) {}
    fn epoch(&self, _: &str) {}
    fn finish(&self) {}
}

#[test]
fn a_panic_in_a_run_fails_that_run_alone() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    flowers(folder.path(), 1);
    let rows = "[[rows]]\nname = \"one\"\nfrom = \"random\"\n\
                [[rows]]\nname = \"two\"\nfrom = \"random\"\nsettings.finetune.optim.lr = 1e-4\n";
    let data = "[[data]]\nname = \"flowers\"\npath = \"flowers\"\n";
    let file = folder.path().join("mine.toml");
    fs::write(&file, format!("name = \"mine\"\n{SETTINGS}{data}{rows}")).expect("written");
    let study = Study::read(&file).expect("a study");
    let choices = Choices { scale: Some(0.3), ..Choices::default() };
    let grid = Grid::new(&study, &choices, &Layers::new).expect("a grid");
    let place = Place::open(&folder.path().join("out"), &study).expect("a place");
    let ui = |job: &Job| Box::new(Breaks(job.name.contains("one"))) as Box<dyn Ui>;
    let interrupted = AtomicBool::new(false);
    let worker = Worker::new(&study, &grid, &place, &ui, &interrupted);
    let done = worker.work(&grid.cells).expect("it goes on");
    assert_eq!(done.len(), 1, "the other run");
    let failed = failed(&grid, &place).expect("records");
    let [(name, reason)] = &failed[..] else { panic!("{failed:?}") };
    assert_eq!(name, "cells/one.flowers.seed-0");
    assert!(reason.contains("a bug: the screen fell down"), "{reason}");
}
