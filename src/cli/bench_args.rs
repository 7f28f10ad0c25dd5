//! Arguments of `fewvit bench`.

use clap::{Args, Subcommand};

use super::args::{DataArgs, Dtype};

/// What to measure.
#[derive(Subcommand, Clone, Debug)]
pub enum BenchCommand {
    /// Multiply-add limit and memory bandwidth, one core and all
    Limits(LimitsArgs),
    /// Optimiser steps on made-up crops
    Step(StepArgs),
    /// Crops of a data set, without training
    Data(PipelineArgs),
    /// Pre-training on a data set, from the decoded image to the update
    Epoch(PipelineArgs),
}

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
    /// Threads; 0 = all cores
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Crops a thread passes through the model at a time; 0 = by img-size
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
