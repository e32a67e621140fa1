//! Wrong requests: each gets the problem that RFC 8555 names, and changes nothing.

use std::collections::HashMap;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::stage::{Stage, csr, eventually};
use crate::web::ApiClient;

/// A client that signs by hand, so that it can sign wrongly.
pub(crate) struct RawClient {
    client: ApiClient,
    resources: HashMap<String, String>,
    key: EcdsaKeyPair,
    kid: String,
    nonce: String,
}

impl RawClient {
    pub(crate) async fn register(stage: &Stage) -> Self {
        let client = stage.client.clone();
        let directory = get(&client, &stage.ca.addresses.directory).await;
        let directory: HashMap<String, Value> = serde_json::from_slice(directory.body()).unwrap();
        let resources: HashMap<String, String> =
            directory.into_iter().filter_map(|(k, v)| Some((k, v.as_str()?.to_owned()))).collect();
        let nonce =
            get(&client, &resources["newNonce"]).await.headers()["replay-nonce"].to_str().unwrap().to_owned();
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let mut raw = Self { client, resources, key, kid: String::new(), nonce };
        let url = raw.resource("newAccount");
        let mut header = raw.header(&url);
        header.as_object_mut().unwrap().remove("kid");
        header["jwk"] = raw.jwk();
        let response = raw.send(&url, raw.sign(&header, r#"{"termsOfServiceAgreed":true}"#)).await;
        assert_eq!(response.status(), 201, "{:?}", response.body());
        raw.kid = response.headers()["location"].to_str().unwrap().to_owned();
        raw
    }

    pub(crate) fn resource(&self, name: &str) -> String {
        self.resources[name].clone()
    }

    /// A correct request.
    pub(crate) async fn post(&mut self, url: &str, payload: &str) -> Response<Bytes> {
        let body = self.sign(&self.header(url), payload);
        self.send(url, body).await
    }

    pub(crate) fn header(&self, url: &str) -> Value {
        json!({ "alg": "ES256", "kid": self.kid, "nonce": self.nonce, "url": url })
    }

    pub(crate) fn sign(&self, header: &Value, payload: &str) -> Value {
        let protected = encode(header.to_string().as_bytes());
        let payload = encode(payload.as_bytes());
        let input = format!("{protected}.{payload}");
        let signature = self.key.sign(&SystemRandom::new(), input.as_bytes()).unwrap();
        json!({ "protected": protected, "payload": payload, "signature": encode(signature.as_ref()) })
    }

    pub(crate) async fn send(&mut self, url: &str, body: Value) -> Response<Bytes> {
        self.send_bytes(url, "application/jose+json", body.to_string()).await
    }

    pub(crate) async fn send_bytes(
        &mut self,
        url: &str,
        content_type: &str,
        body: String,
    ) -> Response<Bytes> {
        let request = Request::post(url).header("content-type", content_type);
        let request = request.body(Full::new(Bytes::from(body))).unwrap();
        let response = self.client.send(request).await.unwrap();
        self.nonce = response.headers()["replay-nonce"].to_str().expect("on all answers").to_owned();
        response
    }

    pub(crate) fn status_of(&self, response: &Response<Bytes>) -> String {
        let document: Value = serde_json::from_slice(response.body()).unwrap();
        document["status"].as_str().unwrap_or_else(|| panic!("{document}")).to_owned()
    }

    /// An order for one name, validated by HTTP-01; returns its URL.
    pub(crate) async fn ready_order(&mut self, stage: &Stage, name: &str) -> String {
        let body = json!({ "identifiers": [{ "type": "dns", "value": name }] }).to_string();
        let response = self.post(&self.resource("newOrder"), &body).await;
        let url = response.headers()["location"].to_str().unwrap().to_owned();
        let order: Value = serde_json::from_slice(response.body()).unwrap();
        let authorization = order["authorizations"][0].as_str().unwrap().to_owned();
        let response = self.post(&authorization, "").await;
        let document: Value = serde_json::from_slice(response.body()).unwrap();
        let challenges = document["challenges"].as_array().unwrap();
        let challenge = challenges.iter().find(|c| c["type"] == "http-01").unwrap();
        let token = challenge["token"].as_str().unwrap();
        stage.answer_http(token, &format!("{token}.{}", self.thumbprint()));
        self.post(challenge["url"].as_str().unwrap(), "{}").await;
        let client = self;
        eventually("the order is ready", async || {
            let response = client.post(&url, "").await;
            (client.status_of(&response) == "ready").then_some(())
        })
        .await;
        url
    }

    pub(crate) async fn finalize(&mut self, order: &str, names: &[&str]) -> Response<Bytes> {
        let key = rcgen::KeyPair::generate().unwrap();
        let body = json!({ "csr": encode(&csr(names, &key)) }).to_string();
        self.post(&order.replace("/order/", "/finalize/"), &body).await
    }

    fn thumbprint(&self) -> String {
        let jwk = self.jwk();
        let text = format!(r#"{{"crv":"P-256","kty":"EC","x":{},"y":{}}}"#, jwk["x"], jwk["y"]);
        encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes()).as_ref())
    }

    fn jwk(&self) -> Value {
        let point = self.key.public_key().as_ref();
        let (x, y) = point[1..].split_at(32);
        json!({ "kty": "EC", "crv": "P-256", "x": encode(x), "y": encode(y) })
    }
}

pub(crate) async fn get(client: &ApiClient, url: &str) -> Response<Bytes> {
    client.send(Request::get(url).body(Full::default()).unwrap()).await.unwrap()
}

fn encode(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

pub(crate) fn expect(response: &Response<Bytes>, status: u16, kind: &str) {
    let document: Value = serde_json::from_slice(response.body()).unwrap_or_default();
    assert_eq!(document["type"], format!("urn:ietf:params:acme:error:{kind}"), "{document}");
    assert_eq!(response.status(), status, "{document}");
    assert_eq!(document["status"], status);
    assert_eq!(response.headers()["content-type"], "application/problem+json");
}

const ORDER: &str = r#"{"identifiers":[{"type":"dns","value":"shop.test"}]}"#;

#[tokio::test]
async fn a_wrong_nonce_url_algorithm_key_or_signature_gets_its_problem() {
    let stage = Stage::start(|_| {}).await;
    let mut raw = RawClient::register(&stage).await;
    let url = raw.resource("newOrder");

    let mut header = raw.header(&url);
    header["nonce"] = json!("bm90IGEgbm9uY2U");
    expect(&raw.send(&url, raw.sign(&header, ORDER)).await, 400, "badNonce");
    let header = raw.header(&url);
    let once = raw.sign(&header, ORDER);
    assert_eq!(raw.send(&url, once.clone()).await.status(), 201);
    expect(&raw.send(&url, once).await, 400, "badNonce");
    let mut header = raw.header(&url);
    header.as_object_mut().unwrap().remove("nonce");
    expect(&raw.send(&url, raw.sign(&header, ORDER)).await, 400, "badNonce");

    let header = raw.header(&raw.resource("newAccount"));
    expect(&raw.send(&url, raw.sign(&header, ORDER)).await, 403, "unauthorized");
    let mut header = raw.header(&url);
    header["alg"] = json!("HS256");
    let response = raw.send(&url, raw.sign(&header, ORDER)).await;
    expect(&response, 400, "badSignatureAlgorithm");
    let document: Value = serde_json::from_slice(response.body()).unwrap();
    assert_eq!(document["algorithms"], json!(["ES256", "RS256"]));
    let mut header = raw.header(&url);
    header["alg"] = json!("RS256");
    expect(&raw.send(&url, raw.sign(&header, ORDER)).await, 400, "malformed");
    let mut header = raw.header(&url);
    header["jwk"] = raw.jwk();
    expect(&raw.send(&url, raw.sign(&header, ORDER)).await, 400, "malformed");
    header.as_object_mut().unwrap().remove("kid");
    header["nonce"] = json!(raw.nonce);
    expect(&raw.send(&url, raw.sign(&header, ORDER)).await, 400, "malformed");
    header["jwk"]["x"] = json!("AAAA");
    expect(&raw.send(&url, raw.sign(&header, ORDER)).await, 400, "badPublicKey");
    let mut header = raw.header(&url);
    header["kid"] = json!(format!("{}x", raw.kid));
    expect(&raw.send(&url, raw.sign(&header, ORDER)).await, 400, "accountDoesNotExist");
    let mut body = raw.sign(&raw.header(&url), ORDER);
    body["payload"] = json!(encode(br#"{"identifiers":[]}"#));
    expect(&raw.send(&url, body).await, 400, "malformed");
    assert_eq!(stage.stats().await["orders"]["created"], 1);
}

#[tokio::test]
async fn broken_bodies_get_malformed() {
    let stage = Stage::start(|_| {}).await;
    let mut raw = RawClient::register(&stage).await;
    let url = raw.resource("newOrder");

    let mut body = raw.sign(&raw.header(&url), ORDER);
    let protected = body["protected"].as_str().unwrap().to_owned();
    let truncated = &protected[..protected.len() - protected.len() % 4 - 3];
    body["protected"] = json!(truncated);
    expect(&raw.send(&url, body).await, 400, "malformed");
    let mut body = raw.sign(&raw.header(&url), ORDER);
    body["header"] = json!({ "alg": "none" });
    expect(&raw.send(&url, body).await, 400, "malformed");

    let body = raw.sign(&raw.header(&url), &format!("{ORDER}{}", " ".repeat(64 * 1024)));
    expect(&raw.send(&url, body).await, 413, "malformed");
    let body = raw.sign(&raw.header(&url), ORDER).to_string();
    expect(&raw.send_bytes(&url, "application/json", body).await, 415, "malformed");
    expect(&raw.send_bytes(&url, "application/jose+json", "{".to_owned()).await, 400, "malformed");
    expect(&raw.send_bytes(&url, "application/jose+json", String::new()).await, 400, "malformed");

    for payload in ["", "[]", "{}", r#"{"identifiers":[]}"#, r#"{"identifiers":[{"type":"dns"}]}"#] {
        expect(&raw.post(&url, payload).await, 400, "malformed");
    }
    let get = Request::builder().method(Method::GET).uri(&url).body(Full::default()).unwrap();
    expect(&raw.client.send(get).await.unwrap(), 405, "malformed");
    let elsewhere = url.replace("localhost", "127.0.0.2");
    expect(&raw.post(&elsewhere, ORDER).await, 421, "malformed");
    assert_eq!(stage.stats().await["orders"]["created"], 0);
}

#[tokio::test]
async fn names_that_no_ca_may_issue_for_are_rejected() {
    let stage = Stage::start(|args| args.max_names = 3).await;
    let mut raw = RawClient::register(&stage).await;
    let url = raw.resource("newOrder");
    let order = |kind: &str, names: &[&str]| {
        let list: Vec<Value> = names.iter().map(|n| json!({ "type": kind, "value": n })).collect();
        json!({ "identifiers": list }).to_string()
    };
    expect(&raw.post(&url, &order("ip", &["127.0.0.1"])).await, 400, "unsupportedIdentifier");
    expect(&raw.post(&url, &order("dns", &["127.0.0.1"])).await, 400, "malformed");
    expect(&raw.post(&url, &order("dns", &["a.test", "b.test", "c.test", "d.test"])).await, 400, "malformed");
    let response = raw.post(&url, &order("dns", &["a.test", "co.uk"])).await;
    expect(&response, 400, "rejectedIdentifier");
    let document: Value = serde_json::from_slice(response.body()).unwrap();
    assert_eq!(document["subproblems"][0]["identifier"]["value"], "co.uk");
}

#[tokio::test]
async fn a_resource_of_another_account_is_refused() {
    let stage = Stage::start(|_| {}).await;
    let mut owner = RawClient::register(&stage).await;
    let order = owner.ready_order(&stage, "shop.test").await;
    let response = owner.finalize(&order, &["shop.test"]).await;
    let document: Value = serde_json::from_slice(response.body()).unwrap();
    let certificate = document["certificate"].as_str().unwrap().to_owned();
    let authorization = document["authorizations"][0].as_str().unwrap().to_owned();
    let mut stranger = RawClient::register(&stage).await;
    for url in [&order, &certificate, &authorization, &owner.kid] {
        expect(&stranger.post(url, "").await, 403, "unauthorized");
    }
    expect(&stranger.finalize(&order, &["shop.test"]).await, 403, "unauthorized");
    expect(&owner.post(&format!("{order}x"), "").await, 404, "malformed");
    expect(&owner.post(&order, "{}").await, 400, "malformed");
    assert!(owner.post(&certificate, "").await.body().starts_with(b"-----BEGIN CERTIFICATE-----"));
}

#[tokio::test]
async fn a_csr_that_is_not_the_orders_is_refused() {
    let stage = Stage::start(|_| {}).await;
    let mut raw = RawClient::register(&stage).await;
    let order = raw.ready_order(&stage, "shop.test").await;
    expect(&raw.finalize(&order, &["shop.test", "www.shop.test"]).await, 400, "badCSR");
    expect(&raw.finalize(&order, &["other.test"]).await, 400, "badCSR");
    let finalize = order.replace("/order/", "/finalize/");
    expect(&raw.post(&finalize, r#"{"csr":"AAAA"}"#).await, 400, "badCSR");
    expect(&raw.post(&finalize, r#"{"csr":"="}"#).await, 400, "badCSR");
    let account_key = raw.key.to_pkcs8v1().unwrap();
    let account_key = rcgen::KeyPair::try_from(account_key.as_ref()).unwrap();
    let body = json!({ "csr": encode(&csr(&["shop.test"], &account_key)) }).to_string();
    expect(&raw.post(&finalize, &body).await, 400, "badCSR");
    let response = raw.finalize(&order, &["shop.test"]).await;
    assert_eq!(raw.status_of(&response), "valid");
    expect(&raw.finalize(&order, &["shop.test"]).await, 403, "orderNotReady");
}

#[tokio::test]
async fn an_account_needs_agreement_and_is_found_by_its_key() {
    let stage = Stage::start(|_| {}).await;
    let mut raw = RawClient::register(&stage).await;
    let url = raw.resource("newAccount");
    let mut header = raw.header(&url);
    header.as_object_mut().unwrap().remove("kid");
    header["jwk"] = raw.jwk();
    let found = raw.send(&url, raw.sign(&header, r#"{"onlyReturnExisting":true}"#)).await;
    assert_eq!(found.status(), 200);
    assert_eq!(found.headers()["location"], raw.kid.as_str());

    raw.key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    for (payload, kind) in [
        (r#"{"onlyReturnExisting":true}"#, "accountDoesNotExist"),
        ("{}", "malformed"),
        (r#"{"termsOfServiceAgreed":true,"contact":["mailto:nobody"]}"#, "invalidContact"),
        (r#"{"termsOfServiceAgreed":true,"contact":["https://x.test"]}"#, "unsupportedContact"),
    ] {
        let mut header = raw.header(&url);
        header.as_object_mut().unwrap().remove("kid");
        header["jwk"] = raw.jwk();
        expect(&raw.send(&url, raw.sign(&header, payload)).await, 400, kind);
    }
}
