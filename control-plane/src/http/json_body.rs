//! Request bodies: JSON within 2 MiB, read strictly, with errors that point at the field.
//!
//! Malformed JSON is 400 with line and column; a field that is unknown, missing, there twice or of the wrong type is 422 with
//! its JSON pointer and, where a known field is spelt almost like it, that one as a hint. A `Content-Encoding` is refused: a small
//! body must not become a large one.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use portico_api::strict::{KeysOnce, by_name};
use portico_api::v1::{FieldError, Proxy, Redirect, StaticAnswer};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::Semaphore;
use zeroize::{Zeroize as _, Zeroizing};

use super::fault::{Answered, Fault, field};
use crate::app::App;

pub(crate) const BODY_BYTES_MAX: usize = 2 << 20;
/// A larger body is read beside the threads that serve all calls: one of 2 MiB takes a core for a tenth of a second.
const SMALL_BODY_BYTES: usize = 64 << 10;
/// One at a time, so that whoever sends many leaves a core to everybody else.
static LARGE_BODY_TURN: Semaphore = Semaphore::const_new(1);

/// A body read as `T`, and its bytes, which tell a repeated request from another one.
#[derive(Debug)]
pub(crate) struct JsonBody<T> {
    pub(crate) value: T,
    pub(crate) raw: Bytes,
}

/// A body read as `T` with a secret in it: its bytes are wiped when it is dropped, and when they cannot be read.
pub(crate) struct SecretBody<T> {
    pub(crate) value: T,
    pub(crate) raw: Zeroizing<Vec<u8>>,
}

impl<T> std::fmt::Debug for SecretBody<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretBody")
    }
}

impl<T: DeserializeOwned + Send + 'static> FromRequest<App> for SecretBody<T> {
    type Rejection = Fault;

    async fn from_request(request: Request, _app: &App) -> Result<Self, Fault> {
        require_json(request.headers())?;
        let raw = wiped(read(request).await?);
        let (value, raw) = parse_aside(raw).await?;
        Ok(Self { value, raw })
    }
}

/// The bytes of a call that needs no body.
#[derive(Debug)]
pub(crate) struct RawBody(pub(crate) Bytes);

impl<T: DeserializeOwned + Send + 'static> FromRequest<App> for JsonBody<T> {
    type Rejection = Fault;

    async fn from_request(request: Request, _app: &App) -> Result<Self, Fault> {
        require_json(request.headers())?;
        let (value, raw) = parse_aside(read(request).await?).await?;
        Ok(Self { value, raw })
    }
}

impl FromRequest<App> for RawBody {
    type Rejection = Fault;

    async fn from_request(request: Request, _app: &App) -> Result<Self, Fault> {
        Ok(Self(read(request).await?))
    }
}

async fn read(request: Request) -> Answered<Bytes> {
    let headers = request.headers();
    if let Some(coding) = headers.get(header::CONTENT_ENCODING).filter(|coding| *coding != "identity") {
        return Err(Fault::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "content_encoding_refused",
            format!("send the body as it is, without Content-Encoding {coding:?}"),
        ));
    }
    axum::body::to_bytes(request.into_body(), BODY_BYTES_MAX).await.map_err(|_| {
        Fault::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            format!("a body may have {BODY_BYTES_MAX} bytes; send less at once"),
        )
    })
}

/// Moves a body to where it is wiped. What it came in is wiped too, unless the connection still reads into the same buffer.
fn wiped(body: Bytes) -> Zeroizing<Vec<u8>> {
    let raw = Zeroizing::new(body.to_vec());
    if let Ok(mut body) = body.try_into_mut() {
        body.as_mut().zeroize();
    }
    raw
}

fn require_json(headers: &HeaderMap) -> Answered<()> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if matches!(essence.as_str(), "application/json" | "application/merge-patch+json") {
        return Ok(());
    }
    Err(Fault::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "content_type_unsupported",
        "send Content-Type: application/json",
    ))
}

