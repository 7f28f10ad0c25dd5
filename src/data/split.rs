//! Splits: drawing one for data that has none, writing it down and reading it back.

use std::collections::HashMap;
use std::path::Path;

use rand::seq::SliceRandom as _;

use super::digest::Digest;
use super::manifest::{Manifest, Sample, Split, SplitOrigin, Treatment};
use super::table::{TREATMENT, parse_split};
use crate::error::{Error, Result};
use crate::rng::{Purpose, stream};
use crate::words::{counted, shortened};

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
    manifest.split_origin = match groups.is_empty() {
        true => SplitOrigin::Made,
        false => SplitOrigin::MadeByGroup,
    };
    let untested = manifest.classes.iter().zip(&test).filter(|(_, n)| **n == 0);
    let untested: Vec<String> = untested.map(|(class, _)| class.clone()).collect();
    let note = (!untested.is_empty()).then(|| {
        format!(
            "no test images for {} with a single image or a single group: {}",
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

const COLUMNS: [&str; 6] = ["file", "label", "class", "split", "digest", TREATMENT];

/// Writes `file,label,class,split,digest`, one image a row, in the manifest's order; `digests` of
/// the samples, or none at all. Images of published sets have `treatment` in a last column, so that
/// whoever reads the table takes their pixels alike.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written.
pub fn write_csv(manifest: &Manifest, digests: &[Option<Digest>], path: &Path) -> Result<()> {
    let write = || -> csv::Result<Vec<u8>> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        let is_usual = |sample: &Sample| sample.treatment == Treatment::default();
        let columns = if manifest.samples.iter().all(is_usual) { 5 } else { COLUMNS.len() };
        writer.write_record(&COLUMNS[..columns])?;
        for (i, sample) in manifest.samples.iter().enumerate() {
            let label = sample.label.map_or(String::new(), |label| label.to_string());
            let class = sample.label.map_or("", |label| &manifest.classes[label]);
            let digest = digests.get(i).and_then(Option::as_ref).map_or("", Digest::as_str);
            let split = name_of(sample.split);
            let treatment = sample.treatment.code();
            let row = [&sample.id, label.as_str(), class, split, digest, &treatment];
            writer.write_record(&row[..columns])?;
        }
        writer.into_inner().map_err(|e| e.into_error().into())
    };
    let bytes = write().map_err(|e| Error::io("write", path, e.into()))?;
    crate::files::write_atomically(path, &bytes)
}

/// What `splits.csv` says of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its id.
    pub id: String,
    /// Class index and class name; `None` without a label.
    pub class: Option<(usize, String)>,
    /// Its split.
    pub split: Split,
    /// Its content; runs of earlier versions did not write it down.
    pub digest: Option<Digest>,
}

/// Reads what [`write_csv`] wrote, in its order.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read, [`Error::Data`] for a row that is none of ours.
pub fn read_csv(path: &Path) -> Result<Vec<Listed>> {
    let bad = |what: String| Error::Data(format!("{}: {what}", path.display()));
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    let mut listed = Vec::new();
    for (i, row) in csv::Reader::from_reader(bytes.as_slice()).records().enumerate() {
        let row = row.map_err(|e| bad(e.to_string()))?;
        let fields = || {
            let class = row.get(2)?;
            let class = match row.get(1)? {
                "" => None,
                label => Some((label.parse().ok()?, class.to_owned())),
            };
            let digest = row.get(4).and_then(Digest::parse);
            Some(Listed {
                id: row.get(0)?.to_owned(),
                class,
                split: parse_split(row.get(3)?)?,
                digest,
            })
        };
        let fields = fields();
        listed.push(
            fields.ok_or_else(|| {
                bad(format!("row {} is not file,label,class,split,digest", i + 1))
            })?,
        );
    }
    Ok(listed)
}

/// What tables and folders call a split.
pub(super) fn name_of(split: Split) -> &'static str {
    match split {
        Split::Train => "train",
        Split::Val => "val",
        Split::Test => "test",
    }
}

#[cfg(test)]
mod tests {
    use super::super::manifest::Origin;
    use super::*;

    fn manifest(sizes: &[usize]) -> Manifest {
        let samples = sizes.iter().enumerate().flat_map(|(label, &size)| {
            (0..size).map(move |i| Sample {
                id: format!("{label}/{i:03}.jpg"),
                origin: Origin::File("x".into()),
                label: Some(label),
                split: Split::Train,
                treatment: Default::default(),
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
            let untested = "no test images for 1 class with a single image or a single group: 3";
            assert_eq!(notes, [untested]);
            let mut side = HashMap::new();
            for sample in &made.samples {
                assert_eq!(*side.entry(&groups[&sample.id]).or_insert(sample.split), sample.split);
            }
        }
    }

    #[test]
    fn a_written_split_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("splits.csv");
        let mut made = manifest(&[6, 4]);
        made.classes[1] = "a, \"quoted\" name".into();
        stratified(&mut made, &HashMap::new(), 0.3, 1).unwrap();
        made.samples[0].split = Split::Val;
        let mut digests: Vec<_> =
            made.samples.iter().map(|s| Some(Digest::of(s.id.as_bytes()))).collect();
        digests[1] = None;
        write_csv(&made, &digests, &path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        // `printf 0/000.jpg | sha256sum`
        let first =
            "file,label,class,split,digest\n0/000.jpg,0,0,val,56d3daa9fd8083e8dd7b96d93a3d137f\n";
        assert!(text.starts_with(first), "{text}");
        let read = read_csv(&path).unwrap();
        assert_eq!(read.len(), made.samples.len());
        for (i, (listed, sample)) in read.iter().zip(&made.samples).enumerate() {
            let class = sample.label.map(|label| (label, made.classes[label].clone()));
            assert_eq!((&listed.id, &listed.class), (&sample.id, &class));
            assert_eq!((listed.split, &listed.digest), (sample.split, &digests[i]));
        }
        made.samples[0].treatment = Treatment { cut_rows: 20, ..Treatment::PUBLISHED };
        write_csv(&made, &[], &path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let first = "file,label,class,split,digest,treatment\n0/000.jpg,0,0,val,,published-20\n";
        assert!(text.starts_with(first) && text.contains("0/002.jpg,0,0,train,,\n"), "{text}");
        assert_eq!(read_csv(&path).unwrap().len(), made.samples.len());
        std::fs::write(&path, "file,label,class,split\na.jpg,0,x,train\n").unwrap();
        assert_eq!(read_csv(&path).unwrap()[0].digest, None, "of an earlier version");
        std::fs::write(&path, "file,label,class,split\na.jpg,0,x,trian\n").unwrap();
        assert!(read_csv(&path).unwrap_err().to_string().contains("row 1 is not file,label"));
    }
}
