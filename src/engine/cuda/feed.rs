//! Crops made on a card: a data set's images stay there as bytes as far as there is room, a batch brings what
//! was drawn for it and those that have none, and kernels do what the CPU would do with them.

mod ops;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::gpu::{Gpu, Memory, View, args};
use crate::config::Interpolation;
use crate::data::Rgb8;
use crate::data::augment::{CropBox, rows_first};
use crate::data::loader::{CropBatch, DrawnCrops};
use crate::error::Result;

/// Bytes that crops on their way need, unless a single one needs more.
const WORK: usize = 64 << 20;
/// Share of a card's memory that images may stay in; training has the rest.
const OF_MEMORY: f64 = 0.5;
/// Words of a `Crop` in `kernels/feed.cu`.
const CROP_WORDS: usize = 10;
/// Bytes that every part of the working memory begins at a multiple of.
const PART: usize = 256;

/// Makes crops.
pub struct Feed {
    gpu: Arc<Gpu>,
    /// Images that stay.
    held: Memory,
    /// Bytes of them.
    room: usize,
    /// Bytes that are taken, and where the image of each sample begins.
    taken: usize,
    places: HashMap<usize, usize>,
    work: Memory,
}

/// What the crops of a group have in common, and where they go.
struct Group<'a> {
    batch: &'a CropBatch,
    drawn: &'a DrawnCrops,
    /// Weights of an output pixel at most.
    taps: usize,
    crops: View,
    /// Number there of the group's first row.
    first: usize,
}

impl Feed {
    /// Bytes of a card with `memory` bytes that crops from a set of `set` bytes take.
    pub fn bytes(memory: u64, set: u64) -> usize {
        WORK + room(memory, set)
    }

