//! The program under `mpirun`: two processes with one worker each against one process with two.
#![cfg(feature = "mpi")]

mod common;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{flowers, run, stderr, tiny_run};

/// Long enough for a busy machine. A job that hangs fails the test.
const LIMIT: Duration = Duration::from_secs(240);
/// Jobs that start at the same moment trip over each other's temporary folder.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The program in two processes; `None`, said loudly, without `mpirun`. `meanwhile` is called with
/// mpirun's process number until it has nothing more to do.
fn mpirun(args: &[&str], mut meanwhile: impl FnMut(u32) -> bool) -> Option<Output> {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let job = Command::new("mpirun")
        .args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", "2"])
        .arg(env!("CARGO_BIN_EXE_fewvit"))
        .args(args)
        .env("XDG_CACHE_HOME", common::CACHES)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut job) = job else {
        let _ =
            writeln!(std::io::stderr(), "NOT TESTED: {args:?} in two processes, no mpirun here");
        return None;
    };
    let (end, mut busy) = (Instant::now() + LIMIT, true);
    while job.try_wait().expect("a job").is_none() {
        if Instant::now() > end {
            job.kill().expect("a job that runs");
            let output = job.wait_with_output().expect("its output");
            panic!("{args:?} hangs: {}", stderr(&output));
        }
        busy = busy && meanwhile(job.id());
        sleep(Duration::from_millis(20));
    }
    Some(job.wait_with_output().expect("its output"))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

/// Arguments of a run of a few seconds with small heads.
fn train<'a>(
    data: &'a Path,
    settings: &'a Path,
    method: &'a str,
    output: &'a Path,
) -> Vec<&'a str> {
    let mut args = vec!["train", text(data), "-c", text(settings), "--method", method];
    args.extend(["--output", text(output), "--model", "deit_micro_patch8_96", "--yes"]);
    let small: &[&str] = match method {
        "dino" => &[
            "pretrain.options.hidden=32",
            "pretrain.options.bottleneck=16",
            "pretrain.options.prototypes=64",
        ],
        "moco-v2" => &["pretrain.options.queue=64"],
        _ => &[],
    };
    args.extend(small.iter().flat_map(|option| ["--set", option]));
    args
}

/// Weights after pre-training and after fine-tuning.
fn weights(run: &Path) -> [Vec<u8>; 2] {
    ["checkpoints/pretrained.safetensors", "export/model.safetensors"]
        .map(|name| std::fs::read(run.join(name)).expect("weights"))
}

#[test]
fn two_processes_train_the_model_of_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let (data, settings) = (flowers(folder.path(), 2), tiny_run(folder.path()));
    for method in ["idmm", "simclr", "moco-v2", "dino"] {
        let (one, two) = (folder.path().join(format!("{method}-1")), folder.path().join(method));
        let mut args = train(&data, &settings, method, &two);
        args.extend(["--threads", "1"]);
        let Some(output) = mpirun(&args, |_| false) else { return };
        assert!(output.status.success(), "{method}: {}", stderr(&output));
        let mut args = train(&data, &settings, method, &one);
        args.extend(["--threads", "2"]);
        let single = run(&args);
        // The images are read once: by two processes, of which each does the half.
        for (output, known) in [(&output, method != "idmm"), (&single, true)] {
            assert_eq!(stderr(output).contains("an earlier run had read them"), known, "{method}");
        }
        assert!(single.status.success(), "{method}: {}", stderr(&single));
        assert!(weights(&one) == weights(&two), "{method}: other weights");
        // One process speaks, and says what the one would.
        let lines = |output: &Output| String::from_utf8_lossy(&output.stdout).lines().count();
        assert_eq!(lines(&output), lines(&single), "{method}");
        let read = |run: &Path| std::fs::read_to_string(run.join("predictions.csv")).expect("read");
        assert_eq!(read(&one), read(&two), "{method}");
    }
}

