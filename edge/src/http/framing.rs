//! A strict reader of HTTP/1 message framing, in front of hyper.
//!
//! hyper is lenient where RFC 9112 lets it be: a request with both Content-Length and Transfer-Encoding, repeated equal
//! lengths and bare line feeds pass. Each of these has been half of a smuggling attack on somebody (promise P11), so this
//! reader follows the same bytes, says where each message ends by the strictest reading, and refuses everything that two
//! readers could see differently. It holds no message: at most one unfinished line is kept.
//!
//! It also tells the connection's clock when a request head begins and ends, which no other part can know.
//!
//! Deliberately absent: anything about routes, names or header values without influence on framing.

use std::fmt;

use http::{HeaderMap, header};

use crate::limits;

/// Follows one direction of one connection.
#[derive(Debug, Default)]
pub struct RequestFraming {
    state: State,
    /// An unfinished line from earlier reads.
    line: Vec<u8>,
    head: Head,
}

/// Where in the stream of messages the next byte lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// Nothing of the next message has come.
    #[default]
    Between,
    RequestLine,
    Fields,
    /// Bytes of a body of known length that are still to come.
    Body(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers,
    /// An upgrade was asked for: the client must wait for our answer.
    AwaitsUpgrade,
    /// Not HTTP/1 any more.
    Tunnel,
}

/// What a head says about its body, as far as it has been read.
#[derive(Debug, Default, Clone, Copy)]
struct Head {
    content_length: Option<u64>,
    chunked: bool,
    host_seen: bool,
    http_1_0: bool,
    upgrade: bool,
    bytes: usize,
    fields: usize,
}

/// Why a message is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FramingFault {
    BareLineFeed,
    ControlByte,
    RequestLine,
    FieldName,
    FoldedField,
    ContentLength,
    RepeatedContentLength,
    TransferEncoding,
    LengthAndEncoding,
    RepeatedHost,
    Chunk,
    Trailer,
    LineTooLong,
    HeadTooLarge,
    BytesBeforeUpgrade,
}

/// A fault and the number of bytes before it that may still be passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    pub fault: FramingFault,
    pub sound_bytes: usize,
    /// The fault is in a head, of which no exchange comes; in a body it breaks off the one that has begun.
    pub in_head: bool,
}

impl FramingFault {
    /// The metric's and the log's word.
    pub fn reason(self) -> &'static str {
        match self {
            Self::BareLineFeed => "bare_line_feed",
            Self::ControlByte => "control_byte",
            Self::RequestLine => "request_line",
            Self::FieldName => "field_name",
            Self::FoldedField => "folded_field",
            Self::ContentLength => "content_length",
            Self::RepeatedContentLength => "repeated_content_length",
            Self::TransferEncoding => "transfer_encoding",
            Self::LengthAndEncoding => "length_and_encoding",
            Self::RepeatedHost => "repeated_host",
            Self::Chunk => "chunk",
            Self::Trailer => "trailer",
            Self::LineTooLong => "line_too_long",
            Self::HeadTooLarge => "head_too_large",
            Self::BytesBeforeUpgrade => "bytes_before_upgrade",
        }
    }
}

impl fmt::Display for FramingFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.reason())
    }
}

impl std::error::Error for FramingFault {}

