//! Durations as people write them on a command line: `90s`, `5m`, `2h`, `1d`.

use std::time::Duration;

/// # Errors
/// When the text is no number with one of the units s, m, h, d, or is longer than ten years.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    const SECONDS_MAX: u64 = 10 * 365 * 86_400;
    let hint = || format!("{text:?} is no duration; write 90s, 5m, 2h or 1d");
    let unit = text.chars().last().ok_or_else(hint)?;
    let (number, seconds) = match unit {
        's' => (&text[..text.len() - 1], 1),
        'm' => (&text[..text.len() - 1], 60),
        'h' => (&text[..text.len() - 1], 3600),
        'd' => (&text[..text.len() - 1], 86_400),
        _ => (text, 1),
    };
    let number: u64 = number.parse().map_err(|_| hint())?;
    let total = number.checked_mul(seconds).filter(|total| *total <= SECONDS_MAX);
    let total = total.ok_or_else(|| format!("{text} is longer than ten years"))?;
    Ok(Duration::from_secs(total))
}

/// As [`parse`], for what cannot be done in no time.
///
/// # Errors
/// As [`parse`], and for zero.
pub(crate) fn parse_some(text: &str) -> Result<Duration, String> {
    parse(text)
        .and_then(|some| if some.is_zero() { Err("it must be 1s or more".to_owned()) } else { Ok(some) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_understood_and_nonsense_is_refused() {
        assert_eq!(parse("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse("7"), Ok(Duration::from_secs(7)));
        assert_eq!(parse("2h"), Ok(Duration::from_secs(7200)));
        for text in ["", "s", "-1s", "1.5h", "18446744073709551615d", "5ü"] {
            parse(text).unwrap_err();
        }
        assert!(parse("3651d").is_err_and(|why| why.contains("ten years")) && parse("3650d").is_ok());
    }
}
