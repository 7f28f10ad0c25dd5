//! The data sets of the paper: where their publishers offer them, under which terms, and how many
//! images the paper counts. One entry of [`SETS`] each.

use std::fmt;

use serde::Serialize;

use crate::error::{Error, Result};

/// A published data set.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct KnownSet {
    /// What the command line calls it.
    pub name: &'static str,
    /// Its full name.
    pub title: &'static str,
    /// Classes.
    pub classes: usize,
    /// Training images, as in the paper's table.
    pub train: usize,
    /// Test images, as in the paper's table.
    pub test: usize,
    /// The publishers' page.
    pub page: &'static str,
    /// What the publishers allow, in one sentence.
    pub terms: &'static str,
    /// Why nobody but the user can download it, and from where; `None` if anybody can.
    pub by_hand: Option<&'static str>,
    /// The files that make it up.
    pub archives: &'static [Archive],
}

/// A file that the publishers offer.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Archive {
    /// Its name.
    pub file: &'static str,
    /// Where it is, the preferred place first; empty if it needs a person.
    pub urls: &'static [&'static str],
    /// Its length.
    pub bytes: Length,
    /// Its checksum, where one is published.
    pub checksum: Option<Checksum>,
    /// What becomes of it.
    pub place: Place,
}

/// The length of a file in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Length {
    /// As published, to the byte.
    Exact(u64),
    /// As the page says, rounded.
    About(u64),
}

impl fmt::Display for Length {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Exact(bytes) => write!(out, "{bytes} bytes"),
            Self::About(bytes) => write!(out, "about {:.2} GB", *bytes as f64 / 1e9),
        }
    }
}

impl Length {
    /// Bytes, if they are known to the byte.
    pub fn exact(self) -> Option<u64> {
        match self {
            Self::Exact(bytes) => Some(bytes),
            Self::About(_) => None,
        }
    }
}

/// A published checksum in hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Checksum {
    /// MD5.
    Md5(&'static str),
    /// SHA-256.
    Sha256(&'static str),
}

impl fmt::Display for Checksum {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Md5(digits) => write!(out, "md5 {digits}"),
            Self::Sha256(digits) => write!(out, "sha256 {digits}"),
        }
    }
}

/// Where the content of a downloaded file goes, relative to the data set's folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// The file itself lies in the folder.
    Whole,
    /// What a tar archive, packed or not, holds goes into this folder.
    Unpacked(&'static str),
    /// What a tar archive of tar archives holds goes into this folder, each inner archive into a
    /// folder of its name.
    UnpackedTwice(&'static str),
}

/// An archive whose content goes into the data set's folder.
const fn archive(
    file: &'static str,
    urls: &'static [&'static str],
    bytes: Length,
    checksum: Option<Checksum>,
) -> Archive {
    Archive { file, urls, bytes, checksum, place: Place::Unpacked("") }
}

/// A file that is used as it is.
const fn whole(
    file: &'static str,
    urls: &'static [&'static str],
    bytes: u64,
    checksum: Checksum,
) -> Archive {
    let (bytes, checksum) = (Length::Exact(bytes), Some(checksum));
    Archive { file, urls, bytes, checksum, place: Place::Whole }
}

