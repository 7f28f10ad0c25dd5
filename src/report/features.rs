//! Features as files for other programs.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::{first_line, refuse_to_replace, write_atomically};

/// How features are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// NumPy's, `[n, dim]` f32; the names go beside it as `NAME.txt`.
    Npy,
    /// `file,f0,f1,...`.
    Csv,
    /// A tensor `features` `[n, dim]`, names in the header as JSON.
    Safetensors,
}

/// Features with the names of their images.
pub struct Named<'a> {
    /// `n` names.
    pub files: &'a [&'a str],
    /// `[n, dim]`.
    pub values: &'a [f32],
}

const NPY_MAGIC: &[u8] = b"\x93NUMPY\x01\x00";
/// The header of a .npy file ends at a multiple of this.
const NPY_ALIGNMENT: usize = 64;

impl Format {
    /// By the file's ending.
    ///
    /// # Errors
    /// Another ending.
    pub fn of(path: &Path) -> Result<Self> {
        match path.extension().and_then(|e| e.to_str()) {
            Some("npy") => Ok(Self::Npy),
            Some("csv") => Ok(Self::Csv),
            Some("safetensors") => Ok(Self::Safetensors),
            _ => Err(Error::Usage(format!(
                "{}: features are written as .npy, .csv or .safetensors",
                path.display()
            ))),
        }
    }
}

/// Refuses to write features over a file that holds something else.
///
/// # Errors
/// The file is taken.
pub fn check_path(path: &Path, format: Format) -> Result<()> {
    let names = names_of(path);
    if format == Format::Npy {
        refuse_to_replace(&names, |_| path.is_file())?;
    }
    refuse_to_replace(path, |content| match format {
        // Any program writes such arrays; ours have their names beside them.
        Format::Npy => content.starts_with(NPY_MAGIC) && names.is_file(),
        Format::Csv => is_header(first_line(content)),
        Format::Safetensors => {
            let file = safetensors::SafeTensors::deserialize(content);
            file.is_ok_and(|file| file.tensor("features").is_ok())
        }
    })
}

/// Whether this is the first line of a table of features: the files, `f0`, `f1` and so on.
fn is_header(line: &[u8]) -> bool {
    let Some(columns) = line.strip_prefix(b"file,") else { return false };
    let mut columns = columns.split(|&byte| byte == b',').enumerate();
    columns.all(|(i, column)| column == format!("f{i}").as_bytes())
}

/// Writes `features`.
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, format: Format, features: &Named) -> Result<()> {
    let bytes = match format {
        Format::Npy => {
            let names: String = features.files.iter().map(|name| format!("{name}\n")).collect();
            write_atomically(&names_of(path), names.as_bytes())?;
            npy(features)
        }
        Format::Csv => csv(features)?,
        Format::Safetensors => tensors(features)?,
    };
    write_atomically(path, &bytes)
}

/// The file with the images' names beside an array at `path`.
fn names_of(path: &Path) -> PathBuf {
    path.with_extension("npy.txt")
}

fn dim(features: &Named) -> usize {
    features.values.len() / features.files.len().max(1)
}

fn npy(features: &Named) -> Vec<u8> {
    let shape = format!("({}, {})", features.files.len(), dim(features));
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
    let length = (NPY_MAGIC.len() + 2 + header.len() + 1).next_multiple_of(NPY_ALIGNMENT);
    let padding = length - NPY_MAGIC.len() - 2 - header.len() - 1;
    header.push_str(&" ".repeat(padding));
    header.push('\n');
    let size = (header.len() as u16).to_le_bytes();
    let values = features.values.iter().flat_map(|v| v.to_le_bytes());
    let head = NPY_MAGIC.iter().copied().chain(size).chain(header.into_bytes());
    head.chain(values).collect()
}

fn csv(features: &Named) -> Result<Vec<u8>> {
    let failed = |e: &dyn std::fmt::Display| Error::Failed(format!("cannot write features: {e}"));
    let mut writer = csv::Writer::from_writer(Vec::new());
    let columns = (0..dim(features)).map(|i| format!("f{i}"));
    let head: Vec<String> = std::iter::once("file".to_owned()).chain(columns).collect();
    writer.write_record(&head).map_err(|e| failed(&e))?;
    let rows = features.values.chunks_exact(dim(features).max(1));
    for (name, row) in features.files.iter().zip(rows) {
        let values = row.iter().map(f32::to_string);
        let record: Vec<String> = std::iter::once((*name).to_owned()).chain(values).collect();
        writer.write_record(&record).map_err(|e| failed(&e))?;
    }
    writer.into_inner().map_err(|e| failed(&e))
}

fn tensors(features: &Named) -> Result<Vec<u8>> {
    let failed = |e: &dyn std::fmt::Display| Error::Failed(format!("cannot write features: {e}"));
    let names = serde_json::to_string(features.files).map_err(|e| failed(&e))?;
    let bytes: Vec<u8> = features.values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let shape = vec![features.files.len(), dim(features)];
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, &bytes);
    let header = std::collections::HashMap::from([("files".to_owned(), names)]);
    let view = view.map_err(|e| failed(&e))?;
    safetensors::serialize([("features", view)], Some(header)).map_err(|e| failed(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FEATURES: Named = Named {
        files: &["a.jpg", "b, c.jpg"],
        values: &[1.0, -0.5, f32::MIN_POSITIVE, 3.25, 2.0, 0.0],
    };

    /// Offsets from NumPy's format description, version 1.0.
    #[test]
    fn npy_is_as_numpy_describes_it() {
        let bytes = npy(&FEATURES);
        let length = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
        assert_eq!((10 + length) % 64, 0);
        let header = std::str::from_utf8(&bytes[10..10 + length]).expect("ASCII");
        assert!(header.contains("'shape': (2, 3)") && header.ends_with('\n'), "{header}");
        assert_eq!(bytes.len(), 10 + length + 6 * 4);
        assert_eq!(bytes[10 + length + 4..][..4], (-0.5f32).to_le_bytes());
    }

    #[test]
    fn csv_reads_back_to_the_same_numbers() {
        let bytes = csv(&FEATURES).expect("written");
        let mut reader = csv::Reader::from_reader(&bytes[..]);
        let rows: Vec<(String, f32, f32, f32)> =
            reader.deserialize().collect::<std::result::Result<_, _>>().expect("rows");
        assert_eq!(rows[0], ("a.jpg".to_owned(), 1.0, -0.5, f32::MIN_POSITIVE));
        assert_eq!(rows[1].0, "b, c.jpg");
    }

    #[test]
    fn only_features_are_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["f.npy", "f.csv", "f.safetensors"] {
            let path = folder.path().join(name);
            let format = Format::of(&path).expect("an ending");
            write(&path, format, &FEATURES).expect("written");
            check_path(&path, format).expect("one of ours");
            std::fs::write(&path, "years of work").expect("written");
            assert_eq!(check_path(&path, format).expect_err("somebody's").exit_code(), 2);
        }
        for (line, ours) in [("file,f0,f1", true), ("file,f0,weight", false), ("file", false)] {
            assert_eq!(is_header(line.as_bytes()), ours, "{line}");
        }
        assert!(Format::of(Path::new("features.txt")).is_err());
    }
}
