//! Weights made elsewhere: where in a checkpoint they are, and what their keys are called here.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use super::checkpoint::Checkpoint;
use crate::backbone::resize_pos_embed;
use crate::error::{Error, Result};
use crate::nn::ParamSpec;
use crate::words::listed_lines;

/// Beginnings of keys of what sits on top of a backbone: heads and the networks of pre-training
/// methods, here and elsewhere (MoCo's `fc`, MAE's decoder, the first vision transformers'
/// `pre_logits`).
const ON_TOP: [&str; 7] =
    ["head.", "fc.", "projector.", "predictor.", "pre_logits.", "decoder_", "mask_token"];

/// Words that make one copy of a model the one to take: the average of the weights, DINO's teacher,
/// the trained encoder of MoCo (`encoder_q`) and MoCo v3 (`base_encoder`). The original programs
/// evaluate these.
const PREFERRED: [&str; 4] = ["ema", "teacher", "q", "base"];

/// Names around a state dict are not nested deeper than this.
const DEEPEST: usize = 8;

/// What was done with a file's weights.
#[derive(Debug)]
pub struct Import {
    /// For people.
    pub notes: Vec<String>,
    /// How many of the file's tensors were taken, and how many it has.
    pub taken: (usize, usize),
    path: PathBuf,
    /// Keys of the model's head that the file had nothing for.
    fresh: Vec<String>,
}

impl Import {
    /// Refuses a head that the file had nothing for.
    ///
    /// # Errors
    /// There is one; by its keys.
    pub fn complete(&self) -> Result<()> {
        match self.fresh.is_empty() {
            true => Ok(()),
            false => {
                let missing = self.fresh.iter().map(|key| format!("missing: {key}"));
                Err(misfit(&self.path, &missing.collect::<Vec<_>>()))
            }
        }
    }
}

/// What of a file is taken, besides the backbone.
#[derive(Clone, Copy, Debug)]
pub struct Take<'a> {
    /// The head.
    pub head: Head<'a>,
    /// Whether a position table that can be computed is, where the file's is of another img-size.
    pub regenerate: bool,
}

