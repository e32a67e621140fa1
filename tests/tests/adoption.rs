//! What other programs serve today is taken over by one command: `portico adopt`. The programs are Debian's own: certbot, Caddy and
//! nginx, with their real folders; acme.sh's is shaped as its source writes it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portico_api::v1::{DomainStatus, Sharing, Tenant};
use portico_tests::{
    CaKind, CellPlan, Lab, LabOptions, Running, ask, pebble_is_installed, shown, wait_until,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};

const CERTBOT: &str = "/usr/bin/certbot";
const CADDY: &str = "/usr/bin/caddy";
const NGINX: &str = "/usr/sbin/nginx";
const DEADLINE: Duration = Duration::from_secs(60);
/// The machine that serves the names until they are adopted.
const OLD: u8 = 20;

fn is_installed(program: &str) -> bool {
    let there = Path::new(program).exists();
    if !there {
        portico_skipping::skipped(&format!("{program} is not on this machine"));
    }
    there
}

/// The names point to the old machine.
async fn point_to_old(lab: &Lab, names: &[&str]) -> Result<()> {
    for name in names {
        lab.set_record(name, "A", &[&lab.addresses.ip(OLD).to_string()]).await?;
    }
    Ok(())
}

/// Runs certbot on the old machine; answers its folder.
async fn certbot(lab: &Lab, names: &[&str]) -> Result<PathBuf> {
    let folder = lab.folder.path().join("letsencrypt");
    let mut command = Command::new(CERTBOT);
    command
        .args([
            "certonly",
            "--non-interactive",
            "--agree-tos",
            "--register-unsafely-without-email",
            "--standalone",
        ])
        .args(["--http-01-address", &lab.addresses.ip(OLD).to_string(), "--http-01-port", "8080"])
        .args(["--server", &lab.directory])
        .arg("--config-dir")
        .arg(&folder)
        .arg("--work-dir")
        .arg(lab.folder.path().join("certbot-work"))
        .arg("--logs-dir")
        .arg(lab.folder.path().join("certbot-logs"))
        .env("REQUESTS_CA_BUNDLE", &lab.api_root)
        .stdin(Stdio::null());
    for name in names {
        command.args(["-d", name]);
    }
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(folder)
}

fn leaf_of(pem: &Path) -> Result<Vec<u8>> {
    Ok(CertificateDer::pem_file_iter(pem)?.next().context("an empty chain")??.to_vec())
}

/// The command, with its JSON; it goes on beside us, for the labs serve meanwhile.
async fn adopt(lab: &Lab, arguments: &[&str]) -> Result<(Output, Value)> {
    let mut command = lab.portico();
    command.args(["adopt", "-o", "json", "--roots"]).arg(&lab.issuing_root).args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let report = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    Ok((output, report))
}

/// What a report says of a name.
fn of<'a>(report: &'a Value, name: &str) -> &'a Value {
    let names = report["names"].as_array().unwrap_or_else(|| panic!("no report: {report}"));
    names.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("{name} is not in {report:#}"))
}

/// All that somebody could see of the control plane's domains and certificates.
async fn state(lab: &Lab) -> Result<Value> {
    let domains = lab.client.domains(&portico_api::v1::client::DomainQuery::default()).await?;
    let certificates = lab.client.certificates(&portico_api::v1::client::CertificateQuery::default()).await?;
    let names: Vec<_> = domains.items.iter().map(|domain| domain.spec.hostname.clone()).collect();
    let held: Vec<_> = certificates
        .items
        .iter()
        .map(|one| (one.summary.credential_id.to_string(), one.summary.names.clone()))
        .collect();
    Ok(json!({ "domains": names, "certificates": held }))
}

async fn until_shown(
    edge: SocketAddr,
    name: &str,
    roots: &Path,
    what: &str,
    is: impl Fn(&[u8]) -> bool,
) -> Vec<u8> {
    wait_until(what, DEADLINE, async || {
        shown(edge, name, roots).await.ok().map(|shown| shown.leaf).filter(|leaf| is(leaf))
    })
    .await
}

/// The orders at the CA for a name, as it has logged them.
async fn placed(lab: &Lab, name: &str) -> Result<Vec<Value>> {
    let stats = lab.ca_stats().await?;
    let all = stats["new_orders"].as_array().cloned().unwrap_or_default();
    let is_for =
        |order: &Value| order["names"].as_array().is_some_and(|names| names.iter().any(|one| one == name));
    Ok(all.into_iter().filter(is_for).collect())
}

