//! Smaller training parts of a data set, for learning curves and the paper's subsets of ImageNet.

use rand::seq::SliceRandom as _;

use super::manifest::{Manifest, Split};
use crate::error::{Error, Result};
use crate::rng::{Purpose, stream};
use crate::words::{counted, shortened};

/// How many training images a sample has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Size {
    /// This many of each class: 10 of each of ImageNet's 1000 classes are the paper's SIN-10k.
    PerClass(usize),
    /// This many of all, whatever their classes: 10,000 of ImageNet are the paper's SIN-total-10k.
    Total(usize),
    /// This share of each class and of the images without one, at least one image of each.
    Fraction(f64),
}

/// Draws a sample of the training part; the other training images leave the manifest. Validation
/// and test images stay as they are. Images without a label are of no class: a sample by class has
/// none of them, a fraction its share, and a total is drawn from all alike.
///
/// One seed puts the images of each class into one order, and a sample takes the first of them. A
/// larger sample of the same seed thus contains the labelled images of the smaller one, also if one
/// is given by class and the other as a fraction. [`Size::Total`] has an order of its own, over all
/// images. Returns what a person should know.
///
/// # Errors
/// [`Error::Usage`] for a size that names no sample, [`Error::Data`] if there is no training image,
/// or no label for a sample by class.
pub fn draw(manifest: &mut Manifest, size: Size, seed: u64) -> Result<Vec<String>> {
    let train = manifest.indices(Split::Train);
    check(manifest, &train, size)?;
    let unlabelled = unlabelled_note(manifest, &train, size);
    let pools = pools(manifest, train, size);
    let mut kept: Vec<bool> = manifest.samples.iter().map(|s| s.split != Split::Train).collect();
    let mut short = Vec::new();
    for (class, mut pool) in pools.into_iter().enumerate() {
        let want = wanted(size, pool.len());
        if want > pool.len() {
            short.push(format!("{} ({})", pool_name(manifest, size, class), pool.len()));
        }
        let over_all = u32::from(matches!(size, Size::Total(_)));
        pool.shuffle(&mut stream(seed, Purpose::Sample, over_all, class as u64, 0));
        pool.iter().take(want).for_each(|&i| kept[i] = true);
    }
    let mut keep = kept.iter();
    manifest.samples.retain(|_| keep.next().copied().unwrap_or(true));
    let notes = [short_note(size, &short), unlabelled, empty_note(manifest)];
    Ok(notes.into_iter().flatten().collect())
}

/// Leaves `count` training images their labels, each class its share and at least one; the others
/// stay as images without. In the order of [`draw`], so that more labels of the same seed contain
/// the fewer.
///
/// # Errors
/// [`Error::Usage`] if there are fewer labels or more classes with labels than `count`.
pub fn keep_labels(manifest: &mut Manifest, count: usize, seed: u64) -> Result<()> {
    let pools = pools(manifest, manifest.indices(Split::Train), Size::PerClass(count));
    let labelled: usize = pools.iter().map(Vec::len).sum();
    let classes = pools.iter().filter(|pool| !pool.is_empty()).count();
    if classes == 0 {
        return Err(Error::Usage(format!(
            "no label can be kept: no training image of {} has one\n  leave --labels out",
            manifest.name
        )));
    }
    if !(classes..=labelled).contains(&count) {
        return Err(Error::Usage(format!(
            "--labels {count} cannot be had: {} has {}, each of which keeps a label at least, and {} \
             with a label\n  give {classes} to {labelled}",
            manifest.name,
            counted(classes, "class"),
            counted(labelled, "training image"),
        )));
    }
    // Each class's images stand evenly spread on a line from 0 to 1; the first of each come first.
    let mut line = Vec::new();
    for (class, mut pool) in pools.into_iter().enumerate() {
        pool.shuffle(&mut stream(seed, Purpose::Sample, 0, class as u64, 0));
        let size = pool.len() as f64;
        let place = |rank: usize| if rank == 0 { 0.0 } else { (rank as f64 + 0.5) / size };
        line.extend(pool.into_iter().enumerate().map(|(rank, i)| (place(rank), class, i)));
    }
    line.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    line.iter().skip(count).for_each(|&(_, _, i)| manifest.samples[i].label = None);
    // Images without a label stand before the others.
    manifest.samples.sort_by(|a, b| (a.label, &a.id).cmp(&(b.label, &b.id)));
    Ok(())
}

