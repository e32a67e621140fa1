//! Joining: a one-time token becomes an identity.

use std::sync::{Arc, OnceLock};

use portico_api::distribution::{JoinRequest, JoinResponse};
use portico_cert_store::CellId;
use tonic::Code;

use super::identity::{Identity, IdentityCertificate, IdentityError, Request, hpke_pair};
use super::limits::ControlDeadlines;
use super::tls;
use super::token::JoinToken;
use crate::live::full_text;

#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error(
        "the control plane at {address} does not show the CA that the join token names: the token is of another control plane, or somebody is in between; check the address and make a new token with `portico edge join`"
    )]
    OtherCa { address: String },
    /// The control plane has looked at the request and said no.
    #[error("the control plane at {address} refuses: {text}")]
    Refused { address: String, text: String },
    /// Worth another try.
    #[error("cannot reach the control plane at {address}: {text}")]
    Unreachable { address: String, text: String },
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl JoinError {
    pub(super) fn is_worth_retrying(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// Joins once. An edge that was somebody before keeps its HPKE pair: the cell keys on its disk are sealed to it.
pub(super) async fn join(
    address: &str,
    token: &JoinToken,
    build: &str,
    before: Option<&Identity>,
    deadlines: &ControlDeadlines,
) -> Result<Identity, JoinError> {
    let unreachable = |text: String| JoinError::Unreachable { address: address.to_owned(), text };
    let other_ca = Arc::new(OnceLock::new());
    let config = tls::joining_config(token.ca_sha256(), Arc::clone(&other_ca))
        .map_err(|error| unreachable(error.to_string()))?;
    let mut client =
        tls::connect(address, config, deadlines).await.map_err(|error| match other_ca.get() {
            Some(()) => JoinError::OtherCa { address: address.to_owned() },
            // tonic's own text for a failed connect is "transport error"; the reason is in its causes.
            None => unreachable(full_text(&error)),
        })?;
    let request = Request::new()?;
    let hpke = match before {
        Some(before) => before.hpke_pair(),
        None => hpke_pair()?,
    };
    let call = JoinRequest {
        token: token.secret_text().to_owned(),
        csr_der: request.csr_der.clone().into(),
        hpke_public_key: hpke.1.to_vec().into(),
        build: build.to_owned(),
    };
    let answer = tokio::time::timeout(deadlines.control_call, client.join(call))
        .await
        .map_err(|_| unreachable(format!("no answer within {:?}", deadlines.control_call)))?
        .map_err(|status| refused(address, &status))?
        .into_inner();
    Ok(identity_of(answer, request, hpke)?)
}

fn identity_of(
    answer: JoinResponse,
    request: Request,
    hpke: (portico_cert_store::hpke::HpkePrivateKey, [u8; 32]),
) -> Result<Identity, IdentityError> {
    let invalid = |error: &dyn std::fmt::Display| IdentityError::Answer(error.to_string());
    let edge = answer.edge_id.parse().map_err(|error: portico_cert_store::IdError| invalid(&error))?;
    let cell = CellId::parse(&answer.cell_id).map_err(|error| invalid(&error))?;
    let certificate = IdentityCertificate::from_answer(
        request,
        answer.certificate_chain_der.iter().map(AsRef::as_ref),
        answer.ca_der.iter().map(AsRef::as_ref),
    )?;
    Ok(Identity::new(edge, cell, certificate, hpke))
}

fn refused(address: &str, status: &tonic::Status) -> JoinError {
    let (address, text) = (address.to_owned(), status.message().to_owned());
    match status.code() {
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented => JoinError::Refused { address, text },
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => JoinError::Unreachable { address, text },
    }
}
