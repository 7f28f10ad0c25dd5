//! The recipes, embedded in the program. A new one is a file in `recipes/` and a line in [`TABLE`].

use toml::Table;

use super::About;
use crate::error::{Error, Result};

/// A recipe's name and its file.
#[derive(Debug)]
pub struct Recipe {
    /// `--recipe NAME`.
    pub name: &'static str,
    /// The TOML with its comments.
    pub text: &'static str,
}

/// The section whose tables are for one family of models each.
const FAMILIES: &str = "for";

/// The recipes. The first is the default and complete; the others list what they change in it.
pub const TABLE: &[Recipe] = &[
    Recipe { name: "paper", text: include_str!("../../recipes/paper.toml") },
    Recipe { name: "paper-448", text: include_str!("../../recipes/paper-448.toml") },
    Recipe { name: "quick", text: include_str!("../../recipes/quick.toml") },
    Recipe { name: "demo", text: include_str!("../../recipes/demo.toml") },
    Recipe { name: "insdis", text: include_str!("../../recipes/insdis.toml") },
    Recipe { name: "supervised", text: include_str!("../../recipes/supervised.toml") },
    Recipe { name: "simclr", text: include_str!("../../recipes/simclr.toml") },
    Recipe { name: "supcon", text: include_str!("../../recipes/supcon.toml") },
    Recipe { name: "moco-v2", text: include_str!("../../recipes/moco-v2.toml") },
    Recipe { name: "moco-v3", text: include_str!("../../recipes/moco-v3.toml") },
    Recipe { name: "dino", text: include_str!("../../recipes/dino.toml") },
    Recipe { name: "paper-simclr", text: include_str!("../../recipes/paper-simclr.toml") },
    Recipe { name: "paper-supcon", text: include_str!("../../recipes/paper-supcon.toml") },
    Recipe { name: "paper-moco-v2", text: include_str!("../../recipes/paper-moco-v2.toml") },
    Recipe { name: "paper-moco-v3", text: include_str!("../../recipes/paper-moco-v3.toml") },
    Recipe { name: "paper-dino", text: include_str!("../../recipes/paper-dino.toml") },
];

/// The recipe called `name`.
///
/// # Errors
/// [`Error::Usage`] for unknown names, with the closest known one.
pub fn get(name: &str) -> Result<&'static Recipe> {
    if let Some(recipe) = TABLE.iter().find(|recipe| recipe.name == name) {
        return Ok(recipe);
    }
    let names: Vec<_> = TABLE.iter().map(|recipe| recipe.name).collect();
    let near = names
        .iter()
        .max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)));
    Err(Error::Usage(format!(
        "there is no recipe `{name}`; did you mean `{}`?\n  recipes: {}; a file of your own is -c FILE.toml",
        near.unwrap_or(&""),
        names.join(", ")
    )))
}

impl Recipe {
    /// The file as a table, without what is for some families of models only.
    ///
    /// # Errors
    /// [`Error::Failed`] if the embedded file is no TOML, which the tests rule out.
    pub fn table(&self) -> Result<Table> {
        let mut table = self.file()?;
        table.remove(FAMILIES);
        Ok(table)
    }

    /// What `[for.FAMILY]` says for the families that `model` is of: those its name begins with.
    ///
    /// # Errors
    /// As [`Recipe::table`].
    pub fn families_of(&self, model: &str) -> Result<Vec<(String, Table)>> {
        let families = self.file()?.remove(FAMILIES).and_then(|value| value.try_into().ok());
        let families: Table = families.unwrap_or_default();
        let own = families.into_iter().filter(|(family, _)| model.starts_with(&**family));
        Ok(own.filter_map(|(family, table)| Some((family, table.try_into().ok()?))).collect())
    }

    /// The method that the recipe is for, if it names one.
    ///
    /// # Errors
    /// As [`Recipe::table`].
    pub fn method(&self) -> Result<Option<String>> {
        let table = self.table()?;
        let method = table.get("pretrain").and_then(|pretrain| pretrain.get("method"));
        Ok(method.and_then(toml::Value::as_str).map(str::to_owned))
    }

    fn file(&self) -> Result<Table> {
        let misfit = |e| Error::Failed(format!("the recipe `{}` cannot be read: {e}", self.name));
        self.text.parse().map_err(misfit)
    }

