//! File names as text and back.
//!
//! A file name is any row of bytes, an id is text. Bytes that are no UTF-8 and control characters
//! (a line break would tear the lists that ids are written to) become `\xHH` with two capital
//! hexadecimal digits. A backslash that would read as such an escape becomes `\x5C`, every other
//! one stays, so that [`unescaped`] gives the bytes back and two names never share an id.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use unicode_normalization::UnicodeNormalization as _;

/// The text that stands for a name.
pub fn escaped(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    let escape = |text: &mut String, byte: u8| {
        // Writing to a string cannot fail.
        let _ = write!(text, "\\x{byte:02X}");
    };
    let mut at = 0;
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            let is_escape = c == '\\' && escape_at(&name[at..]).is_some();
            match u8::try_from(c) {
                Ok(byte) if is_escape || byte.is_ascii_control() => escape(&mut text, byte),
                _ => text.push(c),
            }
            at += c.len_utf8();
        }
        chunk.invalid().iter().for_each(|&byte| escape(&mut text, byte));
        at += chunk.invalid().len();
    }
    text
}

/// The name that a text stands for.
pub fn unescaped(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let (mut name, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(&byte) = bytes.get(at) {
        let escape = escape_at(&bytes[at..]);
        name.push(escape.unwrap_or(byte));
        at += if escape.is_some() { 4 } else { 1 };
    }
    name
}

/// The text that stands for a path.
pub fn id_of(path: &Path) -> String {
    escaped(path.as_os_str().as_encoded_bytes())
}

/// The path that a text stands for.
pub fn path_of(text: &str) -> PathBuf {
    os_string(unescaped(text)).into()
}

#[cfg(unix)]
fn os_string(bytes: Vec<u8>) -> OsString {
    std::os::unix::ffi::OsStringExt::from_vec(bytes)
}

#[cfg(not(unix))]
fn os_string(bytes: Vec<u8>) -> OsString {
    String::from_utf8_lossy(&bytes).into_owned().into()
}

/// What names that people cannot tell apart have in common: small letters, accents composed.
pub(super) fn folded(name: &str) -> String {
    name.nfc().collect::<String>().to_lowercase().nfc().collect()
}

/// The name without characters of no width and blanks at its ends, every other blank one space.
pub(super) fn visible(name: &str) -> String {
    let has_width = |c: &char| !('\u{200b}'..='\u{200f}').contains(c) && !WITHOUT_WIDTH.contains(c);
    let name: String = name.chars().filter(has_width).collect();
    name.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The soft hyphen, the word joiner and the byte order mark.
const WITHOUT_WIDTH: [char; 3] = ['\u{ad}', '\u{2060}', '\u{feff}'];

/// The other ways to store the accents of a name, where they differ from it.
pub(super) fn other_forms(name: &str) -> impl Iterator<Item = String> {
    let forms = [name.nfc().collect::<String>(), name.nfd().collect()];
    forms.into_iter().filter(move |form| form != name)
}

/// The byte that an escape at the start of `bytes` stands for.
fn escape_at(bytes: &[u8]) -> Option<u8> {
    let [b'\\', b'x', high, low, ..] = bytes else { return None };
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    };
    Some(16 * digit(*high)? + digit(*low)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_come_back_byte_for_byte_and_share_no_id() {
        let mut names: Vec<Vec<u8>> = (0..=255).map(|byte| vec![b'a', byte, b'.']).collect();
        names.extend((0..=255).map(|byte| vec![b'\\', byte, b'\\', b'x', b'4', b'1']));
        names.extend((0..=255).map(|byte| vec![b'\\', b'x', b'E', byte]));
        for name in [
            r"\x41",
            r"\\x41",
            r"\x5Cx41",
            r"a\x5C",
            "a",
            r"\x4",
            r"\x4g",
            r"\xe4",
            "Gr\u{e4}ser/\u{1f33c} 100%.jpg",
            "line\nbreak",
            "",
        ] {
            names.push(name.into());
        }
        names.push((0..=255).collect());
        names.push(b"Gr\xe4ser/1.jpg".to_vec());
        let mut ids = HashSet::new();
        let distinct: HashSet<Vec<u8>> = names.into_iter().collect();
        for name in &distinct {
            let id = escaped(name);
            assert_eq!(&unescaped(&id), name, "{id}");
            assert!(!id.chars().any(|c| c.is_ascii_control()), "{id:?}");
            ids.insert(id);
        }
        assert_eq!(ids.len(), distinct.len());
    }

    #[test]
    fn usual_names_stay_as_they_are() {
        for name in [r"C:\photos\x.jpg", "100% & \u{e4}\u{6f22}\u{1f33c} 'x'.jpg", r"\xe4\x4"] {
            assert_eq!(escaped(name.as_bytes()), name);
        }
        assert_eq!(escaped(b"Gr\xe4ser\n"), r"Gr\xE4ser\x0A");
        assert_eq!(escaped(br"\x41"), r"\x5Cx41");
        assert_eq!(folded("E\u{301}t\u{c9}"), folded("\u{c9}t\u{e9}"));
    }

    #[test]
    #[cfg(unix)]
    fn paths_are_names_too() {
        let path = path_of(r"a/Gr\xE4ser.jpg");
        assert_eq!(path.as_os_str().as_encoded_bytes(), b"a/Gr\xe4ser.jpg");
        assert_eq!(id_of(&path), r"a/Gr\xE4ser.jpg");
    }
}
