//! A plan with memory, which a card walks forward and backward.

mod backward;
mod forward;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::gpu::{Gpu, Graph, Memory, View, WORKSPACE, args};
use super::layout::Layout;
use super::vectors::Vectors;
use crate::backbone::NetPlan;
use crate::engine::Products;
use crate::error::{Error, Result};
use crate::nn::readers::plan::{Id, Op, Plan, Scale, Size};
use crate::nn::{DropPath, Dropout};
use crate::rng::Purpose;

/// Values of the memory for sums of blocks.
const PARTIALS: usize = 1 << 22;
/// Blocks that share a sum over rows at most, and rows that a block has at least.
const SHARES: usize = 64;
/// Words of a block of a random stream.
const WORDS: usize = 16;
/// Share of what is left of the card's memory that activations may take.
const OF_MEMORY: f64 = 0.8;
/// Vectors as long as the parameters: weights, moments, averages, gradient, and weights to be measured.
const VECTORS: usize = 8;

/// See the module's description.
pub struct Network {
    gpu: Arc<Gpu>,
    plan: Plan,
    /// Number of the feature.
    pub features: Id,
    /// Number of the logits, if there are any.
    pub logits: Option<Id>,
    layout: Layout,
    memory: Memory,
    partials: Memory,
    /// Factors of branches and dropouts, by number.
    factors: Memory,
    /// Images that there is memory for.
    pub images: usize,
    /// Of the backbone; those of the classifier are in f32.
    products: Products,
    /// Sequences of launches that were asked for before; recorded at the second time.
    recorded: Mutex<HashMap<Sequence, Option<Graph>>>,
}

/// All that a pass depends on besides numbers in memory: equal ones are the same launches.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Sequence {
    /// Weights and gradient; the same one twice in a forward pass.
    vectors: [View; 2],
    /// Whether branches and dropouts have factors.
    factors: Vec<bool>,
    images: usize,
}

impl Sequence {
    fn new(vectors: [View; 2], factors: &Factors, images: usize) -> Self {
        let all = factors.branches.iter().chain(&factors.dropouts);
        Self { vectors, factors: all.map(Option::is_some).collect(), images }
    }
}

/// Where a network's weights come from and go to.
#[derive(Clone, Copy)]
pub struct Parameters<'a> {
    /// How vectors lie.
    pub vectors: &'a Vectors,
    /// The weights.
    pub weights: View,
}

/// Factors that a pass multiplies branches with; none = 1.
#[derive(Default)]
pub struct Factors {
    branches: Vec<Option<View>>,
    dropouts: Vec<Option<View>>,
}

