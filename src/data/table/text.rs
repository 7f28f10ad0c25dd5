//! The text of a table: encoding, separator, rows with their lines.

use std::collections::HashSet;

use encoding_rs::{Encoding, UTF_16BE, UTF_16LE, WINDOWS_1252};

use super::super::listing::extension;
use crate::error::{Error, Result};
use crate::words::{counted, listed_lines};

/// Separators, the usual ones first.
const SEPARATORS: [u8; 4] = *b",;\t|";

/// A table as it was written: a header and rows of as many fields.
#[derive(Clone, Debug)]
pub struct Table {
    /// The file's name.
    pub name: String,
    /// Names of the columns in small letters, words joined by `_`.
    pub columns: Vec<String>,
    /// The rows.
    pub rows: Vec<Row>,
    /// What a person should know of how it was read.
    pub notes: Vec<String>,
}

/// One row.
#[derive(Clone, Debug)]
pub struct Row {
    /// The line it begins at, from 1.
    pub line: usize,
    /// Its fields.
    pub fields: Vec<String>,
}

impl Table {
    /// Reads the bytes of the file `name`. A header for which `is_one` is false is not read on:
    /// the table has no rows then.
    ///
    /// # Errors
    /// [`Error::Data`] naming the file and the lines that do not fit.
    pub fn parse(bytes: &[u8], name: &str, is_one: &dyn Fn(&[String]) -> bool) -> Result<Self> {
        let (text, notes) = decoded(bytes).map_err(|what| Error::Data(format!("{name} {what}")))?;
        let mut table =
            Self { name: name.to_owned(), columns: Vec::new(), rows: Vec::new(), notes };
        match extension(name).as_str() {
            "jsonl" | "ndjson" => table.read_json_lines(&text)?,
            "json" => table.read_json(&text)?,
            _ => table.read_separated(&text, is_one)?,
        }
        Ok(table)
    }

    /// Whether fewvit wrote it, with names of any kind: a run's `splits.csv`, or `data split`.
    pub fn is_own(&self) -> bool {
        let columns = self.columns.iter().map(String::as_str);
        columns.take(OWN_COLUMNS.len()).eq(OWN_COLUMNS)
    }

    /// Where a column is, with or without `_` between its words.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| is_called(column, name))
    }

    fn read_separated(&mut self, text: &str, is_one: &dyn Fn(&[String]) -> bool) -> Result<()> {
        // Excel's own way to say which separator follows.
        let declared = text.strip_prefix("sep=").and_then(|rest| rest.bytes().next());
        let declared = declared.filter(|byte| SEPARATORS.contains(byte));
        let start = declared.and_then(|_| text.find('\n')).map_or(0, |end| end + 1);
        let separator = declared.unwrap_or_else(|| separator(text, is_one));
        self.columns = header(&text[start..], separator);
        if !is_one(&self.columns) {
            return Ok(());
        }
        let mut names = HashSet::new();
        if let Some(twice) = self.columns.iter().find(|c| !c.is_empty() && !names.insert(*c)) {
            return Err(self.bad(&format!("two columns are called `{twice}`")));
        }
        let records = records(text, start, separator).map_err(|e| self.bad(&e.to_string()))?;
        let mut misfits = Vec::new();
        for Record { line, mut fields, is_open } in records.into_iter().skip(1) {
            // Spreadsheets fill up rows with empty fields.
            while fields.len() > self.columns.len() && fields.last().is_some_and(|f| f.is_empty()) {
                fields.pop();
            }
            if is_open {
                misfits.push(format!("line {line} has a quote that is not closed"));
            } else if let Some(row) = swallowed(&fields, self.columns.len(), separator) {
                misfits.push(format!(
                    "line {line} has a quote that is closed only after what looks like another row: {row}"
                ));
            } else if fields.len() != self.columns.len() {
                misfits.push(format!("line {line} has {}", counted(fields.len(), "field")));
            }
            if !self.is_own() {
                fields.iter_mut().for_each(|field| *field = unquoted(field));
            }
            self.rows.push(Row { line, fields });
        }
        let rows_do = match misfits.len() {
            0 => return Ok(()),
            1 => "1 row does".to_owned(),
            n => format!("{n} rows do"),
        };
        let columns = counted(self.columns.len(), "column");
        let lines = listed_lines(&misfits);
        Err(self.bad(&format!("{rows_do} not fit the header with {columns}:{lines}")))
    }

    fn read_json_lines(&mut self, text: &str) -> Result<()> {
        let mut objects = Vec::new();
        for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let object = serde_json::from_str(line)
                .map_err(|e| self.bad(&format!("line {} is no JSON object ({e})", i + 1)))?;
            objects.push((i + 1, object));
        }
        self.take(objects)
    }

    /// A list of objects; the lines are those of the list.
    fn read_json(&mut self, text: &str) -> Result<()> {
        let objects: Vec<Object> = serde_json::from_str(text).map_err(|e| {
            self.bad(&format!("is no list of objects, one an image, which fewvit reads ({e})"))
        })?;
        self.take(objects.into_iter().enumerate().map(|(i, object)| (i + 1, object)).collect())
    }

    fn take(&mut self, objects: Vec<(usize, Object)>) -> Result<()> {
        for key in objects.iter().flat_map(|(_, object)| object.keys()) {
            let key = column_name(key);
            if !self.columns.contains(&key) {
                self.columns.push(key);
            }
        }
        for (line, object) in objects {
            let mut fields = vec![String::new(); self.columns.len()];
            for (key, value) in object {
                let key = column_name(&key);
                let at = self.columns.iter().position(|column| *column == key);
                if let Some(field) = at.and_then(|at| fields.get_mut(at)) {
                    *field = match value {
                        serde_json::Value::String(text) => text,
                        serde_json::Value::Null => String::new(),
                        other => other.to_string(),
                    };
                }
            }
            self.rows.push(Row { line, fields });
        }
        Ok(())
    }

    fn bad(&self, what: &str) -> Error {
        Error::Data(format!("{}: {what}", self.name))
    }
}

