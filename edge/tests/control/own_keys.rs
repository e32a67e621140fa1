//! Keys that an edge makes and keeps: for an order, served, after a restart with nobody to ask, renewed, and gone.

use std::path::Path;

use portico_api::distribution as wire;
use portico_cert_store::{
    CertificateChain, CredentialId, GroupId, KeyType, NamePattern, OrderId, PrivateKey,
};
use rcgen::{CertificateParams, Issuer, KeyPair};
use wire::ResourceKind;

use super::bounds::until;
use super::fleet::server::{Conversation, CsrKey};
use super::fleet::{Shop, cell, credential, tombstone};
use super::{Edge, at, clock, joined, options, shop};

/// A credential for a key that the edge has made, as the control plane would send it.
async fn ordered(conversation: &mut Conversation, sequence: u64, shop: &Shop) -> wire::Credential {
    let request = wire::KeyRequest {
        order_id: OrderId::generate().to_string(),
        names: vec![shop.name.clone()],
        key_type: "ecdsa-p256".to_owned(),
    };
    let ack = conversation.send_urgent(sequence, wire::urgent::Action::KeyRequest(request)).await;
    assert_eq!(ack.error_code, "", "{}", ack.error_text);
    issued(&ack.certificate_request, shop)
}

fn issued(csr: &[u8], shop: &Shop) -> wire::Credential {
    let issuer = Issuer::new(CertificateParams::default(), KeyPair::generate().unwrap());
    let mut params = CertificateParams::new(vec![shop.name.clone()]).unwrap();
    let date =
        |seconds: u64| time::OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).unwrap()).unwrap();
    let now = clock::unix_time().as_secs();
    (params.not_before, params.not_after) = (date(now - 3600), date(now + 86_400));
    let leaf = params.signed_by(&CsrKey::parse(csr), &issuer).unwrap().der().to_vec();
    let chain = vec![rustls_pki_types::CertificateDer::from(leaf.clone())];
    let chain = CertificateChain::parse_der(chain).unwrap();
    wire::Credential {
        credential_id: CredentialId::generate().to_string(),
        group_id: GroupId::generate().to_string(),
        chain_der: vec![leaf.into()],
        spki_sha256: chain.facts().spki_sha256.to_vec().into(),
        key_tenant: shop.tenant.to_string(),
        edge_cell_id: cell().to_string(),
        ..wire::Credential::default()
    }
}

fn key_files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder.join("state/keys")).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

fn key_file(body: &wire::Credential) -> String {
    body.spki_sha256.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + ".key"
}

#[tokio::test]
async fn an_edges_own_key_serves_is_renewed_and_destroyed_and_outlives_a_restart() {
    let (folder, mut control, edge) = joined().await;
    let address = control.address;
    let mut conversation = control.conversation().await;
    conversation.send_key().await;
    let mut shop = shop("www.shop.example");
    shop.minted.body = ordered(&mut conversation, 1, &shop).await;
    let first = shop.minted.body.clone();
    let waiting = key_files(folder.path());
    assert!(waiting.len() == 2 && waiting.contains(&key_file(&first)), "{waiting:?}");
    conversation.send_snapshot(at(1, 1), &shop.resources(1)).await;
    assert_eq!(conversation.ack().await.nacks, []);
    assert_eq!(edge.served(&shop.name).as_deref(), Some(first.chain_der[0].as_ref()));
    assert_eq!(key_files(folder.path()), [key_file(&first)], "its order is over");

    let second = ordered(&mut conversation, 2, &shop).await;
    assert_ne!(second.spki_sha256, first.spki_sha256);
    let renewed = credential(shop.lineage, 2, shop.tenant, &second);
    conversation.send_delta(at(1, 1), at(1, 2), vec![renewed]).await;
    assert_eq!(conversation.ack().await.nacks, []);
    assert_eq!(edge.served(&shop.name).as_deref(), Some(second.chain_der[0].as_ref()));
    assert_eq!(key_files(folder.path()), [key_file(&second)], "the old key is destroyed");

    edge.kill().await;
    drop(conversation);
    let (_, ca) = control.stop().await;
    let again = Edge::start(options(address, folder.path(), None)).await;
    assert_eq!(again.served(&shop.name).as_deref(), Some(second.chain_der[0].as_ref()));
    let mut control = super::TestControl::start_at(ca, address).await;
    let mut conversation = control.conversation().await;
    assert_eq!(conversation.hello.cell_key_epochs, [1], "what it seals by itself is nobody's affair");
    let gone = [
        tombstone(ResourceKind::Domain, &shop.domain.to_string()),
        tombstone(ResourceKind::Credential, &shop.lineage.to_string()),
    ];
    conversation
        .send(super::Kind::Delta(wire::Delta {
            base: Some(at(1, 2).into()),
            generation: Some(at(1, 3).into()),
            tombstones: gone.to_vec(),
            ..wire::Delta::default()
        }))
        .await;
    assert_eq!(conversation.ack().await.nacks, []);
    until("the key of what is retired is destroyed", || key_files(folder.path()).is_empty()).await;
    again.stop().await;
}

#[tokio::test]
async fn a_certificate_without_its_key_is_refused_and_says_what_to_do() {
    let (folder, mut control, edge) = joined().await;
    let mut conversation = control.conversation().await;
    conversation.send_key().await;
    let mut shop = shop("www.shop.example");
    shop.minted.body = ordered(&mut conversation, 1, &shop).await;
    let good = shop.minted.body.clone();
    conversation.send_snapshot(at(1, 1), &shop.resources(1)).await;
    assert_eq!(conversation.ack().await.nacks, []);

    let elsewhere = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
    let name = NamePattern::parse(&shop.name).unwrap();
    let stranger = issued(&elsewhere.csr(&[name]).unwrap(), &shop);
    let both = wire::Credential { sealed_key: vec![1].into(), ..good.clone() };
    let sealed = wire::Credential { cell_id: cell().to_string(), ..good.clone() };
    let other_cell = wire::Credential { edge_cell_id: "cell-b".to_owned(), ..good.clone() };
    // As an edge that does not know the field reads it.
    let unknown_field = wire::Credential { edge_cell_id: String::new(), ..good.clone() };
    for (version, (body, code)) in (2..).zip([
        (stranger, "KeyNotHere"),
        (both, "BadCredential"),
        (sealed, "BadCredential"),
        (other_cell, "OtherCell"),
        (unknown_field, "OtherCell"),
    ]) {
        let resource = credential(shop.lineage, version, shop.tenant, &body);
        conversation.send_delta(at(1, version - 1), at(1, version), vec![resource]).await;
        let nacks = conversation.ack().await.nacks;
        assert_eq!(nacks[0].code, code, "{nacks:?}");
        assert!(code != "KeyNotHere" || nacks[0].text.contains("portico cell rekey cell-a"), "{nacks:?}");
        assert_eq!(
            edge.served(&shop.name).as_deref(),
            Some(good.chain_der[0].as_ref()),
            "what it had serves on"
        );
    }
    assert_eq!(key_files(folder.path()), [key_file(&good)]);
    edge.stop().await;
}
