//! Files of decoded images: each process of a machine writes one, all of them read all.
//!
//! `R-of-N.rgb` has the pixels of every N-th sample from the R-th on, one image behind the other;
//! `R-of-N.jsonl`, which is put there last, has a line for each of those samples.

use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::Crc;
use serde::{Deserialize, Serialize};

use super::{Place, Placed};
use crate::data::image::Rgb8;
use crate::data::look::Found;
use crate::data::pass::Share;
use crate::error::{Error, Result};

/// A file of pixels.
pub struct Part {
    path: PathBuf,
    file: File,
}

/// Where an image is in the file of pixels of its own part.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct At {
    width: usize,
    height: usize,
    /// First byte and CRC-32 of its pixels; nothing where the file was full.
    pixels: Option<(u64, u32)>,
}

/// A line of the list: a sample, and where a training image is.
#[derive(Serialize, Deserialize)]
struct Line {
    found: Found,
    at: Option<At>,
}

/// Writes the part of one process.
pub struct Writer {
    folder: PathBuf,
    name: String,
    pixels: BufWriter<File>,
    list: BufWriter<File>,
    written: u64,
    room: u64,
    job: String,
}

impl Writer {
    /// A part in `folder`, which takes its share of `disk_bytes` of pixels.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn new(folder: &Path, share: &Share, disk_bytes: u64) -> Result<Self> {
        sweep(folder);
        let name = format!("{}-of-{}", share.rank, share.ranks);
        let create = |ending| {
            let path = unfinished(folder, &name, ending, share.job);
            File::create_new(&path).map(BufWriter::new).map_err(|e| Error::io("write", &path, e))
        };
        Ok(Self {
            folder: folder.to_path_buf(),
            pixels: create(PIXELS)?,
            list: create(LIST)?,
            name,
            job: share.job.to_owned(),
            written: 0,
            room: match disk_bytes {
                // Processes share what they decode even if nothing is to be kept.
                0 => u64::MAX,
                bytes => bytes / share.ranks as u64,
            },
        })
    }

    /// Adds the next sample, and its pixels if it is a training image.
    ///
    /// # Errors
    /// The disk is full.
    pub fn add(&mut self, found: Found, image: Option<Rgb8>) -> Result<()> {
        let written = || -> std::io::Result<()> {
            let at = match &image {
                Some(Rgb8 { width, height, pixels }) => {
                    let mut at = At { width: *width, height: *height, pixels: None };
                    match self.written + pixels.len() as u64 <= self.room {
                        true => {
                            at.pixels = Some((self.written, sum(pixels)));
                            self.pixels.write_all(pixels)?;
                            self.written += pixels.len() as u64;
                        }
                        // Once an image does not fit, smaller ones after it are not kept either.
                        false => self.room = 0,
                    }
                    Some(at)
                }
                None => None,
            };
            serde_json::to_writer(&mut self.list, &Line { found, at })?;
            self.list.write_all(b"\n")
        };
        let result = written();
        result.map_err(|e| self.abandon(e))
    }

    /// Puts both files where they are looked for.
    ///
    /// # Errors
    /// The disk is full.
    pub fn finish(mut self) -> Result<()> {
        let flushed = self.pixels.flush().and_then(|()| self.list.flush());
        flushed.map_err(|e| self.abandon(e))?;
        for ending in [PIXELS, LIST] {
            let path = self.folder.join(format!("{}.{ending}", self.name));
            let moved = std::fs::rename(self.unfinished(ending), path);
            moved.map_err(|e| self.abandon(e))?;
        }
        Ok(())
    }

    /// What is half written must not hold on to the space that was missing.
    fn abandon(&self, source: std::io::Error) -> Error {
        for ending in [PIXELS, LIST] {
            let _ = std::fs::remove_file(self.unfinished(ending));
        }
        Error::io("write", &self.folder, source)
    }

    fn unfinished(&self, ending: &str) -> PathBuf {
        unfinished(&self.folder, &self.name, ending, &self.job)
    }
}

/// Path of a part that is being written. It has the job's name, since another job may write the same part at
/// the same time.
fn unfinished(folder: &Path, name: &str, ending: &str, job: &str) -> PathBuf {
    folder.join(format!("{name}.{ending}.{job}"))
}

/// Whether a file's name is that of a part, finished or not.
pub fn is_part(name: &str) -> bool {
    let mut pieces = name.splitn(3, '.');
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let numbers = pieces.next().and_then(|stem| stem.split_once("-of-"));
    numbers.is_some_and(|(rank, ranks)| is_number(rank) && is_number(ranks))
        && pieces.next().is_some_and(|ending| [PIXELS, LIST].contains(&ending))
}

