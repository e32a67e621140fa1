//! Compressed forms of what is kept, one for each coding that clients have asked for.
//!
//! A form is made once, whole, by a task of its own, at a level that one client alone would not be worth; whoever asks
//! meanwhile reads along. It is weighed like all else that is kept, and goes with the body that it is a form of: forgotten,
//! or evicted, or good for longer when the origin says that the body still is.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, atomic::Ordering};

use bytes::Bytes;
use portico_api::v1::ContentCoding;

use super::{
    Cache,
    answer::StoredReader,
    growing::{End, Growing, GrowingReader, Unfinished},
    key::CacheKey,
    store::Held,
    stored::StoredBody,
};
use crate::{
    coding::{Effort, Encoder, SLICE_BYTES},
    worker::{CodingPlace, Worker},
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
    key: Arc<CacheKey>,
    body: Arc<StoredBody>,
    coding: ContentCoding,
    held: Held,
    growing: Arc<Growing>,
    _place: CodingPlace,
}

/// A form that is not smaller than this share of the whole, in percent, is not kept.
const PAYS_PERCENT: u64 = 95;
/// Beyond the whole's own bytes: no coding makes more of what it cannot compress.
const EXPANSION_BYTES: u64 = 4096;

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
    /// The whole that `reader` reads, in a coding.
    pub(crate) fn coded(
        self: &Arc<Self>,
        reader: &StoredReader,
        coding: ContentCoding,
        worker: &Worker,
    ) -> Coded {
        let (body, host) = (reader.body(), reader.host());
        if let Some(found) = found(&body.forms.of(coding), reader) {
            return found;
        }
        let room = body.length + body.length / 256 + EXPANSION_BYTES;
        let Some(held) = self.store.take(reader.key().tenant(), room) else { return Coded::Plain };
        let Some(place) = worker.coding_place() else { return Coded::Plain };
        let Ok(encoder) = Encoder::new(coding, Effort::Kept) else { return Coded::Plain };
        let growing = Arc::<Growing>::default();
        {
            let mut form = body.forms.of(coding);
            // Somebody else may have begun meanwhile.
            if let Some(found) = found(&form, reader) {
                return found;
            }
            *form = Form::Coming(Arc::downgrade(&growing));
        }
        self.forms_made.fetch_add(1, Ordering::Relaxed);
        worker.edge.metrics.compression(coding);
        let along = growing.read(None, host);
        let making = Making {
            cache: Arc::clone(self),
            key: Arc::clone(reader.key()),
            body: Arc::clone(body),
            coding,
            held,
            growing,
            _place: place,
        };
        tokio::task::spawn_local(making.run(encoder));
        Coded::Growing(Box::new(along))
    }
}

fn found(form: &Form, reader: &StoredReader) -> Option<Coded> {
    match form {
        Form::Absent => None,
        Form::Coming(growing) => {
            let along = growing.upgrade()?.read(None, reader.host());
            Some(Coded::Growing(Box::new(along)))
        }
        Form::Kept(body) => Some(Coded::Kept(reader.of_form(body))),
        Form::WorthNothing => Some(Coded::Plain),
    }
}

impl Making {
    async fn run(self, mut encoder: Encoder) {
        let mut unfinished = Unfinished(Some(Arc::clone(&self.growing)));
        for slice in self.body.pieces.iter().flat_map(|piece| piece.chunks(SLICE_BYTES)) {
            if encoder.write(slice).is_err() {
                return;
            }
            if !encoder.output().is_empty() {
                self.growing.push(std::mem::take(encoder.output()).into());
            }
            tokio::task::yield_now().await;
        }
        let Ok(last) = encoder.finish() else { return };
        self.growing.push(last.into());
        unfinished.0 = None;
        let growing = Arc::clone(&self.growing);
        self.keep();
        growing.finish(End::Whole);
    }

    fn keep(mut self) {
        let pieces = self.growing.pieces();
        let bytes: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        if bytes < self.body.length * PAYS_PERCENT / 100 {
            self.held.shrink_to(bytes);
            let whole: Bytes = pieces.concat().into();
            let form = Arc::new(StoredBody::new(vec![whole], self.held));
            // Nobody would find a form of what is forgotten by now.
            let keep = || *self.body.forms.of(self.coding) = Form::Kept(form);
            return self.cache.store.widen(&self.key, &self.body, bytes, keep);
        }
        *self.body.forms.of(self.coding) = Form::WorthNothing;
    }
}
