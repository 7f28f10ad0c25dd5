//! Checkpoints that survive `kill -9`: one safetensors file with weights, moments and progress,
//! written beside the old one, flushed to the disk and renamed over it. The previous one is kept.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorInfo};
use serde::{Deserialize, Serialize};

use crate::engine::{Progress, TrainState};
use crate::error::{Error, Result};
use crate::method::StateTensor;
use crate::nn::ParamSpec;
use crate::weights::{TensorFile, ToWrite, from_le_bytes, write_tensors};

/// Which stage a checkpoint belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StageName {
    /// Stage 1.
    Pretrain,
    /// Stage 2.
    Finetune,
}

impl StageName {
    /// As written in logs and file names.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pretrain => "pretrain",
            Self::Finetune => "finetune",
        }
    }
}

const PARAM: &str = "param.";
const FIRST_MOMENT: &str = "adamw.m.";
const SECOND_MOMENT: &str = "adamw.v.";
const AVERAGE: &str = "ema.";
const TEACHER: &str = "teacher.";
const MEMORY: &str = "state.";

/// The checkpoint before `path`'s last one.
pub fn previous(path: &Path) -> PathBuf {
    path.with_extension("previous.safetensors")
}

/// Writes `state` to `path` and keeps what was there as [`previous`].
///
/// # Errors
/// As [`write_tensors`].
pub fn save(path: &Path, stage: StageName, state: &TrainState) -> Result<()> {
    let metadata = metadata(stage, state)?;
    if path.exists() {
        // A hard link, so that `path` itself is never absent.
        let old = previous(path);
        let _ = std::fs::remove_file(&old);
        std::fs::hard_link(path, &old)
            .or_else(|_| std::fs::copy(path, &old).map(|_| ()))
            .map_err(|source| Error::io("keep the previous checkpoint as", &old, source))?;
    }
    write_tensors(path, tensors(state), Some(metadata))
}

fn tensors(state: &TrainState) -> Vec<ToWrite<'_>> {
    let mut tensors: Vec<ToWrite> = Vec::new();
    let vectors = [
        (PARAM, Some(&state.values)),
        (FIRST_MOMENT, Some(&state.m)),
        (SECOND_MOMENT, Some(&state.v)),
        (AVERAGE, state.ema.as_ref()),
        (TEACHER, state.teacher.as_ref()),
    ];
    for (prefix, values) in vectors {
        let Some(values) = values else { continue };
        for spec in &state.specs {
            let values = &values[spec.range.clone()];
            tensors.push((format!("{prefix}{}", spec.key), &spec.shape, values));
        }
    }
    for (key, tensor) in &state.memory {
        tensors.push((format!("{MEMORY}{key}"), &tensor.shape, &tensor.values));
    }
    tensors
}

fn metadata(stage: StageName, state: &TrainState) -> Result<HashMap<String, String>> {
    let keys: Vec<_> = state.specs.iter().map(|spec| spec.key.as_str()).collect();
    let frozen: Vec<_> = state.specs.iter().map(|spec| spec.frozen).collect();
    let mut metadata = HashMap::from([
        ("stage".to_owned(), stage.as_str().to_owned()),
        ("progress".to_owned(), json(&state.progress)?),
        ("keys".to_owned(), json(&keys)?),
        ("frozen".to_owned(), json(&frozen)?),
        ("encoder".to_owned(), json(&state.encoder)?),
    ]);
    if !state.tuned.algorithms.is_empty() {
        metadata.insert("tuned".to_owned(), json(&state.tuned)?);
    }
    Ok(metadata)
}

