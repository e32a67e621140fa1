//! Routes that lead nowhere: a redirect to itself, an origin that is this edge.

use std::net::SocketAddr;

use portico_api::rule::{self, OwnTarget};
use portico_cert_store::NamePattern;
use portico_prober::egress::{EgressPolicy, EgressRefused};
use toml::Spanned;

use super::{
    ConfigError, ListenerConfig, ListenerKind, Source,
    standalone::{RawRoute, RouteConfig},
};
use crate::live::{Action, OriginHost};

/// The first that is found, in the order of the file. `raw`: what `routes` were made from.
pub(super) fn check(
    source: Source<'_>,
    raw: &[Spanned<RawRoute>],
    routes: &[RouteConfig],
    listeners: &[ListenerConfig],
) -> Result<(), ConfigError> {
    let own = EgressPolicy::new(Vec::new(), listeners.iter().map(|listener| listener.address).collect());
    for (index, route) in routes.iter().enumerate() {
        let raw = raw[index].get_ref();
        if let Some(address) = own_origin(route, &own) {
            let span = raw.proxy.as_ref().map(Spanned::span);
            let problem = format!("{address} is a listener of this edge: it would ask itself");
            return Err(source.error(span, problem));
        }
        if is_circular(index, routes, listeners) {
            let span = raw.redirect.as_ref().map(Spanned::span);
            let problem = "leads back to this route itself: its visitors would never get anywhere";
            return Err(source.error(span, problem.into()));
        }
    }
    Ok(())
}

/// Names are judged where they are resolved, at each connect.
fn own_origin(route: &RouteConfig, own: &EgressPolicy) -> Option<SocketAddr> {
    let Action::Proxy(upstream) = &route.route.action else { return None };
    let addresses = upstream.origins.iter().filter_map(|one| match &one.origin.host {
        OriginHost::Address(ip) => Some(SocketAddr::new(*ip, one.origin.port)),
        OriginHost::Name(_) => None,
    });
    let is_own = |address: &SocketAddr| matches!(own.check(*address, []), Err(EgressRefused::Own { .. }));
    addresses.into_iter().find(is_own)
}

/// Where a wildcard's redirect leads may be another host's matter.
fn is_circular(index: usize, routes: &[RouteConfig], listeners: &[ListenerConfig]) -> bool {
    let Some(NamePattern::Exact(host)) = &routes[index].host else { return false };
    if !matches!(routes[index].route.action, Action::Redirect(_)) {
        return false;
    }
    let of_host: Vec<usize> =
        (0..routes.len()).filter(|other| routes[*other].host == routes[index].host).collect();
    let judged = of_host.iter().map(|&other| {
        let route = &routes[other].route;
        let target = match &route.action {
            Action::Redirect(redirect) => Some(redirect).filter(|redirect| {
                let url = redirect.location();
                let port = url.port_or_known_default().unwrap_or_default();
                url.host_str() == Some(host.as_str()) && is_reached(url.scheme(), port, listeners)
            }),
            Action::Proxy(_) | Action::Static { .. } => None,
        };
        let target = target.map(|to| OwnTarget { path: to.location().path(), keep_path: to.keep_path });
        (&route.rule, target)
    });
    rule::circular(judged).into_iter().any(|found| of_host[found] == index)
}

/// Whether clients reach this edge there.
fn is_reached(scheme: &str, port: u16, listeners: &[ListenerConfig]) -> bool {
    listeners.iter().any(|listener| match listener.kind {
        ListenerKind::Https => scheme == "https" && port == listener.public_https_port,
        ListenerKind::Http => scheme == "http" && port == listener.address.port(),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Config;

    fn parse(route: &str) -> Result<Config, String> {
        let text = format!(
            "[[listen]]\naddress = \"0.0.0.0:443\"\nkind = \"https\"\n[[listen]]\naddress = \"0.0.0.0:80\"\n\
             kind = \"http\"\n[[route]]\nhost = \"a.example\"\n{route}"
        );
        Config::parse(Path::new("/srv/edge.toml"), &text).map_err(|error| error.to_string())
    }

    /// The port that clients are led to is the one that is compared.
    #[test]
    fn a_redirect_is_compared_with_the_port_that_clients_use() {
        let parse = |more: &str, port: u16| {
            let text = format!(
                "[[listen]]\naddress = \"0.0.0.0:8443\"\nkind = \"https\"\n{more}[[listen]]\naddress = \"0.0.0.0:8080\"\n\
                 kind = \"http\"\n[[route]]\nhost = \"a.example\"\nredirect = \"https://a.example:{port}\"\n"
            );
            Config::parse(Path::new("/srv/edge.toml"), &text).map_err(|error| error.to_string())
        };
        for (more, own, other) in [("", 8443, 443), ("public_https_port = 443\n", 443, 8443)] {
            assert!(parse(more, own).is_err_and(|error| error.contains("leads back")), "{more}{own}");
            parse(more, other).expect("another server");
        }
    }

    #[test]
    fn a_redirect_to_itself_and_an_origin_that_is_this_edge_are_pointed_at() {
        for (route, place, hint) in [
            ("redirect = \"https://a.example\"\nkeep_path = true", "9:12", "leads back"),
            ("redirect = \"https://A.example:443/\"", "9:12", "leads back"),
            ("redirect = \"http://a.example/\"", "9:12", "leads back"),
            ("path = \"/x\"\nredirect = \"https://a.example/x/y\"", "10:12", "leads back"),
            ("proxy = \"http://127.0.0.1:80\"", "9:9", "127.0.0.1:80 is a listener"),
            ("proxy = [\"http://10.0.0.1\", \"https://127.0.0.9\"]", "9:9", "127.0.0.9:443 is a listener"),
        ] {
            let error = parse(route).expect_err(route);
            assert!(error.contains(&format!("/srv/edge.toml:{place}: ")), "{route} gave {error}");
            assert!(error.contains(hint), "{route} gave {error}");
        }
        for route in [
            "redirect = \"https://a.example:8443\"\nkeep_path = true",
            "redirect = \"https://www.a.example\"\nkeep_path = true",
            "path = \"/x\"\nredirect = \"https://a.example/y\"",
            "proxy = \"http://127.0.0.1:8080\"",
            "proxy = \"http://10.0.0.1:80\"",
        ] {
            parse(route).expect(route);
        }
    }
}
