//! A step's crops, made beside the step that runs.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use super::Rgb8;
use super::augment::DrawnView;
use super::cache::ImageStore;
use super::mixing::Mix;
use super::order::{self, Turn};
use super::parallel::{for_each, map_in_order};
use super::views::{ViewGroup, ViewPlan};
use crate::config::Interpolation;
use crate::error::Result;
use crate::rng::{Purpose, stream};

/// The crops of one step, one entry a crop group.
pub struct Batch {
    /// The groups.
    pub groups: Vec<CropBatch>,
}

/// The crops of one group: all first crops, then all second ones, ...
pub struct CropBatch {
    /// Side of a crop in pixels.
    pub img_size: usize,
    /// Crops of each image.
    pub views: usize,
    /// The rows' pixels.
    pub crops: Crops,
    /// Training sample of each row.
    pub samples: Vec<usize>,
    /// How rows are mixed when they are handed to the model.
    pub mix: Mix,
}

/// Pixels of the rows of a group.
pub enum Crops {
    /// As augmentation leaves them, `[rows, img_size, img_size, 3]`, unmixed.
    Bytes(Vec<u8>),
    /// The same for some of the rows.
    Part {
        /// The crops of these rows, in their order.
        bytes: Vec<u8>,
        /// Where in `bytes` a row's crop is, counted in crops; `None` for the other rows.
        places: Vec<Option<usize>>,
    },
    /// Not made yet: the engine makes them where it computes.
    Drawn(DrawnCrops),
    /// As the model takes them, `[rows, 3, img_size, img_size]`: tensors from elsewhere, which are
    /// neither normalised nor mixed any more.
    Ready(Vec<f32>),
}

/// Images of a set and the views of them that are the crops of a group.
pub struct DrawnCrops {
    /// The images of the step; row `i` is a view of image `i` modulo their number.
    pub images: Vec<Arc<Rgb8>>,
    /// One a row.
    pub views: Vec<DrawnView>,
    /// How crops are enlarged and shrunk.
    pub interpolation: Interpolation,
    /// Bytes of the pixels of all images of the set that these are of.
    pub set_bytes: u64,
}

impl DrawnCrops {
    /// The image that row `row` is cut from.
    pub fn image(&self, row: usize) -> &Rgb8 {
        &self.images[row % self.images.len()]
    }
}

/// Where crops are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cutting {
    /// In the loader, beside the step.
    Loader,
    /// In the engine: a batch is images and what was drawn for them.
    Engine,
}

impl Crops {
    /// Memory for crops of `len` bytes each: for all of the `rows`, or for those that are `wanted`
    /// and the partners that `mix` mixes them with.
    fn new(rows: usize, len: usize, wanted: Option<&[Range<usize>]>, mix: &Mix) -> Self {
        let Some(wanted) = wanted else { return Self::Bytes(vec![0; rows * len]) };
        let mut needed = vec![false; rows];
        for row in wanted.iter().cloned().flatten() {
            needed[row] = true;
            needed[mix.partner[row]] = true;
        }
        let mut made = 0;
        let place = |needed: bool| {
            made += usize::from(needed);
            needed.then(|| made - 1)
        };
        let places = needed.into_iter().map(place).collect();
        Self::Part { bytes: vec![0; made * len], places }
    }

    /// Each row that has a crop of `len` bytes, and the place of that crop.
    fn places_mut(&mut self, len: usize) -> Vec<(usize, &mut [u8])> {
        match self {
            Self::Bytes(bytes) => bytes.chunks_exact_mut(len).enumerate().collect(),
            Self::Part { bytes, places } => {
                let made = (0..places.len()).filter(|&row| places[row].is_some());
                made.zip(bytes.chunks_exact_mut(len)).collect()
            }
            Self::Drawn(_) | Self::Ready(_) => Vec::new(),
        }
    }
}

impl CropBatch {
    /// The crop of row `row` before mixing, `[s, s, 3]`; `None` where crops are only drawn or come ready
    /// for the model.
    ///
    /// # Panics
    /// If there is no such row or it is none of those that were asked for.
    pub fn crop(&self, row: usize) -> Option<&[u8]> {
        let len = self.img_size * self.img_size * 3;
        match &self.crops {
            Crops::Bytes(bytes) => Some(&bytes[row * len..][..len]),
            Crops::Part { bytes, places } => {
                let place = places[row];
                let place = place.unwrap_or_else(|| panic!("no crop was made for row {row}"));
                Some(&bytes[place * len..][..len])
            }
            Crops::Drawn(_) | Crops::Ready(_) => None,
        }
    }

