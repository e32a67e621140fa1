//! From a server block to a domain's settings.
//!
//! Three kinds of directives: those that are taken, those that change nothing here and pass without a word, and those that are left
//! out with a remark. Any other makes the block not understood, as a whole: half of a site is another site.

use std::collections::HashMap;

use portico_api::v1::{Action, DomainSpec, Proxy, Redirect, Route, StaticAnswer, WeightedOrigin};

use super::syntax::{Directive, named};

/// How the server itself works, or what is done here anyway.
const PASSED: [&str; 30] = [
    "listen",
    "server_name",
    "ssl_certificate",
    "ssl_certificate_key",
    "ssl_protocols",
    "ssl_ciphers",
    "ssl_prefer_server_ciphers",
    "ssl_session_cache",
    "ssl_session_timeout",
    "ssl_session_tickets",
    "ssl_dhparam",
    "ssl_ecdh_curve",
    "ssl_stapling",
    "ssl_stapling_verify",
    "ssl_trusted_certificate",
    "ssl_conf_command",
    "resolver",
    "resolver_timeout",
    "http2",
    "http3",
    "access_log",
    "error_log",
    "log_not_found",
    "server_tokens",
    "keepalive_timeout",
    "charset",
    "proxy_http_version",
    "proxy_redirect",
    "proxy_buffering",
    "tcp_nodelay",
];

/// What is left out, with where it is to be had.
const REMARKED: [(&str, &str); 16] = [
    ("client_max_body_size", ""),
    ("proxy_read_timeout", "`portico domain route` has timeouts"),
    ("proxy_connect_timeout", "`portico domain route` has timeouts"),
    ("proxy_send_timeout", "`portico domain route` has timeouts"),
    ("send_timeout", ""),
    ("client_body_timeout", ""),
    ("client_header_timeout", ""),
    ("proxy_buffers", ""),
    ("proxy_buffer_size", ""),
    ("proxy_busy_buffers_size", ""),
    ("proxy_request_buffering", ""),
    ("gzip", "`portico domain route --compress` has it"),
    ("gzip_types", ""),
    ("add_header", "`portico domain route --set-response-header` has it"),
    ("error_page", ""),
    ("index", ""),
];

/// Set here for every origin.
const OWN_HEADERS: [&str; 9] = [
    "x-real-ip",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-ssl",
    "forwarded",
    "upgrade",
    "connection",
];

/// `upstream NAME {}` by name.
pub(super) type Upstreams = HashMap<String, Result<Vec<WeightedOrigin>, String>>;

/// # Errors
/// In words: what of it is not understood.
pub(super) fn upstream(block: &[Directive]) -> Result<Vec<WeightedOrigin>, String> {
    let mut origins = Vec::new();
    for directive in block {
        match (directive.name.as_str(), directive.words.as_slice()) {
            ("server", [address, parameters @ ..]) => {
                let mut weight = 1;
                for parameter in parameters {
                    weight =
                        parameter.strip_prefix("weight=").and_then(|text| text.parse().ok()).ok_or_else(
                            || format!("{}: an upstream's {parameter} is not understood", directive.at),
                        )?;
                }
                if address.starts_with("unix:") || address.contains('$') {
                    return Err(format!("{}: the upstream {address} is no host and port", directive.at));
                }
                origins.push(WeightedOrigin { url: address.clone(), weight });
            }
            ("keepalive" | "keepalive_timeout" | "keepalive_requests" | "least_conn" | "zone", _) => {}
            (name, _) => return Err(format!("{}: an upstream's {name} is not understood", directive.at)),
        }
    }
    if origins.is_empty() { Err("the upstream has no server".to_owned()) } else { Ok(origins) }
}

/// What a server block says, so far.
#[derive(Debug, Default)]
struct Draft {
    /// With how the longest goes first.
    routes: Vec<Route>,
    hsts: Option<(u32, bool, bool)>,
    remarks: Vec<String>,
}