impl RequestFraming {
    /// Follows `bytes`, which came next on the connection.
    ///
    /// # Errors
    /// [`Refusal`] at the first byte that makes the stream ambiguous. Nothing may be fed after it.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let mut at = 0;
        while at < bytes.len() {
            match self.step(&bytes[at..]) {
                Ok(taken) => at += taken,
                Err((fault, sound)) => {
                    return Err(Refusal { fault, sound_bytes: at + sound, in_head: self.in_head() });
                }
            }
        }
        Ok(())
    }

    /// A head has begun and has not ended.
    pub fn in_head(&self) -> bool {
        matches!(self.state, State::RequestLine | State::Fields)
    }

    /// Nothing of a next message has come, and nothing of the last one is to come.
    pub fn is_at_rest(&self) -> bool {
        self.state == State::Between
    }

    /// The answer to a request with `Upgrade` has been decided.
    pub fn upgrade_decided(&mut self, accepted: bool) {
        if self.state == State::AwaitsUpgrade {
            self.state = if accepted { State::Tunnel } else { State::Between };
        }
    }

    /// Takes at least one byte; says how many.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, (FramingFault, usize)> {
        match self.state {
            State::Tunnel => Ok(bytes.len()),
            State::AwaitsUpgrade => Err((FramingFault::BytesBeforeUpgrade, 0)),
            State::Between => {
                self.head = Head::default();
                self.state = State::RequestLine;
                Ok(0)
            }
            State::Body(left) => {
                let taken = take_up_to(left, bytes);
                self.state = if taken == left { State::Between } else { State::Body(left - taken) };
                Ok(as_len(taken))
            }
            State::ChunkData(left) => {
                let taken = take_up_to(left, bytes);
                self.state = if taken == left { State::ChunkEnd } else { State::ChunkData(left - taken) };
                Ok(as_len(taken))
            }
            State::RequestLine | State::Fields | State::ChunkSize | State::ChunkEnd | State::Trailers => {
                self.take_line(bytes)
            }
        }
    }

    fn take_line(&mut self, bytes: &[u8]) -> Result<usize, (FramingFault, usize)> {
        let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
            if self.line.len() + bytes.len() > self.line_bytes_max() {
                return Err((FramingFault::LineTooLong, 0));
            }
            self.line.extend_from_slice(bytes);
            return Ok(bytes.len());
        };
        let result = if self.line.is_empty() {
            self.line_complete(&bytes[..end])
        } else {
            let mut line = std::mem::take(&mut self.line);
            line.extend_from_slice(&bytes[..end]);
            let result = self.line_complete(&line);
            line.clear();
            if line.capacity() <= 4096 {
                self.line = line; // kept for the next read
            }
            result
        };
        // Everything before the line feed may go on: without it, no other reader has seen a complete line either.
        result.map(|()| end + 1).map_err(|fault| (fault, end))
    }

    fn line_complete(&mut self, line: &[u8]) -> Result<(), FramingFault> {
        let Some(line) = line.strip_suffix(b"\r") else { return Err(FramingFault::BareLineFeed) };
        if line.len() > self.line_bytes_max() {
            return Err(FramingFault::LineTooLong);
        }
        if line.iter().any(|&byte| (byte < b' ' && byte != b'\t') || byte == 0x7f) {
            return Err(FramingFault::ControlByte);
        }
        match self.state {
            State::RequestLine => self.request_line(line),
            State::Fields => self.field_line(line),
            State::ChunkSize => self.chunk_size(line),
            State::ChunkEnd if line.is_empty() => {
                self.state = State::ChunkSize;
                Ok(())
            }
            State::ChunkEnd => Err(FramingFault::Chunk),
            State::Trailers => self.trailer_line(line),
            State::Between | State::Body(_) | State::ChunkData(_) | State::AwaitsUpgrade | State::Tunnel => {
                Ok(())
            }
        }
    }

    fn request_line(&mut self, line: &[u8]) -> Result<(), FramingFault> {
        self.count_head_bytes(line)?;
        if line.is_empty() {
            return Ok(()); // RFC 9112 section 2.2: an empty line before a request is ignored
        }
        let mut parts = line.split(|&byte| byte == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(FramingFault::RequestLine);
        };
        let target_is_visible = target.iter().all(|byte| byte.is_ascii_graphic());
        if method.is_empty() || !method.iter().all(is_token_byte) || target.is_empty() || !target_is_visible {
            return Err(FramingFault::RequestLine);
        }
        self.head.http_1_0 = match version {
            b"HTTP/1.1" => false,
            b"HTTP/1.0" => true,
            _ => return Err(FramingFault::RequestLine),
        };
        self.head.upgrade = method == b"CONNECT";
        self.state = State::Fields;
        Ok(())
    }

    fn field_line(&mut self, line: &[u8]) -> Result<(), FramingFault> {
        self.count_head_bytes(line)?;
        if line.is_empty() {
            return self.head_complete();
        }
        self.head.fields += 1;
        let (name, value) = split_field(line)?;
        if name.eq_ignore_ascii_case(b"content-length") {
            self.content_length(value)
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.transfer_encoding(value)
        } else if name.eq_ignore_ascii_case(b"host") {
            let repeated = std::mem::replace(&mut self.head.host_seen, true);
            if repeated { Err(FramingFault::RepeatedHost) } else { Ok(()) }
        } else {
            self.head.upgrade |= name.eq_ignore_ascii_case(b"upgrade") && !self.head.http_1_0;
            Ok(())
        }
    }

    fn content_length(&mut self, value: &[u8]) -> Result<(), FramingFault> {
        if self.head.chunked {
            return Err(FramingFault::LengthAndEncoding);
        }
        match self.head.content_length.replace(read_length(value)?) {
            None => Ok(()),
            Some(_) => Err(FramingFault::RepeatedContentLength),
        }
    }

    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), FramingFault> {
        if self.head.content_length.is_some() {
            return Err(FramingFault::LengthAndEncoding);
        }
        if self.head.http_1_0 || self.head.chunked || !value.eq_ignore_ascii_case(b"chunked") {
            return Err(FramingFault::TransferEncoding);
        }
        self.head.chunked = true;
        Ok(())
    }

    fn head_complete(&mut self) -> Result<(), FramingFault> {
        self.state = match (self.head.chunked, self.head.content_length) {
            (true, _) => State::ChunkSize,
            (false, Some(length)) if length > 0 => State::Body(length),
            (false, _) if self.head.upgrade => State::AwaitsUpgrade,
            (false, _) => State::Between,
        };
        Ok(())
    }

    fn chunk_size(&mut self, line: &[u8]) -> Result<(), FramingFault> {
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let rest = &line[digits..];
        // Nothing, or an extension at once; white space before it is where readers differ.
        if digits == 0 || digits > 16 || !(rest.is_empty() || rest[0] == b';') {
            return Err(FramingFault::Chunk);
        }
        let text = std::str::from_utf8(&line[..digits]).map_err(|_| FramingFault::Chunk)?;
        let size = u64::from_str_radix(text, 16).map_err(|_| FramingFault::Chunk)?;
        self.head.bytes = 0; // now counts trailers
        self.state = if size == 0 { State::Trailers } else { State::ChunkData(size) };
        Ok(())
    }

    fn trailer_line(&mut self, line: &[u8]) -> Result<(), FramingFault> {
        self.count_head_bytes(line)?;
        if line.is_empty() {
            self.state = State::Between;
            return Ok(());
        }
        let (name, _) = split_field(line)?;
        let frames = ["content-length", "transfer-encoding", "host", "trailer"];
        if frames.iter().any(|frame| name.eq_ignore_ascii_case(frame.as_bytes())) {
            return Err(FramingFault::Trailer);
        }
        Ok(())
    }

    /// hyper refuses a large head first, with 431 and 414; this bound is the safety net behind it.
    fn count_head_bytes(&mut self, line: &[u8]) -> Result<(), FramingFault> {
        self.head.bytes += line.len() + 2;
        if self.head.bytes > 2 * limits::HEADER_BYTES_MAX {
            return Err(FramingFault::HeadTooLarge);
        }
        Ok(())
    }

    fn line_bytes_max(&self) -> usize {
        match self.state {
            State::ChunkSize | State::ChunkEnd => limits::CHUNK_LINE_BYTES_MAX,
            State::Between
            | State::RequestLine
            | State::Fields
            | State::Body(_)
            | State::ChunkData(_)
            | State::Trailers
            | State::AwaitsUpgrade
            | State::Tunnel => 2 * limits::HEADER_BYTES_MAX,
        }
    }
}

