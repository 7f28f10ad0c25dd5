//! A new pre-training method is one file and one line of `TABLE`: this file has nothing but the
//! public interface, and the engine trains it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use burn::tensor::Tensor;
use fewvit::backbone::{HeadSpec, NetSpec, Spec};
use fewvit::config::{Layers, LrSchedule, OptimKind, RunConfig, Source};
use fewvit::data::Rgb8;
use fewvit::data::cache::ImageStore;
use fewvit::data::loader::{BatchSource, Cutting, Rows};
use fewvit::data::mixing::Mix;
use fewvit::data::views::ViewPlan;
use fewvit::engine::{Machine, TrainState};
use fewvit::loss::{Chance, normalize};
use fewvit::method::{
    BatchFeatures, BatchLoss, Entry, Kind, Method, Objective, Setting, State, StateTensor,
};
use fewvit::train::checkpoint::{self, StageName};
use fewvit::train::stage::{Checkpoints, EpochRecord, Observer, Stage, StepRecord};

// What a file in src/method would hold.

/// The line of `TABLE`.
const ENTRY: Entry = Entry {
    name: "toy",
    title: "Toy",
    kind: Kind::SelfSupervised,
    summary: "alignment and uniformity on the sphere (Wang & Isola 2020), counting its steps",
    reads: &["options"],
    build: |setting| Ok(Arc::new(Toy::new(setting)?)),
};

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Weight of uniformity.
    spread: f64,
    /// What becomes no number in step `breaks_at`: `loss`, or only its `gradient`.
    breaks: String,
    /// See `breaks`.
    breaks_at: usize,
}

struct Toy {
    views: ViewPlan,
    options: Options,
}

impl Toy {
    fn new(setting: &Setting) -> fewvit::Result<Self> {
        Ok(Self { views: ViewPlan::pretrain(setting.config), options: setting.options()? })
    }
}

impl Method for Toy {
    fn views(&self) -> &ViewPlan {
        &self.views
    }

    fn heads(&self) -> HeadSpec {
        HeadSpec::default()
    }

    fn objective(&self) -> Objective<'_> {
        Objective::Batch(self)
    }

    /// Equal features have both terms at 0, and a loss below that is what training looks for.
    fn chance(&self) -> Option<Chance> {
        None
    }
}

impl BatchLoss for Toy {
    fn state(&self, _: u64) -> State {
        State::from([("steps".to_owned(), StateTensor { shape: vec![1], values: vec![0.0] })])
    }

    fn loss(&self, batch: BatchFeatures, state: &mut State) -> Tensor<1> {
        if let Some(steps) = state.get_mut("steps") {
            steps.values[0] += 1.0;
        }
        let [a, b] = [0, 1].map(|view| normalize(batch.view(&batch.features, view)));
        let apart = (a.clone() - b).square().sum_dim(1).mean();
        // |x - y|^2 = 2 - 2 x y.
        let potential = (a.clone().matmul(a.transpose()) * 4.0 - 4.0).exp().mean().log();
        let loss = apart + potential * self.options.spread;
        match self.options.breaks.as_str() {
            "loss" if batch.step == self.options.breaks_at => loss * f32::NAN,
            // The root of zero has an infinite slope.
            "gradient" if batch.step == self.options.breaks_at => {
                loss + (batch.features * 0.0).sqrt().sum()
            }
            _ => loss,
        }
    }
}

// What trains it.

const IMAGES: usize = 12;

fn config(options: &str) -> RunConfig {
    let mut layers = Layers::new("simclr").expect("a recipe");
    for setting in [
        "model.name=deit_micro_patch8_96",
        "pretrain.crops=[{ count = 2, img_size = 16, scale = [0.5, 1.0] }]",
        "pretrain.optim.epochs=20",
        "pretrain.optim.batch_size=6",
        "pretrain.optim.warmup_epochs=1",
    ] {
        layers.set(setting, Source::Flag("--set")).expect(setting);
    }
    let mut config = layers.build().expect("a configuration").config;
    config.pretrain.options = options.parse().expect("TOML");
    config
}

/// Plain colours, which two views of an image share.
fn images() -> Vec<Rgb8> {
    let colour = |i: usize| [i * 20, 255 - i * 20, i * 67 % 256].map(|c| c as u8);
    let image = |i| Rgb8 { width: 20, height: 20, pixels: colour(i).repeat(400) };
    (0..IMAGES).map(image).collect()
}

fn stage(config: &RunConfig, workers: usize) -> fewvit::Result<Stage<'_>> {
    let pretrain = &config.pretrain;
    let spec = Spec::find(&config.model.name)?;
    let num_features = spec.num_features();
    let setting = Setting { config: pretrain, samples: IMAGES, labels: None, num_features };
    let method = (ENTRY.build)(&setting)?;
    let source = BatchSource {
        images: Arc::new(ImageStore::of(images())),
        views: Arc::new(method.views().clone()),
        mix: Arc::new(|_, _, rows, _| Mix::none(rows)),
        seed: 4,
        batch_size: pretrain.optim.batch_size,
        drop_last: false,
        threads: 1,
        rows: Rows::All,
        cutting: Cutting::Loader,
        balance: None,
        repeats: 1,
    };
    Ok(Stage {
        name: StageName::Pretrain,
        net: NetSpec { spec, img_size: 16, heads: method.heads() },
        method,
        source,
        optim: &pretrain.optim,
        data: &config.data,
        machine: Machine::cpu(workers),
        micro_batch: 3,
        dropout: true,
    })
}

