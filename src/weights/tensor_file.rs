//! Safetensors files written and read a piece at a time, so that no second copy of what they hold is
//! ever in memory.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::files::stream_atomically;

/// Bytes of the number before the header: the header's length.
const LENGTH: usize = size_of::<u64>();
/// Values that are turned into bytes at a time.
const PIECE: usize = 1 << 16;

/// A named f32 tensor to be written: its name, its shape and its values.
pub type ToWrite<'a> = (String, &'a [usize], &'a [f32]);

/// One entry of a header.
#[derive(Serialize)]
#[serde(untagged)]
enum Entry {
    Metadata(BTreeMap<String, String>),
    Tensor(TensorInfo),
}

/// Writes tensors and `metadata` to `path` so that either the old or the new content is there after
/// a crash. The same tensors and metadata give the same bytes.
///
/// # Errors
/// A shape does not fit its values; the file cannot be written.
pub fn write_tensors(
    path: &Path,
    mut tensors: Vec<ToWrite>,
    metadata: Option<HashMap<String, String>>,
) -> Result<()> {
    tensors.sort_by(|(a, ..), (b, ..)| a.cmp(b));
    let header = header(&tensors, metadata)?;
    stream_atomically(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        tensors.iter().try_for_each(|(_, _, values)| write_values(file, values))
    })
}

/// The header of sorted tensors, filled up to a multiple of eight bytes.
fn header(tensors: &[ToWrite], metadata: Option<HashMap<String, String>>) -> Result<Vec<u8>> {
    let failed = |why: String| Error::Failed(format!("cannot serialise the weights: {why}"));
    let mut entries = BTreeMap::new();
    if let Some(metadata) = metadata {
        entries.insert("__metadata__", Entry::Metadata(metadata.into_iter().collect()));
    }
    let mut end = 0;
    for (name, shape, values) in tensors {
        if shape.iter().product::<usize>() != values.len() {
            return Err(failed(format!("`{name}` is {shape:?} but has {} values", values.len())));
        }
        let data_offsets = (end, end + size_of_val(*values));
        end = data_offsets.1;
        let info = TensorInfo { dtype: Dtype::F32, shape: shape.to_vec(), data_offsets };
        entries.insert(name, Entry::Tensor(info));
    }
    let mut header = serde_json::to_vec(&entries).map_err(|e| failed(e.to_string()))?;
    header.resize(header.len().next_multiple_of(LENGTH), b' ');
    Ok(header)
}

fn write_values(file: &mut impl Write, values: &[f32]) -> std::io::Result<()> {
    let mut bytes = vec![[0; size_of::<f32>()]; PIECE.min(values.len())];
    for piece in values.chunks(PIECE) {
        let bytes = &mut bytes[..piece.len()];
        bytes.iter_mut().zip(piece).for_each(|(bytes, value)| *bytes = value.to_le_bytes());
        file.write_all(bytes.as_flattened())?;
    }
    Ok(())
}

/// An opened safetensors file. Its tensors stay in it until they are asked for.
pub struct TensorFile {
    file: File,
    header: Metadata,
    /// Where the tensors begin.
    start: u64,
}

impl TensorFile {
    /// Reads the header of the file at `path`.
    ///
    /// # Errors
    /// Why the file cannot be used, in words.
    pub fn open(path: &Path) -> std::result::Result<Self, String> {
        let file = File::open(path).map_err(|e| e.to_string())?;
        let length = file.metadata().map_err(|e| e.to_string())?.len();
        let mut number = [0; LENGTH];
        file.read_exact_at(&mut number, 0).map_err(|_| "it is too short".to_owned())?;
        let start = u64::from_le_bytes(number).saturating_add(LENGTH as u64);
        // Asked before memory is, which a broken number could ask any amount of.
        if start > length {
            return Err("its header is cut off".to_owned());
        }
        let mut header = vec![0; (start - LENGTH as u64) as usize];
        file.read_exact_at(&mut header, LENGTH as u64).map_err(|e| e.to_string())?;
        let header: Metadata = serde_json::from_slice(&header).map_err(|e| e.to_string())?;
        let (said, found) = (header.data_len() as u64, length - start);
        if said != found {
            return Err(format!("its tensors should take {said} bytes and take {found}"));
        }
        Ok(Self { file, header, start })
    }

