//! A name becomes a site: claimed, proved, issued, on every edge; and what an edge tells about it.

#![expect(clippy::disallowed_methods, reason = "it reports how long real processes took")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use portico_api::v1::{self, DomainStatus, Sharing};
use portico_tests::{Lab, LabOptions, ask, wait_until};

#[tokio::test]
async fn a_proved_name_is_served_on_every_edge_with_its_tenants_own_body() -> Result<()> {
    let lab = Lab::start(LabOptions::default()).await?;
    let tenant = lab.tenant("acme-corp", Sharing::RegisteredDomain, &[]).await?;
    lab.domain(&tenant, "shop.test").await?;
    let domain = lab.active("shop.test").await?;
    assert_eq!(domain.certificates.len(), 1);
    for edge in &lab.edges {
        let answer = ask(edge.https, "shop.test", "/hello", &lab.issuing_root).await?;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.body, format!("origin of shop.test:{} path /hello\n", edge.https.port()));
        assert_eq!(answer.shown.names, ["shop.test"]);
    }
    Ok(())
}

#[tokio::test]
async fn a_www_twin_is_served_by_the_edges_and_leads_to_its_sister() -> Result<()> {
    let lab = Lab::start(LabOptions::default()).await?;
    let tenant = lab.tenant("acme-corp", Sharing::RegisteredDomain, &[]).await?;
    let line = ["domain", "add", "shop.test", "--tenant", "acme-corp", "--static", "the shop", "--with-www"];
    let added = lab.portico().args(line).output()?;
    assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    for name in ["shop.test", "www.shop.test"] {
        let domain = lab.client.domain(name).await?;
        assert_eq!(domain.tenant_id, tenant.id);
        lab.publish_records(&domain).await?;
        lab.client.check_domain(domain.id).await?;
    }
    for name in ["shop.test", "www.shop.test"] {
        lab.active(name).await?;
    }
    for edge in &lab.edges {
        let answer = ask(edge.https, "shop.test", "/", &lab.issuing_root).await?;
        assert_eq!((answer.status, &answer.body[..]), (200, &b"the shop"[..]));
        let answer = ask(edge.https, "www.shop.test", "/basket?item=7", &lab.issuing_root).await?;
        let location = answer.headers.get("location").and_then(|value| value.to_str().ok());
        assert_eq!((answer.status, location), (308, Some("https://shop.test/basket?item=7")));
        assert!(answer.shown.names.contains(&"www.shop.test".to_owned()), "{:?}", answer.shown.names);
    }
    Ok(())
}

