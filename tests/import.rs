//! Weights of other programs: found, renamed, converted and resized; misfits by name.

mod common;
#[allow(dead_code)] // it has models of every family
#[path = "../src/backbone/tiny.rs"]
mod tiny;

use std::path::{Path, PathBuf};

use common::{flowers, run, stderr, tiny_run};
use fewvit::backbone::{NetSpec, Spec, Told, deit, pvt_v2, resize_pos_embed, t2t_vit};
use fewvit::nn::ParamSpec;
use fewvit::weights::{self, Head, Import, Named, Take};
use tiny::{DEIT, PVT, T2T};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The weights of a golden file under timm's keys.
fn expected(name: &str) -> Named {
    let all = weights::read(&golden(name)).expect("a golden file");
    let own = |(key, value): (String, _)| Some((key.strip_prefix("param.")?.to_owned(), value));
    all.into_iter().filter_map(own).collect()
}

/// Places and first values of a model of five classes.
fn model(family: &'static dyn Told, img_size: usize) -> (Vec<ParamSpec>, Vec<f32>) {
    let spec = Spec { name: "tiny", timm_name: None, family };
    let outline = NetSpec::classifier(spec, img_size, 5).outline().expect("a net");
    let values = outline.draw(0);
    (outline.parameters, values)
}

/// Writes tensors into a file of its own.
fn file(folder: &tempfile::TempDir, tensors: &Named) -> PathBuf {
    let path = folder.path().join("w.bin");
    let (mut specs, mut values) = (Vec::new(), Vec::new());
    for (key, (shape, tensor)) in tensors {
        let range = values.len()..values.len() + tensor.len();
        specs.push(ParamSpec { key: key.clone(), shape: shape.clone(), range, frozen: false });
        values.extend(tensor);
    }
    weights::write(&path, &specs, &values).expect("written");
    path
}

/// Imports tensors into a model.
fn import(
    tensors: &Named,
    family: &'static dyn Told,
    img_size: usize,
) -> fewvit::Result<(Vec<ParamSpec>, Vec<f32>, Import)> {
    let folder = tempfile::tempdir().expect("a folder");
    let (specs, mut values) = model(family, img_size);
    let seen = weights::import(&file(&folder, tensors), &specs, &mut values)?;
    Ok((specs, values, seen))
}

fn renamed(tensors: Named, name: impl Fn(&str) -> String) -> Named {
    tensors.into_iter().map(|(key, value)| (name(&key), value)).collect()
}

/// Holds a checkpoint that `tests/golden/import.py` made against the weights it was made from.
fn assert_weights(checkpoint: &str, family: &'static dyn Told, size: usize, of: &str, bits: i32) {
    let (specs, mut values) = model(family, size);
    let before = values.clone();
    let seen = weights::import(&golden(checkpoint), &specs, &mut values).expect("it fits");
    let expected = expected(of);
    let taken = |spec: &&ParamSpec| seen.complete().is_ok() || !spec.key.starts_with("head.");
    for spec in specs.iter().filter(taken) {
        for (ours, theirs) in values[spec.range.clone()].iter().zip(&expected[&spec.key].1) {
            let error = (ours - theirs).abs();
            assert!(error <= theirs.abs() * 2f32.powi(-bits) + 1e-7, "{}: {ours}", spec.key);
        }
    }
    let last = specs.last().expect("the head").range.clone();
    assert_eq!(values[last.clone()] == before[last], seen.complete().is_err(), "{checkpoint}");
}

#[test]
fn checkpoints_of_pytorch_hold_the_weights_they_were_made_from() {
    assert_weights("import_zip.pth", &DEIT, 24, "deit.safetensors", 8);
    assert_weights("import_legacy.pth", &PVT, 72, "pvt_v2.safetensors", 11);
}

#[test]
fn a_dino_checkpoint_gives_its_teacher_and_says_so() {
    let (specs, mut values) = model(&DEIT, 24);
    let seen = weights::import(&golden("import_zip.pth"), &specs, &mut values).expect("it fits");
    let notes = seen.notes.join("\n");
    assert!(notes.contains("the weights are `teacher.backbone.`"), "{notes}");
    assert!(notes.contains("not `student`, `teacher.head`"), "{notes}");
    assert!(notes.contains("the head starts afresh: the file has none"), "{notes}");
    let error = seen.complete().expect_err("no head").to_string();
    assert!(error.contains("missing: head.weight") && error.contains("head.bias"), "{error}");
}

