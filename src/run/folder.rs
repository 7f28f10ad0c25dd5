//! The run folder: where each file is, and that nothing in it is ever overwritten by another run.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Environment, Request};
use crate::config::RunConfig;
use crate::data::SplitOrigin;
use crate::data::digest::Digest;
use crate::error::{Error, Result};
use crate::files::{self, DAMAGED, RUN, write_atomically};
use crate::report::facts::Decided;

/// A run's folder. Only one process at a time has it to write to.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    /// Locked for as long as this process may write.
    lock: Option<File>,
    /// Whether the folder is deleted when this value is dropped.
    scratch: bool,
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.scratch {
            // What is left in the system's temporary folder is the system's to remove.
            let _ = std::fs::remove_dir_all(&self.root);
        }
    }
}

/// What a run found when it began, beside what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Name of the data set.
    pub data_name: String,
    /// Where its splits came from.
    pub split_origin: SplitOrigin,
    /// Held-out images that the run whose weights this one starts from was trained on.
    pub seen_before: usize,
    /// What its time allowed.
    #[serde(default)] // absent in runs of earlier versions
    pub decided: Decided,
}

/// `run.json`.
#[derive(Serialize, Deserialize)]
struct RunFile<R, F> {
    #[serde(flatten)]
    request: R,
    /// Runs of earlier versions lack it.
    #[serde(default = "Option::default")]
    found: Option<F>,
    /// Digests of the files that must stay as they are, by name.
    #[serde(default)]
    files: BTreeMap<String, String>,
}

/// How the names of [`Folder::scratch`] begin; they end with the number of their process.
const SCRATCH: &str = "fewvit-rank-";

