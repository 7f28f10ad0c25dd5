//! What a data set holds, from a look at each of its images: what is there, broken or odd.

use std::collections::{BTreeMap, HashMap};

use super::data_report::{BadFile, ClassCounts, DARK, DataReport, Leak, SplitCounts, Spread};
use super::decode::Colour;
use super::digest::Digest;
use super::look::{Found, Look};
use super::manifest::{Manifest, Sample, Split, Treatment};
use crate::config::OnBadImage;
use crate::error::{Error, Result};
use crate::words::counted;

/// What was found when every image was looked at.
pub struct Checked {
    /// What the data set holds.
    pub report: DataReport,
    /// Content of each sample of the manifest; `None` where it cannot be read.
    pub digests: Vec<Option<Digest>>,
}

/// What there is to say of a data set in whose files this was `found`, in the manifest's order.
pub fn check(manifest: &Manifest, found: &[Found]) -> Checked {
    let samples = &manifest.samples;
    let (mut looks, mut bad) = (Vec::new(), Vec::new());
    for (i, found) in found.iter().enumerate() {
        match found {
            Ok(look) => looks.push((i, look)),
            Err(reason) => {
                bad.push(BadFile { file: samples[i].id.clone(), reason: reason.clone() });
            }
        }
    }
    let of_colour = |colour| looks.iter().filter(|(_, look)| look.stored.colour == colour).count();
    let brightest = |deep_only: bool| {
        let looks = looks.iter().map(|(_, look)| look);
        looks.filter(move |look| look.stored.deep || !deep_only).map(|look| look.brightest)
    };
    let dark_deep = || brightest(true).filter(|level| *level < DARK);
    let (leaks, conflicts) = duplicates(manifest, &looks);
    let mut report = DataReport {
        name: manifest.name.clone(),
        treatment: manifest.samples.first().map_or(Treatment::default(), |s| s.treatment),
        images: SplitCounts::default(),
        classes: manifest.classes.iter().map(|name| ClassCounts::new(name)).collect(),
        width: Spread::of(looks.iter().map(|(_, look)| look.size.0)),
        height: Spread::of(looks.iter().map(|(_, look)| look.size.1)),
        grey: of_colour(Colour::Grey),
        alpha: of_colour(Colour::Alpha),
        cmyk: of_colour(Colour::Cmyk),
        deep: brightest(true).count(),
        dark_deep: dark_deep().count(),
        brightest: brightest(false).max(),
        bad,
        leaks,
        imbalance: 0.0,
        layout: String::new(),
        ignored: BTreeMap::new(),
        warnings: Vec::new(),
    };
    // Files that cannot be read are no images of a class: nothing is trained or measured with them.
    for sample in looks.iter().map(|(i, _)| &samples[*i]) {
        report.images.add(sample.split);
        sample.label.into_iter().for_each(|l| report.classes[l].images.add(sample.split));
    }
    let sizes = || report.classes.iter().map(|class| class.images.train);
    if let (Some(least @ 1..), Some(most)) = (sizes().min(), sizes().max()) {
        report.imbalance = most as f64 / least as f64;
    }
    report.warnings = report.findings(&conflicts);
    report.warnings.extend(report.darkness(dark_deep().max()));
    let mut digests = vec![None; samples.len()];
    looks.into_iter().for_each(|(i, look)| digests[i] = Some(look.digest.clone()));
    Checked { report, digests }
}

/// The manifest without its unreadable images, or why not.
///
/// # Errors
/// [`Error::Data`] listing up to ten of them if the policy is [`OnBadImage::Error`].
pub fn apply_bad_policy(
    manifest: &Manifest,
    report: &DataReport,
    policy: OnBadImage,
) -> Result<Manifest> {
    if policy == OnBadImage::Error && !report.bad.is_empty() {
        let lines = report.bad.iter().take(10).map(|b| format!("\n  {} {}", b.file, b.reason));
        let more = match report.bad.len().saturating_sub(10) {
            0 => String::new(),
            more => format!("\n  and {more} more"),
        };
        return Err(Error::Data(format!(
            "{}: {} cannot be read:{}{more}\n  \
             repair or remove them, or leave them out with --set data.on_bad_image=skip",
            manifest.name,
            counted(report.bad.len(), "image"),
            lines.collect::<String>()
        )));
    }
    let bad: std::collections::HashSet<&str> =
        report.bad.iter().map(|bad| bad.file.as_str()).collect();
    let mut kept = manifest.clone();
    kept.samples.retain(|sample| !bad.contains(sample.id.as_str()));
    Ok(kept)
}

