use std::path::Path;

use super::*;

fn grid(text: &str, choices: &Choices) -> Result<Grid> {
    let study = Study::parse(text, Path::new("mine.toml"))?;
    Grid::new(&study, choices, &Layers::new)
}

fn names(grid: &Grid) -> Vec<&str> {
    grid.jobs.iter().map(|job| job.name.as_str()).collect()
}

const TWO_SETS: &str = "name = 'mine'\n[[data]]\nname = 'a'\npath = 'a'\n[[data]]\nname = 'b'\n";

#[test]
fn pre_training_is_shared_where_cells_differ_only_after_it() {
    let rows = "[[rows]]\nname = 'short'\nfrom.data = 'a'\nsettings.finetune.optim.epochs = 2\n\
                [[rows]]\nname = 'long'\nfrom.data = 'a'\n\
                [[rows]]\nname = 'other'\nfrom.data = 'a'\nsettings.pretrain.optim.epochs = 2\n\
                [[rows]]\nname = 'random'\nfrom = 'random'\n";
    let grid = grid(&format!("{TWO_SETS}{rows}"), &Choices::default()).expect("a grid");
    assert_eq!(
        names(&grid),
        [
            "pretrained/short.a.seed-0",
            "cells/short.a.seed-0",
            "cells/short.b.seed-0",
            "cells/long.a.seed-0",
            "cells/long.b.seed-0",
            "pretrained/other.a.seed-0",
            "cells/other.a.seed-0",
            "cells/other.b.seed-0",
            "cells/random.a.seed-0",
            "cells/random.b.seed-0",
        ]
    );
    let parents: Vec<_> = (0..10).map(|job| grid.parent(job)).collect();
    let [first, second] = [Some(0), Some(5)];
    let expected = [None, first, first, first, first, None, second, second, None, None];
    assert_eq!(parents, expected);
    let needed = |done: &dyn Fn(usize) -> bool| {
        grid.needed(&grid.cells[5..6], &|job| Ok(done(job))).expect("no error")
    };
    assert_eq!(needed(&|_| false), [5, 7]);
    assert_eq!(needed(&|job| job == 7), [7], "a done run needs nothing more");
    assert_eq!(grid.missing(2).as_deref(), Some("no data given for b (--data b=PATH)"));
    assert_eq!(grid.missing(1), None);
}

#[test]
fn names_do_not_depend_on_what_is_picked() {
    let rows = "[[rows]]\nname = 'x'\n[[rows]]\nname = 'y'\nsettings.finetune.optim.epochs = 2\n";
    let text = format!("{TWO_SETS}{rows}");
    let choices = Choices {
        rows: vec!["y".to_owned()],
        columns: vec!["b".to_owned()],
        seeds: Some(2),
        ..Choices::default()
    };
    let grid = grid(&text, &choices).expect("a grid");
    assert_eq!(grid.cells.len(), 2);
    assert_eq!(grid.others.len(), 6, "the other rows and columns");
    let needed = grid.needed(&grid.cells, &|_| Ok(false)).expect("no error");
    let names: Vec<_> = needed.iter().map(|&i| &*grid.jobs[i].name).collect();
    assert_eq!(
        names,
        ["pretrained/x.b.seed-0", "pretrained/x.b.seed-1", "cells/y.b.seed-0", "cells/y.b.seed-1"]
    );
}

#[test]
fn seeds_of_one_stage_leave_the_other_alone_and_share_the_first_run() {
    let rows = "[[rows]]\nname = 'p'\nvary = 'pretrain'\n[[rows]]\nname = 'f'\nvary = 'finetune'\n";
    let text = format!("name = 'mine'\nseeds = [0, 1]\n[[data]]\nname = 'a'\n{rows}");
    let grid = grid(&text, &Choices::default()).expect("a grid");
    let seeds: Vec<_> = grid.jobs.iter().map(|job| (&*job.name, job.config.seed)).collect();
    assert_eq!(
        seeds,
        [
            ("pretrained/p.a.seed-0", 0),
            ("cells/p.a.seed-0", 0),
            ("pretrained/p.a.seed-1", 1),
            ("cells/p.a.seed-1", 0),
            ("cells/f.a.seed-1", 1),
        ]
    );
    let jobs: Vec<_> = grid.cells.iter().map(|cell| cell.job).collect();
    assert_eq!(jobs, [1, 3, 1, 4]);
    assert_eq!(grid.parent(4), Some(0));
}

#[test]
fn a_row_goes_on_from_another_rows_model() {
    let rows = "[[rows]]\nname = 'x'\nsettings.model.name = 'pvt_v2_b0'\n[[rows]]\nname = 'y'\n\
                recipe = 'paper-448'\nfrom.row = 'x'\nsettings.model.name = 'pvt_v2_b0'\n";
    let text = format!("name = 'mine'\n[[data]]\nname = 'a'\n{rows}");
    let grid = grid(&text, &Choices::default()).expect("a grid");
    assert_eq!(names(&grid), ["pretrained/x.a.seed-0", "cells/x.a.seed-0", "cells/y.a.seed-0"]);
    assert_eq!(grid.parent(2), Some(1));
    let optim = &grid.jobs[2].config.finetune.optim;
    assert_eq!((optim.epochs, optim.lr, optim.batch_size), (100, 5e-5, 128));
}

