//! A control plane on loopback, and rows as the other parts would write them.

use std::time::Duration;

use portico_api::distribution::ResourceKind;
use portico_api::v1::client::Client;
use portico_cert_store::{
    CellId, CredentialId, DomainId, Generation, GroupId, LineageId, PrivateKey, SealContext, TenantId,
};
use portico_control_plane::Running;
use portico_control_plane::clock::Clock;
use portico_control_plane::config::Config;
use portico_control_plane::distribution::Distribution;
use portico_control_plane::sealer::KeyEncryptionKey;
use portico_control_plane::store::{Store, WriteTx, cell, change, sql};
use tempfile::TempDir;

use crate::edge::{Identity, TestEdge};

pub(crate) struct Plane {
    pub(crate) running: Running,
    pub(crate) clock: Clock,
    pub(crate) folder: TempDir,
    extra: String,
}

/// A credential as issuance would have stored it.
pub(crate) struct Issued {
    pub(crate) lineage: LineageId,
    pub(crate) credential: CredentialId,
    pub(crate) key: PrivateKey,
    pub(crate) sealed: Vec<u8>,
    pub(crate) epoch: u32,
}

pub(crate) fn cell_id(name: &str) -> CellId {
    CellId::parse(name).unwrap()
}

impl Plane {
    pub(crate) async fn start() -> Self {
        Self::start_with("").await
    }

    /// `extra`: further lines of the configuration.
    pub(crate) async fn start_with(extra: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::default();
        let running = open(&folder, extra, "127.0.0.1:0", &clock).await;
        Self { running, clock, folder, extra: extra.to_owned() }
    }

    /// Another one with the same keys and operator, in a folder of its own.
    pub(crate) async fn beside(&self, extra: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for file in ["kek", "operator"] {
            std::fs::copy(self.folder.path().join(file), folder.path().join(file)).unwrap();
        }
        let running = open(&folder, extra, "127.0.0.1:0", &self.clock).await;
        Self { running, clock: self.clock.clone(), folder, extra: extra.to_owned() }
    }

    /// Ends the process's parts, lets `between` work on the folder, and starts again on the same address.
    pub(crate) async fn restart(self, between: impl FnOnce(&TempDir)) -> Self {
        let address = self.distribution().address.to_string();
        self.running.shutdown().await.unwrap();
        between(&self.folder);
        let running = open(&self.folder, &self.extra, &address, &self.clock).await;
        Self { running, ..self }
    }

    pub(crate) fn distribution(&self) -> &Distribution {
        &self.running.distribution
    }

    pub(crate) fn store(&self) -> &Store {
        &self.running.parts.store
    }

    pub(crate) async fn token(&self, cell: &str) -> String {
        self.distribution().create_join_token(&cell_id(cell), 600).await.unwrap().token
    }

    pub(crate) async fn join(&self, cell: &str) -> Identity {
        Identity::join(self.distribution().address, &self.token(cell).await).await.unwrap()
    }

    /// A joined edge whose stream stands.
    pub(crate) async fn edge(&self, cell: &str) -> TestEdge {
        let identity = self.join(cell).await;
        let edge = TestEdge::connect(self.distribution().address, identity, Generation::default()).await;
        edge.wait("the first snapshot", |state| state.snapshots == 1).await;
        edge
    }

    /// The operator's own client of the API.
    pub(crate) fn api(&self) -> Client {
        let token = std::fs::read_to_string(self.folder.path().join("operator")).unwrap();
        Client::new(&format!("http://{}", self.running.api), Some(&token), None).unwrap()
    }

    /// A standing proof, so that the domain counts as proved.
    pub(crate) async fn prove(&self, domain: DomainId) {
        let mut tx = self.begin().await;
        sql::query(
            "INSERT INTO proofs (domain_id, method, proved_at, checked_at, evidence, actor) \
             VALUES (?, 'attestation', 0, 0, 'test', 'system')",
        )
        .bind(domain.to_string())
        .execute(&mut tx)
        .await
        .unwrap();
        tx.commit().await.unwrap();
    }

    pub(crate) async fn begin(&self) -> WriteTx {
        self.store().begin().await.unwrap()
    }

