//! The engine on NVIDIA cards, on a stand-in for driver and libraries: single operations against burn's own
//! on the CPU, what is the same from run to run, and what a user is told.

mod common;
#[path = "cuda/feed.rs"]
mod feed;
#[path = "cuda/products.rs"]
mod products;
#[path = "cuda/runs.rs"]
mod runs;
#[path = "common/standin.rs"]
mod standin;

use std::path::Path;
use std::process::{Command, Output};

use fewvit::backbone::{Family, ImgSizes, NetSpec, Spec, Tell, Told};
use fewvit::config::{ClipMode, Ema, Layers, OptimConfig, OptimKind, SmoothingKind};
use fewvit::data::augment::CropBox;
use fewvit::data::loader::{Batch, CropBatch, Crops};
use fewvit::data::mixing::{Mix, MixKind};
use fewvit::engine::composed::ComposedEngine;
use fewvit::engine::device::DeviceName;
use fewvit::engine::{Engine, Machine, Products, StepInput, TrainState, Update};
use fewvit::loss::Smoothing;
use fewvit::method::{Objective, RowLoss};
use fewvit::nn::{Branch, Conv2d, DropPath, Dropout, LayerNorm, Linear, Reader, Start};
use fewvit::ops::{self, Windows};

/// An operation between two linear layers, so that gradients flow to it, through it and past it.
#[derive(Clone, Copy, Debug)]
enum Single {
    Unfold(Windows),
    Pool(usize),
    Depthwise,
    Embed,
    Norm,
    Relu,
    Attention { heads: usize },
    CrossAttention { heads: usize, stride: usize },
    Performer { features: usize },
    Branch,
    Dropout,
}
use Single::{Attention, CrossAttention, Depthwise, Embed, Norm, Performer, Pool, Relu, Unfold};

/// One operation on maps of `side` x `side` tokens of width `dim`.
#[derive(Clone, Copy, Debug)]
struct Toy {
    op: Single,
    side: usize,
    dim: usize,
}

const OUT: usize = 6;

impl Family for Toy {
    fn num_features(&self) -> usize {
        OUT
    }

    fn img_sizes(&self) -> ImgSizes {
        ImgSizes { smallest: 1, multiple_of: 1 }
    }

    fn timm_args(&self, _: usize) -> serde_json::Value {
        serde_json::Value::Null
    }
}

impl Tell for Toy {
    fn tell<R: Reader>(&self, r: &mut R, _: usize) -> R::Value {
        let (dim, tokens) = (self.dim, self.side * self.side);
        let layer = |r: &mut R, key: &str, sizes: [usize; 2]| Linear::new(r, key, sizes);
        let first = layer(r, "first", [3, dim]);
        let pixels = r.pixels();
        let x = r.linear(pixels, &first);
        let (x, width) = match self.op {
            Unfold(windows) => (r.unfold(x, windows), dim * windows.kernel.pow(2)),
            Pool(side) => (r.pool(x, side), dim),
            Depthwise => {
                let windows = Windows { kernel: 3, stride: 1, padding: 1 };
                let conv = Conv2d::new(r, "conv", [dim; 2], windows, dim);
                (r.depthwise_gelu(x, &conv), dim)
            }
            Embed => {
                let class = r.weight("class", &[1, 1, dim], Start::Normal(1.0));
                let position = r.weight("position", &[1, tokens + 1, dim], Start::Normal(1.0));
                let x = r.embed(x, &class, &position);
                (r.gelu(x), dim)
            }
            Norm => {
                let norm = LayerNorm::new(r, "norm", dim, 1e-5);
                (r.layer_norm(x, &norm), dim)
            }
            Relu => (r.relu(x), dim),
            Attention { heads } => {
                let qkv = layer(r, "qkv", [dim, 3 * dim]);
                let qkv = r.linear(x, &qkv);
                (r.attention(qkv, heads, 7), dim)
            }
            CrossAttention { heads, stride } => {
                let kv = layer(r, "kv", [dim, 2 * dim]);
                let windows = Windows { kernel: 1, stride, padding: 0 };
                let fewer = r.unfold(x.clone(), windows);
                let kv = r.linear(fewer, &kv);
                (r.cross_attention(x, kv, heads), dim)
            }
            Performer { features } => {
                let w = r.frozen("w", &[features, dim], Start::Normal(0.5));
                let kqv = layer(r, "kqv", [dim, 3 * dim]);
                let kqv = r.linear(x, &kqv);
                let attended = r.performer(kqv.clone(), &w);
                // The values are the last third.
                (r.dropout_residual(attended, kqv, Dropout { rate: 0.1, layer: 3 }), dim)
            }
            Single::Branch => {
                let second = layer(r, "second", [dim, dim]);
                let branch = Branch { block: 1, depth: 2, index: 0 };
                (r.linear_residual(x.clone(), &second, x, Some(branch)), dim)
            }
            Single::Dropout => {
                let other = layer(r, "other", [dim, dim + 3]);
                let residual = r.linear(x.clone(), &other);
                (r.dropout_residual(x, residual, Dropout { rate: 0.4, layer: 0 }), dim)
            }
        };
        let last = layer(r, "last", [width, OUT]);
        let x = r.linear(x, &last);
        let x = r.gelu(x);
        match self.op {
            Attention { .. } => r.class_token(x),
            _ => r.mean_token(x),
        }
    }
}

