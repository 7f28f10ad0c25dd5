//! `fewvit data sample`.

use super::data::{check_table, open, opening, relative_to};
use super::data_args::{SampleArgs, SampleSize};
use crate::data::manifest::{Manifest, Split};
use crate::data::sample::{self, Size};
use crate::data::split;
use crate::error::Result;

pub(super) fn sample(args: &SampleArgs) -> Result<()> {
    check_table(&args.output)?;
    let config = opening(&args.open)?;
    // The recipe's seed, whatever the sample's: samples of all seeds share their test images.
    let mut opened = open(&args.data, &config.data, config.seed)?;
    if opened.manifest.split_origin.is_made() {
        opened.warnings.push("the images had no split, so test images were held out first".into());
    }
    let before = opened.manifest.indices(Split::Train).len();
    let notes = sample::draw(&mut opened.manifest, args.size.size(), args.seed)?;
    if args.train_only {
        opened.manifest.samples.retain(|sample| sample.split == Split::Train);
    }
    opened.warnings.iter().chain(&notes).for_each(|note| eprintln!("note: {note}"));
    split::write_csv(&relative_to(&args.output, opened.manifest.clone())?, &[], &args.output)?;
    eprintln!("{}", describe(&opened.manifest, before));
    super::print(&args.output.display().to_string())
}

/// `sample: 24 of 96 training images, 12 test images`.
fn describe(manifest: &Manifest, before: usize) -> String {
    let count = |split| manifest.indices(split).len();
    let mut text = format!("sample: {} of {before} training images", count(Split::Train));
    for (split, name) in [(Split::Val, "validation"), (Split::Test, "test")] {
        if count(split) > 0 {
            text.push_str(&format!(", {} {name} images", count(split)));
        }
    }
    text
}

impl SampleSize {
    /// What it means in [`crate::data::sample`]; the parser lets exactly one be given.
    fn size(self) -> Size {
        let by_class = self.per_class.map(|n| Size::PerClass(n.get()));
        let total = self.total.map(|n| Size::Total(n.get()));
        by_class.or(total).unwrap_or(Size::Fraction(self.fraction.unwrap_or(1.0)))
    }
}
