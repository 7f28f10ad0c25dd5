//! Data sets laid out in folders: split and class folders, class folders, or just images.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::file_name::folded;
use super::left_out::Reason;
use super::listing::{Listing, is_image_name};
use super::manifest::{Manifest, Sample, Split, SplitOrigin, Treatment};
use super::source::{Opened, finish};
use super::split::{name_of, stratified};
use super::split_names::{SplitName, is_no_class, parse_split, split_name};
use crate::config::DataConfig;
use crate::error::{Error, Result};
use crate::words::{counted, listed_lines, shortened};

/// Names of folders whose images wait for a label.
const UNLABELLED: [&str; 2] = ["unlabeled", "unlabelled"];

/// An image with its class and split: id, class, split.
type Placed<'a> = (&'a str, &'a str, Split);

/// The folders directly below `prefix` that are splits; empty if they are classes.
///
/// One alone is a split if no other folder has images, or if it has folders inside and the others
/// have not; else it is a class that happens to be called so.
pub(super) fn splits_below(listing: &Listing, prefix: &str) -> BTreeMap<String, Split> {
    let named: Vec<(&str, SplitName)> = listing
        .folders_below(prefix)
        .filter_map(|folder| Some((folder, split_name(folder)?)))
        .collect();
    let rests: BTreeSet<&str> = named.iter().map(|(_, name)| name.rest.as_str()).collect();
    // The empty rest comes first: `train` and `test` before `cars_train` and `cars_test`.
    for rest in rests {
        let group: Vec<_> = named.iter().filter(|(_, name)| name.rest == rest).collect();
        let has = |split| group.iter().any(|(_, name)| name.split == split);
        let enough = match (group.as_slice(), rest) {
            ([(only, _)], "") => {
                let mut others = filled(listing, prefix).filter(|folder| folder != only).peekable();
                let divided =
                    |folder: &str| is_divided_folder(listing, &format!("{prefix}{folder}/"));
                others.peek().is_none() || (divided(only) && !others.any(divided))
            }
            (_, "") => true,
            _ => has(Split::Train) && (has(Split::Val) || has(Split::Test)),
        };
        if enough {
            return group.iter().map(|(folder, name)| (folder.to_string(), name.split)).collect();
        }
    }
    BTreeMap::new()
}

/// Whether the images below `prefix` lie in at least two folders there, and none outside them.
fn is_divided_folder(listing: &Listing, prefix: &str) -> bool {
    let loose = listing.files_below(prefix).any(|p| !p.contains('/') && is_image_name(p));
    !loose && filled(listing, prefix).nth(1).is_some()
}

/// The folders directly below `prefix` with images somewhere inside.
pub(super) fn filled<'a>(
    listing: &'a Listing,
    prefix: &'a str,
) -> impl Iterator<Item = &'a str> + 'a {
    listing
        .folders_below(prefix)
        .filter(move |folder| listing.files_below(&format!("{prefix}{folder}/")).any(is_image_name))
}

/// Whether there is a training and another split, each with class folders: all that is needed.
pub(super) fn are_split_classes(listing: &Listing) -> bool {
    let splits = splits_below(listing, "");
    let has_classes = |folder: &str| filled(listing, &format!("{folder}/")).count() > 1;
    let has = |train: bool| {
        splits.iter().any(|(folder, s)| (*s == Split::Train) == train && has_classes(folder))
    };
    has(true) && has(false)
}

