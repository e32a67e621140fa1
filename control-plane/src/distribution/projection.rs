//! Rows to resources: pure, and the same bytes for the same rows.
//!
//! Deliberately absent: judgement. Whether a domain is served, which credential is live and who is suspended was decided
//! by those who wrote the rows.

use std::collections::{BTreeMap, BTreeSet};

use portico_api::distribution::{
    self as wire, RESOURCE_BYTES_MAX, Route, StaticAnswer, TlsVersion, route, suspension,
};
use portico_api::v1::{self, TenantLimits};
use portico_cert_store::{CellId, Custody, DomainId};
use prost::Message;

use super::fleet_policy::FleetPolicy;
use super::resource::{Cells, Published, ResourceKey};
use crate::app::spec;
use crate::clock;
use crate::store::backup::Backup;
use crate::store::cell;
use crate::store::origin_identity::IdentityRow;
use crate::store::projection_rows::{CredentialRow, DomainRow, LineageRow, TenantRow};

/// Slots of one name that an edge can use.
const LINEAGES_PER_CELL_MAX: usize = 4;

/// Why a row cannot become a resource; the version before it stays published.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProjectionError {
    #[error("{id} takes {bytes} bytes; one resource may take {RESOURCE_BYTES_MAX}")]
    TooLarge { id: String, bytes: usize },
}

pub(super) fn tenant(row: &TenantRow, version: u64) -> Result<Published, ProjectionError> {
    let grants = row.spec.egress_grants.iter().map(|grant| wire::EgressGrant {
        cidr: grant.cidr.clone(),
        ports: grant.ports.iter().map(|&port| u32::from(port)).collect(),
    });
    let body = wire::Tenant {
        egress_grants: grants.collect(),
        suspension: row.suspension.as_ref().map(wire_suspension),
        limits: wire_limits(row.spec.limits),
        error_pages: wire::ErrorPage::all_of(&row.spec.error_pages),
    };
    publish(ResourceKey::tenant(row.id), version, Cells::All, row.id.to_string(), &body)
}

fn wire_limits(limits: TenantLimits) -> Option<wire::TenantLimits> {
    (!limits.is_empty()).then(|| limits.into())
}

pub(super) fn domain(row: &DomainRow, version: u64) -> Result<Published, ProjectionError> {
    let cells = cell::of_domain(&row.spec.cells, &row.tenant_cells);
    let lineages = ordered_lineages(&row.lineages, &cells);
    let mut needs = vec![ResourceKey::tenant(row.tenant)];
    needs.extend(lineages.iter().map(|lineage| ResourceKey::credential(lineage.id)));
    let body = wire::Domain {
        name: row.name.clone(),
        lineages: lineages
            .iter()
            .map(|lineage| wire::LineageRef {
                cell_id: lineage.cell.to_string(),
                lineage_id: lineage.id.to_string(),
            })
            .collect(),
        routes: row.spec.routes.iter().map(wire_route).collect(),
        tls: Some(wire_tls(&row.spec)),
        suspension: row.suspension.as_ref().map(wire_suspension),
        acme_thumbprint: row.acme_thumbprint.clone().unwrap_or_default(),
        served: row.served,
        hsts_max_age_seconds: row.spec.hsts_max_age_seconds,
        https_redirect_off: !row.spec.https_redirect,
        hsts_include_subdomains: row.spec.hsts_include_subdomains,
        hsts_preload: row.spec.hsts_preload,
        maintenance: row.spec.maintenance.as_ref().map(|maintenance| wire::Maintenance {
            text: maintenance.text.clone(),
            retry_after_seconds: maintenance.retry_after_seconds,
        }),
    };
    let key = ResourceKey::domain(row.id);
    let mut published = publish(key, version, Cells::only(cells), row.tenant.to_string(), &body)?;
    published.needs = needs.into();
    Ok(published)
}

