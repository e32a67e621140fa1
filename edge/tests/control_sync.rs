//! The edge's side of the distribution stream, against a server over real sockets.

#![expect(clippy::unwrap_used, reason = "a step of a test that fails is its failure")]

#[path = "control/bounds.rs"]
mod bounds;
mod fleet;
#[path = "control/own_keys.rs"]
mod own_keys;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fleet::server::{Conversation, TestCa, TestControl, within};
use fleet::{Shop, credential, domain, domain_body, fixed, mint_valid, route, tenant, tombstone};
use portico_api::distribution as wire;
use portico_cert_store::{ClientCapabilities, DomainId, DomainName, Generation, TenantId};
use portico_edge::clock;
use portico_edge::control::{
    Control, ControlDeadlines, ControlError, ControlOptions, EdgeStatus, JoinError, JoinToken,
};
use portico_edge::live::Live;
use tokio_util::sync::CancellationToken;
use wire::control_message::Kind;

/// A running control side.
struct Edge {
    live: Arc<Live>,
    shutdown: CancellationToken,
    running: tokio::task::JoinHandle<()>,
    usage_end: portico_edge::control::UsageEnd,
}

fn options(address: impl ToString, state: &Path, token: Option<String>) -> ControlOptions {
    ControlOptions {
        address: address.to_string(),
        state: state.join("state"),
        join_token: token.map(|token| JoinToken::parse(&token).unwrap()),
        build: "test".into(),
        expected_names: 1000,
        key_cache_bytes: 1 << 20,
        cache: portico_edge::cache::Cache::new(1 << 20, []),
        deadlines: ControlDeadlines::default(),
    }
}

impl Edge {
    async fn start(options: ControlOptions) -> Self {
        let control = within(Control::open(options)).await.unwrap();
        let (live, shutdown) = (control.live(), CancellationToken::new());
        let status = || EdgeStatus {
            io_backend: "epoll".into(),
            connections: 3,
            listeners: vec!["127.0.0.1:1".into()],
        };
        let (running, usage_end) = control.run(status, shutdown.clone());
        let running = tokio::spawn(running);
        Self { live, shutdown, running, usage_end }
    }

    /// As a kill would: nothing is finished.
    async fn kill(self) {
        self.running.abort();
        let _aborted = self.running.await;
    }

    async fn stop(self) {
        self.usage_end.finish().await;
        self.shutdown.cancel();
        within(self.running).await.unwrap();
    }

    fn served(&self, name: &str) -> Option<Vec<u8>> {
        let capabilities = ClientCapabilities::ALL;
        let hit =
            self.live.sni.lookup(&DomainName::parse(name).unwrap(), clock::unix_time(), capabilities)?;
        Some(self.live.keys.certified_key(&hit.credential).unwrap().cert[0].to_vec())
    }

    fn answers(&self, name: &str) -> Option<String> {
        let host = self.live.host(&DomainName::parse(name).unwrap())?;
        let portico_edge::live::Action::Static { body, .. } = &route(&host, "/")?.action else { return None };
        Some(String::from_utf8(body.to_vec()).unwrap())
    }
}

/// An edge that has joined a control plane of its own; its state is in the folder.
async fn joined() -> (tempfile::TempDir, TestControl, Edge) {
    let folder = tempfile::tempdir().unwrap();
    let ca = TestCa::new();
    let token = ca.token();
    let control = TestControl::start(ca).await;
    let edge = Edge::start(options(control.address, folder.path(), Some(token))).await;
    (folder, control, edge)
}

/// A shop whose certificate is valid by the real clock.
fn shop(name: &str) -> Shop {
    let mut shop = Shop::new(name);
    let now = clock::unix_time().as_secs();
    shop.minted = mint_valid(shop.tenant, &[name], now - 3600, now + 86_400);
    shop
}

fn at(epoch: u64, sequence: u64) -> Generation {
    Generation { epoch, sequence }
}

fn code(ack: &wire::Ack) -> &str {
    ack.rejected.as_ref().map_or("", |rejection| rejection.code.as_str())
}

