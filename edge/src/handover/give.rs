//! The running edge's side.

use std::{
    cell::RefCell,
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd, BorrowedFd},
    os::unix::net::UnixDatagram,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{UnixListener, UnixStream},
    sync::Mutex,
    task::AbortHandle,
};

use super::{Answer, Offer, OfferedListener, VERSION, Wish, wire};
use crate::{
    admin,
    control::ControlSwitch,
    drain::DrainSwitch,
    limits,
    listen::{
        BoundListener, Kept,
        quic::{Channel, ProcessTag, QuicProcess, QuicSocket},
    },
    server::Edge,
};

/// Handles of all that a successor will get.
#[derive(Debug)]
pub struct Shared {
    /// Of all workers; those of one address stand together.
    listeners: Vec<Vec<BoundListener>>,
    process: Arc<QuicProcess>,
    metrics: Option<TcpListener>,
}

/// Hands over, once.
pub struct Giver {
    pub edge: Arc<Edge>,
    pub shared: Shared,
    pub control: Option<ControlSwitch>,
    pub switch: DrainSwitch,
    /// What answers on the metrics port.
    pub metrics: RefCell<Option<AbortHandle>>,
    /// Held in the last steps: an order to end waits until it is clear whose sockets these are.
    pub last_steps: Rc<Mutex<()>>,
}

/// Why it came to nothing.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("the successor is gone or silent: {0}")]
    Io(#[from] io::Error),
    #[error("the successor says something else than what is due")]
    Protocol,
    #[error("{0}")]
    Refused(String),
}

/// The channels from a successor, as long as it is not there.
struct Ends {
    /// By bound address, in the order of slots.
    channels: Vec<(SocketAddr, Vec<UnixDatagram>)>,
}

impl Shared {
    /// # Errors
    /// When no descriptor is left.
    pub fn of(
        per_worker: &[Vec<BoundListener>],
        process: &Arc<QuicProcess>,
        metrics: Option<&TcpListener>,
    ) -> io::Result<Self> {
        let mut listeners: Vec<Vec<BoundListener>> = Vec::new();
        for bound in per_worker.iter().flatten() {
            let address = bound.config.address;
            let known = listeners.iter().position(|group| group[0].config.address == address);
            match known {
                Some(index) => listeners[index].push(bound.try_clone()?),
                None => listeners.push(vec![bound.try_clone()?]),
            }
        }
        let metrics = metrics.map(TcpListener::try_clone).transpose()?;
        Ok(Self { listeners, process: Arc::clone(process), metrics })
    }

    /// We, and those before us that still have connections.
    fn generations(&self) -> Result<Vec<ProcessTag>, Failed> {
        let mut tags = vec![self.process.tag];
        let sockets = self.listeners.iter().flatten().flat_map(|bound| &bound.quic);
        for predecessor in sockets.flat_map(|socket| socket.predecessors().iter()) {
            if !tags.contains(&predecessor.tag) && predecessor.channels.iter().any(Channel::is_open) {
                tags.push(predecessor.tag);
            }
        }
        if tags.len() > limits::PREDECESSORS_MAX {
            let text = format!("{} predecessors still drain; try again when one has ended", tags.len() - 1);
            return Err(Failed::Refused(text));
        }
        Ok(tags)
    }

    /// In the order of slots.
    fn slots(group: &[BoundListener]) -> Vec<&QuicSocket> {
        let mut slots: Vec<_> = group.iter().flat_map(|bound| &bound.quic).collect();
        slots.sort_by_key(|socket| socket.slot);
        slots
    }
}

/// Waits for successors until one has taken over.
pub async fn serve(listener: UnixListener, giver: Rc<Giver>) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        if !admin::is_allowed(&stream) {
            tracing::warn!("the hand-over socket was opened by another user; closed");
            continue;
        }
        match giver.give(&mut stream).await {
            Ok(()) => return,
            Err(failed) => {
                tracing::error!(%failed, "not handed over; this edge serves on");
                let _ = wire::write_async(&mut stream, &Answer::Refused(failed.to_string())).await;
            }
        }
    }
}

impl Giver {
    async fn give(&self, stream: &mut UnixStream) -> Result<(), Failed> {
        let Wish::TakeOver { version, build } =
            wire::read_async(stream, self.edge.deadlines.take_over_step).await?
        else {
            return Err(Failed::Protocol);
        };
        if version != VERSION {
            let text =
                format!("it speaks version {version} of the hand-over, and this edge {VERSION}; restart it");
            return Err(Failed::Refused(text));
        }
        self.check_still_ours()?;
        tracing::info!(build, "a successor takes over");
        if let Some(control) = &self.control {
            control.hold().await;
        }
        let given = self.give_sockets(stream).await;
        if given.is_err() {
            for socket in self.shared.listeners.iter().flatten().flat_map(|bound| &bound.quic) {
                socket.gate().open();
            }
            if let Some(control) = &self.control {
                control.go_on().await;
            }
        }
        given
    }

