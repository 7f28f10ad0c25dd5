//! Finds images again whose ids are known, without looking at how the data set lies.

use std::collections::BTreeMap;
use std::path::Path;

use super::listing::Listing;
use super::manifest::Origin;
use super::table::is_table_name;
use crate::error::Result;

/// Where the images `ids` are at `path`, a folder, a table or an archive; `None` for those that are
/// not there. Ids count from the folder that holds most of them, as archives and downloads have
/// folders around the data.
///
/// # Errors
/// The path cannot be read.
pub fn locate(path: &Path, ids: &[&str]) -> Result<Vec<Option<Origin>>> {
    let name = path.file_name().map_or(String::new(), |n| n.to_string_lossy().into_owned());
    let listing = if path.is_dir() {
        Listing::of_folder(path)?
    } else if is_table_name(&name) {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        Listing::unwalked(parent.unwrap_or(Path::new(".")))
    } else {
        Listing::of_archive(path)?
    };
    let roots = roots(&listing, ids);
    let root = roots.first().map_or("", |(root, _)| root);
    Ok(ids.iter().map(|id| listing.find(&format!("{root}{id}"))).collect())
}

/// What stands before the ids in the listing, nothing or folders that end with `/`, and how many of
/// the ids that were looked for are there; the best first.
pub(super) fn roots(listing: &Listing, ids: &[&str]) -> Vec<(String, usize)> {
    let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
    // A few ids tell the place as well as all of them.
    for id in ids.iter().step_by((ids.len() / SOUGHT).max(1)) {
        let before = listing.files.keys().filter_map(|path| path.strip_suffix(id));
        before
            .filter(|root| root.is_empty() || root.ends_with('/'))
            .for_each(|root| *votes.entry(root).or_default() += 1);
    }
    let mut roots: Vec<_> = votes.into_iter().map(|(root, n)| (root.to_owned(), n)).collect();
    roots.sort_by_key(|(root, count)| (std::cmp::Reverse(*count), root.len()));
    roots
}

/// Ids that are looked for in every folder.
const SOUGHT: usize = 16;

#[cfg(test)]
mod tests {
    use super::super::listing::read;
    use super::super::source::tests::folder;
    use super::*;

    #[test]
    fn images_are_found_where_most_of_them_are() {
        let files =
            ["up/photos/a/1.jpg", "up/photos/a/2.jpg", "up/photos/b/1.jpg", "up/old/a/1.jpg"];
        let root = folder(&files);
        let ids = ["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"];
        for place in ["", "up", "up/photos"] {
            let found = locate(&root.path().join(place), &ids).unwrap();
            let found: Vec<_> = found
                .iter()
                .map(|o| Some(String::from_utf8(read(o.as_ref()?).unwrap()).unwrap()))
                .collect();
            let expected: Vec<_> = files[..3].iter().map(|f| Some(f.to_string())).collect();
            assert_eq!(found, [&expected[..], &[None]].concat(), "{place}");
        }
        assert!(locate(&root.path().join("nowhere"), &ids).is_err());
    }
}