/// The length that a head says which came over HTTP/2 or 3, by the same strict reading: their libraries take the first of several.
///
/// # Errors
/// [`FramingFault::ContentLength`] and [`FramingFault::RepeatedContentLength`].
pub(crate) fn length_of(headers: &HeaderMap) -> Result<Option<u64>, FramingFault> {
    let mut values = headers.get_all(header::CONTENT_LENGTH).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => read_length(value.as_bytes()).map(Some),
        (Some(_), Some(_)) => Err(FramingFault::RepeatedContentLength),
    }
}

/// Digits only: no sign, no list, no spaces inside. 19 digits cannot overflow u64.
fn read_length(value: &[u8]) -> Result<u64, FramingFault> {
    let digits_only = !value.is_empty() && value.len() <= 19 && value.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(value).ok().filter(|_| digits_only);
    text.and_then(|text| text.parse().ok()).ok_or(FramingFault::ContentLength)
}

fn split_field(line: &[u8]) -> Result<(&[u8], &[u8]), FramingFault> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(FramingFault::FoldedField);
    }
    let colon = line.iter().position(|&byte| byte == b':').ok_or(FramingFault::FieldName)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if name.is_empty() || !name.iter().all(is_token_byte) {
        return Err(FramingFault::FieldName);
    }
    Ok((name, value.trim_ascii()))
}

/// tchar of RFC 9110 section 5.6.2.
fn is_token_byte(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte)
}

fn take_up_to(left: u64, bytes: &[u8]) -> u64 {
    left.min(bytes.len() as u64)
}

