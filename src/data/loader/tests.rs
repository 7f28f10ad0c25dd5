use rand::RngExt as _;
use rand::seq::SliceRandom as _;

use super::super::Rgb8;
use super::super::augment::{Augment, AugmentOrder};
use super::super::cache::Keeping;
use super::super::manifest::{Manifest, Origin, Sample, Split, SplitOrigin};
use super::super::pass::{Pass, Share};
use super::*;
use crate::config::{Depth, LambdaRule, Layers};

fn source(images: usize, batch_size: usize, drop_last: bool) -> BatchSource {
    let config = Layers::new("insdis").and_then(Layers::build).expect("a recipe").config;
    let views = ViewPlan::pretrain(&config.pretrain);
    let groups = views.groups.into_iter().map(|group| ViewGroup { count: 1, ..group });
    BatchSource {
        images: Arc::new(ImageStore::of(vec![Rgb8::new(4, 4); images])),
        views: Arc::new(ViewPlan { groups: groups.collect(), later: Vec::new() }),
        mix: Arc::new(|_, _, rows, _| Mix::none(rows)),
        seed: 1,
        batch_size,
        drop_last,
        threads: 1,
        rows: Rows::All,
        cutting: Cutting::Loader,
        balance: None,
        repeats: 1,
    }
}

#[test]
fn a_last_batch_that_is_not_full_is_kept_or_dropped_but_never_the_only_one() {
    for (images, batch, drop_last, sizes) in [
        (10, 4, false, &[4, 4, 2][..]),
        (10, 4, true, &[4, 4]),
        (8, 4, true, &[4, 4]),
        (3, 4, true, &[3]),
        (3, 4, false, &[3]),
    ] {
        let source = source(images, batch, drop_last);
        assert_eq!(source.steps_per_epoch(), sizes.len(), "{images} {batch} {drop_last}");
        assert_eq!(source.images_per_epoch(), sizes.iter().sum::<usize>());
        let mut seen = Vec::new();
        for epoch in 0..2 {
            let steps = (0..sizes.len()).map(|i| epoch * sizes.len() + i);
            let batches = steps.map(|step| source.batch(step).expect("crops"));
            let samples: Vec<_> = batches.map(|b| b.groups[0].samples.clone()).collect();
            assert_eq!(samples.iter().map(Vec::len).collect::<Vec<_>>(), sizes);
            seen.push(samples.concat());
        }
        assert!(images < 5 || seen[0] != seen[1], "another order, other images left out");
    }
}

const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const STD: [f32; 3] = [0.229, 0.224, 0.225];

/// Two views of 12 pixels and three of 8, of five images in batches of three.
fn multi_crop(mix: Arc<DrawMix>) -> BatchSource {
    let config = Layers::new("insdis").and_then(Layers::build).expect("a recipe").config;
    let group = |count, img_size| ViewGroup {
        count,
        augment: Augment::new(
            &config.pretrain.augment,
            [0.2, 1.0],
            img_size,
            AugmentOrder::Pretrain,
        ),
    };
    let image = |i: usize| {
        let pixels = (0..20 * 16 * 3).map(|p| (p * 37 + i * 91) as u8).collect();
        Rgb8 { width: 20, height: 16, pixels }
    };
    BatchSource {
        images: Arc::new(ImageStore::of((0..5).map(image).collect())),
        views: Arc::new(ViewPlan { groups: vec![group(2, 12), group(3, 8)], later: Vec::new() }),
        mix,
        threads: 2,
        ..source(5, 3, false)
    }
}

/// CutMix, Mixup and no mixing, in turn by epoch.
fn any_mix() -> Arc<DrawMix> {
    Arc::new(|rng, epoch, rows, size| match epoch % 3 {
        0 => Mix::cutmix(rng, rows, size, 0.5, LambdaRule::Fold),
        1 => Mix::mixup(rng, rows, 0.5, LambdaRule::Fold),
        _ => Mix::none(rows),
    })
}

fn row(group: &CropBatch, row: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; 3 * group.img_size.pow(2)];
    group.write_row(row, MEAN, STD, &mut out);
    out
}

#[test]
fn a_row_is_the_crop_of_its_view_and_sample_in_the_order_of_its_epoch() {
    let source = multi_crop(any_mix());
    for (step, batch) in source.prefetch(1, 7).enumerate() {
        let (step, batch) = (step + 1, batch.expect("crops"));
        let (epoch, within) = (step / 2, step % 2);
        let mut order: Vec<usize> = (0..5).collect();
        order.shuffle(&mut stream(1, Purpose::Order, epoch as u32, 0, 0));
        let samples = &order[within * 3..(within * 3 + 3).min(5)];
        let mut view = 0;
        for (index, group) in batch.groups.iter().enumerate() {
            let Crops::Bytes(bytes) = &group.crops else { panic!("all rows") };
            let mut crops = bytes.chunks_exact(3 * group.img_size.pow(2));
            for _ in 0..group.views {
                for &sample in samples {
                    let image = source.images.get(sample).expect("an image");
                    let crop = source.views.crop(&image, 1, epoch as u32, sample as u64, view);
                    assert_eq!(crops.next(), Some(&crop.pixels[..]), "{step} {view} {sample}");
                }
                view += 1;
            }
            assert!(crops.next().is_none());
            assert_eq!(group.samples, samples.repeat(group.views));
            let mut rng = stream(1, Purpose::Mix, 0, step as u64, index as u32);
            assert_eq!(
                group.mix,
                (source.mix)(&mut rng, epoch, group.samples.len(), group.img_size)
            );
        }
    }
}