/// Held-out files that are training files, too, each once, and files found in two classes.
fn duplicates(manifest: &Manifest, looks: &[(usize, &Look)]) -> (Vec<Leak>, Vec<String>) {
    let mut same: HashMap<&Digest, Vec<&Sample>> = HashMap::new();
    for (i, look) in looks {
        same.entry(&look.digest).or_default().push(&manifest.samples[*i]);
    }
    let (mut leaks, mut conflicts) = (Vec::new(), Vec::new());
    for (i, look) in looks {
        let (sample, same) = (&manifest.samples[*i], &same[&look.digest]);
        let differs =
            |other: &Sample| other.label.zip(sample.label).is_some_and(|(other, own)| other != own);
        let trained = same.iter().filter(|other| other.split == Split::Train);
        // One with the same label, if there is one, else one with any: those are trained on in any case.
        let trained = trained.min_by_key(|other| (other.label.is_none(), differs(other)));
        if let (false, Some(train)) = (sample.split == Split::Train, trained) {
            leaks.push(Leak {
                train: train.id.clone(),
                held_out: sample.id.clone(),
                labelled: train.label.is_some(),
                other_label: differs(train),
            });
        }
        let mut before = same.iter().take_while(|other| other.id != sample.id);
        if let Some(other) = before.find(|other| differs(other)) {
            conflicts.push(format!("{} = {}", other.id, sample.id));
        }
    }
    (leaks, conflicts)
}

#[cfg(test)]
mod tests {
    use super::super::look::look_at_all;
    use super::super::source::{open_noting, tests};
    use super::*;
    use crate::config::{ClassWeights, Depth, FinetuneConfig, Sampling};
    use image::DynamicImage;
    use std::path::Path;

    fn report_on(manifest: &Manifest, depth: Depth) -> DataReport {
        check(manifest, &look_at_all(manifest, depth, 2, &|_, _| ())).report
    }

    fn save(root: &Path, name: &str, image: DynamicImage) {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        image.save(path).unwrap();
    }

    fn odd_data() -> tempfile::TempDir {
        let root = tests::folder(&[
            "train/a/text.jpg=hello",
            "train/a/empty.png=",
            "notes.txt",
            "photo.heic",
        ]);
        for i in 1..=4 {
            save(root.path(), &format!("train/a/{i}.png"), DynamicImage::new_rgb8(40 + i, 50));
        }
        save(root.path(), "train/b/1.png", DynamicImage::new_luma8(60, 8));
        save(root.path(), "train/b/2.png", DynamicImage::new_rgba8(41, 50));
        std::fs::create_dir_all(root.path().join("test/a")).unwrap();
        let copy = |from: &str, to: &str| {
            std::fs::copy(root.path().join(from), root.path().join(to)).unwrap();
        };
        copy("train/a/3.png", "test/a/again.png");
        copy("train/a/4.png", "train/b/conflict.png");
        root
    }

