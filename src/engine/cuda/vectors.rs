//! Vectors as long as the parameters, as they lie on a card: each parameter begins where matrix products
//! like it.

use std::sync::Arc;

use super::gpu::{ALIGNMENT, Gpu, Memory, View};
use crate::engine::passes::CHUNK;
use crate::error::Result;
use crate::nn::ParamSpec;
use crate::nn::readers::plan::Place;

/// Where each parameter begins.
pub struct Vectors {
    specs: Vec<ParamSpec>,
    starts: Vec<usize>,
    /// Values of a vector, gaps included.
    pub len: usize,
}

impl Vectors {
    /// For these parameters.
    pub fn new(specs: &[ParamSpec]) -> Self {
        let mut len = 0;
        let starts = specs.iter().map(|spec| {
            let start = len;
            len += spec.range.len().next_multiple_of(ALIGNMENT);
            start
        });
        let starts = starts.collect();
        Self { specs: specs.to_vec(), starts, len }
    }

    /// Sends a flat vector, of which only the first parameters may be given, to memory of its own.
    ///
    /// # Errors
    /// There is not as much memory.
    pub fn send(&self, gpu: &Arc<Gpu>, flat: &[f32]) -> Result<Memory> {
        let memory = gpu.memory(self.len)?;
        let mut padded = vec![0.0; self.len];
        for (spec, &start) in self.specs.iter().zip(&self.starts) {
            padded[start..][..spec.range.len()].copy_from_slice(&flat[spec.range.clone()]);
        }
        gpu.upload(memory.view(), &padded)?;
        Ok(memory)
    }

    /// Reads a vector.
    ///
    /// # Errors
    /// The device failed.
    pub fn read(&self, gpu: &Gpu, from: View, flat: &mut [f32]) -> Result<()> {
        self.read_from(gpu, from, 0, flat)
    }

    /// Reads the parameters from number `first` on.
    ///
    /// # Errors
    /// The device failed.
    pub fn read_from(&self, gpu: &Gpu, from: View, first: usize, flat: &mut [f32]) -> Result<()> {
        let Some(&begin) = self.starts.get(first) else { return Ok(()) };
        let padded: Vec<f32> = gpu.download(from.from(begin))?;
        for (spec, &start) in self.specs.iter().zip(&self.starts).skip(first) {
            flat[spec.range.clone()].copy_from_slice(&padded[start - begin..][..spec.range.len()]);
        }
        Ok(())
    }

    /// Overwrites the parameters from number `first` on.
    ///
    /// # Errors
    /// The device failed.
    pub fn write_from(&self, gpu: &Gpu, to: View, first: usize, flat: &[f32]) -> Result<()> {
        let Some(&begin) = self.starts.get(first) else { return Ok(()) };
        let mut padded = vec![0.0; self.len - begin];
        for (spec, &start) in self.specs.iter().zip(&self.starts).skip(first) {
            padded[start - begin..][..spec.range.len()].copy_from_slice(&flat[spec.range.clone()]);
        }
        gpu.upload(to.from(begin), &padded)
    }

    /// The values of a parameter in a vector, from where `place` says.
    pub fn of(&self, vector: View, place: Place) -> View {
        let len = self.specs[place.parameter].range.len();
        let start = self.starts[place.parameter];
        vector.part(start + place.offset..start + len)
    }

    /// Pieces of one parameter each: where they lie, how many values they have, whose they are.
    pub fn pieces(&self) -> Vec<[u32; 3]> {
        let of_parameter = |(i, (spec, &start)): (usize, (&ParamSpec, &usize))| {
            let len = spec.range.len();
            let piece = move |at: usize| [start + at, CHUNK.min(len - at), i].map(|n| n as u32);
            (0..len).step_by(CHUNK).map(piece)
        };
        self.specs.iter().zip(&self.starts).enumerate().flat_map(of_parameter).collect()
    }
}