/// `{train,val,test}/CLASS/**`; the classes are those of `train`, or of all if there is none.
pub(super) fn split_folders(
    listing: &Listing,
    splits: &BTreeMap<String, Split>,
    config: &DataConfig,
) -> Result<Opened> {
    let bases: Vec<(String, Split)> =
        splits.iter().map(|(top, &split)| (base_of(listing, top, split), split)).collect();
    let (placed, stray) = placed(listing, &bases);
    let any_train = bases.iter().any(|(_, split)| *split == Split::Train);
    let defines = |split: Split| split == Split::Train || !any_train;
    let classes: BTreeSet<&str> =
        placed.iter().filter(|(.., split)| defines(*split)).map(|(_, class, _)| *class).collect();
    let defining = bases.iter().filter(|(_, split)| defines(*split));
    let defining: Vec<&str> = defining.map(|(base, _)| base.as_str()).collect();
    if classes.is_empty() {
        return Err(Error::Data(format!(
            "{0} has no class folders; put the images into {0}CLASS/, or give that folder itself \
             to pre-train without labels",
            defining.join(" and ")
        )));
    }
    refuse_containers(&classes, defining.first().copied().unwrap_or_default())?;
    if !any_train {
        refuse_training_beside(listing, splits, &classes)?;
    }
    let lost = defining.iter().flat_map(|base| lost(listing, base, &classes)).collect();
    let lost = without_lost(lost, config)?;
    let (samples, unknown) = samples(listing, &placed, &classes);
    let manifest = manifest(listing, &classes, samples, SplitOrigin::Given);
    let mut opened = finish(manifest, split_layout(splits, &placed))?;
    opened.warnings.extend(lost);
    opened.warnings.extend(stray_note(&stray));
    opened.warnings.extend(unknown_note(unknown, &classes));
    opened.warnings.extend(empty_note(&bases, &placed));
    Ok(opened)
}

/// Refuses class folders beside the splits, none of which is for training, if these have classes
/// of the same names.
fn refuse_training_beside(
    listing: &Listing,
    splits: &BTreeMap<String, Split>,
    classes: &BTreeSet<&str>,
) -> Result<()> {
    let is_class = |folder: &&str| classes.contains(folder) && !splits.contains_key(*folder);
    let beside: Vec<String> =
        filled(listing, "").filter(is_class).map(|folder| format!("{folder}/")).collect();
    if beside.is_empty() {
        return Ok(());
    }
    let splits: Vec<String> = splits.keys().map(|folder| format!("{folder}/")).collect();
    Err(Error::Data(format!(
        "folders beside {} look like the training classes: {}\n  move them into train/, or \
         elsewhere if they are not",
        splits.join(", "),
        shortened(&beside)
    )))
}

/// The images in class folders of the splits, which lie below `bases`, and the others.
fn placed<'a>(listing: &'a Listing, bases: &[(String, Split)]) -> (Vec<Placed<'a>>, Vec<String>) {
    let (mut placed, mut stray) = (Vec::new(), Vec::new());
    for path in listing.images() {
        let inside = |(base, split): &(String, Split)| {
            let rest = path.strip_prefix(base.as_str())?;
            Some((rest.split_once('/')?.0, *split))
        };
        match bases.iter().find_map(inside) {
            Some((class, split)) => placed.push((path.as_str(), class, split)),
            None => stray.push(path.clone()),
        }
    }
    (placed, stray)
}

/// `train/test folders`, and what they are called where that is something else.
fn split_layout(splits: &BTreeMap<String, Split>, placed: &[Placed]) -> String {
    let has = |split: &Split| placed.iter().any(|(.., s)| s == split);
    let mut found: Vec<&str> =
        [Split::Train, Split::Val, Split::Test].into_iter().filter(has).map(name_of).collect();
    let folder = if found.len() == 1 { "folder" } else { "folders" };
    let layout = format!("{} {folder}", found.join("/"));
    let folders: Vec<&str> = splits.keys().map(String::as_str).collect();
    found.sort_unstable();
    match found == folders {
        true => layout,
        false => format!("{layout} ({})", folders.join(", ")),
    }
}

