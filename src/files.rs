//! Files that are there whole or not at all.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// The file that makes a folder a run's.
pub const RUN: &str = "run.json";

/// What to do about a file of a run that cannot be used.
pub const DAMAGED: &str = "it is damaged, or another version of fewvit wrote it: take another copy \
                           of the run folder, or start the run again";

/// Reads a value from a JSON file; `advice` says what to do if the file holds something else.
///
/// # Errors
/// The file cannot be read, or holds something else.
pub fn read_json<T: DeserializeOwned>(path: &Path, advice: &str) -> Result<T> {
    let text = std::fs::read(path).map_err(|source| Error::io("read", path, source))?;
    serde_json::from_slice(&text)
        .map_err(|e| Error::Failed(format!("{} cannot be used: {e}\n  {advice}", path.display())))
}

/// Writes `bytes` to `path` so that either the old or the new content is there after a crash.
///
/// # Errors
/// As [`stream_atomically`].
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    stream_atomically(path, |file| file.write_all(bytes))
}

/// Writes a value to `path` as JSON, as [`write_atomically`] does.
///
/// # Errors
/// As [`stream_atomically`].
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::Failed(format!("cannot write {}: {e}", path.display())))?;
    write_atomically(path, text.as_bytes())
}

/// The path from the root on, so that it is found from any working directory.
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

/// End of the name of a file that is being written. Nobody else's files end like that, so that what a crash left
/// can be written over.
pub const PARTIAL: &str = ".fewvit-partial";

/// Has `write` write to `path` so that either the old or the new content is there after a crash. A link stays one,
/// and the file that it leads to is written; a device or a pipe is written to as it is.
///
/// # Errors
/// The folder cannot be written or the disk is full; the old file is intact then.
pub fn stream_atomically(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
) -> Result<()> {
    let failed = |source| Error::io("write", path, source);
    if is_special(path) {
        let stream = || -> std::io::Result<()> {
            let mut file = BufWriter::new(File::options().write(true).open(path)?);
            write(&mut file)?;
            file.flush()
        };
        return stream().map_err(failed);
    }
    // A name that leads nowhere yet is the file's own.
    let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let mut temporary = target.as_os_str().to_owned();
    temporary.push(PARTIAL);
    let temporary = Path::new(&temporary);
    let replace = || -> std::io::Result<()> {
        let mut file = BufWriter::new(File::create(temporary)?);
        write(&mut file)?;
        file.into_inner().map_err(|e| e.into_error())?.sync_all()?;
        std::fs::rename(temporary, &target)?;
        // The rename itself reaches the disk with the folder.
        File::open(folder_of(&target))?.sync_all()
    };
    replace().map_err(|source| {
        // A half-written temporary file must not hold on to the space that was missing.
        let _ = std::fs::remove_file(temporary);
        failed(source)
    })
}

/// Whether there is something at `path` that is neither a file nor a folder: a device, a pipe, a socket.
fn is_special(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|there| !there.is_file() && !there.is_dir())
}

/// Refuses a `path` that is taken, unless what is there is empty or `ours` recognises it as an
/// earlier output of the same kind. Asked before the work, so that none is lost.
///
/// # Errors
/// [`Error::Usage`] for somebody else's file and for a folder; a file that cannot be read.
pub fn refuse_to_replace(path: &Path, ours: impl FnOnce(&[u8]) -> bool) -> Result<()> {
    if path.is_dir() {
        return Err(Error::Usage(format!("{} is a folder\n  name a file in it", path.display())));
    }
    if is_special(path) {
        return Ok(());
    }
    let content = match std::fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        content => content.map_err(|source| Error::io("read", path, source))?,
    };
    match content.is_empty() || ours(&content) {
        true => Ok(()),
        false => Err(Error::Usage(format!(
            "{} exists and is no earlier output of this command; it is left as it is\n  \
             give another name, or move the file away",
            path.display()
        ))),
    }
}

/// The first line of a text file's `content`, without its end.
pub fn first_line(content: &[u8]) -> &[u8] {
    content.split(|&byte| byte == b'\n').next().unwrap_or_default().trim_ascii_end()
}

/// The folder of a file; a bare name is in the working directory.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn somebody_elses_file_is_not_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.csv");
        let ours = |content: &[u8]| content.starts_with(b"file,");
        refuse_to_replace(&path, ours).expect("nothing there");
        for (content, refused) in [("", false), ("file,label", false), ("years of work", true)] {
            std::fs::write(&path, content).expect("written");
            let code = refuse_to_replace(&path, ours).map_err(|e| e.exit_code());
            assert_eq!(code, if refused { Err(2) } else { Ok(()) }, "{content}");
        }
    }

    #[test]
    fn a_bare_name_is_in_the_working_directory() {
        assert_eq!(folder_of(Path::new("t.safetensors")), Path::new("."));
        assert_eq!(folder_of(Path::new("runs/t.safetensors")), Path::new("runs"));
    }

    #[test]
    fn the_old_content_is_replaced_and_no_neighbour_touched() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [path, neighbour, partial] =
            ["a.csv", "a.tmp", "a.csv.partial"].map(|name| folder.path().join(name));
        std::fs::write(&path, "old").expect("written");
        for mine in [&neighbour, &partial] {
            std::fs::write(mine, "mine").expect("written");
        }
        write_atomically(&path, b"new").expect("written");
        let read = |path: &Path| std::fs::read_to_string(path).expect("there");
        assert_eq!([&path, &neighbour, &partial].map(|p| read(p)), ["new", "mine", "mine"]);
        assert_eq!(std::fs::read_dir(folder.path()).expect("there").count(), 3);
    }

    #[cfg(unix)]
    #[test]
    fn links_stay_links_and_pipes_are_written_to() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [file, link, pipe] = ["a.csv", "b.csv", "pipe"].map(|name| folder.path().join(name));
        std::fs::write(&file, "old").expect("written");
        std::os::unix::fs::symlink(&file, &link).expect("linked");
        write_atomically(&link, b"new").expect("written");
        assert!(std::fs::symlink_metadata(&link).expect("there").is_symlink());
        assert_eq!(std::fs::read(&file).expect("there"), b"new");

        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.expect("mkfifo is there").success());
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || std::fs::read(pipe).expect("readable")
        });
        refuse_to_replace(&pipe, |_| false).expect("nothing is replaced");
        write_atomically(&pipe, b"rows").expect("written");
        assert_eq!(reader.join().expect("no panic"), b"rows");
        assert!(is_special(&pipe), "it is a pipe as before");
        let error = refuse_to_replace(folder.path(), |_| true).expect_err("a folder");
        assert_eq!(error.exit_code(), 2);
    }
}
