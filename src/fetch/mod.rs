//! Published data sets from the network to a folder.
//!
//! `download` brings one file, going on where it stopped; `unpack` takes apart an archive that
//! nobody trusts; [`fetch`] does both for a set of [`crate::data::catalog`]. The archives lie beside
//! the data set in `DIR-archives/`, where a person can put them as well. The data set appears whole
//! or not at all.

mod check;
mod download;
mod unpack;

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::data::catalog::{Archive, KnownSet, Place};
use crate::error::{Error, Result};

/// How long to insist.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Attempts in a row that bring not one byte.
    pub attempts: u32,
    /// Wait after the first of them; each further wait is twice as long.
    pub pause: Duration,
    /// Silence after which a connection counts as broken.
    pub silence: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { attempts: 5, pause: Duration::from_secs(1), silence: Duration::from_secs(60) }
    }
}

/// What is told while it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told<'a> {
    /// Something worth knowing.
    Note(&'a str),
    /// Bytes of a file that are done.
    Progress {
        /// `downloading`, `checking` or `unpacking`.
        what: &'static str,
        /// The file.
        file: &'a str,
        /// Bytes so far.
        done: u64,
        /// Bytes in all, if they are known.
        total: Option<u64>,
    },
}

/// Who is told.
pub type Tell<'a> = dyn FnMut(Told<'_>) + 'a;

/// What is to be fetched, and whereto.
#[derive(Clone, Copy, Debug)]
pub struct Order<'a> {
    /// The set.
    pub set: &'a KnownSet,
    /// The folder that is made.
    pub to: &'a Path,
    /// An address below which the files of all sets lie, instead of the publishers'.
    pub mirror: Option<&'a str>,
}

/// What has been fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Files in the data set's folder.
    pub files: usize,
    /// The folder of the archives, which are no longer needed.
    pub archives: PathBuf,
}

/// Refuses a place that is taken.
///
/// # Errors
/// [`Error::Usage`] if something other than an empty folder is at `to`, or if `to` names no folder
/// to be made, as `..` does.
pub fn check_free(to: &Path) -> Result<()> {
    if to.file_name().is_none() {
        return Err(Error::Usage(format!(
            "--to {}: give the folder that is to be made for the data set",
            to.display()
        )));
    }
    let empty = |folder: &Path| fs::read_dir(folder).is_ok_and(|mut all| all.next().is_none());
    match to.symlink_metadata().is_err() || (!to.is_symlink() && empty(to)) {
        true => Ok(()),
        false => Err(Error::Usage(format!(
            "{} exists and is left as it is; choose another folder with --to",
            to.display()
        ))),
    }
}

/// Downloads the files of a set that are not in `DIR-archives/` yet, checks all of them, and puts
/// what they hold into the folder DIR.
///
/// # Errors
/// [`Error::Usage`] if DIR is taken; [`Error::Failed`] if a file cannot be had, with what to
/// download by hand and where to put it; [`Error::Verification`] for a file that is not the
/// published one; [`Error::Data`] for an archive that cannot be unpacked safely; [`Error::Io`].
pub fn fetch(order: &Order, patience: &Patience, tell: &mut Tell) -> Result<Fetched> {
    check_free(order.to)?;
    let archives = archives_folder(order.to);
    fs::create_dir_all(&archives).map_err(|e| broken("create", &archives, e))?;
    let _lock = lock(&archives)?;
    for archive in order.set.archives {
        obtain(order, archive, &archives, patience, tell)?;
    }
    // A name of our own in a folder of our own: what a killed process left is in nobody's way.
    let whole = archives.join("unpacked");
    if whole.exists() {
        fs::remove_dir_all(&whole).map_err(|e| broken("remove", &whole, e))?;
    }
    fs::create_dir(&whole).map_err(|e| broken("create", &whole, e))?;
    let mut files = 0;
    for archive in order.set.archives {
        files += put(archive, &archives.join(archive.file), &whole, tell)?;
    }
    check_free(order.to)?;
    fs::rename(&whole, order.to).map_err(|e| broken("create", order.to, e))?;
    Ok(Fetched { files, archives })
}

/// Where the archives of the data set at `to` lie.
pub fn archives_folder(to: &Path) -> PathBuf {
    let mut name = to.file_name().unwrap_or_default().to_owned();
    name.push("-archives");
    to.with_file_name(name)
}

/// Keeps other processes out of the folder until it is dropped.
fn lock(archives: &Path) -> Result<File> {
    let path = archives.join(".lock");
    let file = File::create(&path).map_err(|e| broken("create", &path, e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Failed(format!(
            "another fewvit is fetching into {}; wait for it",
            archives.display()
        ))),
        Err(TryLockError::Error(e)) => Err(broken("lock", &path, e)),
    }
}

