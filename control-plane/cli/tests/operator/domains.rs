//! Domains from the command line: routes, names in the place of ids, and what is said of a name that is no domain.

use crate::plane::Plane;

async fn with_domain() -> Plane {
    let plane = Plane::start().await;
    plane.succeeds(&["tenant", "add", "acme"]).await;
    plane.succeeds(&["domain", "add", "x.test", "--tenant", "acme", "--static", "hello"]).await;
    plane
}

#[tokio::test]
async fn a_plan_is_asked_for_one_value_of_each_term() {
    let plane = Plane::start().await;
    let twice = plane.portico(&["plan", "--what-if", "sharing=tenant", "--what-if", "sharing=alone"]).await;
    assert_eq!(
        (twice.code, twice.stderr.contains("--what-if sharing is given twice")),
        (2, true),
        "{twice:?}"
    );
}

#[tokio::test]
async fn a_domains_route_is_changed_in_place() {
    let plane = with_domain().await;
    plane.succeeds(&["domain", "route", "x.test", "--proxy", "https://origin.example"]).await;
    let shown = plane
        .json(&["domain", "route", "x.test", "--path", "/old", "--redirect", "https://new.example"])
        .await;
    let routes = shown["routes"].as_array().unwrap();
    assert_eq!((routes.len(), &routes[0]["path_prefix"]), (2, &"/old".into()), "{shown}");
    assert_eq!(routes[1]["action"]["origin"], "https://origin.example", "{shown}");

    let shown = plane.json(&["domain", "route", "x.test", "--path", "/old", "--remove"]).await;
    assert_eq!(shown["routes"].as_array().unwrap().len(), 1, "{shown}");
    let gone = plane.portico(&["domain", "route", "x.test", "--path", "/old", "--remove"]).await;
    assert_eq!((gone.code, gone.stderr.contains("no route of the path /old")), (3, true), "{gone:?}");

    for (line, part) in [
        (&["domain", "route", "x.test"][..], "--proxy <URL>"),
        (&["domain", "route", "x.test", "--proxy", "http://a.example", "--remove"], "cannot be used with"),
        (&["domain", "route", "x.test", "--proxy", "ftp://a.example"], "--proxy: must begin with http"),
        (&["domain", "route", "x.test", "--path", "old", "--static", "x"], "--path: must begin with `/`"),
    ] {
        let wrong = plane.portico(line).await;
        assert_eq!(wrong.code, 2, "{wrong:?}");
        assert!(wrong.stderr.contains(part), "{wrong:?}");
    }
}

#[tokio::test]
async fn a_domain_is_added_with_all_that_its_proxy_route_may_say() {
    let plane = Plane::start().await;
    plane.succeeds(&["tenant", "add", "acme"]).await;
    let line = ["domain", "add", "x.test", "--tenant", "acme", "--proxy", "https://origin.example"];
    let options = ["--cache", "--cache-ttl", "10m", "--cache-ignore", "utm_*", "--compress"];
    let more = ["--origin-server-name", "in.example", "--https-redirect", "false"];
    let shown = plane.json(&[&line[..], &options, &more].concat()).await;
    let action = &shown["routes"][0]["action"];
    assert_eq!(action["cache"]["default_ttl_seconds"], 600, "{shown}");
    assert_eq!(action["tls"]["server_name"], "in.example", "{shown}");
    assert!(action["compression"].is_object(), "{shown}");
    let told = plane.succeeds(&["domain", "show", "x.test"]).await;
    for part in ["for 600 s, ignoring utm_*", "port 80 goes to the routes"] {
        assert!(told.contains(part), "{told}");
    }
    let line = ["domain", "add", "y.test", "--tenant", "acme", "--static", "x", "--cache"];
    let wrong = plane.portico(&line).await;
    assert!(wrong.code == 2 && wrong.stderr.contains("--cache is for --proxy"), "{wrong:?}");
    let line = ["domain", "route", "x.test", "--proxy", "http://a.example", "--cache", "--remove"];
    assert_eq!(plane.portico(&line).await.code, 2);
    plane.succeeds(&["domain", "route", "x.test", "--remove"]).await;
    assert!(plane.succeeds(&["domain", "show", "x.test"]).await.contains("visitors get 404"));
}

