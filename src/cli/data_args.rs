//! Arguments of `fewvit data ...`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::args::{CommonArgs, ListArgs};
use crate::config::OnBadImage;

const CHECK: &str = "What is read as a data set:
- DIR/CLASS/*: class folders; fewvit draws the split.
- DIR/{train,val,test}/CLASS/*: split folders, in all usual spellings (training_set, seg_test, dev).
- DIR/CLASS/{train,test}/*: splits inside the classes.
- DIR/*: a folder of images without labels, for `pretrain`.
- DIR with a table: metadata, index, manifest, splits, labels, annotations or dataset (.csv, .tsv,
.jsonl), or train.csv with test.csv.
- TABLE: .csv, .tsv, .jsonl or .json itself, those that fewvit writes included.
- FILE.tar, .tar.gz, .tgz or .zip: any of those.
- As published: Flowers-102, Oxford-IIIT Pets, DTD, MIT Indoor67, CUB-200-2011, FGVC-Aircraft,
Stanford Cars, ImageNet. Settings: data.dtd_split (1 to 10), data.aircraft_labels (variant, family,
manufacturer), data.aircraft_banner (rows to cut off at the bottom).

A table has a header. Its columns: file_name, image_path, path, file, filename, image ... (paths
count from the table's folder); label, class, class_name, category, species ... (a name counts
before a number); split, set, subset ...; group or group_id, whose images stay in one split.
Commas, semicolons, tabs and bars separate; UTF-8, UTF-16 and Windows-1252 are read.

Examples:
  fewvit data check photos/
  fewvit data check photos/ --on-bad-image skip --json
  fewvit data check dtd-r1.0.1.tar.gz --set data.dtd_split=2";

/// `data`.
#[derive(Subcommand, Clone, Debug)]
pub enum DataCommand {
    /// Decode every image and list what is wrong
    #[command(
        after_help = CHECK
    )]
    Check(CheckArgs),
    /// Count images, classes, sizes and splits
    #[command(
        after_help = "Examples:\n  fewvit data stats photos/\n  fewvit data stats photos.tar --json"
    )]
    Stats(StatsArgs),
    /// Draw augmented training images to a JPEG
    #[command(
        after_help = "Examples:\n  fewvit data preview photos/\n  fewvit data preview photos/ --stage finetune --count 32 --output views.jpg"
    )]
    Preview(PreviewArgs),
    /// Render the demonstration set of flowers
    #[command(
        after_help = "Examples:\n  fewvit data synth flowers/\n  fewvit data synth flowers/ --img-size 128 --train 40 --test 10 --seed 1"
    )]
    Synth(SynthArgs),
    /// Draw a stratified split and write it as a table
    #[command(
        after_help = "Examples:\n  fewvit data split photos/\n  fewvit data split photos/ --test-fraction 0.3 --seed 1 --output splits.csv"
    )]
    Split(SplitArgs),
    /// Draw a sample of the training images and write it as a table
    #[command(after_help = SAMPLE)]
    Sample(SampleArgs),
    /// List the paper's data sets: where they are, their terms, files and counts
    #[command(after_help = "Examples:\n  fewvit data list\n  fewvit data list --json")]
    List(ListArgs),
    /// Download one of the paper's data sets and unpack it
    #[cfg(feature = "fetch")]
    #[command(after_help = FETCH)]
    Fetch(FetchArgs),
}

#[cfg(feature = "fetch")]
const FETCH: &str =
    "What has arrived when the connection breaks is kept: the same command goes on from there. The
publishers' files lie in DIR-archives/ beside the data set, checked against the published checksums
(fewvit data list); files that were put there by hand serve as well. DIR appears when all is
unpacked.

Examples:
  fewvit data fetch flowers-102
  fewvit data fetch pets --to data/pets --yes";

/// `data fetch`.
#[cfg(feature = "fetch")]
#[derive(Args, Clone, Debug)]
pub struct FetchArgs {
    /// Data set of `fewvit data list`; the beginning of its name is enough
    pub name: String,
    /// Folder to make [default: the set's name, in the working folder]
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,
    /// Agree to the publishers' terms, which are shown
    #[arg(long)]
    pub yes: bool,
    /// Take the files from URL/FILE instead of the publishers' addresses
    #[arg(long, value_name = "URL")]
    pub mirror: Option<String>,
}

const SAMPLE: &str = "The table lists the sample and all validation and test images, and is given as data like any other.
With one seed a larger sample contains the smaller. Of images without a split, the split is drawn
first, the same with every --seed: that of `fewvit data split`. Training images without a label are
of no class: --per-class leaves them out, --fraction takes its share of them, --total draws from all.

Examples:
  fewvit data sample photos/ --fraction 0.25
  fewvit data sample imagenet/ --per-class 10 -o sin-10k.csv
  fewvit data sample imagenet/ --total 10000 --seed 1 --train-only -o sin-total-10k.csv";

/// How images are read as a data set.
#[derive(Args, Clone, Debug)]
pub struct OpenArgs {
    /// Go on without a class whose folder holds no image
    #[arg(long)]
    pub allow_empty_class: bool,
    /// One setting, such as data.dtd_split=2; can be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// `data check`.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// Images
    pub data: PathBuf,
    /// Whether an image that cannot be read fails the check: error, or skip [default: error]
    #[arg(long, value_name = "POLICY")]
    pub on_bad_image: Option<BadImage>,
    /// How to read them.
    #[command(flatten)]
    pub open: OpenArgs,
    /// How to run.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// What an image that cannot be read does.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadImage {
    /// Fail.
    Error,
    /// List and go on.
    Skip,
}

impl BadImage {
    /// What it means in the configuration.
    pub(super) fn policy(self) -> OnBadImage {
        match self {
            Self::Error => OnBadImage::Error,
            Self::Skip => OnBadImage::Skip,
        }
    }
}

/// `data stats`.
#[derive(Args, Clone, Debug)]
pub struct StatsArgs {
    /// Images
    pub data: PathBuf,
    /// How to read them.
    #[command(flatten)]
    pub open: OpenArgs,
    /// How to run.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// `data preview`.
#[derive(Args, Clone, Debug)]
pub struct PreviewArgs {
    /// Images
    pub data: PathBuf,
    /// Whose augmentation
    #[arg(long, default_value = "pretrain")]
    pub stage: PreviewStage,
    /// Images to draw
    #[arg(long, value_name = "N", default_value = "8")]
    pub count: NonZeroUsize,
    /// What an image that cannot be read does: error, or skip (named and left out)
    #[arg(long, value_name = "POLICY", default_value = "skip")]
    pub on_bad_image: BadImage,
    /// JPEG to write
    #[arg(short, long, value_name = "FILE", default_value = "preview.jpg")]
    pub output: PathBuf,
    /// Recipe of the augmentation
    #[arg(long, value_name = "NAME", default_value = "paper")]
    pub recipe: String,
    /// One setting, such as pretrain.augment.blur=0; can be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// A stage's augmentation.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreviewStage {
    /// All crops of each image.
    Pretrain,
    /// One crop of each image.
    Finetune,
}

/// `data synth`.
#[derive(Args, Clone, Debug)]
pub struct SynthArgs {
    /// Folder to write OUT/{train,test}/SPECIES/NNN.png to; it must be empty
    pub out: PathBuf,
    /// Side of the images in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = 96)]
    pub img_size: usize,
    /// Training images of each of the 12 species
    #[arg(long, value_name = "N", default_value_t = 24)]
    pub train: usize,
    /// Test images of each species
    #[arg(long, value_name = "N", default_value_t = 24)]
    pub test: usize,
    /// Key of the random draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

/// `data sample`.
#[derive(Args, Clone, Debug)]
pub struct SampleArgs {
    /// Images
    pub data: PathBuf,
    /// How many.
    #[command(flatten)]
    pub size: SampleSize,
    /// Key of the random draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Leave validation and test images out of the table, which then serves pre-training
    #[arg(long)]
    pub train_only: bool,
    /// How to read them.
    #[command(flatten)]
    pub open: OpenArgs,
    /// Table to write; the paths in it count from its folder
    #[arg(short, long, value_name = "FILE", default_value = "sample.csv")]
    pub output: PathBuf,
}

/// How many training images a sample has; one of the three.
#[derive(Args, Clone, Copy, Debug)]
#[group(required = true, multiple = false)]
pub struct SampleSize {
    /// Training images of each class; images without a label are left out
    #[arg(long, value_name = "N")]
    pub per_class: Option<NonZeroUsize>,
    /// Training images in all, whatever their classes, with a label or without
    #[arg(long, value_name = "N")]
    pub total: Option<NonZeroUsize>,
    /// Share of the training images of each class and of those without a label, at least one of each
    #[arg(long, value_name = "SHARE")]
    pub fraction: Option<f64>,
}

/// `data split`.
#[derive(Args, Clone, Debug)]
pub struct SplitArgs {
    /// Images in class folders
    pub data: PathBuf,
    /// Share of each class for testing
    #[arg(long, value_name = "SHARE", default_value_t = 0.2)]
    pub test_fraction: f64,
    /// Key of the random draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// How to read them.
    #[command(flatten)]
    pub open: OpenArgs,
    /// Table to write; the paths in it count from its folder
    #[arg(short, long, value_name = "FILE", default_value = "splits.csv")]
    pub output: PathBuf,
}