fn edge_address(lab: &Lab, at: usize) -> String {
    lab.edges[at].https.to_string()
}

/// The names are ready for an order, and the planner has had its turn since: another name, which has no certificate, has had its order.
async fn until_planned(lab: &Lab, tenant: &Tenant, names: &[&str]) -> Result<()> {
    for name in names {
        wait_until("the name to be ready", DEADLINE, async || {
            let domain = lab.client.domain(name).await.ok()?;
            let ready = domain.conditions.iter().any(|one| {
                one.kind == portico_api::v1::ConditionKind::ChallengeReachable
                    && one.status == portico_api::v1::ConditionStatus::True
            });
            (ready && domain.status == DomainStatus::Active).then_some(())
        })
        .await;
    }
    lab.domain(tenant, "later.test").await?;
    lab.active("later.test").await.map(drop)
}

/// All of the cell's certificates are due at once when an edge leaves it.
async fn second_edge_leaves(lab: &Lab, theirs: &[u8]) -> Result<()> {
    let second = lab.client.edges().await?.items.into_iter().nth(1).context("two edges")?;
    lab.client.delete_edge(second.id).await?;
    wait_until("a certificate of our own", DEADLINE, async || {
        for edge in &lab.edges {
            if let Ok(shown) = shown(edge.https, "shop.test", &lab.issuing_root).await
                && shown.leaf != theirs
            {
                return Some(());
            }
        }
        None
    })
    .await;
    Ok(())
}

/// The way back takes what the adoption of two names made, and no more.
async fn taken_back(lab: &Lab, tenant: &Tenant) -> Result<()> {
    let kept = lab.client.create_domain(tenant.id, &lab.proxied("kept.test")).await?;
    let (output, undone) = adopt(lab, &["--rollback", "back"]).await?;
    ensure!(output.status.success() || output.status.code() == Some(4), "{output:?}");
    assert_eq!(undone["domains"], 2, "{undone:#}");
    assert_eq!(lab.client.domain("kept.test").await?.id, kept.id);
    assert!(lab.client.domain("shop.test").await.is_err());
    let (output, undone) = adopt(lab, &["--rollback", "back"]).await?;
    assert!(output.status.success(), "{output:?}");
    assert_eq!((&undone["domains"], &undone["certificates"]), (&json!(0), &json!(0)), "{undone:#}");
    Ok(())
}

