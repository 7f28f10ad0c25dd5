//! Whole runs of the program on the stand-in.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use super::*;

const KILLS: usize = 10;

struct Runs {
    libraries: PathBuf,
    folder: tempfile::TempDir,
    data: PathBuf,
    settings: PathBuf,
}

impl Runs {
    fn new(libraries: PathBuf) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let data = common::flowers(folder.path(), 1);
        let settings = common::tiny_run(folder.path());
        Self { libraries, folder, data, settings }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, args: &[String]) -> Command {
        let mut command = common::fewvit(args);
        standin::before(&mut command, &self.libraries);
        command
    }

    /// 12 steps of pre-training and as many of fine-tuning, with a checkpoint after each.
    fn train(&self, name: &str) -> Command {
        let [data, settings, output] =
            [&self.data, &self.settings, &self.path(name)].map(|path| path.display().to_string());
        let line = format!(
            "train {data} -c {settings} --output {output} --device cuda --yes \
             --model deit_micro_patch8_96 --img-size 16 --pretrain-epochs 6 --set finetune.optim.epochs=6"
        );
        self.command(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    fn resume(&self, name: &str) -> Command {
        self.command(&["resume".to_owned(), self.path(name).display().to_string()])
    }

    fn weights(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name).join("export/model.safetensors")).expect("exported")
    }
}

fn succeeds(mut command: Command) -> String {
    let output = command.output().expect("it starts");
    assert!(output.status.success(), "{}", common::stderr(&output));
    common::stderr(&output)
}

/// Waits until a checkpoint is written that is not the one `before`; false if the program ended first.
fn written_since(
    before: Option<SystemTime>,
    checkpoint: &Path,
    child: &mut std::process::Child,
) -> bool {
    let started = Instant::now();
    let written = || checkpoint.metadata().and_then(|file| file.modified()).ok();
    while written() == before {
        if child.try_wait().expect("a program").is_some() {
            return false;
        }
        assert!(started.elapsed() < Duration::from_secs(120), "no checkpoint");
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

/// A run that is killed ten times ends as the one that never stopped.
#[test]
fn a_run_survives_kill_9_ten_times_bit_for_bit() {
    let Some(libraries) = standin::folder() else { return };
    let runs = Runs::new(libraries);
    succeeds(runs.train("whole"));
    let checkpoint = runs.path("stopped").join("checkpoints/last.safetensors");
    for kill in 0..KILLS {
        let mut command = if kill == 0 { runs.train("stopped") } else { runs.resume("stopped") };
        let before = checkpoint.metadata().and_then(|file| file.modified()).ok();
        let mut child = command.spawn().expect("it starts");
        assert!(written_since(before, &checkpoint, &mut child), "it ended before kill {kill}");
        child.kill().expect("SIGKILL");
        child.wait().expect("ended");
    }
    succeeds(runs.resume("stopped"));
    assert!(runs.weights("whole") == runs.weights("stopped"), "other weights");
    let card = std::fs::read_to_string(runs.path("whole/config.toml")).expect("a configuration");
    assert!(card.contains("device = \"cuda:0\""), "{card}");
    let environment = std::fs::read_to_string(runs.path("whole/env.json")).expect("there");
    assert!(environment.contains("stand-in 0, driver 13000, cuBLASLt 130000"), "{environment}");
}

/// What is said at resume follows from what the run wrote down and from what is there now.
#[test]
fn another_version_is_said_at_resume_and_the_same_one_is_not() {
    let Some(libraries) = standin::folder() else { return };
    let runs = Runs::new(libraries);
    let checkpoint = runs.path("run").join("checkpoints/last.safetensors");
    let mut child = runs.train("run").spawn().expect("it starts");
    assert!(written_since(None, &checkpoint, &mut child), "it ended");
    child.kill().expect("SIGKILL");
    child.wait().expect("ended");
    let stopped_soon = |version: &str| {
        let mut command = runs.resume("run");
        command.env("STANDIN_VERSION", version).stderr(std::process::Stdio::piped());
        let before = checkpoint.metadata().and_then(|file| file.modified()).ok();
        let mut child = command.spawn().expect("it starts");
        assert!(written_since(before, &checkpoint, &mut child), "it ended");
        child.kill().expect("SIGKILL");
        common::stderr(&child.wait_with_output().expect("ended"))
    };
    let text = stopped_soon("130000");
    assert!(!text.contains("goes on with"), "{text}");
    let text = stopped_soon("130100");
    let words = "the run began with the card stand-in 0, driver 13000, cuBLASLt 130000 and goes on with \
                 stand-in 0, driver 13000, cuBLASLt 130100";
    assert!(text.contains(words), "{text}");
}
