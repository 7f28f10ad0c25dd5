//! What the columns of a table mean: rows become entries, one an image.

use std::collections::{BTreeSet, HashMap};

use super::super::digest::Digest;
use super::super::listing::is_image_name;
use super::super::manifest::Split;
use super::super::split_names::parse_split;
use super::text::{Table, is_called};
use crate::error::{Error, Result};
use crate::words::{counted, shortened};

/// Columns that name the image. Words may also be written together: `filename`.
const FILE: [&str; 18] = [
    "file_name",
    "image_path",
    "path",
    "file",
    "file_path",
    "image",
    "images",
    "img",
    "image_file",
    "image_name",
    "image_file_name",
    "img_path",
    "img_name",
    "img_file",
    "relative_path",
    "rel_path",
    "files",
    "fname",
];
/// Columns that name it if what they hold is called like an image.
const MAYBE_FILE: [&str; 4] = ["image_id", "img_id", "id", "name"];
/// Columns of the label, the class's name before its number.
const LABEL: [&str; 10] = [
    "class",
    "class_name",
    "label_name",
    "label",
    "label_id",
    "class_id",
    "label_index",
    "class_index",
    "label_idx",
    "class_idx",
];
/// Columns that hold the label where none of those is there.
const MAYBE_LABEL: [&str; 12] = [
    "category",
    "category_name",
    "species",
    "breed",
    "variety",
    "target_name",
    "classes",
    "labels",
    "target",
    "category_id",
    "species_name",
    "name",
];
const SPLIT: [&str; 4] = ["split", "data_split", "dataset_split", "split_name"];
/// Columns of the split if what they hold are names of splits.
const MAYBE_SPLIT: [&str; 10] = [
    "set",
    "subset",
    "partition",
    "phase",
    "fold",
    "usage",
    "mode",
    "dataset",
    "data_set",
    "purpose",
];
/// Columns that say yes or no to a split, which fewvit does not read.
const SPLIT_FLAG: [&str; 8] =
    ["is_train", "is_training", "is_val", "is_valid", "is_validation", "is_test", "train", "test"];
/// What programs and people write for a missing value, in lower case.
const MISSING: [&str; 10] =
    ["na", "n/a", "#n/a", "nan", "<na>", "null", "none", "?", "unlabeled", "unlabelled"];
const GROUP: [&str; 2] = ["group", "group_id"];
/// The column of fewvit's own tables that says how pixels are taken.
pub(in super::super) const TREATMENT: &str = "treatment";
/// The column of fewvit's own tables that says what was in the file.
const DIGEST: &str = "digest";

/// An image as a table describes it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Where: the table and the line.
    pub at: String,
    /// Its path, as it is written.
    pub file: String,
    /// The class's name, or what stands for it.
    pub class: Option<String>,
    /// The class's number, where it stands beside the name.
    pub index: Option<u64>,
    /// What is given as its split.
    pub split: Option<String>,
    /// Images of one group stay in one split.
    pub group: Option<String>,
    /// How its pixels are taken, in fewvit's own tables.
    pub treatment: Option<String>,
    /// Its content when fewvit wrote the table.
    pub digest: Option<Digest>,
}

/// Whether a header is that of a table of images.
pub(super) fn has_file_column(columns: &[String]) -> bool {
    let mut names = FILE.iter().chain(&MAYBE_FILE);
    names.any(|name| columns.iter().any(|column| is_called(column, name)))
}

/// Whether a table says something about its images: a label or a split.
pub(super) fn says_something(table: &Table) -> bool {
    let names = LABEL.iter().chain(&MAYBE_LABEL).chain(&SPLIT).chain(&MAYBE_SPLIT);
    let file = file_column(table);
    names.filter_map(|name| table.column(name)).any(|column| Some(column) != file)
}

