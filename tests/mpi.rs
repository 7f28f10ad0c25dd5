//! Ranks under `mpirun` against one process, and how a job ends when one of them does.
//!
//! Each test starts this test program again under `mpirun`, where [`rank`] does what the variable
//! `FEWVIT_TEST_RANK` names.
#![cfg(feature = "mpi")]

use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use fewvit::engine::collective::{self, Collective};

const TASK: &str = "FEWVIT_TEST_RANK";
/// Long enough for a busy machine. A job that hangs fails the test.
const LIMIT: Duration = Duration::from_secs(60);
/// Jobs that start at the same moment trip over each other's temporary folder.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// What `ranks` processes print while they do a task; `None`, said loudly, without `mpirun`.
fn mpirun(ranks: usize, task: &str) -> Option<Output> {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let program = std::env::current_exe().expect("a test program");
    let started = Command::new("mpirun")
        .args(["--allow-run-as-root", "--oversubscribe", "-n", &ranks.to_string()])
        .arg(program)
        .args(["--exact", "rank", "--nocapture"])
        .env(TASK, task)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut job) = started else {
        // Past the capture of output, which hides what tests that pass print.
        let _ =
            writeln!(std::io::stderr(), "NOT TESTED: `{task}` on {ranks} ranks, no mpirun here");
        return None;
    };
    let end = Instant::now() + LIMIT;
    while job.try_wait().expect("a job").is_none() {
        if Instant::now() > end {
            job.kill().expect("a job that runs");
            panic!("`{task}` on {ranks} ranks hangs");
        }
        sleep(Duration::from_millis(20));
    }
    Some(job.wait_with_output().expect("its output"))
}

fn text(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat()
}

/// What one rank does; nothing where no test started it as one.
#[test]
fn rank() {
    let Ok(task) = std::env::var(TASK) else { return };
    let job = collective::start().expect("ranks");
    let ranks = collective::ranks();
    assert!(ranks.size() > 1 && ranks.local_size() == ranks.size());
    assert_eq!(ranks.local_rank(), ranks.rank());
    match &*task {
        "sum" => sums(&*ranks),
        "words" => words(&*ranks),
        "killed" => {
            if ranks.rank() == 1 {
                std::process::abort();
            }
            ranks.agree(0).expect("unreachable: rank 1 is gone");
        }
        "panic" => {
            assert!(ranks.rank() != 1, "rank 1 panics");
            ranks.agree(0).expect("unreachable: rank 1 is gone");
        }
        "one fails" => {
            if ranks.rank() == 1 {
                ranks.fail(3);
            }
            ranks.agree(0).expect("unreachable: rank 1 is gone");
        }
        "all fail" => {
            // The last one still has something to write.
            sleep(Duration::from_millis(300 * ranks.rank() as u64));
            ranks.fail(5);
            println!("rank {} ended by itself", ranks.rank());
            drop(ranks);
            drop(job);
            std::process::exit(5);
        }
        _ => panic!("no such task: {task}"),
    }
    println!("rank done");
}

/// Values of many magnitudes, so that another order of additions gives other bits.
fn vector(worker: usize, len: usize) -> Vec<f32> {
    let value =
        |i: usize| ((worker * 31 + i * 17) as f32).sin() * [1.0, 1e-3, 37.0][(worker + i) % 3];
    (0..len).map(value).collect()
}

/// The sum over neighbouring workers, pairs first.
fn plain(values: &[f32]) -> f32 {
    match values.len() {
        1 => values[0],
        len => {
            let half = len.next_power_of_two() / 2;
            plain(&values[..half]) + plain(&values[half..])
        }
    }
}

fn sums(ranks: &dyn Collective) {
    let mut arrived = Vec::new();
    for len in [3, 16 * 1024, 100_003] {
        for workers in [1, 2, 3] {
            let first = ranks.rank() * workers;
            let mut own: Vec<_> = (first..first + workers).map(|w| vector(w, len)).collect();
            let mut own: Vec<&mut [f32]> = own.iter_mut().map(|values| &mut values[..]).collect();
            let squared = ranks.all_reduce(&mut own, &mut arrived, 2).expect("few values");
            let all: Vec<_> = (0..ranks.size() * workers).map(|w| vector(w, len)).collect();
            let expected = |i| plain(&all.iter().map(|v: &Vec<f32>| v[i]).collect::<Vec<_>>());
            let expected: Vec<f32> = (0..len).map(expected).collect();
            assert!(own[0] == expected, "{len} values, {workers} workers on each rank");
            let mut copy = expected.clone();
            let single = collective::Single.all_reduce(&mut [&mut copy], &mut vec![], 1);
            assert_eq!(squared.to_bits(), single.expect("few values").to_bits());
        }
    }
}

fn words(ranks: &dyn Collective) {
    let (rank, size) = (ranks.rank(), ranks.size());
    assert_eq!(ranks.agree(u64::MAX - rank as u64).expect("a number"), u64::MAX);
    let mut bytes = vec![rank as u8; 5 + rank];
    ranks.broadcast(&mut bytes).expect("few bytes");
    assert_eq!(bytes, [0; 5]);
    let rows = ranks.all_gather(&vec![rank as f32; 2 * rank]).expect("few rows");
    let expected: Vec<f32> = (0..size).flat_map(|r| vec![r as f32; 2 * r]).collect();
    assert_eq!(rows, expected);
    let seen = if rank == 1 { "other" } else { "the same" };
    assert_eq!(ranks.differing(seen.as_bytes()).expect("a digest"), [1]);
}

#[test]
fn ranks_hold_what_one_process_holds() {
    for ranks in [2, 3, 4] {
        for task in ["sum", "words"] {
            let Some(output) = mpirun(ranks, task) else { return };
            let text = text(&output);
            assert!(output.status.success(), "{task} on {ranks}: {text}");
            assert_eq!(text.matches("rank done").count(), ranks, "{task} on {ranks}: {text}");
        }
    }
}

#[test]
fn a_rank_that_is_lost_ends_the_job() {
    // The messages of mpirun itself do not always arrive, so that only its exit code is looked at.
    for (task, code) in [("killed", 128 + 6), ("panic", 1), ("one fails", 3)] {
        let Some(output) = mpirun(2, task) else { return };
        let text = text(&output);
        assert_eq!(output.status.code(), Some(code), "{task}: {text}");
        assert!(!text.contains("rank done"), "{task}: {text}");
        assert_eq!(text.contains("rank 1 panics"), task == "panic", "{text}");
    }
}

#[test]
fn ranks_that_fail_together_end_by_themselves() {
    let Some(output) = mpirun(3, "all fail") else { return };
    let text = text(&output);
    assert_eq!(text.matches("ended by itself").count(), 3, "{text}");
    assert_eq!(output.status.code(), Some(5), "{text}");
}
