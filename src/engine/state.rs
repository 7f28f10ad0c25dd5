//! What training has come to: weights, moments, averages, and how far it is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::{Ema, Encoder};
use crate::method::State;
use crate::nn::ParamSpec;

/// How a card computes matrix products: found out by trying, and kept so that it stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunedProducts {
    /// The card and the versions of its libraries, with which alone it is of use.
    pub on: String,
    /// The library's algorithm for products of each shape, in hexadecimal digits.
    pub algorithms: BTreeMap<String, String>,
}

/// Weights and everything the optimiser remembers.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainState {
    /// Places of the parameters in the vectors below.
    pub specs: Vec<ParamSpec>,
    /// Weights.
    pub values: Vec<f32>,
    /// First moments.
    pub m: Vec<f32>,
    /// Second moments.
    pub v: Vec<f32>,
    /// Averaged weights, when the recipe keeps them.
    pub ema: Option<Vec<f32>>,
    /// Weights of the method's momentum encoder, if it has one.
    pub teacher: Option<Vec<f32>>,
    /// Which encoder is the model that comes out.
    pub encoder: Encoder,
    /// What else the method remembers.
    pub memory: State,
    /// Scalars.
    pub progress: Progress,
    /// Matrix products of the card that trained last, if one did.
    pub tuned: TunedProducts,
}

/// How far a stage is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Optimiser steps done.
    pub step: usize,
    /// Updates of the averaged weights.
    pub ema_updates: usize,
    /// Sum of the losses of the unfinished epoch's steps.
    pub epoch_loss: f64,
    /// Sum of the gradient norms of the unfinished epoch's steps, before clipping.
    #[serde(default)]
    pub epoch_grad_norm: f64,
    /// Seconds of this stage over all processes that trained it, with what passes between two steps.
    pub seconds: f64,
}

impl TrainState {
    /// At step 0 with the given weights.
    pub fn new(specs: Vec<ParamSpec>, values: Vec<f32>, ema: Ema) -> Self {
        let zeros = vec![0.0; values.len()];
        Self {
            specs,
            m: zeros.clone(),
            v: zeros,
            ema: (ema != Ema::Off).then(|| values.clone()),
            values,
            teacher: None,
            encoder: Encoder::Student,
            memory: State::new(),
            progress: Progress::default(),
            tuned: TunedProducts::default(),
        }
    }

    /// The weights that are the model: those that are measured, exported and gone on with. They are the
    /// teacher's where the recipe takes it, else the averaged ones where it keeps an average.
    pub fn representation(&self) -> &[f32] {
        match (self.encoder, &self.teacher) {
            (Encoder::Teacher, Some(teacher)) => teacher,
            _ => self.ema.as_ref().unwrap_or(&self.values),
        }
    }
}
