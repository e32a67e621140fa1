//! How far a domain has come on the edges that serve it.

use portico_cert_store::{CellId, DomainId, EdgeId, Generation};
use std::time::Duration;

use super::Distribution;
use super::fleet::Applied;
use super::resource::{Kind, ResourceKey};
use crate::store::StoreError;
use crate::store::edge::{self, NackRow};

/// A domain on the edges of its cells.
#[derive(Clone, Debug)]
pub struct Deployment {
    /// What an edge must have applied to serve the domain as it is published: its own newest change, its tenant's and
    /// those of its credentials.
    pub needed: Generation,
    pub cells: Vec<CellId>,
    /// Live edges that have applied it and refuse no part of it.
    pub deployed: Vec<EdgeId>,
    /// Edges that have not applied it yet, or are not connected.
    pub behind: Vec<EdgeId>,
    /// Edges that refuse a part of it and keep what they had.
    pub refused: Vec<(EdgeId, NackRow)>,
    /// Each of its cells has a credential for it.
    pub has_credentials: bool,
}

impl Distribution {
    /// Where the domain stands now; `None` when it is not published.
    ///
    /// # Errors
    /// The store's.
    pub async fn deployment(&self, domain: DomainId) -> Result<Option<Deployment>, StoreError> {
        let Some((parts, needed, cells, has_credentials)) = self.parts_of(domain) else { return Ok(None) };
        let found = self.fleet.wait_applied(&cells, needed, Duration::ZERO).await;
        self.judged(&parts, needed, cells, has_credentials, found).await.map(Some)
    }

    /// Waits until every live edge of the domain's cells has it as it is published now, for at most `deadline`.
    ///
    /// # Errors
    /// The store's.
    pub async fn wait_deployed(
        &self,
        domain: DomainId,
        deadline: Duration,
    ) -> Result<Option<Deployment>, StoreError> {
        self.publish_now().await?;
        let Some((parts, needed, cells, has_credentials)) = self.parts_of(domain) else { return Ok(None) };
        let found = self.fleet.wait_applied(&cells, needed, deadline).await;
        self.judged(&parts, needed, cells, has_credentials, found).await.map(Some)
    }

    fn parts_of(&self, domain: DomainId) -> Option<(Vec<ResourceKey>, Generation, Vec<CellId>, bool)> {
        let key = ResourceKey::domain(domain);
        let (published, mut needed) = self.context.publisher.find(key)?;
        let cells = published.cells.named().to_vec();
        let mut parts = vec![key];
        let mut covered = Vec::new();
        for &key in &published.needs {
            let Some((part, generation)) = self.context.publisher.find(key) else { continue };
            needed = needed.max(generation);
            if key.kind == Kind::Credential {
                covered.extend_from_slice(part.cells.named());
            }
            parts.push(key);
        }
        let has_credentials = cells.iter().all(|cell| covered.contains(cell));
        Some((parts, needed, cells, has_credentials))
    }

    async fn judged(
        &self,
        parts: &[ResourceKey],
        needed: Generation,
        cells: Vec<CellId>,
        has_credentials: bool,
        found: Applied,
    ) -> Result<Deployment, StoreError> {
        let mut tx = self.context.store.read().await?;
        let mut refused = Vec::new();
        for part in parts {
            refused.extend(edge::nacks_of(&mut tx, part.wire_kind() as u32, &part.id()).await?);
        }
        refused.retain(|(edge, _)| found.applied.contains(edge) || found.behind.contains(edge));
        let refuses = |edge: &EdgeId| refused.iter().any(|(of, _)| of == edge);
        let deployed = found.applied.into_iter().filter(|edge| !refuses(edge)).collect();
        Ok(Deployment { needed, cells, deployed, behind: found.behind, refused, has_credentials })
    }
}
