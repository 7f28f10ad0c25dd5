//! What a data set contains: names, labels, splits and where the bytes are.

use std::path::PathBuf;
use std::sync::Arc;

use super::archive::{Archive, Packing};

/// The part of a data set that a sample belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Seen in pre-training and fine-tuning.
    Train,
    /// Held out: never trained on, measured during training (with `keep = "best"` it chooses the epoch), and at the
    /// end where there is no test split.
    Val,
    /// Held out; what the reported accuracy is measured on.
    Test,
}

/// Where the bytes of an image are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A file of its own.
    File(PathBuf),
    /// A member of an archive.
    Member {
        /// The archive.
        archive: Arc<Archive>,
        /// Its first byte there.
        offset: u64,
        /// Its bytes there.
        len: u64,
        /// How they are stored.
        packing: Packing,
    },
}

/// How a file becomes a picture, beyond its format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Treatment {
    /// Whether it is turned upright, as its EXIF orientation says.
    pub turn: bool,
    /// Whether a JPEG with damaged data is an error; otherwise the damaged part is what libjpeg
    /// makes of it.
    pub strict: bool,
    /// Rows that are cut off at the bottom; one row is always left.
    pub cut_rows: usize,
}

impl Treatment {
    /// As PIL's `open` and `convert` have it, by which results on published sets were obtained:
    /// some of their files are damaged or say that they are to be turned.
    pub const PUBLISHED: Self = Self { turn: false, strict: false, cut_rows: 0 };

    /// What tables call it: nothing where an image is taken as usual, `published`, or
    /// `published-20` where rows are cut off.
    pub fn code(self) -> String {
        match (self == Self::default(), self.cut_rows) {
            (true, _) => String::new(),
            (_, 0) => "published".to_owned(),
            (_, rows) => format!("published-{rows}"),
        }
    }

    /// The treatment that a table calls so.
    pub fn of_code(code: &str) -> Option<Self> {
        match code.split_once('-') {
            None if code.is_empty() => Some(Self::default()),
            None => (code == "published").then_some(Self::PUBLISHED),
            Some(("published", rows)) => {
                rows.parse().ok().map(|cut_rows| Self { cut_rows, ..Self::PUBLISHED })
            }
            Some(_) => None,
        }
    }
}

impl Default for Treatment {
    fn default() -> Self {
        Self { turn: true, strict: true, cut_rows: 0 }
    }
}

/// One image of a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Path relative to the data set's root, with `/`; unique, and what reports call the image.
    /// Names are bytes: what is no UTF-8 is written as `\xHH` (see [`super::file_name`]).
    pub id: String,
    /// Where its bytes are.
    pub origin: Origin,
    /// Class index; `None` without a label.
    pub label: Option<usize>,
    /// Its split.
    pub split: Split,
    /// How its pixels are taken.
    pub treatment: Treatment,
}

/// How the splits came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SplitOrigin {
    /// Given by folders, a manifest or the data set's own files.
    Given,
    /// Drawn by us, stratified by class.
    Made,
    /// Drawn by us, stratified by class, with the images of a group in one split.
    MadeByGroup,
    /// No labels: everything is training data.
    Unlabelled,
}

impl SplitOrigin {
    /// Whether we drew the splits.
    pub fn is_made(self) -> bool {
        matches!(self, Self::Made | Self::MadeByGroup)
    }
}

/// A data set: what is in it, not the pixels.
///
/// Samples are sorted by class folder, then by file name; a training sample's position among the
/// training samples is its instance class in IDMM.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Human name: `flowers-102`, or the last part of the path.
    pub name: String,
    /// Class names, index = label; empty in an unlabelled set.
    pub classes: Vec<String>,
    /// All images.
    pub samples: Vec<Sample>,
    /// Where the splits came from.
    pub split_origin: SplitOrigin,
}

impl Manifest {
    /// Positions of the samples of `split`, in order.
    pub fn indices(&self, split: Split) -> Vec<usize> {
        (0..self.samples.len()).filter(|&i| self.samples[i].split == split).collect()
    }

    /// Whether images have labels.
    pub fn is_labelled(&self) -> bool {
        !self.classes.is_empty()
    }
}
