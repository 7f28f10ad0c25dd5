//! What is not looked at, counted and said.

use std::collections::{BTreeMap, BTreeSet};

/// Why something is not listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reason {
    /// A system left it behind.
    Clutter,
    /// fewvit wrote it.
    OwnFolder,
    /// Neither file nor folder.
    NoFile,
    /// A folder without permission to read it.
    Unreadable,
    /// A link to nowhere that is no image by its name.
    LinkToNowhere,
    /// A link to a folder around it.
    LinkUpward,
    /// An archive's member with a path that leads out of the archive.
    OutsideArchive,
}

impl Reason {
    /// What is left out, for one and for several.
    fn words(self) -> [&'static str; 2] {
        match self {
            Self::Clutter => {
                ["file or folder of the system's", "files and folders of the system's"]
            }
            Self::OwnFolder => ["folder that fewvit wrote", "folders that fewvit wrote"],
            Self::NoFile => ["pipe, socket or device", "pipes, sockets or devices"],
            Self::Unreadable => ["folder that may not be read", "folders that may not be read"],
            Self::LinkToNowhere => ["link to nowhere", "links to nowhere"],
            Self::LinkUpward => [
                "link that leads back to a folder above it",
                "links that lead back to folders above them",
            ],
            Self::OutsideArchive => {
                ["member that leads out of the archive", "members that lead out of the archive"]
            }
        }
    }
}

/// Ids by the reason for which they are not listed.
#[derive(Debug, Default)]
pub(super) struct LeftOut(BTreeMap<Reason, BTreeSet<String>>);
use crate::words::shortened;

impl LeftOut {
    /// Notes one.
    pub fn add(&mut self, reason: Reason, id: String) {
        self.0.entry(reason).or_default().insert(id);
    }

    /// Whether this id is left out for this reason.
    pub fn has(&self, reason: Reason, id: &str) -> bool {
        self.0.get(&reason).is_some_and(|ids| ids.contains(id))
    }

    /// One sentence a reason.
    pub fn notes(&self) -> Vec<String> {
        let note = |(reason, ids): (&Reason, &BTreeSet<String>)| {
            let ids: Vec<String> = ids.iter().cloned().collect();
            let [one, many] = reason.words();
            let noun = if ids.len() == 1 { one } else { many };
            format!("left out: {} {noun}: {}", ids.len(), shortened(&ids))
        };
        self.0.iter().map(note).collect()
    }
}
