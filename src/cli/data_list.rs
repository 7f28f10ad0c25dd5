//! `fewvit data list`.

use super::{print, print_json};
use crate::data::catalog::{Archive, KnownSet, SETS};
use crate::error::Result;

pub(super) fn list(json: bool) -> Result<()> {
    SETS.iter().try_for_each(|set| if json { print_json(set) } else { print(&described(set)) })
}

/// A set in a few lines.
fn described(set: &KnownSet) -> String {
    let mut text = format!(
        "{:<12}  {}: {} classes, {} training and {} test images\n  {}\n  terms: {}",
        set.name, set.title, set.classes, set.train, set.test, set.page, set.terms
    );
    set.by_hand.iter().for_each(|why| text.push_str(&format!("\n  {why}")));
    set.archives.iter().for_each(|archive| text.push_str(&format!("\n  {}", file_line(archive))));
    text
}

/// `setid.mat  14989 bytes  sha256 46b8...`.
fn file_line(archive: &Archive) -> String {
    let published = archive.checksum.map(|checksum| checksum.to_string());
    let checksum = published.unwrap_or("no checksum is published".into());
    format!("{}  {}  {checksum}", archive.file, archive.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::catalog::find;

    #[test]
    fn a_set_is_told_with_its_terms_and_files() {
        let text = described(find("indoor67").unwrap());
        for line in [
            "indoor67      MIT Indoor Scenes (indoorCVPR_09): 67 classes, 5360 training and 1340 test",
            "\n  terms: For research only.\n",
            "\n  indoorCVPR_09.tar  about 2.40 GB  no checksum is published\n",
            "\n  TestImages.txt  43475 bytes  sha256 906c529a5a0918fe",
        ] {
            assert!(text.contains(line), "{line:?} is not in {text}");
        }
        assert!(described(find("imagenet").unwrap()).contains("\n  ImageNet is for registered"));
    }
}
