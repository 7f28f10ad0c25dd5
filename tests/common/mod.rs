//! What the tests of the built program share.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Where the program keeps decoded images: not where its user's are.
pub const CACHES: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/caches");

/// The program, with arguments.
pub fn fewvit<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fewvit"));
    command.args(args).env("FEWVIT_THREADS", "2").env("XDG_CACHE_HOME", CACHES);
    command
}

/// Runs the program to its end.
#[allow(dead_code)] // each test file uses its own part of this one
pub fn run<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    fewvit(args).output().expect("the program starts")
}

/// Renders a tiny set of flowers: 12 species, `train` + 1 images of 32 px each.
#[allow(dead_code)]
pub fn flowers(folder: &Path, train: usize) -> PathBuf {
    let out = folder.join("flowers");
    fewvit::data::synth::write(&out, 0, 32, train, 1, |_, _| ()).expect("rendered");
    out
}

/// Settings of a run of a few seconds.
#[allow(dead_code)]
pub fn tiny_run(folder: &Path) -> PathBuf {
    let path = folder.join("tiny.toml");
    let text = "
        [pretrain]
        crops = [{ count = 2, img_size = 16, scale = [0.3, 1.0] }]
        [pretrain.optim]
        epochs = 3
        batch_size = 8
        warmup_epochs = 0.5
        [finetune]
        img_size = 32
        [finetune.optim]
        epochs = 3
        batch_size = 8
        warmup_epochs = 0.5
        ema = \"per-step\"
        [checkpoint]
        every_minutes = 0.0
    ";
    std::fs::write(&path, text).expect("written");
    path
}

/// What went to standard error.
#[allow(dead_code)]
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
