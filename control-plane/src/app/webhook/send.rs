//! One POST to an endpoint: to an address that the egress guard has allowed, over TLS that is verified, without following
//! anything, within one deadline.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, USER_AGENT};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use portico_cert_store::{DomainName, TenantId};
use portico_prober::egress::Grant;
use portico_prober::{ConnectError, connect_guarded};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use url::{Host, Url};

use super::Signed;
use crate::app::App;
use crate::clock;
use crate::config::EgressAllow;
use crate::dns::lookup::Found;
use crate::limits::{WEBHOOK_ANSWER_BYTES_MAX, WEBHOOK_DEADLINE};
use crate::store::webhook::WebhookRow;
use crate::store::{StoreError, tenant};

const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Addresses of the host that are tried.
const ADDRESSES_MAX: usize = 4;

/// What became of one try.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) status: Option<u16>,
    /// `None`: it was taken.
    pub(crate) error: Option<String>,
    pub(crate) took_ms: i64,
}

impl Sent {
    /// The endpoint says that it is no more.
    pub(crate) fn is_gone(&self) -> bool {
        self.status == Some(StatusCode::GONE.as_u16())
    }
}

/// Sends to one endpoint, over one connection as long as it lasts.
pub(crate) struct Courier<'a> {
    app: &'a App,
    url: Url,
    /// What the operator has granted beside the addresses that anybody may be reached at.
    granted: Vec<EgressAllow>,
    open: Option<Open>,
}