fn check(manifest: &Manifest, train: &[usize], size: Size) -> Result<()> {
    let usage = |what: String| Err(Error::Usage(what));
    match size {
        Size::PerClass(0) | Size::Total(0) => usage("a sample has at least one image".into()),
        Size::Fraction(f) if !(f > 0.0 && f <= 1.0) => {
            usage(format!("--fraction {f}: must lie above 0 and not above 1"))
        }
        Size::PerClass(_) if !manifest.is_labelled() => Err(Error::Data(format!(
            "{} has no labels to sample by class; use --total or --fraction",
            manifest.name
        ))),
        _ if train.is_empty() => {
            Err(Error::Data(format!("{} has no training images to sample from", manifest.name)))
        }
        _ => Ok(()),
    }
}

/// What is drawn from separately: the classes and, for a share, the images without one; or all
/// images together.
fn pools(manifest: &Manifest, train: Vec<usize>, size: Size) -> Vec<Vec<usize>> {
    if matches!(size, Size::Total(_)) || !manifest.is_labelled() {
        return vec![train];
    }
    let classes = manifest.classes.len();
    let mut pools = vec![Vec::new(); classes + 1];
    for i in train {
        pools[manifest.samples[i].label.unwrap_or(classes)].push(i);
    }
    if !matches!(size, Size::Fraction(_)) {
        pools.truncate(classes);
    }
    pools
}

/// Images to take from a pool of `available` ones.
fn wanted(size: Size, available: usize) -> usize {
    match size {
        Size::PerClass(count) | Size::Total(count) => count,
        Size::Fraction(_) if available == 0 => 0,
        Size::Fraction(f) => ((available as f64 * f).round() as usize).clamp(1, available),
    }
}

fn pool_name(manifest: &Manifest, size: Size, class: usize) -> String {
    match size {
        Size::Total(_) => "all".into(),
        Size::PerClass(_) | Size::Fraction(_) => manifest.classes[class].clone(),
    }
}

/// What to say of pools that hold fewer images than were asked for.
fn short_note(size: Size, short: &[String]) -> Option<String> {
    match (size, short) {
        (_, []) | (Size::Fraction(_), _) => None,
        (Size::Total(n), _) => {
            Some(format!("fewer than {n} training images; all of them are in the sample"))
        }
        (Size::PerClass(n), _) => {
            let have = if short.len() == 1 { "has" } else { "have" };
            Some(format!(
                "{} {have} fewer than {n} training images, all of which are in the sample: {}",
                counted(short.len(), "class"),
                shortened(short)
            ))
        }
    }
}

/// What to say of images that are of no class, where classes are drawn from.
fn unlabelled_note(manifest: &Manifest, train: &[usize], size: Size) -> Option<String> {
    let without = train.iter().filter(|i| manifest.samples[**i].label.is_none()).count();
    (without > 0 && matches!(size, Size::PerClass(_))).then(|| {
        format!(
            "{} without a label left out, being of no class; --fraction takes its share of them",
            counted(without, "training image")
        )
    })
}

