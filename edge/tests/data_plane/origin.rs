//! An origin that records what it is sent, as bytes and as messages, and answers as a test wants.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// One message by an independent, strict reading: no leniency at all.
#[derive(Debug, Clone)]
pub struct Message {
    pub request_line: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    /// From 0, on its connection.
    pub number: usize,
}

impl Message {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn all(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(have, _)| have.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }
}

/// What to do with a message.
pub enum Reply {
    /// Send these bytes and wait for the next message.
    Keep(Vec<u8>),
    /// Send these bytes and close.
    Close(Vec<u8>),
    /// Send these bytes and then nothing, until the other side closes.
    Stall(Vec<u8>),
    /// Take the connection over.
    Take(Box<dyn FnOnce(TcpStream) + Send>),
}

type Handler = dyn Fn(&Message) -> Reply + Send + Sync;

pub struct Origin {
    pub address: SocketAddr,
    messages: Arc<Mutex<Vec<Message>>>,
    connections: Arc<AtomicUsize>,
    /// Bytes that no strict reader could take.
    faults: Arc<Mutex<Vec<String>>>,
}

pub fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

impl Origin {
    pub fn start(handler: impl Fn(&Message) -> Reply + Send + Sync + 'static) -> Self {
        Self::at("127.0.0.1:0", handler)
    }