#[tokio::test]
async fn what_certbot_serves_is_served_at_once_and_renewed_on_its_account_without_a_validation() -> Result<()>
{
    if !is_installed(CERTBOT) {
        return Ok(());
    }
    let cells = vec![CellPlan { name: "default", edges: 2 }];
    let lab = Lab::start(LabOptions { cells, ..LabOptions::default() }).await?;
    let names = ["shop.test", "www.shop.test"];
    point_to_old(&lab, &names).await?;
    let folder = certbot(&lab, &names).await?;
    let folder_text = folder.to_str().context("UTF-8")?.to_owned();
    let theirs = leaf_of(&folder.join("live/shop.test/fullchain.pem"))?;
    let tenant = lab.tenant("shops", Sharing::RegisteredDomain, &[]).await?;
    let proxy = format!("http://{}", lab.origin);
    let usual = ["--from", "certbot", &folder_text, "--tenant", "shops", "--proxy", &proxy, "--no-compare"];

    // First what would be: nothing is changed, and the RSA key is told.
    let before = state(&lab).await?;
    let (output, report) = adopt(&lab, &[&usual[..], &["--dry-run"]].concat()).await?;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(of(&report, "shop.test")["result"], "would_be_adopted", "{report:#}");
    assert!(
        report["accounts"][0]["text"].as_str().is_some_and(|text| text.contains("RSA key")),
        "{report:#}"
    );
    assert_eq!(state(&lab).await?, before);
    assert!(!lab.folder.path().join("back").exists());

    // DNS has moved to the first edge already: an order would succeed at any moment from now on.
    for name in names {
        lab.set_record(name, "A", &[&lab.edges[0].https.ip().to_string()]).await?;
    }
    let (output, report) =
        adopt(&lab, &[&usual[..], &["--change-account-keys", "--rollback-file", "back"]].concat()).await?;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(of(&report, "www.shop.test")["result"], "adopted", "{report:#}");
    assert_eq!(of(&report, "www.shop.test")["on_its_account"], true, "{report:#}");
    for edge in &lab.edges {
        until_shown(edge.https, "shop.test", &lab.issuing_root, "certbot's certificate", |leaf| {
            leaf == theirs
        })
        .await;
        let answer = ask(edge.https, "www.shop.test", "/", &lab.issuing_root).await?;
        assert_eq!((answer.status, answer.body.starts_with(b"origin of www.shop.test")), (200, true));
    }
    let again = adopt(&lab, &[&usual[..], &["--rollback-file", "again"]].concat()).await?;
    assert_eq!(of(&again.1, "shop.test")["result"], "unchanged", "{:#}", again.1);

    until_planned(&lab, &tenant, &names).await?;
    let placed = placed(&lab, "shop.test").await?;
    assert_eq!(placed.len(), 1, "certbot's alone: {placed:#?}");

    second_edge_leaves(&lab, &theirs).await?;
    let placed = crate::placed(&lab, "shop.test").await?;
    assert_eq!(placed.len(), 2, "{placed:#?}");
    assert!(placed[1]["replaces"].is_string() && placed[1]["result"] == "created", "{placed:#?}");
    assert_eq!(placed[0]["account"], placed[1]["account"], "certbot's account: {placed:#?}");
    let stats = lab.ca_stats().await?;
    for name in names {
        let of_name = &stats["validations"]["by_name"][name];
        assert_eq!(
            of_name,
            &json!({ "http-01": { "performed": 1, "failed": 0 } }),
            "certbot's alone: {stats:#}"
        );
    }

    taken_back(&lab, &tenant).await
}

#[tokio::test]
async fn what_certbot_got_from_pebble_is_served_with_no_order_and_renewed_with_no_validation() -> Result<()> {
    if !is_installed(CERTBOT) || !pebble_is_installed() {
        return Ok(());
    }
    let cells = vec![CellPlan { name: "default", edges: 2 }];
    let lab = Lab::start(LabOptions { ca: CaKind::Pebble, cells, ..LabOptions::default() }).await?;
    point_to_old(&lab, &["shop.test"]).await?;
    let folder = certbot(&lab, &["shop.test"]).await?;
    let theirs = leaf_of(&folder.join("live/shop.test/fullchain.pem"))?;
    lab.tenant("shops", Sharing::RegisteredDomain, &[]).await?;
    let orders = || lab.ca_log().matches("Added order").count();
    assert_eq!(orders(), 1, "{}", lab.ca_log());
    let before = state(&lab).await?;
    let proxy = format!("http://{}", lab.origin);
    let folder = folder.to_str().context("UTF-8")?;
    let usual =
        ["--from", "certbot", folder, "--tenant", "shops", "--proxy", &proxy, "--change-account-keys"];
    let (output, report) =
        adopt(&lab, &[&usual[..], &["--no-compare", "--rollback-file", "back"]].concat()).await?;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(of(&report, "shop.test")["on_its_account"], true, "{report:#}");
    for edge in &lab.edges {
        until_shown(edge.https, "shop.test", &lab.issuing_root, "certbot's certificate", |leaf| {
            leaf == theirs
        })
        .await;
    }
    assert_eq!(orders(), 1, "{}", lab.ca_log());
    let (output, undone) = adopt(&lab, &["--rollback", "back", "--dry-run"]).await?;
    assert!(output.status.success(), "{output:?}");
    assert_eq!((&undone["domains"], &undone["certificates"]), (&json!(1), &json!(1)), "{undone:#}");
    let (output, undone) = adopt(&lab, &["--rollback", "back"]).await?;
    ensure!(output.status.success() || output.status.code() == Some(4), "{output:?}");
    assert_eq!((&undone["domains"], &undone["certificates"]), (&json!(1), &json!(1)), "{undone:#}");
    let after = state(&lab).await?;
    assert_eq!(after["domains"], before["domains"]);
    assert_eq!(orders(), 1, "{}", lab.ca_log());

    // Once more; then its certificate is due, when an edge leaves the cell, and the time of certbot's authorization is not over.
    lab.set_record("shop.test", "A", &[&lab.edges[0].https.ip().to_string()]).await?;
    let (output, report) =
        adopt(&lab, &[&usual[..], &["--no-compare", "--rollback-file", "twice"]].concat()).await?;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        of(&report, "shop.test")["on_its_account"],
        true,
        "its key is ours since the first time: {report:#}"
    );
    let validations = || lab.ca_log().matches(" validations.").count();
    let before = validations();
    assert!(before > 0, "certbot's: {}", lab.ca_log());
    second_edge_leaves(&lab, &theirs).await?;
    assert_eq!((orders(), validations()), (2, before), "{}", lab.ca_log());
    Ok(())
}

