//! `-o json`: one document on standard output, a failure as one problem on standard error, exit codes as ever.

use serde_json::Value;

use crate::plane::{Ended, Plane, portico};

fn problem(ended: &Ended) -> Value {
    assert_eq!(ended.stdout, "", "a failure leaves standard output parseable");
    let problem: Value =
        serde_json::from_str(&ended.stderr).unwrap_or_else(|error| panic!("{error}: {}", ended.stderr));
    for member in ["type", "title", "detail", "code"] {
        assert!(problem[member].is_string(), "no {member}: {problem}");
    }
    assert_eq!(problem["exit_code"], ended.code);
    problem
}

#[tokio::test]
async fn an_error_with_json_output_is_one_problem_on_standard_error() {
    let plane = Plane::start().await;
    plane.succeeds(&["tenant", "add", "acme"]).await;

    let refused = ["-o", "json", "domain", "add", "x.test", "--tenant", "acme", "--proxy", "ftp://x"];
    let refused = problem(&plane.portico(&refused).await);
    assert_eq!((&refused["status"], &refused["code"]), (&422.into(), &"invalid_fields".into()), "{refused}");
    assert_eq!(refused["errors"][0]["pointer"], "/routes/0/action/origin", "{refused}");
    assert!(refused["request_id"].is_string(), "{refused}");

    let missing = plane.portico(&["domain", "show", "nope.test", "-o", "json"]).await;
    assert_eq!(missing.code, 3);
    let missing = problem(&missing);
    assert_eq!(missing["code"], "not_found");
    assert!(missing["next"].as_str().unwrap().ends_with("domain list"), "{missing}");

    // Before any call is made: a command line that makes no sense, however the format is written.
    for format in [&["-o", "json"][..], &["-ojson"], &["--output=json"], &["--output", "json"]] {
        let line: Vec<&str> = format.iter().chain(&["domain", "shwo"]).copied().collect();
        let wrong = plane.portico(&line).await;
        assert_eq!(wrong.code, 2);
        let wrong = problem(&wrong);
        assert_eq!(wrong["code"], "usage");
        assert!(wrong["detail"].as_str().unwrap().contains("shwo"), "{wrong}");
    }
    let text = plane.portico(&["domain", "shwo"]).await;
    assert_eq!((text.code, text.stderr.starts_with("error: ")), (2, true), "{text:?}");
}

#[tokio::test]
async fn each_command_prints_one_document_and_nothing_else() {
    let plane = Plane::start().await;
    let add = ["domain", "add", "x.test", "--tenant", "acme", "--static", "hello"];
    for line in [
        &["tenant", "add", "acme"][..],
        &["tenant", "list"],
        &["tenant", "show", "acme"],
        &add,
        &["domain", "list"],
        &["domain", "show", "x.test"],
        &["domain", "suspend", "x.test"],
        &["domain", "resume", "x.test"],
        &["preview", "x.test"],
        &["shadow", "x.test", "--print", "nginx"],
        &["cert", "list"],
        &["edge", "list"],
        &["edge", "join"],
        &["removal", "list"],
        &["removal", "sign-off", "--held", "0"],
        &["domain", "route", "x.test", "--proxy", "http://origin.test", "--cache", "--cache-ttl", "10m"],
        &["cache", "purge", "--tenant", "acme", "--host", "x.test", "--tag", "a", "--soft"],
        &["version"],
        &["cache", "purge", "--tenant", "acme", "--everything"],
        &["domain", "rm", "x.test"],
    ] {
        plane.json(line).await;
    }
}

#[test]
fn a_command_that_runs_a_part_refuses_json() {
    for line in [&["edge", "run"][..], &["control-plane", "run", "--config", "x.toml"]] {
        let output = portico().args(["-o", "json"]).args(line).output().unwrap();
        let ended = Ended::of(&output);
        assert_eq!(ended.code, 2, "{ended:?}");
        assert!(problem(&ended)["detail"].as_str().unwrap().contains("prints no JSON"));
    }
}
