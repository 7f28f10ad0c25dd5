//! What lies at a path: the same listing for a folder and for a tar archive, and how to read it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::manifest::Origin;
use crate::error::{Error, Result};

const IMAGE_EXTENSIONS: [&str; 14] = [
    "jpg", "jpeg", "jpe", "jfif", "png", "gif", "bmp", "tif", "tiff", "webp", "pnm", "ppm", "pgm",
    "pbm",
];

/// The files at a path, by their path relative to it (with `/`), in byte order.
pub struct Listing {
    /// Last part of the path, without `.tar`; what the data set is called.
    pub name: String,
    /// Every file that is not hidden, images or not.
    pub files: BTreeMap<String, Origin>,
    /// The folder; `None` in an archive.
    folder: Option<PathBuf>,
}

impl Listing {
    /// Lists everything below a folder, links followed.
    pub fn of_folder(root: &Path) -> Result<Self> {
        let mut listing = Self::unwalked(root);
        walk(root, "", &mut Vec::new(), &mut listing.files)?;
        Ok(listing)
    }

    /// A folder whose files are only looked up with [`Listing::find`], not listed.
    pub fn unwalked(root: &Path) -> Self {
        let absolute = root.canonicalize().unwrap_or_else(|_| root.to_path_buf());
        let name = absolute.file_name().map_or("data".into(), |n| n.to_string_lossy().into_owned());
        Self { name, files: BTreeMap::new(), folder: Some(root.to_path_buf()) }
    }

    /// Lists the members of an uncompressed tar archive by where their bytes are.
    pub fn of_tar(path: &Path) -> Result<Self> {
        let name = path.file_stem().map_or("data".into(), |n| n.to_string_lossy().into_owned());
        Ok(Self { name, files: tar_members(path)?, folder: None })
    }

    /// The file at a relative path; in a folder also one outside the listing (`../x.jpg`).
    pub fn find(&self, relative: &str) -> Option<Origin> {
        self.files.get(relative).cloned().or_else(|| {
            let path = self.folder.as_ref()?.join(relative);
            path.is_file().then_some(Origin::File(path))
        })
    }

    /// The relative paths of the images, in byte order.
    pub fn images(&self) -> impl Iterator<Item = &String> {
        self.files.keys().filter(|path| is_image_name(path))
    }

    /// How many files are no images, by lower-case extension.
    pub fn ignored(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for path in self.files.keys().filter(|path| !is_image_name(path)) {
            *counts.entry(extension(path)).or_default() += 1;
        }
        counts
    }

    /// Steps into the one folder that holds everything, as archives have it.
    ///
    /// Not when its images lie directly inside (`always` apart): that is a class folder. Nor when
    /// it is called `train`: then the other splits are missing, which is for others to say.
    pub fn enter_only_folder(&mut self, always: bool) {
        let top = match self.files.keys().next().and_then(|path| path.split_once('/')) {
            Some((top, _)) if top != "train" => format!("{top}/"),
            _ => return,
        };
        let inside = |path: &String| path.strip_prefix(&top).map(|rest| rest.contains('/'));
        let deeper = self.files.keys().any(|path| inside(path) == Some(true));
        if self.files.keys().all(|path| inside(path).is_some()) && (always || deeper) {
            let files = std::mem::take(&mut self.files).into_iter();
            self.files = files.map(|(path, at)| (path[top.len()..].to_owned(), at)).collect();
            self.folder = self.folder.take().map(|folder| folder.join(&top));
        }
    }
}

/// The bytes of a file or of an archive member.
///
/// # Errors
/// [`Error::Io`] naming the file or the archive.
pub fn read(origin: &Origin) -> Result<Vec<u8>> {
    match origin {
        Origin::File(path) => fs::read(path).map_err(|e| Error::io("read", path, e)),
        Origin::Tar { archive, offset, len } => {
            let read = || {
                let mut file = File::open(archive.as_path())?;
                file.seek(SeekFrom::Start(*offset))?;
                let mut bytes = Vec::new();
                file.take(*len).read_to_end(&mut bytes)?;
                Ok(bytes)
            };
            read().map_err(|e| Error::io("read", archive, e))
        }
    }
}

pub(super) fn is_image_name(path: &str) -> bool {
    IMAGE_EXTENSIONS.contains(&extension(path).as_str())
}

/// Lower-case extension without the dot; empty if there is none.
pub(super) fn extension(path: &str) -> String {
    Path::new(path).extension().map_or(String::new(), |e| e.to_string_lossy().to_lowercase())
}

/// `a/./b/../c` as `a/c`; `None` if it leads above the root.
pub(super) fn normalised(path: &Path) -> Option<String> {
    let mut parts: Vec<String> = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => parts.push(name.to_string_lossy().into_owned()),
            Component::ParentDir => drop(parts.pop()?),
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts.join("/"))
}

/// Files that systems leave behind and nobody means as data.
fn is_clutter(name: &str) -> bool {
    name.starts_with('.') || ["__MACOSX", "Thumbs.db", "desktop.ini"].contains(&name)
}

