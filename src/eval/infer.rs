//! Features and logits of many images, on all threads.

use crate::config::{Depth, Interpolation, RunConfig};
use crate::data::Rgb8;
use crate::data::augment::eval_view;
use crate::data::mixing::Mix;
use crate::data::parallel::{map_in_order, map_in_turn};
use crate::engine::{Machine, Model, Outputs};
use crate::error::Result;

/// Images a thread passes through the model at a time.
const IMAGES_AT_A_TIME: usize = 8;

/// How an image becomes a model's input in evaluation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EvalView {
    /// The centre crop's share of the resized short side.
    pub crop_pct: f64,
    /// Filter of the resize.
    pub interpolation: Interpolation,
    /// What becomes of 16-bit samples when a file is decoded.
    pub depth: Depth,
    /// Channel means of the normalisation.
    pub mean: [f32; 3],
    /// Channel standard deviations of the normalisation.
    pub std: [f32; 3],
}

impl EvalView {
    /// The view of a run.
    pub fn of(config: &RunConfig) -> Self {
        Self {
            crop_pct: config.eval.crop_pct,
            interpolation: config.eval.interpolation,
            depth: config.data.depth,
            mean: config.data.mean,
            std: config.data.std,
        }
    }

    /// The part of an image that the model sees, `img_size` pixels along each side.
    fn crop(&self, image: &Rgb8, img_size: usize) -> Rgb8 {
        eval_view(image, img_size, self.crop_pct, self.interpolation)
    }

    /// Square images of `img_size` pixels as input, `[images, 3, img_size, img_size]`.
    pub fn normalised(&self, images: &[Rgb8], img_size: usize) -> Vec<f32> {
        let row = 3 * img_size * img_size;
        let mut pixels = vec![0.0; images.len() * row];
        for (image, row) in images.iter().zip(pixels.chunks_mut(row)) {
            Mix::none(1).write_row(&image.pixels, 0, img_size, self.mean, self.std, row);
        }
        pixels
    }

    /// Hands `sink` what `work` makes of the view of each of `count` images, in order and as soon as
    /// it is made, a few images at a time on each of `threads`. `image(i)` decodes one; an image that
    /// it cannot decode reaches `sink` as that error and costs no other image. `work` answers for each
    /// of its views.
    ///
    /// # Errors
    /// Those of `sink`, the first of which ends the work, and of `work`.
    pub fn of_images<T: Send>(
        &self,
        img_size: usize,
        (count, threads): (usize, usize),
        image: &(dyn Fn(usize) -> Result<Rgb8> + Sync),
        work: impl Fn(&[Rgb8]) -> Result<Vec<T>> + Sync,
        mut sink: impl FnMut(usize, Result<T>) -> Result<()>,
    ) -> Result<()> {
        let few = |turn: usize| -> Result<Vec<Result<T>>> {
            let images = turn * IMAGES_AT_A_TIME..count.min((turn + 1) * IMAGES_AT_A_TIME);
            let (mut views, mut unreadable) = (Vec::new(), Vec::new());
            for i in images {
                let view = image(i).map(|image| self.crop(&image, img_size));
                unreadable.push(view.map(|view| views.push(view)).err());
            }
            let made = if views.is_empty() { Vec::new() } else { work(&views)? };
            let mut made = made.into_iter().map(Ok);
            Ok(unreadable.into_iter().filter_map(|e| e.map(Err).or_else(|| made.next())).collect())
        };
        map_in_turn(count.div_ceil(IMAGES_AT_A_TIME), threads, few, |turn, results| {
            let mut numbered = (turn * IMAGES_AT_A_TIME..).zip(results?);
            numbered.try_for_each(|(i, result)| sink(i, result))
        })
    }
}

/// A model and how its inputs are made.
pub struct Inference<'a> {
    /// The model.
    pub model: &'a dyn Model,
    /// How an image becomes its input.
    pub view: EvalView,
    /// What computes.
    pub machine: &'a Machine,
}

impl Inference<'_> {
    /// Features and logits of `count` images, in order; `image(i)` decodes one. Several processes
    /// share the images out, and each gets the answers for all.
    ///
    /// # Errors
    /// An image cannot be read, the model's device failed.
    pub fn run(
        &self,
        count: usize,
        image: &(dyn Fn(usize) -> Result<Rgb8> + Sync),
    ) -> Result<Outputs> {
        let ranks = &self.machine.ranks;
        let first = |rank: usize| count * rank / ranks.size();
        let (start, end) = (first(ranks.rank()), first(ranks.rank() + 1));
        let mut own = Outputs::default();
        self.each(end - start, &|i| image(start + i), |_, outputs| {
            let outputs = outputs?;
            own.features.extend(outputs.features);
            own.logits.extend(outputs.logits);
            Ok(())
        })?;
        if ranks.size() == 1 {
            return Ok(own);
        }
        let Outputs { features, logits } = own;
        Ok(Outputs { features: ranks.all_gather(&features)?, logits: ranks.all_gather(&logits)? })
    }

    /// Hands `sink` features and logits of each of `count` images, in order and as soon as they are
    /// there; `image(i)` decodes one, and what it cannot decode reaches `sink` as its error.
    ///
    /// # Errors
    /// Those of `sink`, the model's device failed.
    pub fn each(
        &self,
        count: usize,
        image: &(dyn Fn(usize) -> Result<Rgb8> + Sync),
        sink: impl FnMut(usize, Result<Outputs>) -> Result<()>,
    ) -> Result<()> {
        let work = |views: &[Rgb8]| {
            let few = self.forward(views)?;
            let of_image = |values: &[f32]| {
                let width = values.len() / views.len();
                let rows = (0..views.len()).map(|i| values[i * width..(i + 1) * width].to_vec());
                rows.collect::<Vec<_>>()
            };
            let rows = of_image(&few.features).into_iter().zip(of_image(&few.logits));
            Ok(rows.map(|(features, logits)| Outputs { features, logits }).collect())
        };
        let counts = (count, self.machine.threads);
        self.view.of_images(self.model.spec().img_size, counts, image, work, sink)
    }

    /// Features `[images, num_features]` of views that have the model's size already; `view(i)`
    /// makes one.
    ///
    /// # Errors
    /// An image cannot be read, the model's device failed.
    pub fn features_of_views(
        &self,
        count: usize,
        view: &(dyn Fn(usize) -> Result<Rgb8> + Sync),
    ) -> Result<Vec<f32>> {
        let starts: Vec<usize> = (0..count).step_by(IMAGES_AT_A_TIME).collect();
        let parts = map_in_order(&starts, self.machine.threads, |&start| {
            let views = (start..(start + IMAGES_AT_A_TIME).min(count)).map(view);
            Ok(self.forward(&views.collect::<Result<Vec<_>>>()?)?.features)
        })?;
        Ok(parts.concat())
    }

    fn forward(&self, views: &[Rgb8]) -> Result<Outputs> {
        self.model.outputs(self.view.normalised(views, self.model.spec().img_size))
    }
}
