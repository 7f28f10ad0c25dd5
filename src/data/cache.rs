//! Decode once: every image of a run in 8-bit RGB, in memory or in one file.

use std::borrow::Cow;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::augment::resize_lanczos;
use super::decode::decode;
use super::image::Rgb8;
use super::listing;
use super::manifest::Manifest;
use super::parallel::map_in_turn;
use crate::config::Depth;
use crate::error::{Error, Result};

/// An image that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadImage {
    /// Its id in the manifest.
    pub id: String,
    /// Why, in words that follow "the file ...".
    pub reason: String,
}

/// Where decoded images go and how large they may be.
#[derive(Clone, Debug)]
pub struct StoreLimits {
    /// Images with a longer short side are made smaller, to this many pixels; 0 = never.
    pub short_side: usize,
    /// What becomes of 16-bit samples.
    pub depth: Depth,
    /// Bytes of pixels kept in memory; what is beyond goes to the file.
    pub ram_bytes: u64,
    /// The file for what memory does not take; made only if needed, and gone with the program.
    pub spill: PathBuf,
}

/// Decoded images by their position in the list the store was built from.
pub struct ImageStore {
    slots: Vec<Slot>,
    spill: Option<File>,
}

enum Slot {
    Memory(Rgb8),
    Spilled { offset: u64, width: usize, height: usize },
    Bad,
}

impl ImageStore {
    /// Decodes the samples of `manifest` at `indices` on `threads` threads.
    ///
    /// `progress(done, total)` is called after every image. What does not decode is returned in
    /// order; the pixels do not depend on the number of threads.
    ///
    /// # Errors
    /// [`Error::Io`] if the spill file cannot be written.
    pub fn build(
        manifest: &Manifest,
        indices: &[usize],
        limits: &StoreLimits,
        threads: usize,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<(Self, Vec<BadImage>)> {
        let load = |i: usize| {
            let sample = &manifest.samples[indices[i]];
            let bytes = listing::bytes(&sample.origin)?;
            Ok(shrink(decode(&bytes, limits.depth, sample.treatment)?, limits.short_side))
        };
        let (mut slots, mut bad) = (Vec::with_capacity(indices.len()), Vec::new());
        let (mut spill, mut in_memory, mut in_file) = (None, 0, 0);
        map_in_turn(
            indices.len(),
            threads,
            load,
            |i, image: std::result::Result<Rgb8, String>| {
                let slot = match image {
                    Ok(image) if in_memory + image.pixels.len() as u64 <= limits.ram_bytes => {
                        in_memory += image.pixels.len() as u64;
                        Slot::Memory(image)
                    }
                    Ok(Rgb8 { width, height, pixels }) => {
                        append(&mut spill, &limits.spill, &pixels)?;
                        let offset = in_file;
                        in_file += pixels.len() as u64;
                        Slot::Spilled { offset, width, height }
                    }
                    Err(reason) => {
                        bad.push(BadImage { id: manifest.samples[indices[i]].id.clone(), reason });
                        Slot::Bad
                    }
                };
                slots.push(slot);
                progress(slots.len(), indices.len());
                Ok(())
            },
        )?;
        Ok((Self { slots, spill }, bad))
    }

    /// Images that are in memory already.
    pub fn of(images: Vec<Rgb8>) -> Self {
        Self { slots: images.into_iter().map(Slot::Memory).collect(), spill: None }
    }

    /// Number of images, unusable ones included.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Bytes of pixels in memory, and in the file.
    pub fn bytes(&self) -> (u64, u64) {
        self.slots.iter().fold((0, 0), |(memory, file), slot| match slot {
            Slot::Memory(image) => (memory + image.pixels.len() as u64, file),
            Slot::Spilled { width, height, .. } => (memory, file + (3 * width * height) as u64),
            Slot::Bad => (memory, file),
        })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The image at position `i` of the list the store was built from.
    ///
    /// # Errors
    /// [`Error::Failed`] if the spill file cannot be read, [`Error::Data`] if the image is unusable.
    pub fn get(&self, i: usize) -> Result<Cow<'_, Rgb8>> {
        match (&self.slots[i], &self.spill) {
            (Slot::Memory(image), _) => Ok(Cow::Borrowed(image)),
            (Slot::Spilled { offset, width, height }, Some(file)) => {
                let mut image = Rgb8::new(*width, *height);
                file.read_exact_at(&mut image.pixels, *offset)
                    .map_err(|e| Error::Failed(format!("cannot read the image cache: {e}")))?;
                Ok(Cow::Owned(image))
            }
            _ => Err(Error::Data(format!("image {i} of the store did not decode"))),
        }
    }
}

/// Appends to the spill file, made on first use and unlinked at once: whatever ends the program,
/// no gigabytes stay behind.
fn append(spill: &mut Option<File>, path: &Path, pixels: &[u8]) -> Result<()> {
    let failed = |e| Error::io("write", path, e);
    if spill.is_none() {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path);
        *spill = Some(file.map_err(failed)?);
        std::fs::remove_file(path).map_err(failed)?;
    }
    spill.as_mut().map_or(Ok(()), |file| file.write_all(pixels).map_err(failed))
}

