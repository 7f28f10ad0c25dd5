//! Data sets that a table describes: CSV, TSV or JSON lines, one image a row.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use super::listing::{Listing, extension, normalised, read};
use super::manifest::{Manifest, Sample, Split, SplitOrigin};
use super::source::{Opened, finish};
use super::split::stratified;
use super::words::{counted, shortened};
use crate::config::{DataConfig, OnBadImage};
use crate::error::{Error, Result};

const FILE: [&str; 4] = ["file_name", "image_path", "path", "file"];
const LABEL: [&str; 2] = ["label", "class"];
/// Names under which a table in a data folder is found.
const TABLES: [&str; 9] = [
    "metadata.csv",
    "index.csv",
    "manifest.csv",
    "metadata.tsv",
    "index.tsv",
    "manifest.tsv",
    "metadata.jsonl",
    "index.jsonl",
    "manifest.jsonl",
];

/// One row, its fields by lower-case column name.
type Row = HashMap<String, String>;

/// Whether a file name is that of a table.
pub(super) fn is_table_name(name: &str) -> bool {
    ["csv", "tsv", "jsonl"].contains(&extension(name).as_str())
}

/// The table at the root of a listing that says which images there are, if there is one.
pub(super) fn find(listing: &Listing) -> Option<&'static str> {
    let names_files = |name: &&&str| {
        let rows = read(&listing.files[**name]).and_then(|bytes| parse(&bytes, name));
        rows.is_ok_and(|rows| rows.first().is_some_and(|row| field(row, &FILE).is_some()))
    };
    TABLES.iter().filter(|t| listing.files.contains_key(**t)).find(names_files).copied()
}

/// Opens the data set that the table called `name` in the listing describes.
pub(super) fn open(
    listing: &Listing,
    name: &str,
    config: &DataConfig,
    seed: u64,
) -> Result<Opened> {
    let origin = listing.find(name).ok_or_else(|| Error::Data(format!("{name} is missing")))?;
    let rows = parse(&read(&origin)?, name)?;
    let classes = Classes::of(&rows, &class_names(listing)?);
    let (mut samples, mut groups, mut missing) = (Vec::new(), HashMap::new(), Vec::new());
    for (i, row) in rows.iter().enumerate() {
        let bad = |what: &str| Error::Data(format!("{name}, row {}: {what}", i + 1));
        let file = field(row, &FILE).ok_or_else(|| {
            bad(&format!("no image; one column must be called {}", FILE.join(", ")))
        })?;
        let id = normalised(Path::new(file)).unwrap_or_else(|| file.to_owned());
        let label = field(row, &LABEL).map(|label| classes.index[label]);
        if label.is_none() && !classes.names.is_empty() {
            return Err(bad("no label, though other rows have one"));
        }
        let split = field(row, &["split"])
            .map(|s| {
                parse_split(s)
                    .ok_or_else(|| bad(&format!("split `{s}` is none of train, val, test")))
            })
            .transpose()?;
        let Some(origin) = listing.find(&id) else {
            missing.push(id);
            continue;
        };
        if let Some(group) = field(row, &["group"]) {
            groups.insert(id.clone(), group.to_owned());
        }
        samples.push((Sample { id, origin, label, split: Split::Train }, split));
    }
    let mut warnings = missing_warning(name, &missing, config.on_bad_image)?;
    let (samples, split_origin) = with_splits(name, samples, !classes.names.is_empty())?;
    let made = split_origin == SplitOrigin::Made;
    let manifest =
        Manifest { name: listing.name.clone(), classes: classes.names, samples, split_origin };
    let mut opened = finish(manifest)?;
    opened.warnings.append(&mut warnings);
    if made {
        let notes = stratified(&mut opened.manifest, &groups, config.test_fraction, seed)?;
        opened.warnings.extend(notes);
    }
    Ok(opened)
}

/// Class names by label from `class_names.csv` (`label,name`) at the root, if it is there.
pub(super) fn class_names(listing: &Listing) -> Result<HashMap<String, String>> {
    let Some(origin) = listing.find("class_names.csv") else {
        return Ok(HashMap::new());
    };
    let rows = parse(&read(&origin)?, "class_names.csv")?;
    let pair = |row: &Row| Some((field(row, &["label"])?.into(), field(row, &["name"])?.into()));
    Ok(rows.iter().filter_map(pair).collect())
}

