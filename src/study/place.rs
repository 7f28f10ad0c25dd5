//! The folder of a study: its runs, what became of each, and who has which.
//!
//! Any number of processes on any number of machines work in one folder. A run is taken by locking a
//! file of its own; the system lets go of the lock when its process ends, however it ends.

use std::fs::{File, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::file::{Study, changes_model};
use super::grid::{Job, settings};
use crate::config::flatten;
use crate::error::{Error, Result};
use crate::files::write_json;
use crate::run::Folder;

/// What says that a folder is a study's.
const MARK: &str = "study.json";

/// The folder of a study.
#[derive(Debug)]
pub struct Place {
    root: PathBuf,
}

/// The mark's content.
#[derive(Serialize, Deserialize)]
struct Mark {
    study: String,
}

/// What became of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The job's, see [`Job::fingerprint`].
    pub fingerprint: String,
    /// How far it is.
    pub state: State,
}

/// How far a job is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Begun, and perhaps going on.
    Begun,
    /// Ended well.
    Done,
    /// Ended with an error.
    Failed {
        /// The error's text.
        reason: String,
        /// Its exit code.
        code: u8,
        /// Milliseconds since 1970; seconds in studies of earlier versions.
        at: u64,
    },
}

/// A job that is this process's until the value is dropped.
#[derive(Debug)]
pub struct Claim {
    _lock: File,
}

impl Place {
    /// The study's folder at `root`, made if it is not there.
    ///
    /// # Errors
    /// Somebody else's folder ([`Error::Usage`]), or one that cannot be written.
    pub fn open(root: &Path, study: &Study) -> Result<Self> {
        let mark = root.join(MARK);
        let occupied = |what: &str| {
            Err(Error::Usage(format!(
                "{} holds {what} and is left as it is\n  choose another --output",
                root.display()
            )))
        };
        if let Ok(text) = std::fs::read(&mark) {
            match serde_json::from_slice::<Mark>(&text) {
                Ok(found) if found.study == study.name => {}
                Ok(found) => return occupied(&format!("the study `{}`", found.study)),
                Err(_) => return occupied("something else"),
            }
            return Ok(Self { root: root.to_path_buf() });
        }
        let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
        // Of several processes that start at once, another may be writing the mark.
        let foreign = |entry: &std::fs::DirEntry| {
            !entry.file_name().to_string_lossy().starts_with(MARK) && entry.file_name() != STATE
        };
        if entries.into_iter().any(|entry| foreign(&entry)) {
            return occupied("something already");
        }
        Self::make(root, study)
    }

    /// The study's folder at `root`, which is this program's to write to.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn make(root: &Path, study: &Study) -> Result<Self> {
        let place = Self { root: root.to_path_buf() };
        let inner = root.join(STATE);
        std::fs::create_dir_all(&inner).map_err(|source| Error::io("create", &inner, source))?;
        // Through a file of this process's own: several may start at once.
        let own = inner.join(format!("mark-{}", std::process::id()));
        write_json(&own, &Mark { study: study.name.clone() })?;
        let mark = root.join(MARK);
        std::fs::rename(&own, &mark).map_err(|source| Error::io("write", &mark, source))?;
        Ok(place)
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The run folder of a job.
    pub fn run(&self, job: &Job) -> PathBuf {
        self.root.join(&job.name)
    }

    fn state(&self, job: &Job, ending: &str) -> PathBuf {
        self.root.join(STATE).join(format!("{}.{ending}", job.name.replace('/', ".")))
    }

