//! The sections of a standalone edge: certificates from files, routes, and what origins may be reached.

use std::{collections::HashMap, ops::Range, path::PathBuf, sync::Arc};

use ipnet::IpNet;
use portico_api::{
    distribution as wire,
    rule::{self, ChangesText, HstsWish, Part, ROUTES_MAX, Rule, RuleFault, RuleText},
    v1,
};
use portico_cert_store::NamePattern;
use serde::Deserialize;
use toml::Spanned;

use super::origins::{RawOrigin, RawProxy};
use super::{ConfigError, ListenerConfig, NamedPath, RawConfig, Source, TlsSection, loops, origin_tls, tls};
use crate::live::{
    Action, ErrorPages, Hsts, Maintenance, OriginScheme, Redirect, Route, TenantLimits, Upstream,
    WeightedOrigin, limits,
};

#[derive(Debug, Clone, Default)]
pub struct StandaloneConfig {
    pub unknown_sni: UnknownSniChoice,
    /// Of all sites together.
    pub limits: TenantLimits,
    /// The same.
    pub error_pages: ErrorPages,
    pub certificates: CertificateFiles,
    pub tls: Vec<TlsSection>,
    pub routes: Vec<RouteConfig>,
    pub egress: Vec<EgressAllow>,
}

/// What a client gets that names a host without a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownSniChoice {
    /// The alert `unrecognized_name`.
    #[default]
    Refuse,
    /// The default certificate, and 421 for every request.
    Default,
}

/// Where PEM files are: each holds a chain, and its key in the same file or beside it as `<stem>.key`.
#[derive(Debug, Clone, Default)]
pub struct CertificateFiles {
    pub folder: Option<NamedPath>,
    /// One path a line, or two: chain and key. `#` begins a comment.
    pub list_file: Option<NamedPath>,
    pub default: Option<NamedPath>,
}

#[derive(Debug, Clone)]
pub struct RouteConfig {
    /// `None`: every name of every certificate (`host = "*"`).
    pub host: Option<NamePattern>,
    pub route: Route,
    /// For the host, as all its routes say that say something. `None`: not said.
    pub hsts: Option<Hsts>,
    /// Port 80 answers this route itself instead of pointing to https.
    pub plain_http: bool,
    /// For the host.
    pub maintenance: Option<Maintenance>,
}

