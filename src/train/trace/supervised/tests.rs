//! Against tiny models of PyTorch.

use std::path::Path;

use super::*;
use crate::backbone::{Told, tiny};

/// Holds a tiny model against a file that `tests/golden/{deit,backbones}.py` made.
fn assert_same_as_in_pytorch(file: &str, family: &'static dyn Told) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let golden = weights::read(&folder.join(file)).expect("the golden file");
    let (shape, pixels) = golden["images"].clone();
    let (batch, img_size) = (shape[0], shape[3]);
    let spec = Spec { name: "tiny", timm_name: None, family };
    let net = NetSpec::classifier(spec, img_size, 5);
    let start = golden
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix("param.")?.to_owned(), value.clone())));
    let start: weights::Named = start.collect();
    let kinds = [
        ("classes", Targets::Classes(Classes::new([4, 0, 2][..batch].to_vec(), &options()))),
        ("soft", Targets::Distributions(Distributions { rows: golden["soft"].1.clone() })),
    ];
    for (kind, targets) in kinds {
        let outline = net.outline().expect("a net");
        let values = outline.draw(0);
        let mut state = TrainState::new(outline.parameters, values, Ema::Off);
        weights::fill_strictly(&state.specs, &mut state.values, &start).expect("same keys");
        let traced = run(net, state, pixels.clone(), targets, &options()).expect("a run");
        // Measured: logits 3e-7, gradients 1e-6 of their largest, losses 3e-7.
        assert_close(&traced.outputs.logits, &golden["logits"].1, 1e-5, "logits");
        assert_close(&traced.outputs.features, &golden["features"].1, 1e-5, "features");
        assert_close(&traced.losses, &golden[&format!("losses.{kind}")].1, 1e-5, kind);
        for spec in &traced.state.specs {
            let key = format!("grad.{kind}.{}", spec.key);
            if spec.frozen {
                assert_eq!(traced.state.values[spec.range.clone()], start[&spec.key].1, "{key}");
            }
            if let Some((_, gradient)) = golden.get(&key) {
                assert_close(&traced.gradient[spec.range.clone()], gradient, 1e-4, &key);
            }
        }
    }
    let gradients = golden.keys().filter(|key| key.starts_with("grad.classes.")).count();
    assert!(gradients > 30, "{file} has gradients");
}

#[test]
fn a_deit_of_timm_gives_the_same_logits_gradients_and_ten_losses() {
    assert_same_as_in_pytorch("deit.safetensors", &tiny::DEIT);
}

#[test]
fn so_does_a_pvt_v2_of_timm() {
    assert_same_as_in_pytorch("pvt_v2.safetensors", &tiny::PVT);
    assert_same_as_in_pytorch("pvt_v2_li.safetensors", &tiny::PVT_LINEAR);
}

#[test]
fn so_does_a_t2t_vit() {
    assert_same_as_in_pytorch("t2t_vit.safetensors", &tiny::T2T);
    assert_same_as_in_pytorch("t2t_vit_t.safetensors", &tiny::T2T_TRANSFORMER);
}

fn options() -> TraceOptions {
    TraceOptions {
        model: String::new(),
        num_classes: 5,
        img_size: 24,
        weights: PathBuf::new(),
        batch: PathBuf::new(),
        out: PathBuf::new(),
        smoothing: 0.1,
        lr: 1e-3,
        weight_decay: 0.05,
        steps: 10,
        machine: Machine::cpu(1),
    }
}

fn assert_close(a: &[f32], b: &[f32], tolerance: f32, what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let largest = b.iter().fold(1e-4f32, |m, v| m.max(v.abs()));
    let difference = a.iter().zip(b).fold(0f32, |m, (x, y)| m.max((x - y).abs()));
    assert!(difference <= tolerance * largest, "{what}: {difference} of {largest}");
}
