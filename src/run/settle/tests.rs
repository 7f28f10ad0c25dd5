use super::*;
use crate::config::{Source, recipe, to_toml};

const BOTH: Stages = Stages { pretrain: true, finetune: true };
const PRETRAIN: Stages = Stages { pretrain: true, finetune: false };
const FINETUNE: Stages = Stages { pretrain: false, finetune: true };

fn layers(recipe: &str, sets: &[&str]) -> Layers {
    let mut layers = Layers::new(recipe).expect(recipe);
    for set in sets {
        layers.set(set, Source::Flag("--set")).expect(set);
    }
    layers
}

fn refused(layers: Layers, stages: Stages) -> String {
    let error = settle(layers, stages).expect_err("something does nothing");
    assert_eq!(error.exit_code(), 2);
    error.to_string()
}

fn in_file(recipe: &str, text: &str) -> Layers {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("mine.toml");
    std::fs::write(&path, text).expect("written");
    let mut layers = layers(recipe, &[]);
    layers.file(&path).expect("a file");
    layers
}

#[test]
fn what_the_method_does_not_read_is_refused_from_every_layer() {
    for method in ["simclr", "supcon", "moco-v2", "moco-v3", "dino"] {
        for key in [
            "cutmix=0.5",
            "cutmix=0",
            "projector=8",
            "classifier_bias=false",
            "optim.smoothing=0.1",
        ] {
            let set = format!("pretrain.{key}");
            let text = refused(layers(method, &[&set]), BOTH);
            let name = set.split('=').next().expect("a key");
            assert!(text.contains(&format!("--set {name} does nothing: {method}")), "{text}");
            assert!(text.contains("idmm"), "{text}");
        }
    }
    for (method, key) in [
        ("supervised", "pretrain.projector=8"),
        ("supervised", "pretrain.options.dim=8"),
        ("idmm", "pretrain.options.dim=8"),
        ("idmm", "pretrain.encoder=teacher"),
        ("simclr", "pretrain.encoder=student"),
    ] {
        let method = format!("pretrain.method={method}");
        let text = refused(layers("paper", &[&method, key]), BOTH);
        assert!(text.contains("does nothing"), "{text}");
    }
    let text = refused(in_file("simclr", "pretrain.cutmix = 0.5"), BOTH);
    assert!(text.contains("pretrain.cutmix in ") && text.contains("mine.toml"), "{text}");
    settle(in_file("simclr", "pretrain.cutmix = 0"), BOTH).expect("the recipe's own value");
    let mut by_env = layers("dino", &[]);
    by_env.env([("FEWVIT_PRETRAIN__CUTMIX".into(), "0.5".into())]).expect("a variable");
    assert!(refused(by_env, BOTH).contains("FEWVIT_PRETRAIN__CUTMIX does nothing: dino"));
}

/// A size that somebody names has no smaller crops instead, with every recipe and whether it is smaller or not.
#[test]
fn a_size_that_was_named_stays() {
    for recipe in ["paper", "quick"] {
        for side in [32, 64, 160] {
            let resolved = settle(layers(recipe, &[&format!("finetune.img_size={side}")]), BOTH);
            let finetune = resolved.expect("in range").config.finetune;
            let others = (finetune.least_full_steps, finetune.large_img_size);
            assert_eq!((finetune.img_size, others), (side, (0, 0)), "{recipe}");
        }
    }
    let quick = settle(layers("quick", &[]), BOTH).expect("a recipe").config.finetune;
    assert!(quick.least_full_steps > 0 && quick.may_be_larger());
}

/// Somebody who names a method of pre-training gets it in any recipe, whatever has a label; a file may say both.
#[test]
fn a_method_that_was_named_stays() {
    for recipe in ["paper", "quick"] {
        for method in ["idmm", "dino"] {
            let named = settle(layers(recipe, &[&format!("pretrain.method={method}")]), BOTH);
            assert_eq!(named.expect("fits").config.pretrain.few_labels, 1.0, "{recipe} {method}");
        }
    }
    let both = ["pretrain.method=dino", "pretrain.few_labels=0.2"];
    let few_labels = |sets: &[&str]| {
        settle(layers("quick", sets), BOTH).expect("fits").config.pretrain.few_labels
    };
    assert_eq!(few_labels(&both), 0.2);
    assert!(few_labels(&[]) < 1.0);
}

/// Every key that only some methods read is one of the configuration.
#[test]
fn methods_read_keys_that_there_are() {
    let resolved = layers("dino", &[]).build().expect("a recipe");
    for entry in method::TABLE {
        for key in entry.reads {
            assert!(resolved.history(&format!("pretrain.{key}")).is_ok(), "{}: {key}", entry.name);
        }
    }
}

