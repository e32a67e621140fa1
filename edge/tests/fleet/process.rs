//! The edge's own binary as a process.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};

/// Nothing in these tests takes long; what does is stuck.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct EdgeProcess {
    child: Child,
    pub address: SocketAddr,
    pub metrics: SocketAddr,
}

impl EdgeProcess {
    /// Starts it with a file of one listener and a metrics address, and waits until it says where both are.
    pub fn start(file: &Path, backend: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_portico-edge"))
            .args(["--config", file.to_str().unwrap(), "--io", backend])
            .env("RUST_LOG", "info")
            .env("NO_COLOR", "1")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (address, metrics) = addresses(&mut child);
        Self { child, address, metrics }
    }

    /// SIGTERM, as an operator's stop.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The process that has the admin socket in `folder`: this one, or a successor.
    pub fn holder(&self, folder: &Path) -> i32 {
        use std::io::{Read as _, Write as _};
        let mut stream = std::os::unix::net::UnixStream::connect(folder.join("state/admin.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"GET /v1/status HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let status: serde_json::Value = serde_json::from_str(body).unwrap();
        status["process"].as_i64().unwrap().try_into().unwrap()
    }

    pub fn signal_holder(&self, folder: &Path, signal: Signal) {
        let holder = Pid::from_raw(self.holder(folder)).unwrap();
        rustix::process::kill_process(holder, signal).unwrap();
    }

    /// SIGKILL: nothing is finished.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub async fn ended(&mut self) -> ExitStatus {
        let ended = async {
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, ended).await.expect("the edge ends")
    }

    /// One metric's value over all its labels.
    pub async fn metric(&self, name: &str) -> f64 {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(self.metrics).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: m\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut text = String::new();
        tokio::time::timeout(PATIENCE, stream.read_to_string(&mut text)).await.unwrap().unwrap();
        let is_of = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
        text.lines().filter(is_of).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}

impl Drop for EdgeProcess {
    fn drop(&mut self) {
        // Ended already, mostly.
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Reads the log until the edge says where it is; all of it goes on to the test's output.
fn addresses(child: &mut Child) -> (SocketAddr, SocketAddr) {
    let (sender, receiver) = std::sync::mpsc::channel();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    std::thread::spawn(move || {
        while let Some(Ok(line)) = lines.next() {
            let of =
                |word: &str| line.contains(word).then(|| line.rsplit_once("address=")?.1.trim().parse().ok());
            let found = [("listening", false), ("metrics", true)]
                .into_iter()
                .find_map(|(word, is_metrics)| Some((is_metrics, of(word).flatten()?)));
            if let Some(found) = found {
                // Nobody asks any more once both are known.
                let _unasked = sender.send(found);
            }
            eprintln!("edge: {line}");
        }
    });
    let (mut serving, mut metrics) = (None, None);
    while serving.is_none() || metrics.is_none() {
        let (is_metrics, address) = receiver.recv_timeout(PATIENCE).expect("the edge starts");
        *if is_metrics { &mut metrics } else { &mut serving } = Some(address);
    }
    (serving.unwrap(), metrics.unwrap())
}
