//! A folder that timm loads: `timm.create_model("local-dir:export", pretrained=True)`.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::json;

use super::{Description, Preprocessing};
use crate::backbone::{NetSpec, Spec};
use crate::config::Depth;
use crate::engine::{Machine, Model};
use crate::error::{Error, Result};
use crate::eval::infer::EvalView;
use crate::files::{self, write_atomically};
use crate::nn::ParamSpec;
use crate::weights;

/// A trained classifier and how its inputs are made.
pub struct Exported<'a> {
    /// The backbone.
    pub spec: Spec,
    /// Side of the images it was trained on last.
    pub img_size: usize,
    /// Class names in the order of the logits.
    pub classes: &'a [String],
    /// Places of the parameters.
    pub params: &'a [ParamSpec],
    /// Their values.
    pub values: &'a [f32],
    /// How an image becomes its input.
    pub view: EvalView,
}

/// Writes `model.safetensors`, `config.json` and `classes.txt` into `folder`.
///
/// # Errors
/// The folder cannot be written.
pub fn write(folder: &Path, model: &Exported) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|source| Error::io("create", folder, source))?;
    weights::write(&folder.join("model.safetensors"), model.params, model.values)?;
    let config = serde_json::to_string_pretty(&config(model))
        .map_err(|e| Error::Failed(format!("cannot write config.json: {e}")))?;
    let classes: String = model.classes.iter().map(|class| format!("{class}\n")).collect();
    write_atomically(&folder.join("config.json"), config.as_bytes())?;
    write_atomically(&folder.join("classes.txt"), classes.as_bytes())
}

fn config(model: &Exported) -> serde_json::Value {
    let (size, classes) = (model.img_size, model.classes);
    let mut pretrained_cfg =
        json!(Preprocessing { depth: Depth::Pil, ..Preprocessing::of(size, model.view) });
    pretrained_cfg["num_classes"] = classes.len().into();
    let model_args = model.spec.family.timm_args(size);
    // timm builds what it calls fixed for `img_size`, an argument that PVTv2 does not have.
    pretrained_cfg["fixed_input_size"] = model_args.get("img_size").is_some().into();
    pretrained_cfg["first_conv"] = "patch_embed.proj".into();
    pretrained_cfg["classifier"] = "head".into();
    json!({
        "architecture": model.spec.timm_name.unwrap_or(model.spec.name),
        "fewvit_model": model.spec.name,
        // Among the words of `pretrained_cfg` timm would refuse it.
        "fewvit_depth": model.view.depth,
        "num_classes": classes.len(),
        "num_features": model.spec.num_features(),
        "label_names": classes,
        "model_args": model_args,
        "pretrained_cfg": pretrained_cfg,
    })
}

/// An exported classifier, ready to use.
pub struct Loaded {
    /// The model.
    pub model: Box<dyn Model>,
    /// Its weights.
    pub values: Vec<f32>,
    /// What the folder says of it.
    pub description: Description,
}

#[derive(Deserialize)]
struct Config {
    fewvit_model: String,
    #[serde(default)]
    fewvit_depth: Depth,
    label_names: Vec<String>,
    pretrained_cfg: Preprocessing,
}

/// The classes of the rows of a weights file's head, which `config.json` beside it names; none where
/// there is no such file or it names none.
pub fn label_names(weights: &Path) -> Option<Vec<String>> {
    #[derive(Deserialize)]
    struct Named {
        label_names: Vec<String>,
    }
    let text = std::fs::read(weights.with_file_name("config.json")).ok()?;
    serde_json::from_slice::<Named>(&text).ok().map(|named| named.label_names)
}

/// The folder that [`write()`] wrote or is to write into; `folder` may also be the run folder around it.
pub fn inner(folder: &Path) -> PathBuf {
    let inner = folder.join("export");
    if inner.is_dir() { inner } else { folder.to_path_buf() }
}

/// Reads `config.json`.
///
/// # Errors
/// No such folder, or one that holds something else.
pub fn describe(folder: &Path) -> Result<Description> {
    let folder = inner(folder);
    let path = folder.join("config.json");
    if !path.exists() {
        let hint = match (folder.join(files::RUN).is_file(), folder.is_file(), folder.is_dir()) {
            (true, ..) => {
                "a run that stopped before its end has none yet: fewvit resume finishes it"
            }
            (_, true, _) => "give a run folder, an export folder or an ONNX file",
            (.., true) => "the model comes first, then the images",
            _ => "it does not exist; check the spelling",
        };
        return Err(Error::Usage(format!(
            "{} holds no exported model (config.json and model.safetensors)\n  {hint}",
            folder.display()
        )));
    }
    let text = std::fs::read(&path).map_err(|source| Error::io("read", &path, source))?;
    let config: Config = serde_json::from_slice(&text)
        .map_err(|e| Error::Failed(format!("{} cannot be used: {e}", path.display())))?;
    Ok(Description {
        model: config.fewvit_model,
        img_size: config.pretrained_cfg.input_size[1],
        classes: config.label_names,
        view: EvalView { depth: config.fewvit_depth, ..config.pretrained_cfg.view() },
    })
}

/// Reads what [`write()`] wrote; `folder` may also be the run folder around it.
///
/// # Errors
/// As [`describe`]; weights that do not fit.
pub fn read(folder: &Path, machine: &Machine) -> Result<Loaded> {
    let description = describe(folder)?;
    let Description { model, img_size, classes, .. } = &description;
    let net = NetSpec::classifier(Spec::find(model)?, *img_size, classes.len());
    let outline = net.outline()?;
    let mut values = vec![0.0; outline.num_params()];
    let weights = weights::read(&inner(folder).join("model.safetensors"))?;
    weights::fill_strictly(&outline.parameters, &mut values, &weights)?;
    Ok(Loaded { model: machine.model(&net, &values)?, values, description })
}
