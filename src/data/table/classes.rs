//! The classes of a table's entries.

use std::collections::{BTreeSet, HashMap};

use super::entries::Entry;
use crate::error::{Error, Result};

/// Classes in their order, and the index of each by what entries call it.
pub(super) struct Classes {
    /// Names.
    pub names: Vec<String>,
    /// Index by the class of an entry.
    pub index: HashMap<String, usize>,
}

impl Classes {
    /// Sorted by the number beside the name where all have one, else as numbers if all are
    /// numbers, else by bytes; named by `names` (label to name) where it knows them. The names in a
    /// table of fewvit's `own` are classes, whatever they look like.
    ///
    /// # Errors
    /// [`Error::Data`] if labels are lists, if two labels have one name, or if a name has two
    /// numbers.
    pub fn of(entries: &[Entry], names: &HashMap<String, String>, own: bool) -> Result<Self> {
        if !own {
            refuse_lists(entries)?;
        }
        let labels: BTreeSet<&str> = entries.iter().filter_map(|e| e.class.as_deref()).collect();
        let mut labels: Vec<&str> = labels.into_iter().collect();
        let numbers = numbers(entries)?;
        if labels.iter().all(|label| numbers.contains_key(label)) {
            labels.sort_by_key(|label| numbers[label]);
        } else if labels.iter().all(|label| label.parse::<u64>().is_ok()) {
            labels.sort_by_key(|label| label.parse::<u64>().ok());
        }
        let index = labels.iter().enumerate().map(|(i, &label)| (label.to_owned(), i)).collect();
        // A name beside the number needs no list of names.
        let name = |label: &&str| match numbers.contains_key(label) {
            true => label.to_string(),
            false => names.get(*label).map_or(*label, String::as_str).to_owned(),
        };
        let classes = Self { names: labels.iter().map(name).collect(), index };
        let mut seen = HashMap::new();
        for (label, name) in labels.iter().zip(&classes.names) {
            if let Some(other) = seen.insert(name, label) {
                return Err(Error::Data(format!(
                    "class_names.csv calls both label {other} and label {label} `{name}`; give \
                     them names that tell them apart"
                )));
            }
        }
        Ok(classes)
    }
}

/// The number of each class that has one beside its name.
fn numbers(entries: &[Entry]) -> Result<HashMap<&str, u64>> {
    let mut numbers: HashMap<&str, (u64, &str)> = HashMap::new();
    let mut of_number: HashMap<u64, (&str, &str)> = HashMap::new();
    for entry in entries {
        let (Some(class), Some(number)) = (entry.class.as_deref(), entry.index) else { continue };
        let (before, at) = *numbers.entry(class).or_insert((number, &entry.at));
        let (name, named_at) = *of_number.entry(number).or_insert((class, &entry.at));
        let (what, at) = match (before == number, name == class) {
            (true, true) => continue,
            (false, _) => (format!("`{class}` has the number {before}"), at),
            (_, false) => (format!("{number} is the number of `{name}`"), named_at),
        };
        return Err(Error::Data(format!(
            "{what} in {at}, but `{class}` has {number} in {}; correct one of them",
            entry.at
        )));
    }
    Ok(numbers.into_iter().map(|(class, (number, _))| (class, number)).collect())
}

