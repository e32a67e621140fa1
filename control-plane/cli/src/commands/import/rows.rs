//! Reads the file and judges each row by itself.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use csv::StringRecord;
use portico_api::v1::{Action, Redirect, Sharing};
use portico_cert_store::{NamePattern, TenantId};
use serde::Serialize;
use url::Url;

use crate::failure::{Failure, Outcome};
use crate::progress;

/// More rows than an import takes: split the file.
const ROWS_MAX: usize = 1_000_000;
const TENANT_BYTES_MAX: usize = 63;
const STATIC_BYTES_MAX: usize = 64 * 1024;
const COLUMNS: [&str; 5] = ["tenant", "hostname", "action", "target", "sharing"];

/// A row that can be sent.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    pub(super) line: u64,
    pub(super) tenant: String,
    pub(super) hostname: NamePattern,
    pub(super) action: Action,
    pub(super) sharing: Option<Sharing>,
}

/// A row that was refused, here or by the control plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct RowError {
    pub(crate) line: u64,
    pub(crate) hostname: String,
    pub(crate) text: String,
}

#[derive(Debug, Default)]
pub(super) struct Rows {
    pub(super) rows: Vec<Row>,
    pub(super) errors: Vec<RowError>,
}

/// # Errors
/// When the file cannot be read, its header is another, or it has more than a million rows.
pub(super) fn read(file: &Path) -> Outcome<Rows> {
    let open = File::open(file).map_err(|error| Failure::file(file, error))?;
    parse(open).map_err(|failure| failure.about(file.display()))
}

fn parse(input: impl Read + Seek) -> Outcome<Rows> {
    let mut reader = csv::ReaderBuilder::new().flexible(true).trim(csv::Trim::All).from_reader(input);
    let header = reader.headers().map_err(|error| Failure::failed(error.to_string()))?;
    let columns = Columns::of(header)?;
    let bar = progress::bar("reading", 0);
    let mut rows = Rows::default();
    let mut seen = HashMap::new();
    let mut last = csv::Position::new();
    let mut record = StringRecord::new();
    loop {
        let record = match reader.read_record(&mut record) {
            Ok(false) => break,
            Ok(true) => Ok(&record),
            Err(error) => Err(error),
        };
        if let Some(start) = record.as_ref().map_or_else(|error| error.position(), |record| record.position())
        {
            last = start.clone();
        }
        if rows.rows.len() + rows.errors.len() >= ROWS_MAX {
            return Err(Failure::failed(format!("more than {ROWS_MAX} rows; split the file")));
        }
        bar.inc(1);
        match record {
            Ok(record) => match columns.row(record, &mut seen) {
                Ok(row) => rows.rows.push(row),
                Err(error) => rows.errors.push(error),
            },
            // Bytes that are no UTF-8: the row is lost, the reader goes on behind it.
            Err(error) => rows.errors.push(RowError {
                line: error.position().map_or(0, csv::Position::line),
                hostname: String::new(),
                text: error.to_string(),
            }),
        }
    }
    bar.finish_and_clear();
    if let Some(error) = unclosed_quote(reader.into_inner(), &last)? {
        rows.rows.retain(|row| row.line < error.line);
        rows.errors.retain(|other| other.line < error.line);
        rows.errors.push(error);
    }
    Ok(rows)
}

/// The fault of the last row when a quote in it is not closed: the reader takes all that follows into one cell and says
/// nothing. It begins at `last`.
fn unclosed_quote(mut input: impl Read + Seek, last: &csv::Position) -> Outcome<Option<RowError>> {
    let fault = |error: std::io::Error| Failure::failed(error.to_string());
    input.seek(SeekFrom::Start(last.byte())).map_err(fault)?;
    let (mut is_quoted, mut quotes, mut before) = (false, 0_u64, b'\n');
    for byte in BufReader::new(input).bytes() {
        let byte = byte.map_err(fault)?;
        if byte == b'"' {
            quotes += 1;
            is_quoted |= matches!(before, b'\n' | b',' | b' ' | b'\t');
        }
        before = byte;
    }
    let open = is_quoted && quotes % 2 == 1;
    Ok(open.then(|| RowError {
        line: last.line(),
        hostname: String::new(),
        text: "a quote is opened here and never closed, so all lines that follow are in one cell".to_owned(),
    }))
}