#[test]
fn all_processes_stop_after_one_step_and_one_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let (data, settings) = (flowers(folder.path(), 2), tiny_run(folder.path()));
    let (whole, stopped) = (folder.path().join("whole"), folder.path().join("stopped"));
    let mut args = train(&data, &settings, "idmm", &stopped);
    args.extend(["--threads", "1", "--pretrain-epochs", "60"]);
    // A scheduler's signal, which mpirun hands on.
    let checkpoint = stopped.join("checkpoints/last.safetensors");
    let stop = |job: u32| {
        let there = checkpoint.exists();
        if there {
            Command::new("kill").args(["-s", "USR1", &job.to_string()]).status().expect("kill");
        }
        !there
    };
    let Some(output) = mpirun(&args, stop) else { return };
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(75), "{said}");
    assert_eq!(said.matches("go on with: fewvit resume").count(), 1, "{said}");
    let resumed = run(["resume", text(&stopped)]);
    assert!(resumed.status.success(), "{}", stderr(&resumed));
    assert!(!stderr(&resumed).contains("will differ by rounding"), "{}", stderr(&resumed));
    let mut args = train(&data, &settings, "idmm", &whole);
    args.extend(["--threads", "2", "--pretrain-epochs", "60"]);
    let output = run(&args);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(weights(&whole) == weights(&stopped), "other weights");
}

#[test]
fn a_lost_process_ends_the_job_and_its_run_goes_on_in_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let (data, settings) = (flowers(folder.path(), 2), tiny_run(folder.path()));
    let run_folder = folder.path().join("run");
    let mut args = train(&data, &settings, "idmm", &run_folder);
    args.extend(["--threads", "1", "--pretrain-epochs", "100000"]);
    let checkpoint = run_folder.join("checkpoints/last.safetensors");
    let kill = |job: u32| {
        let there = checkpoint.exists();
        if there {
            let of_job = ["-P", &job.to_string(), "-n"];
            let youngest = Command::new("pgrep").args(of_job).output().expect("pgrep");
            let rank = String::from_utf8_lossy(&youngest.stdout).trim().to_owned();
            Command::new("kill").args(["-9", &rank]).status().expect("kill");
        }
        !there
    };
    let Some(output) = mpirun(&args, kill) else { return };
    assert!(!output.status.success());
    let (_, state) =
        fewvit::train::checkpoint::load(&checkpoint).expect("readable").expect("there");
    assert!(state.progress.step > 0);
}

/// Each process measures its own speed, and all must train what the first one's says.
#[test]
fn a_short_budget_gives_all_processes_the_smaller_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = flowers(folder.path(), 8);
    let mut args = vec!["train", text(&data), "--recipe", "quick", "--time-budget", "2m"];
    args.extend(["--threads", "1", "--dry-run", "--json", "--model", "pvt_v2_b0_small"]);
    args.extend(["--set", "model.small=deit_micro_patch8_96", "--set", "model.small_below=100000"]);
    let Some(output) = mpirun(&args, |_| false) else { return };
    assert!(output.status.success(), "{}", stderr(&output));
    let forecast = String::from_utf8_lossy(&output.stdout);
    assert!(forecast.contains(r#""smaller":{"name":"deit_micro_patch8_96""#), "{forecast}");
}

#[test]
fn processes_that_see_other_settings_do_not_begin() {
    let folder = tempfile::tempdir().expect("a folder");
    let (data, settings) = (flowers(folder.path(), 1), tiny_run(folder.path()));
    let out = folder.path().join("run");
    let line = format!(
        "exec {} train {} -c {} --output {} --threads $((OMPI_COMM_WORLD_RANK + 1)) --yes",
        env!("CARGO_BIN_EXE_fewvit"),
        data.display(),
        settings.display(),
        out.display()
    );
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let job = ["--allow-run-as-root", "--oversubscribe", "-n", "2", "sh", "-c", &line];
    let mut mpirun = Command::new("mpirun");
    let Ok(output) = mpirun.args(job).env("XDG_CACHE_HOME", common::CACHES).output() else {
        return;
    };
    let said = stderr(&output);
    assert!(!output.status.success() && !out.exists(), "{said}");
    assert!(
        said.contains(
            "process 1 has other settings than process 0: threads is 2 here and 1 in process 0"
        ),
        "{said}"
    );
}
