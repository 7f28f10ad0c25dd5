//! `fewvit trace --method` from the command line: what it writes, and what it says to a bad batch.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Output;

use common::{run, stderr};
use fewvit::nn::ParamSpec;
use fewvit::weights;
use safetensors::tensor::{Dtype, TensorView, serialize};

const ROWS: usize = 3;

/// A batch of `views` views with integer tensors.
fn batch(folder: &Path, views: usize, integers: &[(&str, [i64; ROWS])]) -> PathBuf {
    let pixels = (0..views * ROWS * 3 * 16 * 16).map(|i| (i * 7919 % 253) as f32 / 64.0 - 2.0);
    let pixels: Vec<u8> = pixels.flat_map(f32::to_le_bytes).collect();
    let bytes = |values: &[i64; ROWS]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let integers: Vec<(&str, Vec<u8>)> = integers.iter().map(|(n, v)| (*n, bytes(v))).collect();
    let views = TensorView::new(Dtype::F32, vec![views, ROWS, 3, 16, 16], &pixels);
    let mut tensors = BTreeMap::from([("views", views.expect("views"))]);
    for (name, bytes) in &integers {
        tensors.insert(name, TensorView::new(Dtype::I64, vec![ROWS], bytes).expect("integers"));
    }
    let path = folder.join("batch.safetensors");
    std::fs::write(&path, serialize(tensors, None).expect("safetensors")).expect("written");
    path
}

fn trace(folder: &Path, batch: &Path, more: &str) -> (Output, PathBuf) {
    let out = folder.join("trace.safetensors");
    let line = format!(
        "trace --model deit_micro_patch8_96 --batch {} --out {} {more}",
        batch.display(),
        out.display()
    );
    (run(line.split_whitespace()), out)
}

fn traced(folder: &Path, batch: &Path, more: &str) -> weights::Named {
    let (output, out) = trace(folder, batch, more);
    assert!(output.status.success(), "{}", stderr(&output));
    weights::read(&out).expect("a trace")
}

#[test]
fn a_trace_holds_the_start_the_first_step_and_the_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let batch = batch(folder.path(), 2, &[]);
    let queue = "--method moco-v2 --steps 3 --seed 5 --set pretrain.options.queue=4";
    let one = traced(folder.path(), &batch, queue);
    let shape = |key: &str| one.get(key).unwrap_or_else(|| panic!("no {key}")).0.clone();
    assert_eq!((shape("loss"), shape("lr"), shape("features")), (vec![3], vec![3], vec![6, 128]));
    for key in ["blocks.3.attn.qkv.weight", "projector.layers.1.bias"] {
        for prefix in ["init", "init.teacher", "grad", "param", "teacher"] {
            assert_eq!(shape(&format!("{prefix}.{key}")), shape(&format!("param.{key}")));
        }
    }
    assert_eq!(shape("state.queue"), shape("init.state.queue"));
    // Three steps of three keys into four places.
    assert_eq!(one["state.queue_at"].1, [1.0]);
    assert_eq!(one["init.cls_token"], one["init.teacher.cls_token"]);
    assert_ne!(one["param.cls_token"], one["init.cls_token"]);
    let two = traced(
        folder.path(),
        &batch,
        &format!("{queue} --threads 2 --set pretrain.optim.micro_batch=1"),
    );
    let apart = one["loss"].1.iter().zip(&two["loss"].1).map(|(a, b)| (a - b).abs());
    assert!(apart.fold(0f32, f32::max) < 1e-4, "{:?} {:?}", one["loss"], two["loss"]);
}