/// The answer of the only call is lost: its line is not in the file.
#[tokio::test]
async fn a_way_back_after_a_lost_answer_takes_the_certificate_off_a_domain_that_was_there() -> Result<()> {
    if !is_installed(CERTBOT) {
        return Ok(());
    }
    let lab = Lab::start(LabOptions::default()).await?;
    point_to_old(&lab, &["there.test", "other.test"]).await?;
    let folder = certbot(&lab, &["there.test"]).await?;
    let folder = folder.to_str().context("UTF-8")?;
    let tenant = lab.tenant("shops", Sharing::RegisteredDomain, &[]).await?;
    let there = lab.client.create_domain(tenant.id, &lab.proxied("there.test")).await?;
    let usual = ["--from", "certbot", folder, "--tenant", "shops", "--without-accounts", "--no-compare"];
    let (output, report) = adopt(&lab, &[&usual[..], &["--rollback-file", "back"]].concat()).await?;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(report["rollback_file"], "back", "{report:#}");
    let back = lab.folder.path().join("back");
    let text = std::fs::read_to_string(&back)?;
    let (before, made) = text.trim_end().rsplit_once('\n').context("steps")?;
    assert!(made.contains("\"made\""), "{made}");
    std::fs::write(&back, format!("{before}\n"))?;

    // Another run finds all as it is, and has nothing to take back.
    let (_, again) = adopt(&lab, &[&usual[..], &["--rollback-file", "again"]].concat()).await?;
    assert_eq!((&again["rollback_file"], lab.folder.path().join("again").exists()), (&Value::Null, false));

    let (output, undone) = adopt(&lab, &["--rollback", "back"]).await?;
    assert_eq!((&undone["certificates"], &undone["domains"]), (&json!(1), &json!(0)), "{undone:#}");
    assert_eq!(undone["stay"][0]["name"], "there.test", "{undone:#}");
    assert!(undone["stay"][0]["why"].as_str().is_some_and(|why| why.contains("stays served on the word")));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let domain = lab.client.domain("there.test").await?;
    assert!(domain.id == there.id && domain.certificates.iter().all(|one| !one.adopted), "{domain:?}");
    Ok(())
}

#[tokio::test]
async fn half_of_a_certbot_folder_is_told_in_words_and_the_other_half_is_adopted() -> Result<()> {
    if !is_installed(CERTBOT) {
        return Ok(());
    }
    let lab = Lab::start(LabOptions::default()).await?;
    let names = ["good.test", "torn.test", "gone.test", "other.test"];
    point_to_old(&lab, &names).await?;
    let mut folder = PathBuf::new();
    for name in names {
        folder = certbot(&lab, &[name]).await?;
    }
    // In the middle of a renewal: the new key is linked, the chain is the old one.
    std::fs::copy(
        folder.join("archive/good.test/privkey1.pem"),
        folder.join("archive/torn.test/privkey2.pem"),
    )?;
    std::fs::remove_file(folder.join("live/torn.test/privkey.pem"))?;
    std::os::unix::fs::symlink(
        "../../archive/torn.test/privkey2.pem",
        folder.join("live/torn.test/privkey.pem"),
    )?;
    // Copied without what the links lead to.
    std::fs::remove_dir_all(folder.join("archive/gone.test"))?;
    lab.tenant("shops", Sharing::RegisteredDomain, &[]).await?;
    let other = lab.tenant("others", Sharing::RegisteredDomain, &[]).await?;
    lab.domain(&other, "other.test").await?;
    wait_until("the other tenant's proof", DEADLINE, async || {
        lab.client.domain("other.test").await.ok()?.proof.map(drop)
    })
    .await;
    let (proxy, folder_text) = (format!("http://{}", lab.origin), folder.to_str().context("UTF-8")?);
    let usual = ["--from", "certbot", folder_text, "--tenant", "shops", "--proxy", &proxy, "--no-compare"];
    let (output, report) = adopt(&lab, &usual).await?;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(of(&report, "good.test")["result"], "adopted", "{report:#}");
    let other = of(&report, "other.test");
    assert!(other["why"].as_str().is_some_and(|why| why.contains("served for tenant others")), "{report:#}");
    let skipped = report["skipped"].to_string();
    assert!(skipped.contains("is not the key of the certificate"), "{skipped}");
    assert!(skipped.contains("archive/gone.test"), "{skipped}");
    assert!(lab.client.domain("torn.test").await.is_err() && lab.client.domain("gone.test").await.is_err());

    let missing = adopt(&lab, &["--from", "certbot", "/nowhere", "--tenant", "shops"]).await?.0;
    assert_eq!(missing.status.code(), Some(2), "{missing:?}");
    let wrong = adopt(&lab, &["--from", "certbot", lab.folder.path().to_str().context("UTF-8")?]).await?.0;
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("no folder of certbot's"), "{wrong:?}");
    Ok(())
}