/// As [`parse`], for a body of any size; gives it back.
async fn parse_aside<T, B>(raw: B) -> Answered<(T, B)>
where
    T: DeserializeOwned + Send + 'static,
    B: AsRef<[u8]> + Send + 'static,
{
    if raw.as_ref().len() <= SMALL_BODY_BYTES {
        return Ok((parse(raw.as_ref())?, raw));
    }
    let turn = LARGE_BODY_TURN.acquire().await.map_err(|_| Fault::internal())?;
    let parsed = tokio::task::spawn_blocking(move || {
        // Whoever hangs up meanwhile does not give the turn to the next.
        let _turn = turn;
        parse(raw.as_ref()).map(|value| (value, raw))
    });
    parsed.await.map_err(|_| Fault::internal())?
}

/// Reads `text` as `T`.
///
/// # Errors
/// 400 for what is no JSON, 422 for what does not fit.
pub(crate) fn parse<T: DeserializeOwned>(text: &[u8]) -> Answered<T> {
    // First by itself: nothing of a body with a secret in it is put aside, and a merge patch is read as any JSON.
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    serde_path_to_error::deserialize::<_, KeysOnce>(&mut deserializer)
        .map_err(|error| fault(&pointer(error.path()), error.inner()))?;
    deserializer.end().map_err(|error| fault("", &error))?;
    if text.trim_ascii_start().first() == Some(&b'[') {
        return Err(Fault::fields(vec![field(String::new(), "invalid_value", "must be a JSON object")]));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    serde_path_to_error::deserialize(by_name(&mut deserializer)).map_err(|error| {
        let pointer = pointer(error.path());
        inside(&pointer, || serde_json::from_slice(text).ok())
            .unwrap_or_else(|| fault(&pointer, error.inner()))
    })
}

/// Reads a JSON document as `T`, for documents that were put together here (merge patches).
///
/// # Errors
/// 422 for what does not fit.
pub(crate) fn from_value<T: DeserializeOwned>(value: Value) -> Answered<T> {
    serde_path_to_error::deserialize(by_name(&value)).map_err(|error| {
        let pointer = pointer(error.path());
        inside(&pointer, || Some(value)).unwrap_or_else(|| fault(&pointer, error.inner()))
    })
}

/// Where in a tagged object (`{"type": ..}`) the fault is. These are read from a copy, so the path that serde tells ends at the
/// object; the variant is read once more by itself. None: the fault is none of a variant's field.
fn inside(pointer: &str, document: impl FnOnce() -> Option<Value>) -> Option<Fault> {
    if !pointer.ends_with("/action") {
        return None;
    }
    let mut document = document()?;
    let object = document.pointer_mut(pointer)?.as_object_mut()?;
    let tag = object.remove("type")?;
    let variant = Value::Object(std::mem::take(object));
    let (below, message) = match tag.as_str() {
        Some("proxy") => misfit::<Proxy>(&variant)?,
        Some("redirect") => misfit::<Redirect>(&variant)?,
        Some("static") => misfit::<StaticAnswer>(&variant)?,
        _ => ("/type".to_owned(), "must be proxy, redirect or static".to_owned()),
    };
    Some(Fault::fields(vec![field_error(&format!("{pointer}{below}"), &message)]))
}

/// The pointer of what does not fit, and why. None: all fits.
fn misfit<T: DeserializeOwned>(value: &Value) -> Option<(String, String)> {
    let error = serde_path_to_error::deserialize::<_, T>(by_name(value)).err()?;
    Some((pointer(error.path()), error.inner().to_string()))
}

fn fault(pointer: &str, error: &serde_json::Error) -> Fault {
    match error.classify() {
        serde_json::error::Category::Data => Fault::fields(vec![field_error(pointer, &error.to_string())]),
        serde_json::error::Category::Syntax
        | serde_json::error::Category::Eof
        | serde_json::error::Category::Io => Fault::bad_request(
            "malformed_json",
            format!(
                "line {}, column {}: {}",
                error.line(),
                error.column(),
                without_position(&error.to_string())
            ),
        ),
    }
}

fn field_error(pointer: &str, message: &str) -> FieldError {
    let message = without_long_values(without_position(message));
    if pointer.len() > POINTER_BYTES_MAX {
        return field(String::new(), "unknown_field", "has a field with an overlong name");
    }
    let word = |prefix: &str| message.strip_prefix(prefix).and_then(|rest| rest.split('`').next());
    if let Some(unknown) = word("unknown field `") {
        let known: Vec<&str> = message.split('`').skip(3).step_by(2).collect();
        if unknown.len() > VALUE_BYTES_MAX {
            return field(String::new(), "unknown_field", "has a field with an overlong name");
        }
        let near = nearest(unknown, &known).map(|near| format!("; did you mean `{near}`?"));
        let own = format!("/{}", escape(unknown));
        // serde's path ends in the unknown key, or above it.
        let pointer = if pointer.ends_with(&own) { pointer.to_owned() } else { format!("{pointer}{own}") };
        return field(pointer, "unknown_field", format!("{message}{}", near.unwrap_or_default()));
    }
    if let Some(twice) = message.strip_prefix("duplicate field `").and_then(|rest| rest.strip_suffix('`')) {
        if twice.len() > VALUE_BYTES_MAX {
            return field(pointer, "duplicate_field", "has a field with an overlong name twice");
        }
        let message = "is there twice; leave one of the two out";
        return field(format!("{pointer}/{}", escape(twice)), "duplicate_field", message);
    }
    if let Some(missing) = word("missing field `") {
        return field(format!("{pointer}/{}", escape(missing)), "missing_field", message);
    }
    field(pointer, "invalid_value", message)
}

/// Longer values are not repeated: a secret may stand where none belongs. A key in PEM is longer.
const VALUE_BYTES_MAX: usize = 64;
const POINTER_BYTES_MAX: usize = 512;

/// serde repeats the text that it did not expect; a long one is left out.
fn without_long_values(message: String) -> String {
    let Some((head, rest)) = message.split_once('"') else { return message };
    let Some((value, tail)) = rest.rsplit_once('"') else { return message };
    if value.len() <= VALUE_BYTES_MAX { message } else { format!("{head}of {} bytes{tail}", value.len()) }
}

fn without_position(message: &str) -> String {
    message.rsplit_once(" at line ").map_or(message, |(before, _)| before).to_owned()
}

fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    path.iter()
        .map(|segment| match segment {
            Segment::Seq { index } => format!("/{index}"),
            Segment::Map { key } => format!("/{}", escape(key)),
            Segment::Enum { .. } | Segment::Unknown => String::new(),
        })
        .collect()
}

