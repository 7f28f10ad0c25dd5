//! The one pass against one pass for each thing that it does.

use super::*;
use crate::config::{ClipMode, Encoder, LrSchedule, SmoothingKind};

fn config(kind: OptimKind, clip_grad: f64, ema: Ema) -> OptimConfig {
    OptimConfig {
        kind,
        epochs: 1,
        batch_size: 1,
        drop_last: false,
        micro_batch: 0,
        lr: 0.0,
        min_lr: 0.0,
        decay_epochs: 0,
        decay_share: 1.0,
        weight_decay: 0.05,
        weight_decay_end: 0.0,
        momentum: 0.9,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        warmup_epochs: 0.0,
        lr_schedule: LrSchedule::Constant,
        no_decay_1d: true,
        clip_grad,
        clip_mode: ClipMode::Global,
        ema,
        drop_path: 0.0,
        smoothing: 0.0,
        smoothing_kind: SmoothingKind::Uniform,
    }
}

/// A gradient with its length.
fn whole(values: &mut [f32], threads: usize) -> Gradient<'_> {
    let squared = values.iter().map(|&v| f64::from(v).powi(2)).sum();
    Gradient { values, squared, threads, precision: Precision::F32 }
}

/// A parameter longer than a chunk, one that is not decayed, a frozen and a late one.
fn specs() -> Vec<ParamSpec> {
    let shapes: [(&str, &[usize]); 4] =
        [("long", &[CHUNK / 2 + 3, 3]), ("bias", &[77]), ("frozen", &[5, 7]), ("late", &[9, 11])];
    in_turn(shapes.map(|(key, shape)| (key, shape.to_vec())))
}

/// Parameters of such keys and shapes one after the other, the one called `frozen` frozen.
fn in_turn<'a>(shapes: impl IntoIterator<Item = (&'a str, Vec<usize>)>) -> Vec<ParamSpec> {
    let mut start = 0;
    let spec = |(key, shape): (&str, Vec<usize>)| {
        let range = start..start + shape.iter().product::<usize>();
        start = range.end;
        ParamSpec { key: key.to_owned(), shape, range, frozen: key == "frozen" }
    };
    shapes.into_iter().map(spec).collect()
}

fn late(key: &str) -> usize {
    if key == "late" { 2 } else { 0 }
}

fn values(len: usize, step: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 + step * 31) % 199) as f32 / 100.0 - 1.0).collect()
}

/// Whole parameters, and whole vectors, one after the other.
fn update_plainly(state: &mut TrainState, gradient: &mut [f32], lr: f64, config: &OptimConfig) {
    let norm = gradient.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
    if config.clip_grad != 0.0 && norm > config.clip_grad {
        gradient.iter_mut().for_each(|g| *g *= (config.clip_grad / norm) as f32);
    }
    state.progress.step += 1;
    for spec in state.specs.iter().filter(|spec| !spec.frozen) {
        let step = state.progress.step.saturating_sub(late(&spec.key));
        if step == 0 {
            continue;
        }
        let [p, m, v] = [&mut state.values, &mut state.m, &mut state.v];
        let [p, m, v] = [p, m, v].map(|vector| &mut vector[spec.range.clone()]);
        let gradient = &gradient[spec.range.clone()];
        match Rule::of(spec, step, lr, config) {
            Rule::AdamW(options) => adamw_step(p, gradient, m, v, &options),
            Rule::Sgd(options) => sgd_step(p, gradient, m, &options),
            Rule::Muon(options) => muon_step(p, gradient, m, &options, Precision::F32),
            Rule::Rest => unreachable!("no frozen parameter"),
        }
    }
    if config.ema == Ema::PerStep {
        state.average(1);
    }
}

