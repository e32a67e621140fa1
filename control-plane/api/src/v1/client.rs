//! A small client for the tenant API: one typed method for each call of the table in [`super`].
//!
//! Plain http only to a loopback address, because a bearer token goes with every call; https with the caller's own
//! trust anchors elsewhere. Every POST carries an `Idempotency-Key`, every other call is idempotent by nature, so a call
//! whose kept-alive connection turned out dead is sent again, once, on a new one. That is the only retry here. Each call
//! has one deadline, and an answer's body has a limit.
//!
//! Deliberately absent: a cache, a pool larger than its users' own concurrency, following of redirects.

mod calls;
mod transport;

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use calls::{CertificateQuery, DomainQuery, PlanQuery, UsageQuery};
use transport::Transport;

use super::Problem;

/// The longest answer that is read, bytes: a full page of domains is below 8 MiB.
pub const ANSWER_BYTES_MAX: usize = 32 << 20;

/// What a call may take when nothing else is said.
const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// More than that where the server waits for edges.
const EDGES_TIME: Duration = Duration::from_secs(30);

/// Calls the API of one control plane. Clones share their connections.
#[derive(Clone, Debug)]
pub struct Client {
    transport: Transport,
    /// `Bearer <token>`, marked sensitive.
    authorization: Option<HeaderValue>,
    deadline: Duration,
}

/// A call that brought no answer of the kind it asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server refused, and says why.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// The server refused without a problem document.
    #[error("the API answered {status}: {text}")]
    Status { status: StatusCode, text: String },
    #[error("API address {url:?}: {reason}")]
    Address { url: String, reason: String },
    #[error("cannot connect to {address}")]
    Connect { address: String, source: std::io::Error },
    #[error("the exchange with {address} broke")]
    Exchange { address: String, source: hyper::Error },
    #[error("no answer from {address} within {} ms", deadline.as_millis())]
    Deadline { address: String, deadline: Duration },
    #[error("the answer is longer than {ANSWER_BYTES_MAX} bytes")]
    AnswerTooLong,
    #[error("the answer is not what the call promises")]
    Answer(#[source] serde_json::Error),
    #[error("the token holds characters that no header can carry")]
    Token,
    #[error("trust anchors: {0}")]
    Roots(String),
}

impl ClientError {
    /// The HTTP status, when the server answered.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        #[expect(clippy::wildcard_enum_match_arm, reason = "all other kinds have no answer")]
        match self {
            Self::Problem(problem) => Some(problem.status),
            Self::Status { status, .. } => Some(status.as_u16()),
            _ => None,
        }
    }

    /// The stable code of a problem.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        if let Self::Problem(problem) = self { Some(&problem.code) } else { None }
    }
}

impl Client {
    /// A client of `url`, `http://127.0.0.1:7070` or `https://host[:port]`.
    ///
    /// `roots_pem` are the trust anchors for https; without them https is refused, because nothing here knows the
    /// system's.
    ///
    /// # Errors
    /// When the URL has a path, is plain http to an address that is not loopback, or `roots_pem` holds no certificate.
    pub fn new(url: &str, token: Option<&str>, roots_pem: Option<&[u8]>) -> Result<Self, ClientError> {
        let authorization = match token {
            None => None,
            Some(token) => {
                let mut value = HeaderValue::from_str(&format!("Bearer {}", token.trim()))
                    .map_err(|_| ClientError::Token)?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(Self { transport: Transport::new(url, roots_pem)?, authorization, deadline: CALL_DEADLINE })
    }

    /// The same client with another limit for each call.
    #[must_use]
    pub fn with_deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    async fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A, ClientError> {
        decode(&self.send(Call::new(Method::GET, path)).await?)
    }

    async fn post<B: Serialize, A: DeserializeOwned>(&self, path: &str, body: &B) -> Result<A, ClientError> {
        decode(&self.send(Call::new(Method::POST, path).json(body)?).await?)
    }

    /// A call that answers when the edges have: it has the server's own deadline, a minute.
    async fn post_and_wait<B: Serialize, A: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<A, ClientError> {
        let call = Call { extra_time: EDGES_TIME, ..Call::new(Method::POST, path).json(body)? };
        decode(&self.send(call).await?)
    }

    async fn patch<A: DeserializeOwned>(
        &self,
        path: &str,
        patch: &serde_json::Value,
        revision: Option<u64>,
    ) -> Result<A, ClientError> {
        let call = Call { if_match: revision, ..Call::new(Method::PATCH, path).json(patch)? };
        decode(&self.send(call).await?)
    }

    async fn delete(&self, path: &str, revision: Option<u64>) -> Result<(), ClientError> {
        let call = Call { if_match: revision, ..Call::new(Method::DELETE, path) };
        self.send(call).await.map(drop)
    }

    async fn send(&self, call: Call) -> Result<Bytes, ClientError> {
        let deadline = self.deadline + call.extra_time;
        let request = call.request(self.authorization.as_ref(), self.transport.authority())?;
        let exchange = self.transport.exchange(request);
        let (status, body) = tokio::time::timeout(deadline, exchange).await.map_err(|_| {
            ClientError::Deadline { address: self.transport.authority().to_owned(), deadline }
        })??;
        if status.is_success() { Ok(body) } else { Err(refusal(status, &body)) }
    }
}

fn decode<A: DeserializeOwned>(body: &[u8]) -> Result<A, ClientError> {
    serde_json::from_slice(body).map_err(ClientError::Answer)
}

fn refusal(status: StatusCode, body: &[u8]) -> ClientError {
    const TEXT_BYTES_MAX: usize = 300;
    match serde_json::from_slice::<Problem>(body) {
        Ok(problem) => ClientError::Problem(Box::new(problem)),
        Err(_) => {
            let text = String::from_utf8_lossy(&body[..body.len().min(TEXT_BYTES_MAX)]).into_owned();
            ClientError::Status { status, text }
        }
    }
}

/// One call before it is bound to a connection.
struct Call {
    method: Method,
    path: String,
    body: Option<Bytes>,
    if_match: Option<u64>,
    /// Added to the deadline: what the server was asked to wait.
    extra_time: Duration,
}

impl Call {
    fn new(method: Method, path: &str) -> Self {
        Self { method, path: path.to_owned(), body: None, if_match: None, extra_time: Duration::ZERO }
    }

    fn json<B: Serialize>(self, body: &B) -> Result<Self, ClientError> {
        let body = serde_json::to_vec(body).map_err(ClientError::Answer)?;
        Ok(Self { body: Some(body.into()), ..self })
    }

    fn request(
        self,
        authorization: Option<&HeaderValue>,
        authority: &str,
    ) -> Result<transport::ApiRequest, ClientError> {
        let mut request = http::Request::builder()
            .method(&self.method)
            .uri(&self.path)
            .header(header::HOST, authority)
            .header(header::ACCEPT, "application/json");
        if let Some(value) = authorization {
            request = request.header(header::AUTHORIZATION, value);
        }
        if self.method == Method::POST {
            request = request.header("idempotency-key", ulid::Ulid::new().to_string());
        }
        if let Some(revision) = self.if_match {
            request = request.header(header::IF_MATCH, format!("\"{revision}\""));
        }
        if self.body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        request
            .body(self.body.unwrap_or_default())
            .map_err(|e| ClientError::Address { url: self.path.clone(), reason: e.to_string() })
    }
}

#[cfg(test)]
mod tests;
