//! Bounds on the conversation with the control plane.

use std::time::Duration;

/// The limits in time, as one edge uses them: the constants below, unless a test wants to see them run out.
#[derive(Debug, Clone, Copy)]
pub struct ControlDeadlines {
    pub control_connect: Duration,
    pub control_call: Duration,
    pub control_keepalive: Duration,
}

impl Default for ControlDeadlines {
    fn default() -> Self {
        Self { control_connect: CONNECT_DEADLINE, control_call: CALL_DEADLINE, control_keepalive: KEEPALIVE }
    }
}

/// TCP, TLS and the HTTP/2 preface.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// One call that is not the stream.
pub const CALL_DEADLINE: Duration = Duration::from_secs(15);
/// A control plane that does not answer a ping for this long is gone.
pub const KEEPALIVE: Duration = Duration::from_secs(10);
/// Full jitter: the wait before attempt n is uniform in 0..min(max, min * 2^n).
pub const BACKOFF_MIN: Duration = Duration::from_millis(250);
pub const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A stream that lived this long was a good one: the next attempt starts from the shortest wait.
pub const GOOD_STREAM: Duration = Duration::from_secs(10);

/// One message from the control plane: a snapshot chunk is 1 MiB, a delta about 4 MiB and one large resource.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Our messages that the control plane has not taken yet.
pub const OUTGOING_QUEUE: usize = 256;
/// Batches that wait for the one under way; the control plane sends one at a time.
pub const BATCHES_QUEUE: usize = 4;
pub const STATUS_EVERY: Duration = Duration::from_secs(5);
/// Expired challenges are dropped this often.
pub const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Nacks in one ack; more are logged and the rest is cut, so that the ack fits into one message.
pub const NACKS_MAX: usize = 10_000;
/// Kept resources that cannot be served, named in the log when an edge starts; of the rest it says how many they are.
pub const UNSERVED_NAMED_MAX: usize = 100;
/// A nack's text, bytes.
pub const NACK_TEXT_BYTES_MAX: usize = 300;

/// How often figures of usage are written to the disk, so that a crash loses no more than these; at the turn of an hour too.
pub const USAGE_TAKEN_EVERY: Duration = Duration::from_secs(10);
/// Writing them takes no more than one part in this many of the time, however many they are.
pub const USAGE_SAVING_SHARE: u32 = 50;
/// How often they are reported.
pub const USAGE_REPORTED_EVERY: Duration = Duration::from_secs(60);
/// A report without an answer is sent again after this.
pub const USAGE_ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// Reports that the stream has not taken yet.
pub const USAGE_REPORTS_QUEUE: usize = 16;
/// Acknowledgements that wait for the thread that keeps the figures; beyond them they are lost, and the reports told again.
pub const USAGE_EVENTS_QUEUE: usize = 64;
/// No more of a file with figures is read; a control plane that was away for long leaves less ([`USAGE_ROWS_KEPT_MAX`]).
pub const USAGE_FILE_BYTES_MAX: u64 = 256 << 20;
/// Figures (of one domain in one hour) that wait while the control plane is away; beyond them the oldest hours become one.
pub const USAGE_ROWS_KEPT_MAX: usize = 500_000;
/// How long a process that ends waits for the answer to its last report; without one its successor sends it again.
pub const USAGE_FINISH_DEADLINE: Duration = Duration::from_secs(2);

/// Epochs whose cell keys are kept.
pub const CELL_KEY_EPOCHS_MAX: usize = 16;
/// A file of a sealed cell key; it has about 130 bytes.
pub const CELL_KEY_FILE_BYTES_MAX: u64 = 4096;
/// Requests for keys of this edge's own that wait for the disk; the control plane asks for as many as it has orders under way.
pub const KEY_REQUESTS_WAITING_MAX: usize = 1000;
/// Keys of this edge's own whose certificates have not come; beyond, those that were asked for first are deleted. An order that
/// fails leaves one behind; the CA lets far fewer be under way.
pub const OWN_KEYS_WAITING_MAX: usize = 10_000;
/// How long such a key is kept. An order may wait for weeks on a CA's limits; the control plane forgets one that is over after as
/// long.
pub const OWN_KEY_WAITS_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// A key that nothing refers to when the edge starts is kept for so long behind the first batch that was saved: last-good files that
/// were damaged leave its credential to be sent again, which takes minutes.
pub const OWN_KEY_UNKNOWN_MAX: Duration = Duration::from_secs(3600);
/// A file of such a key; P-256 has 138 bytes.
pub const OWN_KEY_FILE_BYTES_MAX: u64 = 4096;
/// The identity file.
pub const IDENTITY_FILE_BYTES_MAX: u64 = 256 * 1024;
/// Certificates in what the control plane gives as identity or trust.
pub const IDENTITY_CHAIN_MAX: usize = 4;
/// Batches that were published but could not be written, bytes.
pub const UNSAVED_BYTES_MAX: usize = 64 << 20;

/// A stream that brings nothing for this long has told all that there was when it began.
pub const CAUGHT_UP_AFTER: Duration = Duration::from_millis(50);
