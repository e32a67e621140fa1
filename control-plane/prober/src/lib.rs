//! The spot check: what does *that address* serve for *that name*, seen from outside?
//!
//! A [`Prober`] opens a connection to exactly the given address, names the host in SNI, and asks for one page. It
//! reports the certificate and whether its chain holds, the protocol, the status and the beginning of the body. A
//! certificate that does not hold is reported and the page is asked for all the same, because "wrong certificate, right
//! site" and "right certificate, wrong site" are different faults. The key behind the certificate is always proved by the
//! handshake, so a report never describes a certificate that the address only shows.
//!
//! [`Prober::check_all`] does so for thousands of pairs with bounded concurrency; each check has one deadline, and a check
//! never fails as a whole: its report says which step failed.
//!
//! A redirect is reported and never followed: what the *next* address serves is another question.
//!
//! Deliberately absent: DNS (the caller says which address), judging (the caller knows what should be served), retries.

mod check;
mod clock;
mod connect;
pub mod egress;
mod exchange;
mod report;
mod tls;

pub use check::{Check, CheckOptions, EgressGuard, Method, Prober};
pub use connect::{ConnectError, connect_guarded};
pub use exchange::chain_text;
pub use report::{BodyReport, CertificateReport, ChainVerdict, Failure, Redirect, Report, Step, Timings};
pub use tls::{Alpn, AnyCertificate, ClientCertificate, ProberError, Roots};