/// `CLASS/**`, split by us, or by folders that each class has inside: `CLASS/{train,test}/**`.
pub(super) fn class_folders(listing: &Listing, config: &DataConfig, seed: u64) -> Result<Opened> {
    let classes: BTreeSet<&str> = filled(listing, "").collect();
    refuse_containers(&classes, "")?;
    let is_both = |class: &&&str| {
        parse_split(class).is_some() && is_divided_folder(listing, &format!("{class}/"))
    };
    if let Some(split) = classes.iter().find(is_both) {
        return Err(Error::Data(format!(
            "{split}/ has folders inside as a split has, and beside it lie folders that are no \
             splits: {}; give {split}/ itself, or rename it if it is a class",
            shortened(
                &classes
                    .iter()
                    .filter(|c| *c != split)
                    .map(|c| format!("{c}/"))
                    .collect::<Vec<_>>()
            )
        )));
    }
    let lost = without_lost(lost(listing, "", &classes), config)?;
    let divided = is_divided(listing, &classes)?;
    let (mut placed, mut stray) = (Vec::new(), Vec::new());
    for path in listing.images() {
        let mut parts = path.splitn(3, '/');
        let split = match (parts.next(), parts.next(), parts.next()) {
            (Some(class), Some(folder), Some(_)) if divided => {
                parse_split(folder).map(|split| (class, split))
            }
            (Some(class), Some(_), _) if !divided => Some((class, Split::Train)),
            _ => None,
        };
        match split {
            Some((class, split)) => placed.push((path.as_str(), class, split)),
            None => stray.push(path.clone()),
        }
    }
    let (samples, _) = samples(listing, &placed, &classes);
    let (origin, layout) = match divided {
        true => (SplitOrigin::Given, "class folders with splits inside"),
        false => (SplitOrigin::Made, "class folders"),
    };
    let mut opened = finish(manifest(listing, &classes, samples, origin), layout.to_owned())?;
    opened.warnings.extend(lost);
    opened.warnings.extend(stray_note(&stray));
    opened.warnings.extend(same_inside(listing, &classes));
    opened.warnings.extend(classes.iter().filter_map(|class| no_class_note(class)));
    if !divided {
        let no_groups = HashMap::new();
        let notes = stratified(&mut opened.manifest, &no_groups, config.test_fraction, seed)?;
        opened.warnings.extend(notes);
    }
    Ok(opened)
}

/// What to say of a class whose name says rather that the folder is none.
fn no_class_note(class: &str) -> Option<String> {
    let otherwise = if parse_split(class).is_some() {
        "sort all images into train/CLASS/ and test/CLASS/"
    } else if UNLABELLED.contains(&folded(class).as_str()) {
        "write a table (file,label) that leaves the labels of its images empty"
    } else {
        return None;
    };
    Some(format!(
        "{class}/ is taken for a class, as the folders beside it are; if it is none, {otherwise}, \
         or move it elsewhere; if it is one, rename it"
    ))
}

/// What to say where every class has the same folders inside, which may be the classes then.
fn same_inside(listing: &Listing, classes: &BTreeSet<&str>) -> Option<String> {
    let inside = |class: &str| -> BTreeSet<String> {
        let prefix = format!("{class}/");
        filled(listing, &prefix).map(str::to_owned).filter(|f| parse_split(f).is_none()).collect()
    };
    let mut all = classes.iter().map(|class| inside(class));
    let first = all.next().filter(|first| first.len() > 1)?;
    all.all(|other| other == first).then(|| {
        let shown = |names: &mut dyn Iterator<Item = String>| shortened(&names.collect::<Vec<_>>());
        format!(
            "every class ({}) has the same folders inside: {}; if these inner folders are the classes, \
             the outer ones are parts of the set: move the images into one folder per class, or write \
             a table (file,label,split)",
            shown(&mut classes.iter().map(|class| (*class).to_owned())),
            shown(&mut first.iter().cloned())
        )
    })
}

/// Images without folders: no labels.
pub(super) fn flat(listing: &Listing) -> Result<Opened> {
    let placed: Vec<_> = listing.images().map(|id| (id.as_str(), "", Split::Train)).collect();
    let (mut samples, _) = samples(listing, &placed, &BTreeSet::from([""]));
    samples.iter_mut().for_each(|sample| sample.label = None);
    let manifest = manifest(listing, &BTreeSet::new(), samples, SplitOrigin::Unlabelled);
    let mut opened = finish(manifest, "folder of images".to_owned())?;
    let folders: Vec<String> = listing
        .folders_below("")
        .map(|folder| format!("{folder}/ {}", state(listing, folder)))
        .collect();
    if !folders.is_empty() {
        opened.warnings.push(format!("folders without images: {}", shortened(&folders)));
    }
    Ok(opened)
}