/// Where each column stands.
struct Columns([Option<usize>; 5]);

impl Columns {
    fn of(header: &StringRecord) -> Outcome<Self> {
        let expected = "the header is tenant,hostname,action,target[,sharing]";
        let mut places = [None; 5];
        for (place, name) in header.iter().enumerate() {
            // A byte order mark, as spreadsheets write it.
            let name = name.trim_start_matches('\u{feff}');
            let Some(column) = COLUMNS.iter().position(|column| name.eq_ignore_ascii_case(column)) else {
                return Err(Failure::failed(format!("line 1: unknown column {name:?}; {expected}")));
            };
            if places[column].replace(place).is_some() {
                return Err(Failure::failed(format!("line 1: column {name:?} stands twice; {expected}")));
            }
        }
        match places.iter().zip(COLUMNS).take(4).find(|(place, _)| place.is_none()) {
            Some((_, missing)) => {
                Err(Failure::failed(format!("line 1: column {missing:?} is missing; {expected}")))
            }
            None => Ok(Self(places)),
        }
    }

    fn cell<'a>(&self, record: &'a StringRecord, column: usize) -> &'a str {
        self.0[column].and_then(|place| record.get(place)).unwrap_or_default()
    }

    fn row(&self, record: &StringRecord, seen: &mut HashMap<NamePattern, u64>) -> Result<Row, RowError> {
        let line = record.position().map_or(0, csv::Position::line);
        let hostname = self.cell(record, 1);
        let fault = |text: String| RowError { line, hostname: hostname.to_owned(), text };
        if record.len() > self.0.iter().flatten().count() {
            return Err(fault(
                "more cells than the header has columns; quote a cell that holds commas".to_owned(),
            ));
        }
        let tenant = tenant(self.cell(record, 0)).map_err(fault)?;
        let name = NamePattern::parse(hostname).map_err(|error| fault(error.to_string()))?;
        let action = action(self.cell(record, 2), self.cell(record, 3)).map_err(fault)?;
        let sharing = sharing(self.cell(record, 4)).map_err(fault)?;
        if let Some(first) = seen.get(&name) {
            return Err(fault(format!("the name stands in line {first} already")));
        }
        seen.insert(name.clone(), line);
        Ok(Row { line, tenant, hostname: name, action, sharing })
    }
}

fn tenant(text: &str) -> Result<String, String> {
    if text.parse::<TenantId>().is_ok() {
        return Ok(text.to_owned());
    }
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if text.is_empty() || text.len() > TENANT_BYTES_MAX || !text.bytes().all(plain) {
        return Err(format!(
            "tenant {text:?}: a name is 1 to {TENANT_BYTES_MAX} of a-z, 0-9 and -; or give its id"
        ));
    }
    Ok(text.to_owned())
}

fn action(word: &str, target: &str) -> Result<Action, String> {
    let (kind, status) = word.split_once(':').map_or((word, None), |(kind, status)| (kind, Some(status)));
    match (kind, status) {
        ("proxy", None) => {
            let url = http_url(target)?;
            if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
                return Err(format!("target {target:?}: an origin is http(s)://host[:port], without a path"));
            }
            Ok(Action::proxy(target.trim_end_matches('/')))
        }
        ("redirect", status) => {
            let Ok(status @ (301 | 302 | 303 | 307 | 308)) = status.map_or(Ok(308), str::parse) else {
                return Err(format!("action {word:?}: the status is 301, 302, 303, 307 or 308"));
            };
            http_url(target)?;
            Ok(Action::Redirect(Redirect { status, ..Redirect::keeping_path(target) }))
        }
        ("static", None) if target.len() > STATIC_BYTES_MAX => {
            Err(format!("a static answer is at most {STATIC_BYTES_MAX} bytes"))
        }
        ("static", None) => Ok(Action::text(target)),
        _ => Err(format!("action {word:?}: it is proxy, redirect, redirect:301 or static")),
    }
}

