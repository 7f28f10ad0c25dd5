//! Operations on crops in the words of the kernel `augment`.

use crate::data::augment::{CUTOUT, ExtendedBox, Op, Rotation};

/// Values of an `Op` in `kernels/feed_augment.cu`: two doubles, two floats, a code and seven integers.
pub const WORDS: usize = 14;

/// What `op` is there, for crops of `side` pixels.
pub fn words(op: &Op, side: usize) -> [u32; WORDS] {
    let nothing = Words::default();
    let factor = |code, factor: f64| Words { code, floats: [factor as f32, 0.0], ..nothing };
    let moved = |code, doubles| Words { code, doubles, ..nothing };
    let whole = |code, i: i32| Words { code, ints: [i, 0, 0, 0, 0, 0, 0], ..nothing };
    let words = match *op {
        Op::HorizontalFlip => whole(0, 0),
        Op::Brightness(by) => factor(1, by),
        Op::Contrast(by) => factor(2, by),
        Op::Saturation(by) => factor(3, by),
        Op::Hue(shift) => whole(4, ((shift * 255.0) as i32 as u8).into()),
        Op::Grayscale => whole(5, 0),
        Op::GaussianBlur(sigma) => {
            let ExtendedBox { reach, inner, end } = ExtendedBox::new(sigma as f32);
            Words { floats: [inner, end], ..whole(6, reach as i32) }
        }
        Op::Sharpness(by) => factor(7, by),
        Op::Invert => whole(8, 0),
        Op::AutoContrast => whole(9, 0),
        Op::Equalize => whole(10, 0),
        Op::Posterize(bits) => whole(11, !(0xff >> bits) & 0xff),
        // The first whole number that is not below.
        Op::Solarize(from) => whole(12, from.ceil() as i32),
        Op::Cutout(area) => {
            let ends = [area.x, area.y, area.x + area.w, area.y + area.h];
            let [x, y, right, bottom] = ends.map(|end| end as i32);
            let [r, g, b] = CUTOUT.map(i32::from);
            Words { code: 13, ints: [x, y, right, bottom, r, g, b], ..nothing }
        }
        Op::Erase { area, seed } => {
            let ends = [area.x, area.y, area.x + area.w, area.y + area.h];
            let [x, y, right, bottom] = ends.map(|end| end as i32);
            let [low, high] = [seed as u32, (seed >> 32) as u32].map(|half| half as i32);
            Words { code: 14, ints: [x, y, right, bottom, low, high, 0], ..nothing }
        }
        Op::ShearX(slope) => moved(15, [slope, 0.0]),
        Op::ShearY(slope) => moved(16, [slope, 0.0]),
        Op::TranslateX(by) => moved(17, [by, 0.0]),
        Op::TranslateY(by) => moved(17, [0.0, by]),
        Op::Rotate(degrees) => {
            let Rotation { start, along, down } = Rotation::new(degrees, side, side);
            let [[x, y], [ax, ay], [dx, dy]] = [start, along, down].map(|v| v.map(|v| v as i32));
            Words { code: 18, ints: [x, y, ax, ay, dx, dy, 0], ..nothing }
        }
    };
    words.flat()
}

#[derive(Clone, Copy, Default)]
struct Words {
    doubles: [f64; 2],
    floats: [f32; 2],
    code: u32,
    ints: [i32; 7],
}

impl Words {
    fn flat(self) -> [u32; WORDS] {
        let [a, b] = self.doubles.map(f64::to_bits);
        let [f, g] = self.floats.map(f32::to_bits);
        let [low, high] = [|v: u64| v as u32, |v: u64| (v >> 32) as u32];
        let mut all = [low(a), high(a), low(b), high(b), f, g, self.code, 0, 0, 0, 0, 0, 0, 0];
        for (to, from) in all[7..].iter_mut().zip(self.ints) {
            *to = from as u32;
        }
        all
    }
}
