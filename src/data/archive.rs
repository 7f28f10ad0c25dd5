//! Archives: told by their content, and where the bytes of their members are.
//!
//! No member is ever written to a file of its own, so none can land outside a folder. Members of a tar
//! and of a zip are read where they lie. A compressed tar has no such places: it is decompressed
//! once, into a temporary file that has no name and is gone with the program.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::{DeflateDecoder, MultiGzDecoder};
use zip::{CompressionMethod, ZipArchive};

use super::decode;
use super::file_name::escaped;
use super::listing::normalised;
use super::manifest::Origin;
use crate::error::{Error, Result};

/// Bytes of a block of a tar.
const BLOCK: usize = 512;
/// Bytes to a multiple of which a tar is usually filled up with zeros.
const RECORD: u64 = 20 * BLOCK as u64;
/// Bytes that a member may have: far more than any image that is read.
const LARGEST_MEMBER: u64 = 1 << 30;
/// Images hardly shrink; what grows by more than this is made to fill disks and memory. Downloads have a
/// tighter bound, in `fetch::unpack`.
const MOST_GROWTH: u64 = 200;
/// Bytes of a temporary file up to which any growth is harmless.
const HARMLESS: u64 = 1 << 30;
/// The same of a member, which is unpacked in memory.
const HARMLESS_MEMBER: u64 = 64 << 20;

/// An archive that is open for reading.
#[derive(Debug)]
pub struct Archive {
    path: PathBuf,
    /// The archive itself, or what a compressed one unpacks to.
    file: File,
}

impl PartialEq for Archive {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

impl Eq for Archive {}

/// How a member's bytes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// As they are.
    Stored,
    /// As a deflate stream.
    Deflated {
        /// Bytes when unpacked.
        len: u64,
        /// Their CRC-32.
        crc: u32,
    },
}

/// What a member is.
pub(super) enum Content {
    File(Origin),
    Folder,
    /// To another member; a hard link names it from the archive's root on.
    Link {
        target: String,
        is_hard: bool,
    },
    Other,
}

/// What an archive holds.
pub(super) struct Members {
    /// Path, as it is written there, and content.
    pub members: Vec<(String, Content)>,
    /// Bytes of the temporary file, if there is one.
    pub unpacked: Option<u64>,
    /// Whether it ends between two members without the mark of its end, as if it were cut there.
    pub may_be_cut: bool,
}

#[derive(Clone, Copy)]
enum Format {
    Tar,
    Gzip,
    Zip,
}

/// Whether a file is an archive that is read here, whatever it is called.
pub(super) fn is_archive(path: &Path) -> bool {
    File::open(path).ok().and_then(|file| format_of(&file).ok()?).is_some()
}

/// The first block of a file, shorter if the file is.
fn start(file: &File) -> io::Result<Vec<u8>> {
    let mut block = vec![0; BLOCK];
    let mut len = 0;
    loop {
        match file.read_at(&mut block[len..], len as u64)? {
            0 => break,
            read => len += read,
        }
    }
    block.truncate(len);
    Ok(block)
}

/// The format by the first bytes; those of a very old tar tell nothing.
fn format_of(file: &File) -> io::Result<Option<Format>> {
    let start = start(file)?;
    Ok(if start.starts_with(&[0x1f, 0x8b]) {
        Some(Format::Gzip)
    } else if start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06") {
        Some(Format::Zip)
    } else if start.get(257..262) == Some(b"ustar") {
        Some(Format::Tar)
    } else {
        None
    })
}

/// The members of the archive at a path, in the order in which they lie there.
///
/// # Errors
/// [`Error::Data`] if it cannot be read.
pub(super) fn members(path: &Path) -> Result<Members> {
    let broken = |kind: &str, e: &dyn std::fmt::Display| {
        Error::Data(format!("{} is not a readable {kind} archive: {e}", path.display()))
    };
    let file = File::open(path)
        .map_err(|e| Error::Data(format!("{} cannot be read ({e})", path.display())))?;
    let format = format_of(&file).map_err(|e| broken("tar or zip", &e))?;
    let archive = |file| Arc::new(Archive { path: path.to_path_buf(), file });
    let is_tar = |file: &File| starts_as_tar(file).map_err(|e| broken("tar or zip", &e));
    match format {
        Some(Format::Zip) => {
            let members = of_zip(archive(file)).map_err(|e| broken("zip", &e))?;
            Ok(Members { members, unpacked: None, may_be_cut: false })
        }
        Some(Format::Gzip) => {
            let (file, len) = file
                .metadata()
                .and_then(|about| unpacked(file, most(about.len())))
                .map_err(|e| broken("tar.gz", &e))?;
            if !is_tar(&file)? {
                return Err(broken("tar.gz", &"what it unpacks to is no tar archive"));
            }
            let tar = of_tar(archive(file)).map_err(|e| broken("tar.gz", &e))?;
            Ok(Members { unpacked: Some(len), ..tar })
        }
        Some(Format::Tar) | None => {
            if !is_tar(&file)? {
                let what = what_it_is(&file).map_err(|e| broken("tar or zip", &e))?;
                return Err(Error::Data(format!("{} {what}", path.display())));
            }
            of_tar(archive(file)).map_err(|e| broken("tar", &e))
        }
    }
}

