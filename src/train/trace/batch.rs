//! The tensors that a trace works on.

use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};

use crate::error::{Error, Result};
use crate::weights;

/// A safetensors file with a batch.
pub struct BatchFile {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl BatchFile {
    /// The file at `path`.
    ///
    /// # Errors
    /// It cannot be read or is no safetensors file.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|source| Error::io("read", path, source))?;
        weights::open(path, &bytes)?;
        Ok(Self { path: path.to_path_buf(), bytes })
    }

    fn view(&self, name: &str) -> Result<TensorView<'_>> {
        let file = weights::open(&self.path, &self.bytes)?;
        file.tensor(name).map_err(|_| self.misfit(&format!("it has no tensor `{name}`")))
    }

    /// Whether there is a tensor of that name.
    pub fn has(&self, name: &str) -> bool {
        self.view(name).is_ok()
    }

    /// Type and shape of a tensor.
    ///
    /// # Errors
    /// It is not there.
    pub fn kind(&self, name: &str) -> Result<(Dtype, Vec<usize>)> {
        self.view(name).map(|view| (view.dtype(), view.shape().to_vec()))
    }

    /// Shape and values of a float tensor.
    ///
    /// # Errors
    /// It is not there or of another type.
    pub fn floats(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let view = self.view(name)?;
        let values = weights::floats(&view);
        let values = values.ok_or_else(|| self.misfit(&format!("`{name}` is not f32")))?;
        Ok((view.shape().to_vec(), values))
    }

    /// Shape `[.., 3, S, S]` and values of square images, at least one.
    ///
    /// # Errors
    /// As [`Self::floats`], or another shape.
    pub fn pixels(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let (shape, values) = self.floats(name)?;
        match shape[..] {
            [.., 3, height, width] if height == width && !values.is_empty() => Ok((shape, values)),
            _ => Err(self.misfit(&format!("`{name}` is {shape:?}, which are no square images"))),
        }
    }

    /// An i64 tensor `[rows]` of positions.
    ///
    /// # Errors
    /// It is not there, of another type or shape, or has a negative entry.
    pub fn integers(&self, name: &str, rows: usize) -> Result<Vec<usize>> {
        let view = self.view(name)?;
        let (dtype, shape) = (view.dtype(), view.shape());
        if dtype != Dtype::I64 || shape != [rows] {
            return Err(
                self.misfit(&format!("`{name}` is {dtype:?} {shape:?}; wanted I64 [{rows}]"))
            );
        }
        let values = view.data().as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes));
        let position = |value| {
            usize::try_from(value).map_err(|_| self.misfit(&format!("`{name}` has a {value}")))
        };
        values.map(position).collect()
    }

    /// Why the file is of no use.
    pub fn misfit(&self, why: &str) -> Error {
        Error::Usage(format!("the batch {} cannot be used: {why}", self.path.display()))
    }
}
