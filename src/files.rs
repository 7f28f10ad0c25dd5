//! Files that are there whole or not at all.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use crate::error::{Error, Result};

/// Writes `bytes` to `path` so that either the old or the new content is there after a crash.
///
/// # Errors
/// The folder cannot be written or the disk is full; the old file is intact then.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension("tmp");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        // The rename itself reaches the disk with the folder.
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    };
    write().map_err(|source| {
        // A half-written temporary file must not hold on to the space that was missing.
        let _ = std::fs::remove_file(&temporary);
        Error::io("write", path, source)
    })
}
