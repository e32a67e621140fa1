//! How answers are printed: aligned tables for people, JSON for programs.

use std::borrow::Cow;
use std::io::{IsTerminal as _, Write as _};

use portico_api::v1::DomainStatus;
use serde::Serialize;

use crate::failure::{Failure, Outcome};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    #[default]
    Table,
    Json,
}

/// Prints a line. A reader that has gone (`| head`) is no failure of the command.
pub(crate) fn line(text: impl AsRef<str>) {
    let _reader_may_be_gone = writeln!(std::io::stdout().lock(), "{}", harmless(text.as_ref()));
}

/// Without what steers a terminal, apart from the colours of [`paint`]: names in a certificate, a redirect's target, a CA's
/// words and a tenant's texts are other people's.
pub(crate) fn harmless(text: &str) -> Cow<'_, str> {
    let steers = |character: char| {
        let turns = matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        turns || (character.is_control() && !matches!(character, '\n' | '\t'))
    };
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let mut kept = String::with_capacity(text.len());
    for (at, character) in text.char_indices() {
        let is_own = || COLOURS.iter().any(|code| text[at..].starts_with(code));
        kept.push(if !steers(character) || is_own() { character } else { '\u{fffd}' });
    }
    Cow::Owned(kept)
}

/// What [`paint`] writes.
const COLOURS: [&str; 5] = ["\u{1b}[0m", "\u{1b}[1m", "\u{1b}[31m", "\u{1b}[32m", "\u{1b}[33m"];

/// Prints one JSON document.
pub(crate) fn json(value: &impl Serialize) -> Outcome {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::failed(error.to_string()))?;
    line(text);
    Ok(())
}

/// Prints what was done: a sentence for people, a document for programs.
pub(crate) fn done(format: Format, text: impl AsRef<str>, document: &impl Serialize) -> Outcome {
    match format {
        Format::Json => json(document),
        Format::Table => {
            line(text);
            Ok(())
        }
    }
}

/// A table with aligned columns; the last one is not padded.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    indent: usize,
}

impl Table {
    pub(crate) fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(|word| (*word).to_owned()).collect()], indent: 0 }
    }

    pub(crate) fn indented(self, indent: usize) -> Self {
        Self { indent, ..self }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    pub(crate) fn print(&self) {
        let columns = self.rows[0].len();
        let width = |column: usize| {
            self.rows
                .iter()
                .map(|row| row.get(column).map_or(0, |cell| visible_width(cell)))
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut text = " ".repeat(self.indent);
            for (column, cell) in row.iter().enumerate() {
                text.push_str(cell);
                if column + 1 < row.len() {
                    text.push_str(&" ".repeat(widths[column] - visible_width(cell) + 2));
                }
            }
            line(text.trim_end());
        }
    }
}

/// Characters that take room: all but colour codes.
fn visible_width(cell: &str) -> usize {
    let mut width = 0;
    let mut in_code = false;
    for character in cell.chars() {
        match (in_code, character) {
            (false, '\u{1b}') => in_code = true,
            (false, _) => width += 1,
            (true, 'm') => in_code = false,
            (true, _) => {}
        }
    }
    width
}

/// A colour of the terminal's own palette.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Colour {
    Green,
    Yellow,
    Red,
    Bold,
}

/// `text` in a colour when standard output is a terminal that wants it (NO_COLOR, <https://no-color.org>).
pub(crate) fn paint(text: &str, colour: Colour) -> String {
    let wanted =
        std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    if !wanted {
        return text.to_owned();
    }
    let code = match colour {
        Colour::Green => 32,
        Colour::Yellow => 33,
        Colour::Red => 31,
        Colour::Bold => 1,
    };
    format!("\u{1b}[{code}m{text}\u{1b}[0m")
}

/// The word of a status, coloured by whether anybody has to act.
pub(crate) fn status(status: DomainStatus) -> String {
    let word = word(&status);
    match status {
        DomainStatus::Active => paint(&word, Colour::Green),
        DomainStatus::Failed => paint(&word, Colour::Red),
        DomainStatus::Degraded | DomainStatus::Suspended | DomainStatus::Pending => {
            paint(&word, Colour::Yellow)
        }
        DomainStatus::Validating
        | DomainStatus::Issuing
        | DomainStatus::Deploying
        | DomainStatus::Deleting => word,
    }
}

/// A plain enum as its JSON word.
pub(crate) fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(other) => other.to_string(),
        Err(_) => "?".to_owned(),
    }
}

/// `-` where there is nothing.
pub(crate) fn or_dash(text: Option<String>) -> String {
    text.filter(|text| !text.is_empty()).unwrap_or_else(|| "-".to_owned())
}

/// Whether progress may be drawn: standard error is a terminal.
pub(crate) fn draws_progress() -> bool {
    std::io::stderr().is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_codes_take_no_room() {
        assert_eq!(visible_width("\u{1b}[32mactive\u{1b}[0m"), 6);
        assert_eq!(visible_width("büro"), 4);
    }

    #[test]
    fn other_peoples_texts_do_not_steer_the_terminal() {
        let title = "a\u{1b}]0;PWNED\u{7}\u{1b}[2Jb\u{9b}31m\u{202e}moc";
        let shown = harmless(title);
        assert!(!shown.contains(['\u{1b}', '\u{7}', '\u{9b}', '\u{202e}']), "{shown:?}");
        assert!(shown.starts_with('a') && shown.ends_with("moc"));
        for own in ["\u{1b}[32mactive\u{1b}[0m", "two\nlines\tand a tab", "büro.example"] {
            assert_eq!(harmless(own), own);
        }
    }

    #[test]
    fn the_word_of_an_enum_is_its_json() {
        assert_eq!(word(&DomainStatus::Active), "active");
    }
}