pub(super) fn credential(row: &CredentialRow, version: u64) -> Result<Published, ProjectionError> {
    let at_edge = row.custody == Custody::Edge;
    let cell = row.cell.to_string();
    let (cell_id, edge_cell_id) = if at_edge { (String::new(), cell) } else { (cell, String::new()) };
    let body = wire::Credential {
        credential_id: row.id.to_string(),
        group_id: row.group.to_string(),
        cell_id,
        chain_der: row.chain_der.iter().map(|der| der.clone().into()).collect(),
        sealed_key: row.sealed_key.clone().into(),
        // Of a key on the edge it says when it was made, which is our affair.
        cell_key_epoch: if at_edge { 0 } else { row.cell_key_epoch },
        spki_sha256: row.spki_sha256.clone().into(),
        key_tenant: row.key_tenant.clone(),
        uploaded: row.custody == Custody::Uploaded,
        goes_first: row.backup == Some(Backup::Shown),
        edge_cell_id,
    };
    let key = ResourceKey::credential(row.lineage);
    let tenant = row.tenant.map(|tenant| tenant.to_string()).unwrap_or_default();
    let mut published = publish(key, version, Cells::only(vec![row.cell.clone()]), tenant, &body)?;
    published.key_epoch = (!at_edge).then_some(row.cell_key_epoch);
    Ok(published)
}

pub(super) fn origin_identity(row: &IdentityRow, version: u64) -> Result<Published, ProjectionError> {
    let tenant = row.tenant.to_string();
    let body = wire::Credential {
        credential_id: row.credential.to_string(),
        group_id: String::new(),
        cell_id: row.cell.to_string(),
        chain_der: vec![row.certificate.clone().into()],
        sealed_key: row.sealed_key.clone().into(),
        cell_key_epoch: row.cell_key_epoch,
        spki_sha256: row.spki_sha256.clone().into(),
        key_tenant: tenant.clone(),
        uploaded: false,
        goes_first: false,
        edge_cell_id: String::new(),
    };
    let key = ResourceKey::origin_identity(row.id);
    let mut published = publish(key, version, Cells::only(vec![row.cell.clone()]), tenant, &body)?;
    published.needs = [ResourceKey::tenant(row.tenant)].into();
    published.key_epoch = Some(row.cell_key_epoch);
    Ok(published)
}

/// `default`: the domain whose certificate the operator chose as the default one.
pub(super) fn fleet(
    policy: &FleetPolicy,
    default: Option<DomainId>,
    version: u64,
) -> Result<Published, ProjectionError> {
    let unknown_sni = default.map_or(wire::UnknownSni::Refuse, |_| wire::UnknownSni::Default);
    let body = wire::Fleet {
        unknown_sni: unknown_sni as i32,
        denied_cidrs: policy.denied.iter().map(ToString::to_string).collect(),
        denied_sockets: policy.denied_sockets.iter().map(ToString::to_string).collect(),
        default_domain_id: default.map(|domain| domain.to_string()).unwrap_or_default(),
        tenant_limits: wire_limits(policy.tenant_limits),
    };
    publish(ResourceKey::FLEET, version, Cells::All, String::new(), &body)
}

/// Best first (the domain's own before those of a wildcard over it, uploaded before issued, what was switched to
/// before others, later expiry, then the older lineage), those of the domain's cells only. Edges show an uploaded one
/// first wherever they find it, so that of a wildcard is left out where the domain has one of its own.
fn ordered_lineages<'a>(lineages: &'a [LineageRow], cells: &[CellId]) -> Vec<&'a LineageRow> {
    let mut ordered: Vec<_> = lineages.iter().filter(|lineage| cells.contains(&lineage.cell)).collect();
    let own: BTreeSet<&CellId> =
        ordered.iter().filter(|lineage| lineage.exact).map(|lineage| &lineage.cell).collect();
    let uploaded = |lineage: &LineageRow| lineage.custody == Custody::Uploaded;
    ordered.retain(|lineage| lineage.exact || !uploaded(lineage) || !own.contains(&lineage.cell));
    ordered.sort_by_key(|lineage| {
        let first = (!lineage.exact, !uploaded(lineage), !lineage.goes_first);
        (first, std::cmp::Reverse(lineage.not_after_ms), lineage.id)
    });
    let mut taken = BTreeMap::<&CellId, usize>::new();
    ordered.retain(|lineage| {
        let taken = taken.entry(&lineage.cell).or_default();
        *taken += 1;
        *taken <= LINEAGES_PER_CELL_MAX
    });
    ordered
}

pub(super) fn wire_suspension(suspension: &v1::Suspension) -> wire::Suspension {
    let mode = match suspension.mode {
        v1::SuspensionMode::Page => suspension::Mode::Page,
        v1::SuspensionMode::Gone => suspension::Mode::Gone,
        v1::SuspensionMode::Legal => suspension::Mode::Legal,
        v1::SuspensionMode::Drop => suspension::Mode::Drop,
    };
    wire::Suspension {
        mode: mode as i32,
        reason: suspension.reason.clone(),
        until_unix_ms: suspension.until.as_deref().and_then(clock::parse_rfc3339).unwrap_or(0),
    }
}