#[test]
fn of_several_copies_the_one_that_the_original_programs_use_is_taken() {
    for (good, bad) in [
        ("state_dict_ema.", "state_dict."),
        ("model_ema.", "model."),
        ("teacher.backbone.", "student.module.backbone."),
        ("state_dict.module.base_encoder.", "state_dict.module.momentum_encoder."),
        ("state_dict.module.encoder_q.", "state_dict.module.encoder_k."),
    ] {
        let ours = expected("deit.safetensors");
        let zeros = |v: &(Vec<usize>, Vec<f32>)| (v.0.clone(), vec![0.0; v.1.len()]);
        let mut tensors: Named =
            ours.iter().map(|(k, v)| (format!("{bad}{k}"), zeros(v))).collect();
        tensors.extend(renamed(ours.clone(), |key| format!("{good}{key}")));
        let (specs, values, _) = import(&tensors, &DEIT, 24).expect(good);
        for spec in specs {
            assert_eq!(values[spec.range], ours[&spec.key].1, "{good} {}", spec.key);
        }
    }
}

#[test]
fn a_head_of_other_classes_is_replaced_and_what_is_on_top_is_named() {
    let mut tensors = expected("deit.safetensors");
    tensors.insert("head.weight".to_owned(), (vec![7, 16], vec![9.0; 7 * 16]));
    tensors.insert("head.bias".to_owned(), (vec![7], vec![9.0; 7]));
    tensors.insert("projector.0.weight".to_owned(), (vec![1], vec![0.0]));
    let (specs, values, seen) = import(&tensors, &DEIT, 24).expect("the backbone fits");
    let notes = seen.notes.join("\n");
    assert!(notes.contains("afresh: head.weight is [7, 16], the model's is [5, 16]"), "{notes}");
    assert!(notes.contains("not used: projector.0.weight"), "{notes}");
    assert!(seen.complete().is_err());
    let (_, before) = model(&DEIT, 24);
    for spec in specs {
        let same = values[spec.range.clone()] == before[spec.range.clone()];
        assert_eq!(same, spec.key.starts_with("head."), "{}", spec.key);
    }
}

#[test]
fn a_position_embedding_is_resized_or_where_it_is_computed_left() {
    let tensors = expected("deit.safetensors");
    let (specs, values, seen) = import(&tensors, &DEIT, 40).expect("it fits");
    let position = specs.iter().find(|spec| spec.key == "pos_embed").expect("there");
    let resized = resize_pos_embed(&tensors["pos_embed"].1, 3, 5, 16);
    assert_eq!(values[position.range.clone()], resized);
    assert!(seen.notes.iter().any(|note| note.contains("from 3 x 3 to 5 x 5")), "{seen:?}");

    let tensors = expected("t2t_vit.safetensors");
    let old = (tensors["pos_embed"].0[1] - 1).isqrt();
    let folder = tempfile::tempdir().expect("a folder");
    let path = file(&folder, &tensors);
    for regenerate in [false, true] {
        let (specs, fresh) = model(&T2T, 80);
        let mut values = fresh.clone();
        let take = Take { head: Head::IfItFits, regenerate };
        let seen = weights::import_taking(&path, &specs, &mut values, take).expect("it fits");
        let resized = resize_pos_embed(&tensors["pos_embed"].1, old, 5, 16);
        for spec in specs {
            let expected = match &*spec.key {
                "pos_embed" if regenerate => &fresh[spec.range.clone()],
                "pos_embed" => &resized,
                key => &tensors[key].1[..],
            };
            assert_eq!(&values[spec.range], expected, "{}", spec.key);
        }
        let note = if regenerate { "computed for this img-size" } else { "resized from" };
        assert!(seen.notes.iter().any(|text| text.contains(note)), "{seen:?}");
    }
}

#[test]
fn a_head_is_taken_in_the_order_of_the_classes_or_left_for_a_reason() {
    let tensors = expected("deit.safetensors");
    let folder = tempfile::tempdir().expect("a folder");
    let path = file(&folder, &tensors);
    let (specs, fresh) = model(&DEIT, 24);
    let head = specs.iter().find(|spec| spec.key == "head.weight").expect("a head");
    let bias = specs.iter().find(|spec| spec.key == "head.bias").expect("a bias");
    let given = (&tensors["head.weight"].1, &tensors["head.bias"].1);
    let rows = [3, 0, 4, 1, 2];
    for head_taken in [Head::Rows(&rows), Head::Left("for a test")] {
        let mut values = fresh.clone();
        let take = Take { head: head_taken, regenerate: false };
        let seen = weights::import_taking(&path, &specs, &mut values, take).expect("it fits");
        let taken = matches!(head_taken, Head::Rows(_));
        assert_eq!(seen.complete().is_ok(), taken);
        for (i, row) in rows.into_iter().enumerate() {
            let own = &values[head.range.clone()][i * 16..][..16];
            let expected = match taken {
                true => &given.0[row * 16..][..16],
                false => &fresh[head.range.clone()][i * 16..][..16],
            };
            assert_eq!(own, expected);
            let expected = if taken { given.1[row] } else { fresh[bias.range.start + i] };
            assert_eq!(values[bias.range.start + i], expected);
        }
        let note = if taken { "in the order they have here" } else { "afresh: for a test" };
        assert!(seen.notes.iter().any(|text| text.contains(note)), "{seen:?}");
    }
}

