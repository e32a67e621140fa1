//! What a connection is waiting for, and since when. One timer per connection looks here when it fires; nothing is armed
//! or disarmed per request.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use crate::{
    clock,
    io::SocketWatch,
    limits::{self, Deadlines},
};

/// Shared by a connection's stream, its exchanges and its timer; lives on one worker.
#[derive(Debug)]
pub struct ConnectionClock {
    deadlines: OwnDeadlines,
    opened: Instant,
    exchanges: Cell<u64>,
    open_exchanges: Cell<u32>,
    tunnels: Cell<u32>,
    travelling: Cell<u32>,
    /// Of the open exchanges those that wait for their client to go on with a body, without an answer so far.
    awaited: Cell<u32>,
    /// As far as the bytes of such bodies are worth the wait.
    worth_until: Cell<Instant>,
    /// The end of the last exchange, or the start of the connection.
    idle_since: Cell<Instant>,
    /// A request head has begun and not ended.
    head_since: Cell<Option<Instant>>,
    /// The client takes no bytes.
    write_blocked_since: Cell<Option<Instant>>,
    socket: SocketWatch,
    /// What the kernel had taken at the last look.
    taken_before: Cell<u64>,
    /// Bytes were written and may not be with the kernel yet.
    unflushed: Cell<bool>,
    /// A message has begun on the wire and not ended.
    mid_message: Cell<bool>,
    /// What serves the connection can be put away while nothing is under way.
    may_doze: Cell<bool>,
    upgrade_decision: Cell<Option<bool>>,
    /// The connection has had its share of exchanges or of time.
    had_enough: Cell<bool>,
    /// Requests given up since the start of the window, and that start.
    given_up: Cell<(u32, Instant)>,
    heads_too_large: Cell<u32>,
    abusive: Cell<bool>,
    /// It ended because its client stopped reading.
    cut_unread: Cell<bool>,
}

/// Those of the edge's limits in time that a connection asks for; every idle connection holds them.
#[derive(Debug, Clone, Copy)]
pub struct OwnDeadlines {
    pub handshake: Duration,
    pub header: Duration,
    pub idle: Duration,
    pub doze_after: Duration,
    pub write_stall: Duration,
    pub drain_patience: Duration,
    pub connection_age: Duration,
}

impl From<Deadlines> for OwnDeadlines {
    fn from(all: Deadlines) -> Self {
        let Deadlines { handshake, header, idle, doze_after, write_stall, .. } = all;
        let Deadlines { drain_patience, connection_age, .. } = all;
        Self { handshake, header, idle, doze_after, write_stall, drain_patience, connection_age }
    }
}

/// Which limit ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expired {
    /// Nothing in flight: end it politely.
    Idle,
    /// Nothing in flight for a moment: hold less meanwhile. Only where [`ConnectionClock::may_doze`] allowed it.
    Quiet,
    /// The head did not end in time.
    SlowHead,
    /// The client stopped reading.
    StalledRead,
}

impl Expired {
    /// Those that end a connection.
    pub const COUNTED: [Self; 3] = [Self::Idle, Self::SlowHead, Self::StalledRead];

    /// As the metrics call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Quiet => "quiet",
            Self::SlowHead => "slow_head",
            Self::StalledRead => "stalled_read",
        }
    }
}

impl ConnectionClock {
    /// For a connection whose transport sees to it by itself that its client takes what is sent.
    pub fn new(deadlines: Deadlines) -> Self {
        Self::over(SocketWatch::default(), deadlines)
    }

    /// For a connection over TCP.
    pub fn over(socket: SocketWatch, deadlines: Deadlines) -> Self {
        let now = clock::now();
        Self {
            deadlines: deadlines.into(),
            opened: now,
            exchanges: Cell::new(0),
            open_exchanges: Cell::new(0),
            tunnels: Cell::new(0),
            travelling: Cell::new(0),
            awaited: Cell::new(0),
            worth_until: Cell::new(now),
            idle_since: Cell::new(now),
            head_since: Cell::new(None),
            write_blocked_since: Cell::new(None),
            taken_before: Cell::new(socket.taken_bytes()),
            socket,
            unflushed: Cell::new(false),
            mid_message: Cell::new(false),
            may_doze: Cell::new(false),
            upgrade_decision: Cell::new(None),
            had_enough: Cell::new(false),
            given_up: Cell::new((0, now)),
            heads_too_large: Cell::new(0),
            abusive: Cell::new(false),
            cut_unread: Cell::new(false),
        }
    }