    pub fn at(address: &str, handler: impl Fn(&Message) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let origin = Self {
            address: listener.local_addr().unwrap(),
            messages: Arc::default(),
            connections: Arc::default(),
            faults: Arc::default(),
        };
        let (messages, connections, faults) =
            (Arc::clone(&origin.messages), Arc::clone(&origin.connections), Arc::clone(&origin.faults));
        let handler: Arc<Handler> = Arc::new(handler);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                connections.fetch_add(1, Ordering::SeqCst);
                let (messages, faults, handler) =
                    (Arc::clone(&messages), Arc::clone(&faults), Arc::clone(&handler));
                std::thread::spawn(move || {
                    if let Err(fault) = serve(stream, &messages, &*handler) {
                        faults.lock().unwrap().push(fault);
                    }
                });
            }
        });
        origin
    }

    /// Answers everything with 200 and the target it was asked for.
    pub fn echoing() -> Self {
        Self::start(|message| Reply::Keep(ok(message.request_line.split(' ').nth(1).unwrap_or(""))))
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn grant(&self) -> (&'static str, u16) {
        (if self.address.is_ipv6() { "::1/128" } else { "127.0.0.0/8" }, self.address.port())
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub fn messages(&self) -> Vec<Message> {
        self.messages.lock().unwrap().clone()
    }

    /// Those behind the first `seen`.
    pub fn messages_from(&self, seen: usize) -> Vec<Message> {
        self.messages.lock().unwrap()[seen..].to_vec()
    }

    pub fn faults(&self) -> Vec<String> {
        self.faults.lock().unwrap().clone()
    }
}

fn serve(mut stream: TcpStream, messages: &Mutex<Vec<Message>>, handler: &Handler) -> Result<(), String> {
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let mut unread = Vec::new();
    for number in 0.. {
        let Some(message) = read_message(&mut stream, &mut unread, number)? else { return Ok(()) };
        messages.lock().unwrap().push(message.clone());
        match handler(&message) {
            Reply::Keep(bytes) => stream.write_all(&bytes).map_err(|error| error.to_string())?,
            Reply::Close(bytes) => {
                let _ = stream.write_all(&bytes);
                return Ok(());
            }
            Reply::Stall(bytes) => {
                let _ = stream.write_all(&bytes);
                let _ = stream.read(&mut [0; 64]);
                return Ok(());
            }
            Reply::Take(take) => {
                take(stream);
                return Ok(());
            }
        }
    }
    Ok(())
}

fn read_message(
    stream: &mut TcpStream,
    unread: &mut Vec<u8>,
    number: usize,
) -> Result<Option<Message>, String> {
    let end = loop {
        if let Some(end) = unread.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if !more(stream, unread) {
            return if unread.is_empty() {
                Ok(None)
            } else {
                Err(format!("half a head: {}", unread.escape_ascii()))
            };
        }
    };
    let head: Vec<u8> = unread.drain(..end + 4).collect();
    let text = String::from_utf8(head[..end].to_vec()).map_err(|_| "a head that is not ASCII".to_owned())?;
    let mut lines = text.split("\r\n");
    let request_line = lines.next().unwrap_or_default().to_owned();
    let headers = lines.map(field).collect::<Result<_, _>>()?;
    let (body, trailers) = (Vec::new(), Vec::new());
    let mut message = Message { request_line, headers, body, trailers, number };
    let lengths = message.all("content-length").len();
    let codings = message.all("transfer-encoding");
    message.body = match (lengths, codings.as_slice()) {
        (0, []) => Vec::new(),
        (1, []) => {
            let length = message.header("content-length").unwrap_or_default();
            let length = length.parse().map_err(|_| format!("length {length:?}"))?;
            exactly(stream, unread, length)?
        }
        (0, ["chunked"]) => {
            let (body, trailers) = chunked(stream, unread)?;
            message.trailers = trailers;
            body
        }
        _ => return Err(format!("ambiguous framing: {:?}", message.headers)),
    };
    Ok(Some(message))
}

type Fields = Vec<(String, String)>;

fn field(line: &str) -> Result<(String, String), String> {
    let (name, value) = line.split_once(':').ok_or_else(|| format!("no colon: {line:?}"))?;
    if name.is_empty() || name.contains([' ', '\t']) || line.contains(['\n', '\r', '\0']) {
        return Err(format!("a field that two readers see differently: {line:?}"));
    }
    Ok((name.to_owned(), value.trim().to_owned()))
}

/// A body and its trailers.
fn chunked(stream: &mut TcpStream, unread: &mut Vec<u8>) -> Result<(Vec<u8>, Fields), String> {
    let mut body = Vec::new();
    loop {
        let line = line(stream, unread)?;
        let size = usize::from_str_radix(&line, 16).map_err(|_| format!("chunk size {line:?}"))?;
        if size == 0 {
            let mut trailers = Vec::new();
            loop {
                let trailer = self::line(stream, unread)?;
                if trailer.is_empty() {
                    return Ok((body, trailers));
                }
                trailers.push(field(&trailer)?);
            }
        }
        body.extend(exactly(stream, unread, size)?);
        if exactly(stream, unread, 2)? != b"\r\n" {
            return Err("no CRLF after a chunk".to_owned());
        }
    }
}

fn line(stream: &mut TcpStream, unread: &mut Vec<u8>) -> Result<String, String> {
    loop {
        if let Some(end) = unread.windows(2).position(|window| window == b"\r\n") {
            let line: Vec<u8> = unread.drain(..end + 2).collect();
            return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
        }
        if !more(stream, unread) {
            return Err("half a line".to_owned());
        }
    }
}

fn exactly(stream: &mut TcpStream, unread: &mut Vec<u8>, count: usize) -> Result<Vec<u8>, String> {
    while unread.len() < count {
        if !more(stream, unread) {
            return Err(format!("{} of {count} body bytes", unread.len()));
        }
    }
    Ok(unread.drain(..count).collect())
}

fn more(stream: &mut TcpStream, unread: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 16 * 1024];
    match stream.read(&mut buffer) {
        Ok(0) | Err(_) => false,
        Ok(count) => {
            unread.extend_from_slice(&buffer[..count]);
            true
        }
    }
}

/// What an https origin shows: this certificate, to everybody.
pub fn tls_config(
    certificate: rustls::pki_types::CertificateDer<'static>,
    key: &rcgen::KeyPair,
) -> rustls::ServerConfig {
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    tls_config_of(certificate, key)
}

pub fn tls_config_of(
    certificate: rustls::pki_types::CertificateDer<'static>,
    key: rustls::pki_types::PrivateKeyDer<'static>,
) -> rustls::ServerConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap()
}
