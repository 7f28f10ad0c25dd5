//! The demonstration without its trainings: what is refused and what a dry run leaves.

mod common;

use std::fs;
use std::path::Path;
use std::process::Output;

use common::{fewvit, stderr};

/// Runs the demonstration in a folder, with one for temporary files inside.
fn demo(folder: &Path, line: &str) -> Output {
    fs::create_dir_all(folder.join("temporary")).expect("made");
    let mut command = fewvit(["demo"].into_iter().chain(line.split_whitespace()));
    command.current_dir(folder).env("TMPDIR", folder.join("temporary"));
    command.output().expect("the program starts")
}

/// Names of what lies in a folder but for the empty one of temporary files.
fn left_in(folder: &Path) -> Vec<String> {
    let names = |folder: &Path| -> Vec<String> {
        let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry"));
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    let own = names(folder).into_iter().filter(|name| name != "temporary");
    own.chain(names(&folder.join("temporary"))).collect()
}

#[test]
fn a_dry_run_says_what_it_would_take_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = demo(folder.path(), "--dry-run -o mine");
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for run in ["from-random-weights: new, ", "from-idmm-weights: new, ", "2 cells from 2 runs"] {
        assert!(text.contains(run), "{run}: {text}");
    }
    assert_eq!(left_in(folder.path()), Vec::<String>::new());
}

#[test]
fn a_time_budget_is_refused_before_anything_is_made() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for line in ["--time-budget 20s", "--dry-run --time-budget 10m", "--set time_budget=1.0"] {
        let output = demo(folder.path(), line);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{line}: {said}");
        assert!(said.contains("takes no time budget") && said.contains("leave"), "{line}: {said}");
        assert_eq!(left_in(folder.path()), Vec::<String>::new(), "{line}");
    }
}
