//! Training images decoded once: in memory as far as there is room, in part files that the next run
//! finds again, and beyond that decoded at each use.

pub mod kept;
pub(super) mod parts;

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::augment::resize_lanczos;
use super::image::Rgb8;
use super::manifest::Sample;
use super::{decode, listing};
use crate::config::Depth;
use crate::error::{Error, Result};

/// How decoded images are kept.
#[derive(Clone, Debug)]
pub struct Keeping {
    /// Images with a longer short side are made smaller, to this many pixels; 0 = never.
    pub short_side: usize,
    /// What becomes of 16-bit channels.
    pub depth: Depth,
    /// Bytes of pixels that this process holds in memory.
    pub ram_bytes: u64,
    /// Bytes of all part files that stay for the next run.
    pub disk_bytes: u64,
    /// Where they stay; `None` if this machine has no place for them.
    pub folder: Option<PathBuf>,
}

/// An image that is kept, and where.
pub(super) struct Placed {
    pub width: usize,
    pub height: usize,
    pub place: Place,
}

pub(super) enum Place {
    /// Here.
    Memory(Rgb8),
    /// In a part file.
    Part { part: usize, offset: u64, sum: u32 },
    /// In the file that it was decoded from.
    File,
}

impl Placed {
    fn bytes(&self) -> u64 {
        (3 * self.width * self.height) as u64
    }

    /// Bytes that its part file has at least.
    fn end(&self) -> u64 {
        match self.place {
            Place::Part { offset, .. } => offset + self.bytes(),
            Place::Memory(_) | Place::File => 0,
        }
    }
}

/// Decoded images by their position in a list.
pub struct ImageStore {
    kept: Arc<Kept>,
    /// Position in `kept` of each image of the list.
    order: Vec<usize>,
}

/// What several lists of images share.
struct Kept {
    slots: Vec<Slot>,
    parts: Vec<parts::Part>,
    /// Bytes that may still be taken into memory, by images of part files and by those that would
    /// have to be decoded again, which come first.
    room: [AtomicU64; 2],
    streamed: usize,
    ram_bytes: u64,
    short_side: usize,
    depth: Depth,
}

struct Slot {
    bytes: u64,
    source: Source,
    held: OnceLock<Arc<Rgb8>>,
}

/// Where an image comes from that is not in memory.
enum Source {
    Part { part: usize, offset: u64, sum: u32, width: usize, height: usize },
    File(Box<Sample>),
    Memory,
}

impl Source {
    fn is_file(&self) -> bool {
        matches!(self, Self::File(_))
    }
}

impl ImageStore {
    /// Of samples and where they were placed; those without a place are decoded at each use.
    pub(super) fn new(
        samples: Vec<(Option<Placed>, &Sample)>,
        parts: Vec<parts::Part>,
        keeping: &Keeping,
    ) -> Self {
        let slot = |(placed, sample): (Option<Placed>, &Sample)| {
            let bytes = placed.as_ref().map_or(0, Placed::bytes);
            let (source, held) = match placed {
                Some(Placed { place: Place::Memory(image), .. }) => {
                    (Source::Memory, OnceLock::from(Arc::new(image)))
                }
                Some(Placed { width, height, place: Place::Part { part, offset, sum } }) => {
                    (Source::Part { part, offset, sum, width, height }, OnceLock::new())
                }
                _ => (Source::File(Box::new(sample.clone())), OnceLock::new()),
            };
            Slot { bytes, source, held }
        };
        let &Keeping { ram_bytes, short_side, depth, .. } = keeping;
        let slots: Vec<Slot> = samples.into_iter().map(slot).collect();
        let bytes = |kind: fn(&Source) -> bool| {
            slots.iter().filter(|slot| kind(&slot.source)).map(|slot| slot.bytes).sum::<u64>()
        };
        let free = ram_bytes.saturating_sub(bytes(|source| matches!(source, Source::Memory)));
        let from_files = bytes(Source::is_file);
        let room = [free.saturating_sub(from_files), free.min(from_files)].map(AtomicU64::new);
        let streamed = match from_files <= free {
            true => 0,
            false => slots.iter().filter(|slot| slot.source.is_file()).count(),
        };
        Self::all(Kept { slots, parts, room, streamed, ram_bytes, short_side, depth })
    }

    /// Images that are in memory already.
    pub fn of(images: Vec<Rgb8>) -> Self {
        let slot = |image: Rgb8| Slot {
            bytes: image.pixels.len() as u64,
            source: Source::Memory,
            held: OnceLock::from(Arc::new(image)),
        };
        let slots: Vec<Slot> = images.into_iter().map(slot).collect();
        let ram_bytes = slots.iter().map(|slot| slot.bytes).sum();
        Self::all(Kept {
            slots,
            parts: Vec::new(),
            room: [0.into(), 0.into()],
            streamed: 0,
            ram_bytes,
            short_side: 0,
            depth: Depth::default(),
        })
    }

