//! What a person looks at after a run: tables, plots, one web page, a model card, TensorBoard.
//!
//! Nothing here knows a model or a training loop. The caller fills [`ReportData`]; [`write()`] puts
//! everything that follows from it into the run folder, so a report can be rendered again from its
//! JSON at any time.

pub mod card;
pub mod curves;
pub mod facts;
pub mod features;
pub mod html;
pub(crate) mod markdown;
pub mod matrix;
pub mod pictures;
pub mod plots;
pub mod tables;
pub mod tensorboard;
pub mod words;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::eval::metric::Metrics;
use crate::files::write_atomically;
use facts::{Choice, Decided, Provenance, StageFacts, TestUse};
use tables::EpochRow;

/// Everything a report says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReportData {
    /// When the run ended, for people: `2026-05-01 14:03`.
    pub date: String,
    /// The command line that it was begun with.
    pub command: String,
    /// The command line that repeats it: the same data, and the settings as they were resolved.
    pub repeat: String,
    /// The backbone.
    pub model: ModelFacts,
    /// The images.
    pub data: DataFacts,
    /// Where the weights come from that it started from.
    pub provenance: Provenance,
    /// What was decided before it began.
    #[serde(default)]
    pub decided: Decided,
    /// What was done, in order.
    pub stages: Vec<StageFacts>,
    /// One row an epoch over all stages.
    pub history: Vec<EpochRow>,
    /// The final measurement; `None` without labelled held-out images.
    pub metrics: Option<Metrics>,
    /// How the held-out images were used.
    pub test_use: TestUse,
    /// The worst mistakes, worst first; may be empty.
    pub mistakes: Vec<Mistake>,
    /// What the checks of data and training found, one finding an entry.
    pub warnings: Vec<String>,
    /// Hyper-parameters: `(key, value, where the value comes from)`.
    pub config: Vec<(String, String, String)>,
    /// Program, device, operating system ...: `(what, which)`.
    pub versions: Vec<(String, String)>,
}

/// The backbone of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// timm's name where timm has the model, else the paper's.
    pub name: String,
    /// Whether timm loads an export of it.
    pub timm: bool,
    /// Trainable numbers, classifier included.
    pub parameters: usize,
    /// Side of the input in pixels.
    pub img_size: usize,
}

/// The images of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataFacts {
    /// Name of the data set.
    pub name: String,
    /// Class names, index = label; empty in an unlabelled set.
    pub classes: Vec<String>,
    /// Images of the training split; which of them a stage learns from, it says.
    pub train_images: usize,
    /// Those of them that have a label; runs of earlier versions do not say.
    #[serde(default)]
    pub labelled_images: usize,
    /// Validation images beside those that the accuracy is measured on; runs of earlier versions do not say.
    #[serde(default)]
    pub val_images: usize,
    /// Images the accuracy is measured on.
    pub test_images: usize,
    /// What those are called: `test`, or `validation` where there is no test split.
    pub test_split: String,
    /// Whether we drew the split ourselves.
    pub split_made: bool,
    /// Whether images of one group stayed in one split of ours.
    #[serde(default)]
    pub split_grouped: bool,
    /// Measured images that are copies of training images.
    #[serde(default)]
    pub leaks: usize,
    /// Those of them whose copies in training have another label; runs of earlier versions do not say.
    #[serde(default)]
    pub leaks_of_other_label: usize,
    /// Those of them whose copies in training have no label and were only pre-trained on; likewise.
    #[serde(default)]
    pub leaks_without_label: usize,
    /// Files that do not decode and were left out.
    pub bad_images: usize,
    /// Held-out images that the run whose weights this one starts from was trained on.
    pub seen_before: usize,
}

/// An image that the model got wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mistake {
    /// The image's name in the data set.
    pub file: String,
    /// Its label's name.
    pub label: String,
    /// The predicted class's name.
    pub predicted: String,
    /// The prediction's probability.
    pub confidence: f64,
    /// A small picture as a `data:` URI, see [`pictures::thumbnail`].
    pub thumbnail: Option<String>,
}

impl ReportData {
    /// The images whose accuracy the curves show: `val images`.
    pub fn watched(&self) -> String {
        match &self.test_use {
            TestUse::Other(split, _) | TestUse::Chosen(Choice { by: (split, _), .. }) => {
                format!("{split} images")
            }
            TestUse::Once | TestUse::Watched => format!("{} images", self.data.test_split),
        }
    }

