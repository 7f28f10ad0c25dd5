//! Whether a file is the one that was published.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use md5::Md5;
use sha2::{Digest, Sha256};

use super::{Tell, Told, broken, unpack};
use crate::data::catalog::{Archive, Checksum, Place};
use crate::data::digest::hex;
use crate::error::Result;

/// Compares the file at `path` with what is known of `archive`: its length, its checksum, and for
/// an archive without a checksum, that it is one. The inner error says what is wrong.
///
/// # Errors
/// [`crate::error::Error::Io`] if the file cannot be read.
pub(super) fn check(
    archive: &Archive,
    path: &Path,
    tell: &mut Tell,
) -> Result<std::result::Result<(), String>> {
    let length = path.metadata().map_err(|e| broken("read", path, e))?.len();
    if let Some(expected) = archive.bytes.exact().filter(|expected| *expected != length) {
        return Ok(Err(format!("has {length} bytes; the published file has {expected}")));
    }
    let (name, expected, found) = match archive.checksum {
        Some(Checksum::Md5(digits)) => {
            ("md5", digits, digest::<Md5>(archive.file, path, length, tell)?)
        }
        Some(Checksum::Sha256(digits)) => {
            ("sha256", digits, digest::<Sha256>(archive.file, path, length, tell)?)
        }
        None => {
            if archive.place != Place::Whole && !unpack::is_archive(path)? {
                return Ok(Err("is no tar archive".into()));
            }
            let found = digest::<Sha256>(archive.file, path, length, tell)?;
            tell(Told::Note(&format!(
                "no checksum is published for {}; what came has {length} bytes and sha256 {found}",
                archive.file
            )));
            return Ok(Ok(()));
        }
    };
    Ok(match found == expected {
        true => Ok(()),
        false => Err(format!("has the {name} {found}; the published file has {expected}")),
    })
}

/// The digest of a file in hexadecimal digits.
fn digest<D: Digest>(file: &str, path: &Path, length: u64, tell: &mut Tell) -> Result<String> {
    let mut from = File::open(path).map_err(|e| broken("read", path, e))?;
    let (mut digest, mut done) = (D::new(), 0);
    let mut block = vec![0; 1 << 18];
    loop {
        let read = from.read(&mut block).map_err(|e| broken("read", path, e))?;
        if read == 0 {
            break;
        }
        digest.update(&block[..read]);
        done += read as u64;
        tell(Told::Progress { what: "checking", file, done, total: Some(length) });
    }
    Ok(hex(&digest.finalize()))
}