/// What lies below `prefix`, in words: `6 files, none with the extension ...: a, b`.
pub(super) fn contents(listing: &Listing, prefix: &str) -> String {
    let files: Vec<String> = listing.files_below(prefix).map(str::to_owned).collect();
    format!(
        "{}, none with the extension of an image that fewvit reads: {}",
        counted(files.len(), "file"),
        shortened(&files)
    )
}

/// Where a split's class folders are: in the folder itself (`train/`), or in one of the same kind
/// inside, as archives and Kaggle double them (`seg_train/seg_train/`).
fn base_of(listing: &Listing, top: &str, split: Split) -> String {
    let mut base = format!("{top}/");
    loop {
        let inside: Vec<&str> = filled(listing, &base).collect();
        let is_double = |folder: &str| parse_split(folder) == Some(split) || folder == top;
        let loose = listing.files_below(&base).any(|p| !p.contains('/') && is_image_name(p));
        match inside.as_slice() {
            [only] if is_double(only) && !loose => base = format!("{base}{only}/"),
            _ => return base,
        }
    }
}

/// Whether each class has its splits inside.
///
/// # Errors
/// [`Error::Data`] if some have and others have not.
fn is_divided(listing: &Listing, classes: &BTreeSet<&str>) -> Result<bool> {
    let splits = |class: &str| -> Vec<Split> {
        filled(listing, &format!("{class}/")).filter_map(parse_split).collect()
    };
    let of_classes: Vec<(&str, Vec<Split>)> =
        classes.iter().map(|class| (*class, splits(class))).collect();
    let all = || of_classes.iter().flat_map(|(_, splits)| splits);
    if !(all().any(|s| *s == Split::Train) && all().any(|s| *s != Split::Train)) {
        let some = of_classes.iter().filter(|(_, splits)| !splits.is_empty());
        let some: Vec<String> = some.map(|(class, _)| format!("{class}/")).collect();
        return match some.is_empty() {
            true => Ok(false),
            false => Err(Error::Data(format!(
                "{} folders named as one split inside, without a training and another split: {}; \
                 rename them if they are no splits",
                if some.len() == 1 { "a class has" } else { "some classes have" },
                shortened(&some)
            ))),
        };
    }
    let nested = |class: &&&str| {
        let prefix = format!("{class}/");
        let mut parts = filled(listing, &prefix).filter(|part| parse_split(part).is_some());
        parts.any(|part| is_divided_folder(listing, &format!("{prefix}{part}/")))
    };
    if let Some(folder) = classes.iter().find(nested) {
        return Err(Error::Data(format!(
            "{folder}/ has splits inside, and those have folders, which may be the classes; give \
             {folder}/ itself if so"
        )));
    }
    let without = of_classes.iter().filter(|(_, splits)| splits.is_empty());
    let without: Vec<String> = without.map(|(class, _)| format!("{class}/")).collect();
    match without.is_empty() {
        true => Ok(true),
        false => Err(Error::Data(format!(
            "some class folders have train/ and test/ inside, {} not: {}; sort the images of all \
             classes the same way",
            counted(without.len(), "other"),
            shortened(&without)
        ))),
    }
}

/// Refuses folders that hold images but name no class.
fn refuse_containers(classes: &BTreeSet<&str>, base: &str) -> Result<()> {
    if !classes.iter().all(|class| is_no_class(class)) {
        return Ok(());
    }
    let names: Vec<String> = classes.iter().map(|class| format!("{base}{class}/")).collect();
    Err(Error::Data(format!(
        "the names of the folders with images are not those of classes: {}\n  put the images into \
         folders of their classes, or write a table (file,label,split)",
        shortened(&names)
    )))
}

