//! What every part of Portico knows about names, certificates and keys.
//!
//! Deliberately absent: the network, async code and the clock (`now` is always an argument). The one exception is
//! [`Id::generate`], which makes new identities.

mod domain_name;
mod ids;

pub use domain_name::{DomainName, LABEL_BYTES_MAX, NAME_BYTES_MAX, NameError, NamePattern};
pub use ids::{
    CellId, CredentialId, DomainId, EdgeId, Generation, GroupId, Id, IdError, IdKind, LineageId, OrderId,
    TenantId,
};
pub use rustls_pki_types::UnixTime;
