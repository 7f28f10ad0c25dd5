//! From the bytes of an image file to 8-bit RGB, the way PIL's `convert("RGB")` has it.
//!
//! Two deliberate differences: the EXIF orientation is applied, and 16-bit grey is scaled to
//! 8 bits where PIL clips it. A file that ends early is an error, not a picture with a grey end.

use std::ffi::c_int;
use std::io::{self, Cursor};
use std::panic::{UnwindSafe, catch_unwind, resume_unwind};
use std::ptr::null;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};
use mozjpeg::{ColorSpace, Decompress, Marker};
use mozjpeg_sys::{jpeg_common_struct, jpeg_error_mgr};

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

/// With the C code of libjpeg-turbo, as PIL: it alone has PIL's rounding in the inverse DCT, the
/// chroma upsampling and the colour conversion.
fn decode_jpeg(bytes: &[u8]) -> Result<(Rgb8, Colour), String> {
    if is_cut_short(bytes) {
        return Err("is cut short: it ends before the picture does".into());
    }
    let header = catch_libjpeg(|| read_jpeg_header(bytes))
        .map_err(|reason| format!("is damaged or an unusual kind of JPEG ({reason})"))?;
    let JpegHeader { width, height, stored, orientation } = header;
    check_size(width, height)?;
    let (colour, pixels) = match stored {
        ColorSpace::JCS_YCbCr | ColorSpace::JCS_RGB => (Colour::Rgb, ColorSpace::JCS_RGB),
        ColorSpace::JCS_GRAYSCALE => (Colour::Grey, ColorSpace::JCS_RGB),
        ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK => (Colour::Cmyk, ColorSpace::JCS_CMYK),
        _ => return Err("has unusual colour channels; convert it to PNG".into()),
    };
    let mut pixels = catch_libjpeg(|| read_jpeg_pixels(bytes, pixels))
        .map_err(|reason| format!("is damaged ({reason})"))?;
    if colour == Colour::Cmyk {
        pixels = rgb_of_inverted_cmyk(&pixels);
    }
    let buffer = RgbImage::from_raw(width as u32, height as u32, pixels);
    let mut image = DynamicImage::ImageRgb8(buffer.ok_or("is damaged (size)")?);
    image.apply_orientation(orientation);
    Ok((to_rgb8(image), colour))
}

struct JpegHeader {
    width: usize,
    height: usize,
    stored: ColorSpace,
    orientation: Orientation,
}

fn read_jpeg_header(bytes: &[u8]) -> io::Result<JpegHeader> {
    let decoder = Decompress::with_markers(&[Marker::APP(1)]).from_mem(bytes)?;
    let mut exif = decoder.markers().filter_map(|m| m.data.strip_prefix(b"Exif\0\0"));
    let orientation = exif.next().and_then(Orientation::from_exif_chunk);
    Ok(JpegHeader {
        width: decoder.width(),
        height: decoder.height(),
        stored: decoder.color_space(),
        orientation: orientation.unwrap_or(Orientation::NoTransforms),
    })
}

/// Stops at the last pixel: what lies between it and the end marker does no harm.
fn read_jpeg_pixels(bytes: &[u8], colours: ColorSpace) -> io::Result<Vec<u8>> {
    let decoder = Decompress::with_err(strict_errors()).from_mem(bytes)?;
    decoder.to_colorspace(colours)?.read_scanlines()
}

/// How mozjpeg begins what it throws.
const LIBJPEG_ERROR: &str = "libjpeg fatal error: ";

/// `f`'s result, or libjpeg's reason for unwinding out of it, which is how mozjpeg reports errors.
/// Any other panic goes on.
fn catch_libjpeg<T>(f: impl FnOnce() -> io::Result<T> + UnwindSafe) -> Result<T, String> {
    let thrown = match catch_unwind(f) {
        Ok(result) => return result.map_err(|e| e.to_string()),
        Err(thrown) => thrown,
    };
    match thrown.downcast_ref::<String>().and_then(|text| text.strip_prefix(LIBJPEG_ERROR)) {
        Some(reason) => Err(reason.to_owned()),
        None => resume_unwind(thrown),
    }
}

