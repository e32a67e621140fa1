//! A ClientHello as it comes in CRYPTO frames: gathered until it is whole, then read.

use rustls::AlertDescription;
use rustls::server::Acceptor;

use crate::limits;
use crate::tls::HelloFacts;

/// The bytes of one so far.
#[derive(Debug, Default)]
pub(super) struct Hello(Vec<u8>);

/// Type and length of a handshake message (RFC 8446 section 4).
const HEAD_BYTES: usize = 4;
const CLIENT_HELLO: u8 = 1;
/// A record's content, at most (RFC 8446 section 5.1).
const RECORD_BYTES_MAX: usize = 1 << 14;

impl Hello {
    /// What it says, once it is whole.
    ///
    /// # Errors
    /// The alert for what is no ClientHello, or too long a one.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<Option<HelloFacts>, AlertDescription> {
        self.0.extend_from_slice(bytes);
        let [kind, length @ ..] = match self.0.first_chunk::<HEAD_BYTES>() {
            Some(head) => *head,
            None => return Ok(None),
        };
        if kind != CLIENT_HELLO {
            return Err(AlertDescription::UnexpectedMessage);
        }
        let length = length.iter().fold(0, |length, byte| (length << 8) | usize::from(*byte));
        if HEAD_BYTES + length > limits::CLIENT_HELLO_BYTES_MAX {
            return Err(AlertDescription::DecodeError);
        }
        if self.0.len() < HEAD_BYTES + length {
            return Ok(None);
        }
        self.read().map(Some)
    }

    /// All that came, and leaves nothing behind.
    pub(super) fn bytes(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }

    /// rustls reads hellos from records: these are those that it would have over TCP.
    fn read(&self) -> Result<HelloFacts, AlertDescription> {
        let mut records = Vec::with_capacity(self.0.len() + 16);
        for piece in self.0.chunks(RECORD_BYTES_MAX) {
            let length = u16::try_from(piece.len()).map_err(|_| AlertDescription::InternalError)?;
            records.extend_from_slice(&[22, 3, 1]);
            records.extend_from_slice(&length.to_be_bytes());
            records.extend_from_slice(piece);
        }
        let mut acceptor = Acceptor::default();
        let mut unread = &records[..];
        while !unread.is_empty() {
            if acceptor.read_tls(&mut unread).is_err() {
                return Err(AlertDescription::DecodeError);
            }
            match acceptor.accept() {
                Ok(Some(accepted)) => return Ok(HelloFacts::of(&accepted.client_hello())),
                Ok(None) => {}
                Err(_) => return Err(AlertDescription::DecodeError),
            }
        }
        Err(AlertDescription::DecodeError)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::quic::{ClientConnection, Version};

    use super::*;

    fn hello(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let name = name.to_owned().try_into().expect("a name");
        let mut client =
            ClientConnection::new(Arc::new(config), Version::V1, name, vec![0; 50]).expect("a client");
        let mut bytes = Vec::new();
        client.write_hs(&mut bytes);
        bytes
    }

    #[test]
    fn a_hello_is_read_when_its_last_byte_is_there() {
        let bytes = hello("shop.example");
        let mut gathered = Hello::default();
        let (last, before) = bytes.split_last().expect("a hello");
        for byte in before {
            assert!(gathered.take(&[*byte]).expect("a part of a hello").is_none());
        }
        let facts = gathered.take(&[*last]).expect("a hello").expect("whole");
        assert_eq!(facts.sni.map(|name| name.to_string()).as_deref(), Some("shop.example"));
        assert_eq!(gathered.bytes(), bytes, "all of it goes on");
    }

    #[test]
    fn what_is_no_hello_is_refused_at_once() {
        let alert = |bytes: &[u8]| Hello::default().take(bytes).err();
        assert_eq!(alert(&[2, 0, 0, 1]), Some(AlertDescription::UnexpectedMessage));
        assert_eq!(alert(&[1, 0, 0, 1, 0]), Some(AlertDescription::DecodeError));
        let long =
            u32::try_from(limits::CLIENT_HELLO_BYTES_MAX - HEAD_BYTES + 1).expect("it fits").to_be_bytes();
        assert_eq!(alert(&[1, long[1], long[2], long[3]]), Some(AlertDescription::DecodeError));
        let bytes = hello("shop.example");
        for place in 0..bytes.len() {
            let mut altered = bytes.clone();
            altered[place] ^= 0xff;
            // Whatever comes of it, it comes to an end.
            let _read = Hello::default().take(&altered);
        }
    }
}
