//! A model in training on a card.

use std::ops::Range;
use std::sync::Arc;

use fewvit_kernels::Precision;

use super::feed::Feed;
use super::gpu::{Gpu, Memory, View, args};
use super::inputs::Inputs;
use super::network::{Network, Parameters};
use super::vectors::Vectors;
use crate::backbone::{NetSpec, Weights};
use crate::config::{Ema, OptimConfig, OptimKind};
use crate::data::loader::{Batch, Crops};
use crate::engine::batches::{MicroBatch, rows_of, samples, split};
use crate::engine::coupling::{Taught, coupled_loss};
use crate::engine::optim::Rule;
use crate::engine::passes::{Gradient, factors};
use crate::engine::{Engine, Machine, Products, Progress, Slope, StepInput, TrainState, Update};
use crate::error::{Error, Result};
use crate::method::{BatchLoss, Objective, RowLoss};
use crate::nn::DropPath;
use crate::ops;

/// See the module's description.
pub struct CudaEngine {
    gpu: Arc<Gpu>,
    net: NetSpec,
    /// Number of the backbone's parameters; those of the heads follow.
    of_backbone: usize,
    /// Rows of a mean over rows that pass through the model together, 0 = as many as there is memory for.
    micro_batch: usize,
    /// Of the backbone's products and of the heads of coupled losses.
    products: Products,
    /// Of the CPU, for its part of a step.
    threads: usize,
    vectors: Vectors,
    weights: Memory,
    m: Memory,
    v: Memory,
    ema: Option<Memory>,
    teacher: Option<Memory>,
    gradient: Memory,
    pieces: Pieces,
    /// Made for the first batch.
    pass: Option<(Network, Inputs)>,
    /// Made for the first batch that is only drawn.
    feed: Option<Feed>,
    /// Sum of the squares of each piece of the last gradient.
    squares: Vec<f64>,
    /// What the card does not hold, and copies of what it does.
    state: TrainState,
    /// Whether the copies are out of date.
    stale: bool,
}

/// Pieces of the vectors on the card.
struct Pieces {
    /// See [`Vectors::pieces`].
    table: Vec<[u32; 3]>,
    places: Memory,
    squares: Memory,
    rules: Memory,
}

impl CudaEngine {
    /// Trains the model `net` on from `state`, `micro_batch` rows at a time, 0 = as many as fit,
    /// with the products and, for what the CPU does, the threads of `machine`.
    ///
    /// # Errors
    /// There is not enough memory, an img-size that the backbone cannot take.
    pub fn new(
        gpu: Arc<Gpu>,
        machine: &Machine,
        net: &NetSpec,
        micro_batch: usize,
        state: TrainState,
    ) -> Result<Self> {
        let &Machine { threads, products, .. } = machine;
        let card = gpu.clone();
        let _turn = card.turn()?;
        gpu.learn(&state.tuned);
        let vectors = Vectors::new(&state.specs);
        let send = |values: &Vec<f32>| vectors.send(&gpu, values);
        let [weights, m, v] = [send(&state.values)?, send(&state.m)?, send(&state.v)?];
        let ema = state.ema.as_ref().map(send).transpose()?;
        let teacher = state.teacher.as_ref().map(send).transpose()?;
        let gradient = gpu.memory(vectors.len)?;
        let table = vectors.pieces();
        let places = gpu.memory(3 * table.len())?;
        gpu.upload(places.view(), table.as_flattened())?;
        let squares = gpu.memory(2 * table.len())?;
        let rules = gpu.memory(Rule::WORDS * state.specs.len())?;
        let pieces = Pieces { table, places, squares, rules };
        let of_backbone = net.without_heads().parameters()?.len();
        let (net, pass, feed, squares, stale) = (*net, None, None, Vec::new(), false);
        Ok(Self {
            gpu,
            net,
            of_backbone,
            micro_batch,
            products,
            threads,
            vectors,
            weights,
            m,
            v,
            ema,
            teacher,
            gradient,
            pieces,
            pass,
            feed,
            squares,
            state,
            stale,
        })
    }

