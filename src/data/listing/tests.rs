use super::*;
use std::fs::File;
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
    let mut add = |name: &str, data: &[u8]| tar.append_data(&mut header(data.len()), name, data);
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

    let mut listing = Listing::of_archive(&path).unwrap();
    listing.enter_only_folder(true);
    let notes = listing.left_out.notes();
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes[0].ends_with(": top/.hidden.jpg"), "{notes:?}");
    assert!(notes[1].ends_with("1 link to nowhere: top/tulip/gone.jpg"), "{notes:?}");
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
    let error = Listing::of_archive(&path).err().unwrap().to_string();
    assert!(error.contains("it ends inside top/rose/1.jpg"), "{error}");
}

#[test]
fn paths_are_normalised_and_kept_inside() {
    assert_eq!(normalised("./a//b/../c.jpg"), "a/c.jpg");
    assert_eq!(normalised("a/../../b/../../c.jpg"), "../../c.jpg");
    assert_eq!(normalised("/a/./c.jpg"), "/a/c.jpg");
    assert_eq!(inside("../c.jpg"), None);
    assert_eq!(inside("/c.jpg"), None);
    assert_eq!(inside("./"), None);
}

#[test]
#[cfg(unix)]
fn names_of_any_bytes_are_kept_apart_in_folders_and_archives() {
    use std::os::unix::ffi::OsStrExt as _;
    let root = tempfile::tempdir().unwrap();
    let names: [&[u8]; 4] = [b"Gr\xe4ser", b"Gr\xf6ser", br"Gr\xE4ser", b"a\nb"];
    let mut tar = Builder::new(Vec::new());
    for name in names {
        let folder = root.path().join(std::ffi::OsStr::from_bytes(name));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("1.jpg"), name).unwrap();
        let path = [name, &b"/1.jpg"[..]].concat();
        let mut header = header(name.len());
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(&path);
        header.set_cksum();
        tar.append(&header, name).unwrap();
    }
    let archive = root.path().join("photos.tar");
    fs::write(&archive, tar.into_inner().unwrap()).unwrap();
    let ids = [r"Gr\x5CxE4ser/1.jpg", r"Gr\xE4ser/1.jpg", r"Gr\xF6ser/1.jpg", r"a\x0Ab/1.jpg"];
    for listing in [Listing::of_folder(root.path()), Listing::of_archive(&archive)] {
        let listing = listing.unwrap();
        assert_eq!(listing.images().collect::<Vec<_>>(), ids);
        for id in ids {
            let name = super::super::file_name::unescaped(id.strip_suffix("/1.jpg").unwrap());
            assert_eq!(read(&listing.find(id).unwrap()).unwrap(), name);
        }
    }
}

#[test]
#[cfg(unix)]
fn what_is_no_file_neither_hangs_nor_fails_the_rest() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    fs::create_dir_all(at("a/folder.jpg")).unwrap();
    fs::write(at("a/1.jpg"), "one").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("a/socket.jpg")).unwrap();
    std::os::unix::fs::symlink("/nowhere", at("a/gone.jpg")).unwrap();
    std::os::unix::fs::symlink("loop.jpg", at("a/loop.jpg")).unwrap();
    std::os::unix::fs::symlink("/nowhere", at("b")).unwrap();
    std::os::unix::fs::symlink("..", at("a/up")).unwrap();
    let listing = Listing::of_folder(root.path()).unwrap();
    assert_eq!(listing.images().collect::<Vec<_>>(), ["a/1.jpg", "a/gone.jpg", "a/loop.jpg"]);
    assert_eq!(
        listing.left_out.notes(),
        [
            "left out: 1 pipe, socket or device: a/socket.jpg",
            "left out: 1 link to nowhere: b",
            "left out: 1 link that leads back to a folder above it: a/up",
        ]
    );
    assert_eq!(bytes(&listing.files["a/gone.jpg"]).unwrap_err(), "is a link to nowhere");
    assert!(bytes(&listing.files["a/loop.jpg"]).unwrap_err().contains("leads nowhere"));
    let folder = Origin::File(at("a/folder.jpg"));
    assert!(bytes(&folder).unwrap_err().contains("is no file"));
}