    #[test]
    fn a_held_out_image_is_counted_once_however_often_it_is_there() {
        let root = tests::folder(&[]);
        let image = |shade: u8| {
            DynamicImage::ImageLuma8(image::GrayImage::from_pixel(8, 8, image::Luma([shade])))
        };
        // One content twice in training and twice in the test, another once each, a third in the test alone.
        for (name, shade) in [
            ("test/a/1.png", 1),
            ("test/a/2.png", 1),
            ("test/a/3.png", 2),
            ("test/b/4.png", 3),
            ("train/a/5.png", 1),
            ("train/a/6.png", 1),
            ("train/b/7.png", 2),
        ] {
            save(root.path(), name, image(shade));
        }
        let opened = open_noting(root.path(), &tests::config(), 1).unwrap();
        let report = report_on(&opened.manifest, Depth::Pil);
        let held_out: Vec<_> = report.leaks.iter().map(|leak| &*leak.held_out).collect();
        assert_eq!(held_out, ["test/a/1.png", "test/a/2.png", "test/a/3.png"]);
        let said = |warnings: &[String], expected: &[&str]| {
            for expected in expected {
                assert!(warnings.iter().any(|w| w.starts_with(expected)), "{warnings:?}");
            }
        };
        let with_another_label = "1 held-out image also in training with another label, which may lower the \
                                  accuracy: test/a/3.png = train/b/7.png";
        said(
            &report.warnings,
            &[
                "2 held-out images also in training, so accuracy reads too high: test/a/1.png = train/a/5.png",
                with_another_label,
                "1 file in two classes: test/a/3.png = train/b/7.png",
            ],
        );

        // A copy with the same label counts before one with another.
        let mut manifest = opened.manifest;
        let fifth = manifest.samples.iter_mut().find(|s| s.id == "train/a/5.png").unwrap();
        fifth.label = Some(1);
        said(
            &report_on(&manifest, Depth::Pil).warnings,
            &[
                "2 held-out images also in training, so accuracy reads too high: test/a/1.png = train/a/6.png",
                with_another_label,
            ],
        );

        let unlabelled = ["train/a/5.png", "train/b/7.png"];
        let without = manifest.samples.iter_mut().filter(|s| unlabelled.contains(&&*s.id));
        without.for_each(|sample| sample.label = None);
        let warnings = report_on(&manifest, Depth::Pil).warnings;
        said(
            &warnings,
            &[
                "2 held-out images also in training, so accuracy reads too high: test/a/1.png = train/a/6.png",
                "1 held-out image also among the training images without a label: test/a/3.png = train/b/7.png",
            ],
        );
        assert!(!warnings.iter().any(|w| w.contains("another label")), "{warnings:?}");
    }

