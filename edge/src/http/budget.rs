//! What one client's connection may make us hold (promise P14): answers that it does not take, and the heads of requests
//! that it has open at once.
//!
//! An answer's bytes count from the moment they are read from its origin until the protocol has sent or dropped them. Beyond
//! the bound nothing more is read for the connection's answers: the rest waits in the kernel, and then at the origin. An
//! answer of which nothing is held may always have its next piece, so that one which its client leaves alone holds up no
//! other. HTTP/1.1 has one exchange at a time, and its buffers are the bound.
//!
//! Kept answers and those of static routes do not count: all clients share one copy.

use std::{
    cell::Cell,
    rc::Rc,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::request::Parts;

use crate::limits;

/// Of one connection.
#[derive(Debug, Default)]
pub struct ConnectionBudget {
    heads: Rc<Cell<usize>>,
    answers: Arc<Answers>,
}

/// Of all answers of a connection. Only its worker's thread counts here; what the protocols' libraries hold must be `Send`.
#[derive(Debug, Default)]
struct Answers {
    held: AtomicUsize,
    some_wait: AtomicBool,
    waiting: Mutex<Vec<Weak<AnswerShare>>>,
}

/// Of one answer.
#[derive(Debug)]
pub(crate) struct AnswerShare {
    connection: Arc<Answers>,
    /// Read from the origin, and not yet taken by the answer's body.
    read: AtomicUsize,
    /// Given to the protocol, and neither sent nor dropped.
    queued: AtomicUsize,
    /// Nothing more is read now.
    waits: AtomicBool,
    /// Among those that the connection wakes.
    listed: AtomicBool,
    /// Who reads from the origin, and who takes what was read.
    source: AtomicWaker,
    taker: AtomicWaker,
}

/// How much may be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    Free,
    /// The connection holds all that it may, and of this answer nothing.
    Least,
}

/// What a piece costs beside its bytes: its place in the protocol's queue, and this counting.
const PIECE_BYTES: usize = 256;
/// What a field costs beside its bytes: its place in the table.
const FIELD_BYTES: usize = 96;

impl ConnectionBudget {
    /// Room for one more request with this head, if there is any.
    pub(crate) fn head(&self, head: &Parts) -> Option<HeadShare> {
        let bytes = head_bytes(head);
        let all = self.heads.get() + bytes;
        (all <= limits::CONNECTION_HEAD_BYTES_MAX).then(|| {
            self.heads.set(all);
            HeadShare { heads: Rc::clone(&self.heads), bytes }
        })
    }

    /// For one more answer.
    pub(crate) fn answer(&self) -> Arc<AnswerShare> {
        Arc::new(AnswerShare {
            connection: Arc::clone(&self.answers),
            read: AtomicUsize::new(0),
            queued: AtomicUsize::new(0),
            waits: AtomicBool::new(false),
            listed: AtomicBool::new(false),
            source: AtomicWaker::new(),
            taker: AtomicWaker::new(),
        })
    }
}

/// Of one request's head, for as long as the request is open.
#[derive(Debug)]
pub(crate) struct HeadShare {
    heads: Rc<Cell<usize>>,
    bytes: usize,
}

impl Drop for HeadShare {
    fn drop(&mut self) {
        self.heads.set(self.heads.get() - self.bytes);
    }
}

/// What a request's head takes in memory, near enough.
fn head_bytes(head: &Parts) -> usize {
    let fields = head.headers.iter();
    let fields: usize = fields.map(|(name, value)| name.as_str().len() + value.len() + FIELD_BYTES).sum();
    let target = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
    fields + target + head.uri.authority().map_or(0, |authority| authority.as_str().len())
}

impl Answers {
    fn hold(&self, bytes: usize) {
        self.held.fetch_add(bytes, Relaxed);
    }

    /// Wakes those who wait only when there is room for all of them again: else each piece sent would wake them all.
    fn release(&self, bytes: usize) {
        let left = self.held.fetch_sub(bytes, Relaxed) - bytes;
        if left > limits::CONNECTION_ANSWER_BYTES_MAX / 2 || !self.some_wait.swap(false, Relaxed) {
            return;
        }
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        for share in waiting.iter().filter_map(Weak::upgrade) {
            share.listed.store(false, Relaxed);
            if share.waits() {
                share.source.wake();
            }
        }
    }
}