    /// Counts an exchange that begins; `false` says that the connection has had enough of them.
    pub fn exchange_begins(&self) -> bool {
        self.open_exchanges.set(self.open_exchanges.get() + 1);
        self.exchanges.set(self.exchanges.get() + 1);
        let now = clock::now();
        self.worth_until.set(now);
        let goes_on = self.exchanges.get() < limits::EXCHANGES_PER_CONNECTION_MAX
            && now.duration_since(self.opened) < self.deadlines.connection_age;
        self.had_enough.set(!goes_on);
        goes_on
    }

    /// Whether no exchange is to follow those that have begun.
    pub fn has_had_enough(&self) -> bool {
        self.had_enough.get()
    }

    /// The client gave a request up. One that does so again and again makes us work for nothing (CVE-2023-44487).
    pub fn request_given_up(&self) {
        self.request_given_up_at(clock::now());
    }

    fn request_given_up_at(&self, now: Instant) {
        let (count, since) = self.given_up.get();
        let (count, since) =
            if now.duration_since(since) < limits::GIVEN_UP_WINDOW { (count + 1, since) } else { (1, now) };
        self.given_up.set((count, since));
        if count >= limits::GIVEN_UP_MAX {
            self.abusive.set(true);
        }
    }

    /// A request's head was beyond the limit that the client was told.
    pub(super) fn head_too_large(&self) {
        let count = self.heads_too_large.get() + 1;
        self.heads_too_large.set(count);
        if count >= limits::HEADS_TOO_LARGE_MAX {
            self.abuse();
        }
    }

    /// The client's frames cost more than they are worth.
    pub(super) fn abuse(&self) {
        self.abusive.set(true);
    }

    /// Whether the client makes us work for nothing; then its connection ends.
    pub fn is_abusive(&self) -> bool {
        self.abusive.get()
    }

    /// A stream of the connection may become a tunnel.
    pub fn tunnel_begins(&self) {
        self.tunnels.set(self.tunnels.get() + 1);
        self.open_exchanges.set(self.open_exchanges.get() + 1);
    }

    pub fn tunnel_ends(&self) {
        self.tunnels.set(self.tunnels.get().saturating_sub(1));
        self.exchange_ends();
    }

    pub fn tunnels(&self) -> u32 {
        self.tunnels.get()
    }

    pub fn exchange_ends(&self) {
        self.open_exchanges.set(self.open_exchanges.get().saturating_sub(1));
        self.idle_since.set(clock::now());
    }

    /// An exchange begins to wait for the next piece of its request's body, or does so no longer.
    pub(crate) fn body_awaited(&self, begins: bool) {
        let awaited = self.awaited.get();
        self.awaited.set(if begins { awaited + 1 } else { awaited.saturating_sub(1) });
    }

    /// So many bytes of a request's body have come.
    pub(crate) fn body_came(&self, bytes: usize) {
        let worth = Duration::from_secs(bytes as u64) / limits::BODY_BYTES_PER_SECOND_WORTH;
        self.worth_until.set((self.worth_until.get() + worth).min(clock::now()));
    }

    /// Whether all that is under way are requests whose clients have more to send.
    pub fn is_in_bodies(&self) -> bool {
        self.open_exchanges.get() > 0 && self.awaited.get() == self.open_exchanges.get()
    }

    /// Since when nothing is under way, not even a head.
    pub fn quiet_since(&self) -> Option<Instant> {
        let is_quiet = self.open_exchanges.get() == 0 && self.head_since.get().is_none();
        is_quiet.then(|| self.idle_since.get())
    }

    /// Since when no exchange is under way, whatever else is; `None`: one is, or its answer is still being sent. One that only
    /// waits for its client is none for the time that the bytes of its body are not worth.
    pub fn without_exchange_since(&self) -> Option<Instant> {
        if !self.has_sent_all() {
            return None;
        }
        match self.open_exchanges.get() {
            0 => Some(self.idle_since.get()),
            _ => self.is_in_bodies().then(|| self.worth_until.get()),
        }
    }

    /// The rest of an answer is with the transport, which keeps it until the client has it.
    pub fn answer_travels(&self) {
        self.travelling.set(self.travelling.get() + 1);
    }

    /// Whether there is such an answer.
    pub fn answers_travel(&self) -> bool {
        self.travelling.get() > 0
    }

    pub fn answer_arrives(&self) {
        self.travelling.set(self.travelling.get().saturating_sub(1));
    }

    /// Whether a request's head has begun and not ended.
    pub fn is_in_head(&self) -> bool {
        self.head_since.get().is_some()
    }

    pub fn deadlines(&self) -> OwnDeadlines {
        self.deadlines
    }

