//! What is distributed, as the publisher holds it: a key, the encoded message, and who may have it.

use std::collections::BTreeMap;
use std::sync::Arc;

use portico_api::distribution::{Resource, ResourceKind, Tombstone};
use portico_cert_store::{CellId, DomainId, LineageId, TenantId};
use ulid::Ulid;

/// Kinds in the order in which they are sent: whatever a resource refers to goes before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    Tenant,
    Credential,
    Domain,
    Fleet,
}

/// (kind, id) of a resource in 17 bytes: there may be millions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ResourceKey {
    pub(super) kind: Kind,
    ulid: Ulid,
}

/// The id of the only resource of kind Fleet.
pub(super) const FLEET_ID: &str = "fleet";

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
    /// The epoch of the cell key that a Credential's key is sealed under.
    pub(super) key_epoch: Option<u32>,
    body: Body,
}

#[derive(Clone, Debug, PartialEq)]
enum Body {
    Same(Resource),
    /// The fleet's policy names a default lineage, which differs from cell to cell.
    PerCell {
        cells: BTreeMap<CellId, Resource>,
        other: Resource,
    },
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

    /// From a stored or received pair; `None` for a kind or an id that this release does not know.
    pub(super) fn parse(kind: i32, id: &str) -> Option<Self> {
        match ResourceKind::try_from(kind).ok()? {
            ResourceKind::Tenant => Some(Self::tenant(id.parse().ok()?)),
            ResourceKind::Domain => Some(Self::domain(id.parse().ok()?)),
            ResourceKind::Credential => Some(Self::credential(id.parse().ok()?)),
            ResourceKind::Fleet => (id == FLEET_ID).then_some(Self::FLEET),
            ResourceKind::Unspecified => None,
        }
    }

    pub(super) fn wire_kind(self) -> ResourceKind {
        match self.kind {
            Kind::Tenant => ResourceKind::Tenant,
            Kind::Credential => ResourceKind::Credential,
            Kind::Domain => ResourceKind::Domain,
            Kind::Fleet => ResourceKind::Fleet,
        }
    }

    pub(super) fn id(self) -> String {
        match self.kind {
            Kind::Tenant => TenantId::from_ulid(self.ulid).to_string(),
            Kind::Credential => LineageId::from_ulid(self.ulid).to_string(),
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
        Self {
            key,
            version,
            cells,
            needs: Box::default(),
            key_epoch: None,
            body: Body::Same(resource(key, version, tenant_id, body)),
        }
    }

    /// The fleet's policy: a body for each cell that has its own, and one for the rest.
    pub(super) fn per_cell(
        key: ResourceKey,
        version: u64,
        cells: BTreeMap<CellId, Vec<u8>>,
        other: Vec<u8>,
    ) -> Self {
        let wrap = |body| resource(key, version, String::new(), body);
        Self {
            key,
            version,
            cells: Cells::All,
            needs: Box::default(),
            key_epoch: None,
            body: Body::PerCell {
                cells: cells.into_iter().map(|(cell, body)| (cell, wrap(body))).collect(),
                other: wrap(other),
            },
        }
    }

    /// Whose it is; `None`: the operator's.
    pub(super) fn tenant(&self) -> Option<TenantId> {
        match &self.body {
            Body::Same(resource) => resource.tenant_id.parse().ok(),
            Body::PerCell { .. } => None,
        }
    }

    /// The message for an edge of `cell`. Cheap to clone: the body is shared.
    pub(super) fn resource(&self, cell: &CellId) -> &Resource {
        match &self.body {
            Body::Same(resource) => resource,
            Body::PerCell { cells, other } => cells.get(cell).unwrap_or(other),
        }
    }
}

fn resource(key: ResourceKey, version: u64, tenant_id: String, body: Vec<u8>) -> Resource {
    Resource { kind: key.wire_kind() as u32, id: key.id(), version, tenant_id, body: body.into() }
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
