//! Crops cross to a device as bytes; there they are mixed and normalised.

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::data::mixing::{Mix, MixKind};

/// The rows of a crop group as a model sees them, `[rows, 3, s, s]`: what [`Mix::write_row`] writes,
/// made on the device.
///
/// `crops`: `[rows, s, s, 3]` before mixing.
///
/// # Panics
/// If `crops` is shorter than its shape says.
pub fn pixels(
    crops: &[u8],
    mix: &Mix,
    s: usize,
    mean: [f32; 3],
    std: [f32; 3],
    device: &Device,
) -> Tensor<4> {
    let rows = mix.partner.len();
    let own = bytes(&crops[..rows * s * s * 3], device).reshape([rows, s, s, 3]);
    let other = || {
        let partner: Vec<i32> = mix.partner.iter().map(|&row| row as i32).collect();
        let partner = Tensor::<1, Int>::from_data(TensorData::new(partner, [rows]), device);
        own.clone().select(0, partner)
    };
    let mixed = match mix.kind {
        MixKind::None => own,
        // A slice without pixels is none.
        MixKind::CutMix(area) if area.area() == 0 => own,
        MixKind::CutMix(area) => {
            let place = [0..rows, area.y..area.y + area.h, area.x..area.x + area.w, 0..3];
            own.clone().slice_assign(place.clone(), other().slice(place))
        }
        MixKind::Mixup => own.clone() * mix.lambda + other() * (1.0 - mix.lambda),
    };
    let of_channels = |value: &dyn Fn(usize) -> f32| {
        let values: Vec<f32> = (0..3).map(value).collect();
        Tensor::<4>::from_data(TensorData::new(values, [1, 1, 1, 3]), device)
    };
    let scale = of_channels(&|c| 1.0 / (255.0 * std[c]));
    let offset = of_channels(&|c| -mean[c] / std[c]);
    (mixed * scale + offset).permute([0, 3, 1, 2])
}

/// The values of bytes, `[words, 4]` with up to three zeros at the end cut off.
///
/// They cross in words of four: GPUs know no integer of 8 bits.
fn bytes(bytes: &[u8], device: &Device) -> Tensor<1> {
    let (whole, rest) = bytes.as_chunks();
    let mut words: Vec<i32> = whole.iter().map(|four| i32::from_le_bytes(*four)).collect();
    if !rest.is_empty() {
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        words.push(i32::from_le_bytes(last));
    }
    let count = words.len();
    let words = Tensor::<2, Int>::from_data(TensorData::new(words, [count, 1]), device);
    let shifts = Tensor::<2, Int>::from_data([[0, 8, 16, 24]], device);
    let values = words.repeat_dim(1, 4).bitwise_right_shift(shifts.repeat_dim(0, count));
    let values = values.bitwise_and_scalar(255).float().reshape([4 * count]);
    values.narrow(0, 0, bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::augment::CropBox;

    #[test]
    fn a_device_sees_the_pixels_that_the_cpu_writes() {
        let (rows, s) = (3, 5);
        let crops: Vec<u8> = (0..rows * s * s * 3).map(|i| (i * 37 % 256) as u8).collect();
        let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
        let area = |w, h| MixKind::CutMix(CropBox { x: 1, y: 2, w, h });
        for kind in [MixKind::None, area(3, 2), area(0, 2), MixKind::Mixup] {
            let mix = Mix { kind, lambda: 0.7, partner: vec![2, 1, 0] };
            let mut expected = vec![0.0; rows * 3 * s * s];
            for (row, out) in expected.chunks_exact_mut(3 * s * s).enumerate() {
                mix.write_row(&crops, row, s, mean, std, out);
            }
            let seen = pixels(&crops, &mix, s, mean, std, &crate::ops::cpu());
            assert_eq!(seen.dims(), [rows, 3, s, s]);
            let seen: Vec<f32> = seen.into_data().try_to_vec().expect("f32");
            for (a, b) in seen.iter().zip(&expected) {
                assert!((a - b).abs() < 1e-5, "{kind:?}: {a} is not {b}");
            }
        }
    }
}