/// Removes the scratch folders of processes that were killed.
fn remove_left_over(place: &Path) {
    for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix(SCRATCH).and_then(|rest| rest.split('-').nth(1));
        let process = process.and_then(|number| number.parse::<u32>().ok());
        let gone = |process: u32| {
            Path::new("/proc/self").exists() && !Path::new(&format!("/proc/{process}")).exists()
        };
        if process.is_some_and(gone) {
            // Somebody else's may stay.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Files that must be as they were when the run began.
const PINNED: [&str; 3] = ["config.toml", "splits.csv", "classes.txt"];

impl Folder {
    /// A new folder at `output`, or the first free `runs/NAME-1`, `runs/NAME-2`, ...; no other
    /// process gets the same one.
    ///
    /// # Errors
    /// `output` holds something already ([`Error::Usage`]), or cannot be made.
    pub fn create(output: Option<&Path>, name: &str) -> Result<Self> {
        let root = match output {
            Some(path) => claim(path)?.ok_or_else(|| occupied(path))?,
            None => {
                let numbered = |n: usize| PathBuf::from(format!("runs/{name}-{n}"));
                let mut free = (1..).map(numbered).filter(|path| !path.exists());
                loop {
                    let Some(path) = free.next() else { return Err(occupied(Path::new("runs"))) };
                    if let Some(root) = claim(&path)? {
                        break root;
                    }
                }
            }
        };
        let checkpoints = root.join("checkpoints");
        std::fs::create_dir_all(&checkpoints)
            .map_err(|source| Error::io("create", &checkpoints, source))?;
        let mut folder = Self { root, lock: None, scratch: false };
        folder.lock()?;
        Ok(folder)
    }

    /// Whether a new run may be put at `output`, asked before the work of preparing it.
    ///
    /// # Errors
    /// It holds something already ([`Error::Usage`]).
    pub fn check_free(output: &Path) -> Result<()> {
        if output.exists() && !is_empty(output) { Err(occupied(output)) } else { Ok(()) }
    }

    /// A folder for what a process other than the first of several writes: nobody reads it, and it
    /// goes with the value.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn scratch(rank: usize) -> Result<Self> {
        let place = std::env::temp_dir();
        remove_left_over(&place);
        let name = format!("{SCRATCH}{rank}-{}", std::process::id());
        let mut folder = Self::create(Some(&place.join(name)), "").map_err(|error| {
            Error::Failed(format!(
                "{error}\n  process {rank} keeps what it writes in the system's temporary folder; \
                 TMPDIR names another"
            ))
        })?;
        folder.scratch = true;
        Ok(folder)
    }

    /// A [`Self::scratch`] folder with what a process needs of this one to go on with its run.
    ///
    /// # Errors
    /// Something cannot be copied.
    pub fn copy_for(&self, rank: usize) -> Result<Self> {
        let copy = Self::scratch(rank)?;
        let names = ["metrics.jsonl", RUN, "config.toml"].map(|name| self.join(name));
        for from in names.into_iter().chain([self.pretrained()]).filter(|path| path.is_file()) {
            let to = copy.root.join(from.strip_prefix(&self.root).unwrap_or(&from));
            std::fs::copy(&from, &to).map_err(|source| Error::io("copy", &from, source))?;
        }
        Ok(copy)
    }

    /// The folder of an earlier run, to read from.
    ///
    /// # Errors
    /// There is no run in it.
    pub fn open(root: &Path) -> Result<Self> {
        match root.join(RUN).is_file() {
            true => Ok(Self { root: root.to_path_buf(), lock: None, scratch: false }),
            false => Err(Error::Usage(format!(
                "{} is no run folder: it has no run.json\n  `fewvit train` prints the folder of \
                 each run as it starts",
                root.display()
            ))),
        }
    }

    /// The run that a model belongs to: a run folder, its export folder, or a file in either or in
    /// `checkpoints/`; `None` for other models.
    pub fn around(model: &Path) -> Option<Self> {
        let model = model.canonicalize().ok()?;
        model.ancestors().take(3).find_map(|folder| Self::open(folder).ok())
    }

    /// Takes the folder for this process until the value is dropped.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the process that has it.
    pub fn lock(&mut self) -> Result<()> {
        let path = self.root.join(LOCK);
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = file.map_err(|source| Error::io("write", &path, source))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                let holder = std::fs::read_to_string(&path).unwrap_or_default();
                return Err(Error::Usage(format!(
                    "{} is being written to by {}\n  wait until it ends, or stop it, and try again",
                    self.root.display(),
                    if holder.is_empty() { "another process" } else { holder.trim() }
                )));
            }
            // Some network file systems have no locks; a new folder is exclusive there all the same.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let holder = format!("process {} on {}\n", std::process::id(), host.trim());
        let write = file.set_len(0).and_then(|()| file.write_all(holder.as_bytes()));
        write.map_err(|source| Error::io("write", &path, source))?;
        self.lock = Some(file);
        Ok(())
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A file in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Makes the folder of the checkpoints where somebody has deleted it.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make_checkpoints(&self) -> Result<()> {
        let folder = self.join("checkpoints");
        std::fs::create_dir_all(&folder).map_err(|source| Error::io("create", &folder, source))
    }

    /// Where training goes on from.
    pub fn checkpoint(&self) -> PathBuf {
        self.root.join("checkpoints/last.safetensors")
    }

    /// Weights at the end of pre-training.
    pub fn pretrained(&self) -> PathBuf {
        self.root.join("checkpoints/pretrained.safetensors")
    }

    /// The exported model.
    pub fn export(&self) -> PathBuf {
        self.root.join("export")
    }

    /// Writes `config.toml`, `env.json` and, last, `run.json`, which makes this a run.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write_request(
        &self,
        request: &Request,
        found: &Found,
        config: &RunConfig,
    ) -> Result<()> {
        self.write_settings(config)?;
        self.write_json("env.json", &Environment::here(config))?;
        self.write_run(request, found)
    }

    /// Writes `config.toml`, of whose content `run.json` then needs the digest.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write_settings(&self, config: &RunConfig) -> Result<()> {
        write_atomically(&self.join("config.toml"), crate::config::to_toml(config)?.as_bytes())
    }

    /// Writes `run.json`.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write_run(&self, request: &Request, found: &Found) -> Result<()> {
        let digest = |name: &str| Ok((name.to_owned(), Digest::of(self.read(name)?.as_bytes())));
        let there = PINNED.iter().filter(|name| self.join(name).is_file());
        let digests: Result<Vec<(String, Digest)>> = there.map(|name| digest(name)).collect();
        let files = digests?.into_iter().map(|(name, d)| (name, d.as_str().to_owned())).collect();
        self.write_json(RUN, &RunFile { request, found: Some(found), files })
    }

    /// Refuses to go on with a run whose settings or splits were edited: it would be another run.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the file.
    pub fn check_pinned(&self) -> Result<()> {
        for (name, digest) in self.read_run::<serde::de::IgnoredAny>()?.files {
            if Digest::of(self.read(&name)?.as_bytes()).as_str() != digest {
                return Err(Error::Usage(format!(
                    "{} was changed after the run began, and a run goes on as it is\n  put it back, or \
                     start a new run with it: fewvit train DATA -c {}",
                    self.join(&name).display(),
                    self.join("config.toml").display()
                )));
            }
        }
        Ok(())
    }

    /// What was asked for and the configuration it runs with.
    ///
    /// # Errors
    /// A file is missing or was changed into something else; settings of another version.
    pub fn read_request(&self) -> Result<(Request, RunConfig)> {
        let request = self.request()?;
        let config = toml::from_str(&self.read("config.toml")?).map_err(|e| {
            Error::Failed(format!(
                "{} does not fit this fewvit ({}): {e}\n  was the run made by another version? \
                 (env.json names it)",
                self.join("config.toml").display(),
                env!("CARGO_PKG_VERSION")
            ))
        })?;
        Ok((request, config))
    }

    /// What was asked for.
    ///
    /// # Errors
    /// `run.json` is missing or was changed into something else.
    pub fn request(&self) -> Result<Request> {
        Ok(self.read_run::<serde::de::IgnoredAny>()?.request)
    }

    /// Its settings as they stand in `config.toml`, those of other versions of fewvit included.
    ///
    /// # Errors
    /// The file is missing or no TOML.
    pub fn read_settings(&self) -> Result<toml::Table> {
        let misfit =
            |e| Error::Failed(format!("{} is no TOML: {e}", self.join("config.toml").display()));
        self.read("config.toml")?.parse().map_err(misfit)
    }

    /// What the run found when it began; `None` in runs of versions that did not write it down.
    ///
    /// # Errors
    /// `run.json` is missing or was changed into something else.
    pub fn read_found(&self) -> Result<Option<Found>> {
        Ok(self.read_run()?.found)
    }

    fn read_run<F: DeserializeOwned>(&self) -> Result<RunFile<Request, F>> {
        files::read_json(&self.join(RUN), DAMAGED)
    }

    /// The program and machine that the run began on; `None` if `env.json` is from a version that wrote other
    /// fields.
    ///
    /// # Errors
    /// `env.json` is missing.
    pub fn read_environment(&self) -> Result<Option<Environment>> {
        Ok(serde_json::from_str(&self.read("env.json")?).ok())
    }

    fn read(&self, name: &str) -> Result<String> {
        let path = self.join(name);
        std::fs::read_to_string(&path).map_err(|source| Error::io("read", &path, source))
    }

    /// Writes a value as JSON.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write_json(&self, name: &str, value: &impl serde::Serialize) -> Result<()> {
        files::write_json(&self.join(name), value)
    }
}

