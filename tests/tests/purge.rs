//! What a tenant purges is asked of its origin again on every edge, and nothing else is; an edge that hangs is named and
//! catches up.
//!
//! The usual run has two edges; `PORTICO_PURGE_EDGES=50` makes it as many, each with a full cache, and prints how long a
//! purge takes until all of them have confirmed it.

#![expect(clippy::unwrap_used, reason = "set-up fails the test")]
#![expect(clippy::disallowed_methods, reason = "it reports how long real processes took")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use portico_api::v1::client::Client;
use portico_api::v1::{
    Action, CachePolicy, DomainSpec, Proxy, Purge, PurgeRequest, Route, Sharing, Tenant, TokenRequest,
};
use portico_tests::{CellPlan, Lab, LabOptions, ask, wait_until};
use rustix::process::{Pid, Signal, kill_process};

const HOSTS: [&str; 3] = ["shop.test", "blog.test", "rival.test"];
const PATHS: [&str; 5] = ["/", "/a", "/a/b", "/ab", "/c"];
const DEADLINE: Duration = Duration::from_secs(60);
/// Purges in a measurement, and answers that each edge keeps meanwhile.
const MEASURED: u32 = 100;
const KEPT: usize = 200;

/// Every answer has a number of its own, so that one from a cache can be told from a new one.
async fn start_origin(address: SocketAddr) -> Result<()> {
    let listener = tokio::net::TcpListener::bind(address).await?;
    let answers = Arc::new(AtomicU64::new(0));
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let answers = Arc::clone(&answers);
            let service = hyper::service::service_fn(move |request: http::Request<_>| {
                let number = answers.fetch_add(1, Ordering::Relaxed);
                let tag = format!("all, of{}", request.uri().path().replace('/', "-"));
                let response = http::Response::builder()
                    .header(http::header::CACHE_CONTROL, "max-age=3600")
                    .header("cache-tag", tag)
                    .body(Full::new(Bytes::from(number.to_string())))
                    .unwrap();
                let _: &http::Request<hyper::body::Incoming> = &request;
                std::future::ready(Ok::<_, Infallible>(response))
            });
            let http = hyper::server::conn::http1::Builder::new();
            tokio::spawn(async move { http.serve_connection(TokioIo::new(tcp), service).await });
        }
    });
    Ok(())
}

struct Shops {
    lab: Lab,
    /// Of the first two hosts.
    tenant: Tenant,
    rival: Tenant,
    /// With the tenant's own token.
    client: Client,
    token: String,
}

impl Shops {
    async fn open(edges: u8) -> Result<Self> {
        let cells = vec![CellPlan { name: "default", edges }];
        let lab = Lab::start(LabOptions { cells, ..LabOptions::default() }).await?;
        let origin = lab.addresses.at(3, 9001);
        start_origin(origin).await?;
        let tenant = lab.tenant("acme-corp", Sharing::RegisteredDomain, &[]).await?;
        let rival = lab.tenant("rival-corp", Sharing::RegisteredDomain, &[]).await?;
        for host in HOSTS {
            let owner = if host == "rival.test" { &rival } else { &tenant };
            let proxy =
                Proxy { cache: Some(CachePolicy::default()), ..Proxy::to(format!("http://{origin}")) };
            let routes = vec![Route::new("/", Action::Proxy(Box::new(proxy)))];
            let domain =
                lab.client.create_domain(owner.id, &DomainSpec { routes, ..DomainSpec::new(host) }).await?;
            lab.publish_records(&domain).await?;
            lab.client.check_domain(domain.id).await?;
        }
        for host in HOSTS {
            lab.active(host).await?;
        }
        let request = TokenRequest { tenant_id: Some(tenant.id), label: "web-shop".to_owned() };
        let token = lab.client.create_token(&request).await?.token;
        let client = Client::new(&format!("http://{}", lab.addresses.at(4, 7070)), Some(&token), None)?;
        Ok(Self { lab, tenant, rival, client, token })
    }

    async fn body(&self, edge: usize, host: &str, path: &str) -> Result<Bytes> {
        let answer = ask(self.lab.edges[edge].https, host, path, &self.lab.issuing_root).await?;
        anyhow::ensure!(answer.status == 200, "{host}{path}: {}", answer.status);
        Ok(answer.body)
    }

    /// What each edge has of each path of each host, once it is kept.
    async fn kept(&self) -> Vec<(usize, &'static str, &'static str, Bytes)> {
        let mut kept = Vec::new();
        for edge in 0..self.lab.edges.len() {
            for host in HOSTS {
                for path in PATHS {
                    let body = wait_until("an answer to be kept", DEADLINE, async || {
                        let first = self.body(edge, host, path).await.ok()?;
                        (self.body(edge, host, path).await.ok()? == first).then_some(first)
                    })
                    .await;
                    kept.push((edge, host, path, body));
                }
            }
        }
        kept
    }

    fn url(&self, host: &str, path: &str) -> String {
        format!("https://{host}:{}{path}", self.lab.edges[0].https.port())
    }
}

/// What the purge names, in words of the command line, and whether an answer belongs to it.
type Case = (Vec<String>, fn(host: &str, path: &str) -> bool);

