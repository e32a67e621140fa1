//! A block of loopback addresses that no other laboratory of this machine uses at the same time.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

/// Holds `127.<x>.<y>.0/24` for as long as it lives: whoever binds the block's lock port owns the block.
#[derive(Debug)]
pub struct Addresses {
    x: u8,
    y: u8,
    _lock: TcpListener,
}

const LOCK_PORT: u16 = 59;

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
                return Self { x, y, _lock: listener };
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
