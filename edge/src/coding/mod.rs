//! Content codings: answers that their origin has sent plain are compressed for clients that take it, where the route says
//! so and it is safe (RFC 9110 section 8.4).
//!
//! [`Client`] is what a request says of it, read before the route changes the request; [`Client::encode`] decides by the
//! answer's head, so that HEAD is answered as GET would be. Bodies go through [`CodedBody`] piece by piece; what is kept in the
//! cache as a whole, or will be, is compressed once for all, by `cache::coded`.
//!
//! A compressed answer is another representation, and cannot be promised to be the same byte for byte next time: its tag
//! becomes a weak one, it offers no ranges, and the client's own weak tag comes back with a 304.
//!
//! Not compressed is what may hold a secret beside words of whoever asks: the length of the compressed body tells, guess
//! after guess, when a guess is right (BREACH). Secrets are in answers to those who show who they are (`Cookie`,
//! `Authorization`, a certificate), unless these are `public`, and in those that give a cookie.
//!
//! Deliberately absent: requests' bodies, decompression, dictionaries, pages of our own and fixed answers, which are short.

mod accept;
mod body;
mod encoder;
mod places;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts};
use portico_api::{rule::CompressionRule, v1::ContentCoding};
use portico_cert_store::TenantId;

pub(crate) use accept::name;
pub use body::CodedBody;
pub(crate) use encoder::{Effort, Encoder};
pub(crate) use places::{CodingPlace, CodingPlaces};

use crate::{
    cache::{Coded, contains_token},
    exchange::Answer,
    http::body::ResponseSource,
    worker::Worker,
};

/// What a request says of codings.
#[derive(Debug)]
pub(crate) struct Client {
    /// The best of the route's that the client takes.
    coding: Option<ContentCoding>,
    is_head: bool,
    shows_who_it_is: bool,
    forbids: bool,
    /// `If-None-Match`.
    has: Vec<HeaderValue>,
}

/// Digests of bytes that would be others (RFC 9530; the older ones are still met).
const DIGESTS: [HeaderName; 4] = [
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-md5"),
];

impl Client {
    /// Reads a request; `is_known`: its client has shown a certificate. A range that is asked for on the word of a date or of
    /// a weak tag is taken out of it: the client may have the rest in a coding, and only strong tags tell codings apart (RFC
    /// 9110 section 13.1.5).
    pub(crate) fn of(parts: &mut Parts, rule: &CompressionRule, is_known: bool) -> Self {
        let headers = &mut parts.headers;
        let coding = accept::choose(headers, &rule.codings);
        let weakly = headers.get(header::IF_RANGE).is_some_and(|value| !value.as_bytes().starts_with(b"\""));
        if coding.is_some() && weakly {
            headers.remove(header::RANGE);
            headers.remove(header::IF_RANGE);
        }
        Self {
            coding,
            is_head: parts.method == http::Method::HEAD,
            shows_who_it_is: is_known
                || headers.contains_key(header::COOKIE)
                || headers.contains_key(header::AUTHORIZATION),
            forbids: says(headers, "no-transform"),
            has: headers.get_all(header::IF_NONE_MATCH).iter().cloned().collect(),
        }
    }

    /// Compresses an answer, or leaves it as it is.
    pub(crate) fn encode(self, answer: &mut Answer, rule: &CompressionRule, of: (TenantId, &Worker)) {
        if answer.reason.is_some() {
            return;
        }
        if answer.response.status() == StatusCode::NOT_MODIFIED {
            self.keep_weak_tag(answer.response.headers_mut());
            return;
        }
        if !self.may_encode(answer, rule) {
            return;
        }
        add_vary(answer.response.headers_mut());
        if let Some(coding) = self.coding
            && self.has_body_in(coding, answer, of)
        {
            describe(answer.response.headers_mut(), coding);
        }
    }

    /// The tag of the form that the client has is the weak one.
    fn keep_weak_tag(&self, headers: &mut HeaderMap) {
        let Some(weak) = headers.get(header::ETAG).and_then(weakened) else { return };
        let texts = self.has.iter().filter_map(|value| value.to_str().ok());
        if texts.flat_map(|text| text.split(',')).any(|tag| tag.trim().as_bytes() == weak.as_bytes()) {
            headers.insert(header::ETAG, weak);
            add_vary(headers);
        }
    }