/// Key and snapshot 1-1 of the shops, acked.
async fn feed(conversation: &mut Conversation, shops: &[&Shop]) {
    conversation.send_key().await;
    let resources: Vec<_> = shops.iter().flat_map(|shop| shop.resources(1)).collect();
    conversation.send_snapshot(at(1, 1), &resources).await;
    let ack = conversation.ack().await;
    assert_eq!((ack.generation, ack.nacks.len(), code(&ack)), (Some(at(1, 1).into()), 0, ""));
}

#[tokio::test]
async fn an_edge_joins_syncs_and_reports() {
    let (_folder, mut control, edge) = joined().await;
    let mut conversation = control.conversation().await;
    assert_eq!(conversation.hello.applied, Some(wire::Generation::default()));
    assert_eq!((conversation.hello.cell_id.as_str(), conversation.hello.protocol), ("cell-a", 1));
    let status = conversation.status().await;
    assert_eq!((status.io_backend.as_str(), status.connections, status.names), ("epoll", 3, 0));

    let shop = shop("www.shop.example");
    feed(&mut conversation, &[&shop]).await;
    assert_eq!(edge.served("www.shop.example"), Some(shop.minted.leaf.clone()));
    conversation
        .send_delta(at(1, 1), at(1, 2), vec![shop.domain(2, |body| body.routes[0] = fixed("two"))])
        .await;
    assert_eq!(conversation.ack().await.generation, Some(at(1, 2).into()));
    assert_eq!(edge.answers("www.shop.example").as_deref(), Some("two"));
    assert_eq!(control.state.joins.load(Ordering::SeqCst), 1);
    edge.stop().await;
}

#[tokio::test]
async fn a_killed_edge_serves_every_name_again_without_a_control_plane() {
    let (folder, mut control, edge) = joined().await;
    let address = control.address;
    let shops: Vec<Shop> = (0..30).map(|index| shop(&format!("n{index}.shop.example"))).collect();
    let mut conversation = control.conversation().await;
    feed(&mut conversation, &shops[..20].iter().collect::<Vec<_>>()).await;
    // The rest by deltas: some come, one is changed, one goes.
    for (index, shop) in shops[20..].iter().enumerate() {
        let sequence = 2 + index as u64;
        conversation.send_delta(at(1, sequence - 1), at(1, sequence), shop.resources(sequence)).await;
        assert_eq!(conversation.ack().await.generation, Some(at(1, sequence).into()));
    }
    let gone = &shops[3];
    conversation
        .send(Kind::Delta(wire::Delta {
            base: Some(at(1, 11).into()),
            generation: Some(at(1, 12).into()),
            resources: vec![shops[25].domain(12, |body| body.routes[0] = fixed("changed"))],
            tombstones: vec![tombstone(wire::ResourceKind::Domain, &gone.domain.to_string())],
            removals_signed_off: false,
        }))
        .await;
    assert_eq!(conversation.ack().await.generation, Some(at(1, 12).into()));
    edge.kill().await;
    drop(conversation);
    let (_, ca) = control.stop().await;

    let again = Edge::start(options(address, folder.path(), None)).await;
    for (index, shop) in shops.iter().enumerate() {
        let expected = (index != 3).then(|| shop.minted.leaf.clone());
        assert_eq!(again.served(&shop.name), expected, "{}", shop.name);
    }
    assert_eq!(again.answers("n25.shop.example").as_deref(), Some("changed"));
    assert_eq!(again.answers("n26.shop.example").as_deref(), Some("n26.shop.example"));
    // And when it is back, the edge says where it stands.
    let mut control = TestControl::start_at(ca, address).await;
    let conversation = control.conversation().await;
    assert_eq!(conversation.hello.applied, Some(at(1, 12).into()));
    assert_eq!(conversation.hello.cell_key_epochs, [1]);
    again.stop().await;
}

