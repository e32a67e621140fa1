//! Whose domain a name means: two claims of one name, and what a tenant's own token may do.

use portico_api::v1::Attestation;
use portico_api::v1::client::Client;

use crate::plane::Plane;

/// `acme` is served for x.test, `rival` only claims it.
async fn claimed_twice() -> Plane {
    let plane = Plane::start().await;
    for tenant in ["acme", "rival"] {
        plane.succeeds(&["tenant", "add", tenant]).await;
        plane.succeeds(&["domain", "add", "x.test", "--tenant", tenant, "--static", tenant]).await;
    }
    attest(&plane, "acme").await;
    plane
}

fn client(plane: &Plane) -> Client {
    let token = std::fs::read_to_string(plane.folder.path().join("operator")).unwrap();
    Client::new(&format!("http://{}", plane.running.api), Some(&token), None).unwrap()
}

/// Vouches for all domains of a tenant.
async fn attest(plane: &Plane, tenant: &str) {
    let domains = plane.json(&["domain", "list", "--tenant", tenant]).await;
    let ids =
        domains.as_array().unwrap().iter().map(|domain| domain["id"].as_str().unwrap().parse().unwrap());
    let attestation = Attestation { domain_ids: ids.collect(), note: "ours".to_owned() };
    let answer = client(plane).attest_domains(&attestation).await.unwrap();
    assert!(answer.results.iter().all(|result| result.status == 200), "{answer:?}");
}

