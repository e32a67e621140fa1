//! How long whoever sends a body may pause.

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Sleep;

use crate::clock;

/// A deadline between pieces that costs nothing while pieces come.
pub(super) struct Stall {
    allowed: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Stall {
    pub(super) fn new(allowed: Duration) -> Self {
        Self { allowed, sleep: None }
    }

    pub(super) fn progress(&mut self) {
        if let Some(sleep) = &mut self.sleep {
            sleep.as_mut().reset((clock::now() + self.allowed).into());
        }
    }

    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let allowed = self.allowed;
        self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(allowed))).as_mut().poll(context)
    }
}