/// The settings of a server block, and what is left out.
///
/// # Errors
/// In words: what of it is not understood.
pub(super) fn site(server: &[Directive], upstreams: &Upstreams) -> (Result<DomainSpec, String>, Vec<String>) {
    let mut draft = Draft::default();
    let read = draft.read(server, upstreams);
    let Draft { mut routes, hsts, remarks } = draft;
    // The exact path first, then the longest prefix, as nginx chooses.
    routes.sort_by_key(|route| (!route.exact, std::cmp::Reverse(route.path_prefix.len())));
    let spec = match read {
        Err(why) => Err(why),
        Ok(()) if routes.is_empty() => Err("it serves files of its own".to_owned()),
        Ok(()) => {
            let (age, subdomains, preload) = hsts.unwrap_or_default();
            Ok(DomainSpec {
                routes,
                hsts_max_age_seconds: hsts.map(|_| age),
                hsts_include_subdomains: subdomains,
                hsts_preload: preload,
                ..DomainSpec::new(String::new())
            })
        }
    };
    (spec, remarks)
}

impl Draft {
    fn read(&mut self, server: &[Directive], upstreams: &Upstreams) -> Result<(), String> {
        let hosts: Vec<&Directive> = named(server, "proxy_set_header").collect();
        // nginx answers by the first one before it looks for a location.
        let answers = named(server, "return").next();
        for directive in server {
            match (directive.name.as_str(), answers) {
                ("location" | "return", Some(first)) if !std::ptr::eq(directive, first) => {
                    self.remarks.push(format!(
                        "{}: {} {} is never reached, as {} answers every request",
                        directive.at,
                        directive.name,
                        directive.words.join(" "),
                        first.at
                    ))
                }
                ("location", _) => self.location(directive, upstreams, &hosts)?,
                ("return", _) => self.routes.push(Route::new("/", returned(directive)?)),
                ("root", _) if has_locations(server) => {}
                ("proxy_set_header", _) => {}
                _ => self.other(directive)?,
            }
        }
        Ok(())
    }

    /// What is neither here nor there; HSTS is taken.
    fn other(&mut self, directive: &Directive) -> Result<(), String> {
        let Directive { name, words, at, .. } = directive;
        if PASSED.contains(&name.as_str()) {
            return Ok(());
        }
        if name == "add_header"
            && words.first().is_some_and(|field| field.eq_ignore_ascii_case("strict-transport-security"))
        {
            self.hsts = Some(
                hsts(words.get(1).map(String::as_str).unwrap_or_default())
                    .ok_or_else(|| format!("{at}: its Strict-Transport-Security is not understood"))?,
            );
            return Ok(());
        }
        let Some((_, hint)) = REMARKED.iter().find(|(known, _)| known == name) else {
            return Err(format!("{at}: {name} is not understood"));
        };
        let hint = if hint.is_empty() { String::new() } else { format!(" ({hint})") };
        self.remarks.push(format!("{at}: {name} {} is left out{hint}", words.join(" ")));
        Ok(())
    }

    fn location(
        &mut self,
        location: &Directive,
        upstreams: &Upstreams,
        of_server: &[&Directive],
    ) -> Result<(), String> {
        let at = &location.at;
        let (path, exact) = match location.words.as_slice() {
            [path] if path.starts_with('/') => (path.as_str(), false),
            [modifier, path] if modifier == "=" => (path.as_str(), true),
            [modifier, path] if modifier == "^~" => (path.as_str(), false),
            words => return Err(format!("{at}: location {} is not understood", words.join(" "))),
        };
        if path.starts_with("/.well-known/acme-challenge") {
            // Answered here, for every name.
            return Ok(());
        }
        let prefix = match (exact, path.strip_suffix('/')) {
            (true, _) => path,
            (false, Some("")) => "/",
            (false, Some(prefix)) => {
                self.remarks.push(format!("{at}: {prefix} itself is handled as {path}, too"));
                prefix
            }
            (false, None) => {
                return Err(format!(
                    "{at}: location {path} is for {path}x too, which no route here is; end it with /"
                ));
            }
        };
        let own: Vec<&Directive> = named(&location.block, "proxy_set_header").collect();
        let headers = if own.is_empty() { of_server } else { own.as_slice() };
        let mut action = None;
        for directive in &location.block {
            let made = match directive.name.as_str() {
                "proxy_pass" => proxy(directive, prefix, upstreams, headers)?,
                "return" => returned(directive)?,
                "proxy_set_header" => continue,
                _ => {
                    self.other(directive)?;
                    continue;
                }
            };
            if action.replace(made).is_some() {
                return Err(format!("{at}: two things are done at once"));
            }
        }
        let action = action.ok_or_else(|| format!("{at}: it serves files of its own"))?;
        self.routes.push(Route { exact, ..Route::new(prefix, action) });
        Ok(())
    }
}