    /// Names of the classes, numbers where the data set has none.
    fn class_name(&self, class: usize) -> String {
        self.data.classes.get(class).cloned().unwrap_or_else(|| format!("class {class}"))
    }
}

/// Writes `results.csv`, `plots/` (PNG and SVG) and `report.html` into the run folder.
pub fn write(run: &Path, data: &ReportData) -> Result<()> {
    let folder = run.join("plots");
    std::fs::create_dir_all(&folder).map_err(|e| Error::io("create", &folder, e))?;
    tables::write_results(&run.join("results.csv"), &data.history)?;
    for stage in &data.stages {
        let panels = curves::panels(&data.history, stage, &data.watched());
        if !panels.is_empty() {
            plots::save(&folder.join(&stage.key), &curves::row(panels))?;
        }
    }
    if let Some(m) = &data.metrics {
        let names: Vec<String> = (0..m.confusion.len()).map(|c| data.class_name(c)).collect();
        plots::save(&folder.join("confusion"), &matrix::Confusion::new(&m.confusion, &names))?;
        plots::save(&folder.join("classes"), &matrix::ClassBars::new(m, &names))?;
    }
    write_atomically(&run.join("report.html"), html::render(data)?.as_bytes())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::facts::Chance;
    use super::*;

    /// IDMM on 2,040 images.
    pub(crate) fn pretraining() -> StageFacts {
        StageFacts {
            key: "pretrain".to_string(),
            method: "IDMM".to_string(),
            kind: "self-supervised without labels".to_string(),
            sizes: vec![112],
            images: 2040,
            epochs: 800,
            stopped: None,
            kept: None,
            seconds: 20_700.0,
            first_head: false,
            balance: Vec::new(),
            chance: Some(Chance::of(1.0, 2040, "every training image is equally likely")),
        }
    }

    /// Fine-tuning on `classes` classes.
    pub(crate) fn finetuning(classes: usize) -> StageFacts {
        StageFacts {
            key: "finetune".to_string(),
            method: "supervised".to_string(),
            kind: "with labels".to_string(),
            sizes: vec![224],
            images: 2040,
            epochs: 200,
            stopped: None,
            kept: None,
            seconds: 4_000.0,
            first_head: false,
            balance: Vec::new(),
            chance: Some(Chance::of(1.0, classes, "every class is equally likely")),
        }
    }

    /// A made-up run on `classes` classes with `each` test images a class.
    pub(crate) fn sample(classes: usize, each: usize) -> ReportData {
        let names = ["daisy", "dandelion <wild>", "rose & thorn", "sunflower", "tulip"];
        let name = |c: usize| match names.get(c) {
            Some(name) => name.to_string(),
            None => format!("flower number {c}"),
        };
        let labels: Vec<usize> = (0..classes * each).map(|i| i % classes).collect();
        let logit = |i: usize, c: usize| {
            let hash = (i * 7919 + c * 104_729 + 1) * 2_654_435_761 % (1 << 32);
            let noise = (hash ^ hash >> 15) * 2_246_822_519 % (1 << 32);
            let neighbour = (i % classes + 1) % classes == c && i.is_multiple_of(3);
            let signal = if labels[i] == c {
                3.0
            } else if neighbour {
                2.6
            } else {
                0.0
            };
            (signal + (noise >> 16) as f64 / 65536.0 * 4.0) as f32
        };
        let logits: Vec<f32> = (0..labels.len())
            .flat_map(|i| (0..classes).map(move |c| (i, c)))
            .map(|(i, c)| logit(i, c))
            .collect();
        let row = |stage: &str, epoch: usize, of: usize| {
            let done = epoch as f64 / of as f64;
            let pretrain = stage == "pretrain";
            let probed = epoch.is_multiple_of(of / 20);
            EpochRow {
                stage: stage.to_string(),
                epoch,
                step: epoch as u64,
                seconds: epoch as f64,
                images_per_second: Some(100.0),
                loss: Some(if pretrain {
                    4.1 + 3.5 * (-4.0 * done).exp()
                } else {
                    1.2 + 0.5 * (-3.0 * done).exp()
                }),
                lr: Some(5e-4 * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())),
                grad_norm: None,
                knn_top1: (pretrain && probed).then(|| 0.2 + 0.3 * done.sqrt()),
                top1: (!pretrain && probed).then(|| 0.3 + 0.38 * done.sqrt()),
                top5: None,
                top1_low: None,
                top1_high: None,
                alignment: None,
                warning: None,
            }
        };
        let pairs = |list: &[(&str, &str)]| {
            list.iter().map(|p| (p.0.to_string(), p.1.to_string())).collect()
        };
        ReportData {
            date: "2026-05-01 14:03".to_string(),
            command: "fewvit train flowers --time-budget 480 --seed 7".to_string(),
            repeat: "fewvit train /data/flowers -c /runs/flowers-1/config.toml".to_string(),
            model: ModelFacts {
                name: "deit_tiny_patch16_224".to_string(),
                timm: true,
                parameters: 5_543_716,
                img_size: 224,
            },
            data: DataFacts {
                name: "flowers".to_string(),
                classes: (0..classes).map(name).collect(),
                train_images: 2040,
                labelled_images: 2040,
                val_images: 0,
                test_images: labels.len(),
                test_split: "test".to_string(),
                split_made: true,
                split_grouped: false,
                leaks: 0,
                leaks_of_other_label: 0,
                leaks_without_label: 0,
                bad_images: 2,
                seen_before: 0,
            },
            provenance: Provenance::Random,
            decided: Decided::default(),
            stages: vec![pretraining(), finetuning(classes)],
            history: (1..=800)
                .map(|e| row("pretrain", e, 800))
                .chain((1..=200).map(|e| row("finetune", e, 200)))
                .collect(),
            metrics: Some(Metrics::from_logits(&logits, &labels, classes)),
            test_use: TestUse::Watched,
            mistakes: vec![Mistake {
                file: "test/rose/0031.jpg".to_string(),
                label: name(2),
                predicted: name(1),
                confidence: 0.97,
                thumbnail: None,
            }],
            warnings: vec![
                "4 test images also occur in the training set (same pixels): see data_report.json"
                    .to_string(),
            ],
            config: vec![(
                "pretrain.optim.lr".to_string(),
                "0.0005".to_string(),
                "recipe idmm".to_string(),
            )],
            versions: pairs(&[("fewvit", "0.1.0"), ("device", "cpu, 2 cores, avx512")]),
        }
    }

    #[test]
    fn run_folder_gets_the_page_the_plots_and_the_table() {
        let folder = tempfile::tempdir().unwrap();
        let data = sample(5, 12);
        write(folder.path(), &data).unwrap();
        for plot in ["pretrain", "finetune", "confusion", "classes"] {
            let path = folder.path().join("plots").join(plot);
            let png = image::open(path.with_extension("png")).unwrap().to_rgb8();
            assert!(
                png.pixels().any(|p| p.0 != [255; 3]) && png.width() >= 500,
                "{plot}.png is empty"
            );
            assert!(
                std::fs::read_to_string(path.with_extension("svg")).unwrap().ends_with("</svg>\n")
            );
        }
        let page = std::fs::read_to_string(folder.path().join("report.html")).unwrap();
        assert!(
            page.contains("dandelion &#60;wild&#62;") && !page.contains("<wild>"),
            "names are escaped"
        );
        assert!(!page.contains("<script") && !page.contains("src=\"http"), "nothing is loaded");
        for text in [
            "800 epochs of IDMM pre-training",
            "(5 h 45 min)",
            "knows nothing: ln 2040",
            "has a loss of 7.62 (ln 2040)",
            "2 image files could not",
            "Small test set",
        ] {
            assert!(page.contains(text), "{text}");
        }
        assert_eq!(
            std::fs::read_to_string(folder.path().join("results.csv")).unwrap().lines().count(),
            1001
        );
        assert!(
            std::fs::read_dir(folder.path()).unwrap().all(|f| f
                .unwrap()
                .path()
                .extension()
                .unwrap_or_default()
                != "fewvit-partial")
        );
    }

    #[test]
    fn a_run_without_labels_has_a_report_too() {
        let mut data = sample(5, 12);
        (data.metrics, data.data.classes, data.data.test_images) = (None, Vec::new(), 0);
        data.history.clear();
        let page = html::render(&data).unwrap();
        assert!(page.contains("No accuracy was measured") && page.contains("without labels"));
        assert!(card::render(&data, "export").contains("no labelled images outside"));
        data.stages.truncate(1);
        let page = html::render(&data).unwrap();
        assert!(page.contains("this run pre-trained only"));
        assert!(page.contains("A backbone without a classifier, trained from random weights"));
    }
}