/// `train`, `val`, `test` and their customary other spellings.
pub(super) fn parse_split(name: &str) -> Option<Split> {
    match name.to_lowercase().as_str() {
        "train" | "training" => Some(Split::Train),
        "val" | "valid" | "validation" | "dev" => Some(Split::Val),
        "test" | "testing" => Some(Split::Test),
        _ => None,
    }
}

/// The first of the named fields that is there and not empty.
fn field<'a>(row: &'a Row, names: &[&str]) -> Option<&'a str> {
    names.iter().find_map(|name| row.get(*name)).map(String::as_str).filter(|v| !v.is_empty())
}

/// The table's classes, sorted: as numbers if all labels are numbers, else by bytes.
struct Classes {
    names: Vec<String>,
    index: HashMap<String, usize>,
}

impl Classes {
    fn of(rows: &[Row], names: &HashMap<String, String>) -> Self {
        let labels: BTreeSet<&str> = rows.iter().filter_map(|row| field(row, &LABEL)).collect();
        let mut labels: Vec<&str> = labels.into_iter().collect();
        if labels.iter().all(|label| label.parse::<u64>().is_ok()) {
            labels.sort_by_key(|label| label.parse::<u64>().ok());
        }
        let index = labels.iter().enumerate().map(|(i, &label)| (label.to_owned(), i)).collect();
        let name = |&label: &&str| names.get(label).map_or(label, String::as_str).to_owned();
        Self { names: labels.iter().map(name).collect(), index }
    }
}

/// What to say about files that the table lists and that do not exist.
fn missing_warning(name: &str, missing: &[String], policy: OnBadImage) -> Result<Vec<String>> {
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    let what = format!(
        "{name} lists {} that do not exist (paths count from the table's folder): {}",
        counted(missing.len(), "image"),
        shortened(missing)
    );
    match policy {
        OnBadImage::Skip => Ok(vec![what + "; left out"]),
        OnBadImage::Error => Err(Error::Data(format!(
            "{what}\n  correct the table, or leave them out with --set data.on_bad_image=skip"
        ))),
    }
}

/// Settles whether the table gives splits; some rows with and some without are a mistake.
fn with_splits(
    name: &str,
    samples: Vec<(Sample, Option<Split>)>,
    labelled: bool,
) -> Result<(Vec<Sample>, SplitOrigin)> {
    let given = samples.iter().filter(|(_, split)| split.is_some()).count();
    if given != 0 && given != samples.len() {
        return Err(Error::Data(format!(
            "{name}: {given} of {} rows have a split; give all of them one, or none",
            samples.len()
        )));
    }
    let origin = match (labelled, given) {
        (false, _) => SplitOrigin::Unlabelled,
        (true, 0) => SplitOrigin::Made,
        (true, _) => SplitOrigin::Given,
    };
    let settle = |(sample, split): (Sample, Option<Split>)| match origin {
        SplitOrigin::Given => Sample { split: split.unwrap_or(sample.split), ..sample },
        SplitOrigin::Made | SplitOrigin::Unlabelled => sample,
    };
    Ok((samples.into_iter().map(settle).collect(), origin))
}

/// The rows of a CSV, TSV or JSON-lines file, by the name's extension.
fn parse(bytes: &[u8], name: &str) -> Result<Vec<Row>> {
    let bad = |e: &dyn std::fmt::Display| Error::Data(format!("{name}: {e}"));
    // Spreadsheets put a byte-order mark in front.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if extension(name) == "jsonl" {
        let text = std::str::from_utf8(bytes).map_err(|e| bad(&e))?;
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        return lines
            .map(|(i, line)| json_row(line).map_err(|e| bad(&format!("line {}: {e}", i + 1))))
            .collect();
    }
    let delimiter = if extension(name) == "tsv" { b'\t' } else { b',' };
    let mut reader =
        csv::ReaderBuilder::new().delimiter(delimiter).trim(csv::Trim::All).from_reader(bytes);
    let header = reader.headers().map_err(|e| bad(&e))?.clone();
    let columns: Vec<String> = header.iter().map(str::to_lowercase).collect();
    let row = |record: csv::Result<csv::StringRecord>| {
        let record = record.map_err(|e| bad(&e))?;
        Ok(columns.iter().cloned().zip(record.iter().map(str::to_owned)).collect())
    };
    reader.records().map(row).collect()
}

