//! Sockets to origins. The process has so many descriptors, and one client of HTTP/2 can make a hundred requests wait for
//! one slow site; without a bound of their own they would take the place of everybody's next connection.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{limits, live::TenantState};

/// What is open to origins, over all workers.
#[derive(Debug)]
pub struct OriginSockets {
    most: u64,
    open: Arc<AtomicU64>,
}

impl OriginSockets {
    pub fn new(most: u64) -> Self {
        Self { most, open: Arc::default() }
    }

    /// A place for one more of the tenant's. `None` where it holds [`limits::ORIGIN_SOCKETS_PER_FREE`] times as many as are
    /// free: however many tenants take all they can get, something is left for the next one (dynamic thresholds, Choudhury
    /// and Hahne 1998).
    pub(super) fn take(&self, tenant: &TenantState) -> Option<Place> {
        let free = self.most.saturating_sub(self.open.load(Ordering::Relaxed));
        let held = tenant.origin_sockets();
        if held.load(Ordering::Relaxed) >= free.saturating_mul(limits::ORIGIN_SOCKETS_PER_FREE) {
            return None;
        }
        // Workers that ask at the same moment may exceed it by one each.
        Some(Place::among([Arc::clone(&self.open), Arc::clone(held)]))
    }

    /// None is to stand idle: half of them are taken.
    pub(super) fn are_scarce(&self) -> bool {
        self.open.load(Ordering::Relaxed) >= self.most.div_ceil(2)
    }
}

/// For those who are bounded otherwise.
impl Default for OriginSockets {
    fn default() -> Self {
        Self::new(u64::MAX)
    }
}

/// Counted until it is dropped.
#[derive(Debug)]
pub(super) struct Place([Arc<AtomicU64>; 2]);

impl Place {
    fn among(counts: [Arc<AtomicU64>; 2]) -> Self {
        for count in &counts {
            count.fetch_add(1, Ordering::Relaxed);
        }
        Self(counts)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for count in &self.0 {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A stream that has its place as long as it is open.
#[derive(Debug)]
pub(super) struct Placed<S> {
    pub stream: S,
    pub _place: Place,
}

impl<S: AsyncRead + Unpin> AsyncRead for Placed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Placed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::watch::tests::tenant;

    #[test]
    fn whoever_takes_all_it_can_get_leaves_some_to_the_next() {
        let sockets = OriginSockets::new(90);
        let tenants = [(); 4].map(|()| tenant());
        let mut places = Vec::new();
        let mut held = tenants.iter().map(|tenant| {
            let before = places.len();
            places.extend(std::iter::from_fn(|| sockets.take(tenant)));
            places.len() - before
        });
        assert_eq!([(); 4].map(|()| held.next().unwrap()), [60, 20, 7, 2]);
        assert!(sockets.are_scarce());
        places.clear();
        assert!(!sockets.are_scarce());
        assert!(tenants.iter().all(|tenant| tenant.origin_sockets().load(Ordering::Relaxed) == 0));
    }
}