/// The head of a file.
#[derive(Clone, Copy, Debug)]
pub enum Head<'a> {
    /// Taken as it is if it fits.
    IfItFits,
    /// Left, for the given reason.
    Left(&'a str),
    /// Taken if it fits, row `rows[i]` as the model's row `i`.
    Rows(&'a [usize]),
}

/// [`import_taking`] with the head if the file's is for as many classes.
///
/// # Errors
/// As [`import_taking`].
pub fn import(path: &Path, specs: &[ParamSpec], values: &mut [f32]) -> Result<Import> {
    import_taking(path, specs, values, Take { head: Head::IfItFits, regenerate: false })
}

/// Fills `values` from a file of any kind: the whole backbone, its position embedding resized to the
/// model's img-size, and the head as `take` says.
///
/// The weights may lie anywhere in the file (`model`, `state_dict_ema`, `teacher.backbone`, ...), in
/// half or double precision, under timm's or the official keys.
///
/// # Errors
/// A file that holds no tensors or asks to run a program; missing, unused or mis-shaped keys of the
/// backbone, the first of them by name: a run would start from half of it; a value that is not finite.
pub fn import_taking(
    path: &Path,
    specs: &[ParamSpec],
    values: &mut [f32],
    take: Take,
) -> Result<Import> {
    let file = Checkpoint::open(path)?;
    let Place { inside, others } = Place::of(specs, &file, path)?;
    let found = keys_in(&file, &inside);
    if found.contains_key("dist_token") {
        return Err(Error::Failed(format!(
            "{} is a distilled DeiT: its class token was trained beside a distillation token, which \
             the models here do not have\n  take the checkpoint without distillation",
            path.display()
        )));
    }
    let (head, backbone): (Vec<_>, Vec<_>) = specs.iter().partition(|spec| on_top(&spec.key));
    let mut notes = Vec::new();
    if !inside.is_empty() {
        let rest: Vec<_> = others.iter().map(|other| format!("`{other}`")).collect();
        let rest =
            if rest.is_empty() { String::new() } else { format!("; not {}", rest.join(", ")) };
        notes.push(format!("the weights are `{inside}` of {}{rest}", path.display()));
    }
    let mut problems = unused(&found, specs, &mut notes);
    let mut taken = 0;
    for spec in backbone {
        let Some(key) = found.get(&spec.key) else {
            problems.push(format!("missing: {}", spec.key));
            continue;
        };
        match fit(spec, file.shape(key), take.regenerate) {
            Fit::Same => {
                values[spec.range.clone()].copy_from_slice(&file.values(key)?);
                taken += 1;
            }
            Fit::Resized { sides: [old, new], dim } => {
                let resized = resize_pos_embed(&file.values(key)?, old, new, dim);
                values[spec.range.clone()].copy_from_slice(&resized);
                taken += 1;
                notes.push(format!("pos_embed is resized from {old} x {old} to {new} x {new}"));
            }
            Fit::Computed => notes.push("pos_embed is computed for this img-size".to_owned()),
            Fit::Not => problems.push(misshapen(spec, file.shape(key))),
        }
    }
    if !problems.is_empty() {
        return Err(misfit(path, &problems));
    }
    // What is not taken as well: a model whose head broke in training is no good without it.
    for (_, key) in found.iter().filter(|(name, key)| on_top(name) && file.is_float(key)) {
        file.values(key)?;
    }
    let fresh = fill_head(&head, &file, &found, values, take.head, &mut notes)?;
    taken += head.len() - fresh.len();
    Ok(Import { notes, taken: (taken, file.keys().count()), path: path.to_path_buf(), fresh })
}

fn on_top(key: &str) -> bool {
    ON_TOP.iter().any(|start| key.starts_with(start))
}

fn misfit(path: &Path, problems: &[String]) -> Error {
    Error::Failed(format!("{} does not fit the model:{}", path.display(), listed_lines(problems)))
}

fn misshapen(spec: &ParamSpec, shape: &[usize]) -> String {
    format!("{} is {shape:?}, the model's is {:?}", spec.key, spec.shape)
}

/// Where a file's state dict is.
struct Place {
    /// What all its keys begin with.
    inside: String,
    /// What the keys of everything else begin with.
    others: BTreeSet<String>,
}

impl Place {
    /// Where the most keys of the backbone are.
    fn of(specs: &[ParamSpec], file: &Checkpoint, path: &Path) -> Result<Self> {
        let known: HashSet<&str> =
            specs.iter().map(|spec| &*spec.key).filter(|k| !on_top(k)).collect();
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for key in file.keys() {
            let ends = key.match_indices('.').map(|(dot, _)| dot + 1).take(DEEPEST);
            for end in std::iter::once(0).chain(ends) {
                if known.contains(&*renamed(&key[end..])) {
                    *counts.entry(&key[..end]).or_default() += 1;
                }
            }
        }
        let most = counts.values().max();
        let fullest =
            counts.iter().filter(|(_, count)| Some(*count) == most).map(|(place, _)| *place);
        let inside = fullest.min_by_key(|place| (!preferred(place), place.len(), *place));
        let inside = inside.ok_or_else(|| {
            let some: Vec<_> = file.keys().take(5).collect();
            Error::Failed(format!(
                "{} holds no weights of this model; its first tensors: {}",
                path.display(),
                if some.is_empty() { "none".to_owned() } else { some.join(", ") }
            ))
        })?;
        let others = file.keys().filter(|key| !key.starts_with(inside));
        let others = others.map(|key| departure(key, inside)).collect();
        Ok(Self { inside: inside.to_owned(), others })
    }
}

fn preferred(place: &str) -> bool {
    place.split(['.', '_']).any(|word| PREFERRED.contains(&word))
}

/// The beginning of `key` up to where it leaves `place`.
fn departure(key: &str, place: &str) -> String {
    let common = key.split('.').zip(place.split('.')).take_while(|(a, b)| a == b).count();
    key.split('.').take(common + 1).collect::<Vec<_>>().join(".")
}

/// The keys of a place: what they are called here, and in the file.
fn keys_in<'a>(file: &'a Checkpoint, place: &str) -> BTreeMap<String, &'a str> {
    let rest = |key: &'a str| Some((renamed(key.strip_prefix(place)?), key));
    file.keys().filter_map(rest).collect()
}