#[test]
fn a_batch_is_the_same_whatever_was_asked_for_before_and_by_any_threads() {
    let source = multi_crop(any_mix());
    let alone = BatchSource { threads: 1, ..source.clone() };
    let ahead: Vec<_> = source.prefetch(0, 6).collect();
    for step in [3, 0, 5, 4, 1, 2] {
        let (a, b) = (alone.batch(step).expect("crops"), ahead[step].as_ref().expect("crops"));
        for (a, b) in a.groups.iter().zip(&b.groups) {
            assert_eq!((&a.samples, &a.mix), (&b.samples, &b.mix));
            assert!((0..a.samples.len()).all(|i| row(a, i) == row(b, i)), "step {step}");
        }
    }
}

/// Rows are dealt to the parts at random; each part is asked for its rows as single ranges.
#[test]
fn parts_of_a_batch_have_the_rows_of_the_whole_one() {
    let source = multi_crop(any_mix());
    let mut rng = stream(3, Purpose::Bench, 0, 0, 0);
    let mut left_out = 0;
    for (step, whole) in source.prefetch(0, 12).enumerate() {
        let whole = whole.expect("crops");
        let parts = 2 + step % 3;
        let mut deal = |group: &CropBatch| -> Vec<usize> {
            group.samples.iter().map(|_| rng.random_range(0..parts)).collect()
        };
        let dealt: Vec<_> = whole.groups.iter().map(&mut deal).collect();
        for part in 0..parts {
            let owners = dealt.clone();
            let own = move |rows: &[usize], _| {
                assert!(rows.iter().copied().eq(owners.iter().map(Vec::len)));
                let of_group = |owners: &Vec<usize>| {
                    let own = (0..owners.len()).filter(|&row| owners[row] == part);
                    own.map(|row| row..row + 1).collect()
                };
                owners.iter().map(of_group).collect()
            };
            let own = BatchSource { rows: Rows::Own(Arc::new(own)), ..source.clone() };
            let batch = own.batch(step).expect("crops");
            for ((all, own), owners) in whole.groups.iter().zip(&batch.groups).zip(&dealt) {
                assert_eq!((&all.samples, &all.mix), (&own.samples, &own.mix));
                assert_eq!((all.img_size, all.views), (own.img_size, own.views));
                let rows = (0..owners.len()).filter(|&i| owners[i] == part);
                rows.for_each(|i| assert_eq!(row(all, i), row(own, i), "step {step} row {i}"));
                let Crops::Part { bytes, places } = &own.crops else { panic!("some rows") };
                let made = places.iter().flatten().count();
                assert_eq!(bytes.len(), made * 3 * own.img_size.pow(2));
                left_out += places.len() - made;
            }
        }
    }
    assert!(left_out > 50, "{left_out}");
}

fn one_row(row: usize) -> Rows {
    let own = row..row + 1;
    Rows::Own(Arc::new(move |rows, _| rows.iter().map(|_| vec![own.clone()]).collect()))
}

#[test]
#[should_panic(expected = "no crop was made for row 2")]
fn a_row_that_was_not_asked_for_is_not_there() {
    let source = multi_crop(Arc::new(|_, _, rows, _| Mix::none(rows)));
    let batch = BatchSource { rows: one_row(1), ..source }.batch(0).expect("crops");
    row(&batch.groups[0], 1);
    row(&batch.groups[0], 2);
}

/// Of three images that cannot be read only those are asked for that a row needs.
#[test]
fn images_that_no_row_needs_are_not_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let sample = |i: usize| {
        let path = folder.path().join(format!("{i}.png"));
        if i == 1 {
            image::RgbImage::new(9, 9).save(&path).expect("saved");
        }
        let origin = Origin::File(path);
        Sample {
            id: format!("{i}.png"),
            origin,
            label: None,
            split: Split::Train,
            treatment: Default::default(),
        }
    };
    let manifest = Manifest {
        name: "one".into(),
        classes: Vec::new(),
        samples: (0..3).map(sample).collect(),
        split_origin: SplitOrigin::Unlabelled,
    };
    let keeping = Keeping {
        short_side: 0,
        depth: Depth::Pil,
        ram_bytes: 1 << 20,
        disk_bytes: 0,
        folder: None,
    };
    let pass = Pass::over(&manifest, &keeping, &Share::ALONE, 1, &|_, _| ()).expect("a pass");
    assert_eq!(pass.found.iter().filter(|found| found.is_err()).count(), 2);
    let images = pass.store(&manifest, &[0, 1, 2], &keeping);
    let source = BatchSource { images: Arc::new(images), ..source(3, 3, false) };
    assert!(source.batch(0).is_err());
    for step in 0..3 {
        for wanted in 0..3 {
            let own = BatchSource { rows: one_row(wanted), ..source.clone() };
            let order = Order::default().of(&source, step).to_vec();
            assert_eq!(own.batch(step).is_ok(), order[wanted].sample == 1, "{step} {wanted}");
        }
    }
}

/// What an engine is to make of a batch is what the loader makes of it.
#[test]
fn drawn_crops_are_those_that_the_loader_cuts() {
    let mix = |_: &mut _, _, rows: usize, _| {
        let partner = (0..rows).rev().collect();
        Mix { kind: crate::data::mixing::MixKind::Mixup, lambda: 0.7, partner }
    };
    let cut = multi_crop(Arc::new(mix));
    let drawn = BatchSource { cutting: Cutting::Engine, ..cut.clone() };
    for step in 0..3 {
        let [cut, drawn] = [&cut, &drawn].map(|source| source.batch(step).expect("crops"));
        for (cut, drawn) in cut.groups.iter().zip(&drawn.groups) {
            assert!(matches!(drawn.crops, Crops::Drawn(_)));
            assert_eq!(cut.samples, drawn.samples);
            for i in 0..cut.samples.len() {
                assert_eq!(row(cut, i), row(drawn, i), "row {i} of step {step}");
            }
        }
    }
}
