//! Figures of usage on their way to the control plane, for invoices.
//!
//! A thread of its own takes them from the workers' counters every few seconds and at the turn of each hour, keeps them on
//! disk, and reports them over the stream while there is one. What a killed process had on disk its successor reports; what
//! it had not, some seconds of figures, is lost.

mod series;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use portico_api::distribution::{UsageAck, UsageReport};
use tokio::sync::mpsc;

use super::files::{self, FileError};
use super::limits;
use super::metrics::ControlMetrics;
use crate::clock;
use crate::live::Live;
use series::Series;

const HOUR_MS: u64 = 3_600_000;

/// The control stream's end.
#[derive(Debug)]
pub(super) struct UsageReporter {
    events: SyncSender<Event>,
    is_connected: Arc<AtomicBool>,
    reports: mpsc::Receiver<UsageReport>,
}

/// Ends the thread, once what was used last is on disk and, if there is a stream, told.
#[derive(Debug)]
pub struct UsageEnd {
    events: SyncSender<Event>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
enum Event {
    /// There is a stream, or there is none any more: the flag says which.
    Stream,
    Acknowledged(UsageAck),
    Finish,
}

impl UsageReporter {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`FileError`], when the folder cannot be used.
    pub(super) fn start(
        folder: &Path,
        live: Arc<Live>,
        metrics: &ControlMetrics,
    ) -> Result<(Self, UsageEnd), FileError> {
        files::private_folder(folder)?;
        let (events, received) = sync_channel(limits::USAGE_EVENTS_QUEUE);
        let is_connected = Arc::<AtomicBool>::default();
        let (reports_sender, reports) = mpsc::channel(limits::USAGE_REPORTS_QUEUE);
        let now = clock::now();
        let keeper = Keeper {
            live,
            folder: folder.to_owned(),
            own: Series::begin(folder)?,
            adopted: Vec::new(),
            reports: reports_sender,
            metrics: metrics.clone(),
            is_connected: Arc::clone(&is_connected),
            hour: hour(),
            take_at: now,
            save_at: now,
            report_at: now,
            sent_at: None,
        };
        let failed =
            |source| FileError::Io { action: "start the thread for", path: folder.to_owned(), source };
        let thread = std::thread::Builder::new()
            .name("usage".to_owned())
            .spawn(move || keeper.run(&received))
            .map_err(failed)?;
        let end = UsageEnd { events: events.clone(), thread };
        Ok((Self { events, is_connected, reports }, end))
    }

    /// There is a stream, or there is none any more.
    pub(super) fn connected(&self, is_connected: bool) {
        self.is_connected.store(is_connected, Ordering::Relaxed);
        // Full: the thread looks at the flag when it comes to what waits.
        let _ = self.events.try_send(Event::Stream);
    }

    pub(super) fn acknowledged(&self, ack: UsageAck) {
        // Full: the report is sent again, and acknowledged again.
        let _ = self.events.try_send(Event::Acknowledged(ack));
    }

    /// The next report to send. Cancel-safe.
    pub(super) async fn next(&mut self) -> UsageReport {
        match self.reports.recv().await {
            Some(report) => report,
            None => std::future::pending().await,
        }
    }
}

impl UsageEnd {
    /// Call it while the stream still runs and no worker does.
    pub async fn finish(self) {
        let joined = tokio::task::spawn_blocking(move || {
            let _ = self.events.send(Event::Finish);
            self.thread.join()
        });
        // Should the disk hang, the process ends all the same.
        let _ = tokio::time::timeout(2 * limits::USAGE_FINISH_DEADLINE, joined).await;
    }
}

/// What the thread has.
struct Keeper {
    live: Arc<Live>,
    folder: PathBuf,
    own: Series,
    /// Of processes that have ended.
    adopted: Vec<Series>,
    reports: mpsc::Sender<UsageReport>,
    metrics: ControlMetrics,
    is_connected: Arc<AtomicBool>,
    /// The one that what is taken next belongs to.
    hour: u64,
    take_at: Instant,
    save_at: Instant,
    report_at: Instant,
    /// When reports were sent that have no answer yet.
    sent_at: Option<Instant>,
}

