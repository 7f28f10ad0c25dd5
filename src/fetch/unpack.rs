//! Archives of strangers, taken apart so that nothing but files below one folder comes of it.
//!
//! No link is made, no path leads out of the folder, no file is written twice, and an archive that
//! would grow beyond reason is refused. Permissions and owners in the archive do not count.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Cursor, Read};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use flate2::read::MultiGzDecoder;
use tar::EntryType;

use super::{Tell, Told, broken};
use crate::data::archive::is_tar_header;
use crate::error::{Error, Result};
use crate::words::shortened;

/// Photographs do not shrink and text does by less: an archive that unpacks to more than this many
/// times its size is no data set.
const MOST_GROWTH: u64 = 20;
/// Growth that is nobody's concern, in bytes.
const FREE_GROWTH: u64 = 64 << 20;
/// Bytes of a block of a tar archive.
const BLOCK: usize = 512;

/// Unpacks the tar archive at `path`, packed by gzip or not, into `folder`; with `nested`, its
/// members NAME.tar into `folder/NAME`. How many files that are.
///
/// # Errors
/// [`Error::Data`] if it is no sound archive, or one that would write elsewhere or too much;
/// [`Error::Io`] if `folder` cannot be written.
pub(super) fn unpack(path: &Path, folder: &Path, nested: bool, tell: &mut Tell) -> Result<usize> {
    let Stream { mut bytes, read } =
        open(path)?.ok_or_else(|| refused(path, "is no tar archive"))?;
    let total = path.metadata().map_err(|e| broken("read", path, e))?.len();
    let mut work = Work { path, total, read, files: 0, left_out: Vec::new() };
    work.members(&mut bytes, folder, nested, tell)?;
    if !work.left_out.is_empty() {
        let names = shortened(&work.left_out);
        tell(Told::Note(&format!("{}: links and devices are left out: {names}", work.file())));
    }
    Ok(work.files)
}

/// Whether a tar archive, packed by gzip or not, begins at `path`.
///
/// # Errors
/// [`Error::Io`] if it cannot be read.
pub(super) fn is_archive(path: &Path) -> Result<bool> {
    Ok(open(path)?.is_some())
}

/// A tar archive, no longer packed.
struct Stream {
    bytes: Box<dyn Read>,
    /// How many bytes of the file have been read.
    read: Rc<Cell<u64>>,
}

/// The tar archive at `path`; `None` if it is none. Some published `.tar.gz` are not packed, so the
/// content decides.
fn open(path: &Path) -> Result<Option<Stream>> {
    let file = File::open(path).map_err(|e| broken("read", path, e))?;
    let length = file.metadata().map_err(|e| broken("read", path, e))?.len();
    let read = Rc::new(Cell::new(0));
    let mut raw =
        Counted { inner: io::BufReader::with_capacity(1 << 17, file), read: read.clone() };
    let start = head(&mut raw, 2).map_err(|e| broken("read", path, e))?;
    let packed = start == [0x1f, 0x8b];
    let raw = Cursor::new(start).chain(raw);
    let mut stream: Box<dyn Read> = match packed {
        true => Box::new(MultiGzDecoder::new(io::BufReader::new(raw))),
        false => Box::new(raw),
    };
    // Damage in the first packed block: no archive, as far as anybody can tell.
    let Ok(first) = head(&mut stream, BLOCK) else { return Ok(None) };
    if !is_tar_header(&first) {
        return Ok(None);
    }
    let left = FREE_GROWTH + MOST_GROWTH * length;
    let bytes = Box::new(Limited { inner: Cursor::new(first).chain(stream), left });
    Ok(Some(Stream { bytes, read }))
}

/// The first `count` bytes, fewer at the end.
fn head(from: &mut impl Read, count: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(count as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// An archive on its way to a folder.
struct Work<'a> {
    path: &'a Path,
    /// Bytes of the archive, and those read so far.
    total: u64,
    read: Rc<Cell<u64>>,
    files: usize,
    /// Members that are neither files nor folders.
    left_out: Vec<String>,
}

impl Work<'_> {
    fn file(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    fn members(
        &mut self,
        stream: &mut dyn Read,
        folder: &Path,
        nested: bool,
        tell: &mut Tell,
    ) -> Result<()> {
        let path = self.path;
        let damaged = |e| damaged(path, e);
        fs::create_dir_all(folder).map_err(|e| broken("create", folder, e))?;
        let mut archive = tar::Archive::new(stream);
        for member in archive.entries().map_err(damaged)? {
            let mut member = member.map_err(damaged)?;
            let name = member.path().map_err(damaged)?.into_owned();
            let below = inside(&name).ok_or_else(|| {
                let name = name.display();
                refused(path, &format!("holds `{name}`, a path that leads elsewhere; not unpacked"))
            })?;
            let to = folder.join(&below);
            match member.header().entry_type() {
                EntryType::Directory => {
                    fs::create_dir_all(&to).map_err(|e| broken("create", &to, e))?;
                }
                EntryType::Regular | EntryType::Continuous if nested && is_tar_name(&below) => {
                    self.members(&mut member, &to.with_extension(""), false, tell)?;
                }
                EntryType::Regular | EntryType::Continuous => {
                    write(&mut member, &to, path)?;
                    self.files += 1;
                }
                _ => self.left_out.push(name.display().to_string()),
            }
            let (done, total) = (self.read.get(), Some(self.total));
            tell(Told::Progress { what: "unpacking", file: &self.file(), done, total });
        }
        Ok(())
    }
}

fn is_tar_name(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "tar")
}

/// A member's path if it stays below the folder that it is counted from.
fn inside(name: &Path) -> Option<PathBuf> {
    let mut below = PathBuf::new();
    for component in name.components() {
        match component {
            Component::Normal(part) => below.push(part),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(below)
}

/// Writes a member to a file that is not there yet.
fn write(member: &mut impl Read, to: &Path, archive: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).map_err(|e| broken("create", folder, e))?;
    }
    let mut file = match OpenOptions::new().write(true).create_new(true).open(to) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            let what = format!("holds `{}` twice, or beside a file of that name", to.display());
            return Err(refused(archive, &what));
        }
        Err(e) => return Err(broken("write", to, e)),
    };
    let mut block = vec![0; 1 << 16];
    loop {
        let read = member.read(&mut block).map_err(|e| damaged(archive, e))?;
        if read == 0 {
            return Ok(());
        }
        io::Write::write_all(&mut file, &block[..read]).map_err(|e| broken("write", to, e))?;
    }
}

fn damaged(path: &Path, e: io::Error) -> Error {
    let what = format!("cannot be unpacked: {e}\n  remove it and give the same command again");
    refused(path, &what)
}

fn refused(path: &Path, what: &str) -> Error {
    Error::Data(format!("{} {what}", path.display()))
}

/// Counts what is read.
struct Counted<R> {
    inner: R,
    read: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.read.set(self.read.get() + read as u64);
        Ok(read)
    }
}

/// Fails where more comes than any honest archive holds.
struct Limited<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(read as u64).ok_or_else(|| {
            io::Error::other(format!("it grows to more than {MOST_GROWTH} times its size"))
        })?;
        Ok(read)
    }
}
