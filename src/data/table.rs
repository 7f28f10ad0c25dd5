//! Data sets that tables describe: separated text or JSON, one image a row.

mod classes;
mod entries;
mod text;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;

use super::digest::Digest;
use super::file_name::{id_of, other_forms};
use super::listing::{Listing, extension, read};
use super::manifest::{Manifest, Origin, Sample, Split, SplitOrigin, Treatment};
use super::source::{Opened, finish};
use super::split::stratified;
pub(super) use super::split_names::parse_split;
use crate::config::{DataConfig, OnBadImage};
use crate::error::{Error, Result};
use crate::words::{counted, listed_lines, shortened};
use classes::Classes;
use entries::Entry;
pub(super) use entries::TREATMENT;
pub(super) use text::Table;

/// Extensions of tables; those that are looked for in a folder come first.
const EXTENSIONS: [&str; 5] = ["csv", "tsv", "jsonl", "ndjson", "json"];
/// Names, without extension, under which a table in a data folder describes it.
const TABLES: [&str; 7] =
    ["metadata", "index", "manifest", "splits", "labels", "annotations", "dataset"];
/// Names of classes by label.
const CLASS_NAMES: &str = "class_names.csv";

/// Whether a file name is that of a table.
pub(super) fn is_table_name(name: &str) -> bool {
    EXTENSIONS.contains(&extension(name).as_str())
}

/// The table in a file that was named as the data set.
///
/// # Errors
/// [`Error::Data`] if it cannot be read or is no table of images.
pub(super) fn read_file(path: &Path) -> Result<Table> {
    let name = path.file_name().map_or(String::new(), |name| id_of(Path::new(name)));
    let table = Table::parse(&read(&Origin::File(path.to_path_buf()))?, &name, &|c| is_one(c))?;
    if let Some(what) = written_by_fewvit(&table.columns) {
        let what = format!("{name} holds {what}; give the images, or the table that lists them");
        return Err(Error::Data(what));
    }
    match entries::file_column(&table) {
        None if !entries::has_file_column(&table.columns) => {
            Err(Error::Data(format!("{name}: {}", entries::no_file_column(&table))))
        }
        _ => Ok(table),
    }
}

/// The tables in a folder that describe its images.
pub(super) struct Found {
    /// The tables, each with the split that its name says.
    pub tables: Vec<(Table, Option<Split>)>,
    /// Tables of something else.
    pub notes: Vec<String>,
}

/// Looks for the tables at the root of a listing that say which images there are.
///
/// # Errors
/// [`Error::Data`] if one that seems to do so cannot be read, or if it is not clear which one does.
pub(super) fn find(listing: &Listing) -> Result<Found> {
    let (mut main, mut of_splits, mut others) = (Vec::new(), Vec::new(), Vec::new());
    let mut unused = Vec::new();
    let is_table = |name: &&String| {
        let looked_for = EXTENSIONS[..4].contains(&extension(name).as_str());
        looked_for && !name.contains('/') && *name != CLASS_NAMES
    };
    for name in listing.files.keys().filter(is_table) {
        match role(listing, name)? {
            Role::Main(table) => main.push((table, None)),
            Role::OfSplit(table, split) => of_splits.push((table, Some(split))),
            Role::Unexpected(table) => others.push((table, None)),
            Role::SomethingElse => unused.push(name.clone()),
        }
    }
    // `test.csv` alone is not all there is.
    if !of_splits.iter().any(|(_, split)| *split == Some(Split::Train)) {
        others.append(&mut of_splits);
    }
    let names = |tables: &[(Table, Option<Split>)]| -> Vec<String> {
        tables.iter().map(|(table, _)| table.name.clone()).collect()
    };
    let (tables, rest) = match (main.len(), of_splits.is_empty(), others.is_empty()) {
        (1, ..) => (main, [of_splits, others].concat()),
        (0, false, _) => (of_splits, others),
        (0, true, true) => (Vec::new(), Vec::new()),
        (0, true, false) => {
            return Err(Error::Data(format!(
                "{} names images and what they are; give the table itself to use it, or move it \
                 away to use the folders",
                names(&others).join(" and ")
            )));
        }
        _ => {
            return Err(Error::Data(format!(
                "{} both describe the images; give the one that is meant, or remove the other",
                names(&main).join(" and ")
            )));
        }
    };
    unused.extend(names(&rest));
    let note = (!unused.is_empty())
        .then(|| format!("not used: {}: {}", counted(unused.len(), "table"), shortened(&unused)));
    Ok(Found { tables, notes: note.into_iter().collect() })
}

