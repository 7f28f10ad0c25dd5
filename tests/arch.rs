//! The folder tree is the architecture: modules may use only what lies below them.

use std::fs;
use std::path::{Path, PathBuf};

/// Each module and what it may `use crate::` besides itself, from the bottom up.
const MAY_USE: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("rng", &[]),
    ("words", &[]),
    ("ops", &["rng"]),
    ("graph", &["ops"]),
    ("config", &["backbone", "error"]),
    ("files", &["error"]),
    ("weights", &["backbone", "error", "files", "nn", "words"]),
    ("loss", &["config", "ops", "rng"]),
    ("schedule", &["config"]),
    ("nn", &["graph", "ops", "rng"]),
    ("data", &["config", "error", "files", "rng", "words"]),
    ("fetch", &["data", "error", "words"]),
    ("backbone", &["error", "graph", "nn", "ops"]),
    ("method", &["backbone", "config", "data", "error", "loss", "nn", "ops", "rng", "schedule"]),
    (
        "engine",
        &["backbone", "config", "data", "error", "loss", "method", "nn", "ops", "rng", "schedule"],
    ),
    (
        "train",
        &[
            "backbone", "config", "data", "engine", "error", "files", "loss", "method", "nn",
            "ops", "schedule", "weights",
        ],
    ),
    ("eval", &["config", "data", "engine", "error", "ops", "rng"]),
    (
        "export",
        &[
            "backbone", "config", "data", "engine", "error", "eval", "files", "graph", "nn",
            "weights", "words",
        ],
    ),
    ("report", &["data", "error", "eval", "files", "loss", "words"]),
    (
        "run",
        &[
            "backbone", "config", "data", "engine", "error", "eval", "export", "files", "loss",
            "method", "report", "train", "weights", "words",
        ],
    ),
    ("bench", &["backbone", "config", "data", "engine", "error", "method", "nn", "train"]),
    (
        "study",
        &[
            "backbone", "config", "data", "engine", "error", "eval", "files", "report", "rng",
            "run", "words",
        ],
    ),
    (
        "cli",
        &[
            "backbone", "bench", "config", "data", "engine", "error", "eval", "export", "fetch",
            "files", "report", "run", "study", "train", "words",
        ],
    ),
];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a readable source folder");
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.expect("a folder entry").path();
        match path.is_dir() {
            true => files.extend(sources(&path)),
            false if path.extension().is_some_and(|e| e == "rs") => files.push(path),
            false => {}
        }
    }
    files
}

#[test]
fn modules_use_only_what_lies_below_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    for path in sources(&root) {
        let relative = path.strip_prefix(&root).expect("below src");
        let first = relative.components().next().expect("a name").as_os_str().to_string_lossy();
        let module = first.trim_end_matches(".rs").to_owned();
        if module == "lib" || module == "main" {
            continue;
        }
        let allowed = MAY_USE.iter().find(|(name, _)| *name == module);
        let (_, allowed) = allowed.unwrap_or_else(|| panic!("`{module}` is not in MAY_USE"));
        let text = fs::read_to_string(&path).expect("a readable source file");
        for line in text.lines().map(str::trim) {
            let Some(used) = line.split("crate::").nth(1) else { continue };
            let used: String =
                used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let is_module = MAY_USE.iter().any(|(name, _)| *name == used);
            if is_module && used != module && !allowed.contains(&used.as_str()) {
                wrong.push(format!("{}: {line}", relative.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "wrong direction:\n{}", wrong.join("\n"));
}

/// Everything else is told the device by an engine.
#[test]
fn only_engines_and_operations_name_a_device() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let named = |path: &PathBuf| {
        let text = fs::read_to_string(path).expect("a readable source file");
        text.contains("Device::flex") || text.contains("Device::default")
    };
    for path in sources(&root).into_iter().filter(named) {
        let relative = path.strip_prefix(&root).expect("below src");
        let room = relative.components().next().expect("a name").as_os_str();
        assert!(room == "engine" || room == "ops", "{} names a device", relative.display());
    }
}

/// Besides the kernels' crate.
const UNSAFE: [&str; 3] = ["engine/cuda/gpu/products.rs", "engine/cuda/gpu.rs", "ops/buffers.rs"];

#[test]
fn what_the_compiler_cannot_check_is_where_the_readme_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let has = |path: &PathBuf| {
        let text = fs::read_to_string(path).expect("a readable source file");
        ["unsafe {", "unsafe fn", "unsafe impl"].iter().any(|word| text.contains(word))
    };
    let relative = |path: PathBuf| path.strip_prefix(&root).expect("below src").to_owned();
    let mut found: Vec<_> = sources(&root).into_iter().filter(has).map(relative).collect();
    found.sort();
    assert_eq!(found, UNSAFE.map(PathBuf::from));
}

#[test]
fn no_source_file_has_outgrown_one_sitting() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for path in sources(&root.join("src")).into_iter().chain(sources(&root.join("kernels/src"))) {
        let lines = fs::read_to_string(&path).expect("a readable source file").lines().count();
        assert!(lines <= 500, "{} has {lines} lines", path.display());
    }
}