/// Whether a tar begins here, be it an empty one.
fn starts_as_tar(file: &File) -> io::Result<bool> {
    let block = start(file)?;
    Ok(block.iter().all(|byte| *byte == 0) || is_tar_header(&block))
}

/// Whether a block is the header of a tar's member: the sum in it is that of its bytes.
pub fn is_tar_header(block: &[u8]) -> bool {
    let Some(field) = block.get(148..156) else { return false };
    let digits = String::from_utf8_lossy(field);
    let digits = digits.trim_matches(|c: char| c == '\0' || c == ' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    let of_field: u32 = field.iter().map(|byte| u32::from(*byte)).sum();
    block.len() == BLOCK
        && u32::from_str_radix(digits, 8).is_ok_and(|stated| stated == sum - of_field + 8 * 32)
}

/// What a file is that is called as an archive.
fn what_it_is(file: &File) -> io::Result<String> {
    const OTHERS: [(&[u8], &str); 5] = [
        (b"BZh", "bzip2"),
        (b"\xfd7zXZ", "xz"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"7z\xbc\xaf", "7-Zip"),
        (b"Rar!", "RAR"),
    ];
    let start = start(file)?;
    let packer = OTHERS.iter().find(|(magic, _)| start.starts_with(magic));
    Ok(match packer {
        Some((_, packer)) => format!(
            "is packed by {packer}, whatever it is called; unpack it and give the folder (.tar, \
             .tar.gz and .zip are read as they are)"
        ),
        None => match decode::what_it_is(&start) {
            text if text.ends_with("not an image") => text.replace("an image", "an archive"),
            _ => "is no tar, .tar.gz or .zip archive".to_owned(),
        },
    })
}

/// Bytes that a gzip stream of `len` bytes may unpack to.
fn most(len: u64) -> u64 {
    len.saturating_mul(MOST_GROWTH).max(HARMLESS)
}

/// What a gzip stream holds, in a temporary file; at most so many bytes.
fn unpacked(file: File, most: u64) -> io::Result<(File, u64)> {
    let place = std::env::temp_dir();
    let mut spill = tempfile::tempfile_in(&place).map_err(|e| {
        let place = place.display();
        io::Error::other(format!("it cannot be unpacked to {place}, which TMPDIR chooses ({e})"))
    })?;
    let mut stream = MultiGzDecoder::new(io::BufReader::new(file)).take(most.saturating_add(1));
    let len = io::copy(&mut stream, &mut spill).map_err(|e| match e.kind() {
        io::ErrorKind::StorageFull => io::Error::other(format!(
            "no space is left in {} to unpack it (TMPDIR chooses another place)",
            place.display()
        )),
        io::ErrorKind::UnexpectedEof => cut("too early"),
        _ => e,
    })?;
    if len > most {
        return Err(io::Error::other(format!(
            "it grows to more than {MOST_GROWTH} times its size, which no archive of images does"
        )));
    }
    spill.seek(SeekFrom::Start(0))?;
    Ok((spill, len))
}

/// The error of an archive that lacks its end; `place` is where it stops.
fn cut(place: &str) -> io::Error {
    io::Error::other(format!("it ends {place}; download or copy it again"))
}

fn of_tar(archive: Arc<Archive>) -> io::Result<Members> {
    let size = archive.file.metadata()?.len();
    let mut members = Vec::new();
    for entry in tar::Archive::new(&archive.file).entries_with_seek()? {
        let entry = entry?;
        let path = escaped(&entry.path_bytes());
        let kind = entry.header().entry_type();
        let content = if kind.is_file() || kind.is_contiguous() {
            let (offset, len) = (entry.raw_file_position(), entry.size());
            let filled = len.checked_next_multiple_of(BLOCK as u64);
            if filled.and_then(|len| offset.checked_add(len)).is_none_or(|end| end > size) {
                return Err(cut(&format!("inside {}", normalised(&path))));
            }
            let (archive, packing) = (archive.clone(), Packing::Stored);
            Content::File(Origin::Member { archive, offset, len, packing })
        } else if kind.is_dir() {
            Content::Folder
        } else if let Some(target) = entry.link_name_bytes() {
            Content::Link { target: escaped(&target), is_hard: !kind.is_symlink() }
        } else {
            Content::Other
        };
        members.push((path, content));
    }
    let may_be_cut = !has_end(&archive.file, size)?;
    Ok(Members { members, unpacked: None, may_be_cut })
}

/// Whether a tar of `size` bytes, of which all members were read, has the mark of its end: two
/// blocks of zeros, of which some programs write one.
///
/// # Errors
/// More follows than fills the tar up.
///
/// That is so where a download has zeros in place of what is missing. A tar is filled up to a
/// multiple of its record, which is the usual one or a power of two.
fn has_end(mut file: &File, size: u64) -> io::Result<bool> {
    let rest = size.saturating_sub(file.stream_position()?);
    let power_of_two = size & size.wrapping_neg();
    if rest > RECORD.max(power_of_two) {
        return Err(io::Error::other(format!(
            "its last {rest} bytes belong to no member, as where a part of a download is missing; \
             download or copy it again, or unpack it and give the folder if nothing is missing"
        )));
    }
    if rest > 0 {
        return Ok(true);
    }
    // One block of zeros was the last that was read, or the last member ends here.
    let mut last = [0; BLOCK];
    let read = file.read_at(&mut last, size.saturating_sub(BLOCK as u64))?;
    Ok(last[..read].iter().all(|byte| *byte == 0))
}

fn of_zip(archive: Arc<Archive>) -> io::Result<Vec<(String, Content)>> {
    let size = archive.file.metadata()?.len();
    // Headers of a few dozen bytes lie far apart: a larger buffer would read mostly images.
    let mut zip = ZipArchive::new(io::BufReader::with_capacity(512, &archive.file))?;
    let mut members = Vec::with_capacity(zip.len());
    for i in 0..zip.len() {
        let entry = zip.by_index_raw(i)?;
        let path = zip_path(entry.name_raw(), &entry.name()?);
        if entry.is_dir() || path.ends_with('/') {
            members.push((path, Content::Folder));
            continue;
        }
        if entry.encrypted() {
            return Err(io::Error::other(format!("{path} is locked with a password")));
        }
        let packing = match entry.compression() {
            CompressionMethod::Stored => Packing::Stored,
            CompressionMethod::DEFLATE => {
                Packing::Deflated { len: entry.size(), crc: entry.crc32() }
            }
            other => {
                return Err(io::Error::other(format!(
                    "{path} is compressed by {other}, not by deflate; pack it again as a .tar"
                )));
            }
        };
        let (offset, len) = (entry.data_start().unwrap_or(size), entry.compressed_size());
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(cut(&format!("inside {path}")));
        }
        let content = match entry.is_symlink() {
            true => {
                let target = archive.read(offset, len, packing)?;
                Content::Link { target: escaped(&target), is_hard: false }
            }
            false => {
                let archive = archive.clone();
                Content::File(Origin::Member { archive, offset, len, packing })
            }
        };
        members.push((path, content));
    }
    Ok(members)
}