    pub(crate) async fn tenant(&self, cells: &[&str]) -> TenantId {
        let id = TenantId::generate();
        let spec =
            serde_json::json!({"name": id.to_string().to_lowercase().replace('_', "-"), "cells": cells});
        let mut tx = self.begin().await;
        sql::query("INSERT INTO tenants (id, name, spec, revision, created_at) VALUES (?, ?, ?, 1, 0)")
            .bind(id.to_string())
            .bind(id.to_string())
            .bind(spec.to_string())
            .execute(&mut tx)
            .await
            .unwrap();
        change::record(&mut tx, ResourceKind::Tenant, &id.to_string(), Some(&id.to_string())).await.unwrap();
        tx.commit().await.unwrap();
        id
    }

    /// A served domain; answers its id and the sequence of its change.
    pub(crate) async fn domain(&self, tenant: TenantId, name: &str) -> (DomainId, u64) {
        let mut tx = self.begin().await;
        let added = add_domain(&mut tx, tenant, name).await;
        tx.commit().await.unwrap();
        added
    }

    pub(crate) async fn domains(&self, tenant: TenantId, names: &[String]) -> Vec<DomainId> {
        let mut tx = self.begin().await;
        let mut ids = Vec::new();
        for name in names {
            ids.push(add_domain(&mut tx, tenant, name).await.0);
        }
        tx.commit().await.unwrap();
        ids
    }

    /// Changes something of a domain; answers the sequence.
    pub(crate) async fn touch(&self, domain: DomainId, hsts: u32) -> u64 {
        let mut tx = self.begin().await;
        let spec: String = sql::query_scalar("SELECT spec FROM domains WHERE id = ?")
            .bind(domain.to_string())
            .fetch_one(&mut tx)
            .await
            .unwrap();
        let mut spec: serde_json::Value = serde_json::from_str(&spec).unwrap();
        spec["hsts_max_age_seconds"] = hsts.into();
        sql::query("UPDATE domains SET spec = ? WHERE id = ?")
            .bind(spec.to_string())
            .bind(domain.to_string())
            .execute(&mut tx)
            .await
            .unwrap();
        let sequence =
            change::record(&mut tx, ResourceKind::Domain, &domain.to_string(), None).await.unwrap();
        tx.commit().await.unwrap();
        sequence
    }

    pub(crate) async fn delete(&self, domains: &[DomainId]) -> u64 {
        let mut tx = self.begin().await;
        let mut sequence = 0;
        for domain in domains {
            sql::query("UPDATE domains SET deleted_at = 1, served = 0 WHERE id = ?")
                .bind(domain.to_string())
                .execute(&mut tx)
                .await
                .unwrap();
            let id = domain.to_string();
            sequence = change::record_removal(&mut tx, ResourceKind::Domain, &id, None).await.unwrap();
        }
        tx.commit().await.unwrap();
        sequence
    }

    /// A live credential for one name in one cell, sealed under that cell's newest key.
    pub(crate) async fn issue(&self, tenant: TenantId, domain: DomainId, name: &str, cell: &str) -> Issued {
        let parts = &self.running.parts;
        let pair = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let pem = params.self_signed(&pair).unwrap().pem();
        let key = PrivateKey::from_pkcs8_der(pair.serialized_der()).unwrap();
        let (lineage, credential, group) =
            (LineageId::generate(), CredentialId::generate(), GroupId::generate());
        let cell = cell_id(cell);
        let mut tx = self.begin().await;
        let cell_key = cell::current_key(&mut tx, &parts.sealer, &cell, 0).await.unwrap();
        let key_tenant = tenant.to_string();
        let context = SealContext {
            cell: &cell,
            epoch: cell_key.epoch(),
            key_tenant: &key_tenant,
            credential,
            spki_sha256: key.spki_sha256(),
        };
        let sealed = cell_key.seal(&key, &context).unwrap().as_bytes().to_vec();
        insert_credential(&mut tx, tenant, domain, name, &cell, &pem, &sealed, &context, lineage, group)
            .await;
        let id = lineage.to_string();
        change::record(&mut tx, ResourceKind::Credential, &id, Some(&key_tenant)).await.unwrap();
        change::record(&mut tx, ResourceKind::Domain, &domain.to_string(), Some(&key_tenant)).await.unwrap();
        tx.commit().await.unwrap();
        Issued { lineage, credential, key, sealed, epoch: cell_key.epoch() }
    }

    pub(crate) async fn renew_at(&self, credential: CredentialId) -> i64 {
        let mut tx = self.store().read().await.unwrap();
        sql::query_scalar("SELECT renew_at FROM credentials WHERE id = ?")
            .bind(credential.to_string())
            .fetch_one(&mut tx)
            .await
            .unwrap()
    }

