//! Gradients of a loss that couples the rows of a batch, data-parallel over the backbone.
//!
//! Three passes: the workers compute all features without a graph; one thread computes the loss, the
//! gradients of the heads and that of each feature over the whole batch; the workers run forward and
//! backward with the features' gradients. Running forward twice costs a third more work than keeping
//! all graphs, but no more memory than a row-wise loss, at any batch size. Features, and so the loss,
//! do not depend on the number of workers.

use std::ops::Range;

use burn::tensor::{Tensor, TensorData};

use super::Team;
use crate::backbone::{Net, Weights};
use crate::engine::StepInput;
use crate::engine::batches::{images, rows_of, samples};
use crate::engine::coupling::{Taught, coupled_loss};
use crate::error::Result;
use crate::method::{BatchLoss, State};
use crate::nn::DropPath;
use crate::nn::readers::tensors::values;
use crate::ops;

/// What a coupled step needs besides a row-wise one.
pub(super) struct Coupling<'a> {
    pub(super) loss: &'a dyn BatchLoss,
    /// The momentum encoder, where the method has one.
    pub(super) teacher: Option<&'a Net>,
    /// What the method remembers; brought up to date.
    pub(super) memory: &'a mut State,
}

impl Team {
    /// As [`Team::row_wise`], for a coupled loss.
    pub(super) fn coupled(
        &mut self,
        student: &Weights,
        input: &StepInput,
        coupling: Coupling,
    ) -> Result<f64> {
        let samples = samples(input.batch);
        let rows = |views| rows_of(views, samples.len());
        let asked = rows(0..coupling.loss.student_views());
        let features = self.features(&student.net, input, asked.clone(), &input.drop_path)?;
        let teacher = coupling.teacher.zip(coupling.loss.teacher());
        let taught = match teacher {
            Some((net, teacher)) => {
                let rows = rows(teacher.views());
                let features = self.features(net, input, rows, &DropPath::OFF)?;
                Some(Taught { net, features })
            }
            None => None,
        };
        self.clear();
        let (precision, packed) = (self.precision, &self.packed);
        // The heads' gradients: no worker adds to their places. Every process computes them.
        let heads = (student, &mut self.workers[0].sum);
        let objective = (coupling.loss, coupling.memory);
        let (loss, slopes) =
            packed.serve(|| coupled_loss(heads, features, taught, input, objective, precision));
        if self.ranks.rank() > 0 {
            self.workers[0].sum.fill(0.0);
        }
        self.backward(student, input, asked, &slopes)?;
        Ok(loss)
    }

    /// Features of the batch's `rows`, `[rows, num_features]`, without gradients.
    fn features(
        &mut self,
        net: &Net,
        input: &StepInput,
        rows: Range<usize>,
        drop_path: &DropPath,
    ) -> Result<Vec<f32>> {
        let (parts, width) = (self.split(input.batch, rows), net.num_features());
        let own = self.each(&parts, |part, precision, _| {
            let images = images(part, input, &ops::cpu());
            let features = input.features(net, (part, images), drop_path, precision);
            values(features)
        })?;
        let lens: Vec<usize> = parts.iter().map(|part| part.rows.len() * width).collect();
        self.gathered(&own.concat(), &lens)
    }

