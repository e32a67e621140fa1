//! Caddy's storage, and its configuration in JSON.
//!
//! `certificates/CA/NAME/NAME.{crt,key,json}` and `acme/CA/users/EMAIL/*.{json,key}`, where CA is host and path of the directory
//! joined by `-`. The configuration is what Caddy runs with (`autosave.json`), or what `caddy adapt` makes of a Caddyfile.
//!
//! Of the configuration few handlers are known here: what passes requests on, redirects them or answers with a text. A site with
//! another one is not understood as a whole, for half of a site is another site.

use std::path::{Path, PathBuf};

use portico_api::v1::{Action, Proxy, Redirect, Route, StaticAnswer, WeightedOrigin};
use portico_cert_store::{NamePattern, UnixTime};
use serde_json::Value;

use super::found::{AccountFile, CONFIG_BYTES_MAX, Ca, Files, Found, KeyForm, Site, Wanted, entries};
use crate::failure::{Failure, Outcome};

/// Routes within routes, as `handle` makes them.
const DEPTH_MAX: usize = 8;

/// # Errors
/// It is no storage of Caddy's, or holds too much.
pub(super) fn read(folder: &Path, config: Option<&Path>, files: &Files, now: UnixTime) -> Outcome<Found> {
    let inner = [".local/share/caddy", "data/caddy", "caddy", "."];
    let storage = inner.iter().map(|inner| folder.join(inner)).find(|at| at.join("certificates").is_dir());
    let Some(storage) = storage else {
        let text = format!("{} has no certificates/, so it is no storage of Caddy's", folder.display());
        return Err(Failure::usage(text)
            .next_text("give the folder of its storage, such as /var/lib/caddy/.local/share/caddy"));
    };
    let mut found = Found::default();
    for ca in entries(&storage.join("certificates"))? {
        if ca == "local" {
            found.skip("certificates/local", "they are of Caddy's own authority, which no browser knows");
            continue;
        }
        of_ca(&mut found, (&storage, &ca), files, now)?;
    }
    let autosave = [".config/caddy/autosave.json", "config/caddy/autosave.json", "autosave.json"];
    let autosave = autosave.iter().map(|inner| folder.join(inner)).find(|file| file.is_file());
    match config.map(Path::to_owned).or(autosave) {
        Some(file) => sites(&mut found, &file, files)?,
        None => found.skip(
            "the configuration",
            "autosave.json is not below the folder; give --config FILE (`caddy adapt --config Caddyfile` prints it)",
        ),
    }
    Ok(found)
}

fn of_ca(found: &mut Found, (storage, ca): (&Path, &str), files: &Files, now: UnixTime) -> Outcome {
    let accounts = accounts(storage, ca, files);
    if accounts.is_empty() {
        found.skip(format!("acme/{ca}"), "there is no account's key for it");
    }
    let folder = storage.join("certificates").join(ca);
    if !folder.is_dir() {
        return Ok(());
    }
    for name in entries(&folder)? {
        let file = |extension: &str| folder.join(&name).join(format!("{name}.{extension}"));
        let ordered_by = files
            .read(&file("json"), CONFIG_BYTES_MAX)
            .ok()
            .and_then(|text| serde_json::from_str::<Value>(&text).ok())
            .and_then(|meta| meta["issuer_data"]["account"].as_str().map(str::to_owned));
        let account = match (&ordered_by, accounts.as_slice()) {
            (Some(url), accounts) => accounts.iter().find(|account| account.url.as_ref() == Some(url)),
            (None, [only]) => Some(only),
            // Which of several, Caddy does not say.
            (None, _) => None,
        };
        let wanted = Wanted {
            what: &name,
            chain: file("crt"),
            key: file("key"),
            ca: Some(Ca::CaddyKey(ca.to_owned())),
            account: account.map(|account| AccountFile {
                file: account.key.clone(),
                form: KeyForm::Pem,
                url: account.url.clone(),
            }),
        };
        found.add(files, wanted, now)?;
    }
    Ok(())
}

struct Account {
    url: Option<String>,
    key: PathBuf,
}

fn accounts(storage: &Path, ca: &str, files: &Files) -> Vec<Account> {
    let users = storage.join("acme").join(ca).join("users");
    let mut accounts = Vec::new();
    for user in entries(&users).unwrap_or_default() {
        for entry in entries(&users.join(&user)).unwrap_or_default() {
            let Some(stem) = entry.strip_suffix(".key") else { continue };
            let meta = files.read(&users.join(&user).join(format!("{stem}.json")), CONFIG_BYTES_MAX);
            let meta = meta.ok().and_then(|text| serde_json::from_str::<Value>(&text).ok());
            let url = meta.and_then(|meta| meta["location"].as_str().map(str::to_owned));
            accounts.push(Account { url, key: users.join(&user).join(&entry) });
        }
    }
    accounts
}