/// Collects the files below `folder`; `above` holds the real paths of the folders being walked, so
/// a link back to one of them ends instead of going round.
fn walk(
    folder: &Path,
    prefix: &str,
    above: &mut Vec<PathBuf>,
    files: &mut BTreeMap<String, Origin>,
) -> Result<()> {
    let real = folder.canonicalize().map_err(|e| Error::io("read", folder, e))?;
    if above.contains(&real) {
        return Ok(());
    }
    above.push(real);
    for entry in fs::read_dir(folder).map_err(|e| Error::io("read", folder, e))? {
        let path = entry.map_err(|e| Error::io("read", folder, e))?.path();
        let name = path.file_name().map_or(String::new(), |n| n.to_string_lossy().into_owned());
        if is_clutter(&name) {
            continue;
        }
        if path.is_dir() {
            walk(&path, &format!("{prefix}{name}/"), above, files)?;
        } else {
            files.insert(format!("{prefix}{name}"), Origin::File(path));
        }
    }
    above.pop();
    Ok(())
}

/// Members of a tar by normalised path; links inside the archive point to what they link to.
fn tar_members(path: &Path) -> Result<BTreeMap<String, Origin>> {
    let broken = |e: std::io::Error| {
        Error::Data(format!("{} is not a readable tar archive: {e}", path.display()))
    };
    let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
    let size = file.metadata().map_err(|e| Error::io("read", path, e))?.len();
    let archive = Arc::new(path.to_path_buf());
    let (mut files, mut links) = (BTreeMap::new(), Vec::new());
    for entry in tar::Archive::new(file).entries_with_seek().map_err(broken)? {
        let entry = entry.map_err(broken)?;
        let member = entry.path().map_err(broken)?.into_owned();
        let Some(id) = normalised(&member).filter(|id| !id.split('/').any(is_clutter)) else {
            continue;
        };
        let kind = entry.header().entry_type();
        if kind.is_file() || kind.is_contiguous() {
            let (offset, len) = (entry.raw_file_position(), entry.size());
            if offset.checked_add(len).is_none_or(|end| end > size) {
                return Err(broken(std::io::Error::other(format!("it ends inside {id}"))));
            }
            files.insert(id, Origin::Tar { archive: archive.clone(), offset, len });
        } else if let Some(target) = entry.link_name().map_err(broken)? {
            let base = if kind.is_symlink() { member.parent() } else { None };
            links.push((id, normalised(&base.unwrap_or(Path::new("")).join(target))));
        }
    }
    for (id, target) in links {
        if let Some(origin) = target.and_then(|target| files.get(&target).cloned()) {
            files.insert(id, origin);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tar::{Builder, EntryType, Header};

    fn header(len: usize) -> Header {
        let mut header = Header::new_gnu();
        header.set_size(len as u64);
        header.set_mode(0o644);
        header
    }

    #[test]
    fn tar_members_are_found_where_their_bytes_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("photos.tar");
        let long = format!("top/rose/{}.jpg", "n".repeat(180));
        let mut tar = Builder::new(File::create(&path).unwrap());
        let mut add =
            |name: &str, data: &[u8]| tar.append_data(&mut header(data.len()), name, data);
        add("./top/rose/1.jpg", b"first").unwrap();
        add(&long, b"long name").unwrap();
        add("top/rose/1.jpg", b"second version").unwrap();
        add("top/.hidden.jpg", b"").unwrap();
        add("top/notes.txt", b"").unwrap();
        // A pax record naming the next member, as `tar --format=pax` writes it.
        let record = b"28 path=top/tulip/\xc3\xa9t\xc3\xa9.jpg\n";
        let mut pax = header(record.len());
        pax.set_entry_type(EntryType::XHeader);
        tar.append_data(&mut pax, "pax", &record[..]).unwrap();
        tar.append_data(&mut header(3), "short.jpg", &b"pax"[..]).unwrap();
        for (kind, at, to) in [
            (EntryType::Link, "top/tulip/hard.jpg", "top/rose/1.jpg"),
            (EntryType::Symlink, "top/tulip/soft.jpg", "../rose/1.jpg"),
            (EntryType::Symlink, "top/tulip/gone.jpg", "../../../etc/passwd"),
        ] {
            let mut link = header(0);
            link.set_entry_type(kind);
            tar.append_link(&mut link, at, to).unwrap();
        }
        tar.finish().unwrap();

        let mut listing = Listing::of_tar(&path).unwrap();
        listing.enter_only_folder(true);
        let contents: Vec<(String, String)> = listing
            .images()
            .map(|id| (id.clone(), String::from_utf8(read(&listing.files[id]).unwrap()).unwrap()))
            .collect();
        let expected = [
            ("rose/1.jpg", "second version"),
            (&long[4..], "long name"),
            ("tulip/hard.jpg", "second version"),
            ("tulip/soft.jpg", "second version"),
            ("tulip/\u{e9}t\u{e9}.jpg", "pax"),
        ];
        let expected = expected.map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(contents, expected);
        assert_eq!(listing.ignored(), BTreeMap::from([("txt".to_owned(), 1)]));
        assert_eq!(listing.name, "photos");

        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(515).unwrap();
        let error = Listing::of_tar(&path).err().unwrap().to_string();
        assert!(error.contains("it ends inside top/rose/1.jpg"), "{error}");
    }

    #[test]
    fn paths_are_normalised_and_kept_inside() {
        assert_eq!(normalised(Path::new("./a//b/../c.jpg")).unwrap(), "a/c.jpg");
        assert_eq!(normalised(Path::new("../c.jpg")), None);
        assert_eq!(normalised(Path::new("/c.jpg")), None);
    }
}
