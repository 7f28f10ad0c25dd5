//! Weights files of any kind, told apart by their content. A tensor stays in its file until it is
//! asked for, so what a file declares costs no memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pytorch_reader::{DType, PickleValue, PytorchReader};
use safetensors::tensor::Dtype;
use zip::{CompressionMethod, ZipArchive};

use super::{TensorFile, refuse_not_finite, to_f32};
use crate::error::{Error, Result};

/// The largest pickle that is read, in bytes. It names tensors and holds none: DeiT-Base with its
/// optimiser takes a twentieth of this. A byte can stand for an object hundreds of times its size.
const LARGEST_PICKLE: u64 = 4 << 20;
/// How the pickles that torch.save wrote before its archives begin: protocol 2 and a long integer.
const LEGACY: [u8; 4] = [0x80, 2, 0x8a, 10];

/// An opened file: safetensors, or what `torch.save` wrote in any of its forms.
pub(super) struct Checkpoint {
    path: PathBuf,
    /// Bytes of the file.
    length: u64,
    tensors: BTreeMap<String, Stored>,
}

/// A tensor in its file.
struct Stored {
    /// `None` for numbers that are no floats.
    dtype: Option<Dtype>,
    shape: Vec<usize>,
    read: Box<dyn Fn() -> std::io::Result<Vec<u8>>>,
}

impl Checkpoint {
    /// Reads what the file says of its tensors.
    ///
    /// # Errors
    /// No file, or none that holds tensors; a pickle that asks to run a program.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let io = |source| Error::io("read", path, source);
        let metadata = std::fs::metadata(path).map_err(io)?;
        let unusable = |why: &str| {
            Error::Failed(format!(
                "{} cannot be used as weights: {why}\n  \
                 give a safetensors file, or one that torch.save wrote (.pth, .pt, .bin)",
                path.display()
            ))
        };
        if !metadata.is_file() {
            return Err(unusable("it is no file"));
        }
        let mut start = Vec::new();
        File::open(path).map_err(io)?.take(9).read_to_end(&mut start).map_err(io)?;
        // A safetensors file begins with eight bytes of length and a JSON object.
        let tensors = match start.get(8) {
            _ if start.is_empty() => Err("it is empty".to_owned()),
            Some(b'{') => in_safetensors(path),
            _ => in_pickle(path),
        };
        let tensors = tensors.map_err(|why| unusable(&why))?;
        Ok(Self { path: path.to_path_buf(), length: metadata.len(), tensors })
    }

    /// The names of all tensors.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of a tensor that is there.
    pub(super) fn shape(&self, key: &str) -> &[usize] {
        &self.tensors[key].shape
    }

    /// The values of a tensor that is there.
    ///
    /// # Errors
    /// They are no floats, not finite, not all there, or more than the file can hold.
    pub(super) fn values(&self, key: &str) -> Result<Vec<f32>> {
        let broken = |why: String| Error::Failed(format!("{}: {why}", self.path.display()));
        let Stored { dtype, shape, read } = &self.tensors[key];
        let dtype = dtype.ok_or_else(|| broken(format!("`{key}` does not hold floats")))?;
        // A view with stride 0 is as long as it says, whatever the file has.
        let bytes = shape.iter().product::<usize>().saturating_mul(dtype.bitsize() / 8);
        if bytes as u64 > self.length {
            let text =
                format!("`{key}` is {shape:?}, more than the {} bytes of the file", self.length);
            return Err(broken(text));
        }
        let bytes = read().map_err(|e| broken(e.to_string()))?;
        let values = to_f32(dtype, &bytes)
            .ok_or_else(|| broken(format!("`{key}` is {dtype:?}, not float")))?;
        refuse_not_finite(&self.path, key, &values)?;
        Ok(values)
    }

    /// Whether a tensor that is there holds floats.
    pub(super) fn is_float(&self, key: &str) -> bool {
        self.tensors[key].dtype.is_some_and(|dtype| to_f32(dtype, &[]).is_some())
    }
}

