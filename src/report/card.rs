//! The model card: `README.md` of an export folder, in the form the Hugging Face hub reads.

use std::fmt::Write as _;

use super::ReportData;
use super::markdown::{block, code, escaped};
use super::words::{REPEAT, shell};
use crate::eval::metric::Metrics;
use crate::words::{counted, shortened};

/// The card as Markdown. `folder` is where the export lies.
pub fn render(data: &ReportData, folder: &str) -> String {
    let mut card = front_matter(data);
    let (model, images) = (&data.model, &data.data);
    let [name, opening] = [escaped(&images.name), escaped(&data.opening())];
    let _ = write!(card, "\n# {} trained on {name}\n\n{opening}\n", model.name);
    let accuracy = match data.headline() {
        Some(headline) => format!("**{headline}**"),
        None => data.unmeasured().to_owned(),
    };
    let _ = write!(card, "\n## Accuracy\n\n{accuracy}\n\n");
    for note in data.notes() {
        let _ = writeln!(card, "- {note}");
    }
    card.push_str(&usage(data, folder));
    card.push_str(&training(data));
    card.push_str(&limits(data));
    let _ = write!(card, "\n## Licence\n\n{}\n", data.ownership());
    card
}

/// Metadata that the hub shows beside the card.
fn front_matter(data: &ReportData) -> String {
    let [library, tag] =
        if data.model.timm { ["library_name: timm\n", "- timm\n"] } else { [""; 2] };
    let mut yaml = format!(
        "---\n{library}pipeline_tag: image-classification\nlicense: other\ntags:\n\
         - image-classification\n{tag}- fewvit\n"
    );
    if let Some(m) = &data.metrics {
        let name = quoted(&data.data.name);
        let _ = write!(
            yaml,
            "model-index:\n- name: {}\n  results:\n  - task:\n      type: image-classification\n    dataset:\n      \
             name: {name}\n      type: {name}\n      split: {}\n    metrics:\n    - type: accuracy\n      value: {:.4}\n",
            quoted(&data.model.name),
            quoted(&data.data.test_split),
            m.top1
        );
    }
    yaml + "---\n"
}

/// A YAML string; JSON's strings are also YAML's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// How to load it: with timm where timm has the model, otherwise with fewvit or from its ONNX file.
fn usage(data: &ReportData, folder: &str) -> String {
    let size = data.model.img_size;
    let with_fewvit = code(&format!("fewvit predict {} image.jpg", shell(&[folder.to_owned()])));
    if !data.model.timm {
        return format!(
            "\n## Use\n\ntimm has no {}. Use {with_fewvit}, or `model.onnx` with onnxruntime and other programs: its \
             metadata hold the class names and how an image becomes its input. `model.safetensors` has the weights \
             under the keys of the authors' own code.\n",
            data.model.name
        );
    }
    format!(
        "\n## Use\n\n```python\nimport timm, torch\nfrom PIL import Image\n\n\
         model = timm.create_model({}, pretrained=True).eval()\n\
         transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n\
         image = transform(Image.open(\"image.jpg\").convert(\"RGB\")).unsqueeze(0)  # [1, 3, {size}, {size}]\n\
         with torch.inference_mode():\n    probabilities = model(image).softmax(-1)[0]\n\
         print(model.pretrained_cfg[\"label_names\"][probabilities.argmax()], probabilities.max().item())\n```\n\n\
         Or without Python: {with_fewvit}.\n",
        quoted(&format!("local-dir:{folder}"))
    )
}

fn training(data: &ReportData) -> String {
    let mut text = "\n## Training\n\n".to_owned();
    for sentence in data.done() {
        let _ = writeln!(text, "- {}", escaped(&sentence));
    }
    let [repeat, command] = [&data.repeat, &data.command].map(|command| block(command));
    text + &format!("\n{repeat}\n\n{REPEAT} The run was begun with:\n\n{command}\n")
}

fn limits(data: &ReportData) -> String {
    let mut text = format!(
        "\n## Limits\n\n\
         - The answer is always one of the {}, also for an image that shows none of them.\n\
         - The accuracy holds for images taken the way the training images were. A different camera, place or \
         population can lower it a lot; measure again there.\n",
        counted(data.data.classes.len(), "class")
    );
    if let Some(m) = &data.metrics {
        let _ = writeln!(
            text,
            "- Confidences are not probabilities of being right: on average they miss by {:.1} points.",
            100.0 * m.ece
        );
        let _ = write!(text, "{}{}", least_often_right(data, m), never_measured(data, m));
    }
    text
}