/// RFC 6901 section 3.
fn escape(token: &str) -> String {
    token.replace('~', "~0").replace('/', "~1")
}

/// The known word at the smallest edit distance, when that is at most a third of its length (and at most 3).
fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|&candidate| (distance(word, candidate), candidate))
        .filter(|&(distance, candidate)| distance <= 3.min(1 + candidate.len() / 3))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance; words here are field names, cut at 64 bytes.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (&a.as_bytes()[..a.len().min(64)], &b.as_bytes()[..b.len().min(64)]);
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use portico_api::v1::{DomainBatch, DomainSpec, TenantSpec};

    use super::*;

    fn fault_of<T: DeserializeOwned + std::fmt::Debug>(text: &str) -> Fault {
        parse::<T>(text.as_bytes()).unwrap_err()
    }

    #[test]
    fn malformed_json_names_line_and_column() {
        let fault = fault_of::<TenantSpec>("{\n  \"name\": \"a\",,\n}");
        assert_eq!((fault.status.as_u16(), fault.code), (400, "malformed_json"));
        assert!(fault.detail.starts_with("line 2, column 15:"), "{}", fault.detail);
        assert_eq!(fault_of::<TenantSpec>("").code, "malformed_json");
        assert_eq!(fault_of::<TenantSpec>("{\"name\": \"a\"} x").code, "malformed_json");
        assert_eq!(fault_of::<TenantSpec>("[1,").code, "malformed_json");
        let deep = "[".repeat(100_000);
        assert_eq!(fault_of::<Value>(&deep).code, "malformed_json");
    }

    #[test]
    fn unknown_fields_have_pointer_and_hint() {
        for (text, pointer, hint) in [
            (r#"{"hostname":"a.example","rotues":[]}"#, "/rotues", "`routes`?"),
            (
                r#"{"hostname":"a.example","routes":[{"path":"/","action":{"type":"static","body":""}}]}"#,
                "/routes/0/path",
                "path_prefix",
            ),
            (
                r#"{"hostname":"a.example","routes":[{"action":{"type":"proxy","orign":"x"}}]}"#,
                "/routes/0/action/orign",
                "`origin`?",
            ),
        ] {
            let fault = fault_of::<DomainSpec>(text);
            assert_eq!((fault.status.as_u16(), fault.code), (422, "unknown_field"), "{text}");
            assert_eq!(fault.errors[0].pointer, pointer, "{text}");
            assert!(fault.errors[0].message.contains(hint), "{}", fault.errors[0].message);
        }
    }

    #[test]
    fn a_wrong_value_deep_in_an_action_has_the_pointer_of_its_own_field() {
        let table = [
            (r#""type":"proxy","breaker":{"in_flight_max":-5}"#, "breaker/in_flight_max"),
            (r#""type":"proxy","breaker":{"in_flight_max":5,"pending_max":1.5}"#, "breaker/pending_max"),
            (r#""type":"proxy","breaker":{}"#, "breaker/in_flight_max"),
            (r#""breaker":{"x":1},"type":"proxy""#, "breaker/x"),
            (r#""type":"proxy","cache":{"default_ttl_seconds":-1}"#, "cache/default_ttl_seconds"),
            (r#""type":"proxy","cache":{"error_ttl_seconds":"1"}"#, "cache/error_ttl_seconds"),
            (r#""type":"proxy","cache":{"max_object_bytes":-1}"#, "cache/max_object_bytes"),
            (r#""type":"proxy","cache":{"query":{"keep":["x"]}}"#, "cache/query/keep"),
            (r#""type":"proxy","cache":{"query":{"sort":1}}"#, "cache/query/sort"),
            (r#""type":"proxy","cache":{"query":{"ignore":["a",7]}}"#, "cache/query/ignore/1"),
            (r#""type":"proxy","compression":{"min_bytes":-1}"#, "compression/min_bytes"),
            (r#""type":"proxy","compression":{"content_types":[1]}"#, "compression/content_types/0"),
            (r#""type":"proxy","compression":{"codings":["lzma"]}"#, "compression/codings/0"),
            (r#""type":"proxy","health_check":{"interval_seconds":-1}"#, "health_check/interval_seconds"),
            (r#""type":"proxy","health_check":{"pth":"/"}"#, "health_check/pth"),
            (r#""type":"proxy","timeouts":{"idle_ms":"1s"}"#, "timeouts/idle_ms"),
            (r#""type":"proxy","tls":{"client_certificate":"yes"}"#, "tls/client_certificate"),
            (r#""type":"proxy","tls":7"#, "tls"),
            (r#""type":"proxy","origins":[{"url":"http://a","weight":-1}]"#, "origins/0/weight"),
            (r#""type":"proxy","origins":[{"url":"http://a"},{"weight":1}]"#, "origins/1/url"),
            (r#""type":"proxy","origin":7"#, "origin"),
            (r#""type":"proxy","protocol":"h3""#, "protocol"),
            (r#""type":"proxy","proxy_protocol":"v3""#, "proxy_protocol"),
            (r#""type":"proxy","host_header":[]"#, "host_header"),
            (r#""type":"redirect","to":"https://a","status":-1"#, "status"),
            (r#""type":"redirect","to":"https://a","status":100000"#, "status"),
            (r#""type":"redirect","to":"https://a","keep_path":"no""#, "keep_path"),
            (r#""type":"redirect","to":"https://a","keep_query":0"#, "keep_query"),
            (r#""type":"redirect""#, "to"),
            (r#""type":"static","body":7"#, "body"),
            (r#""type":"static""#, "body"),
            (r#""type":"static","body":"","content_type":1"#, "content_type"),
            (r#""type":"static","body":"","origin":"http://a""#, "origin"),
            (r#""type":"statik","body":"""#, "type"),
            (r#""type":7,"body":"""#, "type"),
            (r#""body":"""#, "type"),
        ];
        for (action, below) in table {
            let text = format!(r#"{{"hostname":"a.example","routes":[{{"action":{{{action}}}}}]}}"#);
            let pointer = format!("/routes/0/action/{below}");
            let fault = fault_of::<DomainSpec>(&text);
            assert_eq!((fault.status.as_u16(), &fault.errors[0].pointer), (422, &pointer), "{action}");
            let batch = fault_of::<DomainBatch>(&format!(r#"{{"items":[{text}]}}"#));
            assert_eq!(batch.errors[0].pointer, format!("/items/0{pointer}"), "{action}");
            let patched = from_value::<DomainSpec>(serde_json::from_str(&text).unwrap()).unwrap_err();
            assert_eq!(patched.errors[0].pointer, pointer, "{action}");
        }
    }

    /// [`inside`] knows the variants of one.
    #[test]
    fn there_is_one_tagged_enum_that_callers_send() {
        let document = serde_json::to_value(crate::http::openapi()).unwrap();
        let tag = |schema: &Value| schema["properties"]["type"]["enum"].is_array();
        let is_tagged = |schema: &Value| {
            let variants = schema["oneOf"].as_array();
            variants.is_some_and(|variants| {
                variants.iter().all(|variant| {
                    let parts = variant["allOf"].as_array();
                    tag(variant) || parts.is_some_and(|parts| parts.iter().any(tag))
                })
            })
        };
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let tagged = schemas.iter().filter(|(_, schema)| is_tagged(schema)).map(|(name, _)| name);
        assert_eq!(tagged.collect::<Vec<_>>(), ["Action"]);
    }

    #[test]
    fn wrong_types_and_missing_fields_have_their_pointer() {
        let fault = fault_of::<DomainBatch>(r#"{"items":[{"hostname":"a.example"},{"hostname":7}]}"#);
        assert_eq!(fault.errors[0].pointer, "/items/1/hostname");
        let fault = fault_of::<TenantSpec>(r#" ["a",null,[],[],1]"#);
        assert_eq!((fault.status.as_u16(), fault.detail.as_str()), (422, "the body: must be a JSON object"));
        let fault = fault_of::<TenantSpec>("{}");
        assert_eq!((fault.errors[0].pointer.as_str(), fault.code), ("/name", "missing_field"));
        let fault = fault_of::<TenantSpec>(r#"{"name":"a","domains_max":-1}"#);
        assert_eq!(fault.errors[0].pointer, "/domains_max");
    }

    #[test]
    fn an_array_is_no_object_at_any_depth() {
        let of_domains = [
            (r#""maintenance":["soon",60]"#, "/maintenance"),
            (r#""routes":[["/",false]]"#, "/routes/0"),
            (
                r#""routes":[{"headers":[["x-a","b"]],"action":{"type":"static","body":""}}]"#,
                "/routes/0/headers/0",
            ),
            (
                r#""routes":[{"request_headers":[{"a":"b"},["c"]],"action":{"type":"static","body":""}}]"#,
                "/routes/0/request_headers",
            ),
            (r#""routes":[{"action":["static",200,"text/plain","x"]}]"#, "/routes/0/action"),
        ];
        let in_actions = [
            (r#""origins":[["http://a.example",3]]"#, "origins/0"),
            (r#""health_check":["/hz",5]"#, "health_check"),
            (r#""breaker":[5]"#, "breaker"),
            (r#""timeouts":[100]"#, "timeouts"),
            (r#""timeouts":[]"#, "timeouts"),
            (r#""cache":{"query":[["a"]]}"#, "cache/query"),
        ]
        .map(|(field, below)| {
            let route = format!(r#""routes":[{{"action":{{"type":"proxy",{field}}}}}]"#);
            (route, format!("/routes/0/action/{below}"))
        });
        let of_domains = of_domains.map(|(fields, pointer)| (fields.to_owned(), pointer.to_owned()));
        for (fields, pointer) in of_domains.into_iter().chain(in_actions) {
            let text = format!(r#"{{"hostname":"a.example",{fields}}}"#);
            let fault = fault_of::<DomainSpec>(&text);
            assert_eq!((fault.status.as_u16(), &fault.errors[0].pointer), (422, &pointer), "{text}");
            assert!(fault.errors[0].message.starts_with("invalid type: sequence"), "{}", fault.detail);
            let batch = fault_of::<DomainBatch>(&format!(r#"{{"items":[{text}]}}"#));
            assert_eq!(batch.errors[0].pointer, format!("/items/0{pointer}"), "{text}");
            let patched = from_value::<DomainSpec>(serde_json::from_str(&text).unwrap()).unwrap_err();
            assert_eq!(patched.errors[0].pointer, pointer, "{text}");
        }
        for (fields, pointer) in [
            (r#""limits":[7,8]"#, "/limits"),
            (r#""egress_grants":[["127.0.0.21/32",[9000]]]"#, "/egress_grants/0"),
            (r#""error_pages":{"502":["text/plain; charset=utf-8","hello"]}"#, "/error_pages/502"),
        ] {
            let text = format!(r#"{{"name":"a",{fields}}}"#);
            let patched = from_value::<TenantSpec>(serde_json::from_str(&text).unwrap()).unwrap_err();
            for fault in [fault_of::<TenantSpec>(&text), patched] {
                assert_eq!(fault.errors[0].pointer, pointer, "{text}");
                assert!(fault.errors[0].message.contains("fields by their names"), "{}", fault.detail);
            }
        }
    }

    /// A patch is read as a [`Value`], which would keep the last of two.
    #[test]
    fn a_field_that_is_there_twice_is_refused_in_a_patch_too() {
        for (text, pointer) in [
            (r#"{"http2":true,"http2":false}"#, "/http2"),
            (r#"{"routes":[{"action":{"type":"static","type":"proxy"}}]}"#, "/routes/0/action/type"),
            (r#"{"limits":{"a/b":1,"a/b":null}}"#, "/limits/a~1b"),
        ] {
            let fault = fault_of::<Value>(text);
            assert_eq!((fault.status.as_u16(), fault.code), (422, "duplicate_field"), "{text}");
            assert_eq!(fault.errors[0].pointer, pointer);
        }
        let fault = fault_of::<TenantSpec>(r#"{"name":"a","name":"b"}"#);
        assert_eq!((fault.errors[0].pointer.as_str(), fault.code), ("/name", "duplicate_field"));
        let secret = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKjMzEfYyji";
        let shown = fault_of::<Value>(&format!(r#"{{"{secret}":1,"{secret}":1}}"#)).problem("req_1");
        assert!(!serde_json::to_string(&shown).unwrap().contains(&secret[..20]));
    }

    #[test]
    fn long_values_and_names_are_not_repeated() {
        let secret = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKjMzEfYyji";
        for body in [
            format!(r#"{{"name":"a","cells":"{secret}"}}"#),
            format!(r#"{{"name":"a","domains_max":"{secret}"}}"#),
            format!(
                r#"{{"name":"a","cells":"-----BEGIN PRIVATE KEY-----\n{secret}\n-----END \"x\" KEY-----"}}"#
            ),
            format!(r#"{{"name":"a","{secret}":1}}"#),
            format!(r#"{{"name":"a","limits":{{"{secret}":1}}}}"#),
        ] {
            let fault = fault_of::<TenantSpec>(&body);
            let shown = serde_json::to_string(&fault.problem("req_1")).unwrap();
            assert_eq!(fault.status.as_u16(), 422);
            assert!(!shown.contains(&secret[..20]), "{shown}");
        }
        let short = fault_of::<TenantSpec>(r#"{"name":"a","cells":"eu"}"#);
        assert!(short.detail.contains("\"eu\""), "{}", short.detail);
    }

    #[test]
    fn hints_are_near_or_absent() {
        assert_eq!(nearest("hostnme", &["hostname", "routes"]), Some("hostname"));
        assert_eq!(nearest("banana", &["hostname", "routes"]), None);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }
}
