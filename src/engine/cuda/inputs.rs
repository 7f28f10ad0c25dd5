//! A batch on its way to the card: crops as bytes, which are mixed and normalised there, and targets.

use std::sync::Arc;

use super::feed::Feed;
use super::gpu::{Gpu, Memory, View, args};
use crate::data::augment::CropBox;
use crate::data::loader::{Batch, CropBatch, Crops};
use crate::data::mixing::MixKind;
use crate::engine::StepInput;
use crate::engine::batches::{MicroBatch, targets};
use crate::error::{Error, Result};
use crate::method::RowLoss;

/// Memory for what comes in.
pub struct Inputs {
    gpu: Arc<Gpu>,
    /// Crops of all rows of a batch in bytes, `[rows, img_size, img_size, 3]`.
    crops: Memory,
    /// Normalised planes of a micro-batch.
    planes: Memory,
    /// Classes a, classes b, shares of both and partners of a micro-batch; losses of all rows.
    rows: Memory,
    img_size: usize,
    /// Images of a micro-batch.
    most: usize,
}

/// Vectors as long as a micro-batch in [`Inputs::rows`].
const OF_PART: usize = 5;

impl Inputs {
    /// Bytes of the memory for the crops of a batch.
    pub fn bytes(batch: &Batch) -> usize {
        let of_group = |group: &CropBatch| match group.crops {
            Crops::Ready(_) => 0,
            _ => 3 * group.img_size * group.img_size * group.samples.len(),
        };
        batch.groups.iter().map(of_group).sum()
    }

