//! What saving and loading a checkpoint cost in memory, in a process of its own: the peak of a
//! process counts what every thread of it holds.

use fewvit::config::Ema;
use fewvit::engine::TrainState;
use fewvit::nn::ParamSpec;
use fewvit::train::checkpoint::{self, StageName};

/// Parameters of a layer; sixteen of these and their moments and averages are 64 MiB.
const LAYER: usize = 1 << 18;

/// The most memory this process has held, in MiB.
fn peak() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("a status");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a peak");
    line.split_whitespace().nth(1).expect("a number").parse::<f64>().expect("KiB") / 1024.0
}

#[test]
fn a_checkpoint_never_holds_a_second_copy_of_the_state() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("last.safetensors");
    let spec = |i: usize| {
        let range = i * LAYER..(i + 1) * LAYER;
        ParamSpec { key: format!("{i}.weight"), shape: vec![LAYER], range, frozen: false }
    };
    let specs: Vec<_> = (0..16).map(spec).collect();
    let mut state = TrainState::new(specs, vec![0.5; 16 * LAYER], Ema::PerStep);
    state.m.fill(0.25);
    state.v.fill(0.125);
    let held = peak();
    checkpoint::save(&path, StageName::Pretrain, &state).expect("saved");
    let saving = peak() - held;
    assert!(saving < 8.0, "saving took {saving:.1} MiB");
    let held = peak();
    let loaded = checkpoint::load(&path).expect("loaded").expect("there");
    let loading = peak() - held;
    assert!((48.0..80.0).contains(&loading), "loading 64 MiB took {loading:.1} MiB");
    assert_eq!(loaded, (StageName::Pretrain, state));
}
