//! A time budget in the words that people write it in.

/// `10`, `10m`, `90s` or `2h` in minutes.
///
/// # Errors
/// What was expected, where it is none of these.
pub fn parse_minutes(text: &str) -> Result<f64, String> {
    let units = [("min", 1.0), ("m", 1.0), ("s", 1.0 / 60.0), ("h", 60.0)];
    let unit = units.iter().find_map(|(unit, minutes)| Some((text.strip_suffix(unit)?, *minutes)));
    let (number, minutes) = unit.unwrap_or((text, 1.0));
    let number: f64 = number
        .trim()
        .parse()
        .map_err(|_| "expected minutes, or a number with s, m or h: 10, 90s, 2h".to_owned())?;
    Ok(number * minutes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minutes_take_units() {
        for (text, minutes) in
            [("10", 10.0), ("90s", 1.5), ("45m", 45.0), ("5 min", 5.0), ("1.5h", 90.0)]
        {
            assert_eq!(parse_minutes(text), Ok(minutes));
        }
        assert!(parse_minutes("soon").is_err());
    }
}