/// A root is of no matter where every request is handled by a location that has no files.
fn has_locations(server: &[Directive]) -> bool {
    named(server, "location").any(|location| location.word() == Some("/"))
        || named(server, "return").next().is_some()
}

fn hsts(value: &str) -> Option<(u32, bool, bool)> {
    let (mut age, mut subdomains, mut preload) = (None, false, false);
    for part in value.split(';').map(str::trim).filter(|part| !part.is_empty()) {
        match part.to_ascii_lowercase().as_str() {
            "includesubdomains" => subdomains = true,
            "preload" => preload = true,
            part => age = Some(part.strip_prefix("max-age=")?.trim_matches('"').parse().ok()?),
        }
    }
    Some((age?, subdomains, preload))
}

/// `return CODE URL`, `return CODE`, `return CODE TEXT`.
pub(super) fn returned(directive: &Directive) -> Result<Action, String> {
    let at = &directive.at;
    let (status, rest) = match directive.words.as_slice() {
        [url] if url.starts_with("http") => ("302", Some(url.as_str())),
        [status] => (status.as_str(), None),
        [status, rest] => (status.as_str(), Some(rest.as_str())),
        _ => return Err(format!("{at}: return is not understood")),
    };
    let status: u16 = status.parse().map_err(|_| format!("{at}: return {status} is not understood"))?;
    match (status, rest) {
        (301 | 302 | 303 | 307 | 308, Some(url)) => redirect(at, url, status),
        (200..=299 | 400..=443 | 445..=599, text) => {
            let text = text.unwrap_or_default();
            if text.contains('$') {
                return Err(format!("{at}: its answer has variables"));
            }
            let Action::Static(answer) = Action::text(text) else {
                return Err(format!("{at}: it answers nothing"));
            };
            Ok(Action::Static(StaticAnswer { status, ..answer }))
        }
        _ => Err(format!("{at}: return {status} is not understood")),
    }
}

fn redirect(at: &str, url: &str, status: u16) -> Result<Action, String> {
    let url = url.replacen("$scheme://", "https://", 1);
    let keeps = ["$request_uri", "${request_uri}"].iter().find_map(|end| url.strip_suffix(end));
    let (to, keeps) = match keeps {
        Some(to) => (to.to_owned(), true),
        None => (url.clone(), false),
    };
    if to.contains('$') || !to.starts_with("http") {
        return Err(format!("{at}: it redirects to {url}, which is not understood"));
    }
    Ok(Action::Redirect(Redirect { to, status, keep_path: keeps, keep_query: Some(keeps) }))
}

/// Whether a block does nothing but send visitors to https, as certbot writes it too.
pub(super) fn redirects_to_https(server: &[Directive]) -> bool {
    let to_https = |directive: &Directive| {
        let [status, url] = directive.words.as_slice() else { return false };
        let rest = [
            "https://$host$request_uri",
            "https://$server_name$request_uri",
            "https://$http_host$request_uri",
        ];
        status.starts_with('3') && rest.contains(&url.as_str())
    };
    let mut found = false;
    for directive in server {
        match directive.name.as_str() {
            "return" if directive.words == ["404"] && found => {}
            "return" if to_https(directive) => found = true,
            "if" => match directive.block.as_slice() {
                [only] if only.name == "return" && to_https(only) => found = true,
                _ => return false,
            },
            "location" => {
                let is_challenge = directive
                    .words
                    .last()
                    .is_some_and(|path| path.starts_with("/.well-known/acme-challenge"));
                let inner = named(&directive.block, "return").any(to_https);
                if !is_challenge && !inner {
                    return false;
                }
                found |= inner;
            }
            "rewrite" => return false,
            _ => {}
        }
    }
    found
}

