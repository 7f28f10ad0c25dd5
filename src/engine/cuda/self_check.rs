//! Refuses a card that answers wrongly, before hours of training go into it.

use std::sync::Arc;

use super::engine::CudaEngine;
use super::feed::Feed;
use super::gpu::Gpu;
use super::inputs::Inputs;
use crate::backbone::deit::DeitSpec;
use crate::backbone::pvt_v2::PvtV2Spec;
use crate::backbone::t2t_vit::{T2tVitSpec, TokenAttention};
use crate::backbone::{NetSpec, Spec, Told};
use crate::config::{Ema, Interpolation, Layers, OptimConfig, SmoothingKind};
use crate::data::Rgb8;
use crate::data::augment::{CropBox, DrawnView, Op};
use crate::data::loader::{Batch, CropBatch, Crops, DrawnCrops};
use crate::data::mixing::{Mix, MixKind};
use crate::engine::composed::ComposedEngine;
use crate::engine::{Engine, Machine, StepInput, TrainState, Update};
use crate::error::{Error, Result};
use crate::loss::Smoothing;
use crate::method::{Objective, RowLoss};
use crate::nn::{DropPath, ParamSpec};
use crate::ops;

/// Models that together have every operation.
const FAMILIES: [(&str, &dyn Told); 3] = [
    ("DeiT", &DeitSpec { embed_dim: 32, depth: 2, num_heads: 2, patch_size: 8 }),
    (
        "PVTv2",
        &PvtV2Spec {
            embed_dims: [8, 8, 10, 16],
            depths: [1, 1, 1, 1],
            mlp_ratios: [2, 2, 2, 2],
            linear: true,
        },
    ),
    (
        "T2T-ViT",
        &T2tVitSpec {
            embed_dim: 16,
            depth: 1,
            num_heads: 2,
            mlp_ratio: 2,
            token_dim: 8,
            attention: TokenAttention::Performer,
        },
    ),
];
const IMG_SIZE: usize = 32;
const ROWS: usize = 3;
/// Largest difference of a gradient to the CPU's, relative to the largest value of its parameter, or to a
/// hundredth of the largest of all where that is more. Sums in another order stay ten times below.
const TOLERANCE: f32 = 1e-3;
const SMALL: f32 = 1e-2;

/// Grey levels that crops may be off.
const LEVELS: u8 = 2;
/// Operations that together go through every kind of the kernels that make crops.
const OPS: [Op; 8] = [
    Op::HorizontalFlip,
    Op::Contrast(1.4),
    Op::Hue(0.1),
    Op::GaussianBlur(1.2),
    Op::Sharpness(1.5),
    Op::Equalize,
    Op::ShearX(0.2),
    Op::Rotate(20.0),
];

/// Compares a step of small models, and crops, on a card with the same on the CPU.
///
/// # Errors
/// They differ, or the device fails.
pub fn self_check(gpu: &Arc<Gpu>) -> Result<()> {
    for (family, told) in FAMILIES {
        let (net, state) = start(told)?;
        let card = CudaEngine::new(gpu.clone(), &Machine::cpu(1), &net, 2, state.clone())?;
        let cpu = ComposedEngine::new(&ops::cpu(), 1, &net, ROWS, state.clone());
        let (seen, expected) = (answer(Box::new(card))?, answer(Box::new(cpu))?);
        compare(family, &state, &seen, &expected)?;
    }
    crops(gpu)
}

/// Compares crops that a card makes with the CPU's.
fn crops(gpu: &Arc<Gpu>) -> Result<()> {
    let (width, height) = (2 * IMG_SIZE + 5, IMG_SIZE + 3);
    let pixels = (0..3 * width * height).map(|i| (i * 31 % 97 + i / width) as u8).collect();
    let image = Rgb8 { width, height, pixels };
    let set_bytes = image.pixels.len() as u64;
    let area = CropBox { x: 4, y: 1, w: 2 * IMG_SIZE, h: IMG_SIZE };
    let views = OPS.map(|op| DrawnView { area, ops: vec![op] }).to_vec();
    let (images, interpolation) = (vec![Arc::new(image)], Interpolation::Bicubic);
    let drawn = DrawnCrops { images, views: views.clone(), interpolation, set_bytes };
    let samples = vec![0; views.len()];
    let mix = Mix::none(views.len());
    let of_view = |view: &DrawnView| view.of(drawn.image(0), IMG_SIZE, interpolation).pixels;
    let expected: Vec<Vec<u8>> = views.iter().map(of_view).collect();
    let crops = Crops::Drawn(drawn);
    let group = CropBatch { img_size: IMG_SIZE, views: 1, crops, samples, mix };
    let batch = Batch { groups: vec![group] };
    let _turn = gpu.turn()?;
    let inputs = Inputs::training(gpu, IMG_SIZE, 1, &batch)?;
    inputs.receive(&batch, Some(&mut Feed::new(gpu, set_bytes)?))?;
    let received = inputs.received()?;
    for ((op, seen), expected) in OPS.iter().zip(received.chunks(expected[0].len())).zip(&expected)
    {
        let apart = seen.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).max();
        if apart > Some(LEVELS) {
            return Err(Error::Device(format!(
                "the card answers wrongly and is not used: a crop after {op:?} is {} grey levels off\n  \
                 update its driver and CUDA's libraries, or use --device cpu",
                apart.unwrap_or_default()
            )));
        }
    }
    Ok(())
}

