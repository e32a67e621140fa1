//! W3C Trace Context: `traceparent` read and written.

use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::unique::Unique;

pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// What a caller says of its trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    pub trace: [u8; 16],
    pub span: [u8; 8],
    /// The caller records this trace.
    pub sampled: bool,
}

/// A span of our own that will be exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanContext {
    pub trace: [u8; 16],
    pub span: [u8; 8],
    /// None: the trace begins here.
    pub parent: Option<[u8; 8]>,
}

impl TraceParent {
    /// Of a request: the one field, if it is well formed (version 00, or a later one's known part).
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        match (values.next(), values.next()) {
            (Some(one), None) => Self::parse(one.as_bytes()),
            _ => None,
        }
    }

    /// `00-<32 digits>-<16 digits>-<2 digits>`; later versions may have more behind it.
    fn parse(value: &[u8]) -> Option<Self> {
        let (known, rest) = value.split_at_checked(55)?;
        let dashes = [2, 35, 52].iter().all(|at| known[*at] == b'-');
        let [version] = digits(&known[..2])?;
        let whole =
            if version == 0 { rest.is_empty() } else { rest.first().is_none_or(|byte| *byte == b'-') };
        let (trace, span) = (digits(&known[3..35])?, digits(&known[36..52])?);
        let [flags] = digits(&known[53..])?;
        let good = dashes && whole && version != 0xff && trace != [0; 16] && span != [0; 8];
        good.then_some(Self { trace, span, sampled: flags & 1 == 1 })
    }
}

/// Lower-case hexadecimal digits, as the recommendation demands.
fn digits<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = (digit(pair[0])? << 4) | digit(pair[1])?;
    }
    Some(bytes)
}

/// Names our span to the origin; or passes a trace on as it came; or begins one that nobody records, named as the request
/// is.
pub fn hand_on(headers: &mut HeaderMap, unique: Unique, span: Option<SpanContext>) {
    let parent = TraceParent::of(headers);
    if parent.is_some() && span.is_none() {
        return;
    }
    if parent.is_none() {
        headers.remove(TRACESTATE);
    }
    let text = match span {
        Some(span) => span.to_string(),
        None => format!("00-{unique}-{:016x}-00", unique.low.max(1)),
    };
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(TRACEPARENT, value);
    }
}

impl fmt::Display for SpanContext {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace, span) = (u128::from_be_bytes(self.trace), u64::from_be_bytes(self.span));
        write!(formatter, "00-{trace:032x}-{span:016x}-01")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_word_is_read_and_ours_is_written() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let parent = TraceParent::parse(text.as_bytes()).unwrap();
        assert!(parent.sampled);
        let span = SpanContext { trace: parent.trace, span: parent.span, parent: None };
        assert_eq!(span.to_string(), text);
        for (flags, sampled) in [("00", false), ("02", false), ("03", true), ("ff", true)] {
            let text = text.replace("-01", &format!("-{flags}"));
            assert_eq!(TraceParent::parse(text.as_bytes()).unwrap().sampled, sampled, "{flags}");
        }
    }
}