    pub fn exchanges(&self) -> u64 {
        self.exchanges.get()
    }

    /// The answer to an upgrade request is known; the framing reader picks it up with the next bytes.
    pub fn decide_upgrade(&self, accepted: bool) {
        self.upgrade_decision.set(Some(accepted));
    }

    pub(super) fn take_upgrade_decision(&self) -> Option<bool> {
        self.upgrade_decision.take()
    }

    pub(super) fn bytes_read(&self) {
        self.write_blocked_since.set(None); // a client that speaks is alive
    }

    pub(super) fn head_open(&self, open: bool) {
        match (open, self.head_since.get()) {
            (true, None) => self.head_since.set(Some(clock::now())),
            (false, Some(_)) => self.head_since.set(None),
            _ => {}
        }
    }

    /// Whether a message is under way on the wire, as the framing reader has it.
    pub(super) fn mid_message(&self, begun: bool) {
        self.mid_message.set(begun);
    }

    /// Bytes were written that may not be with the kernel yet.
    pub(super) fn unflushed(&self) {
        self.unflushed.set(true);
    }

    /// Lets [`Expired::Quiet`] be told.
    pub(super) fn may_doze(&self, may: bool) {
        self.may_doze.set(may);
    }

    /// Bytes were written as far as there is room for them. Room in a buffer above the socket is none: only what the kernel
    /// takes tells that the client goes on.
    pub(super) fn wrote(&self, pending: bool) {
        let taken = self.socket.taken_bytes();
        let goes_on = taken != self.taken_before.replace(taken);
        match (pending, self.write_blocked_since.get()) {
            (true, None) => self.write_blocked_since.set(Some(clock::now())),
            (true, Some(_)) if goes_on => self.write_blocked_since.set(Some(clock::now())),
            (false, Some(_)) if goes_on => self.write_blocked_since.set(None),
            _ => {}
        }
    }

    /// Whether the kernel has all that there was to write.
    pub(super) fn has_sent_all(&self) -> bool {
        !self.answers_travel() && !self.unflushed.get() && self.write_blocked_since.get().is_none()
    }

    /// The kernel has all that was written.
    pub(super) fn flushed(&self) {
        self.write_blocked_since.set(None);
        self.unflushed.set(false);
    }

    /// A limit has run out: of a client that reads nothing the kernel is not to keep anything either.
    pub(super) fn expired(&self, expired: Expired) {
        if expired == Expired::StalledRead {
            self.cut_unread.set(true);
            self.socket.reset_when_dropped();
        }
    }

    /// Whether the connection was ended because its client stopped reading.
    pub(crate) fn was_cut_unread(&self) -> bool {
        self.cut_unread.get()
    }

    /// The limit that has run out at `now`, or the earliest time at which one can.
    ///
    /// To be asked after the connection has been polled: bytes that were waiting must count.
    ///
    /// # Errors
    /// The limit that has run out.
    pub fn check(&self, now: Instant) -> Result<Option<Instant>, Expired> {
        let mut earliest = None;
        for (deadline, expired) in self.running().into_iter().flatten() {
            if deadline <= now {
                return Err(expired);
            }
            earliest = Some(earliest.map_or(deadline, |earliest: Instant| earliest.min(deadline)));
        }
        Ok(earliest)
    }

    /// The next time at which a limit can run out.
    pub fn earliest(&self) -> Option<Instant> {
        self.running().into_iter().flatten().map(|(deadline, _)| deadline).min()
    }

    fn can_doze(&self) -> bool {
        self.may_doze.get()
            && !self.mid_message.get()
            && !self.unflushed.get()
            && self.deadlines.doze_after < self.deadlines.idle
    }

