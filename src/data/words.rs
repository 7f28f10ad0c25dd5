//! Words for messages.

/// Names or lines of a list that are shown; of the others a message has the number.
pub const SHOWN: usize = 10;

/// `1 image`, `2 images`.
pub fn counted(count: usize, what: &str) -> String {
    let ending = match (count, what.ends_with('s')) {
        (1, _) => "",
        (_, true) => "es",
        (_, false) => "s",
    };
    format!("{count} {what}{ending}")
}

/// Up to [`SHOWN`] names, and how many more there are.
pub fn shortened(names: &[String]) -> String {
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Up to [`SHOWN`] texts, each on a line of its own, and how many more there are.
pub(super) fn listed_lines(lines: &[String]) -> String {
    let shown: String = lines.iter().take(SHOWN).map(|line| format!("\n  {line}")).collect();
    match lines.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown}\n  and {more} more"),
    }
}