#[tokio::test]
async fn rules_and_what_holds_for_a_whole_domain_are_set_by_options() {
    let plane = with_domain().await;
    let line = [
        "domain",
        "route",
        "x.test",
        "--path",
        "/api",
        "--method",
        "POST",
        "--header",
        "x-beta=on",
        "--proxy",
        "https://api.example",
        "--replace-prefix",
        "/v2",
        "--set-request-header",
        "x-from=edge",
        "--remove-request-header",
        "cookie",
        "--set-response-header",
        "x-a=1=2",
        "--remove-response-header",
        "server",
    ];
    let shown = plane.json(&line).await;
    let expected = serde_json::json!({
        "path_prefix": "/api", "methods": ["POST"], "headers": [{ "name": "x-beta", "equals": "on" }],
        "replace_prefix": "/v2",
        "request_headers": { "set": { "x-from": "edge" }, "remove": ["cookie"] },
        "response_headers": { "set": { "x-a": "1=2" }, "remove": ["server"] },
        "action": shown["routes"][0]["action"],
    });
    assert_eq!(shown["routes"][0], expected, "{shown}");
    plane.succeeds(&["domain", "route", "x.test", "--path", "/api", "--static", "", "--status", "204"]).await;
    let line = ["domain", "route", "x.test", "--path", "/old", "--exact", "--redirect", "https://b.example"];
    let line: Vec<&str> = line.into_iter().chain(["--status", "302", "--drop-query"]).collect();
    let shown = plane.json(&line).await;
    let action = serde_json::json!({
        "type": "redirect", "to": "https://b.example", "status": 302, "keep_path": true, "keep_query": false
    });
    let routes: Vec<_> =
        shown["routes"].as_array().unwrap().iter().map(|route| &route["path_prefix"]).collect();
    assert_eq!(routes, ["/old", "/api", "/api", "/"], "{shown}");
    assert_eq!((&shown["routes"][0]["action"], &shown["routes"][0]["exact"]), (&action, &true.into()));
    assert_eq!(
        shown["routes"][1]["methods"],
        serde_json::json!(["POST"]),
        "the narrower rule is asked first"
    );
    let shown = plane.succeeds(&["domain", "show", "x.test"]).await;
    assert!(shown.contains("/api POST x-beta=on"), "{shown}");
    let wrong = plane
        .portico(&[
            "domain",
            "route",
            "x.test",
            "--proxy",
            "http://a.example",
            "--set-request-header",
            "host=b",
        ])
        .await;
    assert_eq!(
        (wrong.code, wrong.stderr.contains("--set-request-header: host cannot be changed")),
        (2, true),
        "{wrong:?}"
    );
}

#[tokio::test]
async fn hsts_and_maintenance_of_a_domain_are_set_by_options() {
    let plane = with_domain().await;
    let set =
        ["domain", "set", "x.test", "--hsts-max-age", "365d", "--hsts-include-subdomains", "--hsts-preload"];
    let shown = plane.json(&set).await;
    assert_eq!(
        (&shown["hsts_max_age_seconds"], &shown["hsts_preload"]),
        (&31_536_000.into(), &true.into()),
        "{shown}"
    );
    let wrong = plane.portico(&["domain", "set", "x.test", "--https-redirect", "false"]).await;
    assert_eq!(wrong.code, 2, "preload needs it: {wrong:?}");
    assert_eq!(plane.portico(&["domain", "set", "x.test"]).await.code, 2);
    let taken_back = ["--hsts-include-subdomains", "false", "--hsts-preload", "false"];
    let shown =
        plane.json(&[&["domain", "set", "x.test", "--hsts-max-age", "0s"], &taken_back[..]].concat()).await;
    assert_eq!(shown["hsts_max_age_seconds"], 0, "{shown}");
    let shown = plane.json(&["domain", "set", "x.test", "--hsts-max-age", "off"]).await;
    assert!(shown["hsts_max_age_seconds"].is_null(), "{shown}");
    let shown = plane
        .json(&["domain", "maintenance", "x.test", "--text", "back at noon", "--retry-after", "30m"])
        .await;
    let expected = serde_json::json!({ "text": "back at noon", "retry_after_seconds": 1800 });
    assert_eq!(shown["maintenance"], expected, "{shown}");
    let shown = plane.json(&["domain", "maintenance", "x.test", "--end"]).await;
    assert!(shown["maintenance"].is_null(), "{shown}");
}