/// The sets, in the paper's order.
pub const SETS: &[KnownSet] = &[
    KnownSet {
        name: "flowers-102",
        title: "Oxford 102 Flowers",
        classes: 102,
        train: 2040,
        test: 6149,
        page: "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        terms: "The publishers state no licence; the photographs were found on the web or taken by \
                them.",
        by_hand: None,
        archives: &[
            archive(
                "102flowers.tgz",
                &["https://www.robots.ox.ac.uk/~vgg/data/flowers/102/102flowers.tgz"],
                Length::Exact(344_862_509),
                Some(Checksum::Md5("52808999861908f626f3c1f4e79d11fa")),
            ),
            whole(
                "imagelabels.mat",
                &["https://www.robots.ox.ac.uk/~vgg/data/flowers/102/imagelabels.mat"],
                502,
                Checksum::Sha256(
                    "4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d",
                ),
            ),
            whole(
                "setid.mat",
                &["https://www.robots.ox.ac.uk/~vgg/data/flowers/102/setid.mat"],
                14_989,
                Checksum::Sha256(
                    "46b8678f91fd95d3c8f4feab80d271a6c834a1dd896fe29fd3e6ad9ce5c8dccd",
                ),
            ),
        ],
    },
    KnownSet {
        name: "pets",
        title: "Oxford-IIIT Pets",
        classes: 37,
        train: 3680,
        test: 3669,
        page: "https://www.robots.ox.ac.uk/~vgg/data/pets/",
        terms: "For research only; the sites that the photographs come from have terms of their own.",
        by_hand: None,
        archives: &[
            archive(
                "images.tar.gz",
                &[
                    "https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz",
                    "https://thor.robots.ox.ac.uk/~vgg/data/pets/images.tar.gz",
                ],
                Length::Exact(791_918_971),
                Some(Checksum::Md5("5c4f3ee8e5d25df40f4fd59a7f44e54c")),
            ),
            archive(
                "annotations.tar.gz",
                &[
                    "https://www.robots.ox.ac.uk/~vgg/data/pets/data/annotations.tar.gz",
                    "https://thor.robots.ox.ac.uk/~vgg/data/pets/annotations.tar.gz",
                ],
                Length::Exact(19_173_078),
                Some(Checksum::Md5("95a8c909bbe2e81eed6a22bccdf3f68f")),
            ),
        ],
    },
    KnownSet {
        name: "dtd",
        title: "Describable Textures Dataset, release 1.0.1",
        classes: 47,
        train: 3760,
        test: 1880,
        page: "https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        terms: "For research.",
        by_hand: None,
        archives: &[archive(
            "dtd-r1.0.1.tar.gz",
            &["https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz"],
            Length::Exact(625_239_812),
            Some(Checksum::Md5("fff73e5086ae6bdbea199a49dfb8a4c1")),
        )],
    },
    KnownSet {
        name: "indoor67",
        title: "MIT Indoor Scenes (indoorCVPR_09)",
        classes: 67,
        train: 5360,
        test: 1340,
        page: "https://web.mit.edu/torralba/www/indoor.html",
        terms: "For research only.",
        by_hand: None,
        archives: &[
            archive(
                "indoorCVPR_09.tar",
                &["http://groups.csail.mit.edu/vision/LabelMe/NewImages/indoorCVPR_09.tar"],
                Length::About(2_400_000_000),
                None,
            ),
            whole(
                "TrainImages.txt",
                &["http://web.mit.edu/torralba/www/TrainImages.txt"],
                172_080,
                Checksum::Sha256(
                    "7ec85f88735739d8159061e4bcf6a9765aab8606ab444605b3f8e0641be0260e",
                ),
            ),
            whole(
                "TestImages.txt",
                &["http://web.mit.edu/torralba/www/TestImages.txt"],
                43_475,
                Checksum::Sha256(
                    "906c529a5a0918feec371de5b07a465ddb1f15ebaebc90a33cc321c371133bf1",
                ),
            ),
        ],
    },
    KnownSet {
        name: "cub-200-2011",
        title: "Caltech-UCSD Birds-200-2011",
        classes: 200,
        train: 5994,
        test: 5794,
        page: "https://data.caltech.edu/records/65de6-vp158",
        terms: "The archive states none; the photographs are from Flickr, for non-commercial \
                research (see the page).",
        by_hand: None,
        archives: &[archive(
            "CUB_200_2011.tgz",
            &["https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"],
            Length::Exact(1_150_585_339),
            Some(Checksum::Md5("97eceeb196236b17998738112f37df78")),
        )],
    },
    KnownSet {
        name: "aircraft",
        title: "FGVC-Aircraft 2013b, variants",
        classes: 100,
        train: 6667,
        test: 3333,
        page: "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        terms: "For non-commercial research only; the photographers keep their copyright.",
        by_hand: None,
        archives: &[archive(
            "fgvc-aircraft-2013b.tar.gz",
            &["https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/\
               fgvc-aircraft-2013b.tar.gz"],
            Length::About(2_750_000_000),
            None,
        )],
    },
    KnownSet {
        name: "cars",
        title: "Stanford Cars",
        classes: 196,
        train: 8144,
        test: 8041,
        page: "https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
        terms: "The development kit states none; the original page spoke of research use.",
        by_hand: Some(
            "The original server is gone. Take the files from somebody who has them; the Kaggle set \
             rickyyyyyyy/torchvision-stanford-cars holds them unpacked, and can be given as data as \
             it lies.",
        ),
        archives: &[
            archive(
                "cars_train.tgz",
                &[],
                Length::Exact(979_269_282),
                Some(Checksum::Sha256(
                    "512b227b30e2f0a8aab9e09485786ab4479582073a144998da74d64b801fd288",
                )),
            ),
            archive(
                "cars_test.tgz",
                &[],
                Length::Exact(977_350_468),
                Some(Checksum::Sha256(
                    "bffea656d6f425cba3c91c6d83336e4c5f86c6cffd8975b0f375d3a10da8e243",
                )),
            ),
            archive(
                "car_devkit.tgz",
                &[],
                Length::Exact(330_960),
                Some(Checksum::Sha256(
                    "b97deb463af7d58b6bfaa18b2a4de9829f0f79e8ce663dfa9261bf7810e9accd",
                )),
            ),
            whole(
                "cars_test_annos_withlabels.mat",
                &[],
                185_758,
                Checksum::Sha256(
                    "790f75be8ea34eeded134cc559332baf23e30e91367e9ddca97d26ed9b895f05",
                ),
            ),
        ],
    },
    KnownSet {
        name: "imagenet",
        title: "ImageNet, ILSVRC 2012",
        classes: 1000,
        train: 1_281_167,
        test: 50_000,
        page: "https://image-net.org/download-images.php",
        terms: "For non-commercial research and education, after registration.",
        by_hand: Some("ImageNet is for registered people: log in at image-net.org."),
        archives: &[
            Archive {
                file: "ILSVRC2012_img_train.tar",
                urls: &[],
                bytes: Length::Exact(147_897_477_120),
                checksum: Some(Checksum::Md5("1d675b47d978889d74fa0da5fadfb00e")),
                place: Place::UnpackedTwice("train"),
            },
            Archive {
                file: "ILSVRC2012_img_val.tar",
                urls: &[],
                bytes: Length::Exact(6_744_924_160),
                checksum: Some(Checksum::Md5("29b22e2961454d5413ddabcf34fc5622")),
                place: Place::Unpacked("val"),
            },
            archive(
                "ILSVRC2012_devkit_t12.tar.gz",
                &[],
                Length::Exact(2_568_145),
                Some(Checksum::Md5("fa75699e90414af021442c21a62c3abf")),
            ),
        ],
    },
];