/// A range that origins may be in although the egress guard refuses it otherwise.
#[derive(Debug, Clone)]
pub struct EgressAllow {
    pub net: IpNet,
    pub ports: Vec<u16>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawStandalone {
    unknown_sni: Option<UnknownSniChoice>,
    limits: Option<Spanned<v1::TenantLimits>>,
    error_pages: Option<RawErrorPages>,
}

/// A file for each status.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawErrorPages {
    #[serde(rename = "404")]
    not_found: Option<Spanned<PathBuf>>,
    #[serde(rename = "413")]
    too_large: Option<Spanned<PathBuf>>,
    #[serde(rename = "429")]
    too_many: Option<Spanned<PathBuf>>,
    #[serde(rename = "502")]
    bad_gateway: Option<Spanned<PathBuf>>,
    #[serde(rename = "503")]
    unavailable: Option<Spanned<PathBuf>>,
    #[serde(rename = "504")]
    timed_out: Option<Spanned<PathBuf>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCertificates {
    folder: Option<Spanned<PathBuf>>,
    list_file: Option<Spanned<PathBuf>>,
    default: Option<Spanned<PathBuf>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRoute {
    pub(super) host: Spanned<String>,
    path: Option<Spanned<String>>,
    #[serde(default)]
    exact: bool,
    methods: Option<Spanned<Vec<String>>>,
    headers: Option<Spanned<Vec<v1::HeaderCondition>>>,
    replace_prefix: Option<Spanned<String>>,
    request_headers: Option<Spanned<v1::HeaderChanges>>,
    response_headers: Option<Spanned<v1::HeaderChanges>>,
    pub(super) proxy: Option<Spanned<RawProxy>>,
    host_header: Option<Spanned<String>>,
    protocol: Option<Spanned<v1::OriginProtocol>>,
    proxy_protocol: Option<Spanned<v1::ProxyProtocol>>,
    server_name: Option<Spanned<String>>,
    ca_file: Option<Spanned<PathBuf>>,
    client_certificate: Option<Spanned<PathBuf>>,
    client_key: Option<Spanned<PathBuf>>,
    health_check: Option<Spanned<v1::HealthCheck>>,
    timeouts: Option<Spanned<v1::ProxyTimeouts>>,
    breaker: Option<Spanned<v1::CircuitBreaker>>,
    cache: Option<Spanned<v1::CachePolicy>>,
    compression: Option<Spanned<v1::CompressionPolicy>>,
    pub(super) redirect: Option<Spanned<String>>,
    status: Option<Spanned<u16>>,
    keep_path: Option<Spanned<bool>>,
    keep_query: Option<Spanned<bool>>,
    static_file: Option<Spanned<PathBuf>>,
    static_body: Option<Spanned<String>>,
    content_type: Option<Spanned<String>>,
    hsts_max_age_seconds: Option<Spanned<u32>>,
    hsts_include_subdomains: Option<Spanned<bool>>,
    hsts_preload: Option<Spanned<bool>>,
    #[serde(default)]
    plain_http: bool,
    maintenance: Option<Spanned<v1::Maintenance>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawEgress {
    #[serde(default)]
    allow: Vec<RawAllow>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAllow {
    cidr: Spanned<String>,
    ports: Vec<u16>,
}

pub(super) fn check(
    source: Source<'_>,
    raw: &RawConfig,
    listeners: &[ListenerConfig],
) -> Result<StandaloneConfig, ConfigError> {
    let files = raw.certificates.as_ref().map(Spanned::get_ref);
    let path = |path: Option<&Spanned<PathBuf>>| path.map(|path| source.named_path(path));
    let certificates = CertificateFiles {
        folder: path(files.and_then(|files| files.folder.as_ref())),
        list_file: path(files.and_then(|files| files.list_file.as_ref())),
        default: path(files.and_then(|files| files.default.as_ref())),
    };
    let unknown_sni =
        raw.standalone.as_ref().and_then(|section| section.get_ref().unknown_sni).unwrap_or_default();
    if unknown_sni == UnknownSniChoice::Default && certificates.default.is_none() {
        return Err(source.error(
            raw.standalone.as_ref().map(Spanned::span),
            "unknown_sni = \"default\" needs a default certificate: set default = \"file.pem\" in [certificates]"
                .into(),
        ));
    }
    let limits = raw.standalone.as_ref().and_then(|section| section.get_ref().limits.as_ref());
    let limits = limits.map(|limits| {
        TenantLimits::new(*limits.get_ref())
            .map_err(|fault| source.error(Some(limits.span()), format!("limits: {}", fault.text)))
    });
    let pages = raw.standalone.as_ref().and_then(|section| section.get_ref().error_pages.as_ref());
    let error_pages = pages.map(|pages| error_pages(source, pages)).transpose()?;
    let allow = raw.egress.as_ref().map_or(&[][..], |section| &section.get_ref().allow);
    let tls = tls::check(source, &raw.tls)?;
    let routes = routes(source, raw)?;
    plain_routes(source, raw, &routes, &tls)?;
    loops::check(source, &raw.route, &routes, listeners)?;
    Ok(StandaloneConfig {
        unknown_sni,
        limits: limits.transpose()?.unwrap_or_default(),
        error_pages: error_pages.unwrap_or_default(),
        certificates,
        tls,
        routes,
        egress: allow.iter().map(|raw| egress(source, raw)).collect::<Result<_, _>>()?,
    })
}

fn error_pages(source: Source<'_>, raw: &RawErrorPages) -> Result<ErrorPages, ConfigError> {
    let page =
        |file: &Option<Spanned<PathBuf>>| file.as_ref().map(|file| error_page(source, file)).transpose();
    let pages = v1::ErrorPages {
        not_found: page(&raw.not_found)?,
        too_large: page(&raw.too_large)?,
        too_many: page(&raw.too_many)?,
        bad_gateway: page(&raw.bad_gateway)?,
        unavailable: page(&raw.unavailable)?,
        timed_out: page(&raw.timed_out)?,
    };
    // Each page was looked at: what is left is about all of them.
    ErrorPages::new(&pages)
        .map_err(|fault| source.error(None, format!("standalone.error_pages: {}", fault.text)))
}

fn error_page(source: Source<'_>, file: &Spanned<PathBuf>) -> Result<v1::ErrorPage, ConfigError> {
    let path = source.resolve(file.get_ref());
    let wrong =
        |problem: &str| source.error(Some(file.span()), format!("error page {}: {problem}", path.display()));
    let content_type = v1::ErrorPageType::of_file(&path)
        .ok_or_else(|| wrong("what it is, its name says: .html, .txt or .json"))?;
    let body = read_body(&path).map_err(|problem| wrong(&problem))?;
    let body = String::from_utf8(body).map_err(|_| wrong("is not UTF-8"))?;
    let page = v1::ErrorPage { content_type, body };
    match page.fault() {
        None => Ok(page),
        Some((_, problem)) => Err(wrong(&problem)),
    }
}

/// Over plain HTTP nobody can show a certificate.
fn plain_routes(
    source: Source<'_>,
    raw: &RawConfig,
    routes: &[RouteConfig],
    tls: &[TlsSection],
) -> Result<(), ConfigError> {
    let requires = |section: &TlsSection| section.client_auth.as_ref().is_some_and(|auth| auth.required);
    for (route, raw) in routes.iter().zip(&raw.route).filter(|(route, _)| route.plain_http) {
        let closed = match &route.host {
            Some(host) => TlsSection::of(tls, host).is_some_and(requires),
            None => tls.iter().any(requires),
        };
        if closed {
            let problem =
                "plain_http would let clients in that [[tls]] wants a certificate of; remove one of the two";
            return Err(source.error(Some(raw.get_ref().host.span()), problem.into()));
        }
    }
    Ok(())
}

/// A route that an earlier one of its host leaves nothing to do is a fault.
fn routes(source: Source<'_>, raw: &RawConfig) -> Result<Vec<RouteConfig>, ConfigError> {
    let mut routes: Vec<RouteConfig> = Vec::with_capacity(raw.route.len());
    let mut by_host: HashMap<Option<NamePattern>, Vec<usize>> = HashMap::new();
    for (index, spanned) in raw.route.iter().enumerate() {
        let route = route(source, spanned)?;
        let of_host = by_host.entry(route.host.clone()).or_default();
        of_host.push(index);
        if of_host.len() > ROUTES_MAX {
            let problem = format!("a host has at most {ROUTES_MAX} routes");
            return Err(source.error(Some(spanned.get_ref().host.span()), problem));
        }
        routes.push(route);
    }
    let mut unreached: Vec<(usize, usize)> = by_host
        .values()
        .flat_map(|indices| {
            let found = rule::unreachable(indices.iter().map(|&index| &routes[index].route.rule));
            found.into_iter().map(|(late, early)| (indices[late], indices[early]))
        })
        .collect();
    unreached.sort_unstable();
    let everywhere = by_host.get(&None).cloned().unwrap_or_default();
    for indices in by_host.values() {
        one_policy(source, raw, &routes, (indices, &everywhere))?;
    }
    if let Some(&(late, early)) = unreached.first() {
        let place = source.place(raw.route[early].span());
        let raw = raw.route[late].get_ref();
        let problem = format!("is never reached: the route of line {} takes all its requests", place.0);
        let span = raw.path.as_ref().map_or_else(|| raw.host.span(), Spanned::span);
        return Err(source.error(Some(span), problem));
    }
    Ok(routes)
}

/// What routes say for their whole host, they say alike: which of two would hold could only be guessed. Those of `*` hold
/// where a host's own say nothing.
fn one_policy(
    source: Source<'_>,
    raw: &RawConfig,
    routes: &[RouteConfig],
    (of_host, everywhere): (&[usize], &[usize]),
) -> Result<(), ConfigError> {
    let differs = |early: usize, span: Option<Range<usize>>, what: &str| {
        let line = source.place(raw.route[early].span()).0;
        let problem =
            format!("{what}: the route of line {line} says otherwise for this host; say it in one of them");
        Err(source.error(span, problem))
    };
    let mut of_host_first = of_host.iter().chain(everywhere).copied();
    let hsts = of_host_first.clone().find(|at| routes[*at].hsts.is_some());
    let plain_http = of_host_first.find(|at| routes[*at].plain_http);
    if let (Some(told), Some(early)) = (hsts, plain_http)
        && routes[told].hsts.is_some_and(|hsts| hsts.preload)
    {
        let span = raw.route[told].get_ref().hsts_preload.as_ref().map(Spanned::span);
        return differs(early, span, "hsts_preload needs port 80 to lead to https");
    }
    let maintenance = of_host.iter().copied().find(|at| routes[*at].maintenance.is_some());
    for &late in of_host {
        let (route, raw) = (&routes[late], raw.route[late].get_ref());
        if let Some(early) = hsts.filter(|early| route.hsts.is_some() && route.hsts != routes[*early].hsts) {
            return differs(
                early,
                raw.hsts_max_age_seconds.as_ref().map(Spanned::span),
                "hsts_max_age_seconds",
            );
        }
        let other =
            |early: &usize| route.maintenance.is_some() && route.maintenance != routes[*early].maintenance;
        if let Some(early) = maintenance.filter(other) {
            return differs(early, raw.maintenance.as_ref().map(Spanned::span), "maintenance");
        }
    }
    Ok(())
}

fn route(source: Source<'_>, spanned: &Spanned<RawRoute>) -> Result<RouteConfig, ConfigError> {
    let raw = spanned.get_ref();
    let host = source.host(&raw.host)?;
    let action = action(source, spanned)?;
    let text = rule_text(raw);
    let rule = Rule::parse(&text, action.kind()).map_err(|faults| rule_error(source, raw, &faults))?;
    let settled = text.settled_by_edges();
    if !settled.is_empty() {
        return Err(rule_error(source, raw, &settled));
    }
    let maintenance = raw.maintenance.as_ref().map(|spanned| {
        let v1::Maintenance { text, retry_after_seconds } = spanned.get_ref();
        Maintenance::new(text, *retry_after_seconds)
            .map_err(|fault| source.error(Some(spanned.span()), fault.text))
    });
    Ok(RouteConfig {
        host,
        route: Route { rule, action },
        hsts: hsts(source, raw)?,
        plain_http: raw.plain_http,
        maintenance: maintenance.transpose()?,
    })
}

fn rule_text(raw: &RawRoute) -> RuleText<'_> {
    let headers = raw.headers.as_ref().map_or(&[][..], |headers| headers.get_ref());
    RuleText {
        path: raw.path.as_ref().map_or("/", |path| path.get_ref()),
        exact: raw.exact,
        methods: raw.methods.as_ref().map_or(&[], |methods| methods.get_ref()),
        headers: headers.iter().map(|header| (header.name.as_str(), header.equals.as_deref())).collect(),
        replace_prefix: raw.replace_prefix.as_ref().map(|prefix| prefix.get_ref().as_str()),
        request_headers: changes_text(raw.request_headers.as_ref()),
        response_headers: changes_text(raw.response_headers.as_ref()),
    }
}

fn changes_text(changes: Option<&Spanned<v1::HeaderChanges>>) -> ChangesText<'_> {
    changes.map(|changes| ChangesText::from(changes.get_ref())).unwrap_or_default()
}

/// The first fault, at the field that it is in.
fn rule_error(source: Source<'_>, raw: &RawRoute, faults: &[RuleFault]) -> ConfigError {
    let Some(fault) = faults.first() else { return source.error(None, "the rule cannot be read".into()) };
    let span = match fault.part {
        Part::Path => raw.path.as_ref().map(Spanned::span),
        Part::Methods => raw.methods.as_ref().map(Spanned::span),
        Part::Headers => raw.headers.as_ref().map(Spanned::span),
        Part::ReplacePrefix => raw.replace_prefix.as_ref().map(Spanned::span),
        Part::RequestHeaders => raw.request_headers.as_ref().map(Spanned::span),
        Part::ResponseHeaders => raw.response_headers.as_ref().map(Spanned::span),
    };
    let name = if fault.part == Part::Path { "path" } else { fault.part.name() };
    source.error(span, format!("{name}{} {}", fault.below, fault.message))
}

fn hsts(source: Source<'_>, raw: &RawRoute) -> Result<Option<Hsts>, ConfigError> {
    let max_age_seconds = raw.hsts_max_age_seconds.as_ref().map(|seconds| *seconds.get_ref());
    let is_set = |flag: &Option<Spanned<bool>>| flag.as_ref().is_some_and(|flag| *flag.get_ref());
    let (include_subdomains, preload) = (is_set(&raw.hsts_include_subdomains), is_set(&raw.hsts_preload));
    let wish = HstsWish { max_age_seconds, include_subdomains, preload, https_redirect: !raw.plain_http };
    if let Some((field, message)) = wish.faults().into_iter().next() {
        let span = match field {
            "hsts_include_subdomains" => raw.hsts_include_subdomains.as_ref().map(Spanned::span),
            "hsts_preload" => raw.hsts_preload.as_ref().map(Spanned::span),
            _ => raw.hsts_max_age_seconds.as_ref().map(Spanned::span),
        };
        return Err(source.error(span, format!("{field}: {message}")));
    }
    Ok(max_age_seconds.map(|max_age_seconds| Hsts { max_age_seconds, include_subdomains, preload }))
}

fn action(source: Source<'_>, spanned: &Spanned<RawRoute>) -> Result<Action, ConfigError> {
    let raw = spanned.get_ref();
    match (&raw.proxy, &raw.redirect, &raw.static_file, &raw.static_body) {
        (Some(urls), None, None, None) => {
            let only_here =
                [raw.of_redirects(), raw.of_static_answers(), vec![("status", span(&raw.status))]];
            unused(source, only_here.concat(), "proxy")?;
            proxy(source, raw, urls)
        }
        (None, Some(location), None, None) => {
            unused(source, [raw.of_proxies(), raw.of_static_answers()].concat(), "redirect")?;
            let status = status(source, raw.status.as_ref(), 308, rule::redirect_status_fault)?;
            let is_set = |flag: &Option<Spanned<bool>>| flag.as_ref().map(|flag| *flag.get_ref());
            let keep_path = is_set(&raw.keep_path).unwrap_or(false);
            let keep_query = is_set(&raw.keep_query).unwrap_or(keep_path);
            Redirect::parse(location.get_ref(), status.into(), keep_path, keep_query)
                .map(Action::Redirect)
                .map_err(|fault| source.error(Some(location.span()), fault.to_string()))
        }
        (None, None, Some(file), None) => {
            let path = source.resolve(file.get_ref());
            let body = read_body(&path).map_err(|problem| {
                source.error(Some(file.span()), format!("static_file {}: {problem}", path.display()))
            })?;
            let is_page = path.extension().is_some_and(|end| end == "html" || end == "htm");
            fixed(source, spanned, body, if is_page { HTML } else { TEXT })
        }
        (None, None, None, Some(body)) => fixed(source, spanned, body.get_ref().clone().into_bytes(), TEXT),
        _ => Err(source.error(
            Some(spanned.span()),
            "a route needs exactly one of proxy, redirect, static_file, static_body".into(),
        )),
    }
}

/// A field and where it stands, if it does.
type Field = (&'static str, Option<Range<usize>>);

fn span<T>(field: &Option<Spanned<T>>) -> Option<Range<usize>> {
    field.as_ref().map(Spanned::span)
}

impl RawRoute {
    fn of_proxies(&self) -> Vec<Field> {
        vec![
            ("host_header", span(&self.host_header)),
            ("protocol", span(&self.protocol)),
            ("proxy_protocol", span(&self.proxy_protocol)),
            ("server_name", span(&self.server_name)),
            ("ca_file", span(&self.ca_file)),
            ("client_certificate", span(&self.client_certificate)),
            ("client_key", span(&self.client_key)),
            ("health_check", span(&self.health_check)),
            ("timeouts", span(&self.timeouts)),
            ("breaker", span(&self.breaker)),
            ("cache", span(&self.cache)),
            ("compression", span(&self.compression)),
        ]
    }

    fn of_redirects(&self) -> Vec<Field> {
        vec![("keep_path", span(&self.keep_path)), ("keep_query", span(&self.keep_query))]
    }

    fn of_static_answers(&self) -> Vec<Field> {
        vec![("content_type", span(&self.content_type))]
    }
}

/// A field that its action does not look at is a mistake of whoever wrote it: they think that it holds.
fn unused(source: Source<'_>, fields: Vec<Field>, action: &str) -> Result<(), ConfigError> {
    let first = fields.into_iter().find(|(_, span)| span.is_some());
    first.map_or(Ok(()), |(name, span)| {
        Err(source.error(span, format!("{name} has no effect on a route with {action}; remove it")))
    })
}

fn proxy(source: Source<'_>, raw: &RawRoute, urls: &Spanned<RawProxy>) -> Result<Action, ConfigError> {
    let wish = wish(raw, urls.get_ref());
    if wish.targets().is_empty() {
        let problem = "names no origin; give one URL, or a list of them";
        return Err(source.error(Some(urls.span()), problem.into()));
    }
    if let Some(fault) = rule::proxy_faults(&wish).into_iter().next() {
        let below = fault.below.trim_start_matches('/');
        let of = below.split('/').next().unwrap_or_default();
        let place = raw.of_proxies().into_iter().find(|(name, _)| *name == of).and_then(|(_, span)| span);
        return Err(source.error(place, format!("{below} {}", fault.message)));
    }
    let authorities = raw.ca_file.as_ref().map(|file| origin_tls::authorities(source, file)).transpose()?;
    let wire = wire::Proxy { tls_ca_der: authorities.unwrap_or_default(), ..wire::Proxy::from(&wish) };
    let upstream =
        Upstream::parse(&wire).map_err(|fault| source.error(Some(urls.span()), fault.to_string()))?;
    let is_https = |one: &WeightedOrigin| one.origin.scheme == OriginScheme::Https;
    let of_tls = [("server_name", span(&raw.server_name)), ("ca_file", span(&raw.ca_file))];
    if let Some((name, place)) = of_tls.into_iter().find(|(_, place)| place.is_some())
        && !upstream.origins.iter().any(is_https)
    {
        let problem = format!("{name}: no origin is https; remove it or begin an origin with https://");
        return Err(source.error(place, problem));
    }
    let shown = origin_tls::identity(source, raw.client_certificate.as_ref(), raw.client_key.as_ref())?;
    let Some((place, identity)) = shown else { return Ok(Action::Proxy(Arc::new(upstream))) };
    if !upstream.origins.iter().all(is_https) {
        let problem = "nobody sees a client certificate on an http origin; begin it with https://";
        return Err(source.error(Some(place), problem.into()));
    }
    Ok(Action::Proxy(Arc::new(upstream.presenting(&identity))))
}

/// The route as the API would have it, so that there is one reader of what it may say.
fn wish(raw: &RawRoute, proxy: &RawProxy) -> v1::Proxy {
    let weighted = |origin: &RawOrigin| match origin {
        RawOrigin::Url(url) => v1::WeightedOrigin { url: url.clone(), weight: 1 },
        RawOrigin::Weighted(origin) => origin.clone(),
    };
    let (origin, origins) = match proxy {
        RawProxy::One(url) => (Some(url.clone()), Vec::new()),
        RawProxy::Several(list) => (None, list.iter().map(weighted).collect()),
    };
    let server_name = copied(&raw.server_name);
    v1::Proxy {
        origin,
        origins,
        host_header: copied(&raw.host_header),
        protocol: copied(&raw.protocol).unwrap_or_default(),
        proxy_protocol: copied(&raw.proxy_protocol),
        tls: Some(v1::OriginTls { server_name, ..v1::OriginTls::default() }),
        health_check: copied(&raw.health_check),
        timeouts: copied(&raw.timeouts),
        breaker: copied(&raw.breaker),
        cache: copied(&raw.cache),
        compression: copied(&raw.compression),
    }
}

fn copied<T: Clone>(field: &Option<Spanned<T>>) -> Option<T> {
    field.as_ref().map(|field| field.get_ref().clone())
}

/// As the API has it for texts.
const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";

fn fixed(
    source: Source<'_>,
    spanned: &Spanned<RawRoute>,
    body: Vec<u8>,
    usual_type: &str,
) -> Result<Action, ConfigError> {
    let raw = spanned.get_ref();
    unused(source, [raw.of_proxies(), raw.of_redirects()].concat(), "a fixed answer")?;
    let status = status(source, raw.status.as_ref(), 200, rule::static_status_fault)?;
    let content_type = raw.content_type.as_ref().map_or(usual_type, |given| given.get_ref());
    let place = span(&raw.status).unwrap_or_else(|| spanned.span());
    Action::fixed(status.into(), content_type, body.into())
        .map_err(|fault| source.error(Some(place), fault.text))
}

fn read_body(path: &std::path::Path) -> Result<Vec<u8>, String> {
    let size = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > limits::STATIC_BODY_BYTES_MAX as u64 {
        let most = limits::STATIC_BODY_BYTES_MAX;
        return Err(format!("{size} bytes; a body from a file has at most {most} bytes"));
    }
    std::fs::read(path).map_err(|error| error.to_string())
}

fn status(
    source: Source<'_>,
    raw: Option<&Spanned<u16>>,
    default: u16,
    fault: fn(u16) -> Option<&'static str>,
) -> Result<u16, ConfigError> {
    let Some(raw) = raw else { return Ok(default) };
    match fault(*raw.get_ref()) {
        None => Ok(*raw.get_ref()),
        Some(message) => Err(source.error(Some(raw.span()), format!("status {message}"))),
    }
}

fn egress(source: Source<'_>, raw: &RawAllow) -> Result<EgressAllow, ConfigError> {
    let net = source.network(&raw.cidr)?;
    if raw.ports.is_empty() {
        return Err(source.error(
            Some(raw.cidr.span()),
            "a grant without ports grants nothing; list them, for example ports = [8080]".into(),
        ));
    }
    Ok(EgressAllow { net, ports: raw.ports.clone() })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{Config, Mode, NamedPath};
    use super::{limits, read_body};

    fn parse(sections: &str) -> Result<Config, String> {
        let text = format!("[[listen]]\naddress = \"127.0.0.1:0\"\nkind = \"https\"\n{sections}");
        Config::parse(Path::new("/srv/edge.toml"), &text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_whole_standalone_file_is_read() {
        let config = parse(
            "[certificates]\nfolder = \"certs\"\n[[route]]\nhost = \"*.example.org\"\nproxy = \"http://127.0.0.1:8081\"\n\
             [[route]]\nhost = \"*\"\npath = \"/old\"\nredirect = \"https://new.example/\"\nstatus = 308\nkeep_path = true\n\
             [egress]\nallow = [{ cidr = \"127.0.0.0/8\", ports = [8081] }]\n",
        )
        .expect("the file is right");
        let Mode::Standalone(standalone) = config.mode else { panic!("not standalone") };
        assert_eq!(
            standalone.certificates.folder.as_ref().map(NamedPath::path),
            Some(Path::new("/srv/certs"))
        );
        assert_eq!(standalone.routes.len(), 2);
        assert!(standalone.routes[1].host.is_none());
    }

    #[test]
    fn each_wrong_route_is_pointed_at() {
        let table = [
            ("[[route]]\nhost = \"shop.example\"\n", "4:1", "exactly one of"),
            ("[[route]]\nhost = \"10.0.0.1\"\nstatic_body = \"x\"\n", "5:8", ""),
            ("[[route]]\nhost = \"*.com\"\nstatic_body = \"x\"\n", "5:8", ""),
            ("[[route]]\nhost = \"a.example\"\npath = \"x\"\nstatic_body = \"x\"\n", "6:8", "begin with `/`"),
            (
                "[[route]]\nhost = \"a.example\"\nredirect = \"https://b\"\nstatus = 200\n",
                "7:10",
                "301, 302, 303, 307 or 308",
            ),
            ("[[route]]\nhost = \"a.example\"\nstatic_file = \"nowhere\"\n", "6:15", "nowhere"),
            ("[[route]]\nhost = \"a.example\"\nproxy = \"nowhere\"\n", "6:9", "not a URL"),
            (
                "[[route]]\nhost = \"a.example\"\nproxy = \"http://b.example\"\ncompression = { content_types = [\"x\"] }\n",
                "7:15",
                "compression/content_types/0",
            ),
            (
                "[[route]]\nhost = \"a.example\"\nproxy = \"http://b.example\"\nproxy_protocol = \"v3\"\n",
                "7:18",
                "v3",
            ),
            ("[[route]]\nhost = \"a.example\"\nredirect = \"nowhere\"\n", "6:12", "absolute URL"),
            (
                "[[route]]\nhost = \"a.example\"\nstatic_body = \"x\"\n[[route]]\nhost = \"A.example\"\n\
                 static_body = \"y\"\n",
                "8:8",
                "the route of line 4 takes all its requests",
            ),
            ("[egress]\nallow = [{ cidr = \"ten\", ports = [1] }]\n", "5:19", "10.0.0.0/8"),
            ("[egress]\nallow = [{ cidr = \"10.0.0.0/8\", ports = [] }]\n", "5:19", "grants nothing"),
            ("[standalone]\nunknown_sni = \"default\"\n", "4:1", "default certificate"),
            (
                "[standalone]\nlimits = { bytes_per_second = 1 }\n",
                "5:10",
                "bytes_per_second must be from 16384",
            ),
            ("[standalone]\nlimits = { requests = 1 }\n", "5:12", "unknown field"),
            (
                "[[route]]\nhost = \"a.example\"\nproxy = \"http://b.example\"\nhealth_check = [\"/hz\", 5]\n",
                "7:16",
                "by their names",
            ),
            (
                "[[route]]\nhost = \"a.example\"\nproxy = [[\"http://b.example\", 3]]\n",
                "6:10",
                "an origin's URL, or { url = ",
            ),
            (
                "[[route]]\nhost = \"a.example\"\nproxy = [{ url = \"http://b.example\", wieght = 3 }]\n",
                "6:38",
                "unknown field `wieght`, expected `url` or `weight`",
            ),
            ("[[route]]\nhost = \"a.example\"\nproxy = 7\n", "6:9", "an origin's URL, or a list of origins"),
            (
                "[egress]\nallow = [{ cidr = \"10.0.0.1/8\", ports = [1] }]\n",
                "5:19",
                "write 10.0.0.0/8, or 10.0.0.1/32",
            ),
        ];
        points_at(&table);
    }

    #[test]
    fn error_pages_come_from_files_and_each_wrong_one_is_pointed_at() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path.display().to_string()
        };
        let section = |status: u16, path: &str| format!("[standalone.error_pages]\n{status} = \"{path}\"\n");
        let busy = file("busy.html", b"<h1>Busy</h1>");
        let config = parse(&section(503, &busy)).expect("a page");
        let Mode::Standalone(standalone) = config.mode else { panic!("not standalone") };
        let (content_type, body) =
            standalone.error_pages.of(http::StatusCode::SERVICE_UNAVAILABLE).expect("the page");
        assert_eq!(
            (content_type.to_str().unwrap(), &body[..]),
            ("text/html; charset=utf-8", &b"<h1>Busy</h1>"[..])
        );
        let (odd, latin, broken) = (file("busy", b"x"), file("busy.txt", b"\xfc"), file("busy.json", b"{"));
        let (large, empty) =
            (file("large.html", &vec![b'x'; limits::STATIC_BODY_BYTES_MAX + 1]), file("empty.html", b""));
        for (path, hint) in [
            (&odd, "its name says"),
            (&latin, "not UTF-8"),
            (&broken, "is no JSON"),
            (&large, "at most 65536 bytes"),
            (&empty, "is empty"),
        ] {
            points_at(&[(&section(503, path), "5:7", hint)]);
        }
        points_at(&[(&section(503, "/nowhere/busy.html"), "5:7", "/nowhere/busy.html")]);
        points_at(&[(&section(500, &busy), "5:1", "unknown field `500`")]);
        let full = file("full.html", &vec![b'x'; limits::STATIC_BODY_BYTES_MAX]);
        let three =
            format!("[standalone.error_pages]\n502 = \"{full}\"\n503 = \"{full}\"\n504 = \"{full}\"\n");
        let error = parse(&three).expect_err("too much together");
        assert!(error.contains("standalone.error_pages: the pages have 196608 bytes together"), "{error}");
    }

    #[test]
    fn each_wrong_rule_is_pointed_at() {
        let table = [
            (
                "[[route]]\nhost = \"a.example\"\npath = \"/a\"\nstatic_body = \"x\"\n[[route]]\nhost = \"a.example\"\n\
                 path = \"/a/b\"\nmethods = [\"GET\"]\nstatic_body = \"y\"\n",
                "10:8",
                "the route of line 4 takes all its requests",
            ),
            (
                "[[route]]\nhost = \"a.example\"\nmethods = [\"get\"]\nstatic_body = \"x\"\n",
                "6:11",
                "methods/0 must be a method",
            ),
            (
                "[[route]]\nhost = \"a.example\"\nheaders = [{ name = \"host\" }]\nstatic_body = \"x\"\n",
                "6:11",
                "headers/0/name host",
            ),
            (
                "[[route]]\nhost = \"a.example\"\nreplace_prefix = \"/b\"\nstatic_body = \"x\"\n",
                "6:18",
                "sends no path on",
            ),
            (
                "[[route]]\nhost = \"a.example\"\nproxy = \"http://b.example\"\n\
                 request_headers = { set = { via = \"x\" } }\n",
                "7:19",
                "request_headers/set/via via cannot be changed",
            ),
            (
                "[[route]]\nhost = \"a.example\"\nstatic_body = \"x\"\nresponse_headers.remove = [\"a b\"]\n",
                "7:1",
                "response_headers/remove/0",
            ),
            (
                "[[route]]\nhost = \"a.example\"\nstatic_body = \"x\"\nresponse_headers.set = { Age = \"5\" }\n",
                "7:1",
                "response_headers/set/Age Age cannot be set",
            ),
            (
                "[[route]]\nhost = \"a.example\"\nstatic_body = \"x\"\nhsts_max_age_seconds = 60\nhsts_preload = true\n",
                "8:16",
                "a year",
            ),
            (
                "[[route]]\nhost = \"a.example\"\nstatic_body = \"x\"\nmaintenance = { retry_after_seconds = 0 }\n",
                "7:15",
                "1 s to a week",
            ),
            ("[[route]]\nhost = \"a.example\"\nstatic_body = \"x\"\nstatus = 204\n", "7:10", "no body"),
        ];
        points_at(&table);
    }

    #[test]
    fn routes_that_say_different_things_for_one_host_are_pointed_at() {
        let two = |first: &str, second: &str| {
            format!(
                "[[route]]\nhost = \"A.example\"\npath = \"/a\"\nstatic_body = \"x\"\n{first}\n\
                 [[route]]\nhost = \"a.example\"\nstatic_body = \"y\"\n{second}\n"
            )
        };
        let year = "hsts_max_age_seconds = 31536000";
        let preload = format!("{year}\nhsts_include_subdomains = true\nhsts_preload = true");
        for (first, second, place, hint) in [
            (year, "hsts_max_age_seconds = 0", "12:24", "hsts_max_age_seconds: the route of line 4"),
            (year, &preload, "12:24", "hsts_max_age_seconds: the route of line 4"),
            ("plain_http = true", &preload, "14:16", "hsts_preload needs port 80"),
            (
                "maintenance = { text = \"a\" }",
                "maintenance = { text = \"b\" }",
                "12:15",
                "maintenance: the route of line 4",
            ),
        ] {
            points_at(&[(&two(first, second), place, hint)]);
        }
        for same in [year, "", "maintenance = { text = \"a\" }"] {
            assert!(parse(&two(same, same)).is_ok() && parse(&two(same, "")).is_ok(), "{same}");
        }
    }

    /// Bounds are those of the API; what an action does not look at is not taken in silence.
    #[test]
    fn each_wrong_field_of_an_action_is_pointed_at() {
        let route = |lines: &str| format!("[[route]]\nhost = \"a.example\"\n{lines}\n");
        let (proxy, secure) = ("proxy = \"http://b.example\"\n", "proxy = \"https://b.example\"\n");
        let (redirect, fixed) = ("redirect = \"https://b.example\"\n", "static_body = \"x\"\n");
        for (action, line, place, hint) in [
            (proxy, "timeouts = { connect_ms = 0 }", "7:12", "timeouts/connect_ms must be from 10 to 60000"),
            (proxy, "timeouts = { first_byte_ms = 4000000000 }", "7:12", "from 10 to 600000"),
            (
                proxy,
                "breaker = { in_flight_max = 0 }",
                "7:11",
                "breaker/in_flight_max must be from 1 to 100000",
            ),
            (proxy, "breaker = { in_flight_max = 1, pending_max = 10001 }", "7:11", "from 0 to 10000"),
            (proxy, "health_check = { interval_seconds = 3601 }", "7:16", "must be from 1 to 3600"),
            (proxy, "health_check = { path = \"x\" }", "7:16", "health_check/path must begin with `/`"),
            (proxy, "cache = { max_object_bytes = 1 }", "7:9", "cache/max_object_bytes"),
            (proxy, "server_name = \"b\"", "7:15", "no origin is https"),
            (proxy, "keep_path = true", "7:13", "keep_path has no effect on a route with proxy"),
            (proxy, "status = 200", "7:10", "status has no effect"),
            (secure, "content_type = \"text/html\"", "7:16", "content_type has no effect"),
            (redirect, "cache = {}", "7:9", "cache has no effect on a route with redirect"),
            (redirect, "content_type = \"text/html\"", "7:16", "content_type has no effect"),
            (redirect, "status = 304", "7:10", "status must be 301, 302, 303, 307 or 308"),
            (fixed, "health_check = {}", "7:16", "health_check has no effect on a route with a fixed answer"),
            (fixed, "protocol = \"http2\"", "7:12", "protocol has no effect"),
            (fixed, "keep_query = false", "7:14", "keep_query has no effect"),
            (fixed, "status = 304", "7:10", "status must be from 200 to 599, but 205 and 304"),
            ("proxy = []\n", "", "6:9", "names no origin"),
        ] {
            points_at(&[(&route(&format!("{action}{line}")), place, hint)]);
        }
        for good in [
            "timeouts = { connect_ms = 10, first_byte_ms = 600000 }",
            "breaker = { in_flight_max = 100000, pending_max = 10000 }",
            "health_check = { path = \"/h?a=b\", interval_seconds = 1, healthy_after = 10, unhealthy_after = 1 }",
            "server_name = \"b\"\nprotocol = \"http2\"\nhost_header = \"c.example\"",
        ] {
            parse(&route(&format!("{secure}{good}"))).expect(good);
        }
    }

    #[test]
    fn a_file_for_a_static_body_has_a_bound() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("page.html");
        std::fs::write(&path, vec![b'x'; limits::STATIC_BODY_BYTES_MAX]).unwrap();
        assert_eq!(read_body(&path).unwrap().len(), limits::STATIC_BODY_BYTES_MAX);
        std::fs::write(&path, vec![b'x'; limits::STATIC_BODY_BYTES_MAX + 1]).unwrap();
        assert!(read_body(&path).unwrap_err().contains("at most 65536 bytes"));
    }

    fn points_at(table: &[(&str, &str, &str)]) {
        for (text, place, hint) in table {
            let error = parse(text).expect_err("the text is wrong");
            assert!(error.contains(&format!("/srv/edge.toml:{place}: ")), "{text:?} gave {error:?}");
            assert!(error.contains(hint), "{text:?} gave {error:?}");
        }
    }
}
