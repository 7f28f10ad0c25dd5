//! A micro-batch on its way to the card: crops as bytes, which are mixed and normalised there, and targets.

use std::sync::Arc;

use super::gpu::{Gpu, Memory, View, args};
use crate::data::augment::CropBox;
use crate::data::mixing::MixKind;
use crate::engine::StepInput;
use crate::engine::batches::{MicroBatch, targets};
use crate::error::Result;
use crate::method::RowLoss;

/// Memory for what comes in.
pub struct Inputs {
    gpu: Arc<Gpu>,
    /// Crops and their partners as bytes, or normalised planes.
    images: Memory,
    /// Classes a, classes b, shares of both, losses.
    rows: Memory,
    img_size: usize,
    most: usize,
}

impl Inputs {
    /// For up to `most` images of `img_size` pixels at a time, and `rows` losses.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn new(gpu: &Arc<Gpu>, img_size: usize, most: usize, rows: usize) -> Result<Self> {
        let images = gpu.memory(3 * img_size * img_size * most + 1)?;
        let rows = gpu.memory(4 * most + rows)?;
        Ok(Self { gpu: gpu.clone(), images, rows, img_size, most })
    }

    /// Rows that there is room for the losses of.
    pub fn rows(&self) -> usize {
        self.rows.view().len - 4 * self.most
    }

    /// The losses of the rows from `first` on.
    pub fn losses(&self, first: usize, rows: usize) -> View {
        self.rows.view().from(4 * self.most).part(first..first + rows)
    }

    /// Puts the pixels of a micro-batch into `pixels`.
    ///
    /// # Errors
    /// The device failed.
    pub fn crops(&self, part: &MicroBatch, input: &StepInput, pixels: View) -> Result<()> {
        let (group, size, n) = (part.group, self.img_size, pixels.len);
        let mix = &group.mix;
        let of = |rows: &mut dyn Iterator<Item = usize>| -> Option<Vec<u8>> {
            let crops: Option<Vec<&[u8]>> = rows.map(|row| group.crop(row)).collect();
            crops.map(|crops| crops.concat())
        };
        let Some(mut own) = of(&mut part.rows.clone()) else {
            let mut planes = vec![0.0; n];
            for (row, out) in part.rows.clone().zip(planes.chunks_exact_mut(3 * size * size)) {
                group.write_row(row, input.mean, input.std, out);
            }
            return self.planes(&planes, pixels);
        };
        let nobody = CropBox { x: 0, y: 0, w: 0, h: 0 };
        let (mode, area) = match mix.kind {
            MixKind::None => (0usize, nobody),
            MixKind::CutMix(area) => (1, area),
            MixKind::Mixup => (2, nobody),
        };
        let partners = match mode {
            0 => None,
            _ => of(&mut part.rows.clone().map(|row| mix.partner[row])),
        };
        let words = n.div_ceil(4);
        let (first, second) = (self.images.view().part(0..words), self.images.view().from(words));
        let send = |to: View, bytes: &mut Vec<u8>| {
            bytes.resize(4 * words, 0);
            self.gpu.upload(to, bytes)
        };
        send(first, &mut own)?;
        if let Some(mut partners) = partners {
            send(second.part(0..words), &mut partners)?;
        }
        let [s0, s1, s2] = [0, 1, 2].map(|c| 1.0 / (255.0 * input.std[c]));
        let [o0, o1, o2] = [0, 1, 2].map(|c| -input.mean[c] / input.std[c]);
        let CropBox { x, y, w, h } = area;
        let args = args![
            first,
            second,
            pixels,
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
        let to = self.images.view().part(0..planes.len());
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
        let place = |i: usize| self.rows.view().part(i * self.most..i * self.most + rows);
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
