//! Training steps on tensors from a file, for checks against other frameworks: no augmentation, no
//! drop path, the same batch in every step. [`supervised`] traces the labelled loss of a classifier
//! with AdamW, [`method`] a whole pre-training method with its heads, teacher and memory.

mod batch;
pub mod method;
pub mod supervised;

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::SafeTensors;

use crate::error::Result;
use crate::nn::ParamSpec;
use crate::weights::{Named, write_tensors};

/// Whether a file holds an earlier trace.
fn is_trace(content: &[u8]) -> bool {
    let file = SafeTensors::deserialize(content);
    file.is_ok_and(|file| ["loss", "features"].iter().all(|key| file.tensor(key).is_ok()))
}

/// Adds the parts of a flat vector as `PREFIX` and the parameter's key.
fn insert_all(out: &mut Named, prefix: &str, specs: &[ParamSpec], values: &[f32]) {
    for spec in specs {
        let tensor = (spec.shape.clone(), values[spec.range.clone()].to_vec());
        out.insert(format!("{prefix}{}", spec.key), tensor);
    }
}

/// Rows of `width` values.
fn matrix(width: usize, values: Vec<f32>) -> (Vec<usize>, Vec<f32>) {
    (vec![values.len() / width, width], values)
}

fn write(path: &Path, out: Named, header: Option<HashMap<String, String>>) -> Result<()> {
    let tensors = out.iter().map(|(key, (shape, values))| (key.clone(), &shape[..], &values[..]));
    write_tensors(path, tensors.collect(), header)
}
