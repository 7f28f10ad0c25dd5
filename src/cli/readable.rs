//! Results of the images that can be read, and words on those that cannot.

use std::path::Path;

use super::data_args::BadImage;
use crate::error::{Error, Result};

/// Collects results in the order of the images.
pub(super) struct Readable {
    policy: BadImage,
    positions: Vec<usize>,
    values: Vec<f32>,
    unreadable: usize,
}

impl Readable {
    /// Nothing yet; what cannot be read is treated by `policy`.
    pub(super) fn new(policy: BadImage) -> Self {
        Self { policy, positions: Vec::new(), values: Vec::new(), unreadable: 0 }
    }

    /// Takes the values of the image at `position`, or names it on standard error.
    ///
    /// # Errors
    /// It cannot be read and the policy is [`BadImage::Error`].
    pub(super) fn take(&mut self, position: usize, values: Result<Vec<f32>>) -> Result<()> {
        match values {
            Ok(values) => {
                self.positions.push(position);
                self.values.extend(values);
            }
            Err(error) if self.policy == BadImage::Error => return Err(unreadable_image(error)),
            Err(error) => {
                self.unreadable += 1;
                eprintln!("note: {error}; left out");
            }
        }
        Ok(())
    }

    /// Positions of the readable images and their values, one row after the other.
    ///
    /// # Errors
    /// Not one of the images at `data` can be read.
    pub(super) fn all(self, data: &Path) -> Result<(Vec<usize>, Vec<f32>)> {
        match self.positions.is_empty() && self.unreadable > 0 {
            true => Err(Error::Data(format!("{}: no image can be read", data.display()))),
            false => Ok((self.positions, self.values)),
        }
    }
}

/// Whatever the system said of an image's file, it is the data that cannot be used.
pub(super) fn unreadable_image(error: Error) -> Error {
    Error::Data(error.to_string())
}
