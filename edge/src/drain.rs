//! Ending without losing a request: stop accepting, let exchanges finish, then go.
//!
//! One signal for the process (SIGTERM, SIGINT, the admin call); each worker passes it to its own connections, so that a
//! connection waits on a flag of its own thread.

use std::{cell::Cell, future::Future, rc::Rc, sync::Arc};

use tokio::sync::{Notify, watch};

/// Begins the drain, once.
#[derive(Debug, Clone)]
pub struct DrainSwitch {
    sender: Arc<watch::Sender<bool>>,
}

/// Sees the drain begin, on any thread.
#[derive(Debug, Clone)]
pub struct DrainWatch {
    receiver: watch::Receiver<bool>,
}

/// A worker's own view.
#[derive(Debug, Clone, Default)]
pub struct LocalDrain {
    inner: Rc<Local>,
}

#[derive(Debug, Default)]
struct Local {
    begun: Cell<bool>,
    notify: Notify,
}

impl DrainSwitch {
    pub fn new() -> (Self, DrainWatch) {
        let (sender, receiver) = watch::channel(false);
        (Self { sender: Arc::new(sender) }, DrainWatch { receiver })
    }

    pub fn begin(&self) {
        self.sender.send_replace(true);
    }
}

impl DrainWatch {
    pub fn is_begun(&self) -> bool {
        *self.receiver.borrow()
    }

    /// Ends when the drain begins; a lost switch counts as one.
    pub async fn begun(&mut self) {
        let _ = self.receiver.wait_for(|begun| *begun).await;
    }
}

impl LocalDrain {
    pub fn is_begun(&self) -> bool {
        self.inner.begun.get()
    }

    pub fn begin(&self) {
        self.inner.begun.set(true);
        self.inner.notify.notify_waiters();
    }

    /// Ends when the drain begins.
    pub fn begun(&self) -> impl Future<Output = ()> + use<> {
        let inner = Rc::clone(&self.inner);
        async move {
            let notified = inner.notify.notified();
            if !inner.begun.get() {
                notified.await;
            }
        }
    }
}