/// What a table in a data folder is.
enum Role {
    /// By its name it describes the images.
    Main(Table),
    /// By its name it describes those of one split.
    OfSplit(Table, Split),
    /// It does by its columns, but is not called so.
    Unexpected(Table),
    /// No list of images with labels.
    SomethingElse,
}

fn role(listing: &Listing, name: &str) -> Result<Role> {
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem).to_lowercase();
    let is_main = TABLES.contains(&stem.as_str());
    let split = parse_split(stem.strip_suffix("_labels").unwrap_or(&stem));
    let away = |what: &str| {
        Error::Data(format!(
            "{what}\n  correct the table, or move it away if it is about something else"
        ))
    };
    let table = Table::parse(&read(&listing.files[name])?, name, &|columns| is_one(columns));
    let table = table.map_err(|e| away(&e.to_string()))?;
    let lists_images = entries::file_column(&table).is_some();
    if written_by_fewvit(&table.columns).is_some() {
        return Ok(Role::SomethingElse);
    }
    if !lists_images && (is_main || split.is_some()) {
        return Err(away(&format!("{name}: {}", entries::no_file_column(&table))));
    }
    // Competitions show in `sample_submission.csv` how to hand in guesses.
    let is_about_others = !lists_images || stem.contains("submission");
    Ok(match split {
        _ if is_about_others => Role::SomethingElse,
        _ if is_main => Role::Main(table),
        Some(split) => Role::OfSplit(table, split),
        None if entries::says_something(&table) => Role::Unexpected(table),
        None => Role::SomethingElse,
    })
}

/// Opens the data set that the tables describe; their paths count from the listing's root.
///
/// # Errors
/// [`Error::Data`] naming the lines that cannot be used.
pub(super) fn open(
    listing: &Listing,
    tables: Vec<(Table, Option<Split>)>,
    layout: String,
    config: &DataConfig,
    seed: u64,
) -> Result<Opened> {
    let (mut entries, mut notes) = (Vec::new(), Vec::new());
    for (table, split) in &tables {
        let (of_table, of_columns) = entries::entries(table, *split)?;
        entries.push((&table.name, of_table));
        notes.extend(of_columns);
    }
    let Labelled { mut entries, left_out, note } = labelled(entries);
    // `train.csv` without labelled images for a test leaves it to us to hold some out.
    let of_train =
        |entry: &Entry| entry.split.as_deref().and_then(parse_split) == Some(Split::Train);
    if tables.iter().any(|(_, split)| split.is_some()) && entries.iter().all(of_train) {
        entries.iter_mut().for_each(|entry| entry.split = None);
    }
    if entries.is_empty() {
        return Err(Error::Data(format!("{layout} lists no images")));
    }
    notes.extend(note);
    let own = tables.iter().all(|(table, _)| table.is_own());
    let classes = Classes::of(&entries, &class_names(listing)?, own)?;
    let mut rows = Rows::new(listing, &classes);
    entries.iter().for_each(|entry| rows.add(entry));
    let Rows { placed, groups, digests, missing, problems, repeated, .. } = rows;
    if !problems.is_empty() {
        let count = counted(problems.len(), "row");
        let lines = listed_lines(&problems);
        return Err(Error::Data(format!("{count} cannot be used:{lines}")));
    }
    notes.extend(missing_note(listing, &missing, config.on_bad_image)?);
    if !repeated.is_empty() {
        let count = counted(repeated.len(), "row");
        notes.push(format!("{count} repeated: {}", shortened(&repeated)));
    }
    let left_out = left_out.iter().filter_map(|entry| locate(listing, &entry.file));
    let listed = placed.iter().map(|(sample, _)| sample.id.clone());
    notes.extend(unlisted_note(listing, listed.chain(left_out.map(|(id, _)| id)).collect()));
    let (mut samples, split_origin) = with_splits(placed, !classes.names.is_empty())?;
    if split_origin == SplitOrigin::Unlabelled {
        notes.extend(without_held_out(&mut samples));
    }
    let made = split_origin == SplitOrigin::Made;
    let manifest =
        Manifest { name: listing.name.clone(), classes: classes.names, samples, split_origin };
    let mut opened = finish(manifest, layout)?;
    opened.warnings.append(&mut notes);
    opened.digests = digests;
    if !made {
        opened.warnings.extend(straddling_note(&opened.manifest, &groups));
    }
    if made {
        let notes = stratified(&mut opened.manifest, &groups, config.test_fraction, seed)?;
        opened.warnings.extend(notes);
    }
    Ok(opened)
}