    /// For batches that are no larger than `batch`, of crops of `img_size` pixels, up to `most` at a time.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn training(gpu: &Arc<Gpu>, img_size: usize, most: usize, batch: &Batch) -> Result<Self> {
        let rows = batch.groups.iter().map(|group| group.samples.len()).sum();
        let ready = batch.groups.iter().any(|group| matches!(group.crops, Crops::Ready(_)));
        let planes = if ready { most } else { 0 };
        Self::new(gpu, img_size, most, (Self::bytes(batch), planes, rows))
    }

    /// For up to `most` images of `img_size` pixels at a time that come normalised.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn asking(gpu: &Arc<Gpu>, img_size: usize, most: usize) -> Result<Self> {
        Self::new(gpu, img_size, most, (0, most, 0))
    }

    fn new(
        gpu: &Arc<Gpu>,
        img_size: usize,
        most: usize,
        (crops, planes, rows): (usize, usize, usize),
    ) -> Result<Self> {
        let crops = gpu.memory(crops.div_ceil(4))?;
        let planes = gpu.memory(3 * img_size * img_size * planes)?;
        let rows = gpu.memory(OF_PART * most + rows)?;
        Ok(Self { gpu: gpu.clone(), crops, planes, rows, img_size, most })
    }

    /// Whether there is room for a batch.
    pub fn take(&self, batch: &Batch) -> bool {
        let rows: usize = batch.groups.iter().map(|group| group.samples.len()).sum();
        let ready = batch.groups.iter().any(|group| matches!(group.crops, Crops::Ready(_)));
        rows <= self.rows.view().len - OF_PART * self.most
            && Self::bytes(batch) <= 4 * self.crops.view().len
            && (!ready || self.planes.view().len > 0)
    }

    /// Brings the crops of a batch to the card, or makes them there.
    ///
    /// # Errors
    /// The device failed.
    pub fn receive(&self, batch: &Batch, feed: Option<&mut Feed>) -> Result<()> {
        let (mut first, mut feed) = (0, feed);
        let of_crop = 3 * self.img_size * self.img_size;
        let part = || Error::Failed("a card takes all crops of a batch".to_owned());
        for group in &batch.groups {
            let crops = self.crops.view();
            match (&group.crops, feed.as_deref_mut()) {
                (Crops::Bytes(bytes), _) => self.gpu.upload_at(crops, first * of_crop, bytes)?,
                (Crops::Drawn(drawn), Some(feed)) => feed.make(group, drawn, (crops, first))?,
                (Crops::Ready(_), _) => {}
                (Crops::Part { .. } | Crops::Drawn(_), _) => return Err(part()),
            }
            first += group.samples.len();
        }
        Ok(())
    }

    /// The crops that were received, `[rows, img_size, img_size, 3]`.
    ///
    /// # Errors
    /// The device failed.
    pub fn received(&self) -> Result<Vec<u8>> {
        self.gpu.download(self.crops.view())
    }

    /// The losses of the rows from `first` on.
    pub fn losses(&self, first: usize, rows: usize) -> View {
        self.rows.view().from(OF_PART * self.most).part(first..first + rows)
    }

    /// Vector `i` of a micro-batch of `rows`.
    fn of_part(&self, i: usize, rows: usize) -> View {
        self.rows.view().part(i * self.most..i * self.most + rows)
    }

    /// Puts the pixels of a micro-batch of what was received into `pixels`.
    ///
    /// # Errors
    /// The device failed.
    pub fn crops(&self, part: &MicroBatch, input: &StepInput, pixels: View) -> Result<()> {
        let (group, size, n) = (part.group, self.img_size, pixels.len);
        if matches!(group.crops, Crops::Ready(_)) {
            let mut planes = vec![0.0; n];
            for (row, out) in part.rows.clone().zip(planes.chunks_exact_mut(3 * size * size)) {
                group.write_row(row, input.mean, input.std, out);
            }
            return self.planes(&planes, pixels);
        }
        let mix = &group.mix;
        let nobody = CropBox { x: 0, y: 0, w: 0, h: 0 };
        let (mode, area) = match mix.kind {
            MixKind::None => (0usize, nobody),
            MixKind::CutMix(area) => (1, area),
            MixKind::Mixup => (2, nobody),
        };
        let (first, of_group) = (part.first_row(), part.first_row() - part.rows.start);
        let partners = self.of_part(4, part.rows.len());
        if mode > 0 {
            let rows = part.rows.clone().map(|row| (of_group + mix.partner[row]) as u32);
            self.gpu.upload(partners, &rows.collect::<Vec<u32>>())?;
        }
        let [s0, s1, s2] = [0, 1, 2].map(|c| 1.0 / (255.0 * input.std[c]));
        let [o0, o1, o2] = [0, 1, 2].map(|c| -input.mean[c] / input.std[c]);
        let CropBox { x, y, w, h } = area;
        let args = args![
            self.crops.view(),
            partners,
            pixels,
            first,
            mode,
            x,
            y,
            x + w,
            y + h,
            mix.lambda,
            s0,
            s1,
            s2,
            o0,
            o1,
            o2,
            size
        ];
        self.gpu.each("pixels_from_bytes", n, args)
    }

    /// Puts normalised planes `[rows, 3, img_size, img_size]` into `pixels`.
    ///
    /// # Errors
    /// The device failed.
    pub fn planes(&self, planes: &[f32], pixels: View) -> Result<()> {
        let to = self.planes.view().part(0..planes.len());
        self.gpu.upload(to, planes)?;
        self.gpu.each("pixels_from_planes", planes.len(), args![to, pixels, self.img_size])
    }

    /// The losses of a micro-batch and their slopes, divided by the rows of its group.
    ///
    /// # Errors
    /// The device failed.
    pub fn loss(
        &self,
        part: &MicroBatch,
        loss: &dyn RowLoss,
        logits: View,
        slopes: View,
    ) -> Result<()> {
        let (targets, smoothing) = (targets(part, loss), loss.smoothing());
        let rows = targets.len();
        let place = |i: usize| self.of_part(i, rows);
        let classes = |of: &dyn Fn(usize) -> usize| -> Vec<u32> {
            (0..rows).map(|row| of(row) as u32).collect()
        };
        self.gpu.upload(place(0), &classes(&|row| targets[row].a))?;
        self.gpu.upload(place(1), &classes(&|row| targets[row].b))?;
        for i in [0, 1] {
            let shares: Vec<f32> = targets.iter().map(|target| target.shares[i]).collect();
            self.gpu.upload(place(2 + i), &shares)?;
        }
        let losses = self.losses(part.first_row(), rows);
        let (on, off) = (smoothing.on as f32, smoothing.off as f32);
        let weight = 1.0 / part.group.samples.len() as f32;
        let args = args![
            logits,
            place(0),
            place(1),
            place(2),
            place(3),
            slopes,
            losses,
            logits.len / rows,
            on,
            off,
            weight
        ];
        self.gpu.launch("cross_entropy", [rows, 1], 256, args)
    }
}
