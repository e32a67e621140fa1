//! Names that tell requests apart and nothing else: of two names nobody can tell how many requests lie between them.
//!
//! They are a count, encrypted with a key of the worker's own: no two are the same, without a look at what others have, and
//! without asking the operating system for each.

use std::{cell::Cell, fmt, io};

use aws_lc_rs::{
    cipher::{AES_128, EncryptingKey, UnboundCipherKey},
    rand,
};

/// What no other request of this edge's life has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unique {
    pub high: u64,
    pub low: u64,
}

/// One worker's names for requests.
pub(crate) struct Uniques {
    cipher: EncryptingKey,
    count: Cell<u64>,
}

impl Uniques {
    /// # Errors
    /// When the operating system gives no random bytes.
    pub(crate) fn new() -> io::Result<Self> {
        let mut key = [0; 16];
        let cipher = rand::fill(&mut key)
            .and_then(|()| UnboundCipherKey::new(&AES_128, &key))
            .and_then(EncryptingKey::ecb)
            .map_err(|_| io::Error::other("there is no key for the names of requests"))?;
        Ok(Self { cipher, count: Cell::new(0) })
    }

    pub(crate) fn next(&self) -> Unique {
        let count = self.count.get() + 1;
        self.count.set(count);
        let mut block = u128::from(count).to_be_bytes();
        // One block at a time and none twice, which is all that there is to ECB.
        let _context = self.cipher.encrypt(&mut block).expect("a whole block");
        let name = u128::from_be_bytes(block);
        let low = u64::try_from(name & u128::from(u64::MAX)).expect("masked");
        Unique { high: u64::try_from(name >> 64).expect("shifted"), low }
    }
}

impl Unique {
    /// As it is written.
    pub fn bytes(self) -> [u8; 16] {
        ((u128::from(self.high) << 64) | u128::from(self.low)).to_be_bytes()
    }
}

/// 32 hexadecimal digits.
impl fmt::Display for Unique {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}{:016x}", self.high, self.low)
    }
}

impl fmt::Debug for Uniques {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Uniques").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn nobody_learns_from_two_names_how_many_requests_lie_between() {
        let [one, other] = [Uniques::new().unwrap(), Uniques::new().unwrap()];
        let names: Vec<_> =
            (0..10_000).map(|_| one.next()).chain((0..10_000).map(|_| other.next())).collect();
        let halves = |half: fn(&Unique) -> u64| names.iter().map(half).collect::<HashSet<_>>().len();
        assert_eq!(halves(|name| name.high), names.len(), "no worker has a mark of its own");
        assert_eq!(halves(|name| name.low), names.len(), "span ids are halves of names");
        let apart: u32 = names.windows(2).map(|two| (two[0].low ^ two[1].low).count_ones()).sum();
        let mean = f64::from(apart) / f64::from(u32::try_from(names.len() - 1).unwrap());
        assert!((31.0..33.0).contains(&mean), "{mean} of 64 bits change from one to the next");
    }
}
