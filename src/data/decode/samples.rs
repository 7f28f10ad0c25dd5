//! From the samples that a file stores to 8 bits.

use image::{DynamicImage, ImageBuffer, Pixel, RgbImage};

use crate::config::Depth;

/// Red, green and blue in 8 bits, transparency dropped.
///
/// Of 16-bit samples the upper byte is kept, as PIL does with colour. PIL clips 16-bit *grey* to
/// 255, which leaves white; it is read like colour here. [`Depth::Auto`] takes the 8 bits below the
/// highest one that the file uses instead.
pub fn to_rgb8(image: DynamicImage, depth: Depth) -> RgbImage {
    match image {
        DynamicImage::ImageLuma16(image) => reduced(&image, depth),
        DynamicImage::ImageLumaA16(image) => reduced(&image, depth),
        DynamicImage::ImageRgb16(image) => reduced(&image, depth),
        DynamicImage::ImageRgba16(image) => reduced(&image, depth),
        image => image.into_rgb8(),
    }
}

fn reduced<P: Pixel<Subpixel = u16>>(image: &ImageBuffer<P, Vec<u16>>, depth: Depth) -> RgbImage {
    let largest = || image.pixels().flat_map(|p| p.to_rgb().0).max().unwrap_or(0);
    let bits = match depth {
        Depth::Pil => u16::BITS,
        Depth::Auto => (u16::BITS - largest().leading_zeros()).max(u8::BITS),
    };
    let level = |v: u16| (v >> (bits - u8::BITS)) as u8;
    let pixels = image.pixels().flat_map(|p| p.to_rgb().0.map(level)).collect();
    // Cannot fail: there are three bytes for each pixel.
    RgbImage::from_raw(image.width(), image.height(), pixels).unwrap_or_default()
}

/// Undoes the multiplication of colour by opacity, as PIL does when it opens such a TIFF.
pub fn divide_by_alpha(image: &mut DynamicImage) {
    let DynamicImage::ImageRgba8(image) = image else { return };
    for pixel in image.pixels_mut() {
        let [r, g, b, alpha] = pixel.0.map(u32::from);
        if alpha != 255 {
            let divided = |c: u32| (255 * c).checked_div(alpha).unwrap_or(0).min(255) as u8;
            pixel.0 = [divided(r), divided(g), divided(b), alpha as u8];
        }
    }
}
