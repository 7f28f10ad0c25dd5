//! Numbers and lists as messages and reports say them.

/// Names or lines of a list that are shown; of the others a message has the number.
pub const SHOWN: usize = 10;

/// `1 image`, `2,040 images`, `3 classes`.
pub fn counted(count: usize, what: &str) -> String {
    let ending = match (count, what.ends_with('s')) {
        (1, _) => "",
        (_, true) => "es",
        (_, false) => "s",
    };
    format!("{} {what}{ending}", thousands(count))
}

/// `6149` as `6,149`.
pub fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Seconds as people say them: `42 s`, `4 min 10 s`, `3 h 05 min`.
pub fn duration(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
    }
}

/// `1.5 GB`, `320 MB`.
pub fn bytes(n: u64) -> String {
    match n {
        0..1_000_000_000 => format!("{} MB", n.div_ceil(1_000_000)),
        _ => format!("{:.1} GB", n as f64 / 1e9),
    }
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
pub fn listed_lines(lines: &[String]) -> String {
    let shown: String = lines.iter().take(SHOWN).map(|line| format!("\n  {line}")).collect();
    match lines.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown}\n  and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!([42.0, 754.0, 11_100.0].map(duration), ["42 s", "12 min 34 s", "3 h 05 min"]);
        assert_eq!([0, 999, 1000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([1, 1_500_000, 1_500_000_000].map(bytes), ["1 MB", "2 MB", "1.5 GB"]);
        assert_eq!(
            [(0, "image"), (1, "class"), (2040, "class")].map(|(n, what)| counted(n, what)),
            ["0 images", "1 class", "2,040 classes"]
        );
    }

    #[test]
    fn of_a_long_list_the_first_are_shown() {
        let lines: Vec<String> = (0..SHOWN + 2).map(|i| format!("missing: {i}")).collect();
        assert!(listed_lines(&lines).ends_with("\n  missing: 9\n  and 2 more"));
        assert!(shortened(&lines).ends_with("missing: 8, missing: 9 and 2 more"));
        assert!(!listed_lines(&lines[..SHOWN]).contains("more"));
        assert!(!shortened(&lines[..SHOWN]).contains("more"));
    }
}