/// Caddy asks its CA again a minute after a try that failed, and two minutes after the next.
const CADDY_DEADLINE: Duration = Duration::from_secs(200);

/// Starts Caddy on the old machine, and waits until it has its certificates.
async fn caddy(lab: &Lab, names: &[&str]) -> Result<(Running, PathBuf)> {
    let home = lab.folder.path().join("caddy-home");
    std::fs::create_dir(&home)?;
    let (ip, origin) = (lab.addresses.ip(OLD), lab.origin);
    let file = home.join("Caddyfile");
    std::fs::write(
        &file,
        format!(
            "{{\n\thttp_port 8080\n\thttps_port 8443\n\tadmin off\n\tacme_ca {}\n\tacme_ca_root {}\n}}\n\
             shop.test {{\n\tbind {ip}\n\treverse_proxy {origin}\n}}\n\
             old.test {{\n\tbind {ip}\n\tredir https://shop.test{{uri}} permanent\n}}\n\
             files.test {{\n\tbind {ip}\n\troot * /srv\n\tfile_server\n}}\n",
            lab.directory,
            lab.api_root.display(),
        ),
    )?;
    let mut command = Command::new(CADDY);
    command.args(["run", "--adapter", "caddyfile", "--config"]).arg(&file).env("HOME", &home);
    command.env("XDG_DATA_HOME", home.join(".local/share")).env("XDG_CONFIG_HOME", home.join(".config"));
    let running = Running::start("caddy", lab.folder.path(), &mut command);
    for name in names {
        let address = lab.addresses.at(OLD, 8443);
        wait_until("Caddy's certificate", CADDY_DEADLINE, async || {
            shown(address, name, &lab.issuing_root).await.ok()
        })
        .await;
    }
    Ok((running, home))
}

