//! `portico shadow NAME --print nginx|apache|caddy`: lines for the present server.
//!
//! The present server of a site is MASTER as long as DNS points at it; the edge is its SHADOW. MASTER passes the path of
//! the HTTP-01 challenge on, so that SHADOW gets its own certificate, with its own key, before DNS moves; or it passes the
//! whole site on. Passing on, not redirecting: a redirect would change the host that is asked, and the challenge is
//! answered for the host only.
//!
//! `portico shadow csr NAME` ([`csr`]): MASTER goes on to order with its own client, for a key that was made here.

use std::net::SocketAddr;
use std::path::Path;

use portico_api::v1::Domain;
use portico_api::v1::client::Client;
use portico_cert_store::{DomainName, NamePattern};
use serde::Serialize;

use crate::commands::named_domain::find;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Format, line};
use crate::settings::Settings;

mod csr;

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct ShadowArgs {
    #[command(subcommand)]
    command: Option<ShadowCommand>,
    #[command(flatten)]
    lines: Option<LinesArgs>,
}

#[derive(Debug, clap::Subcommand)]
enum ShadowCommand {
    /// A certificate request for the present server's own client, whose key is made here and never leaves
    Csr(csr::CsrArgs),
}

#[derive(Debug, clap::Args)]
struct LinesArgs {
    /// Hostname of the domain
    name: String,
    /// Whose domain, when several tenants claim the name: the tenant's name or id
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    /// The present server's software
    #[arg(long, value_enum, value_name = "SERVER")]
    print: Server,
    /// Pass the whole site on, not only the challenge path
    #[arg(long)]
    whole_site: bool,
    /// Where the edge serves http, ip:port [default: the context's first edge, else what the control plane says, port 80]
    #[arg(long, value_name = "ADDR")]
    edge_http: Option<SocketAddr>,
    /// Where the edge serves https, ip:port [default: likewise, port 443]
    #[arg(long, value_name = "ADDR")]
    edge_https: Option<SocketAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
enum Server {
    Nginx,
    Apache,
    Caddy,
}

/// What the lines are made of.
#[derive(Debug)]
struct Site<'a> {
    name: &'a DomainName,
    http: SocketAddr,
    https: SocketAddr,
    roots: &'a Path,
}

#[derive(Debug, Serialize)]
struct Lines {
    server: Server,
    /// For the part of the configuration that serves port 80.
    http: String,
    /// For the part that serves port 443; only with `--whole-site`.
    #[serde(skip_serializing_if = "Option::is_none")]
    https: Option<String>,
}

pub(crate) async fn run(settings: &Settings, args: ShadowArgs) -> Outcome {
    match (args.command, args.lines) {
        (Some(ShadowCommand::Csr(args)), _) => csr::run(settings, args).await,
        (None, Some(args)) => print(settings, args).await,
        (None, None) => {
            Err(Failure::usage("say for which name, and for which server (--print nginx|apache|caddy)"))
        }
    }
}

async fn print(settings: &Settings, args: LinesArgs) -> Outcome {
    let pattern = NamePattern::parse(&args.name).map_err(|error| Failure::usage(error.to_string()))?;
    let NamePattern::Exact(name) = &pattern else {
        return Err(Failure::usage(format!(
            "{pattern} is a wildcard; the HTTP-01 challenge works for single names only"
        ))
        .next(format!("domain show '{pattern}'   (its CNAME record delegates the DNS challenge)")));
    };
    // Lines for a name that is no domain would lead nowhere: no edge answers its challenge.
    let domain = domain(&settings.client()?, name, args.tenant.as_deref()).await?;
    let (http, https) = edge(settings, &args, &domain).await?;
    let roots = settings.roots_file().unwrap_or_else(|| Path::new("/etc/ssl/certs/ca-certificates.crt"));
    // The server that reads the lines works in another folder.
    let roots = std::path::absolute(roots).map_err(|error| Failure::file(roots, error))?;
    let site = Site { name, http, https, roots: &roots };
    let lines = lines(args.print, &site, args.whole_site);
    if settings.format == Format::Json {
        return output::json(&lines);
    }
    line(format!("# {} on port 80", place(args.print, name)));
    line(lines.http.trim_end());
    if let Some(https) = &lines.https {
        line(format!("\n# {} on port 443; its own certificate stays", place(args.print, name)));
        line(https.trim_end());
    }
    Ok(())
}

/// Where the edge serves http and https.
async fn edge(settings: &Settings, args: &LinesArgs, domain: &Domain) -> Outcome<(SocketAddr, SocketAddr)> {
    match (args.edge_http, args.edge_https) {
        (Some(http), Some(https)) => return Ok((http, https)),
        // Only the lines for http are printed then.
        (Some(http), None) if !args.whole_site => return Ok((http, SocketAddr::new(http.ip(), 443))),
        _ => {}
    }
    let context = settings.context.as_ref();
    let known =
        context.and_then(|context| Some((*context.edges_http.first()?, *context.edges_https.first()?)));
    let (http, https) = match known {
        Some(known) => known,
        None => ask(settings, domain).await?,
    };
    Ok((args.edge_http.unwrap_or(http), args.edge_https.unwrap_or(https)))
}

async fn domain(client: &Client, name: &DomainName, tenant: Option<&str>) -> Outcome<Domain> {
    find(client, name.as_str(), tenant).await.map_err(|failure| match failure.code {
        3 => failure.next(format!("domain add {name} --tenant TENANT --proxy URL")),
        _ => failure,
    })
}

