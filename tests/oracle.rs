//! Every family with every method: the CPU's kernels against burn's own operations, value, gradient and
//! ten steps.

#[cfg(feature = "cuda")]
#[path = "common/standin.rs"]
mod standin;
#[path = "../src/backbone/tiny.rs"]
mod tiny;

use std::sync::Arc;

use burn::tensor::Device;
use fewvit::backbone::{NetSpec, Spec, Told, deit, pvt_v2, t2t_vit};
use fewvit::config::{Layers, RunConfig, Source};
use fewvit::data::loader::{Batch, CropBatch, Crops};
use fewvit::data::mixing::Mix;
use fewvit::data::views::ViewGroup;
use fewvit::engine::composed::ComposedEngine;
use fewvit::engine::{Engine, Machine, StepInput, TrainState, Update};
use fewvit::method::{self, Labels, Method, Objective};
use fewvit::nn::DropPath;
use fewvit::ops;
use fewvit::rng::{Purpose, stream};

const FAMILIES: [(&str, &dyn Told); 5] = [
    ("deit", &tiny::DEIT),
    ("pvt_v2", &tiny::PVT),
    ("pvt_v2_li", &tiny::PVT_LINEAR),
    ("t2t_vit", &tiny::T2T),
    ("t2t_vit_t", &tiny::T2T_TRANSFORMER),
];
const BATCH: usize = 6;
const IMG_SIZE: usize = 32;

/// The recipe of a method, its heads small.
fn config(method: &str) -> RunConfig {
    let recipe = if method == "idmm" { "paper" } else { method };
    let mut layers = Layers::new(recipe).expect(recipe);
    let batch_size = format!("pretrain.optim.batch_size={BATCH}");
    layers.set(&batch_size, Source::Flag("--set")).expect(&batch_size);
    for option in ["hidden", "bottleneck", "dim", "prototypes", "queue"] {
        let key = format!("pretrain.options.{option}");
        if layers.get(&key).expect("a recipe").is_some() {
            layers.set(&format!("{key}=16"), Source::Flag("--set")).expect(&key);
        }
    }
    layers.build().expect(recipe).config
}

/// Crops of a fixed pattern for the views of a method, mixed as it wants.
fn batch(method: &dyn Method) -> Batch {
    let samples: Vec<usize> = (0..BATCH).collect();
    let group = |(i, group): (usize, &ViewGroup)| {
        let rows = BATCH * group.count;
        let values = IMG_SIZE * IMG_SIZE * 3;
        // Rows of other brightness and contrast, so that their features differ.
        let byte = |j: usize| {
            let row = j / values + 3 * i;
            ((i + 1) * j * 7919 % 253) * (1 + row % 5) / 5 * (1 + row % 3) / 3 + 11 * (row % 7)
        };
        let bytes = (0..rows * values).map(|j| byte(j).min(255) as u8);
        let mix = match method.objective() {
            Objective::Rows(_) => {
                method.mix(&mut stream(3, Purpose::Mix, 0, 0, i as u32), 1, rows, IMG_SIZE)
            }
            Objective::Batch(_) => Mix::none(rows),
        };
        CropBatch {
            img_size: IMG_SIZE,
            views: group.count,
            crops: Crops::Bytes(bytes.collect()),
            samples: samples.repeat(group.count),
            mix,
        }
    };
    Batch { groups: method.views().groups.iter().enumerate().map(group).collect() }
}

/// What an engine does with the same weights and batch.
struct Seen {
    losses: Vec<f64>,
    gradient: Vec<f32>,
    state: TrainState,
}

/// The first `steps` steps.
fn train(engine: Box<dyn Engine>, case: &Case, steps: usize) -> Seen {
    let (method, config) = (&*case.method, &case.config);
    let (mut engine, batch) = (engine, batch(method));
    let optim = &config.pretrain.optim;
    let (mut losses, mut gradient) = (Vec::new(), Vec::new());
    for step in 0..steps {
        let drop_path =
            DropPath { rate: 0.3, seed: 5, step: step as u32, first_row: 0, training: true };
        let (mean, std, objective) = ([0.5; 3], [0.25; 3], method.objective());
        let input = StepInput { batch: &batch, objective, drop_path, mean, std, epoch: step / 2 };
        losses.push(engine.gradient(&input).expect("a gradient").loss);
        if step == 0 {
            gradient = engine.kept_gradient().expect("a gradient");
        }
        engine.update(&Update { lr: 1e-4, optim, late: &|_| 0 }).expect("an update");
        engine.follow(0.9).expect("a teacher");
    }
    Seen { losses, gradient, state: engine.into_state().expect("a state") }
}

/// Largest difference in units of the largest value.
fn apart(a: &[f32], b: &[f32]) -> f32 {
    let largest = b.iter().fold(f32::MIN_POSITIVE, |m, v| m.max(v.abs()));
    a.iter().zip(b).fold(0f32, |m, (x, y)| m.max((x - y).abs())) / largest
}