#[tokio::test]
async fn refused_batches_leave_the_last_good_state_in_memory_and_on_disk() {
    let (folder, mut control, edge) = joined().await;
    let mut conversation = control.conversation().await;
    let shop = shop("www.shop.example");
    let many = TenantId::generate();
    let names: Vec<DomainId> = (0..400).map(|_| DomainId::generate()).collect();
    conversation.send_key().await;
    let mut resources = shop.resources(1);
    resources.push(tenant(many, 1));
    resources.extend(
        names
            .iter()
            .enumerate()
            .map(|(index, id)| domain(*id, 1, many, &domain_body(&format!("m{index}.shop.example"), &[]))),
    );
    conversation.send_snapshot(at(1, 5), &resources).await;
    assert_eq!(conversation.ack().await.generation, Some(at(1, 5).into()));
    let disk = disk(folder.path());
    let change = || shop.domain(9, |body| body.routes[0] = fixed("changed"));

    let mut changed = resources.clone();
    changed[2] = change();
    conversation.send_spoilt_snapshot(at(1, 6), &changed, |sent| flip(&mut sent[7])).await;
    assert_refused(&mut conversation, &edge, "ChecksumMismatch", at(1, 6)).await;
    conversation.send_spoilt_snapshot(at(1, 6), &changed, |sent| drop(sent.pop())).await;
    assert_refused(&mut conversation, &edge, "CountMismatch", at(1, 6)).await;
    conversation.send_spoilt_snapshot(at(1, 6), &changed, |sent| sent.extend(resources.clone())).await;
    assert_refused(&mut conversation, &edge, "CountMismatch", at(1, 6)).await;
    conversation.send_snapshot(at(1, 4), &changed).await;
    assert_refused(&mut conversation, &edge, "GenerationNotAbove", at(1, 4)).await;
    conversation.send_delta(at(1, 4), at(1, 6), vec![change()]).await;
    assert_refused(&mut conversation, &edge, "BaseMismatch", at(1, 6)).await;
    let mut large = change();
    large.body = vec![0; wire::RESOURCE_BYTES_MAX + 1].into();
    conversation.send_delta(at(1, 5), at(1, 6), vec![large]).await;
    assert_refused(&mut conversation, &edge, "ResourceTooLarge", at(1, 6)).await;
    let removal = |signed_off| wire::Delta {
        base: Some(at(1, 5).into()),
        generation: Some(at(1, 6).into()),
        resources: vec![change()],
        tombstones: names[..40]
            .iter()
            .map(|id| tombstone(wire::ResourceKind::Domain, &id.to_string()))
            .collect(),
        removals_signed_off: signed_off,
    };
    conversation.send(Kind::Delta(removal(false))).await;
    assert_refused(&mut conversation, &edge, "RemovalsNotSignedOff", at(1, 6)).await;
    assert_eq!(self::disk(folder.path()), disk, "a refused batch has reached the disk");

    conversation.send(Kind::Delta(removal(true))).await;
    assert_eq!(conversation.ack().await.generation, Some(at(1, 6).into()));
    assert_eq!(edge.answers("www.shop.example").as_deref(), Some("changed"));
    edge.stop().await;
}

async fn assert_refused(conversation: &mut Conversation, edge: &Edge, expected: &str, refused: Generation) {
    let ack = conversation.ack().await;
    assert_eq!(code(&ack), expected);
    assert_eq!(ack.generation, Some(at(1, 5).into()), "{expected}: still the applied one");
    assert_eq!(ack.rejected.unwrap().refused, Some(refused.into()));
    assert_eq!(
        edge.answers("www.shop.example").as_deref(),
        Some("www.shop.example"),
        "{expected} left a trace"
    );
}

#[tokio::test]
async fn what_the_disk_refused_is_written_when_it_recovers_without_a_control_plane() {
    let (folder, mut control, edge) = joined().await;
    let mut conversation = control.conversation().await;
    let (last_good, aside) = (folder.path().join("state/last-good"), folder.path().join("aside"));
    std::fs::rename(&last_good, &aside).unwrap();
    std::fs::write(&last_good, "no folder").unwrap();
    feed(&mut conversation, &[&shop("www.shop.example")]).await;
    drop(conversation);
    control.stop().await;

    std::fs::remove_file(&last_good).unwrap();
    std::fs::rename(&aside, &last_good).unwrap();
    bounds::until("it is written", || last_good.join("CURRENT").exists()).await;
    edge.kill().await;
    let again = Edge::start(options("127.0.0.1:1", folder.path(), None)).await;
    assert_eq!(again.answers("www.shop.example").as_deref(), Some("www.shop.example"));
    again.stop().await;
}

