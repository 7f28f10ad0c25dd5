//! Folders of decoded images that stay for the next run: which one is a data set's, and which go
//! when there are too many.

use std::collections::HashMap;
use std::fs::{self, File, FileTimes};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};

use super::{Keeping, parts};
use crate::data::digest::hex;
use crate::data::manifest::{Manifest, Origin, Split};
use crate::data::pass::Share;
use crate::error::{Error, Result};
use crate::files::absolute;

/// Digits of the hash in a folder's name.
const DIGITS: usize = 16;
/// A file in each folder whose time is that of its last use.
const USED: &str = "used";

/// A folder of part files.
pub struct Folder {
    path: PathBuf,
    /// Whether it goes as soon as all processes of the job have opened its files.
    temporary: bool,
}

/// The folder for the images of `manifest`; `None` if none is wanted.
///
/// # Errors
/// It cannot be made.
pub fn folder(manifest: &Manifest, keeping: &Keeping, share: &Share) -> Result<Option<Folder>> {
    let kept = keeping.folder.as_ref().filter(|_| keeping.disk_bytes > 0);
    let path = match kept {
        Some(root) => root.join(key(manifest, keeping)),
        None if share.ranks > 1 => std::env::temp_dir().join(format!("fewvit-{}", share.job)),
        None => return Ok(None),
    };
    fs::create_dir_all(&path).map_err(|source| Error::io("create", &path, source))?;
    Ok(Some(Folder { path, temporary: kept.is_none() }))
}

impl Folder {
    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it stays for the next run.
    pub fn is_kept(&self) -> bool {
        !self.temporary
    }

    /// Deletes this folder if it is temporary. Otherwise deletes those unused for longest until all together have
    /// at most `disk_bytes`. To be called once the files of this one are open: open files can still be read.
    pub fn evict(&self, disk_bytes: u64) {
        if self.temporary {
            let _ = fs::remove_dir_all(&self.path);
            return;
        }
        let touched = File::create(self.path.join(USED))
            .and_then(|file| file.set_times(FileTimes::new().set_modified(SystemTime::now())));
        let Some(root) = self.path.parent().filter(|_| touched.is_ok()) else { return };
        let mut others: Vec<_> = folders(root).filter(|path| *path != self.path).collect();
        others.sort_by_key(|path| last_used(path));
        let mut total = size(&self.path) + others.iter().map(|path| size(path)).sum::<u64>();
        for oldest in others {
            if total <= disk_bytes {
                break;
            }
            total -= size(&oldest);
            let _ = fs::remove_dir_all(&oldest);
        }
    }
}

/// The folders of decoded images below `root`, by their names and by what is in them: the folder that holds them
/// may be anybody's.
fn folders(root: &Path) -> impl Iterator<Item = PathBuf> {
    let is_key = |name: &str| name.len() == DIGITS && name.bytes().all(|b| b.is_ascii_hexdigit());
    let ours = move |entry: fs::DirEntry| {
        let name = entry.file_name();
        let path = entry.path();
        (name.to_str().is_some_and(is_key) && holds_our_files_alone(&path)).then_some(path)
    };
    fs::read_dir(root).into_iter().flatten().filter_map(move |entry| entry.ok().and_then(ours))
}

/// Whether every file in the folder has a name that fewvit gives.
fn holds_our_files_alone(folder: &Path) -> bool {
    let Ok(mut entries) = fs::read_dir(folder) else { return false };
    entries.all(|entry| {
        let name = entry.map(|entry| entry.file_name()).unwrap_or_default();
        name.to_str().is_some_and(|name| name == USED || parts::is_part(name))
    })
}

/// One that is being made has not been used yet.
fn last_used(folder: &Path) -> SystemTime {
    let modified = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
    modified(&folder.join(USED)).or_else(|| modified(folder)).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Bytes of the files in a folder.
fn size(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.metadata().ok()).map(|m| m.len()).sum()
}

/// Bytes of all folders of decoded images below `root`.
pub fn total(root: &Path) -> u64 {
    folders(root).map(|path| size(&path)).sum()
}

/// Name of the folder: a hash of all that the decoded images follow from, which are this version of fewvit,
/// settings, and every file's path, size and times. A file that somebody has written to since has other times.
fn key(manifest: &Manifest, keeping: &Keeping) -> String {
    let mut hash = Sha256::new();
    let mut add = |text: String| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    };
    let Keeping { short_side, depth, disk_bytes, .. } = keeping;
    add(format!("{} {short_side} {depth:?} {disk_bytes}", env!("CARGO_PKG_VERSION")));
    let mut archives = HashMap::new();
    for sample in &manifest.samples {
        let train = sample.split == Split::Train;
        let place = match &sample.origin {
            Origin::File(path) => place(path),
            Origin::Member { archive, offset, len, packing } => {
                let path = archive.path();
                let archive = archives.entry(path.to_path_buf()).or_insert_with(|| place(path));
                format!("{archive} {offset} {len} {packing:?}")
            }
        };
        add(format!("{train} {:?} {place}", sample.treatment));
        add(sample.id.clone());
    }
    hex(&hash.finalize()[..DIGITS / 2])
}

/// Where a file lies, how large it is, and when it was written to and moved.
fn place(path: &Path) -> String {
    let times = fs::metadata(path).map(|m| {
        let (modified, changed) = ((m.mtime(), m.mtime_nsec()), (m.ctime(), m.ctime_nsec()));
        format!("{} {modified:?} {changed:?}", m.len())
    });
    format!("{:?} {}", absolute(path), times.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_a_file_of_somebody_else_is_no_cache() {
        let root = tempfile::tempdir().expect("a folder");
        let [ours, other, named] =
            ["0123456789abcdef", "deadbeefdeadbeef", "photos"].map(|name| root.path().join(name));
        for folder in [&ours, &other, &named] {
            fs::create_dir(folder).expect("made");
            for name in [USED, "0-of-1.rgb", "0-of-1.jsonl", "1-of-2.rgb.7-1a"] {
                fs::write(folder.join(name), "x").expect("written");
            }
        }
        fs::write(other.join("notes.txt"), "years of work").expect("written");
        assert_eq!(folders(root.path()).collect::<Vec<_>>(), [ours]);
        assert_eq!(total(root.path()), 4);
        for name in ["notes.txt", "0-of-1.txt", "a-of-1.rgb", "rgb", "0-of-1"] {
            assert!(!parts::is_part(name), "{name}");
        }
    }
}
