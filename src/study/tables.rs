//! The table of a study as Markdown, CSV and one web page.

use std::path::Path;

use askama::Template;

use super::results::{Entry, Results};
use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::report::markdown::escaped;

/// Writes `results.md`, `results.csv` and `results.html` into `folder`.
///
/// # Errors
/// A file cannot be written.
pub fn write(folder: &Path, results: &Results) -> Result<()> {
    write_atomically(&folder.join("results.md"), markdown(results).as_bytes())?;
    write_atomically(&folder.join("results.csv"), &csv(results)?)?;
    write_atomically(&folder.join("results.html"), html(results)?.as_bytes())
}

/// A column of the table.
struct Column {
    title: &'static str,
    kind: Kind,
    value: fn(&Entry) -> String,
}

/// What a column holds.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Words, which stand to the left.
    Text,
    /// Numbers, which stand to the right.
    Number,
    /// Numbers that there are only where a paper gave some.
    Paper,
}

/// What people read, one line a row and data set.
const COLUMNS: &[Column] = &[
    Column { title: "row", kind: Kind::Text, value: |e| e.row_title.clone() },
    Column { title: "data", kind: Kind::Text, value: |e| e.column_title.clone() },
    Column { title: "top-1, %", kind: Kind::Number, value: ours },
    Column {
        title: "95% interval",
        kind: Kind::Number,
        value: |e| e.interval().map_or_else(none, range),
    },
    Column { title: "seeds", kind: Kind::Number, value: seeds },
    Column { title: "paper", kind: Kind::Paper, value: papers },
    Column {
        title: "difference",
        kind: Kind::Paper,
        value: |e| e.difference().map_or_else(none, |points| format!("{points:+.1}")),
    },
    Column { title: "holds the paper's", kind: Kind::Paper, value: holds },
    Column {
        title: "hours",
        kind: Kind::Number,
        value: |e| e.hours().map_or_else(none, |hours| format!("{hours:.2}")),
    },
    Column { title: "state", kind: Kind::Text, value: Entry::state },
];

/// The columns that the results fill.
fn columns(results: &Results) -> Vec<&'static Column> {
    let compared = results.rows.iter().any(|entry| entry.paper.is_some());
    COLUMNS.iter().filter(|column| compared || column.kind != Kind::Paper).collect()
}

fn none() -> String {
    String::new()
}

fn ours(entry: &Entry) -> String {
    match (entry.mean(), entry.std()) {
        (None, _) => none(),
        (Some(mean), None) => format!("{mean:.1}"),
        (Some(mean), Some(std)) => format!("{mean:.1} ± {std:.1}"),
    }
}

fn papers(entry: &Entry) -> String {
    match (entry.paper, entry.paper_std) {
        (None, _) => none(),
        (Some(mean), None) => format!("{mean:.1}"),
        (Some(mean), Some(std)) => format!("{mean:.1} ± {std:.1}"),
    }
}

fn seeds(entry: &Entry) -> String {
    entry.runs.iter().map(|run| run.seed.to_string()).collect::<Vec<_>>().join(" ")
}

fn holds(entry: &Entry) -> String {
    entry.holds_paper().map_or_else(none, |holds| if holds { "yes" } else { "no" }.to_owned())
}

fn range((low, high): (f64, f64)) -> String {
    format!("{low:.1}\u{2013}{high:.1}")
}

/// The table as Markdown.
pub fn markdown(results: &Results) -> String {
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let cell = |column: &Column, entry: &Entry| match column.kind {
        Kind::Text => escaped(&(column.value)(entry)),
        Kind::Number | Kind::Paper => (column.value)(entry),
    };
    let mut text = format!("# {}\n\n", escaped(&results.title));
    results.notes.iter().for_each(|note| text += &format!("- {}\n", escaped(note)));
    text += "\n";
    let columns = columns(results);
    text += &line(columns.iter().map(|column| column.title.to_owned()).collect());
    let rule = |column: &&Column| match column.kind {
        Kind::Text => "---".to_owned(),
        Kind::Number | Kind::Paper => "---:".to_owned(),
    };
    text += &line(columns.iter().map(rule).collect());
    for entry in &results.rows {
        text += &line(columns.iter().map(|column| cell(column, entry)).collect());
    }
    text + &format!("\n{}\n", total(results))
}

/// The hours in a sentence.
fn total(results: &Results) -> String {
    format!(
        "{:.2} hours of training in all, each run counted once; the hours of a row are those behind \
         each of its models, shared pre-training included.",
        results.hours
    )
}