    /// Writes row `row` as the model sees it, normalised and mixed, to `out` `[3, s, s]`.
    ///
    /// # Panics
    /// As [`Self::crop`], or if `out` has another size.
    pub fn write_row(&self, row: usize, mean: [f32; 3], std: [f32; 3], out: &mut [f32]) {
        let pair = self.crop(row).zip(self.crop(self.mix.partner[row]));
        match (pair, &self.crops) {
            (Some(pair), _) => self.mix.blend(pair, self.img_size, mean, std, out),
            (None, Crops::Ready(values)) => {
                out.copy_from_slice(&values[row * out.len()..][..out.len()]);
            }
            (None, Crops::Drawn(drawn)) => {
                let crop = |row: usize| {
                    let view = &drawn.views[row];
                    view.of(drawn.image(row), self.img_size, drawn.interpolation).pixels
                };
                let (own, other) = (crop(row), crop(self.mix.partner[row]));
                self.mix.blend((&own, &other), self.img_size, mean, std, out);
            }
            (None, _) => {}
        }
    }
}

/// Draws the mixing of a group: `(stream, epoch, rows, img_size)`.
pub type DrawMix = dyn Fn(&mut rand_chacha::ChaCha8Rng, usize, usize, usize) -> Mix + Send + Sync;

/// Which rows of a batch get crops. Everything else in a batch is the same whatever they are.
#[derive(Clone)]
pub enum Rows {
    /// All of them.
    All,
    /// A process's own and the partners that these are mixed with.
    Own(Arc<OwnRows>),
}

/// The own rows of each group, given how many rows each group has and the img-size of the first.
pub type OwnRows = dyn Fn(&[usize], usize) -> Vec<Vec<Range<usize>>> + Send + Sync;

/// What a stage's batches are made from. Everything in a batch follows from this and the step.
#[derive(Clone)]
pub struct BatchSource {
    /// Decoded training images.
    pub images: Arc<ImageStore>,
    /// The views of each.
    pub views: Arc<ViewPlan>,
    /// The mixing of each group.
    pub mix: Arc<DrawMix>,
    /// The stage's seed.
    pub seed: u64,
    /// Images a step; the last step of an epoch takes what is left.
    pub batch_size: usize,
    /// Whether a smaller last batch is left out; the only batch of an epoch never is.
    pub drop_last: bool,
    /// Threads that cut crops.
    pub threads: usize,
    /// The rows that get crops.
    pub rows: Rows,
    /// Where crops are made.
    pub cutting: Cutting,
    /// The images' labels, if each epoch is to take as many of each class; otherwise it takes each
    /// image once.
    pub balance: Option<Arc<Vec<usize>>>,
    /// Consecutive views of each image in an epoch, which then has `1 / repeats` of the images.
    pub repeats: usize,
}

impl BatchSource {
    /// Steps of one epoch.
    pub fn steps_per_epoch(&self) -> usize {
        match self.drop_last {
            true => (self.images.len() / self.batch_size).max(1),
            false => self.images.len().div_ceil(self.batch_size),
        }
    }

    /// Number of images that one epoch takes. Which ones `drop_last` leaves out differs from epoch to epoch.
    pub fn images_per_epoch(&self) -> usize {
        self.images.len().min(self.steps_per_epoch() * self.batch_size)
    }

    /// The batch of optimiser step `step`, counted from 0 over all epochs.
    ///
    /// # Errors
    /// The image cache cannot be read.
    pub fn batch(&self, step: usize) -> Result<Batch> {
        self.batch_in_order(step, &mut Order::default())
    }

    /// [`Self::batch`], which draws the order of the step's epoch only if `order` is of another one.
    fn batch_in_order(&self, step: usize, order: &mut Order) -> Result<Batch> {
        let (epoch, within) = (step / self.steps_per_epoch(), step % self.steps_per_epoch());
        let order = order.of(self, epoch);
        let first = within * self.batch_size;
        let turns = &order[first..(first + self.batch_size).min(order.len())];
        let samples: Vec<usize> = turns.iter().map(|turn| turn.sample).collect();
        let rows = self.views.groups.iter().map(|group| samples.len() * group.count);
        let rows: Vec<usize> = rows.collect();
        let img_size = |group: &ViewGroup| self.views.augment(group, epoch as u32).img_size();
        let wanted = match &self.rows {
            Rows::All => None,
            Rows::Own(own) => Some(own(&rows, self.views.groups.first().map_or(0, img_size))),
        };
        let group = |(index, group): (usize, &ViewGroup)| {
            let (rows, img_size) = (rows[index], img_size(group));
            let mut rng = stream(self.seed, Purpose::Mix, 0, step as u64, index as u32);
            let mix = (self.mix)(&mut rng, epoch, rows, img_size);
            let wanted = wanted.as_ref().map(|wanted| &wanted[index][..]);
            let crops = match self.cutting {
                Cutting::Loader => Crops::new(rows, img_size * img_size * 3, wanted, &mix),
                Cutting::Engine => Crops::Bytes(Vec::new()),
            };
            let samples = samples.repeat(group.count);
            CropBatch { img_size, views: group.count, crops, samples, mix }
        };
        let mut groups: Vec<_> = self.views.groups.iter().enumerate().map(group).collect();
        match self.cutting {
            Cutting::Loader => self.cut(epoch, turns, &mut groups)?,
            Cutting::Engine => self.draw(epoch, turns, &mut groups)?,
        }
        Ok(Batch { groups })
    }