fn flip(resource: &mut wire::Resource) {
    let mut body = resource.body.to_vec();
    body[3] ^= 0x10;
    resource.body = body.into();
}

/// Every file below the last-good folder, with its bytes.
fn disk(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(folder.join("state/last-good"))
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    files
}

#[tokio::test]
async fn a_poisoned_tenant_is_nacked_and_the_others_flow_on_over_a_restart() {
    let (folder, mut control, edge) = joined().await;
    let address = control.address;
    let mut conversation = control.conversation().await;
    let (good, poisoned) = (shop("good.example"), shop("poisoned.example"));
    feed(&mut conversation, &[&good, &poisoned]).await;
    // A whole snapshot, in which one tenant's certificate and domain are garbage and a kind is unknown.
    let mut body = poisoned.minted.body.clone();
    body.sealed_key = vec![1; 100].into();
    let mut resources = good.resources(1);
    resources[2] = good.domain(2, |body| body.routes[0] = fixed("new"));
    resources.push(tenant(poisoned.tenant, 1));
    resources.push(credential(poisoned.lineage, 2, poisoned.tenant, &body));
    let mut garbage = poisoned.domain(2, |_| ());
    garbage.body = vec![0xff; 64].into();
    resources.push(garbage);
    resources.push(wire::Resource { kind: 99, id: "new".into(), version: 1, ..Default::default() });
    conversation.send_snapshot(at(1, 2), &resources).await;
    let ack = conversation.ack().await;
    let codes: Vec<_> = ack.nacks.iter().map(|nack| (nack.code.as_str(), nack.version)).collect();
    assert_eq!(codes, [("KeyDoesNotOpen", 2), ("DoesNotDecode", 2)]);
    assert_eq!(ack.generation, Some(at(1, 2).into()));
    for edge in [edge, {
        drop(conversation);
        control.stop().await;
        Edge::start(options(address, folder.path(), None)).await
    }] {
        assert_eq!(edge.served("poisoned.example"), Some(poisoned.minted.leaf.clone()));
        assert_eq!(edge.answers("poisoned.example").as_deref(), Some("poisoned.example"));
        assert_eq!(edge.answers("good.example").as_deref(), Some("new"));
        edge.kill().await;
    }
}

#[tokio::test]
async fn urgent_messages_are_done_and_acknowledged() {
    let (_folder, mut control, edge) = joined().await;
    let mut conversation = control.conversation().await;
    let shop = shop("www.shop.example");
    feed(&mut conversation, &[&shop]).await;

    let (host, token) = ("www.shop.example".to_owned(), "t".repeat(43));
    let key_authorization = format!("{token}.thumb");
    let set = wire::SetHttp01 {
        host: host.clone(),
        token: token.clone(),
        key_authorization: key_authorization.clone(),
    };
    let ack = conversation.send_urgent(1, wire::urgent::Action::SetHttp01(set)).await;
    assert_eq!(ack.error_code, "");
    let now = clock::unix_ms();
    assert_eq!(edge.live.challenges.http01(&host, &token, now).as_deref(), Some(key_authorization.as_str()));
    let set = wire::SetTlsAlpn01 { host: host.clone(), digest: vec![9; 32].into() };
    conversation.send_urgent(2, wire::urgent::Action::SetTlsAlpn01(set)).await;
    assert!(edge.live.challenges.tls_alpn01(&host, now).is_some());
    let clear = wire::ClearChallenge { host: host.clone(), token: token.clone() };
    conversation.send_urgent(3, wire::urgent::Action::ClearChallenge(clear)).await;
    assert!(edge.live.challenges.http01(&host, &token, now).is_none());
    assert!(edge.live.challenges.tls_alpn01(&host, now).is_some());

    let in_flight = edge.live.host(&DomainName::parse(&host).unwrap()).unwrap();
    let exchange = tokio::spawn(async move { in_flight.cut(now).await.mode });
    let suspend = wire::Suspend {
        tenant_id: shop.tenant.to_string(),
        domain_id: String::new(),
        suspension: Some(wire::Suspension {
            mode: wire::suspension::Mode::Gone as i32,
            ..Default::default()
        }),
        version: 10,
    };
    let ack = conversation.send_urgent(4, wire::urgent::Action::Suspend(suspend.clone())).await;
    assert_eq!(ack.error_code, "");
    assert_eq!(within(exchange).await.unwrap(), portico_edge::live::SuspensionMode::Gone);
    let stranger = wire::Suspend { tenant_id: TenantId::generate().to_string(), ..suspend };
    let ack = conversation.send_urgent(5, wire::urgent::Action::Suspend(stranger)).await;
    assert_eq!(ack.error_code, "UnknownSubject");
    edge.stop().await;
}