/// Refuses labels that name several classes: lists, objects, and names joined by a separator whose
/// parts are found in other labels too.
fn refuse_lists(entries: &[Entry]) -> Result<()> {
    let labels = || entries.iter().filter_map(|e| Some((e.class.as_deref()?, &e.at)));
    let refuse = |(label, at): (&str, &String), what: &str| {
        Err(Error::Data(format!(
            "{at}: the label {label} {what}; fewvit trains one class an image and does not read \
             multi-label tables"
        )))
    };
    let is_list = |label: &str| {
        let ends = (label.chars().next(), label.chars().next_back());
        label.len() > 1 && matches!(ends, (Some('['), Some(']')) | (Some('{'), Some('}')))
    };
    if let Some(list) = labels().find(|(label, _)| is_list(label)) {
        return refuse(list, "is a list");
    }
    let distinct: BTreeSet<&str> = labels().map(|(label, _)| label).collect();
    for separator in [';', '|', ','] {
        let parts = |label: &'_ str| -> Vec<String> {
            let parts: Vec<String> =
                label.split(separator).map(|part| part.trim().to_owned()).collect();
            let joined = parts.len() > 1 && parts.iter().all(|part| !part.is_empty());
            if joined { parts } else { Vec::new() }
        };
        let mut used: HashMap<String, usize> = HashMap::new();
        for part in distinct.iter().flat_map(|label| parts(label)) {
            *used.entry(part).or_default() += 1;
        }
        let is_class = |part: &String| distinct.contains(part.as_str());
        let shared = |part: &String| used[part] > 1 || is_class(part);
        let several = |label: &str| match separator {
            // `Rose, red` and `Rose, white` are names; `rose, tulip` beside both is not.
            ',' => !parts(label).is_empty() && parts(label).iter().all(is_class),
            _ => parts(label).iter().any(shared),
        };
        if let Some(label) = labels().find(|(label, _)| several(label)) {
            return refuse(label, &format!("names several classes, joined by `{separator}`"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry((line, class): (usize, &(&str, Option<u64>))) -> Entry {
        Entry {
            at: format!("x.csv, line {}", line + 2),
            file: format!("{line}.jpg"),
            class: Some(class.0.to_owned()),
            index: class.1,
            split: None,
            group: None,
            treatment: None,
            digest: None,
        }
    }

    fn classes(labels: &[(&str, Option<u64>)], names: &[(&str, &str)]) -> Result<Vec<String>> {
        let entries: Vec<Entry> = labels.iter().enumerate().map(entry).collect();
        let names = names.iter().map(|(label, name)| (label.to_string(), name.to_string()));
        Ok(Classes::of(&entries, &names.collect(), false)?.names)
    }

    #[test]
    fn names_count_before_numbers_and_numbers_give_the_order() {
        let numbered = [("rose", Some(7)), ("ash", Some(10)), ("tulip", Some(2))];
        assert_eq!(classes(&numbered, &[]).unwrap(), ["tulip", "rose", "ash"]);
        assert_eq!(classes(&[("10", None), ("9", None)], &[]).unwrap(), ["9", "10"]);
        assert_eq!(classes(&[("10", None), ("a", None)], &[]).unwrap(), ["10", "a"]);
        let named = classes(&[("10", None), ("9", None)], &[("9", "ox")]).unwrap();
        assert_eq!(named, ["ox", "10"]);
        let error = |labels: &[_], names: &[_]| classes(labels, names).unwrap_err().to_string();
        let text = error(&[("1", None), ("2", None)], &[("1", "crane"), ("2", "crane")]);
        assert!(text.contains("both label 1 and label 2 `crane`"), "{text}");
        let text = error(&[("crane", Some(1)), ("ox", Some(3)), ("crane", Some(2))], &[]);
        assert!(text.contains("number 1 in x.csv, line 2") && text.contains("line 4"), "{text}");
        let text = error(&[("crane", Some(1)), ("ox", Some(1))], &[]);
        assert!(text.contains("1 is the number of `crane` in x.csv, line 2"), "{text}");
    }

    #[test]
    fn several_labels_an_image_are_refused_and_odd_names_are_not() {
        for labels in [
            &["[\"x\", \"z\"]", "x"][..],
            &["{\"a\": 1}"],
            &["x;z", "y;z"],
            &["x|z", "z"],
            &["a, b", "a", "b"],
        ] {
            let labels: Vec<_> = labels.iter().map(|label| (*label, None)).collect();
            let error = classes(&labels, &[]).unwrap_err().to_string();
            assert!(error.contains("multi-label") && error.contains("x.csv, line 2"), "{error}");
        }
        let honest = ["Rose, red", "Rose, white", "a;b", "c|d", "[x", "F/A-18", ";", "x;"];
        let honest: Vec<_> = honest.iter().map(|label| (*label, None)).collect();
        assert_eq!(classes(&honest, &[]).unwrap().len(), 8);
    }
}