#[tokio::test]
async fn tls_and_client_certificates_of_a_domain_are_set_by_options() {
    let plane = with_domain().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("clients.pem");
    let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let pem = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem();
    std::fs::write(&file, &pem).unwrap();
    let file = file.to_str().unwrap();
    let shown = plane.json(&["domain", "set", "x.test", "--minimum-tls", "1.3", "--http2", "false"]).await;
    let of = |name: &str| shown[name].clone();
    let expected = serde_json::json!(["1.3", false, true]);
    assert_eq!(serde_json::json!([of("minimum_tls"), of("http2"), of("http3")]), expected, "{shown}");
    let shown = plane.json(&["domain", "set", "x.test", "--early-data"]).await;
    assert_eq!(shown["early_data"], true, "{shown}");
    assert!(plane.succeeds(&["domain", "show", "x.test"]).await.contains("no HTTP/2, early data"));
    let shown = plane.json(&["domain", "set", "x.test", "--early-data", "false"]).await;
    assert!(shown["early_data"].is_null(), "{shown}");
    let require = ["domain", "set", "x.test", "--client-certificates", "require", "--client-ca", file];
    let shown = plane.json(&require).await;
    let expected = serde_json::json!({ "mode": "require", "ca_pem": pem });
    assert_eq!(shown["client_certificates"], expected, "{shown}");
    let shown = plane.succeeds(&["domain", "show", "x.test"]).await;
    assert!(shown.contains("TLS 1.3 or newer, no HTTP/2, client certificates required"), "{shown}");
    for (wrong, hint) in [
        (&["--client-certificates", "require"][..], "--client-ca FILE"),
        (&["--client-certificates", "require", "--client-ca", "/none.pem"], "/none.pem"),
        (&["--client-certificates", "off", "--client-ca", file], "leave --client-ca out"),
        (&["--client-ca", file], "--client-certificates"),
        (&["--minimum-tls", "1.1"], "1.2 or 1.3"),
        (&["--https-redirect", "false"], "must be true where client certificates are required"),
    ] {
        let wrong = plane.portico(&[&["domain", "set", "x.test"], wrong].concat()).await;
        assert!(wrong.code == 2 && wrong.stderr.contains(hint), "{wrong:?}");
    }
    let shown = plane.json(&["domain", "set", "x.test", "--client-certificates", "off"]).await;
    assert!(shown["client_certificates"].is_null(), "{shown}");
}

#[tokio::test]
async fn a_www_twin_is_a_domain_of_its_own_that_redirects() {
    let plane = with_domain().await;
    for (name, twin) in [("shop.test", "www.shop.test"), ("www.club.test", "club.test")] {
        let line = ["domain", "add", name, "--tenant", "acme", "--proxy", "https://o.example", "--with-www"];
        plane.succeeds(&line).await;
        let shown = plane.json(&["domain", "show", twin]).await;
        let action = serde_json::json!({
            "type": "redirect", "to": format!("https://{name}"), "status": 308, "keep_path": true
        });
        assert_eq!(shown["routes"][0]["action"], action, "{shown}");
        let again = plane.portico(&line).await;
        assert_eq!(again.code, 0, "the same again is no error: {again:?}");
    }
    // Both or none: www.x.test is there with another route.
    plane.succeeds(&["domain", "add", "www.y.test", "--tenant", "acme", "--static", "taken"]).await;
    let both = ["domain", "add", "y.test", "--tenant", "acme", "--static", "y", "--with-www"];
    let refused = plane.portico(&both).await;
    assert!(refused.code != 0 && refused.stderr.contains("www.y.test"), "{refused:?}");
    assert_eq!(plane.portico(&["domain", "show", "y.test"]).await.code, 3);
    let wild = plane
        .portico(&["domain", "add", "*.y.test", "--tenant", "acme", "--static", "y", "--with-www"])
        .await;
    assert_eq!((wild.code, wild.stderr.contains("leave --with-www out")), (2, true), "{wild:?}");
}