    /// What the recipe says of itself.
    ///
    /// # Errors
    /// As [`Recipe::table`].
    pub fn about(&self) -> Result<About> {
        let misfit = |e| Error::Failed(format!("the recipe `{}` says too little: {e}", self.name));
        let about = self.table()?.remove("about").unwrap_or(toml::Value::Boolean(false));
        about.try_into().map_err(misfit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Ema, Layers, LrSchedule, RunConfig, SmoothingKind, to_toml};

    fn config(name: &str) -> RunConfig {
        Layers::new(name).and_then(|layers| layers.build()).expect(name).config
    }

    #[test]
    fn every_recipe_is_valid_says_where_it_comes_from_and_reads_back() {
        for recipe in TABLE {
            let about = recipe.about().expect(recipe.name);
            assert_eq!(about.name, recipe.name);
            for text in [&about.summary, &about.source, &about.cost] {
                assert!(text.len() > 15 && !text.contains('\n'), "{}: {text:?}", recipe.name);
            }
            let config = config(recipe.name);
            assert_eq!(config.about, about, "no other recipe's words shine through");
            let dump = to_toml(&config).expect("a dump");
            assert_eq!(toml::from_str::<RunConfig>(&dump).expect("it reads back"), config);
            assert_eq!(to_toml(&config).expect("a dump"), dump);
        }
    }

    /// Error texts tell a number from a whole number by how the default recipe writes it.
    #[test]
    fn the_default_recipe_writes_numbers_as_the_program_reads_them() {
        let dump = to_toml(&config("paper")).expect("a dump");
        let dump: Table = dump.parse().expect("TOML");
        fn compare(path: &str, a: &toml::Value, b: &toml::Value) {
            assert!(a.same_type(b), "{path}: {a} is read as {b}");
            if let (Some(a), Some(b)) = (a.as_table(), b.as_table()) {
                assert_eq!(a.len(), b.len(), "{path}");
                a.iter().for_each(|(key, value)| compare(key, value, &b[key]));
            }
        }
        let written = TABLE[0].table().expect("TOML");
        compare("", &written.into(), &dump.into());
    }

    #[test]
    fn every_number_of_a_recipe_has_a_comment() {
        for line in TABLE.iter().flat_map(|recipe| recipe.text.lines()) {
            let prose = ["name = \"", "summary", "source", "cost", "expected = {}"];
            let needs_none = prose.iter().any(|start| line.starts_with(start));
            if line.contains(" = ") && !line.starts_with('#') && !needs_none {
                assert!(line.contains("  # ") || line.contains(" # ["), "{line}");
            }
        }
    }

    /// Figures of the paper and of the official run scripts for DeiT-Tiny.
    #[test]
    fn the_paper_is_the_paper() {
        let config = config("paper");
        let (pretrain, finetune) = (&config.pretrain, &config.finetune);
        for (optim, epochs) in [(&pretrain.optim, 800), (&finetune.optim, 200)] {
            assert_eq!((optim.epochs, optim.batch_size), (epochs, 256));
            assert_eq!((optim.lr, optim.weight_decay, optim.warmup_epochs), (0.0005, 0.001, 2.0));
            assert_eq!((optim.beta1, optim.beta2, optim.eps), (0.9, 0.999, 1e-8));
            assert_eq!((optim.lr_schedule, optim.ema), (LrSchedule::Cosine, Ema::Off));
            assert_eq!((optim.drop_path, optim.smoothing, optim.clip_grad), (0.1, 0.1, 0.0));
        }
        assert_eq!(pretrain.optim.smoothing_kind, SmoothingKind::Others);
        assert_eq!(finetune.optim.smoothing_kind, SmoothingKind::Uniform);
        let crops: Vec<_> = pretrain.crops.iter().map(|c| (c.count, c.img_size, c.scale)).collect();
        assert_eq!(crops, [(2, 112, [0.14, 1.0]), (4, 112, [0.05, 0.4])]);
        assert_eq!((pretrain.cutmix, finetune.cutmix, finetune.mixup), (0.5, 0.5, 0.5));
        assert_eq!((finetune.img_size, config.eval.crop_pct), (224, 224.0 / 256.0));
        assert_eq!(config.about.expected["flowers-102"], 79.9);
        assert_eq!(config.data.std, [0.229, 0.224, 0.225]);
    }

    #[test]
    fn an_unknown_name_suggests_a_known_one() {
        let error = get("papre").expect_err("no such recipe");
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("did you mean `paper`"), "{error}");
        assert!(error.to_string().contains("paper, paper-448, quick, demo"), "{error}");
    }
}