/// The file in a run's folder that is locked while somebody writes there. It is never removed: a
/// process that waits for it and one that makes it anew would both have it.
const LOCK: &str = ".lock";

/// Makes the folder `root`, or takes it if it is empty; `None` if it is somebody else's. Of two
/// processes at once only one gets it.
fn claim(root: &Path) -> Result<Option<PathBuf>> {
    let failed = |source| Error::io("create", root, source);
    if let Some(parent) = root.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    match std::fs::create_dir(root) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            if !is_empty(root) {
                return Ok(None);
            }
        }
        Err(e) => return Err(failed(e)),
    }
    match File::create_new(root.join(LOCK)) {
        Ok(_) => Ok(Some(root.to_path_buf())),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(None),
        Err(e) => Err(failed(e)),
    }
}

/// Whether it is a folder with nothing inside.
fn is_empty(root: &Path) -> bool {
    std::fs::read_dir(root).is_ok_and(|mut all| all.next().is_none())
}

fn occupied(root: &Path) -> Error {
    let what = if root.is_dir() { "holds something already" } else { "is no folder" };
    let go_on = match root.join(RUN).is_file() {
        true => format!(", or go on with that run: fewvit resume {}", root.display()),
        false => String::new(),
    };
    Error::Usage(format!(
        "{} {what} and is left as it is\n  choose another --output{go_on}",
        root.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_occupied_folder_is_left_alone() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("run");
        Folder::create(Some(&path), "x").expect("a new folder");
        let refused = |path: &Path| {
            let error = Folder::create(Some(path), "x").expect_err("it is occupied");
            assert_eq!(error.exit_code(), 2);
            let again = Folder::check_free(path).expect_err("it is occupied").to_string();
            assert_eq!(again, error.to_string());
            assert!(again.contains("left as it is\n  choose another --output"), "{again}");
            again
        };
        assert!(!refused(&path).contains("fewvit resume"), "there is no run to go on with");
        assert_eq!(Folder::open(&path).expect_err("no run.json").exit_code(), 2);
        std::fs::write(path.join(RUN), "{}").expect("written");
        assert!(refused(&path).contains(&format!("fewvit resume {}", path.display())));
        let file = folder.path().join("file");
        std::fs::write(&file, "mine").expect("written");
        let said = refused(&file);
        assert!(said.contains("is no folder") && !said.contains("fewvit resume"), "{said}");
    }

    #[test]
    fn an_empty_folder_is_taken_once_and_written_to_by_one() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("run");
        std::fs::create_dir(&path).expect("made");
        let start = std::sync::Barrier::new(8);
        let taken: Vec<_> = std::thread::scope(|scope| {
            let racer = || {
                start.wait();
                Folder::create(Some(&path), "x").ok()
            };
            let racers: Vec<_> = (0..8).map(|_| scope.spawn(racer)).collect();
            racers.into_iter().filter_map(|racer| racer.join().expect("no panic")).collect()
        });
        assert_eq!(taken.len(), 1);
        std::fs::write(path.join(RUN), "{}").expect("written");
        let mut second = Folder::open(&path).expect("a run");
        let error = second.lock().expect_err("the first has it").to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(taken);
        second.lock().expect("free again");
    }

    #[test]
    fn a_model_knows_its_run() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let root = folder.path().join("run");
        std::fs::create_dir_all(root.join("export")).expect("made");
        std::fs::write(root.join("export/model.onnx"), "").expect("written");
        assert!(Folder::around(&root).is_none());
        std::fs::write(root.join(RUN), "{}").expect("written");
        for inside in ["", "export", "export/model.onnx"] {
            let around = Folder::around(&root.join(inside)).expect(inside);
            assert_eq!(around.root(), root.canonicalize().expect("there"), "{inside}");
        }
    }
}
