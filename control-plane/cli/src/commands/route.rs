//! `portico domain route NAME`: what happens to a domain's requests, changed while it is served.

use std::path::PathBuf;
use std::time::Duration;

use portico_api::v1::client::Client;
use portico_api::v1::{
    Action, CachePolicy, CompressionPolicy, OriginTls, Proxy, ProxyProtocol, QueryKey, Redirect, Route,
    StaticAnswer, WeightedOrigin,
};
use serde_json::json;

use crate::commands::domain::{WaitArgs, with_grant};
use crate::commands::named_domain::{DomainArgs, whose};
use crate::commands::rule::{AnswerArgs, RuleArgs, narrowness, rule_text, same_rule};
use crate::failure::{Failure, Outcome};
use crate::output;
use crate::revision::on_newest;
use crate::settings::Settings;

#[derive(Debug, clap::Args)]
pub(crate) struct RouteArgs {
    #[command(flatten)]
    which: DomainArgs,
    #[command(flatten)]
    action: ActionArgs,
    #[command(flatten)]
    proxy: ProxyArgs,
    #[command(flatten)]
    answer: AnswerArgs,
    /// Take the route of these requests away; they go by another one then
    #[arg(long, group = "ActionArgs", conflicts_with_all = ["CacheArgs", "CompressionArgs", "ConnectionArgs"])]
    remove: bool,
    #[command(flatten)]
    rule: RuleArgs,
    #[command(flatten)]
    wait: WaitArgs,
}

/// What a domain does with requests.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct ActionArgs {
    /// Pass requests to this origin: http://host[:port] or https://host[:port]; several times: to one of these
    #[arg(long, value_name = "URL", value_parser = url)]
    proxy: Vec<String>,
    /// Redirect (308) to this URL
    #[arg(long, value_name = "URL", value_parser = url)]
    redirect: Option<String>,
    /// Answer with this text
    #[arg(long = "static", value_name = "TEXT")]
    fixed: Option<String>,
}