    /// What the file says of itself beside its tensors.
    pub fn metadata(&self) -> Option<&HashMap<String, String>> {
        self.header.metadata().as_ref()
    }

    /// The names of all tensors, in the order of the file.
    pub fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// Type, shape and place of a tensor, if it is there.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.header.info(name)
    }

    /// The bytes of a tensor of this file.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn bytes(&self, info: &TensorInfo) -> std::io::Result<Vec<u8>> {
        let (from, to) = info.data_offsets;
        let mut bytes = vec![0; to - from];
        self.file.read_exact_at(&mut bytes, self.start + from as u64)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, tensors: Vec<ToWrite>) -> Result<std::path::PathBuf> {
        let path = folder.join("a.safetensors");
        let metadata = [("format".to_owned(), "pt".to_owned())].into();
        write_tensors(&path, tensors, Some(metadata)).map(|()| path)
    }

    /// `safetensors.numpy.save({"b": np.array([[1, -0.5]], "f4"), "a": np.array([2], "f4")},
    /// metadata={"format": "pt"})` of Python's safetensors 0.8.
    #[test]
    fn a_file_is_what_python_writes() {
        let folder = tempfile::tempdir().expect("a folder");
        let tensors: Vec<ToWrite> =
            vec![("b".to_owned(), &[1, 2], &[1.0, -0.5]), ("a".to_owned(), &[1], &[2.0])];
        let path = write(folder.path(), tensors).expect("written");
        let text = "{\"__metadata__\":{\"format\":\"pt\"},\
                    \"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\
                    \"b\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[4,12]}}";
        let header = format!("{text:<width$}", width = text.len().next_multiple_of(8));
        let values = b"\0\0\0\x40\0\0\x80\x3f\0\0\0\xbf";
        let expected = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), values].concat();
        assert_eq!(std::fs::read(&path).expect("there"), expected);
        let file = TensorFile::open(&path).expect("opened");
        assert_eq!(file.metadata().map(|metadata| &*metadata["format"]), Some("pt"));
        assert_eq!(file.names(), ["a", "b"]);
        let info = file.info("b").expect("there");
        assert_eq!(
            (&info.shape[..], file.bytes(info).expect("read")),
            (&[1, 2][..], values[4..].into())
        );
    }

    /// A tensor of more than one piece, and one of none.
    #[test]
    fn tensors_of_any_length_come_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let long: Vec<f32> = (0..2 * PIECE + 3).map(|i| (i as f32).sin()).collect();
        let tensors: Vec<ToWrite> =
            vec![("long".to_owned(), &[2 * PIECE + 3], &long), ("none".to_owned(), &[0, 4], &[])];
        let path = write(folder.path(), tensors).expect("written");
        let read = super::super::read(&path).expect("read");
        assert_eq!(read["long"], (vec![2 * PIECE + 3], long));
        assert_eq!(read["none"], (vec![0, 4], Vec::new()));
    }

    #[test]
    fn a_shape_that_does_not_fit_is_refused_and_nothing_is_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let error = write(folder.path(), vec![("a".to_owned(), &[3], &[1.0, 2.0])]);
        let error = error.expect_err("three of two").to_string();
        assert!(error.contains("`a` is [3] but has 2 values"), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).expect("there").count(), 0);
    }

    #[test]
    fn files_that_are_cut_or_too_long_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path =
            write(folder.path(), vec![("a".to_owned(), &[2], &[1.0, 2.0])]).expect("written");
        let whole = std::fs::read(&path).expect("there");
        let longer = [&whole[..], b"!"].concat();
        for (bytes, why) in [
            (&whole[..5], "too short"),
            (&whole[..20], "cut off"),
            (&whole[..whole.len() - 1], "should take 8 bytes and take 7"),
            (&longer[..], "should take 8 bytes and take 9"),
        ] {
            std::fs::write(&path, bytes).expect("written");
            let error = TensorFile::open(&path).err().expect(why);
            assert!(error.contains(why), "{error}");
        }
    }
}
