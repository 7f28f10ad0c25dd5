//! The one pass over the files of a data set before a run: every image is looked at, and the
//! training images are kept decoded. A set that was gone through before is known at once.

use std::path::PathBuf;

use super::cache::{ImageStore, Keeping, Place, Placed, kept, parts, shrink};
use super::image::Rgb8;
use super::look::{Found, look};
use super::manifest::{Manifest, Split};
use super::parallel::map_in_turn;
use crate::error::{Error, Result};

/// The processes of one machine that read a data set together, each its share.
pub struct Share<'a> {
    /// The number of this process among them, from 0.
    pub rank: usize,
    /// How many they are.
    pub ranks: usize,
    /// What tells their job from all others; it has a hyphen.
    pub job: &'a str,
    /// Returns when every process of the job, also those on other machines, has called it.
    pub wait: &'a dyn Fn() -> Result<()>,
}

impl Share<'_> {
    /// One process by itself.
    pub const ALONE: Share<'static> = Share { rank: 0, ranks: 1, job: "job-0", wait: &|| Ok(()) };

    /// The positions of `count` samples that are this process's.
    pub(super) fn positions(&self, count: usize) -> std::iter::StepBy<std::ops::Range<usize>> {
        (self.rank.min(count)..count).step_by(self.ranks)
    }
}

/// What was found in all files of a data set.
pub struct Pass {
    /// What each sample of the manifest is.
    pub found: Vec<Found>,
    /// Whether an earlier run had found it.
    pub known: bool,
    /// The folder in which decoded images stay for the next run.
    pub kept: Option<PathBuf>,
    /// Why decoded images are not kept for the next run, if they should have been.
    pub not_kept: Option<String>,
    places: Vec<Option<Placed>>,
    parts: Vec<parts::Part>,
}

impl Pass {
    /// Goes through the files of `manifest` on `threads` threads, `progress(done, total)` after each
    /// file of this process. The result does not depend on the number of threads or processes.
    ///
    /// # Errors
    /// [`Error::Failed`] if processes cannot hand decoded images to each other.
    pub fn over(
        manifest: &Manifest,
        keeping: &Keeping,
        share: &Share,
        threads: usize,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Self> {
        // By id: a manifest's own order follows the labels, and with other labels the part files of an earlier run
        // would no longer match it.
        let samples = &manifest.samples;
        let mut order: Vec<usize> = (0..samples.len()).collect();
        order.sort_by(|&a, &b| samples[a].id.cmp(&samples[b].id));
        let named = order.iter().map(|&i| samples[i].clone()).collect();
        let by_name = Manifest { samples: named, ..manifest.clone() };
        let mut pass = Self::in_order(&by_name, keeping, share, threads, progress)?;
        let found = pass.found.into_iter().zip(pass.places).zip(order);
        let mut found: Vec<_> = found.collect();
        found.sort_by_key(|(_, i)| *i);
        (pass.found, pass.places) = found.into_iter().map(|(found, _)| found).unzip();
        Ok(pass)
    }

    /// [`Self::over`] in the order of the manifest.
    fn in_order(
        manifest: &Manifest,
        keeping: &Keeping,
        share: &Share,
        threads: usize,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Self> {
        let folder = kept::folder(manifest, keeping, share);
        let made = folder.and_then(|folder| {
            let Some(folder) = folder else { return Ok(None) };
            let before = parts::open(folder.path(), manifest.samples.len());
            if before.is_none() {
                let mut part = parts::Writer::new(folder.path(), share, keeping.disk_bytes)?;
                let sink = |found, image| part.add(found, image);
                Self::go_through(manifest, keeping, share, threads, progress, sink)?;
                part.finish()?;
            }
            Ok(Some((folder, before)))
        });
        // A process by itself can do without.
        if share.ranks > 1 {
            made.as_ref().map_err(|error| Error::Failed(error.to_string()))?;
        }
        (share.wait)()?;
        let opened = made.and_then(|made| made.map(|made| Self::open(manifest, made)).transpose());
        // Nobody removes a temporary folder before all have opened what is in it.
        (share.wait)()?;
        match opened {
            Ok(Some((pass, folder))) => {
                if share.rank == 0 {
                    folder.evict(keeping.disk_bytes);
                }
                Ok(pass)
            }
            Ok(None) => Self::in_memory(manifest, keeping, threads, progress),
            Err(error) if share.ranks > 1 => Err(error),
            Err(error) => {
                let pass = Self::in_memory(manifest, keeping, threads, progress)?;
                Ok(Self { not_kept: Some(error.to_string()), ..pass })
            }
        }
    }

    /// The training images at `positions` of the manifest.
    pub fn store(self, manifest: &Manifest, positions: &[usize], keeping: &Keeping) -> ImageStore {
        let mut places = self.places;
        let slot = |&i: &usize| (places[i].take(), &manifest.samples[i]);
        let slots: Vec<_> = positions.iter().map(slot).collect();
        ImageStore::new(slots, self.parts, keeping)
    }

    /// What is in the part files of a folder, which were there `before` or have been made.
    fn open(
        manifest: &Manifest,
        (folder, before): (kept::Folder, Option<parts::Opened>),
    ) -> Result<(Self, kept::Folder)> {
        let known = before.is_some();
        let opened = before.or_else(|| parts::open(folder.path(), manifest.samples.len()));
        let (entries, parts) = opened.ok_or_else(|| {
            let path = folder.path().display();
            Error::Failed(format!("decoded images cannot be read back from {path}"))
        })?;
        let (found, places) = entries.into_iter().unzip();
        let kept = folder.is_kept().then(|| folder.path().to_path_buf());
        Ok((Self { found, known, kept, not_kept: None, places, parts }, folder))
    }

    /// With no file at all: what memory does not take is decoded again at each use.
    fn in_memory(
        manifest: &Manifest,
        keeping: &Keeping,
        threads: usize,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Self> {
        let (mut all, mut places, mut bytes) = (Vec::new(), Vec::new(), 0);
        let sink = |found, image: Option<Rgb8>| {
            all.push(found);
            places.push(image.map(|image| {
                let (width, height) = (image.width, image.height);
                bytes += image.pixels.len() as u64;
                let fits = bytes <= keeping.ram_bytes;
                let place = if fits { Place::Memory(image) } else { Place::File };
                Placed { width, height, place }
            }));
            Ok(())
        };
        Self::go_through(manifest, keeping, &Share::ALONE, threads, progress, sink)?;
        Ok(Self { found: all, known: false, kept: None, not_kept: None, places, parts: Vec::new() })
    }

    /// Hands `sink` what is found in each file of the share, in order, with the pixels of training
    /// images.
    fn go_through(
        manifest: &Manifest,
        keeping: &Keeping,
        share: &Share,
        threads: usize,
        progress: &(dyn Fn(usize, usize) + Sync),
        mut sink: impl FnMut(Found, Option<Rgb8>) -> Result<()>,
    ) -> Result<()> {
        let positions: Vec<usize> = share.positions(manifest.samples.len()).collect();
        let work = |i: usize| {
            let sample = &manifest.samples[positions[i]];
            let (found, image) = look(sample, keeping.depth)?;
            let wanted = sample.split == Split::Train;
            Ok((found, wanted.then(|| shrink(image, keeping.short_side))))
        };
        map_in_turn(positions.len(), threads, work, |i, seen| {
            match seen {
                Ok((found, image)) => sink(Ok(found), image)?,
                Err(reason) => sink(Err(reason), None)?,
            }
            progress(i + 1, positions.len());
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests;