    pub(crate) async fn events(&self, kind: &str) -> Vec<String> {
        let mut tx = self.store().read().await.unwrap();
        sql::query_scalar("SELECT text FROM events WHERE kind = ? ORDER BY sequence")
            .bind(kind)
            .fetch_all(&mut tx)
            .await
            .unwrap()
    }

    pub(crate) async fn shutdown(self) {
        self.running.shutdown().await.unwrap();
    }
}

/// Waits for something of this process to come true.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "waited 20 s for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn add_domain(tx: &mut WriteTx, tenant: TenantId, name: &str) -> (DomainId, u64) {
    let id = DomainId::generate();
    let spec = serde_json::json!({
        "hostname": name,
        "routes": [{"action": {"type": "proxy", "origin": "http://192.0.2.1:80"}}],
    });
    sql::query(
        "INSERT INTO domains (id, tenant_id, name, spec, served, proof_label, txt_token, http_token, \
         challenge_label, revision, created_at) VALUES (?1, ?2, ?3, ?4, 1, ?1, ?1, ?1, ?1, 1, 0)",
    )
    .bind(id.to_string())
    .bind(tenant.to_string())
    .bind(name)
    .bind(spec.to_string())
    .execute(tx)
    .await
    .unwrap();
    let tenant = tenant.to_string();
    let sequence = change::record(tx, ResourceKind::Domain, &id.to_string(), Some(&tenant)).await.unwrap();
    (id, sequence)
}

#[expect(clippy::too_many_arguments, reason = "one row in each of five tables")]
async fn insert_credential(
    tx: &mut WriteTx,
    tenant: TenantId,
    domain: DomainId,
    name: &str,
    cell: &CellId,
    pem: &str,
    sealed: &[u8],
    context: &SealContext<'_>,
    lineage: LineageId,
    group: GroupId,
) {
    let far = 4_000_000_000_000_i64;
    let run = async |tx: &mut WriteTx, query: sql::Query| {
        query.execute(tx).await.unwrap();
    };
    let query = sql::query(
        "INSERT INTO groups (id, tenant_id, cells, policy, alone, created_at) VALUES (?, ?, '[]', '{}', 0, 0)",
    );
    run(tx, query.bind(group.to_string()).bind(tenant.to_string())).await;
    let query = sql::query(
        "INSERT INTO lineages (id, group_id, cell, live_credential, created_at) VALUES (?, ?, ?, ?, 0)",
    );
    let query = query.bind(lineage.to_string()).bind(group.to_string());
    run(tx, query.bind(cell.as_str()).bind(context.credential.to_string())).await;
    let query = sql::query(
        "INSERT INTO credentials (id, lineage_id, issuer, state, names, chain_pem, sealed_key, cell_key_epoch, \
         key_tenant, spki_sha256, fingerprint_sha256, not_before, not_after, renew_at, created_at) \
         VALUES (?, ?, 'test', 'live', '[]', ?, ?, ?, ?, ?, X'00', 0, ?, ?, 0)",
    );
    let query = query.bind(context.credential.to_string()).bind(lineage.to_string()).bind(pem).bind(sealed);
    let query = query.bind(context.epoch).bind(context.key_tenant).bind(context.spki_sha256.to_vec());
    run(tx, query.bind(far).bind(far)).await;
    let query = sql::query("INSERT INTO lineage_names (lineage_id, name, domain_id) VALUES (?, ?, ?)");
    run(tx, query.bind(lineage.to_string()).bind(name).bind(domain.to_string())).await;
}

async fn open(folder: &TempDir, extra: &str, distribution: &str, clock: &Clock) -> Running {
    let data = folder.path().join("data");
    let (kek, operator) = (folder.path().join("kek"), folder.path().join("operator"));
    if !kek.exists() {
        KeyEncryptionKey::create(&kek, &data).unwrap();
    }
    let text = format!(
        "data = {data:?}\napi = \"127.0.0.1:0\"\ndistribution = \"{distribution}\"\n\
         key_encryption_key_file = {kek:?}\noperator_token_file = {operator:?}\n{extra}\n"
    );
    let config = Config::parse(&text, std::path::Path::new("test.toml")).unwrap();
    portico_control_plane::start_at(config, clock.clone()).await.unwrap()
}
