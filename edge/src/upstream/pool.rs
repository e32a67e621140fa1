//! Kept connections to origins, of one worker.
//!
//! The key is tenant and origin: whatever an origin does to a connection stays with the tenant that brought the origin. A
//! connection comes back only when its answer was taken whole.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fmt,
    net::SocketAddr,
    rc::{Rc, Weak},
    sync::Arc,
    time::Instant,
};

use foldhash::fast::RandomState;
use hyper::{Request, Response, body::Incoming, client::conn::http1::SendRequest};
use portico_cert_store::TenantId;

use super::OriginError;
use crate::{clock, http::body::RequestBody, limits, live::Origin};

/// Whose connections may serve a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct PoolKey {
    pub tenant: TenantId,
    pub origin: Arc<Origin>,
}

/// All kept connections of a worker.
#[derive(Default)]
pub(super) struct Pool {
    idle: RefCell<HashMap<PoolKey, Vec<Idle>, RandomState>>,
    count: Cell<usize>,
}

struct Idle {
    sender: SendRequest<RequestBody>,
    address: SocketAddr,
    since: Instant,
}

/// A connection in use by one exchange. Dropping it closes the connection.
pub struct Lease {
    sender: SendRequest<RequestBody>,
    address: SocketAddr,
    reused: bool,
    key: PoolKey,
    pool: Weak<Pool>,
}

impl Pool {
    /// The connection that was used last and still stands.
    pub(super) async fn take(self: &Rc<Self>, key: &PoolKey) -> Option<Lease> {
        loop {
            let mut idle = self.pop(key)?;
            if clock::now().duration_since(idle.since) >= limits::ORIGIN_IDLE_DEADLINE
                || idle.sender.is_closed()
            {
                continue;
            }
            // Ready at once or not at all: a connection that still sends the last request's body is of no use.
            let ready =
                std::future::poll_fn(|context| std::task::Poll::Ready(idle.sender.poll_ready(context)));
            if let std::task::Poll::Ready(Ok(())) = ready.await {
                let pool = Rc::downgrade(self);
                let Idle { sender, address, .. } = idle;
                return Some(Lease { sender, address, reused: true, key: key.clone(), pool });
            }
        }
    }

    pub(super) fn lease(
        self: &Rc<Self>,
        key: PoolKey,
        sender: SendRequest<RequestBody>,
        address: SocketAddr,
    ) -> Lease {
        Lease { sender, address, reused: false, key, pool: Rc::downgrade(self) }
    }

    fn pop(&self, key: &PoolKey) -> Option<Idle> {
        let popped = self.idle.borrow_mut().get_mut(key)?.pop();
        if popped.is_some() {
            self.count.set(self.count.get() - 1);
        }
        popped
    }

    fn put(&self, key: PoolKey, idle: Idle) {
        if self.count.get() >= limits::ORIGIN_IDLE_PER_WORKER_MAX {
            return;
        }
        let mut map = self.idle.borrow_mut();
        let list = map.entry(key).or_default();
        if list.len() < limits::ORIGIN_IDLE_PER_KEY_MAX {
            list.push(idle);
            self.count.set(self.count.get() + 1);
        }
    }

    /// Closes what has been idle too long; the worker calls it every few seconds.
    pub(super) fn sweep(&self) {
        let now = clock::now();
        let mut kept = 0;
        self.idle.borrow_mut().retain(|_, list| {
            list.retain(|idle| {
                now.duration_since(idle.since) < limits::ORIGIN_IDLE_DEADLINE && !idle.sender.is_closed()
            });
            kept += list.len();
            !list.is_empty()
        });
        self.count.set(kept);
    }
}

impl Lease {
    pub(super) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, OriginError> {
        self.sender.send_request(request).await.map_err(OriginError::of_hyper)
    }

    /// It had served another exchange before, so it may have died meanwhile.
    pub fn is_reused(&self) -> bool {
        self.reused
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The answer has been read to its end.
    pub(crate) fn give_back(self) {
        let Some(pool) = self.pool.upgrade() else { return };
        if !self.sender.is_closed() {
            pool.put(self.key, Idle { sender: self.sender, address: self.address, since: clock::now() });
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Pool").field("idle", &self.count.get()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Lease").field("address", &self.address).finish_non_exhaustive()
    }
}