/// Length of the difference of two ways in units of the second.
fn strayed(a: &[f32], b: &[f32], start: &[f32]) -> f64 {
    let length = |x: &[f32], y: &[f32]| -> f64 {
        x.iter().zip(y).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>().sqrt()
    };
    length(a, b) / length(b, start)
}

/// A model with a method, and where training starts from.
struct Case {
    what: String,
    config: RunConfig,
    method: Arc<dyn Method>,
    net: NetSpec,
    state: TrainState,
}

impl Case {
    fn new((family, told): (&str, &'static dyn Told), name: &str) -> Self {
        let labels = Labels { of_samples: (0..BATCH).map(|i| i % 3).collect(), classes: 3 };
        let (what, config) = (format!("{family}, {name}"), config(name));
        let method = method::pretraining(&config, BATCH, Some(labels)).expect(&what);
        let spec = Spec { name: "tiny", timm_name: None, family: told };
        let net = NetSpec { spec, img_size: IMG_SIZE, heads: method.heads() };
        let outline = net.outline().expect(&what);
        // Larger than a model starts, norms aside: features of different images are then apart, so
        // that BatchNorm does not divide by rounding.
        let larger = |v: f32| if v.abs() < 0.5 { 4.0 * v } else { v };
        let values = outline.draw(7).into_iter().map(larger).collect();
        let mut state = TrainState::new(outline.parameters, values, config.pretrain.optim.ema);
        if let Objective::Batch(loss) = method.objective() {
            state.memory = loss.state(1);
            state.teacher = loss.teacher().map(|_| state.values.clone());
        }
        Self { what, config, method, net, state }
    }

    /// Steps in burn's own operations, on the CPU or on another device.
    fn composed(&self, device: &Device, micro_batch: usize, steps: usize) -> Seen {
        let state = self.state.clone();
        let engine = ComposedEngine::new(device, 1, &self.net, micro_batch, state);
        train(Box::new(engine), self, steps)
    }

    /// Steps by the kernels, on two threads.
    fn on_cpu(&self, steps: usize) -> Seen {
        let engine = Machine::cpu(2).engine(&self.net, 4, self.state.clone());
        train(engine.expect("an engine"), self, steps)
    }

    /// Steps on a card, `micro_batch` rows at a time.
    #[cfg(feature = "cuda")]
    fn on_card(&self, micro_batch: usize, steps: usize) -> Seen {
        use fewvit::engine::device::DeviceName;
        let machine = Machine { device: DeviceName::Cuda(0), ..Machine::cpu(1) };
        let engine = machine.engine(&self.net, micro_batch, self.state.clone());
        train(engine.expect("an engine"), self, steps)
    }

    fn compare(&self, seen: &Seen, expected: &Seen) {
        let what = &self.what;
        let f32s = |s: &Seen| s.losses.iter().map(|&loss| loss as f32).collect::<Vec<_>>();
        let losses = apart(&f32s(seen), &f32s(expected));
        let gradient = apart(&seen.gradient, &expected.gradient);
        let steps = strayed(&seen.state.values, &expected.state.values, &self.state.values);
        println!("{what}: losses {losses:.1e}, gradient {gradient:.1e}, steps {steps:.1e}");
        assert!(gradient < 2e-4, "{what}: {gradient}");
        // AdamW divides by gradients that are nearly zero, and MoCo v3's BatchNorm by the deviations
        // of six rows: rounding grows from step to step.
        let room = if what.ends_with("moco-v3") { 20.0 } else { 1.0 };
        assert!(losses < room * 1e-4, "{what}: {:?} for {:?}", seen.losses, expected.losses);
        assert!(steps < f64::from(room) * 2e-2, "{what}: {steps}");
        for (key, tensor) in &expected.state.memory {
            let distance = apart(&seen.state.memory[key].values, &tensor.values);
            assert!(distance < 1e-3, "{what}, {key}: {distance}");
        }
    }
}

#[test]
fn every_family_with_every_method() {
    for family in FAMILIES {
        for entry in method::TABLE {
            let case = Case::new(family, entry.name);
            case.compare(&case.on_cpu(10), &case.composed(&ops::cpu(), 1000, 10));
        }
    }
}

#[cfg(feature = "wgpu")]
#[test]
fn every_family_with_two_methods_on_wgpu() {
    use fewvit::engine::device::{self, DeviceName};
    let device = match device::open(DeviceName::Wgpu(0)) {
        Ok(device) => device,
        Err(error) => return eprintln!("NOT TESTED, training on wgpu: {error}"),
    };
    for family in FAMILIES {
        for method in ["idmm", "dino"] {
            let case = Case::new(family, method);
            case.compare(&case.composed(&device, 8, 2), &case.on_cpu(2));
        }
    }
}

/// On the stand-in: the engine's plan, kernels and indices, without a card.
#[cfg(feature = "cuda")]
#[test]
fn every_family_with_every_method_on_cuda() {
    if !standin::inside("every_family_with_every_method_on_cuda") {
        return;
    }
    for family in FAMILIES {
        for entry in method::TABLE {
            let case = Case::new(family, entry.name);
            case.compare(&case.on_card(8, 10), &case.on_cpu(10));
        }
    }
}
