//! How a picture is to be turned: the orientation that PIL's `exif_transpose` finds in a file.
//!
//! It is read from the EXIF block, whatever number type stores it, and from the XMP packet where
//! the block has none. A block that cannot be read counts as absent, where PIL raises an error.

use std::borrow::Cow;
use std::io::Read as _;

use image::metadata::Orientation;
use image::{DynamicImage, ImageFormat};

/// The tags of an image file directory that are looked at.
const ORIENTATION: u16 = 0x0112;
const XMP: u16 = 700;

/// What a file says beside the picture.
#[derive(Debug, Default)]
pub struct Metadata<'a> {
    /// A TIFF structure, with or without `Exif\0\0` before it.
    pub exif: Option<Cow<'a, [u8]>>,
    /// XML.
    pub xmp: Option<Cow<'a, [u8]>>,
}

impl<'a> Metadata<'a> {
    /// Of a PNG, WebP or TIFF file; PIL reads no orientation from other formats than these and JPEG.
    pub fn of_file(bytes: &'a [u8], format: ImageFormat) -> Self {
        match format {
            ImageFormat::Png => of_png(bytes).unwrap_or_default(),
            ImageFormat::WebP => of_webp(bytes),
            ImageFormat::Tiff => Self {
                exif: Some(bytes.into()),
                xmp: Directory::open(bytes).and_then(|d| d.find(XMP)).map(|e| e.data.into()),
            },
            _ => Self::default(),
        }
    }

    /// The orientation; anything but 1 to 8 is none.
    pub fn orientation(&self) -> Orientation {
        let stored = self.exif.as_deref().and_then(exif_orientation);
        let stored = stored.or_else(|| self.xmp.as_deref().and_then(xmp_orientation));
        stored.and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms)
    }

    /// Turns the picture upright.
    pub fn turn(&self, image: &mut DynamicImage) {
        image.apply_orientation(self.orientation());
    }
}

/// What an EXIF block says; `Some(0)` if that is no number of 1 to 8.
fn exif_orientation(block: &[u8]) -> Option<u8> {
    const START: &[u8] = b"Exif\0\0";
    let block = block.strip_prefix(START).unwrap_or(block);
    let block = block.strip_prefix(START).unwrap_or(block);
    let entry = Directory::open(block)?.find(ORIENTATION)?;
    let number = entry.number().filter(|n| n.fract() == 0.0 && (1.0..=8.0).contains(n));
    Some(number.unwrap_or(0.0) as u8)
}

/// The digit of the first `tiff:Orientation="6"` or `tiff:Orientation>6`.
fn xmp_orientation(packet: &[u8]) -> Option<u8> {
    const NAME: &[u8] = b"tiff:Orientation";
    let ends = packet.windows(NAME.len()).enumerate().filter(|(_, w)| *w == NAME);
    let mut values = ends.filter_map(|(at, _)| match &packet[at + NAME.len()..] {
        [b'=', b'"', digit @ b'0'..=b'9', ..] | [b'>', digit @ b'0'..=b'9', ..] => {
            Some(digit - b'0')
        }
        _ => None,
    });
    values.next()
}

/// The first directory of a TIFF structure, as PIL reads it.
pub struct Directory<'a> {
    bytes: &'a [u8],
    little: bool,
    big_tiff: bool,
    at: usize,
}

/// An entry of a directory.
pub struct Entry<'a> {
    kind: u16,
    little: bool,
    /// The values' bytes.
    pub data: &'a [u8],
}

impl<'a> Directory<'a> {
    /// `None` if `bytes` do not begin as TIFF does.
    pub fn open(bytes: &'a [u8]) -> Option<Self> {
        let little = match bytes.get(..4)? {
            b"II\x2a\0" | b"II\0\x2a" | b"II\x2b\0" => true,
            b"MM\0\x2a" | b"MM\x2a\0" | b"MM\0\x2b" => false,
            _ => return None,
        };
        let big_tiff = bytes[2] == 43 || bytes[3] == 43;
        let mut directory = Self { bytes, little, big_tiff, at: 0 };
        let start = if big_tiff { directory.uint(8, 8) } else { directory.uint(4, 4) };
        directory.at = usize::try_from(start?).ok()?;
        Some(directory)
    }

    /// The first usable entry of `tag`. As in PIL, entries of unknown types and without values are
    /// passed over, and reading ends at one whose values lie outside.
    pub fn find(&self, tag: u16) -> Option<Entry<'a>> {
        let (count_len, entry_len, field) = if self.big_tiff { (8, 20, 8) } else { (2, 12, 4) };
        let count = self.uint(self.at, count_len)?;
        let mut outside = 0;
        for i in 0..usize::try_from(count).ok()? {
            let at = self.at.checked_add(count_len)?.checked_add(i.checked_mul(entry_len)?)?;
            let found = self.uint(at, 2)? as u16;
            let kind = self.uint(at + 2, 2)? as u16;
            let values = self.uint(at + 4, field)?;
            self.bytes.get(at..at.checked_add(entry_len)?)?;
            let size = u64::from(size_of_kind(kind)).checked_mul(values)?;
            let mut start = at + 4 + field;
            if size > field as u64 {
                outside += size;
                if outside > self.bytes.len() as u64 {
                    continue;
                }
                start = usize::try_from(self.uint(start, field)?).ok()?;
            }
            let data = self.bytes.get(start..start.checked_add(size as usize)?)?;
            if found == tag && !data.is_empty() {
                return Some(Entry { kind, little: self.little, data });
            }
        }
        None
    }

    fn uint(&self, at: usize, len: usize) -> Option<u64> {
        Some(uint(self.bytes.get(at..at.checked_add(len)?)?, self.little))
    }
}

