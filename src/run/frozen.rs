//! A trained backbone to look at: the pre-trained weights of a run, an exported model, or a file.

use std::path::Path;

use super::{Folder, Request, inherited, weights_of};
use crate::backbone::{HeadSpec, NetSpec, Spec};
use crate::config::{Layers, PosEmbed, RunConfig};
use crate::engine::{Machine, Model};
use crate::error::{Error, Result};
use crate::eval::infer::EvalView;
use crate::export::{ONNX_IS_FOR, is_onnx, timm};
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
    if is_onnx(path) {
        return Err(Error::Usage(format!(
            "{} cannot be used here\n  {ONNX_IS_FOR}",
            path.display()
        )));
    }
    let (Some(model), Some(size)) = (hints.model, hints.img_size) else {
        let flags = [
            ("--model NAME", hints.model.is_none()),
            ("--img-size PIXELS", hints.img_size.is_none()),
        ];
        let missing: Vec<_> =
            flags.into_iter().filter_map(|(flag, missing)| missing.then_some(flag)).collect();
        return Err(Error::Usage(format!(
            "{} is a file, which does not say what it holds; add {}",
            path.display(),
            missing.join(" and ")
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
    let (model, size, file) = (&config.model.name, config.finetune.img_size, weights_of(init)?);
    let built = build(model, size, &file, config, &Machine::cpu(1)).map(|_| ());
    built.map_err(|error| match model_of(&file).filter(|held| held != model) {
        Some(held) => Error::Usage(format!(
            "{} holds the model {held}, not {model}\n  leave --model out, or give weights of {model}\n{error}",
            init.display()
        )),
        None => error,
    })
}

/// The model that the weights in `file` are of, if the run or export around them says so.
fn model_of(file: &Path) -> Option<String> {
    let around = match Folder::around(file) {
        Some(_) => file,
        None => file.parent()?,
    };
    let settings = inherited(around).ok()?;
    let (_, name) = settings.into_iter().find(|(key, _)| key == "model.name")?;
    name.as_str().map(str::to_owned)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_asked_only_for_what_is_missing() {
        let place = tempfile::tempdir().expect("a folder");
        let file = |name: &str| {
            let path = place.path().join(name);
            std::fs::write(&path, "").expect("written");
            path
        };
        let said = |path: &Path, model: Option<&str>, img_size: Option<usize>| {
            let opened = open(path, &Hints { model, img_size }, &Machine::cpu(1)).map(|_| ());
            let error = opened.expect_err("refused");
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        };
        let weights = file("x.safetensors");
        let model = Some("deit_micro_patch8_96");
        for (model, img_size, asked) in [
            (None, None, "; add --model NAME and --img-size PIXELS"),
            (model, None, "; add --img-size PIXELS"),
            (None, Some(48), "; add --model NAME"),
        ] {
            let text = said(&weights, model, img_size);
            assert!(text.ends_with(asked), "{text}");
        }
        let text = said(&file("model.onnx"), model, Some(48));
        assert!(text.contains("only for eval and predict"), "{text}");
    }

    #[test]
    fn weights_of_another_model_say_which_before_what_does_not_fit() {
        let place = tempfile::tempdir().expect("a folder");
        let path = place.path().join("model.safetensors");
        let tensors: Vec<weights::ToWrite> = vec![("a".to_owned(), &[1], &[0.0])];
        weights::write_tensors(&path, tensors, None).expect("written");
        let request = Request {
            data: "/photos".into(),
            pretrain: false,
            finetune: true,
            init: Some(path),
            command: Vec::new(),
            sources: Default::default(),
        };
        let config = Layers::new("paper").and_then(Layers::build).expect("the recipe").config;
        let alone = check_init(&request, &config).expect_err("another model");
        assert_eq!(alone.exit_code(), 1, "{alone}");
        let export = serde_json::json!({
            "fewvit_model": "deit_micro_patch8_96",
            "label_names": ["a"],
            "pretrained_cfg": {
                "input_size": [3, 48, 48],
                "crop_pct": 0.875,
                "interpolation": "bicubic",
                "mean": [0.5, 0.5, 0.5],
                "std": [0.2, 0.2, 0.2],
            },
        });
        std::fs::write(place.path().join("config.json"), export.to_string()).expect("written");
        let error = check_init(&request, &config).expect_err("another model");
        let text = error.to_string();
        assert_eq!(error.exit_code(), 2, "{text}");
        let held = format!("holds the model deit_micro_patch8_96, not {}\n", config.model.name);
        assert!(text.contains(&held) && text.contains("leave --model out"), "{text}");
        assert!(text.ends_with(&alone.to_string()), "{text}");
    }
}
