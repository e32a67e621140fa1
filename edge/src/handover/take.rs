//! The successor's side. It runs before there is anything else to do, so it simply waits.

use std::{
    io,
    net::TcpListener,
    os::fd::OwnedFd,
    os::unix::net::{UnixDatagram, UnixStream},
    path::Path,
    time::Duration,
};

use anyhow::{Context, anyhow};
use zeroize::Zeroizing;

use super::{Answer, Offer, OfferedListener, VERSION, Wish, wire};
use crate::{
    limits,
    listen::{
        Inherited, InheritedListener, Kept,
        quic::{Channel, Predecessor, Predecessors, ProcessTag, QuicProcess},
    },
    tls::TicketSecret,
};

/// The talk with a predecessor that has offered its sockets and serves on.
#[derive(Debug)]
pub struct Conversation {
    stream: UnixStream,
}

/// What it has given.
#[derive(Debug)]
pub struct Taken {
    pub inherited: Inherited,
    pub metrics: Option<TcpListener>,
    pub process: QuicProcess,
    pub tickets: Option<TicketSecret>,
}

/// Asks the edge behind `socket` for its sockets.
///
/// # Errors
/// When nobody answers there, or the edge refuses: it ends already, or another successor is at it.
pub fn take_over(socket: &Path) -> anyhow::Result<(Conversation, Taken)> {
    let stream = UnixStream::connect(socket).with_context(|| {
        format!("no edge to take over from answers at {}; start without --take-over", socket.display())
    })?;
    let mut conversation = Conversation { stream };
    let build = env!("CARGO_PKG_VERSION").to_owned();
    conversation.say(&Wish::TakeOver { version: VERSION, build })?;
    let offer = match conversation.hear(limits::TAKE_OVER_STEP_DEADLINE)? {
        Answer::Offer(offer) => offer,
        answer @ (Answer::Yours | Answer::Go | Answer::Refused(_)) => return Err(unexpected(answer)),
    };
    let descriptors = wire::receive_descriptors(&conversation.stream, offer.descriptors())
        .context("the sockets of the running edge")?;
    let taken = sort(*offer, descriptors).context("the sockets of the running edge")?;
    Ok((conversation, taken))
}

impl Conversation {
    /// Says that all files are read, and returns when the state folder and the stream are ours.
    ///
    /// # Errors
    /// When the predecessor does not agree; it serves on.
    pub fn ready(&mut self) -> anyhow::Result<()> {
        self.say(&Wish::Ready)?;
        match self.hear(limits::TAKE_OVER_STEP_DEADLINE)? {
            Answer::Yours => Ok(()),
            answer @ (Answer::Offer(_) | Answer::Go | Answer::Refused(_)) => Err(unexpected(answer)),
        }
    }

    /// Says that only the sockets are missing, and returns when they are ours: the predecessor reads no more packets.
    ///
    /// # Errors
    /// As [`Conversation::ready`].
    pub fn begin(&mut self, kept: &Kept) -> anyhow::Result<()> {
        self.say(&Wish::Begin(kept.clone()))?;
        match self.hear(limits::TAKE_OVER_STEP_DEADLINE)? {
            Answer::Go => Ok(()),
            answer @ (Answer::Offer(_) | Answer::Yours | Answer::Refused(_)) => Err(unexpected(answer)),
        }
    }

    /// Says that we serve: the predecessor drains now.
    ///
    /// # Errors
    /// When the predecessor is gone.
    pub fn serving(mut self) -> anyhow::Result<()> {
        self.say(&Wish::Serving)
    }

    fn say(&mut self, wish: &Wish) -> anyhow::Result<()> {
        wire::write(&mut self.stream, wish).context("hand-over: the running edge does not listen")
    }

    fn hear(&mut self, within: Duration) -> anyhow::Result<Answer> {
        wire::read(&mut self.stream, within).context("hand-over: the running edge does not answer")
    }
}

fn unexpected(answer: Answer) -> anyhow::Error {
    match answer {
        Answer::Refused(text) => anyhow!("the running edge does not hand over: {text}"),
        Answer::Offer(_) | Answer::Yours | Answer::Go => anyhow!("the running edge answers out of turn"),
    }
}

fn sort(offer: Offer, descriptors: Vec<OwnedFd>) -> io::Result<Taken> {
    let mut descriptors = descriptors.into_iter();
    let mut inherited = Inherited::default();
    for listener in &offer.listeners {
        inherited.listeners.push(take_listener(listener, &offer.generations, &mut descriptors)?);
    }
    let metrics = offer.metrics.is_some().then(|| descriptors.next().map(TcpListener::from)).flatten();
    let secret = Zeroizing::new(offer.token_secret);
    let process = QuicProcess::succeeding(secret, &offer.generations)?;
    Ok(Taken { inherited, metrics, process, tickets: offer.ticket_secret })
}

fn take_listener(
    offered: &OfferedListener,
    generations: &[ProcessTag],
    descriptors: &mut impl Iterator<Item = OwnedFd>,
) -> io::Result<InheritedListener> {
    let tcp = descriptors.take(offered.tcp).map(Into::into).collect();
    let udp = descriptors.take(offered.udp).map(Into::into).collect();
    let mut predecessors = Vec::new();
    for (tag, count) in generations.iter().zip(&offered.channels) {
        let channels = descriptors.take(*count).map(|channel| Channel::new(UnixDatagram::from(channel)));
        predecessors.push(Predecessor { tag: *tag, channels: channels.collect::<io::Result<_>>()? });
    }
    Ok(InheritedListener {
        bound: offered.bound,
        configured: Some((offered.configured, offered.kind)),
        tcp,
        udp,
        predecessors: Predecessors::new(predecessors),
        of_service_manager: offered.of_service_manager,
    })
}
