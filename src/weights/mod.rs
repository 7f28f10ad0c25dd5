//! Named tensors in files: safetensors written atomically, and strict filling of a model from them;
//! checkpoints of other programs in [`import()`].

mod checkpoint;
mod import;
mod tensor_file;

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::error::{Error, Result};
use crate::nn::ParamSpec;
use crate::words::listed_lines;
pub use import::{Head, Import, Take, import, import_taking};
pub use tensor_file::{TensorFile, ToWrite, write_tensors};

/// Shape and values of a named tensor.
pub type Named = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Reads every float tensor of a safetensors file as f32.
///
/// # Errors
/// No safetensors file, or a tensor of another type than f32, f16, bf16 and f64, or with a value that is not
/// finite.
pub fn read(path: &Path) -> Result<Named> {
    let file = TensorFile::open(path).map_err(|why| unusable(path, &why))?;
    let tensor = |name: String| {
        let Some(info) = file.info(&name) else { return Err(unusable(path, &name)) };
        let bytes = file.bytes(info).map_err(|source| Error::io("read", path, source))?;
        let values = to_f32(info.dtype, &bytes).ok_or_else(|| {
            Error::Failed(format!("{}: `{name}` is {:?}, not float", path.display(), info.dtype))
        })?;
        refuse_not_finite(path, &name, &values)?;
        Ok((name, (info.shape.clone(), values)))
    };
    file.names().into_iter().map(tensor).collect()
}

/// Refuses the file at `path` if its tensor `name` has a value that is not finite: whatever a model says with
/// it would look like an answer and be none.
fn refuse_not_finite(path: &Path, name: &str, values: &[f32]) -> Result<()> {
    match values.iter().all(|value| value.is_finite()) {
        true => Ok(()),
        false => Err(Error::Failed(format!(
            "{}: `{name}` holds values that are infinite or not a number, so its model has no answers\n  \
             take another checkpoint, or train the model again with a lower learning rate",
            path.display()
        ))),
    }
}

fn unusable(path: &Path, why: &str) -> Error {
    Error::Failed(format!("{} is no usable safetensors file: {why}", path.display()))
}

/// Opens the bytes of a safetensors file.
///
/// # Errors
/// They are none.
pub fn open<'a>(path: &Path, bytes: &'a [u8]) -> Result<SafeTensors<'a>> {
    SafeTensors::deserialize(bytes).map_err(|e| unusable(path, &e.to_string()))
}

/// The values as f32, `None` for types that are no floats.
pub fn floats(view: &TensorView) -> Option<Vec<f32>> {
    to_f32(view.dtype(), view.data())
}

/// [`floats`] of little-endian bytes.
fn to_f32(dtype: Dtype, data: &[u8]) -> Option<Vec<f32>> {
    let halves = || data.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match dtype {
        Dtype::F32 => Some(from_le_bytes(data).collect()),
        Dtype::BF16 => Some(halves().map(|h| f32::from_bits(u32::from(h) << 16)).collect()),
        Dtype::F16 => Some(halves().map(half_to_f32).collect()),
        Dtype::F64 => {
            let eight = |b: &[u8]| b.try_into().map(f64::from_le_bytes).unwrap_or(f64::NAN);
            Some(data.chunks_exact(8).map(|b| eight(b) as f32).collect())
        }
        _ => None,
    }
}

/// IEEE 754 half precision to single.
fn half_to_f32(half: u16) -> f32 {
    let (sign, exponent, fraction) = (half >> 15, half >> 10 & 31, f32::from(half & 1023));
    let magnitude = match exponent {
        0 => fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        e => (1.0 + fraction / 1024.0) * 2f32.powi(i32::from(e) - 15),
    };
    if sign == 1 { -magnitude } else { magnitude }
}

/// Writes the parameters of a flat vector as a safetensors file that PyTorch tools accept.
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, specs: &[ParamSpec], values: &[f32]) -> Result<()> {
    let tensors = specs.iter().map(|spec| {
        let values = &values[spec.range.clone()];
        (spec.key.clone(), &spec.shape[..], values)
    });
    let header = [("format".to_owned(), "pt".to_owned())].into();
    write_tensors(path, tensors.collect(), Some(header))
}

/// Fills `values` from `weights`: every parameter must be there in its shape, and nothing more.
///
/// # Errors
/// Missing, unused or mis-shaped keys, the first of them by name.
pub fn fill_strictly(specs: &[ParamSpec], values: &mut [f32], weights: &Named) -> Result<()> {
    let mut problems = Vec::new();
    for spec in specs {
        match weights.get(&spec.key) {
            None => problems.push(format!("missing: {}", spec.key)),
            Some((shape, _)) if *shape != spec.shape => {
                problems.push(format!("{} is {shape:?}, the model's is {:?}", spec.key, spec.shape))
            }
            Some((_, tensor)) => values[spec.range.clone()].copy_from_slice(tensor),
        }
    }
    let known = |key: &&String| specs.iter().any(|spec| spec.key == **key);
    problems.extend(weights.keys().filter(|k| !known(k)).map(|key| format!("unused: {key}")));
    match problems.is_empty() {
        true => Ok(()),
        false => Err(Error::Failed(format!(
            "the weights do not fit the model: they are of another one or of another image size{}",
            listed_lines(&problems)
        ))),
    }
}

/// Values of little-endian f32 bytes.
pub fn from_le_bytes(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_precision_values() {
        // numpy: np.array([1.5, -2, 65504, 6e-8, np.inf], "float16").view("uint16")
        for (bits, value) in [
            (15872, 1.5),
            (49152, -2.0),
            (31743, 65504.0),
            (1, 5.960_464_5e-8),
            (31744, f32::INFINITY),
        ] {
            assert_eq!(half_to_f32(bits), value);
        }
    }

    #[test]
    fn weights_that_are_not_finite_are_refused_by_file_and_tensor() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.safetensors");
        for (value, usable) in [(f32::MAX, true), (f32::NAN, false), (f32::NEG_INFINITY, false)] {
            let values = [0.0, value];
            let tensors: Vec<ToWrite> =
                vec![("a".to_owned(), &[1], &[1.0]), ("b".to_owned(), &[2], &values)];
            write_tensors(&path, tensors, None).expect("written");
            let whole = read(&path).map(|_| ());
            let file = checkpoint::Checkpoint::open(&path).expect("opened");
            assert!(file.values("a").is_ok());
            for result in [whole, file.values("b").map(|_| ())] {
                assert_eq!(result.is_ok(), usable, "{value}");
                let Err(error) = result else { continue };
                let text = error.to_string();
                assert!(text.contains("a.safetensors: `b`"), "{text}");
                assert!(text.contains("take another checkpoint"), "{text}");
            }
        }
    }

    #[test]
    fn every_misfit_is_named() {
        let spec = |key: &str, shape: &[usize], start: usize| ParamSpec {
            key: key.to_owned(),
            shape: shape.to_vec(),
            range: start..start + shape.iter().product::<usize>(),
            frozen: false,
        };
        let specs = [spec("a", &[2], 0), spec("b", &[1, 2], 2), spec("c", &[1], 4)];
        let weights = Named::from([
            ("a".to_owned(), (vec![2], vec![1.0, 2.0])),
            ("b".to_owned(), (vec![2, 1], vec![3.0, 4.0])),
            ("d".to_owned(), (vec![1], vec![5.0])),
        ]);
        let error = fill_strictly(&specs, &mut [0.0; 5], &weights).expect_err("three misfits");
        let text = error.to_string();
        for part in ["missing: c", "unused: d", "b is [2, 1], the model's is [1, 2]"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
