use super::*;
use crate::config::{OnBadImage, Resolved};

fn paper() -> Layers {
    Layers::new("paper").expect("the default recipe")
}

fn usage(error: Error) -> String {
    assert_eq!(error.exit_code(), 2, "{error}");
    error.to_string()
}

fn failure(assignment: &str) -> String {
    let mut layers = paper();
    let set = layers.set(assignment, Source::Flag("--set"));
    usage(set.and_then(|()| layers.build()).expect_err(assignment))
}

fn variable(name: &str, value: &str) -> (OsString, OsString) {
    (name.into(), value.into())
}

#[test]
fn each_layer_wins_over_the_one_before_and_is_remembered() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("mine.toml");
    let text = "seed = 2\n[pretrain.optim]\nepochs = 2\nlr = 2e-4\nwarmup_epochs = 1\n";
    std::fs::write(&path, text).expect("a file");
    let mut layers = Layers::new("quick").expect("a recipe");
    let epochs = |layers: &Layers| {
        let resolved = layers.clone().build().expect("valid");
        resolved.config.pretrain.optim.epochs
    };
    assert_eq!((epochs(&paper()), epochs(&layers)), (800, 100));
    layers.file(&path).expect("the file");
    assert_eq!(epochs(&layers), 2);
    let name = "FEWVIT_PRETRAIN__OPTIM__EPOCHS";
    let variables = [variable(name, "3"), variable("FEWVIT_SIMD", "avx2"), variable("HOME", "/")];
    layers.env(variables).expect("the variables");
    assert_eq!(epochs(&layers), 3);
    layers.set("pretrain.optim.epochs = 4", Source::Flag("--set")).expect("a key");
    layers.put("pretrain.optim.epochs", 5.into(), Source::Flag("--epochs")).expect("a key");
    let resolved = layers.build().expect("valid");
    assert_eq!((resolved.config.pretrain.optim.epochs, resolved.config.seed), (5, 2));
    assert_eq!(resolved.config.pretrain.optim.warmup_epochs, 1.0);
    assert_eq!(resolved.origin("pretrain.optim.epochs"), Some(&Source::Flag("--epochs")));
    assert_eq!(resolved.origin("pretrain.optim.lr"), Some(&Source::File(path.clone())));
    assert_eq!(resolved.origin("pretrain.optim.batch_size"), Some(&Source::Recipe("quick")));
    assert_eq!(resolved.origin("pretrain.optim.beta1"), Some(&Source::Recipe("paper")));
    let expected = format!(
        "pretrain.optim.epochs = 5\n  set by --epochs\n  instead of 4 from --set\n  \
         instead of 3 from environment variable {name}\n  instead of 2 from file {}\n  \
         instead of 100 from recipe `quick`\n  instead of 800 from recipe `paper`\n",
        path.display()
    );
    assert_eq!(resolved.explain("pretrain.optim.epochs").expect("a key"), expected);
    assert_eq!(resolved.explain("eval").expect("a section").matches(" = ").count(), 7);
    assert!(usage(resolved.explain("evil").expect_err("no key")).contains("did you mean"));
}

#[test]
fn an_unknown_key_is_named_with_its_setter_and_the_closest_known_key() {
    let text = failure("finetune.optim.rl=1");
    assert!(text.contains("no key finetune.optim.rl (from --set)"), "{text}");
    assert!(text.contains("did you mean finetune.optim.lr?"), "{text}");
    assert!(failure("pretrain.lr=1").contains("did you mean pretrain.optim.lr?"));
    let text = failure("lr=1");
    assert!(text.contains("did you mean finetune.optim.lr or pretrain.optim.lr?"), "{text}");
    let text = failure("eval=1");
    assert!(text.contains("is a section") && text.contains("crop_pct, "), "{text}");
    let text = usage(paper().env([variable("FEWVIT_SED", "1")]).expect_err("no such key"));
    assert!(text.contains("environment variable FEWVIT_SED") && text.contains("seed"), "{text}");
    assert!(failure("seed").contains("expected KEY=VALUE"));
    assert!(failure("seed={a=1}").contains("no key seed.a"));
}

