//! Paths: what lies below a prefix, and what a path becomes with another prefix.
//!
//! Servers read one path in several ways: some decode `%2F` before they look for `/`, take `\` for a slash, leave out what
//! stands behind a `;`, or make one slash of two. A rule is matched by the widest of these readings, so that a request
//! which an origin may take for one below `/admin` is taken for that here too, and a path that could climb in any of them is
//! never put behind a new prefix. What is sent on keeps its spelling.

/// A path, or a path and all below it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PathMatch {
    /// Of a prefix, without a trailing slash, unless it is `/`.
    text: Box<str>,
    /// The same, as every reader decodes it.
    decoded: Box<[u8]>,
    exact: bool,
}

/// A request's path (without its query), looked at once for all rules: what it costs to read one that is long and odd must not be
/// paid for each rule.
#[derive(Clone, Debug)]
pub struct RequestPath<'a> {
    text: &'a str,
    /// None: there is one reading only, as it is written.
    reading: Option<Reading>,
}

/// The widest reading of a path, as far as a rule's path can reach.
#[derive(Clone, Debug)]
struct Reading {
    /// Decoded, with one `/` for separators in a row and the parameters before and between them.
    bytes: Vec<u8>,
    /// Where in the text each of them ends.
    ends: Vec<usize>,
    /// Where parameters begin that go on to the end of the path.
    last_params: Option<usize>,
}

/// What a rule's path becomes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Replacement(Box<str>);

/// The path could lead out of the new prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the path could lead out of the prefix that it is to be put behind")]
pub struct Climbs;

/// A path of a rule, bytes.
pub const PATH_BYTES_MAX: usize = 1024;

impl PathMatch {
    pub(super) fn parse(text: &str, exact: bool) -> Result<Self, String> {
        check(text)?;
        let trimmed = text.trim_end_matches('/');
        let text = if exact {
            text
        } else if trimmed.is_empty() {
            "/"
        } else {
            trimmed
        };
        let decoded = Units { text: text.as_bytes(), wide: false }.map(|unit| unit.byte).collect();
        Ok(Self { text: text.into(), decoded, exact })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn is_exact(&self) -> bool {
        self.exact
    }

    /// What of `path` is below this one, as it was written: empty, or something behind the end of a segment.
    pub fn rest<'p>(&self, path: &RequestPath<'p>) -> Option<&'p str> {
        if !self.exact && self.text.len() == 1 {
            return path.text.starts_with('/').then_some(path.text);
        }
        let at = path.end_of(&self.decoded)?;
        let rest = path.text.get(at..)?;
        let ends = if self.exact { rest.is_empty() || path.has_last_params(at) } else { ends_segment(rest) };
        ends.then_some(rest)
    }

    /// Whether this one holds all that `other` holds.
    pub(super) fn covers(&self, other: &Self) -> bool {
        (!self.exact || other.exact) && self.rest(&RequestPath::new(&other.text)).is_some()
    }
}

impl<'a> RequestPath<'a> {
    pub fn new(text: &'a str) -> Self {
        let plain = !text.bytes().any(|byte| matches!(byte, b'%' | b'\\' | b';')) && !text.contains("//");
        Self { text, reading: (!plain).then(|| Reading::of(text)) }
    }

    /// Where in the text a rule's path ends that this one begins with.
    fn end_of(&self, decoded: &[u8]) -> Option<usize> {
        match &self.reading {
            None => self.text.as_bytes().starts_with(decoded).then_some(decoded.len()),
            Some(Reading { bytes, ends, .. }) if bytes.starts_with(decoded) => {
                ends.get(decoded.len().checked_sub(1)?).copied()
            }
            Some(_) => None,
        }
    }

    /// Whether parameters stand from there to the end.
    fn has_last_params(&self, at: usize) -> bool {
        self.reading.as_ref().is_some_and(|reading| reading.last_params == Some(at))
    }
}

impl Reading {
    fn of(text: &str) -> Self {
        let room = text.len().min(PATH_BYTES_MAX + 1);
        let mut reading =
            Self { bytes: Vec::with_capacity(room), ends: Vec::with_capacity(room), last_params: None };
        let mut rest = text.as_bytes();
        // As long as the longest rule's path, and what follows that.
        while reading.bytes.len() <= PATH_BYTES_MAX {
            let (byte, after) = match (skip_separators(rest), first(rest)) {
                (Some(after), _) => (b'/', after),
                (None, Some(unit)) => (unit.byte, &rest[unit.bytes..]),
                (None, None) => break,
            };
            if byte == b';' {
                // No rule's path has one.
                reading.last_params = rest.starts_with(b";").then(|| text.len() - rest.len());
                break;
            }
            rest = after;
            reading.bytes.push(byte);
            reading.ends.push(text.len() - rest.len());
        }
        reading
    }
}

impl Replacement {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        check(text)?;
        Ok(Self(text.into()))
    }

    /// This path with what was below the old one ([`PathMatch::rest`]) behind it. Begins with one `/`.
    ///
    /// # Errors
    /// [`Climbs`], where a reader of the result could come out above this path.
    pub fn with(&self, rest: &str) -> Result<String, Climbs> {
        let base = self.0.trim_end_matches('/');
        let path = match rest {
            "" => self.0.to_string(),
            // Two slashes at the beginning of a target are an authority to some readers.
            rest if base.is_empty() => format!("/{}", rest.trim_start_matches('/')),
            rest => format!("{base}{rest}"),
        };
        // `/new%2Fx`, `/new;x` and `/new\x` are not below `/new` to those who decode late.
        if !(rest.is_empty() || rest.starts_with('/')) || climbs(&path) { Err(Climbs) } else { Ok(path) }
    }
}