#[tokio::test]
async fn a_tenants_error_page_reaches_every_edge_and_is_taken_back() -> Result<()> {
    let lab = Lab::start(LabOptions::default()).await?;
    let tenant = lab.tenant("acme-corp", Sharing::RegisteredDomain, &[]).await?;
    let mut spec = lab.proxied("shop.test");
    // The tenant may reach this port, and nobody listens there.
    spec.routes[0].action = v1::Action::proxy(format!("http://{}", SocketAddr::new(lab.origin.ip(), 9003)));
    let domain = lab.client.create_domain(tenant.id, &spec).await?;
    lab.publish_records(&domain).await?;
    lab.client.check_domain(domain.id).await?;
    lab.active("shop.test").await?;
    let file = lab.folder.path().join("sorry.html");
    std::fs::write(&file, "<h1>Sorry</h1>")?;
    let page = format!("502={}", file.display());
    for (option, shows) in [(["--error-page", &page], true), (["--no-error-page", "502"], false)] {
        let set = lab.portico().args(["tenant", "set", "acme-corp"]).args(option).output()?;
        assert!(set.status.success(), "{}", String::from_utf8_lossy(&set.stderr));
        let shown = String::from_utf8_lossy(&set.stdout).into_owned();
        assert_eq!(shown.contains("pages     502 (text/html, 14 bytes)"), shows, "{shown}");
        for edge in &lab.edges {
            wait_until("the edge has the change", Duration::from_secs(60), async || {
                let answer = ask(edge.https, "shop.test", "/", &lab.issuing_root).await.ok()?;
                assert_eq!(answer.status, 502);
                (shows == (answer.body == "<h1>Sorry</h1>")).then_some(())
            })
            .await;
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_unproved_name_is_never_ordered_nor_served() -> Result<()> {
    let lab = Lab::start(LabOptions::default()).await?;
    let tenant = lab.tenant("acme-corp", Sharing::RegisteredDomain, &[]).await?;
    let claimed = lab.client.create_domain(tenant.id, &lab.proxied("claimed.test")).await?;
    let checked = lab.client.check_domain(claimed.id).await?;
    assert_eq!(checked.status, DomainStatus::Pending);
    let next = checked.next_action.expect("a pending domain says what to do");
    assert!(next.records.iter().any(|r| r.kind == "TXT" && r.name == "_portico.claimed.test"), "{next:?}");
    // Another domain goes all the way, so the first had every chance.
    lab.domain(&tenant, "proved.test").await?;
    lab.active("proved.test").await?;
    assert!(ask(lab.edges[0].https, "claimed.test", "/", &lab.issuing_root).await.is_err());
    let orders = lab.ca_stats().await?.to_string();
    assert!(orders.contains("proved.test") && !orders.contains("claimed.test"), "{orders}");
    Ok(())
}

#[tokio::test]
async fn one_dead_name_does_not_hold_up_the_group() -> Result<()> {
    let lab = Lab::start(LabOptions::default()).await?;
    let tenant = lab.tenant("sharing", Sharing::Tenant, &[]).await?;
    let names: Vec<String> = (0..6).map(|n| format!("site-{n}.test")).collect();
    for name in &names {
        lab.domain(&tenant, name).await?;
    }
    // Its proof stands, but its address leads elsewhere: no HTTP-01 can succeed.
    lab.set_record("elsewhere.test", "A", &[&lab.addresses.ip(99).to_string()]).await?;
    lab.domain(&tenant, "elsewhere.test").await?;
    for name in &names {
        lab.active(name).await?;
        ask(lab.edges[1].https, name, "/", &lab.issuing_root).await?;
    }
    let dead = wait_until("the dead name's own condition", Duration::from_secs(60), async || {
        let domain = lab.client.domain("elsewhere.test").await.ok()?;
        domain.next_action.is_some().then_some(domain)
    })
    .await;
    assert_ne!(dead.status, DomainStatus::Active);
    assert!(dead.certificates.is_empty(), "{dead:?}");
    Ok(())
}

#[tokio::test]
async fn edges_without_port_80_get_their_certificates_by_tls_alpn() -> Result<()> {
    let lab = Lab::start(LabOptions { plain_http: false, ..LabOptions::default() }).await?;
    let tenant = lab.tenant("no-port-80", Sharing::Tenant, &[]).await?;
    for name in ["one.test", "two.test"] {
        lab.domain(&tenant, name).await?;
    }
    for name in ["one.test", "two.test"] {
        lab.active(name).await?;
        for edge in &lab.edges {
            assert_eq!(ask(edge.https, name, "/", &lab.issuing_root).await?.status, 200);
        }
    }
    let stats = lab.ca_stats().await?;
    assert_eq!(stats["validations"]["by_challenge"]["tls-alpn-01"]["performed"], 2, "{stats}");
    assert!(stats["validations"]["by_challenge"]["http-01"].is_null(), "{stats}");
    Ok(())
}

#[tokio::test]
async fn names_that_the_ca_refuses_to_order_do_not_hold_up_the_group() -> Result<()> {
    let lab = Lab::start(LabOptions::default()).await?;
    lab.ca_refuses(&["bank.test"]).await?;
    let tenant = lab.tenant("sharing", Sharing::Tenant, &[]).await?;
    let names = ["a.test", "bank.test", "c.test"];
    for name in names {
        lab.domain(&tenant, name).await?;
    }
    for name in ["a.test", "c.test"] {
        lab.active(name).await?;
        ask(lab.edges[1].https, name, "/", &lab.issuing_root).await?;
    }
    let refused = lab.client.domain("bank.test").await?;
    assert_ne!(refused.status, DomainStatus::Active);
    let next = refused.next_action.expect("a refused name says what to do");
    assert!(next.text.contains("Cannot issue for \"bank.test\""), "{next:?}");
    let events = lab.client.events(0, Some(100)).await?.items;
    let told = events.iter().find(|event| event.kind == "domain.failed").expect("its owner is told");
    assert!(told.text.contains("run `portico domain retry bank.test`"), "{told:?}");
    Ok(())
}

#[tokio::test]
async fn a_wildcard_is_issued_through_the_delegated_challenge() -> Result<()> {
    let lab = Lab::start(LabOptions::default()).await?;
    let tenant = lab.tenant("wild", Sharing::RegisteredDomain, &[]).await?;
    lab.domain(&tenant, "*.wild.test").await?;
    lab.active("*.wild.test").await?;
    let answer = ask(lab.edges[0].https, "anything.wild.test", "/", &lab.issuing_root).await?;
    assert_eq!(answer.status, 200);
    assert!(ask(lab.edges[0].https, "two.labels.wild.test", "/", &lab.issuing_root).await.is_err());
    assert!(ask(lab.edges[0].https, "wild.test", "/", &lab.issuing_root).await.is_err());
    Ok(())
}

#[tokio::test]
async fn suspension_reaches_every_edge_and_keeps_the_certificate() -> Result<()> {
    use portico_api::v1::{Suspension, SuspensionMode};
    let lab = Lab::start(LabOptions::default()).await?;
    let tenant = lab.tenant("late-payer", Sharing::RegisteredDomain, &[]).await?;
    lab.domain(&tenant, "shop.test").await?;
    lab.active("shop.test").await?;
    for (mode, status) in
        [(SuspensionMode::Page, 503), (SuspensionMode::Gone, 410), (SuspensionMode::Legal, 451)]
    {
        let suspension = Suspension { mode, reason: "unpaid".to_owned(), until: None };
        let started = Instant::now();
        let answer = lab.client.suspend_tenant(tenant.id, &suspension).await?;
        println!("suspension acknowledged by {} edges after {:?}", answer.acked.len(), started.elapsed());
        assert_eq!((answer.acked.len(), answer.not_acked.len()), (2, 0));
        for edge in &lab.edges {
            assert_eq!(ask(edge.https, "shop.test", "/", &lab.issuing_root).await?.status, status);
        }
        lab.client.resume_tenant(tenant.id).await?;
        for edge in &lab.edges {
            assert_eq!(ask(edge.https, "shop.test", "/", &lab.issuing_root).await?.status, 200);
        }
    }
    Ok(())
}
