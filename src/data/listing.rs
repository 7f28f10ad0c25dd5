//! What lies at a path: the same listing for a folder and for an archive, and how to read it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::archive::{self, Content, Members};
use super::clutter;
use super::file_name::{escaped, id_of, path_of};
use super::left_out::{LeftOut, Reason};
use super::manifest::Origin;
use crate::error::{Error, Result};

const IMAGE_EXTENSIONS: [&str; 14] = [
    "jpg", "jpeg", "jpe", "jfif", "png", "gif", "bmp", "tif", "tiff", "webp", "pnm", "ppm", "pgm",
    "pbm",
];

/// Photos in formats that fewvit does not read.
pub(super) const UNREAD_PHOTOS: [&str; 10] =
    ["heic", "heif", "avif", "raw", "dng", "cr2", "nef", "arw", "jxl", "jp2"];

/// Files that accompany images and need no word.
const DOCUMENTS: [&str; 42] = [
    "txt", "md", "rst", "rtf", "pdf", "doc", "docx", "odt", "htm", "html", "csv", "tsv", "jsonl",
    "ndjson", "json", "xml", "xls", "xlsx", "ods", "yaml", "yml", "toml", "ini", "cfg", "log",
    "mat", "npy", "npz", "pkl", "parquet", "h5", "py", "ipynb", "sh", "bat", "r", "m", "tex",
    "bib", "sha256", "md5", "url",
];

/// The same without an extension, in small letters.
const PLAIN_DOCUMENTS: [&str; 9] = [
    "readme",
    "license",
    "licence",
    "copying",
    "citation",
    "changelog",
    "authors",
    "makefile",
    "dockerfile",
];

/// The files at a path, by their id: the path relative to it with `/`, as
/// [`super::file_name`] writes it. In the order of the ids.
pub struct Listing {
    /// Last part of the path, without `.tar` and alike; what the data set is called.
    pub name: String,
    /// Every file that is not hidden, images or not.
    pub files: BTreeMap<String, Origin>,
    /// Every folder, also those without files, and links to nowhere that could be folders.
    pub(super) folders: BTreeSet<String>,
    /// What is not listed, and why.
    pub(super) left_out: LeftOut,
    /// The folder; `None` in an archive.
    folder: Option<PathBuf>,
    /// Bytes that a compressed archive was unpacked to.
    unpacked: Option<u64>,
    /// Whether an archive lacks the mark of its end.
    may_be_cut: bool,
    /// Folders that were stepped into, with which the ids in `left_out` still begin.
    entered: String,
}

impl Listing {
    /// Lists everything below a folder, links followed. What cannot be listed is left out with a
    /// note.
    ///
    /// # Errors
    /// [`Error::Data`] if the folder itself cannot be read.
    pub fn of_folder(root: &Path) -> Result<Self> {
        let mut listing = Self::unwalked(root);
        let unreadable = |e| Error::Data(format!("{} {}", root.display(), reason_of(root, &e)));
        let real = root.canonicalize().map_err(unreadable)?;
        let entries = fs::read_dir(root).map_err(unreadable)?;
        listing.walk(entries, "", &mut vec![real]);
        listing.take_own_folders();
        Ok(listing)
    }

    /// A folder whose files are only looked up with [`Listing::find`], not listed.
    pub fn unwalked(root: &Path) -> Self {
        let absolute = root.canonicalize().unwrap_or_else(|_| root.to_path_buf());
        let name = absolute.file_name().map_or("data".into(), |n| escaped(n.as_encoded_bytes()));
        Self {
            name,
            files: BTreeMap::new(),
            folders: BTreeSet::new(),
            left_out: LeftOut::default(),
            folder: Some(root.to_path_buf()),
            unpacked: None,
            may_be_cut: false,
            entered: String::new(),
        }
    }

    /// Lists the members of an archive by where their bytes are.
    ///
    /// # Errors
    /// [`Error::Data`] if it cannot be read.
    pub fn of_archive(path: &Path) -> Result<Self> {
        let mut listing = Self { folder: None, ..Self::unwalked(path) };
        let name = path.file_name().map(|name| escaped(name.as_encoded_bytes()));
        listing.name = without_ending(&name.unwrap_or(listing.name)).to_owned();
        listing.read_archive(path)?;
        listing.take_own_folders();
        Ok(listing)
    }

    /// Files by the ids that they shall have.
    #[cfg(test)]
    pub(super) fn of_files(files: impl IntoIterator<Item = (String, PathBuf)>) -> Self {
        let mut listing = Self { folder: None, ..Self::unwalked(Path::new("mini")) };
        files.into_iter().for_each(|(id, path)| listing.add_member(id, Origin::File(path)));
        listing
    }