    /// For a set of `set` bytes of pixels.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn new(gpu: &Arc<Gpu>, set: u64) -> Result<Self> {
        let room = room(gpu.card.memory, set);
        let (held, work) = (gpu.memory(room.div_ceil(4))?, gpu.memory(WORK / 4)?);
        Ok(Self { gpu: gpu.clone(), held, room, taken: 0, places: HashMap::new(), work })
    }

    /// Makes the crops of a group, rows `first` and on of `crops`, `[rows, img_size, img_size, 3]` in bytes.
    ///
    /// # Errors
    /// The device failed, not enough memory for a single crop.
    pub fn make(
        &mut self,
        batch: &CropBatch,
        drawn: &DrawnCrops,
        (crops, first): (View, usize),
    ) -> Result<()> {
        let rows = drawn.views.len();
        for row in 0..rows {
            self.hold(batch.samples[row], drawn.image(row))?;
        }
        let sides = drawn.views.iter().map(|view| view.area.w.max(view.area.h));
        let longest = sides.max().unwrap_or(1);
        let taps = taps(longest, batch.img_size, drawn.interpolation);
        let group = Group { batch, drawn, taps, crops, first };
        let mut done = 0;
        while done < rows {
            let (mut end, mut bytes) = (done, 0);
            while end < rows && (end == done || bytes + self.bytes_of(&group, end) <= WORK) {
                bytes += self.bytes_of(&group, end);
                end += 1;
            }
            self.make_some(&group, done..end)?;
            done = end;
        }
        Ok(())
    }

    /// Keeps an image, if there is room.
    fn hold(&mut self, sample: usize, image: &Rgb8) -> Result<()> {
        let bytes = image.pixels.len();
        if self.places.contains_key(&sample) || self.taken + bytes > self.room {
            return Ok(());
        }
        self.gpu.upload_at(self.held.view(), self.taken, &image.pixels)?;
        self.places.insert(sample, self.taken);
        self.taken += bytes;
        Ok(())
    }

    /// Bytes of working memory for one row, those between its parts included.
    fn bytes_of(&self, group: &Group, row: usize) -> usize {
        let (side, view) = (group.batch.img_size, &group.drawn.views[row]);
        let held = self.places.contains_key(&group.batch.samples[row]);
        let staged = if held { 0 } else { 3 * view.area.area() };
        let words = CROP_WORDS + ops::WORDS * view.ops.len() + 2 + 4 * side;
        let weights = 2 * 2 * side * group.taps;
        staged + 4 * words + weights + between(view.area, side) + 3 * side * side + 8 * PART
    }

    fn make_some(&mut self, group: &Group, rows: Range<usize>) -> Result<()> {
        let (side, taps, count) = (group.batch.img_size, group.taps, rows.len());
        let cubic = group.drawn.interpolation == Interpolation::Bicubic;
        let (mut records, mut all_ops, mut staged) = (Vec::new(), Vec::new(), Vec::new());
        let (mut of_between, mut longest) = (0, 0);
        for row in rows.clone() {
            let (view, image) = (&group.drawn.views[row], group.drawn.image(row));
            let area = view.area;
            let held = self.places.get(&group.batch.samples[row]);
            let (at, stride) = match held {
                Some(place) => (place + 3 * (area.y * image.width + area.x), image.width),
                None => (staged.len(), area.w),
            };
            if held.is_none() {
                stage(image, area, &mut staged);
            }
            let along = rows_first((area.w, area.h), (side, side));
            let before = all_ops.len() / ops::WORDS;
            let numbers = [usize::from(held.is_none()), stride, area.w, area.h, along.into()];
            records.extend([at as u32, (at as u64 >> 32) as u32]);
            records.extend(numbers.map(|number| number as u32));
            records.extend([of_between, before, view.ops.len()].map(|number| number as u32));
            view.ops.iter().for_each(|op| all_ops.extend(ops::words(op, side)));
            of_between += between(area, side);
            longest = longest.max(between(area, side) / 3);
        }
        let sizes = [
            4 * records.len(),
            4 * all_ops.len(),
            staged.len(),
            16 * side * count,
            8 * count,
            4 * side * taps * count,
            of_between,
            3 * side * side * count,
        ];
        let [to_records, to_ops, to_staged, spans, precisions, weights, between, other] =
            self.parts(sizes)?;
        let gpu = &*self.gpu;
        gpu.upload(to_records, &records)?;
        gpu.upload(to_ops, &all_ops)?;
        gpu.upload(to_staged, &staged)?;
        let args = args![to_records, spans, precisions, weights, side, taps, cubic];
        gpu.launch("crop_weights", [2, count], 256, args)?;
        let held = self.held.view();
        let args =
            args![to_records, spans, precisions, weights, held, to_staged, between, side, taps];
        gpu.launch("crop_first", [longest.div_ceil(256), count], 256, args)?;
        let crops = group.crops.at_byte(3 * side * side * (group.first + rows.start));
        let args = args![to_records, spans, precisions, weights, between, crops, side, taps];
        gpu.launch("crop_second", [(side * side).div_ceil(256), count], 256, args)?;
        if all_ops.is_empty() {
            return Ok(());
        }
        gpu.launch("augment", [count, 1], 256, args![to_records, to_ops, crops, other, side])
    }

    /// Parts of the working memory of as many bytes; more memory where a single crop needs it.
    fn parts<const N: usize>(&mut self, sizes: [usize; N]) -> Result<[View; N]> {
        let sizes = sizes.map(|bytes| bytes.next_multiple_of(PART) / 4);
        let all = sizes.iter().sum();
        if self.work.view().len < all {
            self.gpu.wait()?;
            self.work = self.gpu.memory(all)?;
        }
        let mut rest = self.work.view();
        Ok(sizes.map(|len| {
            let part = rest.part(0..len);
            rest = rest.from(len);
            part
        }))
    }
}

/// Bytes for images that stay.
fn room(memory: u64, set: u64) -> usize {
    (set as f64).min(memory as f64 * OF_MEMORY) as usize
}

/// Bytes of a crop between its two passes.
fn between(area: CropBox, side: usize) -> usize {
    let other = if rows_first((area.w, area.h), (side, side)) { area.w } else { area.h };
    3 * side * other
}

/// Weights of an output pixel at most, where `len` pixels become `side`.
fn taps(len: usize, side: usize, interpolation: Interpolation) -> usize {
    let radius = match interpolation {
        Interpolation::Bilinear => 1.0,
        Interpolation::Bicubic => 2.0,
    };
    2 * (radius * (len as f64 / side as f64).max(1.0)).ceil() as usize + 1
}

/// Adds the pixels of an area.
fn stage(image: &Rgb8, area: CropBox, staged: &mut Vec<u8>) {
    for y in area.y..area.y + area.h {
        let first = 3 * (y * image.width + area.x);
        staged.extend(&image.pixels[first..][..3 * area.w]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_stays_on_the_card_as_far_as_half_of_its_memory_goes() {
        let gb = 1_000_000_000;
        assert_eq!(Feed::bytes(80 * gb, 2 * gb), WORK + 2 * gb as usize);
        assert_eq!(Feed::bytes(8 * gb, 30 * gb), WORK + 4 * gb as usize);
    }

    #[test]
    fn weights_have_room_at_any_scale() {
        assert_eq!(taps(50, 100, Interpolation::Bilinear), 3);
        assert_eq!(taps(250, 100, Interpolation::Bilinear), 7);
        assert_eq!(taps(250, 100, Interpolation::Bicubic), 11);
    }
}
