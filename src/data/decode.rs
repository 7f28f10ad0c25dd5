//! From the bytes of an image file to 8-bit RGB, the way PIL's `convert("RGB")` has it.
//!
//! Two deliberate differences: the EXIF orientation is applied, and 16-bit grey is scaled to
//! 8 bits where PIL clips it. A file that ends early is an error, not a picture with a grey end.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::image::Rgb8;

/// Larger pictures are refused before any memory is set aside for them.
const MAX_PIXELS: usize = 100_000_000;

/// How a file stores its colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// The picture in `bytes`, or why there is none, in words that follow "the file ...".
///
/// # Errors
/// A reason such as `is a text file, not an image`.
pub fn decode(bytes: &[u8]) -> Result<Rgb8, String> {
    decode_described(bytes).map(|(image, _)| image)
}

/// As [`decode`], and how the file stores its colours.
///
/// # Errors
/// As [`decode`].
pub fn decode_described(bytes: &[u8]) -> Result<(Rgb8, Colour), String> {
    match image::guess_format(bytes) {
        Ok(ImageFormat::Jpeg) => decode_jpeg(bytes),
        Ok(format) => decode_other(bytes, format),
        Err(_) => Err(what_it_is(bytes)),
    }
}

fn decode_jpeg(bytes: &[u8]) -> Result<(Rgb8, Colour), String> {
    let options = DecoderOptions::default()
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let damaged = |e: &dyn std::fmt::Display| match is_cut_short(bytes) {
        true => "is cut short: it ends before the picture does".into(),
        false => format!("is damaged ({e})"),
    };
    let mut decoder =
        JpegDecoder::new_with_options(ZCursor::new(bytes), options.set_strict_mode(false));
    decoder.decode_headers().map_err(|e| damaged(&e))?;
    let (width, height) = decoder.dimensions().ok_or("is damaged (no dimensions)")?;
    check_size(width, height)?;
    let colour = match decoder.input_colorspace() {
        Some(ColorSpace::Luma) => Colour::Grey,
        Some(ColorSpace::CMYK | ColorSpace::YCCK) => Colour::Cmyk,
        _ => Colour::Rgb,
    };
    // Lenient with headers, where cameras are sloppy; strict with the picture, where leniency
    // paints what is missing grey.
    decoder.set_options(options.set_strict_mode(true));
    let pixels = decoder.decode().map_err(|e| damaged(&e))?;
    // The last row of blocks may be cut without the decoder noticing.
    if is_cut_short(bytes) || pixels.len() != width * height * 3 {
        return Err(damaged(&"unusual colour channels"));
    }
    let image = Rgb8 { width, height, pixels };
    let orientation = decoder.exif().and_then(|exif| Orientation::from_exif_chunk(exif));
    match orientation {
        None | Some(Orientation::NoTransforms) => Ok((image, colour)),
        Some(orientation) => {
            let buffer = RgbImage::from_raw(width as u32, height as u32, image.pixels);
            let mut turned = DynamicImage::ImageRgb8(buffer.ok_or("is damaged (size)")?);
            turned.apply_orientation(orientation);
            Ok((to_rgb8(turned), colour))
        }
    }
}

/// Whether a JPEG lacks the end-of-image marker of its main picture.
///
/// Walks the header segments by their lengths, so that a thumbnail's marker does not count; in the
/// compressed data the marker's two bytes cannot occur otherwise.
fn is_cut_short(bytes: &[u8]) -> bool {
    let mut at = 2;
    loop {
        match bytes.get(at..at + 4) {
            None => return true,
            Some([0xff, 0xda, ..]) => return !bytes[at..].windows(2).any(|w| w == [0xff, 0xd9]),
            Some([0xff, 0xff, ..]) => at += 1,
            Some([0xff, _, high, low]) => {
                at += 2 + usize::from(u16::from_be_bytes([*high, *low])).max(2);
            }
            Some(_) => at += 1,
        }
    }
}