    /// The file with an id; in a folder also one outside the listing (`../x.jpg`).
    pub fn find(&self, id: &str) -> Option<Origin> {
        self.files.get(id).cloned().or_else(|| {
            let path = self.folder.as_ref()?.join(path_of(id));
            path.is_file().then_some(Origin::File(path))
        })
    }

    /// The id of a path as tables have it: relative to the listing where it lies inside.
    pub(super) fn id(&self, path: &str) -> String {
        let relative = || {
            let folder = self.folder.as_ref().filter(|_| Path::new(path).is_absolute())?;
            let roots = [std::path::absolute(folder), folder.canonicalize()];
            roots
                .into_iter()
                .flatten()
                .find_map(|root| path_of(path).strip_prefix(root).ok().map(id_of))
        };
        normalised(&relative().unwrap_or_else(|| path.to_owned()))
    }

    /// Where the paths of tables count from, in words.
    pub(super) fn root(&self) -> String {
        match &self.folder {
            Some(folder) => {
                std::path::absolute(folder).as_ref().unwrap_or(folder).display().to_string()
            }
            None => "the table's folder in the archive".to_owned(),
        }
    }

    /// The ids of the images, in byte order.
    pub fn images(&self) -> impl Iterator<Item = &String> {
        self.files.keys().filter(|path| is_image_name(path))
    }

    /// What to say of a compressed archive.
    pub(super) fn unpacked_note(&self) -> Option<String> {
        let megabytes = self.unpacked?.div_ceil(1_000_000);
        Some(format!(
            "{} was unpacked to a temporary file of {megabytes} MB, as at every start; unpack it \
             yourself to save that",
            self.name
        ))
    }

    /// What to say of an archive that may have been cut between two members.
    pub(super) fn cut_note(&self) -> Option<String> {
        self.may_be_cut.then(|| {
            format!(
                "{} ends without the mark of a whole tar, which some programs leave out; if images \
                 are missing, download or copy it again",
                self.name
            )
        })
    }

    /// How many files are no images, by lower-case extension.
    pub fn ignored(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for path in self.files.keys().filter(|path| !is_image_name(path)) {
            *counts.entry(extension(path)).or_default() += 1;
        }
        counts
    }

    /// Files that by their names are neither images nor what usually accompanies them.
    pub(super) fn oddly_named(&self) -> impl Iterator<Item = &String> {
        self.files.keys().filter(|path| {
            let extension = extension(path);
            let name = file_part(path).to_lowercase();
            !is_image_name(path)
                && !is_document(path)
                && !UNREAD_PHOTOS.contains(&extension.as_str())
                && !PLAIN_DOCUMENTS.contains(&name.as_str())
        })
    }

    /// Whether a folder of this id is not listed for this reason.
    pub(super) fn is_left_out(&self, reason: Reason, id: &str) -> bool {
        self.left_out.has(reason, &format!("{}{id}", self.entered))
    }

    /// Names of the folders directly below `prefix`, which is empty or ends in `/`.
    pub(super) fn folders_below(&self, prefix: &str) -> impl Iterator<Item = &str> {
        self.folders
            .range(prefix.to_owned()..)
            .map_while(move |path| path.strip_prefix(prefix))
            .filter(|rest| !rest.is_empty() && !rest.contains('/'))
    }

    /// The files below `prefix`, which is empty or ends in `/`, by the rest of their ids.
    pub(super) fn files_below(&self, prefix: &str) -> impl Iterator<Item = &str> {
        self.files.range(prefix.to_owned()..).map_while(move |(path, _)| path.strip_prefix(prefix))
    }

    /// Steps into the one folder that holds everything, as archives have it.
    ///
    /// Not when its images lie directly inside, unless `always` is set: that is a class folder. Nor when
    /// it is called `train` or alike: then the other splits are missing, which is for others to
    /// say.
    pub fn enter_only_folder(&mut self, always: bool) {
        let mut always = always;
        loop {
            let tops: Vec<&str> = self.folders_below("").take(2).collect();
            let [top] = tops[..] else { return };
            let prefix = format!("{top}/");
            let around = self.files.keys().any(|path| !path.starts_with(&prefix));
            let deeper = self.files_below(&prefix).any(|rest| rest.contains('/'));
            let is_split = super::split_names::parse_split(top).is_some();
            if around || is_split || !(always || deeper) {
                return;
            }
            let top = top.to_owned();
            self.enter(&top);
            always = false;
        }
    }