/// Rows are classes, as far as there are any.
struct Classes(usize);

impl RowLoss for Classes {
    fn target(&self, sample: usize) -> usize {
        sample % self.0
    }

    fn smoothing(&self) -> Smoothing {
        Smoothing::new(0.1, SmoothingKind::Others, self.0)
    }
}

fn batch(rows: usize, img_size: usize, kind: MixKind) -> Batch {
    let bytes = (0..rows * img_size * img_size * 3).map(|i| (i * 7919 % 251 / (1 + i % 5)) as u8);
    let crops = Crops::Bytes(bytes.collect());
    let mix = Mix { kind, lambda: 0.3, partner: (0..rows).map(|row| (row + 1) % rows).collect() };
    let samples = (0..rows).collect();
    Batch { groups: vec![CropBatch { img_size, views: 1, crops, samples, mix }] }
}

fn gradient(engine: &mut dyn Engine, batch: &Batch, classes: usize, step: u32) -> (f64, Vec<f32>) {
    let loss = Classes(classes);
    let objective = Objective::Rows(&loss);
    let drop_path = DropPath { rate: 0.5, seed: 3, step, first_row: 0, training: true };
    let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
    let input = StepInput { batch, objective, drop_path, mean, std, epoch: 0 };
    let slope = engine.gradient(&input).expect("a gradient");
    (slope.loss, engine.kept_gradient().expect("a gradient"))
}

fn on_card(net: &NetSpec, micro_batch: usize, state: TrainState) -> Box<dyn Engine> {
    let machine = Machine { device: DeviceName::Cuda(0), ..Machine::cpu(1) };
    machine.engine(net, micro_batch, state).expect("an engine")
}

/// Largest difference in units of the largest value.
fn apart(a: &[f32], b: &[f32]) -> f32 {
    let largest = b.iter().fold(f32::MIN_POSITIVE, |m, v| m.max(v.abs()));
    a.iter()
        .zip(b)
        .fold(0f32, |m, (x, y)| m.max((x - y).abs()).max(if x.is_nan() { 1.0 } else { 0.0 }))
        / largest
}

/// A model that lives as long as the program, as families do.
fn told(toy: Toy) -> &'static dyn Told {
    Box::leak(Box::new(toy))
}

fn net(family: &'static dyn Told, img_size: usize, classes: usize) -> NetSpec {
    NetSpec::classifier(Spec { name: "toy", timm_name: None, family }, img_size, classes)
}

/// Weights that are large enough for everything to matter.
fn start(net: &NetSpec, ema: Ema) -> TrainState {
    let outline = net.outline().expect("a net");
    let larger = |v: f32| if v.abs() < 0.3 { 12.0 * v } else { v };
    let values = outline.draw(5).into_iter().map(larger).collect();
    TrainState::new(outline.parameters, values, ema)
}