    #[test]
    fn oddities_are_counted_and_said() {
        let root = odd_data();
        let opened = open_noting(root.path(), &tests::config(), 1).unwrap();
        let mut report = report_on(&opened.manifest, Depth::Pil);
        report.add_notes(&opened, &[]);
        assert_eq!(
            report.images,
            SplitCounts { train: 7, val: 0, test: 1 },
            "those that can be read"
        );
        assert_eq!(report.classes[1].images, SplitCounts { train: 3, val: 0, test: 0 });
        assert_eq!(report.width, Spread { min: 41, median: 43, max: 60 });
        assert_eq!(report.height, Spread { min: 8, median: 50, max: 50 });
        assert_eq!((report.grey, report.alpha, report.cmyk), (1, 1, 0));
        assert_eq!(report.imbalance, 4.0 / 3.0);
        let reasons: Vec<&str> = report.bad.iter().map(|bad| bad.reason.as_str()).collect();
        assert_eq!(reasons, ["is empty (0 bytes)", "is a text file, not an image"]);
        let leak = Leak {
            train: "train/a/3.png".into(),
            held_out: "test/a/again.png".into(),
            labelled: true,
            other_label: false,
        };
        assert_eq!(report.leaks, [leak]);
        let expected = [
            "2 images cannot be read: train/a/empty.png is empty",
            "1 held-out image also in training, so accuracy reads too high: test/a/again.png",
            "1 file in two classes: train/a/4.png = train/b/conflict.png",
            "1 class without a test image: b",
            "2 classes with fewer than 5 training images: a, b",
            "some images are smaller than 32 pixels",
            "1 image with transparency, which is dropped: transparent pixels have the colour",
            "no image uses more than level 0 of 255",
            "left out: 1 photo in a format that fewvit does not read",
        ];
        assert_eq!(report.warnings.len(), expected.len(), "{:#?}", report.warnings);
        for (warning, expected) in report.warnings.iter().zip(expected) {
            assert!(warning.starts_with(expected), "{warning}");
        }
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<DataReport>(&json).unwrap(), report);
    }

    #[test]
    fn advice_that_is_followed_is_not_given() {
        let root = tempfile::tempdir().unwrap();
        for (class, count) in [("a", 60), ("b", 5)] {
            for i in 0..count {
                let image = DynamicImage::new_rgb8(40, 40 + i);
                save(root.path(), &format!("train/{class}/{i}.png"), image);
            }
        }
        let manifest = open_noting(root.path(), &tests::config(), 1).unwrap().manifest;
        let report = report_on(&manifest, Depth::Pil);
        let paper = crate::config::Layers::new("paper").and_then(|layers| layers.build()).unwrap();
        let note = |change: &dyn Fn(&mut FinetuneConfig)| {
            let (mut report, mut finetune) = (report.clone(), paper.config.finetune.clone());
            change(&mut finetune);
            report.heed(&finetune);
            report.warnings.into_iter().find(|note| note.contains("12 times")).unwrap()
        };
        let plain = note(&|_| ());
        assert!(plain.contains("sampling=balanced") && plain.contains("class_weights=effective"));
        let bare = "the largest class has 12 times the training images of the smallest; accuracy is \
                    dominated by the large classes";
        assert_eq!(note(&|finetune| finetune.sampling = Sampling::Balanced), bare);
        assert_eq!(note(&|finetune| finetune.class_weights = ClassWeights::Effective), bare);
    }

    #[test]
    fn darkness_is_said_and_stretched() {
        let root = tempfile::tempdir().unwrap();
        let twelve_bits = |x, y| image::Luma([(x * 97 + y * 31) as u16 % 4096]);
        for (class, count) in [("a", 5), ("b", 7)] {
            for i in 0..count {
                let image = image::ImageBuffer::from_fn(64 + i, 40, twelve_bits);
                save(root.path(), &format!("{class}/{i}.png"), DynamicImage::ImageLuma16(image));
            }
        }
        let manifest = open_noting(root.path(), &tests::config(), 1).unwrap().manifest;
        let about_darkness = |depth| {
            let report = report_on(&manifest, depth);
            let notes = report.warnings.into_iter().filter(|note| note.contains("of 255"));
            (report.deep, report.dark_deep, report.brightest, notes.collect::<Vec<_>>())
        };
        let note = "12 images store 16-bit samples and use at most level 15 of 255, so they are \
                    nearly black; --set data.depth=auto stretches them";
        assert_eq!(about_darkness(Depth::Pil), (12, 12, Some(15), vec![note.to_owned()]));
        assert_eq!(about_darkness(Depth::Auto), (12, 0, Some(255), vec![]));

        // Eight bits: only a set that is dark as a whole is odd.
        let root = tempfile::tempdir().unwrap();
        for (name, level) in [("a/1.png", 3), ("a/2.png", 9), ("b/1.png", 9), ("b/2.png", 2)] {
            let image = image::RgbImage::from_pixel(40, 40, image::Rgb([0, level, 1]));
            save(root.path(), name, DynamicImage::ImageRgb8(image));
        }
        let notes = |root: &Path| {
            let manifest = open_noting(root, &tests::config(), 1).unwrap().manifest;
            report_on(&manifest, Depth::Pil).warnings.join("; ")
        };
        assert!(notes(root.path()).contains("no image uses more than level 9 of 255"));
        save(
            root.path(),
            "a/1.png",
            DynamicImage::ImageLuma8(image::ImageBuffer::from_pixel(40, 40, image::Luma([16]))),
        );
        assert!(!notes(root.path()).contains("of 255"));
    }

    #[test]
    fn bad_images_stop_or_are_left_out() {
        let root = odd_data();
        let manifest = open_noting(root.path(), &tests::config(), 1).unwrap().manifest;
        let report = report_on(&manifest, Depth::Pil);
        let error = apply_bad_policy(&manifest, &report, OnBadImage::Error).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        let text = error.to_string();
        assert!(text.contains("2 images cannot be read:\n  train/a/empty.png is empty"), "{text}");
        assert!(text.contains("--set data.on_bad_image=skip"));
        let kept = apply_bad_policy(&manifest, &report, OnBadImage::Skip).unwrap();
        assert_eq!(kept.samples.len(), manifest.samples.len() - 2);
        let again = report_on(&kept, Depth::Pil);
        assert_eq!(
            apply_bad_policy(&kept, &again, OnBadImage::Error).unwrap().samples,
            kept.samples
        );
    }

    #[test]
    fn the_tiny_flowers_are_sound() {
        let Some(path) = tests::data_file("flowers-102-tiny.tar") else {
            return;
        };
        let opened = open_noting(&path, &tests::config(), 1).unwrap();
        let report = report_on(&opened.manifest, Depth::Pil);
        assert_eq!((report.bad.len(), report.leaks.len(), report.imbalance), (0, 0, 1.0));
        assert_eq!(report.images, SplitCounts { train: 100, val: 100, test: 0 });
        assert_eq!(report.width.min.min(report.height.min), 64);
        assert!(report.warnings.is_empty(), "{:?}", report.warnings);
    }
}
