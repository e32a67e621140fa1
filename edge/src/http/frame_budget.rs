//! What the frames of an HTTP/2 client may cost (promise P14).
//!
//! A frame that brings neither a request nor body bytes still has to be read, looked at and often answered: a flood of
//! SETTINGS, PING or empty DATA (CVE-2019-9512, 9515, 9518) keeps a worker busy for nothing. Each such frame costs one
//! credit; time, requests and the answer bytes that are sent bring credits back. Only the nine bytes of each frame's
//! header are looked at, so that the bound holds whatever the protocol's library makes of the rest.

use std::{
    cell::Cell,
    rc::Rc,
    time::{Duration, Instant},
};

use crate::limits;

/// Follows one connection's bytes.
#[derive(Debug, Clone)]
pub(super) struct FrameBudget {
    credit: u32,
    refilled: Instant,
    /// Sent bytes that have not made a credit yet.
    sent: usize,
    /// Bytes to pass over: the connection preface, then payloads.
    skip: usize,
    head: [u8; FRAME_HEAD_BYTES],
    head_filled: usize,
    /// A request's head ends with the frame under way.
    ends_head: bool,
    /// Of the head under way, on the wire.
    head_bytes: usize,
    heads: UndecidedHeads,
    /// Where an answer to a PING stands whole in the bytes that came last.
    pong_at: Option<usize>,
}

/// Requests' heads that were read and of which the library has not made requests yet. It decodes all that it can read before
/// it gives the first one away; so it is given some at a time, and finds nothing more to read in between. They count by their
/// bytes on the wire, too: to decode large ones takes a worker's time from all other connections.
#[derive(Debug, Clone, Default)]
pub(super) struct UndecidedHeads(Rc<Cell<Undecided>>);

#[derive(Debug, Clone, Copy, Default)]
struct Undecided {
    heads: usize,
    bytes: usize,
}

impl UndecidedHeads {
    /// Nothing more is to be read before some are requests.
    pub(super) fn are_enough(&self) -> bool {
        let Undecided { heads, bytes } = self.0.get();
        heads >= limits::H2_HEADS_AT_ONCE || bytes >= limits::H2_HEAD_BYTES_AT_ONCE
    }

    /// One is a request now; nobody says which, so it counts as large as the others.
    pub(super) fn go(&self) {
        let Undecided { heads, bytes } = self.0.get();
        let left = heads.saturating_sub(1);
        self.0.set(Undecided { heads: left, bytes: bytes * left / heads.max(1) });
    }

    /// The library has given away all requests that it had; what else were heads has become none.
    pub(super) fn all_go(&self) {
        self.0.set(Undecided::default());
    }

    fn come(&self, bytes: usize) {
        let before = self.0.get();
        self.0.set(Undecided { heads: before.heads + 1, bytes: before.bytes + bytes });
    }
}

/// More frames than the client has credit for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many frames for nothing")]
pub(super) struct Flood;

/// RFC 9113 section 4.1.
const FRAME_HEAD_BYTES: usize = 9;
/// RFC 9113 section 3.4.
const PREFACE_BYTES: usize = 24;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
/// RFC 9113 section 6.7.
const PING: u8 = 6;
const PING_BYTES: usize = 8;
const ACK: u8 = 1;

impl FrameBudget {
    pub(super) fn new(now: Instant, heads: UndecidedHeads) -> Self {
        Self {
            credit: limits::H2_CONTROL_FRAMES_BURST,
            refilled: now,
            sent: 0,
            skip: PREFACE_BYTES,
            head: [0; FRAME_HEAD_BYTES],
            head_filled: 0,
            ends_head: false,
            head_bytes: 0,
            heads,
            pong_at: None,
        }
    }

    /// Whether the bytes so far end with a whole frame.
    pub(super) fn is_between_frames(&self) -> bool {
        self.skip == 0 && self.head_filled == 0
    }

    pub(super) fn heads(&self) -> &UndecidedHeads {
        &self.heads
    }

    pub(super) fn pong_at(&self) -> Option<usize> {
        self.pong_at
    }

