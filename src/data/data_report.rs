//! What a data set holds, and what about it a person should know.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::listing::UNREAD_PHOTOS;
use super::manifest::{Split, Treatment};
use super::source::Opened;
use crate::config::{ClassWeights, FinetuneConfig, Sampling};
use crate::words::{counted, shortened};

/// What a data set holds, as written to `data_report.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataReport {
    /// The data set's name.
    pub name: String,
    /// What the data set was recognised as.
    #[serde(default)]
    pub layout: String,
    /// How the pixels of all images were taken; earlier runs do not say.
    #[serde(default)]
    pub treatment: Treatment,
    /// Images of each split that can be read.
    pub images: SplitCounts,
    /// The same by class; empty in an unlabelled set.
    pub classes: Vec<ClassCounts>,
    /// Widths in pixels of the readable images.
    pub width: Spread,
    /// Heights in pixels of the readable images.
    pub height: Spread,
    /// Images without colour.
    pub grey: usize,
    /// Images with transparency, which is dropped.
    pub alpha: usize,
    /// Images in printing inks.
    pub cmyk: usize,
    /// Images with 16-bit channels.
    #[serde(default)]
    pub deep: usize,
    /// Those of them that use only the darkest levels, below `DARK`.
    #[serde(default)]
    pub dark_deep: usize,
    /// The largest level in any image; `None` if none can be read.
    #[serde(default)]
    pub brightest: Option<u8>,
    /// Images that cannot be read.
    pub bad: Vec<BadFile>,
    /// Held-out images that are also training images, byte for byte.
    pub leaks: Vec<Leak>,
    /// Largest training class over smallest; 1 is balanced, 0 if unlabelled or a class is empty.
    pub imbalance: f64,
    /// Files that are no images, by extension.
    pub ignored: BTreeMap<String, usize>,
    /// What a person should know, in plain words.
    pub warnings: Vec<String>,
}

/// Levels of 255 below which a picture is nearly black: what 12 bits are of 16.
pub(super) const DARK: u8 = 16;

/// How many times the smallest class the largest is where a note is worth it.
const MUCH_IMBALANCE: f64 = 10.0;
/// Training images below which a class is said to have few.
const FEW_IMAGES: usize = 5;
/// Side in pixels below which an image is said to be small.
const SMALL_SIDE: usize = 32;

/// What to do where classes are of very different sizes.
const FOR_RARE_CLASSES: &str = " (--set finetune.sampling=balanced takes as many of each, \
     --set finetune.class_weights=effective lets the rare ones count more)";

/// Images by split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitCounts {
    /// Training images.
    pub train: usize,
    /// Validation images.
    pub val: usize,
    /// Test images.
    pub test: usize,
}

/// Images of one class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassCounts {
    /// The class.
    pub name: String,
    /// Its images.
    #[serde(flatten)]
    pub images: SplitCounts,
}

/// Smallest, middle and largest value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spread {
    /// Smallest.
    pub min: usize,
    /// Middle; the lower one of two.
    pub median: usize,
    /// Largest.
    pub max: usize,
}

/// An image that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadFile {
    /// Its id in the manifest.
    pub file: String,
    /// Why, in words that follow "the file ...".
    pub reason: String,
}

/// The same file in training and held out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leak {
    /// The training image.
    pub train: String,
    /// The held-out image.
    pub held_out: String,
    /// Whether the training image has a label; without one only pre-training looks at it.
    #[serde(default = "yes")]
    pub labelled: bool,
    /// Whether it has another label than the held-out image; reports of earlier versions do not say.
    #[serde(default)]
    pub other_label: bool,
}

/// For reports of earlier versions, which do not say.
fn yes() -> bool {
    true
}

impl SplitCounts {
    pub(super) fn add(&mut self, split: Split) {
        match split {
            Split::Train => self.train += 1,
            Split::Val => self.val += 1,
            Split::Test => self.test += 1,
        }
    }
}

impl ClassCounts {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), images: SplitCounts::default() }
    }
}

impl Spread {
    pub(super) fn of(values: impl Iterator<Item = usize>) -> Self {
        let mut sorted: Vec<usize> = values.collect();
        sorted.sort_unstable();
        match sorted.as_slice() {
            [] => Self::default(),
            [min, .., max] => Self { min: *min, median: sorted[(sorted.len() - 1) / 2], max: *max },
            [only] => Self { min: *only, median: *only, max: *only },
        }
    }
}

impl DataReport {
    /// Images that are of no class.
    pub fn unlabelled(&self) -> SplitCounts {
        let of = |count: fn(&SplitCounts) -> usize| {
            let labelled: usize = self.classes.iter().map(|class| count(&class.images)).sum();
            count(&self.images) - labelled
        };
        SplitCounts { train: of(|n| n.train), val: of(|n| n.val), test: of(|n| n.test) }
    }

    /// Adds what opening the data set came across, whose samples' content is `digests`.
    pub fn add_notes(&mut self, opened: &Opened, digests: &[Option<Digest>]) {
        self.layout = opened.describe();
        self.ignored = opened.ignored.clone();
        let photos: usize = UNREAD_PHOTOS.iter().filter_map(|ext| opened.ignored.get(*ext)).sum();
        if photos > 0 {
            let what = "in a format that fewvit does not read (HEIC, AVIF, raw)";
            self.warnings
                .push(format!("left out: {} {what}; convert them", counted(photos, "photo")));
        }
        self.warnings.extend(opened.warnings.iter().cloned());
        self.warnings.extend(opened.changed_note(digests));
    }

