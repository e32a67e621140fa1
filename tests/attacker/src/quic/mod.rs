//! Attacks on QUIC: before a handshake, in it, on connections that have shaken hands, and by requests over HTTP/3.

mod client;
mod frames;
mod handshakes;
mod packet;
mod requests;
mod resets;

use std::io;
use std::time::{Duration, Instant};

use crate::attack::Outcome;
use crate::client::Target;

/// What a server sends to an address that it does not know.
#[derive(Clone, Copy, Debug)]
pub struct Flight {
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// It wants the address to be shown first.
    pub retried: bool,
}

/// Says hello once and nothing more, and listens for so long to what is said and said again.
///
/// # Errors
/// When there is no socket for it.
pub fn first_flight(target: &Target, time: Duration) -> io::Result<Flight> {
    let mut client = client::QuicClient::new(target, client::sound_parameters)?;
    client.answers = false;
    client.begin();
    let until = crate::attack::now() + time;
    while crate::attack::now() < until {
        client.receive();
    }
    Ok(Flight {
        bytes_sent: client.bytes_sent as u64,
        bytes_received: client.bytes_received as u64,
        retried: client.retries > 0,
    })
}

/// What a QUIC client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuicAttack {
    /// Handshakes that are begun and never go on, each from a port of its own.
    InitialFlood,
    /// Initials below 1200 bytes (RFC 9000 section 14.1).
    ShortInitials,
    /// CVE-2025-54939: packets behind an Initial that nobody can open.
    CoalescedGarbage,
    /// RUSTSEC-2026-0037 and its kin: transport parameters that are none, or contradict each other.
    BadParameters,
    /// Tokens that the server never gave.
    ForgedTokens,
    /// A token that the server gave to another address.
    StolenTokens,
    /// A token that was given some time ago.
    LateTokens,
    /// A ClientHello in pieces with gaps that are never filled.
    CryptoGaps,
    /// CRYPTO bytes far beyond what is missing.
    CryptoBeyond,
    /// Streams beyond the number that is allowed.
    StreamLimit,
    /// RUSTSEC-2026-0185: every other byte of many streams.
    StreamGaps,
    /// Single bytes with gaps between them, each in a datagram of full size that a reference to it keeps.
    PinnedDatagrams,
    /// More connection ids than the server wants to remember.
    ConnectionIds,
    /// Connection ids that replace each other without end.
    RetiredIds,
    /// Questions that each ask for an answer.
    PathChallenges,
    /// Frames that say nothing.
    Pings,
    /// The same beside one piece of a stream that comes again and again, as what is uploaded has such frames with it.
    RepeatedPieces,
    /// Another address with each packet.
    Migrations,
    /// Packets of a connection that is no more, and resets that answer resets (RFC 9000 section 10.3.3).
    ResetLoop,
    /// CVE-2023-44487 over HTTP/3.
    RapidReset,
    /// Field sections that grow to many times their size.
    QpackBomb,
    /// Field sections that wait for entries of a table that never come.
    QpackBlocked,
    /// Entries for a table that the server does not have.
    QpackInserts,
    /// What a control stream must not be (RFC 9114 section 6.2.1).
    ControlStreams,
    /// Requests whose heads do not end.
    SlowHeads,
    /// Answers that are asked for and never taken.
    ZeroWindow,
}

impl QuicAttack {
    pub const ALL: [Self; 26] = [
        Self::InitialFlood,
        Self::ShortInitials,
        Self::CoalescedGarbage,
        Self::BadParameters,
        Self::ForgedTokens,
        Self::StolenTokens,
        Self::LateTokens,
        Self::CryptoGaps,
        Self::CryptoBeyond,
        Self::StreamLimit,
        Self::StreamGaps,
        Self::PinnedDatagrams,
        Self::ConnectionIds,
        Self::RetiredIds,
        Self::PathChallenges,
        Self::Pings,
        Self::RepeatedPieces,
        Self::Migrations,
        Self::ResetLoop,
        Self::RapidReset,
        Self::QpackBomb,
        Self::QpackBlocked,
        Self::QpackInserts,
        Self::ControlStreams,
        Self::SlowHeads,
        Self::ZeroWindow,
    ];

    /// Runs until the server ends it, it has sent all that it has, or for so long. What `ended` says of a sound server: it
    /// closes a connection that breaks the rules or makes work for nothing, resets what does not go on, answers no more than
    /// three times what came from an address that it does not know, and bears the rest.
    pub(crate) fn run(self, target: &Target, until: Instant) -> io::Result<Outcome> {
        match self {
            Self::InitialFlood
            | Self::ShortInitials
            | Self::CoalescedGarbage
            | Self::BadParameters
            | Self::ForgedTokens
            | Self::CryptoGaps
            | Self::CryptoBeyond => handshakes::run(self, target, until),
            Self::StolenTokens | Self::LateTokens => handshakes::tokens(self, target, until),
            Self::Migrations => frames::migrations(target, until),
            Self::StreamLimit
            | Self::StreamGaps
            | Self::PinnedDatagrams
            | Self::ConnectionIds
            | Self::RetiredIds
            | Self::PathChallenges
            | Self::Pings
            | Self::RepeatedPieces => frames::run(self, target, until),
            Self::ResetLoop => resets::reset_loop(target, until),
            Self::RapidReset => requests::rapid_reset(target, until),
            Self::ControlStreams => requests::control_streams(target, until),
            Self::QpackBomb
            | Self::QpackBlocked
            | Self::QpackInserts
            | Self::SlowHeads
            | Self::ZeroWindow => requests::run(self, target, until),
        }
    }
}