fn proxy(
    directive: &Directive,
    prefix: &str,
    upstreams: &Upstreams,
    headers: &[&Directive],
) -> Result<Action, String> {
    let at = &directive.at;
    let target = directive.word().ok_or_else(|| format!("{at}: proxy_pass is not understood"))?;
    let (scheme, rest) = target
        .split_once("://")
        .filter(|(scheme, rest)| {
            matches!(*scheme, "http" | "https") && !rest.contains('$') && !rest.starts_with("unix:")
        })
        .ok_or_else(|| format!("{at}: proxy_pass {target} is not understood"))?;
    let host = match rest.split_once('/') {
        None => rest,
        // The same path: / in the place of /.
        Some((host, "")) if prefix == "/" => host,
        Some(_) => {
            return Err(format!("{at}: proxy_pass {target} changes the path, which is not understood"));
        }
    };
    let mut proxy = match upstreams.get(host) {
        None => Proxy::to(format!("{scheme}://{host}")),
        Some(Err(why)) => return Err(why.clone()),
        Some(Ok(servers)) => {
            let url = |server: &WeightedOrigin| format!("{scheme}://{}", server.url);
            match servers.as_slice() {
                [only] => Proxy::to(url(only)),
                servers => {
                    let origins = servers
                        .iter()
                        .map(|server| WeightedOrigin { url: url(server), weight: server.weight });
                    Proxy { origins: origins.collect(), ..Proxy::default() }
                }
            }
        }
    };
    // Without a word of it nginx sends what stands in proxy_pass.
    proxy.host_header = Some(host.to_owned());
    for header in headers {
        let [name, value] = header.words.as_slice() else {
            return Err(format!("{}: proxy_set_header is not understood", header.at));
        };
        match (name.to_ascii_lowercase().as_str(), value.as_str()) {
            ("host", "$host" | "$http_host") => proxy.host_header = None,
            ("host", "$proxy_host") => {}
            ("host", value) if !value.contains('$') => proxy.host_header = Some(value.to_owned()),
            (name, _) if OWN_HEADERS.contains(&name) => {}
            _ => return Err(format!("{}: proxy_set_header {name} is not understood", header.at)),
        }
    }
    Ok(Action::Proxy(Box::new(proxy)))
}

#[cfg(test)]
mod tests {
    use super::super::syntax::parse;
    use super::*;

    fn of(text: &str) -> (Result<DomainSpec, String>, Vec<String>) {
        let upstreams = HashMap::from([
            (
                "app".to_owned(),
                upstream(&parse("server a:1 weight=3; server b:2; keepalive 8;", "u").unwrap()),
            ),
            ("odd".to_owned(), upstream(&parse("server a:1 backup;", "u").unwrap())),
        ]);
        site(&parse(text, "n").unwrap(), &upstreams)
    }

    #[test]
    fn a_proxied_site_is_taken_with_its_host_and_its_hsts() {
        let (spec, remarks) = of("listen 443 ssl; server_name a.test; ssl_certificate x; root /srv;\n\
             add_header Strict-Transport-Security \"max-age=63072000; includeSubDomains\" always;\n\
             client_max_body_size 10m;\n\
             location / { proxy_pass http://127.0.0.1:3000/; proxy_set_header Host $host; proxy_set_header X-Real-IP \
             $remote_addr; }\n\
             location = /status { return 200 \"fine\"; }\n\
             location /api/ { proxy_pass http://app; }\n\
             location ^~ /.well-known/acme-challenge/ { root /srv; }\n");
        let spec = spec.unwrap();
        assert_eq!((spec.hsts_max_age_seconds, spec.hsts_include_subdomains), (Some(63_072_000), true));
        let shape = |route: &Route| (route.path_prefix.clone(), route.exact);
        let shapes: Vec<_> = spec.routes.iter().map(shape).collect();
        assert_eq!(shapes, [("/status".into(), true), ("/api".into(), false), ("/".into(), false)]);
        let Action::Proxy(api) = &spec.routes[1].action else { panic!("{spec:?}") };
        assert_eq!(api.origins.iter().map(|origin| origin.weight).collect::<Vec<_>>(), [3, 1]);
        assert_eq!(
            api.host_header.as_deref(),
            Some("app"),
            "nginx sends the name in proxy_pass unless it is told"
        );
        let Action::Proxy(all) = &spec.routes[2].action else { panic!("{spec:?}") };
        assert_eq!((all.origin.as_deref(), &all.host_header), (Some("http://127.0.0.1:3000"), &None));
        assert!(remarks[0].contains("client_max_body_size 10m is left out"), "{remarks:?}");
        assert!(remarks[1].contains("/api itself"), "{remarks:?}");
    }