/// The set of this name, or of the only name that begins so: `cub` is `cub-200-2011`.
///
/// # Errors
/// [`Error::Usage`] if no set, or more than one, is called so.
pub fn find(name: &str) -> Result<&'static KnownSet> {
    let wanted = name.to_lowercase();
    if let Some(set) = SETS.iter().find(|set| set.name == wanted) {
        return Ok(set);
    }
    let mut begin = SETS.iter().filter(|set| !wanted.is_empty() && set.name.starts_with(&wanted));
    match (begin.next(), begin.next()) {
        (Some(set), None) => Ok(set),
        _ => {
            let names: Vec<&str> = SETS.iter().map(|set| set.name).collect();
            Err(Error::Usage(format!(
                "no data set is called `{name}`; there are {}",
                names.join(", ")
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// The table of the paper: classes, training and test images.
    #[test]
    fn the_counts_are_the_papers() {
        let paper = [
            ("flowers-102", 102, 2040, 6149),
            ("pets", 37, 3680, 3669),
            ("dtd", 47, 3760, 1880),
            ("indoor67", 67, 5360, 1340),
            ("cub-200-2011", 200, 5994, 5794),
            ("aircraft", 100, 6667, 3333),
            ("cars", 196, 8144, 8041),
            ("imagenet", 1000, 1_281_167, 50_000),
        ];
        let ours: Vec<_> = SETS.iter().map(|s| (s.name, s.classes, s.train, s.test)).collect();
        assert_eq!(ours, paper);
    }

    #[test]
    fn entries_are_sound() {
        for set in SETS {
            assert!(set.page.starts_with("https://") && set.terms.ends_with('.'), "{}", set.name);
            let files: HashSet<&str> = set.archives.iter().map(|archive| archive.file).collect();
            assert_eq!(files.len(), set.archives.len());
            for archive in set.archives {
                assert_eq!(archive.urls.is_empty(), set.by_hand.is_some(), "{}", archive.file);
                let named = |url: &&str| url.ends_with(&format!("/{}", archive.file));
                assert!(archive.urls.iter().all(named), "{}", archive.file);
                let (digits, length) = match archive.checksum {
                    Some(Checksum::Md5(digits)) => (digits, 32),
                    Some(Checksum::Sha256(digits)) => (digits, 64),
                    None => continue,
                };
                let is_digit = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
                assert!(digits.len() == length && digits.chars().all(is_digit), "{digits}");
                assert!(archive.bytes.exact().is_some(), "{}", archive.file);
            }
        }
    }

    #[test]
    fn a_set_is_found_by_the_beginning_of_its_name() {
        for (name, found) in
            [("cub", "cub-200-2011"), ("Flowers", "flowers-102"), ("cars", "cars"), ("i", "")]
        {
            match find(name) {
                Ok(set) => assert_eq!(set.name, found),
                Err(error) => {
                    assert_eq!((found, error.exit_code()), ("", 2));
                    assert!(error.to_string().contains("indoor67, cub-200-2011"), "{error}");
                }
            }
        }
        assert!(find("").is_err());
    }
}