    async fn give_sockets(&self, stream: &mut UnixStream) -> Result<(), Failed> {
        let ends = self.offer(stream).await?;
        let Wish::Ready = wire::read_async(stream, self.edge.deadlines.take_over).await? else {
            return Err(Failed::Protocol);
        };
        if let Some(control) = &self.control {
            control.rest().await;
        }
        wire::write_async(stream, &Answer::Yours).await?;
        let Wish::Begin(kept) = wire::read_async(stream, self.edge.deadlines.take_over_step).await? else {
            return Err(Failed::Protocol);
        };
        let _steps = self.last_steps.lock().await;
        self.check_still_ours()?;
        for socket in self.kept_slots(&kept) {
            socket.gate().close();
        }
        wire::write_async(stream, &Answer::Go).await?;
        let Wish::Serving = wire::read_async(stream, self.edge.deadlines.take_over_step).await? else {
            return Err(Failed::Protocol);
        };
        let process = stream.peer_cred().ok().and_then(|peer| peer.pid());
        self.hand_over(kept, ends, process);
        Ok(())
    }

    fn check_still_ours(&self) -> Result<(), Failed> {
        match self.edge.drain.is_ordered() {
            true => Err(Failed::Refused("it is ordered to end".to_owned())),
            false => Ok(()),
        }
    }

    fn kept_slots(&self, kept: &Kept) -> impl Iterator<Item = &QuicSocket> {
        let is_kept = |group: &&Vec<BoundListener>| kept.udp.contains(&group[0].config.address);
        let groups: Vec<_> = self.shared.listeners.iter().filter(is_kept).collect();
        groups.into_iter().flatten().flat_map(|bound| &bound.quic)
    }

    /// The point of no return: the successor serves.
    fn hand_over(&self, kept: Kept, ends: Ends, process: Option<i32>) {
        for (address, channels) in ends.channels {
            let group = self.shared.listeners.iter().find(|group| group[0].config.address == address);
            let Some(group) = group.filter(|_| kept.udp.contains(&address)) else { continue };
            for (socket, channel) in Shared::slots(group).into_iter().zip(channels) {
                socket.gate().read_from(channel);
            }
        }
        if let Some(metrics) = self.metrics.borrow_mut().take() {
            metrics.abort();
        }
        let process = process.and_then(|process| u32::try_from(process).ok());
        if let Some(process) = process {
            // A service manager watches the successor from now on.
            let _ = sd_notify::notify(&[sd_notify::NotifyState::MainPid(process)]);
        }
        let _first = self.edge.successor.set(kept);
        tracing::info!(process, "handed over to the successor; draining");
        self.switch.begin();
    }

    async fn offer(&self, stream: &mut UnixStream) -> Result<Ends, Failed> {
        let mut ends = Ends { channels: Vec::new() };
        let mut new = Vec::new();
        for group in &self.shared.listeners {
            let pairs =
                Shared::slots(group).iter().map(|_| Channel::pair()).collect::<io::Result<Vec<_>>>()?;
            let (channels, theirs): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
            new.push(channels);
            ends.channels.push((group[0].config.address, theirs));
        }
        let generations = self.shared.generations()?;
        let mut descriptors: Vec<BorrowedFd<'_>> = Vec::new();
        let mut listeners = Vec::new();
        for (group, channels) in self.shared.listeners.iter().zip(&new) {
            listeners.push(offered(group, channels, &generations, &mut descriptors));
        }
        let metrics = self.shared.metrics.as_ref();
        descriptors.extend(metrics.map(AsFd::as_fd));
        let offer = Offer {
            listeners,
            metrics: metrics.map(TcpListener::local_addr).transpose()?,
            token_secret: *self.shared.process.token_secret(),
            ticket_secret: Some(self.edge.tls.tickets().secret()),
            generations,
        };
        wire::write_async(stream, &Answer::Offer(Box::new(offer))).await?;
        wire::send_descriptors(stream, &descriptors).await?;
        Ok(ends)
    }
}

/// One address, and its descriptors in their order.
fn offered<'a>(
    group: &'a [BoundListener],
    own: &'a [Channel],
    generations: &[ProcessTag],
    descriptors: &mut Vec<BorrowedFd<'a>>,
) -> OfferedListener {
    let slots = Shared::slots(group);
    descriptors.extend(group.iter().map(|bound| bound.socket.as_fd()));
    descriptors.extend(slots.iter().map(|socket| socket.socket().as_fd()));
    let mut channels = Vec::new();
    for (index, tag) in generations.iter().enumerate() {
        let before = descriptors.len();
        if index == 0 {
            descriptors.extend(own.iter().map(|channel| channel.socket().as_fd()));
        } else if let Some(socket) = slots.first() {
            let predecessor = socket.predecessors().iter().find(|predecessor| predecessor.tag == *tag);
            let channels = predecessor.into_iter().flat_map(|predecessor| &predecessor.channels);
            descriptors.extend(channels.map(|channel| channel.socket().as_fd()));
        }
        channels.push(descriptors.len() - before);
    }
    let first = &group[0];
    OfferedListener {
        bound: first.config.address,
        configured: first.configured,
        kind: first.config.kind,
        tcp: group.len(),
        udp: slots.len(),
        channels,
        of_service_manager: first.of_service_manager,
    }
}

impl std::fmt::Debug for Giver {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Giver").field("shared", &self.shared).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