/// What to say of groups with images on both sides of a given split.
fn straddling_note(manifest: &Manifest, groups: &HashMap<String, String>) -> Option<String> {
    let of = |train: bool| -> BTreeSet<&String> {
        let side = manifest.samples.iter().filter(|s| (s.split == Split::Train) == train);
        side.filter_map(|sample| groups.get(&sample.id)).collect()
    };
    let both: Vec<String> = of(true).intersection(&of(false)).map(|g| (*g).clone()).collect();
    (!both.is_empty()).then(|| {
        format!(
            "{} with images in training and held out, so accuracy may read too high: {}",
            counted(both.len(), "group"),
            shortened(&both)
        )
    })
}

/// Entries of tables of which some have labels.
struct Labelled {
    entries: Vec<Entry>,
    /// Those of tables without any label.
    left_out: Vec<Entry>,
    /// What to say of these.
    note: Option<String>,
}

/// The entries of all tables; where some have labels, a table without any is left out with a note,
/// as the `test.csv` of a competition.
fn labelled(tables: Vec<(&String, Vec<Entry>)>) -> Labelled {
    let has = |entries: &[Entry]| entries.iter().any(|entry| entry.class.is_some());
    let any = tables.iter().any(|(_, entries)| has(entries));
    let (kept, without): (Vec<_>, Vec<_>) =
        tables.into_iter().partition(|(_, entries)| !any || has(entries));
    let note = (!without.is_empty()).then(|| {
        let images = without.iter().map(|(_, entries)| entries.len()).sum();
        let names: Vec<String> = without.iter().map(|(name, _)| name.to_string()).collect();
        format!("no labels in {}: {} left out", names.join(", "), counted(images, "image"))
    });
    let all = |tables: Vec<(&String, Vec<Entry>)>| {
        tables.into_iter().flat_map(|(_, entries)| entries).collect()
    };
    Labelled { entries: all(kept), left_out: all(without), note }
}

/// Class names by label from `class_names.csv` (`label,name`) at the root, if it is there.
///
/// # Errors
/// [`Error::Data`] if it cannot be read, or if it names a label twice.
pub(super) fn class_names(listing: &Listing) -> Result<HashMap<String, String>> {
    let Some(origin) = listing.find(CLASS_NAMES) else {
        return Ok(HashMap::new());
    };
    let has = |columns: &[String], name: &str| columns.iter().any(|column| column == name);
    let is_one = |columns: &[String]| has(columns, "label") && has(columns, "name");
    let table = Table::parse(&read(&origin)?, CLASS_NAMES, &is_one)?;
    let (Some(label), Some(name)) = (table.column("label"), table.column("name")) else {
        return Err(Error::Data(format!("{CLASS_NAMES}: the columns must be label,name")));
    };
    let mut names = HashMap::new();
    for row in &table.rows {
        let [label, name] = [label, name].map(|column| row.fields[column].trim().to_owned());
        if name.is_empty() {
            return Err(Error::Data(format!(
                "{CLASS_NAMES}, line {}: label {label} has no name\n  give it one, or remove the line",
                row.line
            )));
        }
        let before = names.insert(label.clone(), name.clone());
        if before.is_some_and(|before| before != name) {
            return Err(Error::Data(format!(
                "{CLASS_NAMES}, line {}: label {label} has another name above",
                row.line
            )));
        }
    }
    Ok(names)
}

