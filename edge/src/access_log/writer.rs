//! The thread that writes: takes records from the queue, makes lines of them, and writes many with one call.
//!
//! What cannot be written (a full disk) is held and tried again, a batch at most; meanwhile the queue fills, and what finds
//! no place in it is dropped and counted by the workers. So nothing waits for a disk but this thread.

use std::{
    io::ErrorKind,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::Receiver,
    },
};

use tokio::sync::watch;

use super::{AccessRecord, combined, json, output::Output};
use crate::{config::LogFormat, limits, metrics::Metrics, privacy::Privacy};

/// What comes through the queue.
pub(super) enum Message {
    Record(Arc<AccessRecord>),
    /// There is an order to look at.
    Wake,
}

/// Orders to open the file again, and how they ended.
pub(super) struct Orders {
    pub(super) given: AtomicU64,
    pub(super) done: watch::Sender<Done>,
}

/// Of all orders up to this number.
#[derive(Clone, Default)]
pub(super) struct Done {
    pub(super) number: u64,
    pub(super) failure: Option<String>,
}

pub(super) struct Writer {
    pub(super) messages: Receiver<Message>,
    pub(super) output: Output,
    pub(super) format: LogFormat,
    pub(super) privacy: Privacy,
    pub(super) metrics: Arc<Metrics>,
    pub(super) orders: Arc<Orders>,
    pub(super) batch: Batch,
}

/// Lines that are not written yet.
#[derive(Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    lines: u64,
    /// Of `bytes`.
    written: usize,
}

impl Writer {
    /// Until all who could send are gone.
    pub(super) fn run(mut self) {
        while let Ok(first) = self.messages.recv() {
            self.take(first);
            while self.batch.bytes.len() < limits::ACCESS_LOG_BATCH_BYTES {
                let Ok(next) = self.messages.try_recv() else { break };
                self.take(next);
            }
            self.follow_orders();
            if self.output.is_replaced() {
                self.reopen_moved();
            }
            self.write_batch();
        }
    }

    fn take(&mut self, message: Message) {
        let Message::Record(record) = message else { return };
        let out = &mut self.batch.bytes;
        match self.format {
            LogFormat::Json => json::write_line(out, &record, &self.privacy),
            LogFormat::Combined => combined::write_line(out, &record, &self.privacy, false),
            LogFormat::VhostCombined => combined::write_line(out, &record, &self.privacy, true),
        }
        self.batch.lines += 1;
    }

    fn write_batch(&mut self) {
        let mut is_failing = false;
        while let Err(error) = self.output.write(&self.batch.bytes, &mut self.batch.written) {
            if !is_failing {
                tracing::warn!(%error, "access log: it cannot be written; lines are held, then dropped and counted");
                is_failing = true;
            }
            let is_busy = error.kind() == ErrorKind::WouldBlock;
            let pause = if is_busy { limits::ACCESS_LOG_BUSY_PAUSE } else { limits::ACCESS_LOG_RETRY_EVERY };
            // Orders cut it short.
            std::thread::park_timeout(pause);
            self.follow_orders();
            if self.output.is_replaced() {
                self.reopen_moved();
            }
        }
        if is_failing {
            tracing::info!("access log: it is written again");
        }
        self.metrics.access_log_lines.increment(self.batch.lines);
        self.batch.clear();
    }

    fn follow_orders(&mut self) {
        let number = self.orders.given.load(Ordering::Acquire);
        if self.orders.done.borrow().number == number {
            return;
        }
        let failure = self.reopen().err();
        self.orders.done.send_replace(Done { number, failure });
    }

    fn reopen_moved(&mut self) {
        match self.reopen() {
            Ok(()) => {
                tracing::info!("access log: another file stands at its path and is written from now on")
            }
            Err(error) => tracing::warn!(
                error,
                "access log: another file stands at its path and cannot be opened; mend that and order it with SIGUSR1"
            ),
        }
    }

    fn reopen(&mut self) -> Result<(), String> {
        self.output.reopen().map_err(|error| error.to_string())?;
        self.batch.begin_line_again();
        Ok(())
    }
}

impl Batch {
    /// A line of which a part went elsewhere is written whole.
    fn begin_line_again(&mut self) {
        let whole = self.bytes[..self.written].iter().rposition(|byte| *byte == b'\n');
        self.written = whole.map_or(0, |end| end + 1);
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(2 * limits::ACCESS_LOG_BATCH_BYTES);
        (self.lines, self.written) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_cut_is_written_whole_elsewhere() {
        for (written, wanted) in [(0, 0), (2, 0), (4, 4), (6, 4), (8, 8)] {
            let mut batch = Batch { bytes: b"abc\ndef\n".to_vec(), lines: 2, written };
            batch.begin_line_again();
            assert_eq!(batch.written, wanted);
        }
    }
}