/// A model, and weights that are larger than a model's first ones, norms aside, so that what passes through
/// the layers is not all alike.
fn start(told: &'static dyn Told) -> Result<(NetSpec, TrainState)> {
    let spec = Spec { name: "small", timm_name: None, family: told };
    let net = NetSpec::classifier(spec, IMG_SIZE, ROWS);
    let outline = net.outline()?;
    let larger = |v: f32| if v.abs() < 0.5 { 4.0 * v } else { v };
    let values = outline.draw(7).into_iter().map(larger).collect();
    Ok((net, TrainState::new(outline.parameters, values, Ema::PerStep)))
}

/// Each crop is a class.
struct Instances;

impl RowLoss for Instances {
    fn target(&self, sample: usize) -> usize {
        sample
    }

    fn smoothing(&self) -> Smoothing {
        Smoothing::new(0.1, SmoothingKind::Uniform, ROWS)
    }
}

/// What an engine makes of a batch.
#[derive(Clone)]
struct Answer {
    loss: f64,
    gradient: Vec<f32>,
    /// After an update.
    weights: Vec<f32>,
}

fn answer(mut engine: Box<dyn Engine>) -> Result<Answer> {
    let bytes = (0..ROWS * 3 * IMG_SIZE * IMG_SIZE).map(|i| (i * 7919 % 251 / (1 + i % 7)) as u8);
    let area = CropBox { x: 5, y: 9, w: 13, h: 11 };
    let mix = Mix { kind: MixKind::CutMix(area), lambda: 0.7, partner: vec![1, 2, 0] };
    let (crops, samples) = (Crops::Bytes(bytes.collect()), (0..ROWS).collect());
    let group = CropBatch { img_size: IMG_SIZE, views: 1, crops, samples, mix };
    let (mean, std) = ([0.5; 3], [0.25; 3]);
    let drop_path = DropPath { rate: 0.3, seed: 5, step: 1, first_row: 0, training: true };
    let (batch, objective) = (Batch { groups: vec![group] }, Objective::Rows(&Instances));
    let input = StepInput { batch: &batch, objective, drop_path, mean, std, epoch: 0 };
    let loss = engine.gradient(&input)?.loss;
    let gradient = engine.kept_gradient()?;
    let recipe = Layers::new("paper")?.build()?.config.pretrain.optim;
    // So large an eps that the step is as long as the gradient, and not 1 wherever it is not quite 0.
    let optim = OptimConfig { eps: 1.0, clip_grad: 1.0, ema: Ema::PerStep, ..recipe };
    engine.update(&Update { lr: 0.1, optim: &optim, late: &|_| 0 })?;
    Ok(Answer { loss, gradient, weights: engine.into_state()?.values })
}

fn compare(family: &str, start: &TrainState, seen: &Answer, expected: &Answer) -> Result<()> {
    let wrong = |what: &str, a: f64, b: f64| {
        Err(Error::Device(format!(
            "the card answers wrongly and is not used: in a small {family} {what} should be {b:e} and is \
             {a:e}\n  update its driver and CUDA's libraries, or use --device cpu"
        )))
    };
    let apart = |a: f64, b: f64, room: f64| (a - b).is_nan() || (a - b).abs() > room;
    if apart(seen.loss, expected.loss, f64::from(TOLERANCE) * expected.loss.abs()) {
        return wrong("the loss", seen.loss, expected.loss);
    }
    let moved = |answer: &Answer| -> Vec<f32> {
        answer.weights.iter().zip(&start.values).map(|(after, before)| after - before).collect()
    };
    let gradients = (seen.gradient.clone(), expected.gradient.clone());
    let pairs = [("the gradient of", gradients), ("the step of", (moved(seen), moved(expected)))];
    for (name, (seen, expected)) in pairs {
        for spec in &start.specs {
            let room = f64::from(TOLERANCE * room(&expected, spec));
            let own = |values: &[f32]| -> Vec<f64> {
                values[spec.range.clone()].iter().map(|&v| v.into()).collect()
            };
            let (a, b) = (own(&seen), own(&expected));
            if let Some((a, b)) = a.iter().zip(&b).find(|&(a, b)| apart(*a, *b, room)) {
                return wrong(&format!("{name} {}", spec.key), *a, *b);
            }
        }
    }
    Ok(())
}

/// What a difference in a parameter is measured by.
fn room(expected: &[f32], spec: &ParamSpec) -> f32 {
    let largest = |values: &[f32]| values.iter().fold(0f32, |m, v| m.max(v.abs()));
    largest(&expected[spec.range.clone()]).max(SMALL * largest(expected))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_planted_error_is_refused_by_name() {
        for (family, told) in FAMILIES {
            let (net, state) = start(told).expect("a net");
            let cpu = || ComposedEngine::new(&ops::cpu(), 1, &net, ROWS, state.clone());
            let right = answer(Box::new(cpu())).expect("an answer");
            compare(family, &state, &right, &right).expect("the same");
            let refused = |wrong: &Answer, what: &str| {
                let error = compare(family, &state, wrong, &right).expect_err(what);
                assert_eq!(error.exit_code(), 4);
                assert!(error.to_string().contains(what), "{error}");
            };
            for spec in &state.specs {
                let error = 0.01 * room(&right.gradient, spec);
                for error in [error, -error, f32::NAN] {
                    let mut wrong = right.clone();
                    wrong.gradient[spec.range.start] += error;
                    refused(&wrong, &format!("the gradient of {}", spec.key));
                }
                let mut wrong = right.clone();
                wrong.weights[spec.range.start] += 1.0;
                refused(&wrong, &format!("the step of {}", spec.key));
            }
            refused(&Answer { loss: 1.01 * right.loss, ..right.clone() }, "the loss");
        }
    }
}
