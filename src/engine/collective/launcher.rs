//! Whether a launcher such as mpirun started this process as one of many.

use std::sync::{Arc, PoisonError, RwLock};

use super::{Collective, Single};
use crate::error::{Error, Result};

/// Variables in which launchers tell a process how many of it they started: Open MPI, MPICH and its
/// relatives, Slurm's srun.
const COPIES: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"];

/// The processes that this one was started with.
static RANKS: RwLock<Option<Arc<dyn Collective>>> = RwLock::new(None);

/// What [`start`] began. Dropping it waits for the other processes to come so far; in a panic it ends
/// them.
#[must_use]
pub struct Job(());

impl Drop for Job {
    fn drop(&mut self) {
        drop(RANKS.write().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// Connects this process with those that it was started with. To be called once, before [`ranks`], and
/// kept to the end of the program.
///
/// # Errors
/// [`Error::Usage`] if there are several but this program was built without MPI or its MPI cannot
/// connect them: each would train the whole model.
pub fn start() -> Result<Job> {
    if let Some((variable, copies)) = copies(|name| std::env::var(name).ok()) {
        let ranks = many(variable, copies)?;
        *RANKS.write().unwrap_or_else(PoisonError::into_inner) = Some(ranks);
    }
    Ok(Job(()))
}

/// The processes that train together: this one alone unless [`start`] found others.
pub fn ranks() -> Arc<dyn Collective> {
    let ranks = RANKS.read().unwrap_or_else(PoisonError::into_inner).clone();
    ranks.unwrap_or_else(|| Arc::new(Single))
}

/// The variable that names more than one process, and how many.
fn copies(variable: impl Fn(&str) -> Option<String>) -> Option<(&'static str, usize)> {
    let found = |name: &'static str| Some((name, variable(name)?.trim().parse().ok()?));
    COPIES.into_iter().filter_map(found).find(|&(_, copies)| copies > 1)
}

#[cfg(feature = "mpi")]
fn many(variable: &str, copies: usize) -> Result<Arc<dyn Collective>> {
    let mpi = super::Mpi::start()?;
    if mpi.size() == 1 {
        return Err(alone(
            variable,
            copies,
            "MPI connects none of them",
            "start it with the mpirun of the MPI that it was built with, or with \
             `srun --mpi=pmix`",
        ));
    }
    Ok(Arc::new(mpi))
}

#[cfg(not(feature = "mpi"))]
fn many(variable: &str, copies: usize) -> Result<Arc<dyn Collective>> {
    Err(alone(
        variable,
        copies,
        "it was built without MPI",
        "build it with `cargo build --release --features mpi` (docs/cluster.md)",
    ))
}

/// Copies that would not know of each other.
fn alone(variable: &str, copies: usize, why: &str, what_to_do: &str) -> Error {
    Error::Usage(format!(
        "fewvit was started {copies} times at once ({variable}={copies}), but {why}: \
         {copies} copies would train the same model {copies} times\n  {what_to_do}\n  \
         for {copies} separate runs, begin the command with `env -u {variable}`"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launcher_is_known_by_its_variable() {
        let with = |pairs: &'static [(&str, &str)]| {
            copies(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
        };
        assert_eq!(with(&[]), None);
        assert_eq!(with(&[("OMPI_COMM_WORLD_SIZE", "1")]), None);
        assert_eq!(with(&[("PMI_SIZE", "many")]), None);
        assert_eq!(with(&[("SLURM_STEP_NUM_TASKS", "8")]), Some(("SLURM_STEP_NUM_TASKS", 8)));
        // A batch script of Slurm that runs one program: the job's tasks are not its copies.
        assert_eq!(with(&[("SLURM_NTASKS", "8")]), None);
        // mpirun on one process within srun of one task, and within a larger job.
        let nested = &[("OMPI_COMM_WORLD_SIZE", "2"), ("SLURM_STEP_NUM_TASKS", "4")];
        assert_eq!(with(nested), Some(("OMPI_COMM_WORLD_SIZE", 2)));
    }

    #[test]
    fn copies_that_know_nothing_of_each_other_are_told_what_to_do() {
        let error = alone("PMI_SIZE", 4, "it was built without MPI", "build it");
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        for part in ["4 times", "PMI_SIZE=4", "built without MPI", "env -u PMI_SIZE"] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
    }
}