#[test]
fn a_scale_shortens_epochs_and_warm_up_alike() {
    let rows = "[[rows]]\nname = 'x'\nsettings.finetune.optim.epochs = 800\n";
    let text = format!("name = 'mine'\n[[data]]\nname = 'a'\n{rows}");
    let choices = Choices { scale: Some(0.05), ..Choices::default() };
    let grid = grid(&text, &choices).expect("a grid");
    let (first, second) =
        (&grid.jobs[0].config.pretrain.optim, &grid.jobs[1].config.finetune.optim);
    assert_eq!((first.epochs, second.epochs), (40, 40));
    assert!((first.warmup_epochs - 0.1).abs() < 1e-12);
    assert!((second.warmup_epochs - 0.1).abs() < 1e-12);
    assert_eq!(grid.jobs[1].sources["finetune.optim.epochs"], "--scale");
}

#[test]
fn rows_of_one_kind_are_picked_by_what_their_names_begin_with() {
    let rows = ["a-x", "a-y", "ab-x", "a"].map(|name| format!("[[rows]]\nname = '{name}'\n"));
    let text = format!("name = 'mine'\n[[data]]\nname = 'd'\n{}", rows.concat());
    let of = |wanted: &[&str]| {
        let rows = wanted.iter().map(|name| (*name).to_owned()).collect();
        let grid = grid(&text, &Choices { rows, ..Choices::default() }).expect("a grid");
        grid.cells.iter().map(|cell| cell.row).collect::<Vec<_>>()
    };
    assert_eq!(of(&["a"]), [0, 1, 3]);
    assert_eq!(of(&["ab", "a-y"]), [1, 2]);
}

#[test]
fn what_cannot_be_meant_is_refused() {
    for (more, choices, expected) in [
        ("", Choices { rows: vec!["z".to_owned()], ..Choices::default() }, "no row `z`"),
        ("", Choices { columns: vec!["z".to_owned()], ..Choices::default() }, "no column `z`"),
        ("", Choices { scale: Some(2.0), ..Choices::default() }, "--scale is 2"),
        ("[settings]\ntime_budget = 5.0", Choices::default(), "time_budget"),
        ("[settings]\nfinetune.optim.rl = 1", Choices::default(), "did you mean"),
        ("[[rows]]\nname = 'x'\nsettings.finetune.optim.lr = -1", Choices::default(), "row `x`"),
    ] {
        let text = format!("name = 'mine'\n[[data]]\nname = 'a'\n{more}");
        let error = grid(&text, &choices).expect_err(expected);
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn a_recipe_with_a_time_budget_has_its_own_epochs_in_a_study() {
    let text = "name = 'mine'\nrecipe = 'quick'\n[[data]]\nname = 'a'\n";
    let grid = grid(text, &Choices::default()).expect("a grid");
    assert_eq!(grid.jobs[0].config.time_budget, 0.0);
    assert_eq!(grid.jobs[0].config.pretrain.optim.epochs, 100);
}

#[test]
fn a_grid_row_has_the_value_that_its_name_says() {
    let text = format!("{TWO_SETS}[grid]\nfinetune.optim.lr = [1e-3, 5e-4]\n");
    let study = Study::parse(
        &text.replace("[grid]", "[[rows]]\nname = 'r'\n[grid]"),
        Path::new("mine.toml"),
    )
    .expect("a study");
    let with = |set: &'static str| {
        let base = move |recipe: &str| {
            let mut layers = Layers::new(recipe)?;
            layers.set(set, Source::Flag("--set"))?;
            Ok(layers)
        };
        Grid::new(&study, &Choices::default(), &base)
    };
    let error = with("finetune.optim.lr=0.002").expect_err("all rows the same");
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("finetune.optim.lr is a key of [grid]"), "{error}");
    let error = with("seed=5").expect_err("seeds are the study's");
    assert!(error.to_string().contains("take --seeds N"), "{error}");
    let grid = with("finetune.optim.weight_decay=0.1").expect("a grid");
    assert_eq!(grid.jobs[0].beside, ["finetune.optim.weight_decay = 0.1 (--set)"]);
    let scaled = Choices { scale: Some(0.5), ..Choices::default() };
    let text = format!("{TWO_SETS}[grid]\nfinetune.optim.epochs = [10, 20]\n");
    let study = Study::parse(&text, Path::new("mine.toml")).expect("a study");
    assert!(Grid::new(&study, &scaled, &Layers::new).is_ok(), "a scaled schedule is said");
}

#[test]
fn runs_that_differ_in_what_changes_no_model_are_one() {
    let rows = "[[rows]]\nname = 'x'\nfrom = 'random'\n[[rows]]\nname = 'y'\nfrom = 'random'\n\
                settings.data.on_bad_image = 'skip'\nsettings.data.cache_ram_gb = 1.0\n";
    let text = format!("name = 'mine'\n[[data]]\nname = 'a'\n{rows}");
    assert_eq!(grid(&text, &Choices::default()).expect("a grid").jobs.len(), 1);
}