async fn ask(settings: &Settings, domain: &Domain) -> Outcome<(SocketAddr, SocketAddr)> {
    let preview = settings.client()?.preview(domain.id).await?;
    let first = preview.hosts_lines.iter().find_map(|line| line.split_whitespace().next()?.parse().ok());
    let ip = first.ok_or_else(|| {
        Failure::failed("the control plane names no address of an edge")
            .next(format!("shadow {} --edge-http IP:80 --edge-https IP:443", domain.spec.hostname))
    })?;
    Ok((SocketAddr::new(ip, 80), SocketAddr::new(ip, 443)))
}

fn place(server: Server, name: &DomainName) -> String {
    match server {
        Server::Nginx => format!("nginx: inside `server {{ server_name {name}; }}`"),
        Server::Apache => {
            format!("Apache (mod_proxy, mod_proxy_http, mod_ssl): inside the <VirtualHost> of {name}")
        }
        Server::Caddy => format!("Caddyfile: the site of {name}"),
    }
}

fn lines(server: Server, site: &Site<'_>, whole_site: bool) -> Lines {
    let (http, https) = match server {
        Server::Nginx => nginx(site, whole_site),
        Server::Apache => apache(site, whole_site),
        Server::Caddy => caddy(site, whole_site),
    };
    Lines { server, http, https: whole_site.then_some(https) }
}

/// How many certificates may stand above the site's own. The servers' own default is 1, which a cross-signed
/// intermediate exceeds.
const CHAIN_DEPTH: u8 = 5;

fn nginx(site: &Site<'_>, whole_site: bool) -> (String, String) {
    let Site { http, https, roots, .. } = site;
    let path = if whole_site { "/" } else { "^~ /.well-known/acme-challenge/" };
    let plain = format!(
        "location {path} {{\n    proxy_pass http://{http};\n    proxy_set_header Host $host;\n    \
         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n}}\n"
    );
    let secure = format!(
        "location / {{\n    proxy_pass https://{https};\n    proxy_ssl_server_name on;\n    proxy_ssl_name $host;\n    \
         proxy_ssl_verify on;\n    proxy_ssl_verify_depth {CHAIN_DEPTH};\n    proxy_ssl_trusted_certificate {};\n    proxy_http_version 1.1;\n    \
         proxy_set_header Host $host;\n    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n}}\n",
        roots.display()
    );
    (plain, secure)
}

fn apache(site: &Site<'_>, whole_site: bool) -> (String, String) {
    let Site { http, https, roots, .. } = site;
    let path = if whole_site { "/" } else { "/.well-known/acme-challenge/" };
    let plain = format!("ProxyPreserveHost On\nProxyPass \"{path}\" \"http://{http}{path}\"\n");
    // Apache sends the preserved host in SNI and compares the certificate with it. Unless told it takes no chain with an
    // intermediate certificate.
    let secure = format!(
        "ProxyPreserveHost On\nSSLProxyEngine On\nSSLProxyVerify require\nSSLProxyVerifyDepth {CHAIN_DEPTH}\n\
         SSLProxyCACertificateFile {}\nProxyPass \"/\" \"https://{https}/\"\n",
        roots.display()
    );
    (plain, secure)
}

/// Caddy's own redirect of port 80 ends where a site of that port is written down, so its line comes along.
fn caddy(site: &Site<'_>, whole_site: bool) -> (String, String) {
    let Site { name, http, https, roots } = site;
    let inside = if whole_site {
        format!("    reverse_proxy {http}\n")
    } else {
        format!(
            "    handle /.well-known/acme-challenge/* {{\n        reverse_proxy {http}\n    }}\n    \
             handle {{\n        redir https://{{host}}{{uri}} permanent\n    }}\n"
        )
    };
    let plain = format!("http://{name} {{\n{inside}}}\n");
    // `tls_trusted_ca_certs` is what both old and present releases read.
    let secure = format!(
        "https://{name} {{\n    reverse_proxy https://{https} {{\n        header_up Host {{host}}\n        transport http {{\n            \
         tls_server_name {name}\n            tls_trusted_ca_certs {}\n        }}\n    }}\n}}\n",
        roots.display()
    );
    (plain, secure)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(server: Server, whole_site: bool) -> Lines {
        let name = DomainName::parse("shop.test").unwrap();
        let site = Site {
            name: &name,
            http: "127.0.0.11:8080".parse().unwrap(),
            https: "127.0.0.11:8443".parse().unwrap(),
            roots: Path::new("/roots.pem"),
        };
        lines(server, &site, whole_site)
    }

    #[test]
    fn only_the_challenge_path_is_passed_on_unless_the_whole_site_is_asked_for() {
        for server in [Server::Nginx, Server::Apache, Server::Caddy] {
            let lines = printed(server, false);
            assert!(lines.http.contains("/.well-known/acme-challenge/"), "{}", lines.http);
            assert!(lines.http.contains("127.0.0.11:8080"), "{}", lines.http);
            assert_eq!(lines.https, None);
        }
    }

    #[test]
    fn the_whole_site_keeps_the_host_and_checks_the_certificate() {
        for server in [Server::Nginx, Server::Apache, Server::Caddy] {
            let lines = printed(server, true);
            let https = lines.https.unwrap();
            assert!(!lines.http.contains("acme-challenge"), "{}", lines.http);
            assert!(https.contains("https://127.0.0.11:8443") && https.contains("/roots.pem"), "{https}");
        }
    }

    #[test]
    fn nginx_gets_a_block_that_stands_alone() {
        assert_eq!(
            printed(Server::Nginx, false).http,
            "location ^~ /.well-known/acme-challenge/ {\n    proxy_pass http://127.0.0.11:8080;\n    \
             proxy_set_header Host $host;\n    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n}\n"
        );
    }
}
