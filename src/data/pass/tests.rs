use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::cache::kept::total;
use super::super::manifest::{Origin, Sample, SplitOrigin};
use super::super::source::{open, tests};
use super::*;
use crate::config::Depth;

const IMAGES: usize = 9;
/// Bytes of all usable images at 10 px: those of 40 x 20 are 20 x 10, those of 48 x 20 are 24 x 10.
const BYTES: u64 = 3 * 10 * (20 + 21 + 22 + 22 + 23 + 23 + 24 + 24);

fn keeping(folder: Option<&Path>, ram_bytes: u64, disk_bytes: u64) -> Keeping {
    let folder = folder.map(Path::to_path_buf);
    Keeping { short_side: 10, depth: Depth::Pil, ram_bytes, disk_bytes, folder }
}

/// PNG files of a slope, sized 40 x 20, 41 x 20 ..., with a broken one in third place.
fn slopes(folder: &Path) -> Manifest {
    let sample = |i: usize| {
        let path = folder.join(format!("{i}.png"));
        let color = |x, y| image::Rgb([(x * 5) as u8, (y * 9) as u8, i as u8]);
        image::RgbImage::from_fn(40 + i as u32, 20, color).save(&path).unwrap();
        if i == 2 {
            std::fs::write(&path, "text").unwrap();
        }
        Sample {
            id: format!("{i}.png"),
            origin: Origin::File(path),
            label: None,
            split: Split::Train,
            treatment: Default::default(),
        }
    };
    Manifest {
        name: "slopes".into(),
        classes: Vec::new(),
        samples: (0..IMAGES).map(sample).collect(),
        split_origin: SplitOrigin::Unlabelled,
    }
}

/// A pass, and how many files it read.
fn pass(manifest: &Manifest, keeping: &Keeping, threads: usize) -> (Pass, usize) {
    let read = AtomicUsize::new(0);
    let progress = |_, total| {
        assert_eq!(total, IMAGES);
        read.fetch_add(1, Ordering::Relaxed);
    };
    let pass = Pass::over(manifest, keeping, &Share::ALONE, threads, &progress).unwrap();
    (pass, read.into_inner())
}

/// The usable images, the last first.
fn pixels(store: &ImageStore) -> Vec<Rgb8> {
    (0..store.len()).map(|i| store.get(i).unwrap().into_owned()).collect()
}

fn usable() -> Vec<usize> {
    (0..IMAGES).rev().filter(|&i| i != 2).collect()
}

#[test]
fn wherever_images_are_kept_they_are_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = slopes(folder.path());
    let all = |keeping: &Keeping, threads| {
        let (pass, read) = pass(&manifest, keeping, threads);
        assert_eq!(read, IMAGES);
        assert_eq!(pass.found[2], Err("is a text file, not an image".to_owned()));
        assert_eq!(pass.found[3].as_ref().unwrap().size, (43, 20));
        let store = pass.store(&manifest, &usable(), keeping);
        assert_eq!(store.bytes(), BYTES.min(keeping.ram_bytes));
        let images = pixels(&store);
        assert_eq!(images, pixels(&store), "the same again");
        (images, store.streamed())
    };
    let (reference, streamed) = all(&keeping(None, BYTES, 0), 1);
    assert_eq!(streamed, 0);
    assert_eq!((reference[0].width, reference[0].height), (24, 10));
    assert_eq!(reference[0].pixels[2], 8);
    assert_eq!(all(&keeping(None, BYTES, 0), 3), (reference.clone(), 0));
    assert_eq!(all(&keeping(None, 0, 0), 2), (reference.clone(), 8));
    // 20 + 21 + 22 columns fit.
    assert_eq!(all(&keeping(None, 2_000, 0), 2), (reference.clone(), 5));
    for (ram, disk, streamed) in [(0, BYTES, 0), (1_500, BYTES, 0), (0, 2_000, 5), (BYTES, 600, 0)]
    {
        let kept = tempfile::tempdir().unwrap();
        let found = all(&keeping(Some(kept.path()), ram, disk), 2);
        assert_eq!(found.0, reference);
        assert_eq!(found.1, streamed, "{ram} {disk}");
    }
}

