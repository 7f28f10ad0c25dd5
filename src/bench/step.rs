//! Optimiser steps on made-up crops: the engine alone.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::limits::multiply_adds;
use super::{median, peak_rss_gib};
use crate::backbone::{NetSpec, Spec};
use crate::config::{Layers, RunConfig};
use crate::data::loader::{Batch, CropBatch, Crops};
use crate::data::mixing::Mix;
use crate::engine::device::DeviceName;
use crate::engine::{Engine, Machine, StepInput, TrainState, Update, micro_batch};
use crate::error::Result;
use crate::method;
use crate::nn::DropPath;

/// Instance classes of the head: the size of the sets this is made for.
const CLASSES: usize = 1000;
/// Steps that are always timed.
const MIN_STEPS: usize = 3;

/// What is measured.
pub struct StepBench {
    /// Model under timm's name.
    pub model: String,
    /// Side of the crops in pixels.
    pub img_size: usize,
    /// Crops a step.
    pub batch_size: usize,
    /// What computes.
    pub machine: Machine,
    /// Crops a worker passes through the model at a time; 0 = by model and img-size.
    pub micro_batch: usize,
    /// How long to measure.
    pub duration: Duration,
}

/// How fast it was.
#[derive(Clone, Debug, Serialize)]
pub struct StepSpeed {
    /// Crops through forward, backward and update.
    pub crops_per_s: f64,
    /// Matrix-product operations of the ordinary algorithm, so that exact savings count as speed.
    pub model_gflops: f64,
    /// `model_gflops` against the multiply-add limit of all threads in the same precision, measured
    /// before and after; none for other devices than the CPU, whose limit is not known.
    pub fraction_of_peak: Option<f64>,
    /// Median duration of a step.
    pub step_ms_median: f64,
    /// The most memory this process has held, in GiB.
    pub peak_rss_gib: f64,
}

/// Times steps of IDMM with the paper's optimiser.
///
/// # Errors
/// An unknown model or an img-size that it cannot take.
pub fn step(bench: &StepBench) -> Result<StepSpeed> {
    let config = Layers::new("paper")?.build()?.config;
    let spec = Spec::find(&bench.model)?;
    let net = NetSpec::classifier(spec, bench.img_size, CLASSES);
    let (outline, optim) = (net.outline()?, &config.pretrain.optim);
    let values = outline.draw(1);
    let state = TrainState::new(outline.parameters, values, optim.ema);
    let machine = &bench.machine;
    let limit = || multiply_adds(machine.threads, machine.products.on_cpu());
    let rows = micro_batch(bench.micro_batch, &spec, bench.img_size, machine.device);
    let mut engine = machine.engine(&net, rows, state)?;
    let batch = crops(bench);
    let before = limit();
    let (mut times, mut started) = (Vec::new(), Instant::now());
    // The first step makes the buffers that the others use again.
    for i in 0.. {
        let begin = Instant::now();
        one(&mut *engine, &batch, &config)?;
        match i {
            0 => started = Instant::now(),
            _ => times.push(begin.elapsed().as_secs_f64()),
        }
        if i >= MIN_STEPS && started.elapsed() >= bench.duration {
            break;
        }
    }
    let on_cpu = machine.device == DeviceName::Cpu;
    let limit = on_cpu.then(|| before.max(limit()));
    let seconds = median(times);
    let crops_per_s = bench.batch_size as f64 / seconds;
    let model_gflops = crops_per_s * spec.train_flops(bench.img_size) as f64 / 1e9;
    Ok(StepSpeed {
        crops_per_s,
        model_gflops,
        fraction_of_peak: limit.map(|limit| model_gflops / limit),
        step_ms_median: seconds * 1e3,
        peak_rss_gib: peak_rss_gib(),
    })
}

/// One optimiser step, as a stage does it.
fn one(engine: &mut dyn Engine, batch: &Batch, config: &RunConfig) -> Result<()> {
    let method = method::pretraining(config, CLASSES, None)?;
    let (objective, optim) = (method.objective(), &config.pretrain.optim);
    let (step, rate) = (engine.progress().step as u32, optim.drop_path);
    let drop_path = DropPath { rate, seed: 1, step, first_row: 0, training: true };
    let (mean, std) = (config.data.mean, config.data.std);
    engine.gradient(&StepInput { batch, objective, drop_path, mean, std, epoch: 0 })?;
    engine.update(&Update { lr: optim.lr, optim, late: &|_| 0 })
}

/// Crops of a fixed pattern, each of a class of its own.
fn crops(bench: &StepBench) -> Batch {
    let (rows, size) = (bench.batch_size, bench.img_size);
    let bytes = (0..rows * size * size * 3).map(|i| (i * 7919 % 251) as u8);
    let crops = Crops::Bytes(bytes.collect());
    let samples = (0..rows).map(|row| row % CLASSES).collect();
    Batch {
        groups: vec![CropBatch { img_size: size, views: 1, crops, samples, mix: Mix::none(rows) }],
    }
}
