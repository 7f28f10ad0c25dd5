//! Collapse and divergence, provoked: the run says what is wrong and what to do, and ends cleanly.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use common::{flowers, run, stderr};

const SETTINGS: &str = "
    [model]
    name = \"deit_micro_patch8_96\"
    [pretrain]
    crops = [{ count = 2, img_size = 16, scale = [0.9, 1.0] }]
    probe_every = 1
    [pretrain.optim]
    epochs = 2
    batch_size = 12
    warmup_epochs = 0.0
";

/// Pre-trains on `data` into `folder/run`.
fn pretrain(folder: &Path, data: &Path, more: &[&str]) -> Output {
    let (settings, out) = (folder.join("tiny.toml"), folder.join("run"));
    fs::write(&settings, SETTINGS).expect("written");
    let paths = [data, &settings, &out].map(|path| path.to_str().expect("UTF-8").to_owned());
    let [data, settings, out] = paths.each_ref().map(String::as_str);
    let args = ["pretrain", data, "-c", settings, "--output", out];
    run(args.iter().chain(more))
}

/// Ended with `code`, without a panic, having said all of `texts`.
fn ended(output: &Output, code: i32, texts: &[&str]) {
    let stderr = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    for text in texts {
        assert!(stderr.contains(text), "{text:?} is not in: {stderr}");
    }
}

/// Twelve times the same grey square, so that no network can tell them apart.
fn equal_images(folder: &Path) -> PathBuf {
    let data = folder.join("equal");
    fs::create_dir(&data).expect("made");
    for i in 0..12 {
        let grey = image::RgbImage::from_pixel(24, 24, image::Rgb([120, 120, 120]));
        grey.save(data.join(format!("{i}.png"))).expect("written");
    }
    data
}

#[test]
fn equal_features_are_called_a_collapse() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = equal_images(folder.path());
    let still = ["--set", "pretrain.augment.color_jitter_prob=0", "--cutmix", "0"];
    let output = pretrain(folder.path(), &data, &still);
    let words = ["warning: Collapse: all images get nearly the same features", "guessing (2.485)"];
    ended(&output, 0, &words);
    ended(&output, 0, &["Start again with a lower --lr", "(chance 2.4849)"]);
    let small = tempfile::tempdir().expect("a folder");
    let simclr = [&still[..2], &["--method", "simclr", "-b", "6"]].concat();
    ended(&pretrain(small.path(), &data, &simclr), 0, &["warning: Collapse", "(chance 2.3979)"]);
}

#[test]
fn a_rate_a_hundred_times_too_high_is_called_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = flowers(folder.path(), 2);
    let output = pretrain(folder.path(), &data, &["--lr", "0.05", "--epochs", "4"]);
    ended(&output, 0, &["warning: ", "lower --lr", "(chance 3.1781)"]);
}

#[test]
fn so_is_a_temperature_far_too_low() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = flowers(folder.path(), 2);
    let cold = ["--method", "simclr", "--set", "pretrain.options.temperature=1e-3"];
    let output = pretrain(folder.path(), &data, &cold);
    ended(&output, 0, &["warning: ", "training runs away", "temperature", "(chance 3.1355)"]);
}

#[test]
fn a_loss_that_is_no_number_ends_pretraining_with_its_own_code() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = flowers(folder.path(), 2);
    let hopeless = ["--method", "simclr", "--set", "pretrain.options.temperature=1e-30"];
    let sgd = ["--set", "pretrain.optim.kind=sgd", "--lr", "1"];
    let output = pretrain(folder.path(), &data, &[&hopeless[..], &sgd].concat());
    ended(&output, 5, &["became infinite or not a number", "try a lower --lr"]);
}

#[test]
fn a_loss_beyond_hope_ends_pretraining_before_it_is_no_number() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = flowers(folder.path(), 2);
    let sgd = ["--set", "pretrain.optim.kind=sgd", "--lr", "1", "--epochs", "30"];
    let output = pretrain(folder.path(), &data, &sgd);
    ended(&output, 5, &["training has run away", "try a lower --lr", "(chance 3.1781)"]);
    // The first one would have come after ten minutes.
    assert!(!stderr(&output).contains("checkpoint is kept"), "{}", stderr(&output));
}

#[test]
fn a_temperature_of_zero_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = flowers(folder.path(), 1);
    for (method, option) in [
        ("simclr", "temperature"),
        ("supcon", "temperature"),
        ("moco-v2", "temperature"),
        ("moco-v3", "temperature"),
        ("dino", "student_temperature"),
    ] {
        let zero = format!("pretrain.options.{option}=0");
        let output = pretrain(folder.path(), &data, &["--method", method, "--set", &zero]);
        let text = format!("pretrain.options: {option} is 0.0, must be more than 0");
        ended(&output, 2, &[&text]);
    }
}
