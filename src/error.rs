//! One error type for the library. Each variant maps to an exit code of the command line
//! (0 ok, 1 failed, 2 usage or config, 3 data, 4 device or memory, 5 diverged,
//! 6 verification failed, 75 stopped by the system but resumable, 130 interrupted after a checkpoint).

use std::path::{Path, PathBuf};

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, in words for the person who typed the command: what, which file, what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A flag, a recipe key or a value that cannot be used. Exit code 2.
    #[error("{0}")]
    Usage(String),
    /// The images or labels cannot be used as they are. Exit code 3.
    #[error("{0}")]
    Data(String),
    /// The device is missing or lacks memory. Exit code 4.
    #[error("{0}")]
    Device(String),
    /// Training produced a loss that is not a number. Exit code 5.
    #[error("{0}")]
    Diverged(String),
    /// An exported or resumed artefact does not reproduce what it should. Exit code 6.
    #[error("{0}")]
    Verification(String),
    /// Stopped by the system after a checkpoint; `fewvit resume` goes on. Exit code 75.
    #[error("{0}")]
    Stopped(String),
    /// Stopped by Ctrl-C after a checkpoint; `fewvit resume` goes on. Exit code 130.
    #[error("{0}")]
    Interrupted(String),
    /// A file could not be read or written. Exit code 1.
    #[error("cannot {action} {}: {source}{}", path.display(), hint(action, source))]
    Io {
        /// `"read"`, `"write"`, `"create"` ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// Anything else that failed. Exit code 1.
    #[error("{0}")]
    Failed(String),
}

/// What `f` returns, or what it said when it panicked.
///
/// # Errors
/// The panic's message.
pub fn caught<T>(f: impl FnOnce() -> T) -> std::result::Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("it gave up").to_owned()
    })
}

impl Error {
    /// An I/O error with the action and the path it concerns.
    pub fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { action, path: path.to_path_buf(), source }
    }

    /// The exit code of the command line.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) | Self::Io { .. } => 1,
            Self::Usage(_) => 2,
            Self::Data(_) => 3,
            Self::Device(_) => 4,
            Self::Diverged(_) => 5,
            Self::Verification(_) => 6,
            Self::Stopped(_) => 75,
            Self::Interrupted(_) => 130,
        }
    }
}

/// What to do about the operating-system errors that people meet.
fn hint(action: &str, source: &std::io::Error) -> &'static str {
    use std::io::ErrorKind::{NotFound, PermissionDenied, ReadOnlyFilesystem, StorageFull};
    match (source.kind(), action) {
        (StorageFull, _) => {
            "\n  free some space, or choose a place on another disk; `fewvit resume RUN` goes on with a run that \
             stopped"
        }
        (PermissionDenied, "read") => "\n  you may not read it: change its permissions",
        (PermissionDenied, _) => {
            "\n  choose a place that you may write to, or change its permissions"
        }
        (ReadOnlyFilesystem, _) => {
            "\n  nothing can be written to that disk: choose a place elsewhere"
        }
        (NotFound, _) => "\n  check the spelling of the path",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;

    /// Runs have `--output`, `embed` has `--out`, decoded images have a setting: a hint names none of them.
    #[test]
    fn hints_fit_what_failed_and_whoever_asked_for_it() {
        use ErrorKind::{NotFound, PermissionDenied, ReadOnlyFilesystem, StorageFull};
        for (action, kind, hint) in [
            ("write", PermissionDenied, "choose a place that you may write to"),
            ("create", PermissionDenied, "choose a place that you may write to"),
            ("create", ReadOnlyFilesystem, "choose a place elsewhere"),
            ("write", StorageFull, "free some space"),
            ("read", PermissionDenied, "you may not read it: change its permissions"),
            ("read", NotFound, "check the spelling"),
        ] {
            let text = Error::io(action, Path::new("x"), kind.into()).to_string();
            assert!(text.contains(hint) && !text.contains("--"), "{text}");
            assert_eq!(text.contains("may write to"), hint.contains("may write to"), "{text}");
        }
    }
}