/// Whether any reader could take a part of `path` for `..`.
pub fn climbs(path: &str) -> bool {
    if !path.contains("..") && !path.contains('%') {
        return false;
    }
    let mut dots = Some(0_u32);
    for unit in (Units { text: path.as_bytes(), wide: true }) {
        match unit.byte {
            b'/' | b'\\' if dots == Some(2) => return true,
            // The rest of the segment is nothing to some.
            b';' | 0 if dots == Some(2) => return true,
            b'/' | b'\\' => dots = Some(0),
            b'.' => dots = dots.map(|dots| dots + 1),
            _ => dots = None,
        }
    }
    dots == Some(2)
}

/// What a rule's path may be.
fn check(text: &str) -> Result<(), String> {
    if !text.starts_with('/') || text.len() > PATH_BYTES_MAX {
        return Err(format!("must begin with `/` and have at most {PATH_BYTES_MAX} bytes"));
    }
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#' | b'\\' | b';');
    if !text.bytes().all(plain) {
        return Err(
            "must be a path without query, of visible ASCII without `\\` and `;`; percent-encode other \
                    characters"
                .to_owned(),
        );
    }
    for (at, _) in text.match_indices('%') {
        match text.as_bytes().get(at + 1..at + 3).and_then(hex) {
            None => return Err("has a `%` without two hexadecimal digits".to_owned()),
            Some(b'/' | b'\\' | b';' | 0) => {
                return Err(
                    "has an encoded slash, backslash, `;` or NUL, which readers disagree on".to_owned()
                );
            }
            Some(_) => {}
        }
    }
    if text.contains("//") {
        return Err("has two slashes in a row; one matches any number".to_owned());
    }
    if climbs(text) || text.split('/').any(|segment| segment == "." || segment.eq_ignore_ascii_case("%2e")) {
        return Err("has a `.` or `..` segment; no request with one is served".to_owned());
    }
    Ok(())
}

/// Leaves out one separator or more, with the parameters before and between them.
pub(super) fn skip_separators(path: &[u8]) -> Option<&[u8]> {
    let mut rest = path;
    loop {
        let after = &rest[params_end(rest)..];
        match separator_length(after) {
            0 => return (rest.len() < path.len()).then_some(rest),
            length => rest = &after[length..],
        }
    }
}

pub(super) fn ends_segment(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with(';') || separator_length(rest.as_bytes()) > 0
}

/// Where the parameters that `text` begins with end: at a separator, or with the text. 0 where there are none.
pub(super) fn params_end(text: &[u8]) -> usize {
    if text.first() != Some(&b';') {
        return 0;
    }
    (0..text.len()).find(|&at| separator_length(&text[at..]) > 0).unwrap_or(text.len())
}

/// How many bytes of `text` are a separator at its beginning, in any spelling.
fn separator_length(text: &[u8]) -> usize {
    first(text).filter(|unit| matches!(unit.byte, b'/' | b'\\')).map_or(0, |unit| unit.bytes)
}

pub(super) fn first(text: &[u8]) -> Option<Unit> {
    Units { text, wide: false }.next()
}

/// A path's bytes, decoded; what cannot be decoded stands for itself.
struct Units<'a> {
    text: &'a [u8],
    /// Take `%252e` and the overlong `%c0%ae` for `.` as well, and likewise with slashes.
    wide: bool,
}

pub(super) struct Unit {
    pub(super) byte: u8,
    /// Its length as it is written.
    pub(super) bytes: usize,
}

impl Iterator for Units<'_> {
    type Item = Unit;

    fn next(&mut self) -> Option<Unit> {
        let unit = match self.text {
            [] => return None,
            [b'%', encoded @ ..] => decode(encoded, self.wide).unwrap_or(Unit { byte: b'%', bytes: 1 }),
            &[byte, ..] => Unit { byte, bytes: 1 },
        };
        self.text = &self.text[unit.bytes..];
        Some(unit)
    }
}

/// What stands behind a `%`.
fn decode(encoded: &[u8], wide: bool) -> Option<Unit> {
    let mut skipped = 0;
    while wide && encoded[skipped..].starts_with(b"25") {
        skipped += 2;
    }
    let rest = &encoded[skipped..];
    // `%25` that nothing follows is a percent sign.
    let Some(byte) = rest.get(..2).and_then(hex) else {
        return (skipped > 0).then_some(Unit { byte: b'%', bytes: 1 + skipped });
    };
    let overlong = match rest.get(2..5) {
        Some([b'%', low @ ..]) if wide => hex(low).and_then(|low| overlong(byte, low)),
        _ => None,
    };
    Some(match overlong {
        Some(byte) => Unit { byte, bytes: 1 + skipped + 5 },
        None => Unit { byte, bytes: 1 + skipped + 2 },
    })
}

/// Two bytes that careless decoders of UTF-8 take for one of ASCII (RFC 3629 section 10).
fn overlong(high: u8, low: u8) -> Option<u8> {
    match (high, low) {
        (0xc0 | 0xc1, 0x80..=0xbf) => Some((high & 1) << 6 | (low & 0x3f)),
        _ => None,
    }
}

fn hex(digits: &[u8]) -> Option<u8> {
    let [high, low] = digits else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()
}
