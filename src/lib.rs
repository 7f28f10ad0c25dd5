//! fewvit trains vision transformers from scratch on a few hundred to ten thousand images.
//!
//! It implements *Training Vision Transformers with Only 2040 Images* (ECCV 2022): pre-training by
//! instance discrimination with multi-crop and CutMix (IDMM), then fine-tuning on the same images.
//!
//! Read it in this order: [`config`] (what determines a run), [`data`] (a path becomes batches),
//! [`backbone`] and [`nn`] over [`ops`] (the models), [`graph`] (the same for ONNX), [`method`] and [`loss`] (what is trained for),
//! [`engine`] (what a step is computed with), [`train`] (the loop), [`eval`] (how good it is), [`report`] and [`export`] (what comes out),
//! [`run`] (all of it in one run folder), [`study`] (a grid of runs), [`mod@bench`] (how fast) and [`cli`].

pub mod backbone;
pub mod bench;
pub mod cli;
pub mod config;
pub mod data;
pub mod engine;
pub mod error;
pub mod eval;
pub mod export;
#[cfg(feature = "fetch")]
pub mod fetch;
pub mod files;
pub mod graph;
pub mod loss;
pub mod method;
pub mod nn;
pub mod ops;
pub mod report;
pub mod rng;
pub mod run;
pub mod schedule;
pub mod study;
pub mod train;
pub mod weights;
pub mod words;

pub use error::{Error, Result};