#[test]
fn one_pass_on_any_number_of_threads_is_bit_for_bit_the_plain_passes() {
    for kind in [OptimKind::AdamW, OptimKind::Sgd, OptimKind::Muon] {
        for (clip, ema) in [(0.0, Ema::Off), (1.0, Ema::PerStep), (1e9, Ema::PerEpoch)] {
            let config = config(kind, clip, ema);
            let specs = specs();
            let len = specs.last().map_or(0, |spec| spec.range.end);
            let start = TrainState::new(specs, values(len, 0), ema);
            let run = |step: &dyn Fn(&mut TrainState, &mut [f32])| {
                let mut state = start.clone();
                (1..5).for_each(|i| step(&mut state, &mut values(len, i)));
                state
            };
            let plain = run(&|state, gradient| update_plainly(state, gradient, 0.01, &config));
            for threads in [1, 2, 5] {
                let fused = run(&|state, gradient| {
                    let gradient = whole(gradient, threads);
                    state.update(gradient, &Update { lr: 0.01, optim: &config, late: &late });
                });
                assert!(fused == plain, "{kind:?}, clipped to {clip}, {ema:?}, {threads} threads");
            }
            let frozen = plain.specs[2].range.clone();
            assert_eq!(plain.values[frozen.clone()], start.values[frozen]);
            assert_ne!(plain.values, start.values);
        }
    }
}

/// DINO: `torch.nn.utils.clip_grad_norm_([p], bound)` for each parameter by itself.
#[test]
fn parameters_are_clipped_by_themselves_where_the_recipe_says_so() {
    let specs = specs();
    let len = specs.last().map_or(0, |spec| spec.range.end);
    let config =
        OptimConfig { clip_mode: ClipMode::Parameter, ..config(OptimKind::Sgd, 3.0, Ema::Off) };
    let config = OptimConfig { momentum: 0.0, weight_decay: 0.0, ..config };
    // Norms of 3 sqrt(7) 4 ..., the bias' below the bound.
    let mut gradient = vec![0.0f32; len];
    gradient[specs[0].range.clone()].fill(0.5);
    gradient[specs[1].range.clone()][..2].copy_from_slice(&[1.0, -2.0]);
    gradient[specs[3].range.clone()][..2].copy_from_slice(&[30.0, 40.0]);
    for threads in [1, 3] {
        let mut state = TrainState::new(specs.clone(), vec![0.0; len], Ema::Off);
        let mut gradient = gradient.clone();
        let gradient = whole(&mut gradient, threads);
        state.update(gradient, &Update { lr: 1.0, optim: &config, late: &|_| 0 });
        let first = |i: usize| -state.values[state.specs[i].range.start];
        let long = (specs[0].range.len() as f32).sqrt();
        assert!((first(0) - 3.0 / long).abs() < 1e-6, "{}", first(0));
        assert_eq!(first(1), 1.0, "sqrt 5 is below 3");
        assert_eq!(first(3), 30.0 * (3.0 / 50.0));
    }
}

#[test]
fn the_model_is_the_teacher_where_the_recipe_takes_it_else_the_average_if_there_is_one() {
    let mut state = TrainState::new(specs(), vec![1.0; 4], Ema::Off);
    assert_eq!(state.representation(), [1.0; 4]);
    state.teacher = Some(vec![2.0; 4]);
    assert_eq!(state.representation(), [1.0; 4]);
    state.ema = Some(vec![3.0; 4]);
    assert_eq!(state.representation(), [3.0; 4]);
    state.encoder = Encoder::Teacher;
    assert_eq!(state.representation(), [2.0; 4]);
}

#[test]
fn what_does_not_decay_or_waits_is_told_by_its_shape_and_key() {
    let config = config(OptimKind::Sgd, 0.0, Ema::Off);
    let specs = specs();
    let len = specs.last().map_or(0, |spec| spec.range.end);
    let mut state = TrainState::new(specs, vec![1.0; len], Ema::Off);
    for step in 1..4 {
        let mut zeros = vec![0.0; len];
        let update = Update { lr: 0.1, optim: &config, late: &late };
        state.update(whole(&mut zeros, 2), &update);
        let of = |i: usize| state.values[state.specs[i].range.start];
        assert!(of(0) < 1.0, "weights decay");
        assert_eq!([of(1), of(2)], [1.0; 2]);
        assert_eq!(of(3) < 1.0, step > 2, "late, step {step}");
    }
}