/// timm's key for an official one of PVTv2, which counts its stages in the names of their parts.
fn renamed(key: &str) -> String {
    let key = key.replace("dwconv.dwconv.", "dwconv.");
    let Some((part, rest)) = key.split_once('.') else { return key };
    let stage = |name: &str| part.strip_prefix(name)?.parse::<usize>().ok()?.checked_sub(1);
    if let Some(stage) = stage("block") {
        format!("stages.{stage}.blocks.{rest}")
    } else if let Some(stage) = stage("norm") {
        format!("stages.{stage}.norm.{rest}")
    } else {
        match stage("patch_embed") {
            Some(0) => format!("patch_embed.{rest}"),
            Some(stage) => format!("stages.{stage}.downsample.{rest}"),
            None => key,
        }
    }
}

/// Keys that the model lacks: those of a backbone are problems, what is on top is only noted.
fn unused(
    found: &BTreeMap<String, &str>,
    specs: &[ParamSpec],
    notes: &mut Vec<String>,
) -> Vec<String> {
    let known: HashSet<&str> = specs.iter().map(|spec| &*spec.key).collect();
    let unknown = found.keys().filter(|key| !known.contains(&***key));
    let (top, own): (Vec<_>, Vec<_>) = unknown.map(String::as_str).partition(|key| on_top(key));
    if !top.is_empty() {
        notes.push(format!("not used: {}", top.join(", ")));
    }
    own.into_iter().map(|key| format!("unused: {key}")).collect()
}

/// How a tensor becomes a parameter.
enum Fit {
    Same,
    Resized {
        sides: [usize; 2],
        dim: usize,
    },
    /// A position embedding that follows from the img-size is the model's own.
    Computed,
    Not,
}

fn fit(spec: &ParamSpec, shape: &[usize], regenerate: bool) -> Fit {
    if shape == spec.shape {
        return Fit::Same;
    }
    let (&[1, old, dim], &[_, new, own_dim]) = (shape, &spec.shape[..]) else { return Fit::Not };
    if spec.key != "pos_embed" || dim != own_dim {
        return Fit::Not;
    }
    // One position is the class token's.
    let sides = [old, new].map(|tokens| tokens.saturating_sub(1).isqrt());
    let square = sides[0] > 0 && sides[0].pow(2) + 1 == old && sides[1].pow(2) + 1 == new;
    match (square, spec.frozen && regenerate) {
        (false, _) => Fit::Not,
        (true, true) => Fit::Computed,
        (true, false) => Fit::Resized { sides, dim },
    }
}

/// Takes the head if all of it fits; else its keys, which keep their values.
fn fill_head(
    head: &[&ParamSpec],
    file: &Checkpoint,
    found: &BTreeMap<String, &str>,
    values: &mut [f32],
    take: Head,
    notes: &mut Vec<String>,
) -> Result<Vec<String>> {
    let afresh = || Ok(head.iter().map(|spec| spec.key.clone()).collect());
    let there = head.iter().any(|spec| found.contains_key(&spec.key));
    if let (Head::Left(why), true) = (take, there) {
        notes.push(format!("the head starts afresh: {why}"));
        return afresh();
    }
    let misfit = |spec: &&&ParamSpec| match found.get(&spec.key) {
        Some(key) => file.shape(key) != spec.shape,
        None => true,
    };
    if let Some(spec) = head.iter().find(misfit) {
        notes.push(match found.get(&spec.key) {
            Some(key) => format!("the head starts afresh: {}", misshapen(spec, file.shape(key))),
            None => "the head starts afresh: the file has none".to_owned(),
        });
        return afresh();
    }
    for spec in head {
        let given = file.values(found[&spec.key])?;
        let own = &mut values[spec.range.clone()];
        let width = own.len() / spec.shape[0].max(1);
        for (i, row) in own.chunks_exact_mut(width.max(1)).enumerate() {
            let from = if let Head::Rows(rows) = take { rows[i] } else { i };
            row.copy_from_slice(&given[from * width..][..width]);
        }
    }
    if let Some(spec) = head.first() {
        let moved = matches!(take, Head::Rows(rows) if !rows.is_sorted());
        let order = if moved { ", in the order they have here" } else { "" };
        notes.push(format!("the head is the file's, of {} classes{order}", spec.shape[0]));
    }
    Ok(Vec::new())
}