impl Entry<'_> {
    /// The first value; `None` for text and plain bytes, which PIL takes for no number.
    pub fn number(&self) -> Option<f64> {
        let size = usize::from(size_of_kind(self.kind));
        let value = self.data.get(..size)?;
        let half = |i: usize| uint(&value[i * 4..][..4], self.little) as u32;
        let bits = uint(value, self.little);
        Some(match self.kind {
            3 | 4 | 13 | 16 => bits as f64,
            6 => f64::from(bits as i8),
            8 => f64::from(bits as i16),
            9 => f64::from(bits as i32),
            5 => f64::from(half(0)) / f64::from(half(1)),
            10 => f64::from(half(0) as i32) / f64::from(half(1) as i32),
            11 => f64::from(f32::from_bits(bits as u32)),
            12 => f64::from_bits(bits),
            _ => return None,
        })
    }
}

/// Bytes of a value of a TIFF type; 0 for types that PIL does not know.
fn size_of_kind(kind: u16) -> u8 {
    match kind {
        1 | 2 | 6 | 7 => 1,
        3 | 8 => 2,
        4 | 9 | 11 | 13 => 4,
        5 | 10 | 12 | 16 => 8,
        _ => 0,
    }
}

fn uint(bytes: &[u8], little: bool) -> u64 {
    let join = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
    if little { bytes.iter().rev().fold(0, join) } else { bytes.iter().fold(0, join) }
}

/// The chunks of a PNG in which cameras and programs keep EXIF and XMP; of two the later counts.
fn of_png(bytes: &[u8]) -> Option<Metadata<'_>> {
    const XMP_KEYWORD: &[u8] = b"XML:com.adobe.xmp";
    let (mut found, mut raw_profile) = (Metadata::default(), None);
    let mut rest = bytes.get(8..)?;
    while let (Some(len), Some(kind)) = (rest.get(..4), rest.get(4..8)) {
        let len = uint(len, false) as usize;
        let Some(data) = rest[8..].get(..len) else { break };
        rest = rest.get(12 + len..).unwrap_or_default();
        if kind == b"eXIf" {
            found.exif = Some(data.into());
        }
        let text = match kind {
            b"tEXt" | b"zTXt" | b"iTXt" => png_text(kind, data),
            _ => None,
        };
        match text {
            Some((XMP_KEYWORD, text)) => found.xmp = Some(text),
            Some((b"Raw profile type exif", text)) => raw_profile = hex_profile(&text),
            Some((b"exif", text)) if kind == b"tEXt" => found.exif = Some(text),
            _ => {}
        }
    }
    found.exif = found.exif.or(raw_profile);
    Some(found)
}

/// Keyword and text of a PNG's text chunk.
fn png_text<'a>(kind: &[u8], data: &'a [u8]) -> Option<(&'a [u8], Cow<'a, [u8]>)> {
    let cut = |data: &'a [u8]| {
        let end = data.iter().position(|b| *b == 0)?;
        Some((&data[..end], &data[end + 1..]))
    };
    let (keyword, rest) = cut(data)?;
    let (compressed, text) = match kind {
        b"tEXt" => (false, rest),
        b"zTXt" => (true, rest.get(1..)?),
        _ => {
            let (_language, after) = cut(rest.get(2..)?)?;
            let (_translated, text) = cut(after)?;
            (rest[0] != 0, text)
        }
    };
    if !compressed {
        return Some((keyword, text.into()));
    }
    let mut unpacked = Vec::new();
    // A camera's packet has some kilobytes; what unpacks to more is cut off.
    let limit = 1 << 20;
    flate2::read::ZlibDecoder::new(text).take(limit).read_to_end(&mut unpacked).ok()?;
    Some((keyword, unpacked.into()))
}

/// The bytes of a profile in hexadecimal, as ImageMagick writes it below three lines of heading.
fn hex_profile(text: &[u8]) -> Option<Cow<'static, [u8]>> {
    let body = text.splitn(4, |b| *b == b'\n').nth(3)?;
    let digit = |b: &u8| char::from(*b).to_digit(16).map(|d| d as u8);
    let digits: Vec<u8> =
        body.iter().filter(|b| !b.is_ascii_whitespace()).map(digit).collect::<Option<_>>()?;
    Some(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect::<Vec<u8>>().into())
}

/// The chunks of a WebP file that its header announces.
fn of_webp(bytes: &[u8]) -> Metadata<'_> {
    let mut found = Metadata::default();
    let (mut rest, mut flags) = (bytes.get(12..).unwrap_or_default(), 0);
    while let (Some(kind), Some(len)) = (rest.get(..4), rest.get(4..8)) {
        let len = uint(len, true) as usize;
        let Some(data) = rest[8..].get(..len) else { break };
        rest = rest.get(8 + len + len % 2..).unwrap_or_default();
        match kind {
            b"VP8X" => flags = data.first().copied().unwrap_or_default(),
            b"EXIF" if flags & 8 != 0 && found.exif.is_none() => found.exif = Some(data.into()),
            b"XMP " if flags & 4 != 0 && found.xmp.is_none() => found.xmp = Some(data.into()),
            _ => {}
        }
    }
    found
}
