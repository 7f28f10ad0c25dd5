//! From the bytes of an image file to 8-bit RGB, the way PIL 13's `convert("RGB")` has it, after
//! `exif_transpose` unless the [`Treatment`] leaves that out.
//!
//! What is not equal:
//! - 16-bit grey keeps its upper byte, where PIL clips it to 255 (see [`Depth`] for scans of fewer
//!   bits). PGM, which names its largest value, is scaled by that, where PIL clips.
//! - One level apart: BMP of 16 bits a pixel, CMYK and JPEG inside TIFF, 8-bit PNM whose largest
//!   value is not 255.
//! - BMP with run lengths that skip pixels has black there, PIL the palette's first colour.
//! - Refused by name, where PIL reads: TIFF with a palette, grey with alpha, 2 or 4 bits, signed,
//!   32-bit and floating-point numbers, Lab, YCbCr without JPEG, reversed bits, and rare kinds of
//!   compression; GIF without any palette.
//! - A file that ends early is an error, not a picture with a grey end; broken EXIF is ignored. If the
//!   [`Treatment`] is not strict, damaged data before the end is libjpeg's affair, and the end marker
//!   may be missing.

mod gif;
mod jpeg;
mod orientation;
mod samples;

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};
use serde::{Deserialize, Serialize};

use self::orientation::{Directory, Metadata};
use super::image::Rgb8;
use super::manifest::Treatment;
use crate::config::Depth;

/// Larger pictures are refused before any memory is set aside for them.
const MAX_PIXELS: usize = 100_000_000;

/// How a file stores its colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Colour {
    /// Red, green, blue.
    Rgb,
    /// Brightness only.
    Grey,
    /// With transparency, which is dropped.
    Alpha,
    /// Printing inks.
    Cmyk,
}

/// How a file stores its samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Its colours.
    pub colour: Colour,
    /// Whether they have 16 bits, in a format that does not say how many of them are used.
    pub deep: bool,
}

/// The picture in `bytes`, or why there is none, in words that follow "the file ...".
///
/// # Errors
/// A reason such as `is a text file, not an image`.
pub fn decode(bytes: &[u8], depth: Depth, treatment: Treatment) -> Result<Rgb8, String> {
    decode_described(bytes, depth, treatment).map(|(image, _)| image)
}

/// As [`decode`], and how the file stores its samples.
///
/// # Errors
/// As [`decode`].
pub fn decode_described(
    bytes: &[u8],
    depth: Depth,
    treatment: Treatment,
) -> Result<(Rgb8, Stored), String> {
    let format = image::guess_format(bytes).map_err(|_| what_it_is(bytes))?;
    let (mut image, metadata, colour) = match format {
        ImageFormat::Jpeg => jpeg::decode(bytes, treatment.strict)?,
        _ => decode_other(bytes, format)?,
    };
    if treatment.turn {
        metadata.turn(&mut image);
    }
    let is_deep = image.color().bytes_per_pixel() / image.color().channel_count() == 2;
    let says_maximum = format == ImageFormat::Pnm;
    let rgb = match says_maximum {
        true => image.into_rgb8(),
        false => samples::to_rgb8(image, depth),
    };
    let (width, height) = (rgb.width() as usize, rgb.height() as usize);
    let height = height.saturating_sub(treatment.cut_rows).max(1);
    let mut pixels = rgb.into_raw();
    pixels.truncate(3 * width * height);
    let stored = Stored { colour, deep: is_deep && !says_maximum };
    Ok((Rgb8 { width, height, pixels }, stored))
}