    fn running(&self) -> [Option<(Instant, Expired)>; 2] {
        let quiet = self.open_exchanges.get() == 0;
        let waiting = quiet.then(|| match self.head_since.get() {
            Some(since) => (since + self.deadlines.header, Expired::SlowHead),
            None if self.can_doze() => (self.idle_since.get() + self.deadlines.doze_after, Expired::Quiet),
            None => (self.idle_since.get() + self.deadlines.idle, Expired::Idle),
        });
        let stalled = self.write_blocked_since.get();
        [waiting, stalled.map(|since| (since + self.deadlines.write_stall, Expired::StalledRead))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_runs_out_on_its_own() {
        let clock = ConnectionClock::new(Deadlines::default());
        let start = clock.opened;
        assert!(clock.check(start).is_ok());
        assert_eq!(clock.check(start + limits::IDLE_DEADLINE), Err(Expired::Idle));

        clock.head_open(true);
        assert_eq!(clock.check(clock::now() + limits::HEADER_DEADLINE), Err(Expired::SlowHead));

        clock.head_open(false);
        assert!(clock.exchange_begins());
        assert!(clock.check(start + 10 * limits::IDLE_DEADLINE).is_ok(), "an exchange may take its time");
        clock.wrote(true);
        assert_eq!(clock.check(clock::now() + limits::WRITE_STALL_DEADLINE), Err(Expired::StalledRead));
        clock.flushed();
        clock.exchange_ends();
        assert_eq!(clock.check(clock::now() + limits::IDLE_DEADLINE), Err(Expired::Idle));
    }

    #[test]
    fn room_in_a_buffer_is_no_sign_of_a_client() {
        let socket = SocketWatch::default();
        let clock = ConnectionClock::over(socket.clone(), Deadlines::default());
        assert!(clock.exchange_begins());
        let is_stalled = || clock.check(clock::now() + limits::WRITE_STALL_DEADLINE).is_err();
        clock.wrote(false);
        assert!(!is_stalled());
        clock.wrote(true);
        clock.wrote(false);
        assert!(is_stalled(), "TLS took it and the kernel did not");
        socket.add_taken(1);
        clock.wrote(false);
        assert!(!is_stalled());

        clock.wrote(true);
        let since = clock.write_blocked_since.get();
        while clock::now() == since.unwrap() {}
        clock.wrote(true);
        assert_eq!(clock.write_blocked_since.get(), since);
        socket.add_taken(1);
        clock.wrote(true);
        assert!(clock.write_blocked_since.get() > since, "some of it went, and it counts anew");
        clock.flushed();
        assert!(!is_stalled());
    }

    #[test]
    fn a_connection_dozes_only_when_nothing_at_all_is_under_way() {
        let clock = ConnectionClock::new(Deadlines::default());
        let soon = clock.opened + limits::DOZE_AFTER;
        assert!(clock.check(soon).is_ok(), "not asked for");
        clock.may_doze(true);
        assert_eq!(clock.check(soon), Err(Expired::Quiet));
        clock.mid_message(true);
        assert!(clock.check(soon).is_ok());
        clock.mid_message(false);
        clock.unflushed();
        assert!(clock.check(soon).is_ok());
        clock.flushed();
        assert!(clock.exchange_begins());
        assert!(clock.check(soon + limits::IDLE_DEADLINE).is_ok());
        clock.exchange_ends();
        assert_eq!(clock.check(clock::now() + limits::DOZE_AFTER), Err(Expired::Quiet));
        clock.may_doze(false);
        assert_eq!(clock.check(clock::now() + limits::IDLE_DEADLINE), Err(Expired::Idle));
    }

    #[test]
    fn a_client_that_gives_up_request_after_request_is_abusive() {
        let clock = ConnectionClock::new(Deadlines::default());
        for _ in 1..limits::GIVEN_UP_MAX {
            clock.request_given_up();
        }
        assert!(!clock.is_abusive());
        clock.request_given_up();
        assert!(clock.is_abusive());
    }

    #[test]
    fn a_client_whose_heads_are_too_large_again_and_again_is_abusive() {
        let clock = ConnectionClock::new(Deadlines::default());
        (1..limits::HEADS_TOO_LARGE_MAX).for_each(|_| clock.head_too_large());
        assert!(!clock.is_abusive());
        clock.head_too_large();
        assert!(clock.is_abusive());
    }

    #[test]
    fn what_was_given_up_before_the_window_is_forgotten() {
        let clock = ConnectionClock::new(Deadlines::default());
        let start = clock.opened;
        let give_up = |times: u32, at: Instant| (0..times).for_each(|_| clock.request_given_up_at(at));
        give_up(limits::GIVEN_UP_MAX - 1, start);
        give_up(limits::GIVEN_UP_MAX - 1, start + limits::GIVEN_UP_WINDOW);
        assert!(!clock.is_abusive(), "a new window has begun");
        give_up(1, start + 2 * limits::GIVEN_UP_WINDOW - Duration::from_millis(1));
        assert!(clock.is_abusive(), "the window is as long as it says");
    }

    #[test]
    fn a_connection_has_had_enough_after_many_exchanges() {
        let clock = ConnectionClock::new(Deadlines::default());
        for _ in 1..limits::EXCHANGES_PER_CONNECTION_MAX {
            assert!(clock.exchange_begins());
            clock.exchange_ends();
        }
        assert!(!clock.has_had_enough());
        assert!(!clock.exchange_begins());
        assert!(clock.has_had_enough());
    }
}