#[tokio::test]
async fn caddys_sites_are_compared_and_moved_and_acme_shs_folder_is_read() -> Result<()> {
    if !is_installed(CADDY) {
        return Ok(());
    }
    let lab = Lab::start(LabOptions::default()).await?;
    let names = ["shop.test", "old.test", "files.test"];
    point_to_old(&lab, &names).await?;
    let (_caddy, home) = caddy(&lab, &names).await?;
    lab.tenant("shops", Sharing::RegisteredDomain, &[]).await?;
    let (edges, home_text) =
        ([edge_address(&lab, 0), edge_address(&lab, 1)], home.to_str().context("UTF-8")?);
    let old = lab.addresses.at(OLD, 8443).to_string();
    let places = ["--old", &old, "--edge", &edges[0], "--edge", &edges[1], "--rollback-file", "caddy-back"];
    let (output, report) =
        adopt(&lab, &[&["--from", "caddy", home_text, "--tenant", "shops"][..], &places].concat()).await?;
    assert_eq!(output.status.code(), Some(1), "one site serves files: {output:?}");
    for name in ["shop.test", "old.test"] {
        let one = of(&report, name);
        assert_eq!((&one["result"], &one["on_its_account"]), (&json!("adopted"), &json!(true)), "{report:#}");
        assert_eq!(one["compared"]["differences"], json!([]), "{report:#}");
        assert_eq!(one["compared"]["old"], old, "{report:#}");
    }
    let files = of(&report, "files.test")["why"].as_str().context("why")?;
    assert!(files.contains("is not understood") && files.contains("--proxy"), "{files}");
    let moved = ask(lab.edges[0].https, "old.test", "/a?b=c", &lab.issuing_root).await?;
    assert_eq!((moved.status, moved.headers["location"].to_str()?), (301, "https://shop.test/a?b=c"));
    let account = std::fs::read_to_string(lab.folder.path().join("caddy-home/.config/caddy/autosave.json"));
    assert!(account.is_ok(), "the routes came from what Caddy ran with");
    let accounts = lab.client.issuers().await?.items[0].accounts.len();
    assert!(accounts >= 1, "Caddy's account is ours too");

    // The same certificate as acme.sh keeps it, for a name that has it already: nothing changes.
    let acme_sh = shape_acme_sh(&lab, &home)?;
    let proxy = format!("http://{}", lab.origin);
    let usual = ["--from", "acme.sh", acme_sh.to_str().context("UTF-8")?, "--proxy", &proxy, "--no-compare"];
    let (output, report) = adopt(&lab, &usual).await?;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(of(&report, "shop.test")["result"], "unchanged", "{report:#}");
    assert!(report["accounts"][0]["url"].is_string(), "{report:#}");
    let stats = lab.ca_stats().await?;
    assert_eq!(stats["orders"]["created"], 3, "Caddy's: {stats:#}");
    Ok(())
}

/// The folder of acme.sh with Caddy's certificate of shop.test: what its source (`_initpath`, `_save_conf`) writes.
fn shape_acme_sh(lab: &Lab, home: &Path) -> Result<PathBuf> {
    let folder = lab.folder.path().join("acme.sh");
    let site = folder.join("shop.test_ecc");
    std::fs::create_dir_all(&site)?;
    let storage = home.join(".local/share/caddy");
    let only =
        |at: PathBuf| -> Result<PathBuf> { Ok(std::fs::read_dir(at)?.next().context("one entry")??.path()) };
    let certificates = only(storage.join("certificates"))?.join("shop.test");
    std::fs::copy(certificates.join("shop.test.crt"), site.join("fullchain.cer"))?;
    std::fs::copy(certificates.join("shop.test.key"), site.join("shop.test.key"))?;
    let conf = format!(
        "Le_Domain='shop.test'\nLe_Alt='no'\nLe_Webroot='no'\nLe_PreHook=''\nLe_API='{}'\nLe_Keylength='ec-256'\n",
        lab.directory
    );
    std::fs::write(site.join("shop.test.conf"), conf)?;
    let (host, path) = lab.directory.trim_start_matches("https://").split_once('/').context("a path")?;
    let ca = folder.join("ca").join(host.split(':').next().context("a host")?).join(path);
    std::fs::create_dir_all(&ca)?;
    let users = only(only(storage.join("acme"))?.join("users"))?;
    std::fs::copy(users.join("default.key"), ca.join("account.key"))?;
    std::fs::write(folder.join("account.conf"), "LOG_LEVEL='1'\n")?;
    Ok(folder)
}

