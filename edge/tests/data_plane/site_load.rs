//! Clients of a site with an origin, for edges that are restarted meanwhile: requests that are proxied, uploads, long answers,
//! and a tunnel.

use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::{Engine as _, prelude::BASE64_STANDARD};

use crate::client::{Answer, Https, any_version, http2, runtime, try_https};
use crate::http3_client::{Http3, REJECTED};
use crate::origin::{Message, Origin, Reply, ok};
use crate::restart::{HOST, Kind, Progress};

/// Uploads come in pieces, so that a hand-over finds some in the middle.
const UPLOAD_BYTES: usize = 32 * 1024;
const UPLOAD_PIECES: usize = 8;
const PIECES: usize = 32;
const PIECE: [u8; 16 * 1024] = [b'l'; 16 * 1024];
const PAUSE: Duration = Duration::from_millis(5);

/// Answers `/proxied`, `/upload` with how long the body was, `/long` piece by piece, and `/tunnel` as a WebSocket that says
/// everything again.
pub fn origin() -> Origin {
    Origin::start(|message| match message.request_line.split(' ').nth(1) {
        Some("/proxied") => Reply::Keep(ok("proxied")),
        Some("/upload") => Reply::Keep(ok(&message.body.len().to_string())),
        Some("/long") => Reply::Take(Box::new(long)),
        Some("/tunnel") => tunnel_to(message),
        _ => Reply::Close(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec()),
    })
}

/// What an edge's file needs for it.
pub fn routes(origin: &Origin) -> String {
    let paths = ["/proxied", "/upload", "/long", "/tunnel"];
    let route = |path: &str| {
        format!("[[route]]\nhost = \"{HOST}\"\npath = \"{path}\"\nproxy = \"{}\"\n", origin.url())
    };
    let port = origin.address.port();
    paths.map(route).concat()
        + &format!("[egress]\nallow = [{{ cidr = \"127.0.0.1/32\", ports = [{port}] }}]\n")
}

fn long(mut stream: TcpStream) {
    let length = PIECES * PIECE.len();
    // Said, or an upload could be sent where nobody reads any more, and nothing may be sent twice.
    let _ = write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    for _ in 0..PIECES {
        if stream.write_all(&PIECE).is_err() {
            return;
        }
        std::thread::sleep(PAUSE);
    }
}

fn tunnel_to(message: &Message) -> Reply {
    let key = message.header("sec-websocket-key").unwrap_or_default();
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let accept = BASE64_STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()));
    Reply::Take(Box::new(move |mut stream| {
        let _ = write!(
            stream,
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        let mut back = stream.try_clone().unwrap();
        let _ = io::copy(&mut stream, &mut back);
    }))
}

/// In addition to those that ask for the page of the edge's own.
pub fn kinds(address: SocketAddr) -> Vec<Kind> {
    [
        ("h1, proxied", http1_proxied as crate::restart::Client),
        ("h1, uploads", http1_uploads),
        ("h1, long answers", http1_long),
        ("h2, uploads", http2_uploads),
        ("h3, proxied", http3_proxied),
    ]
    .map(|(name, run)| Kind::start(name, run, address))
    .into()
}

fn http1_proxied(address: SocketAddr, progress: &Progress) -> Vec<String> {
    http1(address, progress, |client| {
        write!(client.stream, "GET /proxied HTTP/1.1\r\nHost: {HOST}\r\n\r\n")?;
        let answer = client.answer_to("GET")?;
        Ok((answer.text() == "proxied", answer))
    })
}

fn http1_uploads(address: SocketAddr, progress: &Progress) -> Vec<String> {
    http1(address, progress, |client| {
        let head = format!("POST /upload HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {UPLOAD_BYTES}\r\n\r\n");
        client.stream.write_all(head.as_bytes())?;
        for _ in 0..UPLOAD_PIECES {
            client.stream.write_all(&[b'u'; UPLOAD_BYTES / UPLOAD_PIECES])?;
            client.stream.flush()?;
            std::thread::sleep(PAUSE);
        }
        let answer = client.answer_to("POST")?;
        Ok((answer.text() == UPLOAD_BYTES.to_string(), answer))
    })
}