/// Reads the checkpoint at `path`, or the previous one where that does not verify; `None` where
/// there is neither.
///
/// # Errors
/// A checkpoint is there, but none can be used.
pub fn load(path: &Path) -> Result<Option<(StageName, TrainState)>> {
    let candidates = [path.to_path_buf(), previous(path)];
    let mut failure = None;
    for candidate in candidates.iter().filter(|p| p.exists()) {
        match read(candidate) {
            Ok(found) => return Ok(Some(found)),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    failure.map_or(Ok(None), Err)
}

fn read(path: &Path) -> Result<(StageName, TrainState)> {
    let damaged = |why: String| {
        Error::Failed(format!(
            "the checkpoint {} cannot be used: {why}\n  take another copy of the run folder, or delete \
             its checkpoints/last*.safetensors to train from the beginning",
            path.display()
        ))
    };
    let file = TensorFile::open(path).map_err(damaged)?;
    let field = |name: &str| -> Result<&String> {
        let fields = file.metadata();
        fields.and_then(|m| m.get(name)).ok_or_else(|| damaged(format!("it lacks `{name}`")))
    };
    let parse = |e: serde_json::Error| damaged(e.to_string());
    let keys: Vec<String> = serde_json::from_str(field("keys")?).map_err(parse)?;
    let frozen: Vec<bool> = serde_json::from_str(field("frozen")?).map_err(parse)?;
    let progress: Progress = serde_json::from_str(field("progress")?).map_err(parse)?;
    // Absent in checkpoints of earlier versions, which knew the student only.
    let encoder = field("encoder").ok().map(|text| serde_json::from_str(text)).transpose();
    let encoder = encoder.map_err(parse)?.unwrap_or_default();
    let tuned = field("tuned").ok().map(|text| serde_json::from_str(text)).transpose();
    let tuned = tuned.map_err(parse)?.unwrap_or_default();
    let stage = match field("stage")?.as_str() {
        "pretrain" => StageName::Pretrain,
        "finetune" => StageName::Finetune,
        other => return Err(damaged(format!("`{other}` is no stage"))),
    };
    let info = |name: &str| {
        let info = file.info(name).filter(|info| info.dtype == Dtype::F32);
        info.ok_or_else(|| damaged(format!("it has no tensor `{name}` of type F32")))
    };
    let read = |info: &TensorInfo| file.bytes(info).map_err(|e| damaged(e.to_string()));
    let mut specs: Vec<ParamSpec> = Vec::new();
    for (key, &frozen) in keys.iter().zip(&frozen) {
        let start = specs.last().map_or(0, |spec| spec.range.end);
        let shape = info(&format!("{PARAM}{key}"))?.shape.clone();
        let range = start..start + shape.iter().product::<usize>();
        specs.push(ParamSpec { key: key.clone(), shape, range, frozen });
    }
    let len = specs.last().map_or(0, |spec| spec.range.end);
    let vector = |prefix: &str| -> Result<Vec<f32>> {
        let mut values = Vec::with_capacity(len);
        for key in &keys {
            values.extend(from_le_bytes(&read(info(&format!("{prefix}{key}"))?)?));
        }
        Ok(values)
    };
    let (values, m, v) = (vector(PARAM)?, vector(FIRST_MOMENT)?, vector(SECOND_MOMENT)?);
    let names = file.names();
    let optional = |prefix: &str| -> Result<Option<Vec<f32>>> {
        let there = names.iter().any(|name| name.starts_with(prefix));
        there.then(|| vector(prefix)).transpose()
    };
    let (ema, teacher) = (optional(AVERAGE)?, optional(TEACHER)?);
    let remembered = |name: &String| {
        let key = name.strip_prefix(MEMORY)?;
        let tensor = info(name).and_then(|info| {
            let values = from_le_bytes(&read(info)?).collect();
            Ok(StateTensor { shape: info.shape.clone(), values })
        });
        Some(tensor.map(|tensor| (key.to_owned(), tensor)))
    };
    let memory = names.iter().filter_map(remembered).collect::<Result<_>>()?;
    Ok((stage, TrainState { specs, values, m, v, ema, teacher, encoder, memory, progress, tuned }))
}

fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::Failed(format!("cannot write JSON: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Ema;

    fn state(step: usize) -> TrainState {
        let specs = vec![
            ParamSpec { key: "a.weight".to_owned(), shape: vec![2, 2], range: 0..4, frozen: false },
            ParamSpec { key: "a.w".to_owned(), shape: vec![2], range: 4..6, frozen: true },
        ];
        let values = vec![1.0, f32::MIN_POSITIVE, -0.0, 3.5, 1e30, step as f32];
        let mut state = TrainState::new(specs, values, Ema::PerStep);
        state.teacher = Some(vec![0.25; 6]);
        state.encoder = crate::config::Encoder::Teacher;
        let queue = StateTensor { shape: vec![3, 1], values: vec![1.0, 2.0, 3.0] };
        state.memory.insert("queue".to_owned(), queue);
        state.progress = Progress { step, epoch_loss: 0.1, ..Progress::default() };
        state
    }

    #[test]
    fn how_a_card_multiplies_is_kept() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("last.safetensors");
        let algorithms = [("8x8x8 tn f32".to_owned(), "00ff".to_owned())].into();
        let tuned = crate::engine::TunedProducts { on: "a card".to_owned(), algorithms };
        let state = TrainState { tuned, ..state(3) };
        save(&path, StageName::Pretrain, &state).expect("saved");
        assert_eq!(load(&path).expect("loaded"), Some((StageName::Pretrain, state)));
    }

    #[test]
    fn what_is_saved_is_loaded_bit_for_bit() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("last.safetensors");
        assert!(load(&path).expect("nothing there").is_none());
        save(&path, StageName::Finetune, &state(3)).expect("saved");
        assert_eq!(load(&path).expect("loaded"), Some((StageName::Finetune, state(3))));
    }

    /// The file that the first version wrote for this state, whose metadata came in any order, in the
    /// one order that is sorted.
    #[test]
    fn the_file_of_a_state_is_always_the_same() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("last.safetensors");
        save(&path, StageName::Finetune, &state(3)).expect("saved");
        let digest = crate::data::digest::Digest::of(&std::fs::read(&path).expect("there"));
        assert_eq!(digest.as_str(), "17b7a8f7f0f72075d79beff977698948");
    }

    #[test]
    fn a_damaged_checkpoint_falls_back_to_the_previous_one() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("last.safetensors");
        save(&path, StageName::Pretrain, &state(1)).expect("saved");
        save(&path, StageName::Pretrain, &state(2)).expect("saved");
        let bytes = std::fs::read(&path).expect("there");
        std::fs::write(&path, &bytes[..bytes.len() - 3]).expect("truncated");
        let (_, loaded) = load(&path).expect("loaded").expect("the previous one");
        assert_eq!(loaded.progress.step, 1);
        // A length that no memory could hold, of a header that is not there.
        std::fs::write(previous(&path), b"not a checkpoint").expect("damaged");
        let error = load(&path).expect_err("both are damaged");
        assert!(error.to_string().contains("last.safetensors cannot be used"), "{error}");
    }
}
