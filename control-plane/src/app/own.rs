//! Where Portico itself is, for the judgement of grants and of origins: what the configuration says, and what edges are
//! told to deny, so that the API refuses what they refuse.
//!
//! The fleet's policy is read from the store, for another control plane on the same database may have published it. It is
//! taken apart again only when it has changed.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;
use portico_prober::egress::EgressPolicy;

use super::spec::OwnAddresses;
use crate::distribution::FleetPolicy;
use crate::store::{Connection, StoreError, publication};

/// What is ours at present. Clones share what was read last.
#[derive(Clone, Debug)]
pub(crate) struct Own {
    networks: Vec<IpNet>,
    sockets: Vec<SocketAddr>,
    last: Arc<Mutex<Option<Read>>>,
}

/// The same places for both questions.
#[derive(Debug)]
pub(crate) struct Places {
    /// What no operator grants to a tenant.
    pub(crate) addresses: OwnAddresses,
    /// Which addresses a tenant's origins may have.
    pub(crate) egress: EgressPolicy,
}

#[derive(Clone, Debug)]
struct Read {
    /// The fleet's policy as it is stored.
    policy: Option<String>,
    places: Arc<Places>,
}

impl Own {
    /// `networks` and `sockets`: those of the configuration.
    pub(super) fn new(networks: Vec<IpNet>, sockets: Vec<SocketAddr>) -> Self {
        Self { networks, sockets, last: Arc::default() }
    }

    /// # Errors
    /// The database's.
    pub(crate) async fn places(&self, connection: &mut Connection) -> Result<Arc<Places>, StoreError> {
        let policy = publication::fleet_policy(connection).await?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(read) = last.as_ref().filter(|read| read.policy == policy) {
            return Ok(Arc::clone(&read.places));
        }
        let places = Arc::new(self.with(policy.as_deref()));
        *last = Some(Read { policy, places: Arc::clone(&places) });
        Ok(places)
    }

    /// A policy that cannot be read denies nothing, as for the publisher: edges judge each connect themselves.
    fn with(&self, policy: Option<&str>) -> Places {
        let published: FleetPolicy =
            policy.and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default();
        let networks = [&*self.networks, &*published.denied].concat();
        let sockets = [&*self.sockets, &*published.denied_sockets].concat();
        let egress = EgressPolicy::new(networks.clone(), sockets.clone());
        Places { addresses: OwnAddresses { networks, sockets }, egress }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[tokio::test]
    async fn what_edges_are_told_to_deny_is_ours_as_soon_as_it_is_stored() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::for_tests(folder.path()).await.unwrap();
        let own = Own::new(Vec::new(), vec!["127.0.0.1:7070".parse().unwrap()]);
        let mut tx = store.begin().await.unwrap();
        let sockets = |places: &Places| places.addresses.sockets.len();
        assert_eq!(sockets(&own.places(&mut tx).await.unwrap()), 1);
        let json = r#"{"denied":["192.0.2.7/32"],"denied_sockets":["127.0.0.1:9109"]}"#;
        publication::put_fleet_policy(&mut tx, json).await.unwrap();
        let places = own.places(&mut tx).await.unwrap();
        assert_eq!((sockets(&places), places.addresses.networks.len()), (2, 1));
        assert!(places.egress.check("192.0.2.7:443".parse().unwrap(), []).is_err());
        let again = own.places(&mut tx).await.unwrap();
        assert!(Arc::ptr_eq(&places, &again), "it is not taken apart anew");
    }
}