fn wire_route(from: &v1::Route) -> Route {
    let action = match &from.action {
        v1::Action::Proxy(proxy) => route::Action::Proxy(wire_proxy(proxy)),
        v1::Action::Redirect(v1::Redirect { to, status, keep_path, keep_query }) => {
            route::Action::Redirect(wire::Redirect {
                location: to.clone(),
                status: u32::from(*status),
                keep_path: *keep_path,
                keep_query: keep_query.filter(|query| query != keep_path),
            })
        }
        v1::Action::Static(answer) => route::Action::StaticAnswer(StaticAnswer {
            status: u32::from(answer.status),
            content_type: answer.content_type.clone(),
            body: answer.body.clone().into(),
        }),
    };
    let query_apart = matches!(&action, route::Action::Redirect(redirect) if redirect.keep_query.is_some());
    match wire_rule(from) {
        rule if rule == plain_rule(from) && !query_apart => {
            Route { path_prefix: from.path_prefix.clone(), action: Some(action), rule: None }
        }
        rule => Route { path_prefix: String::new(), action: Some(action), rule: Some(rule) },
    }
}

fn plain_rule(from: &v1::Route) -> wire::Rule {
    let path = wire::rule::Path::Prefix(from.path_prefix.clone());
    wire::Rule { level: wire::RULE_LEVEL_FIRST, path: Some(path), ..wire::Rule::default() }
}

fn wire_rule(from: &v1::Route) -> wire::Rule {
    let condition = |header: &v1::HeaderCondition| wire::HeaderCondition {
        name: header.name.clone(),
        equals: header.equals.clone(),
    };
    let path = if from.exact { wire::rule::Path::Exact } else { wire::rule::Path::Prefix };
    wire::Rule {
        level: level(from),
        path: Some(path(from.path_prefix.clone())),
        methods: from.methods.clone(),
        headers: from.headers.iter().map(condition).collect(),
        replace_prefix: from.replace_prefix.clone(),
        request_headers: wire_changes(&from.request_headers),
        response_headers: wire_changes(&from.response_headers),
    }
}

/// What an edge has to know of, to follow this route.
fn level(from: &v1::Route) -> u32 {
    match &from.action {
        v1::Action::Proxy(proxy) if proxy.tls.as_ref().is_some_and(|tls| tls.client_certificate) => {
            wire::RULE_LEVEL_CLIENT_CERTIFICATE
        }
        v1::Action::Proxy(_) | v1::Action::Redirect(_) | v1::Action::Static(_) => wire::RULE_LEVEL_FIRST,
    }
}

fn wire_changes(from: &v1::HeaderChanges) -> Option<wire::HeaderChanges> {
    let set =
        from.set.iter().map(|(name, value)| wire::HeaderField { name: name.clone(), value: value.clone() });
    let changes = wire::HeaderChanges { set: set.collect(), remove: from.remove.clone() };
    (!from.is_empty()).then_some(changes)
}

fn wire_proxy(from: &v1::Proxy) -> wire::Proxy {
    let ca_pem = from.tls.as_ref().and_then(|tls| tls.ca_pem.as_deref());
    wire::Proxy { tls_ca_der: ca_pem.map(spec::proxy::certificates).unwrap_or_default(), ..from.into() }
}

/// An edge that knows nothing of client certificates finds a version that it does not know either, and refuses the domain.
fn wire_tls(spec: &v1::DomainSpec) -> wire::TlsPolicy {
    let minimum = minimum_version(spec.minimum_tls) as i32;
    let asked = spec.client_certificates.as_ref().map(|asked| wire::ClientCertificates {
        required: asked.mode == v1::ClientCertificateMode::Require,
        ca_der: spec::proxy::certificates(&asked.ca_pem),
        minimum_version: minimum,
    });
    wire::TlsPolicy {
        minimum_version: if asked.is_some() { TlsVersion::Below as i32 } else { minimum },
        http2_off: !spec.http2,
        http3_off: !spec.http3,
        client_certificates: asked,
        early_data: spec.early_data,
    }
}

fn minimum_version(minimum: v1::MinimumTls) -> TlsVersion {
    match minimum {
        v1::MinimumTls::Tls12 => TlsVersion::TlsVersion12,
        v1::MinimumTls::Tls13 => TlsVersion::TlsVersion13,
    }
}