/// Where a table has the paths of the images.
pub(super) fn file_column(table: &Table) -> Option<usize> {
    let maybe = |name: &&str| {
        let column = table.column(name)?;
        let value = &table.rows.first()?.fields[column];
        is_image_name(value).then_some(column)
    };
    let sure = FILE.iter().find_map(|name| table.column(name));
    sure.or_else(|| MAYBE_FILE.iter().find_map(maybe))
}

/// The entries of a table whose rows have `split` if no column says otherwise, and notes.
///
/// # Errors
/// [`Error::Data`] if no column names the images or the label's columns contradict each other.
pub(super) fn entries(table: &Table, split: Option<Split>) -> Result<(Vec<Entry>, Vec<String>)> {
    let bad = |what: String| Error::Data(format!("{}: {what}", table.name));
    let file = file_column(table).ok_or_else(|| bad(no_file_column(table)))?;
    let mut notes: Vec<String> =
        table.notes.iter().map(|note| format!("{}: {note}", table.name)).collect();
    let columns = Columns { table, file };
    // fewvit's own tables hold names as they are; people write blanks beside separators.
    let own = table.is_own();
    let (class, index) = match own {
        true => (columns.filled("class"), columns.filled("label")),
        false => columns.label()?,
    };
    if class.is_none() {
        columns.refuse_one_hot()?;
        notes.extend(columns.unlabelled_note());
    } else if !own {
        notes.extend(columns.other_labels_note(class, index));
        notes.extend(columns.missing_note(class));
    }
    let (split_column, unused) = columns.split()?;
    notes.extend(unused);
    let group = GROUP.iter().find_map(|name| columns.filled(name));
    let treatment = own.then(|| table.column(TREATMENT)).flatten();
    let digest = own.then(|| table.column(DIGEST)).flatten();
    let of_path = (split_column.is_none() && split.is_none()).then(|| columns.splits_of_paths());
    let of_path = of_path.flatten();
    if of_path.is_some() {
        notes.push(format!(
            "{}: no column says the split, so it is taken from the folders in the paths",
            table.name
        ));
    }
    let given = split.map(|split| format!("{split:?}"));
    let entry = |(i, row): (usize, &super::text::Row)| {
        let field = |column: Option<usize>| {
            let field = &row.fields[column?];
            let field = if own { field } else { field.trim() };
            (!field.is_empty()).then(|| field.to_owned())
        };
        Entry {
            at: format!("{}, line {}", table.name, row.line),
            file: row.fields[file].clone(),
            class: field(class).map(|text| match own {
                true => text,
                false => whole_number(&text).unwrap_or(text),
            }),
            index: field(index).and_then(|text| text.parse().ok()),
            split: field(split_column)
                .or_else(|| given.clone())
                .or_else(|| of_path.as_ref().map(|of| format!("{:?}", of[i]))),
            group: field(group),
            treatment: field(treatment),
            digest: field(digest).and_then(|text| Digest::parse(&text)),
        }
    };
    Ok((table.rows.iter().enumerate().map(entry).collect(), notes))
}

/// What to say of a table that names no images.
pub(super) fn no_file_column(table: &Table) -> String {
    if table.columns.is_empty() {
        return "is empty; the first row must name the columns, such as file,label,split"
            .to_owned();
    }
    format!(
        "no column names the images; the first row must name the columns, such as \
         file,label,split, and not: {}",
        shortened(&table.columns)
    )
}

/// `3.0` as `3`: spreadsheets and data frames turn numbers with gaps into fractions.
fn whole_number(text: &str) -> Option<String> {
    let whole = text.strip_suffix(".0")?;
    whole.parse::<u64>().is_ok().then(|| whole.to_owned())
}

struct Columns<'a> {
    table: &'a Table,
    file: usize,
}

