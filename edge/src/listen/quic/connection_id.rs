//! Connection ids that say whose they are: eight bytes, the first of them the slot's number modulo the number of slots, then
//! three that stand for the process, else random. RFC 9000 section 5.1 wants them unlinkable: what all connections of a
//! worker have in common links none of them.
//!
//! Three bytes: clients choose the id of their first packet at random, and one in 16 million of those that arrive while a
//! predecessor still drains looks like one of its ids. That packet goes to the predecessor, which serves it too.

use std::{io, time::Duration};

use quinn::ConnectionIdGenerator;
use quinn_proto::{ConnectionId, InvalidCid};
use serde::{Deserialize, Serialize};

const BYTES: usize = 8;

/// Tells the processes apart that have shared a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessTag([u8; 3]);

/// What an id says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) mark: u8,
    pub(super) tag: ProcessTag,
}

#[derive(Debug)]
pub(super) struct SlotIds {
    slot: usize,
    slots: usize,
    tag: ProcessTag,
}

impl ProcessTag {
    /// One that is none of `taken`.
    ///
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn generate(taken: &[Self]) -> io::Result<Self> {
        loop {
            let mut bytes = [0; 3];
            aws_lc_rs::rand::fill(&mut bytes)
                .map_err(|_| io::Error::other("the operating system gives no random bytes"))?;
            let tag = Self(bytes);
            if !taken.contains(&tag) {
                return Ok(tag);
            }
        }
    }
}

impl Owner {
    /// Of a packet's destination id; `None` when that is not of our length.
    pub(super) fn of(packet: &[u8]) -> Option<Self> {
        const LONG_HEADER: u8 = 0x80;
        let id = if *packet.first()? & LONG_HEADER == 0 {
            // RFC 9000 section 17.3: the id follows the first byte.
            packet.get(1..1 + BYTES)?
        } else {
            // Section 17.2: flags, version, the id's length, the id.
            packet.get(5).filter(|length| usize::from(**length) == BYTES)?;
            packet.get(6..6 + BYTES)?
        };
        Some(Self::in_id(id))
    }

    /// `id` has at least four bytes.
    fn in_id(id: &[u8]) -> Self {
        Self { mark: id[0], tag: ProcessTag([id[1], id[2], id[3]]) }
    }
}

impl SlotIds {
    /// For slot `slot` of `slots`, of which there are at most 256.
    pub(super) fn new(slot: usize, slots: usize, tag: ProcessTag) -> Self {
        Self { slot, slots: slots.max(1), tag }
    }

    /// The byte nearest to `random` that stands for this slot.
    fn mark(&self, random: u8) -> u8 {
        let rounds = (256 - self.slot).div_ceil(self.slots);
        let marked = usize::from(random) % rounds * self.slots + self.slot;
        u8::try_from(marked).expect("rounds are counted so that the mark stays below 256")
    }
}

impl ConnectionIdGenerator for SlotIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; BYTES];
        // Without randomness the ids still route; quinn itself refuses to run without it.
        let _filled = aws_lc_rs::rand::fill(&mut id);
        id[0] = self.mark(id[0]);
        id[1..4].copy_from_slice(&self.tag.0);
        ConnectionId::new(&id)
    }

    /// What is not ours is not reset: its owner may be alive.
    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        if id.len() != BYTES {
            return Err(InvalidCid);
        }
        let owner = Owner::in_id(id);
        let own = owner.tag == self.tag && usize::from(owner.mark) % self.slots == self.slot;
        if own { Ok(()) } else { Err(InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_names_its_slot_whatever_their_number() {
        let tag = ProcessTag::generate(&[]).unwrap();
        for slots in 1..=256 {
            for slot in 0..slots {
                let ids = SlotIds::new(slot, slots, tag);
                assert!((0..=255).all(|random| usize::from(ids.mark(random)) % slots == slot));
            }
        }
        let mut ids = SlotIds::new(2, 3, tag);
        let id = ids.generate_cid();
        assert!(ids.validate(&id).is_ok());
        assert!(SlotIds::new(1, 3, tag).validate(&id).is_err());
        assert!(SlotIds::new(2, 3, ProcessTag::generate(&[tag]).unwrap()).validate(&id).is_err());
        assert_ne!(id, ids.generate_cid());
    }

    #[test]
    fn the_owner_is_read_from_both_kinds_of_header() {
        let tag = ProcessTag([7, 8, 9]);
        let expected = Some(Owner { mark: 6, tag });
        assert_eq!(Owner::of(&[0x40, 6, 7, 8, 9, 0, 0, 0, 0, 1]), expected);
        assert_eq!(Owner::of(&[0xc0, 0, 0, 0, 1, 8, 6, 7, 8, 9, 0, 0, 0, 0, 0]), expected);
        // Of another length, cut off, empty.
        assert_eq!(Owner::of(&[0xc0, 0, 0, 0, 1, 9, 6, 7, 8, 9, 0, 0, 0, 0, 0]), None);
        assert_eq!(Owner::of(&[0x40, 6, 7, 8, 9, 0, 0, 0]), None);
        assert_eq!(Owner::of(&[]), None);
    }
}
