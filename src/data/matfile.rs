//! Numeric arrays from MATLAB files, version 5: what `setid.mat` and `imagelabels.mat` hold.
//!
//! A file is a header of 128 bytes and a row of elements, each a tag (type, length) and data; an
//! array is an element of four elements: flags, dimensions, name, numbers. Numbers may be stored
//! in a smaller type than the array's class, and whole elements may be zlib streams.

use std::io::Read as _;

use crate::error::{Error, Result};

const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;
/// A label file of a million images has 8 MB; anything much larger is not one.
const MAX_INFLATED: u64 = 64 << 20;

/// The numbers of the array called `name`, in column order.
///
/// # Errors
/// [`Error::Data`] if the bytes are not a little-endian version 5 file or lack that array.
pub fn read_array(bytes: &[u8], name: &str) -> Result<Vec<f64>> {
    if bytes.len() < 128 || bytes.get(126..128) != Some(b"IM") {
        return Err(Error::Data(
            "not a MATLAB version 5 file; save it again with `save -v6` or `-v7`".into(),
        ));
    }
    let mut rest = &bytes[128..];
    while let Some(element) = next_element(&mut rest) {
        let inflated;
        let matrix = match element.kind {
            COMPRESSED => {
                inflated = inflate(element.data);
                next_element(&mut inflated.as_slice()).filter(|inner| inner.kind == MATRIX)
            }
            MATRIX => Some(element),
            _ => None,
        };
        if let Some((found, numbers)) = matrix.and_then(|m| parse_matrix(m.data))
            && found == name.as_bytes()
        {
            return numbers
                .ok_or_else(|| Error::Data(format!("`{name}` is not an array of real numbers")));
        }
    }
    Err(Error::Data(format!("no array called `{name}`, or the file is damaged")))
}

#[derive(Clone, Copy)]
struct Element<'a> {
    kind: u32,
    data: &'a [u8],
}

/// Takes the next element off `rest`; `None` at the end or where lengths do not fit.
fn next_element<'a>(rest: &mut &'a [u8]) -> Option<Element<'a>> {
    let word = |at: usize| Some(u32::from_le_bytes(rest.get(at..at + 4)?.try_into().ok()?));
    let (first, second) = (word(0)?, word(4)?);
    // Up to four bytes of data fit into the tag itself, the length in the type's upper half.
    let (kind, start, len) = match first >> 16 {
        0 => (first, 8_usize, usize::try_from(second).ok()?),
        len => (first & 0xffff, 4, (len as usize).min(4)),
    };
    let end = start.checked_add(len)?;
    let data = rest.get(start..end)?;
    // Elements start at multiples of eight, compressed ones excepted.
    let next = if kind == COMPRESSED { end } else { end.checked_next_multiple_of(8)? };
    *rest = rest.get(next..).unwrap_or(&[]);
    Some(Element { kind, data })
}

/// What a zlib stream holds, as far as it is intact.
fn inflate(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    // A damaged stream leaves a short element, which the caller rejects by its length.
    let _ = flate2::read::ZlibDecoder::new(data).take(MAX_INFLATED).read_to_end(&mut out);
    out
}

/// An array's name and, if it is real and numeric, its numbers.
fn parse_matrix(mut data: &[u8]) -> Option<(&[u8], Option<Vec<f64>>)> {
    let flags = next_element(&mut data)?.data;
    let dimensions = next_element(&mut data)?;
    let name = next_element(&mut data)?.data;
    let (class, complex) = (*flags.first()?, flags.get(1)? & 0x08 != 0);
    if !(6..=15).contains(&class) || complex {
        return Some((name, None));
    }
    let numbers = next_element(&mut data).and_then(numbers);
    let count = self::numbers(dimensions)?.iter().product::<f64>();
    Some((name, numbers.filter(|n| n.len() as f64 == count)))
}

fn numbers(element: Element<'_>) -> Option<Vec<f64>> {
    macro_rules! as_f64 {
        ($t:ty) => {{
            let chunks = element.data.chunks_exact(size_of::<$t>());
            chunks.map(|c| c.try_into().ok().map(|c| <$t>::from_le_bytes(c) as f64)).collect()
        }};
    }
    match element.kind {
        1 => as_f64!(i8),
        2 => as_f64!(u8),
        3 => as_f64!(i16),
        4 => as_f64!(u16),
        5 => as_f64!(i32),
        6 => as_f64!(u32),
        7 => as_f64!(f32),
        9 => as_f64!(f64),
        12 => as_f64!(i64),
        13 => as_f64!(u64),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `scipy.io.savemat(f, {"few": uint8 [7, 200], "a": float64 [[1.5, -2], [3, 4]], "s": "text"})`.
    const PLAIN: &[u8] = include_bytes!("../../tests/golden/decode_plain.mat");
    const PACKED: &[u8] = include_bytes!("../../tests/golden/decode_packed.mat");

    #[test]
    fn arrays_as_scipy_wrote_them() {
        for bytes in [PLAIN, PACKED] {
            assert_eq!(read_array(bytes, "few").unwrap(), [7.0, 200.0]);
            assert_eq!(read_array(bytes, "a").unwrap(), [1.5, 3.0, -2.0, 4.0]);
            let error = |name| read_array(bytes, name).unwrap_err().to_string();
            assert!(error("s").contains("not an array of real numbers"));
            assert!(error("none").contains("no array called `none`"));
        }
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic() {
        for original in [PLAIN, PACKED] {
            for cut in 0..original.len() {
                let _ = read_array(&original[..cut], "a");
                for value in [0, 1, 0x0e, 0x7f, 0xff] {
                    let mut bytes = original.to_vec();
                    bytes[cut] = value;
                    let _ = read_array(&bytes, "a");
                }
            }
            assert!(read_array(&original[..original.len() / 2], "s").is_err());
        }
        assert!(read_array(b"", "a").is_err());
    }
}
