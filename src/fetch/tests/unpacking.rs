//! What archives may leave on the disk, and what they may not.

use super::archives::raw;
use super::*;

/// What an archive leaves in the data set, or why it is refused, with the exit code.
fn unpacked(bytes: &[u8], place: Place) -> (Result<Vec<String>>, Vec<String>) {
    let desk = Desk::new();
    fs::create_dir(desk.archive("")).expect("made");
    fs::write(desk.archive("set.tar.gz"), bytes).expect("written");
    let archive = Archive { place, ..set(Length::About(1), None).archives[0] };
    let (fetched, notes) = desk.fetch(&of(vec![archive]), None, &ONCE);
    let around = fs::read_dir(desk.folder.path()).expect("there").count();
    assert_eq!(around, if fetched.is_ok() { 2 } else { 1 }, "nothing beside");
    let mut files = Vec::new();
    let list = fetched.map(|fetched| {
        list(&desk.to(), &desk.to(), &mut files);
        files.sort();
        assert_eq!(files.len(), fetched.files);
        files
    });
    (list, notes)
}

fn list(folder: &Path, root: &Path, files: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        assert!(!path.is_symlink(), "{}", path.display());
        match path.is_dir() {
            true => list(&path, root, files),
            false => files.push(path.strip_prefix(root).expect("below").display().to_string()),
        }
    }
}

#[test]
fn content_decides_what_an_archive_is() {
    let tar = tar_of(&[("./a/b.jpg", b"b"), ("c", b"")]);
    for bytes in [tar.clone(), gzip(&tar)] {
        let (files, _) = unpacked(&bytes, Place::Unpacked("train"));
        assert_eq!(files.expect("unpacked"), ["train/a/b.jpg", "train/c"]);
    }
    for bytes in [&b"<!DOCTYPE html>"[..], b"", b"\x1f\x8b", &gzip(&noise(2000))] {
        let (refused, _) = unpacked(bytes, Place::Unpacked(""));
        let error = refused.expect_err("no archive");
        assert!(error.exit_code() == 6 && error.to_string().contains("no tar archive"), "{error}");
    }
}

#[test]
fn archives_in_an_archive_get_folders_of_their_names() {
    let [one, two] = ["x.JPEG", "y.JPEG"].map(|name| tar_of(&[(name, name.as_bytes())]));
    let both = tar_of(&[("n01440764.tar", &one), ("n01443537.tar", &two), ("list.txt", b"l")]);
    let (files, _) = unpacked(&both, Place::UnpackedTwice("train"));
    let expected = ["train/list.txt", "train/n01440764/x.JPEG", "train/n01443537/y.JPEG"];
    assert_eq!(files.expect("unpacked"), expected);
    // Only where the set is published so.
    let (files, _) = unpacked(&both, Place::Unpacked(""));
    assert_eq!(files.expect("unpacked").len(), 3);
}

#[test]
fn paths_that_lead_elsewhere_are_refused() {
    for name in ["../evil", "a/../../evil", "/tmp/evil", "a/..", ".."] {
        let tar = raw(&[("fine", b'0', b"", b"x"), (name, b'0', b"", b"evil")]);
        let inner = tar_of(&[("n.tar", &tar)]);
        for (bytes, place) in [(tar, Place::Unpacked("")), (inner, Place::UnpackedTwice(""))] {
            let error = unpacked(&gzip(&bytes), place).0.expect_err("refused");
            assert_eq!(error.exit_code(), 3);
            assert!(error.to_string().contains("leads elsewhere"), "{error}");
        }
    }
}

#[test]
fn links_and_devices_are_left_out_and_nothing_is_written_through_them() {
    let tar = raw(&[
        ("out", b'2', b"/tmp", b""),
        ("up", b'2', b"..", b""),
        ("hard", b'1', b"/etc/hostname", b""),
        ("pipe", b'6', b"", b""),
        ("out/evil", b'0', b"", b"evil"),
        ("a", b'0', b"", b"a"),
    ]);
    let (files, notes) = unpacked(&tar, Place::Unpacked(""));
    assert_eq!(files.expect("unpacked"), ["a", "out/evil"]);
    let said = "links and devices are left out: out, up, hard, pipe";
    assert!(notes.iter().any(|note| note.ends_with(said)), "{notes:?}");
}

#[test]
fn damaged_swollen_and_doubled_archives_are_refused() {
    let swollen = gzip(&tar_of(&[("zeros", &vec![0; 80 << 20])]));
    assert!(swollen.len() < 500_000);
    let cut = honest();
    let doubled = tar_of(&[("a", b"1"), ("a", b"2")]);
    let under = tar_of(&[("a", b"1"), ("a/b", b"2")]);
    for (bytes, code, part) in [
        (&swollen[..], 3, "more than 20 times its size"),
        (&cut[..cut.len() / 2], 3, "cannot be unpacked"),
        (&doubled[..], 3, "twice"),
        (&under[..], 1, "create"),
    ] {
        let error = unpacked(bytes, Place::Unpacked("")).0.expect_err("refused");
        assert_eq!(error.exit_code(), code, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
}
