//! What stands behind the attacked site: answers without end, and requests that are never answered.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::Result;

/// Thousands of connections may be blocked at once, each with a thread; the kernel would keep megabytes for each.
const STACK_BYTES: usize = 128 * 1024;
static PIECE: [u8; 64 * 1024] = [b'x'; 64 * 1024];
const PIECES: usize = 1024;

/// Serves for as long as the process lives.
pub(super) fn start() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Without a thread the connection is closed, and the edge says 502.
            let _served =
                std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || drop(serve(stream)));
        }
    });
    Ok(address)
}

fn serve(mut stream: TcpStream) -> Result<()> {
    rustix::net::sockopt::set_socket_send_buffer_size(&stream, PIECE.len())?;
    let mut head = Vec::new();
    let mut buffer = [0; 4096];
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => head.extend_from_slice(&buffer[..count]),
        }
    }
    if !head.starts_with(b"GET ") {
        // Waits for a body to its end, which does not come.
        while stream.read(&mut buffer)? > 0 {}
        return Ok(());
    }
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", PIECES * PIECE.len())?;
    for _ in 0..PIECES {
        stream.write_all(&PIECE)?;
    }
    Ok(())
}
