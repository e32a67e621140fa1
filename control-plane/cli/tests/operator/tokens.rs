//! Tokens from the command line.

use crate::plane::Plane;

#[tokio::test]
async fn a_tenants_token_is_made_works_for_that_tenant_only_and_ends() {
    let plane = Plane::start().await;
    for tenant in ["one", "two"] {
        plane.succeeds(&["tenant", "add", tenant]).await;
        let name = format!("{tenant}.test");
        plane.succeeds(&["domain", "add", &name, "--tenant", tenant, "--static", "x"]).await;
    }
    let made = plane.json(&["token", "add", "for one", "--tenant", "one"]).await;
    let token = made["token"].as_str().unwrap();
    let own = plane.portico_as(token, &["domain", "list"]).await;
    assert!(own.code == 0 && own.stdout.contains("one.test") && !own.stdout.contains("two.test"), "{own:?}");
    assert_eq!(plane.portico_as(token, &["domain", "show", "two.test"]).await.code, 3);
    // A tenant may not give itself a grant, so it is told whose command that is.
    let denied = ["domain", "route", "one.test", "--proxy", "http://10.0.0.1:80"];
    let denied = plane.portico_as(token, &denied).await;
    assert_eq!(denied.code, 2, "{denied:?}");
    assert!(denied.stderr.contains("tenant set one --egress-grant CIDR:PORT"), "{denied:?}");

    let listed = plane.succeeds(&["token", "list"]).await;
    let is_listed = |words: &str| {
        listed.lines().any(|line| line.split_whitespace().collect::<Vec<_>>().join(" ").starts_with(words))
    };
    assert!(is_listed("for one one ") && is_listed("operator operators "), "{listed}");
    let id = made["id"].as_str().unwrap();
    plane.succeeds(&["token", "rm", id]).await;
    assert_eq!(plane.portico(&["token", "rm", id]).await.code, 3);
    let ended = plane.portico_as(token, &["domain", "list"]).await;
    assert_eq!((ended.code, ended.stderr.contains("give a token")), (1, true), "{ended:?}");
    assert_eq!(plane.portico(&["token", "add", "no reach"]).await.code, 2);
}
