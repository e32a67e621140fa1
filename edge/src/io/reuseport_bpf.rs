//! Deals the packets of a QUIC address to its workers: a classic BPF program on the group of sockets
//! (SO_ATTACH_REUSEPORT_CBPF, socket(7)), which needs no privilege.

use std::io;
use std::mem::size_of;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

/// Sends each packet to the socket whose place in the group (the order of binding) is the first byte of its destination
/// connection id, modulo the number of workers.
///
/// # Errors
/// As setsockopt(2); `EINVAL` where the socket is in no group.
pub fn steer_by_connection_id(socket: &UdpSocket, workers: usize) -> io::Result<()> {
    let workers = u32::try_from(workers).ok().filter(|workers| *workers > 0);
    let workers = workers.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut program = program(workers);
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).expect("seven instructions"),
        filter: program.as_mut_ptr(),
    };
    // SAFETY: `filter` and the program that it points to live until the call has returned; the kernel copies both and
    // writes to neither. The length is that of the structure.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const filter).cast(),
            libc::socklen_t::try_from(size_of::<libc::sock_fprog>()).expect("a small structure"),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Offset 0 is the first byte of the UDP payload. A packet that is too short for its load goes to socket 0.
fn program(workers: u32) -> [libc::sock_filter; 7] {
    let load_byte = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
    let is_long_header = 0x80;
    [
        instruction(load_byte, 0, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 2, 0, is_long_header),
        // Short header (RFC 9000 section 17.3): the id follows the first byte.
        instruction(load_byte, 0, 0, 1),
        instruction(libc::BPF_JMP | libc::BPF_JA, 0, 0, 1),
        // Long header (section 17.2): flags, version, the id's length, the id.
        instruction(load_byte, 0, 0, 6),
        instruction(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, 0, 0, workers),
        instruction(libc::BPF_RET | libc::BPF_A, 0, 0, 0),
    ]
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: u16::try_from(code).expect("codes have 16 bits"), jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Socket, Type};
    use std::time::Duration;

    #[test]
    fn packets_reach_the_worker_that_their_connection_id_names() {
        let workers = 3;
        let bind = |address: std::net::SocketAddr| {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
            socket.set_reuse_port(true).unwrap();
            socket.bind(&address.into()).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            UdpSocket::from(socket)
        };
        let first = bind("127.0.0.1:0".parse().unwrap());
        let address = first.local_addr().unwrap();
        let group = [first, bind(address), bind(address)];
        steer_by_connection_id(&group[0], workers).unwrap();
        for id in 0..=20_u8 {
            let short = [0x40, id, 9, 9];
            let long = [0xc0, 0, 0, 0, 1, 8, id, 9];
            for packet in [&short[..], &long[..]] {
                // Each from a port of its own: without the program they would be spread by it.
                let client = UdpSocket::bind("127.0.0.1:0").unwrap();
                client.send_to(packet, address).unwrap();
                let mut buffer = [0; 16];
                let (length, from) = group[usize::from(id) % workers].recv_from(&mut buffer).unwrap();
                assert_eq!((&buffer[..length], from), (packet, client.local_addr().unwrap()));
            }
        }
    }
}