impl Columns<'_> {
    /// A column that is there, is not the images', and not empty throughout.
    fn filled(&self, name: &str) -> Option<usize> {
        let column = self.table.column(name).filter(|column| *column != self.file)?;
        self.values(column).next().map(|_| column)
    }

    /// The values of a column that are not empty, with their lines.
    fn values(&self, column: usize) -> impl Iterator<Item = (usize, &str)> {
        let rows = self.table.rows.iter();
        rows.map(move |row| (row.line, row.fields[column].trim())).filter(|(_, v)| !v.is_empty())
    }

    fn is_numeric(&self, column: usize) -> bool {
        self.values(column).all(|(_, v)| v.parse::<u64>().is_ok() || whole_number(v).is_some())
    }

    /// The columns of the class's name (or of what stands for it) and of its number.
    fn label(&self) -> Result<(Option<usize>, Option<usize>)> {
        let present = |names: &[&str]| -> Vec<usize> {
            names.iter().filter_map(|name| self.filled(name)).collect()
        };
        let (mut sure, maybe) = (present(&LABEL), present(&MAYBE_LABEL));
        if sure.is_empty() {
            sure = maybe;
        } else if sure.iter().all(|column| self.is_numeric(*column)) {
            // Names beside numbers, under a weaker heading, count if they tell the same classes.
            let same = |column: &usize| {
                !self.is_numeric(*column) && self.conflict(sure[0], *column).is_none()
            };
            let names: Vec<usize> = maybe.into_iter().filter(same).take(1).collect();
            sure.splice(0..0, names);
        }
        let names = sure.iter().copied().filter(|column| !self.is_numeric(*column));
        let Some(class) = names.chain(sure.iter().copied()).next() else {
            return Ok((None, None));
        };
        let others: Vec<usize> = sure.into_iter().filter(|column| *column != class).collect();
        for other in &others {
            if let Some(what) = self.conflict(class, *other) {
                return Err(Error::Data(format!("{}: {what}", self.table.name)));
            }
        }
        Ok((Some(class), others.into_iter().find(|column| self.is_numeric(*column))))
    }

    /// Where two columns do not tell the same classes.
    fn conflict(&self, a: usize, b: usize) -> Option<String> {
        let (mut of_a, mut of_b) = (HashMap::new(), HashMap::new());
        let names = [&self.table.columns[a], &self.table.columns[b]];
        for row in &self.table.rows {
            let [x, y] = [row.fields[a].trim(), row.fields[b].trim()];
            if x.is_empty() || y.is_empty() {
                continue;
            }
            for (seen, key, value, [is, has]) in
                [(&mut of_a, x, y, names), (&mut of_b, y, x, [names[1], names[0]])]
            {
                let (before, line) = *seen.entry(key).or_insert((value, row.line));
                if before != value {
                    return Some(format!(
                        "the columns {} and {} contradict each other: {is} `{key}` has {has} \
                         `{before}` in line {line} and `{value}` in line {}; correct the rows or \
                         remove one of the columns",
                        names[0], names[1], row.line
                    ));
                }
            }
        }
        None
    }

    /// What to say of a table without a column of labels that has others.
    fn unlabelled_note(&self) -> Option<String> {
        let known = LABEL.iter().chain(&MAYBE_LABEL).filter_map(|name| self.table.column(name));
        let mut known = known.filter(|column| *column != self.file);
        let others = self.table.columns.iter().enumerate().filter(|(at, _)| *at != self.file);
        let others: Vec<String> = others.map(|(_, name)| name.clone()).collect();
        (known.next().is_none() && !others.is_empty()).then(|| {
            format!(
                "{}: no column is called label or class, so its images have no labels; columns: {}",
                self.table.name,
                shortened(&others)
            )
        })
    }

    /// What to say of columns that could be the label and are not taken for it.
    fn other_labels_note(&self, class: Option<usize>, index: Option<usize>) -> Option<String> {
        let taken = self.table.columns.get(class?)?;
        let others = LABEL.iter().chain(&MAYBE_LABEL).filter_map(|name| self.filled(name));
        let others: BTreeSet<usize> =
            others.filter(|column| ![class, index].contains(&Some(*column))).collect();
        let others: Vec<String> = others.iter().map(|c| self.table.columns[*c].clone()).collect();
        (!others.is_empty()).then(|| {
            format!(
                "{}: the classes are those of the column {taken}; not used: {}",
                self.table.name,
                shortened(&others)
            )
        })
    }

    /// What to say of labels that may stand for a missing value.
    fn missing_note(&self, class: Option<usize>) -> Option<String> {
        let missing =
            self.values(class?).filter(|(_, value)| MISSING.contains(&&*value.to_lowercase()));
        let missing: Vec<(usize, &str)> = missing.collect();
        let (line, value) = missing.first()?;
        Some(format!(
            "{}: `{value}` is taken for a class ({}, first in line {line}); leave the label empty or \
             the row out if it means that there is none",
            self.table.name,
            counted(missing.len(), "row")
        ))
    }

    /// The split of each row by the folders of its path, if they all name one, training images and
    /// others.
    fn splits_of_paths(&self) -> Option<Vec<Split>> {
        let of_path = |path: &str| {
            let folders = path.rsplit_once(['/', '\\']).map_or("", |(folders, _)| folders);
            folders.split(['/', '\\']).find_map(parse_split)
        };
        let rows = self.table.rows.iter().map(|row| of_path(&row.fields[self.file]));
        let splits: Vec<Split> = rows.collect::<Option<_>>()?;
        let both = splits.contains(&Split::Train) && splits.iter().any(|s| *s != Split::Train);
        both.then_some(splits)
    }

    /// The column of the split, and what to say of one that is not used.
    fn split(&self) -> Result<(Option<usize>, Option<String>)> {
        if let Some(column) = SPLIT.iter().find_map(|name| self.filled(name)) {
            return Ok((Some(column), None));
        }
        let is_split = |column: &usize| {
            let mut values = self.values(*column).peekable();
            values.peek().is_some() && values.all(|(_, value)| parse_split(value).is_some())
        };
        let maybe: Vec<usize> = MAYBE_SPLIT.iter().filter_map(|name| self.filled(name)).collect();
        if let Some(column) = maybe
            .iter()
            .find(|column| self.values(**column).any(|(_, value)| parse_split(value).is_some()))
        {
            return Ok((Some(*column), None));
        }
        if let Some(name) = SPLIT_FLAG.iter().find(|name| self.filled(name).is_some()) {
            return Err(Error::Data(format!(
                "{}: the column {name} seems to say which images are held out; write one column \
                 `split` with train, val or test",
                self.table.name
            )));
        }
        let mut others = (0..self.table.columns.len()).filter(|column| *column != self.file);
        if let Some(column) = others.find(is_split) {
            return Err(Error::Data(format!(
                "{}: the column {} holds names of splits; call it `split` if they are meant",
                self.table.name, self.table.columns[column]
            )));
        }
        let unused = maybe.first().map(|column| {
            let name = &self.table.columns[*column];
            let what = "holds no names of splits (train, val, test) and is not used";
            format!("{}: the column {name} {what}", self.table.name)
        });
        Ok((None, unused))
    }

    /// Refuses a table with a column of zeros and ones for each class.
    fn refuse_one_hot(&self) -> Result<()> {
        let is_flag = |column: &usize| {
            let mut values = self.values(*column).map(|(_, v)| v).peekable();
            values.peek().is_some() && values.all(|v| matches!(v, "0" | "1" | "0.0" | "1.0"))
        };
        let flags: Vec<usize> =
            (0..self.table.columns.len()).filter(|c| *c != self.file).filter(is_flag).collect();
        let one_each = self.table.rows.iter().all(|row| {
            flags.iter().any(|column| matches!(row.fields[*column].trim(), "1" | "1.0"))
        });
        if flags.len() < 2 || !one_each {
            return Ok(());
        }
        let names: Vec<String> = flags.iter().map(|c| self.table.columns[*c].clone()).collect();
        Err(Error::Data(format!(
            "{}: a column of 0 and 1 for each class ({}) is a multi-label table, which fewvit does \
             not read; write one column `label` with the name of the class",
            self.table.name,
            shortened(&names)
        )))
    }
}
