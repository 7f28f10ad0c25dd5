//! JPEG with the C code of libjpeg-turbo, as PIL: it alone has PIL's rounding in the inverse DCT, the
//! chroma upsampling and the colour conversion.

use std::ffi::c_int;
use std::io;
use std::panic::{UnwindSafe, catch_unwind, resume_unwind};
use std::ptr::null;

use image::{DynamicImage, RgbImage};
use mozjpeg::{ColorSpace, Decompress, Marker};
use mozjpeg_sys::{jpeg_common_struct, jpeg_error_mgr};

use super::orientation::Metadata;
use super::{Colour, check_size};

/// How the two kinds of APP1 segments begin.
const EXIF: &[u8] = b"Exif\0\0";
const XMP: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";

/// The marker at the end of a file.
const END: [u8; 2] = [0xff, 0xd9];

/// The picture before it is turned upright, how it is to be turned, and how its colours are stored.
///
/// If `strict`, damaged data and a missing end marker are errors. Otherwise libjpeg makes something
/// of damaged data, and a file may lack the end marker, but no part of the picture.
pub fn decode(
    bytes: &[u8],
    strict: bool,
) -> Result<(DynamicImage, Metadata<'static>, Colour), String> {
    let incomplete = || match bytes.ends_with(&END) {
        true => "is damaged (the lengths of its segments lead past its picture)".to_owned(),
        false => "is cut short: it ends before the picture does".to_owned(),
    };
    let Ending { is_there, is_of_one_scan } = ending(bytes);
    match is_there {
        true => decode_whole(bytes, strict),
        false if strict || !is_of_one_scan => Err(incomplete()),
        false => decode_whole(&[bytes, &END].concat(), true).map_err(|_| incomplete()),
    }
}

fn decode_whole(
    bytes: &[u8],
    strict: bool,
) -> Result<(DynamicImage, Metadata<'static>, Colour), String> {
    let header = catch_libjpeg(|| read_header(bytes))
        .map_err(|reason| format!("is damaged or an unusual kind of JPEG ({reason})"))?;
    let JpegHeader { width, height, stored, metadata } = header;
    check_size(width, height)?;
    let (colour, pixels) = match stored {
        ColorSpace::JCS_YCbCr | ColorSpace::JCS_RGB => (Colour::Rgb, ColorSpace::JCS_RGB),
        ColorSpace::JCS_GRAYSCALE => (Colour::Grey, ColorSpace::JCS_RGB),
        ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK => (Colour::Cmyk, ColorSpace::JCS_CMYK),
        _ => return Err("has unusual colour channels; convert it to PNG".into()),
    };
    let mut pixels = catch_libjpeg(|| read_pixels(bytes, pixels, strict))
        .map_err(|reason| format!("is damaged ({reason})"))?;
    if colour == Colour::Cmyk {
        pixels = rgb_of_inverted_cmyk(&pixels);
    }
    let buffer = RgbImage::from_raw(width as u32, height as u32, pixels);
    let image = DynamicImage::ImageRgb8(buffer.ok_or("is damaged (size)")?);
    Ok((image, metadata, colour))
}

struct JpegHeader {
    width: usize,
    height: usize,
    stored: ColorSpace,
    metadata: Metadata<'static>,
}

fn read_header(bytes: &[u8]) -> io::Result<JpegHeader> {
    let decoder = Decompress::with_markers(&[Marker::APP(1)]).from_mem(bytes)?;
    let mut metadata = Metadata::default();
    // EXIF may go on in a second segment; of XMP the last packet counts.
    for segment in decoder.markers() {
        if segment.data.starts_with(EXIF) {
            let exif = metadata.exif.get_or_insert_default().to_mut();
            exif.extend(&segment.data[if exif.is_empty() { 0 } else { EXIF.len() }..]);
        } else if let Some(packet) = segment.data.strip_prefix(XMP) {
            metadata.xmp = Some(packet.to_vec().into());
        }
    }
    Ok(JpegHeader {
        width: decoder.width(),
        height: decoder.height(),
        stored: decoder.color_space(),
        metadata,
    })
}

/// Stops at the last pixel: what lies between it and the end marker does no harm.
fn read_pixels(bytes: &[u8], colours: ColorSpace, strict: bool) -> io::Result<Vec<u8>> {
    let decoder = Decompress::with_err(errors(strict)).from_mem(bytes)?;
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

/// Lenient with headers, where cameras are sloppy; if it is to be strict, not with the picture, where
/// libjpeg paints what is missing grey, with a mere warning.
fn errors(strict: bool) -> jpeg_error_mgr {
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
    extern "C-unwind" fn go_on(_: &mut jpeg_common_struct, _: c_int) {}

    jpeg_error_mgr {
        error_exit: Some(stop),
        emit_message: Some(if strict { stop_if_picture_suffers } else { go_on }),
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

/// What a JPEG's segments say of its end.
struct Ending {
    /// Whether the end marker of the main picture is there.
    is_there: bool,
    /// Whether all colours are in one scan, so that libjpeg notices any missing part of it. Of
    /// several scans the last ones could be missing altogether.
    is_of_one_scan: bool,
}

/// Walks the header segments by their lengths, so that a thumbnail's marker does not count; in the
/// compressed data the marker's two bytes cannot occur otherwise.
fn ending(bytes: &[u8]) -> Ending {
    let mut at = 2;
    // Colours of a frame that is not progressive.
    let mut colours = None;
    loop {
        match bytes.get(at..at + 4) {
            None => return Ending { is_there: false, is_of_one_scan: false },
            Some([0xff, 0xda, ..]) => {
                let is_there = bytes[at..].windows(2).any(|pair| pair == END);
                let of_scan = bytes.get(at + 4);
                let is_of_one_scan = of_scan.is_some() && of_scan == colours;
                return Ending { is_there, is_of_one_scan };
            }
            Some([0xff, 0xff, ..]) => at += 1,
            Some([0xff, marker, high, low]) => {
                if matches!(marker, 0xc0 | 0xc1) {
                    colours = bytes.get(at + 9);
                }
                at += 2 + usize::from(u16::from_be_bytes([*high, *low])).max(2);
            }
            Some(_) => at += 1,
        }
    }
}