/// What is said of a proxy route beyond its origins.
#[derive(Debug, clap::Args)]
pub(crate) struct ProxyArgs {
    #[command(flatten)]
    cache: CacheArgs,
    #[command(flatten)]
    compression: CompressionArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

impl ProxyArgs {
    /// # Errors
    /// Something is said of an action that is no proxy; a file that cannot be read.
    pub(crate) fn of(self, action: Action) -> Outcome<Action> {
        self.connection.of(self.compression.of(self.cache.of(action)?)?)
    }
}

/// What edges keep of a proxy route's answers.
#[derive(Debug, clap::Args)]
struct CacheArgs {
    /// Keep answers that say how long they are good (with --proxy)
    #[arg(long)]
    cache: bool,
    /// And for so long those that do not say it, such as 10m
    #[arg(long, value_name = "TIME", requires = "cache", value_parser = crate::duration::parse)]
    cache_ttl: Option<Duration>,
    /// Parameters of the query that do not count, such as utm_*; several times
    #[arg(long, value_name = "NAME", requires = "cache")]
    cache_ignore: Vec<String>,
}

impl CacheArgs {
    fn of(self, action: Action) -> Outcome<Action> {
        if !self.cache {
            return Ok(action);
        }
        let Action::Proxy(mut proxy) = action else {
            return Err(Failure::usage("--cache is for --proxy: nothing else has answers to keep"));
        };
        let query = QueryKey { ignore: self.cache_ignore, ..QueryKey::default() };
        let ttl = self.cache_ttl.unwrap_or_default().as_secs();
        let default_ttl_seconds = u32::try_from(ttl).unwrap_or(u32::MAX);
        proxy.cache = Some(CachePolicy { default_ttl_seconds, query, ..CachePolicy::default() });
        Ok(Action::Proxy(proxy))
    }
}

/// What edges compress of a proxy route's answers.
#[derive(Debug, clap::Args)]
struct CompressionArgs {
    /// Compress answers that the origin sends plain, for clients that take it (with --proxy)
    #[arg(long)]
    compress: bool,
    /// Only these media types, such as text/* or application/*+json; several times
    #[arg(long, value_name = "TYPE", requires = "compress")]
    compress_type: Vec<String>,
    /// And only from so many bytes on; 1024 when absent
    #[arg(long, value_name = "BYTES", requires = "compress")]
    compress_min: Option<u32>,
}

impl CompressionArgs {
    fn of(self, action: Action) -> Outcome<Action> {
        if !self.compress {
            return Ok(action);
        }
        let Action::Proxy(mut proxy) = action else {
            return Err(Failure::usage("--compress is for --proxy: other answers are short"));
        };
        proxy.compression = Some(CompressionPolicy {
            min_bytes: self.compress_min,
            content_types: self.compress_type,
            ..CompressionPolicy::default()
        });
        Ok(Action::Proxy(proxy))
    }
}

/// How a proxy route's origin is spoken to.
#[derive(Debug, clap::Args)]
struct ConnectionArgs {
    /// Tell the origin each client's address by the PROXY protocol, v1 or v2 (with --proxy)
    #[arg(long, value_name = "VERSION", value_parser = version)]
    proxy_protocol: Option<ProxyProtocol>,
    /// Show https origins that ask for one the tenant's client certificate, see `tenant origin-authority` (with --proxy)
    #[arg(long)]
    origin_client_certificate: bool,
    /// Trust https origins by these authorities alone: a PEM file (with --proxy)
    #[arg(long, value_name = "FILE")]
    origin_ca: Option<PathBuf>,
    /// The name that https origins have to have, in the place of their host's (with --proxy)
    #[arg(long, value_name = "NAME")]
    origin_server_name: Option<String>,
}

impl ConnectionArgs {
    fn of(self, action: Action) -> Outcome<Action> {
        let ca_pem = self.origin_ca.as_ref().map(|file| {
            std::fs::read_to_string(file)
                .map_err(|error| Failure::usage(format!("--origin-ca {}: {error}", file.display())))
        });
        let tls = OriginTls {
            server_name: self.origin_server_name,
            ca_pem: ca_pem.transpose()?,
            client_certificate: self.origin_client_certificate,
        };
        let tls = (tls != OriginTls::default()).then_some(tls);
        if self.proxy_protocol.is_none() && tls.is_none() {
            return Ok(action);
        }
        let Action::Proxy(mut proxy) = action else {
            return Err(Failure::usage(
                "--proxy-protocol and --origin-.. are for --proxy: nothing else has an origin",
            ));
        };
        proxy.proxy_protocol = self.proxy_protocol;
        proxy.tls = tls;
        Ok(Action::Proxy(proxy))
    }
}

fn version(text: &str) -> Result<ProxyProtocol, String> {
    match text {
        "v1" => Ok(ProxyProtocol::V1),
        "v2" => Ok(ProxyProtocol::V2),
        _ => Err("v1 or v2".to_owned()),
    }
}

impl ActionArgs {
    pub(crate) fn action(self) -> Action {
        match (&*self.proxy, self.redirect, self.fixed) {
            ([origin], _, _) => Action::proxy(origin),
            (origins @ [_, ..], _, _) => {
                let origins = origins.iter().map(|url| WeightedOrigin { url: url.clone(), weight: 1 });
                Action::Proxy(Box::new(Proxy { origins: origins.collect(), ..Proxy::default() }))
            }
            ([], Some(to), _) => Action::redirect(to),
            ([], None, body) => Action::text(body.unwrap_or_default()),
        }
    }
}

pub(crate) async fn run(settings: &Settings, client: &Client, args: RouteArgs) -> Outcome {
    let RouteArgs { which, action, proxy, answer, remove, rule, wait } = args;
    if remove {
        rule.only_chooses()?;
    }
    let action = proxy.of(action.action())?;
    let route = rule.route(answer.of(action));
    let changed = on_newest(async || {
        let found = which.find(client).await?;
        let (tenant, whose) = (found.tenant_name.clone(), whose(&found));
        let routes = changed(found.spec.routes, route.clone(), remove).map_err(|text| {
            Failure::not_found(format!("{whose}: {text}")).next(format!("domain show {}", found.id))
        })?;
        let patched = client.patch_domain(found.id, &json!({ "routes": routes }), Some(found.revision)).await;
        patched.map_err(|error| with_grant(Failure::from(error).about(whose), &tenant))
    });
    let changed = changed.await?;
    if remove && changed.spec.routes.is_empty() {
        output::remark(format!("{} has no route left: visitors get 404", whose(&changed)));
    }
    wait.show(settings, client, changed).await
}

/// A URL, as far as that it has a scheme; the rest is the API's to judge.
fn url(text: &str) -> Result<String, String> {
    if text.contains("://") {
        return Ok(text.to_owned());
    }
    Err(format!("it does not say how to talk there; write http://{text} or https://{text}"))
}

/// The routes with this one in the place of that for the same requests, or without that. The first that matches is taken, so
/// a new one goes before those of shorter paths and, for its own path, of wider rules.
fn changed(mut routes: Vec<Route>, route: Route, remove: bool) -> Result<Vec<Route>, String> {
    let place = routes.iter().position(|other| same_rule(other, &route));
    match (place, remove) {
        (Some(place), false) => routes[place] = route,
        (Some(place), true) => drop(routes.remove(place)),
        (None, true) => return Err(format!("there is no route of the path {}", rule_text(&route))),
        (None, false) => {
            let wider = routes.iter().position(|other| narrowness(other) < narrowness(&route));
            routes.insert(wider.unwrap_or(routes.len()), route);
        }
    }
    Ok(routes)
}

pub(crate) fn action_text(action: &Action) -> String {
    match action {
        Action::Proxy(proxy) => proxy_text(proxy),
        Action::Redirect(Redirect { to, status, keep_path, keep_query }) => {
            let kept = match (*keep_path, keep_query.unwrap_or(*keep_path)) {
                (true, true) => ", path and query kept",
                (true, false) => ", path kept",
                (false, true) => ", query kept",
                (false, false) => "",
            };
            format!("redirect {status} to {to}{kept}")
        }
        Action::Static(StaticAnswer { status, content_type, body }) => {
            format!("answer {status}, {content_type}, {} bytes", body.len())
        }
    }
}

fn proxy_text(proxy: &Proxy) -> String {
    let origins = proxy.targets();
    let equal = origins.windows(2).all(|pair| pair[0].weight == pair[1].weight);
    let texts: Vec<String> = origins
        .into_iter()
        .map(|WeightedOrigin { url, weight }| if equal { url } else { format!("{url} (weight {weight})") })
        .collect();
    let host = proxy.host_header.as_ref().map_or(String::new(), |host| format!(" as {host}"));
    let cache = proxy.cache.as_ref().map_or_else(String::new, cache_text);
    let compression = if proxy.compression.is_some() { ", compressed" } else { "" };
    let tls = proxy.tls.as_ref().map_or_else(String::new, tls_text);
    format!("proxy to {}{host}{tls}{cache}{compression}", texts.join(", "))
}

/// How https origins are verified and what they are shown, beside the usual.
fn tls_text(tls: &OriginTls) -> String {
    let OriginTls { server_name, ca_pem, client_certificate } = tls;
    let authorities = ca_pem.as_ref().map(|pem| pem.matches("-----BEGIN CERTIFICATE-----").count());
    let parts = [
        server_name.as_ref().map(|name| format!(", whose certificate is for {name}")),
        authorities.map(|count| format!(", trusted by {count} CA certificates of its own")),
        client_certificate.then(|| ", shown the tenant's client certificate".to_owned()),
    ];
    parts.into_iter().flatten().collect()
}

/// What is kept beyond what answers say themselves, and what of a query does not count.
fn cache_text(policy: &CachePolicy) -> String {
    let CachePolicy { default_ttl_seconds, error_ttl_seconds, query, .. } = policy;
    let stale = policy.stale_while_revalidate_seconds;
    let on_error = policy.stale_if_error_seconds;
    let seconds = |name: &str, seconds: u32| (seconds > 0).then(|| format!("{name} {seconds} s"));
    let parts = [
        seconds("for", *default_ttl_seconds),
        seconds("errors", *error_ttl_seconds),
        seconds("stale", stale),
        seconds("stale on errors", on_error),
        policy.max_object_bytes.map(|bytes| format!("at most {bytes} bytes each")),
        query.sort.then(|| "query in any order".to_owned()),
        (!query.ignore.is_empty()).then(|| format!("ignoring {}", query.ignore.join(" "))),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() {
        ", with a cache".to_owned()
    } else {
        format!(", with a cache ({})", parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use portico_api::rule::{self, ActionKind, Rule, RuleText};
    use portico_api::v1::HeaderCondition;

    use super::*;

    fn proxy(origin: &str) -> Action {
        Action::proxy(origin)
    }

    fn texts(routes: &[Route]) -> Vec<String> {
        let text = |route: &Route| format!("{} {}", route.path_prefix, action_text(&route.action));
        routes.iter().map(text).collect()
    }

    #[test]
    fn a_longer_path_is_asked_before_a_shorter_one_and_others_stay_as_they_are() {
        let mut routes = Vec::new();
        for (path, origin) in
            [("/", "http://a"), ("/api", "http://b"), ("/api/v1", "http://c"), ("/x", "http://d")]
        {
            routes = changed(routes, Route::new(path, proxy(origin)), false).unwrap();
        }
        let paths: Vec<&str> = routes.iter().map(|route| route.path_prefix.as_str()).collect();
        assert_eq!(paths, ["/api/v1", "/api", "/x", "/"]);
        routes = changed(routes, Route::new("/", proxy("http://new")), false).unwrap();
        routes = changed(routes, Route::new("/api", proxy("")), true).unwrap();
        assert_eq!(
            texts(&routes),
            ["/api/v1 proxy to http://c", "/x proxy to http://d", "/ proxy to http://new"]
        );
        changed(routes, Route::new("/none", proxy("")), true).unwrap_err();
    }

    #[test]
    fn a_route_says_how_long_its_cache_keeps_and_which_parameters_it_ignores() {
        let mut proxy = Proxy::to("http://a");
        proxy.cache = Some(CachePolicy {
            default_ttl_seconds: 600,
            query: QueryKey { ignore: vec!["utm_*".into(), "fbclid".into()], sort: false },
            ..CachePolicy::default()
        });
        assert_eq!(proxy_text(&proxy), "proxy to http://a, with a cache (for 600 s, ignoring utm_* fbclid)");
        proxy.cache = Some(CachePolicy::default());
        assert_eq!(proxy_text(&proxy), "proxy to http://a, with a cache");
    }

    #[test]
    fn a_route_says_how_its_origin_is_verified_and_what_it_is_shown() {
        let mut proxy = Proxy::to("https://a");
        proxy.tls = Some(OriginTls {
            server_name: Some("in.example".to_owned()),
            ca_pem: Some("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n".repeat(2)),
            client_certificate: true,
        });
        let wanted = "proxy to https://a, whose certificate is for in.example, trusted by 2 CA certificates of its own, shown \
                      the tenant's client certificate";
        assert_eq!(proxy_text(&proxy), wanted);
    }

    /// In whatever order they come, no route is put where an earlier one takes all its requests.
    #[test]
    fn a_new_route_is_never_put_behind_a_wider_one() {
        let methods = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let header = |equals: Option<&str>| {
            vec![HeaderCondition { name: "x".into(), equals: equals.map(str::to_owned) }]
        };
        let of = |path: &str| Route::new(path, proxy("http://a"));
        let mut all = vec![
            of("/"),
            of("/a"),
            of("/a/b"),
            Route { exact: true, ..of("/a") },
            Route { methods: methods(&["GET"]), ..of("/a") },
            Route { methods: methods(&["GET", "POST"]), ..of("/a") },
            Route { headers: header(None), ..of("/a") },
            Route { headers: header(Some("1")), ..of("/a") },
            Route { methods: methods(&["GET"]), headers: header(Some("1")), ..of("/") },
        ];
        for turn in 0..all.len() {
            all.rotate_left(1);
            for order in [all.clone(), all.iter().rev().cloned().collect()] {
                let add = |routes, route| changed(routes, route, false).unwrap();
                let routes: Vec<Route> = order.into_iter().fold(Vec::new(), add);
                let rules: Vec<Rule> = routes
                    .iter()
                    .map(|route| Rule::parse(&RuleText::from(route), ActionKind::Proxy).unwrap())
                    .collect();
                assert_eq!(
                    (routes.len(), rule::unreachable(&rules)),
                    (all.len(), vec![]),
                    "turn {turn}: {routes:?}"
                );
            }
        }
    }
}