/// The image with its short side at most `short_side` pixels (Lanczos, as PIL).
fn shrink(image: Rgb8, short_side: usize) -> Rgb8 {
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
    use super::super::manifest::{Origin, Sample, Split, SplitOrigin};
    use super::super::source::{open, tests};
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn limits(folder: &Path, short_side: usize, ram_bytes: u64) -> StoreLimits {
        StoreLimits { short_side, depth: Depth::Pil, ram_bytes, spill: folder.join("cache.rgb") }
    }

    /// PNG files of a slope, sized 40 x 20, 41 x 20 ..., with a broken one in third place.
    fn slopes(folder: &Path) -> Manifest {
        let sample = |i: u32| {
            let path = folder.join(format!("{i}.png"));
            let color = |x, y| image::Rgb([(x * 5) as u8, (y * 9) as u8, i as u8]);
            image::RgbImage::from_fn(40 + i, 20, color).save(&path).unwrap();
            if i == 2 {
                std::fs::write(&path, "text").unwrap();
            }
            let origin = Origin::File(path);
            Sample {
                id: format!("{i}.png"),
                origin,
                label: None,
                split: Split::Train,
                treatment: Default::default(),
            }
        };
        Manifest {
            name: "slopes".into(),
            classes: Vec::new(),
            samples: (0..9).map(sample).collect(),
            split_origin: SplitOrigin::Unlabelled,
        }
    }

    #[test]
    fn memory_file_and_threads_give_the_same_pixels() {
        let folder = tempfile::tempdir().unwrap();
        let manifest = slopes(folder.path());
        let indices: Vec<usize> = (0..9).rev().collect();
        let all = |ram_bytes, threads| {
            let calls = AtomicUsize::new(0);
            let progress = |_, total| {
                assert_eq!(total, 9);
                calls.fetch_add(1, Ordering::Relaxed);
            };
            let limits = limits(folder.path(), 10, ram_bytes);
            let (store, bad) =
                ImageStore::build(&manifest, &indices, &limits, threads, &progress).unwrap();
            assert_eq!((store.len(), calls.into_inner()), (9, 9));
            assert_eq!(store.spill.is_some(), ram_bytes < 10_000);
            assert!(!limits.spill.exists(), "nothing stays behind");
            let (memory, file) = store.bytes();
            assert_eq!(
                memory + file,
                (0..9)
                    .filter(|i| *i != 6)
                    .map(|i| store.get(i).unwrap().pixels.len() as u64)
                    .sum::<u64>()
            );
            assert!(memory <= ram_bytes && (file == 0) == (ram_bytes == 10_000));
            let reason = "is a text file, not an image".to_owned();
            assert_eq!(bad, [BadImage { id: "2.png".into(), reason }]);
            assert!(store.get(6).is_err());
            let images = (0..9).filter(|i| *i != 6).map(|i| store.get(i).unwrap().into_owned());
            images.collect::<Vec<_>>()
        };
        let reference = all(10_000, 1);
        assert_eq!((reference[0].width, reference[0].height), (24, 10));
        assert_eq!(reference[0].pixels[2], 8);
        assert_eq!(reference, all(0, 1));
        assert_eq!(reference, all(1_500, 4));
        assert_eq!(reference, all(10_000, 3));
    }

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

    #[test]
    fn a_full_disk_ends_the_work() {
        let folder = tempfile::tempdir().unwrap();
        let manifest = slopes(folder.path());
        let limits = limits(&folder.path().join("no such folder"), 0, 0);
        let built = ImageStore::build(&manifest, &[0, 1, 3, 4, 5], &limits, 2, &|_, _| {});
        assert!(matches!(built, Err(Error::Io { action: "write", .. })));
    }

    #[test]
    fn all_training_flowers_decode() {
        let Some(path) = tests::data_file("flowers-102.tar") else {
            return;
        };
        let manifest = open(&path, &tests::config(), 1).unwrap();
        let indices = manifest.indices(Split::Train);
        let folder = tempfile::tempdir().unwrap();
        let limits = limits(folder.path(), 256, 1 << 30);
        let start = std::time::Instant::now();
        let (store, bad) = ImageStore::build(&manifest, &indices, &limits, 2, &|_, _| {}).unwrap();
        eprintln!("2,040 images with 2 threads: {:.2} s", start.elapsed().as_secs_f64());
        assert_eq!((store.len(), bad.len()), (2040, 0));
        assert!(
            (0..2040)
                .all(|i| { store.get(i).is_ok_and(|image| image.width.min(image.height) == 256) })
        );
    }
}