    /// For a client that takes a coding.
    fn may_encode(&self, answer: &Answer, rule: &CompressionRule) -> bool {
        let (status, headers) = (answer.response.status(), answer.response.headers());
        let has_other_body = status.is_informational()
            || matches!(status.as_u16(), 204 | 205 | 206 | 226)
            || [header::CONTENT_ENCODING, header::CONTENT_RANGE]
                .iter()
                .any(|name| headers.contains_key(name));
        let is_private = headers.contains_key(header::SET_COOKIE)
            || (self.shows_who_it_is && (!says(headers, "public") || says(headers, "private")));
        let is_fixed = self.forbids
            || says(headers, "no-transform")
            || DIGESTS.iter().any(|name| headers.contains_key(name));
        let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let is_short = length.is_some_and(|length: u64| length < rule.min_bytes.into())
            || (!self.is_head && answer.response.body().is_end_stream());
        let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        !has_other_body
            && !is_private
            && !is_fixed
            && !is_short
            && content_type.is_some_and(|content_type| rule.takes(content_type))
    }

    /// Puts the compressed body in the plain one's place; false: it stays as it is, because it would not pay or there is no
    /// room for the work.
    fn has_body_in(
        &self,
        coding: ContentCoding,
        answer: &mut Answer,
        (tenant, worker): (TenantId, &Worker),
    ) -> bool {
        if self.is_head {
            answer.response.headers_mut().remove(header::CONTENT_LENGTH);
            return true;
        }
        let source = answer.response.body_mut();
        let length = match shared(source, coding, worker) {
            Some(Coded::Kept(reader)) => {
                let length = reader.left();
                *source = ResponseSource::Stored(reader);
                Some(length)
            }
            Some(Coded::Growing(reader)) => {
                *source = ResponseSource::Growing(reader);
                None
            }
            // It is there in full: this client's own work on it would be done for nobody else.
            Some(Coded::Plain) if matches!(source, ResponseSource::Stored(_)) => return false,
            Some(Coded::Plain) | None => {
                let Some(place) = worker.coding_place(tenant) else { return false };
                let Ok(encoder) = Encoder::new(coding, Effort::Quick) else { return false };
                worker.edge.metrics.compression(coding);
                let plain = std::mem::replace(source, ResponseSource::Empty);
                *source = ResponseSource::Coded(Box::new(CodedBody::new(plain, encoder, place)));
                None
            }
        };
        let headers = answer.response.headers_mut();
        headers.remove(header::CONTENT_LENGTH);
        if let Some(length) = length {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        true
    }
}

/// The form that all have who ask for this body; absent: it is this client's alone.
fn shared(source: &ResponseSource, coding: ContentCoding, worker: &Worker) -> Option<Coded> {
    let (whole, plain, host) = match source {
        ResponseSource::Stored(reader) => {
            (reader.whole()?, ResponseSource::Stored(reader.clone()), reader.host())
        }
        ResponseSource::Growing(reader) => {
            (reader.whole()?.clone(), ResponseSource::Growing(Box::new(reader.along()?)), reader.host())
        }
        ResponseSource::Empty
        | ResponseSource::Full(_)
        | ResponseSource::Origin(_)
        | ResponseSource::Coded(_) => return None,
    };
    Some(worker.edge.cache.coded(whole, plain, host, (coding, worker)))
}

/// The head of the compressed form.
fn describe(headers: &mut HeaderMap, coding: ContentCoding) {
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(name(coding)));
    headers.remove(header::ACCEPT_RANGES);
    if let Some(weak) = headers.get(header::ETAG).and_then(weakened) {
        headers.insert(header::ETAG, weak);
    }
}

/// None: it is weak already, or no tag.
fn weakened(etag: &HeaderValue) -> Option<HeaderValue> {
    let bytes = etag.as_bytes();
    if !bytes.starts_with(b"\"") {
        return None;
    }
    HeaderValue::from_bytes(&[b"W/", bytes].concat()).ok()
}

fn says(headers: &HeaderMap, directive: &str) -> bool {
    headers.get_all(header::CACHE_CONTROL).iter().any(|value| contains_token(value, directive))
}

/// What is sent depends on what the client takes, whatever this one takes.
fn add_vary(headers: &mut HeaderMap) {
    let named = |value: &HeaderValue| contains_token(value, "accept-encoding") || contains_token(value, "*");
    if !headers.get_all(header::VARY).iter().any(named) {
        headers.append(header::VARY, HeaderValue::from_static("accept-encoding"));
    }
}
