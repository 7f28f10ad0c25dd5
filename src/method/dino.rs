//! DINO (Caron et al. 2021): every view predicts how a momentum teacher sorts the global views into
//! prototypes.
//!
//! Heads: `projector.layers.I.*`, `head.weight` `[prototypes, bottleneck]`, whose rows count by
//! their direction only. State: `centre` `[prototypes]`. The teacher lies under `teacher.<key>`.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::Tensor;
use serde::Deserialize;

use super::{
    BatchFeatures, BatchLoss, Entry, Kind, Method, Objective, Setting, State, StateTensor, Teacher,
    positive, shares,
};
use crate::backbone::{HeadSpec, Net};
use crate::config::Encoder;
use crate::data::views::ViewPlan;
use crate::error::{Error, Result};
use crate::loss::dino::{TEACHER_VIEWS, dino, updated_centre};
use crate::loss::{Chance, normalize};
use crate::nn::readers::tensors::values;
use crate::nn::{Activation, BatchNorms, LinearStart, MlpSpec};
use crate::schedule::{cosine, teacher_temp};

/// This method in the table.
pub const ENTRY: Entry = Entry {
    name: "dino",
    title: "DINO",
    kind: Kind::SelfSupervised,
    summary: "self-distillation with multi-crop and a momentum teacher (ICCV 2021)",
    reads: &["encoder", "options"],
    build: |setting| Ok(Arc::new(Dino::new(setting)?)),
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Divides the student's logits.
    student_temperature: f64,
    /// Divides the teacher's logits in the first epoch.
    teacher_temperature_start: f64,
    /// Divides the teacher's logits after `teacher_warmup_epochs`.
    teacher_temperature: f64,
    /// Epochs in which the teacher's temperature grows.
    teacher_warmup_epochs: usize,
    /// Width inside the head.
    hidden: usize,
    /// Width before the prototypes.
    bottleneck: usize,
    /// Number of prototypes.
    prototypes: usize,
    /// Momentum of the teacher at the start; it reaches 1 at the end, along half a cosine.
    momentum: f64,
    /// Momentum of the centre, which is a running mean.
    centre_momentum: f64,
    /// First epochs in which the prototypes keep their values.
    freeze_prototypes_epochs: usize,
}

struct Dino {
    views: ViewPlan,
    encoder: Encoder,
    options: Options,
}

impl Dino {
    fn new(setting: &Setting) -> Result<Self> {
        let views = ViewPlan::pretrain(setting.config);
        match views.views() {
            0..TEACHER_VIEWS => Err(Error::Usage(
                "dino needs at least two views of an image, the global ones first; try \
                 --crops 2x112@0.4-1,4x112@0.05-0.4"
                    .to_owned(),
            )),
            _ => Ok(Self {
                views,
                encoder: setting.config.encoder,
                options: Self::checked(setting.options()?)?,
            }),
        }
    }

    fn checked(options: Options) -> Result<Options> {
        let o = &options;
        positive(&[
            ("student_temperature", o.student_temperature),
            ("teacher_temperature_start", o.teacher_temperature_start),
            ("teacher_temperature", o.teacher_temperature),
            ("bottleneck", o.bottleneck as f64),
            ("prototypes", o.prototypes as f64),
        ])?;
        shares(&[("momentum", o.momentum), ("centre_momentum", o.centre_momentum)])?;
        Ok(options)
    }
}

impl Method for Dino {
    fn views(&self) -> &ViewPlan {
        &self.views
    }

    fn heads(&self) -> HeadSpec {
        let o = &self.options;
        let projector = MlpSpec {
            layers: 3,
            hidden: o.hidden,
            out: o.bottleneck,
            activation: Activation::Gelu,
            norm: BatchNorms::Off,
            bias: true,
            start: LinearStart::Normal,
        };
        // The original sets the layers of the head, and adds the prototypes after that.
        let prototypes = HeadSpec::classifier(o.prototypes, false);
        let head_start = LinearStart::Uniform;
        HeadSpec { projector: Some(projector), head_start, ..prototypes }
    }

    fn encoder(&self) -> Encoder {
        self.encoder
    }

    fn objective(&self) -> Objective<'_> {
        Objective::Batch(self)
    }

    fn chance(&self) -> Option<Chance> {
        Some(Chance::of(1.0, self.options.prototypes, "every prototype is equally likely"))
    }

    fn frozen_epochs(&self, key: &str) -> usize {
        if key == "head.weight" { self.options.freeze_prototypes_epochs } else { 0 }
    }
}

impl BatchLoss for Dino {
    fn state(&self, _: u64) -> State {
        let n = self.options.prototypes;
        State::from([("centre".to_owned(), StateTensor { shape: vec![n], values: vec![0.0; n] })])
    }

    fn teacher(&self) -> Option<&dyn Teacher> {
        Some(self)
    }

    fn loss(&self, batch: BatchFeatures, state: &mut State) -> Tensor<1> {
        let o = &self.options;
        let (teacher, features) = batch.teacher();
        let seen = logits(teacher, features);
        let centre = state["centre"].tensor::<1>(&seen.device());
        let next = updated_centre(centre.clone(), seen.clone(), o.centre_momentum);
        let (start, end) = (o.teacher_temperature_start, o.teacher_temperature);
        let temperature = teacher_temp(start, end, batch.epoch, o.teacher_warmup_epochs);
        let student = logits(batch.net, batch.features);
        let (seen, centre) = (Tensor::from_inner(seen), Tensor::from_inner(centre));
        let loss = dino(student, seen, centre, o.student_temperature, temperature);
        let shape = vec![o.prototypes];
        state.insert("centre".to_owned(), StateTensor { shape, values: values(next) });
        loss
    }
}

/// Similarity of each row's projection with each prototype, `[rows, prototypes]`.
fn logits(net: &Net, features: Tensor<2>) -> Tensor<2> {
    normalize(net.projected(features)).matmul(net.prototypes().transpose())
}

impl Teacher for Dino {
    fn views(&self) -> Range<usize> {
        0..TEACHER_VIEWS
    }

    fn momentum(&self, step: usize, total_steps: usize) -> f64 {
        cosine(self.options.momentum, 1.0, step, total_steps)
    }

    fn follows_before(&self) -> bool {
        false
    }
}
