//! Ten steps of every method against PyTorch (`tests/golden/methods.py`).

use std::collections::BTreeMap;

use safetensors::SafeTensors;

use super::*;
use crate::backbone::deit::DeitSpec;
use crate::config::{Layers, Source};
use crate::method::StateTensor;

const TINY: DeitSpec = DeitSpec { embed_dim: 16, depth: 1, num_heads: 2, patch_size: 8 };
const BATCH: usize = 8;
const IMG_SIZE: usize = 16;
const STEPS: usize = 10;

/// The batch of the golden script.
fn given(views: usize) -> Given {
    let values = (0..views * BATCH * 3 * IMG_SIZE * IMG_SIZE).map(|i| (i * 7919 % 253) as f32);
    Given {
        img_size: IMG_SIZE,
        views,
        values: values.map(|v| v / 64.0 - 2.0).collect(),
        samples: vec![3, 1, 6, 0, 8, 2, 5, 4],
        targets: Some(vec![0, 2, 0, 1, 3, 1, 2, 0]),
    }
}

/// The settings of `fewvit trace` for a recipe.
fn config(recipe: &str, settings: &[String]) -> RunConfig {
    let base = if Layers::new(recipe).is_ok() { recipe } else { "paper" };
    let mut layers = Layers::new(base).expect("a recipe");
    if base != recipe {
        layers.put("pretrain.method", recipe.into(), Source::Flag("--method")).expect("a key");
    }
    let trace = ["pretrain.optim.lr_schedule=constant", "pretrain.optim.warmup_epochs=0"];
    for setting in trace.iter().copied().chain(settings.iter().map(String::as_str)) {
        layers.set(setting, Source::Flag("--set")).expect(setting);
    }
    layers.build().expect(recipe).config
}

/// Parameters, teacher and memory from `init.*` of the golden file, its heads from `CASE.init.*`.
fn start(state: &mut TrainState, golden: &Named, case: &str) {
    let find = |key: &str| {
        let own = golden.get(&format!("{case}.init.{key}"));
        own.or_else(|| golden.get(&format!("init.{key}"))).expect(key).clone()
    };
    for spec in &state.specs {
        let (shape, values) = find(&spec.key);
        assert_eq!(shape, spec.shape, "{case}: {}", spec.key);
        state.values[spec.range.clone()].copy_from_slice(&values);
    }
    state.teacher = state.teacher.as_ref().map(|_| state.values.clone());
    for (key, tensor) in &mut state.memory {
        let (shape, values) = find(&format!("state.{key}"));
        assert_eq!(shape, tensor.shape, "{case}: {key}");
        *tensor = StateTensor { shape, values };
    }
}

fn traced(golden: &Named, case: &str, recipe: &str, settings: &[String], workers: usize) -> Named {
    let given = given(golden[&format!("{case}.views")].1[0] as usize);
    let mut config = RunConfig { threads: workers, ..given.fit(&config(recipe, settings), STEPS) };
    config.pretrain.optim.micro_batch = 3;
    let (method, batch) = given.method_and_batch(&config, None).expect(case);
    let spec = Spec { name: "tiny", timm_name: None, family: &TINY };
    let net = NetSpec { spec, img_size: IMG_SIZE, heads: method.heads() };
    let stage = stage(&config, method, net, (BATCH, DeviceName::Cpu));
    let mut state = stage.fresh(0).expect(case);
    start(&mut state, golden, case);
    run(&stage, state, &batch, STEPS).expect(case)
}

#[test]
fn ten_steps_of_every_method_are_those_of_pytorch() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/methods.safetensors");
    let golden = weights::read(&path).expect("the golden file");
    let bytes = std::fs::read(&path).expect("the golden file");
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("a header");
    let cases = &header.metadata().as_ref().expect("metadata")["cases"];
    let cases: BTreeMap<String, Vec<String>> = serde_json::from_str(cases).expect("JSON");
    let methods: Vec<_> = method::TABLE.iter().map(|entry| entry.name).collect();
    assert!(methods.iter().all(|name| cases.keys().any(|case| case.starts_with(name))));
    for (i, (case, settings)) in cases.iter().enumerate() {
        let ours = traced(&golden, case, &settings[0], &settings[1..], 1 + i % 2);
        let theirs = golden.iter().filter_map(|(key, v)| Some((key.strip_prefix(case)?, v)));
        let mut compared = 0;
        for (key, (shape, expected)) in theirs.filter_map(|(k, v)| Some((k.strip_prefix('.')?, v)))
        {
            let tolerance = match key.split('.').next() {
                Some("loss") => 2e-5,
                Some("grad") => 1e-4,
                // AdamW divides by gradients that are nearly zero.
                Some("param" | "teacher" | "state") => 1e-3,
                _ => continue,
            };
            let (own_shape, values) = &ours[key];
            assert_eq!(own_shape, shape, "{case}: {key}");
            let largest = expected.iter().fold(1e-4f32, |m, v| m.max(v.abs()));
            let pairs = values.iter().zip(expected);
            let apart = pairs.fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest;
            assert!(apart <= tolerance, "{case}: {key} is off by {apart}");
            compared += 1;
        }
        assert!(compared > 10, "{case}: {compared} tensors");
    }
}

#[test]
fn steps_of_no_method_copy_its_weights() {
    for entry in method::TABLE {
        let given = given(2);
        let config = RunConfig { threads: 2, ..given.fit(&config(entry.name, &[]), 2) };
        let (method, batch) = given.method_and_batch(&config, None).expect(entry.name);
        let spec = Spec { name: "tiny", timm_name: None, family: &TINY };
        let net = NetSpec { spec, img_size: IMG_SIZE, heads: method.heads() };
        let stage = stage(&config, method, net, (BATCH, DeviceName::Cpu));
        let state = stage.fresh(0).expect(entry.name);
        let mut engine = stage.engine(state).expect("threads");
        let memory = |state: &TrainState| {
            let teacher = state.teacher.as_ref().map(|teacher| teacher.as_ptr());
            (state.values.as_ptr(), teacher)
        };
        let before = memory(engine.state().expect("a state"));
        for _ in 0..2 {
            stage.step(&mut *engine, &batch).expect(entry.name);
            assert_eq!(memory(engine.state().expect("a state")), before, "{}", entry.name);
        }
    }
}

#[test]
fn views_are_dealt_out_to_the_groups_in_turn() {
    let counts = |recipe, views| -> Vec<_> {
        let crops = &config(recipe, &[]).pretrain.crops;
        dealt(crops, views, 16).iter().map(|group| group.count).collect()
    };
    assert_eq!(counts("idmm", 6), [2, 4]);
    assert_eq!(counts("idmm", 2), [2]);
    assert_eq!(counts("idmm", 9), [2, 7]);
    assert_eq!(counts("dino", 4), [1, 1, 2]);
    assert_eq!(counts("simclr", 3), [3]);
}
