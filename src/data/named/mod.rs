//! The paper's data sets in their original layouts; one file and one entry of [`SETS`] each.
//!
//! A set is told by its lists, which are found by name wherever they lie, and its images are found
//! where most of the listed ones are: folders that an archive or a download site put around them,
//! or doubled, do not matter. The lists alone say what is trained on.

mod aircraft;
mod cars;
mod cub;
mod dtd;
mod flowers;
mod imagenet;
mod indoor;
mod join;
mod lists;
mod pets;

use super::catalog;
use super::folders;
use super::listing::Listing;
use super::source::Opened;
use crate::config::DataConfig;
use crate::error::{Error, Result};
use crate::words::shortened;
use join::Labels;
use lists::Lists;

/// A data set with a layout of its own.
pub struct NamedSet {
    /// What reports and result tables call it, as in [`catalog`].
    pub name: &'static str,
    /// What people call it.
    pub title: &'static str,
    /// Where it is to be had.
    pub home: &'static str,
    /// Settings that only this set reads.
    settings: &'static [&'static str],
    /// Whether the files seem to be this set, complete or not.
    is_one: fn(&Lists) -> bool,
    /// Reads labels and splits.
    read: fn(&Lists, &DataConfig) -> Result<Labels>,
}

impl NamedSet {
    /// Its training and test images in the paper.
    pub fn counts(&self) -> [usize; 2] {
        let known = catalog::SETS.iter().find(|known| known.name == self.name);
        known.map_or([0; 2], |known| [known.train, known.test])
    }
}

/// The layouts that [`super::source::open`] knows.
pub const SETS: &[NamedSet] = &[
    flowers::SET,
    pets::SET,
    dtd::SET,
    indoor::SET,
    cub::SET,
    aircraft::SET,
    cars::SET,
    imagenet::SET,
];

/// Opens the listing as the named set that it is, if it is one.
pub(super) fn open(listing: &Listing, config: &DataConfig) -> Option<Result<Opened>> {
    let lists = Lists::of(listing);
    let set = SETS.iter().find(|set| (set.is_one)(&lists))?;
    let in_words = |e: Error| match e {
        Error::Data(what) => {
            Error::Data(format!("looks like {}: {what}\n  {}", set.title, set.home))
        }
        other => other,
    };
    let placed = (set.read)(&lists, config).map(|labels| join::place(listing, labels));
    // Published sets that were sorted into folders are what their folders say.
    let is_joined = placed.as_ref().is_ok_and(|placed| !placed.samples.is_empty());
    if !is_joined && folders::are_split_classes(listing) {
        return None;
    }
    Some(placed.and_then(|placed| join::join(set, listing, placed, config)).map_err(in_words))
}

/// Data sets whose own lists are not read, with a file of each that tells it. Their folders alone
/// would give another split, or no classes.
const UNREAD: &[(&str, &[&str])] =
    &[("CUB-200", &["lists/train.txt"]), ("Tiny ImageNet", &["val/val_annotations.txt"])];

/// Refuses the original layout of a data set whose own lists are not read.
///
/// # Errors
/// [`Error::Data`] saying which set it is and what to do.
pub(super) fn refuse_unread(listing: &Listing) -> Result<()> {
    for (name, marks) in UNREAD {
        let found = marks.iter().filter(|mark| listing.files.contains_key(**mark));
        let found: Vec<String> = found.map(|mark| mark.to_string()).collect();
        if !found.is_empty() && !folders::are_split_classes(listing) {
            return Err(Error::Data(format!(
                "looks like {name} as published, whose lists ({}) say which image is for what; \
                 fewvit does not read them\n  write a table (index.csv: file,label,split) from \
                 them, or sort the images into train/CLASS/ and test/CLASS/",
                shortened(&found)
            )));
        }
    }
    Ok(())
}

/// Whether a setting is away from what every set takes.
type IsSet = fn(&DataConfig) -> bool;

/// The settings that only some sets read.
const OF_SETS: [(&str, IsSet); 3] = [
    ("data.dtd_split", |config| config.dtd_split != 1),
    ("data.aircraft_labels", |config| config.aircraft_labels != Default::default()),
    ("data.aircraft_banner", |config| config.aircraft_banner != 0),
];

/// Refuses settings of another set than the one that was opened.
///
/// # Errors
/// [`Error::Usage`] naming the setting.
pub fn check_settings(opened: &Opened, config: &DataConfig) -> Result<()> {
    let set = SETS.iter().find(|set| set.name == opened.manifest.name);
    let reads = |key: &str| set.is_some_and(|set| set.settings.contains(&key));
    let idle = OF_SETS.iter().filter(|(key, is_set)| is_set(config) && !reads(key));
    let idle: Vec<String> = idle.map(|(key, _)| key.to_string()).collect();
    match idle.is_empty() {
        true => Ok(()),
        false => Err(Error::Usage(format!(
            "{}: {} has no such choice\n  leave the setting out",
            idle.join(" and "),
            opened.manifest.name
        ))),
    }
}

#[cfg(test)]
pub(super) mod tests;
