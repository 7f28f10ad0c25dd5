//! Arguments of `fewvit bench`.

use clap::{Args, Subcommand};

use super::args::{DataArgs, Dtype, hiding};
use super::flags::{Job, OF_RUNS};

/// What to measure.
#[derive(Subcommand, Clone, Debug)]
pub enum BenchCommand {
    /// Multiply-add limit and memory bandwidth, one core and all
    #[command(after_help = LIMITS)]
    Limits(LimitsArgs),
    /// Optimiser steps on made-up crops
    #[command(after_help = STEP)]
    Step(StepArgs),
    /// Crops of a data set, without training
    #[command(after_help = DATA, mut_args = hiding(Job::Pretrain.hidden()), mut_args = hiding(&OF_RUNS))]
    Data(PipelineArgs),
    /// Pre-training on a data set, from the decoded image to the update
    #[command(after_help = EPOCH, mut_args = hiding(Job::Pretrain.hidden()), mut_args = hiding(&OF_RUNS))]
    Epoch(PipelineArgs),
}

const LIMITS: &str = "Examples:
  fewvit bench limits
  fewvit bench limits --threads 1 --json";

const STEP: &str = "Examples:
  fewvit bench step --model deit_tiny_patch16_224 --img-size 112 -b 256
  fewvit bench step --model deit_base_patch16_224 --img-size 224 -b 16 --json";

const DATA: &str = "Examples:
  fewvit bench data photos/
  fewvit bench data photos/ --crops 2x112@0.14-1 --json";

const EPOCH: &str = "Examples:
  fewvit bench epoch photos/
  fewvit bench epoch photos/ --recipe quick --seconds 30";

/// `fewvit bench limits`.
#[derive(Args, Clone, Debug)]
pub struct LimitsArgs {
    /// Threads; 0 = all cores
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `fewvit bench step`.
#[derive(Args, Clone, Debug)]
pub struct StepArgs {
    /// Model under timm's name
    #[arg(long, value_name = "NAME", default_value = "deit_tiny_patch16_224")]
    pub model: String,
    /// Side of the crops in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = 112)]
    pub img_size: usize,
    /// Crops a step
    #[arg(short, long, value_name = "N", default_value_t = 256)]
    pub batch_size: usize,
    /// Precision of the matrix products
    #[arg(long, value_name = "DTYPE", default_value = "f32")]
    pub amp_dtype: Dtype,
    /// Device: cpu, auto, or cuda:1, wgpu:1 in a fewvit that was built for it
    #[arg(long, env = "FEWVIT_DEVICE", default_value = "cpu")]
    pub device: String,
    /// Threads; 0 = all cores
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Crops a thread passes through the model at a time; 0 = by model and img-size
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub micro_batch: usize,
    /// Seconds to measure for
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    pub seconds: f64,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `fewvit bench data` and `fewvit bench epoch`.
#[derive(Args, Clone, Debug)]
pub struct PipelineArgs {
    /// Seconds to measure for
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    pub seconds: f64,
    /// The set and the settings of a pre-training run.
    #[command(flatten)]
    pub run: DataArgs,
}
