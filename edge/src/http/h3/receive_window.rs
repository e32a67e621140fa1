//! How much a client may send before we have read it: at first little, then as much as it has sent and we have read. So one
//! that sends only what cannot be read makes us hold little, and an upload is not held up.

use std::cell::Cell;
use std::sync::Arc;

use quinn::VarInt;

use super::adapter::varint;
use super::violation::Violation;
use crate::limits;
use crate::listen::quic::FrameBudget;

/// What has been read of one connection's streams.
pub(super) struct Received {
    connection: quinn::Connection,
    budget: Arc<FrameBudget>,
    bytes: Cell<u64>,
    window: Cell<u32>,
    violation: Cell<Option<Violation>>,
}

impl Received {
    /// For a connection that began with [`limits::QUIC_RECEIVE_WINDOW_FIRST_BYTES`].
    pub(super) fn new(connection: quinn::Connection, budget: Arc<FrameBudget>) -> Self {
        let window = Cell::new(limits::QUIC_RECEIVE_WINDOW_FIRST_BYTES);
        Self { connection, budget, bytes: Cell::new(0), window, violation: Cell::new(None) }
    }

    /// Ends the connection by what was read, unless something read before has ended it.
    pub(super) fn violated(&self, violation: Violation) {
        if self.violation.get().is_none() {
            self.violation.set(Some(violation));
            self.connection.close(varint(violation.code().value()), b"");
        }
    }

    pub(super) fn violation(&self) -> Option<Violation> {
        self.violation.get()
    }

    /// One piece was read.
    pub(super) fn read(&self, bytes: usize) {
        self.budget.piece_taken(bytes);
        self.bytes.set(self.bytes.get() + bytes as u64);
        let wanted = wanted(self.bytes.get());
        if wanted >= 2 * self.window.get() {
            self.window.set(wanted);
            self.connection.set_receive_window(VarInt::from_u32(wanted));
        }
    }
}

fn wanted(read: u64) -> u32 {
    let read = u32::try_from(read).unwrap_or(u32::MAX);
    read.clamp(limits::QUIC_RECEIVE_WINDOW_FIRST_BYTES, limits::QUIC_RECEIVE_WINDOW_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_follows_what_was_read_between_its_bounds() {
        assert_eq!(wanted(0), limits::QUIC_RECEIVE_WINDOW_FIRST_BYTES);
        assert_eq!(wanted(300_000), 300_000);
        assert_eq!(wanted(u64::MAX), limits::QUIC_RECEIVE_WINDOW_BYTES);
    }
}
