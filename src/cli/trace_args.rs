//! Arguments of `fewvit trace`.

use std::path::PathBuf;

use clap::Args;

use super::args::Dtype;

/// `trace`.
#[derive(Args, Clone, Debug)]
pub struct TraceArgs {
    /// Model under timm's name
    #[arg(long, value_name = "NAME")]
    pub model: String,
    /// Pre-training method, or a recipe like insdis: its own steps on `views`, see below
    #[arg(long, value_name = "NAME")]
    pub method: Option<String>,
    /// Rows of the head; with --method those of idmm (training images) and supervised (classes)
    /// [default: as many as the batch names]
    #[arg(long, value_name = "N", required_unless_present = "method")]
    pub num_classes: Option<usize>,
    /// Side of the images in pixels [default with --method: that of the views]
    #[arg(long, value_name = "PIXELS", required_unless_present = "method")]
    pub img_size: Option<usize>,
    /// Weights: safetensors or what torch.save wrote; with --method safetensors alone, under timm's
    /// keys, and drawn from --seed if not given, as are heads that the file lacks
    #[arg(long, value_name = "FILE", required_unless_present = "method")]
    pub weights: Option<PathBuf>,
    /// safetensors with `images` f32 `[B, 3, H, W]` and `targets` i64 `[B]` or f32 `[B, K]`; with
    /// --method `views`, see below
    #[arg(long, value_name = "FILE")]
    pub batch: PathBuf,
    /// safetensors to write: loss, features, grad.KEY of step 0, param.KEY at the end; see below
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Label smoothing of integer targets, PyTorch's form [default: 0; with --method the recipe's
    /// and in its form]
    #[arg(long, value_name = "EPS", allow_negative_numbers = true)]
    pub smoothing: Option<f64>,
    /// Learning rate, constant [default: 5e-4; with --method the recipe's]
    #[arg(long, allow_negative_numbers = true)]
    pub lr: Option<f64>,
    /// Decoupled weight decay of every parameter [default: 1e-3; with --method the recipe's]
    #[arg(long, value_name = "WD", allow_negative_numbers = true)]
    pub weight_decay: Option<f64>,
    /// Optimiser steps, all on the same batch
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub steps: usize,
    /// Precision of the matrix products
    #[arg(long, value_name = "DTYPE", default_value = "f32")]
    pub amp_dtype: Dtype,
    /// Device: cpu, auto, or cuda:1, wgpu:1 in a fewvit that was built for it
    #[arg(long, env = "FEWVIT_DEVICE", default_value = "cpu")]
    pub device: String,
    /// What only methods have.
    #[command(flatten)]
    pub of_method: MethodArgs,
}

/// Arguments that change a method's settings.
#[derive(Args, Clone, Debug)]
pub struct MethodArgs {
    /// Recipe to start from instead of the method's own, for example paper-dino
    #[arg(long, value_name = "NAME", requires = "method", help_heading = "With --method")]
    pub recipe: Option<String>,
    /// Key of the drawn weights; a run with this seed starts from the same
    #[arg(long, value_name = "N", requires = "method", help_heading = "With --method", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    pub seed: Option<u64>,
    /// Worker threads, 0 = all cores we may use [default: 1]
    #[arg(long, value_name = "N", requires = "method", help_heading = "With --method")]
    pub threads: Option<usize>,
    /// TOML file of settings, laid over the recipe; can be repeated
    #[arg(short, long, value_name = "FILE", requires = "method", help_heading = "With --method")]
    pub config: Vec<PathBuf>,
    /// One setting, such as pretrain.options.queue=24; can be repeated
    #[arg(long, value_name = "KEY=VALUE", requires = "method", help_heading = "With --method")]
    pub set: Vec<String>,
}