/// A field with blanks before its quotes, `a, "b"`, without both.
fn unquoted(field: &str) -> String {
    let inner = field.trim().strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    inner.map_or_else(|| field.to_owned(), |inner| inner.replace("\"\"", "\""))
}

type Object = serde_json::Map<String, serde_json::Value>;

/// The text of a file, with `\n` at the ends of lines, and what to say of it.
fn decoded(bytes: &[u8]) -> std::result::Result<(String, Vec<String>), &'static str> {
    let wide = |encoding: &'static Encoding, bytes: &[u8]| match encoding
        .decode_without_bom_handling(bytes)
    {
        (text, false) => Ok(text.into_owned()),
        (_, true) => Err("begins as UTF-16 and is damaged; save it as UTF-8"),
    };
    let mut notes = Vec::new();
    let text = match bytes {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => Err("is UTF-32; save it as UTF-8"),
        [0xef, 0xbb, 0xbf, rest @ ..] => {
            String::from_utf8(rest.to_vec()).map_err(|_| "begins as UTF-8 and is damaged")
        }
        [0xff, 0xfe, rest @ ..] => wide(UTF_16LE, rest),
        [0xfe, 0xff, rest @ ..] => wide(UTF_16BE, rest),
        _ if bytes.contains(&0) => {
            Err("holds zero bytes: no text, or UTF-16 without its mark; save it as UTF-8")
        }
        _ => match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) if is_western(bytes) => {
                notes.push("read as Windows-1252, as it is no UTF-8".to_owned());
                Ok(WINDOWS_1252.decode_without_bom_handling(bytes).0.into_owned())
            }
            Err(_) => Err("is neither UTF-8 nor clearly Windows-1252; save it as UTF-8"),
        },
    }?;
    Ok((text.replace("\r\n", "\n").replace('\r', "\n"), notes))
}

/// Whether bytes that are no UTF-8 are clearly Windows-1252: its letters and typographic marks
/// only, and no words made of accented letters alone, as text in a Cyrillic or Chinese code page
/// would seem to have.
fn is_western(bytes: &[u8]) -> bool {
    let is_mark = |byte: u8| matches!(byte, 0x80 | 0x85 | 0x91..=0x97 | 0xa0 | 0xab | 0xb0 | 0xbb);
    let is_letter = |byte: &u8| *byte >= 0xc0 && *byte != 0xd7 && *byte != 0xf7;
    let mut words =
        bytes.split(|byte| is_mark(*byte) || (byte.is_ascii() && !byte.is_ascii_alphabetic()));
    words.all(|word| {
        let mut runs = word.split(u8::is_ascii);
        let plain = word.iter().any(u8::is_ascii);
        runs.all(|run| run.iter().all(is_letter) && run.len() < if plain { 3 } else { 2 })
    })
}

/// The separator with which the header is one of a table, or has the most columns.
fn separator(text: &str, is_one: &dyn Fn(&[String]) -> bool) -> u8 {
    let score = |separator: u8| {
        let columns = header(text, separator);
        (is_one(&columns), columns.len())
    };
    // The first of the best ones.
    SEPARATORS.into_iter().rev().max_by_key(|s| score(*s)).unwrap_or(b',')
}

