//! The paper's tables as studies, embedded in the program. A new one is a file in `recipes/studies/`
//! and a line in [`TABLES`].

use std::path::PathBuf;

use super::file::{From, Study};
use crate::data::catalog;
use crate::error::{Error, Result};

/// A study's name and its file.
#[derive(Debug)]
pub struct Table {
    /// `fewvit reproduce NAME`.
    pub name: &'static str,
    /// The TOML with its comments, without the data sets.
    pub text: &'static str,
}

/// The paper's tables.
pub const TABLES: &[Table] = &[
    Table { name: "table2", text: include_str!("../../recipes/studies/table2.toml") },
    Table { name: "table3", text: include_str!("../../recipes/studies/table3.toml") },
    Table { name: "table4", text: include_str!("../../recipes/studies/table4.toml") },
    Table { name: "table5", text: include_str!("../../recipes/studies/table5.toml") },
    Table { name: "table6", text: include_str!("../../recipes/studies/table6.toml") },
    Table { name: "table7", text: include_str!("../../recipes/studies/table7.toml") },
    Table { name: "table8", text: include_str!("../../recipes/studies/table8.toml") },
    Table { name: "table9", text: include_str!("../../recipes/studies/table9.toml") },
    Table { name: "fig3", text: include_str!("../../recipes/studies/fig3.toml") },
];

/// The data sets of all tables.
const SETS: &str = include_str!("../../recipes/studies/sets.toml");

/// The study called `name`, with the data sets that it uses.
///
/// # Errors
/// [`Error::Usage`] if there is none of that name.
pub fn get(name: &str) -> Result<Study> {
    let Some(table) = TABLES.iter().find(|table| table.name == name) else {
        let names: Vec<_> = TABLES.iter().map(|table| table.name).collect();
        return Err(Error::Usage(format!(
            "there is no study `{name}`; there are {}",
            names.join(", ")
        )));
    };
    let path = PathBuf::from(format!("recipes/studies/{name}.toml"));
    let mut study = Study::parse(&format!("{}\n{SETS}", table.text), &path)?;
    for set in &mut study.data {
        if let Ok(known) = catalog::find(&set.name) {
            let counts = [known.train, known.test, known.classes].map(Some);
            [set.train, set.test, set.classes] = counts;
        }
    }
    let started = |row: &super::Row, name: &str| row.from == From::Data(name.to_owned());
    let (columns, rows) = (&study.columns, &study.rows);
    study.data.retain(|set| {
        columns.contains(&set.name) || rows.iter().any(|row| started(row, &set.name))
    });
    Ok(study)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Layers;
    use crate::study::{Choices, Grid};

    fn grid(name: &str) -> (Study, Grid) {
        let study = get(name).expect(name);
        let grid = Grid::new(&study, &Choices::default(), &Layers::new);
        (study, grid.unwrap_or_else(|e| panic!("{name}: {e}")))
    }

    /// Cells, runs, and how many numbers of the paper each table has.
    #[test]
    fn every_table_has_its_cells_and_numbers() {
        for (name, cells, runs, numbers) in [
            // One pre-training for each cell but the seven from random weights.
            ("table2", 49, 91, 49),
            // Five models on seven sets: four rows, and one pre-training.
            ("table3", 140, 175, 140),
            // Two models on two sets: three pre-trainings, five fine-tunings.
            ("table4", 24, 32, 8),
            // Three methods on seven sets, fine-tuned on seven; seven from random weights.
            ("table5", 154, 175, 154),
            ("table6", 70, 80, 70),
            // Pre-trainings: IDMM on two models, MoCo v3, IDMM on SIN-total.
            ("table7", 10, 14, 10),
            ("table8", 5, 10, 5),
            ("table9", 16, 20, 16),
            ("fig3", 11, 17, 11),
        ] {
            let (study, grid) = grid(name);
            assert_eq!(study.name, name);
            assert_eq!((grid.cells.len(), grid.jobs.len()), (cells, runs), "{name}");
            let found: usize = study.rows.iter().map(|row| row.paper.len()).sum();
            assert_eq!(found, numbers, "{name}");
        }
        assert!(get("table1").expect_err("none").to_string().contains("table2, table3"));
    }

    /// Corners of the tables of the paper, typed by hand.
    #[test]
    fn the_numbers_are_the_papers() {
        for (table, row, set, number) in [
            ("table2", "random", "flowers", 58.1),
            ("table2", "idmm", "cars", 66.4),
            ("table2", "moco-v3", "cub", 20.5),
            ("table3", "deit-tiny-imagenet", "flowers", 97.3),
            ("table3", "pvt-v2-b3-idmm-448", "flowers", 96.7),
            ("table3", "t2t-vit-7-idmm-448", "cars", 91.2),
            ("table4", "t2t-vit-7-finetune", "pets", 70.3),
            ("table5", "flowers-idmm", "flowers", 92.4),
            ("table5", "cars-supcon", "cars", 90.6),
            ("table5", "random", "aircraft", 41.7),
            ("table6", "pvt-v2-b3-idmm", "flowers", 95.9),
            ("table6", "t2t-vit-7-supervised", "cars", 59.9),
            ("table7", "pvt-v2-b0-idmm-total-100", "imagenet", 69.5),
            ("table7", "deit-tiny-idmm-300", "imagenet", 72.9),
            ("table8", "plain", "flowers", 69.6),
            ("table8", "cutmix", "flowers", 79.9),
            ("table9", "simclr-mlp", "cub", 45.8),
        ] {
            let study = get(table).expect(table);
            let found = study.rows.iter().find(|r| r.name == row).expect(row).paper[set];
            assert_eq!(found, number, "{table} {row} {set}");
        }
        let (study, _) = grid("table4");
        assert_eq!(study.rows[0].paper_std["pets"], 0.3);
    }

    /// Settings that the paper states, in the runs as they are resolved.
    #[test]
    fn the_runs_have_the_papers_settings() {
        let (_, grid) = grid("table3");
        let job = |name: &str| {
            let found = grid.jobs.iter().find(|job| job.name == name);
            found.unwrap_or_else(|| panic!("{name}"))
        };
        let long = &job("cells/pvt-v2-b0-idmm.flowers.seed-0").config;
        assert_eq!((long.finetune.optim.epochs, long.finetune.img_size), (800, 224));
        let last = &job("cells/t2t-vit-7-idmm-448.flowers.seed-0").config.finetune;
        assert_eq!((last.optim.epochs, last.img_size, last.optim.batch_size), (100, 448, 32));
        let (_, grid) = super::tests::grid("table8");
        let sizes: Vec<_> = grid
            .jobs
            .iter()
            .filter(|job| job.stages.pretrain)
            .map(|job| {
                let pretrain = &job.config.pretrain;
                let views: usize = pretrain.crops.iter().map(|group| group.count).sum();
                (views, pretrain.crops[0].img_size, pretrain.optim.smoothing, pretrain.cutmix)
            })
            .collect();
        assert_eq!(
            sizes,
            [
                (2, 224, 0.0, 0.0),
                (2, 224, 0.1, 0.0),
                (2, 112, 0.1, 0.0),
                (6, 112, 0.1, 0.0),
                (6, 112, 0.1, 0.5)
            ]
        );
    }
}