fn http1_long(address: SocketAddr, progress: &Progress) -> Vec<String> {
    http1(address, progress, |client| {
        write!(client.stream, "GET /long HTTP/1.1\r\nHost: {HOST}\r\n\r\n")?;
        let answer = client.answer_to("GET")?;
        Ok((answer.body.len() == PIECES * PIECE.len(), answer))
    })
}

/// Asks again and again, on a connection for as long as the edge lets it be used; what it says is held to be the last word.
pub fn http1(
    address: SocketAddr,
    progress: &Progress,
    ask: impl Fn(&mut Https) -> io::Result<(bool, Answer)>,
) -> Vec<String> {
    let mut lost = Vec::new();
    while progress.goes_on() {
        let mut client = match try_https(address, Some(HOST), any_version(&["http/1.1"])) {
            Ok(client) => client,
            Err(error) => {
                lost.push(format!("connect: {error}"));
                continue;
            }
        };
        loop {
            match ask(&mut client) {
                Ok((true, answer)) => {
                    progress.add();
                    if answer.header("connection") == Some("close") || !progress.goes_on() {
                        break;
                    }
                }
                Ok((false, answer)) => {
                    lost.push(format!("{} {:?}, {} bytes", answer.status, answer.headers, answer.body.len()));
                    break;
                }
                Err(error) => {
                    lost.push(error.to_string());
                    break;
                }
            }
        }
    }
    lost
}

fn http2_uploads(address: SocketAddr, progress: &Progress) -> Vec<String> {
    type Full = http_body_util::Full<bytes::Bytes>;
    runtime().block_on(async {
        let mut lost = Vec::new();
        while progress.goes_on() {
            let mut sender = match http2::<Full>(address, Some(HOST)).await {
                Ok(sender) => sender,
                Err(error) => {
                    lost.push(format!("connect: {error}"));
                    continue;
                }
            };
            while sender.ready().await.is_ok() && progress.goes_on() {
                let body = Full::new(vec![b'u'; UPLOAD_BYTES].into());
                let request = http::Request::post(format!("https://{HOST}/upload")).body(body).unwrap();
                match sender.try_send_request(request).await {
                    Ok(response) => match crate::client::collect(response).await {
                        Ok(answer) if answer.text() == UPLOAD_BYTES.to_string() => progress.add(),
                        other => lost.push(format!("{other:?}")),
                    },
                    Err(mut error) => {
                        // It never left: the client has had GOAWAY meanwhile.
                        if error.take_message().is_none() {
                            lost.push(format!("{:?}", error.into_error()));
                        }
                        break;
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        lost
    })
}

fn http3_proxied(address: SocketAddr, progress: &Progress) -> Vec<String> {
    tokio::task::LocalSet::new().block_on(&runtime(), async {
        let mut lost = Vec::new();
        while progress.goes_on() {
            let mut client = match Http3::connect(address, Some(HOST)).await {
                Ok(client) => client,
                Err(error) => {
                    lost.push(format!("connect: {error}"));
                    continue;
                }
            };
            while progress.goes_on() {
                let request = http::Request::get(format!("https://{HOST}/proxied")).body(()).unwrap();
                match client.ask(request).await {
                    Ok(Some(answer)) if answer.text() == "proxied" => progress.add(),
                    // GOAWAY came before the request could leave, or is on its way: to be asked again.
                    Ok(None) => break,
                    Err(error) if error == REJECTED => break,
                    other => {
                        lost.push(format!("{other:?}"));
                        break;
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
            client.close();
        }
        lost
    })
}

/// A tunnel to the origin, through whoever serves now.
pub struct Tunnel(Https);

impl Tunnel {
    pub fn open(address: SocketAddr) -> Self {
        let mut client = try_https(address, Some(HOST), any_version(&["http/1.1"])).unwrap();
        client.send(format!(
            "GET /tunnel HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ));
        assert!(client.head().unwrap().starts_with("HTTP/1.1 101 "));
        Self(client)
    }

    pub fn says(&mut self, word: &str) {
        self.0.send(word);
        assert_eq!(self.0.exactly(word.len()).unwrap(), word.as_bytes());
    }

    pub fn is_cut(&mut self) -> bool {
        self.0.closes()
    }
}