#[test]
fn a_wrong_type_says_what_was_expected_and_found() {
    for (assignment, expected) in [
        ("finetune.optim.lr=high", "expected a number, found a text"),
        ("finetune.optim.epochs=1.5", "expected a whole number, found a number"),
        ("finetune.optim.epochs=-1", "expected 0 or more"),
        ("pretrain.classifier_bias=1", "expected true or false, found a whole number"),
        ("finetune.scale=[0.1]", "expected a list like [0.08, 1.0]"),
        ("pretrain.crops=[{count=1}]", "expected a list like [{"),
        ("pretrain.optim.lr_schedule=cosin", "expected one of `cosine`, `idmm-quirk`"),
    ] {
        let text = failure(assignment);
        assert!(text.contains(expected) && text.contains("(from --set)"), "{text}");
    }
}

#[test]
fn a_value_out_of_range_is_named_with_its_setter() {
    for (assignment, expected) in [
        ("finetune.optim.lr=0", "finetune.optim.lr is 0.0, must be more than 0"),
        ("finetune.optim.lr=nan", "is NaN, must be more than 0"),
        ("pretrain.optim.lr=-0.1", "is -0.1, must be more than 0"),
        ("finetune.optim.epochs=0", "finetune.optim.epochs is 0, must be 1 to"),
        ("pretrain.optim.batch_size=0", "must be 1 to"),
        ("finetune.img_size=100", "whose side is a multiple of 16; 100 is not"),
        ("finetune.img_size=0", "is 0, must be 1 to 2048"),
        ("model.name=deit_tiny", "did you mean `deit_tiny_patch16_224`"),
        ("pretrain.augment.solarize=1.1", "must be 0 to 1"),
        ("pretrain.augment.solarize=nan", "must be 0 to 1"),
        ("pretrain.crops=[{count=2,img_size=112,scale=[0.1,1],blur=2}]", "must be 0 to 1"),
        ("pretrain.crops=[{count=2,img_size=112,scale=[0.1,1],solarize=-1}]", "must be 0 to 1"),
        ("pretrain.crops=[{count=2,img_size=100,scale=[0.1,1]}]", "a multiple of 16; 100 is not"),
        ("pretrain.augment.ratio=[1.3,0.7]", "LOW <= HIGH"),
        ("pretrain.augment.blur_sigma=[2.0,nan]", "LOW <= HIGH"),
        ("finetune.optim.momentum=1", "must be 0 or more and less than 1"),
        ("finetune.optim.beta2=1", "must be 0 or more and less than 1"),
        ("finetune.optim.eps=0", "more than 0"),
        ("finetune.optim.min_lr=0.1", "must be 0 or more and at most lr"),
        ("finetune.optim.weight_decay_end=nan", "must be 0 or more"),
        ("finetune.optim.warmup_epochs=201", "is 201.0, must be at most the stage's 200 epochs"),
        ("eval.knn_k=0", "must be 1 to"),
        ("eval.probe.folds=1", "must be 2 to"),
        ("eval.probe.iterations=0", "must be 1 to"),
        ("eval.probe.penalties=[]", "one or more numbers"),
        ("eval.probe.penalties=[0.1,1.0]", "the strongest first"),
        ("eval.probe.penalties=[nan]", "one or more numbers"),
        ("finetune.optim.smoothing=1", "must be 0 or more and less than 1"),
        ("pretrain.cutmix=-1", "must be 0 or more"),
        ("pretrain.augment.blur=1.1", "must be 0 to 1"),
        ("finetune.scale=[0.5,0.1]", "must be [LOW, HIGH]"),
        ("finetune.scale=[0,1]", "must be [LOW, HIGH]"),
        ("data.test_fraction=1", "more than 0 and less than 1"),
        ("data.std=[0.2,0.0,0.2]", "above 0"),
        ("pretrain.crops=[]", "at least one group"),
        ("pretrain.crops=[{count=0,img_size=112,scale=[0.1,1]}]", "must be 1 to 64"),
        ("time_budget=inf", "must be 0 or more"),
        ("eval.knn_temperature=0", "more than 0"),
    ] {
        let text = failure(assignment);
        assert!(text.contains(expected) && text.contains("(set by --set)"), "{text}");
    }
    let two = "[{count=1,img_size=112,scale=[0.1,1]},{count=1,img_size=96,scale=[0.1,1]}]";
    assert!(failure(&format!("pretrain.crops={two}")).contains("of one size"));
    let mut layers = paper();
    layers.set("pretrain.optim.epochs=0", Source::Flag("--set")).expect("a key");
    layers.build().expect("0 epochs skip pre-training");
}