impl Network {
    /// For evaluation of up to `images` images at a time, or as many as fit beside vectors of length
    /// `vectors`.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn asking(gpu: &Arc<Gpu>, net: NetPlan, images: usize, vectors: usize) -> Result<Self> {
        let outputs: Vec<Id> = [Some(net.features), net.logits].into_iter().flatten().collect();
        let layout = Layout::asking(&net.plan, &outputs);
        Self::new(gpu, net, layout, (images, 0), (vectors, 0))
    }

    /// For training with such products of up to `images` images at a time, or as many as fit beside
    /// vectors of a length and other bytes, from the gradient of the logits if there are any, else of the
    /// feature.
    ///
    /// # Errors
    /// As [`Self::asking`].
    pub fn training(
        gpu: &Arc<Gpu>,
        net: NetPlan,
        (images, products): (usize, Products),
        beside: (usize, usize),
    ) -> Result<Self> {
        let NetPlan { plan, features, logits } = &net;
        let layout = Layout::training(plan, logits.unwrap_or(*features));
        let factors = plan.branches.len() + plan.dropouts.iter().map(|d| d.1).sum::<usize>();
        let network = Self::new(gpu, net, layout, (images, factors), beside)?;
        Ok(Self { products, ..network })
    }

    /// With memory for as many factors an image, beside vectors of a length and other bytes.
    fn new(
        gpu: &Arc<Gpu>,
        net: NetPlan,
        layout: Layout,
        (images, factors): (usize, usize),
        beside: (usize, usize),
    ) -> Result<Self> {
        let NetPlan { plan, features, logits } = net;
        let an_image = 4 * (layout.len + factors + 3 * plan.img_size().pow(2));
        let fit = fitting(gpu.card.memory as usize, beside, an_image);
        if fit == 0 {
            let gb = |bytes: usize| bytes as f64 / 1e9;
            return Err(Error::Device(format!(
                "one image needs {:.2} GB of the card's memory beside the weights, of {:.2} GB in all\n  use \
                 a smaller model or --img-size, or --device cpu",
                gb(an_image),
                gb(gpu.card.memory as usize)
            )));
        }
        // Kernels count the values of a pass in 32 bits.
        let longest = plan.sizes.iter().map(Size::len).max().unwrap_or(1);
        let images = images.min(fit).min(u32::MAX as usize / longest);
        let memory = gpu.memory(layout.len * images)?;
        let partials = gpu.memory(PARTIALS)?;
        let factors = gpu.memory(factors * images)?;
        let gpu = gpu.clone();
        let products = Products::F32;
        Ok(Self {
            gpu,
            plan,
            features,
            logits,
            layout,
            memory,
            partials,
            factors,
            images,
            products,
            recorded: Mutex::default(),
        })
    }

    /// The card.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// Number of the images.
    pub fn pixels(&self) -> Id {
        let pixels = self.plan.ops.iter().position(|op| matches!(op, Op::Pixels));
        pixels.expect("a model reads images")
    }

    /// Value `id` of `images` images.
    pub fn value(&self, id: Id, images: usize) -> View {
        self.at(&self.layout.values[id], images, self.plan.sizes[id].len())
    }

    /// The gradient of value `id`, for training from there.
    pub fn gradient(&self, id: Id, images: usize) -> Option<View> {
        let place = self.layout.gradients[id].as_ref()?;
        Some(self.at(place, images, self.plan.sizes[id].len()))
    }

    fn kept(&self, id: Id) -> View {
        let place = &self.layout.kept[id];
        self.at(place, self.images, place.len())
    }

    fn scratch(&self, id: Id) -> View {
        let place = &self.layout.scratch[id];
        self.at(place, self.images, place.len())
    }

    fn at(&self, place: &Range<usize>, images: usize, of_image: usize) -> View {
        assert!(images <= self.images, "{images} images for {}", self.images);
        let start = place.start * self.images;
        self.memory.view().part(start..start + of_image * images)
    }

    /// The factors that `drop_path` gives to `images` images: those of branches are sent, those of dropouts
    /// drawn on the card.
    ///
    /// # Errors
    /// The device failed.
    pub fn factors(&self, drop_path: &DropPath, images: usize) -> Result<Factors> {
        let mut rest = self.factors.view();
        let mut place = |of_image: usize| {
            let own = rest.part(0..of_image * images);
            rest = rest.from(of_image * self.images);
            own
        };
        let mut factors = Factors::default();
        for branch in &self.plan.branches {
            let (own, of_block) = (place(1), [branch.block, branch.depth]);
            let values = drop_path.factors([images, 1], of_block, branch.index);
            let sent = values.map(|values| self.gpu.upload(own, &values).map(|()| own));
            factors.branches.push(sent.transpose()?);
        }
        for &(dropout, len) in self.plan.dropouts.iter().filter(|_| drop_path.training) {
            let own = place(len);
            self.draw(dropout, drop_path, own, len)?;
            factors.dropouts.push(Some(own));
        }
        Ok(factors)
    }

    /// Draws factors of dropout, `of_image` for each image.
    fn draw(&self, dropout: Dropout, path: &DropPath, to: View, of_image: usize) -> Result<()> {
        let (threshold, kept) = DropPath::dropped_below(dropout.rate);
        let [low, high] = [path.seed & 0xffff_ffff, path.seed >> 32].map(|half| half as usize);
        let (purpose, step) = (Purpose::Dropout as usize, path.step as usize);
        let (layer, threshold) = (dropout.layer as usize, threshold as usize);
        let args =
            args![to, low, high, purpose, step, path.first_row, layer, threshold, kept, of_image];
        let blocks = to.len / of_image * of_image.div_ceil(WORDS);
        self.gpu.each("dropout_factors", blocks, args)
    }

    /// The factors of a branch, and how many values each of them serves, of `of_image` an image.
    fn scale(factors: &Factors, scale: Scale, of_image: usize) -> (Option<View>, usize) {
        match scale {
            Scale::One => (None, 1),
            Scale::Branch(i) => (factors.branches.get(i).copied().flatten(), of_image),
            Scale::Dropout(i) => (factors.dropouts.get(i).copied().flatten(), 1),
        }
    }

    /// Does `steps`: launch by launch at first, later in one, which costs the host next to nothing.
    fn replay(&self, sequence: Sequence, steps: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        match recorded.get_mut(&sequence) {
            // Products are prepared meanwhile.
            None => {
                recorded.insert(sequence, None);
                steps()
            }
            Some(Some(graph)) => graph.launch(),
            Some(slot) => slot.insert(self.gpu.record(steps)?).launch(),
        }
    }

    /// Of the products of operation `i`.
    fn products(&self, i: Id) -> Products {
        if i <= self.features { self.products } else { Products::F32 }
    }

    /// Blocks that share a sum over `rows` of `columns`: as many for the same sizes, so that sums are the
    /// same.
    fn shares(rows: usize, columns: usize) -> usize {
        rows.div_ceil(SHARES).clamp(1, SHARES).min(PARTIALS / columns).max(1)
    }
}

/// Images of so many bytes each that a card has room for beside vectors of a length and other bytes. Of all
/// its memory and not of what is free, so that the same card always computes alike.
fn fitting(memory: usize, (vectors, bytes): (usize, usize), an_image: usize) -> usize {
    let taken = WORKSPACE + 4 * (PARTIALS + VECTORS * vectors) + bytes;
    (memory.saturating_sub(taken) as f64 * OF_MEMORY) as usize / an_image
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_takes_as_many_images_as_it_has_room_for() {
        let mb = 1_000_000;
        assert_eq!(fitting(80_000 * mb, (5 * mb, 0), 10 * mb), 6380);
        assert_eq!(fitting(80_000 * mb, (5 * mb, 40_000 * mb), 10 * mb), 3180);
        assert_eq!(fitting(8_000 * mb, (86 * mb, 0), 300 * mb), 13);
        assert_eq!(fitting(2_000 * mb, (86 * mb, 0), 300 * mb), 0);
    }
}
