//! How many answer bytes a client may leave without an acknowledgement: at first few, then as many as its path has shown to
//! carry. So a client that never acknowledges anything holds little, and one that does is not held up.

use std::cell::Cell;

use crate::limits;

pub(super) struct SendWindow {
    connection: quinn::Connection,
    bytes: Cell<u64>,
    sent: Cell<usize>,
}

/// Between two looks at the path.
const LOOK_BYTES: usize = 64 * 1024;

impl SendWindow {
    /// For a connection that began with [`limits::QUIC_SEND_WINDOW_FIRST_BYTES`].
    pub(super) fn new(connection: quinn::Connection) -> Self {
        Self { connection, bytes: Cell::new(limits::QUIC_SEND_WINDOW_FIRST_BYTES), sent: Cell::new(0) }
    }

    /// More of an answer has found room in the window.
    pub(super) fn sent(&self, bytes: usize) {
        self.sent.set(self.sent.get() + bytes);
        if self.sent.get() < LOOK_BYTES {
            return;
        }
        self.sent.set(0);
        let bytes = wanted(self.connection.stats().path.cwnd);
        if bytes != self.bytes.replace(bytes) {
            self.connection.set_send_window(bytes);
        }
    }
}

/// What is under way, and as much again that waits for it to arrive.
fn wanted(congestion_window: u64) -> u64 {
    let bytes = congestion_window.saturating_mul(2);
    bytes.clamp(limits::QUIC_SEND_WINDOW_FIRST_BYTES, limits::QUIC_SEND_WINDOW_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_follows_the_path_between_its_bounds() {
        assert_eq!(wanted(12_000), limits::QUIC_SEND_WINDOW_FIRST_BYTES);
        assert_eq!(wanted(200_000), 400_000);
        assert_eq!(wanted(u64::MAX), limits::QUIC_SEND_WINDOW_BYTES);
    }
}