/// Folders below `prefix` that would be classes if there were an image in them, with what is there.
fn lost(listing: &Listing, prefix: &str, classes: &BTreeSet<&str>) -> Vec<String> {
    let lost = listing.folders_below(prefix).filter(|folder| !classes.contains(folder));
    lost.map(|name| {
        let folder = format!("{prefix}{name}");
        format!("{folder}/ {}", state(listing, &folder))
    })
    .collect()
}

/// What a folder without images is.
fn state(listing: &Listing, folder: &str) -> String {
    let inside = format!("{folder}/");
    if listing.is_left_out(Reason::LinkToNowhere, folder) {
        "is a link to nowhere".to_owned()
    } else if listing.is_left_out(Reason::Unreadable, folder) {
        "may not be read".to_owned()
    } else if listing.files_below(&inside).next().is_none() {
        "is empty".to_owned()
    } else {
        format!("holds {}", contents(listing, &inside))
    }
}

/// A note on the classes that would be lost, if that is allowed.
fn without_lost(lost: Vec<String>, config: &DataConfig) -> Result<Option<String>> {
    if lost.is_empty() {
        return Ok(None);
    }
    let what = format!("{} without an image", counted(lost.len(), "class folder"));
    match config.allow_empty_class {
        true => Ok(Some(format!("{what}, left out: {}", lost.join("; ")))),
        false => Err(Error::Data(format!(
            "{what}:{}\n  rename or convert the files, remove the folder, or go on without the \
             class with --allow-empty-class (data.allow_empty_class=true)",
            listed_lines(&lost)
        ))),
    }
}

/// The samples of known classes, and the other classes.
fn samples(
    listing: &Listing,
    placed: &[Placed],
    classes: &BTreeSet<&str>,
) -> (Vec<Sample>, BTreeSet<String>) {
    let index: HashMap<&str, usize> = classes.iter().enumerate().map(|(i, c)| (*c, i)).collect();
    let (mut samples, mut unknown) = (Vec::new(), BTreeSet::new());
    for &(path, class, split) in placed {
        let Some(&label) = index.get(class) else {
            unknown.insert(class.to_owned());
            continue;
        };
        let origin = listing.files[path].clone();
        samples.push(Sample {
            id: path.to_owned(),
            origin,
            label: Some(label),
            split,
            treatment: Treatment::default(),
        });
    }
    (samples, unknown)
}

fn manifest(
    listing: &Listing,
    classes: &BTreeSet<&str>,
    samples: Vec<Sample>,
    split_origin: SplitOrigin,
) -> Manifest {
    let classes = classes.iter().map(|class| class.to_string()).collect();
    Manifest { name: listing.name.clone(), classes, samples, split_origin }
}

fn stray_note(stray: &[String]) -> Option<String> {
    (!stray.is_empty()).then(|| {
        let count = counted(stray.len(), "image");
        format!("{count} outside the class folders are left out: {}", shortened(stray))
    })
}

fn empty_note(bases: &[(String, Split)], placed: &[Placed]) -> Option<String> {
    let is_empty = |(base, _): &&(String, Split)| {
        !placed.iter().any(|(path, ..)| path.starts_with(base.as_str()))
    };
    let empty: Vec<String> = bases.iter().filter(is_empty).map(|(base, _)| base.clone()).collect();
    (!empty.is_empty()).then(|| {
        let empty = empty.join(", ");
        format!("no class folder with images in {empty}, so nothing is taken from there")
    })
}

fn unknown_note(unknown: BTreeSet<String>, classes: &BTreeSet<&str>) -> Option<String> {
    let named = |name: &String| {
        let alike = classes.iter().find(|class| folded(class) == folded(name));
        alike.map_or(name.clone(), |class| format!("{name} (train has {class})"))
    };
    let names: Vec<String> = unknown.iter().map(named).collect();
    (!names.is_empty()).then(|| {
        format!(
            "held-out images of {} that train/ lacks are left out: {}",
            counted(names.len(), "class"),
            shortened(&names)
        )
    })
}
