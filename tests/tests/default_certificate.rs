//! What a fleet shows for names that nobody brought, as the operator chose it.

use std::process::Output;
use std::time::Duration;

use anyhow::Result;
use portico_api::v1::Sharing;
use portico_tests::{Lab, LabOptions, ask, shown, wait_until};
use serde_json::Value;

/// `portico` with these arguments, its output read.
fn portico(lab: &Lab, arguments: &[&str]) -> Output {
    lab.portico().args(arguments).output().expect("portico runs")
}

/// What the spot check sees at the first edge.
fn check(lab: &Lab, name: &str) -> Value {
    let address = lab.edges[0].https.to_string();
    let output = portico(lab, &["check", name, "--connect", &address, "-o", "json"]);
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

/// The certificate's names that a client sees that asks for `name`; empty when it is refused.
fn names(report: &Value) -> Vec<&str> {
    let names = report[0]["certificate"]["names"].as_array();
    names.into_iter().flatten().filter_map(Value::as_str).collect()
}

#[tokio::test]
async fn unknown_names_get_the_certificate_that_the_operator_chose() -> Result<()> {
    let lab = Lab::start(LabOptions::default()).await?;
    let tenant = lab.tenant("hoster", Sharing::Tenant, &[]).await?;
    lab.domain(&tenant, "home.test").await?;
    lab.active("home.test").await?;
    assert!(names(&check(&lab, "stranger.test")).is_empty(), "nothing was chosen yet");

    let refused = portico(&lab, &["edge", "default", "stranger.test"]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("no domain stranger.test is served"), "{text}");

    let chosen = portico(&lab, &["edge", "default", "home.test"]);
    assert!(chosen.status.success(), "{chosen:?}");
    wait_until("the default certificate on the edge", Duration::from_secs(60), async || {
        (names(&check(&lab, "stranger.test")) == ["home.test"]).then_some(())
    })
    .await;
    assert_eq!(check(&lab, "stranger.test")[0]["status"], 421);
    assert_eq!(ask(lab.edges[0].https, "home.test", "/", &lab.issuing_root).await?.status, 200);

    // A second name regroups the tenant; the default goes along with its domain.
    lab.domain(&tenant, "other.test").await?;
    lab.active("other.test").await?;
    let now = shown(lab.edges[0].https, "home.test", &lab.issuing_root).await?;
    assert_eq!(names(&check(&lab, "stranger.test")), now.names);

    let listed = portico(&lab, &["edge", "default", "-o", "json"]);
    let listed: Value = serde_json::from_slice(&listed.stdout)?;
    assert_eq!((&listed["hostname"], &listed["cells"][0]), (&"home.test".into(), &"default".into()));
    assert!(portico(&lab, &["edge", "default", "--none"]).status.success());
    wait_until("the refusal of unknown names", Duration::from_secs(60), async || {
        names(&check(&lab, "stranger.test")).is_empty().then_some(())
    })
    .await;
    Ok(())
}
