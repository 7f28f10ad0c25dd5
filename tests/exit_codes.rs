//! The plainest case of each exit code. Those of runs that are stopped, 75 and 130, are in `resume.rs`.

mod common;

use std::fs;
use std::path::Path;

use common::{flowers, run, stderr, tiny_run};

fn code(line: &str) -> (Option<i32>, String) {
    let output = run(line.split(' '));
    let text = stderr(&output);
    assert!(!text.contains("panicked"), "{line}: {text}");
    (output.status.code(), text)
}

/// Weights of a run with every number replaced by `value`.
fn spoil(weights: &Path, value: f32) {
    let (mut specs, mut values) = (Vec::new(), Vec::new());
    for (key, (shape, tensor)) in fewvit::weights::read(weights).expect("weights") {
        let range = values.len()..values.len() + tensor.len();
        specs.push(fewvit::nn::ParamSpec { key, shape, range, frozen: false });
        values.extend(tensor.iter().map(|_| value));
    }
    fewvit::weights::write(weights, &specs, &values).expect("written");
}

#[test]
fn each_exit_code_has_its_plainest_case() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = flowers(folder.path(), 1);
    let (settings, out) = (tiny_run(folder.path()), folder.path().join("run"));
    let train = format!(
        "train {} -c {} --from-scratch --model deit_micro_patch8_96",
        data.display(),
        settings.display()
    );
    let expect = |line: &str, wanted: i32| {
        let (code, text) = code(line);
        assert_eq!(code, Some(wanted), "{line}: {text}");
    };
    expect("recipe list", 0);
    expect(&format!("{train} --output {}", out.display()), 0);
    let file = folder.path().join("a-file");
    fs::write(&file, "x").expect("written");
    expect(&format!("{train} --output {}/run", file.display()), 1);
    expect(&format!("{train} --frobnicate"), 2);
    expect(&format!("{train} --lr nan"), 2);
    expect("resume /nowhere", 2);
    for command in ["train", "pretrain", "data check", "data stats", "data preview", "bench data"] {
        expect(&format!("{command} /nowhere"), 3);
    }
    for command in ["eval", "knn", "probe", "predict"] {
        expect(&format!("{command} {} /nowhere", out.display()), 3);
    }
    expect(&format!("{train} --device cuda"), 4);
    let exported = out.join("export/model.safetensors");
    // The model computes what is no number, in ONNX and in training.
    spoil(&exported, f32::MAX);
    for command in ["eval", "predict"] {
        expect(&format!("{command} {} {}", out.display(), data.display()), 1);
    }
    expect(
        &format!("export {0} {1}/test --output {0}/again.onnx", out.display(), data.display()),
        6,
    );
    let init = format!("--init {}", exported.display());
    let finetune = train.replace("train ", "finetune ").replace("--from-scratch", &init);
    expect(&format!("{finetune} --output {}/second", folder.path().display()), 5);
    // Weights that are no numbers themselves are refused before anything is computed.
    spoil(&exported, f32::NAN);
    for command in ["eval", "knn", "probe", "predict"] {
        expect(&format!("{command} {}/export {}", out.display(), data.display()), 1);
    }
    expect(&format!("{finetune} --output {}/third", folder.path().display()), 1);
    assert!(!folder.path().join("third").exists());
}