/// Sees to it that an archive lies in the folder and is the published one.
fn obtain(
    order: &Order,
    archive: &Archive,
    archives: &Path,
    patience: &Patience,
    tell: &mut Tell,
) -> Result<()> {
    let path = archives.join(archive.file);
    if path.exists() {
        return check::check(archive, &path, tell)?.map_err(|what| {
            Error::Verification(format!(
                "{} {what}\n  move it away and run the command again",
                path.display()
            ))
        });
    }
    let urls: Vec<String> = match order.mirror {
        Some(mirror) => vec![format!("{}/{}", mirror.trim_end_matches('/'), archive.file)],
        None => archive.urls.iter().map(|url| url.to_string()).collect(),
    };
    let part = archives.join(format!("{}.part", archive.file));
    let mut failures = Vec::new();
    for url in &urls {
        let wanted = download::Wanted { url, archive, part: &part };
        match download::download(&wanted, patience, tell)? {
            Ok(()) => {
                return match check::check(archive, &part, tell)? {
                    Ok(()) => fs::rename(&part, &path).map_err(|e| broken("write", &path, e)),
                    Err(what) => {
                        fs::remove_file(&part).map_err(|e| broken("remove", &part, e))?;
                        Err(Error::Verification(format!(
                            "what {url} sends {what}\n  it is not kept; run the command again, or \
                             take the file from elsewhere and put it into {}",
                            archives.display()
                        )))
                    }
                };
            }
            Err(why) => failures.push(format!("{url}: {why}")),
        }
    }
    Err(Error::Failed(by_hand(order, archives, &failures)))
}

/// What a person can do if the program cannot.
fn by_hand(order: &Order, archives: &Path, failures: &[String]) -> String {
    let set = order.set;
    let mut text = match failures {
        [] => format!("{} cannot be downloaded by a program", set.title),
        _ => format!("{} cannot be downloaded now: {}", set.title, failures.join("; ")),
    };
    if partly_there(archives) {
        text.push_str("\n  what has arrived is kept: the same command goes on from there");
    }
    if let Some(why) = set.by_hand {
        text.push_str(&format!("\n  {why}"));
    }
    text.push_str(&format!(
        "\nBy hand: download these files (see {}), put them into\n  {}\nand give the same command \
         again; it checks and unpacks them.",
        set.page,
        std::path::absolute(archives).unwrap_or_else(|_| archives.to_path_buf()).display()
    ));
    for archive in set.archives.iter().filter(|a| !archives.join(a.file).exists()) {
        let place = archive.urls.first().unwrap_or(&archive.file);
        text.push_str(&format!("\n  {place}  {}", archive.bytes));
        archive.checksum.iter().for_each(|checksum| text.push_str(&format!("  {checksum}")));
    }
    text
}

/// Whether a download has begun.
fn partly_there(archives: &Path) -> bool {
    let mut all = fs::read_dir(archives).into_iter().flatten().flatten();
    let begun = |entry: &fs::DirEntry| entry.metadata().is_ok_and(|metadata| metadata.len() > 0);
    all.any(|entry| entry.path().extension().is_some_and(|e| e == "part") && begun(&entry))
}

/// Puts what an archive holds where it belongs below `whole`; how many files that are.
fn put(archive: &Archive, path: &Path, whole: &Path, tell: &mut Tell) -> Result<usize> {
    let (folder, nested) = match archive.place {
        Place::Whole => {
            let to = whole.join(archive.file);
            fs::copy(path, &to).map_err(|e| broken("write", &to, e))?;
            return Ok(1);
        }
        Place::Unpacked(folder) => (folder, false),
        Place::UnpackedTwice(folder) => (folder, true),
    };
    unpack::unpack(path, &whole.join(folder), nested, tell)
}

/// An error of the file system, with what to do about it here.
fn broken(action: &'static str, path: &Path, source: std::io::Error) -> Error {
    use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem, StorageFull};
    let advice = match (source.kind(), action) {
        (StorageFull, _) => {
            "free some space and give the same command again; it goes on where it stopped"
        }
        (PermissionDenied | ReadOnlyFilesystem, "create" | "write" | "lock") => {
            "choose a folder in a place that you may write to with --to"
        }
        _ => return Error::io(action, path, source),
    };
    Error::Failed(format!("cannot {action} {}: {source}\n  {advice}", path.display()))
}

#[cfg(test)]
mod tests;
