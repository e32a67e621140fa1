//! Loopback ports that stay free until a test, or a process that it starts, listens on them.
//!
//! A port that the kernel chose is given to somebody's outgoing connection as soon as it is let go.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Above what usual services listen on and below the range from which Linux takes the ports of outgoing connections
/// (`net.ipv4.ip_local_port_range`, from 32,768 on unless somebody has changed it).
const PORTS: Range<u16> = 12_000..32_000;

/// Whoever has bound a port of this address owns the port on every other loopback address.
const LOCKS: Ipv4Addr = Ipv4Addr::new(127, 255, 255, 253);

/// Never given back: what listens there may end a moment after the test.
static OWNED: Mutex<Vec<TcpListener>> = Mutex::new(Vec::new());

/// A port, with 127.0.0.1 as its address, that no other caller on this machine gets while this process lives. Nothing
/// listens on it over TCP or UDP, so until somebody of the caller's does, connections to it are refused.
///
/// # Panics
///
/// When every port is taken.
pub fn reserve() -> SocketAddr {
    let mut owned = OWNED.lock().unwrap_or_else(PoisonError::into_inner);
    // Processes begin at places far from each other and seldom meet.
    let begin = std::process::id().wrapping_mul(7919);
    for step in 0..PORTS.len() {
        let place = (begin as usize).wrapping_add(owned.len() + step) % PORTS.len();
        let port = PORTS.start + u16::try_from(place).expect("a port is 16 bits");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let Ok(lock) = TcpListener::bind((LOCKS, port)) else { continue };
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            owned.push(lock);
            return address;
        }
    }
    panic!("no free port from {} to {} on 127.0.0.1", PORTS.start, PORTS.end);
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_reserved_port_refuses_until_its_owner_listens_and_is_nobody_elses() {
        let (one, other) = (reserve(), reserve());
        assert_ne!(one, other);
        assert_eq!(TcpStream::connect(one).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(TcpListener::bind((LOCKS, one.port())).unwrap_err().kind(), ErrorKind::AddrInUse);
        let everywhere = [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2)];
        let _listeners = everywhere.map(|address| TcpListener::bind((address, one.port())).unwrap());
        assert!(TcpStream::connect(one).is_ok());
        let _udp = UdpSocket::bind(other).unwrap();
    }
}
