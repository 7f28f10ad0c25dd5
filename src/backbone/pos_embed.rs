//! Position embeddings for another img-size.

/// Resizes a position table with a class-token row by bicubic interpolation as PyTorch's `interpolate`
/// (a = -0.75, `align_corners = false`, no antialias).
///
/// `table`: `[1 + old * old, dim]` row-major; returns `[1 + new * new, dim]`.
pub fn resize_pos_embed(table: &[f32], old: usize, new: usize, dim: usize) -> Vec<f32> {
    let (class, grid) = table.split_at(dim);
    let taps: Vec<_> = (0..new).map(|i| cubic_taps(i, old, new)).collect();
    let mut resized = class.to_vec();
    resized.reserve(new * new * dim);
    for vertical in &taps {
        for horizontal in &taps {
            resized.extend((0..dim).map(|c| {
                let row = |&(y, wy): &(usize, f64)| {
                    let at =
                        |&(x, wx): &(usize, f64)| wx * f64::from(grid[(y * old + x) * dim + c]);
                    wy * horizontal.iter().map(at).sum::<f64>()
                };
                vertical.iter().map(row).sum::<f64>() as f32
            }));
        }
    }
    resized
}

/// The four source positions, clamped to the table, and weights of output `i`.
fn cubic_taps(i: usize, old: usize, new: usize) -> [(usize, f64); 4] {
    let centre = (i as f64 + 0.5) * old as f64 / new as f64 - 0.5;
    let first = centre.floor();
    let t = centre - first;
    std::array::from_fn(|k| {
        let position = (first as i64 + k as i64 - 1).clamp(0, old as i64 - 1);
        (position as usize, cubic((t - (k as f64 - 1.0)).abs()))
    })
}

/// Keys' cubic convolution with PyTorch's a = -0.75.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.75;
    if x <= 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_pytorch_interpolate() {
        // python: x = torch.tensor([[[[1.,2,4],[3,5,9],[-2,0,7]]]]);
        //         F.interpolate(x, size=(4,4), mode="bicubic", align_corners=False).flatten()
        let table = [10.0, 1.0, 2.0, 4.0, 3.0, 5.0, 9.0, -2.0, 0.0, 7.0];
        let expected = include_str!("../../tests/golden/pos_embed.txt");
        let expected: Vec<f32> = expected.split_whitespace().map(|v| v.parse().expect(v)).collect();
        let resized = resize_pos_embed(&table, 3, 4, 1);
        assert_eq!(resized[0], 10.0);
        for (a, b) in resized[1..].iter().zip(&expected) {
            assert!((a - b).abs() < 1e-5, "{resized:?} {expected:?}");
        }
    }
}
