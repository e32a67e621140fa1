//! Ending without losing a request: let the address move, stop accepting, let exchanges finish, then go.
//!
//! One order for the process (SIGTERM, SIGINT, the admin call). For `withdraw_seconds` it is only not ready any more and
//! serves on, new connections too: whoever watches `/readyz` moves the address meanwhile. Then the drain begins; each
//! worker passes it to its own connections, so that a connection waits on a flag of its own thread.

use std::{cell::Cell, future::Future, rc::Rc, sync::Arc, time::Instant};

use tokio::sync::{Notify, watch};

use crate::clock;

/// Begins the end, once.
#[derive(Debug, Clone)]
pub struct DrainSwitch {
    sender: Arc<watch::Sender<Phase>>,
}

/// Sees the end begin, on any thread.
#[derive(Debug, Clone)]
pub struct DrainWatch {
    receiver: watch::Receiver<Phase>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    /// Not ready any more; the address may move.
    Withdrawing,
    Draining,
}

/// A worker's own view.
#[derive(Debug, Clone, Default)]
pub struct LocalDrain {
    inner: Rc<Local>,
}

#[derive(Debug, Default)]
struct Local {
    begun: Cell<Option<Instant>>,
    notify: Notify,
}

impl DrainSwitch {
    pub fn new() -> (Self, DrainWatch) {
        let (sender, receiver) = watch::channel(Phase::Serving);
        (Self { sender: Arc::new(sender) }, DrainWatch { receiver })
    }

    /// The order to end. Given again, it ends the wait for the address to move.
    pub fn order(&self) {
        self.sender.send_modify(|phase| {
            *phase = if *phase == Phase::Serving { Phase::Withdrawing } else { Phase::Draining };
        });
    }

    /// Begins the drain itself.
    pub fn begin(&self) {
        self.sender.send_replace(Phase::Draining);
    }
}

impl DrainWatch {
    pub fn is_ordered(&self) -> bool {
        *self.receiver.borrow() > Phase::Serving
    }

    pub fn is_begun(&self) -> bool {
        *self.receiver.borrow() == Phase::Draining
    }

    /// Ends when the order has come; a lost switch counts as one.
    pub async fn ordered(&mut self) {
        let _ = self.receiver.wait_for(|phase| *phase > Phase::Serving).await;
    }

    /// Ends when the drain begins; a lost switch counts as one.
    pub async fn begun(&mut self) {
        let _ = self.receiver.wait_for(|phase| *phase == Phase::Draining).await;
    }
}

impl LocalDrain {
    pub fn is_begun(&self) -> bool {
        self.inner.begun.get().is_some()
    }

    pub fn begun_at(&self) -> Option<Instant> {
        self.inner.begun.get()
    }

    pub fn begin(&self) {
        self.inner.begun.set(Some(clock::now()));
        self.inner.notify.notify_waiters();
    }

    /// Ends when the drain begins.
    pub fn begun(&self) -> impl Future<Output = ()> + use<> {
        let inner = Rc::clone(&self.inner);
        async move {
            let notified = inner.notify.notified();
            if inner.begun.get().is_none() {
                notified.await;
            }
        }
    }
}
