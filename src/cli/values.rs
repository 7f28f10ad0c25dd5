//! Values of flags that have a notation of their own.

use toml::{Table, Value};

/// `2x112@0.14-1,4x112@0.05-0.4` as `pretrain.crops`; ranges are checked with all other settings.
pub fn parse_crops(groups: &str) -> std::result::Result<Value, String> {
    groups.split(',').map(parse_group).collect::<std::result::Result<Vec<_>, _>>().map(Value::Array)
}

fn parse_group(group: &str) -> std::result::Result<Value, String> {
    let misfit = |what: &str| {
        format!("`{group}` {what}; a group is COUNTxSIZE@LOW-HIGH, for example 4x112@0.05-0.4")
    };
    let (count, rest) = group.split_once('x').ok_or_else(|| misfit("has no `x`"))?;
    let (size, scale) = rest.split_once('@').ok_or_else(|| misfit("has no `@`"))?;
    let (low, high) = scale.split_once('-').ok_or_else(|| misfit("has no range LOW-HIGH"))?;
    let whole = |text: &str, what: &str| {
        let number = text.trim().parse::<u32>();
        number.map_err(|_| misfit(&format!("has the {what} `{text}`, which is no whole number")))
    };
    let share = |text: &str| {
        let number = text.trim().parse::<f64>();
        number.map_err(|_| misfit(&format!("has the share `{text}`, which is no number")))
    };
    Ok(Value::Table(Table::from_iter([
        ("count".to_owned(), whole(count, "count")?.into()),
        ("img_size".to_owned(), whole(size, "size")?.into()),
        ("scale".to_owned(), vec![share(low)?, share(high)?].into()),
    ])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crops_are_read_and_mistakes_are_located() {
        let crops = parse_crops("2x112@0.14-1, 4x96@0.05-0.4").expect("two groups");
        let expected = "[{ count = 2, img_size = 112, scale = [0.14, 1.0] }, \
                        { count = 4, img_size = 96, scale = [0.05, 0.4] }]";
        assert_eq!(crops.to_string(), expected);
        for (groups, expected) in [
            ("", "`` has no `x`"),
            ("2", "has no `x`"),
            ("2x112", "has no `@`"),
            ("2x112@0.1", "has no range"),
            ("ax112@0.1-1", "count `a`, which is no whole number"),
            ("2x112@0.1-1,4x1.5@0.1-1", "`4x1.5@0.1-1` has the size `1.5`"),
            ("2x112@0.1-b", "share `b`"),
        ] {
            let text = parse_crops(groups).expect_err(groups);
            assert!(text.contains(expected) && text.contains("COUNTxSIZE@LOW-HIGH"), "{text}");
        }
    }
}
