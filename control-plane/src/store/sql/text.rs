//! One text for both databases: `?` and `?1` are PostgreSQL's `$1`.
//!
//! Written anew at each call: beside the way to the server and back that is nothing. The prepared statement is kept by the
//! text that comes out.

use std::fmt::Write as _;

/// The same statement with PostgreSQL's placeholders. A `?` in quotes stays.
pub(in crate::store) fn for_postgres(text: &str) -> String {
    let mut written = String::with_capacity(text.len() + 16);
    let mut characters = text.chars().peekable();
    let (mut quoted, mut last) = (false, 0);
    while let Some(character) = characters.next() {
        quoted ^= character == '\'';
        if character != '?' || quoted {
            written.push(character);
            continue;
        }
        let mut number = 0;
        while let Some(digit) = characters.peek().and_then(|next| next.to_digit(10)) {
            number = number * 10 + digit;
            characters.next();
        }
        last = if number == 0 { last + 1 } else { number };
        let _infallible = write!(written, "${last}");
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_numbered_and_quotes_are_left_alone() {
        for (text, expected) in [
            ("a = ? AND b = ?", "a = $1 AND b = $2"),
            ("a = ?2 OR b = ?1 OR c = ?12", "a = $2 OR b = $1 OR c = $12"),
            ("a = '?' AND b = 'it''s ?' AND c = ?", "a = '?' AND b = 'it''s ?' AND c = $1"),
            ("SELECT 1", "SELECT 1"),
        ] {
            assert_eq!(for_postgres(text), expected);
        }
    }
}