/// Tensors by name, or why there are none.
type Found = std::result::Result<BTreeMap<String, Stored>, String>;

fn in_safetensors(path: &Path) -> Found {
    let file = TensorFile::open(path);
    let file = Arc::new(file.map_err(|e| format!("it is a broken safetensors file ({e})"))?);
    let tensor = |name: String| {
        let (file, info) = (file.clone(), file.info(&name)?.clone());
        let (dtype, shape) = (Some(info.dtype), info.shape.clone());
        Some((name, Stored { dtype, shape, read: Box::new(move || file.bytes(&info)) }))
    };
    Ok(file.names().into_iter().filter_map(tensor).collect())
}

fn in_pickle(path: &Path) -> Found {
    refuse_bombs(path)?;
    let said = PytorchReader::read_pickle_data(path, None).map_err(|e| e.to_string())?;
    if let Some(call) = program(&said) {
        return Err(format!(
            "it asks to run `{call}`, which was not done; no honest checkpoint does"
        ));
    }
    let reader = PytorchReader::new(path).map_err(|e| e.to_string())?;
    let tensors = reader.into_tensors().into_iter().map(|(name, tensor)| {
        let (_, dtype, shape, read) = tensor.into_parts();
        (name, Stored { dtype: float(dtype), shape, read: Box::new(read) })
    });
    Ok(tensors.collect())
}

fn float(dtype: DType) -> Option<Dtype> {
    match dtype {
        DType::F64 => Some(Dtype::F64),
        DType::F32 => Some(Dtype::F32),
        DType::F16 => Some(Dtype::F16),
        DType::BF16 => Some(Dtype::BF16),
        _ => None,
    }
}

/// Refuses what could unpack to hundreds of times its size: compressed archives, which PyTorch does
/// not write, and pickles too large to be a list of tensors.
fn refuse_bombs(path: &Path) -> std::result::Result<(), String> {
    let mut file = File::open(path).map_err(|e| e.to_string())?;
    let size = file.metadata().map_err(|e| e.to_string())?.len();
    let mut start = [0; LEGACY.len()];
    // A shorter file is no danger.
    let legacy = file.read_exact(&mut start).is_ok() && start == LEGACY;
    let too_large = |size| Err(format!("its pickle of {size} bytes is too large to list tensors"));
    let Ok(mut archive) = ZipArchive::new(file) else {
        // Storages follow in a legacy file, and archives of tar begin with a name.
        return if start[0] == LEGACY[0] && !legacy && size > LARGEST_PICKLE {
            too_large(size)
        } else {
            Ok(())
        };
    };
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(|e| e.to_string())?;
        if entry.compression() != CompressionMethod::Stored {
            return Err("it is a compressed archive, which torch.save does not write".to_owned());
        }
        if entry.name().is_ok_and(|name| name.ends_with("data.pkl"))
            && entry.size() > LARGEST_PICKLE
        {
            return too_large(entry.size());
        }
    }
    Ok(())
}

/// Python's ways to run something, as pickles name them. Nothing of a pickle is ever run here, so
/// the list is for the message, not for safety.
const PROGRAMS: [&str; 14] = [
    "os.",
    "posix.",
    "nt.",
    "subprocess.",
    "sys.",
    "socket.",
    "shutil.",
    "runpy.",
    "pty.",
    "importlib.",
    "ctypes.",
    "builtins.e",
    "builtins.__import__",
    "__builtin__.e",
];

/// The first of [`PROGRAMS`] that a pickle names.
fn program(value: &PickleValue) -> Option<&str> {
    match value {
        PickleValue::List(items) => items.iter().find_map(program),
        PickleValue::Dict(items) => items.values().find_map(program),
        PickleValue::Unsupported(name) => {
            PROGRAMS.iter().any(|start| name.starts_with(start)).then_some(name)
        }
        _ => None,
    }
}
