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
    let path = inner(folder).join("config.json");
    if !path.exists() {
        return Err(Error::Usage(format!(
            "{} holds no exported model (config.json and model.safetensors)\n  {}",
            folder.display(),
            instead(folder)
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

/// What to do where `path` holds no exported model.
fn instead(path: &Path) -> String {
    #[derive(Deserialize)]
    struct Asked {
        finetune: bool,
    }
    let run = std::fs::read(path.join(files::RUN)).ok();
    let run = run.and_then(|text| serde_json::from_slice::<Asked>(&text).ok());
    let pretrained = path.join("checkpoints/pretrained.safetensors").is_file();
    let shown = path.display();
    match run {
        Some(Asked { finetune: false }) if pretrained => format!(
            "this run only pre-trained and has no classes: fewvit finetune DATA --init {shown} trains a \
             classifier from it; fewvit knn, probe and embed take it as it is"
        ),
        Some(_) => format!("the run has not come to its end: fewvit resume {shown} goes on with it"),
        None if path.exists() => {
            "give a run folder, an export folder or an ONNX file; the model comes first, then the images"
                .to_owned()
        }
        None => "it does not exist; check the spelling".to_owned(),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_an_exported_model_it_is_said_what_to_do() {
        let place = tempfile::tempdir().expect("a temporary folder");
        let said = |path: &Path| {
            let error = describe(path).expect_err("no model");
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        };
        let run = |name: &str, finetune: bool, files: &[&str]| {
            let root = place.path().join(name);
            std::fs::create_dir_all(root.join("checkpoints")).expect("made");
            std::fs::create_dir_all(root.join("export")).expect("made");
            let asked = format!("{{\"pretrain\": true, \"finetune\": {finetune}}}");
            std::fs::write(root.join(files::RUN), asked).expect("written");
            files.iter().for_each(|file| std::fs::write(root.join(file), "").expect("written"));
            (said(&root), root.display().to_string())
        };
        let pretrained = ["checkpoints/pretrained.safetensors"];
        let (text, root) = run("pre-trained", false, &pretrained);
        assert!(text.contains("only pre-trained and has no classes"), "{text}");
        assert!(text.contains(&format!("fewvit finetune DATA --init {root} trains")), "{text}");
        assert!(text.contains("knn, probe and embed") && !text.contains("resume"), "{text}");
        // Stopped in pre-training, with or without fine-tuning after it, and in fine-tuning.
        for (name, finetune, files) in
            [("a", false, &[][..]), ("b", true, &[][..]), ("c", true, &pretrained[..])]
        {
            let (text, root) = run(name, finetune, files);
            assert!(text.contains(&format!("fewvit resume {root} goes on with it")), "{text}");
            assert!(!text.contains("finetune"), "{text}");
        }
        let file = place.path().join("photo.jpg");
        std::fs::write(&file, "").expect("written");
        for path in [place.path(), &file] {
            let text = said(path);
            assert!(text.contains("the model comes first") && !text.contains("resume"), "{text}");
        }
        assert!(said(Path::new("/nowhere")).contains("does not exist; check the spelling"));
    }
}
