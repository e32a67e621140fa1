//! Lets a successor take the state folder and the stream over, one after the other, and takes both back if it fails.

use tokio::sync::{mpsc, oneshot};

/// The service thread's end.
#[derive(Debug, Clone)]
pub struct ControlSwitch {
    orders: mpsc::Sender<(Order, oneshot::Sender<()>)>,
}

/// The control side's end.
#[derive(Debug)]
pub(super) struct Orders {
    orders: mpsc::Receiver<(Order, oneshot::Sender<()>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Keeps the stream, and writes nothing to the state folder.
    Hold,
    /// Ends the stream too.
    Rest,
    GoOn,
}

pub(super) fn switch() -> (ControlSwitch, Orders) {
    let (sender, receiver) = mpsc::channel(1);
    (ControlSwitch { orders: sender }, Orders { orders: receiver })
}

impl ControlSwitch {
    /// Of a control side that has ended.
    #[cfg(test)]
    pub(crate) fn to_nobody() -> Self {
        switch().0
    }

    /// When this returns nothing is written to the state folder any more.
    pub async fn hold(&self) {
        self.give(Order::Hold).await;
    }

    /// When this returns there is no stream any more.
    pub async fn rest(&self) {
        self.give(Order::Rest).await;
    }

    pub async fn go_on(&self) {
        self.give(Order::GoOn).await;
    }

    async fn give(&self, order: Order) {
        let (done, obeyed) = oneshot::channel();
        // A control side that has ended writes nothing and has no stream.
        if self.orders.send((order, done)).await.is_ok() {
            let _ = obeyed.await;
        }
    }
}

impl Orders {
    /// The next order, and whom to tell that it was followed. Cancel-safe.
    pub(super) async fn next(&mut self) -> (Order, oneshot::Sender<()>) {
        match self.orders.recv().await {
            Some(order) => order,
            None => std::future::pending().await,
        }
    }
}
