//! A trained backbone to look at: the pre-trained weights of a run, an exported model, or a file.

use std::path::Path;

use super::{Folder, Request, weights_of};
use crate::backbone::{HeadSpec, NetSpec, Spec};
use crate::config::{Layers, PosEmbed, RunConfig};
use crate::engine::{Machine, Model};
use crate::error::{Error, Result};
use crate::eval::infer::EvalView;
use crate::export::timm;
use crate::weights::{self, Head, Import, Take};

/// A backbone without heads, and how its inputs are made.
pub struct Frozen {
    /// The model.
    pub model: Box<dyn Model>,
    /// How an image becomes its input.
    pub view: EvalView,
    /// What was done with the weights of another program, for people.
    pub notes: Vec<String>,
    /// Whether the weights are those of an exported classifier.
    pub exported: bool,
}

/// What the user says of weights that do not say it themselves.
pub struct Hints<'a> {
    /// Model under timm's name.
    pub model: Option<&'a str>,
    /// Side of the images in pixels; changes that of a run or export.
    pub img_size: Option<usize>,
}

/// Reads a run folder (its pre-trained weights, if it has any), an export folder, or a weights file
/// of any kind that [`weights::import()`] takes.
///
/// # Errors
/// Weights that cannot be read or do not fit, a file without `hints.model`.
pub fn open(path: &Path, hints: &Hints, machine: &Machine) -> Result<Frozen> {
    if path.is_dir() && hints.model.is_some() {
        return Err(Error::Usage(format!(
            "--model does nothing: {} says itself which model it holds\n  leave it out",
            path.display()
        )));
    }
    if let Ok(folder) = Folder::open(path)
        && folder.pretrained().is_file()
    {
        let (_, config) = folder.read_request()?;
        let size = config.pretrain.crops.first().map_or(0, |group| group.img_size);
        let size = hints.img_size.unwrap_or(size);
        let frozen = build(&config.model.name, size, &folder.pretrained(), &config, machine)?;
        // That the head of pre-training is not used needs no saying.
        return Ok(Frozen { notes: Vec::new(), ..frozen });
    }
    let defaults = Layers::new("paper")?.build()?.config;
    if path.is_dir() {
        let config = timm::describe(path)?;
        let size = hints.img_size.unwrap_or(config.img_size);
        let mut frozen = build(&config.model, size, &weights_of(path)?, &defaults, machine)?;
        (frozen.view, frozen.exported) = (config.view, true);
        return Ok(frozen);
    }
    if !path.exists() {
        return Err(Error::Usage(format!(
            "{} does not exist\n  check the spelling",
            path.display()
        )));
    }
    let (Some(model), Some(size)) = (hints.model, hints.img_size) else {
        return Err(Error::Usage(format!(
            "{} is a file, which does not say what it holds; add --model NAME and --img-size PIXELS",
            path.display()
        )));
    };
    build(model, size, path, &defaults, machine)
}

/// Checks, before any image is read, that the weights which a run starts from fit its model.
///
/// # Errors
/// They cannot be read or do not fit.
pub fn check_init(request: &Request, config: &RunConfig) -> Result<()> {
    let Some(init) = request.init.as_ref().filter(|_| !request.pretrain) else { return Ok(()) };
    let (model, size) = (&config.model.name, config.finetune.img_size);
    build(model, size, &weights_of(init)?, config, &Machine::cpu(1)).map(|_| ())
}

fn build(
    model: &str,
    img_size: usize,
    weights: &Path,
    config: &RunConfig,
    machine: &Machine,
) -> Result<Frozen> {
    let net = NetSpec { spec: Spec::find(model)?, img_size, heads: HeadSpec::default() };
    let outline = net.outline()?;
    let (specs, mut values) = (&outline.parameters, outline.draw(0));
    let regenerate = config.model.pos_embed == PosEmbed::Regenerate;
    let take = Take { head: Head::IfItFits, regenerate };
    let Import { notes, .. } = weights::import_taking(weights, specs, &mut values, take)?;
    let (model, view) = (machine.model(&net, &values)?, EvalView::of(config));
    Ok(Frozen { model, view, notes, exported: false })
}
