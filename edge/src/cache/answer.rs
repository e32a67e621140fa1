//! Answers from what is kept.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body::Frame;

use super::{
    coded::Whole,
    conditions::{self, OF_A_BODY, Part},
    filling::Filling,
    growing::GrowingReader,
    key::CacheKey,
    outcome::Told,
    request::Wishes,
    stored::{Head, Stored, StoredBody},
};
use crate::{
    clock,
    exchange::Answer,
    http::body::{BodyError, ResponseSource},
    live::Host,
};

/// One client's way through a kept body.
#[derive(Clone)]
pub struct StoredReader {
    key: Arc<CacheKey>,
    body: Arc<StoredBody>,
    piece: usize,
    /// Of the next piece, bytes that are before the range.
    skip: u64,
    left: u64,
    /// A suspension ends answers that are under way.
    host: Arc<Host>,
}

/// The answer to one client, from an entry.
pub(super) fn from_stored(
    stored: &Stored,
    (method, wishes, host): (&Method, &Wishes, &Arc<Host>),
    now: Instant,
    told: Told,
) -> Answer {
    let length = stored.body.length;
    let part = conditions::part(wishes, method, &stored.head, Some(length));
    let mut response = Response::new(ResponseSource::Empty);
    *response.status_mut() = stored.head.status;
    response.headers_mut().clone_from(&stored.head.headers);
    response.headers_mut().insert(header::AGE, HeaderValue::from(stored.life.age(now).as_secs()));
    told.tell(response.headers_mut());
    let bodiless = matches!(stored.head.status, StatusCode::NO_CONTENT);
    let mut range = (0, length);
    match part {
        Part::NotModified => return not_modified(response, told),
        Part::Unsatisfiable => {
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            set(&mut response, header::CONTENT_RANGE, format!("bytes */{length}"));
            range = (0, 0);
        }
        Part::Range { from, to } => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            set(&mut response, header::CONTENT_RANGE, format!("bytes {from}-{}/{length}", to - 1));
            range = (from, to);
        }
        Part::All => {}
    }
    if !bodiless {
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(range.1 - range.0));
    }
    if *method != Method::HEAD && range.1 > range.0 {
        let reader = StoredReader::new(stored, range, host);
        *response.body_mut() = ResponseSource::Stored(reader);
    }
    answer(response, told)
}

/// The answer to one client, of a body that is still coming. Ranges are not cut from it.
pub(super) fn from_filling(
    filling: &Filling,
    reader: GrowingReader,
    (method, wishes): (&Method, &Wishes),
    told: Told,
) -> Answer {
    let head = &filling.head;
    let mut response = Response::new(ResponseSource::Empty);
    *response.status_mut() = head.status;
    response.headers_mut().clone_from(&head.headers);
    let age = filling.life.initial_age.as_secs();
    if age > 0 {
        response.headers_mut().insert(header::AGE, HeaderValue::from(age));
    }
    told.tell(response.headers_mut());
    if conditions::part(wishes, method, head, None) == Part::NotModified {
        return not_modified(response, told);
    }
    *response.body_mut() = ResponseSource::Growing(Box::new(reader));
    answer(response, told)
}

/// The answer to one client who has revalidated what is no longer to be kept.
pub(super) fn from_body(
    head: &Head,
    stale: &Stored,
    (method, wishes, host): (&Method, &Wishes, &Arc<Host>),
    told: Told,
) -> Answer {
    let mut response = Response::new(ResponseSource::Empty);
    *response.status_mut() = head.status;
    response.headers_mut().clone_from(&head.headers);
    told.tell(response.headers_mut());
    if conditions::part(wishes, method, head, None) == Part::NotModified {
        return not_modified(response, told);
    }
    let reader = StoredReader::new(stale, (0, stale.body.length), host);
    *response.body_mut() = ResponseSource::Stored(reader);
    answer(response, told)
}

fn not_modified(mut response: Response<ResponseSource>, told: Told) -> Answer {
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    for name in &OF_A_BODY {
        response.headers_mut().remove(name);
    }
    answer(response, told)
}

fn answer(response: Response<ResponseSource>, told: Told) -> Answer {
    Answer { response, reason: None, origin: None, cache: Some(told.outcome) }
}

fn set(response: &mut Response<ResponseSource>, name: http::HeaderName, value: String) {
    if let Ok(value) = HeaderValue::try_from(value) {
        response.headers_mut().insert(name, value);
    }
}

impl StoredReader {
    fn new(of: &Stored, (from, to): (u64, u64), host: &Arc<Host>) -> Self {
        let (key, body, host) = (Arc::clone(&of.key), Arc::clone(&of.body), Arc::clone(host));
        let (mut piece, mut skip) = (0, from);
        while let Some(bytes) = body.pieces.get(piece).filter(|bytes| bytes.len() as u64 <= skip) {
            skip -= bytes.len() as u64;
            piece += 1;
        }
        Self { key, body, piece, skip, left: to - from, host }
    }

    /// A client's way through a form of what is kept under `key`.
    pub(super) fn of_form(key: &Arc<CacheKey>, form: &Arc<StoredBody>, host: &Arc<Host>) -> Self {
        let (key, host) = (Arc::clone(key), Arc::clone(host));
        Self { key, body: Arc::clone(form), piece: 0, skip: 0, left: form.length, host }
    }

    /// Absent, when something has been read or is to be left out.
    pub(crate) fn whole(&self) -> Option<Whole> {
        let is_whole = self.piece == 0 && self.skip == 0 && self.left == self.body.length;
        let (key, forms, length) = (Arc::clone(&self.key), Arc::clone(&self.body.forms), self.body.length);
        is_whole.then_some(Whole { key, forms, length })
    }

    pub(crate) fn host(&self) -> &Arc<Host> {
        &self.host
    }

    pub(crate) fn poll_frame(
        &mut self,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        if self.host.suspended(clock::unix_ms()).is_some() {
            self.left = 0;
            return Poll::Ready(Some(Err("suspended".into())));
        }
        let Some(bytes) = self.body.pieces.get(self.piece) else { return Poll::Ready(None) };
        let from = usize::try_from(self.skip).unwrap_or(bytes.len()).min(bytes.len());
        let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len() - from);
        let data = bytes.slice(from..from + count);
        self.piece += 1;
        self.skip = 0;
        self.left -= count as u64;
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    pub(crate) fn left(&self) -> u64 {
        self.left
    }
}

impl std::fmt::Debug for StoredReader {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("StoredReader").field("left", &self.left).finish_non_exhaustive()
    }
}