async fn token(plane: &Plane, tenant: &str) -> String {
    let made = plane.json(&["token", "add", "own", "--tenant", tenant]).await;
    made["token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_name_that_two_tenants_claim_is_acted_on_only_when_it_is_said_whose() {
    let plane = claimed_twice().await;
    let edge = ["--edge-http", "127.0.0.11:80", "--edge-https", "127.0.0.11:443"];
    for line in [
        &["domain", "rm", "x.test"][..],
        &["domain", "show", "x.test"],
        &["domain", "suspend", "x.test"],
        &["domain", "resume", "x.test"],
        &["domain", "retry", "x.test"],
        &["domain", "check", "x.test"],
        &["domain", "route", "x.test", "--static", "y"],
        &["domain", "set", "x.test", "--hsts-max-age", "0s"],
        &["domain", "maintenance", "x.test"],
        &["preview", "x.test"],
        &["cert", "show", "x.test"],
        &["cert", "list", "--domain", "x.test"],
        &["shadow", "x.test", "--print", "nginx", edge[0], edge[1], edge[2], edge[3]],
    ] {
        let refused = plane.portico(line).await;
        assert_eq!((refused.code, refused.stdout.as_str()), (2, ""), "{line:?}: {refused:?}");
        for part in
            ["2 tenants claim x.test", "acme  ten_", "rival  ten_", "dom_", "served", "--tenant TENANT"]
        {
            assert!(refused.stderr.contains(part), "{line:?}: {part}: {refused:?}");
        }
    }
    let refused = client(&plane).domain("x.test").await.unwrap_err();
    assert_eq!(refused.code(), Some("ambiguous_hostname"), "{refused}");
    assert!(refused.to_string().contains("rival: dom_"), "{refused}");

    let listed = plane.succeeds(&["domain", "list"]).await;
    assert!(listed.lines().next().unwrap().contains("TENANT"), "{listed}");
    assert!(listed.contains("acme") && listed.contains("rival"), "{listed}");
    let suspended = plane.succeeds(&["domain", "suspend", "x.test", "--tenant", "acme"]).await;
    assert!(suspended.starts_with("x.test of tenant acme: "), "{suspended}");
    let removed = plane.succeeds(&["domain", "rm", "x.test", "--tenant", "rival"]).await;
    assert_eq!(removed, "x.test of tenant rival is removed\n");
    let left = plane.json(&["domain", "show", "x.test"]).await;
    assert_eq!((&left["tenant_name"], left["suspension"].is_object()), (&"acme".into(), true), "{left}");
    let none = plane.portico(&["domain", "rm", "x.test", "--tenant", "rival"]).await;
    assert_eq!((none.code, none.stderr.contains("tenant rival has no domain x.test")), (3, true), "{none:?}");
}

#[tokio::test]
async fn a_removal_that_is_held_does_not_say_that_the_name_is_gone() {
    let plane = Plane::start().await;
    plane.succeeds(&["tenant", "add", "acme"]).await;
    let file = plane.folder.path().join("many.csv");
    let rows: String = (0..40).map(|number| format!("acme,n{number}.test,static,x\n")).collect();
    std::fs::write(&file, format!("tenant,hostname,action,target\n{rows}")).unwrap();
    plane.succeeds(&["domain", "import", file.to_str().unwrap()]).await;
    attest(&plane, "acme").await;
    plane.running.distribution.publish_now().await.unwrap();
    let all = plane.json(&["domain", "list"]).await;
    let mut ids = all.as_array().unwrap().iter().map(|domain| domain["id"].as_str().unwrap().to_owned());
    for id in ids.by_ref().take(38) {
        let shown = client(&plane).domain(&id).await.unwrap();
        client(&plane).delete_domain(shown.id, Some(shown.revision)).await.unwrap();
    }
    let removed = plane.succeeds(&["domain", "rm", &ids.next().unwrap()]).await;
    assert!(
        removed.contains("removed here; still served by the edges until an operator signs off"),
        "{removed}"
    );
    assert!(removed.trim_end().ends_with("removal list"), "{removed}");
    let json = plane.json(&["domain", "rm", &ids.next().unwrap()]).await;
    assert_eq!(json["still_served"], true, "{json}");
}

#[tokio::test]
async fn a_tenants_own_token_adds_lists_and_imports_its_domains() {
    let plane = Plane::start().await;
    for tenant in ["acme", "rival"] {
        plane.succeeds(&["tenant", "add", tenant]).await;
    }
    let (own, id) = (token(&plane, "acme").await, plane.json(&["tenant", "show", "acme"]).await);
    let id = id["id"].as_str().unwrap();
    for (name, of) in [("a.test", &[][..]), ("b.test", &["--tenant", "acme"]), ("c.test", &["--tenant", id])]
    {
        let line = [&["domain", "add", name, "--static", "x"], of].concat();
        let added = plane.portico_as(&own, &line).await;
        assert_eq!(added.code, 0, "{line:?}: {added:?}");
        let listed = plane.portico_as(&own, &[&["domain", "list"], of].concat()).await;
        assert!(listed.code == 0 && listed.stdout.contains(name), "{listed:?}");
    }
    let foreign =
        plane.portico_as(&own, &["domain", "add", "d.test", "--tenant", "rival", "--static", "x"]).await;
    assert_eq!(foreign.code, 3, "{foreign:?}");
    assert!(foreign.stderr.contains("this token is of tenant acme"), "{foreign:?}");
    let foreign = plane.portico_as(&own, &["cache", "purge", "--tenant", "rival", "--everything"]).await;
    assert!(
        foreign.code == 3 && foreign.stderr.contains("name acme, or give an operator's token"),
        "{foreign:?}"
    );
    let purged = plane.portico_as(&own, &["cache", "purge", "--everything"]).await;
    assert!(purged.code == 0 && purged.stdout.starts_with("purge "), "{purged:?}");
    let whose = plane.portico(&["cache", "purge", "--everything"]).await;
    assert!(whose.code == 2 && whose.stderr.contains("--tenant is missing"), "{whose:?}");

    let file = plane.folder.path().join("own.csv");
    let import =
        |rows: &str| std::fs::write(&file, format!("tenant,hostname,action,target\n{rows}")).unwrap();
    let path = file.to_str().unwrap();
    for (number, atomic) in [&[][..], &["--atomic"]].into_iter().enumerate() {
        import(&format!("acme,e{number}.test,static,x\n{id},f{number}.test,static,x\n"));
        let line = [&["domain", "import", path], atomic].concat();
        let imported = plane.portico_as(&own, &line).await;
        assert!(imported.code == 0 && imported.stdout.contains("2 domains added"), "{line:?}: {imported:?}");
        import(&format!("rival,g{number}.test,static,x\n"));
        let refused = plane.portico_as(&own, &line).await;
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(refused.stdout.contains("this token is of tenant acme, not of rival"), "{refused:?}");
    }
    let by_operator = plane.portico(&["domain", "add", "h.test", "--static", "x"]).await;
    assert_eq!(
        (by_operator.code, by_operator.stderr.contains("--tenant is missing")),
        (2, true),
        "{by_operator:?}"
    );
    assert_eq!(plane.json(&["domain", "list", "--tenant", "rival"]).await, serde_json::json!([]));
}

#[tokio::test]
async fn a_tenant_is_told_that_a_call_is_the_operators_not_that_its_own_domain_is_gone() {
    let plane = claimed_twice().await;
    let own = token(&plane, "acme").await;
    for line in [
        &["domain", "suspend", "x.test"][..],
        &["domain", "resume", "x.test"],
        &["tenant", "suspend", "acme"],
        &["tenant", "set", "acme", "--domains-max", "5"],
    ] {
        let refused = plane.portico_as(&own, line).await;
        assert_eq!(refused.code, 1, "{line:?}: {refused:?}");
        assert!(
            refused.stderr.contains("operator_only") && refused.stderr.contains("operator's token"),
            "{refused:?}"
        );
    }
    let foreign = plane.json(&["domain", "show", "x.test", "--tenant", "rival"]).await;
    let foreign = plane.portico_as(&own, &["domain", "suspend", foreign["id"].as_str().unwrap()]).await;
    assert_eq!(foreign.code, 3, "another tenant's domain does not exist: {foreign:?}");
}
