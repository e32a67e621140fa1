//! What a purge may name.

use portico_api::v1::{FieldError, PurgeRequest};
use portico_cert_store::DomainName;

use super::absolute;
use crate::http::fault::field;

/// Things that one call names.
const TARGETS_MAX: usize = 100;
const TAG_BYTES_MAX: usize = 1024;

/// Everything that is wrong with it.
pub(crate) fn purge(asked: &PurgeRequest) -> Vec<FieldError> {
    let count = asked.urls.len() + asked.prefixes.len() + asked.hosts.len() + asked.tags.len();
    if count > TARGETS_MAX {
        return vec![field(
            "",
            "too_many",
            format!("names {count} things; at most {TARGETS_MAX} in one call"),
        )];
    }
    if count == 0 && !asked.everything {
        let message = "names nothing; give urls, prefixes, hosts, tags or everything";
        return vec![field("", "incomplete", message)];
    }
    let mut errors = Vec::new();
    for (name, texts, query) in [("urls", &asked.urls, true), ("prefixes", &asked.prefixes, false)] {
        for (index, text) in texts.iter().enumerate() {
            let at = format!("/{name}/{index}");
            errors.extend(url(text, query).err().map(|message| field(at, "invalid_url", message)));
        }
    }
    for (index, host) in asked.hosts.iter().enumerate() {
        let at = format!("/hosts/{index}");
        match host.rsplit_once(':') {
            Some((name, port)) if port.parse::<u16>().is_ok() => {
                let message =
                    format!("has a port; everything of the host is meant, on all its ports: write {name}");
                errors.push(field(at, "has_port", message));
            }
            _ => {
                let wrong = DomainName::parse(host).err();
                errors.extend(wrong.map(|error| field(at, "domain_name_invalid", error.to_string())));
            }
        }
    }
    for (index, tag) in asked.tags.iter().enumerate() {
        if !(1..=TAG_BYTES_MAX).contains(&tag.len()) || tag.contains(',') || tag.trim() != tag {
            let message = format!("must be 1 to {TAG_BYTES_MAX} bytes without a comma or outer spaces");
            errors.push(field(format!("/tags/{index}"), "invalid_tag", message));
        }
    }
    errors
}

/// The hosts that it names, each with the pointer of its field.
pub(crate) fn hosts_of(asked: &PurgeRequest) -> Vec<(String, DomainName)> {
    let of_url =
        |text: &String| absolute(text).ok()?.host_str().and_then(|host| DomainName::parse(host).ok());
    let named = |name: &str, texts: &[String], host: &dyn Fn(&String) -> Option<DomainName>| {
        let found = texts.iter().enumerate();
        found.filter_map(|(index, text)| Some((format!("/{name}/{index}"), host(text)?))).collect::<Vec<_>>()
    };
    let mut hosts = named("urls", &asked.urls, &of_url);
    hosts.extend(named("prefixes", &asked.prefixes, &of_url));
    hosts.extend(named("hosts", &asked.hosts, &|text| DomainName::parse(text).ok()));
    hosts
}

fn url(text: &str, may_have_query: bool) -> Result<(), String> {
    let url = absolute(text)?;
    let host = url.host_str().unwrap_or_default();
    DomainName::parse(host).map_err(|error| error.to_string())?;
    if url.fragment().is_some() {
        return Err("has a fragment, which no request has".to_owned());
    }
    if !may_have_query && url.query().is_some() {
        return Err("a prefix has no query".to_owned());
    }
    Ok(())
}
