//! A block of loopback addresses that no other laboratory of this machine uses at the same time.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Mutex, PoisonError};

/// `127.<x>.<y>.0/24`, this process's until its end: whoever binds the block's lock port owns the block.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    x: u8,
    y: u8,
}

const LOCK_PORT: u16 = 59;

/// Never given back: what listens in a laboratory may end a moment after the laboratory itself.
static LOCKS: Mutex<Vec<TcpListener>> = Mutex::new(Vec::new());

impl Addresses {
    /// Takes a free block.
    pub fn take() -> Self {
        let start = u16::from_ne_bytes(std::process::id().to_ne_bytes()[..2].try_into().expect("two bytes"));
        for step in 0..u16::MAX {
            let [x, y] = start.wrapping_add(step.wrapping_mul(257)).to_be_bytes();
            // 127.0 and 127.1 are left to people and to the quickstart.
            if x < 2 {
                continue;
            }
            let lock = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, x, y, 254)), 10_000 + LOCK_PORT);
            if let Ok(listener) = TcpListener::bind(lock) {
                LOCKS.lock().unwrap_or_else(PoisonError::into_inner).push(listener);
                return Self { x, y };
            }
        }
        panic!("no free block of loopback addresses");
    }

    /// The block's host number `host`.
    pub fn ip(&self, host: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(127, self.x, self.y, host))
    }

    /// `ip(host)` with a port.
    pub fn at(&self, host: u8, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(host), port)
    }
}
