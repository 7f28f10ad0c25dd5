//! Splits: drawing one for data that has none, writing it down and reading it back.

use std::collections::HashMap;
use std::path::Path;

use rand::seq::SliceRandom as _;

use super::manifest::{Manifest, Split, SplitOrigin};
use super::table::parse_split;
use super::words::{counted, shortened};
use crate::error::{Error, Result};
use crate::rng::{Purpose, stream};

/// Moves about `test_fraction` of each class from training to test, the same for the same seed.
///
/// Every class of two images or more gets at least one on each side; the image of a class of one
/// stays in training. `groups` names the group of an image by its id: images of one group (a
/// patient, a plant, a video) never land on both sides. Returns what a person should know.
///
/// # Errors
/// [`Error::Usage`] if the fraction is not between 0 and 1.
pub fn stratified(
    manifest: &mut Manifest,
    groups: &HashMap<String, String>,
    test_fraction: f64,
    seed: u64,
) -> Result<Vec<String>> {
    if !(test_fraction > 0.0 && test_fraction < 1.0) {
        return Err(Error::Usage(format!(
            "data.test_fraction = {test_fraction}: must lie between 0 and 1"
        )));
    }
    let units = units(manifest, groups);
    // Images of each class, by side.
    let mut train = vec![0; manifest.classes.len()];
    let mut test = train.clone();
    manifest.samples.iter_mut().for_each(|s| s.split = Split::Train);
    manifest.samples.iter().filter_map(|s| s.label).for_each(|label| train[label] += 1);
    let totals = train.clone();
    let mut taken = vec![false; units.len()];
    for (class, &total) in totals.iter().enumerate().filter(|(_, total)| **total > 1) {
        let want = ((total as f64 * test_fraction).round() as usize).clamp(1, total - 1);
        let mut order: Vec<usize> =
            (0..units.len()).filter(|&u| units[u].per_class.contains_key(&class)).collect();
        order.shuffle(&mut stream(seed, Purpose::Split, 0, class as u64, 0));
        // Those that fit exactly or below first; if none fits, the smallest must do.
        let mut pass = |at_most: usize, test: &mut Vec<usize>| {
            for &u in &order {
                let size = units[u].per_class[&class];
                let keeps_all = units[u].per_class.iter().all(|(c, n)| train[*c] > *n);
                if !taken[u] && keeps_all && test[class] + size <= at_most {
                    taken[u] = true;
                    for (&c, &n) in &units[u].per_class {
                        train[c] -= n;
                        test[c] += n;
                    }
                }
            }
        };
        pass(want, &mut test);
        let sizes = order.iter().map(|&u| units[u].per_class[&class]);
        if let (0, Some(smallest)) = (test[class], sizes.min()) {
            pass(smallest, &mut test);
        }
    }
    for unit in units.iter().zip(&taken).filter(|(_, taken)| **taken).map(|(unit, _)| unit) {
        unit.samples.iter().for_each(|&i| manifest.samples[i].split = Split::Test);
    }
    manifest.split_origin = SplitOrigin::Made;
    let untested = manifest.classes.iter().zip(&test).filter(|(_, n)| **n == 0);
    let untested: Vec<String> = untested.map(|(class, _)| class.clone()).collect();
    let note = (!untested.is_empty()).then(|| {
        format!(
            "{} with a single image or a single group have nothing in the test split: {}",
            counted(untested.len(), "class"),
            shortened(&untested)
        )
    });
    Ok(note.into_iter().collect())
}

/// Images that must stay together, and how many of each class they are.
struct Unit {
    samples: Vec<usize>,
    per_class: HashMap<usize, usize>,
}

fn units(manifest: &Manifest, groups: &HashMap<String, String>) -> Vec<Unit> {
    let mut units: Vec<Unit> = Vec::new();
    let mut of_group: HashMap<&str, usize> = HashMap::new();
    for (i, sample) in manifest.samples.iter().enumerate() {
        let Some(label) = sample.label else { continue };
        let new = units.len();
        let at = groups.get(&sample.id).map_or(new, |group| *of_group.entry(group).or_insert(new));
        if at == new {
            units.push(Unit { samples: Vec::new(), per_class: HashMap::new() });
        }
        units[at].samples.push(i);
        *units[at].per_class.entry(label).or_default() += 1;
    }
    units
}

/// Writes `file,label,class,split`, one image a row, in the manifest's order.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written.
pub fn write_csv(manifest: &Manifest, path: &Path) -> Result<()> {
    let write = || -> csv::Result<()> {
        let mut writer = csv::Writer::from_path(path)?;
        writer.write_record(["file", "label", "class", "split"])?;
        for sample in &manifest.samples {
            let label = sample.label.map_or(String::new(), |label| label.to_string());
            let class = sample.label.map_or("", |label| &manifest.classes[label]);
            writer.write_record([&sample.id, &label, class, split_name(sample.split)])?;
        }
        Ok(writer.flush()?)
    };
    write().map_err(|e| Error::io("write", path, e.into()))
}