#[tokio::test]
async fn the_identity_renews_itself_and_the_stream_stays() {
    let folder = tempfile::tempdir().unwrap();
    let ca = TestCa::new();
    let token = ca.token();
    let mut control = TestControl::start(ca).await;
    // It began 60 s ago: two thirds of its life are over when a second has passed.
    *control.state.identity_life.lock().unwrap() = Duration::from_secs(31);
    let edge = Edge::start(options(control.address, folder.path(), Some(token))).await;
    let mut conversation = control.conversation().await;
    let file = folder.path().join("state/identity/identity.json");
    let before = std::fs::read(&file).unwrap();
    let shown = conversation.shown.clone();
    within(async {
        while control.state.renewals.load(Ordering::SeqCst) == 0 || std::fs::read(&file).unwrap() == before {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let shop = shop("www.shop.example");
    feed(&mut conversation, &[&shop]).await;
    assert_eq!(control.state.renewals.load(Ordering::SeqCst), 1);
    // The next stream shows the new one.
    drop(conversation);
    let next = control.conversation().await;
    assert_ne!(next.shown, shown);
    edge.stop().await;
}

#[tokio::test]
async fn a_refused_token_and_a_wrong_fingerprint_are_clear_errors() {
    let folder = tempfile::tempdir().unwrap();
    let control = TestControl::start(TestCa::new()).await;
    let token = control.state.ca.token();
    let text = "the join token expired at 2026-11-24T06:00:00Z: make a new one with `portico edge join`";
    *control.state.refuse_joins.lock().unwrap() = Some(tonic::Status::permission_denied(text));
    let error =
        within(Control::open(options(control.address, folder.path(), Some(token)))).await.unwrap_err();
    assert!(matches!(&error, ControlError::Join(JoinError::Refused { .. })), "{error:?}");
    assert!(error.to_string().contains(text), "{error}");

    *control.state.refuse_joins.lock().unwrap() = None;
    let other = TestCa::new().token();
    let error =
        within(Control::open(options(control.address, folder.path(), Some(other)))).await.unwrap_err();
    assert!(matches!(&error, ControlError::Join(JoinError::OtherCa { .. })), "{error:?}");
    assert!(error.to_string().contains("another control plane"), "{error}");
    assert_eq!(control.state.joins.load(Ordering::SeqCst), 0, "the token was never shown to a stranger");

    let error = within(Control::open(options(control.address, folder.path(), None))).await.unwrap_err();
    assert!(matches!(&error, ControlError::NotJoined), "{error:?}");
}

#[tokio::test]
async fn an_identity_that_others_can_read_stops_the_start() {
    use std::os::unix::fs::PermissionsExt as _;
    let (folder, mut control, edge) = joined().await;
    control.conversation().await;
    edge.stop().await;
    let identity = folder.path().join("state/identity");
    let file = identity.join("identity.json");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&identity), mode(&file)), (0o700, 0o600));
    for (path, wide) in [(&file, 0o640), (&identity, 0o755)] {
        let narrow = mode(path);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(wide)).unwrap();
        let error = within(Control::open(options(control.address, folder.path(), None))).await.unwrap_err();
        assert!(error.to_string().contains("chmod"), "{error}");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(narrow)).unwrap();
    }
    std::fs::write(&file, b"{}").unwrap();
    let error = within(Control::open(options(control.address, folder.path(), None))).await.unwrap_err();
    assert!(error.to_string().contains("join again"), "{error}");
}