/// Holds the gradient of each parameter to the one that burn's own operations give.
fn holds(toy: Toy, rows: usize, classes: usize, kind: MixKind) {
    let (net, img_size) = (net(told(toy), toy.side, classes), toy.side);
    let (state, batch) = (start(&net, Ema::Off), batch(rows, img_size, kind));
    let mut cpu = ComposedEngine::new(&ops::cpu(), 1, &net, rows, state.clone());
    let (loss, expected) = gradient(&mut cpu, &batch, classes, 1);
    let mut card = on_card(&net, rows.div_ceil(2), state.clone());
    let (seen_loss, seen) = gradient(&mut *card, &batch, classes, 1);
    let what = format!("{toy:?}, {rows} rows, {classes} classes");
    assert!((seen_loss / loss - 1.0).abs() < 1e-5, "{what}: {seen_loss} for {loss}");
    for spec in &state.specs {
        let own = spec.range.clone();
        let distance = apart(&seen[own.clone()], &expected[own]);
        assert!(distance < 2e-4, "{what}, {}: {distance}", spec.key);
    }
}

#[test]
fn operations() {
    if !standin::inside("operations") {
        return;
    }
    let windows = |kernel, stride, padding| Unfold(Windows { kernel, stride, padding });
    let cases = [
        (windows(1, 1, 0), 3, 4),
        (windows(3, 2, 1), 7, 5),
        (windows(7, 4, 2), 9, 2),
        (windows(7, 4, 3), 8, 2),
        (windows(2, 2, 0), 6, 3),
        (Pool(7), 3, 5),
        (Pool(3), 7, 33),
        (Pool(4), 8, 2),
        (Depthwise, 1, 3),
        (Depthwise, 2, 70),
        (Depthwise, 7, 33),
        (Embed, 3, 5),
        (Embed, 1, 40),
        (Norm, 2, 3),
        (Norm, 3, 33),
        (Norm, 1, 300),
        (Relu, 3, 5),
        (Attention { heads: 1 }, 1, 3),
        (Attention { heads: 3 }, 4, 12),
        (Attention { heads: 2 }, 5, 66),
        (Attention { heads: 1 }, 9, 32),
        (Attention { heads: 1 }, 9, 64),
        (Attention { heads: 2 }, 4, 130),
        (Attention { heads: 1 }, 3, 97),
        (CrossAttention { heads: 2, stride: 4 }, 8, 140),
        (CrossAttention { heads: 2, stride: 4 }, 8, 10),
        (CrossAttention { heads: 1, stride: 1 }, 9, 33),
        (Performer { features: 4 }, 3, 8),
        (Performer { features: 5 }, 7, 3),
        (Single::Branch, 3, 5),
        (Single::Dropout, 3, 5),
    ];
    for (op, side, dim) in cases {
        holds(Toy { op, side, dim }, 5, 4, MixKind::None);
    }
    // More rows and classes than a block has threads, and more than a share of a sum.
    holds(Toy { op: Norm, side: 5, dim: 9 }, 200, 700, MixKind::Mixup);
    holds(Toy { op: Depthwise, side: 5, dim: 4 }, 200, 3, MixKind::None);
    holds(Toy { op: Relu, side: 4, dim: 3 }, 1, 2, MixKind::None);
}

/// Optimisers with everything that they have.
fn optimisers() -> Vec<OptimConfig> {
    let recipe = Layers::new("paper").and_then(Layers::build).expect("a recipe").config;
    let recipe = recipe.pretrain.optim;
    let adamw = OptimConfig { clip_grad: 0.5, ema: Ema::PerStep, eps: 1e-3, ..recipe };
    let sgd = OptimConfig { kind: OptimKind::Sgd, momentum: 0.9, ema: Ema::Off, ..adamw };
    let muon = OptimConfig { kind: OptimKind::Muon, momentum: 0.9, ..adamw };
    vec![adamw, OptimConfig { clip_mode: ClipMode::Parameter, ..sgd }, muon]
}

/// Three steps, of which the last layer sits out the first.
fn steps(mut engine: Box<dyn Engine>, batch: &Batch, optim: &OptimConfig) -> TrainState {
    let late = |key: &str| usize::from(key.starts_with("last"));
    for _ in 0..3 {
        let step = engine.progress().step as u32;
        gradient(&mut *engine, batch, 4, step);
        engine.update(&Update { lr: 0.01, optim, late: &late }).expect("an update");
    }
    engine.follow(0.7).expect("a teacher");
    engine.average().expect("an average");
    engine.into_state().expect("a state")
}

