//! From a path to batches of pixels.
//!
//! `source` turns whatever lies at a path into a [`Manifest`]; `digest` recognises its files again by
//! their content; `pass` goes through all files
//! once, with `decode`, and `cache` keeps them as 8-bit RGB images; `augment` and `views` cut training crops from them; `mixing` plans CutMix
//! and Mixup; `loader` puts a step's crops together on worker threads. Only `loader` knows batches,
//! nothing here knows a model.

pub mod archive;
pub mod augment;
pub mod cache;
pub mod catalog;
pub mod check;
mod clutter;
pub mod data_report;
pub mod decode;
pub mod digest;
pub mod file_name;
pub mod folders;
pub mod image;
mod left_out;
pub mod listing;
pub mod loader;
pub mod locate;
pub mod look;
pub mod manifest;
pub mod matfile;
pub mod mixing;
pub mod named;
mod order;
pub mod parallel;
pub mod pass;
pub mod sample;
pub mod source;
pub mod split;
mod split_names;
pub mod synth;
pub mod table;
pub mod views;

pub use image::Rgb8;
pub use manifest::{Manifest, Origin, Sample, Split, SplitOrigin, Treatment};