struct Open {
    sender: SendRequest<Full<Bytes>>,
    connection: tokio::task::JoinHandle<()>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl<'a> Courier<'a> {
    /// # Errors
    /// The store's.
    pub(crate) async fn new(app: &'a App, row: &WebhookRow) -> Result<Self, StoreError> {
        let url = Url::parse(&row.url)
            .map_err(|_| StoreError::Unreadable { what: format!("webhooks: {}: url", row.id) })?;
        Ok(Self { app, url, granted: granted(app, row.tenant).await?, open: None })
    }

    pub(crate) async fn send(&mut self, message: &Signed) -> Sent {
        let began = clock::instant();
        let answered = tokio::time::timeout(WEBHOOK_DEADLINE, self.post(message)).await;
        let took_ms = i64::try_from(began.elapsed().as_millis()).unwrap_or(i64::MAX);
        let (status, error) = match answered {
            Err(_) => (None, Some(format!("no answer within {} s", WEBHOOK_DEADLINE.as_secs()))),
            Ok(Err(error)) => (None, Some(error)),
            Ok(Ok(status)) if status.is_success() => (Some(status.as_u16()), None),
            Ok(Ok(status)) if status.is_redirection() => {
                (Some(status.as_u16()), Some(format!("answered {status}, and redirects are not followed")))
            }
            Ok(Ok(status)) => (Some(status.as_u16()), Some(format!("answered {status}"))),
        };
        if error.is_some() {
            self.open = None;
        }
        Sent { status, error, took_ms }
    }

    async fn post(&mut self, message: &Signed) -> Result<StatusCode, String> {
        if let Some(mut open) = self.open.take()
            && open.sender.ready().await.is_ok()
            && let Ok(status) = ask(&mut open.sender, &self.url, message).await
        {
            self.open = Some(open);
            return Ok(status);
        }
        // One that was kept may have ended meanwhile; sending twice is allowed.
        let mut open = self.connect().await?;
        let status = ask(&mut open.sender, &self.url, message).await?;
        if !open.sender.is_closed() {
            self.open = Some(open);
        }
        Ok(status)
    }

    async fn connect(&self) -> Result<Open, String> {
        let port = self.url.port_or_known_default().unwrap_or(443);
        let addresses = self.addresses().await?;
        let sockets: Vec<SocketAddr> =
            addresses.into_iter().take(ADDRESSES_MAX).map(|address| (address, port).into()).collect();
        let grants: Vec<Grant<'_>> =
            self.granted.iter().map(|allow| Grant { net: allow.cidr, ports: &allow.ports }).collect();
        let stream = connect_guarded(&sockets, &self.app.egress, &grants, CONNECT_DEADLINE).await;
        let stream = stream.map_err(|error| match error {
            ConnectError::Refused(refused) => {
                tracing::debug!(%refused, "a webhook may not be reached");
                "its address may not be connected to; an operator can grant it to the tenant".to_owned()
            }
            ConnectError::NoAddress => "it has no address".to_owned(),
            ConnectError::Io { .. } | ConnectError::Timeout { .. } | ConnectError::OtherPeer { .. } => {
                "it cannot be connected to".to_owned()
            }
        })?;
        if self.url.scheme() != "https" {
            return begin(stream).await;
        }
        let server = match self.url.host() {
            Some(Host::Domain(name)) => ServerName::try_from(name.to_owned()).map_err(|e| e.to_string())?,
            Some(Host::Ipv4(address)) => ServerName::from(IpAddr::V4(address)),
            Some(Host::Ipv6(address)) => ServerName::from(IpAddr::V6(address)),
            None => return Err("the URL has no host".to_owned()),
        };
        let tls = self.app.webhook_tls().map_err(|error| format!("{error:#}"))?;
        let stream = TlsConnector::from(Arc::clone(tls)).connect(server, stream).await;
        begin(stream.map_err(|error| format!("TLS: {error}"))?).await
    }

    async fn addresses(&self) -> Result<Vec<IpAddr>, String> {
        let name = match self.url.host() {
            Some(Host::Ipv4(address)) => return Ok(vec![address.into()]),
            Some(Host::Ipv6(address)) => return Ok(vec![address.into()]),
            Some(Host::Domain(name)) => DomainName::parse(name).map_err(|error| error.to_string())?,
            None => return Err("the URL has no host".to_owned()),
        };
        match self.app.lookup.addresses(&name).await {
            Found::Records(addresses) => Ok(addresses),
            Found::Nothing => Err(format!("{name} has no address")),
            Found::Unknown(why) => Err(why),
        }
    }
}

/// A tenant's grants; the operators' endpoints may be where the control plane's own checks may look.
async fn granted(app: &App, tenant: Option<TenantId>) -> Result<Vec<EgressAllow>, StoreError> {
    let Some(tenant) = tenant else { return Ok(app.parts.config.egress.allow.clone()) };
    let found = tenant::find(&mut *app.parts.store.read().await?, tenant).await?;
    let grants = found.map(|tenant| tenant.spec.egress_grants).unwrap_or_default();
    let allow = |grant: portico_api::v1::EgressGrant| {
        Some(EgressAllow { cidr: grant.cidr.parse().ok()?, ports: grant.ports })
    };
    Ok(grants.into_iter().filter_map(allow).collect())
}

async fn begin<S>(stream: S) -> Result<Open, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let connection = tokio::spawn(async move {
        // What ended it, its requests say.
        let _ended = connection.await;
    });
    Ok(Open { sender, connection })
}

async fn ask(
    sender: &mut SendRequest<Full<Bytes>>,
    url: &Url,
    message: &Signed,
) -> Result<StatusCode, String> {
    let host = url.host_str().unwrap_or_default();
    let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    let path = &url[url::Position::BeforePath..url::Position::AfterQuery];
    let request = Request::post(path)
        .header(HOST, authority)
        .header(CONTENT_TYPE, "application/json")
        .header(USER_AGENT, "portico-control-plane")
        .header("webhook-id", &message.id)
        .header("webhook-timestamp", message.timestamp)
        .header("webhook-signature", &message.signature)
        .body(Full::new(Bytes::from(message.body.clone())));
    let answer = sender.send_request(request.map_err(|e| e.to_string())?).await.map_err(|e| e.to_string())?;
    let status = answer.status();
    // Read to its end, or the connection cannot be used again; its words are nobody's here.
    let body = Limited::new(answer.into_body(), WEBHOOK_ANSWER_BYTES_MAX).collect().await;
    match body {
        Ok(_) => Ok(status),
        Err(_) if status.is_success() => {
            Err(format!("answered {status} with more than {WEBHOOK_ANSWER_BYTES_MAX} bytes, or broke off"))
        }
        Err(_) => Ok(status),
    }
}