    /// Steps into a folder and forgets what lies outside.
    pub(super) fn enter(&mut self, top: &str) {
        let prefix = format!("{top}/");
        self.entered.push_str(&prefix);
        let inside = |path: &str| path.strip_prefix(&prefix).map(str::to_owned);
        let files = std::mem::take(&mut self.files).into_iter();
        self.files = files.filter_map(|(path, at)| Some((inside(&path)?, at))).collect();
        self.folders = self.folders.iter().filter_map(|path| inside(path)).collect();
        self.folder = self.folder.take().map(|folder| folder.join(path_of(top)));
    }

    fn take_own_folders(&mut self) {
        for folder in clutter::take_own_folders(&mut self.files, &mut self.folders) {
            self.left_out.add(Reason::OwnFolder, folder);
        }
    }

    /// Collects what lies in a folder; `above` holds the real paths of the folders being walked,
    /// so that a link back to one of them ends instead of going round.
    fn walk(&mut self, entries: fs::ReadDir, prefix: &str, above: &mut Vec<PathBuf>) {
        for entry in entries {
            let Ok(entry) = entry else {
                self.left_out.add(Reason::Unreadable, prefix.to_owned());
                continue;
            };
            let (name, path) = (escaped(entry.file_name().as_encoded_bytes()), entry.path());
            let id = format!("{prefix}{name}");
            if clutter::is_clutter(&name) {
                self.left_out.add(Reason::Clutter, id);
                continue;
            }
            match fs::metadata(&path) {
                Ok(kind) if kind.is_dir() => self.walk_folder(&path, id, above),
                Ok(kind) if kind.is_file() => drop(self.files.insert(id, Origin::File(path))),
                Ok(_) => self.left_out.add(Reason::NoFile, id),
                // A broken image is for the check of the images to report.
                Err(_) if is_image_name(&name) => {
                    self.files.insert(id, Origin::File(path));
                }
                Err(_) => {
                    self.left_out.add(Reason::LinkToNowhere, id.clone());
                    self.folders.insert(id);
                }
            }
        }
    }

    fn walk_folder(&mut self, folder: &Path, id: String, above: &mut Vec<PathBuf>) {
        let entries = folder.canonicalize().and_then(|real| Ok((real, fs::read_dir(folder)?)));
        match entries {
            Ok((real, _)) if above.contains(&real) => self.left_out.add(Reason::LinkUpward, id),
            Ok((real, entries)) => {
                above.push(real);
                self.walk(entries, &format!("{id}/"), above);
                above.pop();
                self.folders.insert(id);
            }
            Err(_) => {
                self.left_out.add(Reason::Unreadable, id.clone());
                self.folders.insert(id);
            }
        }
    }

    /// Members of an archive by id; links inside the archive point to what they link to.
    fn read_archive(&mut self, path: &Path) -> Result<()> {
        let Members { members, unpacked, may_be_cut } = archive::members(path)?;
        self.unpacked = unpacked;
        self.may_be_cut = may_be_cut;
        let mut links = Vec::new();
        for (member, content) in members {
            // Archives made with `tar -C photos .` begin with the folder itself.
            if normalised(&member).is_empty() {
                continue;
            }
            let Some(id) = inside(&member) else {
                self.left_out.add(Reason::OutsideArchive, member);
                continue;
            };
            let names = id.match_indices('/').map(|(at, _)| at).chain([id.len()]);
            let mut paths = names.map(|end| &id[..end]);
            if let Some(path) = paths.find(|path| clutter::is_clutter(file_part(path))) {
                self.left_out.add(Reason::Clutter, path.to_owned());
                continue;
            }
            match content {
                Content::File(origin) => self.add_member(id, origin),
                Content::Folder => self.add_folders(&format!("{id}/")),
                Content::Link { target, is_hard } => {
                    let base = member.rsplit_once('/').filter(|_| !is_hard);
                    let base = base.map_or(String::new(), |(folder, _)| format!("{folder}/"));
                    links.push((id, inside(&format!("{base}{target}"))));
                }
                Content::Other => self.left_out.add(Reason::NoFile, id),
            }
        }
        for (id, target) in links {
            match target.and_then(|target| self.files.get(&target).cloned()) {
                Some(origin) => self.add_member(id, origin),
                None => self.left_out.add(Reason::LinkToNowhere, id),
            }
        }
        Ok(())
    }

