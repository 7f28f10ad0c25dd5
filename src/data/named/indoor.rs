//! MIT Indoor67: folders of classes, of whose images two lists name fewer than half.

use super::super::manifest::Split;
use super::NamedSet;
use super::join::Labels;
use super::lists::Lists;
use crate::config::DataConfig;
use crate::error::Result;

pub(super) const SET: NamedSet = NamedSet {
    name: "indoor67",
    title: "MIT Indoor67",
    home: "indoorCVPR_09.tar, TrainImages.txt and TestImages.txt from \
           https://web.mit.edu/torralba/www/indoor.html belong into one folder",
    settings: &[],
    is_one: |lists| lists.any(&["TrainImages.txt", "TestImages.txt"]),
    read,
};

fn read(lists: &Lists, _: &DataConfig) -> Result<Labels> {
    let [train, test] = lists.require(["TrainImages.txt", "TestImages.txt"])?;
    let mut images = Vec::new();
    for (id, split) in [(train, Split::Train), (test, Split::Test)] {
        for line in lists.lines(id)? {
            images.push((line.text.clone(), line.folder()?.to_owned(), split));
        }
    }
    Ok(Labels::by_name(images))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Miniature, annotation, counts, refused};

    const TRAIN: &str =
        "TrainImages.txt=mall/shopping mall.jpg\r\nkindergarden/a_gif.jpg\r\nmall/b.jpg";
    const TEST: &str = "TestImages.txt=mall/c.jpg\nkindergarden/d.jpg";
    const IMAGES: [&str; 6] = [
        "mall/shopping mall.jpg",
        "kindergarden/a_gif.jpg",
        "mall/b.jpg",
        "mall/c.jpg",
        "kindergarden/d.jpg",
        "mall/unlisted.jpg",
    ];

    #[test]
    fn names_hold_blanks_and_most_images_are_in_no_list() {
        for folder in ["Images", "indoorCVPR_09/Images"] {
            let files = IMAGES.map(|image| format!("{folder}/{image}"));
            let opened = Miniature::new().list(TRAIN).list(TEST).images(&files).open();
            assert_eq!(counts(&opened.manifest), [3, 0, 2]);
            assert_eq!(opened.manifest.classes, ["kindergarden", "mall"]);
            let blank = opened.manifest.samples.iter().any(|s| s.id.ends_with("shopping mall.jpg"));
            assert!(blank);
            let notes = opened.warnings.join("\n");
            assert!(notes.contains("1 image is in no list of the set"), "{notes}");
        }
        let files = IMAGES.map(|image| format!("Images/{image}"));
        let text = refused(Miniature::new().list(TRAIN).images(&files));
        assert!(text.contains("TestImages.txt is missing"), "{text}");
        assert!(text.contains("torralba"), "{text}");
    }

    #[test]
    fn the_genuine_lists_give_the_papers_split() {
        let lists = ["TrainImages.txt", "TestImages.txt"];
        let [Some(train), Some(test)] = lists.map(|name| annotation("indoor67", name)) else {
            return;
        };
        let names = [&train, &test].map(|path| std::fs::read_to_string(path).unwrap());
        let names = names.iter().flat_map(|text| text.lines());
        let names = names.map(|line| format!("indoorCVPR_09/Images/{line}"));
        let others = (0..8920).map(|i| format!("indoorCVPR_09/Images/mall/other_{i}.jpg"));
        let opened = Miniature::new()
            .file("TrainImages.txt", &train)
            .file("TestImages.txt", &test)
            .images(names.chain(others))
            .open();
        assert_eq!(counts(&opened.manifest), [5360, 0, 1340]);
        assert_eq!(opened.manifest.classes.len(), 67);
        assert!(opened.warnings[0].starts_with("8,920 images are in no list"));
        assert!(opened.describe().contains("with the paper's counts"));
        let blanks = opened.manifest.samples.iter().filter(|s| s.id.contains(' '));
        assert_eq!(blanks.count(), 6);
    }
}