/// With the crate `image`; of its GIF frames the colours around the frame would be lost.
fn decode_other(
    bytes: &[u8],
    format: ImageFormat,
) -> Result<(DynamicImage, Metadata<'_>, Colour), String> {
    if format == ImageFormat::Gif {
        return Ok((gif::decode(bytes)?, Metadata::default(), Colour::Rgb));
    }
    let reason = |e: image::ImageError| match e {
        image::ImageError::Unsupported(_) => unread(&e.to_string()),
        image::ImageError::Limits(_) => "is too large".into(),
        image::ImageError::IoError(io) if io.kind() == std::io::ErrorKind::UnexpectedEof => {
            "is cut short: it ends before the picture does".into()
        }
        e => format!("is damaged ({e})"),
    };
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    limits.max_alloc = Some(16 * MAX_PIXELS as u64);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(reason)?;
    let (width, height) = decoder.dimensions();
    check_size(width as usize, height as usize)?;
    let stored = decoder.color_type();
    let colour = match (stored.has_alpha(), stored.has_color()) {
        (true, _) => Colour::Alpha,
        (false, true) => Colour::Rgb,
        (false, false) => Colour::Grey,
    };
    let mut image = DynamicImage::from_decoder(decoder).map_err(reason)?;
    if format == ImageFormat::Tiff {
        mend_tiff(bytes, &mut image)?;
    }
    Ok((image, Metadata::of_file(bytes, format), colour))
}

/// Does what the crate leaves out, or refuses it.
fn mend_tiff(bytes: &[u8], image: &mut DynamicImage) -> Result<(), String> {
    const FILL_ORDER: u16 = 266;
    const EXTRA_SAMPLES: u16 = 338;
    let value = |tag| {
        let entry = Directory::open(bytes).and_then(|directory| directory.find(tag));
        entry.and_then(|entry| entry.number())
    };
    if value(FILL_ORDER) == Some(2.0) {
        return Err(unread("TIFF with the bits of a byte reversed"));
    }
    if matches!(image, DynamicImage::ImageRgb32F(_) | DynamicImage::ImageRgba32F(_)) {
        return Err(unread("TIFF of floating-point numbers"));
    }
    let is_multiplied = value(EXTRA_SAMPLES) == Some(1.0);
    if is_multiplied {
        samples::divide_by_alpha(image);
    }
    Ok(())
}

fn unread(what: &str) -> String {
    format!("is in a format that fewvit does not read ({what}); convert it to JPEG or PNG")
}

fn check_size(width: usize, height: usize) -> Result<(), String> {
    match (width, height) {
        (0, _) | (_, 0) => Err(format!("is damaged (it claims {width}x{height} pixels)")),
        _ if width.saturating_mul(height) > MAX_PIXELS => Err(format!(
            "is too large: {width}x{height} pixels, at most {} million are read",
            MAX_PIXELS / 1_000_000
        )),
        _ => Ok(()),
    }
}