/// The images of `manifest` that the file lists, with the splits it gives them.
///
/// So a resumed run, or another method, trains and tests on the very same images, also where
/// unreadable ones were left out.
///
/// # Errors
/// [`Error::Data`] if the file names an image that is gone or whose class changed.
pub fn read_csv(manifest: &Manifest, path: &Path) -> Result<Manifest> {
    let bad = |what: String| Error::Data(format!("{}: {what}", path.display()));
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    let mut listed = HashMap::new();
    for (i, row) in csv::Reader::from_reader(bytes.as_slice()).records().enumerate() {
        let row = row.map_err(|e| bad(e.to_string()))?;
        let split = row.get(3).and_then(parse_split);
        let (Some(file), Some(class), Some(split)) = (row.get(0), row.get(2), split) else {
            return Err(bad(format!("row {} is not file,label,class,split", i + 1)));
        };
        listed.insert(file.to_owned(), (class.to_owned(), split));
    }
    let mut kept = Manifest { samples: Vec::new(), ..manifest.clone() };
    for sample in &manifest.samples {
        let Some((class, split)) = listed.remove(&sample.id) else {
            continue;
        };
        if sample.label.map_or("", |label| &manifest.classes[label]) != class {
            return Err(bad(format!("{} is of class `{class}` there, not in the data", sample.id)));
        }
        kept.samples.push(super::manifest::Sample { split, ..sample.clone() });
    }
    if !listed.is_empty() {
        let mut gone: Vec<String> = listed.into_keys().collect();
        gone.sort();
        let count = counted(gone.len(), "image");
        return Err(bad(format!("{count} no longer in the data: {}", shortened(&gone))));
    }
    Ok(kept)
}

fn split_name(split: Split) -> &'static str {
    match split {
        Split::Train => "train",
        Split::Val => "val",
        Split::Test => "test",
    }
}

#[cfg(test)]
mod tests {
    use super::super::manifest::{Origin, Sample};
    use super::*;

    fn manifest(sizes: &[usize]) -> Manifest {
        let samples = sizes.iter().enumerate().flat_map(|(label, &size)| {
            (0..size).map(move |i| Sample {
                id: format!("{label}/{i:03}.jpg"),
                origin: Origin::File("x".into()),
                label: Some(label),
                split: Split::Train,
            })
        });
        Manifest {
            name: "test".into(),
            classes: (0..sizes.len()).map(|c| c.to_string()).collect(),
            samples: samples.collect(),
            split_origin: SplitOrigin::Given,
        }
    }

    fn test_counts(manifest: &Manifest) -> Vec<usize> {
        let mut counts = vec![0; manifest.classes.len()];
        manifest
            .indices(Split::Test)
            .iter()
            .for_each(|&i| counts[manifest.samples[i].label.unwrap()] += 1);
        counts
    }

    #[test]
    fn each_class_gives_its_share() {
        let mut made = manifest(&[1, 2, 3, 10, 101]);
        let notes = stratified(&mut made, &HashMap::new(), 0.2, 7).unwrap();
        assert_eq!(test_counts(&made), [0, 1, 1, 2, 20]);
        assert!(notes[0].contains("1 class with") && notes[0].ends_with(": 0"), "{notes:?}");
        let mut most = manifest(&[2, 3, 10]);
        stratified(&mut most, &HashMap::new(), 0.99, 7).unwrap();
        assert_eq!(test_counts(&most), [1, 2, 9]);
        assert!(stratified(&mut most, &HashMap::new(), 0.0, 7).is_err());
    }

    #[test]
    fn the_seed_decides_and_other_classes_do_not() {
        let draw = |sizes: &[usize], seed| {
            let mut made = manifest(sizes);
            stratified(&mut made, &HashMap::new(), 0.3, seed).unwrap();
            made.indices(Split::Test).into_iter().filter(|i| *i < 50).collect::<Vec<_>>()
        };
        assert_eq!(draw(&[50, 9], 1), draw(&[50, 400], 1));
        assert_ne!(draw(&[50, 9], 1), draw(&[50, 9], 2));
    }

    #[test]
    fn groups_never_straddle_and_no_class_is_emptied() {
        for seed in 0..50 {
            let mut made = manifest(&[12, 12, 12, 5]);
            // Groups of three across classes; class 3 is one group.
            let group = |i: usize| {
                if i >= 36 { 99 } else { (i % 12 / 3) * 2 + usize::from(i >= 24) }
            };
            let ids = made.samples.iter().enumerate();
            let groups = ids.map(|(i, s)| (s.id.clone(), group(i).to_string())).collect();
            let notes = stratified(&mut made, &groups, 0.25, seed).unwrap();
            assert_eq!(test_counts(&made), [3, 3, 3, 0], "seed {seed}");
            assert!(notes[0].ends_with("in the test split: 3"));
            let mut side = HashMap::new();
            for sample in &made.samples {
                assert_eq!(*side.entry(&groups[&sample.id]).or_insert(sample.split), sample.split);
            }
        }
    }

    #[test]
    fn a_written_split_reads_back_and_forgets_what_was_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("splits.csv");
        let mut made = manifest(&[6, 4]);
        made.classes[1] = "a, \"quoted\" name".into();
        stratified(&mut made, &HashMap::new(), 0.3, 1).unwrap();
        made.samples[0].split = Split::Val;
        let left_out = made.samples.remove(5);
        write_csv(&made, &path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("file,label,class,split\n0/000.jpg,0,0,val\n"), "{text}");

        let mut fresh = manifest(&[6, 4]);
        fresh.classes = made.classes.clone();
        assert!(fresh.samples.contains(&Sample { split: Split::Train, ..left_out }));
        assert_eq!(read_csv(&fresh, &path).unwrap().samples, made.samples);
        fresh.samples.remove(0);
        let gone = read_csv(&fresh, &path).unwrap_err().to_string();
        assert!(gone.contains("1 image no longer in the data: 0/000.jpg"), "{gone}");
        fresh.classes[0] = "renamed".into();
        assert!(read_csv(&fresh, &path).unwrap_err().to_string().contains("of class `0` there"));
    }
}