fn decode_other(bytes: &[u8], format: ImageFormat) -> Result<(Rgb8, Colour), String> {
    let reason = |e: image::ImageError| match e {
        image::ImageError::Unsupported(_) => {
            format!("is in a format that fewvit does not read ({e}); convert it to JPEG or PNG")
        }
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
    let mut decoder = reader.into_decoder().map_err(reason)?;
    let (width, height) = decoder.dimensions();
    check_size(width as usize, height as usize)?;
    let stored = decoder.color_type();
    let colour = match (stored.has_alpha(), stored.has_color()) {
        (true, _) => Colour::Alpha,
        (false, true) => Colour::Rgb,
        (false, false) => Colour::Grey,
    };
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut image = DynamicImage::from_decoder(decoder).map_err(reason)?;
    image.apply_orientation(orientation);
    Ok((to_rgb8(image), colour))
}

fn to_rgb8(image: DynamicImage) -> Rgb8 {
    let rgb = image.into_rgb8();
    let (width, height) = (rgb.width() as usize, rgb.height() as usize);
    Rgb8 { width, height, pixels: rgb.into_raw() }
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
fn what_it_is(bytes: &[u8]) -> String {
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
    use safetensors::SafeTensors;

    const GOLDEN: &[u8] = include_bytes!("../../tests/golden/decode_images.safetensors");

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

    /// PIL decodes with libjpeg-turbo, whose inverse DCT and chroma upsampling round otherwise.
    /// Measured: all else equal; JPEG mean 0.41 and maximum 4 with subsampling, 0.02 and 2 without.
    #[test]
    fn pixels_are_those_of_pil() {
        let names = names();
        assert_eq!(names.len(), 31);
        for name in names {
            let (file, expected) = golden(&name);
            let image = decode(&file).unwrap_or_else(|e| panic!("{name} {e}"));
            assert_eq!((image.width, image.height), (expected.width, expected.height), "{name}");
            let pairs = image.pixels.iter().zip(&expected.pixels);
            let off: Vec<u32> = pairs.map(|(a, b)| u32::from(a.abs_diff(*b))).collect();
            let mean = f64::from(off.iter().sum::<u32>()) / off.len() as f64;
            let max = off.iter().copied().max().unwrap_or(0);
            let (mean_limit, max_limit) = if name.ends_with("jpg") { (0.5, 4) } else { (0.0, 0) };
            assert!(mean <= mean_limit && max <= max_limit, "{name}: mean {mean:.3}, max {max}");
        }
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
            assert_eq!(decode_described(&golden(name).0).unwrap().1, colour, "{name}");
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
                assert!(decode(&file[..end]).is_err(), "{name} cut to {end} of {}", file.len());
            }
        }
        let jpeg = golden("progressive_420_jpg").0;
        assert!(decode(&jpeg[..jpeg.len() - 60]).unwrap_err().contains("cut short"));
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
                let _ = decode(&file);
            }
        }
    }

    #[test]
    fn harmless_sloppiness_is_accepted() {
        let (file, _) = golden("baseline_420_jpg");
        let whole = decode(&file).unwrap();
        let with = |at: usize, extra: &[u8]| [&file[..at], extra, &file[at..]].concat();
        // Data after the end, filler before a marker, a few stray bytes between segments.
        assert_eq!(decode(&with(file.len(), b"camera junk")).unwrap(), whole);
        assert_eq!(decode(&with(20, &[0xff, 0xff])).unwrap(), whole);
        assert_eq!(decode(&with(20, &[0; 9])).unwrap(), whole);
    }

    #[test]
    fn reasons_are_in_plain_words() {
        let reason = |bytes: &[u8]| decode(bytes).unwrap_err();
        assert_eq!(reason(b""), "is empty (0 bytes)");
        assert_eq!(reason(b"tulip, 3\nrose, 4\n"), "is a text file, not an image");
        assert_eq!(reason(b"<!DOCTYPE html><html>404"), "is a web page, not an image");
        assert_eq!(reason(&[0; 600]), "holds only zero bytes");
        assert!(reason(b"\0\0\0\x18ftypheic\0\0").contains("HEIC"));
        assert!(reason(b"\x7fELF\x02\x01").contains("no image in a format"));
        let mut huge = golden("baseline_420_jpg").0;
        let frame = huge.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
        huge[frame + 5..frame + 9].copy_from_slice(&[0xff, 0xff, 0xff, 0xff]);
        assert!(reason(&huge).contains("too large: 65535x65535"));
        let mut huge = golden("rgb_bmp").0;
        huge[18..26].copy_from_slice(&[0, 0, 1, 0, 0, 0, 1, 0]);
        assert!(reason(&huge).contains("too large"), "{}", reason(&huge));
    }
}