/// The five classes that are most often taken for others; nothing where none is.
fn least_often_right(data: &ReportData, metrics: &Metrics) -> String {
    let recall = metrics.per_class.iter().enumerate().filter_map(|(i, c)| Some((c.recall?, i)));
    let mut classes: Vec<_> = recall.filter(|(recall, _)| *recall < 1.0).collect();
    classes.sort_by(|a, b| a.0.total_cmp(&b.0));
    let name = |&(recall, i): &(f64, usize)| {
        format!("{} ({:.0}%)", escaped(&data.class_name(i)), 100.0 * recall)
    };
    let worst: Vec<String> = classes.iter().take(5).map(name).collect();
    match worst.is_empty() {
        true => String::new(),
        false => format!("- Least often right on: {}.\n", worst.join(", ")),
    }
}

/// The classes without an image that they could be measured on.
fn never_measured(data: &ReportData, metrics: &Metrics) -> String {
    let without = metrics.per_class.iter().enumerate().filter(|(_, c)| c.recall.is_none());
    let names: Vec<String> = without.map(|(i, _)| escaped(&data.class_name(i))).collect();
    match names.is_empty() {
        true => String::new(),
        false => {
            format!(
                "- Never measured, for want of {} images: {}.\n",
                data.data.test_split,
                shortened(&names)
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    #[test]
    fn says_how_good_how_to_load_and_where_it_fails() {
        let data = sample(5, 12);
        let card = render(&data, "export");
        for text in [
            "---\nlibrary_name: timm\n",
            "timm.create_model(\"local-dir:export\", pretrained=True)",
            "# deit_tiny_patch16_224 trained on flowers",
            "- 800 epochs of IDMM pre-training at 112 px, self-supervised without labels (5 h 45 min).",
            "No pre-trained weights and no other images were used.",
            "Small test set",
            "`fewvit predict export image.jpg`",
            "## Licence",
        ] {
            assert!(card.contains(text), "{text}\n{card}");
        }
        assert!(card.contains(&format!("**{}**", data.headline().unwrap())));
        assert_eq!(quoted("a \"b\""), r#""a \"b\"""#);
    }

    #[test]
    fn a_folder_is_quoted_for_the_shell_and_for_python_each_in_its_way() {
        let card = render(&sample(5, 12), "runs/tiny ü/export");
        let python = "timm.create_model(\"local-dir:runs/tiny ü/export\", pretrained=True)";
        for text in [python, "`fewvit predict 'runs/tiny ü/export' image.jpg`"] {
            assert!(card.contains(text), "{text}\n{card}");
        }
    }

    #[test]
    fn names_are_shown_as_they_are_and_make_no_markup() {
        let mut data = sample(5, 12);
        data.data.name = "<b>moths</b>\n# H".to_owned();
        data.data.classes[1] = "``` <script>alert(1)".to_owned();
        data.data.classes[2] = "a | b*".to_owned();
        data.command = "fewvit train 'a\n```\nb'".to_owned();
        let metrics = data.metrics.as_mut().expect("metrics");
        metrics.per_class.iter_mut().for_each(|class| class.recall = Some(1.0));
        (metrics.per_class[1].recall, metrics.per_class[2].recall) = (Some(0.5), None);
        let card = render(&data, "a`b/export");
        for text in [
            "\n# deit_tiny_patch16_224 trained on \\<b\\>moths\\</b\\> \\# H\n",
            "\n- \\<b\\>moths\\</b\\> \\# H: 2,040 training images",
            "name: \"<b>moths</b>\\n# H\"\n",
            "right on: \\`\\`\\` \\<script\\>alert(1) (50%)",
            "test images: a \\| b\\*.\n",
            "`` fewvit predict 'a`b/export' image.jpg ``",
            "\n````\nfewvit train 'a\n```\nb'\n````\n",
        ] {
            assert!(card.contains(text), "{text}\n{card}");
        }
        let front = card.match_indices("---\n").nth(1).expect("front matter").0;
        assert!(!card[front..].contains("<b>") && !card.contains("<script>"), "{card}");
    }

    #[test]
    fn classes_that_are_always_right_or_never_measured_are_no_weak_ones() {
        let mut data = sample(5, 12);
        let recalls = |data: &mut ReportData, of: &[Option<f64>]| {
            let metrics = data.metrics.as_mut().expect("metrics");
            let mut recall = of.iter().copied().cycle();
            metrics.per_class.iter_mut().for_each(|c| c.recall = recall.next().flatten());
        };
        recalls(&mut data, &[Some(1.0), Some(0.5), None]);
        let card = render(&data, "export");
        let [right, weak, unmeasured] = [0, 1, 2].map(|i| escaped(&data.class_name(i)));
        assert!(card.contains(&format!("- Least often right on: {weak} (50%)")), "{card}");
        assert!(!card.contains(&format!("{right} (100%)")), "{card}");
        assert!(card.contains(&format!("for want of test images: {unmeasured}")), "{card}");
        recalls(&mut data, &[Some(1.0)]);
        let card = render(&data, "export");
        assert!(!card.contains("Least often") && !card.contains("Never measured"), "{card}");
    }
}