const SOUND: &str = "spread = 0.5\nbreaks = \"\"\nbreaks_at = 0";

/// The losses of all steps and the state after them.
fn trained(workers: usize) -> (Vec<f64>, TrainState) {
    let config = config(SOUND);
    let stage = stage(&config, workers).expect("a stage");
    let mut engine = stage.engine(stage.fresh(4).expect("a state")).expect("an engine");
    let mut losses = Vec::new();
    for batch in stage.source.prefetch(0, stage.total_steps()) {
        let batch = batch.expect("a batch");
        losses.push(stage.step(&mut *engine, &batch).expect("a step").loss);
    }
    (losses, engine.into_state().expect("a state"))
}

#[test]
fn it_learns_and_its_state_is_kept() {
    let (losses, state) = trained(2);
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    let (first, last) = (mean(&losses[..4]), mean(&losses[36..]));
    assert!(last < first - 0.1, "{first} to {last}: {losses:?}");
    assert_eq!(state.memory["steps"].values, [40.0]);
}

#[test]
fn workers_change_nothing_but_rounding() {
    let ((one, _), (two, _)) = (trained(1), trained(2));
    let apart = one.iter().zip(&two).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
    assert!(apart < 1e-2, "{apart}");
    assert!((one[1] - two[1]).abs() < 1e-5);
}

/// Hears of a run and says nothing.
struct Silent;

impl Observer for Silent {
    fn step(&mut self, _: &StepRecord) -> fewvit::Result<()> {
        Ok(())
    }

    fn epoch(&mut self, _: &EpochRecord, _: &TrainState) -> fewvit::Result<()> {
        Ok(())
    }
}

#[test]
fn a_run_that_diverges_keeps_its_last_good_checkpoint() {
    let folder = tempfile::tempdir().expect("a folder");
    for breaks in ["loss", "gradient"] {
        let path = folder.path().join(format!("{breaks}.safetensors"));
        let options = format!("spread = 0.5\nbreaks = \"{breaks}\"\nbreaks_at = 7");
        let config = config(&options);
        let stage = stage(&config, 2).expect("a stage");
        let interrupted = AtomicBool::new(false);
        let checkpoints =
            Checkpoints { path: &path, every: Duration::ZERO, interrupted: &interrupted };
        let fresh = stage.fresh(4).expect("a state");
        let error = stage.run(fresh, &checkpoints, &mut Silent).expect_err("no number");
        assert_eq!(error.exit_code(), 5);
        let text = error.to_string();
        assert!(text.contains(&format!("the {breaks} of pretrain")), "{text}");
        assert!(text.contains("step 7") && text.contains("lower --lr"), "{text}");
        let (_, state) = checkpoint::load(&path).expect("readable").expect("there");
        assert_eq!(state.progress.step, 7);
        assert!(state.values.iter().chain(&state.m).chain(&state.v).all(|v| v.is_finite()));
    }
}

/// Keeps what epochs say.
#[derive(Default)]
struct Norms(Vec<f64>, f64);

impl Observer for Norms {
    fn step(&mut self, _: &StepRecord) -> fewvit::Result<()> {
        Ok(())
    }

    fn epoch(&mut self, record: &EpochRecord, state: &TrainState) -> fewvit::Result<()> {
        self.0.push(record.grad_norm);
        self.1 = state.progress.seconds;
        Ok(())
    }
}

/// Plain SGD moves the weights by the learning rate times the gradient.
#[test]
fn the_gradient_norm_is_that_before_clipping() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut norms = Vec::new();
    for (name, bound) in [("free", 0.0), ("clipped", 1e-4)] {
        let mut config = config(SOUND);
        let optim = &mut config.pretrain.optim;
        (optim.kind, optim.momentum, optim.weight_decay) = (OptimKind::Sgd, 0.0, 0.0);
        (optim.lr, optim.lr_schedule, optim.warmup_epochs) = (1e-2, LrSchedule::Constant, 0.0);
        (optim.epochs, optim.batch_size, optim.clip_grad) = (1, IMAGES, bound);
        let stage = stage(&config, 2).expect("a stage");
        let interrupted = AtomicBool::new(false);
        let path = folder.path().join(name);
        let checkpoints =
            Checkpoints { path: &path, every: Duration::from_secs(60), interrupted: &interrupted };
        let (fresh, mut observer) = (stage.fresh(4).expect("a state"), Norms::default());
        let before = fresh.values.clone();
        let started = std::time::Instant::now();
        let after = stage.run(fresh, &checkpoints, &mut observer).expect("an epoch");
        assert!(observer.1 > 0.0 && observer.1 <= started.elapsed().as_secs_f64());
        let moved = before.iter().zip(&after.values).map(|(a, b)| f64::from(a - b).powi(2));
        let moved = moved.sum::<f64>().sqrt() / 1e-2;
        match bound {
            0.0 => assert!((moved / observer.0[0] - 1.0).abs() < 1e-3, "{moved} {:?}", observer.0),
            _ => assert!((moved / bound - 1.0).abs() < 0.1, "{moved}"),
        }
        norms.extend(observer.0);
    }
    assert_eq!(norms[0], norms[1]);
}

#[test]
fn an_option_that_it_does_not_have_is_named() {
    let config = config(&SOUND.replace("spread", "spraed"));
    let error = stage(&config, 1).err().expect("a misspelt option");
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("spraed"), "{error}");
}