#[test]
fn a_stage_hands_on_the_average_where_it_keeps_one() {
    let values = vec![1.0; 17];
    let mut state = TrainState::new(Vec::new(), values.clone(), Ema::Off);
    assert_eq!(state.representation(), values);
    state.ema = Some(vec![0.5; 17]);
    assert_eq!(state.representation(), [0.5; 17]);
}

/// `tests/golden/muon.py`: the largest difference of a weight after three steps of PyTorch's Muon with our rounds in
/// float64, and the root of the mean of the squares.
fn off_pytorch(precision: Precision) -> [f32; 2] {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/muon.safetensors");
    let bytes = std::fs::read(path).expect("the golden file");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let values = |name: &str| -> Vec<f32> {
        let data = file.tensor(name).expect("a tensor of the golden file").data();
        data.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
    };
    let names = file.names();
    let mut keys: Vec<&str> = names.iter().filter_map(|name| name.strip_prefix("0.")).collect();
    keys.sort_unstable();
    let shape = |key: &str| file.tensor(&format!("0.{key}")).expect("weights").shape().to_vec();
    let specs = in_turn(keys.iter().map(|&key| (key, shape(key))));
    let all = |step: &str| keys.iter().flat_map(|key| values(&format!("{step}.{key}"))).collect();
    let config = OptimConfig {
        momentum: 0.95,
        weight_decay: 0.1,
        no_decay_1d: false,
        ..config(OptimKind::Muon, 0.0, Ema::Off)
    };
    let mut state = TrainState::new(specs, all("0"), Ema::Off);
    let (mut largest, mut mean) = (0.0f32, 0.0f32);
    for step in 1..=3 {
        let mut gradient: Vec<f32> = all(&format!("grad.{step}"));
        let gradient = Gradient { precision, ..whole(&mut gradient, 2) };
        state.update(gradient, &Update { lr: 0.02, optim: &config, late: &|_| 0 });
        let expected: Vec<f32> = all(&step.to_string());
        let pairs = state.values.iter().zip(&expected);
        let off: Vec<f32> = pairs.map(|(ours, theirs)| (ours - theirs).abs()).collect();
        let squares: f32 = off.iter().map(|off| off * off).sum();
        largest = off.iter().fold(largest, |largest, &off| largest.max(off));
        mean = mean.max((squares / off.len() as f32).sqrt());
    }
    [largest, mean]
}

#[test]
fn muon_steps_as_pytorch_does() {
    let [largest, _] = off_pytorch(Precision::F32);
    assert!(largest < 2e-6, "{largest}");
    // A step is about 0.004 long in each weight. Squares of the smaller singular values are close to the last digit of
    // bf16, so that these come out longer or shorter, as they do by the rounds themselves.
    let [_, mean] = off_pytorch(Precision::Bf16);
    assert!(mean < 4e-4, "{mean}");
}

#[test]
fn a_step_of_muon_is_as_long_as_one_of_adamw_whatever_the_gradient() {
    for scale in [1e-12, 1.0, 1e12] {
        for sides in [[30, 12], [12, 30], [16, 16]] {
            let len = sides[0] * sides[1];
            let gradient: Vec<f32> = values(len, 3).iter().map(|g| g * scale).collect();
            let (mut p, mut m) = (vec![0.0; len], vec![0.0; len]);
            let options = Muon { lr: 1.0, momentum: 0.95, weight_decay: 0.0, sides };
            muon_step(&mut p, &gradient, &mut m, &options, Precision::F32);
            let rms = (p.iter().map(|&p| p * p).sum::<f32>() / len as f32).sqrt();
            assert!((0.12..0.26).contains(&rms), "{sides:?}, {scale}: {rms}");
        }
    }
    let options = Muon { lr: 1.0, momentum: 0.95, weight_decay: 0.0, sides: [3, 2] };
    let mut p = [1.0; 6];
    muon_step(&mut p, &[0.0; 6], &mut [0.0; 6], &options, Precision::F32);
    assert_eq!(p, [1.0; 6], "no gradient, no step");
}