/// What to say of classes without a training image.
fn empty_note(manifest: &Manifest) -> Option<String> {
    let mut has = vec![false; manifest.classes.len()];
    let train = manifest.samples.iter().filter(|sample| sample.split == Split::Train);
    train.filter_map(|sample| sample.label).for_each(|label| has[label] = true);
    let without = manifest.classes.iter().zip(&has).filter(|(_, has)| !**has);
    let without: Vec<String> = without.map(|(class, _)| class.clone()).collect();
    (!without.is_empty()).then(|| {
        format!(
            "{} without a training image in the sample: {}\n  it serves pre-training; fine-tuning \
             needs an image of each class",
            counted(without.len(), "class"),
            shortened(&without)
        )
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::manifest::{Origin, Sample, SplitOrigin};
    use super::*;

    /// Classes of these many training images, and two test and one validation image each.
    fn manifest(sizes: &[usize]) -> Manifest {
        let samples = sizes.iter().enumerate().flat_map(|(label, &size)| {
            (0..size + 3).map(move |i| Sample {
                id: format!("{label}/{i:03}.jpg"),
                origin: Origin::File("x".into()),
                label: Some(label),
                split: match i.checked_sub(size) {
                    None => Split::Train,
                    Some(0) => Split::Val,
                    Some(_) => Split::Test,
                },
                treatment: Default::default(),
            })
        });
        Manifest {
            name: "test".into(),
            classes: (0..sizes.len()).map(|c| format!("c{c}")).collect(),
            samples: samples.collect(),
            split_origin: SplitOrigin::Given,
        }
    }

    fn drawn(sizes: &[usize], size: Size, seed: u64) -> (Manifest, Vec<String>) {
        let mut made = manifest(sizes);
        let notes = draw(&mut made, size, seed).unwrap();
        (made, notes)
    }

    fn train_ids(manifest: &Manifest) -> BTreeSet<String> {
        manifest.indices(Split::Train).iter().map(|&i| manifest.samples[i].id.clone()).collect()
    }

    fn per_class(manifest: &Manifest) -> Vec<usize> {
        let mut counts = vec![0; manifest.classes.len()];
        let train = manifest.indices(Split::Train);
        train.iter().for_each(|&i| counts[manifest.samples[i].label.unwrap()] += 1);
        counts
    }

    #[test]
    fn each_size_takes_what_it_says_and_leaves_the_held_out_images() {
        let sizes = [20, 7, 40, 3];
        let (by_class, notes) = drawn(&sizes, Size::PerClass(5), 1);
        assert_eq!(per_class(&by_class), [5, 5, 5, 3]);
        assert_eq!(
            notes,
            ["1 class has fewer than 5 training images, all of which are in the sample: c3 (3)"]
        );
        let (share, notes) = drawn(&sizes, Size::Fraction(0.25), 1);
        assert_eq!((per_class(&share), notes.len()), (vec![5, 2, 10, 1], 0));
        assert_eq!(per_class(&drawn(&sizes, Size::Fraction(0.01), 1).0), [1, 1, 1, 1]);
        let (total, _) = drawn(&sizes, Size::Total(30), 1);
        assert_eq!(train_ids(&total).len(), 30);
        let (all, notes) = drawn(&sizes, Size::Total(71), 1);
        assert_eq!(train_ids(&all).len(), 70);
        assert_eq!(notes, ["fewer than 71 training images; all of them are in the sample"]);
        assert_eq!(drawn(&sizes, Size::Total(70), 1).1.len(), 0);
        for made in [by_class, share, total, all] {
            let held = |split| made.indices(split).len();
            assert_eq!((held(Split::Val), held(Split::Test)), (4, 8));
            assert!(made.samples.is_sorted_by_key(|s| (s.label, s.id.clone())));
        }
    }

    #[test]
    fn images_without_a_label_are_in_no_sample_by_class_and_have_their_share_of_others() {
        let of = |size| {
            let mut made = manifest(&[12, 12]);
            // Half of each class.
            let train = made.samples.iter_mut().filter(|sample| sample.split == Split::Train);
            train.step_by(2).for_each(|sample| sample.label = None);
            let notes = draw(&mut made, size, 1).unwrap();
            let train = made.samples.iter().filter(|sample| sample.split == Split::Train);
            let (without, with) = train.partition::<Vec<_>, _>(|sample| sample.label.is_none());
            (with.len(), without.len(), notes)
        };
        let (with, without, notes) = of(Size::PerClass(2));
        assert_eq!((with, without), (4, 0));
        let said = "12 training images without a label left out, being of no class; --fraction";
        assert!(notes[0].starts_with(said), "{notes:?}");
        for (share, each) in [(0.5, 6), (1.0, 12)] {
            assert_eq!(of(Size::Fraction(share)), (each, each, vec![]));
        }
        let (with, without, _) = of(Size::Total(9));
        assert_eq!(with + without, 9);
        assert_eq!(of(Size::Total(24)), (12, 12, vec![]));
    }

    #[test]
    fn a_larger_sample_contains_the_smaller_one() {
        let percents = 1..101;
        for (seed, chain) in [
            (1..40).map(Size::PerClass).collect::<Vec<_>>(),
            (1..71).map(Size::Total).collect(),
            percents.map(|percent| Size::Fraction(f64::from(percent) / 100.0)).collect(),
            // 5 of 20, 8 and 40 are fewer than 80% of them.
            vec![Size::PerClass(2), Size::PerClass(5), Size::Fraction(0.8)],
        ]
        .iter()
        .enumerate()
        {
            let mut before = BTreeSet::new();
            for &size in chain {
                let now = train_ids(&drawn(&[20, 8, 40], size, seed as u64).0);
                assert!(before.is_subset(&now), "{size:?}");
                before = now;
            }
            assert!(before.len() > 30, "{}", before.len());
        }
    }

    #[test]
    fn the_seed_decides_and_other_classes_do_not() {
        let of = |sizes: &[usize], seed| {
            let (made, _) = drawn(sizes, Size::PerClass(5), seed);
            train_ids(&made).into_iter().filter(|id| id.starts_with("0/")).collect::<Vec<_>>()
        };
        assert_eq!(of(&[50, 9], 1), of(&[50, 400], 1));
        assert_ne!(of(&[50, 9], 1), of(&[50, 9], 2));
        // Not the first ones in the folder: 5 of 50 by chance once in two million draws.
        let first: Vec<String> = (0..5).map(|i| format!("0/{i:03}.jpg")).collect();
        assert_ne!(of(&[50, 9], 1), first);
    }

    /// A class of 20 of 100 images has a fifth of the sample in the mean.
    #[test]
    fn a_total_sample_is_drawn_from_all_images_alike() {
        let seeds = 400;
        let mut counts = [0; 2];
        for seed in 0..seeds {
            let made = per_class(&drawn(&[80, 20], Size::Total(10), seed).0);
            counts.iter_mut().zip(made).for_each(|(sum, n)| *sum += n);
        }
        // 2 of 10 in the mean, standard deviation 1.206 a draw (hypergeometric), 4 deviations.
        let mean = f64::from(counts[1] as u32) / seeds as f64;
        assert!((mean - 2.0).abs() < 4.0 * 1.206 / (seeds as f64).sqrt(), "{mean}");
    }

    #[test]
    fn what_cannot_be_sampled_is_refused_and_empty_classes_are_named() {
        let code = |made: &mut Manifest, size| draw(made, size, 0).unwrap_err().exit_code();
        let mut made = manifest(&[4, 4]);
        for size in [
            Size::PerClass(0),
            Size::Total(0),
            Size::Fraction(0.0),
            Size::Fraction(1.01),
            Size::Fraction(f64::NAN),
        ] {
            assert_eq!(code(&mut made, size), 2, "{size:?}");
        }
        made.samples.retain(|sample| sample.split != Split::Train);
        assert_eq!(code(&mut made, Size::Total(1)), 3);
        let mut unlabelled = manifest(&[8]);
        unlabelled.classes.clear();
        unlabelled.samples.iter_mut().for_each(|sample| sample.label = None);
        assert_eq!(code(&mut unlabelled, Size::PerClass(1)), 3);
        assert!(draw(&mut unlabelled, Size::Fraction(0.5), 0).unwrap().is_empty());
        assert_eq!(unlabelled.indices(Split::Train).len(), 4);
        let (_, notes) = drawn(&[9, 9], Size::Total(1), 0);
        assert!(notes[0].starts_with("1 class without a training image"), "{notes:?}");
        assert_eq!(drawn(&[9, 0], Size::Fraction(0.5), 0).1.len(), 1);
    }

    #[test]
    fn some_keep_their_labels_each_class_its_share_and_more_contain_the_fewer() {
        let labelled = |count: usize| {
            let mut made = manifest(&[40, 20, 4, 1]);
            keep_labels(&mut made, count, 3).unwrap();
            assert_eq!(made.samples.len(), manifest(&[40, 20, 4, 1]).samples.len());
            assert!(made.samples.is_sorted_by_key(|s| (s.label, s.id.clone())));
            let held_out = made.samples.iter().filter(|s| s.split != Split::Train);
            assert!(held_out.into_iter().all(|s| s.label.is_some()));
            let kept = made.samples.iter().filter(|s| s.split == Split::Train && s.label.is_some());
            kept.map(|s| s.id.clone()).collect::<BTreeSet<_>>()
        };
        let of_class = |kept: &BTreeSet<String>, class: &str| {
            kept.iter().filter(|id| id.starts_with(&format!("{class}/"))).count()
        };
        let mut fewer = BTreeSet::new();
        for count in 4..=65 {
            let kept = labelled(count);
            assert_eq!(kept.len(), count);
            assert!(kept.is_superset(&fewer), "{count}");
            fewer = kept;
        }
        let kept = labelled(13);
        let counts = ["0", "1", "2", "3"].map(|class| of_class(&kept, class));
        assert_eq!(counts, [7, 4, 1, 1]);
        for count in [3, 66] {
            let error = keep_labels(&mut manifest(&[40, 20, 4, 1]), count, 3).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            let text = error.to_string();
            assert!(text.starts_with(&format!("--labels {count} cannot be had: ")), "{text}");
            assert!(text.contains("4 classes") && text.ends_with("give 4 to 65"), "{text}");
        }
        let mut unlabelled = manifest(&[8]);
        unlabelled.samples.iter_mut().for_each(|sample| sample.label = None);
        let text = keep_labels(&mut unlabelled, 4, 3).unwrap_err().to_string();
        assert!(text.contains("no training image of test has one"), "{text}");
    }
}
