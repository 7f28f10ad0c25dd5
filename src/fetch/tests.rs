//! Against a server of our own on this machine, and archives made to do harm.

mod archives;
mod server;
mod unpacking;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::*;
use crate::data::catalog::{Archive, Checksum, KnownSet, Length, Place};
use archives::{gzip, tar_of};
use server::{Reply, Server, sent};

const HASTE: Patience =
    Patience { attempts: 3, pause: Duration::from_millis(1), silence: Duration::from_millis(300) };
/// One attempt: a broken connection ends the command.
const ONCE: Patience = Patience { attempts: 1, ..HASTE };

fn leaked(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

fn sha256(bytes: &[u8]) -> Checksum {
    let digits = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    Checksum::Sha256(leaked(digits))
}

/// A set of one archive, of which this is published.
fn set(bytes: Length, checksum: Option<Checksum>) -> KnownSet {
    let archive =
        Archive { file: "set.tar.gz", urls: &[], bytes, checksum, place: Place::Unpacked("") };
    of(vec![archive])
}

fn of(archives: Vec<Archive>) -> KnownSet {
    KnownSet {
        name: "set",
        title: "The Set",
        classes: 1,
        train: 2,
        test: 0,
        page: "https://example.org/",
        terms: "None.",
        by_hand: None,
        archives: Box::leak(archives.into_boxed_slice()),
    }
}

/// What is published of a body.
fn published(body: &[u8]) -> KnownSet {
    set(Length::Exact(body.len() as u64), Some(sha256(body)))
}

/// Incompressible bytes.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// An archive of two files, one of them of some length.
fn honest() -> Vec<u8> {
    gzip(&tar_of(&[("set/a.jpg", &noise(100_000)), ("set/b.txt", b"b")]))
}

/// A folder for tests, and the place of the data set in it.
struct Desk {
    folder: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder") }
    }

    fn to(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn archive(&self, name: &str) -> PathBuf {
        self.folder.path().join("data-archives").join(name)
    }

    /// Fetches, and the notes on the way.
    fn fetch(
        &self,
        set: &KnownSet,
        mirror: Option<&str>,
        patience: &Patience,
    ) -> (Result<Fetched>, Vec<String>) {
        let mut notes = Vec::new();
        let mut tell = |told: Told| {
            if let Told::Note(note) = told {
                notes.push(note.to_owned());
            }
        };
        let order = Order { set, to: &self.to(), mirror };
        (fetch(&order, patience, &mut tell), notes)
    }

    fn fails(&self, set: &KnownSet, server: &Server, patience: &Patience, code: u8) -> String {
        let error = self.fetch(set, Some(&server.url), patience).0.expect_err("refused");
        assert_eq!(error.exit_code(), code, "{error}");
        assert!(!self.to().exists(), "{error}");
        error.to_string()
    }

    fn succeeds(&self, set: &KnownSet, server: &Server, patience: &Patience) -> Vec<String> {
        let (fetched, notes) = self.fetch(set, Some(&server.url), patience);
        assert_eq!(fetched.expect("fetched").files, 2);
        assert_eq!(fs::read(self.to().join("set/a.jpg")).expect("there"), noise(100_000));
        assert_eq!(fs::read(self.to().join("set/b.txt")).expect("there"), b"b");
        notes
    }

    /// What lies in the folder of the archives, but for the lock.
    fn kept(&self) -> Vec<String> {
        let all = fs::read_dir(self.archive("")).expect("there");
        let names = all.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = names.filter(|name| name != ".lock").collect();
        names.sort();
        names
    }
}

#[test]
fn cut_after_each_tenth_and_resumed_the_file_is_equal() {
    let body = honest();
    for tenth in 1..10 {
        let cut = body.len() * tenth / 10;
        let served = body.clone();
        let server = Server::start(move |request, turn| {
            let mut reply = sent(request, &served, Some("\"v1\""));
            if turn == 0 {
                reply.body.truncate(cut);
            }
            reply
        });
        let desk = Desk::new();
        let text = desk.fails(&published(&body), &server, &ONCE, 1);
        assert!(text.contains("the same command goes on from there"), "{text}");
        assert_eq!(fs::read(desk.archive("set.tar.gz.part")).expect("kept"), body[..cut]);
        desk.succeeds(&published(&body), &server, &ONCE);
        let [first, second] = server.requests().try_into().expect("two requests");
        assert_eq!((first.header("range"), first.header("if-range")), (None, None));
        assert_eq!(second.header("range"), Some(format!("bytes={cut}-").as_str()));
        assert_eq!(second.header("if-range"), Some("\"v1\""));
        assert_eq!(desk.kept(), ["set.tar.gz"]);
        assert_eq!(fs::read(desk.archive("set.tar.gz")).expect("kept"), body);
    }
}

#[test]
fn a_connection_that_breaks_again_and_again_is_taken_up_within_one_command() {
    let body = honest();
    let (served, tenth) = (body.clone(), body.len() / 10);
    let server = Server::start(move |request, _| {
        let mut reply = sent(request, &served, Some("\"v1\""));
        reply.body.truncate(tenth);
        reply
    });
    let desk = Desk::new();
    let notes = desk.succeeds(&published(&body), &server, &HASTE);
    let turns = server.requests().len();
    assert!((10..=11).contains(&turns), "{turns}");
    assert!(notes[0].contains("set.tar.gz: the connection broke"), "{notes:?}");
}

#[test]
fn a_silent_connection_counts_as_broken() {
    let body = honest();
    let served = body.clone();
    let server = Server::start(move |request, turn| {
        let mut reply = sent(request, &served, Some("\"v1\""));
        if turn == 0 {
            reply.body.truncate(5000);
            reply.silence = Duration::from_secs(2);
        }
        reply
    });
    Desk::new().succeeds(&published(&body), &server, &HASTE);
    assert_eq!(server.requests()[1].header("range"), Some("bytes=5000-"));
}

#[test]
fn a_server_without_ranges_sends_all_again() {
    let body = honest();
    let served = body.clone();
    let server = Server::start(move |_, turn| {
        let mut reply = Reply::ok(&served);
        if turn == 0 {
            reply.body.truncate(7000);
        }
        reply
    });
    let desk = Desk::new();
    desk.succeeds(&published(&body), &server, &HASTE);
    // The checksum can tell whether the halves belong together, so that it was worth asking.
    assert_eq!(server.requests()[1].header("range"), Some("bytes=7000-"));
    assert_eq!(server.requests()[1].header("if-range"), None);
}

#[test]
fn a_file_that_changed_on_the_server_is_not_patched_together() {
    let (old, new) = (gzip(&tar_of(&[("set/old", &noise(50_000))])), honest());
    let served = [old.clone(), new.clone()];
    let server = Server::start(move |request, turn| {
        let tag = if turn == 0 { "\"old\"" } else { "\"new\"" };
        let mut reply = sent(request, &served[turn.min(1)], Some(tag));
        if turn == 0 {
            reply.body.truncate(20_000);
        }
        reply
    });
    let notes = Desk::new().succeeds(&set(Length::About(100_000), None), &server, &HASTE);
    assert_eq!(server.requests()[1].header("if-range"), Some("\"old\""));
    // `sha256sum` of the file is what a person can compare with somebody else's.
    let Checksum::Sha256(digits) = sha256(&new) else { panic!("sha256") };
    assert!(notes.iter().any(|n| n.contains("no checksum is published") && n.contains(digits)));
}

#[test]
fn without_a_name_for_the_version_or_a_checksum_nothing_is_resumed() {
    let body = honest();
    for tag in [None, Some("W/\"weak\"")] {
        let served = body.clone();
        let server = Server::start(move |request, turn| {
            let mut reply = sent(request, &served, tag);
            if turn == 0 {
                reply.body.truncate(20_000);
            }
            reply
        });
        Desk::new().succeeds(&set(Length::About(100_000), None), &server, &HASTE);
        assert_eq!(server.requests()[1].header("range"), None);
    }
}

#[test]
fn a_file_that_had_arrived_is_not_asked_for_twice() {
    let body = honest();
    let served = body.clone();
    let server = Server::start(move |request, _| sent(request, &served, Some("\"v1\"")));
    let desk = Desk::new();
    fs::create_dir(desk.archive("")).expect("made");
    fs::write(desk.archive("set.tar.gz.part"), &body).expect("written");
    desk.succeeds(&published(&body), &server, &ONCE);
    assert_eq!(server.requests().len(), 1);
    assert_eq!(
        server.requests()[0].header("range"),
        Some(format!("bytes={}-", body.len()).as_str())
    );
    // More than the file has: begun anew.
    let desk = Desk::new();
    fs::create_dir(desk.archive("")).expect("made");
    fs::write(desk.archive("set.tar.gz.part"), noise(body.len() + 1)).expect("written");
    desk.succeeds(&published(&body), &server, &HASTE);
}

#[test]
fn another_file_than_the_published_one_is_not_kept() {
    let body = honest();
    let mut other = body.clone();
    other[5000] ^= 1;
    let (served, wanted) = (other.clone(), published(&body));
    let server = Server::start(move |request, _| sent(request, &served, Some("\"v1\"")));
    let desk = Desk::new();
    let text = desk.fails(&wanted, &server, &HASTE, 6);
    for bytes in [&body, &other] {
        let Checksum::Sha256(digits) = sha256(bytes) else { panic!("sha256") };
        assert!(text.contains(digits), "{text}");
    }
    assert!(desk.kept().is_empty());
    // `printf abc | md5sum`, and the same file under a wrong one.
    let abc = "900150983cd24fb0d6963f7d28e17f72";
    for (digits, code) in [(abc, None), ("00000000000000000000000000000000", Some(6))] {
        let archive = Archive {
            file: "abc",
            urls: &[],
            bytes: Length::Exact(3),
            checksum: Some(Checksum::Md5(digits)),
            place: Place::Whole,
        };
        let server = Server::start(|_, _| Reply::ok(b"abc"));
        let desk = Desk::new();
        let (fetched, _) = desk.fetch(&of(vec![archive]), Some(&server.url), &ONCE);
        assert_eq!(fetched.err().map(|e| e.exit_code()), code);
        assert_eq!(fs::read(desk.to().join("abc")).ok(), code.is_none().then(|| b"abc".to_vec()));
    }
}

#[test]
fn a_file_of_another_length_is_refused_before_it_is_downloaded() {
    let body = honest();
    for served in [&body[1..], &[body.clone(), vec![0]].concat()[..]] {
        let (served, length) = (served.to_vec(), served.len());
        let server = Server::start(move |request, _| sent(request, &served, None));
        let desk = Desk::new();
        let text = desk.fails(&published(&body), &server, &HASTE, 1);
        let said = format!("a file of {length} bytes; the published one has {}", body.len());
        assert!(text.contains(&said) && desk.kept().is_empty(), "{text}");
    }
    // One that does not say its length is cut off where the file should end.
    let endless = Server::start(|_, _| Reply::chunked(&noise(1 << 20)));
    let desk = Desk::new();
    let text = desk.fails(&published(&body), &endless, &HASTE, 1);
    assert!(text.contains("sends more than the file has"), "{text}");
    assert!(
        fs::metadata(desk.archive("set.tar.gz.part")).expect("kept").len() <= body.len() as u64
    );
    let served = body.clone();
    let chunked = Server::start(move |_, _| Reply::chunked(&served));
    Desk::new().succeeds(&published(&body), &chunked, &HASTE);
}

#[test]
fn what_the_server_does_not_have_is_to_be_downloaded_by_hand() {
    let body = honest();
    let server = Server::start(|_, _| Reply::status("404 Not Found"));
    let desk = Desk::new();
    let text = desk.fails(&published(&body), &server, &HASTE, 1);
    assert_eq!(server.requests().len(), 1, "asking again does not help");
    let folder = desk.archive("");
    for part in [
        "The Set cannot be downloaded now",
        "404 Not Found",
        "https://example.org/",
        folder.to_str().expect("text").trim_end_matches('/'),
        &format!("set.tar.gz  {} bytes  sha256 ", body.len()),
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert!(!text.contains("goes on from there"), "{text}");
    // Nobody listens there.
    let url = format!("http://{}", server::unused_address());
    let (refused, _) = desk.fetch(&published(&body), Some(&url), &HASTE);
    assert_eq!(refused.expect_err("refused").exit_code(), 1);
    fs::write(desk.archive("set.tar.gz"), &body).expect("put there by hand");
    desk.succeeds(&published(&body), &server, &HASTE);
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_server_in_trouble_is_asked_again_and_a_redirect_followed() {
    let body = honest();
    let served = body.clone();
    let server = Server::start(move |request, turn| match turn {
        0 => Reply::status("503 Service Unavailable"),
        _ if request.path == "/set.tar.gz" => Reply::redirect("/elsewhere/x"),
        1 | 2 => {
            let mut reply = sent(request, &served, Some("\"v1\""));
            reply.body.truncate(3000);
            reply
        }
        _ => sent(request, &served, Some("\"v1\"")),
    });
    Desk::new().succeeds(&published(&body), &server, &HASTE);
    let asked: Vec<(String, Option<String>)> = server
        .requests()
        .iter()
        .map(|request| (request.path.clone(), request.header("range").map(str::to_owned)))
        .collect();
    let range = Some("bytes=3000-".to_owned());
    let expected = [
        ("/set.tar.gz".to_owned(), None),
        ("/set.tar.gz".to_owned(), None),
        ("/elsewhere/x".to_owned(), None),
        ("/set.tar.gz".to_owned(), range.clone()),
        ("/elsewhere/x".to_owned(), range),
    ];
    assert_eq!(asked, expected);
    let troubled = Server::start(|_, _| Reply::status("500 Internal Server Error"));
    Desk::new().fails(&published(&body), &troubled, &HASTE, 1);
    assert_eq!(troubled.requests().len(), 3);
}

#[test]
fn the_second_address_serves_where_the_first_does_not() {
    let served = honest();
    let good = Server::start(move |request, _| sent(request, &served, None));
    let bad = Server::start(|_, _| Reply::status("410 Gone"));
    let urls = [&bad, &good].map(|server| leaked(format!("{}/set.tar.gz", server.url)));
    let mut archive = published(&honest()).archives[0];
    archive.urls = Box::leak(Box::new(urls));
    let desk = Desk::new();
    let (fetched, _) = desk.fetch(&of(vec![archive]), None, &ONCE);
    assert_eq!(fetched.expect("fetched").archives, desk.archive("").join(""));
    assert_eq!((bad.requests().len(), good.requests().len()), (1, 1));
}

#[test]
fn nothing_that_is_there_is_overwritten() {
    let body = honest();
    let served = body.clone();
    let server = Server::start(move |request, _| sent(request, &served, None));
    let desk = Desk::new();
    fs::create_dir(desk.to()).expect("made");
    fs::write(desk.to().join("mine"), "years of work").expect("written");
    let (refused, _) = desk.fetch(&published(&body), Some(&server.url), &ONCE);
    assert_eq!(refused.expect_err("taken").exit_code(), 2);
    assert_eq!(fs::read_dir(desk.to()).expect("there").count(), 1);
    fs::remove_file(desk.to().join("mine")).expect("removed");
    desk.succeeds(&published(&body), &server, &ONCE);

    let desk = Desk::new();
    fs::create_dir(desk.archive("")).expect("made");
    fs::write(desk.archive("set.tar.gz"), "something else").expect("written");
    let text = desk.fails(&published(&body), &server, &ONCE, 6);
    assert!(text.contains("has 14 bytes") && text.contains("move it away"), "{text}");
    assert_eq!(fs::read(desk.archive("set.tar.gz")).expect("there"), b"something else");

    let denied = || std::io::Error::from(std::io::ErrorKind::PermissionDenied);
    let text = broken("create", Path::new("x"), denied()).to_string();
    assert!(text.contains("with --to"), "{text}");
    assert!(!broken("read", Path::new("x"), denied()).to_string().contains("--to"));
    for nowhere in [".", "..", "/", ""] {
        assert_eq!(check_free(Path::new(nowhere)).expect_err("refused").exit_code(), 2);
    }
    assert_eq!(archives_folder(Path::new("a/b/")), Path::new("a/b-archives"));
    let held = lock(&desk.archive("")).expect("free");
    assert!(desk.fails(&published(&body), &server, &ONCE, 1).contains("another fewvit"));
    drop(held);
    lock(&desk.archive("")).expect("free again");
}