const PIXELS: &str = "rgb";
const LIST: &str = "jsonl";
/// Age at which an unfinished part counts as left behind.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Removes what processes that were killed left behind.
fn sweep(folder: &Path) {
    let unfinished = |path: &PathBuf| {
        let ending = path.extension().and_then(|ending| ending.to_str());
        let is_ours = ending.is_some_and(|ending| ending.contains('-'));
        let age = || path.metadata().ok()?.modified().ok()?.elapsed().ok();
        is_ours && age().is_some_and(|age| age > ABANDONED)
    };
    let paths = std::fs::read_dir(folder).into_iter().flatten();
    for path in paths.filter_map(|entry| Some(entry.ok()?.path())).filter(unfinished) {
        let _ = std::fs::remove_file(path);
    }
}

/// What each sample is and where it lies, and the files that this is in.
pub type Opened = (Vec<(Found, Option<Placed>)>, Vec<Part>);

/// The parts in a folder, if all of some job are there and whole.
pub fn open(folder: &Path, count: usize) -> Option<Opened> {
    let names = std::fs::read_dir(folder).ok()?;
    let numbers = names.filter_map(|entry| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        name.strip_suffix(&format!(".{LIST}"))?.strip_prefix("0-of-")?.parse().ok()
    });
    let mut numbers: Vec<usize> = numbers.collect();
    numbers.sort_unstable();
    numbers.into_iter().find_map(|ranks| open_all(folder, count, ranks))
}

fn open_all(folder: &Path, count: usize, ranks: usize) -> Option<Opened> {
    let mut entries: Vec<Option<(Found, Option<Placed>)>> = Vec::new();
    entries.resize_with(count, || None);
    let mut parts = Vec::new();
    for rank in 0..ranks {
        let file = |ending| folder.join(format!("{rank}-of-{ranks}.{ending}"));
        let path = file(PIXELS);
        let part = Part { file: File::open(&path).ok()?, path };
        let len = part.file.metadata().ok()?.len();
        let lines = BufReader::new(File::open(file(LIST)).ok()?).lines();
        for (position, line) in (rank..).step_by(ranks).zip(lines) {
            let line: Line = serde_json::from_str(&line.ok()?).ok()?;
            let placed = line.at.map(|at| at.placed(rank));
            let whole = placed.as_ref().is_none_or(|placed| placed.end() <= len);
            *entries.get_mut(position).filter(|_| whole)? = Some((line.found, placed));
        }
        parts.push(part);
    }
    let entries = entries.into_iter().collect::<Option<_>>()?;
    Some((entries, parts))
}

impl At {
    fn placed(self, part: usize) -> Placed {
        let place = match self.pixels {
            Some((offset, sum)) => Place::Part { part, offset, sum },
            None => Place::File,
        };
        Placed { width: self.width, height: self.height, place }
    }
}

impl Part {
    /// The pixels of an image that begin at `offset`.
    ///
    /// # Errors
    /// [`Error::Failed`] if they are not the ones that were written.
    pub fn read(&self, offset: u64, sum: u32, image: &mut Rgb8) -> Result<()> {
        let read = self.file.read_exact_at(&mut image.pixels, offset);
        let damaged = match read {
            Ok(()) if self::sum(&image.pixels) == sum => return Ok(()),
            Ok(()) => "its content has changed".to_owned(),
            Err(e) => e.to_string(),
        };
        Err(Error::Failed(format!(
            "the cache of decoded images {} cannot be used: {damaged}\n  delete that file and \
             start the command again",
            self.path.display()
        )))
    }
}

fn sum(pixels: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(pixels);
    crc.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_told_with_what_to_do() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("0-of-1.rgb");
        let mut image = Rgb8::new(2, 1);
        let pixels = vec![7_u8; image.pixels.len()];
        std::fs::write(&path, &pixels).expect("written");
        let part = Part { file: File::open(&path).expect("there"), path: path.clone() };
        part.read(0, sum(&pixels), &mut image).expect("as it was written");
        assert_eq!(image.pixels, pixels);
        for (offset, sum) in [(0, sum(&pixels) ^ 1), (1, sum(&pixels))] {
            let error = part.read(offset, sum, &mut image).expect_err("damaged").to_string();
            // No run exists yet where the first one fills the cache.
            assert!(error.ends_with("delete that file and start the command again"), "{error}");
            assert!(error.contains(&path.display().to_string()), "{error}");
        }
    }
}
