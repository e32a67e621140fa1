//! A leader's work, which goes on without its client while others wait for what comes of it.
//!
//! Without this, a few clients could keep a slow page from everybody: each takes the lead and goes away shortly before the
//! origin answers, and whoever waited begins anew.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use super::{Cache, flight::Audience};
use crate::limits;

/// What the leader's client waits for. Dropped before its end, it is finished by a task of its own, if somebody else waits.
pub(super) struct Detachable<T: 'static> {
    /// None: it has ended, or is being polled.
    work: Option<Pin<Box<dyn Future<Output = T>>>>,
    audience: Audience,
    cache: Arc<Cache>,
}

/// One of the few requests that no client of their own waits for.
pub(super) struct Place(Arc<Cache>);

impl<T> Detachable<T> {
    pub(super) fn new(
        cache: &Arc<Cache>,
        audience: Audience,
        work: impl Future<Output = T> + 'static,
    ) -> Self {
        Self { work: Some(Box::pin(work)), audience, cache: Arc::clone(cache) }
    }
}

impl<T> Future for Detachable<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        // Taken out meanwhile: what has panicked is not polled again.
        let mut work = self.work.take().expect("it is not polled after its end");
        let polled = work.as_mut().poll(context);
        if polled.is_pending() {
            self.work = Some(work);
        }
        polled
    }
}

impl<T> Drop for Detachable<T> {
    fn drop(&mut self) {
        let Some(work) = self.work.take().filter(|_| self.audience.is_there()) else { return };
        let Some(place) = Place::take(&self.cache, limits::CACHE_ORPHANS_MAX) else { return };
        let audience = self.audience.clone();
        tokio::task::spawn_local(async move {
            tokio::select! {
                biased;
                _nobodys = work => {}
                () = audience.gone() => {}
            }
            drop(place);
        });
    }
}

impl Place {
    /// None: `most` are taken.
    pub(super) fn take(cache: &Arc<Cache>, most: usize) -> Option<Self> {
        let free = |count: usize| (count < most).then_some(count + 1);
        let taken = cache.background.fetch_update(Ordering::Relaxed, Ordering::Relaxed, free);
        taken.ok().map(|_| Self(Arc::clone(cache)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.background.fetch_sub(1, Ordering::Relaxed);
    }
}
