//! Origins that speak HTTP/1.1 by hand.

use std::net::SocketAddr;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// What to do with each request.
pub enum Behaviour {
    /// 200 with the request's body.
    Echo,
    /// 200 at once, without a look at the body, then closes.
    AnswerEarly,
    /// Heads, then nothing until told, then the rest.
    Hold(oneshot::Sender<()>, oneshot::Receiver<()>),
    /// A body that is shorter than it says.
    CutShort,
    /// 8 MiB that the test knows.
    Large,
}

pub const LARGE_BYTES: usize = 8 << 20;

pub fn large_byte(index: usize) -> u8 {
    u8::try_from(index % 251).unwrap()
}

/// Serves until the test ends.
pub async fn start(behaviour: Behaviour) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut behaviour = Some(behaviour);
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            match behaviour.take() {
                Some(Behaviour::Hold(asked, go)) => {
                    tokio::task::spawn_local(hold(stream, asked, go));
                }
                Some(Behaviour::Echo) => {
                    behaviour = Some(Behaviour::Echo);
                    tokio::task::spawn_local(echo(stream));
                }
                Some(other) => {
                    tokio::task::spawn_local(simple(
                        stream,
                        matches!(other, Behaviour::CutShort),
                        matches!(other, Behaviour::Large),
                    ));
                    behaviour = Some(other);
                }
                None => return,
            }
        }
    });
    address
}

/// The head's lines.
async fn read_head(stream: &mut BufReader<TcpStream>) -> Option<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => return Some(lines),
            text => lines.push(text.to_ascii_lowercase()),
        }
    }
}

async fn read_body(stream: &mut BufReader<TcpStream>, head: &[String]) -> Option<Vec<u8>> {
    let value =
        |name: &str| head.iter().find_map(|line| line.strip_prefix(name).map(|text| text.trim().to_owned()));
    if let Some(length) = value("content-length:") {
        let mut body = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut body).await.ok()?;
        return Some(body);
    }
    let mut body = Vec::new();
    if value("transfer-encoding:").is_none() {
        return Some(body);
    }
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let length = usize::from_str_radix(line.trim(), 16).ok()?;
        let mut chunk = vec![0; length + 2];
        stream.read_exact(&mut chunk).await.ok()?;
        body.extend_from_slice(&chunk[..length]);
        if length == 0 {
            return Some(body);
        }
    }
}

async fn echo(stream: TcpStream) {
    let mut stream = BufReader::new(stream);
    while let Some(head) = read_head(&mut stream).await {
        let Some(body) = read_body(&mut stream, &head).await else { return };
        let answer =
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nx-request: {}\r\n\r\n", body.len(), head[0]);
        if stream.write_all(answer.as_bytes()).await.is_err() || stream.write_all(&body).await.is_err() {
            return;
        }
    }
}

async fn hold(stream: TcpStream, asked: oneshot::Sender<()>, go: oneshot::Receiver<()>) {
    let mut stream = BufReader::new(stream);
    read_head(&mut stream).await.unwrap();
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nheld").await.unwrap();
    asked.send(()).unwrap();
    go.await.unwrap();
    stream.write_all(b"done").await.unwrap();
}

async fn simple(stream: TcpStream, cut: bool, large: bool) {
    let mut stream = BufReader::new(stream);
    if read_head(&mut stream).await.is_none() {
        return;
    }
    let written = if cut {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort").await
    } else if large {
        let body: Vec<u8> = (0..LARGE_BYTES).map(large_byte).collect();
        // No length: only a clean end says that it is whole.
        let head = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n", body.len());
        let _ = stream.write_all(head.as_bytes()).await;
        let _ = stream.write_all(&body).await;
        stream.write_all(b"\r\n0\r\n\r\n").await
    } else {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nearly").await
    };
    written.unwrap();
    let _ = stream.shutdown().await;
    // What was sent must not be lost to a reset because something was left unread.
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(std::time::Duration::from_secs(2), stream.read_to_end(&mut rest)).await;
}