#[tokio::test]
async fn a_tenants_purge_is_done_by_every_edge_when_it_is_acknowledged() -> Result<()> {
    let shops = Shops::open(2).await?;
    let (page, below) = (shops.url("shop.test", "/a"), shops.url("shop.test", "/a/"));
    let option = |name: &str, value: &str| vec![name.to_owned(), value.to_owned()];
    let cases: [Case; 6] = [
        // Without the port that visitors use.
        (option("--url", "https://shop.test/a"), |host, path| host == "shop.test" && path == "/a"),
        (option("--url", &page), |host, path| host == "shop.test" && path == "/a"),
        (option("--prefix", &below), |host, path| host == "shop.test" && path == "/a/b"),
        (option("--tag", "of-c"), |host, path| host != "rival.test" && path == "/c"),
        (option("--host", "blog.test"), |host, _| host == "blog.test"),
        (vec!["--everything".to_owned()], |host, _| host != "rival.test"),
    ];
    for (words, named) in cases {
        let kept = shops.kept().await;
        let mut command = shops.lab.portico();
        command.env("PORTICO_TOKEN", &shops.token);
        command.args(["cache", "purge", "--tenant", &shops.tenant.id.to_string()]).args(&words);
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(said.contains("done by 2 edges"), "{said}");
        let met = kept.iter().filter(|kept| kept.0 == 0 && named(kept.1, kept.2)).count();
        assert_eq!(said.matches(&format!(": {met} kept answers")).count(), 2, "{met}: {said}");
        for (edge, host, path, before) in kept {
            let after = shops.body(edge, host, path).await?;
            assert_eq!(after != before, named(host, path), "{words:?}: edge {edge}, {host}{path}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn another_tenants_answers_can_be_neither_named_nor_reached() -> Result<()> {
    let shops = Shops::open(2).await?;
    let kept = shops.kept().await;
    let everything = PurgeRequest { everything: true, ..PurgeRequest::default() };
    let refused = shops.client.purge(shops.rival.id, &everything).await.unwrap_err();
    assert!(refused.to_string().contains("404") || refused.to_string().contains("not_found"), "{refused}");
    // Nor as its own: no domain of it has that host.
    for theirs in [
        PurgeRequest { urls: vec![shops.url("rival.test", "/a")], ..PurgeRequest::default() },
        PurgeRequest { hosts: vec!["rival.test".to_owned()], ..PurgeRequest::default() },
    ] {
        let refused = shops.client.purge(shops.tenant.id, &theirs).await.unwrap_err();
        assert!(refused.to_string().contains("unknown_host"), "{refused}");
    }
    for (edge, host, path, before) in kept {
        assert_eq!(shops.body(edge, host, path).await?, before, "edge {edge}, {host}{path}");
    }
    Ok(())
}

#[tokio::test]
async fn an_edge_that_hangs_is_named_and_forgets_before_it_serves_again() -> Result<()> {
    let shops = Shops::open(2).await?;
    let kept = shops.kept().await;
    let hanging = Pid::from_raw(i32::try_from(shops.lab.edges[1].process.pid())?).unwrap();
    kill_process(hanging, Signal::STOP)?;
    let request = PurgeRequest { hosts: vec!["shop.test".to_owned()], ..PurgeRequest::default() };
    let purge = shops.client.purge(shops.tenant.id, &request).await;
    kill_process(hanging, Signal::CONT)?;
    let purge: Purge = purge?;
    assert_eq!((purge.done.len(), purge.pending.len()), (1, 1), "{purge:?}");
    let (_, _, _, before) = kept.iter().find(|kept| kept.0 == 1 && kept.1 == "shop.test").unwrap();
    wait_until("the edge to have caught up", DEADLINE, async || {
        (shops.body(1, "shop.test", "/").await.ok()? != *before).then_some(())
    })
    .await;
    for (edge, host, path, before) in kept {
        assert_eq!(shops.body(edge, host, path).await? != before, host == "shop.test", "{edge} {host}{path}");
    }
    Ok(())
}

#[tokio::test]
async fn a_purge_is_measured_over_many_edges() -> Result<()> {
    let edges = std::env::var("PORTICO_PURGE_EDGES").ok().map_or(Ok(2), |text| text.parse())?;
    let shops = Shops::open(edges).await?;
    for edge in 0..shops.lab.edges.len() {
        for at in 0..KEPT {
            shops.body(edge, "shop.test", &format!("/{at}")).await?;
        }
    }
    let mut took = Vec::new();
    for round in 0..MEASURED {
        let urls = vec![shops.url("shop.test", &format!("/{}", round as usize % KEPT))];
        let request = PurgeRequest { urls, ..PurgeRequest::default() };
        let started = Instant::now();
        let purge = shops.client.purge(shops.tenant.id, &request).await?;
        took.push(started.elapsed());
        assert_eq!((purge.done.len(), purge.pending.len()), (usize::from(edges), 0), "{purge:?}");
    }
    took.sort();
    let at = |percent: usize| took[(took.len() - 1) * percent / 100];
    println!(
        "purge of one URL, durable and confirmed by {edges} edges, {MEASURED} times: p50 {:?}, p99 {:?}, max {:?}",
        at(50),
        at(99),
        at(100)
    );
    Ok(())
}
