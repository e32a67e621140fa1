//! Compressed forms of what is kept, one for each coding that clients have asked for.
//!
//! A form is made once, whole, by a task of its own, at a level that one client alone would not be worth; whoever asks
//! meanwhile reads along. It may begin while the body itself still comes, and is that of the kept body afterwards. It is
//! weighed like all else that is kept, and goes with the body that it is a form of: forgotten, or evicted, or good for longer
//! when the origin says that the body still is.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, atomic::Ordering};

use bytes::Bytes;
use portico_api::v1::ContentCoding;

use super::{
    Cache,
    answer::StoredReader,
    growing::{End, Growing, GrowingReader, Unfinished},
    key::CacheKey,
    stored::StoredBody,
};
use crate::{
    coding::{CodedBody, Effort, Encoder},
    http::body::ResponseSource,
    live::Host,
    worker::Worker,
};

/// The forms of one body.
#[derive(Debug, Default)]
pub(super) struct Forms([Mutex<Form>; 3]);

#[derive(Debug, Default)]
enum Form {
    #[default]
    Absent,
    /// Gone with its task.
    Coming(Weak<Growing>),
    Kept(Arc<StoredBody>),
    /// It came out no smaller.
    WorthNothing,
}

/// A body that is kept or that will be, as its forms know it.
#[derive(Debug, Clone)]
pub(crate) struct Whole {
    pub(super) key: Arc<CacheKey>,
    pub(super) forms: Arc<Forms>,
    pub(super) length: u64,
}

/// What a client gets in a coding.
pub(crate) enum Coded {
    Kept(StoredReader),
    Growing(Box<GrowingReader>),
    /// It would not pay, or there is no room.
    Plain,
}

/// A form in the making.
struct Making {
    cache: Arc<Cache>,
    of: Whole,
    coding: ContentCoding,
    growing: Arc<Growing>,
}

/// A form that is not smaller than this share of the whole, in percent, is not kept.
const PAYS_PERCENT: u64 = 95;
/// Where the whole pauses on its way, the form is flushed so often at most; a flush costs less than 16 bytes in each coding.
const FLUSHES_MAX: u32 = 256;
/// Beyond the whole's own bytes: no coding makes more of what it cannot compress.
const EXPANSION_BYTES: u64 = 4096 + 16 * FLUSHES_MAX as u64;

impl Forms {
    fn of(&self, coding: ContentCoding) -> MutexGuard<'_, Form> {
        let index = match coding {
            ContentCoding::Br => 0,
            ContentCoding::Zstd => 1,
            ContentCoding::Gzip => 2,
        };
        self.0[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of all that are kept.
    pub(super) fn bytes(&self) -> u64 {
        let bytes = |form: &Mutex<Form>| match &*form.lock().unwrap_or_else(PoisonError::into_inner) {
            Form::Kept(body) => body.length,
            Form::Absent | Form::Coming(_) | Form::WorthNothing => 0,
        };
        self.0.iter().map(bytes).sum()
    }
}

impl Cache {
    /// The whole that a client reads as `plain`, in a coding.
    pub(crate) fn coded(
        self: &Arc<Self>,
        of: Whole,
        plain: ResponseSource,
        host: &Arc<Host>,
        (coding, worker): (ContentCoding, &Worker),
    ) -> Coded {
        if let Some(found) = found(&of.forms.of(coding), &of, host) {
            return found;
        }
        let room = of.length + of.length / 256 + EXPANSION_BYTES;
        let Some(held) = self.store.take(of.key.tenant(), room) else { return Coded::Plain };
        let Some(place) = worker.coding_place(host.tenant.id) else { return Coded::Plain };
        let Ok(encoder) = Encoder::new(coding, Effort::Kept) else { return Coded::Plain };
        let growing = Growing::new(Arc::new(held));
        {
            let mut form = of.forms.of(coding);
            // Somebody else may have begun meanwhile.
            if let Some(found) = found(&form, &of, host) {
                return found;
            }
            *form = Form::Coming(Arc::downgrade(&growing));
        }
        self.forms_made.fetch_add(1, Ordering::Relaxed);
        worker.edge.metrics.compression(coding);
        let along = growing.read(None, host);
        let body = CodedBody::new(plain, encoder, place).flushed_at_most(FLUSHES_MAX);
        let making = Making { cache: Arc::clone(self), of, coding, growing };
        tokio::task::spawn_local(making.run(body));
        Coded::Growing(Box::new(along))
    }
}

fn found(form: &Form, of: &Whole, host: &Arc<Host>) -> Option<Coded> {
    match form {
        Form::Absent => None,
        Form::Coming(growing) => {
            let growing = growing.upgrade().filter(|growing| !growing.is_broken())?;
            Some(Coded::Growing(Box::new(growing.read(None, host))))
        }
        Form::Kept(body) => Some(Coded::Kept(StoredReader::of_form(&of.key, body, host))),
        Form::WorthNothing => Some(Coded::Plain),
    }
}

impl Making {
    async fn run(self, mut body: CodedBody) {
        let mut unfinished = Unfinished(Some(Arc::clone(&self.growing)));
        loop {
            match std::future::poll_fn(|context| body.poll_frame(context)).await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => self.growing.push(data),
                    Ok(_) | Err(_) => {}
                },
                Some(Err(error)) => {
                    tracing::debug!(error, "a body broke off on its way into a coding");
                    return;
                }
                None => break,
            }
            tokio::task::yield_now().await;
        }
        unfinished.0 = None;
        let growing = Arc::clone(&self.growing);
        self.keep();
        growing.finish(End::Whole);
    }

    fn keep(self) {
        let pieces = self.growing.pieces();
        let bytes: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        let forms = Arc::clone(&self.of.forms);
        if bytes < self.of.length * PAYS_PERCENT / 100 {
            let held = self.growing.held();
            held.shrink_to(bytes);
            let whole: Bytes = pieces.concat().into();
            self.growing.becomes(&whole);
            let form = Arc::new(StoredBody::new(vec![whole], Arc::default(), Arc::clone(held)));
            // Nobody would find a form of what is forgotten by now.
            let keep = || *forms.of(self.coding) = Form::Kept(form);
            return self.cache.store.widen(&self.of.key, &forms, bytes, keep);
        }
        *forms.of(self.coding) = Form::WorthNothing;
    }
}
