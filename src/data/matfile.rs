//! Arrays from MATLAB files, version 5: numbers, text, cells and structs.
//!
//! A file is a header of 128 bytes and a row of elements, each a tag (type, length) and data; an
//! array is an element of elements: flags, dimensions, name and content. Numbers may be stored in
//! a smaller type than the array's class, and whole elements may be zlib streams.
//!
//! Every length is checked against the bytes that are there before anything is set aside for it.

use std::io::Read as _;

use crate::error::{Error, Result};

const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;
/// Bytes of a tag; nothing is stored in fewer.
const TAG: usize = 8;
/// The largest list of any published set inflates to 8 MB; anything much larger is not one.
const MAX_INFLATED: u64 = 64 << 20;
/// Arrays within arrays that are followed.
const MAX_DEPTH: usize = 8;

/// What an array holds, in column order.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Real numbers of any type.
    Numbers(Vec<f64>),
    /// Characters.
    Text(String),
    /// A cell array.
    Cells(Vec<Value>),
    /// A struct array.
    Structs(Structs),
    /// Something else: complex or sparse numbers, objects, functions.
    Other,
}

/// A struct array: records with the same fields.
#[derive(Clone, Debug, PartialEq)]
pub struct Structs {
    fields: Vec<String>,
    /// Record by record, in the order of the fields.
    values: Vec<Value>,
}

impl Structs {
    /// The values of one field, record by record; `None` if there is no such field.
    pub fn field(&self, name: &str) -> Option<Vec<&Value>> {
        let at = self.fields.iter().position(|field| field == name)?;
        Some(self.values.iter().skip(at).step_by(self.fields.len()).collect())
    }
}

impl Value {
    /// The only number of the array.
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Numbers(numbers) => match numbers.as_slice() {
                [number] => Some(*number),
                _ => None,
            },
            _ => None,
        }
    }

    /// Its characters.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// The numbers of the array called `name`, in column order.
///
/// # Errors
/// [`Error::Data`] if the bytes are not a little-endian version 5 file or lack that array.
pub fn read_array(bytes: &[u8], name: &str) -> Result<Vec<f64>> {
    match read_value(bytes, name)? {
        Value::Numbers(numbers) => Ok(numbers),
        _ => Err(Error::Data(format!("`{name}` is not an array of real numbers"))),
    }
}