#[test]
fn weights_may_have_the_heads_or_leave_them_to_the_seed() {
    let folder = tempfile::tempdir().expect("a folder");
    let batch = batch(folder.path(), 2, &[]);
    let first = traced(folder.path(), &batch, "--method simclr --seed 1");
    let path = folder.path().join("weights.safetensors");
    let start = |heads: bool| {
        let (mut specs, mut values) = (Vec::new(), Vec::new());
        for (key, (shape, tensor)) in &first {
            let Some(key) = key.strip_prefix("init.") else { continue };
            if !heads && key.starts_with("projector.") {
                continue;
            }
            let range = values.len()..values.len() + tensor.len();
            let (key, shape) = (key.to_owned(), shape.clone());
            specs.push(ParamSpec { key, shape, range, frozen: false });
            values.extend(tensor);
        }
        weights::write(&path, &specs, &values).expect("written");
        let line = format!("--method simclr --seed 2 --weights {}", path.display());
        traced(folder.path(), &batch, &line)
    };
    let (with, without) = (start(true), start(false));
    assert_eq!(with["loss"], first["loss"]);
    let (backbone, head) = ("init.blocks.0.mlp.fc1.weight", "init.projector.layers.0.weight");
    assert_eq!(without[backbone], first[backbone]);
    assert_ne!(without[head], first[head]);
}

#[test]
fn a_batch_that_does_not_fit_is_explained() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    let index = [("index", [4, 0, 2])];
    for (views, integers, more, code, text) in [
        (2, &index[..], "--method idmm --num-classes 3", 2, "names class 4 of idmm"),
        (2, &[], "--method idmm --img-size 32", 2, "--img-size is 32"),
        (3, &[], "--method simclr", 2, "compares two views"),
        (2, &[], "--method supcon", 3, "learns from labels"),
        (2, &[("index", [0, -1, 2])], "--method idmm", 2, "`index` has a -1"),
        (2, &[], "--method idmn", 2, "known methods: idmm"),
        (2, &[], "--method idmm --steps 0", 2, "nothing to trace"),
        (2, &[], "--num-classes 3 --img-size 16 --weights w", 1, "check the spelling"),
        (2, &[], "--img-size 16", 2, "--weights"),
    ] {
        let (output, _) = trace(path, &batch(path, views, integers), more);
        let stderr = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{more}: {stderr}");
        assert!(stderr.contains(text), "{text:?} is not in: {stderr}");
    }
    let heads = traced(path, &batch(path, 2, &index), "--method idmm --num-classes 9");
    assert_eq!(heads["init.head.weight"].0, [9, 128]);
    let labels = [("targets", [0, 2, 2])];
    let heads = traced(path, &batch(path, 2, &labels), "--method supervised");
    assert_eq!(heads["init.head.bias"].0, [3]);
}

#[test]
fn a_model_with_dropout_of_its_own_is_traced_without_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let batch = batch(folder.path(), 2, &[]);
    let out = folder.path().join("t.safetensors");
    let trace = |seed: usize, weights: Option<&Path>| {
        let weights = weights.map_or(String::new(), |path| format!("--weights {}", path.display()));
        let line = format!(
            "trace --model t2t_vit_7 --method simclr --batch {} --out {} --seed {seed} {weights}",
            batch.display(),
            out.display()
        );
        let output = run(line.split_whitespace());
        assert!(output.status.success(), "{}", stderr(&output));
        weights::read(&out).expect("a trace")
    };
    let first = trace(1, None);
    let (mut specs, mut values) = (Vec::new(), Vec::new());
    for (key, (shape, tensor)) in &first {
        let Some(key) = key.strip_prefix("init.") else { continue };
        let range = values.len()..values.len() + tensor.len();
        specs.push(ParamSpec { key: key.to_owned(), shape: shape.clone(), range, frozen: false });
        values.extend(tensor);
    }
    let path = folder.path().join("weights.safetensors");
    weights::write(&path, &specs, &values).expect("written");
    // Another seed draws other dropout, were there any.
    assert_eq!(trace(2, Some(&path))["loss"], first["loss"]);
}

#[test]
fn settings_that_a_trace_makes_itself_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let batch = batch(folder.path(), 2, &[]);
    for set in [
        "pretrain.cutmix=0.5",
        "pretrain.optim.epochs=3",
        "pretrain.optim.drop_path=0.1",
        "finetune.mixup=0",
    ] {
        let (output, _) = trace(folder.path(), &batch, &format!("--method idmm --set {set}"));
        assert_eq!(output.status.code(), Some(2), "{set}: {}", stderr(&output));
        assert!(stderr(&output).contains("does nothing"), "{}", stderr(&output));
    }
}
