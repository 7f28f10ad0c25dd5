//! From the rows of a set's lists to its samples.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::super::listing::{Listing, is_image_name};
use super::super::locate::roots;
use super::super::manifest::{Manifest, Sample, Split, SplitOrigin, Treatment};
use super::super::source::{Opened, finish};
use super::NamedSet;
use crate::config::{DataConfig, OnBadImage};
use crate::error::{Error, Result};
use crate::words::{counted, listed_lines, shortened};

/// An image as the lists have it.
pub struct Row {
    /// Its path from some folder on.
    pub image: String,
    /// Its class, as a number that orders the classes.
    pub class: usize,
    /// Its split.
    pub split: Split,
}

/// What the lists of a set say.
pub struct Labels {
    /// The images.
    pub rows: Vec<Row>,
    /// Names of the classes by number.
    pub names: BTreeMap<usize, String>,
    /// Rows of pixels that are cut off at the bottom.
    pub cut_rows: usize,
    /// What was chosen that the paper has otherwise.
    pub notes: Vec<String>,
}

impl Labels {
    /// Of rows and the names of their classes.
    pub fn new(rows: Vec<Row>, names: BTreeMap<usize, String>) -> Self {
        Self { rows, names, cut_rows: 0, notes: Vec::new() }
    }

    /// Of images with the name of their class, in the order of the names.
    pub fn by_name(images: Vec<(String, String, Split)>) -> Self {
        let names: BTreeSet<&str> = images.iter().map(|(_, name, _)| name.as_str()).collect();
        let number: BTreeMap<&str, usize> = names.into_iter().zip(0..).collect();
        let row = |(image, name, split): &(String, String, Split)| Row {
            image: image.clone(),
            class: number[name.as_str()],
            split: *split,
        };
        let rows = images.iter().map(row).collect();
        Self::new(rows, number.iter().map(|(name, i)| (*i, (*name).to_owned())).collect())
    }
}

/// Rows with their files.
pub struct Placed {
    /// Those whose image is there, labels counted over the classes that have any.
    pub samples: Vec<Sample>,
    classes: Vec<String>,
    missing: Vec<String>,
    /// Beginnings of the paths of the folders that hold the images.
    areas: BTreeSet<String>,
    notes: Vec<String>,
}

/// Finds the images of the rows: those of each split where most of them lie.
pub fn place(listing: &Listing, labels: Labels) -> Placed {
    let Labels { rows, names, cut_rows, notes } = labels;
    let used: BTreeSet<usize> = rows.iter().map(|row| row.class).collect();
    let label: BTreeMap<usize, usize> = used.iter().copied().zip(0..).collect();
    let name = |class: &usize| names.get(class).cloned().unwrap_or(format!("class_{class:03}"));
    let classes = used.iter().map(name).collect();
    let (samples, missing, areas) = Default::default();
    let mut placed = Placed { samples, classes, missing, areas, notes };
    let treatment = Treatment { cut_rows, ..Treatment::PUBLISHED };
    for split in [Split::Train, Split::Val, Split::Test] {
        let rows: Vec<&Row> = rows.iter().filter(|row| row.split == split).collect();
        let root = placed.root(listing, &rows);
        for Row { image, class, .. } in rows {
            let id = format!("{root}{image}");
            let Some(origin) = listing.files.get(&id).cloned() else {
                placed.missing.push(image.clone());
                continue;
            };
            if root.is_empty() {
                let end = image.find('/').map_or(0, |at| at + 1);
                placed.areas.insert(image[..end].to_owned());
            }
            let label = Some(label[class]);
            placed.samples.push(Sample { id, origin, label, split, treatment });
        }
        if !root.is_empty() {
            placed.areas.insert(root);
        }
    }
    placed
}

impl Placed {
    fn root(&mut self, listing: &Listing, rows: &[&Row]) -> String {
        let ids: Vec<&str> = rows.iter().map(|row| row.image.as_str()).collect();
        let mut roots = roots(listing, &ids).into_iter();
        let Some((root, count)) = roots.next() else { return String::new() };
        let here = |root: &str| if root.is_empty() { "./".to_owned() } else { root.to_owned() };
        if let Some((other, _)) = roots.find(|(_, other)| *other == count) {
            let (root, other) = (here(&root), here(&other));
            self.notes
                .push(format!("the images lie in {root} and again in {other}; {root} is used"));
        }
        root
    }

    /// Images in the folders of the listed ones that no list names.
    fn unlisted(&self, listing: &Listing) -> Option<String> {
        let listed: HashSet<&str> = self.samples.iter().map(|s| s.id.as_str()).collect();
        let within = |area: &String| {
            let ids = listing.files_below(area).filter(|rest| is_image_name(rest));
            ids.map(|rest| format!("{area}{rest}")).collect::<Vec<_>>()
        };
        let images: BTreeSet<String> = self.areas.iter().flat_map(within).collect();
        let images: Vec<String> =
            images.into_iter().filter(|id| !listed.contains(id.as_str())).collect();
        let are = if images.len() == 1 { "is" } else { "are" };
        (!images.is_empty()).then(|| {
            let count = counted(images.len(), "image");
            format!("{count} {are} in no list of the set and left out: {}", shortened(&images))
        })
    }

    /// What to say of listed images that are not there.
    fn missing(&self, policy: OnBadImage) -> Result<Option<String>> {
        let count = counted(self.missing.len(), "image");
        let [are, what] = match self.missing.len() {
            0 => return Ok(None),
            1 => ["is", "it"],
            _ => ["are", "them"],
        };
        if policy == OnBadImage::Skip && !self.samples.is_empty() {
            let names = shortened(&self.missing);
            return Ok(Some(format!("{count} of the lists {are} missing, left out: {names}")));
        }
        Err(Error::Data(format!(
            "{count} that the lists name {are} missing:{}\n  unpack the images again, or leave \
             {what} out with --set data.on_bad_image=skip",
            listed_lines(&self.missing)
        )))
    }
}

/// The set with what there is to say of it.
///
/// # Errors
/// [`Error::Data`] if images are missing, or nothing is left.
pub fn join(
    set: &NamedSet,
    listing: &Listing,
    placed: Placed,
    config: &DataConfig,
) -> Result<Opened> {
    let missing = placed.missing(config.on_bad_image)?;
    let unlisted = placed.unlisted(listing);
    let Placed { samples, classes, notes, .. } = placed;
    let manifest =
        Manifest { name: set.name.into(), classes, samples, split_origin: SplitOrigin::Given };
    let [train, test] = [Split::Train, Split::Test].map(|split| manifest.indices(split).len());
    let is_papers = [train, test] == set.counts();
    let layout = if is_papers { " with the paper's counts" } else { "" };
    let mut opened = finish(manifest, format!("{}{layout}", set.title))?;
    let [all_train, all_test] = set.counts();
    let part = (!is_papers).then(|| {
        format!(
            "not the paper's counts: {train} of {all_train} training and {test} of {all_test} test \
             images"
        )
    });
    opened.warnings.extend(notes.into_iter().chain(part).chain(missing).chain(unlisted));
    Ok(opened)
}
