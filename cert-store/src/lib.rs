//! What every part of Portico knows about names, certificates and keys.
//!
//! Deliberately absent: the network, async code and the clock (`now` is always an argument). The one exception is
//! [`Id::generate`], which makes new identities.

mod certificate;
mod client_authorities;
mod client_capabilities;
mod credential;
mod custody;
mod domain_name;
#[cfg(test)]
mod fixture;
mod handshake;
mod ids;
mod key;
mod last_good;
mod leaf;
mod name_table;
mod pem;
mod planner;
mod seal;
mod sharded_map;
mod sni_index;
mod tls_policy;
mod upload;

pub use certificate::{
    CERTIFICATE_BYTES_MAX, CERTIFICATE_NAMES_MAX, CHAIN_LENGTH_MAX, CertificateChain, CertificateError,
    CertificateFacts, ChainInterner, KeyType, certificate_pem, request_pem,
};
pub use client_authorities::{
    CLIENT_AUTHORITIES_BYTES_MAX, CLIENT_AUTHORITIES_MAX, ClientAuthorities, ClientAuthoritiesError,
};
pub use client_capabilities::{ClientCapabilities, Support};
pub use credential::{
    CELL_KEYS_MAX, CellKeys, Credential, CredentialParts, KeptParts, KeyCache, KeyError, SEALED_KEY_BYTES_MAX,
};
pub use custody::Custody;
pub use domain_name::{DomainName, LABEL_BYTES_MAX, NAME_BYTES_MAX, NameError, NamePattern};
pub use handshake::check_certified_key;
pub use ids::{
    CellId, CredentialId, DomainId, EdgeId, Generation, GroupId, Id, IdError, IdKind, LineageId, OrderId,
    TenantId,
};
pub use key::{KEY_BYTES_MAX, PrivateKey, PrivateKeyError};
pub use last_good::{FRAME_BYTES_MAX, Frames, LastGood, LastGoodError, Loaded, LoggedDelta, SNAPSHOTS_KEPT};
pub use name_table::{Match, NameTable, NameTablePublisher};
pub use pem::{PemFault, pem_certificates};
pub use planner::{
    Basis, BlastRadius, OrderNeed, Plan, PlanGroup, PlanInput, PlanLimits, PlanName, PlannedGroup, Sharing,
    WaitingName, WaitingReason, plan,
};
pub use rustls_pki_types::UnixTime;
pub use seal::{CellKey, SealContext, SealError, SealedKey, hpke, open_bytes, seal_bytes};
pub use sni_index::{
    Hit, PublishError, SLOTS_PER_NAME_MAX, Slot, SniEntry, SniEntryInput, SniIndex, SniPublisher,
};
pub use tls_policy::{ClientCertificates, TlsPolicy, TlsVersion};
pub use upload::{
    UPLOADED_CHAIN_BYTES_MAX, UPLOADED_KEY_BYTES_MAX, UPLOADED_REMAINING_SECONDS_MIN, Upload, UploadFault,
    UploadPart, read_chain,
};