/// Lenient with headers, where cameras are sloppy; strict with the picture, where libjpeg paints
/// what is missing grey, with a mere warning.
fn strict_errors() -> jpeg_error_mgr {
    /// libjpeg's `global_state` when it has the headers and awaits `jpeg_start_decompress`.
    const DSTATE_READY: c_int = 202;

    extern "C-unwind" fn stop(_: &mut jpeg_common_struct) {
        resume_unwind(Box::new(format!("{LIBJPEG_ERROR}its compressed data is corrupt")));
    }
    extern "C-unwind" fn stop_if_picture_suffers(libjpeg: &mut jpeg_common_struct, level: c_int) {
        let is_warning = level < 0;
        if is_warning && libjpeg.global_state > DSTATE_READY {
            stop(libjpeg);
        }
    }
    extern "C-unwind" fn ignore(_: &mut jpeg_common_struct) {}

    jpeg_error_mgr {
        error_exit: Some(stop),
        emit_message: Some(stop_if_picture_suffers),
        output_message: Some(ignore),
        format_message: None,
        reset_error_mgr: Some(ignore),
        msg_code: 0,
        msg_parm: Default::default(),
        trace_level: 0,
        num_warnings: 0,
        jpeg_message_table: null(),
        last_jpeg_message: 0,
        addon_message_table: null(),
        first_addon_message: 0,
        last_addon_message: 0,
    }
}

/// `[c, m, y, k]` to `[r, g, b]` as PIL has it: all JPEG files are taken to hold the ink left out,
/// the way Adobe writes them, so 255 is none.
fn rgb_of_inverted_cmyk(cmyk: &[u8]) -> Vec<u8> {
    // a * b / 255, rounded.
    let scaled = |a: u8, b: u8| {
        let product = u32::from(a) * u32::from(b) + 128;
        ((product + (product >> 8)) >> 8) as u8
    };
    let (pixels, _) = cmyk.as_chunks::<4>();
    pixels.iter().flat_map(|&[c, m, y, k]| [c, m, y].map(|ink| k - scaled(255 - ink, k))).collect()
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

    #[test]
    fn pixels_are_those_of_pil() {
        let names = names();
        assert_eq!(names.len(), 31);
        for name in names {
            let (file, expected) = golden(&name);
            let image = decode(&file).unwrap_or_else(|e| panic!("{name} {e}"));
            assert_eq!((image.width, image.height), (expected.width, expected.height), "{name}");
            let differ = image.pixels.iter().zip(&expected.pixels).filter(|(a, b)| a != b).count();
            assert_eq!(differ, 0, "{name}: so many of {} bytes differ", expected.pixels.len());
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
    fn holes_in_the_picture_are_noticed() {
        for name in ["baseline_420_jpg", "progressive_420_jpg", "grey_jpg", "cmyk_jpg"] {
            let (mut file, _) = golden(name);
            let end = file.len() - 2;
            file.drain(end - 40..end);
            assert!(decode(&file).unwrap_err().contains("data is corrupt"), "{name}");
        }
    }

    #[test]
    fn harmless_sloppiness_is_accepted() {
        let (file, _) = golden("baseline_420_jpg");
        let whole = decode(&file).unwrap();
        let with = |at: usize, extra: &[u8]| [&file[..at], extra, &file[at..]].concat();
        // Data after the end, filler before a marker, a few stray bytes between segments and
        // before the end marker.
        assert_eq!(decode(&with(file.len(), b"camera junk")).unwrap(), whole);
        assert_eq!(decode(&with(20, &[0xff, 0xff])).unwrap(), whole);
        assert_eq!(decode(&with(20, &[0; 9])).unwrap(), whole);
        assert_eq!(decode(&with(file.len() - 2, &[0; 9])).unwrap(), whole);
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
        huge[frame + 5..frame + 9].copy_from_slice(&[0xff, 0, 0xff, 0]);
        assert!(reason(&huge).contains("too large: 65280x65280"));
        let mut huge = golden("rgb_bmp").0;
        huge[18..26].copy_from_slice(&[0, 0, 1, 0, 0, 0, 1, 0]);
        assert!(reason(&huge).contains("too large"), "{}", reason(&huge));
    }
}
