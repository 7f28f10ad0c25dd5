//! Data sets laid out in folders: split and class folders, class folders, or just images.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::listing::Listing;
use super::manifest::{Manifest, Sample, Split, SplitOrigin};
use super::source::{Opened, finish};
use super::split::stratified;
use super::table::parse_split;
use super::words::{counted, shortened};
use crate::config::DataConfig;
use crate::error::{Error, Result};

/// `{train,val,test}/CLASS/**`; the classes are those of `train`.
pub(super) fn split_folders(listing: &Listing) -> Result<Opened> {
    let (mut placed, mut stray) = (Vec::new(), Vec::new());
    for path in listing.images() {
        let mut parts = path.splitn(3, '/');
        match (parts.next().and_then(parse_split), parts.next(), parts.next()) {
            (Some(split), Some(class), Some(_)) => placed.push((path, class, split)),
            _ => stray.push(path.clone()),
        }
    }
    let in_train = placed.iter().filter(|(_, _, split)| *split == Split::Train);
    let classes: BTreeSet<&str> = in_train.map(|(_, class, _)| *class).collect();
    if classes.is_empty() {
        return Err(Error::Data(
            "train/ has no class folders; put the images into train/CLASS/, or give the train \
             folder itself to pre-train without labels"
                .into(),
        ));
    }
    let index: HashMap<&str, usize> = classes.iter().enumerate().map(|(i, c)| (*c, i)).collect();
    let (mut samples, mut unknown) = (Vec::new(), BTreeSet::new());
    for (path, class, split) in placed {
        let Some(&label) = index.get(class) else {
            unknown.insert(class.to_owned());
            continue;
        };
        let (id, origin) = (path.clone(), listing.files[path].clone());
        samples.push(Sample { id, origin, label: Some(label), split });
    }
    let classes = classes.iter().map(|class| class.to_string()).collect();
    let manifest =
        Manifest { name: listing.name.clone(), classes, samples, split_origin: SplitOrigin::Given };
    let mut opened = finish(manifest)?;
    opened.warnings.extend(stray_warning(&stray));
    if !unknown.is_empty() {
        let names: Vec<String> = unknown.into_iter().collect();
        opened.warnings.push(format!(
            "held-out images of {} that train/ lacks are left out: {}",
            counted(names.len(), "class"),
            shortened(&names)
        ));
    }
    Ok(opened)
}

/// `CLASS/**`, split by us.
pub(super) fn class_folders(listing: &Listing, config: &DataConfig, seed: u64) -> Result<Opened> {
    let (mut by_class, mut stray) = (BTreeMap::<&str, Vec<&String>>::new(), Vec::new());
    for path in listing.images() {
        match path.split_once('/') {
            Some((class, _)) => by_class.entry(class).or_default().push(path),
            None => stray.push(path.clone()),
        }
    }
    let mut samples = Vec::new();
    for (label, paths) in by_class.values().enumerate() {
        samples.extend(paths.iter().map(|&path| Sample {
            id: path.clone(),
            origin: listing.files[path].clone(),
            label: Some(label),
            split: Split::Train,
        }));
    }
    let classes = by_class.keys().map(|class| class.to_string()).collect();
    let manifest =
        Manifest { name: listing.name.clone(), classes, samples, split_origin: SplitOrigin::Made };
    let mut opened = finish(manifest)?;
    opened.warnings.extend(stray_warning(&stray));
    let no_groups = HashMap::new();
    let notes = stratified(&mut opened.manifest, &no_groups, config.test_fraction, seed)?;
    opened.warnings.extend(notes);
    Ok(opened)
}

/// Images without folders: no labels.
pub(super) fn flat(listing: &Listing) -> Result<Opened> {
    let sample = |path: &String| Sample {
        id: path.clone(),
        origin: listing.files[path].clone(),
        label: None,
        split: Split::Train,
    };
    finish(Manifest {
        name: listing.name.clone(),
        classes: Vec::new(),
        samples: listing.images().map(sample).collect(),
        split_origin: SplitOrigin::Unlabelled,
    })
}

fn stray_warning(stray: &[String]) -> Option<String> {
    (!stray.is_empty()).then(|| {
        let count = counted(stray.len(), "image");
        format!("{count} outside the class folders are left out: {}", shortened(stray))
    })
}
