//! Results of the images that can be read, and words on those that cannot.

use std::path::{Path, PathBuf};

use super::data_args::BadImage;
use crate::error::{Error, Result};

/// Collects results in the order of the images.
pub(super) struct Readable {
    policy: BadImage,
    model: PathBuf,
    positions: Vec<usize>,
    values: Vec<f32>,
    unreadable: usize,
}

impl Readable {
    /// Nothing yet of `model`; what cannot be read is treated by `policy`.
    pub(super) fn new(policy: BadImage, model: &Path) -> Self {
        let model = model.to_path_buf();
        Self { policy, model, positions: Vec::new(), values: Vec::new(), unreadable: 0 }
    }

    /// Takes the values of the image at `position`, or names it on standard error.
    ///
    /// # Errors
    /// It cannot be read and the policy is [`BadImage::Error`]; as [`refuse_not_finite`].
    pub(super) fn take(&mut self, position: usize, values: Result<Vec<f32>>) -> Result<()> {
        match values {
            Ok(values) => {
                refuse_not_finite(&self.model, &values)?;
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

/// Refuses what `model` says of an image if it is not finite: no class and no measurement follows from it.
///
/// # Errors
/// A value is infinite or not a number.
pub(super) fn refuse_not_finite(model: &Path, outputs: &[f32]) -> Result<()> {
    match outputs.iter().all(|value| value.is_finite()) {
        true => Ok(()),
        false => Err(Error::Failed(format!(
            "{}: what the model says of an image is infinite or not a number\n  its training went wrong or \
             its file was changed: take another model, or train it again with a lower --lr",
            model.display()
        ))),
    }
}

/// Whatever the system said of an image's file, it is the data that cannot be used.
pub(super) fn unreadable_image(error: Error) -> Error {
    Error::Data(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_is_the_models_fault_and_no_bad_image() {
        let mut readable = Readable::new(BadImage::Skip, Path::new("runs/a"));
        readable.take(0, Ok(vec![f32::MAX, 0.0])).expect("numbers");
        readable.take(1, Err(Error::Data("b.jpg is cut off".to_owned()))).expect("left out");
        for broken in [f32::NAN, f32::INFINITY] {
            let error = readable.take(2, Ok(vec![0.0, broken])).expect_err("no number");
            assert_eq!(error.exit_code(), 1);
            assert!(error.to_string().starts_with("runs/a: what the model says"), "{error}");
        }
        let (positions, values) = readable.all(Path::new("photos")).expect("one image");
        assert_eq!((positions, values), (vec![0], vec![f32::MAX, 0.0]));
    }
}
