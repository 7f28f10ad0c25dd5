//! A head made of features tells images and classes apart before anything is learned; one of random rows guesses.

mod common;

use std::fs;
use std::path::Path;

use common::{flowers, run, stderr};
use fewvit::report::tables::read_history;

/// Steps too small to change anything, and crops that are all but the image.
const SETTINGS: &str = "
    model.name = \"pvt_v2_b0_small\"
    [pretrain]
    crops = [{ count = 2, img_size = 32, scale = [0.95, 1.0] }]
    cutmix = 0.0
    augment = { hflip = 0.0, color_jitter_prob = 0.0, grayscale = 0.0, blur = 0.0 }
    optim = { epochs = 1, batch_size = 12, lr = 1e-12, warmup_epochs = 0.0, smoothing = 0.0, drop_path = 0.0 }
    [finetune]
    img_size = 32
    scale = [0.95, 1.0]
    cutmix = 0.0
    mixup = 0.0
    augment = { hflip = 0.0, color_jitter_prob = 0.0, grayscale = 0.0, rand_augment = false }
    optim = { epochs = 1, batch_size = 12, lr = 1e-12, warmup_epochs = 0.0, smoothing = 0.0, drop_path = 0.0 }
";

/// Mean loss of the first epochs of pre-training and fine-tuning.
fn losses(folder: &Path, from: &str) -> [f64; 2] {
    let data = folder.join("flowers");
    let (settings, out) = (folder.join("still.toml"), folder.join(from));
    fs::write(&settings, SETTINGS).expect("written");
    let paths = [&data, &settings, &out].map(|path| path.to_str().expect("UTF-8"));
    let mut args = vec!["train", paths[0], "-c", paths[1], "--output", paths[2]];
    let heads: Vec<String> = ["pretrain", "finetune"]
        .iter()
        .flat_map(|stage| {
            let set = |key: &str, value: &str| format!("{stage}.first_head.{key}={value}");
            match from {
                "random" => vec![set("from", from)],
                _ => vec![set("from", from), set("spread", "3"), set("ridge", "0.1")],
            }
        })
        .collect();
    heads.iter().for_each(|setting| args.extend(["--set", setting]));
    let output = run(args);
    assert!(output.status.success(), "{}", stderr(&output));
    let rows = read_history(&out.join("metrics.jsonl")).expect("a log");
    ["pretrain", "finetune"].map(|stage| {
        let row = rows.iter().find(|row| row.stage == stage).expect("an epoch");
        row.loss.expect("a loss")
    })
}

#[test]
fn it_is_right_where_a_random_one_guesses() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    flowers(folder.path(), 2);
    let [images, classes] = [24.0_f64.ln(), 12.0_f64.ln()];
    let random = losses(folder.path(), "random");
    assert!((random[0] / images - 1.0).abs() < 0.05, "{random:?} where guessing is {images}");
    assert!((random[1] / classes - 1.0).abs() < 0.05, "{random:?} where guessing is {classes}");
    let made = losses(folder.path(), "features");
    assert!(made[0] < 0.5 * images, "{made:?} where guessing is {images}");
    assert!(made[1] < 0.6 * classes, "{made:?} where guessing is {classes}");
}

#[test]
fn what_stands_between_features_and_rows_is_said() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = flowers(folder.path(), 1);
    let data = data.to_str().expect("UTF-8");
    let made = ["--dry-run", "--set", "pretrain.first_head.from=features", "--set"];
    for (setting, is_said) in [
        ("pretrain.projector=8", true),
        ("pretrain.classifier_bias=false", true),
        ("pretrain.cutmix=0", false),
    ] {
        let output = run(["pretrain", data].iter().chain(&made).chain(&[setting]));
        let text = stderr(&output);
        assert!(output.status.success(), "{text}");
        assert_eq!(text.contains("the head begins with random rows"), is_said, "{setting}: {text}");
    }
}