#[test]
fn every_misfit_of_a_backbone_is_named() {
    let mut tensors = expected("deit.safetensors");
    tensors.remove("blocks.1.norm2.bias");
    tensors.insert("blocks.3.norm1.weight".to_owned(), (vec![16], vec![0.0; 16]));
    tensors.insert("cls_token".to_owned(), (vec![16], vec![0.0; 16]));
    tensors.insert("pos_embed".to_owned(), (vec![1, 12, 16], vec![0.0; 12 * 16]));
    let error = import(&tensors, &DEIT, 24).expect_err("four misfits");
    assert_eq!(error.exit_code(), 1);
    for part in [
        "missing: blocks.1.norm2.bias",
        "unused: blocks.3.norm1.weight",
        "cls_token is [16], the model's is [1, 1, 16]",
        "pos_embed is [1, 12, 16], the model's is [1, 10, 16]",
    ] {
        assert!(error.to_string().contains(part), "{part:?} is not in {error}");
    }
}

#[test]
fn a_distilled_deit_is_refused_with_the_reason() {
    let mut tensors = expected("deit.safetensors");
    tensors.insert("dist_token".to_owned(), (vec![1, 1, 16], vec![0.0; 16]));
    tensors.insert("pos_embed".to_owned(), (vec![1, 11, 16], vec![0.0; 11 * 16]));
    let error = import(&tensors, &DEIT, 24).expect_err("another model").to_string();
    assert!(error.contains("distilled DeiT") && error.contains("w.bin"), "{error}");
}

#[test]
fn a_file_of_another_model_says_what_it_holds() {
    let tensors = Named::from([("layer1.0.conv1.weight".to_owned(), (vec![1], vec![0.0]))]);
    let error = import(&tensors, &DEIT, 24).expect_err("a ResNet").to_string();
    assert!(error.contains("w.bin holds no weights of this model"), "{error}");
    assert!(error.contains("layer1.0.conv1.weight"), "{error}");
}

#[test]
fn finetuning_starts_from_a_wrapped_checkpoint_and_says_what_became_of_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let (data, settings) = (flowers(folder.path(), 1), tiny_run(folder.path()));
    let net = NetSpec::classifier(Spec::find("deit_micro_patch8_96").expect("ours"), 48, 1000);
    let outline = net.outline().expect("a net");
    let values = outline.draw(0);
    let tensor = |spec: ParamSpec| {
        (format!("state_dict.module.{}", spec.key), (spec.shape, values[spec.range].to_vec()))
    };
    let weights = file(&folder, &outline.parameters.into_iter().map(tensor).collect());
    let out = folder.path().join("run");
    let [data, weights, settings, out] = [&data, &weights, &settings, &out].map(|p| p.display());
    let line = format!(
        "finetune {data} --model deit_micro_patch8_96 --init {weights} -c {settings} --output {out}"
    );
    let output = run(line.split(' '));
    let stderr = stderr(&output);
    assert!(output.status.success(), "{stderr}");
    for note in [
        "the weights are `state_dict.module.` of",
        "pos_embed is resized from 6 x 6 to 4 x 4",
        "the head starts afresh: nothing says which classes its rows are for",
    ] {
        assert!(stderr.contains(note), "{note:?} is not in {stderr}");
    }
}

