//! An origin of HTTP/2 that is told frame by frame what to say.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use portico_attacker::frame::{self, Frame, PREFACE};

use crate::harness::PATIENCE;

/// One connection, from the preface on.
pub struct RawHttp2 {
    stream: TcpStream,
}

pub const ACK: u8 = 1;

/// Does the same with each connection; what a test wants to know it sends itself.
pub fn start(talk: impl Fn(RawHttp2) -> std::io::Result<()> + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let talk = std::sync::Arc::new(talk);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let talk = std::sync::Arc::clone(&talk);
            std::thread::spawn(move || {
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let mut preface = [0; PREFACE.len()];
                stream.read_exact(&mut preface).unwrap();
                assert_eq!(preface, PREFACE);
                // The edge ends some of them, as a test wants it to.
                let _ended = talk(RawHttp2 { stream });
            });
        }
    });
    address
}

impl RawHttp2 {
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    pub fn settings(&mut self) -> std::io::Result<()> {
        self.send(frame::frame(frame::SETTINGS, 0, 0, &[]))
    }

    pub fn frame(&mut self) -> std::io::Result<Frame> {
        Frame::read(&mut self.stream)
    }

    /// The next frame of this kind, not counting acknowledgements.
    pub fn next(&mut self, kind: u8) -> std::io::Result<Frame> {
        loop {
            let frame = self.frame()?;
            let is_ack = matches!(kind, frame::SETTINGS | frame::PING) && frame.flags & ACK != 0;
            if frame.kind == kind && !is_ack {
                return Ok(frame);
            }
        }
    }

    /// How many frames of `kind` come before the answer to a ping of ours.
    pub fn before_pong(&mut self, kind: u8) -> std::io::Result<usize> {
        self.send(frame::frame(frame::PING, 0, 0, &[7; 8]))?;
        let mut seen = 0;
        loop {
            let frame = self.frame()?;
            if frame.kind == frame::PING && frame.flags & ACK != 0 {
                return Ok(seen);
            }
            seen += usize::from(frame.kind == kind);
        }
    }

    /// 200 by the static table of RFC 7541.
    pub fn ok(&mut self, stream: u32, flags: u8) -> std::io::Result<()> {
        self.send(frame::frame(frame::HEADERS, frame::END_HEADERS | flags, stream, &[0x88]))
    }
}
