//! One check, and many.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::stream::{Stream, StreamExt as _};
use ipnet::IpNet;
use portico_cert_store::DomainName;
use tokio::net::TcpStream;
use tokio::time::timeout_at;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::clock;
use crate::egress::{EgressPolicy, EgressRefused, Grant};
use crate::exchange::{self, chain_text};
use crate::report::{Failure, Report, Step, Timings};
use crate::tls::{self, Alpn, ClientCertificate, ProberError, Roots, Tls};

/// Checks addresses for names. One prober serves any number of checks at once.
#[derive(Debug)]
pub struct Prober {
    tls: Tls,
    options: CheckOptions,
}

/// The question: what does `address` serve for `name`?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub name: DomainName,
    pub address: SocketAddr,
}

/// How checks are made.
#[derive(Clone, Debug)]
pub struct CheckOptions {
    pub method: Method,
    /// Path and query of the request, from `/` on.
    pub path: String,
    pub alpn: Alpn,
    /// Connect and handshake have to be done by then, each; the whole check by `deadline`.
    pub step_deadline: Duration,
    pub deadline: Duration,
    /// Checks under way at once in [`Prober::check_all`]. Each holds one descriptor.
    pub concurrency: usize,
    /// Body bytes read and hashed.
    pub body_bytes_max: usize,
    /// Body bytes shown.
    pub body_first_bytes: usize,
    /// For servers that ask for one.
    pub client_certificate: Option<ClientCertificate>,
    /// Absent for the operator's own checks, which may go anywhere; checks on a tenant's behalf have one.
    pub egress: Option<EgressGuard>,
}

/// Which addresses the checks of one prober may reach.
#[derive(Clone, Debug, Default)]
pub struct EgressGuard {
    pub policy: EgressPolicy,
    /// The operator's permissions for ranges with ports that are refused otherwise.
    pub grants: Vec<(IpNet, Vec<u16>)>,
}

impl EgressGuard {
    fn check(&self, address: SocketAddr) -> Result<(), EgressRefused> {
        self.policy.check(address, self.grants.iter().map(|(net, ports)| Grant { net: *net, ports }))
    }
}