#[test]
fn texts_and_numbers_of_set_need_no_quotes() {
    let mut layers = paper();
    for assignment in
        ["model.name=deit_small_patch16_224", "data.on_bad_image=skip", "finetune.optim.lr=.5"]
    {
        layers.set(assignment, Source::Flag("--set")).expect(assignment);
    }
    let config = layers.build().expect("valid").config;
    assert_eq!(config.model.name, "deit_small_patch16_224");
    assert_eq!((config.data.on_bad_image, config.finetune.optim.lr), (OnBadImage::Skip, 0.5));
}

#[test]
fn a_dump_laid_over_another_recipe_is_that_run_again() {
    let quick = Layers::new("quick").and_then(Layers::build).expect("a recipe").config;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("config.toml");
    let dump = to_toml(&quick).expect("a dump");
    assert!(dump.contains("mean = [0.485, 0.456, 0.406]"), "{dump}");
    std::fs::write(&path, dump).expect("a file");
    let mut layers = paper();
    layers.file(&path).expect("the file");
    assert_eq!(layers.build().expect("valid").config, quick);
    std::fs::write(&path, "seed = ").expect("a file");
    let text = usage(paper().file(&path).expect_err("no TOML"));
    assert!(text.contains("config.toml is no TOML") && text.contains("line 1"), "{text}");
    assert_eq!(paper().file(&folder.path().join("no")).expect_err("no file").exit_code(), 2);
}

fn built(recipe: &str, assignments: &[&str]) -> Resolved {
    let mut layers = Layers::new(recipe).expect(recipe);
    for assignment in assignments {
        layers.set(assignment, Source::Flag("--set")).expect(assignment);
    }
    layers.build().unwrap_or_else(|e| panic!("{recipe} {assignments:?}: {e}"))
}

#[test]
fn the_recipe_of_a_method_lies_below_whichever_layer_chose_it() {
    let expected = Layers::new("dino").and_then(Layers::build).expect("a recipe").config;
    assert_eq!(expected.pretrain.optim.lr, 1e-3);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("mine.toml");
    std::fs::write(&path, "[pretrain]\nmethod = \"dino\"\n").expect("a file");
    let mut by_file = paper();
    by_file.file(&path).expect("the file");
    let mut by_env = paper();
    by_env.env([variable("FEWVIT_PRETRAIN__METHOD", "dino")]).expect("the variable");
    let mut by_set = paper();
    by_set.set("pretrain.method=dino", Source::Flag("--set")).expect("a key");
    for layers in [by_file, by_env, by_set] {
        let resolved = layers.build().expect("valid");
        assert_eq!(resolved.config, expected);
        assert_eq!(resolved.origin("pretrain.optim.lr"), Some(&Source::Recipe("dino")));
    }
    // What people set lies above it, set before or after.
    for order in [
        ["pretrain.optim.lr=1e-5", "pretrain.method=dino"],
        ["pretrain.method=dino", "pretrain.optim.lr=1e-5"],
    ] {
        let optim = built("quick", &order).config.pretrain.optim;
        assert_eq!((optim.lr, optim.clip_grad, optim.epochs), (1e-5, 3.0, 100));
    }
    // A recipe that is one of the method stays, one of another method is not mixed with it.
    let config = built("paper-dino", &["pretrain.method=dino"]).config;
    assert_eq!(config.about.name, "paper-dino");
    for (recipe, method) in [("simclr", "dino"), ("dino", "idmm"), ("insdis", "simclr")] {
        let mut layers = Layers::new(recipe).expect(recipe);
        let set = format!("pretrain.method={method}");
        layers.set(&set, Source::Flag("--set")).expect("a key");
        let text = usage(layers.build().expect_err("two methods"));
        assert!(text.contains(recipe) && text.contains(method) && text.contains("--set"), "{text}");
    }
}