    /// Leaves out advice that fine-tuning follows already.
    pub fn heed(&mut self, finetune: &FinetuneConfig) {
        let weighted = finetune.class_weights != ClassWeights::None;
        if weighted || finetune.sampling == Sampling::Balanced {
            for warning in &mut self.warnings {
                *warning = warning.replace(FOR_RARE_CLASSES, "");
            }
        }
    }

    /// Pictures with next to no light in them; `level` is the largest of the 16-bit ones.
    pub(super) fn darkness(&self, level: Option<u8>) -> Option<String> {
        match (level, self.brightest) {
            (Some(level), _) => {
                let [store, used, are, them] = match self.dark_deep {
                    1 => ["stores", "uses", "it is", "it"],
                    _ => ["store", "use", "they are", "them"],
                };
                Some(format!(
                    "{} {store} 16-bit samples and {used} at most level {level} of 255, so {are} \
                     nearly black; --set data.depth=auto stretches {them}",
                    counted(self.dark_deep, "image")
                ))
            }
            (None, Some(brightest)) if brightest < DARK => Some(format!(
                "no image uses more than level {brightest} of 255, so all are nearly black; are \
                 they label maps?"
            )),
            _ => None,
        }
    }

    pub(super) fn findings(&self, conflicts: &[String]) -> Vec<String> {
        let mut found = Vec::new();
        let mut say = |names: Vec<String>, noun: &str, what: &str| {
            if !names.is_empty() {
                found.push(format!("{} {what}: {}", counted(names.len(), noun), shortened(&names)));
            }
        };
        let bad = self.bad.iter().map(|bad| format!("{} {}", bad.file, bad.reason)).collect();
        say(bad, "image", "cannot be read");
        for (kind, what) in [
            ((true, false), "also in training, so accuracy reads too high"),
            ((true, true), "also in training with another label, which may lower the accuracy"),
            ((false, false), "also among the training images without a label"),
        ] {
            let of_kind = |leak: &&Leak| (leak.labelled, leak.other_label) == kind;
            let leaks = self.leaks.iter().filter(of_kind);
            let leaks = leaks.map(|l| format!("{} = {}", l.held_out, l.train)).collect();
            say(leaks, "held-out image", what);
        }
        say(conflicts.to_vec(), "file", "in two classes");
        let classes_with = |test: &dyn Fn(&SplitCounts) -> bool| {
            let with = self.classes.iter().filter(|class| test(&class.images));
            with.map(|class| class.name.clone()).collect::<Vec<_>>()
        };
        say(classes_with(&|n| n.train == 0), "class", "without a training image");
        if self.images.val > 0 {
            say(classes_with(&|n| n.val == 0), "class", "without a validation image");
        }
        if self.images.test > 0 {
            say(classes_with(&|n| n.test == 0), "class", "without a test image");
        }
        let few = match self.unlabelled().train {
            0 => format!("with fewer than {FEW_IMAGES} training images"),
            _ => format!("with fewer than {FEW_IMAGES} training images that have a label"),
        };
        say(classes_with(&|n| (1..FEW_IMAGES).contains(&n.train)), "class", &few);
        if self.imbalance >= MUCH_IMBALANCE {
            found.push(format!(
                "the largest class has {:.0} times the training images of the smallest; accuracy \
                 is dominated by the large classes{FOR_RARE_CLASSES}",
                self.imbalance
            ));
        }
        if (1..SMALL_SIDE).contains(&self.width.min.min(self.height.min)) {
            let which =
                if self.width.max.min(self.height.max) < SMALL_SIDE { "all" } else { "some" };
            found.push(format!(
                "{which} images are smaller than {SMALL_SIDE} pixels; they are enlarged"
            ));
        }
        if self.alpha > 0 {
            found.push(format!(
                "{} with transparency, which is dropped: transparent pixels have the colour that their file \
                 holds for them, often black",
                counted(self.alpha, "image")
            ));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A report with nothing to say.
    fn report() -> DataReport {
        DataReport {
            name: "photos".to_owned(),
            layout: String::new(),
            treatment: Treatment::default(),
            images: SplitCounts::default(),
            classes: Vec::new(),
            width: Spread::default(),
            height: Spread::default(),
            grey: 0,
            alpha: 0,
            cmyk: 0,
            deep: 0,
            dark_deep: 0,
            brightest: None,
            bad: Vec::new(),
            leaks: Vec::new(),
            imbalance: 1.0,
            ignored: BTreeMap::new(),
            warnings: Vec::new(),
        }
    }

    #[test]
    fn ten_times_the_smallest_class_is_worth_a_note() {
        for (largest, smallest, is_noted) in [(29, 3, false), (30, 3, true), (31, 3, true)] {
            let imbalance = f64::from(largest) / f64::from(smallest);
            let found = DataReport { imbalance, ..report() }.findings(&[]);
            let said = found.iter().any(|note| note.contains("largest class has 10 times"));
            assert_eq!(said, is_noted, "{largest} and {smallest}: {found:?}");
        }
    }

    #[test]
    fn one_dark_image_is_told_as_one() {
        let note = DataReport { dark_deep: 1, ..report() }.darkness(Some(15));
        let expected = "1 image stores 16-bit samples and uses at most level 15 of 255, so it is \
                        nearly black; --set data.depth=auto stretches it";
        assert_eq!(note.as_deref(), Some(expected));
    }
}
