//! What a proxy route may say: origins, how they are trusted, watched and spared.

use std::collections::HashSet;
use std::net::SocketAddr;

use ipnet::IpNet;
use portico_api::rule::{PolicyFault, proxy_faults};
use portico_api::v1::{EgressGrant, FieldError, OriginTls, Proxy};
use portico_cert_store::pem_certificates;
use portico_prober::egress::{EgressPolicy, EgressRefused, Grant};
use rustls::RootCertStore;
use rustls_pki_types::ServerName;
use url::Host;

use super::{absolute, is_authority};
use crate::http::fault::field;

const ORIGINS_MAX: usize = 16;
const WEIGHT_MAX: u32 = 1000;
const CERTIFICATES_MAX: usize = 16;
const CA_BYTES_MAX: usize = 32 * 1024;

/// Everything of a proxy action; `at` is its pointer.
pub(super) fn check(
    at: &str,
    proxy: &Proxy,
    policy: &EgressPolicy,
    grants: &[EgressGrant],
) -> Vec<FieldError> {
    let mut errors = origins(at, proxy, policy, grants);
    let wrong = proxy.host_header.as_deref().filter(|host| !is_authority(host));
    let message = "must be a host with an optional port";
    errors.extend(wrong.map(|_| field(format!("{at}/host_header"), "invalid_host", message)));
    if let Some(given) = &proxy.tls {
        errors.extend(tls(&format!("{at}/tls"), given));
        if errors.is_empty() && !proxy.targets().iter().any(|origin| origin.url.starts_with("https:")) {
            let message = "no origin is https; leave it out or begin an origin with https://";
            errors.push(field(format!("{at}/tls"), "unused", message));
        }
    }
    if proxy.tls.as_ref().is_some_and(|tls| tls.client_certificate) {
        let plain = proxy.targets().into_iter().find(|origin| !origin.url.starts_with("https:"));
        errors.extend(plain.map(|origin| {
            let message = format!("{} is not https: nobody there sees a certificate", origin.url);
            field(format!("{at}/tls/client_certificate"), "unused", message)
        }));
    }
    let at = |fault: &PolicyFault| format!("{at}{}", fault.below);
    errors.extend(proxy_faults(proxy).into_iter().map(|fault| field(at(&fault), fault.code, fault.message)));
    errors
}

fn origins(at: &str, proxy: &Proxy, policy: &EgressPolicy, grants: &[EgressGrant]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    match (&proxy.origin, proxy.origins.len()) {
        (Some(only), 0) => errors.extend(origin(&format!("{at}/origin"), only, policy, grants).err()),
        (Some(_), _) => {
            let message = "give either origin or origins; put this one into the list";
            errors.push(field(format!("{at}/origin"), "conflict", message));
        }
        (None, 0) => {
            let message = "missing; give an origin, or several as origins";
            errors.push(field(format!("{at}/origin"), "missing_field", message));
        }
        (None, 1..=ORIGINS_MAX) => {}
        (None, _) => {
            errors.push(field(format!("{at}/origins"), "too_many", format!("at most {ORIGINS_MAX} origins")));
        }
    }
    let mut seen = HashSet::new();
    for (index, target) in proxy.origins.iter().enumerate().take(ORIGINS_MAX) {
        let at = format!("{at}/origins/{index}");
        errors.extend(origin(&format!("{at}/url"), &target.url, policy, grants).err());
        if !seen.insert(target.url.trim_end_matches('/')) {
            errors.push(field(format!("{at}/url"), "duplicate", "is listed before; give it a weight"));
        }
        errors.extend(within(&format!("{at}/weight"), target.weight, 1, WEIGHT_MAX));
    }
    errors
}

fn origin(at: &str, text: &str, policy: &EgressPolicy, grants: &[EgressGrant]) -> Result<(), FieldError> {
    let wrong = |message: &str| field(at, "invalid_origin", message);
    let url = absolute(text).map_err(|message| wrong(&message))?;
    if !matches!(url.path(), "/" | "") || url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("must be http://host[:port] or https://host[:port] without path or query"));
    }
    let port =
        url.port_or_known_default().filter(|&port| port != 0).ok_or_else(|| wrong("has no usable port"))?;
    // Only literal addresses can be judged here; a name is judged at the edge, at each connect.
    let address = match url.host() {
        Some(Host::Ipv4(address)) => SocketAddr::from((address, port)),
        Some(Host::Ipv6(address)) => SocketAddr::from((address, port)),
        Some(Host::Domain(_)) => return Ok(()),
        None => return Err(wrong("has no host")),
    };
    let grants: Vec<(IpNet, &[u16])> =
        grants.iter().filter_map(|grant| Some((grant.cidr.parse().ok()?, grant.ports.as_slice()))).collect();
    policy.check(address, grants.iter().map(|&(net, ports)| Grant { net, ports })).map_err(|refused| {
        // The one that an operator cannot grant has a code of its own.
        let is_own = matches!(refused, EgressRefused::Own { .. });
        field(at, if is_own { "origin_own" } else { "origin_denied" }, refused.to_string())
    })
}

fn tls(at: &str, tls: &OriginTls) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(name) = &tls.server_name
        && (name.len() > 253 || ServerName::try_from(name.as_str()).is_err())
    {
        let message = "must be a host name or an address, without port";
        errors.push(field(format!("{at}/server_name"), "invalid_host", message));
    }
    if let Some(pem) = &tls.ca_pem {
        let wrong = authorities(pem).err();
        errors.extend(wrong.map(|message| field(format!("{at}/ca_pem"), "invalid_certificate", message)));
    }
    errors
}

fn authorities(pem: &str) -> Result<(), String> {
    if pem.len() > CA_BYTES_MAX {
        return Err(format!("has {} bytes, at most {CA_BYTES_MAX}", pem.len()));
    }
    if pem.contains("PRIVATE KEY") {
        return Err("holds a private key, which does not belong here; send certificates alone".to_owned());
    }
    let found = pem_certificates(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("is not PEM: {error}"))?;
    if !(1..=CERTIFICATES_MAX).contains(&found.len()) {
        return Err(format!("holds {} certificates; 1 to {CERTIFICATES_MAX} are wanted", found.len()));
    }
    let mut roots = RootCertStore::empty();
    for (index, certificate) in found.into_iter().enumerate() {
        roots.add(certificate).map_err(|error| format!("certificate {}: {error}", index + 1))?;
    }
    Ok(())
}

/// The certificates of a text that [`check`] has let pass.
pub(crate) fn certificates(pem: &str) -> Vec<bytes::Bytes> {
    pem_certificates(pem.as_bytes())
        .filter_map(Result::ok)
        .map(|certificate| certificate.to_vec().into())
        .collect()
}

fn within(at: &str, value: u32, min: u32, max: u32) -> Option<FieldError> {
    let message = || format!("must be from {min} to {max}");
    (!(min..=max).contains(&value)).then(|| field(at, "out_of_range", message()))
}
