//! What is distributed, as the publisher holds it: a key, the encoded message, and who may have it.

use std::sync::Arc;

use portico_api::distribution::{Resource, ResourceKind, Tombstone};
use portico_cert_store::{CellId, DomainId, LineageId, TenantId};
use ulid::Ulid;

use crate::store::publication::FLEET_ID;

/// Kinds in the order in which they are sent: whatever a resource refers to goes before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    Tenant,
    Credential,
    OriginIdentity,
    Domain,
    Fleet,
}

/// (kind, id) of a resource in 17 bytes: there may be millions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ResourceKey {
    pub(super) kind: Kind,
    ulid: Ulid,
}

/// The cells whose edges get a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cells {
    All,
    Only(Arc<[CellId]>),
}

/// One version of one resource, ready to send.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Published {
    pub(super) key: ResourceKey,
    pub(super) version: u64,
    pub(super) cells: Cells,
    /// What must not arrive after it, when both are new.
    pub(super) needs: Box<[ResourceKey]>,
    /// The epoch of the cell key that a Credential's or an origin identity's key is sealed under.
    pub(super) key_epoch: Option<u32>,
    /// The message. Cheap to clone: its body is shared.
    pub(super) resource: Resource,
}

impl ResourceKey {
    pub(super) const FLEET: Self = Self { kind: Kind::Fleet, ulid: Ulid(0) };

    pub(super) fn tenant(id: TenantId) -> Self {
        Self { kind: Kind::Tenant, ulid: id.ulid() }
    }

    pub(super) fn domain(id: DomainId) -> Self {
        Self { kind: Kind::Domain, ulid: id.ulid() }
    }

    /// A Credential is known by its lineage, so that a renewal is a new version of the same resource.
    pub(super) fn credential(id: LineageId) -> Self {
        Self { kind: Kind::Credential, ulid: id.ulid() }
    }

    /// By which a tenant's origins know one cell.
    pub(super) fn origin_identity(id: LineageId) -> Self {
        Self { kind: Kind::OriginIdentity, ulid: id.ulid() }
    }

    /// From a stored or received pair; `None` for a kind or an id that this release does not know.
    pub(super) fn parse(kind: i32, id: &str) -> Option<Self> {
        match ResourceKind::try_from(kind).ok()? {
            ResourceKind::Tenant => Some(Self::tenant(id.parse().ok()?)),
            ResourceKind::Domain => Some(Self::domain(id.parse().ok()?)),
            ResourceKind::Credential => Some(Self::credential(id.parse().ok()?)),
            ResourceKind::OriginIdentity => Some(Self::origin_identity(id.parse().ok()?)),
            ResourceKind::Fleet => (id == FLEET_ID).then_some(Self::FLEET),
            ResourceKind::Unspecified => None,
        }
    }

    pub(super) fn wire_kind(self) -> ResourceKind {
        match self.kind {
            Kind::Tenant => ResourceKind::Tenant,
            Kind::Credential => ResourceKind::Credential,
            Kind::OriginIdentity => ResourceKind::OriginIdentity,
            Kind::Domain => ResourceKind::Domain,
            Kind::Fleet => ResourceKind::Fleet,
        }
    }

    pub(super) fn id(self) -> String {
        match self.kind {
            Kind::Tenant => TenantId::from_ulid(self.ulid).to_string(),
            Kind::Credential | Kind::OriginIdentity => LineageId::from_ulid(self.ulid).to_string(),
            Kind::Domain => DomainId::from_ulid(self.ulid).to_string(),
            Kind::Fleet => FLEET_ID.to_owned(),
        }
    }

    pub(super) fn tombstone(self) -> Tombstone {
        Tombstone { kind: self.wire_kind() as u32, id: self.id() }
    }
}

impl Cells {
    pub(super) fn only(mut cells: Vec<CellId>) -> Self {
        cells.sort();
        cells.dedup();
        Self::Only(cells.into())
    }

    pub(super) fn contains(&self, cell: &CellId) -> bool {
        match self {
            Self::All => true,
            Self::Only(cells) => cells.contains(cell),
        }
    }

    /// The named cells; none for [`Cells::All`].
    pub(super) fn named(&self) -> &[CellId] {
        match self {
            Self::All => &[],
            Self::Only(cells) => cells,
        }
    }
}

impl Published {
    pub(super) fn new(
        key: ResourceKey,
        version: u64,
        cells: Cells,
        tenant_id: String,
        body: Vec<u8>,
    ) -> Self {
        let resource =
            Resource { kind: key.wire_kind() as u32, id: key.id(), version, tenant_id, body: body.into() };
        Self { key, version, cells, needs: Box::default(), key_epoch: None, resource }
    }

    /// Whose it is; `None`: the operator's.
    pub(super) fn tenant(&self) -> Option<TenantId> {
        self.resource.tenant_id.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_reads_back_from_its_wire_form() {
        let keys = [
            ResourceKey::tenant(TenantId::generate()),
            ResourceKey::domain(DomainId::generate()),
            ResourceKey::credential(LineageId::generate()),
            ResourceKey::origin_identity(LineageId::generate()),
            ResourceKey::FLEET,
        ];
        for key in keys {
            assert_eq!(ResourceKey::parse(key.wire_kind() as i32, &key.id()), Some(key));
        }
        assert_eq!(ResourceKey::parse(99, "x_1"), None);
        assert_eq!(ResourceKey::parse(ResourceKind::Fleet as i32, "other"), None);
        assert_eq!(ResourceKey::parse(ResourceKind::Domain as i32, &keys[0].id()), None);
    }
}
