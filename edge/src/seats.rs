//! The connections that one worker has open. A newcomer to a full edge gets the place of whoever has been without an exchange
//! for longest: a visitor who asks for something goes before one who holds a connection and asks for nothing (slow heads,
//! half-open handshakes, browsers that keep connections). An exchange that waits for a body of a few bytes now and then counts
//! as none. It is not cut where there is room: few bytes are what streams of messages and events consist of.
//!
//! Who that is is looked for among a few at a time, so that a flood of newcomers costs the same in a large edge: exact up to
//! [`limits::SEATS_LOOKED_AT`] connections, and then the longest of that many, taken in turn.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use crate::{clock, http::clock::ConnectionClock, limits, metrics::Evicted};

#[derive(Debug)]
pub(crate) struct Seats {
    taken: RefCell<Vec<Rc<Seat>>>,
    /// Where the next look begins.
    next: Cell<usize>,
    evictable_after: Duration,
}

/// Of one connection.
#[derive(Debug)]
pub(crate) struct Seat {
    place: Cell<usize>,
    since: Instant,
    /// Once the handshake is done.
    clock: RefCell<Option<Rc<ConnectionClock>>>,
    evicted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Seats {
    /// Whose connections may be ended after so long without an exchange.
    pub(crate) fn new(evictable_after: Duration) -> Self {
        Self { taken: RefCell::default(), next: Cell::new(0), evictable_after }
    }

    pub(crate) fn count(&self) -> usize {
        self.taken.borrow().len()
    }

    pub(crate) fn take(&self) -> Rc<Seat> {
        let mut taken = self.taken.borrow_mut();
        let seat = Rc::new(Seat {
            place: Cell::new(taken.len()),
            since: clock::now(),
            clock: RefCell::default(),
            evicted: Cell::new(false),
            waker: RefCell::default(),
        });
        taken.push(Rc::clone(&seat));
        seat
    }

    pub(crate) fn leave(&self, seat: &Seat) {
        let mut taken = self.taken.borrow_mut();
        taken.swap_remove(seat.place.get());
        if let Some(moved) = taken.get(seat.place.get()) {
            moved.place.set(seat.place.get());
        }
    }

    /// Ends all connections that have been without an exchange for a while, and says what each was doing.
    pub(crate) fn evict_all(&self, now: Instant, mut told: impl FnMut(Evicted)) {
        for seat in self.taken.borrow().iter() {
            let since = seat.idle_since();
            if since.is_some_and(|since| now.duration_since(since) >= self.evictable_after) {
                told(seat.state());
                seat.end();
            }
        }
    }

    /// Ends the connection that has been without an exchange for longest, and says what it was doing; `None`: each has one, or
    /// has had one just now.
    pub(crate) fn evict(&self, now: Instant) -> Option<Evicted> {
        let taken = self.taken.borrow();
        let looked_at = taken.len().min(limits::SEATS_LOOKED_AT);
        let first = self.next.get();
        self.next.set(first.wrapping_add(looked_at));
        let some = (0..looked_at).map(|step| &taken[first.wrapping_add(step) % taken.len()]);
        let idle = some.filter_map(|seat| Some((seat.idle_since()?, seat)));
        let (since, seat) = idle.min_by_key(|(since, _)| *since)?;
        if now.duration_since(since) < self.evictable_after {
            return None;
        }
        let state = seat.state();
        seat.end();
        Some(state)
    }
}

impl Seat {
    /// From now on the connection's clock says whether it is idle.
    pub(crate) fn serves(&self, clock: &Rc<ConnectionClock>) {
        *self.clock.borrow_mut() = Some(Rc::clone(clock));
    }

    /// Serves to the end; `None`: the place was given to another.
    pub(crate) async fn until_evicted<F: Future>(&self, serving: F) -> Option<F::Output> {
        let mut serving = pin!(serving);
        poll_fn(|context| {
            if self.evicted.get() {
                return Poll::Ready(None);
            }
            let mut waker = self.waker.borrow_mut();
            if waker.as_ref().is_none_or(|waker| !waker.will_wake(context.waker())) {
                *waker = Some(context.waker().clone());
            }
            drop(waker);
            serving.as_mut().poll(context).map(Some)
        })
        .await
    }