/// Pre-training and fine-tuning with one epoch at a rate so small that weights stay where they start.
#[test]
fn finetuning_keeps_a_head_of_the_same_classes_and_never_one_of_pretraining() {
    let folder = tempfile::tempdir().expect("a folder");
    let (data, settings) = (flowers(folder.path(), 1), tiny_run(folder.path()));
    let still = "--lr 1e-12 --weight-decay 0 --epochs 1 --model deit_micro_patch8_96";
    let train = |command: &str, data: &Path, out: &str, more: &str| {
        let out = folder.path().join(out);
        let [data, settings, out_text] = [data, &settings, &out].map(|p| p.display());
        let line = format!("{command} {data} -c {settings} --output {out_text} {still} {more}");
        let output = run(line.split_whitespace());
        assert!(output.status.success(), "{line}: {}", stderr(&output));
        (out, stderr(&output))
    };
    let head = |run: &Path| {
        let weights = weights::read(&run.join("export/model.safetensors")).expect("exported");
        weights["head.weight"].1.clone()
    };
    let init = |run: &Path| format!("--init {}", run.display());
    // Twelve images, twelve classes: the head of instances has the size of the classifier.
    for method in ["idmm", "supervised"] {
        let (pre, _) =
            train("pretrain", &data, &format!("pre-{method}"), &format!("--method {method}"));
        let (tuned, said) = train("finetune", &data, &format!("tuned-{method}"), &init(&pre));
        assert!(said.contains("the head starts afresh: nothing says which classes"), "{said}");
        let own = weights::read(&pre.join("checkpoints/pretrained.safetensors")).expect("weights");
        assert_eq!(own["head.weight"].0, [12, 128], "{method}");
        let apart =
            own["head.weight"].1.iter().zip(head(&tuned)).any(|(a, b)| (a - b).abs() > 1e-3);
        assert!(apart, "{method}");
    }
    let (tuned, _) = train("finetune", &data, "scratch", "--from-scratch --seed 5");
    let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
    let (again, said) = train("finetune", &data, "again", &init(&tuned));
    assert!(said.contains("the head is the file's, of 12 classes"), "{said}");
    assert!(close(&head(&again), &head(&tuned)));
    // The same weights say nothing of classes where no config.json lies beside them.
    let alone = folder.path().join("alone.safetensors");
    std::fs::copy(tuned.join("export/model.safetensors"), &alone).expect("copied");
    let (afresh, said) = train("finetune", &data, "alone", &init(&alone));
    assert!(said.contains("the head starts afresh"), "{said}");
    assert!(!close(&head(&afresh), &head(&tuned)));
    // The names in another order: rows move with them.
    let export = folder.path().join("moved");
    std::fs::create_dir(&export).expect("made");
    std::fs::copy(&alone, export.join("model.safetensors")).expect("copied");
    let config = std::fs::read_to_string(tuned.join("export/config.json")).expect("there");
    let mut config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
    config["label_names"].as_array_mut().expect("names").rotate_left(1);
    std::fs::write(export.join("config.json"), config.to_string()).expect("written");
    let (moved, said) = train("finetune", &data, "rotated", &init(&export));
    assert!(said.contains("in the order they have here"), "{said}");
    let mut expected = head(&tuned);
    expected.rotate_right(128);
    assert!(close(&head(&moved), &expected));
    // Other classes.
    config["label_names"][0] = "something else".into();
    std::fs::write(export.join("config.json"), config.to_string()).expect("written");
    let (_, said) = train("finetune", &data, "others", &init(&export));
    assert!(said.contains("the head starts afresh: the classes here are others"), "{said}");
}

/// DINO hands on its teacher, MoCo the encoder of its queries, and the flag changes that.
#[test]
fn pretraining_ends_with_the_encoder_that_the_method_hands_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let (data, settings) = (flowers(folder.path(), 1), tiny_run(folder.path()));
    let small = ["hidden=16", "bottleneck=16", "prototypes=16"];
    let small: String = small.iter().map(|s| format!(" --set pretrain.options.{s}")).collect();
    for (name, more, prefix) in [
        ("dino", format!("--method dino{small}"), "teacher."),
        ("dino-student", format!("--method dino --student{small}"), "param."),
        ("moco-v2", "--method moco-v2 --set pretrain.options.queue=16".to_owned(), "param."),
    ] {
        let out = folder.path().join(name);
        let [data, settings, out_text] = [&data, &settings, &out].map(|p| p.display());
        let line = format!(
            "pretrain {data} --model deit_micro_patch8_96 -c {settings} --output {out_text} {more}"
        );
        let output = run(line.split_whitespace());
        assert!(output.status.success(), "{}", stderr(&output));
        let read = |file: &str| weights::read(&out.join("checkpoints").join(file)).expect(file);
        let (handed_on, last) = (read("pretrained.safetensors"), read("last.safetensors"));
        let key = "blocks.0.mlp.fc1.weight";
        assert_eq!(handed_on[key], last[&format!("{prefix}{key}")], "{name}");
        assert_ne!(last[&format!("teacher.{key}")], last[&format!("param.{key}")], "{name}");
    }
}