impl Keeper {
    fn run(mut self, events: &Receiver<Event>) {
        let mut ends_at = None;
        loop {
            let next = ends_at.unwrap_or_else(|| self.next_wake());
            match events.recv_timeout(next.saturating_duration_since(clock::now())) {
                Ok(Event::Stream) => {
                    self.sent_at = None;
                    self.report_at = clock::now();
                }
                Ok(Event::Acknowledged(ack)) => self.acknowledged(&ack),
                Ok(Event::Finish) => {
                    ends_at = Some(clock::now() + limits::USAGE_FINISH_DEADLINE);
                    (self.take_at, self.report_at) = (clock::now(), clock::now());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => ends_at = Some(clock::now()),
            }
            let now = clock::now();
            if now >= self.take_at {
                self.take();
            }
            if now >= self.save_at {
                self.save();
            }
            if self.is_connected() && self.is_report_due(now) {
                self.report();
            }
            let is_told = self.own.is_empty() && self.adopted.is_empty();
            if ends_at.is_some_and(|at| now >= at || is_told || !self.is_connected()) {
                break;
            }
        }
        self.end();
    }

    fn end(mut self) {
        self.take();
        self.save_at = clock::now();
        self.save();
        if self.own.is_empty() {
            self.own.end();
        }
    }

    fn is_connected(&self) -> bool {
        self.is_connected.load(Ordering::Relaxed)
    }

    fn next_wake(&self) -> Instant {
        let sent = self.sent_at.map(|at| at + limits::USAGE_ANSWER_DEADLINE);
        let report = if self.is_connected() { Some(sent.unwrap_or(self.report_at)) } else { None };
        report.map_or(self.take_at, |report| report.min(self.take_at))
    }

    fn is_report_due(&self, now: Instant) -> bool {
        match self.sent_at {
            Some(at) => now >= at + limits::USAGE_ANSWER_DEADLINE,
            None => now >= self.report_at,
        }
    }

    fn take(&mut self) {
        for (host, counts) in self.live.used.take() {
            self.own.add(&host, self.hour, counts);
        }
        self.hour = hour();
        if self.own.shorten(limits::USAGE_ROWS_KEPT_MAX) {
            tracing::warn!(
                "the control plane is away for so long that the oldest figures of usage lose their hour"
            );
        }
        let to_next_hour = Duration::from_millis(HOUR_MS - unix_ms() % HOUR_MS);
        self.take_at = clock::now() + limits::USAGE_TAKEN_EVERY.min(to_next_hour);
    }

    /// False: the disk does not take it.
    fn save(&mut self) -> bool {
        let began = clock::now();
        let saved = [&mut self.own].into_iter().chain(&mut self.adopted).try_for_each(Series::save);
        let now = clock::now();
        self.save_at = now + now.duration_since(began) * limits::USAGE_SAVING_SHARE;
        if let Err(error) = &saved {
            self.metrics.usage_errors.increment(1);
            self.save_at = now + limits::USAGE_TAKEN_EVERY;
            tracing::error!(%error, "figures of usage cannot be written; they are kept in memory and not reported");
        }
        saved.is_ok()
    }

    fn report(&mut self) {
        if self.adopted.is_empty() {
            match Series::left_behind(&self.folder) {
                Ok(found) => self.adopted = found,
                Err(error) => tracing::error!(%error, "figures of usage of earlier processes cannot be read"),
            }
        }
        let now = clock::now();
        self.report_at = now + limits::USAGE_REPORTED_EVERY;
        self.take();
        let all = || [&self.own].into_iter().chain(&self.adopted);
        if all().all(Series::is_empty) {
            self.adopted.drain(..).for_each(Series::end);
            return;
        }
        let reports: Vec<UsageReport> = [&mut self.own]
            .into_iter()
            .chain(&mut self.adopted)
            .filter_map(Series::report)
            .cloned()
            .collect();
        if !self.save() {
            return;
        }
        for report in reports.into_iter().take(limits::USAGE_REPORTS_QUEUE) {
            // Full: it is sent again when no answer comes.
            let _ = self.reports.try_send(report);
        }
        self.sent_at = Some(now);
    }

    fn acknowledged(&mut self, ack: &UsageAck) {
        for series in [&mut self.own].into_iter().chain(&mut self.adopted) {
            series.acknowledged(&ack.series, ack.number);
        }
        self.metrics.usage_reports.increment(1);
        let (told, left) = std::mem::take(&mut self.adopted).into_iter().partition(Series::is_empty);
        self.adopted = left;
        Vec::into_iter(told).for_each(Series::end);
        let mut all = [&self.own].into_iter().chain(&self.adopted);
        if !all.any(Series::has_pending) {
            self.sent_at = None;
            // The rest of what did not fit into one report goes at once.
            if self.own.len() >= portico_api::distribution::USAGE_ROWS_MAX || !self.adopted.is_empty() {
                self.report_at = clock::now();
            }
        }
    }
}

fn unix_ms() -> u64 {
    clock::unix_ms().unsigned_abs()
}

fn hour() -> u64 {
    unix_ms() / HOUR_MS
}

#[cfg(test)]
mod tests {
    use portico_cert_store::CellKeys;

    use super::*;

    /// A disk that hangs holds the thread up; the stream goes on.
    #[test]
    fn what_waits_for_the_thread_is_bounded_and_the_stream_never_waits() {
        let (events, received) = sync_channel(limits::USAGE_EVENTS_QUEUE);
        let (_, reports) = mpsc::channel(1);
        let reporter = UsageReporter { events, is_connected: Arc::default(), reports };
        for _ in 0..3 * limits::USAGE_EVENTS_QUEUE {
            reporter.acknowledged(UsageAck::default());
        }
        reporter.connected(true);
        assert_eq!(received.try_iter().count(), limits::USAGE_EVENTS_QUEUE);
        assert!(reporter.is_connected.load(Ordering::Relaxed), "told all the same");
    }

    /// Two more processes have left something than reports may wait for the stream.
    #[tokio::test]
    async fn reports_that_wait_for_the_stream_are_bounded() {
        let temporary = tempfile::tempdir().unwrap();
        // It has the process's own mode, and others may read it.
        let folder = temporary.path().join("usage");
        files::private_folder(&folder).unwrap();
        for _ in 0..limits::USAGE_REPORTS_QUEUE + 2 {
            Series::begin(&folder).unwrap().leave_one_row();
        }
        let (live, _publisher) = Live::new(1, 1 << 20, CellKeys::new());
        let metrics = ControlMetrics::new();
        let (mut reporter, end) = UsageReporter::start(&folder, live, &metrics).unwrap();
        reporter.connected(true);
        for _ in 0..limits::USAGE_REPORTS_QUEUE {
            reporter.next().await;
        }
        end.finish().await;
        assert!(reporter.reports.recv().await.is_none(), "one more was sent without an answer");
    }
}
