use super::super::listing::{Listing, read};
use super::super::source::tests::config;
use super::super::source::{Opened, open_noting};
use super::*;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

const FILES: [(&str, &[u8]); 5] = [
    ("top/ash/1.jpg", b"first"),
    ("top/ash/2.jpg", b"second"),
    ("top/beech/caf\u{e9} 1.jpg", b"third"),
    ("top/beech/2.jpg", &[7; 3000]),
    ("top/README.md", b"about"),
];

fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        // Not `append_data`, which refuses paths that lead out.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        tar.append(&header, *data).unwrap();
    }
    tar.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut stream = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    stream.write_all(bytes).unwrap();
    stream.finish().unwrap()
}

fn zip_of(files: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(io::Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(method);
    zip.add_directory("top/", options).unwrap();
    for (name, data) in files {
        zip.start_file(*name, options).unwrap();
        zip.write_all(data).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// The content of every image by id, and what was noted.
fn opened(name: &str, bytes: &[u8]) -> (BTreeMap<String, Vec<u8>>, Opened) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    let opened = open_noting(&path, &config(), 1).unwrap();
    let content = |s: &crate::data::Sample| (s.id.clone(), read(&s.origin).unwrap());
    (opened.manifest.samples.iter().map(content).collect(), opened)
}

fn refused(name: &str, bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    let error = open_noting(&path, &config(), 1).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    error.to_string()
}

#[test]
fn all_archives_are_read_alike_whatever_they_are_called() {
    let tar = tar_of(&FILES);
    let stored = zip_of(&FILES, CompressionMethod::Stored);
    let deflated = zip_of(&FILES, CompressionMethod::Deflated);
    let expected: BTreeMap<String, Vec<u8>> = FILES[..4]
        .iter()
        .map(|(name, data)| (name.strip_prefix("top/").unwrap().to_owned(), data.to_vec()))
        .collect();
    // The first six as they should be called; of the others, downloads are made.
    for (name, bytes, is_gzip) in [
        ("photos.tar", tar.clone(), false),
        ("photos.tar.gz", gzip(&tar), true),
        ("photos.tgz", gzip(&tar), true),
        ("photos.zip", stored.clone(), false),
        ("photos.ZIP", deflated.clone(), false),
        ("photos.tar.gz", [gzip(&tar[..700]), gzip(&tar[700..])].concat(), true),
        ("photos.tar.gz", tar.clone(), false),
        ("photos.tgz", deflated, false),
        ("photos.tar", gzip(&tar), true),
        ("photos.zip", tar, false),
        ("photos", stored, false),
    ] {
        let (found, opened) = opened(name, &bytes);
        assert_eq!(found, expected, "{name}");
        assert_eq!(opened.manifest.name, "photos", "{name}");
        assert_eq!(opened.manifest.classes, ["ash", "beech"], "{name}");
        let is_noted = opened.warnings.iter().any(|note| note.contains("a temporary file of 1 MB"));
        assert_eq!(is_noted, is_gzip, "{:?}", opened.warnings);
    }
    let text = refused("photos.zip", &zip_of(&[("a.tar", b"x")], CompressionMethod::Stored));
    assert!(text.contains("archives; unpack those first: a.tar"), "{text}");
}

/// Programs for Windows of some years ago, which know neither `/` nor UTF-8.
#[test]
fn names_of_old_zips_are_read() {
    let files: [(&str, &[u8]); 4] = [
        ("top|ash|1.jpg", b"1"),
        ("top|b#ume|1.jpg", b"2"),
        ("top|ash|2.jpg", b"3"),
        ("..|..|evil.jpg", b"4"),
    ];
    let mut zip = zip_of(&files, CompressionMethod::Stored);
    for (name, _) in files {
        let old: Vec<u8> = name
            .bytes()
            .map(|byte| match byte {
                b'|' => b'\\',
                b'#' => 0x84,
                byte => byte,
            })
            .collect();
        for at in 0..zip.len() - old.len() {
            if zip[at..].starts_with(name.as_bytes()) {
                zip[at..at + old.len()].copy_from_slice(&old);
            }
        }
    }
    let (found, opened) = opened("old.zip", &zip);
    let ids: Vec<&str> = found.keys().map(String::as_str).collect();
    assert_eq!(ids, ["ash/1.jpg", "ash/2.jpg", "b\u{e4}ume/1.jpg"]);
    let notes = opened.warnings.join("\n");
    assert!(notes.contains("../../evil.jpg"), "{notes}");
}

#[test]
fn what_is_no_archive_is_called_what_it_is() {
    for (bytes, part) in [
        (&b"<!DOCTYPE html><html>404"[..], "x.tar.gz is a web page, not an archive"),
        (b"tulip, 3\nrose, 4\n", "x.tar.gz is a text file, not an archive"),
        (b"BZh91AY&SY\0\xff", "x.tar.gz is packed by bzip2, whatever it is called; unpack it"),
        (b"Rar!\x1a\x07\x01\0", "x.tar.gz is packed by RAR"),
        (&[7; 3000], "x.tar.gz is no tar, .tar.gz or .zip archive"),
        (b"", "x.tar.gz: is empty"),
        (&[0; 10240], "x.tar.gz: is empty"),
        (&gzip(b"a single file"), "what it unpacks to is no tar archive"),
        (&gzip(&[0; 10240]), "x.tar.gz: is empty"),
    ] {
        let text = refused("x.tar.gz", bytes);
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let empty = ZipWriter::new(io::Cursor::new(Vec::new())).finish().unwrap().into_inner();
    assert!(refused("x.tar.gz", &empty).contains("x.tar.gz: is empty"));
}

#[test]
fn nothing_leads_out_of_an_archive() {
    let mut files = FILES.to_vec();
    files.push(("../evil.jpg", b"evil"));
    files.push(("/etc/evil.jpg", b"evil"));
    files.push(("top/ash/../../../evil.jpg", b"evil"));
    let zip = io::Cursor::new(zip_of(&FILES, CompressionMethod::Stored));
    let mut zip = ZipWriter::new_append(zip).unwrap();
    for (name, target) in [
        ("top/ash/inside.jpg", "1.jpg"),
        ("top/ash/out.jpg", "/etc/passwd"),
        ("top/ash/up.jpg", "../../../etc/passwd"),
    ] {
        zip.add_symlink(name, target, SimpleFileOptions::default()).unwrap();
    }
    let linked = zip.finish().unwrap().into_inner();
    let (found, of_links) = opened("links.zip", &linked);
    assert_eq!(found["ash/inside.jpg"], b"first");
    assert_eq!(found.len(), 5, "{:?}", found.keys());
    let notes = of_links.warnings.join("\n");
    assert!(notes.contains("2 links to nowhere: top/ash/out.jpg, top/ash/up.jpg"), "{notes}");
    for (name, bytes) in [
        ("x.tar", tar_of(&files)),
        ("x.tar.gz", gzip(&tar_of(&files))),
        ("x.zip", zip_of(&files, CompressionMethod::Deflated)),
    ] {
        let (found, opened) = opened(name, &bytes);
        assert_eq!(found.len(), 4, "{name}: {:?}", found.keys());
        let notes = opened.warnings.join("\n");
        assert!(notes.contains("3 members that lead out of the archive: "), "{name}: {notes}");
    }
}

/// Changes a field of the first member's entry in the list at the end of a zip.
fn patched(zip: &[u8], field: usize, value: &[u8]) -> Vec<u8> {
    let mut zip = zip.to_vec();
    let starts = zip.windows(4).enumerate().filter(|(_, w)| *w == b"PK\x01\x02");
    // The first is the folder's.
    let at = starts.map(|(at, _)| at).nth(1).unwrap() + field;
    zip[at..at + value.len()].copy_from_slice(value);
    zip
}

#[test]
fn bombs_and_what_cannot_be_read_are_refused() {
    let zeros = vec![0; 1_000_000];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gz");
    fs::write(&path, gzip(&zeros)).unwrap();
    let error = unpacked(File::open(&path).unwrap(), 999_999).unwrap_err();
    assert!(error.to_string().contains("grows to more than 200 times"), "{error}");
    assert_eq!(unpacked(File::open(&path).unwrap(), 1_000_000).unwrap().1, 1_000_000);
    assert_eq!((most(10), most(1 << 30)), (1 << 30, 200 << 30));

    let files: [(&str, &[u8]); 2] = [("top/a/1.jpg", &zeros), ("top/b/1.jpg", b"x")];
    let zip = zip_of(&files, CompressionMethod::Deflated);
    const SIZE: usize = 24;
    for (size, part) in
        [(10_u32, "a member of it is damaged"), (0x7fff_ffff, "a member of 2147483647 bytes")]
    {
        fs::write(&path, patched(&zip, SIZE, &size.to_le_bytes())).unwrap();
        let listing = Listing::of_archive(&path).unwrap();
        let error = read(&listing.files["top/a/1.jpg"]).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        assert_eq!(read(&listing.files["top/b/1.jpg"]).unwrap(), b"x");
    }
    let many = vec![0; 65 << 20];
    let files: [(&str, &[u8]); 2] = [("top/a/1.jpg", &many), ("top/b/1.jpg", b"x")];
    fs::write(&path, zip_of(&files, CompressionMethod::Deflated)).unwrap();
    let listing = Listing::of_archive(&path).unwrap();
    let error = read(&listing.files["top/a/1.jpg"]).unwrap_err().to_string();
    assert!(error.contains("grows to 68157440 bytes, more than 200 times its size"), "{error}");

    let text = refused("x.zip", &patched(&zip, 10, &[12, 0]));
    assert!(text.contains("top/a/1.jpg is compressed by"), "{text}");
    let text = refused("x.zip", &patched(&zip, 8, &[1, 0]));
    assert!(text.contains("top/a/1.jpg is locked with a password"), "{text}");
}

#[test]
fn a_tar_without_its_end_is_told_from_a_padded_one() {
    let tar = tar_of(&FILES);
    // The last member's one block of data is followed by the end mark alone.
    let end = tar.len() - 2 * BLOCK;
    assert!(tar[end - BLOCK..].starts_with(b"about") && tar[end..].iter().all(|byte| *byte == 0));
    let cut_inside = |len: usize| {
        let text = refused("x.tar", &tar[..len]);
        let part = "x.tar is not a readable tar archive: it ends inside top/README.md; download";
        assert!(text.contains(part), "{text}");
    };
    cut_inside(end - BLOCK + 2);
    cut_inside(end - 1);
    // Two blocks end a tar; some programs write one or none.
    for (len, is_noted) in [(end, true), (end + BLOCK, false), (end + 2 * BLOCK, false)] {
        let (found, opened) = opened("x.tar", &tar[..len]);
        assert_eq!(found.len(), 4, "{len}");
        let notes = opened.warnings.join("\n");
        assert_eq!(notes.contains("x ends without the mark"), is_noted, "{len}: {notes}");
    }

    let filled = |len: usize| {
        let mut tar = tar.clone();
        tar.resize(len, 0);
        tar
    };
    let record = RECORD as usize;
    assert!(end + 2 * BLOCK <= record);
    for whole in [record, 1 << 20] {
        assert_eq!(opened("x.tar", &filled(whole)).0.len(), 4, "{whole}");
    }
    for (name, bytes) in [("x.tar", filled(15 * record)), ("x.tar.gz", gzip(&filled(15 * record)))]
    {
        let text = refused(name, &bytes);
        let rest = format!("its last {} bytes belong to no member", 15 * record - end - BLOCK);
        assert!(text.contains(&rest) && text.contains("download or copy it again"), "{text}");
    }
}

#[test]
fn damage_is_an_error_and_never_a_panic() {
    let tar = tar_of(&FILES);
    for (name, bytes) in [
        ("x.tar.gz", gzip(&tar)),
        ("x.zip", zip_of(&FILES, CompressionMethod::Deflated)),
        ("x.tar", tar),
    ] {
        for tenth in 1..10 {
            let cut = &bytes[..bytes.len() * tenth / 10];
            // Some programs write no end mark, so a tar cut between two members is only noted.
            if name != "x.tar" {
                assert!(refused(name, cut).contains("not a readable"), "{name} {tenth}");
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        for n in 0..300 {
            let mut bytes = bytes.clone();
            let place = n * 7919 % bytes.len();
            bytes[place] ^= 1 << (n % 8);
            fs::write(&path, bytes).unwrap();
            if let Ok(listing) = Listing::of_archive(&path) {
                listing.files.values().for_each(|origin| drop(read(origin)));
            }
        }
    }
}