fn header(text: &str, separator: u8) -> Vec<String> {
    let mut record = csv::StringRecord::new();
    match reader(text, separator).read_record(&mut record) {
        Ok(true) => header_of(&record),
        _ => Vec::new(),
    }
}

fn header_of(record: &csv::StringRecord) -> Vec<String> {
    let mut columns: Vec<String> = record.iter().map(|name| column_name(&unquoted(name))).collect();
    while columns.len() > 1 && columns.last().is_some_and(String::is_empty) {
        columns.pop();
    }
    columns
}

/// Whether a column is called so, `_` aside.
pub(super) fn is_called(column: &str, name: &str) -> bool {
    let letters = |name: &str| name.replace('_', "");
    letters(column) == letters(name)
}

/// A column's name as it is compared: `File Name` is `file_name`.
fn column_name(name: &str) -> String {
    name.trim().trim_start_matches('\u{feff}').to_lowercase().replace([' ', '-', '.'], "_")
}

/// A record of separated text.
struct Record {
    line: usize,
    fields: Vec<String>,
    /// Whether it ends with the text, inside a quote.
    is_open: bool,
}

/// The records from byte `start` on that are not empty, the header first.
fn records(text: &str, start: usize, separator: u8) -> csv::Result<Vec<Record>> {
    let mut reader = reader(&text[start..], separator);
    let (mut record, mut records) = (csv::StringRecord::new(), Vec::new());
    let (mut line, mut counted_to) = (1, 0);
    let mut begin = start;
    while reader.read_record(&mut record)? {
        // Empty lines before the record are passed over by the reader.
        begin += text[begin..].bytes().take_while(|byte| *byte == b'\n').count();
        line += text[counted_to..begin].matches('\n').count();
        counted_to = begin;
        let end = start + reader.position().byte() as usize;
        let fields: Vec<String> = record.iter().map(str::to_owned).collect();
        let torn = fields.iter().any(|field| field.contains('\n'));
        let is_open = torn && text[begin..end].matches('"').count() % 2 == 1;
        if fields.iter().any(|field| !field.trim().is_empty()) {
            records.push(Record { line, fields, is_open });
        }
        begin = end;
    }
    Ok(records)
}

/// The first line within a field that has as many separators as a row of `columns`; two quotes that belong to two
/// rows make one field of all that is between them.
fn swallowed(fields: &[String], columns: usize, separator: u8) -> Option<&str> {
    let separators = |line: &str| line.bytes().filter(|byte| *byte == separator).count();
    let mut lines = fields.iter().flat_map(|field| field.lines().skip(1));
    lines.find(|line| columns > 1 && separators(line) + 1 >= columns)
}

fn reader(text: &str, separator: u8) -> csv::Reader<&[u8]> {
    csv::ReaderBuilder::new()
        .delimiter(separator)
        .flexible(true)
        .has_headers(false)
        .from_reader(text.as_bytes())
}