fn as_len(taken: u64) -> usize {
    usize::try_from(taken).expect("taken is at most the length of a slice")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn follow(text: &[u8]) -> Result<State, FramingFault> {
        let mut framing = RequestFraming::default();
        framing.feed(text).map(|()| framing.state).map_err(|refusal| refusal.fault)
    }

    #[test]
    fn messages_end_where_they_say() {
        let whole: &[&[u8]] = &[
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"\r\nGET / HTTP/1.0\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nX: y\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        ];
        for text in whole {
            assert_eq!(follow(text), Ok(State::Between), "{}", text.escape_ascii());
        }
        assert_eq!(follow(b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nab"), Ok(State::Body(2)));
        assert_eq!(follow(b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n"), Ok(State::AwaitsUpgrade));
    }

    #[test]
    fn ambiguous_framing_is_refused() {
        let table: &[(&[u8], FramingFault)] = &[
            (b"GET / HTTP/1.1\nHost: a\r\n\r\n", FramingFault::BareLineFeed),
            (b"GET / HTTP/1.1\r\nHost: a\n\r\n", FramingFault::BareLineFeed),
            (b"GET / HTTP/1.1\r\nX: a\rb\r\n\r\n", FramingFault::ControlByte),
            (b"GET / HTTP/1.1\r\nX: a\0b\r\n\r\n", FramingFault::ControlByte),
            (b"GET  / HTTP/1.1\r\n\r\n", FramingFault::RequestLine),
            (b"GET /a b HTTP/1.1\r\n\r\n", FramingFault::RequestLine),
            (b"GET / HTTP/1.1 \r\n\r\n", FramingFault::RequestLine),
            (b"GET /\r\n\r\n", FramingFault::RequestLine),
            (b"GET / HTTP/2.0\r\n\r\n", FramingFault::RequestLine),
            (b"G(T / HTTP/1.1\r\n\r\n", FramingFault::RequestLine),
            (b"GET / HTTP/1.1\r\nX : a\r\n\r\n", FramingFault::FieldName),
            (b"GET / HTTP/1.1\r\n: a\r\n\r\n", FramingFault::FieldName),
            (b"GET / HTTP/1.1\r\nnocolon\r\n\r\n", FramingFault::FieldName),
            (b"GET / HTTP/1.1\r\nX: a\r\n b\r\n\r\n", FramingFault::FoldedField),
            (b"POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", FramingFault::ContentLength),
            (b"POST / HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\n", FramingFault::ContentLength),
            (b"POST / HTTP/1.1\r\nContent-Length:\r\n\r\n", FramingFault::ContentLength),
            (b"POST / HTTP/1.1\r\nContent-Length: 0x1\r\n\r\n", FramingFault::ContentLength),
            (
                b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
                FramingFault::RepeatedContentLength,
            ),
            (
                b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                FramingFault::LengthAndEncoding,
            ),
            (
                b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
                FramingFault::LengthAndEncoding,
            ),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", FramingFault::TransferEncoding),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: identity\r\n\r\n", FramingFault::TransferEncoding),
            (
                b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
                FramingFault::TransferEncoding,
            ),
            (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", FramingFault::TransferEncoding),
            (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", FramingFault::RepeatedHost),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", FramingFault::Chunk),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3 \r\nabc\r\n", FramingFault::Chunk),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n", FramingFault::Chunk),
            (
                b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n00000000000000001\r\na",
                FramingFault::Chunk,
            ),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n", FramingFault::BareLineFeed),
            (
                b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 3\r\n\r\n",
                FramingFault::Trailer,
            ),
            (b"GET / HTTP/1.1\r\nUpgrade: x\r\n\r\nGET", FramingFault::BytesBeforeUpgrade),
        ];
        for (text, fault) in table {
            assert_eq!(follow(text), Err(*fault), "{}", text.escape_ascii());
        }
    }

    #[test]
    fn a_chunk_extension_and_an_endless_line_have_bounds() {
        let mut text = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;".to_vec();
        text.resize(text.len() + limits::CHUNK_LINE_BYTES_MAX, b'x');
        assert_eq!(follow(&text), Err(FramingFault::LineTooLong));
        let endless = vec![b'a'; 3 * limits::HEADER_BYTES_MAX];
        assert_eq!(follow(&endless), Err(FramingFault::LineTooLong));
    }

    proptest! {
        #[test]
        fn the_size_of_reads_makes_no_difference(text in "(GET|POST) /[a-z]{0,9} HTTP/1.[01]\r\n(Content-Length: [0-9]{1,2}\r\n|Transfer-Encoding: chunked\r\n|X:y\r?\n){0,3}\r\n[0-9a-f\r\n;]{0,40}", cut in 1usize..12) {
            let whole = follow(text.as_bytes());
            let mut framing = RequestFraming::default();
            let mut pieces = Ok(());
            for piece in text.as_bytes().chunks(cut) {
                pieces = framing.feed(piece).map_err(|refusal| refusal.fault);
                if pieces.is_err() {
                    break;
                }
            }
            prop_assert_eq!(whole, pieces.map(|()| framing.state));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = follow(&bytes);
        }
    }
}
