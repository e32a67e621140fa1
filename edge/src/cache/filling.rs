//! A body on its way into the cache, read by clients while it grows.
//!
//! The origin's pieces are copied once, into memory of their own: what hyper gives is a part of a larger buffer that would
//! live as long. One task pulls them as fast as the origin sends, whatever the clients' pace, within what the ledger gives.
//! Where the body turns out not to fit, the rest is handed to the leader's reader and comes at that client's pace.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{
    coded::{Forms, Whole},
    flight::Leading,
    freshness::Life,
    growing::{End, Growing, GrowingReader, Unfinished},
    key::CacheKey,
    store::{Held, Store},
    stored::{Head, StoredBody, Variant},
};
use crate::{http::body::OriginBody, live::Host};

/// A body of unknown length takes room in steps of this.
const STEP_BYTES: u64 = 64 * 1024;
/// Bodies up to this are made one piece.
const ONE_PIECE_BYTES: u64 = 64 * 1024;

/// What is shared between the task that fills and those who read.
#[derive(Debug)]
pub(super) struct Filling {
    pub variant: Variant,
    pub head: Head,
    /// As the origin said; then it fits, and anybody may read along.
    pub length: Option<u64>,
    pub life: Life,
    /// Has room for all of it if its length is known.
    body: Arc<Growing>,
    key: Arc<CacheKey>,
    forms: Arc<Forms>,
}

impl Filling {
    pub(super) fn new(
        key: &Arc<CacheKey>,
        variant: Variant,
        head: Head,
        length: Option<u64>,
        life: Life,
        held: Held,
    ) -> Arc<Self> {
        let (key, body, forms) = (Arc::clone(key), Growing::new(Arc::new(held)), Arc::default());
        Arc::new(Self { variant, head, length, life, body, key, forms })
    }

    /// For a client that came while the body was on its way.
    pub(super) fn read(&self, host: &Arc<Host>) -> GrowingReader {
        let reader = self.body.read(self.length, host);
        let Some(length) = self.length else { return reader };
        reader.of_whole(Whole { key: Arc::clone(&self.key), forms: Arc::clone(&self.forms), length })
    }
}

/// What the filling task needs, beside the body.
pub(super) struct FillJob {
    pub store: Arc<Store>,
    pub filling: Arc<Filling>,
    pub bytes_max: u64,
    pub leading: Leading,
}

/// The leader's reader, and the job that is to run on this thread.
pub(super) fn begin(
    job: FillJob,
    body: OriginBody,
    host: &Arc<Host>,
    keep: impl FnOnce(Leading, Arc<StoredBody>) + 'static,
) -> GrowingReader {
    let (rest, receiver) = oneshot::channel();
    let reader = job.filling.read(host).with_rest(receiver);
    let unfinished = Unfinished(Some(Arc::clone(&job.filling.body)));
    tokio::task::spawn_local(async move { fill(job, body, rest, unfinished, keep).await });
    reader
}

async fn fill(
    job: FillJob,
    mut body: OriginBody,
    rest: oneshot::Sender<OriginBody>,
    mut unfinished: Unfinished,
    keep: impl FnOnce(Leading, Arc<StoredBody>),
) {
    let mut bytes: u64 = 0;
    loop {
        let frame = std::future::poll_fn(|context| body.poll_frame(context)).await;
        let data = match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => data,
                Err(_trailers) => continue, // may be left out of what is kept (RFC 9110 section 6.5)
            },
            Some(Err(error)) => {
                tracing::debug!(error, "a body broke off on its way into the cache");
                return;
            }
            None => break,
        };
        if data.is_empty() {
            continue;
        }
        bytes += data.len() as u64;
        let fits = bytes <= job.bytes_max && make_room(&job, bytes);
        job.filling.body.push(Bytes::copy_from_slice(&data));
        if !fits {
            unfinished.0 = None;
            let _gone = rest.send(body);
            job.filling.body.finish(End::HandedOver);
            job.leading.uncacheable();
            return;
        }
    }
    let whole = job.filling.length.is_none_or(|length| length == bytes);
    if !whole {
        return;
    }
    unfinished.0 = None;
    let growing = &job.filling.body;
    growing.held().shrink_to(bytes);
    // Before those are told who wait for the kept answer, so that they find it.
    let (forms, held) = (Arc::clone(&job.filling.forms), Arc::clone(growing.held()));
    keep(job.leading, Arc::new(StoredBody::new(gathered(growing, bytes), forms, held)));
    growing.finish(End::Whole);
}

fn make_room(job: &FillJob, bytes: u64) -> bool {
    let held = job.filling.body.held();
    let lacking = bytes.saturating_sub(held.bytes());
    if lacking == 0 {
        return true;
    }
    let step = lacking.max(STEP_BYTES).min(job.bytes_max - held.bytes());
    let tenant = job.leading.key().tenant();
    job.store.grow(tenant, held, step)
}

fn gathered(growing: &Growing, bytes: u64) -> Vec<Bytes> {
    let pieces = growing.pieces();
    if pieces.len() < 2 || bytes > ONE_PIECE_BYTES {
        return pieces;
    }
    let one = pieces.concat().into();
    growing.becomes(&one);
    vec![one]
}