#[tokio::test]
async fn a_domain_is_shown_with_its_tenants_name_and_the_id_in_json() {
    let plane = with_domain().await;
    let shown = plane.succeeds(&["domain", "show", "x.test"]).await;
    assert!(shown.contains("tenant    acme\n") && !shown.contains("ten_"), "{shown}");
    let json = plane.json(&["domain", "show", "x.test"]).await;
    assert_eq!(json["tenant_name"], "acme");
    assert!(json["tenant_id"].as_str().unwrap().starts_with("ten_"), "{json}");
}

#[tokio::test]
async fn a_name_that_is_no_domain_is_said_so_with_the_next_command() {
    let plane = with_domain().await;
    let edge = ["--edge-http", "127.0.0.11:80", "--edge-https", "127.0.0.11:443"];
    let line: Vec<&str> = ["shadow", "nope.test", "--print", "nginx"].iter().chain(&edge).copied().collect();
    let shadow = plane.portico(&line).await;
    assert_eq!((shadow.code, shadow.stdout.as_str()), (3, ""), "{shadow:?}");
    assert!(shadow.stderr.contains("no domain nope.test"), "{shadow:?}");
    assert!(shadow.stderr.contains("domain add nope.test --tenant TENANT"), "{shadow:?}");

    for line in [&["cert", "show", "nope.test"][..], &["cert", "list", "--domain", "nope.test"]] {
        let ended = plane.portico(line).await;
        assert_eq!(ended.code, 3, "{ended:?}");
        assert!(ended.stderr.contains("no domain nope.test"), "{ended:?}");
    }
    let none = plane.portico(&["cert", "show", "x.test"]).await;
    assert_eq!(none.code, 4, "{none:?}");
    assert!(none.stderr.contains("x.test has no certificate yet"), "{none:?}");
    let edge = plane.portico(&["edge", "rm", "edge_01ARZ3NDEKTSV4RRFFQ69G5FAV"]).await;
    assert_eq!(edge.code, 3, "{edge:?}");
}

#[tokio::test]
async fn a_tenant_is_changed_without_what_is_not_named() {
    let plane = with_domain().await;
    plane
        .succeeds(&["tenant", "set", "acme", "--egress-grant", "10.1.0.0/16:8080", "--sharing", "tenant"])
        .await;
    let shown = plane
        .json(&["tenant", "set", "acme", "--egress-grant", "10.2.0.0/16:80", "--domains-max", "5"])
        .await;
    assert_eq!(shown["egress_grants"].as_array().unwrap().len(), 2, "{shown}");
    assert_eq!((&shown["sharing"], &shown["domains_max"]), (&"tenant".into(), &5.into()), "{shown}");
    plane.succeeds(&["domain", "route", "x.test", "--proxy", "http://10.1.0.7:8080"]).await;

    let shown = plane.json(&["tenant", "set", "acme", "--withdraw-egress-grant", "10.1.0.0/16"]).await;
    assert_eq!(shown["egress_grants"].as_array().unwrap().len(), 1, "{shown}");
    let again = plane.portico(&["tenant", "set", "acme", "--withdraw-egress-grant", "10.1.0.0/16"]).await;
    assert_eq!(again.code, 3, "{again:?}");
    assert_eq!(plane.portico(&["tenant", "set", "acme"]).await.code, 2);
}