/// First columns of the tables that fewvit writes, whatever else follows.
const OWN_COLUMNS: [&str; 5] = ["file", "label", "class", "split", "digest"];

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> Result<Table> {
        Table::parse(bytes, "x.csv", &|columns| columns.contains(&"file".to_owned()))
    }

    fn rows(bytes: &[u8]) -> Vec<(usize, Vec<String>)> {
        parse(bytes).unwrap().rows.into_iter().map(|row| (row.line, row.fields)).collect()
    }

    fn error(bytes: &[u8]) -> String {
        parse(bytes).unwrap_err().to_string()
    }

    #[test]
    fn separators_and_line_ends_do_not_matter() {
        let expected = [
            (2, vec!["a,1;x.jpg".to_owned(), "r\u{f6}se | \"wild\"".to_owned()]),
            (4, vec!["b.jpg".to_owned(), "tulip".to_owned()]),
        ];
        let text = "File,Label\n\"a,1;x.jpg\",\"r\u{f6}se | \"\"wild\"\"\"\n\nb.jpg,tulip\n";
        for separator in [",", ";", "\t", "|"] {
            let quoted = text.replace("File,Label", &format!("File{separator}Label"));
            let quoted = quoted.replace("\",\"", &format!("\"{separator}\""));
            let text = quoted.replace("b.jpg,", &format!("b.jpg{separator}"));
            for end in ["\n", "\r\n", "\r"] {
                assert_eq!(rows(text.replace('\n', end).as_bytes()), expected, "{separator:?}");
            }
            let declared = format!("sep={separator}\n{text}");
            assert_eq!(rows(declared.as_bytes())[1].0, 5);
        }
        assert_eq!(rows(b"file\na b.jpg\n"), [(2, vec!["a b.jpg".to_owned()])]);
    }

    #[test]
    fn encodings_are_found_out() {
        let text = "file,label\nr\u{f6}se.jpg,\u{e9}t\u{e9} \u{2013} \u{201c}x\u{201d}\n";
        let expected = rows(text.as_bytes());
        let units: Vec<u16> = text.encode_utf16().collect();
        let little: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        let big: Vec<u8> = units.iter().flat_map(|unit| unit.to_be_bytes()).collect();
        assert_eq!(rows(&[b"\xef\xbb\xbf", text.as_bytes()].concat()), expected);
        assert_eq!(rows(&[b"\xff\xfe", little.as_slice()].concat()), expected);
        assert_eq!(rows(&[b"\xfe\xff", big.as_slice()].concat()), expected);
        let western = b"file,label\nr\xf6se.jpg,\xe9t\xe9 \x96 \x93x\x94\n";
        assert_eq!(rows(western), expected);
        assert!(parse(western).unwrap().notes[0].contains("Windows-1252"));
        assert!(is_western(b"pomme \xe0 cidre, cr\xe9\xe9e"));
        // "rose" in Russian (Windows-1251), Chinese (GBK) and Japanese (Shift-JIS).
        for other in
            [&b"\xf0\xee\xe7\xe0"[..], b"\xc3\xb5\xb9\xe5", b"\x83\x6f\x83\x89", b"\xd6\xd0"]
        {
            let table = [b"file,label\n1.jpg,", other, b"\n"].concat();
            assert!(error(&table).contains("neither UTF-8 nor clearly"), "{other:?}");
        }
        assert!(error(&little).contains("zero bytes"));
        assert!(error(b"\xff\xfe\x00\xd8").contains("UTF-16 and is damaged"));
        assert!(error(b"\xff\xfe\0\0f\0\0\0").contains("UTF-32"));
    }

    #[test]
    fn rows_that_do_not_fit_are_named_with_their_lines() {
        let text = b"file,label\n1.jpg,a\n2.jpg\n3.jpg,a,b\n\n4.jpg,a,,\n,,\n5.jpg,\"a\n6.jpg,b\n";
        let text = error(text);
        assert!(text.starts_with("x.csv: 3 rows do not fit the header with 2 columns:"), "{text}");
        for line in ["line 3 has 1 field", "line 4 has 3 fields", "line 8 has a quote"] {
            assert!(text.contains(line), "{text}");
        }
        let note = b"file,label,note\n1.jpg,a,\"two\nlines\"\n2.jpg,b,5\" pot\n";
        assert_eq!(rows(note)[1].0, 4);
        assert!(error(b"file,label,Label\n1.jpg,a,b\n").contains("two columns are called `label`"));
        let many = format!("file,label\n{}", "1.jpg\n".repeat(14));
        assert!(error(many.as_bytes()).ends_with("\n  and 4 more"));
    }

    #[test]
    fn json_is_read_as_lines_or_as_a_list() {
        let json = |text: &str, name: &str| Table::parse(text.as_bytes(), name, &|_| true);
        let lines =
            json("{\"File Name\": \"1.jpg\", \"n\": 3}\n\n{\"file-name\": null}\n", "x.jsonl");
        let lines = lines.unwrap();
        assert_eq!(lines.columns, ["file_name", "n"]);
        assert_eq!((lines.rows[0].line, lines.rows[1].line), (1, 3));
        assert_eq!(lines.rows[0].fields, ["1.jpg", "3"]);
        assert_eq!(lines.rows[1].fields, ["", ""]);
        let list = json("[{\"file\": \"1.jpg\"}, {\"file\": \"2.jpg\"}]", "x.json").unwrap();
        assert_eq!((list.rows.len(), list.rows[1].line), (2, 2));
        let error = json("{\"images\": []}", "x.json").unwrap_err().to_string();
        assert!(error.contains("is no list of objects"), "{error}");
        let error = json("{\"a\": 1}\n{\n", "x.jsonl").unwrap_err().to_string();
        assert!(error.contains("line 2 is no JSON object"), "{error}");
    }

    #[test]
    fn two_torn_quotes_do_not_swallow_the_rows_between_them() {
        let text = b"file,label,note\na.jpg,x,\"nice, 5\nb.jpg,x,\nc.jpg,y,\nd.jpg,y,\"bad\n";
        let error = error(text);
        assert!(error.contains("line 2 has a quote that is closed only after"), "{error}");
        assert!(error.contains("b.jpg,x,"), "{error}");
        let text = b"file,label,note\na.jpg,x,\"two lines,\nof one note\"\n";
        assert_eq!(rows(text).len(), 1, "a note of two lines is one");
    }
}
