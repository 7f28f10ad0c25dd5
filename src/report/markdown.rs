//! Text of people's own in Markdown: names of data sets, classes and files, and commands with them.

/// Plain text as Markdown that shows it on one line: a backslash before whatever would be mark-up, blanks for line
/// breaks and other control characters.
pub(crate) fn escaped(text: &str) -> String {
    let mut markdown = String::with_capacity(text.len());
    for (i, c) in text.char_indices() {
        if is_markup(&text[..i], c, &text[i + c.len_utf8()..]) {
            markdown.push('\\');
        }
        markdown.push(if c.is_control() { ' ' } else { c });
    }
    markdown
}

/// Whether a character would mean something between what is before and after it.
fn is_markup(before: &str, c: char, after: &str) -> bool {
    match c {
        '\\' | '`' | '*' | '[' | ']' | '<' | '>' | '|' | '#' | '&' | '~' | '$' => true,
        // Within a word it is a letter like any other.
        '_' => {
            !before.ends_with(char::is_alphanumeric) || !after.starts_with(char::is_alphanumeric)
        }
        // At the beginning these and `1.` or `1)` would make the text an entry of a list.
        '-' | '+' => before.trim().is_empty(),
        '.' | ')' => {
            let number = before.trim();
            !number.is_empty() && number.chars().all(|c| c.is_ascii_digit())
        }
        _ => false,
    }
}

/// Text within a line, shown letter by letter; line breaks become blanks.
pub(crate) fn code(text: &str) -> String {
    let text = text.replace(['\r', '\n'], " ");
    let ticks = "`".repeat(longest_run(&text) + 1);
    match ticks.len() {
        1 => format!("`{text}`"),
        // One blank on each side is not shown.
        _ => format!("{ticks} {text} {ticks}"),
    }
}

/// Lines of their own, shown letter by letter.
pub(crate) fn block(text: &str) -> String {
    let fence = "`".repeat(3.max(longest_run(text) + 1));
    format!("{fence}\n{text}\n{fence}")
}

/// The most backticks in a row.
fn longest_run(text: &str) -> usize {
    text.split(|c| c != '`').map(str::len).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_markup_gets_a_backslash() {
        for (text, markdown) in [
            ("rose & <b>thorn</b>", r"rose \& \<b\>thorn\</b\>"),
            ("``` # H", r"\`\`\` \# H"),
            (r"*b* [x](y) | ~z~ $1$ a\b", r"\*b\* \[x\](y) \| \~z\~ \$1\$ a\\b"),
            ("line\r\nbreak\tand\u{85}more", "line  break and more"),
            ("pvt_v2_b0 and _this_ a__b", r"pvt_v2_b0 and \_this\_ a\_\_b"),
            ("- a - b + c", r"\- a - b + c"),
            (" + a", r" \+ a"),
            ("1. a, 2. b", r"1\. a, 2. b"),
            ("12) a (b)", r"12\) a (b)"),
            ("plain: 2,040 images of flowers-102.", "plain: 2,040 images of flowers-102."),
            ("花|über", r"花\|über"),
            ("", ""),
        ] {
            assert_eq!(escaped(text), markdown);
        }
    }

    #[test]
    fn code_is_shown_letter_by_letter() {
        assert_eq!(code("fewvit predict a_b"), "`fewvit predict a_b`");
        assert_eq!(code("it`s ``two"), "``` it`s ``two ```");
        assert_eq!(code("a\nb"), "`a b`");
        assert_eq!(block("a\nb"), "```\na\nb\n```");
        assert_eq!(block("a\n````\nb"), "`````\na\n````\nb\n`````");
    }
}
