//! A plan with memory, which a card walks forward and backward.

mod backward;
mod forward;

use std::ops::Range;
use std::sync::Arc;

use super::gpu::{Gpu, Memory, View};
use super::layout::Layout;
use super::vectors::Vectors;
use crate::backbone::NetPlan;
use crate::error::{Error, Result};
use crate::nn::DropPath;
use crate::nn::readers::plan::{Id, Op, Plan, Scale};

/// Values of the memory for sums of blocks.
const PARTIALS: usize = 1 << 22;
/// Blocks that share a sum over rows at most, and rows that a block has at least.
const SHARES: usize = 64;
/// Columns of an attention head at most.
const WIDEST_HEAD: usize = 64;
/// Share of the card's memory that activations may take.
const OF_MEMORY: f64 = 0.8;

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
    /// For evaluation of up to `images` images at a time, or as many as fit.
    ///
    /// # Errors
    /// There is not enough memory, a head that is too wide.
    pub fn asking(gpu: &Arc<Gpu>, net: NetPlan, images: usize) -> Result<Self> {
        let outputs: Vec<Id> = [Some(net.features), net.logits].into_iter().flatten().collect();
        let layout = Layout::asking(&net.plan, &outputs);
        Self::new(gpu, net, layout, images, 0)
    }

    /// For training of up to `images` images at a time, or as many as fit, from the gradient of the logits
    /// if there are any, else of the feature.
    ///
    /// # Errors
    /// As [`Self::asking`].
    pub fn training(gpu: &Arc<Gpu>, net: NetPlan, images: usize) -> Result<Self> {
        let NetPlan { plan, features, logits } = &net;
        let layout = Layout::training(plan, logits.unwrap_or(*features));
        let factors = plan.branches.len() + plan.dropouts.iter().map(|d| d.1).sum::<usize>();
        Self::new(gpu, net, layout, images, factors)
    }

    /// With memory for as many `factors` an image.
    fn new(
        gpu: &Arc<Gpu>,
        net: NetPlan,
        layout: Layout,
        images: usize,
        factors: usize,
    ) -> Result<Self> {
        let NetPlan { plan, features, logits } = net;
        check_heads(&plan)?;
        let an_image = 4 * (layout.len + factors + 3 * plan.img_size().pow(2));
        // Of all the memory and not of what is free, so that the same card always computes alike.
        let fit = (gpu.card.memory as f64 * OF_MEMORY) as usize / an_image;
        if fit == 0 {
            let gb = |bytes: usize| bytes as f64 / 1e9;
            return Err(Error::Device(format!(
                "one image needs {:.1} GB of the card's memory, which has {:.1} GB\n  use a smaller \
                 model or --img-size, or --device cpu",
                gb(an_image),
                gb(gpu.card.memory as usize)
            )));
        }
        let images = images.min(fit);
        let memory = gpu.memory(layout.len * images)?;
        let partials = gpu.memory(PARTIALS)?;
        let factors = gpu.memory(factors * images)?;
        let gpu = gpu.clone();
        Ok(Self { gpu, plan, features, logits, layout, memory, partials, factors, images })
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

    /// Sends the factors that `drop_path` gives to `images` images.
    ///
    /// # Errors
    /// The device failed.
    pub fn factors(&self, drop_path: &DropPath, images: usize) -> Result<Factors> {
        let mut rest = self.factors.view();
        let mut send = |values: Option<Vec<f32>>, of_image: usize| -> Result<Option<View>> {
            let own = rest.part(0..of_image * images);
            rest = rest.from(of_image * self.images);
            values.map(|values| self.gpu.upload(own, &values).map(|()| own)).transpose()
        };
        let mut factors = Factors::default();
        for branch in &self.plan.branches {
            let of_block = [branch.block, branch.depth];
            let values = drop_path.factors([images, 1], of_block, branch.index);
            factors.branches.push(send(values, 1)?);
        }
        for &(dropout, len) in &self.plan.dropouts {
            let values = drop_path.dropout([images, len], dropout.rate, dropout.layer);
            factors.dropouts.push(send(values, len)?);
        }
        Ok(factors)
    }

    /// The factors of a branch, and how many values each of them serves, of `of_image` an image.
    fn scale(factors: &Factors, scale: Scale, of_image: usize) -> (Option<View>, usize) {
        match scale {
            Scale::One => (None, 1),
            Scale::Branch(i) => (factors.branches[i], of_image),
            Scale::Dropout(i) => (factors.dropouts[i], 1),
        }
    }

    /// Blocks that share a sum over `rows` of `columns`: as many for the same sizes, so that sums are the
    /// same.
    fn shares(rows: usize, columns: usize) -> usize {
        rows.div_ceil(SHARES).clamp(1, SHARES).min(PARTIALS / columns).max(1)
    }
}

fn check_heads(plan: &Plan) -> Result<()> {
    let wide = plan.ops.iter().find_map(|op| match op {
        Op::Attention { width, .. } if *width > WIDEST_HEAD => Some(width),
        _ => None,
    });
    wide.map_or(Ok(()), |width| {
        Err(Error::Device(format!(
            "on cuda attention heads have up to {WIDEST_HEAD} columns, and this model's have {width}: \
             --device cpu"
        )))
    })
}
