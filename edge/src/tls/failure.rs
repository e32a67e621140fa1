//! Why a handshake failed, in one of the words of the metrics, over TCP and QUIC.

use std::io;

use quinn_proto::TransportErrorCode;
use rustls::{AlertDescription, Error, InvalidMessage, PeerIncompatible};

use crate::metrics::HandshakeEnd;

/// Of one over TCP.
#[expect(clippy::wildcard_enum_match_arm, reason = "most kinds of errors do not come from a socket")]
pub(super) fn end_of(error: &io::Error) -> HandshakeEnd {
    let within = error.get_ref();
    if let Some(tls) = within.and_then(|within| within.downcast_ref::<Error>()) {
        return of_tls(tls);
    }
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            HandshakeEnd::Aborted
        }
        // Of the stream: its bound on what comes before the certificate is chosen.
        io::ErrorKind::InvalidData => HandshakeEnd::HelloTooLarge,
        _ => HandshakeEnd::Failed,
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the others are about ourselves")]
pub(super) fn of_tls(error: &Error) -> HandshakeEnd {
    match error {
        // We verify nobody but clients here.
        Error::NoCertificatesPresented | Error::InvalidCertificate(_) => HandshakeEnd::ClientCertificate,
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
        ) => HandshakeEnd::NotTls,
        Error::InvalidMessage(InvalidMessage::HandshakePayloadTooLarge) => HandshakeEnd::HelloTooLarge,
        Error::InvalidMessage(_)
        | Error::InappropriateMessage { .. }
        | Error::InappropriateHandshakeMessage { .. }
        | Error::PeerMisbehaved(_)
        | Error::PeerSentOversizedRecord
        | Error::DecryptError => HandshakeEnd::Malformed,
        Error::PeerIncompatible(
            PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::Tls13RequiredForQuic,
        ) => HandshakeEnd::Version,
        Error::PeerIncompatible(_) => HandshakeEnd::NothingInCommon,
        Error::NoApplicationProtocol => HandshakeEnd::NoProtocol,
        Error::AlertReceived(_) => HandshakeEnd::RefusedByClient,
        _ => HandshakeEnd::Failed,
    }
}

/// Of one over QUIC that we have ended, by the code that the client was told. `ours`: no word of rustls comes with it.
pub(crate) fn end_of_quic(code: TransportErrorCode, ours: bool) -> HandshakeEnd {
    let told = u64::from(code);
    let alert = told.checked_sub(CRYPTO_ERRORS).and_then(|alert| u8::try_from(alert).ok());
    match (alert.map(AlertDescription::from), ours) {
        (None, _) if code == TransportErrorCode::CRYPTO_BUFFER_EXCEEDED => HandshakeEnd::HelloTooLarge,
        (None, _) => HandshakeEnd::Malformed,
        // RFC 8446 section 9.2: a hello without a name, where one is needed.
        (Some(AlertDescription::UnrecognisedName), _) | (Some(AlertDescription::MissingExtension), true) => {
            HandshakeEnd::UnknownName
        }
        (Some(AlertDescription::InternalError), true) => HandshakeEnd::NoKey,
        (Some(AlertDescription::InternalError), false) => HandshakeEnd::Failed,
        (Some(AlertDescription::ProtocolVersion), _) => HandshakeEnd::Version,
        (Some(AlertDescription::NoApplicationProtocol), _) => HandshakeEnd::NoProtocol,
        (Some(AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity), _) => {
            HandshakeEnd::NothingInCommon
        }
        (Some(alert), _) if is_about_clients(alert) => HandshakeEnd::ClientCertificate,
        (Some(_), _) => HandshakeEnd::Malformed,
    }
}

/// RFC 9000 section 20.1: 0x0100 to 0x01ff, with the alert as the last byte.
const CRYPTO_ERRORS: u64 = 0x100;

/// Alerts that rustls sends when it refuses a certificate: here, a client's.
fn is_about_clients(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::CertificateRequired
            | AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateUnknown
    )
}