    /// Adds to the workers' sums the gradients that flow from the `slopes` of the features of `rows`,
    /// which begin at 0 (`[rows, num_features]`), through the backbone.
    fn backward(
        &mut self,
        net: &Weights,
        input: &StepInput,
        rows: Range<usize>,
        slopes: &[f32],
    ) -> Result<()> {
        let width = net.net.num_features();
        let parts = self.split(input.batch, rows);
        self.each(&parts, |part, precision, sum| {
            let device = ops::cpu().autodiff();
            let (first, rows) = (part.first_row(), part.rows.len());
            let slopes = slopes[first * width..(first + rows) * width].to_vec();
            let slopes = Tensor::from_data(TensorData::new(slopes, [rows, width]), &device);
            net.add_gradients(sum, |net| {
                let (drop_path, images) = (&input.drop_path, images(part, input, &device));
                (input.features(net, (part, images), drop_path, precision) * slopes).sum()
            });
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backbone::{NetSpec, Spec};
    use crate::config::{Ema, Layers, RunConfig, Source};
    use crate::data::loader::{Batch, CropBatch, Crops};
    use crate::data::mixing::Mix;
    use crate::engine::{Machine, TrainState};
    use crate::method::{self, Labels, Method, Objective};

    const BATCH: usize = 6;

    fn config(recipe: &str) -> RunConfig {
        let mut layers = Layers::new(recipe).expect(recipe);
        for setting in ["model.name=deit_micro_patch8_96", "pretrain.optim.batch_size=6"] {
            layers.set(setting, Source::Flag("--set")).expect(setting);
        }
        let wide = ["hidden", "bottleneck", "dim", "prototypes"];
        for key in wide.map(|option| format!("pretrain.options.{option}")) {
            if layers.get(&key).expect("a recipe").is_some() {
                layers.set(&format!("{key}=16"), Source::Flag("--set")).expect(&key);
            }
        }
        layers.build().expect(recipe).config
    }

    fn batch(method: &dyn Method) -> Batch {
        let samples: Vec<usize> = (0..BATCH).collect();
        let group = |group: &crate::data::views::ViewGroup| {
            let rows = BATCH * group.count;
            let bytes = (0..rows * 16 * 16 * 3).map(|i| (i * 7919 % 253) as u8);
            let crops = Crops::Bytes(bytes.collect());
            let (views, samples) = (group.count, samples.repeat(group.count));
            CropBatch { img_size: 16, views, crops, samples, mix: Mix::none(rows) }
        };
        Batch { groups: method.views().groups.iter().map(group).collect() }
    }

    fn assert_close(a: &[f32], b: &[f32], what: &str) {
        let largest = b.iter().fold(0f32, |m, v| m.max(v.abs()));
        assert!(largest > 0.0, "{what} is all zero");
        let difference = a.iter().zip(b).fold(0f32, |m, (x, y)| m.max((x - y).abs()));
        assert!(difference <= 2e-5 * largest, "{what}: {difference} of {largest}");
    }

    /// The loss, the gradient and the memory afterwards.
    fn by_engine(recipe: &str, workers: usize, micro_batch: usize) -> (f64, Vec<f32>, State) {
        shifted(recipe, workers, micro_batch, &|_| 0.0)
    }

    /// The same with weights that are moved by `shift(index)`; the teacher stays.
    fn shifted(
        recipe: &str,
        workers: usize,
        micro_batch: usize,
        shift: &dyn Fn(usize) -> f32,
    ) -> (f64, Vec<f32>, State) {
        let config = config(recipe);
        let labels = Labels { of_samples: (0..BATCH).map(|i| i % 2).collect(), classes: 2 };
        let method = method::pretraining(&config, BATCH, Some(labels)).expect(recipe);
        let Objective::Batch(loss) = method.objective() else { panic!("{recipe} is row-wise") };
        let spec = Spec::find(&config.model.name).expect("a model");
        let net = NetSpec { spec, img_size: 16, heads: method.heads() };
        let outline = net.outline().expect("a net");
        let start = outline.draw(3);
        let moved = start.iter().enumerate().map(|(i, w)| w + shift(i)).collect();
        let mut state = TrainState::new(outline.parameters, moved, Ema::Off);
        // A teacher of its own, so that mixing the two up shows.
        state.teacher =
            loss.teacher().map(|_| start.iter().map(|w| 0.9 * w + 0.01).collect::<Vec<f32>>());
        state.memory = loss.state(1);
        let drop_path = DropPath { rate: 0.3, seed: 5, step: 4, first_row: 0, training: true };
        let (batch, objective) = (batch(&*method), method.objective());
        let (mean, std, epoch) = ([0.5; 3], [0.25; 3], 1);
        let input = StepInput { batch: &batch, objective, drop_path, mean, std, epoch };
        let machine = Machine::cpu(workers);
        let mut engine = machine.engine(&net, micro_batch, state).expect("threads");
        let slope = engine.gradient(&input).expect("a gradient");
        let gradient = engine.kept_gradient().expect("a gradient");
        (slope.loss, gradient, engine.into_state().expect("a state").memory)
    }

    const RECIPES: [&str; 5] = ["simclr", "supcon", "moco-v2", "moco-v3", "dino"];

    #[test]
    fn workers_and_micro_batches_change_nothing() {
        for recipe in RECIPES {
            // All rows in one pass: the plain definition.
            let (loss, gradient, memory) = by_engine(recipe, 1, 1000);
            for (workers, micro_batch) in [(2, 1000), (1, 4), (2, 3), (3, 1)] {
                let (l, g, m) = by_engine(recipe, workers, micro_batch);
                let what = format!("{recipe}, {workers} workers, {micro_batch} rows");
                assert!((l - loss).abs() <= 1e-6 * loss.abs(), "{what}: {l} for {loss}");
                assert_close(&g, &gradient, &what);
                for (key, tensor) in &memory {
                    assert_close(
                        &[&m[key].values[..], &[1.0]].concat(),
                        &[&tensor.values[..], &[1.0]].concat(),
                        &format!("{what}: {key}"),
                    );
                }
            }
        }
    }

    /// A finite difference of the loss along the gradient is the gradient's squared length.
    #[test]
    fn the_gradient_is_the_slope_of_the_loss() {
        for recipe in RECIPES {
            let (_, gradient, _) = by_engine(recipe, 2, 4);
            let squared: f64 = gradient.iter().map(|&g| f64::from(g).powi(2)).sum();
            // So far that rounding does not show, and no further.
            let step = (5e-3 / squared).min(1e-3 / squared.sqrt());
            let at = |sign: f64| shifted(recipe, 2, 4, &|i| (sign * step) as f32 * gradient[i]).0;
            let slope = (at(1.0) - at(-1.0)) / (2.0 * step);
            assert!((slope / squared - 1.0).abs() < 2e-2, "{recipe}: {slope} for {squared}");
        }
    }
}