impl AnswerShare {
    /// Ready when more may be read for this answer.
    pub(crate) fn poll_room(self: &Arc<Self>, context: &Context<'_>) -> Poll<Room> {
        let is_free = self.connection.held.load(Relaxed) < limits::CONNECTION_ANSWER_BYTES_MAX;
        if is_free || self.held() == 0 {
            if self.waits.swap(false, Relaxed) {
                self.taker.wake();
            }
            return Poll::Ready(if is_free { Room::Free } else { Room::Least });
        }
        self.source.register(context.waker());
        if !self.waits.swap(true, Relaxed) {
            self.taker.wake();
        }
        if !self.listed.swap(true, Relaxed) {
            let waiting = &self.connection.waiting;
            waiting.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(self));
            self.connection.some_wait.store(true, Relaxed);
        }
        Poll::Pending
    }

    /// Whether nothing more is read because of what is held.
    pub(crate) fn waits(&self) -> bool {
        self.waits.load(Relaxed)
    }

    pub(crate) fn held(&self) -> usize {
        self.read.load(Relaxed) + self.queued.load(Relaxed)
    }

    /// Bytes have come from the origin.
    pub(crate) fn read(&self, bytes: usize) {
        self.read.fetch_add(bytes, Relaxed);
        self.connection.hold(bytes);
    }

    /// The answer's body has taken so many of them.
    pub(crate) fn taken(&self, bytes: usize) {
        // What came with the head was read before anybody counted.
        let counted = bytes.min(self.read.load(Relaxed));
        self.release(&self.read, counted);
    }

    /// The answer's body has found nothing to take: what else was read was framing. It is told when that changes, or when
    /// nothing more is read for the client's sake.
    pub(crate) fn nothing_left(&self, context: &Context<'_>) {
        self.taker.register(context.waker());
        let read = self.read.load(Relaxed);
        if read > 0 {
            self.release(&self.read, read);
        }
    }

    /// A piece for the protocol, which counts until it is dropped.
    pub(crate) fn queue(self: &Arc<Self>, piece: Bytes) -> Bytes {
        if piece.is_empty() {
            return piece;
        }
        let cost = piece.len() + PIECE_BYTES;
        self.queued.fetch_add(cost, Relaxed);
        self.connection.hold(cost);
        Bytes::from_owner(Queued { piece, share: Arc::clone(self) })
    }

    /// Nobody reads for this answer any more.
    pub(crate) fn ends(&self) {
        self.source.wake();
    }

    fn release(&self, counter: &AtomicUsize, bytes: usize) {
        counter.fetch_sub(bytes, Relaxed);
        self.connection.release(bytes);
        if self.waits() && self.held() == 0 {
            self.source.wake();
        }
    }
}

impl Drop for AnswerShare {
    fn drop(&mut self) {
        self.connection.release(*self.read.get_mut()); // a queued piece would have kept the share
    }
}

struct Queued {
    piece: Bytes,
    share: Arc<AnswerShare>,
}

impl AsRef<[u8]> for Queued {
    fn as_ref(&self) -> &[u8] {
        &self.piece
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.share.release(&self.share.queued, self.piece.len() + PIECE_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::task::{Wake, Waker};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    fn has_room(share: &Arc<AnswerShare>, count: &Arc<Count>) -> bool {
        let waker = Waker::from(Arc::clone(count));
        share.poll_room(&Context::from_waker(&waker)).is_ready()
    }

    fn piece(bytes: usize) -> Bytes {
        Bytes::from(vec![0; bytes])
    }

    #[test]
    fn a_full_connection_reads_no_more_and_an_empty_answer_all_the_same() {
        let budget = ConnectionBudget::default();
        let (large, small, woken) = (budget.answer(), budget.answer(), Arc::<Count>::default());
        let queued = large.queue(piece(limits::CONNECTION_ANSWER_BYTES_MAX));
        assert!(!has_room(&large, &woken) && large.waits());
        assert!(has_room(&small, &woken), "nothing of it is held");
        let first = small.queue(piece(1000));
        assert!(!has_room(&small, &woken));
        drop(first);
        assert_eq!(woken.0.load(Relaxed), 1, "that one alone");
        assert!(has_room(&small, &woken));
        let rest = queued.slice(1..);
        drop(queued);
        assert!(!has_room(&large, &woken), "a part keeps the whole");
        drop(rest);
        assert_eq!(woken.0.load(Relaxed), 2);
        assert!(has_room(&large, &woken) && !large.waits());
    }

    #[test]
    fn whoever_waits_is_woken_when_half_is_free() {
        let budget = ConnectionBudget::default();
        let most = limits::CONNECTION_ANSWER_BYTES_MAX;
        let (one, other, woken) = (budget.answer(), budget.answer(), Arc::<Count>::default());
        let pieces: Vec<_> = (0..8).map(|_| one.queue(piece(most / 8))).collect();
        let _held = other.queue(piece(10));
        assert!(!has_room(&other, &woken) && !has_room(&other, &woken));
        let mut left = pieces.into_iter();
        left.by_ref().take(3).for_each(drop);
        assert_eq!(woken.0.load(Relaxed), 0);
        left.by_ref().take(2).for_each(drop);
        assert_eq!(woken.0.load(Relaxed), 1);
        assert!(has_room(&other, &woken));
    }

    #[test]
    fn what_is_read_counts_until_it_is_taken_or_was_framing() {
        let budget = ConnectionBudget::default();
        let share = budget.answer();
        let held = || budget.answers.held.load(Relaxed);
        share.read(1000);
        share.taken(900);
        assert_eq!(held(), 100);
        share.nothing_left(&Context::from_waker(Waker::noop()));
        assert_eq!(held(), 0);
        share.taken(50); // came with the head
        share.read(70);
        drop(share);
        assert_eq!(held(), 0);
        assert!(budget.answers.waiting.lock().unwrap().is_empty());
    }

    #[test]
    fn heads_have_room_together() {
        let budget = ConnectionBudget::default();
        let request = http::Request::get("https://shop.example/").header("x", "y".repeat(30_000));
        let head = request.body(()).unwrap().into_parts().0;
        let bytes = head_bytes(&head);
        assert!(bytes > 30_000 && bytes < 31_000);
        let mut open: Vec<_> = std::iter::from_fn(|| budget.head(&head)).collect();
        assert_eq!(open.len(), limits::CONNECTION_HEAD_BYTES_MAX / bytes);
        open.pop();
        assert!(budget.head(&head).is_some());
    }
}
