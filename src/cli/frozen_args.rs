//! Arguments of the commands that look at frozen features.

use std::path::PathBuf;

use clap::Args;

use super::args::{CommonArgs, SplitChoice};
use super::data_args::BadImage;

/// Which weights and which images.
#[derive(Args, Clone, Debug)]
pub struct FrozenArgs {
    /// Run folder (its pre-trained weights, if any), export folder, or weights file
    pub model: PathBuf,
    /// Images
    pub data: PathBuf,
    /// Model under timm's name, for a weights file
    #[arg(long = "model", value_name = "NAME")]
    pub name: Option<String>,
    /// Side of the images in pixels: needed for a weights file, changes that of a run or export
    #[arg(long, value_name = "PIXELS")]
    pub img_size: Option<usize>,
    /// What an image that cannot be read does: error, or skip (named and left out)
    #[arg(long, value_name = "POLICY", default_value = "skip")]
    pub on_bad_image: BadImage,
    /// How to run.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// `knn`.
#[derive(Args, Clone, Debug)]
pub struct KnnArgs {
    /// What to look at.
    #[command(flatten)]
    pub frozen: FrozenArgs,
    /// Neighbours that vote [default: the recipe's 20]
    #[arg(long, value_name = "N")]
    pub k: Option<usize>,
    /// Temperature of the votes [default: the recipe's 0.07]
    #[arg(long, value_name = "T")]
    pub temperature: Option<f64>,
}

/// `embed`.
#[derive(Args, Clone, Debug)]
pub struct EmbedArgs {
    /// What to look at.
    #[command(flatten)]
    pub frozen: FrozenArgs,
    /// File to write: .npy, .csv or .safetensors
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Which images, a split of the run where it saw them, else of the data [default: all]
    #[arg(long)]
    pub split: Option<SplitChoice>,
}