#[test]
fn optimisers_averages_and_devices_may_change_midway() {
    if !standin::inside("optimisers_averages_and_devices_may_change_midway") {
        return;
    }
    let net = net(told(Toy { op: Single::Branch, side: 3, dim: 5 }), 3, 4);
    let batch = batch(7, 3, MixKind::Mixup);
    for optim in optimisers() {
        let mut state = start(&net, optim.ema);
        state.teacher = Some(state.values.iter().map(|v| 0.9 * v).collect());
        let cpu = |state: TrainState| -> Box<dyn Engine> {
            Box::new(ComposedEngine::new(&ops::cpu(), 1, &net, 7, state))
        };
        let card = |state: TrainState| on_card(&net, 3, state);
        let close = |a: &TrainState, b: &TrainState, what: &str| {
            assert_eq!(a.progress, b.progress, "{what}");
            let vectors = |s: &TrainState| -> Vec<Vec<f32>> {
                let all = [Some(&s.values), Some(&s.m), s.ema.as_ref(), s.teacher.as_ref()];
                all.into_iter().flatten().cloned().collect()
            };
            for (i, (a, b)) in vectors(a).iter().zip(&vectors(b)).enumerate() {
                let distance = apart(a, b);
                assert!(distance < 1e-4, "{what}, {:?}, vector {i}: {distance}", optim.kind);
            }
        };
        let once = steps(card(state.clone()), &batch, &optim);
        let on_cpu = steps(cpu(state.clone()), &batch, &optim);
        close(&once, &on_cpu, "three steps");
        assert_eq!(once, steps(card(state), &batch, &optim), "the same bits");
        let twice = steps(card(once.clone()), &batch, &optim);
        close(&steps(cpu(once.clone()), &batch, &optim), &twice, "from the card to the CPU");
        close(&steps(card(on_cpu.clone()), &batch, &optim), &twice, "from the CPU to the card");
        assert_eq!(twice, steps(card(once), &batch, &optim), "and from the card to the card");
    }
}

#[test]
fn crops_may_come_ready_for_the_model() {
    if !standin::inside("crops_may_come_ready_for_the_model") {
        return;
    }
    let net = net(told(Toy { op: Relu, side: 5, dim: 4 }), 5, 3);
    let area = CropBox { x: 1, y: 2, w: 3, h: 2 };
    let bytes = batch(4, 5, MixKind::CutMix(area));
    let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
    let mut planes = vec![0.0; 4 * 3 * 25];
    for (row, out) in planes.chunks_exact_mut(3 * 25).enumerate() {
        bytes.groups[0].write_row(row, mean, std, out);
    }
    let mut ready = batch(4, 5, MixKind::CutMix(area));
    ready.groups[0].crops = Crops::Ready(planes);
    let of = |batch: &Batch| gradient(&mut *on_card(&net, 0, start(&net, Ema::Off)), batch, 3, 1).1;
    assert!(apart(&of(&ready), &of(&bytes)) < 1e-5);
}

#[test]
fn bf16_and_tf32_round_the_factors_of_products_and_nothing_else() {
    if !standin::inside("bf16_and_tf32_round_the_factors_of_products_and_nothing_else") {
        return;
    }
    let net = net(told(Toy { op: Attention { heads: 2 }, side: 4, dim: 12 }), 4, 5);
    let (state, batch) = (start(&net, Ema::Off), batch(6, 4, MixKind::None));
    let of = |products: Products| {
        let machine = Machine { device: DeviceName::Cuda(0), products, ..Machine::cpu(1) };
        let mut engine = machine.engine(&net, 0, state.clone()).expect("an engine");
        gradient(&mut *engine, &batch, 5, 1).1
    };
    let [f32s, tf32, bf16] = [Products::F32, Products::Tf32, Products::Bf16].map(of);
    // A factor of 8 bits is up to 2^-9 off, one of 11 bits an eighth of that.
    let [near, far] = [apart(&tf32, &f32s), apart(&bf16, &f32s)];
    assert!((1e-4..2e-2).contains(&far), "{far}");
    assert!((far / 32.0..far / 2.0).contains(&near), "{near} and {far}");
}

