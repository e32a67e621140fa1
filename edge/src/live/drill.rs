//! A drill: would names be served by a credential that lies ready here, and that no name refers to, were they switched to it?
//!
//! Each look is what a handshake does, in memory: the name's owner is found, the key is opened anew, and a client shakes hands
//! with it for that very name. What visitors are shown stays as it is, and the key cache too.

use std::sync::Arc;

use portico_api::distribution::{DRILL_NAMES_MAX, DrillFault, DrillTarget};
use portico_cert_store::{Credential, LineageId, NamePattern, UnixTime, check_certified_key};
use rustls::sign::CertifiedKey;

use super::publisher::OPERATOR;
use super::stage::{handshake_name, parse_id};
use super::{Fault, LivePublisher, full_text};

impl LivePublisher {
    /// What would keep these names from being served by these lineages.
    ///
    /// # Errors
    /// [`Fault`]: too many names.
    pub fn drill(&self, targets: &[DrillTarget], now: UnixTime) -> Result<Vec<DrillFault>, Fault> {
        let names: usize = targets.iter().map(|target| target.names.len()).sum();
        if names > DRILL_NAMES_MAX {
            let text = format!("a drill of {names} names; at most {DRILL_NAMES_MAX}");
            return Err(Fault::new("DrillTooLarge", text));
        }
        let mut faults = Vec::new();
        for target in targets {
            let ready = self.ready(&target.lineage_id, now);
            for name in &target.names {
                let served =
                    ready.as_ref().map_err(Clone::clone).and_then(|ready| self.would_serve(ready, name));
                if let Err(Fault { code, text }) = served {
                    faults.push(DrillFault {
                        lineage_id: target.lineage_id.clone(),
                        name: name.clone(),
                        code: code.to_owned(),
                        text,
                    });
                }
            }
        }
        Ok(faults)
    }

    /// A lineage's credential with its key, opened now.
    fn ready(&self, lineage: &str, now: UnixTime) -> Result<Ready, Fault> {
        let lineage: LineageId = parse_id(lineage)?;
        let credential = self.held.lineages.get(&lineage).and_then(|record| record.credential.clone());
        let credential =
            credential.ok_or_else(|| Fault::new("NotHere", "the certificate is not on this edge"))?;
        if !credential.is_valid_at(now) {
            let (from, to) = (credential.not_before().as_secs(), credential.not_after().as_secs());
            return Err(Fault::new("NotValid", format!("valid from {from} to {to} (unix seconds), not now")));
        }
        let key = credential
            .open(self.live.keys.cell_keys())
            .map_err(|error| Fault::new("KeyDoesNotOpen", full_text(&error)))?;
        Ok(Ready { credential, key: Arc::new(key) })
    }

    fn would_serve(&self, ready: &Ready, name: &str) -> Result<(), Fault> {
        let name = NamePattern::parse(name).map_err(|error| Fault::new("BadName", error.to_string()))?;
        let owner = self.held.owner_of(&name).and_then(|owner| self.held.domains.get(&owner));
        let owner = owner.filter(|owner| owner.host.served);
        let owner = owner.ok_or_else(|| Fault::new("NotServed", "the name is not served by this edge"))?;
        let of = ready.credential.key_tenant();
        if of != OPERATOR && of != owner.host.tenant.id.to_string() {
            return Err(Fault::new("ForeignKey", "the key belongs to another tenant than the name"));
        }
        let asked = handshake_name(std::slice::from_ref(&name))?;
        if !ready.credential.covers(&asked) {
            return Err(Fault::new("DoesNotCover", format!("the certificate does not cover {name}")));
        }
        check_certified_key(Arc::clone(&ready.key), &asked)
            .map_err(|error| Fault::new("HandshakeFailed", error.to_string()))
    }
}

struct Ready {
    credential: Arc<Credential>,
    key: Arc<CertifiedKey>,
}
