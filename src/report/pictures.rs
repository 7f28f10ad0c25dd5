//! Pictures of pictures: the contact sheet of a training batch and thumbnails for the web page.

use std::io::Cursor;
use std::path::Path;

use base64::Engine as _;
use image::codecs::jpeg::JpegEncoder;
use image::imageops::{self, FilterType};
use image::{ExtendedColorType, RgbImage};

use crate::data::Rgb8;
use crate::error::{Error, Result};

/// Pixels between two pictures of a contact sheet.
const GAP: usize = 2;

/// All images in rows of `columns`, each centred in a cell as large as the largest image.
pub fn contact_sheet(images: &[Rgb8], columns: usize) -> Rgb8 {
    let columns = columns.clamp(1, images.len().max(1));
    let cell_width = images.iter().map(|i| i.width).max().unwrap_or(0) + GAP;
    let cell_height = images.iter().map(|i| i.height).max().unwrap_or(0) + GAP;
    let rows = images.len().div_ceil(columns);
    let mut sheet = Rgb8::new(columns * cell_width + GAP, rows * cell_height + GAP);
    sheet.pixels.fill(255);
    for (i, image) in images.iter().enumerate() {
        let left = i % columns * cell_width + (cell_width + GAP - image.width) / 2;
        let top = i / columns * cell_height + (cell_height + GAP - image.height) / 2;
        for (y, row) in image.pixels.chunks_exact((image.width * 3).max(1)).enumerate() {
            let at = ((top + y) * sheet.width + left) * 3;
            sheet.pixels[at..at + row.len()].copy_from_slice(row);
        }
    }
    sheet
}

/// Writes a JPEG of quality 90.
pub fn save_jpeg(path: &Path, image: &Rgb8) -> Result<()> {
    crate::files::write_atomically(path, &jpeg(&image.pixels, image.width, image.height, 90)?)
}

/// The image with its long side at most `side` pixels, as a `data:` URI for a web page.
pub fn thumbnail(image: &Rgb8, side: usize) -> Result<String> {
    let long = image.width.max(image.height).max(1);
    let fit = |length: usize| (length * side.min(long)).div_ceil(long).max(1) as u32;
    let (width, height) = (fit(image.width), fit(image.height));
    let full = RgbImage::from_raw(image.width as u32, image.height as u32, image.pixels.clone())
        .ok_or_else(|| Error::Failed("an image's pixels do not fit its size".to_string()))?;
    let small = imageops::resize(&full, width, height, FilterType::Triangle);
    let bytes = jpeg(&small, width as usize, height as usize, 80)?;
    Ok(format!(
        "data:image/jpeg;base64,{}",
        base64::engine::general_purpose::STANDARD.encode(bytes)
    ))
}

fn jpeg(pixels: &[u8], width: usize, height: usize, quality: u8) -> Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    JpegEncoder::new_with_quality(&mut bytes, quality)
        .encode(pixels, width as u32, height as u32, ExtendedColorType::Rgb8)
        .map_err(|e| Error::Failed(format!("cannot encode a {width}x{height} JPEG: {e}")))?;
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(width: usize, height: usize, colour: [u8; 3]) -> Rgb8 {
        Rgb8 { width, height, pixels: colour.repeat(width * height) }
    }

    #[test]
    fn sheet_puts_every_image_in_its_cell() {
        let red = [250, 0, 0];
        let sheet = contact_sheet(&[plain(4, 4, [0; 3]), plain(4, 4, red), plain(2, 2, red)], 2);
        assert_eq!((sheet.width, sheet.height), (14, 14));
        let at = |x: usize, y: usize| &sheet.pixels[(y * 14 + x) * 3..][..3];
        assert_eq!(at(2, 2), [0, 0, 0]);
        assert_eq!(at(8, 5), red);
        assert_eq!(at(7, 5), [255; 3]);
        // The small one is centred in the cell that spans 2..6 and 8..12.
        assert_eq!((at(2, 8), at(3, 9), at(4, 10)), (&[255; 3][..], &red[..], &red[..]));
        assert_eq!((contact_sheet(&[], 4).width, contact_sheet(&[], 4).height), (4, 2));
    }

    #[test]
    fn thumbnails_keep_aspect_and_colour() {
        let uri = thumbnail(&plain(300, 100, [10, 200, 30]), 96).unwrap();
        let encoded = uri.strip_prefix("data:image/jpeg;base64,").unwrap();
        let bytes = base64::engine::general_purpose::STANDARD.decode(encoded).unwrap();
        let small = image::load_from_memory(&bytes).unwrap().to_rgb8();
        assert_eq!(small.dimensions(), (96, 32));
        let middle = small.get_pixel(40, 16).0;
        assert!(middle.iter().zip([10, 200, 30]).all(|(&a, b)| a.abs_diff(b) < 6), "{middle:?}");
    }
}