fn http_url(text: &str) -> Result<Url, String> {
    let url =
        Url::parse(text).map_err(|error| format!("target {text:?}: {error}; write https://host[:port]"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("target {text:?}: the scheme is http or https"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("target: credentials in a URL would be shown to everybody who reads the route".to_owned());
    }
    Ok(url)
}

fn sharing(text: &str) -> Result<Option<Sharing>, String> {
    match text {
        "" => Ok(None),
        "alone" => Ok(Some(Sharing::Alone)),
        "registered_domain" => Ok(Some(Sharing::RegisteredDomain)),
        "tenant" => Ok(Some(Sharing::Tenant)),
        _ => Err(format!("sharing {text:?}: it is alone, registered_domain or tenant")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn read(text: &str) -> Rows {
        parse(Cursor::new(text)).unwrap()
    }

    #[test]
    fn good_rows_are_read_and_bad_ones_named_by_line() {
        let rows = read(
            "tenant,hostname,action,target,sharing\n\
             a,shop.test,proxy,http://127.0.0.1:9000,\n\
             a,Old.Test.,redirect:301,https://shop.test/,tenant\n\
             b,bad name.test,proxy,http://127.0.0.1:9000,\n\
             B!,c.test,proxy,http://127.0.0.1:9000,\n\
             b,d.test,prox,http://127.0.0.1:9000,\n\
             b,e.test,proxy,http://127.0.0.1:9000/path,\n\
             b,f.test,proxy,ftp://127.0.0.1,\n\
             b,shop.test,proxy,http://127.0.0.1:9000,\n\
             b,192.0.2.1,proxy,http://127.0.0.1:9000,\n\
             b,g.test,redirect:200,https://shop.test/,\n\
             b,h.test,static,hello, there,\n\
             b,i.test,proxy,http://127.0.0.1:9000,some\n\
             b,*.j.test,static,hello,alone\n\
             b,k.test\n\
             b,l.test,proxy,http://user:pw@127.0.0.1,\n",
        );
        let good: Vec<(u64, String)> =
            rows.rows.iter().map(|row| (row.line, row.hostname.to_string())).collect();
        let expected = [(2, "shop.test"), (3, "old.test"), (14, "*.j.test")];
        assert_eq!(good, expected.map(|(line, name)| (line, name.to_owned())));
        let bad: Vec<u64> = rows.errors.iter().map(|error| error.line).collect();
        assert_eq!(bad, [4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15, 16]);
        assert!(rows.errors[5].text.contains("line 2"), "{:?}", rows.errors[5]);
    }

    #[test]
    fn a_quote_that_is_never_closed_does_not_swallow_the_rows_behind_it_in_silence() {
        let rows = read(
            "tenant,hostname,action,target\na,one.test,static,x\na,two.test,static,\"hello\na,three.test,static,x\n",
        );
        assert_eq!(rows.rows.len(), 1, "{rows:?}");
        assert_eq!((rows.errors.len(), rows.errors[0].line), (1, 3), "{rows:?}");
        assert!(rows.errors[0].text.contains("never closed"), "{rows:?}");
        for good in ["\"two\nlines\"", "\"a \"\"word\"\"\"", "5\" pipe", "plain"] {
            let rows = read(&format!("tenant,hostname,action,target\na,one.test,static,{good}\n"));
            assert_eq!((rows.rows.len(), rows.errors.len()), (1, 0), "{good}: {rows:?}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_cost_one_row() {
        let mut text = b"tenant,hostname,action,target\na,one.test,static,x\na,two".to_vec();
        text.extend_from_slice(&[0xff, 0xfe]);
        text.extend_from_slice(b".test,static,x\na,three.test,static,x\n");
        let rows = parse(Cursor::new(text)).unwrap();
        assert_eq!((rows.rows.len(), rows.errors.len()), (2, 1));
        assert_eq!(rows.errors[0].line, 3);
    }

    #[test]
    fn columns_may_stand_in_any_order_but_not_be_missing_unknown_or_double() {
        let rows = read("\u{feff}target,hostname,tenant,action\nhello,a.test,t,static\n");
        assert_eq!(rows.rows.len(), 1, "{:?}", rows.errors);
        for header in [
            "tenant,hostname,action",
            "tenant,hostname,action,target,colour",
            "tenant,tenant,hostname,action",
        ] {
            let failure = parse(Cursor::new(header)).unwrap_err();
            assert!(failure.text.starts_with("line 1: "), "{}", failure.text);
        }
    }
}