/// What a file without an image's first bytes is instead.
pub(super) fn what_it_is(bytes: &[u8]) -> String {
    let start = &bytes[..bytes.len().min(512)];
    let text = String::from_utf8_lossy(start).to_lowercase();
    let is_text = start.iter().all(|b| matches!(b, b'\t' | b'\n' | b'\r' | 0x20..=0x7e | 0x80..));
    let what = if bytes.is_empty() {
        "is empty (0 bytes)"
    } else if start.iter().all(|b| *b == 0) {
        "holds only zero bytes"
    } else if bytes.get(4..8) == Some(b"ftyp") {
        "is a HEIC, AVIF or video file; convert it to JPEG"
    } else if text.contains("<html") || text.contains("<!doctype") {
        "is a web page, not an image"
    } else if text.contains("<svg") {
        "is an SVG drawing; convert it to PNG"
    } else if is_text {
        "is a text file, not an image"
    } else {
        "is no image in a format that fewvit reads (JPEG, PNG, GIF, BMP, TIFF, WebP, PNM)"
    };
    what.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::metadata::Orientation;
    use safetensors::SafeTensors;

    const GOLDEN: &[u8] = include_bytes!("../../tests/golden/decode_images.safetensors");

    fn decode(bytes: &[u8], depth: Depth) -> Result<Rgb8, String> {
        super::decode(bytes, depth, Treatment::default())
    }

    fn golden(name: &str) -> (Vec<u8>, Rgb8) {
        let golden = SafeTensors::deserialize(GOLDEN).unwrap();
        let rgb = golden.tensor(&format!("{name}.rgb")).unwrap();
        let (height, width) = (rgb.shape()[0], rgb.shape()[1]);
        let file = golden.tensor(&format!("{name}.file")).unwrap().data().to_vec();
        (file, Rgb8 { width, height, pixels: rgb.data().to_vec() })
    }

    fn names() -> Vec<String> {
        let golden = SafeTensors::deserialize(GOLDEN).unwrap();
        let names = golden.names().into_iter();
        let mut names: Vec<String> =
            names.filter_map(|n| n.strip_suffix(".file")).map(str::to_owned).collect();
        names.sort();
        names
    }

    #[test]
    fn pixels_are_those_of_pil() {
        let names = names();
        assert_eq!(names.len(), 31);
        for name in names {
            let (file, expected) = golden(&name);
            let image = decode(&file, Depth::Pil).unwrap_or_else(|e| panic!("{name} {e}"));
            assert_eq!((image.width, image.height), (expected.width, expected.height), "{name}");
            let differ = image.pixels.iter().zip(&expected.pixels).filter(|(a, b)| a != b).count();
            assert_eq!(differ, 0, "{name}: so many of {} bytes differ", expected.pixels.len());
        }
    }

    /// Names say what is expected; see tests/golden/decode_variants.py.
    #[test]
    fn rare_kinds_of_files_are_read_as_pil_does_or_refused() {
        let bytes = include_bytes!("../../tests/golden/decode_variants.safetensors");
        let golden = SafeTensors::deserialize(bytes).unwrap();
        let mut counts = [0; 4];
        for name in golden.names().iter().filter_map(|name| name.strip_suffix(".file")) {
            let file = golden.tensor(&format!("{name}.file")).unwrap().data();
            if name.starts_with("refused_") {
                let reason = decode(file, Depth::Pil).unwrap_err();
                assert!(
                    reason.contains("does not read") || name.contains("gif"),
                    "{name} {reason}"
                );
                counts[0] += 1;
                continue;
            }
            let allowed = if name.starts_with("near_") { 1 } else { 0 };
            counts[1 + usize::from(allowed)] += 1;
            for (kind, depth) in [("rgb", Depth::Pil), ("auto", Depth::Auto)] {
                let Ok(expected) = golden.tensor(&format!("{name}.{kind}")) else { continue };
                let image = decode(file, depth).unwrap_or_else(|e| panic!("{name} {e}"));
                assert_eq!([image.height, image.width], expected.shape()[..2], "{name}");
                let apart = image.pixels.iter().zip(expected.data()).map(|(a, b)| a.abs_diff(*b));
                assert!(apart.max() <= Some(allowed), "{name} {kind}");
                counts[3] += usize::from(depth == Depth::Auto);
            }
        }
        assert_eq!(counts, [9, 67, 6, 8], "refused, equal, near, with 16 bits stretched");
    }

    /// See tests/golden/decode_orientation.py.
    #[test]
    fn pictures_are_turned_as_pil_turns_them() {
        let golden = include_str!("../../tests/golden/decode_orientation.txt");
        let hex = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
        for line in golden.lines() {
            let [name, orientation, file] = line.split(' ').collect::<Vec<_>>()[..] else {
                panic!("{line}")
            };
            let file: Vec<u8> = file.as_bytes().chunks(2).map(hex).collect();
            let found = match image::guess_format(&file).unwrap() {
                ImageFormat::Jpeg => jpeg::decode(&file, true).unwrap().1.orientation(),
                format => Metadata::of_file(&file, format).orientation(),
            };
            assert_eq!(Some(found), Orientation::from_exif(orientation.parse().unwrap()), "{name}");
            let image = decode(&file, Depth::Pil).unwrap();
            let is_on_its_side = matches!(orientation, "5" | "6" | "7" | "8");
            let sides = if is_on_its_side { (2, 3) } else { (3, 2) };
            assert_eq!((image.width, image.height), sides, "{name}");
        }
        assert_eq!(golden.lines().count(), 118);
    }

    #[test]
    fn colours_are_told_apart() {
        for (name, colour) in [
            ("baseline_420_jpg", Colour::Rgb),
            ("grey_jpg", Colour::Grey),
            ("cmyk_jpg", Colour::Cmyk),
            ("ycck_jpg", Colour::Cmyk),
            ("rgba_png", Colour::Alpha),
            ("grey_16_png", Colour::Grey),
        ] {
            assert_eq!(
                decode_described(&golden(name).0, Depth::Pil, Treatment::default())
                    .unwrap()
                    .1
                    .colour,
                colour,
                "{name}"
            );
        }
    }

    #[test]
    fn every_cut_is_noticed() {
        for name in names() {
            let (file, _) = golden(&name);
            // Behind the last pixel: checksums and an end chunk, a trailer.
            let tail = match name.rsplit_once('_') {
                Some((_, "png")) => 24,
                Some((_, "gif")) => 8,
                Some((_, "webp")) => 3,
                _ => 1,
            };
            for end in (1..=file.len() - tail).step_by(7).chain([file.len() - tail]) {
                assert!(
                    decode(&file[..end], Depth::Pil).is_err(),
                    "{name} cut to {end} of {}",
                    file.len()
                );
            }
        }
        let jpeg = golden("progressive_420_jpg").0;
        assert!(decode(&jpeg[..jpeg.len() - 60], Depth::Pil).unwrap_err().contains("cut short"));
        // The length of the first segment, which is now as long as the file or longer.
        let mut damaged = jpeg.clone();
        damaged[4] = 0xff;
        assert!(decode(&damaged, Depth::Pil).unwrap_err().contains("lengths of its segments"));
    }

    #[test]
    fn damage_never_panics() {
        let mut rng = crate::rng::stream(1, crate::rng::Purpose::Bench, 0, 0, 0);
        let mut draw = |below: usize| (rand::Rng::next_u64(&mut rng) % below as u64) as usize;
        for name in names() {
            let (file, _) = golden(&name);
            for _ in 0..60 {
                let mut file = file.clone();
                for _ in 0..1 + draw(4) {
                    let at = draw(file.len());
                    file[at] = draw(256) as u8;
                }
                let _ = decode(&file, Depth::Pil);
            }
        }
    }

    #[test]
    fn holes_in_the_picture_are_noticed() {
        for name in ["baseline_420_jpg", "progressive_420_jpg", "grey_jpg", "cmyk_jpg"] {
            let (mut file, _) = golden(name);
            let end = file.len() - 2;
            file.drain(end - 40..end);
            assert!(decode(&file, Depth::Pil).unwrap_err().contains("data is corrupt"), "{name}");
        }
    }

    #[test]
    fn harmless_sloppiness_is_accepted() {
        let (file, _) = golden("baseline_420_jpg");
        let whole = decode(&file, Depth::Pil).unwrap();
        let with = |at: usize, extra: &[u8]| [&file[..at], extra, &file[at..]].concat();
        // Data after the end, filler before a marker, a few stray bytes between segments and
        // before the end marker.
        assert_eq!(decode(&with(file.len(), b"camera junk"), Depth::Pil).unwrap(), whole);
        assert_eq!(decode(&with(20, &[0xff, 0xff]), Depth::Pil).unwrap(), whole);
        assert_eq!(decode(&with(20, &[0; 9]), Depth::Pil).unwrap(), whole);
        assert_eq!(decode(&with(file.len() - 2, &[0; 9]), Depth::Pil).unwrap(), whole);
    }

    #[test]
    fn reasons_are_in_plain_words() {
        let reason = |bytes: &[u8]| decode(bytes, Depth::Pil).unwrap_err();
        assert_eq!(reason(b""), "is empty (0 bytes)");
        assert_eq!(reason(b"tulip, 3\nrose, 4\n"), "is a text file, not an image");
        assert_eq!(reason(b"<!DOCTYPE html><html>404"), "is a web page, not an image");
        assert_eq!(reason(&[0; 600]), "holds only zero bytes");
        assert!(reason(b"\0\0\0\x18ftypheic\0\0").contains("HEIC"));
        assert!(reason(b"\x7fELF\x02\x01").contains("no image in a format"));
        let mut huge = golden("baseline_420_jpg").0;
        let frame = huge.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
        huge[frame + 5..frame + 9].copy_from_slice(&[0xff, 0, 0xff, 0]);
        assert!(reason(&huge).contains("too large: 65280x65280"));
        let mut huge = golden("rgb_bmp").0;
        huge[18..26].copy_from_slice(&[0, 0, 1, 0, 0, 0, 1, 0]);
        assert!(reason(&huge).contains("too large"), "{}", reason(&huge));
    }

    /// See tests/golden/decode_premature.py.
    #[test]
    fn damaged_data_of_published_sets_is_read_as_pil_reads_it() {
        let text = include_str!("../../tests/golden/decode_premature.txt");
        let bytes = |line: &str| -> Vec<u8> {
            let byte = |i: usize| u8::from_str_radix(&line[i..i + 2], 16).unwrap();
            (0..line.len()).step_by(2).map(byte).collect()
        };
        let [file, expected] = text.lines().map(bytes).collect::<Vec<_>>().try_into().unwrap();
        assert!(decode(&file, Depth::Pil).unwrap_err().contains("compressed data is corrupt"));
        let image = super::decode(&file, Depth::Pil, Treatment::PUBLISHED).unwrap();
        assert_eq!((image.width, image.height), (32, 24));
        assert_eq!(image.pixels, expected);
        let published = |file: &[u8]| super::decode(file, Depth::Pil, Treatment::PUBLISHED);
        let error = published(&file[..file.len() - 2]).unwrap_err();
        assert!(error.contains("cut short"), "damaged, and who knows what is missing");
        // The end marker alone may be missing; a download that broke off is never forgiven.
        for name in ["baseline_420_jpg", "progressive_420_jpg", "grey_jpg", "cmyk_jpg"] {
            let (file, expected) = golden(name);
            let end = file.len() - 2;
            let is_progressive = name.starts_with("progressive");
            assert_eq!(published(&file[..end]).ok() == Some(expected), !is_progressive, "{name}");
            for end in 1..end - 4 {
                assert!(published(&file[..end]).is_err(), "{name} cut to {end}");
            }
        }
    }

    /// Editors write comments in encodings of their own (Pets have such files), and cameras EXIF
    /// blocks that lead nowhere (ImageNet has such files).
    #[test]
    fn what_stands_beside_the_picture_is_not_read_as_text() {
        let (file, expected) = golden("baseline_420_jpg");
        let segment = |marker: u8, data: &[u8]| {
            let length = u16::try_from(data.len() + 2).unwrap().to_be_bytes();
            [&[0xff, marker], &length[..], data].concat()
        };
        let comment = segment(0xfe, b"Adobe Photoshop\xa8 4.0\0\xff");
        let far = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\xff\xff\xff\xff\xff";
        for segment in [comment, segment(0xe1, far), segment(0xe1, b"Exif\0\0")] {
            let file = [&file[..2], &segment, &file[2..]].concat();
            for treatment in [Treatment::default(), Treatment::PUBLISHED] {
                let image = super::decode(&file, Depth::Pil, treatment).unwrap();
                assert_eq!(image, expected, "{segment:?}");
            }
        }
    }

    /// A picture of two rows and three columns that is to be turned by a quarter.
    #[test]
    fn treatment_says_whether_to_turn_and_what_to_cut() {
        let golden = include_str!("../../tests/golden/decode_orientation.txt");
        let on_its_side = golden.lines().find_map(|line| {
            let [name, "6", file] = line.split(' ').collect::<Vec<_>>()[..] else { return None };
            let byte = |i: usize| u8::from_str_radix(&file[i..i + 2], 16).unwrap();
            let file: Vec<u8> = (0..file.len()).step_by(2).map(byte).collect();
            (name == "png_short_little").then_some(file)
        });
        let file = on_its_side.unwrap();
        let size = |turn, cut_rows| {
            let treatment = Treatment { turn, cut_rows, ..Treatment::default() };
            let image = super::decode(&file, Depth::Pil, treatment).unwrap();
            assert_eq!(image.pixels.len(), 3 * image.width * image.height);
            (image.width, image.height)
        };
        let (width, height) = size(true, 0);
        assert_eq!(size(false, 0), (height, width), "as it is stored");
        assert_ne!(width, height);
        assert_eq!(size(false, 1), (height, width - 1));
        assert_eq!(size(false, 500), (height, 1), "a row is left");
    }
}