fn json_row(line: &str) -> serde_json::Result<Row> {
    let object: BTreeMap<String, serde_json::Value> = serde_json::from_str(line)?;
    let text = |value: serde_json::Value| match value {
        serde_json::Value::String(text) => text,
        serde_json::Value::Null => String::new(),
        other => other.to_string(),
    };
    Ok(object.into_iter().map(|(key, value)| (key.to_lowercase(), text(value))).collect())
}

#[cfg(test)]
mod tests {
    use super::super::source::{open_noting, tests};
    use super::*;

    fn table(name: &str, content: &str) -> Result<Opened> {
        let images = ["i/1.jpg", "i/2.jpg", "i/3.jpg", "i/4.jpg"];
        let table = format!("{name}={content}");
        let root = tests::folder(&[&[table.as_str()], images.as_slice()].concat());
        open_noting(&root.path().join(name), &tests::config(), 1)
    }

    fn rows(opened: &Opened) -> Vec<(&str, Option<usize>, Split)> {
        let samples = opened.manifest.samples.iter();
        samples.map(|s| (s.id.as_str(), s.label, s.split)).collect()
    }

    #[test]
    fn csv_tsv_and_json_lines_say_the_same() {
        let expected = [
            ("i/1.jpg", Some(0), Split::Val),
            ("i/3.jpg", Some(0), Split::Train),
            ("i/2.jpg", Some(1), Split::Train),
        ];
        let csv = "\u{feff}Split,File_Name,class\ntrain,i/2.jpg,\"10\"\ndev,./i/1.jpg, 9\ntraining,i/3.jpg,9\n";
        let tsv = csv.replace(',', "\t");
        let json = r#"{"path": "i/2.jpg", "label": 10, "split": "train"}
            {"path": "i/1.jpg", "label": 9, "split": "valid"}

            {"path": "i/3.jpg", "label": 9, "split": "train", "group": null}"#;
        for (name, content) in [("x.csv", csv), ("x.tsv", &tsv), ("x.jsonl", json)] {
            let opened = table(name, content).unwrap();
            assert_eq!(rows(&opened), expected, "{name}");
            assert_eq!(opened.manifest.classes, ["9", "10"], "numbers sort as numbers");
            assert_eq!(opened.manifest.split_origin, SplitOrigin::Given);
        }
    }

    #[test]
    fn a_table_in_the_folder_counts_before_its_folders() {
        let root =
            tests::folder(&["metadata.csv=file_name\ni/1.jpg\n", "i/1.jpg", "i/2.jpg", "j/1.jpg"]);
        let opened = open_noting(root.path(), &tests::config(), 1).unwrap();
        assert_eq!(rows(&opened), [("i/1.jpg", None, Split::Train)]);
        assert_eq!(opened.manifest.split_origin, SplitOrigin::Unlabelled);
        let root = tests::folder(&["index.csv=id,weight\n1,2\n", "i/1.jpg", "i/2.jpg", "j/1.jpg"]);
        let opened = open_noting(root.path(), &tests::config(), 1).unwrap();
        assert_eq!(opened.manifest.classes, ["i", "j"], "a table of something else");
    }

    #[test]
    fn mistakes_are_named_with_their_row() {
        let error = |content: &str| table("x.csv", content).unwrap_err().to_string();
        assert!(error("name,label\ni/1.jpg,a\n").contains("one column must be called file_name"));
        assert!(error("file,label\ni/1.jpg,a\ni/2.jpg,\n").contains("row 2: no label"));
        assert!(error("file,label,split\ni/1.jpg,a,tset\n").contains("row 1: split `tset`"));
        assert!(error("file,label,split\ni/1.jpg,a,test\ni/2.jpg,a,\n").contains("1 of 2 rows"));
        assert!(error("file,label\ni/1.jpg,a\n./i/1.jpg,b\n").contains("more than once: i/1.jpg"));
        assert!(error("file,label\ni/1.jpg,a\ni/9.jpg,b\n").contains("1 image that do not exist"));
        assert!(error("file,label\ni/1.jpg\n").contains("x.csv: CSV error"));
        assert!(error("file,label\n").contains("no images"));
    }

    #[test]
    fn groups_stay_on_one_side() {
        let table = table(
            "x.csv",
            "file,label,group\ni/1.jpg,a,p\ni/2.jpg,a,p\ni/3.jpg,a,q\ni/4.jpg,b,q\n",
        );
        let opened = table.unwrap();
        assert_eq!(opened.manifest.split_origin, SplitOrigin::Made);
        let split = |i: usize| opened.manifest.samples[i].split;
        assert_eq!(split(0), split(1));
        assert_eq!(split(2), split(3));
    }
}