    fn of(&self, weights: View) -> Parameters<'_> {
        Parameters { vectors: &self.vectors, weights }
    }

    /// Memory for micro-batches of `batch`, with logits or without; its crops are on the card then.
    fn prepare(&mut self, batch: &Batch, with_logits: bool) -> Result<(Network, Inputs)> {
        if let Some(group) = batch.groups.iter().find(|g| g.img_size != self.net.img_size) {
            let sizes = (group.img_size, self.net.img_size);
            return Err(Error::Failed(format!("crops of {} pixels for {}", sizes.0, sizes.1)));
        }
        let set = batch.groups.iter().find_map(|group| match &group.crops {
            Crops::Drawn(drawn) => Some(drawn.set_bytes),
            _ => None,
        });
        if let (Some(set), None) = (set, &self.feed) {
            self.feed = Some(Feed::new(&self.gpu, set)?);
        }
        let (network, inputs) = match self.pass.take() {
            Some((network, inputs)) if inputs.take(batch) => (network, inputs),
            before => {
                drop(before);
                let rows = batch.groups.iter().map(|group| group.samples.len());
                let most = rows.max().unwrap_or(0);
                let wanted = if self.micro_batch > 0 { self.micro_batch.min(most) } else { most };
                let of_feed = set.map_or(0, |set| Feed::bytes(self.gpu.card.memory, set));
                let beside = (self.vectors.len, of_feed + Inputs::bytes(batch));
                let (plan, products) = (self.net.plan(with_logits)?, self.products);
                let network = Network::training(&self.gpu, plan, (wanted, products), beside)?;
                let size = self.net.img_size;
                let inputs = Inputs::training(&self.gpu, size, network.images, batch)?;
                (network, inputs)
            }
        };
        inputs.receive(batch, self.feed.as_mut())?;
        Ok((network, inputs))
    }

    /// The loss of a mean over rows; its gradient is on the card.
    fn row_wise(
        &self,
        (network, inputs): (&Network, &Inputs),
        input: &StepInput,
        loss: &dyn RowLoss,
    ) -> Result<f64> {
        let of = self.of(self.weights.view());
        let parts = split(input.batch, 0..usize::MAX, network.images, 1);
        for part in &parts {
            let count = part.rows.len();
            let factors = self.forward((network, inputs), input, part, of, &input.drop_path)?;
            let logits = network.logits.ok_or_else(|| Error::Failed("no logits".to_owned()))?;
            let slopes = network.gradient(logits, count);
            let slopes = slopes.ok_or_else(|| Error::Failed("no slopes".to_owned()))?;
            inputs.loss(part, loss, network.value(logits, count), slopes)?;
            network.backward(of, self.gradient.view(), &factors, count)?;
        }
        let of_part = |part: &MicroBatch| -> Result<f64> {
            let losses = inputs.losses(part.first_row(), part.rows.len());
            let losses: Vec<f32> = self.gpu.download(losses)?;
            let sum: f64 = losses.into_iter().map(f64::from).sum();
            Ok(sum / part.group.samples.len() as f64)
        };
        parts.iter().map(of_part).sum()
    }

    /// Computes all values of a micro-batch; returns the factors of its branches.
    fn forward(
        &self,
        (network, inputs): (&Network, &Inputs),
        input: &StepInput,
        part: &MicroBatch,
        of: Parameters,
        drop_path: &DropPath,
    ) -> Result<super::network::Factors> {
        let count = part.rows.len();
        inputs.crops(part, input, network.value(network.pixels(), count))?;
        let drop_path = DropPath { first_row: part.first_row(), ..drop_path.clone() };
        let factors = network.factors(&drop_path, count)?;
        network.forward(of, &factors, count)?;
        Ok(factors)
    }

    /// Features of the batch's `rows`, `[rows, num_features]`.
    fn features(
        &self,
        pass: (&Network, &Inputs),
        input: &StepInput,
        rows: Range<usize>,
        weights: View,
        drop_path: &DropPath,
    ) -> Result<Vec<f32>> {
        let (network, _) = pass;
        let mut features = Vec::new();
        for part in split(input.batch, rows, network.images, 1) {
            self.forward(pass, input, &part, self.of(weights), drop_path)?;
            let of_part = network.value(network.features, part.rows.len());
            features.extend(self.gpu.download::<f32>(of_part)?);
        }
        Ok(features)
    }

    /// As [`Self::row_wise`], for a coupled loss: features come down, the CPU computes heads and loss,
    /// their gradients go up.
    fn coupled(
        &mut self,
        pass: (&Network, &Inputs),
        input: &StepInput,
        loss: &dyn BatchLoss,
    ) -> Result<f64> {
        let count = samples(input.batch).len();
        let rows = |views| rows_of(views, count);
        let teacher = self.teacher.as_ref().map(Memory::view).zip(loss.teacher());
        let taught = teacher.map(|(weights, teacher)| -> Result<_> {
            let rows = rows(teacher.views());
            let features = self.features(pass, input, rows, weights, &DropPath::OFF)?;
            Ok((self.heads(weights)?, features))
        });
        let taught = taught.transpose()?;
        let (asked, weights) = (rows(0..loss.student_views()), self.weights.view());
        let features = self.features(pass, input, asked.clone(), weights, &input.drop_path)?;
        let student = self.heads(weights)?;
        let taught = taught
            .as_ref()
            .map(|(teacher, features)| Taught { net: &teacher.net, features: features.clone() });
        let mut of_heads = vec![0.0; self.state.values.len()];
        let memory = &mut self.state.memory;
        let (loss, slopes) = coupled_loss(
            (&student, &mut of_heads),
            features,
            taught,
            input,
            (loss, memory),
            self.products.on_cpu(),
        );
        let gradient = self.gradient.view();
        self.vectors.write_from(&self.gpu, gradient, self.of_backbone, &of_heads)?;
        self.backward(pass, input, asked, &slopes)?;
        Ok(loss)
    }

    /// The gradient that flows from the `slopes` of the features of `rows`, which begin at 0.
    fn backward(
        &self,
        pass: (&Network, &Inputs),
        input: &StepInput,
        rows: Range<usize>,
        slopes: &[f32],
    ) -> Result<()> {
        let (network, _) = pass;
        let (of, width) = (self.of(self.weights.view()), self.net.spec.num_features());
        for part in split(input.batch, rows, network.images, 1) {
            let (first, count) = (part.first_row(), part.rows.len());
            let factors = self.forward(pass, input, &part, of, &input.drop_path)?;
            let to = network.gradient(network.features, count);
            let to = to.ok_or_else(|| Error::Failed("no slopes".to_owned()))?;
            self.gpu.upload(to, &slopes[first * width..][..count * width])?;
            network.backward(of, self.gradient.view(), &factors, count)?;
        }
        Ok(())
    }

    /// A model on the CPU of which only the heads are what they are on the card.
    fn heads(&self, weights: View) -> Result<Weights> {
        let mut values = vec![0.0; self.state.values.len()];
        self.vectors.read_from(&self.gpu, weights, self.of_backbone, &mut values)?;
        Weights::new(&self.net, values, &ops::cpu())
    }

    /// What each parameter's gradient is multiplied by.
    fn clipping(&self, config: &OptimConfig) -> Vec<f32> {
        let mut of_parameter = vec![0.0; self.state.specs.len()];
        for (piece, square) in self.pieces.table.iter().zip(&self.squares) {
            of_parameter[piece[2] as usize] += square;
        }
        factors(&of_parameter, config)
    }

    /// `average = keep average + (1 - keep) weights`.
    fn follow_with(&self, average: &Memory, keep: f32) -> Result<()> {
        let gpu = self.gpu.clone();
        let _turn = gpu.turn()?;
        let (average, weights) = (average.view(), self.weights.view());
        self.gpu.each("average", self.vectors.len, args![average, weights, keep])
    }

    /// A step whose products the CPU makes; every vector is on the card and here afterwards.
    fn update_on_cpu(&mut self, update: &Update) -> Result<()> {
        self.refresh()?;
        let mut gradient = self.kept_gradient()?;
        let (squared, threads) = (self.squares.iter().sum(), self.threads);
        let precision = Precision::F32;
        self.state.update(Gradient { values: &mut gradient, squared, threads, precision }, update);
        let gpu = self.gpu.clone();
        let _turn = gpu.turn()?;
        let TrainState { values, m, v, ema, .. } = &self.state;
        let of_average = ema.as_ref().zip(self.ema.as_ref());
        let copies = [(values, &self.weights), (m, &self.m), (v, &self.v)];
        for (from, to) in copies.into_iter().chain(of_average) {
            self.vectors.write_from(&gpu, to.view(), 0, from)?;
        }
        Ok(())
    }

    /// Brings the copies up to date.
    fn refresh(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.stale) {
            return Ok(());
        }
        let gpu = self.gpu.clone();
        let _turn = gpu.turn()?;
        let (gpu, vectors) = (&*self.gpu, &self.vectors);
        let TrainState { values, m, v, ema, teacher, .. } = &mut self.state;
        let of_average = ema.as_mut().zip(self.ema.as_ref());
        let of_teacher = teacher.as_mut().zip(self.teacher.as_ref());
        let copies = [(values, &self.weights), (m, &self.m), (v, &self.v)];
        for (to, from) in copies.into_iter().chain(of_average).chain(of_teacher) {
            vectors.read(gpu, from.view(), to)?;
        }
        self.state.tuned = gpu.tuned();
        Ok(())
    }
}