    fn add_member(&mut self, id: String, origin: Origin) {
        self.add_folders(&id);
        self.files.insert(id, origin);
    }

    /// The folders that a path leads through.
    fn add_folders(&mut self, path: &str) {
        for (end, _) in path.match_indices('/').filter(|(end, _)| *end > 0) {
            if !self.folders.contains(&path[..end]) {
                self.folders.insert(path[..end].to_owned());
            }
        }
    }
}

/// The bytes of a file or of an archive member.
///
/// # Errors
/// [`Error::Data`] naming the file or the archive.
pub fn read(origin: &Origin) -> Result<Vec<u8>> {
    let path: &Path = match origin {
        Origin::File(path) => path,
        Origin::Member { archive, .. } => archive.path(),
    };
    bytes(origin).map_err(|reason| Error::Data(format!("{} {reason}", path.display())))
}

/// The bytes of a file or of an archive member, or why they cannot be had, in words that follow
/// "the file ...".
///
/// # Errors
/// A reason such as `is a link to nowhere`.
pub fn bytes(origin: &Origin) -> std::result::Result<Vec<u8>, String> {
    match origin {
        Origin::File(path) => {
            let read = || match fs::metadata(path)?.is_file() {
                true => fs::read(path),
                // Opening a pipe waits for somebody to write into it.
                false => Err(ErrorKind::Unsupported.into()),
            };
            read().map_err(|e| reason_of(path, &e))
        }
        Origin::Member { archive, offset, len, packing } => {
            archive.read(*offset, *len, *packing).map_err(|e| reason_of(archive.path(), &e))
        }
    }
}

/// Why a path cannot be read.
fn reason_of(path: &Path, error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound if path.is_symlink() => "is a link to nowhere".into(),
        ErrorKind::NotFound => "does not exist".into(),
        ErrorKind::PermissionDenied => "may not be read: permission denied".into(),
        ErrorKind::Unsupported => "is no file, but a folder, pipe, socket or device".into(),
        _ if path.is_symlink() && !path.exists() => {
            format!("is a link that leads nowhere ({error})")
        }
        _ => format!("cannot be read ({error})"),
    }
}

pub(super) fn is_image_name(path: &str) -> bool {
    IMAGE_EXTENSIONS.contains(&extension(path).as_str())
}

/// Whether a file is text or data that usually lies beside images.
pub(super) fn is_document(path: &str) -> bool {
    DOCUMENTS.contains(&extension(path).as_str())
}

/// Whether a file only tells people about the data.
pub(super) fn is_for_people(path: &str) -> bool {
    let name = file_part(path).to_lowercase();
    PLAIN_DOCUMENTS.iter().any(|start| name.split(['.', '_', '-']).next() == Some(start))
        || ["md", "rst", "pdf", "htm", "html", "url"].contains(&extension(path).as_str())
}

/// Endings of archives in small letters, longest first.
pub const ARCHIVES: [&str; 4] = [".tar.gz", ".tgz", ".tar", ".zip"];

/// A file's name without the ending of an archive.
fn without_ending(name: &str) -> &str {
    let is = |ending: &str| name.to_lowercase().ends_with(ending);
    let ending = ARCHIVES.into_iter().chain([".gz"]).find(|ending| is(ending));
    ending.map_or(name, |ending| &name[..name.len() - ending.len()])
}

/// Whether a file is called as an archive.
pub(super) fn is_archive_name(path: &str) -> bool {
    ["tar", "gz", "tgz", "zip"].contains(&extension(path).as_str())
}

/// What follows the last `/`.
pub(super) fn file_part(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// Lower-case extension without the dot; empty if there is none.
pub(super) fn extension(path: &str) -> String {
    Path::new(path).extension().map_or(String::new(), |e| e.to_string_lossy().to_lowercase())
}

/// `a/./b/../c` as `a/c`; what leads above the start or the root stays in front.
pub(super) fn normalised(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match (part, parts.last()) {
            ("" | ".", _) => {}
            ("..", Some(&last)) if last != ".." => drop(parts.pop()),
            (part, _) => parts.push(part),
        }
    }
    let root = if path.starts_with('/') { "/" } else { "" };
    format!("{root}{}", parts.join("/"))
}

/// The normalised path of an archive's member; `None` if it leads out of the archive.
fn inside(path: &str) -> Option<String> {
    let path = normalised(path);
    let leads_out = path.starts_with('/') || path == ".." || path.starts_with("../");
    (!leads_out && !path.is_empty()).then_some(path)
}

#[cfg(test)]
mod tests;