    /// What became of a job; `None` before it is begun, for one whose run folder is gone, and for one that failed
    /// before it had a folder, with other settings.
    ///
    /// # Errors
    /// It was begun with other settings ([`Error::Usage`] naming them), or cannot be read.
    pub fn record(&self, job: &Job) -> Result<Option<Record>> {
        let path = self.state(job, "json");
        let text = match std::fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(|source| Error::io("read", &path, source))?,
        };
        let record: Record = serde_json::from_slice(&text)
            .map_err(|e| Error::Failed(format!("{} cannot be used: {e}", path.display())))?;
        if record.state == State::Done && !self.run(job).join("report.json").is_file() {
            return Ok(None);
        }
        if record.fingerprint != job.fingerprint {
            // Nothing of it is there to be kept.
            if matches!(record.state, State::Failed { .. }) && !self.run(job).exists() {
                return Ok(None);
            }
            return Err(Error::Usage(format!(
                "{} was begun with {}\n  choose another --output, or put them back",
                self.run(job).display(),
                match self.differences(job) {
                    None => "other settings, or by another version of fewvit".to_owned(),
                    Some(differences) => format!("other settings: {differences}"),
                }
            )));
        }
        Ok(Some(record))
    }

    /// Settings in which the run folder of a job differs from it, in words; `None` if there are none, or no folder.
    fn differences(&self, job: &Job) -> Option<String> {
        let begun = Folder::open(&self.run(job)).and_then(|folder| folder.read_settings());
        let (begun, now) = (flatten(begun.ok()?), settings(&job.config).ok()?);
        let was = |key: &str| begun.iter().find(|(k, _)| k == key).map(|(_, v)| v.to_string());
        let rows =
            now.into_iter().filter(|(key, _)| changes_model(key)).filter_map(|(key, value)| {
                let was = was(&key)?;
                (was != value.to_string()).then(|| format!("{key} {was}, now {value}"))
            });
        let rows: Vec<String> = rows.take(5).collect();
        (!rows.is_empty()).then(|| rows.join("; "))
    }

    /// Writes down what became of a job.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write(&self, job: &Job, state: State) -> Result<()> {
        let record = Record { fingerprint: job.fingerprint.clone(), state };
        write_json(&self.state(job, "json"), &record)
    }

    /// Takes a job for this process; `None` if another has it.
    ///
    /// # Errors
    /// The folder cannot be written, or its file system has no locks.
    pub fn claim(&self, job: &Job) -> Result<Option<Claim>> {
        let path = self.state(job, "lock");
        let failed = |source| Error::io("write", &path, source);
        let options =
            File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = options.map_err(failed)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => {
                return Err(Error::Failed(format!(
                    "the file system of {} has no locks ({e}), so processes would take each other's \
                     cells\n  give the study a folder on another one with --output",
                    self.root.display()
                )));
            }
            Ok(()) => {}
        }
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let holder = format!("process {} on {}\n", std::process::id(), host.trim());
        file.set_len(0).and_then(|()| file.write_all(holder.as_bytes())).map_err(failed)?;
        Ok(Some(Claim { _lock: file }))
    }

    /// Waits until no other process writes what all of them share, and keeps it so until the value
    /// is dropped.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn alone(&self) -> Result<Claim> {
        let path = self.root.join(STATE).join("shared.lock");
        let options = File::options().write(true).create(true).truncate(false).open(&path);
        let held = options.and_then(|file| file.lock().map(|()| Claim { _lock: file }));
        held.map_err(|source| Error::io("write", &path, source))
    }

    /// Whether a job ended well.
    ///
    /// # Errors
    /// As [`Self::record`].
    pub fn is_done(&self, job: &Job) -> Result<bool> {
        Ok(self.record(job)?.is_some_and(|record| record.state == State::Done))
    }

    /// Who had a job last: `process 7 on host`. Whether it still does is not asked: a look at the lock
    /// would keep others from taking it.
    pub fn holder(&self, job: &Job) -> Option<String> {
        let text = std::fs::read_to_string(self.state(job, "lock")).ok()?;
        Some(text.trim().to_owned()).filter(|holder| !holder.is_empty())
    }
}

/// The folder of records and locks.
const STATE: &str = "state";

/// Milliseconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Layers;
    use crate::study::{Choices, Grid};

    fn study(name: &str) -> Study {
        let text =
            format!("name = '{name}'\n[[data]]\nname = 'a'\n[[rows]]\nname = 'x'\nfrom = 'random'");
        Study::parse(&text, Path::new("mine.toml")).expect("a study")
    }

    fn job() -> Job {
        let grid = Grid::new(&study("mine"), &Choices::default(), &Layers::new).expect("a grid");
        grid.jobs[0].clone()
    }

    #[test]
    fn a_job_belongs_to_one_at_a_time_and_is_free_when_that_one_is_gone() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = Place::open(&folder.path().join("out"), &study("mine")).expect("a new folder");
        let first = place.claim(&job()).expect("locks");
        assert!(first.is_some() && place.claim(&job()).expect("locks").is_none());
        let holder = place.holder(&job()).expect("a name");
        assert!(holder.starts_with(&format!("process {} on ", std::process::id())), "{holder}");
        drop(first);
        assert!(place.claim(&job()).expect("locks").is_some());
    }

    #[test]
    fn records_are_of_the_same_job_and_of_runs_that_are_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = Place::open(&folder.path().join("out"), &study("mine")).expect("a new folder");
        let state = |place: &Place| place.record(&job()).expect("readable").map(|r| r.state);
        assert_eq!(state(&place), None);
        place.write(&job(), State::Begun).expect("written");
        assert_eq!(state(&place), Some(State::Begun));
        place.write(&job(), State::Done).expect("written");
        assert_eq!(state(&place), None, "its run folder is gone");
        std::fs::create_dir_all(place.run(&job())).expect("made");
        std::fs::write(place.run(&job()).join("report.json"), "{}").expect("written");
        assert_eq!(state(&place), Some(State::Done));
        let other = Job { fingerprint: "other".to_owned(), ..job() };
        let error = place.record(&other).expect_err("another job");
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("begun with other settings"), "{error}");

        let failed = State::Failed { reason: "no data".to_owned(), code: 3, at: 0 };
        place.write(&job(), failed.clone()).expect("written");
        assert!(place.record(&other).is_err(), "its run folder is kept");
        std::fs::remove_dir_all(place.run(&job())).expect("removed");
        assert_eq!(place.record(&other).expect("readable"), None);
        assert_eq!(state(&place), Some(failed));
    }

    #[test]
    fn only_a_folder_of_the_same_study_is_taken() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join("out");
        Place::open(&root, &study("mine")).expect("a new folder");
        Place::open(&root, &study("mine")).expect("the same again");
        let error = Place::open(&root, &study("other")).expect_err("another study");
        assert!(error.to_string().contains("holds the study `mine`"), "{error}");
        std::fs::write(folder.path().join("thesis.txt"), "years of work").expect("written");
        let error = Place::open(folder.path(), &study("mine")).expect_err("somebody else's");
        assert!(error.to_string().contains("left as it is"), "{error}");
    }
}