#[test]
fn models_say_of_images_what_the_cpu_says() {
    if !standin::inside("models_say_of_images_what_the_cpu_says") {
        return;
    }
    let card = Machine::named("cuda", 1).expect("a card");
    for (name, img_size) in [("deit_micro_patch8_96", 24), ("pvt_v2_b0_small", 32)] {
        let net = NetSpec::classifier(Spec::find(name).expect(name), img_size, 5);
        let values = start(&net, Ema::Off).values;
        let images: Vec<f32> =
            (0..3 * 3 * img_size * img_size).map(|i| (i * 37 % 19) as f32 / 9.0 - 1.0).collect();
        for net in [net, net.without_heads()] {
            let values = &values[..net.outline().expect(name).num_params()];
            let on = |machine: &Machine| {
                let model = machine.model(&net, values).expect(name);
                model.outputs(images.clone()).expect(name)
            };
            let (seen, expected) = (on(&card), on(&Machine::cpu(1)));
            assert_eq!(seen.logits.len(), expected.logits.len(), "{name}");
            assert!(apart(&seen.features, &expected.features) < 1e-4, "{name}");
            assert!(apart(&seen.logits, &expected.logits) < 1e-4, "{name}");
        }
    }
}

/// The program with these libraries before it.
fn fewvit(libraries: &Path, args: &[&str], settings: &[(&str, &str)]) -> Output {
    let mut command: Command = common::fewvit(args);
    standin::before(&mut command, libraries).envs(settings.iter().copied());
    command.output().expect("the program starts")
}

/// Runs `bench step` there, which has to be refused with exit code 4 and these words.
fn refused(libraries: &Path, settings: &[(&str, &str)], words: &[&str]) {
    let args = ["bench", "step", "--model", "deit_micro_patch8_96", "--device", "cuda"];
    let output = fewvit(libraries, &args, settings);
    let text = common::stderr(&output);
    assert_eq!(output.status.code(), Some(4), "{settings:?}: {text}");
    for word in words {
        assert!(text.contains(word), "{settings:?}: {text}");
    }
}

#[test]
fn what_is_missing_is_named_with_how_to_get_it() {
    let Some(all) = standin::folder() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (file, words) in [
        ("libcuda.so", ["libcuda.so.1 is not found", "install NVIDIA's driver"]),
        ("libnvrtc.so", ["libnvrtc.so.12 is not found", "pip install nvidia-cuda-nvrtc"]),
        ("libcublasLt.so", ["libcublasLt.so.12 is not found", "pip install nvidia-cublas"]),
    ] {
        let some = folder.path().join(file);
        std::fs::create_dir(&some).expect("made");
        for other in ["libcuda.so", "libnvrtc.so", "libcublasLt.so"] {
            if other != file {
                std::fs::copy(all.join(other), some.join(other)).expect("copied");
            }
        }
        refused(&some, &[], &words);
        let output = fewvit(&some, &["doctor"], &[]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }
    refused(&all, &[("STANDIN_CARDS", "0")], &["gives no card", "nvidia-smi"]);
    let output = fewvit(&all, &["doctor"], &[("STANDIN_CARDS", "2")]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for line in ["cuda:0 stand-in 0 (4.0 GB, compute capability 9.0)", "cuda:1 stand-in 1"] {
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn a_card_that_answers_wrongly_or_is_too_small_is_refused_before_training() {
    let Some(all) = standin::folder() else { return };
    let wrong = |what: &str, words: &[&str]| refused(&all, &[("STANDIN_WRONG", what)], words);
    wrong("products", &["answers wrongly and is not used", "in a small DeiT"]);
    wrong("norm_sums", &["in a small DeiT the gradient of", "norm"]);
    wrong("step", &["in a small DeiT the step of"]);
    wrong("depthwise_sums", &["in a small PVTv2 the gradient of", "dwconv"]);
    wrong("performer_exponents", &["in a small T2T-ViT the gradient of"]);
    wrong("augment", &["a crop after HorizontalFlip is", "grey levels off"]);
    refused(&all, &[("STANDIN_MEMORY", "20000000")], &["does not give 0.07 GB more"]);
}