    fn end(&self) {
        self.evicted.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// `None`: it is not, or it is on its way out.
    fn idle_since(&self) -> Option<Instant> {
        if self.evicted.get() {
            return None;
        }
        self.clock.borrow().as_ref().map_or(Some(self.since), |clock| clock.without_exchange_since())
    }

    fn state(&self) -> Evicted {
        match &*self.clock.borrow() {
            None => Evicted::Handshake,
            Some(clock) if clock.is_in_head() => Evicted::Head,
            Some(clock) if clock.is_in_bodies() => Evicted::Body,
            Some(_) => Evicted::Idle,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{http::upload::Upload, limits::Deadlines};

    fn serving(seats: &Seats) -> (Rc<Seat>, Rc<ConnectionClock>) {
        let seat = seats.take();
        let clock = Rc::new(ConnectionClock::new(Deadlines::default()));
        seat.serves(&clock);
        (seat, clock)
    }

    #[test]
    fn the_longest_idle_goes_first_and_who_is_busy_stays() {
        let seats = Seats::new(Duration::from_secs(1));
        let (first, busy) = serving(&seats);
        busy.exchange_begins();
        let (second, _idle) = serving(&seats);
        let half_open = seats.take();
        let (travels, answered) = serving(&seats);
        answered.answer_travels();
        let now = clock::now();
        assert_eq!(seats.evict(now), None, "nobody for long enough");
        let later = now + Duration::from_secs(2);
        let both = [seats.evict(later), seats.evict(later)];
        assert_eq!(both, [Some(Evicted::Idle), Some(Evicted::Handshake)]);
        assert!(second.evicted.get() && half_open.evicted.get() && !first.evicted.get());
        assert_eq!(seats.evict(later), None, "one is busy, the others are on their way out");
        assert!(!travels.evicted.get(), "an answer of it is on its way");
        answered.answer_arrives();
        seats.leave(&half_open);
        seats.leave(&second);
        seats.leave(&travels);
        busy.exchange_ends();
        assert_eq!(seats.evict(later + Duration::from_secs(2)), Some(Evicted::Idle));
        assert!(first.evicted.get());
        seats.leave(&first);
        assert_eq!(seats.count(), 0);
    }

    #[test]
    fn a_body_that_drips_goes_before_one_that_flows_and_neither_where_all_do_more() {
        let seats = Seats::new(Duration::from_secs(1));
        let uploading = || {
            let (seat, clock) = serving(&seats);
            clock.exchange_begins();
            let upload = Upload::new();
            upload.tell(&clock);
            upload.begin(false);
            upload.awaits_client();
            (seat, upload)
        };
        let [(flows, flowing), (drips, dripping), (answered, answering)] =
            std::array::from_fn(|_| uploading());
        std::thread::sleep(Duration::from_millis(20));
        flowing.gave(1 << 20, false);
        dripping.gave(1, false);
        answering.gave(1, false);
        let begun = clock::now();
        let later = begun + Duration::from_secs(2);
        assert_eq!(seats.evict(later), None, "the origin is to take what it was given");
        for upload in [&flowing, &dripping, &answering] {
            assert!(upload.awaits_client());
        }
        answering.answered();
        assert_eq!(seats.evict(begun), None, "nobody for long enough");
        assert_eq!(seats.evict(later), Some(Evicted::Body));
        assert!(drips.evicted.get() && !flows.evicted.get());
        assert_eq!(seats.evict(later), Some(Evicted::Body));
        assert!(flows.evicted.get(), "after it has waited for as long");
        assert_eq!(seats.evict(later), None);
        assert!(!answered.evicted.get(), "its answer has begun");
    }

    #[test]
    fn bytes_of_a_body_are_worth_time_and_none_is_saved_up() {
        let (_seat, clock) = serving(&Seats::new(Duration::ZERO));
        clock.exchange_begins();
        clock.body_awaited(true);
        let begun = clock.without_exchange_since().expect("it waits");
        std::thread::sleep(Duration::from_millis(20));
        clock.body_came(1);
        let each = Duration::from_secs(1) / limits::BODY_BYTES_PER_SECOND_WORTH;
        assert_eq!(clock.without_exchange_since(), Some(begun + each));
        clock.body_came(1 << 30);
        assert!(clock.without_exchange_since().is_some_and(|since| since <= clock::now()));
        clock.body_awaited(false);
        assert_eq!(clock.without_exchange_since(), None);
    }

    #[test]
    fn for_want_of_memory_all_go_that_have_no_exchange() {
        let seats = Seats::new(Duration::from_secs(1));
        let idle: Vec<_> = (0..2 * limits::SEATS_LOOKED_AT).map(|_| serving(&seats)).collect();
        let (busy, clock) = serving(&seats);
        clock.exchange_begins();
        let half_open = seats.take();
        let ended = |now: Instant| {
            let mut ended = Vec::new();
            seats.evict_all(now, |state| ended.push(state));
            ended
        };
        let now = clock::now();
        assert_eq!(ended(now), [], "nobody for long enough");
        let later = now + Duration::from_secs(2);
        let states = ended(later);
        assert_eq!(states.len(), idle.len() + 1);
        assert_eq!(states.iter().filter(|state| **state == Evicted::Handshake).count(), 1);
        assert!(idle.iter().all(|(seat, _)| seat.evicted.get()) && half_open.evicted.get());
        assert!(!busy.evicted.get());
        assert_eq!(ended(later), [], "once each");
    }

    #[test]
    fn a_look_is_at_some_and_all_have_their_turn() {
        let seats = Seats::new(Duration::ZERO);
        let all: Vec<_> = (0..3 * limits::SEATS_LOOKED_AT).map(|_| serving(&seats)).collect();
        for (_, clock) in all.iter().skip(1) {
            clock.exchange_begins();
        }
        let now = clock::now();
        let looks = (1..=3).find(|_| seats.evict(now).is_some());
        assert!(looks.is_some() && all[0].0.evicted.get(), "found within three looks");
    }
}