/// Whether a header is that of a table of images, so that the rows must fit.
fn is_one(columns: &[String]) -> bool {
    entries::has_file_column(columns) && written_by_fewvit(columns).is_none()
}

/// What fewvit wrote into a table with this header, if it is no list of images for training.
fn written_by_fewvit(columns: &[String]) -> Option<&'static str> {
    let has = |names: &[&str]| names.iter().all(|name| columns.iter().any(|c| c == name));
    if has(&["file", "predicted", "confidence"]) {
        Some("predictions of fewvit")
    } else if has(&["file", "f0", "f1"]) {
        Some("features written by fewvit")
    } else if has(&["stage", "epoch", "loss"]) {
        Some("the course of a training")
    } else {
        None
    }
}

/// Entries on their way to samples.
struct Rows<'a> {
    listing: &'a Listing,
    classes: &'a Classes,
    placed: Vec<(Sample, Option<Split>)>,
    /// Position in `placed` and place in the table by id.
    seen: BTreeMap<String, (usize, String)>,
    groups: HashMap<String, String>,
    digests: HashMap<String, Digest>,
    missing: Vec<String>,
    problems: Vec<String>,
    repeated: Vec<String>,
}

impl<'a> Rows<'a> {
    fn new(listing: &'a Listing, classes: &'a Classes) -> Self {
        Self {
            listing,
            classes,
            placed: Vec::new(),
            seen: BTreeMap::new(),
            groups: HashMap::new(),
            digests: HashMap::new(),
            missing: Vec::new(),
            problems: Vec::new(),
            repeated: Vec::new(),
        }
    }

    fn add(&mut self, entry: &Entry) {
        if let Err(problem) = self.try_add(entry) {
            self.problems.push(format!("{}: {problem}", entry.at));
        }
    }

    fn try_add(&mut self, entry: &Entry) -> std::result::Result<(), String> {
        if entry.file.trim().is_empty() {
            return Err("no image".into());
        }
        let label = entry.class.as_ref().map(|class| self.classes.index[class]);
        let split = entry.split.as_ref().map(|text| {
            parse_split(text).ok_or_else(|| format!("split `{text}` is none of train, val, test"))
        });
        let split = split.transpose()?;
        let held_out = split.is_some_and(|split| split != Split::Train);
        if label.is_none() && held_out && !self.classes.names.is_empty() {
            let why = "no label to measure by; give it one, or the split train, or leave it out";
            return Err(why.into());
        }
        let treatment = entry.treatment.as_deref().unwrap_or_default();
        let treatment = Treatment::of_code(treatment)
            .ok_or_else(|| format!("treatment `{treatment}` is none that fewvit knows"))?;
        let Some((id, origin)) = locate(self.listing, &entry.file) else {
            self.missing.push(format!("{} ({})", entry.file.trim(), entry.at));
            return Ok(());
        };
        if let Some((before, at)) = self.seen.get(&id) {
            let (sample, split_before) = &self.placed[*before];
            let differs = difference("label", label, sample.label)
                .or_else(|| difference("split", split, *split_before));
            let group = self.groups.get(&id).filter(|_| entry.group.is_some());
            let differs = differs.or_else(|| difference("group", entry.group.as_ref(), group));
            if let Some(what) = differs {
                return Err(format!("{id} has {what} in {at}"));
            }
            self.repeated.push(format!("{id} ({at} and {})", entry.at));
            return Ok(());
        }
        if let Some(group) = &entry.group {
            self.groups.insert(id.clone(), group.clone());
        }
        if let Some(digest) = &entry.digest {
            self.digests.insert(id.clone(), digest.clone());
        }
        self.seen.insert(id.clone(), (self.placed.len(), entry.at.clone()));
        self.placed.push((Sample { id, origin, label, split: Split::Train, treatment }, split));
        Ok(())
    }
}