/// The array called `name`.
///
/// # Errors
/// As [`read_array`], whatever the array holds.
pub fn read_value(bytes: &[u8], name: &str) -> Result<Value> {
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
        let Some(Header { name: found, kind, count, mut rest }) = matrix.and_then(header) else {
            continue;
        };
        if found == name.as_bytes() {
            return content(kind, count, &mut rest, 0)
                .ok_or_else(|| Error::Data(format!("the array `{name}` is damaged")));
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
        0 => (first, TAG, usize::try_from(second).ok()?),
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

/// The kinds of arrays that are told apart.
#[derive(Clone, Copy)]
enum Kind {
    Cells,
    Structs,
    Text,
    Numbers,
    Other,
}

/// The beginning of an array, and what follows it.
struct Header<'a> {
    name: &'a [u8],
    kind: Kind,
    /// Elements of the array, which need not be there.
    count: f64,
    rest: &'a [u8],
}

fn header(matrix: Element<'_>) -> Option<Header<'_>> {
    let mut rest = matrix.data;
    let flags = next_element(&mut rest)?.data;
    let dimensions = next_element(&mut rest)?;
    let name = next_element(&mut rest)?.data;
    let is_complex = flags.get(1)? & 0x08 != 0;
    let kind = match *flags.first()? {
        1 => Kind::Cells,
        2 => Kind::Structs,
        4 => Kind::Text,
        6..=15 if !is_complex => Kind::Numbers,
        _ => Kind::Other,
    };
    let dimensions = numbers(dimensions)?;
    if dimensions.iter().any(|size| *size < 0.0) {
        return None;
    }
    let count = dimensions.iter().product::<f64>();
    Some(Header { name, kind, count, rest })
}

/// What follows an array's header; `None` if it is damaged.
fn content(kind: Kind, count: f64, rest: &mut &[u8], depth: usize) -> Option<Value> {
    let as_long = |len: usize| len as f64 == count;
    match kind {
        Kind::Numbers => {
            let numbers = next_element(rest).and_then(numbers)?;
            as_long(numbers.len()).then_some(Value::Numbers(numbers))
        }
        Kind::Text => text(next_element(rest)?).map(Value::Text),
        Kind::Cells => Some(Value::Cells(values(count, rest, depth)?)),
        Kind::Structs => {
            let fields = field_names(rest)?;
            let values = values(count * fields.len() as f64, rest, depth)?;
            Some(Value::Structs(Structs { fields, values }))
        }
        Kind::Other => Some(Value::Other),
    }
}

/// The arrays within an array.
fn values(count: f64, rest: &mut &[u8], depth: usize) -> Option<Vec<Value>> {
    let possible = (rest.len() / TAG) as f64;
    if depth == MAX_DEPTH || !(0.0..=possible).contains(&count) {
        return None;
    }
    let one = |_| {
        let element = next_element(rest).filter(|element| element.kind == MATRIX)?;
        if element.data.is_empty() {
            return Some(Value::Numbers(Vec::new()));
        }
        let Header { kind, count, mut rest, .. } = header(element)?;
        content(kind, count, &mut rest, depth + 1)
    };
    (0..count as usize).map(one).collect()
}

fn field_names(rest: &mut &[u8]) -> Option<Vec<String>> {
    let width = match numbers(next_element(rest)?)?.as_slice() {
        [width] if *width >= 1.0 => *width as usize,
        _ => return None,
    };
    let names = next_element(rest)?.data.chunks_exact(width);
    let name = |bytes: &[u8]| {
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    };
    Some(names.map(name).collect())
}

/// Characters in UTF-8 or as 16-bit numbers.
fn text(element: Element<'_>) -> Option<String> {
    const UTF8: u32 = 16;
    if element.kind == UTF8 {
        return Some(String::from_utf8_lossy(element.data).into_owned());
    }
    let units: Vec<u16> = numbers(element)?.iter().map(|unit| *unit as u16).collect();
    Some(String::from_utf16_lossy(&units))
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
        // Numbers, and characters of 16 bits.
        4 | 17 => as_f64!(u16),
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
    /// See tests/golden/structs.py.
    const STRUCTS: &[u8] = include_bytes!("../../tests/golden/structs_plain.mat");
    const PACKED_STRUCTS: &[u8] = include_bytes!("../../tests/golden/structs_packed.mat");

    #[test]
    fn arrays_as_scipy_wrote_them() {
        for bytes in [PLAIN, PACKED] {
            assert_eq!(read_array(bytes, "few").unwrap(), [7.0, 200.0]);
            assert_eq!(read_array(bytes, "a").unwrap(), [1.5, 3.0, -2.0, 4.0]);
            assert_eq!(read_value(bytes, "s").unwrap().text(), Some("text"));
            let error = |name| read_array(bytes, name).unwrap_err().to_string();
            assert!(error("s").contains("not an array of real numbers"));
            assert!(error("none").contains("no array called `none`"));
        }
    }

    #[test]
    fn structs_and_cells_as_scipy_wrote_them() {
        for bytes in [STRUCTS, PACKED_STRUCTS] {
            let Value::Structs(synsets) = read_value(bytes, "synsets").unwrap() else { panic!() };
            let numbers = |field| -> Vec<Option<f64>> {
                synsets.field(field).unwrap().iter().map(|value| value.number()).collect()
            };
            assert_eq!(numbers("ILSVRC2012_ID"), [Some(2.0), Some(1.0), Some(1860.0)]);
            assert_eq!(numbers("children"), [None, None, None], "none, none and two");
            let words: Vec<_> = synsets.field("words").unwrap().iter().map(|v| v.text()).collect();
            assert_eq!(words, [Some("tench, Tinca tinca"), Some("caf\u{e9}"), Some("")]);
            assert_eq!(synsets.field("words ").map(|values| values.len()), None);
            let Value::Cells(names) = read_value(bytes, "class_names").unwrap() else { panic!() };
            let names: Vec<_> = names.iter().map(|name| name.text()).collect();
            assert_eq!(names, [Some("Ram C/V"), Some("Audi 80")]);
            assert_eq!(read_value(bytes, "complex").unwrap(), Value::Other);
        }
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic() {
        for original in [PLAIN, PACKED, STRUCTS, PACKED_STRUCTS] {
            let read = |bytes: &[u8]| {
                ["a", "synsets", "class_names"].map(|name| read_value(bytes, name).is_ok())
            };
            for cut in 0..original.len() {
                read(&original[..cut]);
                for value in [0, 1, 0x0e, 0x7f, 0xff] {
                    let mut bytes = original.to_vec();
                    bytes[cut] = value;
                    read(&bytes);
                }
            }
            assert_eq!(read(&original[..original.len() / 3]), [false; 3]);
        }
        assert!(read_array(b"", "a").is_err());
    }

    /// A claim of four thousand million records in a file of a few hundred bytes.
    #[test]
    fn claims_of_size_set_no_memory_aside() {
        let Some(at) = STRUCTS.windows(8).position(|w| w == [1, 0, 0, 0, 3, 0, 0, 0]) else {
            panic!("the dimensions of the struct")
        };
        let mut bytes = STRUCTS.to_vec();
        bytes[at..at + 8].fill(0xff);
        assert!(read_value(&bytes, "synsets").unwrap_err().to_string().contains("damaged"));
        bytes[at..at + 8].copy_from_slice(&[0xff, 0xff, 0xff, 0x7f, 1, 0, 0, 0]);
        assert!(read_value(&bytes, "synsets").unwrap_err().to_string().contains("damaged"));
    }

    /// Random bytes over a file, as a fuzzer would have them; a fixed seed makes it repeatable.
    #[test]
    fn noise_is_survived() {
        let mut state = 0x9e37_79b9_u32;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as usize
        };
        for _ in 0..20_000 {
            let mut bytes = STRUCTS.to_vec();
            for _ in 0..1 + random() % 8 {
                let at = 128 + random() % (bytes.len() - 128);
                bytes[at] = random() as u8;
            }
            let _ = read_value(&bytes, "synsets");
            let _ = read_value(&bytes, "class_names");
        }
    }
}