/// Starts nginx on the old machine with certbot's certificates.
async fn nginx(lab: &Lab, certbot: &Path) -> Result<(Running, PathBuf)> {
    let folder = lab.folder.path().join("nginx");
    std::fs::create_dir_all(folder.join("sites-enabled"))?;
    let (tls, plain, origin) = (lab.addresses.at(OLD, 8443), lab.addresses.at(OLD, 8080), lab.origin);
    std::fs::write(
        folder.join("nginx.conf"),
        format!(
            "daemon off;\nmaster_process off;\npid {0}/pid;\nerror_log {0}/error.log;\nevents {{}}\n\
             http {{\n  access_log off;\n  client_body_temp_path {0}/t1;\n  proxy_temp_path {0}/t2;\n  fastcgi_temp_path {0}/t3;\n  \
             uwsgi_temp_path {0}/t4;\n  scgi_temp_path {0}/t5;\n  upstream app {{ server {origin}; keepalive 4; }}\n  \
             include sites-enabled/*;\n}}\n",
            folder.display()
        ),
    )?;
    let site = |name: &str, body: &str| {
        let live = certbot.join("live/site.test");
        let text = format!(
            "server {{\n  listen {tls} ssl;\n  server_name {name};\n  ssl_certificate {0}/fullchain.pem; # managed by Certbot\n  \
             ssl_certificate_key {0}/privkey.pem;\n{body}\n}}\n\
             server {{\n  if ($host = {name}) {{\n    return 301 https://$host$request_uri;\n  }} # managed by Certbot\n  \
             listen {plain};\n  server_name {name};\n  return 404;\n}}\n",
            live.display()
        );
        std::fs::write(folder.join("sites-enabled").join(name), text)
    };
    site(
        "site.test",
        "  add_header Strict-Transport-Security \"max-age=86400\";\n  location / {\n    proxy_pass http://app;\n    \
         proxy_set_header Host $host;\n    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n  }\n  \
         location = /teapot { return 418 \"short and stout\"; }",
    )?;
    site("www.site.test", "  return 301 https://site.test$request_uri;")?;
    site("files.site.test", "  root /srv;\n  location / { try_files $uri =404; }")?;
    let mut command = Command::new(NGINX);
    command.arg("-c").arg(folder.join("nginx.conf")).arg("-e").arg(folder.join("error.log"));
    let running = Running::start("nginx", lab.folder.path(), &mut command);
    wait_until("nginx", DEADLINE, async || shown(tls, "site.test", &lab.issuing_root).await.ok()).await;
    Ok((running, folder))
}

#[tokio::test]
async fn nginx_sites_are_answered_as_before_and_what_is_not_understood_is_left_to_the_old_server()
-> Result<()> {
    if !is_installed(CERTBOT) || !is_installed(NGINX) {
        return Ok(());
    }
    let lab = Lab::start(LabOptions::default()).await?;
    let names = ["site.test", "www.site.test", "files.site.test"];
    point_to_old(&lab, &names).await?;
    let letsencrypt = certbot(&lab, &names).await?;
    let (_nginx, folder) = nginx(&lab, &letsencrypt).await?;
    lab.tenant("sites", Sharing::RegisteredDomain, &[]).await?;
    let (old, edge, folder) =
        (lab.addresses.at(OLD, 8443).to_string(), edge_address(&lab, 0), folder.display().to_string());
    let usual = ["--from", "nginx", &folder, "--tenant", "sites", "--old", &old, "--edge", &edge];
    let (output, report) = adopt(&lab, &[&usual[..], &["--change-account-keys"]].concat()).await?;
    assert_eq!(output.status.code(), Some(1), "one site serves files: {output:?}");
    for name in ["site.test", "www.site.test"] {
        let one = of(&report, name);
        assert_eq!((&one["result"], &one["on_its_account"]), (&json!("adopted"), &json!(true)), "{report:#}");
        assert_eq!(one["compared"]["differences"], json!([]), "{report:#}");
    }
    let files = of(&report, "files.site.test")["why"].as_str().context("why")?;
    assert!(
        files.contains("root is not understood") || files.contains("try_files is not understood"),
        "{files}"
    );
    let answer = ask(lab.edges[0].https, "site.test", "/teapot", &lab.issuing_root).await?;
    assert_eq!((answer.status, &answer.body[..]), (418, &b"short and stout"[..]));
    assert_eq!(answer.headers["strict-transport-security"], "max-age=86400");

    // With a word where its requests go it is adopted too; and the comparison finds the difference.
    let proxy = format!("http://{}", lab.origin);
    let (output, report) = adopt(&lab, &[&usual[..], &["--proxy", &proxy]].concat()).await?;
    assert_eq!(output.status.code(), Some(1), "it is another site now: {output:?}");
    let one = of(&report, "files.site.test");
    assert_eq!(one["result"], "adopted", "{report:#}");
    let differences = one["compared"]["differences"].to_string();
    assert!(differences.contains("status: 404 at the old server, 200 at"), "{differences}");
    assert_eq!(of(&report, "site.test")["result"], "unchanged", "{report:#}");
    assert_eq!(lab.ca_stats().await?["orders"]["created"], 1, "certbot's alone");
    Ok(())
}