fn sites(found: &mut Found, file: &Path, files: &Files) -> Outcome {
    let text = files.read(file, CONFIG_BYTES_MAX).map_err(Failure::failed)?;
    let config: Value = serde_json::from_str(&text).map_err(|error| {
        Failure::file(file, error).next_text("give the JSON form: `caddy adapt --config Caddyfile` prints it")
    })?;
    let http = &config["apps"]["http"];
    let plain = format!(":{}", http["http_port"].as_u64().unwrap_or(80));
    let mut servers: Vec<(&String, &Value)> = http["servers"].as_object().into_iter().flatten().collect();
    // Of a host's two sites the one over plain http comes last.
    servers.sort_by_key(|(_, server)| {
        let listens = server["listen"].as_array().map(Vec::as_slice).unwrap_or_default();
        listens.iter().all(|at| at.as_str().is_some_and(|at| at.ends_with(&plain)))
    });
    for (name, server) in servers {
        let held = understood(server);
        for (index, route) in server["routes"].as_array().into_iter().flatten().enumerate() {
            let from = format!("{}: {name}, route {index}", file.display());
            site(found, route, &from, held.as_ref().err().map(String::as_str));
        }
    }
    Ok(())
}

/// Whether nothing but its routes says what a server does with a visitor: a site must not be open here that was not.
fn understood(server: &Value) -> Result<(), String> {
    only(server, &SERVER, "its server")?;
    let policies = server["tls_connection_policies"].as_array().map(Vec::as_slice).unwrap_or_default();
    policies.iter().try_for_each(|policy| only(policy, &TLS_POLICY, "a TLS connection policy"))
}

/// Fields of a server that are its routes, or change nothing for who may come in.
const SERVER: [&str; 18] = [
    "allow_h2c",
    "automatic_https",
    "client_ip_headers",
    "enable_full_duplex",
    "errors",
    "experimental_http3",
    "idle_timeout",
    "keepalive_interval",
    "listen",
    "logs",
    "max_header_bytes",
    "metrics",
    "protocols",
    "read_header_timeout",
    "read_timeout",
    "routes",
    "tls_connection_policies",
    "write_timeout",
];

const TLS_POLICY: [&str; 9] = [
    "alpn",
    "certificate_selection",
    "cipher_suites",
    "curves",
    "default_sni",
    "fallback_sni",
    "match",
    "protocol_max",
    "protocol_min",
];