#[tokio::test]
async fn a_damaged_last_good_file_falls_back_to_the_one_before() {
    let (folder, mut control, edge) = joined().await;
    let address = control.address;
    let mut conversation = control.conversation().await;
    let (first, second) = (shop("first.example"), shop("second.example"));
    feed(&mut conversation, &[&first]).await;
    let mut both = first.resources(1);
    both.extend(second.resources(2));
    conversation.send_snapshot(at(1, 2), &both).await;
    assert_eq!(conversation.ack().await.generation, Some(at(1, 2).into()));
    edge.kill().await;
    drop(conversation);
    control.stop().await;
    let newest = folder.path().join("state/last-good/1-2.snap");
    let mut bytes = std::fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&newest, bytes).unwrap();

    let again = Edge::start(options(address, folder.path(), None)).await;
    assert_eq!(again.served("first.example"), Some(first.minted.leaf));
    assert_eq!(again.served("second.example"), None);
    again.kill().await;
}

fn counts(requests: u64, response_bytes: u64) -> portico_edge::live::Counts {
    portico_edge::live::Counts { requests, response_bytes, ..Default::default() }
}

impl Edge {
    fn count(&self, name: &str, counts: portico_edge::live::Counts) {
        let host = self.live.host(&DomainName::parse(name).unwrap()).unwrap();
        self.live.used.count(&host, counts);
    }
}

fn requests(report: &wire::UsageReport) -> u64 {
    report.rows.iter().map(|row| row.requests).sum()
}

async fn acknowledge(conversation: &Conversation, report: &wire::UsageReport) {
    let ack = wire::UsageAck { series: report.series.clone(), number: report.number };
    conversation.send(Kind::UsageAck(ack)).await;
}

/// What is used while nobody acknowledges it, over two restarts, is told, and told once.
#[tokio::test]
async fn usage_is_reported_over_restarts_and_an_unanswered_report_stays_the_same() {
    let (folder, mut control, edge) = joined().await;
    let address = control.address;
    let shop = shop("www.shop.example");
    let mut conversation = control.conversation().await;
    feed(&mut conversation, &[&shop]).await;
    edge.count("www.shop.example", counts(3, 500));
    edge.count("www.shop.example", counts(2, 0));
    // Its last report, to which it has no answer.
    let begun = clock::now();
    edge.stop().await;
    assert!(begun.elapsed() >= portico_edge::control::limits::USAGE_FINISH_DEADLINE, "it waited for one");
    let first = conversation.usage().await;
    let [row] = first.rows.as_slice() else { panic!("{first:?}") };
    assert_eq!((row.requests, row.response_bytes, row.name.as_str()), (5, 500, "www.shop.example"));
    assert_eq!((&row.tenant_id, &row.domain_id), (&shop.tenant.to_string(), &shop.domain.to_string()));
    assert_eq!(row.hour, clock::unix_time().as_secs() / 3600);
    assert_eq!(first.number, 1);

    // Without a control plane: what it counts joins what is left.
    let (_, ca) = control.stop().await;
    let again = Edge::start(options(address, folder.path(), None)).await;
    again.count("www.shop.example", counts(7, 70));
    again.stop().await;

    let mut control = TestControl::start_at(ca, address).await;
    let edge = Edge::start(options(address, folder.path(), None)).await;
    let mut conversation = control.conversation().await;
    let (one, two) = (conversation.usage().await, conversation.usage().await);
    let (same, other) = if one.series == first.series { (one, two) } else { (two, one) };
    assert_eq!(same, first, "the same number has the same content");
    assert_eq!((requests(&other), other.number), (7, 1));
    acknowledge(&conversation, &same).await;
    acknowledge(&conversation, &other).await;
    edge.count("www.shop.example", counts(1, 0));
    let finishing = tokio::spawn(edge.stop());
    let last = conversation.usage().await;
    assert_eq!(requests(&last), 1, "nothing is told twice: {last:?}");
    acknowledge(&conversation, &last).await;
    finishing.await.unwrap();
    assert_eq!(std::fs::read_dir(folder.path().join("state/usage")).unwrap().count(), 0);
}
