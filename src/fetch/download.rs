//! One file over HTTP, going on where an earlier attempt stopped.
//!
//! The bytes gather in `FILE.part`. Beside it `FILE.part.tag` keeps what the server called this
//! version of the file (its strong ETag, else its date): with `If-Range` the server goes on from
//! there only if the file is still the same one, and otherwise sends it whole.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ureq::Agent;
use ureq::http::{HeaderMap, Response, StatusCode};

use super::{Patience, Tell, Told, broken};
use crate::data::catalog::Archive;
use crate::error::Result;

/// What is to be downloaded.
pub(super) struct Wanted<'a> {
    /// Where it is.
    pub url: &'a str,
    /// What is known of it.
    pub archive: &'a Archive,
    /// Where its bytes gather.
    pub part: &'a Path,
}

/// Why an attempt did not bring the rest of the file.
enum Failure {
    /// It can help to try again.
    Passing(String),
    /// This address does not have the file.
    Final(String),
    /// The disk, not the network.
    Local(crate::error::Error),
}

/// Downloads until the file is complete; the inner error says why this address does not give it.
///
/// # Errors
/// [`crate::error::Error::Io`] if the part cannot be written.
pub(super) fn download(
    wanted: &Wanted,
    patience: &Patience,
    tell: &mut Tell,
) -> Result<std::result::Result<(), String>> {
    let agent = agent(patience);
    let (mut fruitless, mut pause) = (0, patience.pause);
    loop {
        let before = size(wanted.part);
        let failure = match attempt(&agent, wanted, tell) {
            Ok(()) => {
                // The tag has served; a server may have sent none.
                let _ = fs::remove_file(tag_path(wanted.part));
                return Ok(Ok(()));
            }
            Err(failure) => failure,
        };
        let came = size(wanted.part) > before;
        let why = match failure {
            Failure::Local(error) => return Err(error),
            Failure::Final(why) => return Ok(Err(why)),
            Failure::Passing(why) => why,
        };
        if came {
            (fruitless, pause) = (0, patience.pause);
        }
        fruitless += 1;
        if fruitless >= patience.attempts {
            return Ok(Err(why));
        }
        tell(Told::Note(&format!("{}: {why}; trying again", wanted.archive.file)));
        std::thread::sleep(pause);
        pause *= 2;
    }
}

fn agent(patience: &Patience) -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(Duration::from_secs(30)))
        .timeout_per_read(Some(patience.silence))
        .user_agent(concat!("fewvit/", env!("CARGO_PKG_VERSION")));
    // The tests' server is on this machine, where no proxy leads.
    #[cfg(test)]
    let config = config.proxy(None);
    config.build().new_agent()
}

/// Asks for what is missing and appends what comes.
fn attempt(agent: &Agent, wanted: &Wanted, tell: &mut Tell) -> std::result::Result<(), Failure> {
    let tag_path = tag_path(wanted.part);
    let tag = fs::read_to_string(&tag_path).ok().filter(|tag| !tag.is_empty());
    // Without a tag only a checksum can tell whether two halves belong together.
    let resumable = tag.is_some() || wanted.archive.checksum.is_some();
    let have = if resumable { size(wanted.part) } else { 0 };
    let mut request = agent.get(wanted.url).header("Accept-Encoding", "identity");
    if have > 0 {
        request = request.header("Range", format!("bytes={have}-"));
        if let Some(tag) = &tag {
            request = request.header("If-Range", tag);
        }
    }
    let response = request.call().map_err(unanswered)?;
    let (from, total) = match response.status() {
        StatusCode::OK => (0, response.body().content_length()),
        StatusCode::PARTIAL_CONTENT => match content_range(response.headers()) {
            Some((Some(from), total)) if from == have => (from, total),
            _ => return restart(wanted, "the server sent another part than it was asked for"),
        },
        // All is there already, or the file has become shorter.
        StatusCode::RANGE_NOT_SATISFIABLE if have > 0 => {
            return match content_range(response.headers()) {
                Some((None, Some(total))) if total == have => Ok(()),
                _ => restart(wanted, "the server's file has changed"),
            };
        }
        status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
            return Err(Failure::Passing(format!("the server answers {status}")));
        }
        status => return Err(Failure::Final(format!("the server answers {status}"))),
    };
    if let (Some(total), Some(expected)) = (total, wanted.archive.bytes.exact())
        && total != expected
    {
        return Err(Failure::Final(format!(
            "the server has a file of {total} bytes; the published one has {expected}"
        )));
    }
    let file = open(wanted.part, &tag_path, from, response.headers())
        .map_err(|e| Failure::Local(broken("write", wanted.part, e)))?;
    receive(response, file, wanted, from, total, tell)
}