/// `shut`: why no route of its server can be read by itself.
fn site(found: &mut Found, route: &Value, from: &str, shut: Option<&str>) {
    let matchers = route["match"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut names = Vec::new();
    let mut by_more = matchers.is_empty();
    for matcher in matchers {
        by_more |= matcher.as_object().is_none_or(|fields| fields.keys().any(|key| key != "host"));
        for host in matcher["host"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            match NamePattern::parse(host) {
                Ok(name) => names.push(name),
                Err(error) => found.skip(format!("{host} of {from}"), error.to_string()),
            }
        }
    }
    if names.is_empty() {
        return found.skip(from, "it is for no names");
    }
    let mut remarks = Vec::new();
    let read = if let Some(why) = shut {
        Err(why.to_owned())
    } else if by_more {
        Err("it is chosen by more than the host".to_owned())
    } else {
        handlers(&route["handle"], &mut remarks, DEPTH_MAX)
    };
    for name in names {
        let one = match &read {
            Ok(routes) => Site::of_routes(from.to_owned(), routes.clone()),
            Err(why) => Site::not_understood(from.to_owned(), why),
        };
        let one = Site { remarks: remarks.clone(), ..one };
        // The first route of a host is the one that Caddy takes.
        found.sites.entry(name).or_insert(one);
    }
}

/// The routes that a chain of handlers comes to.
fn handlers(chain: &Value, remarks: &mut Vec<String>, depth: usize) -> Result<Vec<Route>, String> {
    if depth == 0 {
        return Err("its routes are nested too deeply".to_owned());
    }
    let mut made: Option<Vec<Route>> = None;
    for handler in chain.as_array().into_iter().flatten() {
        let kind = handler["handler"].as_str().unwrap_or_default();
        let routes = match kind {
            "encode" => {
                remarks.push("compression (encode): `portico domain route --compress` has it".to_owned());
                continue;
            }
            "reverse_proxy" => vec![Route::new("/", proxy(handler)?)],
            "static_response" => vec![Route::new("/", answer(handler)?)],
            "subroute" => subroute(handler, remarks, depth)?,
            "" => return Err("a handler has no name".to_owned()),
            _ => return Err(format!("its handler {kind} is not understood")),
        };
        if made.replace(routes).is_some() {
            return Err("several handlers stand behind each other".to_owned());
        }
    }
    made.filter(|routes| !routes.is_empty()).ok_or_else(|| "it handles nothing".to_owned())
}

fn subroute(handler: &Value, remarks: &mut Vec<String>, depth: usize) -> Result<Vec<Route>, String> {
    let mut routes = Vec::new();
    let mut is_closed = false;
    for route in handler["routes"].as_array().into_iter().flatten() {
        if is_closed {
            return Err("routes stand behind one that takes every request".to_owned());
        }
        let inner = handlers(&route["handle"], remarks, depth - 1)?;
        let paths = match route["match"].as_array().map(Vec::as_slice) {
            None | Some([]) => {
                is_closed = true;
                routes.extend(inner);
                continue;
            }
            Some([matcher]) => paths(matcher)?,
            Some(_) => return Err("a route has several matchers".to_owned()),
        };
        let [Route { action, .. }] = inner.as_slice() else {
            return Err("a route for a path has routes of its own".to_owned());
        };
        for path in paths {
            routes.push(match path.strip_suffix("/*") {
                Some(prefix) if !prefix.is_empty() => {
                    remarks.push(format!("{prefix} itself is handled as {path}, too"));
                    Route::new(prefix, action.clone())
                }
                _ => Route { exact: true, ..Route::new(path, action.clone()) },
            });
        }
    }
    Ok(routes)
}

/// The paths of a matcher that looks at nothing else.
fn paths(matcher: &Value) -> Result<Vec<String>, String> {
    let by_path = matcher.as_object().is_some_and(|fields| fields.keys().all(|key| key == "path"));
    if !by_path {
        return Err("a route is chosen by more than the path".to_owned());
    }
    let mut paths = Vec::new();
    for path in matcher["path"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        let inner = path.strip_suffix("/*").unwrap_or(path);
        if !path.starts_with('/') || inner.contains(['*', '{', '%']) || path == "/*" {
            return Err(format!("its path {path} is not understood"));
        }
        paths.push(path.to_owned());
    }
    Ok(paths)
}

fn proxy(handler: &Value) -> Result<Action, String> {
    let known = ["handler", "upstreams", "transport"];
    only(handler, &known, "reverse_proxy")?;
    let transport = &handler["transport"];
    let scheme = if transport.is_null() {
        "http"
    } else {
        only(transport, &["protocol", "tls"], "the transport")?;
        let is_plain = transport["tls"].as_object().is_none_or(serde_json::Map::is_empty);
        if transport["protocol"] != "http" || !is_plain {
            return Err("its transport has settings that are not understood".to_owned());
        }
        if transport["tls"].is_null() { "http" } else { "https" }
    };
    let mut origins = Vec::new();
    for upstream in handler["upstreams"].as_array().into_iter().flatten() {
        only(upstream, &["dial"], "an upstream")?;
        let dial = upstream["dial"].as_str().unwrap_or_default();
        if dial.is_empty() || dial.contains(['{', '/']) {
            return Err(format!("its upstream {dial:?} is no host and port"));
        }
        origins.push(format!("{scheme}://{dial}"));
    }
    match origins.as_slice() {
        [] => Err("it passes requests on to nobody".to_owned()),
        [one] => Ok(Action::proxy(one)),
        several => {
            let origins = several.iter().map(|url| WeightedOrigin { url: url.clone(), weight: 1 }).collect();
            Ok(Action::Proxy(Box::new(Proxy { origins, ..Proxy::default() })))
        }
    }
}

fn answer(handler: &Value) -> Result<Action, String> {
    only(handler, &["handler", "headers", "status_code", "body"], "static_response")?;
    let given = &handler["status_code"];
    let status = match given.as_str() {
        _ if given.is_null() => Some(200),
        Some(text) => text.parse().ok(),
        None => given.as_u64().and_then(|number| u16::try_from(number).ok()),
    };
    let status = status.ok_or_else(|| "its status is not understood".to_owned())?;
    let headers = handler["headers"].as_object();
    match (headers.map(|headers| headers.len()), handler["headers"]["Location"][0].as_str()) {
        (None, _) => {
            let body = handler["body"].as_str().unwrap_or_default();
            if body.contains('{') {
                return Err("its answer has placeholders".to_owned());
            }
            let Action::Static(text) = Action::text(body) else {
                return Err("it answers nothing".to_owned());
            };
            Ok(Action::Static(StaticAnswer { status, ..text }))
        }
        (Some(1), Some(location)) => redirect(location, status),
        (Some(_), _) => Err("its answer has headers that are not understood".to_owned()),
    }
}

fn redirect(location: &str, status: u16) -> Result<Action, String> {
    let (to, keeps) = match location.strip_suffix("{http.request.uri}") {
        Some(to) => (to, true),
        None => (location, false),
    };
    if to.contains('{') || !to.starts_with("http") {
        return Err(format!("it redirects to {location}, which is not understood"));
    }
    Ok(Action::Redirect(Redirect { to: to.to_owned(), status, keep_path: keeps, keep_query: Some(keeps) }))
}

/// An object has no other fields than these.
fn only(object: &Value, known: &[&str], what: &str) -> Result<(), String> {
    let fields = object.as_object().into_iter().flatten();
    match fields.map(|(name, _)| name).find(|name| !known.contains(&name.as_str())) {
        Some(other) => Err(format!("{what} has {other}, which is not understood")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(handle: Value) -> Result<Vec<Route>, String> {
        handlers(&handle, &mut Vec::new(), DEPTH_MAX)
    }

    #[test]
    fn a_server_that_asks_for_client_certificates_is_not_understood() {
        understood(
            &json!({ "listen": [":443"], "routes": [], "tls_connection_policies": [{ "match": {} }] }),
        )
        .unwrap();
        let asks = json!({ "routes": [], "tls_connection_policies": [{ "client_authentication": {} }] });
        assert!(understood(&asks).unwrap_err().contains("client_authentication"));
        understood(&json!({ "routes": [], "named_routes": {} })).unwrap_err();
    }

    #[test]
    fn what_passes_on_redirects_or_answers_is_understood() {
        let one = of(json!([{ "handler": "subroute", "routes": [
            { "handle": [{ "handler": "reverse_proxy", "upstreams": [{ "dial": "127.0.0.1:9000" }] }] },
        ] }]));
        assert_eq!(one, Ok(vec![Route::new("/", Action::proxy("http://127.0.0.1:9000"))]));
        let to = of(json!([{ "handler": "static_response", "status_code": 301,
            "headers": { "Location": ["https://shop.test{http.request.uri}"] } }]));
        let Ok([Route { action: Action::Redirect(redirect), .. }]) = to.as_deref() else { panic!("{to:?}") };
        assert_eq!(
            (redirect.to.as_str(), redirect.status, redirect.keep_path),
            ("https://shop.test", 301, true)
        );
        let paths = of(json!([{ "handler": "subroute", "routes": [
            { "match": [{ "path": ["/api/*", "/health"] }], "handle": [
                { "handler": "reverse_proxy", "upstreams": [{ "dial": "a:1" }, { "dial": "b:2" }],
                  "transport": { "protocol": "http", "tls": {} } }] },
            { "handle": [{ "handler": "static_response", "body": "closed", "status_code": 503 }] },
        ] }]));
        let paths = paths.unwrap();
        let shape = |route: &Route| (route.path_prefix.clone(), route.exact);
        assert_eq!(
            paths.iter().map(shape).collect::<Vec<_>>(),
            [("/api".to_owned(), false), ("/health".to_owned(), true), ("/".to_owned(), false)]
        );
    }

    #[test]
    fn what_is_not_understood_is_told_and_never_guessed() {
        let proxy = json!({ "handler": "reverse_proxy", "upstreams": [{ "dial": "a:1" }] });
        for (handle, words) in [
            (json!([{ "handler": "file_server" }]), "file_server is not understood"),
            (
                json!([{ "handler": "reverse_proxy", "upstreams": [{ "dial": "unix//run/x" }] }]),
                "no host and port",
            ),
            (
                json!([{ "handler": "reverse_proxy", "headers": {}, "upstreams": [] }]),
                "reverse_proxy has headers",
            ),
            (
                json!([{ "handler": "subroute", "routes": [
                { "match": [{ "path_regexp": {} }], "handle": [proxy] }] }]),
                "more than the path",
            ),
            (
                json!([{ "handler": "static_response", "headers": { "Location": ["/x{http.request.uri.path}"] },
                "status_code": 302 }]),
                "redirects to",
            ),
            (json!([]), "handles nothing"),
        ] {
            let told = of(handle).unwrap_err();
            assert!(told.contains(words), "{told}");
        }
        let mut deep = json!([{ "handler": "file_server" }]);
        for _ in 0..20 {
            deep = json!([{ "handler": "subroute", "routes": [{ "handle": deep }] }]);
        }
        assert!(of(deep).unwrap_err().contains("too deeply"));
    }
}