/// The table as CSV, numbers with all their digits.
///
/// # Errors
/// None that is expected: it is written to memory.
pub fn csv(results: &Results) -> Result<Vec<u8>> {
    let failed = |e: &dyn std::fmt::Display| Error::Failed(format!("cannot write a table: {e}"));
    let mut writer = csv::Writer::from_writer(Vec::new());
    let header = [
        "row",
        "data",
        "top1",
        "low",
        "high",
        "std",
        "seeds",
        "paper",
        "paper_std",
        "difference",
        "holds_paper",
        "state",
        "top1_by_seed",
        "runs",
        "scale",
        "hours",
    ];
    writer.write_record(header).map_err(|e| failed(&e))?;
    let number = |value: Option<f64>| value.map_or_else(none, |value| format!("{value:.4}"));
    for entry in &results.rows {
        let tops: Vec<_> = entry.runs.iter().map(|run| format!("{:.4}", run.top1)).collect();
        let runs: Vec<_> = entry.runs.iter().map(|run| run.run.as_str()).collect();
        let record = [
            entry.row.clone(),
            entry.column.clone(),
            number(entry.mean()),
            number(entry.interval().map(|interval| interval.0)),
            number(entry.interval().map(|interval| interval.1)),
            number(entry.std()),
            seeds(entry),
            entry.paper.map_or_else(none, |paper| paper.to_string()),
            entry.paper_std.map_or_else(none, |std| std.to_string()),
            number(entry.difference()),
            holds(entry),
            entry.state(),
            tops.join(" "),
            // A folder may have spaces in its name.
            runs.join(";"),
            results.scale.to_string(),
            number(entry.hours()),
        ];
        writer.write_record(record).map_err(|e| failed(&e))?;
    }
    writer.into_inner().map_err(|e| failed(&e))
}

#[derive(Template)]
#[template(path = "study.html")]
struct Page<'a> {
    results: &'a Results,
    titles: Vec<(&'static str, bool)>,
    lines: Vec<Vec<(String, bool)>>,
    total: String,
}

/// The table as a web page.
///
/// # Errors
/// None that is expected.
pub fn html(results: &Results) -> Result<String> {
    let columns = columns(results);
    let number = |column: &Column| column.kind != Kind::Text;
    let line = |entry: &Entry| {
        columns.iter().map(|column| ((column.value)(entry), number(column))).collect()
    };
    let page = Page {
        results,
        titles: columns.iter().map(|column| (column.title, number(column))).collect(),
        lines: results.rows.iter().map(line).collect(),
        total: total(results),
    };
    page.render().map_err(|e| Error::Failed(format!("cannot render the table: {e}")))
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::entry;
    use super::*;

    fn results() -> Results {
        let mut unlucky = entry(&[], Some(71.1));
        unlucky.row_title = "Sim|CLR <x>".to_owned();
        unlucky.missing.push("failed (exit code 5): the loss is no number".to_owned());
        let rows = vec![entry(&[79.25], Some(79.9)), entry(&[78.0, 79.0, 80.0], None), unlucky];
        let notes = vec!["Schedules are shortened".to_owned()];
        Results { title: "Table 2".to_owned(), notes, rows, hours: 7.5, scale: 0.05 }
    }

    #[test]
    fn people_read_ours_beside_the_papers() {
        let text = markdown(&results());
        for line in [
            "# Table 2",
            "- Schedules are shortened",
            "| IDMM | Flowers | 79.2 | 78.2\u{2013}80.2 | 0 | 79.9 | -0.7 | yes | 2.00 | done |",
            "| IDMM | Flowers | 79.0 ± 1.0 | 76.5\u{2013}81.5 | 0 1 2 |  |  |  | 2.00 | done |",
            "| Sim\\|CLR \\<x\\> | Flowers |  |  |  | 71.1 |  |  |  | failed (exit code 5): the loss is no number |",
            "7.50 hours of training in all",
        ] {
            assert!(text.lines().any(|l| l.starts_with(line)), "{line}\n{text}");
        }
        let mut own = results();
        own.rows.retain(|entry| entry.paper.is_none());
        let line = "| IDMM | Flowers | 79.0 ± 1.0 | 76.5\u{2013}81.5 | 0 1 2 | 2.00 | done |";
        assert!(markdown(&own).lines().any(|l| l == line), "{}", markdown(&own));
        let page = html(&results()).expect("a page");
        assert!(page.contains("<td class=\"n\">79.0 ± 1.0</td>"), "{page}");
        assert!(page.contains("Sim|CLR &#60;x&#62;") && !page.contains("<script"), "{page}");
        assert!(page.contains("<li>Schedules are shortened</li>"));
    }

    #[test]
    fn programs_read_all_digits() {
        let text = String::from_utf8(csv(&results()).expect("a table")).expect("UTF-8");
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let header = reader.headers().expect("a header").clone();
        let first = reader.records().next().expect("a line").expect("a record");
        let of = |name: &str| {
            let i = header.iter().position(|title| title == name).expect(name);
            first[i].to_owned()
        };
        assert_eq!((of("top1"), of("difference")), ("79.2500".to_owned(), "-0.6500".to_owned()));
        assert_eq!(of("scale"), "0.05");
        assert_eq!((of("paper"), of("holds_paper")), ("79.9".to_owned(), "yes".to_owned()));
    }
}