    /// Draws the groups' crops and takes the images that they are views of from the store.
    fn draw(&self, epoch: usize, turns: &[Turn], groups: &mut [CropBatch]) -> Result<()> {
        let drawn = map_in_order(turns, self.threads, |turn| {
            let image = self.images.share(turn.sample)?;
            let (size, key) = ((image.width, image.height), turn.key(self.images.len()));
            let draw = |view| self.views.draw(size, self.seed, epoch as u32, key, view as u32);
            let views: Vec<DrawnView> = (0..self.views.views()).map(draw).collect();
            Ok((image, views))
        })?;
        let images: Vec<Arc<Rgb8>> = drawn.iter().map(|(image, _)| image.clone()).collect();
        let (set_bytes, mut first) = (self.images.pixel_bytes(), 0);
        for (group, of) in groups.iter_mut().zip(&self.views.groups) {
            let all = drawn.iter().map(|(_, views)| views);
            let rows = (first..first + group.views)
                .flat_map(|view| all.clone().map(move |views| views[view].clone()));
            group.crops = Crops::Drawn(DrawnCrops {
                images: images.clone(),
                views: rows.collect(),
                interpolation: of.augment.interpolation(),
                set_bytes,
            });
            first += group.views;
        }
        Ok(())
    }

    /// Fills the groups' crops, all of one image by one thread.
    fn cut(&self, epoch: usize, turns: &[Turn], groups: &mut [CropBatch]) -> Result<()> {
        let mut images: Vec<_> = turns.iter().map(|&turn| (turn, Vec::new())).collect();
        let mut first_view = 0;
        for group in groups {
            for (row, place) in group.crops.places_mut(group.img_size * group.img_size * 3) {
                let (view, image) = (first_view + row / turns.len(), row % turns.len());
                images[image].1.push((view as u32, place));
            }
            first_view += group.views;
        }
        images.retain(|(_, places)| !places.is_empty());
        for_each(images, self.threads, |(turn, places)| {
            let image = self.images.get(turn.sample)?;
            let key = turn.key(self.images.len());
            for (view, place) in places {
                let crop = self.views.crop(&image, self.seed, epoch as u32, key, view);
                place.copy_from_slice(&crop.pixels);
            }
            Ok(())
        })
    }

    /// Makes the batches `first_step..end` one ahead of the reader.
    pub fn prefetch(&self, first_step: usize, end: usize) -> Prefetch {
        let source = self.clone();
        let (sender, receiver) = sync_channel(1);
        let thread = std::thread::spawn(move || {
            let mut order = Order::default();
            for step in first_step..end {
                // A closed channel means that the reader stopped early.
                if sender.send(source.batch_in_order(step, &mut order)).is_err() {
                    break;
                }
            }
        });
        Prefetch { receiver: Some(receiver), thread: Some(thread) }
    }
}

/// The order of the samples in the epoch that was asked for last. A million of them take longer to
/// shuffle than some steps take, so that it is not done at every step.
#[derive(Default)]
struct Order {
    epoch: Option<usize>,
    turns: Vec<Turn>,
}

impl Order {
    fn of(&mut self, source: &BatchSource, epoch: usize) -> &[Turn] {
        if self.epoch != Some(epoch) {
            let labels = source.balance.as_ref().map(|labels| &labels[..]);
            let turns = order::turns(source.images.len(), labels, source.seed, epoch);
            self.turns = order::repeated(turns, source.repeats);
            self.epoch = Some(epoch);
        }
        &self.turns
    }
}

/// Batches in step order.
pub struct Prefetch {
    receiver: Option<Receiver<Result<Batch>>>,
    thread: Option<JoinHandle<()>>,
}

impl Iterator for Prefetch {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.receiver.as_ref()?.recv().ok()
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        drop(self.receiver.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the maker has already closed the channel; there is nothing to add here.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
