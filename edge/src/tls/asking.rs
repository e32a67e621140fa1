//! What one connection asks of its client beside the usual: a certificate, where its name wants one.
//!
//! One [`Asking`] is both the verifier and the ticketer of its connection. A ticket is bound to the authorities that its
//! session's certificate was verified by, and counts no longer than that certificate: a session goes on only while a full
//! handshake with the same certificate would succeed, and not once an authority was replaced (THREATS D1). rustls itself
//! verifies nothing at a resumption.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ProducesTickets;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::Tickets;
use crate::live::ClientAuth;
use crate::{clock, limits};

pub(crate) struct Asking {
    tickets: Arc<Tickets>,
    /// Absent: nothing is asked.
    auth: OnceLock<Arc<ClientAuth>>,
    /// Unix seconds: until when the client's certificates are good.
    good_until: AtomicU64,
}

impl Asking {
    /// Asks for nothing, until told to.
    pub(crate) fn nothing(tickets: Arc<Tickets>) -> Arc<Self> {
        Arc::new(Self { tickets, auth: OnceLock::new(), good_until: AtomicU64::new(u64::MAX) })
    }

    /// To be told before the handshake goes on behind the ClientHello; the first word stands.
    pub(crate) fn ask(&self, auth: Arc<ClientAuth>) {
        let _first = self.auth.set(auth);
    }
}

impl ClientCertVerifier for Asking {
    fn offer_client_auth(&self) -> bool {
        self.auth.get().is_some()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.auth.get().is_some_and(|auth| auth.required)
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.auth.get().map_or(&[], |auth| auth.verifier.root_hint_subjects())
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let Some(auth) = self.auth.get() else {
            return Err(Error::General("nobody asked for a certificate".to_owned()));
        };
        // It goes to the origin with each request, and into each ticket.
        let intermediate_bytes: usize = intermediates.iter().map(|certificate| certificate.len()).sum();
        if leaf.len() > limits::CLIENT_CERTIFICATE_BYTES_MAX
            || intermediate_bytes > limits::CLIENT_INTERMEDIATES_BYTES_MAX
        {
            return Err(Error::InvalidCertificate(CertificateError::BadEncoding));
        }
        let verified = auth.verifier.verify_client_cert(leaf, intermediates, now)?;
        let good_until = [leaf].into_iter().chain(intermediates).filter_map(not_after).min();
        self.good_until.store(good_until.unwrap_or(0), Ordering::Relaxed);
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match self.auth.get() {
            Some(auth) => auth.verifier.verify_tls12_signature(message, certificate, signature),
            None => Err(Error::InvalidCertificate(CertificateError::BadSignature)),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match self.auth.get() {
            Some(auth) => auth.verifier.verify_tls13_signature(message, certificate, signature),
            None => Err(Error::InvalidCertificate(CertificateError::BadSignature)),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.auth.get().map(|auth| auth.verifier.supported_verify_schemes()).unwrap_or_default()
    }
}

/// Unix seconds. webpki has read the certificate, so it parses.
fn not_after(certificate: &CertificateDer<'_>) -> Option<u64> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0))
}

/// With client certificates: when they end, in front of the session.
impl ProducesTickets for Asking {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        self.tickets.lifetime()
    }

    fn encrypt(&self, session: &[u8]) -> Option<Vec<u8>> {
        let Some(auth) = self.auth.get() else { return self.tickets.encrypt(session) };
        let good_until = self.good_until.load(Ordering::Relaxed);
        self.tickets.seal(&auth.binding(), &[&good_until.to_be_bytes(), session].concat())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let Some(auth) = self.auth.get() else { return self.tickets.decrypt(ticket) };
        let opened = self.tickets.open(&auth.binding(), ticket)?;
        let (good_until, session) = opened.split_first_chunk()?;
        let good_until = u64::from_be_bytes(*good_until);
        if clock::unix_time().as_secs() > good_until {
            return None;
        }
        // For the tickets of this connection.
        self.good_until.store(good_until, Ordering::Relaxed);
        Some(session.to_vec())
    }
}

impl fmt::Debug for Asking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asking").field("auth", &self.auth.get()).finish_non_exhaustive()
    }
}