/// Why there is no answer, and whether one can come in a minute.
fn unanswered(error: ureq::Error) -> Failure {
    use std::io::ErrorKind::{ConnectionRefused, HostUnreachable, InvalidData, NetworkUnreachable};
    // InvalidData is a certificate that does not hold.
    let lasting = [ConnectionRefused, HostUnreachable, NetworkUnreachable, InvalidData];
    let unknown = "the name of the server cannot be looked up; are you online?";
    match error {
        ureq::Error::HostNotFound => Failure::Final(unknown.into()),
        // The system's own words for a name server that does not answer.
        ureq::Error::Io(e) if e.to_string().contains("lookup address") => {
            Failure::Passing(unknown.into())
        }
        ureq::Error::Io(e) if lasting.contains(&e.kind()) => Failure::Final(e.to_string()),
        ureq::Error::BadUri(_)
        | ureq::Error::Http(_)
        | ureq::Error::TooManyRedirects
        | ureq::Error::Tls(_)
        | ureq::Error::Rustls(_) => Failure::Final(error.to_string()),
        error => Failure::Passing(error.to_string()),
    }
}

/// Forgets what has arrived, so that the next attempt asks for the whole file.
fn restart(wanted: &Wanted, why: &str) -> std::result::Result<(), Failure> {
    if wanted.part.exists() {
        let remove = fs::remove_file(wanted.part);
        remove.map_err(|e| Failure::Local(broken("remove", wanted.part, e)))?;
    }
    Err(Failure::Passing(why.to_owned()))
}

/// The part, to be written from byte `from` on; a new one gets the tag of this version.
fn open(part: &Path, tag_path: &Path, from: u64, headers: &HeaderMap) -> std::io::Result<File> {
    if from > 0 {
        return OpenOptions::new().append(true).open(part);
    }
    // In this order, so that no moment has old bytes under a new tag.
    let file = File::create(part)?;
    fs::write(tag_path, tag(headers).unwrap_or_default())?;
    Ok(file)
}

/// What the server calls this version of the file, if that can be relied on byte for byte.
fn tag(headers: &HeaderMap) -> Option<&str> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    text("etag").filter(|tag| tag.starts_with('"')).or_else(|| text("last-modified"))
}

/// Writes what comes to the part, up to the end of the file.
fn receive(
    response: Response<ureq::Body>,
    mut file: File,
    wanted: &Wanted,
    from: u64,
    total: Option<u64>,
    tell: &mut Tell,
) -> std::result::Result<(), Failure> {
    let local = |e| Failure::Local(broken("write", wanted.part, e));
    let most = total.or(wanted.archive.bytes.exact());
    let mut body = response.into_body().into_reader();
    let mut block = vec![0; 1 << 17];
    let mut done = from;
    loop {
        let read = body.read(&mut block);
        let read = read.map_err(|e| Failure::Passing(format!("the connection broke ({e})")))?;
        if read == 0 {
            break;
        }
        done += read as u64;
        if most.is_some_and(|most| done > most) {
            return Err(Failure::Final("the server sends more than the file has".into()));
        }
        file.write_all(&block[..read]).map_err(local)?;
        tell(Told::Progress { what: "downloading", file: wanted.archive.file, done, total: most });
    }
    if most.is_some_and(|most| done < most) {
        return Err(Failure::Passing("the connection broke".into()));
    }
    file.sync_all().map_err(local)
}

/// `bytes 100-999/1000` and `bytes */1000`: the first byte and the length of the whole file.
fn content_range(headers: &HeaderMap) -> Option<(Option<u64>, Option<u64>)> {
    let text = headers.get("content-range")?.to_str().ok()?;
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let from = range.split_once('-').and_then(|(from, _)| from.trim().parse().ok());
    Some((from, total.trim().parse().ok()))
}

/// Bytes at `path`; none if nothing is there.
fn size(path: &Path) -> u64 {
    path.metadata().map_or(0, |metadata| metadata.len())
}

fn tag_path(part: &Path) -> PathBuf {
    let mut path = part.as_os_str().to_owned();
    path.push(".tag");
    path.into()
}