#[test]
fn whoever_names_a_model_has_set_that_there_is_no_smaller_one() {
    let small = |assignments: &[&str]| {
        let resolved = built("quick", assignments);
        let source = resolved.origin("model.small").expect("a known key").to_string();
        (resolved.config.model.small, source)
    };
    let own = |name: &str| (name.to_owned(), "--set".to_owned());
    assert_eq!(small(&[]), ("pvt_v2_b0_small".to_owned(), "recipe `quick`".to_owned()));
    assert_eq!(small(&["model.name=pvt_v2_b1"]), own(""));
    assert_eq!(small(&["model.name=pvt_v2_b1", "model.small=pvt_v2_b0"]), own("pvt_v2_b0"));
}

#[test]
fn whoever_says_when_to_measure_gets_that() {
    let shares = |assignments: &[&str]| {
        let config = built("quick", assignments).config;
        [config.pretrain.probe_share, config.finetune.eval_share]
    };
    let own = shares(&[]);
    assert!(own.iter().all(|&share| share > 0.0));
    assert_eq!(shares(&["finetune.eval_every=10"]), [own[0], 0.0]);
    assert_eq!(shares(&["pretrain.probe_every=10"]), [0.0, own[1]]);
    assert_eq!(shares(&["finetune.eval_every=10", "finetune.eval_share=0.2"]), [own[0], 0.2]);
}

/// Figures of the official run scripts.
#[test]
fn families_have_the_values_of_their_run_scripts() {
    for (model, lr, warmup, batch, last_lr) in [
        ("deit_tiny_patch16_224", 5e-4, 2.0, 128, 5e-5),
        ("pvt_v2_b0", 1e-3, 10.0, 128, 5e-5),
        ("t2t_vit_7", 1e-3, 10.0, 32, 1.25e-5),
        ("t2t_vit_t_14", 1e-3, 10.0, 32, 1.25e-5),
    ] {
        let model = format!("model.name={model}");
        let config = built("paper", &[&model]).config;
        for optim in [config.pretrain.optim, config.finetune.optim] {
            assert_eq!((optim.lr, optim.warmup_epochs, optim.batch_size), (lr, warmup, 256));
        }
        let finetune = built("paper-448", &[&model]).config.finetune;
        let optim = finetune.optim;
        assert_eq!((finetune.img_size, optim.epochs, optim.batch_size), (448, 100, batch));
        assert_eq!((optim.lr, optim.warmup_epochs, optim.drop_path), (last_lr, warmup, 0.1));
        // Recipes with values of their own keep them.
        let optim = built("quick", &[&model]).config.pretrain.optim;
        assert_eq!((optim.lr, optim.warmup_epochs), (2e-3, 5.0));
    }
    let resolved = built("paper", &["model.name=pvt_v2_b3"]);
    let expected = "finetune.optim.lr = 0.001\n  set by recipe `paper`, [for.pvt_v2]\n  \
                    instead of 0.0005 from recipe `paper`\n";
    assert_eq!(resolved.explain("finetune.optim.lr").expect("a key"), expected);
    assert!(!resolved.chosen("finetune.optim.lr"));
    let set = built("paper", &["model.name=pvt_v2_b0", "finetune.optim.lr=2e-4"]);
    assert_eq!(set.config.finetune.optim.lr, 2e-4);
    for recipe in recipe::TABLE {
        for family in ["pvt_v2", "t2t_vit", "deit"] {
            let rows = recipe.families_of(family).expect(recipe.name);
            assert!(rows.iter().all(|(name, _)| name == family), "{}", recipe.name);
        }
        let file: Table = recipe.text.parse().expect("TOML");
        let families = file.get("for").and_then(Value::as_table).into_iter().flat_map(Table::keys);
        for family in families {
            let of_family = |spec: &crate::backbone::Spec| spec.name.starts_with(family.as_str());
            assert!(crate::backbone::Spec::all().any(|spec| of_family(&spec)), "{family}");
        }
    }
}

