//! The first frame of a GIF on its canvas, as PIL has it.

use std::io::Cursor;

use gif::{ColorOutput, DecodeOptions, DecodingError, MemoryLimit};
use image::{DynamicImage, RgbImage};

use super::{MAX_PIXELS, check_size};

/// The canvas: around the frame it has the transparent colour, or else the first of the palette,
/// never the background that the header names; transparency is dropped.
pub fn decode(bytes: &[u8]) -> Result<DynamicImage, String> {
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    options.set_memory_limit(MemoryLimit::Bytes(
        std::num::NonZeroU64::new(MAX_PIXELS as u64).ok_or("is too large")?,
    ));
    let mut decoder = options.read_info(Cursor::new(bytes)).map_err(|e| reason(&e))?;
    let global = decoder.global_palette().map(<[u8]>::to_vec);
    let (width, height) = (usize::from(decoder.width()), usize::from(decoder.height()));
    let frame = decoder.read_next_frame().map_err(|e| reason(&e))?;
    let frame = frame.ok_or("is cut short: it ends before the picture does")?;
    let [left, top, columns, rows] =
        [frame.left, frame.top, frame.width, frame.height].map(usize::from);
    // A frame that reaches over the edge enlarges the canvas.
    let (width, height) = (width.max(left + columns), height.max(top + rows));
    check_size(width, height)?;
    let mut canvas = vec![frame.transparent.unwrap_or(0); width * height];
    if columns > 0 {
        let lines = canvas.chunks_exact_mut(width).skip(top);
        for (line, pixels) in lines.zip(frame.buffer.chunks_exact(columns)) {
            line[left..left + columns].copy_from_slice(pixels);
        }
    }
    // A table that counts up in grey is none to PIL, which then looks further and ends with levels
    // of grey; beyond the end of any other table it has black.
    let is_table = |table: &Vec<u8>| {
        let (entries, _) = table.as_chunks::<3>();
        entries.iter().enumerate().any(|(i, entry)| *entry != [i as u8; 3])
    };
    let table = frame.palette.clone().filter(is_table).or(global.filter(is_table));
    let colour = |&index: &u8| match &table {
        None => [index; 3],
        Some(table) => {
            table.as_chunks::<3>().0.get(usize::from(index)).copied().unwrap_or_default()
        }
    };
    let pixels = canvas.iter().flat_map(colour).collect();
    let image =
        RgbImage::from_raw(width as u32, height as u32, pixels).ok_or("is damaged (size)")?;
    Ok(DynamicImage::ImageRgb8(image))
}

fn reason(error: &DecodingError) -> String {
    match error {
        DecodingError::Io(io) if io.kind() == std::io::ErrorKind::UnexpectedEof => {
            "is cut short: it ends before the picture does".into()
        }
        e => format!("is damaged ({e})"),
    }
}
