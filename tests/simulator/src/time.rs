//! Virtual time: Unix milliseconds, and the queue that moves it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

pub use portico_control_plane::clock::{DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS};

/// Events by time; those of one moment in the order in which they were put.
#[derive(Debug)]
pub struct Queue<E> {
    heap: BinaryHeap<Reverse<Entry<E>>>,
    put: u64,
    pub now: i64,
}

#[derive(Debug)]
struct Entry<E> {
    at: i64,
    number: u64,
    event: E,
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl<E> Queue<E> {
    pub fn new(now: i64) -> Self {
        Self { heap: BinaryHeap::new(), put: 0, now }
    }

    /// What is due in the past happens now.
    pub fn at(&mut self, at: i64, event: E) {
        self.put += 1;
        self.heap.push(Reverse(Entry { at: at.max(self.now), number: self.put, event }));
    }

    pub fn after(&mut self, ms: i64, event: E) {
        self.at(self.now + ms, event);
    }

    /// The next event, up to a moment; the clock moves to it.
    pub fn next(&mut self, until: i64) -> Option<E> {
        if self.heap.peek()?.0.at > until {
            return None;
        }
        let Reverse(entry) = self.heap.pop()?;
        self.now = entry.at;
        Some(entry.event)
    }
}