#[test]
fn what_is_switched_off_or_of_another_optimiser_is_refused() {
    for (recipe, sets, why) in [
        ("paper", &["finetune.optim.momentum=0.8"][..], "AdamW has betas and no momentum"),
        ("paper-simclr", &["pretrain.optim.beta1=0.8"], "SGD has a momentum and no betas"),
        ("paper", &["finetune.augment.blur_sigma=[1.0,2.0]"], "the blur is off"),
        ("paper", &["finetune.optim.clip_mode=parameter"], "nothing is clipped"),
        (
            "paper",
            &["finetune.optim.smoothing=0", "finetune.optim.smoothing_kind=others"],
            "smoothing is 0",
        ),
        ("paper", &["pretrain.cutmix=0", "pretrain.cutmix_lambda=raw"], "CutMix is off"),
        ("paper", &["few_images=70"], "there is no time budget"),
        ("paper", &["finetune.eval_share=0.1"], "there is no time budget"),
        ("paper", &["pretrain.probe_share=0.1"], "there is no time budget"),
        (
            "paper",
            &["finetune.optim.lr_schedule=constant", "finetune.optim.min_lr=1e-6"],
            "constant",
        ),
        (
            "paper",
            &["finetune.optim.lr_schedule=constant", "finetune.optim.decay_epochs=9"],
            "only the cosine",
        ),
        ("paper", &["model.pos_embed=regenerate"], "only T2T-ViT"),
        (
            "moco-v3",
            &["model.name=t2t_vit_7", "pretrain.options.freeze_patch_embed=true"],
            "no projection of patches",
        ),
    ] {
        let text = refused(layers(recipe, sets), BOTH);
        assert!(text.contains(why), "{text}");
    }
    for sets in [
        &["finetune.optim.kind=sgd", "finetune.optim.momentum=0.8"][..],
        &["finetune.optim.kind=muon", "finetune.optim.momentum=0.9", "finetune.optim.beta1=0.8"],
        &["finetune.augment.blur=0.1", "finetune.augment.blur_sigma=[1.0,2.0]"],
        &["model.name=t2t_vit_7", "model.pos_embed=regenerate"],
    ] {
        settle(layers("paper", sets), BOTH).unwrap_or_else(|e| panic!("{sets:?}: {e}"));
    }
    settle(in_file("paper", "finetune.augment.blur_sigma = [1.0, 2.0]"), BOTH).expect("a file may");
}

#[test]
fn settings_of_a_stage_that_does_not_take_place_are_refused() {
    let sets =
        ["pretrain.optim.epochs=0", "pretrain.crops=[{count=2,img_size=96,scale=[0.2,1.0]}]"];
    assert!(refused(layers("paper", &sets), BOTH).contains("its epochs are 0"));
    assert!(refused(layers("paper", &sets[1..]), FINETUNE).contains("does not pre-train"));
    assert!(
        refused(layers("paper", &["finetune.mixup=1"]), PRETRAIN).contains("does not fine-tune")
    );
    // A file may be for other runs, too.
    settle(in_file("paper", "pretrain.cutmix = 0.1\nfinetune.mixup = 0.1"), FINETUNE)
        .expect("a file");
}

/// A flag about both stages is read in one of them; the other has what its recipe says, and the
/// settings that the run writes can be given back.
#[test]
fn a_flag_that_one_stage_reads_leaves_the_other_alone() {
    let mut both = layers("simclr", &[]);
    for key in ["pretrain.cutmix", "finetune.cutmix"] {
        both.put(key, 0.7.into(), Source::Flag("--cutmix")).expect("a key");
    }
    let config = settle(both, BOTH).expect("fine-tuning reads it").config;
    assert_eq!((config.pretrain.cutmix, config.finetune.cutmix), (0.0, 0.7));
    let again = in_file("paper", &to_toml(&config).expect("TOML"));
    assert_eq!(settle(again, BOTH).expect("its own settings").config, config);
}

#[test]
fn the_settings_of_every_run_can_be_given_back() {
    for recipe in recipe::TABLE {
        for model in ["deit_tiny_patch16_224", "pvt_v2_b0", "t2t_vit_7"] {
            let model = format!("model.name={model}");
            let config = settle(layers(recipe.name, &[&model]), BOTH).expect(recipe.name).config;
            let again = in_file("paper", &to_toml(&config).expect("TOML"));
            assert_eq!(settle(again, BOTH).expect(recipe.name).config, config);
        }
    }
}

#[test]
fn methods_and_their_options_are_checked_before_there_is_any_data() {
    for (recipe, set, text) in [
        ("paper", "pretrain.method=idmn", "known methods: idmm"),
        ("simclr", "pretrain.options.temperature=0", "temperature is 0.0, must be more than 0"),
        ("simclr", "pretrain.options.temprature=1", "temprature"),
        ("moco-v2", "pretrain.options.momentum=nan", "must be 0 to 1"),
        ("dino", "pretrain.crops=[{count=1,img_size=112,scale=[0.2,1.0]}]", "two views"),
    ] {
        let said = refused(layers(recipe, &[set]), BOTH);
        assert!(said.contains(text), "{said}");
    }
}
