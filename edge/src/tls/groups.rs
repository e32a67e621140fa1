//! The groups for the exchange of keys, each counted where it is used: a resumed handshake exchanges keys too, and over QUIC
//! nobody says afterwards which group it was.

use std::sync::LazyLock;

use metrics::Counter;
use rustls::{
    Error, NamedGroup, ProtocolVersion,
    crypto::{
        ActiveKeyExchange, CompletedKeyExchange, SupportedKxGroup,
        aws_lc_rs::kx_group::{SECP256R1, SECP384R1, X25519, X25519MLKEM768},
    },
    ffdhe_groups::FfdheGroup,
};

use crate::metrics::{KEY_EXCHANGE_GROUPS, key_exchanges};

/// What is taken of a client, the best first. With one that knows X25519MLKEM768 that is the only one over TLS 1.3.
pub(super) fn counted(knows_hybrid: bool) -> Vec<&'static dyn SupportedKxGroup> {
    static COUNTED: LazyLock<[Groups; 2]> = LazyLock::new(|| [false, true].map(groups));
    COUNTED[usize::from(knows_hybrid)].iter().map(|counted| counted as &dyn SupportedKxGroup).collect()
}

type Groups = [Counted; KEY_EXCHANGE_GROUPS.len()];

struct Counted {
    group: &'static dyn SupportedKxGroup,
    used: Counter,
    /// Not taken over TLS 1.3.
    is_old: bool,
}

fn groups(knows_hybrid: bool) -> Groups {
    let mut counters = KEY_EXCHANGE_GROUPS.map(key_exchanges).into_iter();
    [X25519MLKEM768, X25519, SECP256R1, SECP384R1].map(|group| Counted {
        group,
        used: counters.next().expect("as many as groups"),
        is_old: knows_hybrid && group.name() != NamedGroup::X25519MLKEM768,
    })
}

impl SupportedKxGroup for Counted {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        self.used.increment(1);
        self.group.start()
    }

    fn start_and_complete(&self, peer_pub_key: &[u8]) -> Result<CompletedKeyExchange, Error> {
        self.used.increment(1);
        self.group.start_and_complete(peer_pub_key)
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        self.group.ffdhe_group()
    }

    fn name(&self) -> NamedGroup {
        self.group.name()
    }

    fn fips(&self) -> bool {
        self.group.fips()
    }

    fn usable_for_version(&self, version: ProtocolVersion) -> bool {
        let is_taken = !self.is_old || version == ProtocolVersion::TLSv1_2;
        is_taken && self.group.usable_for_version(version)
    }
}

impl std::fmt::Debug for Counted {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.group.fmt(formatter)
    }
}
