//! The run folder: where each file is, and that nothing in it is ever overwritten by another run.

use std::path::{Path, PathBuf};

use super::Request;
use crate::config::RunConfig;
use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::train::parallel;

/// A run's folder.
#[derive(Clone, Debug)]
pub struct Folder {
    root: PathBuf,
}

impl Folder {
    /// A new folder at `output`, or the first free `runs/NAME-1`, `runs/NAME-2`, ...
    ///
    /// # Errors
    /// `output` holds something already ([`Error::Usage`]), or cannot be made.
    pub fn create(output: Option<&Path>, name: &str) -> Result<Self> {
        let root = match output {
            Some(path) => path.to_path_buf(),
            None => (1..)
                .map(|n| PathBuf::from(format!("runs/{name}-{n}")))
                .find(|path| !path.exists())
                .unwrap_or_default(),
        };
        let occupied = std::fs::read_dir(&root).is_ok_and(|mut entries| entries.next().is_some());
        if occupied || root.is_file() {
            return Err(Error::Usage(format!(
                "{} holds something already and is left as it is\n  \
                 choose another --output, or go on with that run: fewvit resume {0}",
                root.display()
            )));
        }
        let checkpoints = root.join("checkpoints");
        std::fs::create_dir_all(&checkpoints)
            .map_err(|source| Error::io("create", &checkpoints, source))?;
        Ok(Self { root })
    }

    /// The folder of an earlier run.
    ///
    /// # Errors
    /// There is no run in it.
    pub fn open(root: &Path) -> Result<Self> {
        match root.join("run.json").is_file() {
            true => Ok(Self { root: root.to_path_buf() }),
            false => Err(Error::Usage(format!(
                "{} is no run folder: it has no run.json\n  `fewvit train` prints the folder of \
                 each run as it starts",
                root.display()
            ))),
        }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A file in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.root.join(name)
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
    pub fn write_request(&self, request: &Request, config: &RunConfig) -> Result<()> {
        write_atomically(&self.join("config.toml"), crate::config::to_toml(config)?.as_bytes())?;
        let environment = serde_json::json!({
            "fewvit": env!("CARGO_PKG_VERSION"),
            "os": std::env::consts::OS,
            "arch": std::env::consts::ARCH,
            "simd": fewvit_kernels::simd_level(),
            "products": parallel::precision(config.amp_dtype).name(),
            "threads": super::threads(config),
            "working_directory": std::env::current_dir().ok(),
        });
        self.write_json("env.json", &environment)?;
        self.write_json("run.json", request)
    }

    /// What was asked for and the configuration it runs with.
    ///
    /// # Errors
    /// A file is missing or was changed into something else.
    pub fn read_request(&self) -> Result<(Request, RunConfig)> {
        let read = |name: &str| {
            let path = self.join(name);
            std::fs::read_to_string(&path).map_err(|source| Error::io("read", &path, source))
        };
        let misfit = |name: &str, e: &dyn std::fmt::Display| {
            Error::Failed(format!("{} cannot be used: {e}", self.join(name).display()))
        };
        let request =
            serde_json::from_str(&read("run.json")?).map_err(|e| misfit("run.json", &e))?;
        let config =
            toml::from_str(&read("config.toml")?).map_err(|e| misfit("config.toml", &e))?;
        Ok((request, config))
    }

    /// Writes a value as JSON.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write_json(&self, name: &str, value: &impl serde::Serialize) -> Result<()> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|e| Error::Failed(format!("cannot write {name}: {e}")))?;
        write_atomically(&self.join(name), text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_occupied_folder_is_left_alone() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("run");
        Folder::create(Some(&path), "x").expect("a new folder");
        let error = Folder::create(Some(&path), "x").expect_err("it is occupied now");
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("fewvit resume"), "{error}");
        assert_eq!(Folder::open(&path).expect_err("no run.json").exit_code(), 2);
    }
}
