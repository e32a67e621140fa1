//! What a handshake for a name gets now: every credential that some client is shown, and what governs the connection.

use std::sync::Arc;

use portico_cert_store::{ClientCapabilities, Credential, DomainName, Hit, Support, TlsPolicy, TlsVersion};
use serde_json::{Value, json};

use super::CertificateView;
use crate::{
    clock,
    live::{Live, UnknownSni},
};

/// The answer for one name. `credentials` begins with what a client gets that can use all.
pub(super) fn sni(live: &Live, name: &DomainName) -> Value {
    let hits = hits(live, name);
    let host = live.host(name);
    let is_default = hits.is_empty();
    let shown: Vec<(Arc<Credential>, Vec<&str>)> = match hits.first() {
        Some(_) => hits.iter().map(|(hit, clients)| (Arc::clone(&hit.credential), clients.clone())).collect(),
        None => default(live).into_iter().map(|credential| (credential, vec!["all"])).collect(),
    };
    let policy = hits.first().map(|(hit, _)| hit.policy);
    let policy = policy.or_else(|| (!shown.is_empty()).then(TlsPolicy::default));
    json!({
        "sni": name.as_str(),
        "found": !is_default,
        // Then each request is answered 421.
        "default_certificate": is_default && !shown.is_empty(),
        "alert": shown.is_empty().then_some("unrecognized_name"),
        "credentials": shown.iter().map(|(credential, clients)| credential_view(credential, clients)).collect::<Vec<_>>(),
        "tls": policy.map(policy_view),
        "tenant": hits.first().map(|(hit, _)| hit.tenant.to_string()),
        "domain": hits.first().map(|(hit, _)| hit.domain.to_string()),
        "routes": host.as_ref().map(|host| host.routes.len()),
        "served": host.as_ref().map(|host| host.served),
    })
}

/// Each credential that a kind of client gets, with the names of those kinds.
fn hits(live: &Live, name: &DomainName) -> Vec<(Hit, Vec<&'static str>)> {
    let yes = Support::Yes;
    let ecdsa = ClientCapabilities { ecdsa_p256: yes, ecdsa_p384: yes, ..ClientCapabilities::NONE };
    let ed25519 = ClientCapabilities { ed25519: yes, ..ClientCapabilities::NONE };
    let kinds = [
        ("all", ClientCapabilities::ALL),
        ("ecdsa_only", ecdsa),
        ("rsa_only", ClientCapabilities::RSA),
        ("ed25519_only", ed25519),
    ];
    let mut found: Vec<(Hit, Vec<&str>)> = Vec::new();
    for (clients, capabilities) in kinds {
        let Some(hit) = live.sni.lookup(name, clock::unix_time(), capabilities) else { continue };
        // Where a client can use none it gets the best all the same, and ends the handshake.
        if capabilities.supports(hit.credential.key_type()) == Support::No {
            continue;
        }
        match found.iter_mut().find(|(other, _)| other.credential.id() == hit.credential.id()) {
            Some((_, kinds)) => kinds.push(clients),
            None => found.push((hit, vec![clients])),
        }
    }
    found
}

fn default(live: &Live) -> Option<Arc<Credential>> {
    match live.fleet.load().unknown_sni {
        UnknownSni::Default => live.sni.default_credential(),
        UnknownSni::Refuse => None,
    }
}

fn credential_view(credential: &Credential, clients: &[&str]) -> Value {
    json!({
        "clients": clients,
        "id": credential.id().to_string(),
        "certificate": CertificateView::of(credential.lineage(), &credential.facts()),
        "custody": format!("{:?}", credential.custody()).to_lowercase(),
    })
}

fn policy_view(policy: TlsPolicy) -> Value {
    let minimum = match policy.minimum_version {
        TlsVersion::Tls12 => "1.2",
        TlsVersion::Tls13 => "1.3",
    };
    let asked = policy.client_certificates.map(|asked| if asked.required { "require" } else { "optional" });
    json!({
        "minimum_version": minimum,
        "http2": policy.http2,
        "http3": policy.http3,
        "client_certificates": asked,
    })
}