#[test]
fn a_second_run_reads_nothing_unless_a_file_or_a_setting_changed() {
    let (folder, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut manifest = slopes(folder.path());
    let keeping = keeping(Some(kept.path()), 1_000, 1 << 20);
    let first = pass(&manifest, &keeping, 2);
    assert_eq!((first.0.known, first.1), (false, IMAGES));
    let second = pass(&manifest, &keeping, 2);
    assert_eq!((second.0.known, second.1), (true, 0));
    assert_eq!(first.0.found, second.0.found);
    let first = pixels(&first.0.store(&manifest, &usable(), &keeping));
    assert_eq!(first, pixels(&second.0.store(&manifest, &usable(), &keeping)));

    // Labels put images in another order.
    let mut labelled = manifest.clone();
    labelled.samples.rotate_left(3);
    labelled.samples.iter_mut().step_by(2).for_each(|sample| sample.label = Some(0));
    let (found, read) = pass(&labelled, &keeping, 2);
    assert_eq!((found.known, read), (true, 0));
    let moved: Vec<usize> = usable().iter().map(|&i| (i + IMAGES - 3) % IMAGES).collect();
    assert_eq!(pixels(&found.store(&labelled, &moved, &keeping)), first, "each its own");

    let read = |manifest: &Manifest, keeping: &Keeping| pass(manifest, keeping, 2).1;
    let mut other = keeping.clone();
    other.short_side = 9;
    assert_eq!(read(&manifest, &other), IMAGES, "another size");
    manifest.samples[4].split = Split::Test;
    assert_eq!(read(&manifest, &keeping), IMAGES, "another split");
    manifest.samples[4].split = Split::Train;
    assert_eq!(read(&manifest, &keeping), 0);
    // The same bytes, written again.
    let path = folder.path().join("5.png");
    std::fs::write(&path, std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(read(&manifest, &keeping), IMAGES, "a file that was written to");
}

#[test]
fn damaged_caches_are_made_again_or_refused() {
    let (folder, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let manifest = slopes(folder.path());
    let keeping = keeping(Some(kept.path()), 0, 1 << 20);
    let (made, _) = pass(&manifest, &keeping, 2);
    let cache = made.kept.clone().unwrap();
    let file = |ending: &str| cache.join(format!("0-of-1.{ending}"));
    for ending in ["rgb", "jsonl"] {
        let whole = std::fs::read(file(ending)).unwrap();
        std::fs::write(file(ending), &whole[..whole.len() - 2]).unwrap();
        let (again, read) = pass(&manifest, &keeping, 2);
        assert_eq!((again.known, read), (false, IMAGES), "{ending} is cut");
        assert_eq!(std::fs::read(file(ending)).unwrap(), whole);
    }
    let mut pixels = std::fs::read(file("rgb")).unwrap();
    pixels[10] ^= 1;
    std::fs::write(file("rgb"), pixels).unwrap();
    let (pass, _) = pass(&manifest, &keeping, 2);
    let store = pass.store(&manifest, &[0, 1], &keeping);
    let error = store.get(0).unwrap_err().to_string();
    assert!(error.contains("0-of-1.rgb") && error.contains("its content has changed"), "{error}");
    assert!(store.get(1).is_ok());
}

#[test]
fn without_a_place_for_them_images_are_not_kept_and_it_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = slopes(folder.path());
    let file = folder.path().join("0.png");
    let keeping = keeping(Some(&file), BYTES, 1 << 20);
    let (pass, read) = pass(&manifest, &keeping, 2);
    assert_eq!((pass.known, pass.kept.as_deref(), read), (false, None, IMAGES));
    assert!(pass.not_kept.as_ref().unwrap().contains("0.png"), "{:?}", pass.not_kept);
    assert_eq!(pixels(&pass.store(&manifest, &usable(), &keeping)).len(), 8);
}

#[test]
fn the_caches_used_least_recently_go_first() {
    let kept = tempfile::tempdir().unwrap();
    std::fs::create_dir(kept.path().join("something of the user")).unwrap();
    let sets: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let manifests: Vec<_> = sets.iter().map(|set| slopes(set.path())).collect();
    let of = |disk| keeping(Some(kept.path()), 0, disk);
    let (first, _) = pass(&manifests[0], &of(1 << 20), 1);
    let one = total(kept.path());
    assert!(one > BYTES);
    let keeping = of(one * 5 / 2);
    let folders: Vec<_> = manifests
        .iter()
        .map(|manifest| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            pass(manifest, &keeping, 1).0.kept.unwrap()
        })
        .collect();
    assert!(!first.kept.as_ref().unwrap().exists() && !folders[0].exists());
    assert!(folders[1].exists() && folders[2].exists());
    assert!(kept.path().join("something of the user").exists());
    // Who has its files open still reads them.
    assert_eq!(pixels(&first.store(&manifests[0], &usable(), &of(1 << 20))).len(), 8);
}

/// Each of several processes reads its share, and all have everything.
#[test]
fn processes_of_a_machine_read_each_file_once() {
    let (folder, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let manifest = slopes(folder.path());
    let alone = keeping(None, BYTES, 0);
    let expected = pixels(&pass(&manifest, &alone, 1).0.store(&manifest, &usable(), &alone));
    let job = format!("test-{}", std::process::id());
    let temporary = std::env::temp_dir().join(format!("fewvit-{job}"));
    for (place, disk) in [(None, 0), (Some(kept.path()), 1 << 20)] {
        for ranks in [2, 4] {
            let (read, barrier) = (AtomicUsize::new(0), Barrier::new(ranks));
            let one = |rank| {
                let wait = || {
                    barrier.wait();
                    Ok(())
                };
                let share = Share { rank, ranks, job: &job, wait: &wait };
                let keeping = keeping(place, 0, disk);
                let progress = |_, _| {
                    read.fetch_add(1, Ordering::Relaxed);
                };
                let pass = Pass::over(&manifest, &keeping, &share, 1, &progress).unwrap();
                assert_eq!(pass.found.iter().filter(|found| found.is_err()).count(), 1);
                let store = pass.store(&manifest, &usable(), &keeping);
                assert_eq!((store.bytes(), store.streamed()), (0, 0));
                pixels(&store)
            };
            std::thread::scope(|scope| {
                let one = &one;
                let all: Vec<_> = (0..ranks).map(|rank| scope.spawn(move || one(rank))).collect();
                all.into_iter().for_each(|rank| assert!(rank.join().unwrap() == expected));
            });
            // What two processes kept, four find again.
            let known = place.is_some() && ranks == 4;
            assert_eq!(read.into_inner(), if known { 0 } else { IMAGES });
            assert!(!temporary.exists());
        }
    }
    let keeping = keeping(Some(kept.path()), 0, 1 << 20);
    assert!(pass(&manifest, &keeping, 1).0.known, "and so does one");
}

#[test]
fn all_training_flowers_decode() {
    let Some(path) = tests::data_file("flowers-102.tar") else {
        return;
    };
    let mut manifest = open(&path, &tests::config(), 1).unwrap();
    manifest.samples.retain(|sample| sample.split == Split::Train);
    let indices = manifest.indices(Split::Train);
    let keeping = Keeping { short_side: 256, ..keeping(None, 1 << 30, 0) };
    let pass = Pass::over(&manifest, &keeping, &Share::ALONE, 2, &|_, _| ()).unwrap();
    assert!(pass.found.iter().all(|found| found.is_ok()));
    let store = pass.store(&manifest, &indices, &keeping);
    assert_eq!(store.len(), 2040);
    let small = |i: usize| store.get(i).is_ok_and(|image| image.width.min(image.height) == 256);
    assert!((0..2040).all(small));
}
