//! Every part against its closed form.

use std::sync::Arc;

use super::*;
use crate::backbone::Spec;
use crate::config::{Layers, RunConfig, Source};
use crate::data::cache::ImageStore;
use crate::data::{Manifest, Rgb8, SplitOrigin, check};
use crate::run::stages;

const MODEL: &str = "deit_micro_patch8_96";
const SIZE: usize = 32;
/// Images, of 10 by 8 pixels.
const IMAGES: usize = 6;

fn config(recipe: &str) -> RunConfig {
    let mut layers = Layers::new(recipe).expect(recipe);
    let set = [
        &format!("model.name={MODEL}"),
        "threads=2",
        "pretrain.crops=[{ count = 2, img_size = 32, scale = [0.5, 1.0] }, { count = 1, img_size = 32, scale = [0.1, 0.5] }]",
        "pretrain.optim.batch_size=4",
        "pretrain.optim.warmup_epochs=0.5",
        "pretrain.optim.ema=off",
    ];
    set.iter().for_each(|s| layers.set(s, Source::Flag("--set")).expect(s));
    layers.build().expect(recipe).config
}

fn prepared() -> Prepared {
    let manifest = Manifest {
        name: "none".to_owned(),
        classes: Vec::new(),
        samples: Vec::new(),
        split_origin: SplitOrigin::Unlabelled,
    };
    let mut report = check::check(&manifest, &[]).report;
    (report.width.median, report.width.max) = (100, 400);
    (report.height.median, report.height.max) = (50, 300);
    Prepared {
        manifest,
        digests: Vec::new(),
        report,
        train: (0..IMAGES).collect(),
        held_out: Vec::new(),
        watched: Vec::new(),
        seen_before: 0,
        images: Arc::new(ImageStore::of(vec![Rgb8::new(10, 8); IMAGES])),
        depth: crate::config::Depth::Pil,
    }
}

fn memory(recipe: &str) -> (Memory, u64) {
    let (config, data) = (config(recipe), prepared());
    let stage = stages::pretraining(&config, &data).expect("a stage");
    let state = stage.fresh(0).expect("weights");
    (Memory::of(&stage, &state, &data, 5), stage.micro_batch as u64)
}

#[test]
fn every_part_is_counted() {
    let spec = Spec::find(MODEL).expect("a model");
    let (width, backbone) = (spec.num_features(), spec.num_params(SIZE));
    // A classifier of as many classes as images.
    let params = 4 * (backbone + IMAGES * width + IMAGES) as u64;
    let (memory, rows) = memory("paper");
    assert_eq!(memory.images, (IMAGES * 10 * 8 * 3) as u64);
    // Weights and two moments.
    assert_eq!(memory.state, 3 * params);
    // Two workers with two gradients, two packed copies, one more net.
    assert_eq!(memory.gradients, 7 * params);
    // Three batches of 4 images with 3 crops.
    assert_eq!(memory.crops, 3 * 4 * 3 * 3 * 32 * 32);
    let values = (spec.outline(SIZE).activations + IMAGES) as u64;
    assert_eq!(memory.activations, 2 * rows * values * 4);
    assert_eq!(memory.measuring, (4 * IMAGES * width * 4) as u64);
    // Two threads that decode the largest, each with a copy; five of the middle size to check ONNX on.
    assert_eq!(memory.decoding, 2 * 2 * 3 * 400 * 300 + 5 * 3 * 100 * 50);
    assert!(memory.total() > memory.images + 10 * params + memory.activations);
}

#[test]
fn a_teacher_and_a_coupled_loss_are_counted() {
    let spec = Spec::find(MODEL).expect("a model");
    let (width, backbone) = (spec.num_features(), spec.num_params(SIZE));
    // DINO's recipe: three layers of 2048, 2048 and 256 with biases, and 4,096 prototypes.
    let head = width * 2048 + 2048 + 2048 * 2048 + 2048 + 2048 * 256 + 256 + 4096 * 256;
    let params = 4 * (backbone + head) as u64;
    let (memory, rows) = memory("dino");
    // A teacher beside weights and moments, and a centre.
    assert_eq!(memory.state, 4 * params + 4 * 4096);
    let in_heads = 2 * 2048 + 256 + 4096;
    let of_rows = 2 * rows * (spec.outline(SIZE).activations + in_heads) as u64 * 4;
    // Twelve rows of the batch at once, four copies.
    assert_eq!(memory.activations, of_rows + 4 * 12 * (width + in_heads) as u64 * 4);
}