    #[test]
    fn redirects_keep_what_nginx_keeps() {
        for (text, to, keeps) in [
            ("return 301 https://www.a.test$request_uri;", "https://www.a.test", true),
            ("return 302 $scheme://b.test/page;", "https://b.test/page", false),
            ("location / { return 308 https://b.test${request_uri}; }", "https://b.test", true),
        ] {
            let spec = of(text).0.unwrap();
            let Action::Redirect(redirect) = &spec.routes[0].action else { panic!("{spec:?}") };
            assert_eq!(
                (redirect.to.as_str(), redirect.keep_path, redirect.keep_query),
                (to, keeps, Some(keeps))
            );
        }
    }

    #[test]
    fn a_return_of_the_server_answers_before_any_location_does() {
        let (spec, remarks) = of(
            "location /api/ { proxy_pass http://app; }\nreturn 301 https://b.test$request_uri;\nlocation / { fastcgi_pass x; }",
        );
        let spec = spec.unwrap();
        assert!(matches!(spec.routes.as_slice(), [Route { action: Action::Redirect(_), .. }]), "{spec:?}");
        assert_eq!(remarks[0], "n:1: location /api/ is never reached, as n:2 answers every request");
        assert_eq!(remarks.len(), 2, "{remarks:?}");
    }

    #[test]
    fn what_is_not_understood_is_told_with_its_place() {
        for (text, words) in [
            ("root /srv;", "n:1: root is not understood"),
            ("location / { try_files $uri =404; }", "n:1: try_files is not understood"),
            ("location ~ \\.php$ { fastcgi_pass x; }", "location ~ \\.php$ is not understood"),
            ("location /a { proxy_pass http://x; }", "location /a is for /ax too"),
            ("location /a/ { proxy_pass http://x/b/; }", "changes the path"),
            ("location / { proxy_pass http://$up; }", "proxy_pass http://$up is not understood"),
            ("location / { proxy_pass http://odd; }", "backup is not understood"),
            ("location / { proxy_pass http://x; proxy_set_header X-Key s; }", "proxy_set_header X-Key"),
            ("return 444;", "return 444"),
            ("return 301 /other;", "redirects to /other"),
            ("if ($x) { return 403; }", "if is not understood"),
            ("auth_basic on; location / { proxy_pass http://x; }", "auth_basic is not understood"),
            ("", "serves files of its own"),
        ] {
            let told = of(text).0.unwrap_err();
            assert!(told.contains(words), "{text}: {told}");
        }
    }

    #[test]
    fn a_block_that_leads_to_https_is_known_as_certbot_writes_it_too() {
        for (text, is) in [
            ("listen 80; return 301 https://$host$request_uri;", true),
            ("if ($host = a.test) { return 301 https://$host$request_uri; } listen 80; return 404;", true),
            (
                "location /.well-known/acme-challenge/ { root /w; } location / { return 301 https://$host$request_uri; }",
                true,
            ),
            ("listen 80; location / { proxy_pass http://x; }", false),
            ("return 301 https://other.test$request_uri;", false),
            ("listen 80;", false),
        ] {
            assert_eq!(redirects_to_https(&parse(text, "n").unwrap()), is, "{text}");
        }
    }
}