    fn all(kept: Kept) -> Self {
        Self { order: (0..kept.slots.len()).collect(), kept: Arc::new(kept) }
    }

    /// The images at `positions` of this list, kept once for both.
    pub fn subset(&self, positions: &[usize]) -> Self {
        let order = positions.iter().map(|&i| self.order[i]).collect();
        Self { kept: self.kept.clone(), order }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Bytes of pixels that come to lie in memory, of all lists that share them.
    pub fn bytes(&self) -> u64 {
        self.kept.slots.iter().map(|slot| slot.bytes).sum::<u64>().min(self.kept.ram_bytes)
    }

    /// Images that may have to be decoded at each use: all that are in no part file if memory does not
    /// take all of these, otherwise none.
    pub fn streamed(&self) -> usize {
        self.kept.streamed
    }

    /// Bytes of the pixels of all images of the list that were kept decoded, wherever that is.
    pub fn pixel_bytes(&self) -> u64 {
        self.order.iter().map(|&i| self.kept.slots[i].bytes).sum()
    }

    /// The image at position `i` of the list.
    ///
    /// # Errors
    /// [`Error::Failed`] if a part file cannot be read, [`Error::Data`] if the image's own file cannot.
    pub fn get(&self, i: usize) -> Result<Cow<'_, Rgb8>> {
        let slot = &self.kept.slots[self.order[i]];
        if let Some(image) = slot.held.get() {
            return Ok(Cow::Borrowed(image));
        }
        let image = self.kept.load(slot)?;
        match self.kept.take_room(slot, &image) {
            true => Ok(Cow::Borrowed(slot.held.get_or_init(|| Arc::new(image)))),
            false => Ok(Cow::Owned(image)),
        }
    }

    /// [`Self::get`] for somebody who keeps the image for a while.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn share(&self, i: usize) -> Result<Arc<Rgb8>> {
        match self.get(i)? {
            Cow::Borrowed(_) => {
                let held = self.kept.slots[self.order[i]].held.get();
                held.cloned().ok_or_else(|| Error::Failed("an image in memory is gone".to_owned()))
            }
            Cow::Owned(image) => Ok(Arc::new(image)),
        }
    }
}

impl Kept {
    /// Takes memory for an image if there is enough left. Says whether there was.
    fn take_room(&self, slot: &Slot, image: &Rgb8) -> bool {
        let take = |room: u64| room.checked_sub(image.pixels.len() as u64);
        let room = &self.room[usize::from(slot.source.is_file())];
        room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    fn load(&self, slot: &Slot) -> Result<Rgb8> {
        match &slot.source {
            Source::Part { part, offset, sum, width, height } => {
                let mut image = Rgb8::new(*width, *height);
                self.parts[*part].read(*offset, *sum, &mut image)?;
                Ok(image)
            }
            Source::File(sample) => listing::bytes(&sample.origin)
                .and_then(|bytes| decode::decode(&bytes, self.depth, sample.treatment))
                .map(|image| shrink(image, self.short_side))
                .map_err(|why| Error::Data(format!("{} {why}", sample.id))),
            Source::Memory => Err(Error::Failed("an image in memory is gone".to_owned())),
        }
    }
}

/// The image with its short side at most `short_side` pixels (Lanczos, as PIL).
pub(super) fn shrink(image: Rgb8, short_side: usize) -> Rgb8 {
    let short = image.width.min(image.height);
    if short_side == 0 || short <= short_side {
        return image;
    }
    let scaled = |side: usize| (side * short_side + short / 2) / short;
    let (width, height) = (scaled(image.width), scaled(image.height));
    resize_lanczos(&image, width, height)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shrinking_keeps_a_slope_and_the_shape() {
        let mut image = Rgb8::new(90, 60);
        for (i, pixel) in image.pixels.chunks_exact_mut(3).enumerate() {
            pixel.fill((i % 90 * 2) as u8);
        }
        assert_eq!(shrink(image.clone(), 60), image);
        assert_eq!(shrink(image.clone(), 0), image);
        let small = shrink(image, 20);
        assert_eq!((small.width, small.height), (30, 20));
        // The middle of output pixel x lies at input 3x + 1; the filter reaches 9 pixels out.
        for x in 3..27 {
            assert_eq!(usize::from(small.pixels[(10 * 30 + x) * 3]), (3 * x + 1) * 2);
        }
    }
}
