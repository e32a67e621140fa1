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

/// Says something beside the answer, on standard error: the answer may be going into a file or a program.
pub(crate) fn remark(text: impl AsRef<str>) {
    let _nobody_listens = writeln!(std::io::stderr().lock(), "note: {}", harmless(text.as_ref()));
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
        self.lines(terminal_columns()).iter().for_each(line);
    }

    /// The table's lines. Where they would be wider than `room`, the last column is folded; where there is no room for it,
    /// the columns that do not fit stand below their row, each with its head. Without `room` a row is a line, for `grep`.
    fn lines(&self, room: Option<usize>) -> Vec<String> {
        const LAST_MIN: usize = 24;
        let room = room.unwrap_or(usize::MAX);
        let head = &self.rows[0];
        let width =
            |column: usize| self.rows.iter().map(|row| visible_width(&row[column])).max().unwrap_or(0);
        let widths: Vec<usize> = (0..head.len()).map(width).collect();
        let start =
            |column: usize| self.indent + widths[..column].iter().map(|width| width + 2).sum::<usize>();
        let fits = |column: usize| start(column) + widths[column] <= room;
        let last = head.len() - 1;
        let folds = !fits(last) && start(last) + LAST_MIN <= room;
        let beside = if folds { head.len() } else { (0..head.len()).take_while(|&c| fits(c)).count().max(1) };
        let mut lines = Vec::new();
        for (number, row) in self.rows.iter().enumerate() {
            let mut text = " ".repeat(self.indent);
            for (column, cell) in row.iter().enumerate().take(beside) {
                text.push_str(&" ".repeat(start(column).saturating_sub(visible_width(&text))));
                if column == last && folds {
                    let mut parts = folded(cell, room - start(column)).into_iter();
                    text.push_str(&parts.next().unwrap_or_default());
                    lines.push(std::mem::take(&mut text));
                    lines.extend(parts.map(|part| " ".repeat(start(column)) + &part));
                } else {
                    text.push_str(cell);
                }
            }
            if !text.is_empty() {
                lines.push(text.trim_end().to_owned());
            }
            // What does not fit beside its row stands below it, as much in a line as goes.
            let room = room.saturating_sub(self.indent + 4);
            let below = (beside..head.len()).filter(|&column| number > 0 && row[column] != "-");
            let mut packed: Vec<String> = Vec::new();
            for cell in below.map(|column| format!("{} {}", head[column], row[column])) {
                match packed.last_mut() {
                    Some(last) if visible_width(last) + 3 + visible_width(&cell) <= room => {
                        last.push_str("   ");
                        last.push_str(&cell);
                    }
                    _ if visible_width(&cell) <= room => packed.push(cell),
                    _ => packed.extend(folded(&cell, room)),
                }
            }
            lines.extend(packed.into_iter().map(|part| " ".repeat(self.indent + 4) + &part));
        }
        lines
    }
}

/// One fact of an object, with its label; folded where the terminal is narrower.
pub(crate) fn fact(label: &str, text: &str) {
    const START: usize = 12;
    let room = terminal_columns().map_or(usize::MAX, |columns| columns.saturating_sub(START));
    for (number, part) in folded(text, room).iter().enumerate() {
        line(format!("  {:<9} {part}", if number == 0 { label } else { "" }));
    }
}

/// The words of a text in lines of at most `room` characters; a longer word has its own.
fn folded(text: &str, room: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(last) if visible_width(last) + 1 + visible_width(word) <= room => {
                last.push(' ');
                last.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// How wide the terminal is, when standard output is one.
fn terminal_columns() -> Option<usize> {
    let columns = console::Term::stdout().size_checked().map(|(_, columns)| usize::from(columns));
    columns.filter(|_| std::io::stdout().is_terminal())
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
        DomainStatus::Failed | DomainStatus::Left => paint(&word, Colour::Red),
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

/// A time of the API to the second.
pub(crate) fn time(rfc3339: &str) -> String {
    match rfc3339.split_once('.') {
        Some((seconds, _)) => format!("{seconds}Z"),
        None => rfc3339.to_owned(),
    }
}

/// The day of a time of the API.
pub(crate) fn date(rfc3339: &str) -> String {
    rfc3339.split('T').next().unwrap_or_default().to_owned()
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
    fn a_table_stays_within_the_terminal() {
        let mut table = Table::new(&["NAME", "STATE", "WHY"]);
        let why = "it resolves to 192.0.2.10; set the A record of shop.test to 203.0.113.10 and wait for it";
        table.row(["shop.test".to_owned(), paint("live", Colour::Green), why.to_owned()]);
        table.row(["a.shop.test".to_owned(), "-".to_owned(), "fine".to_owned()]);
        assert_eq!(table.lines(None).len(), 3, "a row is a line where there is no terminal");
        assert_eq!(table.lines(Some(200)), table.lines(None));

        let folded = table.lines(Some(60));
        assert!(folded.iter().all(|line| visible_width(line) <= 60), "{folded:?}");
        assert!(folded[2].starts_with(&" ".repeat(20)), "below its column: {folded:?}");
        let words = |lines: &[String]| {
            lines.iter().flat_map(|line| line.split(' ')).filter(|w| !w.is_empty()).count()
        };
        assert_eq!(words(&folded), words(&table.lines(None)), "nothing is lost");

        let narrow = table.lines(Some(30));
        assert_eq!(narrow[0], "NAME         STATE");
        assert!(narrow[2].starts_with("    WHY it resolves to"), "{narrow:?}");
        assert!(narrow.iter().all(|line| visible_width(line) <= 30), "{narrow:?}");
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
