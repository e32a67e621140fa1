//! One connection over TLS that sends what it is told and looks only at what ends it.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, SupportedProtocolVersion};

use crate::TrustAll;
use crate::frame::{self, Frame};

/// Whom to attack.
#[derive(Clone, Debug)]
pub struct Target {
    pub address: SocketAddr,
    /// Asked for in the handshake and in requests.
    pub host: String,
}

/// An open connection.
#[derive(Debug)]
pub struct Client {
    tls: ClientConnection,
    socket: TcpStream,
    /// Bytes of frames that have come in part.
    unread: Vec<u8>,
    pub seen: Seen,
}

/// What the server has said.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// RST_STREAM frames.
    pub resets: u64,
    pub bytes: u64,
    /// The connection has ended, by GOAWAY with an error, close or reset.
    pub ended: bool,
}

/// Between two looks at what the server says, while there is nothing to send.
const LOOK: Duration = Duration::from_millis(20);
/// Before another try to send, while the server takes nothing.
const FULL_PAUSE: Duration = Duration::from_millis(1);
/// Taken at a time.
const BYTES_AT_ONCE: u64 = 256 * 1024;

impl Client {
    /// Connects and shakes hands; `alpn` is "h2" or "http/1.1".
    ///
    /// # Errors
    /// What the connection or the handshake fails with.
    pub fn connect(target: &Target, alpn: &str) -> io::Result<Self> {
        let mut socket = TcpStream::connect(target.address)?;
        socket.set_nodelay(true)?;
        let name = ServerName::try_from(target.host.clone()).map_err(io::Error::other)?;
        let mut tls = ClientConnection::new(Arc::new(config(alpn)?), name).map_err(io::Error::other)?;
        while tls.is_handshaking() {
            tls.complete_io(&mut socket)?;
        }
        socket.set_nonblocking(true)?;
        Ok(Self { tls, socket, unread: Vec::new(), seen: Seen::default() })
    }

    /// The same over HTTP/2, with the preface and `settings` sent.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn http2(target: &Target, settings: &[u8]) -> io::Result<Self> {
        let mut client = Self::connect(target, "h2")?;
        client.send(&[frame::PREFACE, settings].concat());
        Ok(client)
    }

    /// Sends all of it, reading meanwhile, unless the server ends the connection.
    pub fn send(&mut self, bytes: &[u8]) {
        let mut left = bytes;
        while !left.is_empty() && !self.seen.ended {
            match self.tls.writer().write(left) {
                Ok(count) => left = &left[count..],
                Err(_) => self.seen.ended = true,
            }
            self.flush();
        }
    }

    fn flush(&mut self) {
        while self.tls.wants_write() && !self.seen.ended {
            match self.tls.write_tls(&mut self.socket) {
                Ok(_) => {}
                // Its window is full: whoever does not read here would wait for ever.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.receive();
                    // A hundred that spin would take the machine from server and visitors, which have it to themselves in earnest.
                    std::thread::sleep(FULL_PAUSE);
                }
                Err(_) => self.seen.ended = true,
            }
        }
        self.receive();
    }

    /// Begins to use another key for what is sent, and asks the server to do the same.
    pub fn update_key(&mut self) {
        self.seen.ended |= self.tls.refresh_traffic_keys().is_err();
        self.flush();
    }

    /// Takes what has come, of a server that sends on and on only some.
    pub fn receive(&mut self) {
        let enough = self.seen.bytes + BYTES_AT_ONCE;
        while self.seen.bytes < enough {
            match self.tls.read_tls(&mut self.socket) {
                Ok(0) => self.seen.ended = true,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.seen.ended = true,
            }
            if self.tls.process_new_packets().is_err() {
                self.seen.ended = true;
            }
            let mut buffer = [0; 16 * 1024];
            while let Ok(count @ 1..) = self.tls.reader().read(&mut buffer) {
                self.seen.bytes += count as u64;
                self.unread.extend_from_slice(&buffer[..count]);
            }
            if self.seen.ended {
                return;
            }
        }
    }

    /// Reads nothing: the kernel's buffers fill.
    pub fn sleep(&self, time: Duration) {
        std::thread::sleep(time);
    }

    /// Waits a moment for what the server says.
    pub fn look(&mut self) {
        std::thread::sleep(LOOK);
        self.receive();
    }

    /// Throws away what has come, frames and all.
    pub fn forget(&mut self) {
        self.unread.clear();
    }

    /// Counts the frames that have come; for connections of HTTP/2 alone.
    pub fn read_frames(&mut self) {
        while let Some((frame, length)) = Frame::parse(&self.unread) {
            self.unread.drain(..length);
            self.seen.resets += u64::from(frame.kind == frame::RST_STREAM);
            // The last stream's number, then the code; 0 is a polite end.
            let code = frame.payload.get(4..8);
            self.seen.ended |= frame.kind == frame::GOAWAY && code.is_some_and(|code| code != [0; 4]);
        }
    }
}

fn config(alpn: &str) -> io::Result<ClientConfig> {
    config_of(rustls::crypto::aws_lc_rs::default_provider(), rustls::ALL_VERSIONS, alpn)
}

/// For QUIC, with a hello that is small enough for one packet.
pub(crate) fn quic_config() -> io::Result<ClientConfig> {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    config_of(provider, &[&rustls::version::TLS13], "h3")
}

fn config_of(
    provider: CryptoProvider,
    versions: &[&'static SupportedProtocolVersion],
    alpn: &str,
) -> io::Result<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)
        .map_err(io::Error::other)?;
    let mut config = builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustAll::default()))
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    Ok(config)
}