/// A member's path. Many programs store UTF-8 without saying so, others the letters of DOS, which
/// `decoded` takes it for; old programs for Windows put backslashes between folders.
fn zip_path(raw: &[u8], decoded: &str) -> String {
    let name = str::from_utf8(raw).unwrap_or(decoded);
    match name.contains('/') {
        true => escaped(name.as_bytes()),
        false => escaped(name.replace('\\', "/").as_bytes()),
    }
}

impl Archive {
    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The bytes of a member.
    ///
    /// # Errors
    /// The archive cannot be read, or the member is damaged or too large.
    pub fn read(&self, offset: u64, len: u64, packing: Packing) -> io::Result<Vec<u8>> {
        let whole = match packing {
            Packing::Stored => len,
            Packing::Deflated { len: whole, .. } => whole.max(len),
        };
        if whole > LARGEST_MEMBER {
            return Err(io::Error::other(format!("a member of {whole} bytes is too large")));
        }
        if whole > len.saturating_mul(MOST_GROWTH).max(HARMLESS_MEMBER) {
            return Err(io::Error::other(format!(
                "a member grows to {whole} bytes, more than {MOST_GROWTH} times its size"
            )));
        }
        let mut bytes = vec![0; len as usize];
        self.file.read_exact_at(&mut bytes, offset)?;
        let Packing::Deflated { len, crc } = packing else { return Ok(bytes) };
        let mut unpacked = Vec::new();
        // No more than the archive says, whatever the stream would give.
        DeflateDecoder::new(bytes.as_slice())
            .take(len.saturating_add(1))
            .read_to_end(&mut unpacked)?;
        let mut sum = flate2::Crc::new();
        sum.update(&unpacked);
        match unpacked.len() as u64 == len && sum.sum() == crc {
            true => Ok(unpacked),
            false => Err(io::Error::other("a member of it is damaged")),
        }
    }
}

#[cfg(test)]
mod tests;