/// How what a row says of an image differs from what an earlier one says: `another label`.
fn difference<T: PartialEq>(what: &str, here: Option<T>, before: Option<T>) -> Option<String> {
    (here != before).then(|| match (here, before) {
        (Some(_), None) => format!("a {what} here and none"),
        (None, Some(_)) => format!("no {what} here and one"),
        _ => format!("another {what}"),
    })
}

/// The image that a table calls `file`: as it is written, without blanks around it, with the
/// backslashes of Windows as separators, with its accents stored the other way.
fn locate(listing: &Listing, file: &str) -> Option<(String, Origin)> {
    let forms = [file.to_owned(), file.trim().to_owned(), file.trim().replace('\\', "/")];
    let other = forms.iter().flat_map(|form| other_forms(form)).collect::<Vec<_>>();
    forms.iter().chain(&other).find_map(|form| {
        let id = listing.id(form);
        listing.find(&id).map(|origin| (id, origin))
    })
}

/// What to say about files that the table lists and that do not exist.
fn missing_note(
    listing: &Listing,
    missing: &[String],
    policy: OnBadImage,
) -> Result<Option<String>> {
    if missing.is_empty() {
        return Ok(None);
    }
    let are = if missing.len() == 1 { "image that does" } else { "images that do" };
    let what = format!(
        "the table lists {} {are} not exist (paths count from {})",
        missing.len(),
        listing.root()
    );
    match policy {
        OnBadImage::Skip => Ok(Some(format!("{what}, left out: {}", shortened(missing)))),
        OnBadImage::Error => Err(Error::Data(format!(
            "{what}:{}\n  correct the table, or leave them out with --set data.on_bad_image=skip",
            listed_lines(missing)
        ))),
    }
}

/// Images in the folder that are not among the `listed` ones.
fn unlisted_note(listing: &Listing, listed: HashSet<String>) -> Option<String> {
    let images = listing.images().filter(|id| !listed.contains(id.as_str()));
    let unlisted: Vec<String> = images.cloned().collect();
    (!unlisted.is_empty()).then(|| {
        let count = counted(unlisted.len(), "image");
        format!("not in the table, left out: {count}: {}", shortened(&unlisted))
    })
}

/// Settles whether the table gives splits; some rows with and some without are a mistake.
fn with_splits(
    samples: Vec<(Sample, Option<Split>)>,
    labelled: bool,
) -> Result<(Vec<Sample>, SplitOrigin)> {
    let given = samples.iter().filter(|(_, split)| split.is_some()).count();
    if given != 0 && given != samples.len() {
        return Err(Error::Data(format!(
            "{given} of {} rows of the table have a split; give all of them one, or none",
            samples.len()
        )));
    }
    let origin = match (labelled, given) {
        (false, _) => SplitOrigin::Unlabelled,
        (true, 0) => SplitOrigin::Made,
        (true, _) => SplitOrigin::Given,
    };
    let settle = |(sample, split): (Sample, Option<Split>)| Sample {
        split: split.unwrap_or(sample.split),
        ..sample
    };
    Ok((samples.into_iter().map(settle).collect(), origin))
}

/// Takes the images that are held out away from a set without labels, by which they cannot be measured, and says
/// so.
fn without_held_out(samples: &mut Vec<Sample>) -> Option<String> {
    let all = samples.len();
    samples.retain(|sample| sample.split == Split::Train);
    let held_out = all - samples.len();
    (held_out > 0).then(|| {
        format!(
            "{} of the splits val and test left out: without labels nothing can be measured on them",
            counted(held_out, "image")
        )
    })
}

#[cfg(test)]
mod tests;