impl Engine for CudaEngine {
    fn gradient(&mut self, input: &StepInput) -> Result<Slope> {
        let gpu = self.gpu.clone();
        let _turn = gpu.turn()?;
        self.gpu.zero(self.gradient.view())?;
        let by_rows = matches!(input.objective, Objective::Rows(_));
        let (network, inputs) = self.prepare(input.batch, by_rows)?;
        let pass = (&network, &inputs);
        let loss = match input.objective {
            Objective::Rows(loss) => self.row_wise(pass, input, loss)?,
            Objective::Batch(loss) => self.coupled(pass, input, loss)?,
        };
        self.pass = Some((network, inputs));
        let Pieces { table, places, squares, .. } = &self.pieces;
        let args = args![self.gradient.view(), places.view(), squares.view()];
        self.gpu.launch("squares", [table.len(), 1], 256, args)?;
        self.squares = self.gpu.download(squares.view())?;
        Ok(Slope { loss, squared: self.squares.iter().sum() })
    }

    fn update(&mut self, update: &Update) -> Result<()> {
        if update.optim.kind == OptimKind::Muon {
            return self.update_on_cpu(update);
        }
        let gpu = self.gpu.clone();
        let _turn = gpu.turn()?;
        self.state.progress.step += 1;
        self.stale = true;
        let decay =
            (update.optim.ema == Ema::PerStep).then(|| self.state.count_average()).flatten();
        let step = self.state.progress.step;
        let clipping = self.clipping(update.optim);
        let rules = self.state.specs.iter().zip(clipping);
        let rules: Vec<[f32; Rule::WORDS]> =
            rules.map(|(spec, clipping)| Rule::at(spec, step, update).words(clipping)).collect();
        let Pieces { table, places, rules: to, .. } = &self.pieces;
        self.gpu.upload(to.view(), rules.as_flattened())?;
        let average = decay.and(self.ema.as_ref()).map(Memory::view);
        let [w, m, v] = [&self.weights, &self.m, &self.v].map(Memory::view);
        let keep = decay.unwrap_or(1.0);
        let args = args![self.gradient.view(), w, m, v, average, keep, places.view(), to.view()];
        self.gpu.launch("step", [table.len(), 1], 256, args)
    }

    fn average(&mut self) -> Result<()> {
        let decay = self.state.count_average();
        let Some((decay, ema)) = decay.zip(self.ema.as_ref()) else { return Ok(()) };
        self.follow_with(ema, decay)?;
        self.stale = true;
        Ok(())
    }

    fn follow(&mut self, momentum: f32) -> Result<()> {
        let Some(teacher) = &self.teacher else { return Ok(()) };
        self.follow_with(teacher, momentum)?;
        self.stale = true;
        Ok(())
    }

    fn progress(&mut self) -> &mut Progress {
        &mut self.state.progress
    }

    fn state(&mut self) -> Result<&TrainState> {
        self.refresh()?;
        Ok(&self.state)
    }

    fn kept_gradient(&mut self) -> Result<Vec<f32>> {
        let gpu = self.gpu.clone();
        let _turn = gpu.turn()?;
        let mut gradient = vec![0.0; self.state.values.len()];
        self.vectors.read(&self.gpu, self.gradient.view(), &mut gradient)?;
        Ok(gradient)
    }

    fn into_state(mut self: Box<Self>) -> Result<TrainState> {
        self.refresh()?;
        Ok(self.state)
    }
}
