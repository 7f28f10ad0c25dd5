//! A view as it was drawn, before it is made: on the CPU here, on a GPU by an engine.

use super::op::Op;
use super::resize::{CropBox, resize};
use crate::config::Interpolation;
use crate::data::Rgb8;

/// Where an image is cut, and what is done to the square crop then.
#[derive(Clone, Debug, PartialEq)]
pub struct DrawnView {
    /// The part of the image that shows.
    pub area: CropBox,
    /// In this order.
    pub ops: Vec<Op>,
}

impl DrawnView {
    /// The view of `image`, `[img_size, img_size, 3]`.
    ///
    /// # Panics
    /// If the area is not inside the image.
    pub fn of(&self, image: &Rgb8, img_size: usize, interpolation: Interpolation) -> Rgb8 {
        let mut view = resize(image, self.area, img_size, img_size, interpolation);
        self.ops.iter().for_each(|op| op.apply(&mut view));
        view
    }
}
