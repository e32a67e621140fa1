//! Hot restart: a new process of the edge takes the place of a running one, and nobody notices.
//!
//! The successor connects to the running edge's hand-over socket (0600, beside the admin socket) and gets its listening
//! sockets, whose queues stay as they are. While it reads its files the other one serves on. Then, in this order: the
//! successor is ready, and the predecessor ends its control stream; the successor opens its own and catches up, challenges
//! too; the predecessor leaves the UDP sockets unread; the successor begins; the predecessor drains (GOAWAY,
//! `Connection: close`) and ends. QUIC packets of its connections reach it by way of the successor
//! ([`crate::listen::quic`]). Until the successor serves, a step that fails or a successor that dies leaves everything as it
//! was.
//!
//! Who owns what: the state folder is written by one process at a time (the predecessor holds its changes in memory from
//! the first step on and writes them if the successor fails); the paths of the admin and hand-over socket and the metrics
//! port go to the successor as it begins; the access log is open in both, each writes whole lines.
//!
//! Deliberately absent: handing over connections. A connection ends where it began; only new ones go to the successor.

mod give;
mod relaunch;
mod surfaces;
mod take;
mod wire;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    config::ListenerKind,
    listen::{Kept, quic::ProcessTag},
    tls::TicketSecret,
};

pub use self::{
    give::{Giver, Shared, serve},
    relaunch::Relaunch,
    surfaces::{OwnSocket, Surfaces},
    take::{Conversation, Taken, take_over},
};

/// Where an edge with that admin socket hands over.
pub fn socket_of(admin_socket: &Path) -> PathBuf {
    let mut path = admin_socket.as_os_str().to_owned();
    path.push(".take-over");
    path.into()
}

/// Of the messages below.
const VERSION: u32 = 1;

/// From the successor.
#[derive(Debug, Serialize, Deserialize)]
enum Wish {
    TakeOver {
        version: u32,
        build: String,
    },
    /// All files are read.
    Ready,
    /// Only the sockets are missing, and these addresses will be served on.
    Begin(Kept),
    Serving,
}

/// From the predecessor.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// Descriptors follow.
    Offer(Box<Offer>),
    /// The state folder and the place in the fleet.
    Yours,
    Go,
    Refused(String),
}

/// What the descriptors are: for each listener its TCP sockets, its UDP sockets, its channels to each generation; then the
/// metrics listener.
#[derive(Debug, Serialize, Deserialize)]
struct Offer {
    listeners: Vec<OfferedListener>,
    metrics: Option<SocketAddr>,
    /// Of Retry tokens. It crosses only a socket that no other user can open.
    token_secret: [u8; 32],
    /// Of session tickets, likewise; an older release gives none.
    #[serde(default)]
    ticket_secret: Option<TicketSecret>,
    /// Processes that go on to have connections, youngest first: the predecessor and those before it.
    generations: Vec<ProcessTag>,
}

#[derive(Debug, Serialize, Deserialize)]
struct OfferedListener {
    bound: SocketAddr,
    configured: SocketAddr,
    kind: ListenerKind,
    tcp: usize,
    udp: usize,
    /// To each of the generations.
    channels: Vec<usize>,
    of_service_manager: bool,
}

impl Offer {
    fn descriptors(&self) -> usize {
        let of_listener = |listener: &OfferedListener| {
            listener
                .channels
                .iter()
                .fold(listener.tcp.saturating_add(listener.udp), |sum, count| sum.saturating_add(*count))
        };
        let listeners = self.listeners.iter().map(of_listener).fold(0, usize::saturating_add);
        listeners.saturating_add(usize::from(self.metrics.is_some()))
    }
}