#[test]
fn a_warm_up_keeps_its_share_of_fewer_epochs_unless_somebody_set_it() {
    let warmup = |recipe: &str, assignments: &[&str]| {
        built(recipe, assignments).config.finetune.optim.warmup_epochs
    };
    let pvt = "model.name=pvt_v2_b0";
    assert_eq!(warmup("paper", &[pvt, "finetune.optim.epochs=20"]), 1.0);
    assert_eq!(warmup("paper", &[pvt, "finetune.optim.epochs=800"]), 10.0);
    assert_eq!(warmup("quick", &["finetune.optim.epochs=17"]), 0.85);
    assert_eq!(
        warmup("paper", &["finetune.optim.epochs=20", "finetune.optim.warmup_epochs=5"]),
        5.0
    );
    let resolved = built("paper", &[pvt, "finetune.optim.epochs=20"]);
    let text = resolved.explain("finetune.optim.warmup_epochs").expect("a key");
    let first = "finetune.optim.warmup_epochs = 1.0\n  set by scaling it with the number of epochs \
                 (200 before)\n  instead of 10.0 from recipe `paper`, [for.pvt_v2]\n";
    assert!(text.starts_with(first), "{text}");
    // A file with both means them together, one with the warm-up alone means that.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("mine.toml");
    for (text, expected) in [("epochs = 40\nwarmup_epochs = 4", 1.0), ("warmup_epochs = 4", 4.0)] {
        std::fs::write(&path, format!("[finetune.optim]\n{text}\n")).expect("a file");
        let mut layers = paper();
        layers.file(&path).expect("the file");
        layers.put("finetune.optim.epochs", 10.into(), Source::Flag("--epochs")).expect("a key");
        let config = layers.build().expect("valid").config;
        assert_eq!(config.finetune.optim.warmup_epochs, expected, "{text}");
    }
}

#[test]
fn a_recipe_that_was_printed_can_be_given_back_as_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("mine.toml");
    for name in ["paper", "paper-448"] {
        let text = super::super::recipe::get(name).expect(name).text;
        std::fs::write(&path, text).expect("written");
        for model in ["deit_tiny_patch16_224", "pvt_v2_b0", "t2t_vit_7"] {
            let built = |layers: Layers| layers.build().expect("valid").config;
            let mut given = Layers::new(name).expect(name);
            given.put("model.name", model.into(), Source::Flag("--model")).expect("a key");
            let mut again = given.clone();
            again.file(&path).expect("the file");
            again.put("model.name", model.into(), Source::Flag("--model")).expect("a key");
            assert_eq!(built(again), built(given), "{name}, {model}");
        }
    }
}

#[test]
fn a_time_budget_may_have_a_unit_wherever_it_is_given() {
    let minutes = |text: &str| {
        let mut layers = Layers::new("quick").expect("a recipe");
        layers.set(text, Source::Flag("--set"))?;
        Ok::<_, Error>(layers.build()?.config.time_budget)
    };
    assert_eq!(minutes("time_budget=90s").expect("a unit"), 1.5);
    assert_eq!(minutes("time_budget=\"2h\"").expect("a unit"), 120.0);
    let error = minutes("time_budget=soon").expect_err("no time").to_string();
    assert!(error.contains("time_budget = ") && error.contains("90s, 2h"), "{error}");
}

#[test]
fn epochs_beside_a_time_budget_in_a_file_are_proportions() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("mine.toml");
    let chosen = |text: &str, set: &[&str]| {
        std::fs::write(&file, text).expect("written");
        let mut layers = Layers::new("quick").expect("a recipe");
        layers.file(&file).expect("settings");
        set.iter().for_each(|set| layers.set(set, Source::Flag("--set")).expect("a key"));
        let resolved = layers.build().expect("valid");
        ["pretrain", "finetune"].map(|stage| resolved.chosen_epochs(stage))
    };
    let epochs = "[finetune.optim]\nepochs = 20";
    assert_eq!(chosen(&format!("time_budget = 5\n{epochs}"), &[]), [false, false]);
    assert_eq!(chosen(&format!("time_budget = 0\n{epochs}"), &[]), [false, true]);
    assert_eq!(chosen(epochs, &["time_budget=5"]), [false, true]);
    let set = ["pretrain.optim.epochs=3", "time_budget=5"];
    assert_eq!(chosen(&format!("time_budget = 5\n{epochs}"), &set), [true, false]);
}
