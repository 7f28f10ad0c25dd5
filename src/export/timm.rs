//! A folder that timm loads: `timm.create_model("local-dir:export", pretrained=True)`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::json;

use super::{Description, ONNX_IS_FOR, Preprocessing, is_onnx};
use crate::backbone::{NetSpec, Spec};
use crate::config::Depth;
use crate::engine::{Machine, Model};
use crate::error::{Error, Result};
use crate::eval::infer::EvalView;
use crate::files::{self, write_atomically};
use crate::nn::ParamSpec;
use crate::weights;
use crate::words::counted;

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
    num_classes: Option<usize>,
    label_names: Vec<String>,
    pretrained_cfg: Preprocessing,
}

impl Config {
    /// Refuses what no model here has.
    ///
    /// # Errors
    /// The key, its value and what it must be, in words.
    fn check(&self) -> std::result::Result<(), String> {
        let spec = Spec::find(&self.fewvit_model).map_err(|e| format!("`fewvit_model`: {e}"))?;
        self.pretrained_cfg.check()?;
        let size = self.pretrained_cfg.input_size[1];
        spec.check_img_size(size).map_err(|e| format!("`input_size`: {e}"))?;
        let names = self.label_names.len();
        let distinct = self.label_names.iter().collect::<BTreeSet<_>>().len();
        let classes = self.num_classes.unwrap_or(names);
        match names > 0 && distinct == names && classes == names {
            true => Ok(()),
            false => Err(format!(
                "`label_names` has {}, {distinct} of them distinct, and `num_classes` is {classes}; all must be \
                 one number, of 1 or more",
                counted(names, "name")
            )),
        }
    }
}

/// What to do about an export whose files do not fit together.
const TAKE_ANOTHER: &str =
    "take another copy of the export folder; a finished run has one in export/";

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
/// No such folder, or one that holds something else; a value that no model here has.
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
    let unusable = |why: String| {
        Error::Failed(format!("{} cannot be used: {why}\n  {TAKE_ANOTHER}", path.display()))
    };
    let config: Config = serde_json::from_slice(&text).map_err(|e| unusable(e.to_string()))?;
    config.check().map_err(unusable)?;
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
        None if path.is_file() && is_onnx(path) => ONNX_IS_FOR.to_owned(),
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
/// As [`describe`]; weights that do not fit or are not finite.
pub fn read(folder: &Path, machine: &Machine) -> Result<Loaded> {
    let description = describe(folder)?;
    let Description { model, img_size, classes, .. } = &description;
    let net = NetSpec::classifier(Spec::find(model)?, *img_size, classes.len());
    let outline = net.outline()?;
    let mut values = vec![0.0; outline.num_params()];
    let path = inner(folder).join("model.safetensors");
    let weights = weights::read(&path)?;
    let rows = weights.get("head.weight").and_then(|(shape, _)| shape.first());
    if let Some(rows) = rows.filter(|rows| **rows != classes.len()) {
        return Err(Error::Failed(format!(
            "{} has a head of {}, and config.json beside it names {}\n  {TAKE_ANOTHER}",
            path.display(),
            counted(*rows, "class"),
            classes.len()
        )));
    }
    weights::fill_strictly(&outline.parameters, &mut values, &weights)?;
    Ok(Loaded { model: machine.model(&net, &values)?, values, description })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes the `config.json` of an export of two classes with one value changed, and reads it.
    fn described(folder: &Path, pointer: &str, value: serde_json::Value) -> Result<Description> {
        let mut config = json!({
            "fewvit_model": "deit_micro_patch8_96",
            "num_classes": 2,
            "label_names": ["a", "b"],
            "pretrained_cfg": {
                "input_size": [3, 48, 48],
                "crop_pct": 0.875,
                "interpolation": "bicubic",
                "mean": [0.5, 0.5, 0.5],
                "std": [0.2, 0.2, 0.2],
            },
        });
        *config.pointer_mut(pointer).expect(pointer) = value;
        std::fs::write(folder.join("config.json"), config.to_string()).expect("written");
        describe(folder)
    }

    #[test]
    fn a_config_that_no_model_has_is_refused_by_its_file_and_key() {
        let place = tempfile::tempdir().expect("a temporary folder");
        let good = described(place.path(), "/num_classes", json!(2)).expect("a model");
        assert_eq!((good.img_size, &*good.classes.concat()), (48, "ab"));
        for (pointer, value, words) in [
            ("/fewvit_model", json!("deit"), "`fewvit_model`: there is no model `deit`"),
            (
                "/pretrained_cfg/input_size",
                json!([3, 50, 50]),
                "`input_size`: deit_micro_patch8_96",
            ),
            ("/pretrained_cfg/crop_pct", json!(0.0), "`crop_pct` is 0.0, must be more than 0"),
            ("/pretrained_cfg/interpolation", json!("lanczos"), "`bilinear` or `bicubic`"),
            ("/num_classes", json!(3), "has 2 names, 2 of them distinct, and `num_classes` is 3"),
            ("/label_names", json!(["a", "a"]), "2 names, 1 of them distinct"),
            ("/label_names", json!([]), "0 names"),
        ] {
            let error = described(place.path(), pointer, value).expect_err(words);
            let text = error.to_string();
            assert!(
                text.contains("config.json cannot be used: ") && text.contains(words),
                "{text}"
            );
            assert!(text.contains("take another copy of the export"), "{text}");
        }
    }

    #[test]
    fn a_head_of_another_number_of_classes_is_refused_by_its_file() {
        let place = tempfile::tempdir().expect("a temporary folder");
        described(place.path(), "/num_classes", json!(2)).expect("a model");
        let head = ParamSpec {
            key: "head.weight".to_owned(),
            shape: vec![3, 1],
            range: 0..3,
            frozen: false,
        };
        let path = place.path().join("model.safetensors");
        weights::write(&path, &[head], &[0.0; 3]).expect("written");
        let error = read(place.path(), &Machine::cpu(1)).map(|_| ()).expect_err("three rows");
        let text = error.to_string();
        assert!(text.contains("model.safetensors has a head of 3 classes"), "{text}");
        assert!(text.contains("names 2\n"), "{text}");
    }

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
        let onnx = place.path().join("model.onnx");
        std::fs::write(&onnx, "").expect("written");
        assert!(said(&onnx).contains("only for eval and predict: give the run folder"));
        assert!(said(Path::new("/nowhere")).contains("does not exist; check the spelling"));
    }
}