impl Default for CheckOptions {
    fn default() -> Self {
        Self {
            method: Method::Get,
            path: "/".to_owned(),
            alpn: Alpn::default(),
            step_deadline: Duration::from_secs(5),
            deadline: Duration::from_secs(10),
            concurrency: 200,
            body_bytes_max: 64 * 1024,
            body_first_bytes: 200,
            client_certificate: None,
            egress: None,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    #[default]
    Get,
    Head,
}

impl Prober {
    /// # Errors
    /// When the trust anchors cannot be used.
    pub fn new(roots: &Roots, options: CheckOptions) -> Result<Self, ProberError> {
        Ok(Self { tls: Tls::new(roots, options.alpn)?, options })
    }

    /// One check. Never fails as a whole: the report says how far it came.
    pub async fn check(&self, check: Check) -> Report {
        let start = clock::instant();
        let mut report = Report {
            name: check.name,
            address: check.address,
            tls_version: None,
            protocol: None,
            certificate: None,
            chain: None,
            asks_for_certificate: false,
            status: None,
            redirect: None,
            server: None,
            body: None,
            timings: Timings::default(),
            failure: None,
        };
        let asked = Arc::default();
        report.failure = self.run(&mut report, start, &asked).await.err();
        report.asks_for_certificate = asked.load(Ordering::Relaxed);
        if report.asks_for_certificate {
            report.failure = report.failure.take().map(|failure| self.for_want_of_a_certificate(failure));
        }
        report.timings.total_ms = clock::elapsed_ms(start);
        report
    }

    /// Many checks, at most `concurrency` at once, reported as they end.
    pub fn check_all<'a, I>(&'a self, checks: I) -> impl Stream<Item = Report> + 'a
    where
        I: IntoIterator<Item = Check> + 'a,
        I::IntoIter: 'a,
    {
        let checks = checks.into_iter().map(|check| self.check(check));
        futures_util::stream::iter(checks).buffer_unordered(self.options.concurrency.max(1))
    }

    /// What a server that wants another certificate does comes as an alert, in the handshake or behind it (TLS 1.3), or as a
    /// connection that ends.
    fn for_want_of_a_certificate(&self, failure: Failure) -> Failure {
        let Failure { step, text } = failure;
        let shown = match &self.options.client_certificate {
            None => "the server asks for a client certificate, and none was shown",
            Some(_) => "the server asks for a client certificate, and may not take the one that was shown",
        };
        let text = match step {
            Step::Handshake | Step::Request => format!("{shown} ({text})"),
            Step::Egress | Step::Connect | Step::Body => text,
        };
        Failure { step, text }
    }

    async fn run(&self, report: &mut Report, start: Instant, asked: &Arc<AtomicBool>) -> Result<(), Failure> {
        let end = start + self.options.deadline;
        let stream = self.connect(report, asked, start, end).await?;
        let h2 = report.protocol.as_deref() == Some("h2");
        let asked = exchange::request(stream, h2, &report.name, report.address.port(), &self.options);
        let (answer, driver) =
            by(end, Step::Request, asked).await?.map_err(|text| failure(Step::Request, text))?;
        report.timings.answer_ms = Some(clock::elapsed_ms(start));
        let status = answer.status().as_u16();
        report.status = Some(status);
        report.redirect = exchange::redirect_of(status, answer.headers());
        report.server = exchange::server_of(answer.headers());
        if self.options.method == Method::Get {
            let read = exchange::read_body(answer.into_body(), &self.options);
            let (body, fault) = by(end, Step::Body, read).await?;
            report.body = Some(body);
            if let Some(text) = fault {
                return Err(failure(Step::Body, text));
            }
        }
        drop(driver);
        Ok(())
    }

    async fn connect(
        &self,
        report: &mut Report,
        asked: &Arc<AtomicBool>,
        start: Instant,
        end: Instant,
    ) -> Result<TlsStream<TcpStream>, Failure> {
        // The address of the check is the address of the connect: nothing is resolved in between.
        if let Some(Err(refused)) = self.options.egress.as_ref().map(|guard| guard.check(report.address)) {
            return Err(failure(Step::Egress, refused.to_string()));
        }
        let server_name = tls::server_name(&report.name).map_err(|text| failure(Step::Handshake, text))?;
        let step_end = end.min(start + self.options.step_deadline);
        let tcp = by(step_end, Step::Connect, TcpStream::connect(report.address))
            .await?
            .map_err(|e| failure(Step::Connect, chain_text(&e)))?;
        tcp.set_nodelay(true).map_err(|e| failure(Step::Connect, chain_text(&e)))?;
        report.timings.connected_ms = Some(clock::elapsed_ms(start));

        let step_end = end.min(clock::instant() + self.options.step_deadline);
        let connector = TlsConnector::from(self.tls.config(self.options.client_certificate.as_ref(), asked));
        let stream = by(step_end, Step::Handshake, connector.connect(server_name.clone(), tcp))
            .await?
            .map_err(|e| failure(Step::Handshake, chain_text(&e)))?;
        report.timings.handshake_ms = Some(clock::elapsed_ms(start));
        let session = stream.get_ref().1;
        report.tls_version = session.protocol_version().and_then(|v| v.as_str()).map(version_text);
        let protocol = session.alpn_protocol().unwrap_or(b"http/1.1");
        report.protocol = Some(String::from_utf8_lossy(protocol).into_owned());
        let chain = session.peer_certificates().unwrap_or_default();
        report.chain = Some(self.tls.verdict(chain, &server_name, clock::unix()));
        report.certificate = Some(tls::describe(chain).map_err(|text| failure(Step::Handshake, text))?);
        Ok(stream)
    }
}

/// `TLSv1_3` as people write it.
fn version_text(version: &str) -> String {
    version.replace('_', ".")
}

fn failure(step: Step, text: impl Into<String>) -> Failure {
    Failure { step, text: text.into() }
}

async fn by<T>(end: Instant, step: Step, work: impl Future<Output = T>) -> Result<T, Failure> {
    timeout_at(end.into(), work).await.map_err(|_| failure(step, "not done before the deadline"))
}
