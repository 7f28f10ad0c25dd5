//! The lists of a data set: found by name, read line by line.

use super::super::listing::{Listing, file_part, is_image_name, read};
use super::super::matfile::{Value, read_array, read_value};
use crate::error::{Error, Result};

/// The files of a listing that are no images.
pub struct Lists<'a> {
    /// All files, images too.
    pub listing: &'a Listing,
    documents: Vec<&'a str>,
}

/// A line of a list.
pub struct Line {
    /// `FILE, line N`, for messages.
    pub at: String,
    /// The line without its end and without blanks around it; those inside belong to names.
    pub text: String,
}

impl<'a> Lists<'a> {
    /// Those of a listing.
    pub fn of(listing: &'a Listing) -> Self {
        let documents = listing.files.keys().filter(|id| !is_image_name(id));
        Self { listing, documents: documents.map(String::as_str).collect() }
    }

    /// The list of this name, or with these last folders and this name, wherever it lies; where
    /// there are several, the one in the fewest folders.
    pub fn find(&self, name: &str) -> Option<&'a str> {
        let is_it = |id: &&&str| {
            id.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('/'))
        };
        let depth = |id: &&&str| id.matches('/').count();
        self.documents.iter().filter(is_it).min_by_key(depth).copied()
    }

    /// Whether there is any of these.
    pub fn any(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.find(name).is_some())
    }

    /// The lists of these names.
    ///
    /// # Errors
    /// [`Error::Data`] naming those that are missing.
    pub fn require<const N: usize>(&self, names: [&str; N]) -> Result<[&'a str; N]> {
        let found = names.map(|name| self.find(name));
        let missing = names.iter().zip(&found).filter(|(_, found)| found.is_none());
        let missing: Vec<&str> = missing.map(|(name, _)| *name).collect();
        let are = if missing.len() == 1 { "is" } else { "are" };
        match missing.is_empty() {
            true => Ok(found.map(|found| found.unwrap_or_default())),
            false => Err(Error::Data(format!("{} {are} missing", missing.join(" and ")))),
        }
    }

    /// All lists with this file name, wherever they lie.
    pub fn called(&self, name: &str) -> impl Iterator<Item = &'a str> {
        self.documents.iter().copied().filter(move |id| file_part(id) == name)
    }

    /// The lines of a list, empty ones and those that begin with `#` left out.
    ///
    /// # Errors
    /// [`Error::Data`] if it cannot be read.
    pub fn lines(&self, id: &str) -> Result<Vec<Line>> {
        let bytes = read(&self.listing.files[id])?;
        let text = String::from_utf8_lossy(&bytes);
        let lines = text.trim_start_matches('\u{feff}').lines().enumerate();
        let lines = lines.map(|(i, line)| (i + 1, line.trim()));
        let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let lines: Vec<Line> = lines
            .map(|(i, line)| Line { at: format!("{id}, line {i}"), text: line.to_owned() })
            .collect();
        match lines.is_empty() {
            true => Err(Error::Data(format!("{id} lists nothing"))),
            false => Ok(lines),
        }
    }

    /// A list of two columns, the first without blanks.
    ///
    /// # Errors
    /// [`Error::Data`] naming a line with one column.
    pub fn pairs(&self, id: &str) -> Result<Vec<(String, Line)>> {
        self.lines(id)?.into_iter().map(Line::pair).collect()
    }

    /// The numbers of an array in a MATLAB file.
    ///
    /// # Errors
    /// [`Error::Data`] naming the file.
    pub fn array(&self, id: &str, name: &str) -> Result<Vec<f64>> {
        self.of_file(id, |bytes| read_array(bytes, name))
    }

    /// An array of any kind in a MATLAB file.
    ///
    /// # Errors
    /// [`Error::Data`] naming the file.
    pub fn value(&self, id: &str, name: &str) -> Result<Value> {
        self.of_file(id, |bytes| read_value(bytes, name))
    }

    fn of_file<T>(&self, id: &str, parse: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
        let bytes = read(&self.listing.files[id])?;
        parse(&bytes).map_err(|e| Error::Data(format!("{id}: {e}")))
    }
}

impl Line {
    /// What stands before the first blank, and the rest.
    ///
    /// # Errors
    /// [`Error::Data`] naming a line with one column.
    pub fn pair(self) -> Result<(String, Self)> {
        match self.text.split_once([' ', '\t']) {
            Some((first, rest)) => {
                Ok((first.to_owned(), Self { text: rest.trim().to_owned(), at: self.at }))
            }
            None => Err(self.unfit("two columns")),
        }
    }

    /// What stands before the first `/`: in most lists the class of an image.
    ///
    /// # Errors
    /// [`Error::Data`] naming a line without one.
    pub fn folder(&self) -> Result<&str> {
        let folder = self.text.split_once('/').map(|(folder, _)| folder);
        folder.ok_or_else(|| self.unfit("CLASS/IMAGE"))
    }

    /// The line as a number.
    ///
    /// # Errors
    /// [`Error::Data`] naming the line.
    pub fn number(&self) -> Result<usize> {
        self.text.parse().map_err(|_| self.unfit("a number"))
    }

    /// That the line is not what is expected.
    pub fn unfit(&self, expected: &str) -> Error {
        Error::Data(format!("{} should have {expected}, but reads `{}`", self.at, self.text))
    }
}