fn publish(
    key: ResourceKey,
    version: u64,
    cells: Cells,
    tenant_id: String,
    body: &impl Message,
) -> Result<Published, ProjectionError> {
    let body = body.encode_to_vec();
    // Room for the ids around the body: an edge refuses a batch with a larger resource as a whole.
    if body.len() + 256 > RESOURCE_BYTES_MAX {
        return Err(ProjectionError::TooLarge { id: key.id(), bytes: body.len() });
    }
    Ok(Published::new(key, version, cells, tenant_id, body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use portico_cert_store::{CredentialId, GroupId, LineageId, TenantId};

    fn cell(name: &str) -> CellId {
        CellId::parse(name).unwrap()
    }

    fn domain_row() -> DomainRow {
        let spec = serde_json::json!({
            "hostname": "shop.example",
            "routes": [
                {"path_prefix": "/old", "action": {"type": "redirect", "to": "https://new.example/", "keep_path": true}},
                {"action": {"type": "proxy", "origin": "http://127.0.0.21:9000"}},
            ],
            "minimum_tls": "1.3", "hsts_max_age_seconds": 60, "https_redirect": false,
        });
        DomainRow {
            id: DomainId::generate(),
            tenant: TenantId::generate(),
            name: "shop.example".to_owned(),
            spec: serde_json::from_value(spec).unwrap(),
            tenant_cells: vec![],
            suspension: None,
            acme_thumbprint: None,
            served: true,
            lineages: vec![],
        }
    }

    fn lineage(name: &str, exact: bool, not_after_ms: i64) -> LineageRow {
        LineageRow {
            id: LineageId::generate(),
            cell: cell(name),
            exact,
            custody: Custody::Cell,
            goes_first: false,
            not_after_ms,
        }
    }

    fn body<M: Message + Default>(published: &Published) -> M {
        M::decode(published.resource.body.clone()).unwrap()
    }

    #[test]
    fn domain_carries_what_its_tenant_asked_for() {
        let mut row = domain_row();
        row.suspension = Some(v1::Suspension {
            mode: v1::SuspensionMode::Legal,
            reason: "order 7".to_owned(),
            until: Some("1970-01-01T00:00:02Z".to_owned()),
        });
        let published = domain(&row, 9).unwrap();
        assert_eq!(published.cells, Cells::only(vec![cell("default")]));
        let resource = &published.resource;
        assert_eq!((resource.version, resource.tenant_id.clone()), (9, row.tenant.to_string()));
        let body: wire::Domain = body(&published);
        assert_eq!((body.name.as_str(), body.served, body.https_redirect_off), ("shop.example", true, true));
        assert_eq!(body.tls.unwrap().minimum_version(), TlsVersion::TlsVersion13);
        assert_eq!(body.routes[0].path_prefix, "/old");
        assert!(
            matches!(&body.routes[1].action, Some(route::Action::Proxy(proxy)) if proxy.host_header.is_empty())
        );
        let suspension = body.suspension.unwrap();
        assert_eq!((suspension.mode(), suspension.until_unix_ms), (suspension::Mode::Legal, 2_000));
    }

    /// An edge that knows no client certificates finds a version that it does not know, and never serves without asking.
    #[test]
    fn a_domain_that_asks_for_client_certificates_is_refused_by_who_cannot_ask() {
        let mut row = domain_row();
        row.spec.http3 = false;
        let tls = |row: &DomainRow| body::<wire::Domain>(&domain(row, 1).unwrap()).tls.unwrap();
        assert_eq!((tls(&row).minimum_version(), tls(&row).http3_off), (TlsVersion::TlsVersion13, true));
        assert!(!tls(&row).early_data);
        row.spec.early_data = true;
        assert!(tls(&row).early_data);
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        let mode = v1::ClientCertificateMode::Optional;
        row.spec.client_certificates = Some(v1::ClientCertificates { mode, ca_pem: authority.pem() });
        let tls = tls(&row);
        assert_eq!((tls.minimum_version(), tls.http2_off, tls.http3_off), (TlsVersion::Below, false, true));
        let asked = tls.client_certificates.unwrap();
        assert_eq!((asked.minimum_version(), asked.required), (TlsVersion::TlsVersion13, false));
        assert_eq!(asked.ca_der, [authority.der().to_vec()]);
    }

    /// An edge that knows no rules finds an empty prefix, which it refuses, and never half of a rule.
    #[test]
    fn a_route_with_more_than_a_prefix_leaves_the_prefix_to_its_rule() {
        let wire = |more: serde_json::Value| {
            let mut route = serde_json::json!({ "path_prefix": "/a", "action": { "type": "proxy", "origin": "http://b" } });
            for (name, value) in more.as_object().unwrap() {
                route[name] = value.clone();
            }
            wire_route(&serde_json::from_value(route).unwrap())
        };
        let plain = wire(serde_json::json!({}));
        assert_eq!((plain.path_prefix.as_str(), plain.rule), ("/a", None));
        for more in [
            serde_json::json!({ "exact": true }),
            serde_json::json!({ "methods": ["GET"] }),
            serde_json::json!({ "headers": [{ "name": "x" }] }),
            serde_json::json!({ "replace_prefix": "/b" }),
            serde_json::json!({ "request_headers": { "remove": ["x"] } }),
            serde_json::json!({ "response_headers": { "set": { "x": "1" } } }),
            serde_json::json!({
                "action": { "type": "redirect", "to": "https://b", "keep_path": true, "keep_query": false }
            }),
            serde_json::json!({
                "action": { "type": "proxy", "origin": "https://b", "tls": { "client_certificate": true } }
            }),
        ] {
            let route = wire(more.clone());
            assert_eq!(route.path_prefix, "", "{more}");
            let rule = route.rule.unwrap();
            let exact = more.get("exact").is_some();
            let path = if exact { wire::rule::Path::Exact } else { wire::rule::Path::Prefix };
            let shows = more["action"].get("tls").is_some();
            let level = if shows { wire::RULE_LEVEL_CLIENT_CERTIFICATE } else { wire::RULE_LEVEL_FIRST };
            assert_eq!((rule.level, rule.path), (level, Some(path("/a".to_owned()))), "{more}");
        }
        let same = serde_json::json!({
            "action": { "type": "redirect", "to": "https://b", "keep_path": true, "keep_query": true }
        });
        assert_eq!(wire(same).rule, None, "as keep_path, so nothing new");
    }

    #[test]
    fn exact_lineage_goes_before_wildcard_and_later_expiry_first() {
        let mut row = domain_row();
        row.spec.cells = vec![cell("two"), cell("one")];
        let wildcard = lineage("one", false, 900);
        let (soon, late) = (lineage("one", true, 100), lineage("one", true, 200));
        let elsewhere = lineage("three", true, 900);
        let other_cell = lineage("two", true, 50);
        row.lineages = vec![wildcard.clone(), soon.clone(), elsewhere, other_cell.clone(), late.clone()];
        let published = domain(&row, 1).unwrap();
        let body: wire::Domain = body(&published);
        let order: Vec<_> = body.lineages.iter().map(|lineage| lineage.lineage_id.clone()).collect();
        assert_eq!(order, [late.id, soon.id, other_cell.id, wildcard.id].map(|id| id.to_string()));
        assert!(published.needs.contains(&ResourceKey::credential(late.id)));
        assert!(published.needs.contains(&ResourceKey::tenant(row.tenant)));
        row.lineages = (0..6).map(|expiry| lineage("one", true, expiry)).collect();
        let body: wire::Domain = Message::decode(domain(&row, 1).unwrap().resource.body).unwrap();
        assert_eq!(body.lineages.len(), LINEAGES_PER_CELL_MAX);
    }

    #[test]
    fn uploaded_lineages_go_first_and_a_wildcards_does_not_displace_a_names_own() {
        let mut row = domain_row();
        row.spec.cells = vec![cell("two"), cell("one")];
        let uploaded = |lineage: LineageRow| LineageRow { custody: Custody::Uploaded, ..lineage };
        let (issued, own) = (lineage("one", true, 900), uploaded(lineage("one", true, 100)));
        let wildcards = ["one", "two"].map(|cell| uploaded(lineage(cell, false, 500)));
        row.lineages = vec![issued.clone(), own.clone()];
        row.lineages.extend(wildcards.clone());
        let order = |row: &DomainRow| -> Vec<String> {
            let body: wire::Domain = body(&domain(row, 1).unwrap());
            body.lineages.into_iter().map(|lineage| lineage.lineage_id).collect()
        };
        let ids = |lineages: &[&LineageRow]| lineages.iter().map(|l| l.id.to_string()).collect::<Vec<_>>();
        assert_eq!(
            order(&row),
            ids(&[&own, &issued, &wildcards[1]]),
            "it serves where there is none of its own"
        );
        row.lineages.remove(1);
        assert_eq!(order(&row), ids(&[&issued, &wildcards[1]]));
        row.lineages.remove(0);
        assert_eq!(order(&row).len(), 2);
    }

    #[test]
    fn same_rows_give_the_same_bytes_whatever_their_order() {
        let mut row = domain_row();
        row.spec.cells = vec![cell("one"), cell("two")];
        row.lineages = (0..4).map(|expiry| lineage("one", true, expiry % 2)).collect();
        let first = domain(&row, 1).unwrap();
        row.lineages.reverse();
        row.spec.cells.reverse();
        assert_eq!(first, domain(&row, 1).unwrap());
    }

    #[test]
    fn credential_goes_to_its_own_cell_only() {
        let row = CredentialRow {
            id: CredentialId::generate(),
            lineage: LineageId::generate(),
            group: GroupId::generate(),
            cell: cell("one"),
            custody: Custody::Uploaded,
            backup: None,
            tenant: None,
            chain_der: vec![vec![1], vec![2]],
            sealed_key: vec![3],
            cell_key_epoch: 4,
            spki_sha256: vec![5; 32],
            key_tenant: "operator".to_owned(),
        };
        let published = credential(&row, 2).unwrap();
        assert!(published.cells.contains(&cell("one")) && !published.cells.contains(&cell("two")));
        assert_eq!(published.key_epoch, Some(4));
        assert_eq!(published.resource.id, row.lineage.to_string());
        let body: wire::Credential = body(&published);
        assert_eq!((body.chain_der.len(), body.cell_key_epoch, body.uploaded), (2, 4, true));
    }

    #[test]
    fn fleet_policy_denies_the_control_planes_sockets_and_names_the_default() {
        let public = ["10.0.0.2", "0.0.0.0"].map(|ip| ip.parse().unwrap());
        let listeners = ["10.0.0.1:80", "10.0.0.2:443", "10.0.0.1:443"].map(|text| text.parse().unwrap());
        let sockets = ["192.0.2.9:7443", "0.0.0.0:5354", "127.0.0.1:0"].map(|text| text.parse().unwrap());
        let limits = TenantLimits { exchanges: Some(7), ..TenantLimits::default() };
        let policy = FleetPolicy::new(public, listeners, sockets, limits);
        let of = |default| body::<wire::Fleet>(&fleet(&policy, default, 3).unwrap());
        let none = of(None);
        assert_eq!((none.unknown_sni(), none.default_domain_id.as_str()), (wire::UnknownSni::Refuse, ""));
        assert_eq!(none.denied_cidrs, ["10.0.0.1/32", "10.0.0.2/32"]);
        assert_eq!(none.denied_sockets, ["0.0.0.0:5354", "192.0.2.9:7443"]);
        assert_eq!(none.tenant_limits.map(TenantLimits::from), Some(limits));
        let domain = DomainId::generate();
        let some = of(Some(domain));
        assert_eq!(
            (some.unknown_sni(), some.default_domain_id),
            (wire::UnknownSni::Default, domain.to_string())
        );
        let json = serde_json::to_string(&policy).unwrap();
        assert_eq!(serde_json::from_str::<FleetPolicy>(&json).unwrap(), policy);
    }

    #[test]
    fn all_pages_that_a_tenant_may_have_fit_into_its_resource() {
        let page = Some(v1::ErrorPage {
            content_type: v1::ErrorPageType::Html,
            body: "x".repeat(v1::ERROR_PAGE_BYTES_MAX),
        });
        let error_pages =
            v1::ErrorPages { bad_gateway: page.clone(), unavailable: page, ..v1::ErrorPages::default() };
        assert_eq!(error_pages.faults(), vec![]);
        let spec: v1::TenantSpec = serde_json::from_value(serde_json::json!({ "name": "one" })).unwrap();
        let spec = v1::TenantSpec { error_pages, ..spec };
        let row = TenantRow { id: TenantId::generate(), spec, suspension: None };
        let published = tenant(&row, 1).unwrap();
        let body: wire::Tenant = body(&published);
        let statuses: Vec<_> = body.error_pages.iter().map(|page| page.status).collect();
        assert_eq!(statuses, [502, 503]);
        assert_eq!(body.error_pages[0].content_type, "text/html; charset=utf-8");
    }

    #[test]
    fn resource_larger_than_edges_take_is_not_published() {
        let mut row = domain_row();
        row.spec.routes[0].action = v1::Action::text("x".repeat(RESOURCE_BYTES_MAX));
        assert!(matches!(domain(&row, 1), Err(ProjectionError::TooLarge { .. })));
    }
}
