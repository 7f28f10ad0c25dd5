//! One look at one image file: what it is, and its pixels.

use serde::{Deserialize, Serialize};

use super::decode::{Stored, decode_described};
use super::digest::Digest;
use super::image::Rgb8;
use super::listing;
use super::manifest::{Manifest, Sample};
use super::parallel::map_in_turn;
use crate::config::Depth;

/// What one look at a file finds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// Width and height in pixels.
    pub size: (usize, usize),
    /// How the file stores its samples.
    pub stored: Stored,
    /// Its largest level, 0 to 255.
    pub brightest: u8,
    /// Its content.
    pub digest: Digest,
}

/// What the file holds, or why it cannot be used, in words that follow "the file ...".
pub type Found = Result<Look, String>;

/// Reads and decodes the file of a sample.
///
/// # Errors
/// A reason such as `is a text file, not an image`.
pub fn look(sample: &Sample, depth: Depth) -> Result<(Look, Rgb8), String> {
    let bytes = listing::bytes(&sample.origin)?;
    let (image, stored) = decode_described(&bytes, depth, sample.treatment)?;
    let brightest = image.pixels.iter().copied().max().unwrap_or(0);
    let look =
        Look { size: (image.width, image.height), stored, brightest, digest: Digest::of(&bytes) };
    Ok((look, image))
}

/// What is found in the file of each sample, on `threads` threads; `progress(done, total)` after each.
pub fn look_at_all(
    manifest: &Manifest,
    depth: Depth,
    threads: usize,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Vec<Found> {
    let samples = &manifest.samples;
    let mut all = Vec::with_capacity(samples.len());
    let work = |i: usize| look(&samples[i], depth).map(|(found, _)| found);
    let sink = |i, found| {
        all.push(found);
        progress(i + 1, samples.len());
        Ok(())
    };
    // The sink has no errors to pass on.
    let _ = map_in_turn(samples.len(), threads, work, sink);
    all
}
