//! The content of an image file in one short text, by which runs recognise an image again under
//! another name and notice another image under the same name.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::listing::read;
use super::manifest::Sample;
use super::parallel::map_in_turn;

/// Bytes of the SHA-256 sum that are kept: enough that no two images of any set ever share them.
const KEPT: usize = 16;

/// The first 32 digits of what `sha256sum` prints for the file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Digest(String);

impl Digest {
    /// That of a file's bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let sum = Sha256::digest(bytes);
        Self(hex(&sum[..KEPT]))
    }

    /// The digest that a file of ours has written; `None` if it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        (text.len() == 2 * KEPT && digits).then(|| Self(text.to_owned()))
    }

    /// Its digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Bytes in hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Digests of the samples' files, in order, on `threads` threads; `None` for files that cannot be
/// read.
pub fn digests(samples: &[&Sample], threads: usize) -> Vec<Option<Digest>> {
    let mut found = Vec::with_capacity(samples.len());
    let of = |i: usize| read(&samples[i].origin).ok().map(|bytes| Digest::of(&bytes));
    let sink = |_, digest| {
        found.push(digest);
        Ok(())
    };
    // The sink has no errors to pass on.
    let _ = map_in_turn(samples.len(), threads, of, sink);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_begin_as_sha256sum_prints_them() {
        // `printf abc | sha256sum`
        let abc = Digest::of(b"abc");
        assert_eq!(abc.as_str(), "ba7816bf8f01cfea414140de5dae2223");
        assert_eq!(Digest::parse(abc.as_str()), Some(abc.clone()));
        for wrong in ["", "ba78", &abc.as_str().to_uppercase(), &format!("{}0", abc.as_str())] {
            assert_eq!(Digest::parse(wrong), None, "{wrong}");
        }
    }
}
