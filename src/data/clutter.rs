//! What systems and fewvit itself leave in a folder of photos and nobody means as data.

use std::collections::{BTreeMap, BTreeSet};

use crate::files;

/// Names of files and folders, in small letters. Names that begin with a dot need no entry.
const CLUTTER: [&str; 33] = [
    // macOS
    "__macosx",
    "icon\\x0d",
    "network trash folder",
    "temporary items",
    "thevolumesettingsfolder",
    // Windows
    "$recycle.bin",
    "$windows.~bt",
    "config.msi",
    "desktop.ini",
    "ehthumbs.db",
    "ehthumbs_vista.db",
    "folder.htt",
    "recycled",
    "recycler",
    "system volume information",
    "thumbs.db",
    "wpsettings.dat",
    // Linux
    "aquota.group",
    "aquota.user",
    "lost+found",
    "lost.dir",
    // Synology and QNAP
    "#recycle",
    "#snapshot",
    "@eadir",
    "@recently-snapshot",
    "@recycle",
    "@sharebin",
    "@synoresource",
    "@tmp",
    "@transcode",
    // Programs
    "__pycache__",
    "picasa.ini",
    "zbthumbnail.info",
];

/// Beginnings of such names: thumbnails of NAS boxes, lock files of office programs.
const BEGINNINGS: [&str; 5] = [".", "~$", "@__", "synophoto_", "synoindex_"];

/// Whether a system left something of this name behind.
pub(super) fn is_clutter(name: &str) -> bool {
    let name = name.to_lowercase();
    // Windows collects what its disk check finds in FOUND.000, FOUND.001 ...
    let of_disk_check = name.strip_prefix("found.").is_some_and(|n| n.parse::<u16>().is_ok());
    of_disk_check
        || CLUTTER.contains(&name.as_str())
        || BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
}

/// Whether a folder with these entries was written by fewvit: a run, begun or done, or an export.
pub(super) fn is_own_folder(has: impl Fn(&str) -> bool) -> bool {
    let all = |names: &[&str]| names.iter().all(|name| has(name));
    let beside = ["config.toml", "env.json", "splits.csv", "checkpoints", "plots", "export"];
    // Other programs have a `run.json`, too.
    beside.iter().any(|name| all(&[files::RUN, name]))
        || all(&["splits.csv", "config.toml"])
        || all(&["splits.csv", "classes.txt", "checkpoints"])
        || all(&["config.json", "model.safetensors"])
        || all(&["config.json", "model.onnx"])
}

/// Takes fewvit's own folders out of a listing and returns their paths.
///
/// A folder that held nothing else, as `runs` does, goes with them.
pub(super) fn take_own_folders<T>(
    files: &mut BTreeMap<String, T>,
    folders: &mut BTreeSet<String>,
) -> Vec<String> {
    let of_fewvit = |folder: &&String| {
        let has = |name: &str| {
            let path = format!("{folder}/{name}");
            files.contains_key(&path) || folders.contains(&path)
        };
        let aborted = || {
            let checkpoints = format!("{folder}/checkpoints");
            folders.contains(&checkpoints) && !any_below(files, folder)
        };
        is_own_folder(has) || aborted()
    };
    let mut own: Vec<String> = Vec::new();
    for folder in folders.iter().filter(of_fewvit) {
        // Sorted: what lies inside another one comes later.
        if !own.iter().any(|outer| is_below(folder, outer)) {
            own.push(folder.clone());
        }
    }
    if own.is_empty() {
        return own;
    }
    let gone = |path: &str| own.iter().any(|outer| path == outer || is_below(path, outer));
    files.retain(|path, _| !gone(path));
    folders.retain(|path| !gone(path));
    let parents: BTreeSet<&str> =
        own.iter().filter_map(|path| path.rsplit_once('/')).map(|(parent, _)| parent).collect();
    for parent in parents.iter().filter(|parent| !any_below(files, parent)) {
        folders.retain(|path| path != parent && !is_below(path, parent));
    }
    own
}

fn is_below(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

fn any_below<T>(files: &BTreeMap<String, T>, folder: &str) -> bool {
    let start = format!("{folder}/");
    files.range(start.clone()..).next().is_some_and(|(path, _)| path.starts_with(&start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_systems_leave_is_told_from_classes() {
        for name in [
            ".DS_Store",
            "._1.jpg",
            ".Trash-1000",
            ".ipynb_checkpoints",
            "Thumbs.db",
            "$RECYCLE.BIN",
            "$Recycle.Bin",
            "#recycle",
            "@eaDir",
            "@__thumb",
            "lost+found",
            "System Volume Information",
            "FOUND.000",
            "SYNOPHOTO_THUMB_M.jpg",
            "~$list.xlsx",
        ] {
            assert!(is_clutter(name), "{name}");
        }
        for name in ["rose", "found.art", "#hashtag", "@home", "recycling", "_private", "trash"] {
            assert!(!is_clutter(name), "{name}");
        }
    }

    #[test]
    fn own_folders_are_taken_and_nothing_else() {
        let paths = [
            "ash/1.png",
            "export/1.png",
            "export/notes.txt",
            "runs/a-1/run.json",
            "runs/a-1/plots/x.png",
            "runs/a-1/export/model.onnx",
            "runs/a-1/export/config.json",
            "runs/a-2/config.toml",
            "runs/a-2/splits.csv",
            "model/config.json",
            "model/model.safetensors",
            "sprint/config.json",
            "sprint/1.png",
        ];
        let mut files: BTreeMap<String, ()> = paths.iter().map(|p| (p.to_string(), ())).collect();
        let mut folders: BTreeSet<String> = BTreeSet::from(["runs/a-3/checkpoints".into()]);
        for path in files.keys().chain(&folders.clone()) {
            path.match_indices('/').for_each(|(at, _)| {
                folders.insert(path[..at].to_owned());
            });
        }
        let own = take_own_folders(&mut files, &mut folders);
        assert_eq!(own, ["model", "runs/a-1", "runs/a-2", "runs/a-3"]);
        let kept: Vec<&String> = files.keys().collect();
        let expected =
            ["ash/1.png", "export/1.png", "export/notes.txt", "sprint/1.png", "sprint/config.json"];
        assert_eq!(kept, expected);
        assert_eq!(folders.into_iter().collect::<Vec<_>>(), ["ash", "export", "sprint"]);
    }
}