    /// Answer bytes went out.
    pub(super) fn wrote(&mut self, bytes: usize) {
        let per_credit = limits::H2_BYTES_PER_CONTROL_FRAME as usize;
        self.sent += bytes;
        self.earn(u32::try_from(self.sent / per_credit).unwrap_or(u32::MAX));
        self.sent %= per_credit;
    }

    /// Takes the bytes that came, as long as the heads in them have room ([`UndecidedHeads`]); says how many.
    ///
    /// # Errors
    /// [`Flood`]: the connection is to end.
    pub(super) fn feed(&mut self, mut bytes: &[u8], now: Instant) -> Result<usize, Flood> {
        let all = bytes.len();
        self.pong_at = None;
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            if self.skip == 0 && std::mem::take(&mut self.ends_head) {
                self.heads.come(std::mem::take(&mut self.head_bytes));
                if self.heads.are_enough() {
                    break;
                }
            }
            let taken = (FRAME_HEAD_BYTES - self.head_filled).min(bytes.len());
            self.head[self.head_filled..self.head_filled + taken].copy_from_slice(&bytes[..taken]);
            self.head_filled += taken;
            bytes = &bytes[taken..];
            if self.head_filled == FRAME_HEAD_BYTES {
                self.head_filled = 0;
                self.frame(now)?;
                let is_pong = self.head[3] == PING && self.head[4] & ACK != 0 && self.skip == PING_BYTES;
                if is_pong && taken == FRAME_HEAD_BYTES && bytes.len() >= PING_BYTES {
                    self.pong_at = Some(all - bytes.len() - FRAME_HEAD_BYTES);
                }
            }
        }
        Ok(all - bytes.len())
    }

    fn frame(&mut self, now: Instant) -> Result<(), Flood> {
        let [high, middle, low, kind, ..] = self.head;
        self.skip = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        if matches!(kind, HEADERS | CONTINUATION) {
            self.ends_head = self.head[4] & END_HEADERS != 0;
            self.head_bytes += self.skip;
        }
        match kind {
            HEADERS => self.earn(limits::H2_CONTROL_FRAMES_PER_REQUEST),
            DATA if self.skip > 0 => {}
            _ => {
                if self.credit == 0 {
                    self.refill(now);
                }
                self.credit = self.credit.checked_sub(1).ok_or(Flood)?;
            }
        }
        Ok(())
    }

    fn refill(&mut self, now: Instant) {
        const EACH: Duration = Duration::from_millis(1000 / limits::H2_CONTROL_FRAMES_PER_SECOND as u64);
        let waited = now.duration_since(self.refilled);
        self.earn(u32::try_from(waited.as_millis() / EACH.as_millis()).unwrap_or(u32::MAX));
        self.refilled = now;
    }

    fn earn(&mut self, credits: u32) {
        self.credit = self.credit.saturating_add(credits).min(limits::H2_CONTROL_FRAMES_BURST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const PING_FRAME: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];

    fn begun(now: Instant) -> FrameBudget {
        let mut budget = FrameBudget::new(now, UndecidedHeads::default());
        assert!(budget.feed(&[0; PREFACE_BYTES], now).is_ok());
        budget
    }

    #[test]
    fn a_flood_ends_at_the_bound_however_its_bytes_come() {
        let now = clock::now();
        for piece in [1, 7, 17, 1000] {
            let mut budget = begun(now);
            let bytes = PING_FRAME.repeat(limits::H2_CONTROL_FRAMES_BURST as usize);
            assert!(bytes.chunks(piece).all(|bytes| budget.feed(bytes, now).is_ok()), "{piece}");
            assert_eq!(budget.feed(&PING_FRAME, now), Err(Flood), "{piece}");
        }
    }

    #[test]
    fn time_requests_and_answers_pay() {
        let now = clock::now();
        let mut budget = begun(now);
        let bytes = PING_FRAME.repeat(limits::H2_CONTROL_FRAMES_BURST as usize);
        assert!(budget.feed(&bytes, now).is_ok());
        let later = now + Duration::from_secs(1);
        assert!(
            budget.feed(&PING_FRAME.repeat(limits::H2_CONTROL_FRAMES_PER_SECOND as usize), later).is_ok()
        );
        assert_eq!(budget.clone().feed(&PING_FRAME, later), Err(Flood));

        let headers = [0, 0, 2, HEADERS, 5, 0, 0, 0, 1, 0x82, 0x84];
        assert!(budget.feed(&headers, later).is_ok());
        assert!(
            budget.feed(&PING_FRAME.repeat(limits::H2_CONTROL_FRAMES_PER_REQUEST as usize), later).is_ok()
        );
        budget.wrote(limits::H2_BYTES_PER_CONTROL_FRAME as usize - 1);
        assert_eq!(budget.clone().feed(&PING_FRAME, later), Err(Flood));
        budget.wrote(1);
        assert!(budget.feed(&PING_FRAME, later).is_ok());
        assert_eq!(budget.clone().feed(&PING_FRAME, later), Err(Flood));
    }

    #[test]
    fn some_heads_are_taken_at_once_wherever_they_end() {
        let now = clock::now();
        let whole = [0, 0, 1, HEADERS, END_HEADERS, 0, 0, 0, 1, 0x82];
        let in_two = [
            &[0, 0, 1, HEADERS, 0, 0, 0, 0, 3, 0x82][..],
            &[0, 0, 1, CONTINUATION, END_HEADERS, 0, 0, 0, 3, 0x84],
        ];
        let empty = [0, 0, 0, HEADERS, END_HEADERS, 0, 0, 0, 5];
        for head in [&whole[..], &in_two.concat(), &empty] {
            let bytes = [head.repeat(limits::H2_HEADS_AT_ONCE + 1), PING_FRAME.to_vec()].concat();
            let mut budget = begun(now);
            let taken = budget.feed(&bytes, now).unwrap();
            assert_eq!(taken, head.len() * limits::H2_HEADS_AT_ONCE);
            assert!(budget.heads.are_enough());
            budget.heads.go();
            budget.heads.go();
            assert_eq!(budget.feed(&bytes[taken..], now), Ok(bytes.len() - taken));
            budget.heads.all_go();
            assert!(!budget.heads.are_enough());
        }
    }

    #[test]
    fn large_heads_are_taken_one_at_a_time_and_small_ones_by_what_they_have_together() {
        let now = clock::now();
        let head = |bytes: usize| {
            let [.., high, middle, low] = bytes.to_be_bytes();
            [&[high, middle, low, HEADERS, END_HEADERS, 0, 0, 0, 1][..], &vec![0x82; bytes]].concat()
        };
        let bound = limits::H2_HEAD_BYTES_AT_ONCE;
        let taken_of = |bytes: usize| {
            let mut budget = begun(now);
            let taken = budget.feed(&head(bytes).repeat(limits::H2_HEADS_AT_ONCE), now).unwrap();
            (taken / head(bytes).len(), budget)
        };
        assert_eq!(taken_of(bound).0, 1);
        assert_eq!(taken_of(bound / limits::H2_HEADS_AT_ONCE).0, limits::H2_HEADS_AT_ONCE);
        let (taken, mut budget) = taken_of(bound / 4);
        assert_eq!(taken, 4);
        budget.heads.go();
        assert!(!budget.heads.are_enough());
        assert_eq!(budget.feed(&head(bound / 4).repeat(2), now), Ok(head(bound / 4).len()));
        // What has no end yet is not held against anybody: the library bounds it.
        let open = [[0, 0x40, 0, HEADERS, 0, 0, 0, 0, 1].to_vec(), vec![0x82; 0x4000]].concat();
        budget.heads.all_go();
        assert_eq!(budget.feed(&open, now), Ok(open.len()));
        assert!(!budget.heads.are_enough());
    }

    #[test]
    fn a_body_costs_nothing_and_empty_pieces_do() {
        let now = clock::now();
        let mut budget = begun(now);
        let full = [0, 0, 1, DATA, 0, 0, 0, 0, 1, 42].repeat(100_000);
        assert!(budget.feed(&full, now).is_ok());
        let empty = [0, 0, 0, DATA, 0, 0, 0, 0, 1].repeat(limits::H2_CONTROL_FRAMES_BURST as usize + 1);
        assert_eq!(budget.feed(&empty, now), Err(Flood));
    }
}
